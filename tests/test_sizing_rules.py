"""What holds of every decision, whatever waits and whatever is live; found by trying."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from spool.queue.shape import Shape, print_shape
from spool.service import fitting
from spool.service.caps import MOST_AT_ONCE
from spool.service.packing import Skyline, Work
from spool.service.sizing import decide
from spool.service.terms import (
    Band,
    Decision,
    Live,
    Need,
    NodeShape,
    Policy,
    Queue,
    Request,
    Situation,
    Window,
)

M, H, D = 60.0, 3600.0, 86400.0
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TIMES = (0, 1, 60, 600, 1200, 3600, 7200, 5 * 3600, 86400)

shapes = st.builds(
    Shape,
    priority=st.sampled_from((0, 0, 0, 5)),
    nodes=st.sampled_from((1, 1, 1, 2, 3, 8, 40)),
    ranks=st.sampled_from((1, 1, 2)),
    cores=st.sampled_from((1, 1, 3, 8, 16)),
    per_node=st.sampled_from((0, 0, 0, 2)),
    gpus=st.sampled_from((0, 0, 0, 1)),
    memory_mb=st.sampled_from((0, 0, 1024, 30 * 1024)),
    time_s=st.sampled_from(TIMES),
    features=st.sampled_from(("", "", "", "-a100")),
)
chunks = st.builds(
    Shape,
    cores=st.sampled_from((1, 4)),
    elements=st.sampled_from((1, 16, 100)),
    time_s=st.sampled_from(TIMES),
)
ages = st.sampled_from((0.0, 100.0, 2000.0, 4000.0, 10 * H))
a_need = st.builds(Need, st.one_of(shapes, shapes, chunks), st.integers(0, 400), oldest_s=ages)
tasks_only = st.lists(
    st.builds(Need, shapes, st.integers(0, 400), oldest_s=ages),
    max_size=8,
    unique_by=lambda need: need.shape,
).map(tuple)
backlogs = st.lists(a_need, max_size=8, unique_by=lambda need: need.shape).map(tuple)


@st.composite
def bands(draw: st.DrawFn) -> tuple[Band, ...]:
    found, least = [], draw(st.sampled_from((1, 1, 4)))
    for _ in range(draw(st.integers(1, 3))):
        most = least + draw(st.integers(0, 40))
        found.append(Band(least, most, draw(st.sampled_from((20 * M, 2 * H, D)))))
        least = most + 1
    return tuple(found)


@st.composite
def queues(draw: st.DrawFn, name: str) -> Queue:
    seen = draw(st.sampled_from((True, True, True, False)))
    node = NodeShape(draw(st.sampled_from((4, 16))), draw(st.sampled_from((0, 2))), 64 * 1024)
    return Queue(
        name=name,
        bands=draw(bands()),
        node=node if seen else NodeShape(),
        features=draw(st.sampled_from((frozenset[str](), frozenset({"a100"})))),
        max_queued=draw(st.sampled_from((0, 1, 2, 6))),
        max_running=draw(st.sampled_from((0, 0, 3))),
        max_live_nodes=draw(st.sampled_from((0, 0, 10))),
        cost=draw(st.sampled_from((1.0, 1.0, 2.0))),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    names = ("a", "b")[: draw(st.integers(1, 2))]
    return Policy(
        queues=tuple(draw(queues(name)) for name in names),
        max_queued=draw(st.sampled_from((0, 0, 3))),
        max_live_nodes=draw(st.sampled_from((0, 0, 12))),
        budget_node_s=draw(st.sampled_from((None, 0.0, 5 * H, 300 * H))),
        min_utilisation=draw(st.sampled_from((0.0, 0.5, 0.9))),
    )


@st.composite
def lives(draw: st.DrawFn) -> tuple[Live, ...]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        walltime_s = draw(st.sampled_from((20 * M, 2 * H, 10 * H)))
        running = draw(st.booleans())
        found.append(
            Live(
                name=f"live-{number}",
                queue=draw(st.sampled_from(("a", "b", "gone"))),
                nodes=draw(st.integers(1, 20)),
                walltime_s=walltime_s,
                running=running,
                left_s=walltime_s * draw(st.floats(0, 1)) if running else walltime_s,
                waited_s=draw(st.sampled_from((0.0, 300.0, 2 * D))),
                unneeded_s=draw(st.sampled_from((0.0, 100.0))),
                busy=draw(st.floats(0, 1)),
                draining=draw(st.sampled_from((False, False, True))),
            )
        )
    return tuple(found)


a_window = st.builds(Window, st.integers(0, 40), st.sampled_from((10 * M, H, 6 * H)))
all_windows = st.dictionaries(
    st.sampled_from(("a", "b")), st.lists(a_window, max_size=3).map(tuple), max_size=2
)
situations = st.builds(
    Situation, needs=backlogs, live=lives(), windows=all_windows, spent_node_s=st.floats(0, 200 * H)
)


# -- never too much ------------------------------------------------------------------------------


@QUICK
@given(situations, policies())
def test_no_cap_and_no_budget_is_ever_overstepped(situation: Situation, policy: Policy) -> None:
    requests = decide(situation, policy).requests
    queued = [one for one in situation.live if not one.running]
    if requests and policy.max_queued:
        assert len(queued) + len(requests) <= policy.max_queued
    if requests and policy.max_live_nodes:
        assert nodes(situation.live) + nodes(requests) <= policy.max_live_nodes
    if requests and policy.budget_node_s is not None:
        left = policy.budget_node_s - situation.spent_node_s
        assert charged(situation.live, policy) + charged(requests, policy) <= left + 1
    for queue in policy.queues:
        _within_caps(situation, queue, [one for one in requests if one.queue == queue.name])


def nodes(found: Any) -> int:
    return sum(one.nodes for one in found)


def charged(found: Any, policy: Policy) -> float:
    costs = {queue.name: queue.cost for queue in policy.queues}
    return sum(one.nodes * one.walltime_s * costs.get(one.queue, 1.0) for one in found)


def _within_caps(situation: Situation, queue: Queue, asked: list[Request]) -> None:
    live = [one for one in situation.live if one.queue == queue.name]
    queued = [one for one in live if not one.running]
    for cap, taken in (
        (queue.max_queued, len(queued) + len(asked)),
        (queue.max_running, len(live) + len(asked)),
        (queue.max_live_nodes, nodes(live) + nodes(asked)),
    ):
        assert not asked or not cap or taken <= cap
    for one in asked:
        band = next(b for b in queue.bands if b.min_nodes <= one.nodes <= b.max_nodes)
        assert one.walltime_s <= band.max_s
        assert one.walltime_s >= min(queue.min_s, band.max_s)


@QUICK
@given(situations, policies())
def test_nothing_is_asked_for_that_no_task_could_use(situation: Situation, policy: Policy) -> None:
    for request in decide(situation, policy).requests:
        assert any(_could_use(work, request, policy) for work in works_of(situation, policy))


def works_of(situation: Situation, policy: Policy) -> list[Work]:
    longest_s = fitting.longest_s(policy)
    return [
        fitting.work_of(need, policy, policy.queues, longest_s)
        for need in situation.needs
        if need.count
    ]


def _could_use(work: Work, request: Request, policy: Policy) -> bool:
    number = [queue.name for queue in policy.queues].index(request.queue)
    usable_s = request.walltime_s - policy.padding_s
    fits = work.nodes <= request.nodes and work.time_s <= usable_s + 1e-3
    return fits and work.parts[number] > 0


@QUICK
@given(situations, policies())
def test_no_backlog_no_requests(situation: Situation, policy: Policy) -> None:
    empty = msgspec.structs.replace(situation, needs=())
    decision = decide(empty, policy)
    assert not decision.requests
    assert decision.why


@QUICK
@given(situations, policies())
def test_a_decision_depends_on_nothing_else(situation: Situation, policy: Policy) -> None:
    assert decide(situation, policy) == decide(situation, policy)


@QUICK
@given(situations, policies())
def test_only_queued_allocations_are_cancelled_and_none_twice(
    situation: Situation, policy: Policy
) -> None:
    decision = decide(situation, policy)
    queued = {one.name for one in situation.live if not one.running}
    names = [one.name for one in decision.withdrawals]
    assert set(names) <= queued
    assert len(set(names)) == len(names)
    assert set(decision.unneeded) <= queued


@QUICK
@given(situations, policies())
def test_every_task_is_accounted_for(situation: Situation, policy: Policy) -> None:
    """What is unfit is said to be; all else is covered, asked for, or told why not."""
    decision = decide(situation, policy)
    told = decision.figures
    sums = told["covered_node_h"] + told["served_node_h"] + told["left_node_h"]
    assume(all(queue.cost == 1 for queue in policy.queues))
    assert told["backlog_node_h"] <= sums * (1 + 1e-6) + 1e-6
    if told["left_node_h"] > 1e-9:
        assert len(decision.why) > 1


# -- more work, never less served ----------------------------------------------------------------


@QUICK
@given(tasks_only, policies(), st.data())
def test_more_work_never_means_that_less_is_served(
    backlog: tuple[Need, ...], policy: Policy, data: st.DataObject
) -> None:
    """As far as no cap and no limit of one decision stops it, which cut where the packing is."""
    one, other = _compared(backlog, uncapped(policy), data)
    assert served(other) >= served(one) * 0.999 - 1e-6


@QUICK
@given(tasks_only, policies(), st.data())
def test_where_waste_is_no_matter_more_work_is_never_served_by_less(
    backlog: tuple[Need, ...], policy: Policy, data: st.DataObject
) -> None:
    policy = msgspec.structs.replace(uncapped(policy), min_utilisation=0.0)
    one, other = _compared(backlog, policy, data)
    assert served(other) >= served(one) - 1e-6


def served(decision: Decision) -> float:
    """Of the backlog, in node-hours of the nodes that suit it best: those of the queue that was
    chosen are fewer on larger nodes, although all the more is served."""
    return decision.figures["backlog_node_h"] - decision.figures["left_node_h"]


def _compared(
    backlog: tuple[Need, ...], policy: Policy, data: st.DataObject
) -> tuple[Decision, Decision]:
    """The decisions without and with some more tasks."""
    assume(backlog)
    assume(all(queue.node.cores for queue in policy.queues))  # of others one probe is all
    extra = data.draw(st.integers(1, 200))
    which = data.draw(st.integers(0, len(backlog) - 1))
    more = list(backlog)
    more[which] = msgspec.structs.replace(more[which], count=more[which].count + extra)
    one = decide(Situation(needs=backlog, live=()), policy)
    other = decide(Situation(needs=tuple(more), live=()), policy)
    assume(len(other.requests) < MOST_AT_ONCE)
    return one, other


def uncapped(policy: Policy) -> Policy:
    free = {"max_queued": 0, "max_running": 0, "max_live_nodes": 0}
    queues = tuple(msgspec.structs.replace(queue, **free) for queue in policy.queues)
    return Policy(queues=queues, min_utilisation=policy.min_utilisation)


# -- at rest -------------------------------------------------------------------------------------


def as_live(decision: Decision, number: int, **changes: Any) -> tuple[Live, ...]:
    return tuple(
        Live(
            name=f"ours-{number}-{place}",
            queue=one.queue,
            nodes=one.nodes,
            walltime_s=one.walltime_s,
            left_s=one.walltime_s,
            **changes,
        )
        for place, one in enumerate(decision.requests)
    )


@QUICK
@given(backlogs, policies(), all_windows)
def test_what_was_asked_for_is_not_asked_for_again(
    backlog: tuple[Need, ...], policy: Policy, windows: dict[str, tuple[Window, ...]]
) -> None:
    situation = Situation(needs=backlog, live=(), windows=windows)
    for number in range(40):
        decision = decide(situation, policy)
        assert not decision.withdrawals
        assert not decision.unneeded, (decision, situation.live)
        if not decision.requests:
            return
        live = (*situation.live, *as_live(decision, number))
        situation = msgspec.structs.replace(situation, live=live)
    raise AssertionError("it asks for ever")


# -- everything that fits is served in the end ---------------------------------------------------

ROUND_S = 3600.0
ROUNDS = 600
SEEN = NodeShape(16, 1, 64 * 1024)


class Toy:
    """A batch system that starts what is queued, one by one, as far as its nodes go.

    Launchers take what fits, in their order, and leave when nothing runs. The first one in a queue
    shows what its nodes have, where nobody knew.
    """

    def __init__(self, backlog: tuple[Need, ...], policy: Policy, size: int) -> None:
        self.policy, self.size = policy, size
        self.left = {need.shape: need.count for need in backlog}
        self.ages = {need.shape: need.oldest_s for need in backlog}
        self.queued: list[Live] = []
        self.running: list[tuple[Live, float]] = []
        self.asked = self.busy = 0

    def situation(self) -> Situation:
        needs = [Need(shape, n, self.ages[shape]) for shape, n in self.left.items() if n]
        return Situation(
            needs=tuple(needs), live=(*(live for live, _ in self.running), *self.queued)
        )

    def round(self) -> Decision:
        decision = decide(self.situation(), self.policy)
        gone = {one.name for one in decision.withdrawals}
        self.queued = [self._older(one, decision) for one in self.queued if one.name not in gone]
        self.asked += 1
        self.queued += as_live(decision, self.asked)
        self.running = [
            (self._on(one), end - ROUND_S) for one, end in self.running if end > ROUND_S
        ]
        self.ages = {shape: age + ROUND_S for shape, age in self.ages.items()}
        self._start()
        self.busy += bool(self.running)
        return decision

    def _older(self, one: Live, decision: Decision) -> Live:
        unneeded_s = one.unneeded_s + ROUND_S if one.name in decision.unneeded else 0.0
        waited_s = one.waited_s + ROUND_S
        return msgspec.structs.replace(one, unneeded_s=unneeded_s, waited_s=waited_s)

    def _on(self, one: Live) -> Live:
        return msgspec.structs.replace(one, left_s=max(0.0, one.left_s - ROUND_S))

    def _start(self) -> None:
        free = self.size - sum(one.nodes for one, _ in self.running)
        for one in list(self.queued):
            if one.nodes <= free:
                free -= one.nodes
                self.queued.remove(one)
                self._see(one.queue)
                skyline = self._work(one)
                started = msgspec.structs.replace(one, running=True, busy=1.0)
                self.running.append((started, skyline.end_s + 60))

    def _see(self, name: str) -> None:
        queues = [
            msgspec.structs.replace(queue, node=SEEN)
            if queue.name == name and not queue.node.cores
            else queue
            for queue in self.policy.queues
        ]
        self.policy = msgspec.structs.replace(self.policy, queues=tuple(queues))

    def _work(self, one: Live) -> Skyline:
        """A launcher's whole life at once: what it takes is served."""
        number = [queue.name for queue in self.policy.queues].index(one.queue)
        skyline = Skyline(number, one.nodes, one.walltime_s - self.policy.padding_s)
        works = works_of(self.situation(), self.policy)
        works.sort(key=lambda work: (-work.shape.priority, -work.age_s, -work.nodes))
        for work, count in skyline.fill(works):
            self.left[work.shape] = 0 if work.count == count else self.left[work.shape] - count
        return skyline


@settings(QUICK, max_examples=25)
@given(backlogs, policies(), st.integers(90, 200))
def test_everything_that_fits_is_served_in_the_end(
    backlog: tuple[Need, ...], policy: Policy, size: int
) -> None:
    policy = msgspec.structs.replace(policy, budget_node_s=None)
    assume(sum(need.count for need in backlog) < 1000)
    toy = Toy(backlog, policy, size)
    for number in range(2 * ROUNDS):
        if number == ROUNDS:  # more than fits, under its caps: then something ran all the time
            assert toy.busy >= 0.95 * ROUNDS, (toy.busy, toy.left)
        decision = toy.round()
        unfit = {text for text, _ in decision.unfit}
        if all(not n or print_shape(shape) in unfit for shape, n in toy.left.items()):
            return
    raise AssertionError((toy.left, decision.why))
