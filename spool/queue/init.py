"""init - make an empty spool.

Fails  SpoolError: the place is taken; FileSystemFault: the file system cannot hold a spool.
"""

from __future__ import annotations

import os

from spool import config
from spool.errors import SpoolError
from spool.queue import files, layout
from spool.queue.layout import Tree


def create(path: str) -> Tree:
    """Make a spool at `path`, or complete one that is there; its tree.

    The file system is tried first: rename between all state folders, and what it refuses.
    """
    from spool.queue import doctor

    tree = Tree(path)
    found = files.names(tree.root)
    if layout.SETTINGS not in found and set(found) & set(layout.FOLDERS):
        raise SpoolError(f"{tree.root}: holds folders of those names already; choose another place")
    files.make_folder(tree.root)
    for name in layout.FOLDERS:
        files.make_folder(tree.folder(name))
    doctor.prove(tree)
    if layout.SETTINGS not in found:
        files.write_new(tree.settings, config.TEMPLATE.encode(), sync=True)
        files.sync(tree.root)
        files.sync(os.path.dirname(tree.root))
    return tree
