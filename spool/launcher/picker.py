"""picker - what a launcher claims next: as much as it can soon run, and why the rest must wait.

Owns   the rules of eligibility, the size of claims ahead, the patience for tasks that need room.
Never  touches the disk, but through the claimer it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from spool import units
from spool.launcher import clock
from spool.launcher.book import Book
from spool.launcher.nodes import Grant
from spool.queue import shape as shapes
from spool.queue.claim import Claimer, Row, Suits
from spool.queue.shape import Shape

AHEAD_MOST = 256
AHEAD_FEW = 4  # where tasks wait for others: READY may hold but few, for all who look there
AHEAD_S = 0.25
PATIENCE_S, PATIENCE_TASKS = 30.0, 100
COUNTED_LANES = 1000
RECKON_S = 1.0
Held = tuple[str, Shape]
Expected = Callable[[Set[int], float], Iterable[tuple[Grant, float]]]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person wants of a launcher. time_limit_s 0: none; idle_s None: never leave.

    hand_of is the process that lends us our cores, 0 for a launcher in its own right. mode is
    serial, mpi or auto, for both.
    """

    time_limit_s: float = 0.0
    idle_s: float | None = 60.0
    pin: bool = True
    workflow: str = ""
    tags: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    hand_of: int = 0
    mode: str = "auto"

    def told(self) -> dict[str, Any]:
        """What launcher.json says of it: `spool why` asks by these whether a task could run."""
        return {
            "mode": self.mode,
            "workflow": self.workflow,
            "tags": list(self.tags),
            "features": sorted(self.features),
            "hand_of": self.hand_of,
        }


class Rules:
    """What one launcher would claim at all; `ends_at` is the end of its time on its clock, or 0.

    margin_s of the end is for stopping what runs. no_mpi says why no task of several ranks can run
    here, "" if they can; it is asked when the first of them is met.
    """

    def __init__(self, book: Book, wishes: Wishes, ends_at: float) -> None:
        self.book = book
        self.wishes = wishes
        self.ends_at = ends_at
        self.margin_s = 0.0
        self.no_mpi: Callable[[], str] = lambda: "need several ranks, and there is no mpirun"

    def why_not(self, shape: Shape, now: float, *, any_size: bool = False) -> str:
        """Why this launcher will not take a shape, "" if it may; `any_size`: were it no matter."""
        if shape.stage != "run":
            return "need a stager"
        if shape.mpi and (why := self._no_mpi()):
            return why
        if not shape.mpi and self.wishes.mode == "mpi":
            return "are serial, and this launcher runs MPI tasks only"
        if not any_size and not self.book.fits_ever(shape):
            return "too large"
        if self.ends_at and shape.time_s > self.ends_at - now - self.margin_s:
            return "too long for the time left"
        if self.wishes.workflow and shape.workflow != shapes.name_token(self.wishes.workflow):
            return "of another workflow"
        if not shapes.has_features(shape.features, self.wishes.features):
            return "need a feature that is not here"
        return ""

    def _no_mpi(self) -> str:
        if self.wishes.mode == "serial":
            return "need several ranks, and this launcher runs serial tasks only"
        return self.no_mpi()


