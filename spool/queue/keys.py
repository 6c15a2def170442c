"""keys - idempotency: a submission that is made again yields the task of the first time.

Owns   seen/key@HH/HASH, which says whose key it is: the id, and who was building it.
Never  builds a task.
Fails  SpoolError: another process has been at the same submission for too long.

A key counts within the task, or the element, that submits (SPOOL_TASK, SPOOL_ELEMENT), else within
the whole spool. The first to link the record has the id; whoever comes later finds it. A submitter
that died between record and task left only the record: whoever then links HASH~2 (HASH~3 ...)
builds the task under that id.
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
    record, deadline = tree.key(_hash(key)), time.monotonic() + LONGEST_WAIT_S
    if _link(tree, record, task_id, nest):
        return task_id, True
    while True:
        last = _last(record)
        told, builder = _read(last)
        if parents.is_known(tree, told) or builder == nest:
            return told, False
        if not _builds(tree, builder):
            if _link(tree, _after(last), told, nest):  # of several who see it, one
                return told, not parents.is_known(tree, told)
        elif time.monotonic() > deadline:
            raise SpoolError(f"key {key!r}: tmp/{builder} has been building its task for a while")
        else:
            time.sleep(PAUSE_S)


def withdraw(tree: Tree, key: str, nest: str) -> None:
    """Give a key back whose task could not be built: the next submission has it."""
    last = _last(tree.key(_hash(key)))
    told, builder = _read(last)
    if builder == nest and not parents.is_known(tree, told):
        files.unlink(last)


def _link(tree: Tree, record: str, task_id: str, nest: str) -> bool:
    """Write a record; False if another was first."""
    draft = f"{tree.tmp(nest)}/key"
    files.write_new(draft, f"{task_id}\n{nest}\n".encode(), sync=True)
    try:
        if not files.link(draft, record):
            return False
    finally:
        files.unlink(draft)
    files.sync(os.path.dirname(record))
    return True


def _last(record: str) -> str:
    """The latest record of a key."""
    while files.exists(_after(record)):
        record = _after(record)
    return record


def _after(record: str) -> str:
    plain, _, number = record.partition("~")
    return f"{plain}~{int(number or 1) + 1}"


def _read(record: str) -> tuple[str, str]:
    """The id that a record holds, and who builds it."""
    told, _, nest = (files.read(record) or b"").decode(errors="replace").strip().partition("\n")
    if layout.parse_id(told) is None:
        raise SpoolError(
            f"{record}: is damaged; it holds no task id. To use the key anew, remove it"
        )
    return told, nest


def _builds(tree: Tree, nest: str) -> bool:
    """Whether the process that took a key may still be building its task."""
    parts, here = layout.parse_owner(f"tmp.{nest}"), owner.here()
    if parts is None or not files.is_folder(tree.tmp(nest)):
        return False
    return parts.boot != here.boot or processes.process_start(parts.pid) is not None


def _hash(key: str) -> str:
    task, element = (os.environ.get(f"SPOOL_{name}", "") for name in ("TASK", "ELEMENT"))
    scope = f"{task}[{element}]\0{key}" if element else f"{task}\0{key}"
    return hashlib.sha256(scope.encode(errors="surrogateescape")).hexdigest()[:40]
