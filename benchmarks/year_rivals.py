"""year_rivals - who asks for allocations: spool's sizing, and what else people do.

Owns   the strategies. All see the same tasks, the same machine, the same idle nodes; their
       allocations run the same launcher, which leaves after a minute without work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from year_machine import (
    BANDS,
    DEBUG_BAND,
    FILL_BAND,
    HOUR,
    MAX_QUEUED,
    NODES,
    Job,
    Machine,
)
from year_work import CORES, Launcher, Ready, unit

from spool.queue.shape import Shape
from spool.service.sizing import decide
from spool.service.terms import Band, Live, Need, NodeShape, Policy, Queue, Situation, Window

INTERVAL_S = 60.0
PADDING_S = 300.0


@dataclass(eq=False, slots=True)
class Asked:
    """One allocation of ours."""

    name: str
    queue: str
    job: Job
    launcher: Launcher
    unneeded_since: float = -1.0

    @property
    def running(self) -> bool:
        """Or it waits."""
        return self.job.started_at >= 0


class Strategy:
    """Looks every minute while there is anything to do."""

    name, note = "", ""

    def __init__(self, machine: Machine, ready: Ready) -> None:
        self.machine, self.ready, self.clock = machine, ready, machine.clock
        self.live: dict[str, Asked] = {}
        self.asked = self.cancelled = self.empty = self.looks = 0
        self.next_look = -1.0
        ready.watchers.append(self.wake)

    def wake(self) -> None:
        """Something arrived: look at the next full minute."""
        if self.next_look <= self.clock.now:
            self.next_look = (self.clock.now // INTERVAL_S + 1) * INTERVAL_S
            self.clock.at(self.next_look, self._look)

    def _look(self) -> None:
        self.looks += 1
        self.look()
        if self.ready.lanes or self.queued():
            self.wake()

    def look(self) -> None:
        """Ask and cancel."""
        raise NotImplementedError

    def queued(self, queue: str = "") -> list[Asked]:
        """What waits, the oldest first."""
        return [a for a in self.live.values() if not a.running and queue in ("", a.queue)]

    def running(self) -> list[Asked]:
        """What runs."""
        return [a for a in self.live.values() if a.running]

    def room(self, queue: str) -> int:
        """How many more may be queued."""
        return MAX_QUEUED[queue] - len(self.queued(queue))

    def ask(
        self, queue: str, nodes: int, walltime_s: float, only: Shape | None = None, most: int = 0
    ) -> None:
        """An allocation, for some task only or for all."""
        self.asked += 1
        name = f"{self.asked:06}"
        partition = self.machine.partitions[queue]
        job = Job(nodes, walltime_s)
        launcher = Launcher(self.ready, partition, job, only, most)
        self.live[name] = Asked(name, queue, job, launcher)
        job.started = lambda _: launcher.start()
        job.ended = lambda _: self._ended(name)
        partition.submit(job, fills=queue == "backfill")

    def _ended(self, name: str) -> None:
        self.live.pop(name).launcher.stop()

    def cancel(self, asked: Asked) -> None:
        """One that waits."""
        self.cancelled += 1
        del self.live[asked.name]
        self.machine.partitions[asked.queue].cancel(asked.job)


def queues(names: tuple[str, ...]) -> tuple[Queue, ...]:
    """The machine's queues as a policy names them."""
    bands = {"debug": (DEBUG_BAND,), "backfill": (FILL_BAND,), "default": BANDS}
    return tuple(
        Queue(
            name=name,
            bands=tuple(Band(*band) for band in bands[name]),
            node=NodeShape(CORES),
            max_queued=MAX_QUEUED[name],
        )
        for name in names
    )


class Spool(Strategy):
    """decide(), each minute."""

    name = "spool"
    note = "the service's sizing with all its defaults: within 2 h, minimum of use 0.7"
    policy = Policy(queues=queues(("debug", "backfill", "default")), padding_s=PADDING_S)

    def look(self) -> None:
        """What sizing says."""
        decision = decide(self._situation(), self.policy)
        for withdrawal in decision.withdrawals:
            self.cancel(self.live[withdrawal.name])
        for asked in self.queued():
            if asked.name not in decision.unneeded:
                asked.unneeded_since = -1.0
            elif asked.unneeded_since < 0:
                asked.unneeded_since = self.clock.now
        for request in decision.requests:
            self.ask(request.queue, request.nodes, request.walltime_s)

    def _situation(self) -> Situation:
        windows = {
            name: tuple(Window(*found) for found in partition.windows())
            for name, partition in self.machine.partitions.items()
            if name != "backfill"  # its idle nodes are those of default
        }
        windows["backfill"] = windows["default"]
        return Situation(
            needs=tuple(
                Need(shape, count, self.ready.age_s(shape))
                for shape, count in self.ready.counts.items()
            ),
            live=tuple(self._live(asked) for asked in self.live.values()),
            windows=windows,
        )

    def _live(self, asked: Asked) -> Live:
        job, since = asked.job, asked.unneeded_since
        return Live(
            name=asked.name,
            queue=asked.queue,
            nodes=job.nodes,
            walltime_s=job.walltime_s,
            running=asked.running,
            left_s=asked.launcher.left_s if asked.running else job.walltime_s,
            waited_s=0.0 if asked.running else self.clock.now - job.asked_at,
            unneeded_s=self.clock.now - since if since >= 0 else 0.0,
            busy=asked.launcher.busy if asked.running else 0.0,
        )


