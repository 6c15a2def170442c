"""tracking - our allocations as the batch system knows them, look by look.

Owns   allocations/NAME/state; when an allocation that is missing counts as over; the ledger.
Never  believes one look: what was there and is missing counts as over after several, a while apart.
Fails  Unreachable: there was no look, and nothing follows from that.
"""

from __future__ import annotations

from spool import units
from spool.queue import allocations, owner
from spool.queue.allocations import (
    ASKED,
    ENDED,
    ENDING,
    NEVER,
    QUEUED,
    RUNNING,
    Allocation,
    Closed,
    Standing,
)
from spool.queue.layout import Tree
from spool.service import usage
from spool.service.system import BatchSystem, Job

MISSED_LOOKS, MISSED_S = 3, 90.0
LONGEST_GAP_S = 900.0
"""Between two looks; more than that is a clock that was set, or a service that was away."""
STATES = {"queued": QUEUED, "running": RUNNING, "ending": ENDING, "ended": ENDED}


class Tracker:
    """Follows all allocations of a spool that are not over. keep: nothing is written down."""

    def __init__(self, tree: Tree, system: BatchSystem, *, keep: bool = False) -> None:
        self.tree, self.system, self.keep = tree, system, keep
        self.over: list[tuple[Allocation, Closed]] = []

    def look(self, now: float) -> list[Allocation]:
        """Those that wait or run, now (epoch seconds); `over` gets those that just ended.

        Raises Unreachable.
        """
        ours = list(allocations.live(self.tree))
        if not ours:
            return []
        known = [one.standing.job for one in ours if one.standing.job]
        jobs = self.system.jobs(allocations.prefix(self.tree), known)
        by_name = {job.name: job for job in jobs.values()}
        for one in ours:
            if one.live:  # else its line in the ledger is missing: we were killed before it
                job = jobs.get(one.standing.job) or by_name.get(one.asked.name)
                self._advance(one, job, now)
            if one.live:
                self._write(one)
            else:
                self._close(one)
        return [one for one in ours if one.live]

    def _advance(self, one: Allocation, job: Job | None, now: float) -> None:
        seen = one.standing
        passed_s = min(max(0.0, now - seen.looked), LONGEST_GAP_S) if seen.looked else 0.0
        seen.looked = now
        if seen.state in (ASKED, QUEUED):
            seen.waited_s += passed_s
            seen.unneeded_s = seen.unneeded_s + passed_s if seen.unneeded else 0.0
        elif seen.state == RUNNING:
            seen.ran_s += passed_s
            seen.left_s = max(0.0, one.asked.walltime_s - seen.ran_s)
        if job is None:
            self._miss(one, passed_s)
        else:
            _take_over(seen, job, now)

    def _miss(self, one: Allocation, passed_s: float) -> None:
        """The batch system does not know it, or not any more, or just now."""
        seen = one.standing
        seen.missing += 1
        seen.missing_s += passed_s if seen.missing > 1 else 0.0
        if seen.missing < MISSED_LOOKS or (seen.missing_s < MISSED_S and not self._signed_off(one)):
            return
        seen.outcome = NEVER if not seen.job else ""
        seen.state, seen.why = ENDED, "the batch system does not know it"
        seen.ended = seen.ended or units.now_stamp()

    def _signed_off(self, one: Allocation) -> bool:
        """Whether its launchers have all said that they ended."""
        names = allocations.launchers(self.tree, one.asked.name)
        return bool(names) and all(owner.read_record(self.tree, n).get("ended") for n in names)

    def _write(self, one: Allocation) -> None:
        if not self.keep:
            allocations.write(self.tree, one.asked.name, one.standing)

    def _close(self, one: Allocation) -> None:
        """Put down its end, then its line in the ledger: a kill between the two repeats this."""
        line = closed(self.tree, one)
        self.over.append((one, line))
        if not self.keep:
            self._write(one)
            allocations.close(self.tree, line)


def _take_over(seen: Standing, job: Job, now: float) -> None:
    """What the batch system says of a job now."""
    seen.missing, seen.missing_s = 0, 0.0
    seen.job, seen.why = job.id, job.why
    seen.hosts = job.hosts or seen.hosts
    if job.used_s is not None:
        seen.ran_s = job.used_s
    state = STATES[job.state]
    if state in (RUNNING, ENDING, ENDED) and not seen.started and (state != ENDED or seen.ran_s):
        seen.started = units.stamp(now - seen.ran_s)
    if state == ENDED:
        seen.outcome, seen.ended = job.outcome, units.stamp(now)
    seen.left_s = job.left_s if job.left_s is not None else seen.left_s
    seen.state = state


def closed(tree: Tree, one: Allocation) -> Closed:
    """The ledger's line of an allocation that is over."""
    asked, seen, used = one.asked, one.standing, usage.of(tree, one)
    return Closed(
        name=asked.name,
        queue=asked.queue,
        nodes=asked.nodes,
        outcome=seen.outcome,
        ended=seen.ended,
        waited_s=round(seen.waited_s, 1),
        ran_s=round(seen.ran_s, 1),
        charged_node_s=round(asked.nodes * seen.ran_s * asked.cost, 1),
        tasks=used.tasks,
        failed=used.failed,
        granted_core_s=round(used.granted_core_s, 1),
        busy_core_s=round(used.busy_core_s, 1),
        wasted_core_s=round(used.wasted_core_s, 1),
        why=seen.withdrawn or seen.why,
    )


def spent_node_s(tree: Tree) -> float:
    """What all allocations that are over were charged."""
    return sum(line.charged_node_s for line in allocations.ledger(tree))
