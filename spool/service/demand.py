"""demand - pure: how much work there is of what length and width, added up for one queue.

Owns   Load, what an allocation could be given; Profile, the sums that loads are read from.
Never  places anything: packing.py does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spool.service.packing import Work

WIDTHS = 32


@dataclass(frozen=True, slots=True)
class Load:
    """Work for an allocation: its longest time, its node-seconds, the mean time of one of them."""

    time_s: float
    node_s: float
    grain_s: float

    def lasts_s(self, nodes: int) -> float:
        """How long so many nodes work on it: whole rounds of what most of it is."""
        return max(self.time_s, rounded(self.node_s / nodes, self.grain_s))


NO_LOAD = Load(0.0, 0.0, 1.0)


def rounded(seconds: float, time_s: float) -> float:
    """Whole rounds of tasks of this time, one at least."""
    return max(1, math.ceil(seconds / time_s - 1e-9)) * time_s


class Profile:
    """The work of a queue by its time and by powers of two of its width."""

    def __init__(self, works: Sequence[Work], number: int) -> None:
        """Of `works`, which are in the order of their times."""
        self.rows: list[tuple[float, list[float], list[float]]] = []
        sums, weighted = [0.0] * WIDTHS, [0.0] * WIDTHS
        last_s = 0.0
        for work in works:
            if not work.left or not work.asks[number]:
                continue
            if work.time_s != last_s and last_s:
                self._add(last_s, sums, weighted)
            last_s = work.time_s
            node_s = work.node_s(number, work.left)
            width = _width(work.nodes)
            sums[width] += node_s
            weighted[width] += node_s * last_s
        if last_s:
            self._add(last_s, sums, weighted)

    def _add(self, time_s: float, sums: list[float], weighted: list[float]) -> None:
        self.rows.append((time_s, _running(sums), _running(weighted)))

    def loads(self, lead: Work, most_s: float, widest: int) -> Iterator[Load]:
        """From the lead on, all that is no longer than some time and no wider than so many nodes.

        Widths are told apart by powers of two; the lead's own is always in.
        """
        width = max(_width(lead.nodes), _width(widest + 1) - 1)
        for time_s, sums, weighted in self.rows:
            if lead.time_s <= time_s <= most_s:
                yield Load(time_s, sums[width], weighted[width] / sums[width])


def _width(nodes: int) -> int:
    """1 is 0, 2 is 1, 3 and 4 are 2, 5 to 8 are 3."""
    return min((nodes - 1).bit_length(), WIDTHS - 1)


def _running(values: list[float]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found
