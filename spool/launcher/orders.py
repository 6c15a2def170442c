"""orders - what the leader of a launcher and its ranks say to each other.

Owns   the form of every message: lists of these, as msgpack.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spool.launcher.nodes import Node


class Message(msgspec.Struct, array_like=True, tag=str.lower):
    """One thing said."""


# -- from the leader to a rank -------------------------------------------------------------------


class Welcome(Message):
    """For whom a rank runs tasks, and on what; mark as Crew's node."""

    owner: str
    record: dict[str, Any]
    node: Node
    pin: bool
    mark: str


class Run(Message):
    """Start a task in this room."""

    task_id: str
    shape: str
    cpus: tuple[int, ...]
    gpus: tuple[str, ...]
    memory_mb: int


class Follow(Message):
    """Start a task in the room of the first of its shape that ends."""

    task_id: str
    shape: str


class Ask(Message):
    """Do what a person asked of a task."""

    verb: str
    task_id: str
    said: dict[str, Any]


class Beat(Message):
    """The launcher held its lease so many seconds ago."""

    age_s: float


class Recall(Message):
    """Give back what has not started."""


class Stop(Message):
    """Give back what has not started, stop what runs."""

    why: str


class Kill(Message):
    """The lease is lost: kill what runs, write nothing more."""


class Sweep(Message):
    """The mpirun of a task ended badly: kill what it left on this node."""

    task_id: str


class End(Message):
    """It is over."""


Order = Welcome | Run | Follow | Ask | Beat | Recall | Stop | Kill | Sweep | End


# -- from a rank to the leader -------------------------------------------------------------------


class Hello(Message):
    """Who a rank is, and what its node has."""

    host: str
    boot: str
    pid: int
    node: Node


class Free(Message):
    """A task has ended: its room is free. How it ended follows once that is durable."""

    task_id: str


class Took(Message):
    """A follower took the room of a task that has ended."""

    task_id: str
    after: str


class Back(Message):
    """A task never started: to be given back; in_vain: a follower that waited too long."""

    task_id: str
    in_vain: bool = False


class Gone(Message):
    """A task is no longer ours: it was sent where it belongs, or cannot be touched."""

    task_id: str


class Ended(Message):
    """How a task ended, durably: where it belongs, and its line in the journal."""

    task_id: str
    state: str
    group: str
    line: bytes


class Swept(Message):
    """A task was swept here; clean: nothing of it is left."""

    task_id: str
    clean: bool


class Alive(Message):
    """The rank lives; the longest grace of its tasks."""

    longest_grace_s: float


class Log(Message):
    """A line for the launcher's log."""

    text: str


class Bye(Message):
    """The last word of a rank."""


Said = Free | Took | Back | Gone | Ended | Swept | Alive | Log | Bye

_ORDERS = msgspec.msgpack.Decoder(list[Order])
_SAID = msgspec.msgpack.Decoder(list[Said])


def ordered(raw: bytes) -> list[Order]:
    """The orders in a message."""
    return _ORDERS.decode(raw)


def said(raw: bytes) -> list[Said]:
    """The reports in a message."""
    return _SAID.decode(raw)
