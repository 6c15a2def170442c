"""places - claimed tasks into room: a grant from the book, tokens from the gate, a start, and back.

Owns   the order in which room, tokens and a process are taken, and given back.
Never  claims; never moves a task that ran.
Fails  LeaseLost; FileSystemFault, OSError: the machine or the disk refuses for now, and nothing was
       taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from typing import TYPE_CHECKING

from spool.errors import FileSystemFault
from spool.launcher import clock
from spool.launcher.book import Book, Grants
from spool.launcher.crew import Crew, Started
from spool.launcher.gate import Gate, Limits
from spool.launcher.leftovers import Leftovers
from spool.launcher.nodes import Grant
from spool.launcher.run import Running
from spool.queue import advance, claim, layout, processes, shape, takeover
from spool.queue.layout import State
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.shape import Shape

if TYPE_CHECKING:
    from spool.launcher.picker import Held
    from spool.launcher.ranks import Ranks

REFUSED_S = 3.0  # after the batch system let no rank begin: one just restarted is soon itself


class Places:
    """Starts the claimed tasks of one launcher, here or at a rank; ranks None: all are here.

    started counts starts, start_at is when the last one was. every_s lies between two mpiruns,
    most is how many there may be. left kills what they leave on nodes without a rank.
    """

    def __init__(
        self, owner: Owner, book: Book, gate: Gate, crew: Crew, ranks: Ranks | None
    ) -> None:
        self.owner, self.book, self.gate, self.crew, self.ranks = owner, book, gate, crew, ranks
        self.every_s = owner.settings.launcher_mpirun_every_s
        self.most = owner.settings.launcher_mpiruns
        self.started = 0
        self.start_at = clock.now()
        self.mpirun_at = 0.0
        self.lost: deque[tuple[str, float]] = deque()  # and when its rank was last heard of
        self.left: Leftovers | None = None

    def start(self, task_id: str, wanted: Shape, waiting: int = 0) -> bool:
        """Start a task if there is room; False: it is still only claimed.

        waiting: so many others are known to want room.
        """
        if wanted.mpi and not self._may_start_mpirun():
            return False
        limits = self.gate.limits_of(task_id, wanted)
        if (grants := self.book.take(wanted, self.gate.allows(limits))) is None:
            return False
        if not self._tokens_for(task_id, limits, grants):
            self.give_back(task_id, wanted)
            return True
        if wanted.elements > 1 and not limits:  # a token is for one at a time
            grants = self.book.widen(grants, wanted, waiting)
        if self.ranks and grants[0].node and not wanted.mpi:
            self.ranks.start(task_id, wanted, grants)
        else:
            self._start_here(task_id, wanted, grants)
        self._count()
        return True

    def _tokens_for(self, task_id: str, limits: Limits, grants: Grants) -> bool:
        """Take a task's tokens; without them its room is free again."""
        taken = False
        try:
            taken = self.gate.take(task_id, limits, grants)
        finally:
            if not taken:
                self.book.give(grants)
        return taken

    def _start_here(self, task_id: str, wanted: Shape, grants: Grants) -> None:
        try:
            what = self.crew.start(task_id, wanted, grants)
        except (FileSystemFault, OSError):
            self._free(task_id, grants)
            raise
        if what is not Started.RUNS:
            self._free(task_id, grants)

    def _free(self, task_id: str, grants: Grants) -> None:
        self.book.give(grants)
        self.gate.give(task_id)

    def _count(self) -> None:
        self.started += 1
        self.start_at = clock.now()

    def follow(self, task_id: str, wanted: Shape) -> bool:
        """Send a task ahead to a rank, for the room of another; False if none may have it."""
        if self.ranks is None or self.gate.tokens.limits or self.book.kept_for is not None:
            return False
        return self.book.count(wanted, 1) == 0 and self.ranks.follow(task_id, wanted)

    def collect(self, others: Callable[[int, int], object]) -> bool:
        """Take back the room of tasks here that have ended; whether there were any.

        Of children that are no task, `others(pid, status)`.
        """
        any_ended = False
        if self.ranks and self.ranks.took:  # followers that have begun
            self.started, self.ranks.took = self.started + self.ranks.took, 0
            self.start_at = clock.now()
        for running in self.crew.reap(self._sweeper_or(others)):
            sweeps = running.shape.mpi and (self.ranks or self.left)  # a simulation leaves nothing
            if sweeps and _ended_badly(running):
                self._sweep(running.task.id, [grant.node for grant in running.grants])
            self._free(running.task.id, running.grants)
            if running.shape.mpi and running.end and "reason" in running.end:
                self.mpirun_at = clock.now() + REFUSED_S
            any_ended = True
        return any_ended

    def _sweeper_or(self, others: Callable[[int, int], object]) -> Callable[[int, int], object]:
        """Whom to tell of a child that is no task: Leftovers, if it started it, or `others`."""
        if (left := self.left) is None:
            return others
        return lambda pid, status: left.ended(pid, status) or others(pid, status)

    def _sweep(self, task_id: str, nodes: list[int]) -> None:
        """Kill what an mpirun left on its nodes: the ranks there do, or else a program each."""
        if self.ranks:
            self.ranks.sweep(task_id, nodes)
        elif self.left:
            self.left.of_task(task_id, [self.book.nodes[number].name for number in nodes])

    def beat(self, now: float, log: Callable[[str], None]) -> None:
        """Now and then: return the tokens that nobody needs, look after ranks and leftovers."""
        if self.ranks is not None:
            self.ranks.beat(now)
        if self.left is not None:
            self.left.beat(now)
        self.gate.tokens.rest()
        if self.ranks is None:
            return
        for rank in self.ranks.silent(now):
            self._mourn(rank, log)
        self.settle_lost()

    def _mourn(self, rank: int, log: Callable[[str], None]) -> None:
        """A rank is dead, and by its guard what it ran: its tasks are lost."""
        assert self.ranks is not None
        tasks = self.ranks.bury(rank)
        log(f"rank {rank} ({self.book.nodes[rank].name}) is dead; {len(tasks)} tasks are lost")
        processes.kill_marked(self.owner.name, node=str(rank))
        seen = clock.epoch() - (clock.now() - self.ranks.heard[rank])
        self.lost.extend((task_id, seen) for task_id in tasks)

    def settle_lost(self) -> None:
        """Decide the tasks of ranks that have died."""
        lines, settled = [], []
        try:
            while self.lost:
                task_id, seen = self.lost[0]
                self.gate.give(task_id)
                lines.append(takeover.settle_lost(self.owner, task_id, seen))
                settled.append(task_id)
                self.lost.popleft()
        finally:
            takeover.tell(self.owner, lines)
        advance.after(self.owner, settled)

    def expected(self, nodes: Set[int], before: float) -> Iterator[tuple[Grant, float]]:
        """The room that what has run since before a moment has on these nodes, and how long it
        should last on.

        As long as its lane says; what says nothing, or too little, as long again as it has lasted.
        """
        now = clock.now()
        runs = [(one.shape, one.grants, one.started_at) for one in self.crew.running.values()]
        if self.ranks:
            runs += [(one.shape, one.grants, one.since) for one in self.ranks.placed.values()]
        for wanted, grants, since in runs:
            if since < before and (here := [grant for grant in grants if grant.node in nodes]):
                lasted, lasts = now - since, 0 if wanted.elements else wanted.time_s
                left_s = lasts - lasted if lasts > lasted else lasted
                yield from ((grant, left_s) for grant in here)

    def settled(self, task_id: str) -> bool:
        """Whether nothing of a task that has ended can be left on any node."""
        if self.ranks is not None:
            return task_id not in self.ranks.sweeping
        return self.left is None or self.left.settled(task_id)

    @property
    def unsettled(self) -> int:
        """Of how many tasks something may be left on nodes without a rank."""
        return self.left.unsettled if self.left else 0

    def abandon(self) -> None:
        """Our lease is lost: kill what we have on nodes without a rank or a guard."""
        if self.left and self.ranks is None:
            self.left.abandon(self.owner.name, [node.name for node in self.book.nodes])

    @property
    def mpiruns_left(self) -> int:
        """How many more mpiruns there may be."""
        return self.most - self.crew.mpiruns

    def _may_start_mpirun(self) -> bool:
        """Whether another may be started now: they are started one by one, not in a rush."""
        now = clock.now()
        if self.mpiruns_left <= 0 or now < self.mpirun_at:
            return False
        self.mpirun_at = now + self.every_s
        return True

    def reject(self, claimed: Iterable[tuple[str, Shape]]) -> None:
        """File tasks that fit no node here under FAILED/rejected."""
        for task_id, wanted in claimed:
            has = max(self.book.nodes, key=lambda node: len(node.cpus))
            needed = shape.print_shape(wanted)
            here = f"{len(self.book.nodes)} nodes of up to {len(has.cpus)} cores"
            why = f"asks for {needed}, which fits nowhere on {here}; see too_large in spool.toml"
            claim.reject(self.owner, task_id, why)

    def let_go(self, claimed: deque[Held], since: float) -> None:
        """Return what was claimed ahead while tasks went fast, if none has started since a moment:
        others may have room for it."""
        if self.start_at > since:
            return
        for held in [one for one in claimed if not self.book.count(one[1], 1)]:
            self.give_back(*held)
            claimed.remove(held)

    def give_back(self, task_id: str, wanted: Shape) -> None:
        """Return a claimed task that never started to its lane: no line is written."""
        self.crew.read.pop(task_id, None)
        lane = shape.lane(wanted, layout.shard_of(task_id))
        claim.hand_on(self.owner, task_id, Place(State.READY, lane))


def _ended_badly(running: Running) -> bool:
    """Whether an mpirun did not end by itself, with all its ranks."""
    return running.end is None or running.end["what"] != "exit" or running.end.get("code") != 0
