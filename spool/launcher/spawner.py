"""spawner - start a program on chosen cores, with as few system calls as can be.

Owns   the start of a task's program, and the launcher's own affinity around it.

A child inherits the affinity of whoever spawns it, so the exact way is to go to its cores first;
but being moved there and back costs a launcher as much as spawning. Where tasks last only
milliseconds the child is sent to its cores once it runs instead: the first instants of such a
program may see all cores.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import NamedTuple

RESET = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these; a program expects the default


class Order(NamedTuple):
    """A program to start. files become its descriptors 0, 1, 2; cores () are all there are."""

    program: str
    words: list[str]
    environment: Mapping[str, str]
    folder: str
    files: tuple[int, int, int]
    cores: tuple[int, ...]


class Spawner:
    """Starts programs in sessions of their own, with signals as by default."""

    def __init__(self) -> None:
        self.everywhere: Collection[int] = os.sched_getaffinity(0)

    def start(self, order: Order, *, hurried: bool) -> int:
        """The pid, once the program runs. Raises OSError. `hurried`: tasks last milliseconds."""
        os.chdir(order.folder)  # nothing else in this process minds where it is
        if not order.cores:
            return _spawn(order)
        if hurried:
            pid = _spawn(order)
            _pin(pid, order.cores)
            return pid
        _pin(0, order.cores)
        try:
            return _spawn(order)
        finally:
            _pin(0, self.everywhere)


def _spawn(order: Order) -> int:
    return os.posix_spawn(
        order.program,
        order.words,
        order.environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, file, n) for n, file in enumerate(order.files)],
        setsid=True,
        setsigmask=(),
        setsigdef=RESET,
    )


def _pin(pid: int, cores: Collection[int]) -> None:
    with suppress(OSError):  # it has just ended; or a core was taken from us: it runs on the others
        os.sched_setaffinity(pid, cores)
