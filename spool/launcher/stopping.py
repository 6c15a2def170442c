"""stopping - running tasks that must end: at their time limit, or because somebody said so.

Owns   every signal to a task: first the one it asked for, KILL when its grace is over.
Never  waits, and writes nothing: how a task ended is told when it has.
"""

from __future__ import annotations

import math
import os
import signal

from spool import units
from spool.launcher import clock
from spool.launcher.run import Running
from spool.queue import manifest

RUNNER_S = 5.0
AGAIN_S = 1.0  # between one KILL and the next, should a task take that long to die


MARGIN_S, LEAST_MARGIN_S = 5.0, 2.0
MARGIN_EACH_S = 0.005  # for each task that still runs


def margin_s(time_limit_s: float, running: int) -> float:
    """How long before its end a launcher must have stopped what runs, to bring it home."""
    return max(min(MARGIN_S, time_limit_s / 10), LEAST_MARGIN_S) + MARGIN_EACH_S * running


class Stops:
    """Minds the limits of `running`, the launcher's own table; `due_at` is when to look again."""

    def __init__(self, running: dict[int, Running]) -> None:
        self.running = running
        self.due_at = math.inf

    def watch(self, running: Running) -> None:
        """A task has begun, or is to end at another moment than before."""
        self.due_at = min(self.due_at, running.due_at)

    def enforce(self, now: float) -> None:
        """Stop what has reached its limit, kill what has used up its grace."""
        for running in self.running.values():
            if running.kill_at and now >= running.kill_at:
                _signal(running, signal.SIGKILL)
                running.kill_at = now + AGAIN_S
            elif running.limit_at and now >= running.limit_at and not running.stopping:
                self.stop(running, "timeout")
        self.due_at = min((one.due_at for one in self.running.values()), default=math.inf)

    def stop(self, running: Running, why: str) -> None:
        """Ask a task to end, and see to it that it does after its grace."""
        wanted = running.task.manifest
        running.stopping = why
        running.kill_at = clock.now() + grace_s(running)
        _signal(running, manifest.signal_number(wanted.signal))
        self.watch(running)

    def stop_all(self, why: str) -> None:
        """Ask all to end that were not asked before."""
        for running in self.running.values():
            if not running.stopping:
                self.stop(running, why)

    @property
    def longest_grace_s(self) -> float:
        """How long the most patient task may take to end."""
        graces = map(grace_s, self.running.values())
        return max(graces, default=0.0)


def grace_s(running: Running) -> float:
    """How long a task may take to end; the runner of a chunk tells the ends of its elements too."""
    wanted = running.task.manifest
    return units.duration(wanted.grace) + (RUNNER_S if wanted.array else 0.0)


def _signal(running: Running, number: int) -> None:
    """Signal a task's whole process group."""
    try:
        os.killpg(running.pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has just ended, or has become another user's: the end tells
