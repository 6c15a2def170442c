"""guard - the owner's side of the process that kills its tasks should the owner be killed.

Owns   the pipe to the guard (spool/queue/processes.py run by its path).
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress

from spool.queue import processes

TELL_S = 0.1


class Guard:
    """Start it before the first task, `beat` with each heartbeat, `end` when no task runs.

    node is the mark of this node's processes, where several of an owner share a process table.
    """

    def __init__(self, owner: str, fence_s: float, node: str = "") -> None:
        read_end, self._pipe = os.pipe()
        os.set_inheritable(read_end, True)
        words = [sys.executable, "-I", "-S", processes.__file__, owner, str(fence_s), node]
        marks = (processes.MARK, processes.MINDER)
        unmarked = {k: v for k, v in os.environ.items() if k not in marks}
        actions = [
            (os.POSIX_SPAWN_DUP2, read_end, 0),
            # Whoever reads our own output shall see its end when we end.
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
        self.pid = os.posix_spawn(
            sys.executable, words, unmarked, file_actions=actions, setsid=True, setsigmask=[]
        )
        os.close(read_end)
        self.tell_at = math.inf
        self._new: set[int] = set()
        self._told: set[int] = set()

    def beat(self) -> None:
        """Say that the owner lives and holds its lease."""
        self._say(processes.BEAT)

    def started(self, pid: int) -> None:
        """Tell it, soon, the session of a task: to be killed even where it wiped its environment.

        A task that ends within TELL_S is never told: a wake of the guard costs more than it.
        """
        if not self._new:
            self.tell_at = time.monotonic() + TELL_S
        self._new.add(pid)

    def ended(self, pid: int) -> None:
        """Tell it that a session is over, before its number is used again."""
        if pid in self._new:
            self._new.discard(pid)
        elif pid in self._told:
            self._told.discard(pid)
            self._say(b"-%d" % pid)

    def tell(self) -> None:
        """Say what there is to say, when `tell_at` has come."""
        self.tell_at = math.inf
        if self._new:
            self._say(b"\n".join(b"+%d" % pid for pid in self._new))
            self._told |= self._new
            self._new.clear()

    def end(self) -> None:
        """Let it go: no task is left."""
        self._say(processes.DONE)
        os.close(self._pipe)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        """It is dead: forget the pipe to it."""
        os.close(self._pipe)

    def _say(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # it was killed: the loop reaps it and starts another
            os.write(self._pipe, line + b"\n")
