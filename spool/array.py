"""array - an array of elements from Python: its counts, its elements and their output.

Owns   `Array`, the handle that Spool.submit_array gives.
Never  keeps state of its own: every answer is read from the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spool.config import Settings
from spool.errors import NoSuchTask
from spool.queue import array, control, tasks, wait
from spool.queue import elements as of_chunk
from spool.queue.array import Some
from spool.queue.layout import FINAL, State, Tree
from spool.queue.tasks import Spot


class Array:
    """An array in a spool; a light handle. Its chunks are tasks."""

    __slots__ = ("_settings", "_tree", "id")

    def __init__(self, tree: Tree, settings: Settings, array_id: str) -> None:
        self._tree, self._settings = tree, settings
        self.id = array_id

    def __repr__(self) -> str:
        return f"Array({self.id!r})"

    def _spots(self) -> list[Spot]:
        if not (found := tasks.chunks(self._tree, self.id)):
            raise NoSuchTask(f"array {self.id} is not in {self._tree.root}")
        return found

    @property
    def chunks(self) -> list[str]:
        """The ids of its chunks, which are tasks, in order."""
        return [spot.id for spot in self._spots()]

    @property
    def done(self) -> bool:
        """Whether all of it is finished, failed or cancelled."""
        return all(spot.state in FINAL for spot in self._spots())

    @property
    def counts(self) -> dict[str, int]:
        """How many elements are done, failed, cancelled, running and left."""
        return of_chunk.summed(table.counts() for _, table in self._tables())

    def elements(self, some: str = "") -> Iterator[dict[str, Any]]:
        """Each element, or `some` such as "3-9,12": number, state, and what its last line says."""
        chosen = array.parse_some(some) if some else None
        for _, table in self._tables():
            for number, state, line in table.each(chosen):
                yield {**line, "element": number, "state": state}

    def output(self, number: int, stream: str = of_chunk.OUTPUT) -> str:
        """What the last attempt of an element wrote. Raises NoSuchTask: there is no such one."""
        for spot, table in self._tables():
            if number in table.numbers:
                raw = of_chunk.output(spot.path(self._tree), table.element(number), stream)
                return raw.decode(errors="replace")
        raise NoSuchTask(f"array {self.id} has no element {number}")

    def _tables(self) -> Iterator[tuple[Spot, of_chunk.Table]]:
        for spot in self._spots():
            yield of_chunk.load(self._tree, spot)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all of it has ended; False after `timeout` seconds."""
        return wait.wait(wait.Pending(self._tree, self.chunks), timeout)

    def cancel(self, some: str = "", reason: str = "") -> None:
        """Cancel all of it that has not ended, or elements such as "3-9"."""
        self._act(control.cancel, "cancel", some, reason)

    def retry(self, some: str = "", reason: str = "") -> None:
        """Run again what failed or was cancelled, or elements such as "3-9" in any case."""
        self._act(control.retry, "retry", some, reason)

    def _act(self, act: control.Act, verb: str, some: str, reason: str) -> None:
        chosen = array.parse_some(some) if some else None
        words = {"reason": reason, "elements": lambda _: chosen}
        with control.verb(self._tree, self._settings, verb, **words) as by:
            for spot in self._spots():
                if self._is_meant(spot, verb, chosen):
                    control.once(act, by, spot)
                    by.me.beat_if_due()

    def _is_meant(self, spot: Spot, verb: str, chosen: Some | None) -> bool:
        if chosen is not None:
            _, table = of_chunk.load(self._tree, spot)
            return next(chosen.among(table.numbers), None) is not None
        if verb == "retry":
            return spot.state in (State.FAILED, State.CANCELLED)
        return spot.state not in FINAL
