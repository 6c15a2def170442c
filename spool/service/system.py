"""system - what every batch system can be asked, and the running of its commands.

Owns   the words Job, Order and the interface BatchSystem; one command's run, with its time limit.
Never  decides anything: an adapter translates, the service judges.
Fails  Declined: the batch system says no to this request. Unreachable: it gives no usable answer
       (missing command, time-out, controller down, nonsense); nothing follows from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from spool.errors import SpoolError
from spool.service.terms import NodeShape, Window


class Declined(SpoolError):
    """The batch system will not take this: wrong account, queue, limits, script.

    cause is one word or two for the back-off per cause: "account", "partition", "limit", "quota",
    "script" or "other"; the message is the batch system's own, in one line.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Unreachable(SpoolError):
    """No usable answer: neither yes nor no. What was asked may or may not have happened."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a job script's head and the submission say."""

    name: str  # the job's name, unique for ever; by it a job is adopted
    queue: str
    nodes: int
    walltime_s: float
    account: str = ""
    node: NodeShape = NodeShape()  # of the queue, where a batch system wants cores or slots named
    output: str = ""  # the file for what the script prints
    directives: tuple[str, ...] = ()  # the user's own, without the "#SBATCH "


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch system says of one job now."""

    id: str
    name: str
    state: str  # "queued", "running", "ending" (completing) or "ended"
    queue: str = ""
    nodes: int = 0
    left_s: float | None = None
    why: str = ""  # queued: why it waits; in the batch system's words
    outcome: str = ""  # ended: completed failed timeout cancelled node-fail preempted, "" unknown
    used_s: float | None = None  # wall-clock seconds it has run, where told
    hosts: str = ""


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as the batch system describes it: for a policy that leaves it out, and for checks."""

    name: str
    default: bool = False
    nodes: int = 0
    node: NodeShape = NodeShape()
    max_s: float | None = None
    max_nodes: int | None = None


class BatchSystem(Protocol):
    """One adapter. All times are seconds; every call may raise Unreachable."""

    name: str

    def head(self, order: Order) -> list[str]:
        """The directive lines of a job script."""
        ...

    def submit(self, script: str, order: Order) -> str:
        """Submit the script at this path; the job's id. Raises Declined."""
        ...

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """Jobs of ours, by id: all whose name starts with `names`, and those `known` by id.

        One or two commands however many there are. What the batch system does not know (any more)
        is missing: the service needs several such looks before it believes that.
        """
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask for their end; those that are over or unknown are no error."""
        ...

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """What would start at once; None where this batch system cannot say."""
        ...

    def partitions(self) -> list[Partition]:
        """The queues there are; [] where it cannot say."""
        ...

    def dry_run(self, script: str, order: Order) -> str | None:
        """What the batch system says to this script without taking it; None if it cannot be asked.

        Raises Declined.
        """
        ...
