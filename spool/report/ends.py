"""ends - what one line of a journal says: an attempt that ended, or cores that were granted.

Owns   what counts as an end, as an outcome and as granted cores.
Never  touches the disk or the clock, nor fails over a line: what is malformed is passed over.

An end counts once it has an id and a readable time; whatever else it lacks is taken as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from spool import units

ENDS = ("exit", "interrupted", "lost")
MOST_CORES = 1 << 24

Event = Mapping[str, Any]
Span = tuple[float, float]


class Outcome(StrEnum):
    """What an end means for throughput."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of the story is asked for: a stretch of time, a workflow (a name or a glob)."""

    since: float = -math.inf
    until: float = math.inf
    workflow: str = ""

    def takes(self, end: End) -> bool:
        """Whether the end is of the workflow."""
        return not self.workflow or fnmatchcase(end.workflow, self.workflow)

    def clip(self, begin: float, end: float) -> Span | None:
        """The part of a stretch that lies between since and until; None if none does."""
        low, high = max(begin, self.since), min(end, self.until)
        return (low, high) if low <= high and begin < self.until else None


EVERYTHING = Wanted()


class End(NamedTuple):
    """An attempt that ended. wait_s is None but for a first attempt whose submission is known."""

    time: float
    started: float
    wait_s: float | None
    run_s: float
    cores: int
    gpus: int
    workflow: str
    owner: str
    state: str
    outcome: Outcome
    lost: bool


def ends(events: Iterable[Event]) -> Iterator[End]:
    """The ends among the events."""
    return filter(None, map(end_of, events))


def end_of(event: Event) -> End | None:
    """The end an event tells of; None for any other event."""
    if event.get("what") not in ENDS or not isinstance(event.get("id"), str):
        return None
    if (ended := moment(event.get("time"))) is None:
        return None
    ran_s = _number(event.get("elapsed_s"), units.LONGEST)
    started = moment(event.get("started"))
    if started is None or started > ended:  # a clock that was set back
        started = ended - (ran_s or 0.0)
    return End(
        time=ended,
        started=started,
        wait_s=_wait_s(event, started),
        run_s=ended - started if ran_s is None else ran_s,
        cores=int(_number(event.get("cores"), MOST_CORES) or 0),
        gpus=int(_number(event.get("gpus"), MOST_CORES) or 0),
        workflow=_text(event.get("workflow")),
        owner=_text(event.get("owner")),
        state=_text(event.get("state")),
        outcome=_outcome(event),
        lost=event.get("what") == "lost",
    )


def _wait_s(event: Event, started: float) -> float | None:
    """From submission to start. A later attempt's would hold the earlier ones' runs: None."""
    submitted = moment(event.get("submitted"))
    if submitted is None or event.get("attempt", 1) != 1:
        return None
    return max(0.0, started - submitted)  # submitter's and node's clocks may differ


def _outcome(event: Event) -> Outcome:
    """A cancelled task was stopped from outside: interrupted. One to be tried again has failed."""
    if event.get("what") != "exit" or event.get("state") == "CANCELLED":
        return Outcome.INTERRUPTED
    return Outcome.FINISHED if event.get("state") == "FINISHED" else Outcome.FAILED


def moment(value: object) -> float | None:
    """A stamp as seconds since the epoch; None if it is none."""
    if not isinstance(value, str):
        return None
    try:
        if value[19:20] == "." and value[-1:] == "Z" and value[20:-1].isdecimal():
            return _second(value[:19]) + float(value[19:-1])
        return _second(value)
    except ValueError:
        return None


@lru_cache(maxsize=8192)
def _second(text: str) -> float:
    """The ends of one second share what is costly to read."""
    return units.read_stamp(text)


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value <= most else None  # NaN is neither


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


# -- granted cores -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Grant:
    """What one owner's events say so far."""

    last: float
    opened: float | None = None
    closed: float | None = None
    cores: int = 0
    self_id: tuple[str, str, object] = ("", "", 0)
    hand_of: object = 0


class Grants:
    """The owners seen, and when they had how many cores."""

    def __init__(self) -> None:
        self.by_owner: dict[str, _Grant] = {}

    def see(self, event: Event) -> None:
        """Take in an event of any kind: each shows that its owner still lived."""
        when, owner = moment(event.get("time")), event.get("owner")
        if when is None or not isinstance(owner, str):
            return
        grant = self.by_owner.get(owner) or self.by_owner.setdefault(owner, _Grant(when))
        grant.last = max(grant.last, when)
        if event.get("what") == "opened":
            self._describe(grant, event)
            grant.opened = when
        elif event.get("what") == "closed":
            grant.closed = when
            if grant.opened is None:  # a full disk dropped the line; the record says it too
                self._describe(grant, event)
                grant.opened = moment(event.get("started"))

    @staticmethod
    def _describe(grant: _Grant, event: Event) -> None:
        """Take the cores over, unless they are another launcher's, which counts them itself."""
        grant.hand_of = _number(event.get("hand_of"), math.inf) or 0
        grant.cores = 0 if grant.hand_of else int(_number(event.get("cores"), MOST_CORES) or 0)
        pid = _number(event.get("pid"), math.inf)
        grant.self_id = (_text(event.get("host")), _text(event.get("boot")), pid)

    def spans(self) -> Iterator[tuple[str, float, float, int]]:
        """(owner, from, until, cores), a launcher that never closed counting to its last event."""
        for owner, grant in self.by_owner.items():
            if grant.opened is not None and grant.cores:
                until = grant.last if grant.closed is None else grant.closed
                yield owner, grant.opened, max(grant.opened, until), grant.cores

    def lenders(self) -> dict[str, str]:
        """Each hand's lender, where that is known."""
        names = {grant.self_id: owner for owner, grant in self.by_owner.items()}
        found = {}
        for owner, grant in self.by_owner.items():
            lender = names.get((*grant.self_id[:2], grant.hand_of)) if grant.hand_of else None
            if lender and lender != owner:
                found[owner] = lender
        return found
