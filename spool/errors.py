"""errors - every exception that a person at the terminal may meet.

SpoolError                exit 1   the base: one sentence saying where, what, what next
  NotASpool               exit 1   no spool here, or one of another format
  ManifestError           exit 1   a manifest, a bulk line or an option is wrong
  NoSuchTask              exit 1   a selection names nothing
  Refused                 exit 1   the verb is not possible where the task lies
  TaskBusy                exit 1   somebody else moved the task meanwhile; try again
  TaskFailed              exit 1   a task whose result was asked for has failed
    CallLost              exit 1   a Python call ended without a result: its process was killed, ...
  FileSystemFault         exit 1   the file system refuses (full, read-only, another mount)
    DiskFull              exit 1   no space, inodes or quota left
  Declined                exit 1   a batch system says no to a request
  Unreachable             exit 1   a batch system gives no usable answer
  LeaseLost               exit 4   another process has taken this owner's tasks

Exit codes of the command line: 0 done; 1 an error, explained on standard error; 2 wrong usage;
3 `wait`: a task failed or was cancelled; 4 lease lost; 5 `wait` timed out; 6 `check` or `doctor`
found something.
Ranks: a lost race is a return value; bad input or environment is a SpoolError; our own bug is an
assertion whose traceback is kept.
"""

from __future__ import annotations


class SpoolError(Exception):
    """Bad input or a bad environment, said in one sentence."""

    exit_code = 1


class NotASpool(SpoolError):
    """There is no spool at this place, or it has a format this version cannot read."""


class ManifestError(SpoolError):
    """What a task asks for is malformed; the message names file, key, value and what is allowed."""


class NoSuchTask(SpoolError):
    """A selection names nothing."""


class Refused(SpoolError):
    """The verb is not possible in the state the task is in."""


class TaskBusy(SpoolError):
    """Somebody else moved the task meanwhile."""


class TaskFailed(SpoolError):
    """A task that was to give a result failed."""


class CallLost(TaskFailed):
    """A Python call has no result, and will have none."""


class FileSystemFault(SpoolError):
    """The file system refuses what the spool needs."""


class DiskFull(FileSystemFault):
    """No space, no inodes or no quota left."""


class LeaseLost(SpoolError):
    """Another process took this owner's claims: stop, and touch nothing."""

    exit_code = 4
