"""post - the one post of service that a spool has: launchers/service@OWNER, taken by rename.

Owns   that folder's name. Whoever it names is the service; service@nobody is free.
Never  takes it from an owner that is not known to be dead.
"""

from __future__ import annotations

from collections.abc import Callable

from spool.queue import files
from spool.queue.layout import Tree
from spool.queue.owner import Owner
from spool.queue.takeover import Verdict

MARK = "service@"
NOBODY = f"{MARK}nobody"
TRIES = 5
Judge = Callable[[str], Verdict]


def holders(tree: Tree) -> list[str]:
    """Who holds the post, by a fresh listing: mostly one name, "nobody" if it is free."""
    names = files.names(tree.folder("launchers"))
    return sorted(name.removeprefix(MARK) for name in names if name.startswith(MARK))


def take(me: Owner, judge: Judge) -> str:
    """Take the post; "" if it is ours now, else the name of the owner that has it."""
    tree = me.tree
    for _ in range(TRIES):
        found = holders(tree)
        if found == [me.name]:
            return ""
        for holder in found:
            if holder not in (me.name, "nobody") and judge(holder) is not Verdict.DEAD:
                if me.name in found:
                    release(me)  # two took it at once: whoever sees another leaves it to him
                return holder
        if not found:
            files.make_folder(tree.owner(NOBODY))
            found = ["nobody"]
        for other in found[1:]:
            files.remove_folder(tree.owner(f"{MARK}{other}"))
        if found[0] != me.name:
            files.move(tree.owner(f"{MARK}{found[0]}"), tree.owner(f"{MARK}{me.name}"))
    return "others, who take it again and again"


def is_ours(me: Owner) -> bool:
    """Whether a fresh listing names us, and nobody else."""
    return holders(me.tree) == [me.name]


def release(me: Owner) -> None:
    """Leave the post to whoever comes."""
    if me.name not in holders(me.tree):
        return
    if "nobody" in holders(me.tree):
        files.remove_folder(me.tree.owner(f"{MARK}{me.name}"))
    else:
        files.move(me.tree.owner(f"{MARK}{me.name}"), me.tree.owner(NOBODY))
