"""plans - pure: the allocation that suits one piece of waiting work, and what else would use it.

Owns   the choice of queue, nodes and time: what starts at once first, then what wastes least.
Never  reserves anything: a plan is an estimate, and who takes it fills it and pays for it.

A plan's value is the node-seconds of work it serves less those it leaves idle, which weigh the more
the higher the policy's minimum of utilisation: at that minimum the value is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spool.service.caps import NO_LIMIT, Caps
from spool.service.demand import NO_LOAD, Load, Profile, rounded
from spool.service.fitting import bands_for, most_nodes
from spool.service.packing import Skyline, Work
from spool.service.terms import Band, Policy, Queue, Window

SANE_S = 600.0
"""However wide, an allocation lasts so long if there is work: its start costs half a minute."""
PIECES = 8
"""What nothing idle would start is asked for in up to so many pieces: small ones start sooner."""

PROBE, WASTEFUL, SPARE, PARTIAL, LONGER, QUEUED, NOW = range(7)
UNCOUNTED = (PROBE, WASTEFUL)  # what they gain or waste is no matter to others


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes of a queue (its number) for so many usable seconds, within a band.

    kind says what speaks for it (LONGER: than the lead needs, for company; PARTIAL: what would be
    left over would waste too much; SPARE: it would, too, but all that is asked for now makes up for
    it); together are the nodes of as many alike as there is work for;
    narrowest: the work needs all these nodes in any case; least: the nodes that a remainder of it
    would be asked for with, 0: it would have to wait for company.
    """

    kind: int
    queue: int
    band: Band
    nodes: int
    usable_s: float
    value: float = 0.0
    together: int = 0
    window: int = -1
    dearness: float = 1.0
    share: float = 0.0
    load: Load = NO_LOAD
    least: int = 0
    narrowest: bool = False


@dataclass(frozen=True, slots=True)
class _Seat:
    """Where a plan for `lead` may lie: a queue, a band of it, from so few to so many nodes."""

    lead: Work
    number: int
    queue: Queue
    band: Band
    low: int
    high: int
    seconds: float
    dearness: float = 1.0
    window: int = -1

    def sizes(self, *wanted: int) -> set[int]:
        """These numbers of nodes within the limits; beside them those that the lead fills."""
        inside = {min(self.high, max(self.low, nodes)) for nodes in wanted}
        unit = self.lead.nodes / self.lead.parts[self.number]
        if unit <= 1:
            return inside
        beside = {
            n for one in inside for n in (int(one / unit + 1e-9), math.ceil(one / unit - 1e-9))
        }
        whole = {math.ceil(n * unit - 1e-9) for n in beside}
        return inside | {nodes for nodes in whole if self.low <= nodes <= self.high}


def walltime_s(queue: Queue, band: Band, usable_s: float, policy: Policy) -> float:
    """What is asked for so that so many seconds are usable: whole minutes, within the limits."""
    wanted = max(queue.min_s, math.ceil((usable_s + policy.padding_s) / 60 - 1e-9) * 60.0)
    return min(wanted, band.max_s) if band.max_s else wanted


