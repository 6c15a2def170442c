"""sizing - pure: what waits, what runs, the policy -> what to ask for, to cancel, and why.

Owns   the decision: what live allocations will serve, what is asked for the rest, what of our own
       queued allocations nothing needs. How to size one allocation stands in plans.py, how work
       packs into it in packing.py, what the limits leave in caps.py, the sentences in reasons.py.
Never  looks at a clock or a disk, and remembers nothing: the same situation, the same decision.

Work is taken as launchers take it: by priority, then the oldest, the widest, the longest. It goes
into what runs, into what would start at once, into what is queued; only what is left over is asked
for, piece by piece, each piece for the first task that is still without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from spool.queue import shape as shapes
from spool.service import fitting, plans, reasons
from spool.service.caps import Caps
from spool.service.growing import Grower
from spool.service.packing import Skyline, Work, undo
from spool.service.plans import Plan, Planner
from spool.service.reasons import Asked, Obstacles, Outcome
from spool.service.terms import (
    Decision,
    Live,
    Need,
    Policy,
    Queue,
    Request,
    Situation,
    Window,
    Withdrawal,
)

START_S = 10.0
"""Of the time left of what runs: a task that takes just that would be too late."""
POOR = 0.25
"""Of the minimum of utilisation: what is queued and would be used less is needed no more, and what
is left over and would use less waits, whatever else is asked for."""

TRIALS, MOST_TRIALS = 6, 24
"""Plans that are tried out for one piece of work, the most promising; more, until one is good."""


def decide(situation: Situation, policy: Policy) -> Decision:
    """What to ask for and what to cancel now, and why."""
    whole = _Sizing(situation, policy).run()
    if (late := _overdue(situation, policy, whole.unneeded)) is None:
        return whole
    for most in (0, late.nodes // 2, _least(late, policy)):
        instead = _Sizing(situation, policy, _Other(late, most)).run()
        if any(_elsewhere(request, late) for request in instead.requests):
            return _replaced(instead, Withdrawal(late.name, reasons.too_late(late, policy)))
    return _with_word(whole, reasons.no_alternative(late))


def _overdue(situation: Situation, policy: Policy, unneeded: Sequence[str]) -> Live | None:
    """Of our allocations that wait for too long, the one that has waited longest."""
    late = [
        one
        for one in situation.live
        if not one.running and one.waited_s > policy.queue_wait_s and one.name not in unneeded
    ]
    return max(late, key=lambda one: one.waited_s, default=None)


def _least(late: Live, policy: Policy) -> int:
    """The fewest nodes of its band: perhaps there are no more."""
    bands = [band for queue in policy.queues if queue.name == late.queue for band in queue.bands]
    return max((band.min_nodes for band in bands if band.min_nodes < late.nodes), default=0)


def _elsewhere(request: Request, late: Live) -> bool:
    """Whether a request does not just repeat what has waited in vain."""
    return request.queue != late.queue or request.nodes < late.nodes


def _replaced(decision: Decision, withdrawal: Withdrawal) -> Decision:
    return msgspec.structs.replace(decision, withdrawals=(*decision.withdrawals, withdrawal))


def _with_word(decision: Decision, sentence: str) -> Decision:
    return msgspec.structs.replace(decision, why=(*decision.why, sentence))


@dataclass(frozen=True, slots=True)
class _Other:
    """A decision without one allocation: its queue asked for at most so many nodes, or not (0)."""

    late: Live
    most: int


@dataclass(slots=True)
class _Bin:
    """A live allocation and what of the work it will serve."""

    live: Live
    skyline: Skyline


class _Sizing:
    """One decision in the making."""

    def __init__(self, situation: Situation, policy: Policy, other: _Other | None = None) -> None:
        self.situation, self.policy = situation, policy
        self.without = other.late if other else None
        self.queues = _with_strange(policy.queues, situation.live)
        self.numbers = {queue.name: number for number, queue in enumerate(self.queues)}
        self.caps = Caps(situation, policy)
        self.windows = {name: list(found) for name, found in situation.windows.items()}
        self.works = self._works()
        self.open = self.works
        self.outcome = Outcome(self.works)
        self.leads = self._leads()
        self.bins: list[_Bin] = []
        self.share = 0.0  # how busy the best plan for the last lead would keep its nodes
        self.gain = 0.0  # the value of what is asked for: what may be wasted on what is left over
        self.planner = Planner(policy, self.caps, self.works, self.windows)
        self.planner.closed |= self._troubled()
        if other:
            self.planner.narrow[other.late.queue] = other.most

    def run(self) -> Decision:
        """Cover, ask, cancel, explain."""
        running, soon, self.later = self._expected()
        self._cover([*running, *soon])
        self._ask(at_once=True)
        self._cover(self.later)
        self._ask()
        self._grow()
        unneeded = [bin for bin in self.bins if not bin.live.running and self._idle(bin.skyline)]
        withdrawn = [
            Withdrawal(bin.live.name, reasons.unneeded(bin.live, bin.skyline))
            for bin in unneeded
            if bin.live.unneeded_s >= self.policy.settle_s
        ]
        return Decision(
            requests=tuple(one.request for one in self.outcome.asked),
            withdrawals=tuple(withdrawn),
            why=tuple(reasons.sentences(self.situation, self.policy, self.outcome, self.caps)),
            unfit=tuple((shapes.print_shape(w.shape), why) for w, why in self.outcome.unfit),
            unneeded=tuple(bin.live.name for bin in unneeded),
            figures=reasons.figures(self.outcome, self.caps),
        )

    # -- what waits ------------------------------------------------------------------------------

    def _works(self) -> list[Work]:
        """All that allocations are to serve, in the order launchers take it."""
        needs = (n for n in self.situation.needs if n.count > 0 and n.shape.stage == "run")
        longest_s = fitting.longest_s(self.policy)
        return [
            fitting.work_of(need, self.policy, self.queues, longest_s)
            for need in sorted(needs, key=_rank)
        ]

    def _leads(self) -> list[Work]:
        """Those that a queue can serve, in the order in which they are asked for."""
        leads = []
        for work in self.works:
            if any(work.asks):
                leads.append(work)
            else:
                self.outcome.unfit.append((work, fitting.why_unfit(work, self.policy)))
        return sorted(leads, key=_turn)

    # -- what will be served ---------------------------------------------------------------------

    def _cover(self, live: Sequence[Live]) -> None:
        """Put the work into these allocations, one after the other."""
        for number, one in enumerate(live):
            if number % 8 == 0:
                self._shorten()
            bin = _Bin(one, self._skyline(one))
            self.bins.append(bin)
            bin.skyline.fill(self.open)
            self.outcome.covered_node_s += bin.skyline.node_s

    def _expected(self) -> tuple[list[Live], list[Live], list[Live]]:
        """What will take tasks: running, what fits a window, the rest by how long it waits."""
        able = [
            one
            for one in self.situation.live
            if not (one.draining or one.selects or one is self.without)
        ]
        running = [one for one in able if one.running]
        queued = sorted((one for one in able if not one.running), key=lambda one: -one.waited_s)
        soon = [one for one in queued if self._use_window(one.queue, one.nodes, one.walltime_s)]
        return running, soon, [one for one in queued if one not in soon]

    def _use_window(self, queue: str, nodes: int, walltime_s: float) -> bool:
        """Take the idle nodes that an allocation will start on, if there are any such."""
        found = self.windows.get(queue, [])
        fitting = [n for n, w in enumerate(found) if w.nodes >= nodes and w.seconds >= walltime_s]
        if not fitting:
            return False
        place = min(fitting, key=lambda n: (found[n].nodes, found[n].seconds))
        found[place] = Window(found[place].nodes - nodes, found[place].seconds)
        return True

    def _skyline(self, one: Live) -> Skyline:
        """What of an allocation is free from when on."""
        queue = self.numbers[one.queue]
        if not one.running:
            return Skyline(queue, one.nodes, one.walltime_s - self.policy.padding_s)
        usable_s = one.left_s - START_S
        busy = min(max(one.busy, 0.0), 1.0) * one.nodes
        rest_s = one.frees_s or self.policy.default_task_s / 2
        steps = [(0.0, one.nodes - busy), (min(rest_s, one.left_s), busy)]
        steps = [step for step in steps if step[1] > 1e-6]
        return Skyline(queue, one.nodes, usable_s, self.policy.within_s, steps)

    def _idle(self, skyline: Skyline) -> bool:
        """Whether nothing worth it would run in what is queued."""
        if skyline.node_s <= 0:
            return True
        if not self.queues[skyline.queue].node.cores:
            return False  # it is to show what a node has
        if skyline.oldest_s >= self.policy.patience_s or skyline.nodes <= max(1, skyline.widest):
            return False
        return skyline.share < self.policy.min_utilisation * POOR

    # -- what is asked for -----------------------------------------------------------------------

    def _ask(self, *, at_once: bool = False) -> None:
        """A request for the first work that has none, until there is none or no cap is left.

        at_once: only such as start at once, which may be sooner than what is queued.
        """
        if at_once and not any(self.windows.values()):
            return
        vain: dict[tuple[object, ...], str] = {}
        for work in self.leads:
            key = (work.parts, work.asks, work.nodes, work.time_s, self._ripe(work))
            while work.left and key not in vain and self._serve(work, at_once):
                pass
            if work.left and key not in vain:
                vain[key] = "" if at_once else self._why_not(work)
            if work.left and not at_once:
                self.outcome.held_back.append((work, work.left, vain[key]))

    def _grow(self) -> None:
        """Make room for what is left over in what is asked for.

        That comes last, since what is small starts sooner. Only some of it is tried.
        """
        held = self.outcome.held_back
        if self.caps.enough or not self.outcome.asked:
            return
        grower = Grower(self.outcome, self.planner, self._may_grow)
        for work in [work for work, _, _ in held if not self._held(work)][:TRIALS]:
            grower.serve(work)
        self.outcome.held_back = [(work, work.left, why) for work, _, why in held if work.left]

    def _may_grow(self, skylines: Sequence[Skyline], gain: float) -> bool:
        """Whether a request may become the first of these, if the others become the rest."""
        if not self._may_spare(skylines[0], gain) or any(map(self._idle, skylines)):
            return False
        self.gain += gain
        return True

    def _troubled(self) -> set[str]:
        """Queues that are left alone for now."""
        troubles = self.situation.troubles
        return {q.name for q in self.policy.queues if "*" in troubles or q.name in troubles}

    def _ripe(self, work: Work) -> bool:
        """Whether it has waited so long that waste is no matter."""
        return work.age_s >= self.policy.patience_s

    def _serve(self, lead: Work, at_once: bool) -> bool:
        """Ask for an allocation that serves some of this work, if there is a good one."""
        if self.caps.enough:
            return False
        every = dict.fromkeys(self.planner.plans(lead, at_once=at_once))
        self.share = max((plan.share for plan in every), default=0.0)
        found = [plan for plan in every if self._allowed(plan, lead, at_once)]
        found.sort(key=_merit, reverse=True)
        good: list[Plan] = []
        for number, plan in enumerate(found[:MOST_TRIALS]):
            if good and number >= TRIALS:
                break
            if (tried := self._tried(plan, lead)) and self._allowed(tried, lead, at_once):
                good.append(tried)
        if not good and not at_once:
            good = self._spare(every, lead)
        if good:
            self._take(max(good, key=_merit))
        return bool(good)

    def _spare(self, every: Iterable[Plan], lead: Work) -> list[Plan]:
        """Plans that waste too much alone, but not together with all else that is asked for.

        Only such are tried as promise it: thousands of shapes may be left over.
        """
        wasteful = [plan for plan in every if plan.kind == plans.WASTEFUL]
        wasteful = [plan for plan in wasteful if self._may_spare(plan, plan.value)]
        if not wasteful or self._held(lead):
            return []
        wasteful.sort(key=_merit, reverse=True)
        found = (self._spared(plan, lead) for plan in wasteful[:TRIALS])
        return [plan for plan in found if plan is not None]

    def _may_spare(self, plan: Plan | Skyline, gain: float) -> bool:
        """Whether it may be asked for beside all else, and would not be cancelled again."""
        return gain >= -self.gain and plan.share >= self.policy.min_utilisation * POOR

    def _spared(self, plan: Plan, lead: Work) -> Plan | None:
        before, skyline = lead.left, Skyline(plan.queue, plan.nodes, plan.usable_s)
        placed = skyline.fill(self.open)
        served = lead.left < before
        undo(placed)
        gain = self.planner.gain(plan, skyline)
        if not served or not self._may_spare(skyline, gain):
            return None
        return replace(plan, kind=plans.SPARE, value=gain)

    def _tried(self, plan: Plan, lead: Work) -> Plan | None:
        """The plan with its value once it is filled; None if it serves nothing."""
        if plan.kind == plans.PROBE:
            return plan
        before = lead.left
        first = Skyline(plan.queue, plan.nodes, plan.usable_s)
        placed = first.fill(self.open)
        vain = not placed or (plan.kind == plans.WASTEFUL and lead.left == before)
        value = 0.0 if vain else self._worth(plan, first)
        undo(placed)
        if vain:
            return None
        kind = plan.kind if value >= -1e-6 else plans.WASTEFUL
        return replace(plan, value=value, kind=kind)

    def _worth(self, plan: Plan, first: Skyline) -> float:
        """The value with all that are alike, of which the first is filled."""
        value = self.planner.worth(plan, first, first)
        if value >= -1e-6 or plan.together <= plan.nodes:
            return value
        second = Skyline(plan.queue, plan.nodes, plan.usable_s)
        placed = second.fill(self.open)
        undo(placed)
        return self.planner.worth(plan, first, second) if placed else value

    def _allowed(self, plan: Plan, lead: Work, at_once: bool) -> bool:
        """Whether a plan may be wasteful, if it is."""
        if at_once and plan.kind != plans.NOW and self.later:
            return False  # what is queued may be good enough
        if plan.kind != plans.WASTEFUL or self._ripe(lead):
            return True
        return plan.narrowest and not self._held(lead)

    def _held(self, lead: Work) -> bool:
        """Whether anything live could run it some time: then it waits for that."""
        return any(bin.skyline.can_hold(lead) for bin in self.bins)

    def _take(self, plan: Plan) -> None:
        """Fill a plan's allocation and ask for it."""
        queue = self.queues[plan.queue]
        skyline = Skyline(plan.queue, plan.nodes, plan.usable_s)
        placed = skyline.fill(self.open)
        walltime_s = plans.walltime_s(queue, plan.band, skyline.end_s, self.policy)
        if walltime_s - self.policy.padding_s > skyline.usable_s:  # minutes are asked for whole
            undo(placed)
            skyline = Skyline(plan.queue, plan.nodes, walltime_s - self.policy.padding_s)
            placed = skyline.fill(self.open)
        self._settle(plan, queue, walltime_s)
        if plan.kind not in plans.UNCOUNTED:
            self.gain += self.planner.gain(plan, skyline)
        why = reasons.asked(placed, skyline, plan)
        request = Request(queue.name, plan.nodes, walltime_s, why)
        self.outcome.asked.append(Asked(request, plan, placed, skyline))

    def _settle(self, plan: Plan, queue: Queue, walltime_s: float) -> None:
        """What is asked for is taken from caps and windows."""
        self.caps.take(queue, plan.nodes, walltime_s)
        if plan.window >= 0:
            window = self.windows[queue.name][plan.window]
            left = Window(window.nodes - plan.nodes, window.seconds)
            self.windows[queue.name][plan.window] = left
        else:
            self.planner.pieces.setdefault(plan.queue, plan.nodes)
        self._shorten()
        self.planner.renew()

    def _shorten(self) -> None:
        """Look no more at what is placed."""
        self.open = [work for work in self.open if work.left]

    def _why_not(self, lead: Work) -> str:
        """Why nothing is asked for; queues that the old wait for are kept from the younger."""
        if self.caps.enough:
            return self.caps.enough
        closed = self.planner.closed
        able = [q for n, q in enumerate(self.policy.queues) if lead.asks[n]]
        obstacles = Obstacles(self.caps, self.situation, self.policy, closed)
        why, passing = obstacles.why_not(lead, able, self.share)
        if passing and self._ripe(lead):
            closed |= {queue.name for queue in able}
        return why


def _merit(plan: Plan) -> tuple[int, int, bool, int, float]:
    """What is best of plans: how soon, how much for how little, then the fewer nodes, the less."""
    small = -plan.nodes * plan.usable_s
    return plan.kind, round(plan.value), plan.window >= 0, -plan.together, small


def _rank(need: Need) -> tuple[int, float, int, int]:
    """Priority, age, width, time; the first is served first."""
    return (-need.shape.priority, -need.oldest_s, -shapes.width(need.shape), -need.shape.time_s)


def _turn(work: Work) -> tuple[int, int, int, float]:
    """Priority, hours of age, then the wide, beside which others fit, then the short.

    Were the long before the short, the short would fill it up and wait for it.
    """
    return -work.shape.priority, -int(work.age_s // 3600), -work.nodes, work.time_s


def _with_strange(queues: Sequence[Queue], live: Sequence[Live]) -> list[Queue]:
    """The policy's queues, then those that only allocations name: nothing is known of them."""
    known = {queue.name for queue in queues}
    strange = sorted({one.queue for one in live} - known)
    return [*queues, *(Queue(name=name, bands=()) for name in strange)]
