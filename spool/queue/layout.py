"""layout - every name in the tree: folders, files, ids, groups and owners.

Owns   the only path strings of the spool; the patterns of ids, shards, groups and owners.
Never  touches the disk.
Fails  ValueError: a name that is none of ours.
"""

from __future__ import annotations

import os
import re
import time
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

MANIFEST = "manifest.json"
HISTORY = "history.jsonl"
OUTPUT = "output"
ERRORS = "errors"
SETTINGS = "spool.toml"
LAUNCHER = "launcher.json"
HEARTBEAT = "heartbeat"
INBOX = "inbox"
LIMITS = "limits"  # no part of FOLDERS: made where the first limit is met
KEY = "limit"  # the file in a limit's folder that never moves
SIZE = "size"
LOG = "log"
NEXT = ".spool-next"  # what a handler writes its decision to
LANDING = ".spool-staging"  # where what is brought in lies until it is whole
REPLACED = "replaced"
ELEMENTS = "elements.jsonl"
OUTPUTS = "outputs"
VALUES = "values"
CHUNK = "chunk.json"
CALLS = "calls"
REQUEST = "request.json"  # this and the next are of an allocation
SCRIPT = "script"
STANDING = "state"
END_WANTED = "cancel"
SIGNED_IN = "launchers"
LEDGER = "ledger.jsonl"  # this and the next are beside allocations
SERVICE_MEMORY = "service.json"
LOCAL = "local@"
SERVICE_JOURNAL = "service"
SEEN_SILENT = "seen"
OWN = (MANIFEST, HISTORY, ELEMENTS, VALUES, CHUNK, CALLS)  # what a task, or a chunk, is
ARRIVING = "~new"  # behind the id of an arrival that its owner has claimed but not yet admitted
SHARD_SIZE = 10_000
COUNTERS = 36 * 36
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LETTERS = (DIGITS[10:] + "234567").encode() * 8  # any byte to one of 32, evenly
NAME_LONGEST = 80
ID_LONGEST = 128
ELEMENT_MOST = 999_999_999
LATEST = 4102444740  # 2099-12-31 23:59 UTC, since minutes are written with two digits of the year


class State(StrEnum):
    """Where a task can be; the value is the folder's name."""

    CREATED = "CREATED"
    WAITING = "WAITING"
    READY = "READY"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


FINAL = (State.FINISHED, State.FAILED, State.CANCELLED)
POST, NOBODY = "service@", "nobody"
"""launchers/service@OWNER names the one service; service@nobody is free."""
FOLDERS = ("apps", "tmp", *State, "launchers", "allocations", "journal", "seen", "archive")

_NAME = rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{NAME_LONGEST - 1}}}"
_ID = r"([A-Za-z0-9][A-Za-z0-9._+-]{0,79})\.([0-9]{8}-[a-z0-9]{2})-([a-z0-9]{10})"
_CHUNK = r"(?:@((?:0|[1-9][0-9]{0,8})-(?:0|[1-9][0-9]{0,8})))?"
_NAME_PATTERN = re.compile(_NAME).fullmatch
_ID_PATTERN = re.compile(_ID + _CHUNK).fullmatch
_SHARD = r"[0-9]{8}-[a-z0-9]{2}"
UNTIL = "until@"
_UNTIL = rf"{UNTIL}([0-9]{{10}})"
_OWNER = r"([a-z]+)\.([A-Za-z0-9._-]+)\.([0-9a-f]{8})\.([0-9]+)\.([a-z0-9]{6})"


class TaskId(NamedTuple):
    """An id taken apart; chunk is FIRST-LAST where it names one chunk of an array."""

    name: str
    shard: str
    random: str
    chunk: str = ""


class OwnerName(NamedTuple):
    """An owner's name taken apart."""

    kind: str
    host: str
    boot: str
    pid: int
    random: str


def is_name(text: str) -> bool:
    """Whether `text` may be the name of a task, a workflow, an app or a tag."""
    return _NAME_PATTERN(text) is not None


def as_name(text: str) -> str:
    """The nearest allowed name to `text`."""
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).lstrip("._+-")[:NAME_LONGEST]
    return plain or "task"


