"""advance - WAITING: move on what waits for nothing any more; and sweep away what is empty.

Owns   moves out of WAITING/until@MINUTE when the minute has come; removal of empty groups.
Never  writes a line: nothing is decided here, the clock has merely come round.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from spool.errors import ManifestError
from spool.queue import claim, files, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.place import Place

SLICE = 2_000


def due_groups(tree: Tree, now: float) -> list[str]:
    """The until@MINUTE groups whose minute has come (epoch seconds), oldest first."""
    due = []
    for group in files.names(tree.state(State.WAITING)):
        moment = layout.until_moment(group)
        if moment is not None and moment <= now:
            due.append(group)
    return sorted(due)


def next_due(tree: Tree) -> float | None:
    """The first moment any task waits for, epoch seconds; None if none does."""
    moments = (layout.until_moment(group) for group in files.names(tree.state(State.WAITING)))
    return min((moment for moment in moments if moment is not None), default=None)


def release_due(tree: Tree, limit: int = SLICE) -> int:
    """Move on tasks whose moment has come, at most `limit`; how many moved.

    Any number of sweepers may race for a task: each rename has one winner.
    """
    now, moved, places = time.time(), 0, []
    for group in due_groups(tree, now):
        folder = tree.group(State.WAITING, group)
        for name in files.names(folder):
            if moved >= limit:
                break
            place = _place(f"{folder}/{name}", name, now)
            if place and place.group != group and _move(tree, f"{folder}/{name}", name, place):
                moved += 1
                places.append(place)
        files.remove_folder(folder)
    claim.sync_places(tree, places)
    return moved


def _place(path: str, name: str, now: float) -> Place | None:
    try:
        return claim.place_of(tasks.load(path, name), now)
    except (OSError, ManifestError, ValueError):
        return None  # gone, or damaged: `check` says which


def _move(tree: Tree, path: str, name: str, place: Place) -> bool:
    try:
        return files.move(path, tree.task(place.state, place.group, name))
    except (PermissionError, FileExistsError):
        return False


def empty_groups(tree: Tree) -> Iterator[str]:
    """Groups of READY, WAITING and FAILED that hold nothing; an owner's own folder is no such."""
    for state in (State.READY, State.WAITING, State.FAILED):
        for group in tasks.groups(tree, state):
            path = tree.group(state, group)
            if files.is_folder(path) and _is_empty(path):
                yield path


def _is_empty(path: str) -> bool:
    try:
        return next(files.scan(path), None) is None
    except PermissionError:
        return False  # closed to us: `check` tells
