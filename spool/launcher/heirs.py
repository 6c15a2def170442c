"""heirs - children of tasks that ended here, moved on a few at a time.

Owns   which ended tasks are still to be asked for children.
Never  opens or lists anything where nobody waits for a task.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import SimpleQueue

from spool.launcher import clock
from spool.queue import advance, files
from spool.queue.layout import State
from spool.queue.owner import Owner
from spool.queue.place import Place

AT_ONCE = 1_000
LISTED_AT_ONCE = 500  # names for the price of another call
FRESH_S = 0.1
LINGER_S, POLL_S = 2.0, 0.02  # of a hand that is idle while tasks wait for others
OLD_S = 30.0  # after so long who is waited for is listed anew


class Heirs:
    """Moves on what waited for our tasks; `ended` many, `step` often.

    `opened` is told the lanes that children went to.
    """

    def __init__(self, owner: Owner, opened: Callable[[str], None] | None = None) -> None:
        self.owner, self.opened = owner, opened
        self._parents: list[str] = []
        self._left: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._sweep, daemon=True)
        self._thread.start()
        self._moving: Iterator[Place] = iter(())
        self.waited_for: set[str] = set()  # by the last listing
        self._listed_at = -math.inf

    @property
    def empty(self) -> bool:
        """Whether nobody is left to be asked for children."""
        return not self._parents

    def ended(self, ids: list[str]) -> None:
        """These have reached a final state. They are taken out of the list.

        One listing tells which of them are waited for; where so many are that it is long, few are
        asked one by one.
        """
        if not ids:
            return
        some = ids.copy()
        if self._is_old() or len(some) > 1 + len(self.waited_for) // LISTED_AT_ONCE:
            self._list()
            some = list(self.waited_for.intersection(ids))
        if some:
            self._parents += some
            self._moving = self._then(self._moving, self._children(some))
        ids.clear()

    def _children(self, ids: list[str]) -> Iterator[Place]:
        return advance.children(self.owner, ids, drop=self._left.put)

    def _sweep(self) -> None:
        """The thread: remove folders that children have left, which may take long."""
        while (folder := self._left.get()) is not None:
            files.remove_folder(folder)

    def _then(self, first: Iterator[Place], second: Iterator[Place]) -> Iterator[Place]:
        yield from first
        yield from second

    def _is_old(self) -> bool:
        return clock.now() > self._listed_at + OLD_S

    def _list(self) -> None:
        self.waited_for = advance.parents_waited_for(self.owner.tree)
        self._listed_at = clock.now()

    def tarry(self, idle_s: float) -> bool:
        """Whether a hand should not leave yet: tasks wait for others, and more may come."""
        if idle_s < LINGER_S and clock.now() > self._listed_at + FRESH_S:
            self._list()
        return self.may_come(idle_s)

    def may_come(self, idle_s: float) -> bool:
        """Whether another on this node may just now let go what we could run: look often."""
        return bool(self.waited_for) and idle_s < LINGER_S

    def awaited(self, ended: Iterable[tuple[str, Place]]) -> bool:
        """Whether others wait for any of these, so that they should not tarry; as last listed."""
        return bool(self.waited_for) and any(one in self.waited_for for one, _ in ended)

    def finish(self, ids: list[str]) -> None:
        """The same at the end, all at once."""
        self.ended(ids)
        while self.step(AT_ONCE):
            pass
        self._left.put(None)
        self._thread.join()

    def step(self, count: int) -> int:
        """Move on up to `count` children; how many were moved.

        What a fault of the file system cuts short is begun anew with the next step.
        """
        if self.empty:
            return 0
        try:
            moved = list(islice(self._moving, count))
        except BaseException:
            self._moving = self._children(self._parents.copy())
            raise
        if len(moved) < count:
            self._parents.clear()
        for place in moved:
            if self.opened is not None and place.state is State.READY:
                self.opened(place.group)
        return len(moved)
