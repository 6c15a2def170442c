"""situation - all that a decision rests on, gathered from the spool and the batch system.

Owns   the translation of records, backlog and windows into sizing's terms.
Never  changes anything.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from spool.queue import allocations, owner
from spool.queue.allocations import ENDING, RUNNING, Allocation
from spool.queue.layout import Tree
from spool.service import reasons, tracking
from spool.service.backlog import Backlog
from spool.service.caps import Caps
from spool.service.system import BatchSystem, Unreachable
from spool.service.terms import Live, Policy, Queue, Situation, Trouble, Window


def gather(
    tree: Tree,
    system: BatchSystem,
    policy: Policy,
    backlog: Backlog,
    ours: Iterable[Allocation],
    troubles: dict[str, Trouble],
    spent_node_s: float,
    doubted: Container[str] = (),
) -> Situation:
    """What is, now; nothing of idle nodes in the queues that are doubted."""
    return Situation(
        needs=backlog.needs,
        live=tuple(live_of(tree, one) for one in ours),
        windows=_windows(system, policy, doubted) if backlog.needs else {},
        spent_node_s=spent_node_s,
        troubles=troubles,
    )


def too_dear(tree: Tree, policy: Policy, queue: Queue, nodes: int, walltime_s: float) -> str:
    """Why the budget does not pay for an allocation that a person wants; "" if it does."""
    live = tuple(live_of(tree, one) for one in allocations.live(tree) if one.live)
    now = Situation(needs=(), live=live, spent_node_s=tracking.spent_node_s(tree))
    caps = Caps(now, policy)
    paid = nodes <= caps.affords(queue, walltime_s)
    return "" if paid else reasons.too_dear(nodes, walltime_s, caps)


def live_of(tree: Tree, one: Allocation) -> Live:
    """An allocation as sizing sees it."""
    asked, seen = one.asked, one.standing
    running = seen.state in (RUNNING, ENDING)
    left_s = seen.left_s if seen.left_s is not None else asked.walltime_s - seen.ran_s
    return Live(
        name=asked.name,
        queue=asked.queue,
        nodes=asked.nodes,
        walltime_s=asked.walltime_s,
        running=running,
        left_s=max(0.0, left_s) if running else asked.walltime_s,
        waited_s=0.0 if asked.by_hand else seen.waited_s,  # it is never asked for differently
        unneeded_s=seen.unneeded_s,
        busy=busy(tree, asked.name) if running else 0.0,
        draining=seen.state == ENDING or bool(seen.withdrawn) or (running and _left(tree, asked)),
        selects=asked.selects,
    )


def busy(tree: Tree, name: str) -> float:
    """The share of an allocation's cores that run tasks, as its launchers last told it."""
    told = (owner.read_busy(tree, one) for one in _leaders(tree, name))
    shares = [share for share in told if share is not None]
    return sum(shares) / len(shares) if shares else 0.0


def _leaders(tree: Tree, name: str) -> list[str]:
    """Its launchers that are no hands of others and have not ended."""
    records = ((one, owner.read_record(tree, one)) for one in allocations.launchers(tree, name))
    return [one for one, record in records if _leads(record)]


def _leads(record: dict[str, object]) -> bool:
    return bool(record) and not record.get("hand_of") and not record.get("ended")


def _left(tree: Tree, asked: allocations.Asked) -> bool:
    """Whether its launchers came and went: it takes no more tasks."""
    return bool(allocations.launchers(tree, asked.name)) and not _leaders(tree, asked.name)


def _windows(
    system: BatchSystem, policy: Policy, doubted: Container[str]
) -> dict[str, tuple[Window, ...]]:
    found = {}
    for queue in policy.queues:
        if queue.name in doubted:
            continue
        try:
            windows = system.windows(queue.name)
        except Unreachable:
            continue  # unknown, which is not the same as none
        if windows is not None:
            found[queue.name] = windows
    return found