@lru_cache(4096)  # each is taken apart several times on its way
def parse_id(text: str) -> TaskId | None:
    """The parts of a well-formed id, else None."""
    found = _ID_PATTERN(text) if len(text) <= ID_LONGEST else None
    return TaskId(*found.groups(default="")) if found else None


def is_no_parent(group: str) -> bool:
    """Whether a group of WAITING is surely no id: held@SHARD, until@MINUTE, or nobody's."""
    return "." not in group or group[0] == "."


def is_parent_group(state: State, group: str) -> bool:
    """Whether a task that lies there waits for another, whose id the group is."""
    return state is State.WAITING and parse_id(group) is not None


def shard_of(task_id: str) -> str:
    """The shard written in an id. Raises ValueError for anything else."""
    if (parts := parse_id(task_id)) is None:
        raise ValueError(f"{task_id!r} is not a task id (NAME.SHARD-RANDOM)")
    return parts.shard


def array_of(task_id: str) -> str:
    """The array that a chunk's id belongs to; of any other id itself."""
    return task_id.partition("@")[0]


def arriving(task_id: str, source: str) -> str:
    """The name of an arrival that its owner has claimed but not yet admitted.

    A chunk's stands with two @, any other with one where it came by a source's door.
    """
    chunk = "@" in task_id
    return f"{task_id}{f'@{source}' if source or chunk else ''}{ARRIVING}"


def parse_arriving(held: str) -> tuple[str, str]:
    """The id and the source in such a name."""
    *parts, last = held.removesuffix(ARRIVING).split("@")
    return ("@".join(parts), last) if parts else (last, "")


def is_shard(text: str) -> bool:
    """Whether `text` is a shard such as 26112215-4k."""
    return re.fullmatch(_SHARD, text) is not None


def shard(when: float, counter: int) -> str:
    """The shard of the UTC hour of `when` (epoch seconds) and a counter."""
    high, low = divmod(counter % COUNTERS, 36)
    return f"{time.strftime('%y%m%d%H', time.gmtime(when))}-{DIGITS[high]}{DIGITS[low]}"


def shard_hour(text: str) -> float:
    """The start of a shard's hour, epoch seconds. Raises ValueError."""
    from calendar import timegm

    return timegm(time.strptime(f"20{text[:8]}", "%Y%m%d%H"))


def lone_shard(when: float) -> str:
    """The shard of one task by itself: one of four an hour, so that small spools stay tidy."""
    return shard(when, os.urandom(1)[0] % 4)


def random_tails(count: int) -> list[str]:
    """`count` random ends of ids: ten characters of base 32, 50 bits each."""
    letters = os.urandom(count * 10).translate(_LETTERS).decode("ascii")
    return [letters[start : start + 10] for start in range(0, count * 10, 10)]


def new_id(name: str, in_shard: str) -> str:
    """A fresh id."""
    return f"{name}.{in_shard}-{random_tails(1)[0]}"