class Planner:
    """Plans for what is left of the works; `renew` when that has changed.

    Queues in `closed` are not asked, those in `narrow` for no more nodes than it says.
    """

    def __init__(
        self, policy: Policy, caps: Caps, works: Sequence[Work], windows: dict[str, list[Window]]
    ) -> None:
        self.policy, self.caps, self.windows = policy, caps, windows
        self.closed: set[str] = set()
        self.narrow: dict[str, int] = {}
        self.by_time = sorted(works, key=lambda work: work.time_s)
        self.profiles: dict[int, Profile] = {}
        self.pieces: dict[int, int] = {}
        share = min(policy.min_utilisation, 0.99)
        self.idle_weight = share / (1 - share)

    def renew(self) -> None:
        """Something of the works was placed."""
        self.by_time = [work for work in self.by_time if work.left]
        self.profiles.clear()

    def plans(self, lead: Work, *, at_once: bool = False) -> Iterator[Plan]:
        """All that would serve a task of `lead` and that caps and budget allow."""
        able = (queue for n, queue in enumerate(self.policy.queues) if lead.asks[n])
        cheapest = min(queue.cost for queue in able)
        for number, queue in enumerate(self.policy.queues):
            if not lead.asks[number] or queue.name in self.closed or not self.caps.slots(queue):
                continue
            dearness = queue.cost / cheapest if cheapest else 1.0
            for band in bands_for(lead.nodes, lead.time_s, queue, self.policy):
                seat = self._seat(lead, number, band, dearness)
                if seat.low > seat.high:
                    continue
                if at_once:
                    yield from self._at_once(seat)
                elif queue.node.cores:
                    yield from self._in_turn(seat)
                elif not self.caps.live(queue):
                    yield from self._probe(seat)

    def _seat(self, lead: Work, number: int, band: Band, dearness: float) -> _Seat:
        queue = self.policy.queues[number]
        widest = min(most_nodes(band, queue, self.policy), self.caps.nodes_left(queue))
        return _Seat(
            lead,
            number,
            queue,
            band,
            low=max(band.min_nodes, lead.nodes),
            high=min(widest, self.narrow.get(queue.name, NO_LIMIT)),
            seconds=(band.max_s or math.inf) - self.policy.padding_s,
            dearness=dearness,
        )

    def _probe(self, seat: _Seat) -> Iterator[Plan]:
        """The least, where nobody knows yet what a node has: one at a time."""
        if seat.low <= self._affords(seat, seat.lead.time_s):
            yield Plan(PROBE, seat.number, seat.band, seat.low, seat.lead.time_s, narrowest=True)

    def _affords(self, seat: _Seat, usable_s: float) -> int:
        """The nodes for such a time that the budget leaves."""
        lasts_s = walltime_s(seat.queue, seat.band, usable_s, self.policy)
        return min(seat.high, self.caps.affords(seat.queue, lasts_s))

    def _loads(self, seat: _Seat) -> Iterator[Load]:
        """Work to be asked for together with the lead."""
        if seat.number not in self.profiles:
            self.profiles[seat.number] = Profile(self.by_time, seat.number)
        return self.profiles[seat.number].loads(seat.lead, seat.seconds, seat.high)

    def _either_way(self, nodes: float) -> tuple[int, ...]:
        """Rounded up; or down, with more time, where the last node would hardly be used."""
        low, high = max(1, math.floor(nodes)), max(1, math.ceil(nodes))
        return (high,) if nodes - low >= self.policy.min_utilisation else (low, high)

    # -- what would start at once ----------------------------------------------------------------

    def _at_once(self, whole: _Seat) -> Iterator[Plan]:
        """Into each window of idle nodes: as wide as there is work for ten minutes."""
        for seat in self._windowed(whole):
            for load in self._loads(seat):
                for wanted in self._either_way(load.node_s / max(load.time_s, SANE_S)):
                    for nodes in seat.sizes(wanted):
                        usable_s = min(seat.seconds, load.lasts_s(nodes))
                        yield from self._plan(NOW, seat, load, nodes, usable_s)

    def _windowed(self, seat: _Seat) -> Iterator[_Seat]:
        """The seat within each window that can hold the lead."""
        for place, window in enumerate(self.windows.get(seat.queue.name, ())):
            seconds = min(seat.seconds, window.seconds - self.policy.padding_s)
            if window.nodes >= seat.low and seconds >= seat.lead.time_s:
                high = min(seat.high, window.nodes)
                yield replace(seat, high=high, seconds=seconds, window=place)

    # -- what has to wait its turn ---------------------------------------------------------------

    def _in_turn(self, seat: _Seat) -> Iterator[Plan]:
        """A part of the work, for about as long as it should take, or longer if caps are tight."""
        soon_s = max(seat.lead.time_s, self.policy.within_s)
        for load in self._loads(seat):
            kind = QUEUED if load.time_s <= soon_s else LONGER
            whole_s = min(seat.seconds, rounded(self.policy.within_s, load.time_s))
            yield from self._no_remainder(seat, load, whole_s)
            for wanted in self._either_way(load.node_s / whole_s):
                for nodes in self._piece(seat, wanted):
                    together = self._at_most(seat, wanted, nodes)
                    usable_s = min(seat.seconds, max(whole_s, load.lasts_s(together)))
                    yield from self._plan(kind, seat, load, nodes, usable_s, together)
                    if usable_s > whole_s:
                        yield from self._plan(PARTIAL, seat, load, nodes, whole_s, together)

    def _no_remainder(self, seat: _Seat, load: Load, usable_s: float) -> Iterator[Plan]:
        """As many of the narrowest allocations there are as the work fills: more may come.

        And the widest that it fills; or, if it fills none for that long, one for as many rounds of
        the lead as it does.
        """
        behind_s = min(seat.seconds, usable_s + seat.lead.time_s)  # the longest after the lead
        for lasts_s in (usable_s, behind_s):
            full = int(load.node_s / lasts_s / seat.low + 1e-9) * seat.low
            for nodes in self._piece(seat, full) | {seat.low} if full else ():
                together = self._at_most(seat, full, nodes)
                yield from self._plan(PARTIAL, seat, load, nodes, lasts_s, together)
            if full:
                widest = min(seat.high, int(load.node_s / lasts_s + 1e-9))
                yield from self._plan(PARTIAL, seat, load, widest, lasts_s, widest)
        for nodes in seat.sizes(seat.low):
            rounds = int(load.node_s / nodes / seat.lead.time_s + 1e-9)
            if 0 < (even_s := rounds * seat.lead.time_s) < usable_s:
                yield from self._plan(PARTIAL, seat, load, nodes, even_s, nodes)

    def _piece(self, seat: _Seat, wanted: int) -> set[int]:
        """Of so many nodes, how many to ask for at once: some, or all."""
        pieces = max(1, min(self.caps.slots(seat.queue) // 2, PIECES, wanted // seat.low))
        piece = min(self.pieces.get(seat.number, 0), wanted)
        found = {wanted, wanted // pieces, math.ceil(wanted / pieces)}
        return seat.sizes(*(max(piece, nodes) for nodes in found))

    def _at_most(self, seat: _Seat, wanted: int, nodes: int) -> int:
        """Those wanted as far as the caps allow them, in pieces of so many."""
        left = self.caps.nodes_left(seat.queue)
        pieces = min(self.caps.slots(seat.queue), math.ceil(wanted / nodes))
        last = max(seat.low, wanted - nodes * (pieces - 1))
        return max(nodes, min(nodes * (pieces - 1) + min(last, nodes), left))

    # -- what may be added -----------------------------------------------------------------------

    def more_nodes(self, plan: Plan, skyline: Skyline, lead: Work) -> int:
        """How many nodes more would serve all of a work in a plan's time, as far as they may be."""
        rounds = int(skyline.usable_s / lead.time_s + 1e-9)
        if not rounds:
            return 0
        queue = self.policy.queues[plan.queue]
        wanted = math.ceil(math.ceil(lead.left / rounds) * lead.nodes / lead.parts[plan.queue])
        room = most_nodes(plan.band, queue, self.policy) - skyline.nodes
        return max(0, min(wanted, room, self.caps.nodes_left(queue)))

    def more_s(self, plan: Plan, skyline: Skyline, lead: Work) -> float:
        """How many seconds more would, after all else, as far as they may be."""
        beside = int(skyline.nodes * lead.parts[plan.queue] / lead.nodes)
        if not beside:
            return 0.0
        most_s = (plan.band.max_s or math.inf) - self.policy.padding_s
        wanted_s = skyline.end_s + math.ceil(lead.left / beside) * lead.time_s
        return max(0.0, min(wanted_s, most_s) - skyline.usable_s)

    # -- what it is worth ------------------------------------------------------------------------

    def _plan(
        self, kind: int, seat: _Seat, load: Load, nodes: int, usable_s: float, together: int = 0
    ) -> Iterator[Plan]:
        """The plan, cut to the budget; nothing if that leaves too little for the lead."""
        if self._affords(seat, usable_s) < min(nodes, seat.low):
            usable_s = load.time_s
        nodes = min(nodes, self._affords(seat, usable_s))
        if nodes < seat.low:
            return
        together = max(nodes, together)
        lasts_s = min(usable_s, load.lasts_s(together))
        served = min(load.node_s, together * lasts_s)
        value = self._value(served, together * lasts_s * seat.dearness)
        yield Plan(
            kind if value >= -1e-6 else WASTEFUL,
            seat.number,
            seat.band,
            nodes,
            usable_s,
            value,
            together,
            seat.window,
            seat.dearness,
            served / (together * lasts_s),
            load,
            least=seat.low if seat.low <= seat.lead.nodes else 0,
            narrowest=nodes <= seat.lead.nodes,
        )

    def _value(self, served: float, taken: float) -> float:
        """Of node-seconds served out of those taken.

        What a node costs more than in the cheapest queue that can serve the lead counts as idle.
        """
        return served - self.idle_weight * (taken - served)

    def worth(self, plan: Plan, first: Skyline, second: Skyline) -> float:
        """What a plan's value turns out to be once it is filled, with all that are alike.

        Those after the first are filled as the second is: what is in the way of the first may be in
        its way alone. What they leave over costs an allocation of its own, where it would be asked
        for.
        """
        rest = max(0.0, plan.load.node_s - first.node_s)
        alike, crumb = divmod(rest, second.node_s)
        alike = min(alike, self.caps.slots(self.policy.queues[plan.queue]) - 1)
        taken = max(crumb, plan.least * plan.load.time_s) if crumb > 1 else crumb
        value = self.gain(plan, first) + self.gain(plan, second) * alike
        return value + (self._value(crumb, taken) if plan.least else 0.0)

    def gain(self, plan: Plan, skyline: Skyline) -> float:
        """What one allocation's value turns out to be once it is filled."""
        return self._value(skyline.node_s, skyline.nodes * skyline.end_s * plan.dearness)
