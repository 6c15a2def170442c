"""backlog - what waits in READY, by shape: lanes counted, no task of its own opened.

Owns   the reading of lanes into Needs; of chunks, how many of their elements are left.
Never  holds the names of more than one lane; WAITING, held and running tasks are no backlog.
"""

from __future__ import annotations

from dataclasses import dataclass

from spool.errors import ManifestError
from spool.queue import array, elements, files, layout, tasks
from spool.queue import shape as shapes
from spool.queue.layout import State, Tree
from spool.queue.shape import MOST_ELEMENTS, Shape
from spool.service.terms import Need

LOOKED_AT = 1_000  # chunks whose files are read; of more, their lanes have to do


@dataclass(slots=True)
class _Sum:
    count: int = 0
    oldest: float = 0.0


@dataclass(slots=True)
class Backlog:
    """needs by shape; staged tells that lanes for stagers are there; strays are no lanes."""

    needs: tuple[Need, ...]
    staged: bool
    tasks: int
    strays: int


def take(tree: Tree, now: float) -> Backlog:
    """Count READY; `now` in epoch seconds."""
    sums: dict[Shape, _Sum] = {}
    looks, staged, count, strays = LOOKED_AT, False, 0, 0
    for group in tasks.groups(tree, State.READY):
        try:
            shape, shard = shapes.parse(group)
        except ValueError:
            strays += 1
            continue
        found = files.names(tree.group(State.READY, group))
        if not found:
            continue
        staged = staged or shape.stage != "run"
        count += len(found)
        one = sums.setdefault(shape, _Sum())
        one.oldest = max(one.oldest, now - layout.shard_hour(shard))
        if shape.elements:
            one.count += sum(_left(tree, group, name, shape) for name in found[:looks])
            one.count += shape.elements * len(found[looks:])
            looks = max(0, looks - len(found))
        else:
            one.count += len(found)
    needs = (Need(shape, one.count, max(0.0, one.oldest)) for shape, one in sums.items())
    return Backlog(tuple(needs), staged, count, strays)


def _left(tree: Tree, group: str, name: str, shape: Shape) -> int:
    """How many elements of a READY chunk are to run."""
    path = tree.task(State.READY, group, name)
    told = elements.told_at_end(path) or {}
    left = told.get("left") or told.get("failed")
    if isinstance(left, int) and left > 0:
        return left
    if shape.elements < MOST_ELEMENTS:
        return shape.elements
    try:
        wanted = tasks.load(path, name).manifest.elements
    except (OSError, ManifestError):
        return shape.elements  # on the move, or damaged
    return wanted.size if wanted else array.MANY_CHUNKS
