"""kinship - who waits for whom, found by looking: no index is kept.

Owns   the walk over tasks that answers it: blocked tasks, descendants, ancestors, the whole graph.
Never  changes anything.
Fails  Refused: a cycle.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spool.errors import ManifestError, Refused
from spool.queue import advance, files, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.parents import Lookup
from spool.queue.tasks import Spot

UNFINISHED = (State.WAITING, State.READY, State.RUNNING)
TRIES = 20
DEEPEST = 100_000
LOOKS = 2  # a task that moves while a walk goes by is met by the second


class Node(NamedTuple):
    """A task, where it lies, the tasks it waits, or waited, for, and whose place it takes."""

    spot: Spot
    after: tuple[str, ...]
    replaces: str = ""


def blocked_groups(tree: Tree) -> dict[str, str]:
    """The groups of WAITING whose tasks wait in vain, each with the task that ended unfinished.

    Such a task was failed or cancelled itself, or lies, however deep, under one that was. Retrying
    that one is all that it takes.
    """
    waited_for, kin = advance.parents_waited_for(tree), Lookup(tree)
    ended = ((parent, kin[parent]) for parent in waited_for)
    found = {one: parent.id for one, parent in ended if parent.state in _IN_VAIN}
    left = deque(found)
    while left:
        group = left.popleft()
        for name in files.names(tree.group(State.WAITING, group)):
            if name in waited_for and name not in found:
                found[name] = found[group]
                left.append(name)
    return found


_IN_VAIN = (State.FAILED, State.CANCELLED)


def culprit(tree: Tree, spot: Spot) -> str:
    """The task that ended unfinished under which one lies, however deep; "" if there is none.

    What `blocked_groups` finds, for one task: only those above it are looked up.
    """
    kin = Lookup(tree)
    for _ in range(DEEPEST):
        if not layout.is_parent_group(spot.state, spot.group):
            return ""
        parent = kin[spot.group]
        if parent.state in _IN_VAIN:
            return parent.id
        if (above := tasks.find(tree, parent.id, looks=2)) is None:
            return ""
        spot = above
    return ""


def blocked(tree: Tree, ids: set[str]) -> set[str]:
    """Those of some tasks that wait in vain."""
    found: set[str] = set()
    for group in blocked_groups(tree):
        found |= ids.intersection(files.names(tree.group(State.WAITING, group)))
    return found


def nodes(tree: Tree, states: tuple[State, ...]) -> Iterator[Node]:
    """Every task of these states with its parents; one that moves on or is damaged is left out."""
    for spot in tasks.spots(tree, states):
        if layout.parse_id(spot.id) is None:
            continue
        try:
            wanted = tasks.load(spot.path(tree), spot.id).manifest
            yield Node(spot, tuple(wanted.after), wanted.replaces)
        except (OSError, ManifestError):
            continue


def descendants(tree: Tree, roots: Iterable[str]) -> list[Spot]:
    """All unfinished tasks that wait for these, directly or not, the nearest first."""
    children: dict[str, set[str]] = defaultdict(set)
    spots: dict[str, Spot] = {}
    for _ in range(LOOKS):
        for spot, after, _ in nodes(tree, UNFINISHED):
            spots[spot.id] = spot
            for parent in after:
                children[parent].add(spot.id)
    found: dict[str, None] = {}
    left = deque(roots)
    while left:
        for child in sorted(children.get(left.popleft(), ())):
            if child not in found:
                found[child] = None
                left.append(child)
    return [spots[task_id] for task_id in found]


def no_cycle(tree: Tree, task_id: str, parents: Iterable[str]) -> None:
    """Raises Refused, with the cycle, if one of these waits for the task itself."""
    came_from: dict[str, str] = dict.fromkeys(parents, task_id)
    left = deque(came_from)
    while left:
        here = left.popleft()
        if here == task_id:
            raise Refused(f"task {task_id} would wait for itself: {_cycle(task_id, came_from)}")
        for parent in _after(tree, here):
            if parent not in came_from:
                came_from[parent] = here
                left.append(parent)


def _cycle(task_id: str, came_from: dict[str, str]) -> str:
    path = [task_id]
    while (before := came_from[path[-1]]) != task_id:
        path.append(before)
    return " after ".join([task_id, *reversed(path)])


def _after(tree: Tree, task_id: str) -> list[str]:
    """The parents of a task, and who took its place. One that has ended may yet be retried."""
    for _ in range(TRIES):
        if (spot := tasks.find(tree, task_id)) is None:
            return []
        try:
            task = tasks.load(spot.path(tree), task_id)
        except FileNotFoundError:
            continue  # it moved between the look and the touch: another verb has it, or had
        except (OSError, ManifestError):
            return []
        heir = task.story.replaced
        return [*task.manifest.after, heir] if layout.parse_id(heir) else task.manifest.after
    return []
