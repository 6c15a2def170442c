"""remains - what services left behind: marks of the dead at their post, records never finished.

Owns   these findings of `spool check`, and their repair.
Never  touches the mark of a service that may live, or an allocation that may have been submitted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from spool.queue import allocations, files, layout
from spool.queue.layout import State, Tree

PAUSE_S = 0.2
Found = tuple[str, str, str, bool]
"""As check.Finding: where, what, what mends it, whether that was done."""


def found(tree: Tree, is_dead: Callable[[str], bool], *, repair: bool) -> Iterator[Found]:
    """What is wrong; is_dead judges an owner of RUNNING."""
    yield from _marks(tree, is_dead, repair)
    yield from _records(tree, repair)


def _marks(tree: Tree, is_dead: Callable[[str], bool], repair: bool) -> Iterator[Found]:
    """The post of service: names of the dead, and of more than one."""
    names = sorted(n for n in files.names(tree.folder("launchers")) if layout.is_post(n))
    living = []
    for name in names:
        holder, path = name.removeprefix(layout.POST), tree.owner(name)
        if holder == layout.NOBODY:
            continue
        if files.holds(tree.group(State.RUNNING, holder)) and not is_dead(holder):
            living.append(path)
            continue
        if not files.holds(path):
            continue  # it has just left
        if repair:
            files.remove_tree(path)
        what = "names a dead owner: the next service would take it"
        yield path, what, "removed", repair and not files.holds(path)
    for path in living[1:]:
        yield (
            path,
            f"so does {living[0]}, and neither asks for anything",
            "stop one of the two",
            False,
        )


def _records(tree: Tree, repair: bool) -> Iterator[Found]:
    """Folders in allocations/ that tell nothing of what was asked."""
    suspects = [name for name in allocations.names(tree) if allocations.read(tree, name) is None]
    if suspects:
        time.sleep(PAUSE_S)  # one may just be coming into being
    for name in suspects:
        path = tree.allocation(name)
        if allocations.read(tree, name) is not None or not files.exists(path):
            continue
        if files.exists(f"{path}/{layout.REQUEST}"):
            what = f"its {layout.REQUEST} cannot be read, so that no service follows it"
            yield path, what, f"if no job of that name is left: rm -r {path}", False
            continue
        if repair:
            files.remove_tree(path)
        what = f"has no {layout.REQUEST}: whoever began it died before anything was asked"
        yield path, what, "removed", repair
