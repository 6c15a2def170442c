"""children - what our tasks left behind: found as our own children, killed at their task's end.

Owns   the child-subreaper setting; the blame for orphans.
Never  touches a process that a task still running may have meant to keep.

The launcher is a child subreaper (prctl(2)), so whatever a task started and lost, in a session of
its own too, becomes our child. Its task is the one named in its environment; where a program
wiped that, every task that ran when it appeared shares the blame, and the last one's end ends it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

from spool.queue import processes

PR_SET_CHILD_SUBREAPER = 36
KILL_WAIT_S = 5.0


def become_subreaper() -> None:
    """Let orphaned descendants become our children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Children:
    """The children of this process; `ours` are those that no task started: the guard, hands."""

    def __init__(self) -> None:
        self.ours: set[int] = set()
        path = f"/proc/self/task/{os.getpid()}/children"
        self._list = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.blame: dict[int, set[str]] = {}

    def orphans(self, running: Collection[int]) -> list[int]:
        """Children that are neither ours nor in `running`."""
        listed = self._read()
        if listed.count(b" ") == len(running) + len(self.ours):  # each is followed by a space
            return []
        found = map(int, listed.split())
        return [pid for pid in found if pid not in self.ours and pid not in running]

    def _read(self) -> bytes:
        parts, at = [], 0
        while part := os.pread(self._list, 65536, at):
            parts.append(part)
            at += len(part)
            if len(part) < 4096:
                break
        return b"".join(parts)

    def end_task(self, task_id: str, pid: int, running: dict[int, str]) -> bool:
        """Kill all that a task left, whose first process `pid` has ended but is not yet reaped.

        `running` gives the task of each first process, this one included. Whether all is gone.
        """
        if not self.orphans(running):
            return True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_WAIT_S
        others = {task for task in running.values() if task != task_id}
        while guilty := self._blamed(task_id, running, others):
            for orphan in guilty:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(orphan, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(orphan, os.WNOHANG)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def _blamed(self, task_id: str, running: dict[int, str], others: set[str]) -> list[int]:
        """The orphans that only a task now ending answers for."""
        orphans = self.orphans(running)
        for orphan in set(self.blame) - set(orphans):
            del self.blame[orphan]
        for orphan in orphans:
            if orphan not in self.blame:
                self.blame[orphan] = _authors(orphan, set(running.values()))
        return [orphan for orphan in orphans if not self.blame[orphan] & others]


def _authors(orphan: int, running: set[str]) -> set[str]:
    named = processes.environment(orphan).get(b"SPOOL_TASK", b"").decode(errors="replace")
    return {named} if named else set(running)
