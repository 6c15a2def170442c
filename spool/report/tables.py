"""tables - what a person sees of the spool as text.

Owns   the only use of tabulate; the layout of status, show and history.
Never  reads the tree: it is handed what to show.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from spool import units
from spool.queue import layout
from spool.queue.census import Census
from spool.queue.claim import printable
from spool.queue.layout import State
from spool.queue.tasks import Spot, Task

MOST_GROUPS = 8
MOST_PARENTS = 5
WHY_LONGEST = 80
ALLOCATION_HEADERS = (
    "allocation", "job", "queue", "state", "nodes", "left", "tasks", "failed", "used",
    "node-hours", "why",
)  # fmt: skip


def table(rows: Iterable[Iterable[object]], headers: tuple[str, ...] = ()) -> str:
    """Aligned columns; text stands as it is (007 stays 007), control characters are escaped."""
    from tabulate import tabulate

    cells = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    texts = {at for row in cells for at, cell in enumerate(row) if isinstance(cell, str)}
    return tabulate(cells, headers=headers, tablefmt="plain", disable_numparse=sorted(texts))


def status(census: Census) -> str:
    """Counts by state and group, owners, the oldest waiting."""
    rows = []
    for state in State:
        groups = census.groups[state].most_common(MOST_GROUPS)
        shown = "  ".join(f"{label} {count}" for label, count in groups)
        more = len(census.groups[state]) - len(groups)
        tail = f"  and {more} more groups" if more > 0 else ""
        rows.append((state, census.count(state), shown + tail))
    parts = [table(rows, ("state", "tasks", "groups"))]
    if census.launchers:
        parts.append(owners(census.launchers))
    if census.oldest_ready is not None:
        age = units.print_age(time.time() - census.oldest_ready)
        hour = units.stamp(census.oldest_ready)[:13].replace("T", " ")
        parts.append(f"oldest READY: of the hour {hour}h UTC, at most {age} ago")
    return "\n\n".join(parts)


def allocations(rows: list[dict[str, Any]]) -> str:
    """Allocations of a batch system, those that are over last."""
    if not rows:
        return "no allocations yet. Run: spool service, or spool submit-launch"
    cells = [
        (
            row["name"],
            row["job"] or "-",
            row["queue"] or "default",
            row["state"],
            row["nodes"],
            _left(row),
            row["tasks"],
            row["failed"],
            _percent(row["utilisation"]),
            f"{row['node_hours']:.2f}",
            row["why"][:WHY_LONGEST],
        )
        for row in rows
    ]
    return table(cells, ALLOCATION_HEADERS)


def _left(row: dict[str, Any]) -> str:
    """The time left of what runs, the walltime of what waits."""
    if row["ended"]:
        return "-"
    seconds = row["walltime_s"] if row["left_s"] is None else row["left_s"]
    return units.print_age(seconds)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def owners(found: list[dict[str, Any]]) -> str:
    """Who holds tasks."""
    rows = [
        (one["kind"], one["host"], one["pid"], one["cores"], one["tasks"], one["process"])
        for one in found
    ]
    return table(rows, ("owner", "host", "pid", "cores", "tasks", "process"))


def listing(spot: Spot) -> str:
    """One line of `ls`; the id stands last, so that columns need no second look."""
    return f"{spot.state:<9} {spot.group or 'door':<24} {spot.id}"


def events(lines: list[dict[str, Any]]) -> str:
    """A history, an event a line."""
    hidden = ("time", "what", "owner", "by", "host")
    rows = []
    for event in lines:
        rest = "  ".join(f"{k}={_short(v)}" for k, v in event.items() if k not in hidden)
        who = str(event.get("by") or event.get("owner") or "")
        rows.append((str(event.get("time", ""))[:19].replace("T", " "), event["what"], who, rest))
    return table(rows)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}:{_short(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def task(spot: Spot, found: Task, path: str, why: str, tail: str) -> str:
    """One task: what it asks for, what became of it, why, and the end of its output."""
    wanted = found.manifest
    rows: list[tuple[str, object]] = [("task", spot.id), ("state", f"{spot.state}/{spot.group}")]
    if why:
        rows.append(("why", why))
    command = wanted.command if wanted.command is not None else [wanted.app, *wanted.args]
    typed = command if isinstance(command, str) else words(command)
    rows.append(("command", f"app {typed}" if wanted.app else typed))
    rows += [(key, value) for key, value in _facts(found) if value]
    rows.append(("directory", path))
    shown = table(rows)
    return f"{shown}\n\nlast lines of output:\n{tail}" if tail else shown


def words(command: list[str]) -> str:
    """A command as one would type it."""
    import shlex

    return shlex.join(command)


def _facts(found: Task) -> list[tuple[str, object]]:
    wanted, story = found.manifest, found.story
    submitted = wanted.submitted
    by = f"{submitted.time[:19].replace('T', ' ')} by {submitted.by}" if submitted else ""
    limit, estimate = wanted.time_limit_s, units.duration(wanted.time_estimate)
    return [
        ("submitted", by or (story.arrived or {}).get("time", "")),
        ("workflow", wanted.workflow),
        ("tags", ", ".join(wanted.tags)),
        ("description", wanted.description),
        ("after", _some(wanted.after)),
        ("replaces", wanted.replaces),
        ("key", wanted.key),
        ("asks for", _room(found)),
        ("priority", wanted.priority),
        ("time limit", units.print_duration(limit) if limit else ""),
        ("estimate", units.print_duration(estimate) if estimate else ""),
        ("attempt", _tries(found)),
        ("prepare", _steps(("stage_in", wanted.stage_in), ("preprocess", wanted.preprocess))),
        ("close", _steps(("postprocess", wanted.postprocess), ("stage_out", wanted.stage_out))),
        ("handlers", _steps(("on_error", wanted.on_error), ("on_timeout", wanted.on_timeout))),
        ("retry", ", ".join(f"{cause} {rule.attempts}" for cause, rule in wanted.retry.items())),
        ("parameters", _short(wanted.parameters)),
        ("changed", _short(story.changes)),
    ]


def _tries(found: Task) -> str:
    """How often it began, failed, and was sent back; its limits where they are what counts."""
    story, wanted = found.story, found.manifest
    allowed = f" of {wanted.max_attempts} allowed" * (story.failures <= wanted.max_attempts)
    by = f", retried by its handlers {story.handled} of {wanted.max_handled}" * bool(story.handled)
    return f"{story.attempt}, failed {story.failures}{allowed}{by}"


def _some(ids: list[str]) -> str:
    """The first of some tasks; of an array it alone, not its chunks."""
    named = list(dict.fromkeys(map(layout.array_of, ids)))
    more = f" and {len(named) - MOST_PARENTS:,} more" if len(named) > MOST_PARENTS else ""
    return " ".join(named[:MOST_PARENTS]) + more


def _steps(*named: tuple[str, object]) -> str:
    """Those that there are."""
    return ", ".join(name for name, value in named if value)


def _room(found: Task) -> str:
    """The room a task needs, what goes without saying left out."""
    wanted = found.manifest
    memory = units.memory(wanted.memory)
    amounts = (
        (f"{wanted.nodes} nodes", wanted.nodes > 1),
        (f"{wanted.ranks_per_node} ranks on each node", wanted.ranks_per_node > 1),
        (f"{wanted.cores_per_rank} cores", wanted.cores_per_rank > 1),
        (f"at most {wanted.per_node} on a node", wanted.per_node > 0),
        (f"{wanted.gpus} gpus", wanted.gpus > 0),
        (units.print_memory(memory), memory > 0),
        (" ".join(wanted.requires), bool(wanted.requires)),
    )
    return ", ".join(text for text, said in amounts if said)
