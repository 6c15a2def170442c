"""inputs - what a task takes from its parents: linked or copied into it before it starts.

Owns   the `from` items of a manifest's inputs.
Never  takes anything from a task that is no parent, and nothing that was not asked for.
Fails  SpoolError: a parent is gone, or has nothing that was asked for.

A link is relative: each task lies two folders deep, so it holds wherever the task moves, as long as
its parent stays finished.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator

from spool.errors import SpoolError
from spool.queue import files, layout
from spool.queue.kinds import Input
from spool.queue.layout import State, Tree
from spool.queue.parents import Lookup
from spool.queue.tasks import Task

KEPT = frozenset((*layout.OWN, layout.OUTPUT, layout.ERRORS))
"""What is each task's own: taken from a parent it would tell wrong things of the child."""

_OF_ATTEMPT = re.compile(r"(results|live)[.-][0-9]+(\.errors)?")


def provide(tree: Tree, task: Task) -> None:
    """Put the files that a task takes from its parents into its directory. Raises SpoolError."""
    kin = Lookup(tree)
    for item in task.manifest.taken_list:
        for parent in _meant(task, item):
            found = kin[parent].id
            folder = tree.task(State.FINISHED, layout.shard_of(found), found)
            _take(task, item, found, folder)


def _meant(task: Task, item: Input) -> list[str]:
    """The parents an item names: by id, of a chunk or its array, by name, or all by *."""
    after = task.manifest.after
    named = [one for one in after if item.source in ("*", one, _name_of(one), layout.array_of(one))]
    if not named:
        raise SpoolError(f"input from {item.source!r}: no task of key 'after' is meant")
    return named


def _name_of(task_id: str) -> str:
    parts = layout.parse_id(task_id)
    return parts.name if parts else task_id


def _take(task: Task, item: Input, parent: str, folder: str) -> None:
    found = list(_matching(folder, item.glob))
    if not found:
        raise SpoolError(f"input from {parent}: nothing there matches {item.glob!r}")
    for name in found:
        target = f"{task.path}/{name}"
        files.make_folder(os.path.dirname(target))
        if os.path.islink(target) or (item.copy and os.path.isfile(target)):
            files.unlink(target)  # of an earlier attempt
        if os.path.lexists(target) and not (item.copy and os.path.isdir(target)):
            raise SpoolError(f"input {name!r} from {parent}: there is one of that name already")
        if item.copy:
            _copy(f"{folder}/{name}", target)
        else:
            files.symlink(os.path.relpath(f"{folder}/{name}", os.path.dirname(target)), target)


def _matching(folder: str, pattern: str) -> Iterator[str]:
    for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True)):
        if name not in KEPT and not _OF_ATTEMPT.fullmatch(name):
            yield name


def _copy(source: str, target: str) -> None:
    if os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
