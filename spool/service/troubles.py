"""troubles - pure: what went wrong with a queue, how often in a row, and for how long it rests.

Owns   the back-off per cause. A preemption, a walltime or a cancelled allocation is no trouble.
"""

from __future__ import annotations

import msgspec

from spool.service.terms import Trouble

EVERYWHERE = "*"
REST_S = (60.0, 300.0, 900.0, 1800.0, 3600.0)
"""After the first, second … trouble of one cause; a controller that is down rests the least."""
SILENT_REST_S = (15.0, 30.0, 60.0, 120.0, 300.0)
IDLE_REST_S = (0.0, *REST_S)
SILENT, UNANSWERED = "unreachable", "a submission was not answered"
AT_START, IDLE = "died at start", "did nothing"
IN_VAIN = (AT_START, IDLE)
"""That a request is taken is no end of these: what comes of it has to show that."""
BOUND_TO_FAIL = ("account", "partition", "script", "limit")
"""Refusals that a person has to see to: the rest starts at its second step."""


class Mark(msgspec.Struct, frozen=True):
    """Of one queue: the cause in a word, what was said, how often in a row, the end of its rest."""

    cause: str
    said: str
    count: int
    until: float


Marks = dict[str, Mark]


def rest_s(cause: str, count: int) -> float:
    """For how long a queue rests after so many troubles of one cause in a row."""
    steps = {SILENT: SILENT_REST_S, IDLE: IDLE_REST_S}.get(cause, REST_S)
    step = max(1, count) - 1 + (cause in BOUND_TO_FAIL)
    return steps[min(step, len(steps) - 1)]


def marked(marks: Marks, queue: str, cause: str, said: str, now: float) -> Marks:
    """The marks with one more trouble of a queue.

    What dies while its queue rests was asked for before: it is no trouble more.
    """
    before = marks.get(queue)
    count = before.count + 1 if before is not None and before.cause == cause else 1
    if count > 1 and before is not None and cause in IN_VAIN and now < before.until:
        return {**marks, queue: msgspec.structs.replace(before, said=said)}
    return {**marks, queue: Mark(cause, said, count, now + rest_s(cause, count))}


def cleared(marks: Marks, queue: str) -> Marks:
    """The marks once something of a queue went well."""
    return {name: mark for name, mark in marks.items() if name != queue}


def bounded(marks: Marks, now: float) -> Marks:
    """The marks where no rest is longer than it should be: a clock may have been set back."""
    return {
        queue: msgspec.structs.replace(
            mark, until=min(mark.until, now + rest_s(mark.cause, mark.count))
        )
        for queue, mark in marks.items()
    }


def standing(marks: Marks, now: float) -> dict[str, Trouble]:
    """What sizing is to respect now."""
    return {
        queue: Trouble(f"{mark.cause}: {mark.said}", mark.until - now)
        for queue, mark in marks.items()
        if mark.until > now
    }
