"""outcome - what a task came to, as a value or an exception.

Never  loads a result that is not its own user's; waits.
"""

from __future__ import annotations

import pickle
from concurrent.futures import CancelledError
from typing import Any

from spool.errors import CallLost, TaskFailed
from spool.launcher import warm
from spool.queue import files, layout
from spool.queue.layout import State, Tree
from spool.queue.tasks import Spot, Task


class Outcome:
    """The end of a task: `value` it gave, or `fault`, what keeps it from having one."""

    def __init__(self, value: Any = None, fault: BaseException | None = None) -> None:
        self.value, self.fault = value, fault


def of(tree: Tree, spot: Spot, task: Task) -> Outcome:
    """What a task in a final state came to. A command's value is its exit code."""
    if spot.state is State.CANCELLED:
        return Outcome(fault=CancelledError(f"task {spot.id} was cancelled"))
    if task.manifest.python and (told := _told(task)) is not None:
        return told
    why = failure(tree, spot)
    if task.manifest.python:
        return Outcome(fault=CallLost(why))
    if spot.state is State.FAILED:
        return Outcome(fault=TaskFailed(why))
    return Outcome((task.story.exit or {}).get("code", 0))


def _told(task: Task) -> Outcome | None:
    """The result of the latest attempt that has one."""
    for attempt in range(task.story.attempt, 0, -1):
        try:
            raw = warm.read_own(warm.results_name("", task.id, attempt), task.path)
        except warm.NotOurs as fault:
            return Outcome(fault=CallLost(str(fault)))
        except OSError:
            continue
        for frame, _ in warm.frames(raw):
            if frame.kind in (warm.VALUE, warm.ERROR):
                return of_frame(frame.kind, frame.body)
    return None


def of_frame(kind: bytes, body: bytes) -> Outcome:
    """A result as a worker wrote it. Whatever unpickling runs is the user's, so all is caught."""
    if kind == warm.ERROR:
        return Outcome(fault=_error(body))
    try:
        return Outcome(pickle.loads(body))
    except BaseException as fault:
        return Outcome(fault=fault)


def _error(body: bytes) -> BaseException:
    whole, plain, told = pickle.loads(body)
    fault: BaseException = CallLost(f"a call raised what cannot be brought here: {plain}")
    try:
        if whole and isinstance(found := pickle.loads(whole), BaseException):
            fault = found
    except BaseException as why:
        fault = CallLost(f"a call raised what cannot be brought here: {plain} ({why})")
    fault.__cause__ = warm.RemoteTraceback(told)
    return fault


def failure(tree: Tree, spot: Spot) -> str:
    """Why a task that ended has no result, with its last words."""
    label = layout.group_label(spot.group)
    where = f"{spot.state}/{label}" if spot.state is State.FAILED else str(spot.state)
    said = files.read(f"{spot.path(tree)}/{layout.OUTPUT}") or b""
    last = said[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
    more = f", its last words: {last}" if last else ""
    return f"task {spot.id} ended without a result ({where}){more}"
