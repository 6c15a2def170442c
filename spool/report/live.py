"""live - the one line a launcher keeps up to date on a terminal; nothing in a pipe.

Never  reads the tree.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol

from spool.queue.layout import State


class Shown(Protocol):
    """What the line is made of."""

    counts: Mapping[str, int]
    started: int
    began: float
    last_word: str

    @property
    def running_count(self) -> int:
        """Tasks that run now."""


class Line:
    """Call it with a launcher to draw; `close` leaves the cursor on a fresh line."""

    def __init__(self) -> None:
        self.drawn = False
        self._last = (time.monotonic(), 0)
        self._rate = 0.0

    def __call__(self, shown: Shown) -> None:
        """Draw the line anew."""
        done, failed = shown.counts.get(State.FINISHED, 0), shown.counts.get(State.FAILED, 0)
        now, (then, before) = time.monotonic(), self._last
        total = sum(shown.counts.values())
        if now > then:
            self._rate = (total - before) / (now - then)
        self._last = (now, total)
        words = f"{shown.running_count} running  {done:,} finished  {failed:,} failed"
        line = f"{words}  {self._rate:,.0f}/s  {shown.last_word}"
        sys.stderr.write(f"\r{line[:119]:<119}")
        sys.stderr.flush()
        self.drawn = True

    def close(self) -> None:
        """End the line."""
        if self.drawn:
            sys.stderr.write("\n")
