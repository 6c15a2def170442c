"""allocations - allocations/NAME/: what was asked of a batch system, and what became of it.

Owns   the fields of an allocation's files, and of the ledger of those that are over.
Never  asks a batch system anything.

request.json  what was asked, by whom and why; written once, before the batch system is asked
script        the job script, as it was submitted; output: what it printed
state         where it stands now; only the service writes it (or whoever submitted it, once)
cancel        somebody wants its end; holds who, and why
launchers/    an empty file for each owner that ran in it
ledger.jsonl  in allocations/: a line for each that is over, so that these need not be read again
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from spool import units
from spool.errors import SpoolError
from spool.queue import files, layout
from spool.queue.layout import Tree

VARIABLE = "SPOOL_ALLOCATION"
"""The environment variable by which a launcher knows in which allocation it runs."""
ASKED, QUEUED, RUNNING, ENDING, ENDED = "asked", "queued", "running", "ending", "ended"
STOPPED = ("timeout", "preempted", "cancelled")
"""Outcomes by which the batch system itself ended what ran: tasks were interrupted, not lost."""
NEVER = "never"  # the batch system knows nothing of it: it was not submitted
_NAME = re.compile(r"sp-[a-z0-9]{4}-[a-z0-9]{5}").fullmatch


class Asked(msgspec.Struct, kw_only=True, frozen=True):
    """What was asked for; times in seconds. launcher is its options, mode and selection."""

    name: str
    system: str
    queue: str
    nodes: int
    walltime_s: float
    time: str
    account: str = ""
    by: str = ""
    why: str = ""
    launcher: tuple[str, ...] = ()
    selects: str = ""  # the tasks it is for, in words; "" all
    by_hand: bool = False  # a person asked for it: the service does not cancel it
    cost: float = 1.0
    cores: int = 0  # of a node, where known
    host: str = ""  # where this machine alone can tell of it


class Standing(msgspec.Struct, kw_only=True):
    """Where an allocation stands; durations in seconds, as they add up from look to look.

    looked is the moment of the last look (epoch seconds); missing counts looks in a row at which
    the batch system did not know it, missing_s for how long that has lasted.
    """

    state: str = ASKED
    job: str = ""
    outcome: str = ""
    why: str = ""
    hosts: str = ""
    looked: float = 0.0
    waited_s: float = 0.0
    ran_s: float = 0.0
    left_s: float | None = None
    unneeded: bool = False  # as sizing last found; unneeded_s: for how long
    unneeded_s: float = 0.0
    missing: int = 0
    missing_s: float = 0.0
    started: str = ""
    ended: str = ""
    withdrawn: str = ""  # why we asked for its end; "" we did not


class Closed(msgspec.Struct, kw_only=True, frozen=True):
    """A line of the ledger. busy_core_s are those of tasks that ended well, wasted_core_s of
    attempts that did not; granted_core_s is 0 where a node's cores were never known."""

    name: str
    queue: str
    nodes: int
    outcome: str
    ended: str
    waited_s: float
    ran_s: float
    charged_node_s: float
    tasks: int = 0
    failed: int = 0
    granted_core_s: float = 0.0
    busy_core_s: float = 0.0
    wasted_core_s: float = 0.0
    why: str = ""

    @property
    def utilisation(self) -> float:
        """The share of the granted cores' time in which tasks ran, 0 to 1."""
        return share(self.busy_core_s + self.wasted_core_s, self.granted_core_s)


def share(used_core_s: float, granted_core_s: float) -> float:
    """What of the granted time was used, 0 to 1; 0 where none was granted, or nobody knows."""
    return min(1.0, used_core_s / granted_core_s) if granted_core_s else 0.0


class Allocation(msgspec.Struct):
    """One allocation as its folder tells of it."""

    asked: Asked
    standing: Standing

    @property
    def live(self) -> bool:
        """Whether it waits or runs, or may do so."""
        return self.standing.state != ENDED


def prefix(tree: Tree) -> str:
    """What the names of this spool's allocations begin with, so that one question finds all."""
    return f"sp-{_base36(zlib.crc32(os.path.realpath(tree.root).encode()), 4)}-"


def new_name(tree: Tree) -> str:
    """A fresh name; at most 15 characters, as some batch systems want it."""
    taken = True
    while taken:
        name = f"{prefix(tree)}{layout.random_tails(1)[0][:5]}"
        taken = files.exists(tree.allocation(name))
    return name


def is_name(text: str) -> bool:
    """Whether this may be an allocation's name."""
    return _NAME(text) is not None


def _base36(number: int, digits: int) -> str:
    letters = []
    for _ in range(digits):
        number, digit = divmod(number, 36)
        letters.append(layout.DIGITS[digit])
    return "".join(letters)


