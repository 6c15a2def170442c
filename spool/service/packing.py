"""packing - pure: how much of which work an allocation can take, and how long that lasts.

Owns   how many parts of tasks share a node (as the launcher's book counts them), the work that is
       left, the skyline of an allocation: how many of its nodes are free from when on.
Never  knows a cap, a queue's bands or a reason.

A skyline is filled as a launcher fills its nodes: every task starts where nodes get free first. It
counts parts of nodes, not cores one by one, so thousands of tasks of one shape cost a few steps.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from spool.queue.shape import Shape
from spool.service.terms import NodeShape

TINY = 1e-6


def parts(shape: Shape, node: NodeShape) -> int:
    """How many tasks' parts of this shape an empty node holds, 0: none.

    Of a node that nobody has seen yet one is expected; memory nobody told of is enough.
    """
    if not node.cores:
        return 1
    cores = shape.cores * shape.ranks
    if shape.per_node:
        cores = max(cores, node.cores // shape.per_node)
    found = node.cores // cores
    if shape.per_node:
        found = min(found, shape.per_node)
    if shape.gpus:
        found = min(found, node.gpus // shape.gpus)
    if shape.memory_mb and node.memory_mb:
        found = min(found, node.memory_mb // shape.memory_mb)
    return found


@dataclass(slots=True)
class Work:
    """Waiting tasks of one shape. parts is, queue by queue, how many share one of its nodes; 0:
    none of its nodes suits them. asks: whether that queue ever grants what they need.
    """

    shape: Shape
    count: int
    nodes: int
    time_s: float
    age_s: float
    parts: tuple[int, ...]
    left: int = 0
    asks: tuple[bool, ...] = ()

    def node_s(self, queue: int, count: int) -> float:
        """The node-seconds that so many of them take on a queue's nodes."""
        return count * self.nodes * self.time_s / self.parts[queue]

    def least_node_s(self, count: int) -> float:
        """The same on the nodes that suit them best."""
        return count * self.nodes * self.time_s / max((1, *self.parts))


@dataclass(slots=True)
class Skyline:
    """The nodes of one allocation of a queue (its number), each used up to some moment.

    usable_s is its end; nothing is to start at or after starts_s. Steps are (moment, nodes free
    from it on), in order.
    """

    queue: int
    nodes: int
    usable_s: float
    starts_s: float = math.inf
    steps: list[tuple[float, float]] = field(default_factory=list)
    node_s: float = 0.0
    oldest_s: float = 0.0
    end_s: float = 0.0
    widest: int = 0

    def __post_init__(self) -> None:
        if not self.steps:
            self.steps = [(0.0, float(self.nodes))]

    @property
    def share(self) -> float:
        """How busy its nodes would be, until the last of the work has ended."""
        return self.node_s / (self.nodes * self.end_s) if self.end_s else 0.0

    def can_hold(self, work: Work) -> bool:
        """Whether a task of this work could run here, were nothing else to."""
        return (
            work.nodes <= self.nodes
            and work.parts[self.queue] > 0
            and work.time_s <= self.usable_s + TINY
        )

    def fill(self, works: Iterable[Work]) -> list[tuple[Work, int]]:
        """Take of all work what there is time for, in the order given; what was taken.

        Thousands of works are offered to dozens of allocations that are full: hence the haste.
        """
        placed = []
        queue, nodes, usable_s = self.queue, self.nodes, self.usable_s + TINY
        first_s = self.steps[0][0]
        for work in works:
            if not work.left or first_s + work.time_s > usable_s or work.nodes > nodes:
                continue
            if first_s >= self.starts_s:
                break
            if not work.parts[queue]:
                continue
            if count := self._place(work, work.time_s, work.nodes / work.parts[queue]):
                placed.append((work, count))
                self._note(work, count)
                first_s = self.steps[0][0]
        return placed

    def _note(self, work: Work, count: int) -> None:
        work.left -= count
        self.node_s += work.node_s(self.queue, count)
        self.oldest_s = max(self.oldest_s, work.age_s)
        self.widest = max(self.widest, work.nodes)

    def _place(self, work: Work, time_s: float, unit: float) -> int:
        """Put tasks that are `unit` nodes wide onto the steps, the lowest first."""
        wanted = work.left
        too_narrow: list[tuple[float, float]] = []
        while wanted and self.steps:
            at_s, width = self.steps.pop(0)
            if at_s + time_s > self.usable_s + TINY or at_s >= self.starts_s:
                self.steps.insert(0, (at_s, width))
                break
            beside = min(int(width / unit + TINY), wanted)
            if not beside:
                self._widen(at_s, width, too_narrow, work.nodes > 1)
                continue
            rounds = self._rounds(at_s, time_s, wanted // beside)
            wanted -= beside * rounds
            self._use(at_s, width, beside * unit, at_s + rounds * time_s)
        for step in too_narrow:
            insort(self.steps, step)
        return work.left - wanted

    def _widen(
        self, at_s: float, width: float, too_narrow: list[tuple[float, float]], several: bool
    ) -> None:
        """Nodes too few for a task of several wait for the next that get free, if any do."""
        if self.steps and several:
            next_s, more = self.steps.pop(0)
            self.steps.insert(0, (next_s, width + more))
        else:
            too_narrow.append((at_s, width))

    def _rounds(self, at_s: float, time_s: float, wanted: int) -> int:
        """How often in a row, until the next nodes are free or time is up; once at least."""
        until_s = min(self.usable_s, self.steps[0][0] if self.steps else math.inf)
        within = int((until_s - at_s) / time_s + TINY) if until_s < math.inf else wanted
        if self.starts_s < math.inf:
            within = min(within, math.ceil((self.starts_s - at_s) / time_s - TINY))
        return max(1, min(within, wanted))

    def _use(self, at_s: float, width: float, used: float, until_s: float) -> None:
        self.end_s = max(self.end_s, until_s)
        self._add(until_s, used)
        if width - used > TINY:
            self._add(at_s, width - used)

    def _add(self, at_s: float, width: float) -> None:
        """A step, joined with one of the same moment."""
        insort(self.steps, (at_s, width))
        place = self.steps.index((at_s, width))
        for other in (place + 1, place - 1):
            if 0 <= other < len(self.steps) and abs(self.steps[other][0] - at_s) < TINY:
                low, high = min(place, other), max(place, other)
                self.steps[low : high + 1] = [(at_s, width + self.steps[other][1])]
                return


def undo(placed: Iterable[tuple[Work, int]]) -> None:
    """Work that was taken is left again."""
    for work, count in placed:
        work.left += count