class Fixed(Strategy):
    """The same allocation every so often while anything waits that it could serve."""

    queue, nodes, walltime_s, every_s = "default", 128, HOUR, 900.0

    def __init__(self, machine: Machine, ready: Ready) -> None:
        super().__init__(machine, ready)
        self.last = -self.every_s

    def look(self) -> None:
        """One more, if it is time."""
        serves = any(
            shape.nodes <= self.nodes and shape.time_s <= self.walltime_s - PADDING_S
            for shape in self.ready.lanes
        )
        if serves and self.clock.now - self.last >= self.every_s and self.room(self.queue) > 0:
            self.last = self.clock.now
            self.ask(self.queue, self.nodes, self.walltime_s)


class FixedGaps(Fixed):
    """The kind that finds its place soonest."""

    name = "fixed 64 x 2h / 15 min"
    note = "queue backfill; what is wider or longer it cannot serve"
    queue, nodes, walltime_s = "backfill", 64, 2 * HOUR


class FixedSmall(Fixed):
    """The least that the default queue gives."""

    name = "fixed 128 x 2h / 15 min"
    note = "queue default, its narrowest band; what is wider or longer it cannot serve"
    nodes, walltime_s = 128, 2 * HOUR


class FixedLarge(Fixed):
    """What serves every task of the campaign."""

    name = "fixed 512 x 6h / 60 min"
    note = "queue default, the least that serves every task of the campaign"
    nodes, walltime_s, every_s = 512, 6 * HOUR, 3600.0


class JobPerTask(Strategy):
    """A batch job for each task, as many as may be queued, in the first queue that takes it."""

    name = "a job per task"
    note = "for its estimate and padding, on the fewest nodes that debug, backfill, default give"

    def look(self) -> None:
        """The oldest tasks that have no job yet, as many as there are slots."""
        if not any(self.room(queue) > 0 for queue in MAX_QUEUED):
            return
        promised: dict[Shape, int] = {}
        for asked in self.live.values():
            if asked.launcher.only and not asked.launcher.awake:
                shape = asked.launcher.only
                promised[shape] = promised.get(shape, 0) + asked.launcher.most
        for shape in self.ready.in_order():
            missing = self.ready.counts[shape] - promised.get(shape, 0)
            while missing > 0 and self._ask_for(shape):
                missing -= 1

    def _ask_for(self, shape: Shape) -> bool:
        walltime_s = math.ceil((shape.time_s + PADDING_S) / 60) * 60.0
        for queue, bands in (
            ("debug", (DEBUG_BAND,)),
            ("backfill", (FILL_BAND,)),
            ("default", BANDS),
        ):
            for low, high, most in bands:
                if high >= shape.nodes and most >= walltime_s and self.room(queue) > 0:
                    self.ask(queue, max(low, shape.nodes), walltime_s, shape, 1)
                    return True
        return False


class Elastic(Strategy):
    """Balsam 0.7's elastic queue, as documented: one submission a minute at most."""

    queue = "default"
    least_nodes, most_nodes = 128, 512
    least_s, most_s = 35 * 60.0, 6 * HOUR
    wait_s = 600.0
    most_queued = 20
    backfill = True

    def look(self) -> None:
        """Its steps, in its order."""
        if len(self.live) < self.most_queued and self.ready.lanes:
            footprint = sum(unit(shape) * count for shape, count in self.ready.counts.items())
            smallest = min(max(1, shape.nodes) for shape in self.ready.lanes)
            if window := self._window(smallest):
                self._submit(footprint, *window)
        for asked in self.queued():
            if self.clock.now - asked.job.asked_at > self.wait_s and self.backfill:
                self.cancel(asked)

    def _window(self, smallest: int) -> tuple[int, float] | None:
        """The largest hole of nodes x time; without backfill, all that is allowed."""
        if not self.backfill:
            return self.most_nodes, self.most_s
        holes = [
            (nodes, min(seconds, self.most_s))
            for nodes, seconds in self.machine.partitions["default"].windows()
            if nodes >= max(smallest, self.least_nodes) and seconds >= self.least_s
        ]
        return max(holes, key=lambda hole: hole[0] * hole[1], default=None)

    def _submit(self, footprint: float, nodes: int, seconds: float) -> None:
        live = sum(asked.job.nodes for asked in self.live.values())
        busy = sum(a.job.nodes * a.launcher.busy for a in self.running())
        idle = live - busy
        if footprint <= idle:
            return
        wanted = math.ceil(min(max(self.least_nodes, footprint - idle), nodes, self.most_nodes))
        longest = next(most for low, high, most in (FILL_BAND, *BANDS) if low <= wanted <= high)
        self.ask(self.queue, wanted, min(seconds, longest))


class ElasticGaps(Elastic):
    """With its own defaults, which are made for such a queue."""

    name = "Balsam 0.7 elastic, 20-127"
    note = "queue backfill, all its defaults: 35 min to 6 h, waits at most 10 min"
    queue = "backfill"
    least_nodes, most_nodes = 20, 127


class ElasticWide(Elastic):
    """For the default queue, so that it serves the wide as well."""

    name = "Balsam 0.7 elastic, 128-512"
    note = "queue default, else its defaults"


class ElasticPlain(Elastic):
    """Without backfill."""

    name = "Balsam 0.7 elastic, no windows"
    note = "queue default, 128 to 512 nodes, use_backfill false, no limit of waiting"
    backfill = False


ALL: tuple[type[Strategy], ...] = (
    Spool,
    FixedGaps,
    FixedSmall,
    FixedLarge,
    JobPerTask,
    ElasticGaps,
    ElasticWide,
    ElasticPlain,
)
assert max(high for _, high, _ in BANDS) == NODES
