"""letters - calls on their way: each with its future, those that travel together in a batch.

Owns   what a future goes through; the file of calls as it is written.
Never  touches the disk.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from spool.calls import outcome
from spool.launcher import warm
from spool.launcher.warm import Frame


class CallFuture(Future[Any]):
    """The future of a call; whoever carries the call hears of a cancel."""

    def __init__(self, unwanted: Callable[[int], None], number: int) -> None:
        super().__init__()
        self._unwanted, self._number = unwanted, number

    def cancel(self) -> bool:
        """Cancel it if it has not begun; its worker may not have heard yet and run it in vain."""
        before = self.cancelled()
        done = super().cancel()
        if done and not before:
            self._unwanted(self._number)
        return done


class Call:
    """A call on its way. alone: it goes by itself, since it may have killed its process."""

    __slots__ = (
        "alone",
        "batch",
        "body",
        "code",
        "function",
        "future",
        "heard",
        "number",
        "wanted",
    )

    def __init__(
        self, number: int, future: Future[Any], function: str, code: bytes, body: bytes
    ) -> None:
        self.number, self.future = number, future
        self.function, self.code, self.body = function, code, body
        self.batch: Batch | None = None
        self.alone = self.heard = False
        self.wanted = True

    def begin(self) -> bool:
        """It runs, or did: its future can be cancelled no more. Whether anybody wants it still."""
        if not self.heard:
            self.heard = True
            self.wanted = self.future.set_running_or_notify_cancel()
        return self.wanted

    def end(self, frame: Frame) -> None:
        """Give its future what a worker told."""
        if not self.begin():
            return
        told = outcome.of_frame(frame.kind, frame.body)
        if told.fault is not None:
            self.future.set_exception(told.fault)
        else:
            self.future.set_result(told.value)

    def fail(self, fault: BaseException) -> None:
        """It has no result, for this reason."""
        if self.begin():
            self.future.set_exception(fault)


class Batch:
    """The calls of one task that have no result yet; how far each attempt's results are read."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.calls = {call.number: call for call in calls}
        self.task_id = ""
        self.read: dict[str, int] = {}
        self.unwanted: set[int] = set()
        self.started_at = 0.0


def written(calls: list[Call], mailbox: str, *, alone: bool = False) -> bytes:
    """The file of calls of one task."""
    header = {"format": warm.FORMAT, "path": search_path(), "mailbox": mailbox, "alone": alone}
    numbers: dict[bytes, int] = {}
    for call in calls:
        numbers.setdefault(call.code, len(numbers))
    pieces = [json.dumps(header).encode(), b"\n"]
    pieces += [warm.frame(warm.FUNCTION, number, 0, code) for code, number in numbers.items()]
    pieces += [warm.frame(warm.CALL, call.number, numbers[call.code], call.body) for call in calls]
    return b"".join(pieces)


def search_path() -> list[str]:
    """Where modules are looked for here, so that a worker finds the same ones."""
    return [os.path.abspath(one or ".") for one in sys.path]
