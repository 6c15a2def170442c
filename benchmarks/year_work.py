"""year_work - a year of a campaign's tasks, and a launcher that runs them in an allocation.

Owns   the bursts; what is ready; who waited how long; node-hours granted and used.
Never  asks for nodes: year_rivals.py does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from year_machine import DAY, HOUR, Clock, Job, Partition

from spool.queue.shape import Shape, round_time

CORES = 64
START_S, IDLE_S, MARGIN_S = 30.0, 60.0, 5.0
"""A launcher's start; without work it leaves after so long; before its end it starts no task."""


@dataclass(eq=False, slots=True)
class Burst:
    """Tasks that arrived together, of one shape; their end is the burst's."""

    source: str
    arrived: float
    left: int
    ended: float = -1.0


@dataclass(slots=True)
class Batch:
    """Tasks of a burst that take equally long in truth."""

    burst: Burst
    count: int
    lasts_s: float


# -- what arrives --------------------------------------------------------------------------------


def arrivals(seed: int, until: float) -> Iterator[tuple[float, str, Shape, int, random.Random]]:
    """(moment, source, shape, tasks): sessions of two days at each source, bursts in them.

    Beamlines as in the campaign of 48 hours: images one by one on a node each (aps), many small
    serial runs (als), mpi runs (lcls); and a few times a month an ensemble: serial, wide and long.
    """
    for number, source in enumerate((_aps, _als, _lcls)):
        dice = random.Random(f"{seed} {number}")
        moment = dice.expovariate(1 / (4 * DAY))
        while moment < until:
            yield from _session(source, dice, moment, until)
            moment += 2 * DAY + dice.expovariate(1 / (3 * DAY))
    dice = random.Random(f"{seed} ensembles")
    moment = dice.expovariate(1 / (8 * DAY))
    while moment < until:
        for shape, count in _ensemble(dice):
            yield moment, "ensemble", shape, count, dice
        moment += dice.expovariate(1 / (8 * DAY))


Source = Callable[[random.Random], tuple[str, Shape, int]]


def _session(
    source: Source, dice: random.Random, start: float, until: float
) -> Iterator[tuple[float, str, Shape, int, random.Random]]:
    moment = start
    while moment < min(start + 2 * DAY, until):
        name, shape, count = source(dice)
        yield moment, name, shape, count, dice
        moment += dice.expovariate(1 / (2 * HOUR))


def _aps(dice: random.Random) -> tuple[str, Shape, int]:
    minutes = dice.choice((10, 15, 20))
    return "aps", Shape(cores=CORES, time_s=minutes * 60), dice.randint(4, 60)


def _als(dice: random.Random) -> tuple[str, Shape, int]:
    minutes = dice.choice((5, 10, 30))
    return "als", Shape(time_s=minutes * 60), dice.randint(200, 20_000)


def _lcls(dice: random.Random) -> tuple[str, Shape, int]:
    nodes, minutes = dice.choice((2, 4, 8, 32)), dice.choice((20, 45, 90))
    shape = Shape(nodes=nodes, ranks=CORES, time_s=round_time(minutes * 60))
    return "lcls", shape, dice.randint(1, 16)


def _ensemble(dice: random.Random) -> Iterator[tuple[Shape, int]]:
    yield Shape(time_s=1800), dice.randint(20_000, 200_000)
    if dice.random() < 0.7:
        nodes = dice.choice((128, 256, 512))
        yield Shape(nodes=nodes, ranks=CORES, time_s=7200), dice.randint(1, 4)
    if dice.random() < 0.5:
        yield Shape(cores=CORES, time_s=5 * 3600), dice.randint(20, 300)


# -- what is ready -------------------------------------------------------------------------------


def unit(shape: Shape) -> float:
    """The nodes that a task takes: a share of one, or several."""
    return shape.nodes * shape.ranks * shape.cores / CORES


