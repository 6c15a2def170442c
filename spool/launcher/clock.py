"""clock - the launcher's own time: the machine's, or the virtual one of a simulation.

Owns   what `now` and `epoch` answer for everything in launcher/.

Virtual time runs as fast as the launcher's own work does and jumps over its waits, so a simulated
launcher is charged for every moment that it keeps its nodes waiting, and for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_ahead = 0.0


def now() -> float:
    """Seconds of a monotonic clock."""
    return time.monotonic() + _ahead


def epoch() -> float:
    """Seconds since 1970."""
    return time.time() + _ahead


def jump(seconds: float) -> None:
    """Let virtual time pass at once: a simulated wait, or a disk's latency."""
    global _ahead
    _ahead += seconds


def ahead() -> float:
    """Seconds that virtual time is ahead of the machine's."""
    return _ahead


def reset() -> None:
    """Back to the machine's time."""
    global _ahead
    _ahead = 0.0


@contextmanager
def uncharged() -> Iterator[None]:
    """What is done within takes no virtual time: work that other machines would do."""
    begun = time.monotonic()
    try:
        yield
    finally:
        jump(begun - time.monotonic())
