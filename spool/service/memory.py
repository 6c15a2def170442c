"""memory - what a service remembers between two looks, and from one process to the next.

Owns   allocations/service.json; the journal of decisions, and its rotation.
Never  holds what could not be lost: without it back-offs begin anew.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spool import units
from spool.errors import DiskFull
from spool.queue import files, layout
from spool.queue.layout import Tree
from spool.service.system import Partition
from spool.service.troubles import Mark

ROTATE_AT, KEPT = 4 << 20, 8


class Memory(msgspec.Struct, kw_only=True):
    """marks by queue, see troubles; last is the gist of the last decision; unfit was said once.

    settings is a mark of spool.toml: what went wrong under others says nothing. partitions are what
    the batch system has, for those who cannot or need not ask it. doubted is, by queue, until when
    its idle nodes are not counted on.
    """

    marks: dict[str, Mark] = {}
    last: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    settings: str = ""
    partitions: tuple[Partition, ...] = ()
    doubted: dict[str, float] = {}


def load(tree: Tree) -> Memory:
    """What was remembered; nothing if that is missing or damaged."""
    raw = files.read(tree.allocation(layout.SERVICE_MEMORY), 1 << 22)
    try:
        return msgspec.json.decode(raw, type=Memory) if raw else Memory()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Memory()


def save(tree: Tree, memory: Memory) -> None:
    """Remember; on a full disk not."""
    try:
        files.make_folder(tree.folder("allocations"))
        files.replace(tree.allocation(layout.SERVICE_MEMORY), msgspec.json.encode(memory) + b"\n")
    except DiskFull:
        return


def note(tree: Tree, what: str, **told: Any) -> dict[str, Any]:
    """Add a line to journal/service.jsonl; the event."""
    event = {"time": units.now_stamp(), "what": what, **told}
    path = tree.journal(layout.SERVICE_JOURNAL)
    try:
        files.make_folder(tree.folder("journal"))
        files.append(path, msgspec.json.encode(event) + b"\n")
        if files.size(path) > ROTATE_AT:
            _rotate(tree, path)
    except DiskFull:
        pass  # tasks need the room more
    return event


def _rotate(tree: Tree, path: str) -> None:
    """Put a full journal aside under the moment's name; only some such are kept."""
    aside = f"{layout.SERVICE_JOURNAL}@"
    files.rename_file(path, tree.journal(f"{aside}{units.now_stamp()}"))
    old = sorted(name for name in files.names(tree.folder("journal")) if name.startswith(aside))
    for name in old[:-KEPT]:
        files.unlink(f"{tree.folder('journal')}/{name}")
