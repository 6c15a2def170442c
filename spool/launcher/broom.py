"""broom - folders that were left empty, removed by a process of their own.

Owns   that child: its start, its end, the folders not yet given to one.
Never  removes what holds something: rmdir(1) leaves it. Waits for no disk until it is closed, but
       where no process can be started.

A thread would take the interpreter from the loop before and after each removal; where that waits
for a disk, two in every tenth of a millisecond.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress

from spool.launcher import clock
from spool.queue import files

MOST, WAIT_S = 250, 2.0
"""So many folders at once, or after so long. Each removal changes blocks that others change too:
the fewer syncs come in between, the less is written; but a launcher waits for the last of them."""
SYSTEM_PATH = "/bin:/usr/bin"  # a task's author may have put another rmdir into PATH


class Broom:
    """Removes folders some at a time: `drop` each, `mind` often, `close` at the end.

    ours are the pids of our process's children that are no task; None where there are none, as in
    a simulation: then it removes the folders itself.
    """

    def __init__(self, ours: set[int] | None) -> None:
        self.ours = set() if ours is None else ours
        self.program = None if ours is None else _find_rmdir()
        self.pids: set[int] = set()
        self.due_at = math.inf
        self._left: list[str] = []

    def drop(self, folder: str) -> None:
        """This folder, by its full path, was left."""
        if not self._left:
            self.due_at = clock.now() + WAIT_S
        self._left.append(folder)
        if len(self._left) >= MOST:
            self.due_at = 0.0

    def mind(self, now: float) -> None:
        """Have removed what was dropped, if it is many or a while ago."""
        if now >= self.due_at:
            self.sweep()

    def sweep(self) -> None:
        """Have removed what was dropped so far."""
        if not self._left:
            return
        left, self._left, self.due_at = self._left, [], math.inf
        try:
            self._start(left)
        except OSError:  # no more processes, or too many words: it is slower, that is all
            for folder in left:
                files.remove_folder(folder)

    def _start(self, folders: list[str]) -> None:
        if not self.program:
            raise FileNotFoundError("rmdir")
        pid = os.posix_spawn(
            self.program,
            ["rmdir", *folders],
            {},
            # Where something came into a folder meanwhile, it stays: that is nothing to be told.
            file_actions=[(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)],
            setsid=True,
            setsigmask=(),
        )
        self.pids.add(pid)
        self.ours.add(pid)

    def ended(self, pid: int) -> None:
        """A child of our process has ended, and is reaped."""
        if pid in self.pids:
            self.pids.discard(pid)
            self.ours.discard(pid)

    def close(self) -> None:
        """Have removed what is left, and wait for it."""
        self.sweep()
        for pid in list(self.pids):
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            self.ended(pid)


def _find_rmdir() -> str | None:
    return shutil.which("rmdir", path=SYSTEM_PATH) or shutil.which("rmdir")
