"""spools - what the benchmarks do with a spool: make, fill, run it, and look what it says after.

Owns   the command lines of spool under measurement; the count of what was recorded.
Fails  Broken: a command failed.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

import measure

from spool.queue import files, history, journal, layout, owner
from spool.queue.layout import State, Tree

SPOOL = f"{os.path.dirname(sys.executable)}/spool"
NO_OP = "/bin/true"


def make(folder: str) -> Tree:
    """A new spool in a folder that is there."""
    root = f"{folder}/spool"
    measure.run([SPOOL, "init", root], folder)
    return Tree(root)


def command(tree: Tree, *words: str) -> list[str]:
    """A spool command about a tree."""
    return [SPOOL, "--spool", tree.root, *words]


def write_tasks(folder: str, count: int) -> str:
    """A file of no-op tasks, one JSON object a line."""
    path = f"{folder}/tasks.jsonl"
    with open(path, "w") as file:
        file.write(f'{{"command": ["{NO_OP}"]}}\n' * count)
    return path


def submit(tree: Tree, count: int, *options: str) -> float:
    """Submit no-op tasks in bulk; seconds."""
    folder = os.path.dirname(tree.root)
    path = write_tasks(folder, count)
    return measure.run(command(tree, "submit", "--from", path, *options), folder).seconds


def launch(tree: Tree, *words: str) -> list[str]:
    """The command line of a launcher that leaves when nothing is left."""
    return command(tree, "launcher", "--idle-timeout", "0", "--quiet", *words)


def tasks_in(tree: Tree, state: State) -> Iterator[tuple[str, str]]:
    """The ids and folders of the tasks in a state."""
    for group in files.names(tree.state(state)):
        for task_id in files.names(tree.group(state, group)):
            yield task_id, tree.task(state, group, task_id)


def wrongly_recorded(tree: Tree, count: int) -> int:
    """How many of `count` tasks are not FINISHED with just one exit line and an output file."""
    right = sum(_recorded_once(path) for _, path in tasks_in(tree, State.FINISHED))
    return abs(count - right)


def _recorded_once(path: str) -> bool:
    return _exits(path) == 1 and files.is_plain(f"{path}/{layout.OUTPUT}")


def _exits(path: str) -> int:
    told = history.events(files.read(f"{path}/{layout.HISTORY}") or b"")
    return sum(event["what"] == "exit" for event in told)


def disagreements(tree: Tree, count: int) -> int:
    """How many tasks the journals do not tell to have ended just once, as the tasks do."""
    ends = Counter(event["id"] for event in journal.read(tree) if event["what"] == "exit")
    finished = {task_id for task_id, _ in tasks_in(tree, State.FINISHED)}
    once = {task_id for task_id, found in ends.items() if found == 1}
    return abs(count - len(once & finished)) + len(ends.keys() - finished)


def claims(tree: Tree) -> tuple[int, int] | None:
    """Renames won and lost in claims by all launchers; None if a launcher does not tell."""
    won = lost = 0
    for name in files.names(os.path.dirname(tree.owner("any"))):
        record = owner.read_record(tree, name)
        if "claimed" not in record or "lost" not in record:
            return None
        won += record["claimed"]
        lost += record["lost"]
    return won, lost
