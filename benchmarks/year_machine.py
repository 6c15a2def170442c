"""year_machine - a simulated machine: others' jobs, first come first served with EASY backfill.

Owns   the clock and its events; three queues (128 nodes and more; 20 to 127 nodes, which only fill
       gaps; up to 16 nodes for an hour, which are apart); jobs.
Never  knows who asks, or what an allocation of ours does with its nodes.

EASY: the first job that does not fit gets the earliest moment at which enough walltimes have run
out; others start before it if they are over by then, or need only nodes it leaves over.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NODES, DEBUG_NODES = 4376, 16
HOUR, DAY = 3600.0, 86400.0
# Nodes from, to, longest walltime: Theta's default queue; then its debug queue.
BANDS = (
    (128, 255, 3 * HOUR),
    (256, 383, 6 * HOUR),
    (384, 639, 9 * HOUR),
    (640, 801, 12 * HOUR),
    (802, NODES, 24 * HOUR),
)
DEBUG_BAND = (1, DEBUG_NODES, HOUR)
FILL_BAND = (20, 127, 6 * HOUR)
MAX_QUEUED = {"default": 20, "backfill": 20, "debug": 1}
WIDTHS = ((128, 40), (256, 25), (384, 12), (512, 12), (1024, 7), (2048, 3), (4096, 1))


class Clock:
    """Now, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, moment: float, call: Callable[..., None], *words: Any) -> None:
        """Call then; of two at one moment the one that was said first."""
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, call, words))

    def run(self, until: float) -> None:
        """All events up to a moment."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call, words = heapq.heappop(self._events)
            call(*words)
        self.now = until


@dataclass(eq=False, slots=True)
class Job:
    """`copies` equal jobs that wait, or one (of `copies` times the nodes) that runs.

    lasts_s is others' true running time; ours end when `end` is called, or at their walltime.
    """

    nodes: int
    walltime_s: float
    lasts_s: float = math.inf
    started: Callable[[Job], None] | None = None
    ended: Callable[[Job], None] | None = None
    copies: int = 1
    asked_at: float = 0.0
    started_at: float = -1.0
    over: bool = False

    @property
    def width(self) -> int:
        """All its nodes."""
        return self.nodes * self.copies


class Partition:
    """Nodes, the queue for them, what runs."""

    def __init__(self, clock: Clock, nodes: int) -> None:
        self.clock, self.nodes, self.free = clock, nodes, nodes
        self.queue: list[Job] = []
        self.gaps: list[Job] = []  # what waits to fill gaps, behind all others
        self.running: list[tuple[float, int, Job]] = []  # by the end of their walltimes
        self.busy_node_s = 0.0
        self._count = 0

    def submit(self, job: Job, *, fills: bool = False) -> None:
        """To the end of the queue."""
        job.asked_at = self.clock.now
        (self.gaps if fills else self.queue).append(job)
        self.schedule()

    def cancel(self, job: Job) -> None:
        """Take a job that waits out of the queue."""
        (self.gaps if job in self.gaps else self.queue).remove(job)
        self.schedule()

    def end(self, job: Job) -> None:
        """A job is over, by itself or at its walltime."""
        if job.over:
            return
        job.over = True
        self.running = [one for one in self.running if one[2] is not job]
        self.free += job.width
        self.busy_node_s += job.width * (self.clock.now - job.started_at)
        if job.ended:
            job.ended(job)
        self.schedule()

    def schedule(self) -> None:
        """Start what may start."""
        while self.queue and self.queue[0].nodes <= self.free:
            self._start(self.queue[0], self.free)
        if not self.free:
            return
        shadow, extra = self._reserve()
        for job in (*self.queue[1:], *self.gaps):
            room = self.free
            if self.clock.now + job.walltime_s > shadow:
                room = min(room, extra)
            if job.nodes <= room:
                used = self._start(job, room)
                extra -= used if self.clock.now + job.walltime_s > shadow else 0
            if not self.free:
                return

    def _reserve(self) -> tuple[float, int]:
        """When the first of the queue can start at the latest, and the nodes it leaves over."""
        if not self.queue:
            return math.inf, self.free
        wanted, free = self.queue[0].nodes, self.free
        for end, _, job in self.running:
            free += job.width
            if free >= wanted:
                return end, free - wanted
        raise AssertionError("a job wider than the machine")

    def _start(self, job: Job, room: int) -> int:
        """As many of its copies as there is room for; the nodes they take."""
        if (fitting := room // job.nodes) >= job.copies:
            (self.gaps if job in self.gaps else self.queue).remove(job)
            part = job
        else:
            job.copies -= fitting
            part = Job(job.nodes, job.walltime_s, job.lasts_s, job.started, job.ended, fitting)
            part.asked_at = job.asked_at
        part.started_at = self.clock.now
        self.free -= part.width
        self._count += 1
        insort(self.running, (self.clock.now + part.walltime_s, self._count, part))
        self.clock.at(self.clock.now + min(part.lasts_s, part.walltime_s), self.end, part)
        if part.started:
            part.started(part)
        return part.width

    def windows(self) -> list[tuple[int, float]]:
        """Idle nodes and for how long: what would start at once. No node stands in two of them."""
        if not self.free:
            return []
        shadow, extra = self._reserve()
        seconds, extra = shadow - self.clock.now, min(extra, self.free)
        if extra < 128:  # too few for a job of their own
            return [(self.free, seconds)]
        return [(extra, math.inf), (self.free - extra, seconds)]


@dataclass
class Machine:
    """Both partitions and the load of others on them."""

    clock: Clock
    seed: int
    load: float = 0.9
    partitions: dict[str, Partition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.partitions["default"] = Partition(self.clock, NODES)
        self.partitions["backfill"] = self.partitions["default"]
        self.partitions["debug"] = Partition(self.clock, DEBUG_NODES)

    def fill(self, until: float) -> None:
        """Others' jobs up to a moment: known before, the same whatever we do."""
        dice = random.Random(self.seed)
        mean = sum(self._drawn(random.Random(n)).width_s for n in range(4000)) / 4000
        self._others("default", dice, mean / (NODES * self.load), until)
        self._others("debug", dice, 4 * 1200 / (DEBUG_NODES * 0.5), until)

    def _others(self, name: str, dice: random.Random, every_s: float, until: float) -> None:
        moment = dice.expovariate(1 / every_s)
        while moment < until:
            if name == "default":
                drawn = self._drawn(dice)
                job = Job(drawn.nodes, drawn.walltime_s, drawn.lasts_s)
            else:
                job = Job(dice.choice((1, 2, 4, 8)), HOUR, dice.uniform(0.1, 0.57) * HOUR)
            self.clock.at(moment, self.partitions[name].submit, job)
            moment += dice.expovariate(1 / every_s)

    def _drawn(self, dice: random.Random) -> Drawn:
        """One job of others: its width, a walltime its band allows, and what it needs of that."""
        nodes = dice.choices([w for w, _ in WIDTHS], [n for _, n in WIDTHS])[0]
        longest = next(most for low, high, most in BANDS if low <= nodes <= high)
        walltime = max(1800.0, longest * dice.uniform(0.2, 1.0) // 1800 * 1800)
        return Drawn(nodes, walltime, walltime * dice.uniform(0.3, 1.0))


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the dice say of a job."""

    nodes: int
    walltime_s: float
    lasts_s: float

    @property
    def width_s(self) -> float:
        """Its node-seconds."""
        return self.nodes * self.lasts_s
