"""silence - for how long an owner's heartbeat has not changed, by its observer's own clock.

Owns   launchers/OWNER/seen.HOST: what one-shots on HOST saw of an owner, for the next of them.
Never  compares two clocks: what was timed in another boot counts for nothing.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from spool.errors import SpoolError
from spool.queue import files, layout, owner
from spool.queue.layout import Tree

LEAST_LOOKS = 3
"""So many looks of one-shots have to agree: two may fall on both ends of a file server's stall."""


class Silence(msgspec.Struct):
    """The last token read from an owner, and since when, on our clock, it has not changed.

    alive says that our own eyes saw it change; kept, that it goes on from process to process.
    """

    token: bytes | None
    since: float
    looked: float
    alive: bool = False
    looks: int = 1
    boot: str = ""

    @property
    def kept(self) -> bool:
        """Whether one-shots share it."""
        return bool(self.boot)

    @property
    def counts(self) -> bool:
        """Whether there were looks enough."""
        return not self.kept or self.looks >= LEAST_LOOKS


def recall(tree: Tree, name: str, now: float) -> Silence | None:
    """What earlier one-shots of this host and boot saw of an owner."""
    raw = files.read(_path(tree, name), 1 << 12)
    try:
        found = msgspec.json.decode(raw, type=Silence) if raw else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if found is None or found.boot != owner.boot_id():
        return None
    return found if 0 <= found.since <= found.looked <= now else None


def keep(tree: Tree, name: str, silence: Silence) -> None:
    """Leave it to the next one-shot; where that is not possible, that one begins anew."""
    with suppress(OSError, SpoolError):
        files.replace(_path(tree, name), msgspec.json.encode(silence) + b"\n")


def _path(tree: Tree, name: str) -> str:
    return tree.owner(name, f"{layout.SEEN_SILENT}.{owner.here().host}")
