"""graph - pure: who waits for whom, drawn as text.

Never  reads the tree: it is handed the tasks.

Roots first; a child stands under each parent, but what waits for it is drawn once only. A chain
goes straight down, so that one of ten thousand is as narrow as one of two. Behind a task that was
replaced stands who took its place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from spool.queue import layout
from spool.queue.kinship import Node


def draw(nodes: Mapping[str, Node]) -> Iterator[str]:
    """The lines of the drawing, by id as given; an array is one, with the states of its chunks."""
    heirs = {node.replaces: task_id for task_id, node in nodes.items() if node.replaces}
    members: dict[str, list[Node]] = defaultdict(list)
    for task_id, node in nodes.items():
        members[layout.array_of(task_id)].append(node)
    told, children, roots = {}, defaultdict(list), []
    for name, some in members.items():
        told[name] = _told(some, heirs.get(name, ""))
        after = {layout.array_of(parent): None for node in some for parent in node.after}
        for parent in after:
            children[parent].append(name)
        if not any(parent in members for parent in after):
            roots.append(name)
    drawn: set[str] = set()
    for name in roots:
        yield from _below(told, children, name, drawn)
    for name in members:  # of a cycle, which nothing above leads to
        if name not in drawn:
            yield from _below(told, children, name, drawn)


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


def _told(some: list[Node], heir: str) -> str:
    spot = some[0].spot
    if "@" in spot.id:
        states = Counter(str(node.spot.state) for node in some)
        chunks = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
        return f"{layout.array_of(spot.id)}  chunks: {chunks}"
    replaced = layout.group_label(spot.group) == layout.REPLACED
    by = f", replaced by {heir}" if heir else ", replaced"
    return f"{spot.id}  {spot.state}{by if replaced else ''}"
