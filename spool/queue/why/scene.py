"""scene - what an answer rests on, each thing looked up once for all tasks that are asked about.

Owns   the look at owners from outside: who lives, who is dead, who was last heard of when.
Never  decides that an owner is dead by its silence: that takes an observer with a clock of its own
       (takeover.py); here a silence is only told.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from spool import units
from spool.config import Settings
from spool.queue import allocations, files, layout, owner, takeover, tasks
from spool.queue.layout import State, Tree
from spool.queue.takeover import Verdict

ALIVE, DEAD, SILENT = "alive", "dead", "silent"
BEATS = 3  # so many missed in a row are told as silence


class Living(NamedTuple):
    """An owner of tasks at one look. group is its folder in RUNNING, name the one who has it.

    verdict is ALIVE, DEAD or SILENT (not heard of for silent_s, by its heartbeat file's time; that
    is None where there is no such file); dead_s is how long it may be silent; tasks it holds.
    """

    group: str
    name: str
    kind: str
    host: str
    record: dict[str, Any]
    verdict: str
    silent_s: float | None
    dead_s: float
    tasks: int

    @property
    def alive(self) -> bool:
        """Whether nothing speaks against its being at work."""
        return self.verdict == ALIVE

    @property
    def by_itself(self) -> bool:
        """Whether it is nobody's hand, and so looks around for arrivals, moments and the dead."""
        return not self.record.get("hand_of")

    @property
    def called(self) -> str:
        """In a sentence: the launcher on node7 (pid 4711)."""
        parts = layout.parse_owner(self.name)
        pid = f" (pid {parts.pid})" if parts else ""
        kind = self.kind if self.kind in LOOKERS else f"`spool {self.kind}`"
        return f"the {kind} on {self.host or 'an unknown host'}{pid}"

    @property
    def heard(self) -> str:
        """When it was last heard of, in words."""
        if self.silent_s is None:
            return "it has no heartbeat"
        return f"its last heartbeat was {units.print_age(self.silent_s)} ago"


LOOKERS = ("launcher", "stager", "service")
"""The kinds of owners that look around."""


class Scene:
    """One spool at one moment (epoch seconds)."""

    def __init__(self, tree: Tree, settings: Settings, now: float) -> None:
        self.tree, self.settings, self.now = tree, settings, now
        self.here = owner.here()

    @cached_property
    def owners(self) -> list[Living]:
        """All who hold a folder in RUNNING."""
        return [self.owner_of(group) for group in tasks.groups(self.tree, State.RUNNING)]

    def owner_of(self, group: str) -> Living:
        """The holder of a RUNNING group."""
        name = takeover.holder(group)
        record = owner.read_record(self.tree, name)
        parts = layout.parse_owner(name)
        told = record.get("dead_s")
        patience_s = told if isinstance(told, (int, float)) else 0.0
        silent_s = self._silent_s(name)
        return Living(
            group,
            name,
            parts.kind if parts else str(record.get("kind", "owner")),
            str(record.get("host") or (parts.host if parts else "")),
            record,
            self._verdict(name, record, silent_s),
            silent_s,
            max(self.settings.lease_dead_s, patience_s),
            len(files.names(self.tree.group(State.RUNNING, group))),
        )

    def _silent_s(self, name: str) -> float | None:
        beat = files.modified(self.tree.owner(name, layout.HEARTBEAT))
        return max(0.0, self.now - beat) if beat else None

    def _verdict(self, name: str, record: dict[str, Any], silent_s: float | None) -> str:
        known = takeover.at_one_look(name, record, self.here)
        if known is not None:
            return DEAD if known is Verdict.DEAD else ALIVE
        if allocations.is_over(self.tree, record):
            return DEAD
        steady = silent_s is not None and silent_s < BEATS * self.settings.lease_beat_s
        return ALIVE if steady else SILENT

    def living(self, *kinds: str) -> list[Living]:
        """Those of these kinds that are at work, in their own right."""
        found = (one for one in self.owners if one.alive and one.by_itself and one.kind in kinds)
        return [one for one in found if one.group == one.name]

    @cached_property
    def lookers(self) -> list[Living]:
        """Those who look at the door, at moments that come and at dead owners."""
        return self.living(*LOOKERS)

    def nobody_looks(self) -> str:
        """A sentence where nobody does; "" where somebody does."""
        return "" if self.lookers else "no launcher and no service is at work here to do it"

    def ago(self, stamp: object) -> str:
        """How long ago a moment of a history was: 3h20m ago; "" for one that is damaged."""
        if (seconds := self.since(stamp)) is None:
            return ""
        return f"{units.print_age(seconds)} ago"

    def since(self, stamp: object) -> float | None:
        """Seconds since such a moment."""
        try:
            return max(0.0, self.now - units.read_stamp(str(stamp)))
        except ValueError:
            return None


RUN_ONE = "spool launcher, or spool service"
