"""growing - pure: more nodes, or more time, in what is asked for, where work is left over.

Owns   whether a request grows: all work gets into what is asked for anew, and no less may come of
       it, and nothing that is asked for may be needed no more.
Never  asks for one allocation more, nor touches what would start at once or is to show a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from spool.service import plans, reasons
from spool.service.packing import Skyline, Work, undo
from spool.service.plans import Planner
from spool.service.reasons import Asked, Outcome
from spool.service.terms import Queue

Verdict = Callable[[Sequence[Skyline], float], bool]
"""Of allocations, the first of them grown, and the value of all that: whether it is a good one."""


class Grower:
    """Makes room for what is left over in what is asked for; `good` judges."""

    def __init__(self, outcome: Outcome, planner: Planner, good: Verdict) -> None:
        self.outcome, self.planner, self.good = outcome, planner, good

    def serve(self, work: Work) -> None:
        """Add nodes or, if that will not do, time for what is left of a work."""
        for growth in (self._wider, self._longer):
            for number, one in enumerate(self.outcome.asked):
                if not work.left or not self._may_grow(one, work):
                    continue
                if grown := growth(one, work):
                    self._try(number, grown)

    def _may_grow(self, one: Asked, work: Work) -> bool:
        ripe = work.age_s >= self.planner.policy.patience_s
        kept = one.request.queue in self.planner.closed and not ripe
        plan = one.plan
        return work.asks[plan.queue] and plan.kind != plans.PROBE and plan.window < 0 and not kept

    def _wider(self, one: Asked, work: Work) -> Skyline | None:
        was, nodes = one.skyline, self.planner.more_nodes(one.plan, one.skyline, work)
        return Skyline(was.queue, was.nodes + nodes, was.usable_s) if nodes else None

    def _longer(self, one: Asked, work: Work) -> Skyline | None:
        was, seconds = one.skyline, self.planner.more_s(one.plan, one.skyline, work)
        return Skyline(was.queue, was.nodes, was.usable_s + seconds) if seconds else None

    def _try(self, number: int, grown: Skyline) -> None:
        """Fill a request as it would be, and those after it as they are; keep that if it is good.

        So they will be filled once they are queued.
        """
        asked = self.outcome.asked[number:]
        before, left = [one.placed for one in asked], self._left_node_s()
        for placed in before:
            undo(placed)
        skylines = [grown, *(self._empty(one) for one in asked[1:])]
        works = [work for work in self.outcome.works if work.left]
        after = [skyline.fill(works) for skyline in skylines]
        gain = sum(map(self._gained, asked, skylines))
        paid = self._left_node_s() < left and self._affords(asked[0], grown)
        if paid and self.good(skylines, gain):
            self._keep(asked, skylines, after)
            return
        for placed in after:
            undo(placed)
        for work, count in (pair for placed in before for pair in placed):
            work.left -= count

    def _empty(self, one: Asked) -> Skyline:
        usable_s = one.request.walltime_s - self.planner.policy.padding_s
        return Skyline(one.plan.queue, one.request.nodes, usable_s)

    def _left_node_s(self) -> float:
        return sum(work.least_node_s(work.left) for work in self.outcome.works)

    def _gained(self, one: Asked, skyline: Skyline) -> float:
        """What is better than it was before, of what counts."""
        if one.plan.kind in plans.UNCOUNTED:
            return 0.0
        return self.planner.gain(one.plan, skyline) - self.planner.gain(one.plan, one.skyline)

    def _affords(self, one: Asked, grown: Skyline) -> bool:
        more_node_s = grown.nodes * self._lasts_s(one, grown) - one.request.node_s
        return more_node_s * self._queue(one).cost <= self.planner.caps.budget_left_node_s

    def _lasts_s(self, one: Asked, grown: Skyline) -> float:
        """The time that is asked for."""
        return plans.walltime_s(self._queue(one), one.plan.band, grown.end_s, self.planner.policy)

    def _queue(self, one: Asked) -> Queue:
        return self.planner.policy.queues[one.plan.queue]

    def _keep(
        self,
        asked: Sequence[Asked],
        skylines: Sequence[Skyline],
        after: Sequence[list[tuple[Work, int]]],
    ) -> None:
        first, nodes, walltime_s = asked[0], skylines[0].nodes, self._lasts_s(asked[0], skylines[0])
        was = first.request
        first.request = msgspec.structs.replace(was, nodes=nodes, walltime_s=walltime_s)
        more_node_s = first.request.node_s - was.node_s
        self.planner.caps.widen(self._queue(first), nodes - was.nodes, more_node_s)
        for one, skyline, placed in zip(asked, skylines, after, strict=True):
            one.skyline, one.placed = skyline, placed
            why = reasons.asked(placed, skyline, one.plan)
            one.request = msgspec.structs.replace(one.request, why=why)