class Picker(Rules):
    """Chooses for one launcher.

    rate is how many tasks were lately started a second, mpiruns how many more may be started now:
    set them as they change. suits looks at a task before it is claimed; ahead overrules how many
    tasks of a shape that does not fit now may be claimed ahead; may says whether the limits of
    spool.toml let another one run; expected tells which room on some nodes is taken by what runs
    since before a moment, and how long it should last on.
    """

    def __init__(self, claimer: Claimer, book: Book, wishes: Wishes, ends_at: float) -> None:
        super().__init__(book, wishes, ends_at)
        self.claimer = claimer
        self.rate = 0.0
        self.mpiruns = 1
        self.suits: Suits | None = None
        self.ahead: Callable[[Shape], int] | None = None
        self.few: Callable[[], bool] = lambda: False
        self.may: Callable[[Shape], bool] = lambda shape: True
        self.expected: Expected = lambda nodes, before: ()
        self.kept_at = self._reckon_at = self._kept_until = 0.0
        self.refused: dict[Shape, str] = {}
        self.waiting_since: dict[Shape, float] = {}
        self.tired: set[Shape] = set()
        self._plan = book
        self._ahead = 0

    def claim(self, held: Collection[Held], limit: int) -> Iterator[Held]:
        """Claim up to `limit` tasks beyond those `held`, claimed and not started.

        Whoever is given one must take its room from the book at once, or hold it.
        """
        if self.book.kept_for is not None:
            self.book.kept_s = self._kept_s()
        self._plan = self._beyond(held)
        self._ahead = self._ahead_allowed() - len(held)
        self._limit = limit
        self.refused.clear()
        self._narrow()
        for task_id in self.claimer.take(self._wants, limit, self.suits):
            self.mpiruns -= self._last.mpi
            yield task_id, self._last
            if self._plan is self.book:
                self._ahead -= self._comes_ahead
            elif self._plan.take(self._last) is None:
                self._ahead -= 1

    def _kept_s(self) -> float:
        """For how long others may use the room that is kept; reckoned now and then, since all that
        runs is looked at."""
        now = clock.now()
        if now >= self._reckon_at:
            self._reckon_at = now + RECKON_S
            taken = self.expected(frozenset(self.book.kept_on), self.kept_at)
            self._kept_until = now + self.book.frees_in(taken)
        return max(0.0, self._kept_until - now)

    def _beyond(self, held: Collection[Held]) -> Book:
        """The book as it will be once what is held has started."""
        if not held:
            return self.book
        plan = self.book.copy()
        for _, shape in held:
            if not plan.free:
                break
            plan.take(shape)
        return plan

    def _wants(self, shape: Shape) -> int:
        self._last, self._comes_ahead = shape, False
        if reason := self.why_not(shape, clock.now()):
            self.refused[shape] = reason
            return 0
        if shape.mpi and self.mpiruns <= 0:
            self.refused[shape] = "waiting for an mpirun to end"
            return 0
        if not self.may(shape):
            self.refused[shape] = "waiting for a limit of spool.toml"
            return 0
        if fitting := self._plan.count(shape, self.mpiruns if shape.mpi else self._limit):
            self.waiting_since.pop(shape, None)
            self.tired.discard(shape)
            return fitting
        if ahead := self._may_come_ahead(shape):
            self._comes_ahead = True
            return ahead
        self.refused[shape] = "waiting for room"
        if self._is_tired(shape):
            if self.book.kept_for not in self.tired:
                self.book.keep(shape)
                self.kept_at, self._reckon_at = clock.now(), 0.0
            self._plan.keep(self.book.kept_for)
            self._ahead = 0
        return 0

    def _may_come_ahead(self, shape: Shape) -> int:
        """How many of a shape that does not fit now may be claimed to follow others at once."""
        if shape.mpi or self.book.kept_for is not None:
            return 0
        if self.ahead is not None:
            return self.ahead(shape)
        return max(0, self._ahead) if self._lacks_but_a_core(shape) else 0

    def _lacks_but_a_core(self, shape: Shape) -> bool:
        """Whether any core that gets free will do: all else that waits claimed is in the way."""
        one_core = shape.cores * shape.ranks == 1
        return (
            one_core
            and not (shape.gpus or shape.per_node)
            and shape.memory_mb <= self._plan.rooms[0].memory_mb
        )

    def _is_tired(self, shape: Shape) -> bool:
        """Whether a task that does not fit now has waited so long that room must be kept for it.

        That is so after 30 s, or when a hundred others may have come and gone on each core.
        """
        now = clock.now()
        waited = now - self.waiting_since.setdefault(shape, now)
        patience = min(PATIENCE_S, PATIENCE_TASKS * self.book.cores / max(self.rate, 0.1))
        if waited > patience:
            self.tired.add(shape)
        return shape in self.tired

    def _narrow(self) -> None:
        """Forget the patience for shapes that wait no more; serve the tired before their equals."""
        if self.waiting_since:
            for shape in self.waiting_since.keys() - self.claimer.shapes:
                del self.waiting_since[shape]
                self.tired.discard(shape)
            if self.tired:
                self.claimer.rows = dict(sorted(self.claimer.rows.items(), key=self._rank))
        if self.book.kept_for not in self.tired:
            self.book.keep(None)

    def _rank(self, row: tuple[Row, list[str]]) -> tuple[int, str, bool, int, int]:
        (shape, _), lanes = row
        priority, hour, widest, longest = shapes.order(lanes[0])
        return priority, hour, shape not in self.tired, widest, longest

    def _ahead_allowed(self) -> int:
        return min(AHEAD_FEW if self.few() else AHEAD_MOST, int(self.rate * AHEAD_S))

    def too_large(self, limit: int) -> Iterator[Held]:
        """Claim up to `limit` tasks that would not fit these nodes if they were empty."""
        wanted = Shape()

        def wants(shape: Shape) -> int:
            nonlocal wanted
            wanted = shape
            if self.book.fits_ever(shape) or self.why_not(shape, clock.now(), any_size=True):
                return 0  # it fits, or is not ours to refuse
            return limit

        if self.suits is not None or self.wishes.mode != "auto":
            return  # what is left to others is not ours to refuse

        for task_id in self.claimer.take(wants, limit):
            yield task_id, wanted

    def waiting_shapes(self) -> set[Shape]:
        """The shapes in READY, as last listed, that this launcher would take."""
        now = clock.now()
        return {shape for shape in self.claimer.shapes if not self.why_not(shape, now)}

    def reasons(self) -> list[str]:
        """What READY holds that this launcher would not take, a sentence each."""
        whys = (self.refused.get(shapes.parse(lane)[0]) for lane in self.claimer.lanes)
        counts = Counter(why for why in whys if why)
        return [
            f"left in READY: {units.count(count, 'lane')} {why}"
            for why, count in sorted(counts.items())
        ]

    @property
    def known(self) -> int:
        """At least so many tasks lay in READY when it was last listed, and were not claimed."""
        return self.claimer.known

    def tally(self) -> str:
        """How many tasks are READY and why none of them starts, in one line."""
        now, counts, more = clock.now(), Counter[str](), len(self.claimer.lanes) - COUNTED_LANES
        for lane in self.claimer.lanes[:COUNTED_LANES]:
            why = self.why_not(shapes.parse(lane)[0], now) or self._waits(shapes.parse(lane)[0])
            counts[why] += self.claimer.count(lane)
        words = [f"{count:,} {why}" for why, count in counts.most_common()]
        words += [f"{more:,} lanes more were not counted"] if more > 0 else []
        return f"no start for a while: {counts.total():,} ready: {'; '.join(words) or 'nothing'}"

    def _waits(self, shape: Shape) -> str:
        if not self.may(shape):
            return "waiting for a limit of spool.toml"
        room = "waiting for room"
        return f"without our tags, waiting for a limit or {room}" if self.suits else room

    def may_claim_ahead(self, held: int) -> bool:
        """Whether tasks go so fast that more should lie claimed than the `held` that do."""
        return self._ahead_allowed() > held

    def may_adopt(self, held: int, most: int) -> bool:
        """The same for a child of a task of ours, which needs no lane, and at `most` so many."""
        return min(most, int(self.rate * AHEAD_S)) > held

    @property
    def ahead_low(self) -> int:
        """Claim more when fewer than so many claimed tasks are left."""
        return max(1, self._ahead_allowed() // 2)