def until_group(moment: float) -> str:
    """The WAITING group of tasks that wait for a moment, rounded up to the minute."""
    minute = min(-(-moment // 60) * 60, LATEST)
    return f"{UNTIL}{time.strftime('%y%m%d%H%M', time.gmtime(minute))}"


def until_moment(group: str) -> float | None:
    """The moment an until@MINUTE group names, epoch seconds; None for other groups."""
    from calendar import timegm

    found = re.fullmatch(_UNTIL, group)
    try:
        return timegm(time.strptime(f"20{found[1]}", "%Y%m%d%H%M")) if found else None
    except ValueError:
        return None


def held_group(in_shard: str) -> str:
    """The WAITING group of held tasks."""
    return f"held@{in_shard}"


def failed_group(reason: str, in_shard: str) -> str:
    """The FAILED group of tasks that failed for `reason`."""
    return f"{reason}@{in_shard}"


def group_label(group: str) -> str:
    """A group without its shard or taker: what a report adds up."""
    head, mark, tail = group.rpartition("@")
    return head if mark and is_shard(tail) else group.partition("~")[0]


def owner_name(kind: str, host: str, boot: str, pid: int) -> str:
    """A fresh owner name KIND.HOST.BOOT.PID.RAND."""
    tail = random_tails(1)[0][:6]
    return f"{kind}.{_host(host)}.{boot[:8]}.{pid}.{tail}"


def _host(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", host)[:64] or "host"


def parse_owner(text: str) -> OwnerName | None:
    """The parts of an owner's name, else None."""
    found = re.fullmatch(_OWNER, text)
    if not found:
        return None
    return OwnerName(found[1], found[2], found[3], int(found[4]), found[5])


def is_post(text: str) -> bool:
    """Whether this folder of launchers/ says who is the service."""
    return text.startswith(POST)


def claims_group(owner: str, taker: str) -> str:
    """The RUNNING group of an owner's claims once `taker` has them."""
    return f"{owner.partition('~')[0]}~{taker}"


def limit_name(kind: str, name: str, node: str = "") -> str:
    """The folder of a limit; kinds hold no dash and names no @, so no two limits share one."""
    return f"{kind}-{name}@{_host(node)}" if node else f"{kind}-{name}"


def parse_token(text: str) -> tuple[str, str]:
    """The limit and the number (or SIZE) of a token as its owner has it."""
    limit, _, tail = text.rpartition(".")
    return limit, tail


class Tree:
    """The paths of one spool; `root` is absolute."""

    __slots__ = ("root",)

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def folder(self, name: str) -> str:
        """A top-level folder."""
        return f"{self.root}/{name}"

    @property
    def settings(self) -> str:
        """The file that marks the root."""
        return f"{self.root}/{SETTINGS}"

    def state(self, state: State) -> str:
        """A state's folder."""
        return f"{self.root}/{state.value}"

    def group(self, state: State, group: str) -> str:
        """A group's folder."""
        return f"{self.root}/{state.value}/{group}"

    def task(self, state: State, group: str, task_id: str) -> str:
        """A task's folder; an arrival in CREATED lies under its own name, group '' or @SOURCE."""
        if group:
            return f"{self.root}/{state.value}/{group}/{task_id}"
        return f"{self.root}/{state.value}/{task_id}"

    def tmp(self, name: str = "") -> str:
        """A process's own place to build tasks in."""
        return f"{self.root}/tmp/{name}" if name else f"{self.root}/tmp"

    def app(self, name: str) -> str:
        """An application's definition."""
        return f"{self.root}/apps/{name}.json"

    def owner(self, owner: str, file: str = "") -> str:
        """An owner's folder, or a file in it."""
        base = f"{self.root}/launchers/{owner}"
        return f"{base}/{file}" if file else base

    def allocation(self, name: str, file: str = "") -> str:
        """An allocation's folder, or a file in it; or a file beside them, by its name."""
        base = f"{self.root}/allocations/{name}"
        return f"{base}/{file}" if file else base

    def request(self, owner: str, verb: str, task_id: str) -> str:
        """A request to an owner about one of its tasks."""
        return f"{self.root}/launchers/{owner}/{INBOX}/{verb}.{task_id}"

    def limit(self, name: str, file: str = "") -> str:
        """The folder of a limit, or a file in it: a free token by its number, SIZE or KEY."""
        base = f"{self.root}/{LIMITS}/{name}"
        return f"{base}/{file}" if file else base

    def tokens(self, owner: str, limit: str = "", tail: str = "") -> str:
        """The folder of the tokens an owner has, or one of them."""
        base = f"{self.root}/launchers/{owner}/tokens"
        return f"{base}/{limit}.{tail}" if limit else base

    def tokens_taken(self, owner: str, token: str = "") -> str:
        """The same folder, or a token in it, once it is closed to its owner."""
        base = f"{self.root}/launchers/{owner}/tokens~"
        return f"{base}/{token}" if token else base

    def journal(self, owner: str) -> str:
        """An owner's journal."""
        return f"{self.root}/journal/{owner}.jsonl"

    def key(self, digest: str) -> str:
        """The record of an idempotency key."""
        return f"{self.root}/seen/key@{digest[:2]}/{digest[2:]}"

    def seen(self, task_id: str) -> str:
        """The record of a delivered or removed id."""
        return f"{self.root}/seen/{shard_of(task_id)}/{task_id}"