def make(tree: Tree, asked: Asked, script: str) -> None:
    """Write down what is about to be asked for, durably: it may be submitted then.

    Raises DiskFull, OSError: nothing of it is left, and it must not be submitted.
    """
    files.make_folder(tree.folder("allocations"))
    folder = tree.allocation(asked.name)
    files.new_folder(folder)
    try:
        files.write_new(f"{folder}/{layout.SCRIPT}", script.encode(), mode=0o777)
        write(tree, asked.name, Standing())
        files.replace(f"{folder}/{layout.REQUEST}", _pretty(asked), sync=True)
        files.sync(folder)
        files.sync(tree.folder("allocations"))
    except (OSError, SpoolError):
        with suppress(OSError, SpoolError):
            files.remove_tree(folder)
        raise


def write(tree: Tree, name: str, standing: Standing) -> None:
    """Put down where an allocation stands."""
    files.replace(tree.allocation(name, layout.STANDING), _pretty(standing))


def _pretty(what: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(what), indent=1) + b"\n"


def read(tree: Tree, name: str) -> Allocation | None:
    """An allocation; None if there is none of that name, or it was never made whole."""
    asked = _decoded(tree.allocation(name, layout.REQUEST), Asked)
    if asked is None:
        return None
    return Allocation(asked, standing(tree, name))


def standing(tree: Tree, name: str) -> Standing:
    """Where an allocation stands; as just asked for if its file is missing or damaged."""
    return _decoded(tree.allocation(name, layout.STANDING), Standing) or Standing()


def _decoded(where: str, kind: type[Any]) -> Any:
    raw = files.read(where, 1 << 20)
    try:
        return msgspec.json.decode(raw, type=kind) if raw else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def names(tree: Tree) -> list[str]:
    """All allocations there are, in no order that matters."""
    return [name for name in files.names(tree.folder("allocations")) if is_name(name)]


def live(tree: Tree, lines: Iterable[Closed] | None = None) -> Iterator[Allocation]:
    """Those that the ledger, whose lines may be given, does not close."""
    closed = {line.name for line in (ledger(tree) if lines is None else lines)}
    for name in sorted(names(tree)):
        if name not in closed and (found := read(tree, name)) is not None:
            yield found


# -- the ledger ----------------------------------------------------------------------------------


def close(tree: Tree, line: Closed) -> None:
    """Add a line to the ledger."""
    where = tree.allocation(layout.LEDGER)
    files.append(where, msgspec.json.encode(line) + b"\n")
    files.sync(where)


def ledger(tree: Tree) -> list[Closed]:
    """What is over, each once; torn and damaged lines are passed over."""
    raw = files.read(tree.allocation(layout.LEDGER)) or b""
    found: dict[str, Closed] = {}
    for line in raw.splitlines():
        try:
            one = msgspec.json.decode(line, type=Closed)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        found.setdefault(one.name, one)
    return list(found.values())


# -- launchers, and evidence for takers ---------------------------------------------------------


def sign_in(tree: Tree, record: dict[str, Any], owner: str) -> None:
    """An owner that runs in one of our allocations leaves its name there, for the accounts."""
    if name := of_owner(record):
        with suppress(OSError, SpoolError):  # it costs a figure, never a task
            if not files.exists(tree.allocation(name, layout.REQUEST)):
                return  # another spool's: we were started from inside one of its allocations
            files.make_folder(tree.allocation(name, layout.SIGNED_IN))
            files.write_new(tree.allocation(name, f"{layout.SIGNED_IN}/{owner}"), b"")


def launchers(tree: Tree, name: str) -> list[str]:
    """The owners that ran, or run, in an allocation."""
    return sorted(files.names(tree.allocation(name, layout.SIGNED_IN)))


def of_owner(record: dict[str, Any]) -> str:
    """The allocation a launcher's record says it ran in; "" for none of ours."""
    name = record.get("allocation_name")
    return name if isinstance(name, str) and is_name(name) else ""


def _ending(tree: Tree, record: dict[str, Any]) -> str:
    """How the batch system says that an owner's allocation ended; "" where it says nothing.

    That it knows an allocation no more is no such word: its launchers may live.
    """
    if not (name := of_owner(record)):
        return ""
    seen, told = standing(tree, name), record.get("allocation")
    job = str(told.get("job", "")) if isinstance(told, dict) else ""
    if seen.state != ENDED or (job and seen.job and job != seen.job):
        return ""  # it runs, or the owner has its name from the one inside which it was started
    return "" if seen.outcome == NEVER else seen.outcome


def is_over(tree: Tree, record: dict[str, Any]) -> bool | None:
    """Whether the service has seen the end of an owner's allocation; None: it cannot tell."""
    return True if _ending(tree, record) else None


def was_stopped(tree: Tree, record: dict[str, Any]) -> bool:
    """Whether the batch system ended an owner's allocation: by walltime, preemption, a cancel."""
    return _ending(tree, record) in STOPPED


def age_s(stamp: str, now: float) -> float:
    """Seconds since a stamp, never less than 0."""
    try:
        return max(0.0, now - units.read_stamp(stamp))
    except ValueError:
        return 0.0
