"""keys - idempotency: a submission that is made again yields the task of the first time.

Owns   seen/key@HH/HASH, which says whose key it is: the id, and who was building it.
Never  builds a task.
Fails  SpoolError: another process has been at the same submission for too long.

A key counts within the task that submits (SPOOL_TASK), else within the whole spool. The first to
link the record has the id; whoever comes later finds it. A submitter that died between record and
task left only the record: the next builds the task under that id.
"""

from __future__ import annotations

import hashlib
import os
import time

from spool.errors import SpoolError
from spool.queue import files, layout, owner, parents, processes
from spool.queue.layout import Tree

LONGEST_WAIT_S, PAUSE_S = 60.0, 0.05


def first(tree: Tree, key: str, nest: str, task_id: str) -> tuple[str, bool]:
    """The id that a key means, and whether its task must still be built: by us, in `nest`.

    `task_id` is taken where the key is new.
    """
    record = tree.key(_hash(key))
    draft = f"{tree.tmp(nest)}/key"
    files.write_new(draft, f"{task_id}\n{nest}\n".encode(), sync=True)
    try:
        if files.link(draft, record):
            files.sync(os.path.dirname(record))
            return task_id, True
    finally:
        files.unlink(draft)
    return _known(tree, key, record)


def _known(tree: Tree, key: str, record: str) -> tuple[str, bool]:
    """What an earlier submission of a key made, or left to be made."""
    told, _, nest = (files.read(record) or b"").decode(errors="replace").strip().partition("\n")
    if layout.parse_id(told) is None:
        raise SpoolError(
            f"{record}: is damaged; it holds no task id. To use the key anew, remove it"
        )
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not parents.is_known(tree, told):
        if not _builds(tree, nest):
            return told, not parents.is_known(tree, told)
        if time.monotonic() > deadline:
            raise SpoolError(f"key {key!r}: tmp/{nest} has been building its task for a while")
        time.sleep(PAUSE_S)
    return told, False


def _builds(tree: Tree, nest: str) -> bool:
    """Whether the process that took a key may still be building its task."""
    parts, here = layout.parse_owner(f"tmp.{nest}"), owner.here()
    if parts is None or not files.is_folder(tree.tmp(nest)):
        return False
    return parts.boot != here.boot or processes.process_start(parts.pid) is not None


def _hash(key: str) -> str:
    scope = f"{os.environ.get('SPOOL_TASK', '')}\0{key}"
    return hashlib.sha256(scope.encode(errors="surrogateescape")).hexdigest()[:40]
