"""journal - one append-only log of events per owner; losing it costs a graph, never a task.

Owns   journal/OWNER.jsonl.
Never  is read to decide where a task belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from spool.errors import DiskFull
from spool.queue import files, history
from spool.queue.layout import Tree


class Journal:
    """Gathers events and writes them with one call a batch."""

    def __init__(self, tree: Tree, owner: str) -> None:
        self.path = tree.journal(owner)
        self.waiting: list[bytes] = []
        files.make_folder(tree.folder("journal"))

    def note(self, event: dict[str, Any]) -> None:
        """Add an event; it is written by the next `write`."""
        self.waiting.append(history.encode(event))

    def add(self, line: bytes) -> None:
        """Add an event that is encoded already."""
        self.waiting.append(line)

    def write(self) -> None:
        """Write what was gathered. On a full disk it is dropped: tasks need the room more."""
        if not self.waiting:
            return
        lines, self.waiting = b"".join(self.waiting), []
        try:
            files.append(self.path, lines)
        except (DiskFull, FileNotFoundError):
            return


def read(tree: Tree) -> Iterator[dict[str, Any]]:
    """All events of all journals, journal by journal; torn lines are passed over."""
    folder = tree.folder("journal")
    for name in sorted(files.names(folder)):
        yield from _events(f"{folder}/{name}")


def of_owner(tree: Tree, owner: str) -> Iterator[dict[str, Any]]:
    """The same of one owner's journal; none if it wrote none."""
    yield from _events(tree.journal(owner))


def _events(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as lines:
            yield from filter(None, map(_event, lines))
    except (FileNotFoundError, IsADirectoryError):
        return


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return event if isinstance(event, dict) else None
