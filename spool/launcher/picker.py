"""picker - what a launcher claims next: as much as it can soon run, and why the rest must wait.

Owns   the rules of eligibility, the size of claims ahead, the patience for tasks that need room.
Never  touches the disk, but through the claimer it is given.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from spool.launcher.nodes import Node, Room, fits_ever
from spool.queue import shape as shapes
from spool.queue.claim import Claimer
from spool.queue.shape import Shape
from spool.queue.tasks import Task

AHEAD_MOST = 256
AHEAD_S = 0.25
PATIENCE_S, PATIENCE_TASKS = 30.0, 100
Held = tuple[Task, Shape]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person wants of a launcher. time_limit_s 0: none; idle_s None: never leave.

    hand_of is the process that lends us our cores, 0 for a launcher in its own right.
    """

    time_limit_s: float = 0.0
    idle_s: float | None = 60.0
    pin: bool = True
    workflow: str = ""
    features: frozenset[str] = frozenset()
    hand_of: int = 0


class Picker:
    """Chooses for one launcher; `ends_at` is the end of its time on the monotonic clock, or 0.

    rate is how many tasks were lately started a second: set it as it changes.
    """

    def __init__(self, claimer: Claimer, node: Node, wishes: Wishes, ends_at: float) -> None:
        self.claimer = claimer
        self.node = node
        self.wishes = wishes
        self.ends_at = ends_at
        self.rate = 0.0
        self.refused: Counter[str] = Counter()
        self.waiting_since: dict[Shape, float] = {}
        self.tired: set[Shape] = set()
        self._plan = Room(node)
        self._ahead = 0

    def why_not(self, shape: Shape, now: float) -> str:
        """Why this launcher will not take a shape, "" if it may."""
        if shape.mpi:
            return "need several ranks"
        if shape.stage != "run":
            return "need a stager"
        if not fits_ever(self.node, shape):
            return "too large"
        if self.ends_at and shape.time_s > self.ends_at - now:
            return "too long for the time left"
        if self.wishes.workflow and shape.workflow != shapes.name_token(self.wishes.workflow):
            return "of another workflow"
        wanted = shapes.features_of(shape.features)
        if wanted is None or not wanted <= self.wishes.features:
            return "need a feature that is not here"
        return ""

    def claim(self, room: Room, held: Collection[Held], limit: int) -> Iterator[str]:
        """Claim up to `limit` tasks beyond those `held`, claimed and not started; yields ids."""
        self._plan = room.copy()
        for _, shape in held:
            if not self._plan.cpus:
                break
            self._plan.take(shape)
        self._ahead = self._ahead_allowed() - len(held)
        self.refused.clear()
        self._narrow()
        for task_id in self.claimer.take(self._wants, limit):
            yield task_id
            self._plan_for(self._last)

    def _wants(self, shape: Shape) -> int:
        self._last = shape
        if reason := self.why_not(shape, time.monotonic()):
            self.refused[reason] += 1
            return 0
        if fitting := self._plan.count(shape):
            self.waiting_since.pop(shape, None)
            self.tired.discard(shape)
            return fitting
        if self._ahead > 0 and self._lacks_but_a_core(shape):
            return self._ahead
        self.refused["waiting for room"] += 1
        if self._is_tired(shape):
            self._plan.reserve(shape)
            self._ahead = 0
        return 0

    def _lacks_but_a_core(self, shape: Shape) -> bool:
        """Whether any core that gets free will do: all else that waits claimed is in the way."""
        one_core = shape.cores * shape.ranks == 1
        return one_core and not shape.gpus and shape.memory_mb <= self._plan.memory_mb

    def _is_tired(self, shape: Shape) -> bool:
        """Whether a task that does not fit now has waited so long that room must be kept for it.

        That is so after 30 s, or when a hundred others may have come and gone on each core.
        """
        now = time.monotonic()
        waited = now - self.waiting_since.setdefault(shape, now)
        patience = min(PATIENCE_S, PATIENCE_TASKS * len(self.node.cpus) / max(self.rate, 0.1))
        if waited > patience:
            self.tired.add(shape)
        return shape in self.tired

    def _plan_for(self, shape: Shape) -> None:
        if self._plan.take(shape) is None:
            self._ahead -= 1

    def _narrow(self) -> None:
        """Forget the patience for shapes that wait no more; serve the tired before their equals."""
        if not self.waiting_since:
            return
        present = {shapes.parse(lane)[0] for lane in self.claimer.lanes}
        for shape in self.waiting_since.keys() - present:
            del self.waiting_since[shape]
            self.tired.discard(shape)
        if self.tired:
            self.claimer.lanes.sort(key=self._rank)

    def _rank(self, lane: str) -> tuple[int, str, bool, int]:
        priority, hour, longest = shapes.order(lane)
        return priority, hour, shapes.parse(lane)[0] not in self.tired, longest

    def _ahead_allowed(self) -> int:
        return min(AHEAD_MOST, int(self.rate * AHEAD_S))

    def waiting_shapes(self) -> set[Shape]:
        """The shapes in READY, as last listed, that this launcher would take."""
        now = time.monotonic()
        present = {shapes.parse(lane)[0] for lane in self.claimer.lanes}
        return {shape for shape in present if not self.why_not(shape, now)}

    def reasons(self) -> list[str]:
        """What READY holds that this launcher would not take, a sentence each."""
        refused = sorted(self.refused.items())
        return [f"left in READY: {count} lanes {why}" for why, count in refused]

    def may_claim_ahead(self, held: int) -> bool:
        """Whether tasks go so fast that more should lie claimed than the `held` that do."""
        return self._ahead_allowed() > held

    @property
    def ahead_low(self) -> int:
        """Claim more when fewer than so many claimed tasks are left."""
        return max(1, self._ahead_allowed() // 2)
