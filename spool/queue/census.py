"""census - count what lies where, by listings alone; no task is opened.

Owns   the figures of `status`: counts by state and group, owners, the oldest waiting hour.
Never  holds the names of more than one group.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from spool.queue import files, kinship, layout, owner, takeover, tasks
from spool.queue.claim import printable
from spool.queue.layout import State, Tree
from spool.queue.owner import Here


@dataclass(slots=True)
class Census:
    """groups counts tasks by state and group label (shards added up); oldest_ready is the start
    of the oldest hour with a READY task, epoch seconds."""

    groups: dict[State, Counter[str]] = field(default_factory=dict)
    oldest_ready: float | None = None
    launchers: list[dict[str, Any]] = field(default_factory=list)

    def count(self, state: State) -> int:
        """Tasks in a state."""
        return self.groups[state].total()


def take(tree: Tree) -> Census:
    """Count everything."""
    census = Census()
    for state in State:
        counted = census.groups[state] = Counter()
        if state is State.CREATED:
            counted.update(printable(spot.group) or "door" for spot in tasks.arrivals(tree))
            continue
        vain = kinship.blocked_groups(tree) if state is State.WAITING else {}
        for group in files.names(tree.state(state)):
            if group[0] != "." and (found := len(files.names(tree.group(state, group)))):
                label = "blocked" if group in vain else _label(state, group)
                counted[printable(label)] += found
                if state is State.READY:
                    _older(census, group)
    census.launchers = launchers(tree)
    return census


def _label(state: State, group: str) -> str:
    """What groups are added up under: their shard left out, and for shards alone their hour."""
    if state in (State.FINISHED, State.CANCELLED):
        return group[:8]
    if state is State.WAITING and layout.parse_id(group):
        return "parents"
    return group if state is State.RUNNING else layout.group_label(group)


def _older(census: Census, group: str) -> None:
    try:
        hour = layout.shard_hour(group.rpartition("@")[2])
    except ValueError:
        return
    if census.oldest_ready is None or hour < census.oldest_ready:
        census.oldest_ready = hour


def launchers(tree: Tree) -> list[dict[str, Any]]:
    """The owners that hold a folder in RUNNING, with their record and what is known of them."""
    place = owner.here()
    return [_owner(tree, group, place) for group in tasks.groups(tree, State.RUNNING)]


def _owner(tree: Tree, group: str, place: Here) -> dict[str, Any]:
    name = takeover.holder(group)
    record = owner.read_record(tree, name)
    verdict = takeover.on_this_host(name, record, place)
    return {
        "owner": printable(group),
        "kind": record.get("kind", name.partition(".")[0]),
        "host": record.get("host", ""),
        "pid": record.get("pid", 0),
        "cores": record.get("cores", 0),
        "started": record.get("started", ""),
        "tasks": len(files.names(tree.group(State.RUNNING, group))),
        "process": verdict.value if verdict else "on another host",
    }
