"""graph - pure: who waits for whom, drawn as text.

Never  reads the tree: it is handed the tasks.

Roots first; a child stands under each parent, but what waits for it is drawn once only. A chain
goes straight down, so that one of ten thousand is as narrow as one of two. Behind a task that was
replaced stands who took its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from spool.queue import layout
from spool.queue.kinship import Node


def draw(nodes: Mapping[str, Node]) -> Iterator[str]:
    """The lines of the drawing, by id as given."""
    children: dict[str, list[str]] = defaultdict(list)
    for task_id, node in nodes.items():
        for parent in node.after:
            children[parent].append(task_id)
    heirs = {node.replaces: task_id for task_id, node in nodes.items() if node.replaces}
    told = {task_id: _told(node, heirs.get(task_id, "")) for task_id, node in nodes.items()}
    drawn: set[str] = set()
    for task_id, node in nodes.items():
        if not any(parent in nodes for parent in node.after):
            yield from _below(told, children, task_id, drawn)
    for task_id in nodes:  # of a cycle, which nothing above leads to
        if task_id not in drawn:
            yield from _below(told, children, task_id, drawn)


def _below(
    told: Mapping[str, str], children: Mapping[str, list[str]], root: str, drawn: set[str]
) -> Iterator[str]:
    """A task and all that waits for it, without recursion: chains are long."""
    left: list[tuple[str, str, str]] = [(root, "", "")]
    while left:
        task_id, here, below = left.pop()
        again = task_id in drawn
        drawn.add(task_id)
        some = children.get(task_id, [])
        yield f"{here}{told[task_id]}{'  (see above)' if again and some else ''}"
        if again:
            continue
        for number, child in enumerate(reversed(some)):
            left.append((child, *_branches(below, alone=len(some) == 1, last=number == 0)))


def _branches(below: str, *, alone: bool, last: bool) -> tuple[str, str]:
    """What stands before a child, and before what is below it."""
    if alone:
        return f"{below}| ", below
    return f"{below}{'`- ' if last else '|- '}", f"{below}{'   ' if last else '|  '}"


def _told(node: Node, heir: str) -> str:
    spot = node.spot
    replaced = layout.group_label(spot.group) == layout.REPLACED
    by = f", replaced by {heir}" if heir else ", replaced"
    return f"{spot.id}  {spot.state}{by if replaced else ''}"
