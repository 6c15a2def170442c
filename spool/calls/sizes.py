"""sizes - pure: how many calls go into one task, from how long such calls lasted.

Owns   the estimates, one for each function.
Never  touches a clock or a disk.

A task costs some milliseconds, so calls that last microseconds go by the hundred; but a call must
not wait behind others while a core is free, so long ones, and those not known yet, go alone.
"""

from __future__ import annotations

from collections.abc import Sequence

TARGET_S = 0.25  # of work in one batch
LEAST_S = 0.005  # no batch is cut smaller than that to share it out
EACH_S = 20e-6  # what even a call that does nothing costs
PROBES = 16  # calls of an unknown function that are under way at once
WEIGHT = 0.2  # of the newest duration


class Sizes:
    """What is known of functions by their names."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._known: dict[str, float] = {}

    def learn(self, function: str, seconds: float) -> None:
        """A call has lasted so long."""
        before = self._known.get(function)
        after = seconds if before is None else before + WEIGHT * (seconds - before)
        self._known[function] = after

    def at_least(self, function: str, seconds: float) -> None:
        """A call of it has lasted so long already, and still runs."""
        self._known[function] = max(seconds, self._known.get(function, 0.0))

    def knows(self, function: str) -> bool:
        """Whether any call of it has told how long it lasts."""
        return function in self._known

    def batch(self, waiting: Sequence[str], count: int, workers: int, probes: int) -> int:
        """How many of the first calls of `waiting` make the next batch; 0: wait for news.

        waiting names the functions of the first calls, count is how many wait in all, workers how
        many tasks are known to run at once, probes how many calls of unknown functions are under
        way.
        """
        first = waiting[0]
        if not self.knows(first):
            return int(probes < PROBES)
        mine = count * (self._known[first] + EACH_S) / max(1, workers)
        target = min(TARGET_S, max(LEAST_S, mine / 2))
        total, size = 0.0, 0
        for function in waiting[: self.most]:
            if not self.knows(function):
                break
            total += self._known[function] + EACH_S
            if size and total > target:
                break
            size += 1
        return size
