"""heirs - children of tasks that ended here, moved on a few at a time.

Owns   which ended tasks are still to be asked for children.
Never  opens or lists anything where nobody waits for a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from spool.queue import advance
from spool.queue.owner import Owner
from spool.queue.place import Place

AT_ONCE = 1_000
LISTED_AT_ONCE = 500  # names for the price of another call


class Heirs:
    """Moves on what waited for our tasks; `ended` many, `step` often."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._parents: list[str] = []
        self._moving: Iterator[Place] = iter(())
        self._waited_for = 0  # by the last listing

    @property
    def empty(self) -> bool:
        """Whether nobody is left to be asked for children."""
        return not self._parents

    def ended(self, ids: list[str]) -> None:
        """These have reached a final state. They are taken out of the list.

        One listing tells which of them are waited for; where so many are that it is long, few are
        asked one by one.
        """
        some = ids.copy()
        if len(some) > 1 + self._waited_for // LISTED_AT_ONCE:
            waited_for = advance.parents_waited_for(self.owner.tree)
            self._waited_for = len(waited_for)
            some = list(waited_for.intersection(ids))
        if some:
            self._parents += some
            self._moving = self._then(self._moving, advance.children(self.owner, some))
        ids.clear()

    def _then(self, first: Iterator[Place], second: Iterator[Place]) -> Iterator[Place]:
        yield from first
        yield from second

    def finish(self, ids: list[str]) -> None:
        """The same at the end, all at once."""
        self.ended(ids)
        while self.step(AT_ONCE):
            pass

    def step(self, count: int) -> int:
        """Move on up to `count` children; how many were moved.

        What a fault of the file system cuts short is begun anew with the next step.
        """
        if self.empty:
            return 0
        try:
            moved = sum(1 for _ in islice(self._moving, count))
        except BaseException:
            self._moving = advance.children(self.owner, self._parents.copy())
            raise
        if moved < count:
            self._parents.clear()
        return moved
