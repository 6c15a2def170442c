"""heirs - children of tasks that ended here, moved on a few at a time.

Owns   which ended tasks are still to be asked for children.
Never  opens or lists anything for each task where nobody waits for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from spool.launcher import clock
from spool.launcher.broom import Broom
from spool.queue import advance, files
from spool.queue.layout import State
from spool.queue.owner import Owner
from spool.queue.place import Place

AT_ONCE = 1_000
ASK_EVERY_S = 0.25  # who is waited for, where nobody was when last listed
FRESH_S = 0.1
LINGER_S = 2.0  # of a hand that is idle while tasks wait for others


class Heirs:
    """Moves on what waited for our tasks; `ended` many, `step` often.

    `opened` is told the lanes that children went to; `take` may claim them where they wait; a
    `broom` removes the folders they have left.
    """

    def __init__(
        self,
        owner: Owner,
        opened: Callable[[str], None] | None = None,
        take: advance.Take | None = None,
        broom: Broom | None = None,
    ) -> None:
        self.owner, self.opened, self.take, self.broom = owner, opened, take, broom
        self._parents: list[str] = []
        self._unasked: list[str] = []
        self._moving: Iterator[Place] = iter(())
        self.waited_for: set[str] = set()  # by the last listing
        self._listed_at = -math.inf

    @property
    def empty(self) -> bool:
        """Whether nobody is left to be asked for children."""
        return not (self._parents or self._unasked)

    @property
    def due_at(self) -> float:
        """When those that ended are to be asked, though nobody is known to wait for them."""
        return self._listed_at + ASK_EVERY_S if self._unasked else math.inf

    def ended(self, ids: list[str], *, now: bool) -> None:
        """These have reached a final state. They are taken out of the list.

        Whom others are known to wait for is asked at once. For all others together one listing
        tells it, four times a second, or `now`.
        """
        self._unasked += self._ask_known(ids)
        ids.clear()
        if self._unasked and (now or clock.now() >= self.due_at):
            self._list()
            self._ask_known(self._unasked)
            self._unasked.clear()

    def _ask_known(self, ids: list[str]) -> list[str]:
        """Ask those that others were waiting for when last listed; the rest is returned."""
        known = self.waited_for.intersection(ids)
        self._ask(known)
        return [one for one in ids if one not in known] if known else ids

    def _ask(self, parents: Collection[str]) -> None:
        if parents:
            self._parents += parents
            self._moving = self._then(self._moving, self._children(parents))

    def _children(self, ids: Collection[str]) -> Iterator[Place]:
        drop = self.broom.drop if self.broom else files.remove_folder
        return advance.children(self.owner, ids, drop=drop, take=self.take)

    def _then(self, first: Iterator[Place], second: Iterator[Place]) -> Iterator[Place]:
        yield from first
        yield from second

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
        """The same at the end, all at once; none is taken any more."""
        self.take = None
        self._moving = self._children(self._parents.copy())
        self.ended(ids, now=True)
        while self.step(AT_ONCE):
            pass
        if self.broom:
            self.broom.close()

    def step(self, count: int) -> int:
        """Move on up to `count` children; how many were moved.

        What a fault of the file system cuts short is begun anew with the next step.
        """
        if self.broom:
            self.broom.mind(clock.now())
        if not self._parents:
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
