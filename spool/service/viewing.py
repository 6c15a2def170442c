"""viewing - allocations for a person: what waits, runs and was, with what it did.

Owns   the rows of `spool queue`.
Never  writes: the service alone keeps the records.
"""

from __future__ import annotations

import msgspec

from spool.queue import allocations
from spool.queue.allocations import Allocation, Closed
from spool.queue.layout import Tree
from spool.service import situation, usage
from spool.service.requests import wanted_end
from spool.service.system import BatchSystem, Unreachable
from spool.service.tracking import Tracker


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One allocation; times in seconds, utilisation and busy 0 to 1, None where unknown."""

    name: str
    job: str
    queue: str
    state: str
    nodes: int
    walltime_s: float
    left_s: float | None = None
    waited_s: float = 0.0
    tasks: int = 0
    failed: int = 0
    busy: float | None = None
    utilisation: float | None = None
    node_hours: float = 0.0
    asked: str = ""
    ended: str = ""
    why: str = ""


class View(msgspec.Struct):
    """All rows, and a word where the batch system gave no answer."""

    live: list[Row]
    over: list[Row]
    words: list[str]
    more: int = 0


def look(tree: Tree, system: BatchSystem, now: float, most: int | None = None) -> View:
    """All allocations as they are now; of those that are over the last `most`, and `more`."""
    words, tracker = [], Tracker(tree, system, keep=True)
    try:
        ours = tracker.look(now)
        over = [line for _, line in tracker.over]
    except Unreachable as fault:
        words.append(f"{system.name} gives no answer, so this is as of the last look: {fault}")
        ours, over = [one for one in allocations.live(tree) if one.live], []
    lines = [*allocations.ledger(tree), *over]
    shown = lines if most is None else lines[-most:]
    rows = [_of_live(tree, one) for one in ours]
    ended = [_of_over(tree, line) for line in shown]
    return View(rows, ended, words, len(lines) - len(shown))


def _of_live(tree: Tree, one: Allocation) -> Row:
    asked, seen, used = one.asked, one.standing, usage.of(tree, one)
    running = bool(seen.started)
    wanted = wanted_end(tree, asked.name)
    return Row(
        name=asked.name,
        job=seen.job,
        queue=asked.queue,
        state=seen.state,
        nodes=asked.nodes,
        walltime_s=asked.walltime_s,
        left_s=seen.left_s if running else None,
        waited_s=round(seen.waited_s, 1),
        tasks=used.tasks,
        failed=used.failed,
        busy=situation.busy(tree, asked.name) if running else None,
        utilisation=used.utilisation if running and used.granted_core_s else None,
        node_hours=round(asked.nodes * seen.ran_s * asked.cost / 3600, 3),
        asked=asked.time,
        why=seen.withdrawn or (f"to be cancelled: {wanted}" if wanted else seen.why or asked.why),
    )


def _of_over(tree: Tree, line: Closed) -> Row:
    found = allocations.read(tree, line.name)
    return Row(
        name=line.name,
        job=found.standing.job if found else "",
        queue=line.queue,
        state=line.outcome or "ended",
        nodes=line.nodes,
        walltime_s=found.asked.walltime_s if found else 0.0,
        waited_s=line.waited_s,
        tasks=line.tasks,
        failed=line.failed,
        utilisation=line.utilisation if line.granted_core_s else None,
        node_hours=round(line.charged_node_s / 3600, 3),
        asked=found.asked.time if found else "",
        ended=line.ended,
        why=line.why,
    )
