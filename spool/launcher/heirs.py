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


class Heirs:
    """Moves on what waited for our tasks; `ended` many, `step` often."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._moving: Iterator[Place] = iter(())
        self.empty = True

    def ended(self, ids: list[str]) -> None:
        """These have reached a final state: by one listing, which of them are waited for.

        They are taken out of the list.
        """
        waited_for = advance.parents_waited_for(self.owner.tree).intersection(ids)
        if waited_for:
            self._moving = self._then(self._moving, advance.children(self.owner, waited_for))
            self.empty = False
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
        """Move on up to `count` children; how many were moved."""
        if self.empty:
            return 0
        moved = sum(1 for _ in islice(self._moving, count))
        self.empty = moved < count
        return moved
