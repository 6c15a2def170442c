"""owner - a lease: the folder an owner holds its claims in, and the heartbeat that keeps it.

Owns   launchers/OWNER/ and the making and removing of an empty RUNNING/OWNER/.
Never  kills or moves a task.
Fails  LeaseLost: RUNNING/OWNER is gone, so another process has our tasks.
"""

from __future__ import annotations

import copy
import os
import time
import zlib
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgspec

from spool import units
from spool.config import Settings
from spool.errors import LeaseLost, SpoolError
from spool.queue import files, layout, processes
from spool.queue.layout import State, Tree

T = TypeVar("T")


class Here(NamedTuple):
    """Where this process runs. boot names the boot and the pid namespace in which pid counts."""

    host: str
    boot: str
    pid: int


def here() -> Here:
    """This process."""
    return Here(os.uname().nodename, _boot(), os.getpid())


def boot_id() -> str:
    """This boot of the machine: the monotonic clock runs as long as it does."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _boot() -> str:
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{zlib.crc32(f'{boot_id()} {namespace}'.encode()):08x}"


class Owner:
    """A process that may hold claims. Start it with `Owner.start`, beat, and end it."""

    def __init__(self, tree: Tree, settings: Settings, name: str, record: dict[str, Any]) -> None:
        self.tree = tree
        self.settings = settings
        self.name = name
        self.record = record
        self.claims = tree.group(State.RUNNING, name)
        self.beats = 0
        self.busy: float | None = None  # the share of our cores that run tasks; for the service
        self.last_beat = time.monotonic()

    @classmethod
    def start(cls, tree: Tree, settings: Settings, kind: str, **record: Any) -> Owner:
        """Make a new owner: its record and heartbeat first, then the folder for its claims."""
        place = here()
        name = layout.owner_name(kind, place.host, place.boot, place.pid)
        whole = {
            "owner": name,
            "kind": kind,
            "host": place.host,
            "boot": place.boot,
            "pid": place.pid,
            "process_start": processes.process_start(place.pid),
            "started": units.now_stamp(),
            **record,
        }
        owner = cls(tree, settings, name, whole)
        try:
            owner._begin()
        except (OSError, SpoolError):
            with suppress(OSError, SpoolError):
                files.remove_tree(tree.owner(name))
            raise
        return owner

    def _begin(self) -> None:
        files.make_folder(self.tree.folder("launchers"))
        files.new_folder(self.tree.owner(self.name))
        self._furnish()
        files.make_folder(self.claims)

    def _furnish(self) -> None:
        """Heartbeat, record and inbox, where they are missing."""
        files.make_folder(self.tree.owner(self.name))
        files.replace(self.tree.owner(self.name, layout.HEARTBEAT), self._token())
        files.replace(self.tree.owner(self.name, layout.LAUNCHER), encoded(self.record))
        files.make_folder(self.tree.owner(self.name, layout.INBOX))

    def claim_path(self, task_id: str) -> str:
        """Where a task lies while this owner has it."""
        return f"{self.claims}/{task_id}"

    def within(self, group: str) -> Owner:
        """This owner at work in another RUNNING group that it holds: one it has taken over."""
        other = copy.copy(self)
        other.claims = self.tree.group(State.RUNNING, group)
        return other

    def holds_lease(self) -> bool:
        """Whether RUNNING/OWNER is there, by a fresh listing."""
        return files.holds(self.claims)

    def beat(self) -> None:
        """Show that we live. Raises LeaseLost."""
        if not self.holds_lease():
            raise LeaseLost(f"{self.claims}: is gone; another process has taken over")
        self.beats += 1
        try:
            files.overwrite(self.tree.owner(self.name, layout.HEARTBEAT), self._token())
        except FileNotFoundError:
            self._furnish()  # somebody removed our record; our claims are what counts
        self.last_beat = time.monotonic()

    def beat_if_due(self) -> bool:
        """Beat when the time has come; whether it did. Raises LeaseLost."""
        if time.monotonic() - self.last_beat < self.settings.lease_beat_s:
            return False
        self.beat()
        return True

    def end(self, *, keep: bool = False, **record: Any) -> None:
        """Give the lease back; claims still lying there are left to a taker.

        `keep` leaves the record with `ended` in it (launchers keep their log), else it goes.
        """
        if files.exists(self.tree.tokens(self.name)):
            from spool.queue import limits  # here: it knows owners, and is needed by few of them

            limits.bring_back(self.tree, self.name)
        empty = files.remove_folder(self.claims)
        if keep or not empty:
            self.write_record(ended=units.now_stamp(), **record)
        else:
            files.remove_tree(self.tree.owner(self.name))

    def write_record(self, **changes: Any) -> None:
        """Change launcher.json."""
        self.record.update(changes)
        files.replace(self.tree.owner(self.name, layout.LAUNCHER), encoded(self.record))

    def tell(self, key: str, word: T) -> T:
        """Say in launcher.json what is news, for people; the word itself, whatever the disk says.

        What is neither true nor told before is no news.
        """
        if self.record.get(key) != word and (word or key in self.record):
            with suppress(OSError, SpoolError):
                self.write_record(**{key: word})
        return word

    def requests(self) -> list[str]:
        """The names in the inbox, VERB.ID each."""
        return files.names(self.tree.owner(self.name, layout.INBOX))

    def _token(self) -> bytes:
        busy = "" if self.busy is None else f" {self.busy:.3f}"
        return f"{self.beats:012d} {os.urandom(4).hex()}{busy}\n".encode()


def encoded(record: dict[str, Any]) -> bytes:
    """A record as launcher.json holds it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def read_record(tree: Tree, owner: str) -> dict[str, Any]:
    """What launcher.json of an owner says, {} if it is missing or damaged."""
    raw = files.read(tree.owner(owner, layout.LAUNCHER), 1 << 16)
    try:
        record = msgspec.json.decode(raw) if raw else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_busy(tree: Tree, owner: str) -> float | None:
    """The share of its cores that an owner last told to run tasks, 0 to 1; None if it tells not."""
    words = (files.read(tree.owner(owner, layout.HEARTBEAT), 256) or b"").split()
    try:
        return min(1.0, max(0.0, float(words[2])))
    except (IndexError, ValueError):
        return None


def user_name() -> str:
    """Who runs this process, for records."""
    if named := os.environ.get("LOGNAME") or os.environ.get("USER"):
        return named
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
