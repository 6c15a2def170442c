"""advance - WAITING: move on what waits for nothing any more; and sweep away what is empty.

Owns   moves out of WAITING/PARENT-ID when that parent has ended, out of WAITING/until@MINUTE when
       the minute has come; removal of empty groups.
Never  writes a line where nothing is decided: a parent has finished, the clock has come round. What
       a parent's failure decides is told by an owner that first claims the child.

No child is left behind: whoever ends a parent first moves it, then lists WAITING/PARENT-ID; whoever
puts a child there first moves it, then looks at the parent again. A sweep repairs what a crash
leaves between the two.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

from spool.errors import ManifestError
from spool.queue import claim, files, layout, parents, tasks
from spool.queue.layout import FINAL, State, Tree
from spool.queue.owner import Owner
from spool.queue.parents import Lookup
from spool.queue.place import Place

SLICE = 2_000
SWEPT_AT_ONCE = 2_000  # parents
FEW = 4  # ended tasks: to look under each is as cheap as to list who is waited for
HOPS = 1_000_000  # a bound where two owners could chase each other; a child of N parents needs N
Tell = Callable[[str, str], bool]
"""Claim, by its path and id, a child whose move needs a line; whether it was moved on."""
Take = Callable[[str, str, Lookup], Place | None]
"""Claim a child, by its path and id, for one who may run it: where it then is, if it moved."""


# -- moments -------------------------------------------------------------------------------------


def due_groups(tree: Tree, now: float) -> list[str]:
    """The until@MINUTE groups whose minute has come (epoch seconds), oldest first."""
    return sorted(group for moment, group in _moments(tree) if moment <= now)


def next_due(tree: Tree) -> float | None:
    """The first moment any task waits for, epoch seconds; None if none does."""
    return min((moment for moment, _ in _moments(tree)), default=None)


def _moments(tree: Tree) -> Iterator[tuple[float, str]]:
    """The moments that tasks wait for, epoch seconds, and their groups."""
    for group in files.names(tree.state(State.WAITING)):
        if group.startswith(layout.UNTIL):  # among ten thousand parents: nothing dearer for each
            moment = layout.until_moment(group)
            if moment is not None:
                yield moment, group


def release_due(me: Owner, limit: int = SLICE) -> int:
    """Move on tasks whose moment has come, at most `limit`; how many moved.

    Any number of sweepers may race for a task: each rename has one winner.
    """
    tree, moved, places = me.tree, 0, []
    for group in due_groups(tree, time.time()):
        folder = tree.group(State.WAITING, group)
        for name in files.names(folder):
            if moved >= limit:
                break
            if (place := _move_on(tree, group, name, _teller(me, Lookup(tree)))) is not None:
                moved += 1
                places.append(place)
        files.remove_folder(folder)
    claim.sync_places(tree, places)
    return moved


# -- children ------------------------------------------------------------------------------------


def parents_waited_for(tree: Tree) -> set[str]:
    """The ids of all tasks that some other lies under."""
    names = files.names(tree.state(State.WAITING))
    return {name for name in names if not layout.is_no_parent(name)}


def children(
    me: Owner,
    ended: Iterable[str],
    kin: Lookup | None = None,
    drop: Callable[[str], object] = files.remove_folder,
    take: Take | None = None,
) -> Iterator[Place]:
    """Move on all that waits under tasks that have ended; where each went, one by one.

    `drop` is called with each folder that they have left; `take` is asked first for each child.
    """
    left = deque(ended)
    kin = Lookup(me.tree) if kin is None else kin
    while left:
        parent, tell = left.popleft(), _teller(me, kin)
        for name, place in _children_of(me.tree, parent, tell, kin, drop, take):
            yield place
            if place.state in FINAL:  # it failed with its parent, and so may its own children
                left.append(name)
                kin.look_anew()


def after(me: Owner, ended: Collection[str]) -> int:
    """The same at once, for those of `ended` that something waits for; how many moved."""
    if len(ended) > FEW:
        ended = parents_waited_for(me.tree).intersection(ended)
    return sum(1 for _ in children(me, ended))


def catch_up(me: Owner) -> int:
    """Move on whatever still lies under a task that has ended; how many were moved.

    For a taker: a dead owner may have ended tasks whose children it did not come to.
    """
    found = parents.ended(me.tree, parents_waited_for(me.tree))
    return sum(1 for _ in children(me, found))


def look_again(tree: Tree, under: Iterable[str]) -> None:
    """Move on what was put under parents that have finished meanwhile.

    For a submitter, which owns nothing: what needs a line is left to the sweep.
    """
    kin = Lookup(tree)
    for parent in parents.ended(tree, under):
        for _ in _children_of(tree, parent, lambda path, name: False, kin):
            pass


class Sweep:
    """Goes round the tasks that are waited for, some at each `step`, and round again.

    A parent that is nowhere is acted upon when a second round, a while later, misses it too: a
    submission shows its tasks one after the other, and maybe a child before its parent.
    """

    def __init__(self, me: Owner) -> None:
        self.me = me
        self._reached: tuple[str, str] | None = None
        self._missed: set[str] = set()

    def step(self, limit: int = SWEPT_AT_ONCE) -> int:
        """Look after up to `limit` parents; how many children were moved."""
        waited_for = parents_waited_for(self.me.tree)
        parts = ((layout.parse_id(parent), parent) for parent in waited_for)
        line = sorted((found.shard, parent) for found, parent in parts if found)
        first = bisect_right(line, self._reached) if self._reached else 0
        some = line[first : first + limit]
        found = parents.ended(self.me.tree, (parent for _, parent in some))
        moved = sum(1 for _ in children(self.me, found))
        self._reached = some[-1] if first + limit < len(line) else None
        return moved if self._reached else moved + self._orphans(waited_for)

    def _orphans(self, waited_for: set[str]) -> int:
        """At the end of a round: what lies under a parent that is nowhere, once more."""
        alive = parents.unfinished(self.me.tree) if waited_for else set()
        gone = waited_for - alive
        gone -= set(parents.ended(self.me.tree, gone))
        again, self._missed = gone & self._missed, gone
        kin = Lookup(self.me.tree, closely=True, alive=alive)
        return sum(1 for _ in children(self.me, again, kin)) if again else 0


def _children_of(
    tree: Tree,
    parent: str,
    tell: Tell,
    kin: Lookup,
    drop: Callable[[str], object] = files.remove_folder,
    take: Take | None = None,
) -> Iterator[tuple[str, Place]]:
    folder = tree.group(State.WAITING, parent)
    for name in files.names(folder):
        place = take(f"{folder}/{name}", name, kin) if take else None
        if place is None:
            place = _move_on(tree, parent, name, tell, kin)
        elif layout.is_parent_group(place.state, place.group):
            place = _move_on(tree, place.group, name, tell) or place  # it may have ended meanwhile
        if place is not None:
            yield name, place
    drop(folder)


def _move_on(
    tree: Tree, group: str, name: str, tell: Tell, kin: Lookup | None = None
) -> Place | None:
    """Move one task out of a group of WAITING as far as it goes; None if it stays or was lost."""
    last: Place | None = None
    for _ in range(HOPS):
        path = tree.task(State.WAITING, group, name)
        place = _place(tree, path, name, group, kin)
        if place is None or (place.state, place.group) == (State.WAITING, group):
            return last
        if place.line is not None:
            return place if tell(path, name) else last
        if not _move(tree, path, name, place):
            return last
        last = place
        if place.state is not State.WAITING or layout.parse_id(place.group) is None:
            return last
        group, kin = place.group, None  # that parent may have finished while we moved: look again
    return last


def _place(tree: Tree, path: str, name: str, under: str, kin: Lookup | None) -> Place | None:
    try:
        task = tasks.load(path, name)
        return claim.place_of(tree, task, time.time(), under, kin)
    except (OSError, ManifestError, ValueError):
        return None  # gone, or damaged: `check` says which


def _move(tree: Tree, path: str, name: str, place: Place) -> bool:
    try:
        return files.move(path, tree.task(place.state, place.group, name))
    except (PermissionError, FileExistsError):
        return False


def _teller(me: Owner, kin: Lookup) -> Tell:
    """Claim a child for an owner, and send it on with the line that its move needs."""

    def tell(path: str, name: str) -> bool:
        try:
            if not files.move(path, me.claim_path(name)):
                return False
        except (PermissionError, FileExistsError):
            return False
        if (task := claim.read_any(me, name)) is not None:
            claim.settle(me, task, kin)
        return True

    return tell


# -- empty groups --------------------------------------------------------------------------------


def empty_groups(tree: Tree, *, all_parents: bool = True) -> Iterator[str]:
    """Groups of READY, WAITING and FAILED that hold nothing; an owner's own folder is no such.

    Without all_parents, those of parents are left to whoever sees the parent end: there may be a
    hundred thousand.
    """
    for state in (State.READY, State.WAITING, State.FAILED):
        for group in tasks.groups(tree, state):
            if layout.is_parent_group(state, group) and not all_parents:
                continue
            path = tree.group(state, group)
            if files.is_folder(path) and _is_empty(path):
                yield path


def _is_empty(path: str) -> bool:
    try:
        return next(files.scan(path), None) is None
    except PermissionError:
        return False  # closed to us: `check` tells
