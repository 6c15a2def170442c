"""kinds - the kinds of values that keys of a manifest take, and the structs among them.

Owns   Input, Transfer, Retry, Container; what is wrong with one of the last three.
Never  touches the disk or the clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from spool import units
from spool.queue import layout

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Amount = Annotated[int, Meta(ge=0, le=1_000_000)]
Priority = Annotated[int, Meta(ge=-999, le=999)]
Text = Annotated[str, Meta(max_length=65536)]
Word = Annotated[str, Meta(max_length=4096)]
Duration = Annotated[int | float | str, Meta(description=units.DURATION_FORM)]
Memory = Annotated[int | str, Meta(description=units.MEMORY_FORM + "; a number is megabytes")]
Command = list[Text] | Text | None
Value = str | int | float | bool

CAUSE = re.compile(r"exit-[0-9]{1,9}|signal-[0-9]{1,9}|timeout|lost|error|\*")
CAUSE_FORM = "exit-N, signal-N, timeout, lost, error (any exit or signal) or * (any but lost)"
_HOST = re.compile(r"[^/:\s]+:.+")


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that must be present before an arrival counts as complete.

    Or, with `from`, what matches `glob` in the directory of a parent, or of all (*): linked into
    the task's own before it starts, or copied.
    """

    path: Word = ""
    sha256: str = ""
    size: Annotated[int, Meta(ge=-1)] = -1
    source: Word = msgspec.field(default="", name="from")
    glob: Word = ""
    copy: bool = False


class Transfer(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is to be brought into a task, or out of it. via "": what the far end's name tells."""

    source: Word
    target: Word = ""
    via: str = ""
    size: Annotated[int, Meta(ge=-1)] = -1
    sha256: str = ""
    deadline: Duration = 0


class Retry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What follows an end of one cause: so many tries in all, each with changed keys."""

    attempts: Count = 1
    backoff: Duration = 0
    set: dict[str, Any] = {}


class Container(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """An image to run in. kind "": what is found; else its program, or one of [containers]."""

    image: Word
    kind: str = ""
    options: list[Word] = []


def is_far(place: str) -> bool:
    """Whether a source or target lies on another host: URL or HOST:PATH."""
    return bool(_HOST.fullmatch(place))


def is_inside(path: str) -> bool:
    """Whether a path leads nowhere out of a task's directory."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def wrong_transfer(item: Transfer, *, inward: bool) -> str:
    """What is wrong with an item of stage_in (inward) or stage_out; "" if nothing is."""
    near, far = (item.target, item.source) if inward else (item.source, item.target)
    if not item.source or not (inward or item.target):
        return "needs a 'source' and a 'target'"
    if any("\0" in one or "\n" in one for one in (near, far)):
        return f"{units.shown(far)} holds a line break or a NUL"
    if not is_inside(near):
        return f"{units.shown(near)} must be a relative path inside the task's directory"
    if near.split("/")[0] in (layout.MANIFEST, layout.HISTORY):
        return f"{near} is the task's own file"
    if not is_far(far) and not item.via and not far.startswith("/"):
        return f"{units.shown(far)} must be an absolute path, HOST:PATH or a URL"
    if item.sha256 and not re.fullmatch("[0-9a-f]{64}", item.sha256):
        return "sha256 must be 64 hexadecimal digits"
    return wrong_amount(units.duration, item.deadline)


def wrong_amount(read: Callable[[Any], object], value: Any) -> str:
    """Why a reader refuses a value, "" if it does not."""
    try:
        read(value)
    except ValueError as fault:
        return str(fault)
    return ""
