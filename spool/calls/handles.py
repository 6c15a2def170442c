"""handles - wait for tasks and futures alike, as concurrent.futures does for futures.

Owns   `wait` and `as_completed` over both.
Fails  TimeoutError from as_completed; NoSuchTask from neither: a removed task counts as done.

Tasks of one spool are looked for with a few listings, however many they are; futures ring.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future
from typing import Any

from spool.api import Task
from spool.queue import tasks
from spool.queue.layout import Tree

FIRST_PAUSE_S, LONGEST_PAUSE_S, GROWTH = 0.01, 1.0, 1.5
GONE_EVERY = 10
Handle = Task | Future[Any]


class Waiting:
    """What of some tasks and futures is not done yet."""

    def __init__(self, handles: Iterable[Handle]) -> None:
        self.left = dict.fromkeys(handles)
        self.rung = threading.Event()
        self.pause_s, self.looks = FIRST_PAUSE_S, 0
        for one in self.left:
            if isinstance(one, Future):
                one.add_done_callback(self._ring)

    def _ring(self, _: Future[Any]) -> None:
        self.rung.set()

    def look(self) -> list[Handle]:
        """Those that became done since the last look."""
        self.rung.clear()
        self.looks += 1
        done = self._final()
        found: list[Handle] = [
            one for one in self.left if (one in done if isinstance(one, Task) else one.done())
        ]
        for one in found:
            del self.left[one]
        if found:
            self.pause_s = FIRST_PAUSE_S
        return found

    def _final(self) -> set[Task]:
        trees: dict[str, tuple[Tree, dict[str, Task]]] = {}
        for one in self.left:
            if isinstance(one, Task):
                tree = one._tree
                trees.setdefault(tree.root, (tree, {}))[1][one.id] = one
        done: set[Task] = set()
        for tree, wanted in trees.values():
            over = set(tasks.ended(tree, wanted))
            if self.looks % GONE_EVERY == 0:
                over |= {one for one in wanted.keys() - over if tasks.find(tree, one) is None}
            done |= {wanted[task_id] for task_id in over}
        return done

    def sleep(self, end: float | None) -> bool:
        """Wait a little, or until a future is done; False if the time is up."""
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        any_task = any(isinstance(one, Task) for one in self.left)
        waits = [one for one in (left, self.pause_s if any_task else None) if one is not None]
        self.rung.wait(min(waits, default=None))
        self.pause_s = min(self.pause_s * GROWTH, LONGEST_PAUSE_S)
        return True


def as_completed(handles: Iterable[Handle], timeout: float | None = None) -> Iterator[Handle]:
    """Tasks and futures as they are done, each once. Raises TimeoutError after `timeout` s."""
    end = None if timeout is None else time.monotonic() + timeout
    waiting = Waiting(handles)
    total = len(waiting.left)
    while True:
        found = waiting.look()
        while found:
            yield found.pop(0)
        if not waiting.left:
            return
        if not waiting.sleep(end):
            raise TimeoutError(f"{len(waiting.left)} (of {total}) tasks and futures unfinished")


def wait(
    handles: Iterable[Handle], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> tuple[set[Handle], set[Handle]]:
    """Those that are done and those that are not, once `return_when` holds or the time is up.

    return_when is ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION of concurrent.futures.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"Invalid return condition: {return_when!r}")
    end = None if timeout is None else time.monotonic() + timeout
    waiting = Waiting(handles)
    done: set[Handle] = set()
    while True:
        found = waiting.look()
        done |= set(found)
        enough = bool(done) and return_when == FIRST_COMPLETED
        enough = enough or (return_when == FIRST_EXCEPTION and any(map(_raised, found)))
        if enough or not waiting.left or not waiting.sleep(end):
            return done, set(waiting.left)


def _raised(one: Handle) -> bool:
    if isinstance(one, Future):
        return not one.cancelled() and one.exception() is not None
    return one.exception(0) is not None
