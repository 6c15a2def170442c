"""parents - what has become of the tasks that a task waits for.

Owns   the look-up of a parent: where it ended, who took its place, whether it is known at all.
Never  moves or writes anything.

Most questions are answered by one look, for most parents have finished. Whoever needs to know that
a parent is nowhere asks `closely`: then it is searched for, twice and more.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping

import msgspec

from spool.queue import files, history, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.place import Parent

MOST_RESCUES = 100  # one after the other, each in the place of the one before


class Lookup(Mapping[str, Parent]):
    """Looks each parent up when asked; what is final is asked once only.

    Short-lived: a person may run a finished task again. alive are tasks just seen in a state that
    is none: the closest look need not search for these. `once`: what has not ended is asked but
    once too; whoever does so looks again later.
    """

    def __init__(
        self,
        tree: Tree,
        *,
        closely: bool = False,
        once: bool = False,
        alive: Container[str] = (),
    ) -> None:
        self.tree, self.closely, self.once, self.alive = tree, closely, once, alive
        self.checked: set[str] = set()  # for a caller to note whom it found to be known
        self._known: dict[str, Parent] = {}
        self._failed: list[str] | None = None

    def __getitem__(self, task_id: str) -> Parent:
        if (known := self._known.get(task_id)) is not None:
            return known
        found = self._follow(task_id)
        if self.once or found.state is not State.WAITING:
            self._known[task_id] = found
        return found

    def look_anew(self) -> None:
        """Something has just failed: where, is listed again."""
        self._failed = None

    def assume_unfinished(self, task_id: str) -> None:
        """Take it from a caller who is just submitting that task."""
        self._known[task_id] = Parent(task_id, State.WAITING)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _follow(self, task_id: str) -> Parent:
        """The parent itself, or the last of those that took its place."""
        for _ in range(MOST_RESCUES):
            state, heir = self._state(task_id)
            if not heir or layout.parse_id(heir) is None:
                return Parent(task_id, state)
            task_id = heir
        return Parent(task_id, State.FAILED)

    def _state(self, task_id: str) -> tuple[State | None, str]:
        shard = layout.shard_of(task_id)
        if files.exists(self.tree.task(State.FINISHED, shard, task_id)):
            return State.FINISHED, ""
        if group := self._failed_in(task_id, shard):
            replaced = group == layout.failed_group(layout.REPLACED, shard)
            return State.FAILED, self._heir(group, task_id) if replaced else ""
        if files.exists(self.tree.task(State.CANCELLED, shard, task_id)):
            return State.CANCELLED, ""
        if (removed := removed_as(self.tree, task_id)) is not None:
            return removed, ""
        if self.closely and task_id not in self.alive and not is_known(self.tree, task_id):
            return None, ""
        return State.WAITING, ""

    def _failed_in(self, task_id: str, shard: str) -> str:
        """The group of FAILED that holds a task; "" if none does."""
        if self._failed is None:
            self._failed = files.names(self.tree.state(State.FAILED))
        groups = (group for group in self._failed if group.endswith(f"@{shard}"))
        where = (group for group in groups if self._holds(group, task_id))
        return next(where, "")

    def _holds(self, group: str, task_id: str) -> bool:
        return files.exists(self.tree.task(State.FAILED, group, task_id))

    def _heir(self, group: str, task_id: str) -> str:
        path = f"{self.tree.task(State.FAILED, group, task_id)}/{layout.HISTORY}"
        return history.fold(files.read(path)).replaced


def removed_as(tree: Tree, task_id: str) -> State | None:
    """The final state of a task that was removed; None if it was not."""
    raw = files.read(tree.seen(task_id))
    if not raw or not raw.startswith(b"{"):
        return None  # no outcome: the mark of a delivered id
    spot = tasks.find(tree, task_id, looks=2)
    if spot is not None and not _is_being_removed(spot):
        return None  # its removal was cut short, and it may have run again since
    try:
        return State(msgspec.json.decode(raw)["outcome"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return None


def _is_being_removed(spot: tasks.Spot) -> bool:
    parts = layout.parse_owner(spot.group) if spot.state is State.RUNNING else None
    return parts is not None and parts.kind == "rm"


def ended(tree: Tree, ids: Iterable[str]) -> Iterator[str]:
    """Those of many tasks that have ended, by few listings: a rumour, to be looked at again."""
    shards: dict[str, set[str]] = defaultdict(set)
    for task_id in ids:
        if parts := layout.parse_id(task_id):
            shards[parts.shard].add(task_id)
    failed = files.names(tree.state(State.FAILED)) if shards else []
    for shard, some in shards.items():
        groups = [(State.FINISHED, shard), (State.CANCELLED, shard)]
        groups += [(State.FAILED, group) for group in failed if group.endswith(f"@{shard}")]
        for state, group in groups:
            yield from some.intersection(files.names(tree.group(state, group)))
        seen = os.path.dirname(tree.seen(next(iter(some))))
        for task_id in some.intersection(files.names(seen)):
            if removed_as(tree, task_id) is not None:
                yield task_id


def unfinished(tree: Tree) -> set[str]:
    """The ids of all tasks in a state that is not final, by one walk."""
    states = (State.CREATED, State.WAITING, State.READY, State.RUNNING)
    return {_plain(spot.id) for spot in tasks.spots(tree, states)}


def is_known(tree: Tree, task_id: str) -> bool:
    """Whether there is, or was, a task of this id: in a state, at the door, or removed."""
    if layout.parse_id(task_id) is None:
        return False
    if files.exists(tree.task(State.FINISHED, layout.shard_of(task_id), task_id)):
        return True
    if tasks.find(tree, task_id) or removed_as(tree, task_id):
        return True
    return any(spot.id == task_id for spot in tasks.arrivals(tree)) or _is_arriving(tree, task_id)


def _is_arriving(tree: Tree, task_id: str) -> bool:
    """Whether an owner has it in hand as an arrival: ID~new, or ID@SOURCE~new."""
    groups = files.names(tree.state(State.RUNNING))
    held = (name for group in groups for name in files.names(tree.group(State.RUNNING, group)))
    return any(_plain(name) == task_id for name in held if name.endswith(layout.ARRIVING))


def _plain(name: str) -> str:
    """The id of a task, or of an arrival in somebody's hands."""
    if not name.endswith(layout.ARRIVING):
        return name
    return layout.parse_arriving(name)[0]
