"""tracking - our allocations as the batch system knows them, look by look.

Owns   allocations/NAME/state; when an allocation that is missing counts as over; the ledger.
Never  believes one look: what was there and is missing counts as over after several, a while apart;
       nor a batch system other than the one that was asked for it.
Fails  Unreachable: there was no look, and nothing follows from that.
"""

from __future__ import annotations

from collections.abc import Iterable

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
from spool.service.requests import tells_of, wanted_end
from spool.service.system import BatchSystem, Job

MISSED_LOOKS, MISSED_S = 3, 90.0
LONGEST_GAP_S = 900.0
"""Between two looks; more than that is a clock that was set, or a service that was away."""
DOUBTFUL_S = 3600.0
STATES = {"queued": QUEUED, "running": RUNNING, "ending": ENDING, "ended": ENDED}


class Tracker:
    """Follows all allocations of a spool that are not over. keep: nothing is written down."""

    def __init__(self, tree: Tree, system: BatchSystem, *, keep: bool = False) -> None:
        self.tree, self.system, self.keep = tree, system, keep
        self.over: list[tuple[Allocation, Closed]] = []
        self.spent_node_s = 0.0
        self.strays: list[Job] = []

    def look(self, now: float) -> list[Allocation]:
        """Those that wait or run, now (epoch seconds); `over` gets those that just ended.

        spent_node_s is what all that is over was charged; strays are jobs that wait or run though
        the ledger closes them: the batch system took its time to know them. Raises Unreachable.
        """
        ledger = allocations.ledger(self.tree)
        self.spent_node_s = sum(line.charged_node_s for line in ledger)
        ours = list(allocations.live(self.tree, ledger))
        if not ours and not any(_is_doubtful(line, now) for line in ledger):
            return []
        jobs = jobs_of(self.tree, self.system, ours)
        over = {line.name for line in ledger}
        self.strays = [job for job in jobs.values() if job.name in over and job.state != "ended"]
        for one in ours:
            if one.live:  # else its line in the ledger is missing: we were killed before it
                self._advance(one, found(one, jobs), now)
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
        if job is not None:
            _take_over(seen, job, now)
        elif tells_of(self.system, one):
            self._miss(one, passed_s)
        elif self._signed_off(one):
            self._lose(one, "its launchers have ended")
        else:
            seen.why = f"was asked of {_place(one)}, which is not here"

    def _miss(self, one: Allocation, passed_s: float) -> None:
        """The batch system does not know it, or not any more, or just now."""
        seen = one.standing
        seen.missing += 1
        seen.missing_s += passed_s if seen.missing > 1 else 0.0
        if seen.missing < MISSED_LOOKS or (seen.missing_s < MISSED_S and not self._signed_off(one)):
            return
        self._lose(one, "the batch system does not know it")

    def _lose(self, one: Allocation, why: str) -> None:
        """It is over, and nobody can tell how: its launchers may have told how long it ran."""
        seen, names = one.standing, allocations.launchers(self.tree, one.asked.name)
        seen.outcome = "" if seen.job or names else NEVER
        seen.state, seen.why, seen.ended = ENDED, why, units.now_stamp()
        seen.ran_s = max(seen.ran_s, self._told_s(one, names))

    def _told_s(self, one: Allocation, names: list[str]) -> float:
        """From the start of its first launcher to the end of its last, at most its walltime."""
        records = [owner.read_record(self.tree, name) for name in names]
        begun = [epoch for record in records if (epoch := _epoch(record.get("started")))]
        ended = [epoch for record in records if (epoch := _epoch(record.get("ended")))]
        if not begun:
            return 0.0
        if len(ended) < len(begun):
            return one.asked.walltime_s  # one was killed, nobody knows when
        return min(max(0.0, max(ended) - min(begun)), one.asked.walltime_s)

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
        self.spent_node_s += line.charged_node_s
        if not self.keep:
            self._write(one)
            allocations.close(self.tree, line)


def jobs_of(tree: Tree, system: BatchSystem, ours: Iterable[Allocation]) -> dict[str, Job]:
    """What the batch system says of these, and of all that bear a name of this spool's."""
    asked = (one for one in ours if tells_of(system, one))
    return system.jobs(allocations.prefix(tree), [a.standing.job for a in asked if a.standing.job])


def found(one: Allocation, jobs: dict[str, Job]) -> Job | None:
    """An allocation's job: by its id, whose name must be right since ids are given out anew; else
    by its name, one that is not over first."""
    known = jobs.get(one.standing.job)
    if known is not None and known.name in ("", one.asked.name):
        return known
    named = [job for job in jobs.values() if job.name == one.asked.name]
    return min(named, key=lambda job: job.state == "ended", default=None)


def _is_doubtful(line: Closed, now: float) -> bool:
    """Whether the batch system may yet come to know what the ledger closes."""
    return line.outcome in (NEVER, "") and allocations.age_s(line.ended, now) < DOUBTFUL_S


def _place(one: Allocation) -> str:
    return f"{one.asked.system} on {one.asked.host}" if one.asked.host else one.asked.system


def _epoch(stamp: object) -> float:
    try:
        return units.read_stamp(str(stamp))
    except ValueError:
        return 0.0


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
        why=seen.withdrawn or wanted_end(tree, asked.name) or seen.why,
    )


def spent_node_s(tree: Tree) -> float:
    """What all allocations that are over were charged."""
    return sum(line.charged_node_s for line in allocations.ledger(tree))