class Ready:
    """Tasks that wait, by shape, the oldest first; and what is known of those that do no more."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lanes: dict[Shape, deque[Batch]] = {}
        self.counts: dict[Shape, int] = {}
        self.bursts: list[Burst] = []
        self.waits: list[tuple[float, int]] = []
        self.used_node_s = self.granted_node_s = 0.0
        self.watchers: list[Callable[[], None]] = []

    def arrive(self, source: str, shape: Shape, batches: list[tuple[int, float]]) -> None:
        """A burst: (tasks, true seconds)."""
        total = sum(count for count, _ in batches)
        burst = Burst(source, self.clock.now, total)
        self.bursts.append(burst)
        lane = self.lanes.setdefault(shape, deque())
        lane.extend(Batch(burst, count, lasts_s) for count, lasts_s in batches if count)
        self.counts[shape] = self.counts.get(shape, 0) + total
        for watcher in list(self.watchers):
            watcher()

    def take(self, shape: Shape, most: int) -> Iterator[Batch]:
        """Up to so many tasks of a shape start now."""
        lane = self.lanes[shape]
        while most and lane:
            first = lane[0]
            count = min(most, first.count)
            first.count -= count
            if not first.count:
                lane.popleft()
            most -= count
            self._count(shape, count)
            self.waits.append((self.clock.now - first.burst.arrived, count))
            yield Batch(first.burst, count, first.lasts_s)

    def _count(self, shape: Shape, count: int) -> None:
        self.counts[shape] -= count
        if not self.counts[shape]:
            del self.counts[shape], self.lanes[shape]

    def finish(self, batch: Batch) -> None:
        """Tasks have ended."""
        batch.burst.left -= batch.count
        if not batch.burst.left:
            batch.burst.ended = self.clock.now

    def age_s(self, shape: Shape) -> float:
        """Of the hour of the oldest: more a lane does not tell."""
        return self.clock.now - self.lanes[shape][0].burst.arrived // HOUR * HOUR

    def in_order(self) -> list[Shape]:
        """As launchers take them: the oldest hour, the widest, the longest."""
        return sorted(self.lanes, key=lambda s: (-self.age_s(s), -unit(s), -s.time_s))


# -- who runs it ---------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Launcher:
    """Runs what fits in one allocation until its walltime, or until there is nothing for a minute.

    only: the one shape it takes, and `most` tasks of it (a job for one task).
    """

    ready: Ready
    partition: Partition
    job: Job
    only: Shape | None = None
    most: int = 0
    free: float = 0.0
    running: int = 0
    awake: bool = False
    idle_since: float = -1.0

    def start(self) -> None:
        """The allocation was granted."""
        self.free = float(self.job.width)
        self.ready.clock.at(self.ready.clock.now + START_S, self.wake)

    def wake(self) -> None:
        """Ready to take tasks."""
        if not self.job.over:
            self.awake = True
            self.ready.watchers.append(self.claim)
            self.claim()

    @property
    def left_s(self) -> float:
        """Until its walltime is over."""
        return self.job.started_at + self.job.walltime_s - self.ready.clock.now

    @property
    def busy(self) -> float:
        """The share of its nodes that work."""
        return 1 - self.free / self.job.width if self.awake else 0.0

    def claim(self) -> None:
        """Start what fits, in order."""
        if self.free > 1e-6:
            for shape in [self.only] if self.only else self.ready.in_order():
                if shape in self.ready.lanes and self._suits(shape):
                    self._start(shape)
        if self.running:
            self.idle_since = -1.0
        elif self.idle_since < 0:
            self.idle_since = self.ready.clock.now
            wait_s = 0.0 if self.only else IDLE_S
            self.ready.clock.at(self.ready.clock.now + wait_s, self._leave, self.idle_since)

    def _suits(self, shape: Shape) -> bool:
        return shape.nodes <= self.job.width and shape.time_s <= self.left_s - MARGIN_S

    def _start(self, shape: Shape) -> None:
        fitting = int(self.free / unit(shape) + 1e-6)
        if self.only:
            fitting = min(fitting, self.most)
            self.most -= fitting
        for batch in self.ready.take(shape, fitting):
            width = unit(shape) * batch.count
            self.free -= width
            self.running += 1
            self.ready.used_node_s += width * batch.lasts_s
            self.ready.clock.at(self.ready.clock.now + batch.lasts_s, self._ended, batch, width)

    def _ended(self, batch: Batch, width: float) -> None:
        self.free += width
        self.running -= 1
        self.ready.finish(batch)
        if not self.job.over:
            self.claim()

    def _leave(self, since: float) -> None:
        if not self.job.over and self.idle_since == since and not self.running:
            self.partition.end(self.job)

    def stop(self) -> None:
        """The allocation is over."""
        if self.awake:
            self.ready.watchers.remove(self.claim)
        self.ready.granted_node_s += self.job.width * (self.ready.clock.now - self.job.started_at)
