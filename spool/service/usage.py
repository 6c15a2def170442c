"""usage - what an allocation's granted time went into, by its launchers' own journals.

Owns   the sums for the ledger and for `spool queue`.
Never  decides anything: losing a journal costs a figure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spool.queue import allocations, files, journal, layout, owner
from spool.queue.allocations import Allocation
from spool.queue.layout import Tree

ENDS = ("exit", "interrupted", "lost")


class Usage(msgspec.Struct):
    """tasks that ended well; attempts that did not; core-seconds of both; what was granted."""

    tasks: int = 0
    failed: int = 0
    granted_core_s: float = 0.0
    busy_core_s: float = 0.0
    wasted_core_s: float = 0.0

    @property
    def utilisation(self) -> float:
        """The share of the granted cores' time in which tasks ran, 0 to 1."""
        return allocations.share(self.busy_core_s + self.wasted_core_s, self.granted_core_s)


def of(tree: Tree, one: Allocation) -> Usage:
    """What an allocation did so far."""
    found, cores = Usage(), 0
    for name in allocations.launchers(tree, one.asked.name):
        record = owner.read_record(tree, name)
        if not record.get("hand_of"):
            cores += _count(record.get("cores"))
        for event in journal.of_owner(tree, name):
            if event.get("what") in ENDS:
                _add(found, event)
    whole = one.asked.nodes * one.asked.cores or cores
    found.granted_core_s = whole * one.standing.ran_s
    return found


def _add(found: Usage, event: dict[str, Any]) -> None:
    core_s = _number(event.get("cores")) * _number(event.get("elapsed_s"))
    if event.get("state") == "FINISHED":
        found.tasks += 1
        found.busy_core_s += core_s
    else:
        found.failed += 1
        found.wasted_core_s += core_s


def _number(value: object) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12
    return float(value) if good else 0.0  # type: ignore[arg-type]


def _count(value: object) -> int:
    return int(_number(value))


def output_tail(tree: Tree, name: str, limit: int = 2_000) -> str:
    """The end of what an allocation's script printed, for a person."""
    raw = files.tail(tree.allocation(name, layout.OUTPUT), limit)
    return raw.decode(errors="replace").strip()
