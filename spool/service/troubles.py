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
SILENT = "unreachable"
BOUND_TO_FAIL = ("account", "partition", "script", "limit")
"""Refusals that a person has to see to: the rest starts at its second step."""


class Mark(msgspec.Struct, frozen=True):
    """Of one queue: the cause in a word, what was said, how often in a row, the end of its rest."""

    cause: str
    said: str
    count: int
    until: float


Marks = dict[str, Mark]


def marked(marks: Marks, queue: str, cause: str, said: str, now: float) -> Marks:
    """The marks with one more trouble of a queue."""
    before = marks.get(queue)
    count = before.count + 1 if before is not None and before.cause == cause else 1
    steps = SILENT_REST_S if cause == SILENT else REST_S
    step = count - 1 + (cause in BOUND_TO_FAIL)
    rest_s = steps[min(step, len(steps) - 1)]
    return {**marks, queue: Mark(cause, said, count, now + rest_s)}


def cleared(marks: Marks, queue: str) -> Marks:
    """The marks once something of a queue went well."""
    return {name: mark for name, mark in marks.items() if name != queue}


def standing(marks: Marks, now: float) -> dict[str, Trouble]:
    """What sizing is to respect now. A clock that was set back makes no rest longer than it is."""
    longest = REST_S[-1]
    left = {queue: min(mark.until - now, longest) for queue, mark in marks.items()}
    return {
        queue: Trouble(f"{mark.cause}: {mark.said}", left[queue])
        for queue, mark in marks.items()
        if left[queue] > 0
    }
