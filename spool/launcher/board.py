"""board - what a launcher and its hands tell each other in memory that they share.

Owns   that memory: when a sync began that has ended, when one of them last lacked work, when others
       were last seen.
Never  is needed: who has nobody to share with has a board that nobody else writes on. No task
       inherits it, and it ends with the processes.

A syncfs makes durable what all on a node have written, so that one may do for all.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from spool.launcher import clock

GIVEN = 3
"""The file descriptor as which a hand inherits it."""
LACK_S = 0.1
"""So long one that lacked work is taken to lack it; whoever does says so more often."""
OTHERS_S = 3.0
"""The same of others that were seen: they are looked for once a second."""
_NAME, _SIZE = "spool-board", mmap.PAGESIZE
_ABOVE = 64  # beyond what a program that is started expects to be its own
_DURABLE, _LACK, _OTHERS = 0, 1, 2


class Board:
    """Some moments of the machine's monotonic clock, each written at once by whoever comes.

    Where two write at a time, the older moment may stay: then there is one sync more than needed.
    """

    def __init__(self) -> None:
        self._moments = _map(-1)

    @contextmanager
    def offered(self) -> Iterator[int]:
        """An open file for processes to be started, which share the board from then on.

        -1 where the system knows no such files: each then has a board of its own.
        """
        try:
            file = _memory_file()
        except (AttributeError, OSError):
            yield -1
            return
        try:
            moments = _map(file)
            moments[_DURABLE] = self.durable_until
            self._moments = moments
            yield file
        finally:
            os.close(file)

    @classmethod
    def inherited(cls) -> Board:
        """The board of the launcher whose hand we are; one of our own if it has given us none."""
        board = cls()
        try:
            given = os.readlink(f"/proc/self/fd/{GIVEN}")
        except OSError:
            return board
        if given.startswith(f"/memfd:{_NAME} "):  # else it is no business of ours
            board._moments = _map(GIVEN)
            os.close(GIVEN)  # or our tasks would inherit it
        return board

    def synced(self, since: float) -> None:
        """All that anyone had written before that moment of `clock.now` is durable."""
        self._moments[_DURABLE] = since

    @property
    def durable_until(self) -> float:
        """All that was written before is durable; 0 where nothing is known of it."""
        return self._moments[_DURABLE]

    def lack(self) -> None:
        """Say that we have nothing to do."""
        self._moments[_LACK] = clock.now()

    def meet(self) -> None:
        """Say that launchers work on this spool that have no part in this board."""
        self._moments[_OTHERS] = clock.now()

    @property
    def lacking(self) -> bool:
        """Whether one of us has just had nothing to do, or others may, which we cannot know."""
        now, moments = clock.now(), self._moments
        return now - moments[_LACK] < LACK_S or now - moments[_OTHERS] < OTHERS_S


def _memory_file() -> int:
    file = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, _SIZE)
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    finally:
        os.close(file)


def _map(file: int) -> memoryview[float]:
    return memoryview(mmap.mmap(file, _SIZE)).cast("d")
