"""post - the one post of service that a spool has: launchers/service@OWNER, taken by rename.

Owns   that folder's name. Whoever it names is the service; service@nobody is free.
Never  takes it from an owner that is not known to be dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from spool.queue import files, layout
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.takeover import Verdict

MARK = layout.POST
NOBODY = f"{MARK}{layout.NOBODY}"
TRIES, PAUSE_S = 10, 0.2
Judge = Callable[[str], Verdict]


def marks(tree: Tree) -> list[str]:
    """The folders that name a holder, or nobody, by a fresh listing."""
    return sorted(n for n in files.names(tree.folder("launchers")) if layout.is_post(n))


def holders(tree: Tree) -> list[str]:
    """Who holds the post: one, mostly, or nobody; two where both have just taken it."""
    return [mark.removeprefix(MARK) for mark in marks(tree) if mark != NOBODY]


def is_dead(tree: Tree, holder: str, judge: Judge) -> bool:
    """Whether a holder has lost its lease, or is known to be dead."""
    return not files.holds(tree.group(State.RUNNING, holder)) or judge(holder) is Verdict.DEAD


def take(me: Owner, judge: Judge) -> str:
    """Take the post; "" if it is ours now, else the name of the owner that has it.

    Where two have taken it at once each sees the other: the first by name stays. Whoever had it
    before is seen too, and stays whatever its name, since it does not ask again.
    """
    tree, living = me.tree, []
    for _ in range(TRIES):
        found = holders(tree)
        others = [one for one in found if one != me.name]
        living = [one for one in others if not is_dead(tree, one, judge)]
        if living and (me.name not in found or living[0] < me.name):
            break
        if living:
            time.sleep(PAUSE_S)
        elif found == [me.name]:
            return ""
        else:
            _succeed(me, others, mine=me.name in found)
    release(me)
    return living[0] if living else "others, who take it again and again"


def _succeed(me: Owner, dead: list[str], *, mine: bool) -> None:
    """Take the marks of the dead away, the first of them, or nobody's, by making it ours."""
    tree = me.tree
    if not mine and not dead:
        files.make_folder(tree.owner(NOBODY))
    old = [f"{MARK}{one}" for one in dead] or [NOBODY]
    if not mine:
        files.move(tree.owner(old.pop(0)), tree.owner(f"{MARK}{me.name}"))
    for mark in old:
        files.remove_tree(tree.owner(mark))


def is_ours(me: Owner) -> bool:
    """Whether a fresh listing names us, and nobody else, and our lease holds."""
    return holders(me.tree) == [me.name] and me.holds_lease()


def release(me: Owner) -> None:
    """Leave the post to whoever comes."""
    found, mine = marks(me.tree), f"{MARK}{me.name}"
    if mine not in found:
        return
    if found == [mine]:
        files.move(me.tree.owner(mine), me.tree.owner(NOBODY))
    else:
        files.remove_tree(me.tree.owner(mine))
