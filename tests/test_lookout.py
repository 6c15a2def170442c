"""A look around: it sweeps what is left over, and looks into no folder more often than it must."""

from __future__ import annotations

import os
from typing import Any

import crashing
from crashing import one, start_owner

from spool.config import trusted_users
from spool.queue import advance, files
from spool.queue.layout import State, Tree
from spool.queue.lookout import Lookout

tmp_path = crashing.tmp_path


def looked_into(tree: Tree, lookout: Lookout) -> list[str]:
    """The groups of WAITING that one look lists."""
    found = []

    def note(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "after" and operation == "list":
            folder, name = os.path.split(arguments[0])
            found.extend([name] if folder == tree.state(State.WAITING) else [])

    files.watch(note)
    try:
        lookout.look()
    finally:
        files.watch(None)
    return found


def test_the_folders_of_parents_are_looked_into_once_a_round(tree: Tree) -> None:
    """Who is alive is to be known; what is empty, whoever sees the parent end removes."""
    parents = [one(tree) for _ in range(5)]
    for parent in parents:
        one(tree, after=[parent])
    lookout = Lookout(start_owner(tree), trusted_users(), print)
    assert sorted(looked_into(tree, lookout)) == sorted(parents)
    assert looked_into(tree, lookout) == []
    assert advance.parents_waited_for(tree) == set(parents)


def test_the_empty_folder_of_a_parent_that_has_ended_is_swept(tree: Tree) -> None:
    """Left by a launcher that was killed before it had removed it."""
    me, parent = start_owner(tree), one(tree)
    crashing.drained(tree)
    files.make_folder(tree.group(State.WAITING, parent))
    lookout = Lookout(me, trusted_users(), print)
    assert looked_into(tree, lookout) == [parent]
    assert advance.parents_waited_for(tree) == set()
