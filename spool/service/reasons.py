"""reasons - the sentences and figures of a decision: what waits, what serves it, what stops it.

Owns   every word that sizing says to a person.
Never  decides: it is told what was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from spool import units
from spool.queue import shape as shapes
from spool.service.caps import Caps, named_queue
from spool.service.fitting import bands_for
from spool.service.packing import Skyline, Work
from spool.service.plans import Plan
from spool.service.terms import Live, Policy, Queue, Request, Situation

HOUR = 3600.0
SHOWN = 8


@dataclass(slots=True)
class Asked:
    """A request, the plan that it was made by, and what it is for."""

    request: Request
    plan: Plan
    placed: list[tuple[Work, int]]
    skyline: Skyline


@dataclass(slots=True)
class Outcome:
    """What the sentences are made of."""

    works: list[Work]
    unfit: list[tuple[Work, str]] = field(default_factory=list)
    covered_node_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    held_back: list[tuple[Work, int, str]] = field(default_factory=list)


def hours(node_s: float) -> str:
    """12.5 node-hours."""
    amount = node_s / HOUR
    return f"{amount:,.1f} node-hours" if amount < 100 else f"{amount:,.0f} node-hours"


def listed(works: Sequence[Work]) -> str:
    """The first shapes by name, the others by number."""
    named = [shapes.print_shape(work.shape) for work in works[:3]]
    more = len(works) - len(named)
    return ", ".join(named) + (f" and {units.count(more, 'shape')} more" if more else "")


def asked(placed: Sequence[tuple[Work, int]], skyline: Skyline, plan: Plan) -> str:
    """Why an allocation is asked for."""
    tasks = units.count(sum(count for _, count in placed), "task")
    names = listed([work for work, _ in placed])
    nodes = units.count(skyline.nodes, "node")
    lasts = units.print_duration(math.ceil(skyline.end_s))
    soon = "; they are idle now" if plan.window >= 0 else ""
    return f"{tasks} ({names}) keep {nodes} {skyline.share:.0%} busy for {lasts}{soon}"


def unneeded(live: Live, skyline: Skyline) -> str:
    """Why what is queued is cancelled."""
    lasting = units.print_age(live.unneeded_s)
    if skyline.node_s <= 0:
        return f"for {lasting} nothing has needed it: other allocations serve all that waits"
    nodes = units.count(skyline.nodes, "node")
    return f"for {lasting} what waits would keep its {nodes} but {skyline.share:.0%} busy"


def too_late(live: Live, policy: Policy) -> str:
    """Why what waits in vain is cancelled."""
    limit = units.print_duration(policy.queue_wait_s)
    return f"it has waited {units.print_age(live.waited_s)}, longer than {limit}: asked differently"


def no_alternative(live: Live) -> str:
    """Why it is not."""
    waited = units.print_age(live.waited_s)
    return f"{live.name} has waited {waited}, and nothing else that may be asked for would do"


# -- why nothing is asked for --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Obstacles:
    """What may stand in the way of a request; closed are the queues that others wait for."""

    caps: Caps
    situation: Situation
    policy: Policy
    closed: set[str]

    def why_not(
        self, lead: Work, able: Sequence[Queue], share: float | None = None
    ) -> tuple[str, bool]:
        """Why no queue of those `able` is asked for this work; whether that is a cap, which passes.

        share is how busy it and its company would keep the nodes at best, None: nobody reckoned.
        """
        words, passing = [], False
        for queue in able:
            word, cap = self._of(queue, lead, share)
            passing |= cap
            if word not in words:
                words.append(word)
        return "; ".join(words[:3]), passing

    def _of(self, queue: Queue, lead: Work, share: float | None) -> tuple[str, bool]:
        caps, named = self.caps, named_queue(queue)
        troubles = self.situation.troubles
        if trouble := troubles.get("*") or troubles.get(queue.name):
            lasts = units.print_age(trouble.until_s)
            return f"{named} is left alone for {lasts}: {trouble.cause}", False
        if queue.name in self.closed:
            return f"{named} is kept for older work that waits for room in it", False
        if why := caps.why_closed(queue):
            return why, True
        if not queue.node.cores and caps.live(queue):
            return f"{named}: an allocation is to show what a node of it has", False
        bands = bands_for(lead.nodes, lead.time_s, queue, self.policy)
        nodes = min(max(band.min_nodes, lead.nodes) for band in bands)
        if nodes > caps.nodes_left(queue):
            return caps.why_narrow(queue, nodes), True
        walltime_s = max(queue.min_s, lead.time_s + self.policy.padding_s)
        if nodes > caps.affords(queue, walltime_s):
            return too_dear(nodes, walltime_s, caps), False
        left = units.print_age(max(0.0, self.policy.patience_s - lead.age_s))
        best = "" if share is None else f" ({share:.0%} busy at best)"
        return (
            f"too little for {units.count(nodes, 'node')} of {named}{best}:"
            f" left to what is live, or asked for when more comes, or in {left}"
        ), False


def too_dear(nodes: int, walltime_s: float, caps: Caps) -> str:
    """Why the budget does not pay for an allocation."""
    left = hours(max(0.0, caps.budget_left_node_s))
    total = hours(caps.policy.budget_node_s or 0.0)
    wanted = f"{units.count(nodes, 'node')} for {units.print_duration(walltime_s)}"
    return f"the budget has {left} of {total} left, too little for {wanted}"


# -- the whole -----------------------------------------------------------------------------------


def figures(outcome: Outcome, caps: Caps) -> dict[str, float]:
    """Node-hours: what waits, what is and will be served, what is asked for, what is left over."""
    works = outcome.works
    told = {
        "tasks": float(sum(work.count for work in works)),
        "backlog_node_h": sum(work.least_node_s(work.count) for work in works) / HOUR,
        "covered_node_h": outcome.covered_node_s / HOUR,
        "served_node_h": sum(one.skyline.node_s for one in outcome.asked) / HOUR,
        "asked_node_h": sum(one.request.node_s for one in outcome.asked) / HOUR,
        "left_node_h": sum(work.least_node_s(work.left) for work in works) / HOUR,
    }
    if caps.budget_left_node_s < math.inf:
        told["budget_left_node_h"] = caps.budget_left_node_s / HOUR
    return told


def sentences(situation: Situation, policy: Policy, outcome: Outcome, caps: Caps) -> Iterator[str]:
    """The decision in words."""
    if not outcome.works:
        yield "nothing waits for nodes" + _and_live(situation)
        return
    tasks = units.count(sum(work.count for work in outcome.works), "task")
    backlog = sum(work.least_node_s(work.count) for work in outcome.works)
    shapes_ = units.count(len(outcome.works), "shape")
    yield f"{tasks} of {shapes_} wait: {hours(backlog)}"
    if situation.live:
        covered = hours(outcome.covered_node_s)
        yield f"{_live(situation)} will serve {covered} of it"
    for one in outcome.asked:
        request = one.request
        lasts = units.print_duration(request.walltime_s)
        queue = f" of queue {request.queue}" if request.queue else ""
        yield f"asks for {units.count(request.nodes, 'node')}{queue} for {lasts}: {request.why}"
    yield from _held_back(outcome)
    if not outcome.asked and not outcome.held_back and not outcome.unfit:
        yield "nothing more is needed"


def _held_back(outcome: Outcome) -> Iterator[str]:
    """What is not asked for, by its reason; then what can never be."""
    by_reason: dict[str, list[tuple[Work, int]]] = {}
    for work, left, why in outcome.held_back:
        by_reason.setdefault(why, []).append((work, left))
    for work, why in outcome.unfit:
        by_reason.setdefault(f"no queue can ever serve it: {why}", []).append((work, work.left))
    for why, found in list(by_reason.items())[:SHOWN]:
        tasks = units.count(sum(left for _, left in found), "task")
        yield f"{tasks} ({listed([work for work, _ in found])}): {why}"
    if len(by_reason) > SHOWN:
        yield f"and {units.count(len(by_reason) - SHOWN, 'reason')} more"


def _live(situation: Situation) -> str:
    running = sum(one.running for one in situation.live)
    return f"{running} running and {len(situation.live) - running} queued allocations"


def _and_live(situation: Situation) -> str:
    return f"; {_live(situation)}" if situation.live else ""
