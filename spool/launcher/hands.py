"""hands - launchers of our own that get some of our cores while tasks last only milliseconds.

Owns   the cores lent to them; starting, recalling and counting them.
Never  lends where a task waits that needs more than a hand would have.

One process starts some two thousand programs a second, however many cores there are, and each wakes
it on whatever core it last slept. A launcher that keeps to one core starts them faster there than
one that fills two, so a launcher that hardly ever sleeps shares its cores out: every hand is an
ordinary launcher with a lease of its own, which leaves when it finds nothing more to claim.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from spool.launcher import clock
from spool.launcher.board import GIVEN, Board
from spool.launcher.book import Book, Grants
from spool.launcher.crew import Crew
from spool.launcher.nodes import Node, fits_ever
from spool.launcher.picker import Wishes
from spool.queue.layout import Tree
from spool.queue.shape import Shape

MOST = 8  # launchers on one node, ourselves among them
AWAKE = 0.7  # of its time a launcher's loop is at work before it lends
STARTS_EACH_S = 100.0  # below that rate it is not starting that keeps it busy
AGAIN_S = 10.0  # after a try that found a core busy for long
SHORTEST_S = 10.0  # a hand that would have to leave sooner is not worth its start
PR_SET_PDEATHSIG = 1
POLL_S = 0.02  # one that lacks work looks so often whether another has let some go


class Part(NamedTuple):
    """What one launcher of several on a node gets: cpu numbers and megabytes."""

    cpus: tuple[int, ...]
    memory_mb: int


def parts(node: Node) -> list[Part]:
    """A node shared out evenly, our own part first; [] where there is nothing to share."""
    count = min(MOST, len(node.cpus))
    if count < 2 or node.shared:
        return []
    bounds = [number * len(node.cpus) // count for number in range(count + 1)]
    memory = node.memory_mb // count
    return [Part(node.cpus[a:b], memory) for a, b in zip(bounds, bounds[1:], strict=False)]


class Hands:
    """The hands of one launcher.

    board is what we share with them, or with the one whose hand we are.
    lent is what each has, by its pid; lending says that cores are to be lent, and nothing started
    until then, as soon as nothing runs on them.
    """

    def __init__(
        self,
        tree: Tree,
        nodes: Sequence[Node],
        wishes: Wishes,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tree, self.log = tree, log
        self.wishes = wishes
        self.board = Board.inherited() if wishes.hand_of else Board()
        node, alone = nodes[0], len(nodes) == 1 and not wishes.hand_of
        self.parts = parts(node) if wishes.pin and alone else []
        self.home = os.sched_getaffinity(0)
        self.cpus = node.cpus
        self.smallest = Node(*self._smallest()) if self.parts else None
        self.lent: dict[int, Grants] = {}
        self.lending = False
        self.lend_from = -math.inf
        self.recalled = False
        self._said: dict[int, int] = {}

    def _smallest(self) -> tuple[tuple[int, ...], tuple[str, ...], int]:
        part = min(self.parts, key=lambda part: len(part.cpus))
        return part.cpus, (), part.memory_mb

    def mind(self, now: float, starts_s: float, awake: float, shapes: Collection[Shape]) -> None:
        """Decide whether to lend, or to recall what was lent, every now and then.

        shapes is what waits; awake the part of its time that the loop was at work; now monotonic.
        """
        if self.lending:  # some task was not that tiny: no core shall wait for its end
            self.lending, self.lend_from = False, now + AGAIN_S
        elif self.lent:
            if not self.can_do(shapes):
                self.recall(signal.SIGINT)
        elif starts_s >= STARTS_EACH_S and awake >= AWAKE and now >= self.lend_from:
            self.lending = bool(shapes) and self.can_do(shapes)

    def can_do(self, shapes: Iterable[Shape]) -> bool:
        """Whether all of these would fit any hand."""
        if (smallest := self.smallest) is None:
            return False
        return all(not (one.mpi or one.per_node) and fits_ever(smallest, one) for one in shapes)

    def share_out(self, book: Book, crew: Crew, ends_at: float) -> bool:
        """Lend as soon as nothing runs on the cores; whether what we keep may be used."""
        if not book.idle:
            return False
        self.lend(book, ends_at)
        crew.children.ours.update(self.lent)
        crew.starter.confine(self.kept())
        if self.lent:
            self.log(f"lent cores to {len(self.lent)} hands")
        return True

    def take_back(self, pid: int, status: int, book: Book, crew: Crew) -> dict[str, int]:
        """A hand has ended: its cores are ours again; how many tasks it brought where."""
        grants, counts = self.returned(pid, status)
        crew.children.ours.discard(pid)
        book.give(grants)
        crew.starter.confine(self.kept())
        if not self.lent:
            self.log("all hands are back")
        return counts

    def lend(self, book: Book, ends_at: float) -> None:
        """Give hands all of an idle node but our own part; `ends_at` as the picker's, 0: never."""
        self.lending = self.recalled = False
        left = ends_at - clock.now() if ends_at else 0.0
        if ends_at and left < SHORTEST_S:
            self.lend_from = math.inf
            return
        try:
            with self.board.offered() as board:
                for part in self.parts[1:]:
                    pid = self._start(part, left, board)
                    self.lent[pid] = book.lend(part.cpus, part.memory_mb)
        except OSError:  # no more processes, or a core was taken from us: we do without
            self.parts, self.smallest = [], None

    def kept(self) -> set[int]:
        """The cores to live on: those that are not lent, or where we came from when none is."""
        if not self.lent:
            return self.home
        return set(self.cpus).difference(*(grants[0].cpus for grants in self.lent.values()))

    def _start(self, part: Part, time_left_s: float, board: int) -> int:
        """Start a launcher on these cores, whose last words we shall read."""
        os.sched_setaffinity(0, part.cpus)
        read_end, write_end = os.pipe()
        given = [(os.POSIX_SPAWN_DUP2, write_end, 1)]
        if board >= 0:
            given.append((os.POSIX_SPAWN_DUP2, board, GIVEN))
        try:
            pid = os.posix_spawn(
                sys.executable,
                self._words(part, time_left_s),
                os.environ,
                file_actions=given,
                setsid=True,
                setsigmask=(),
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._said[pid] = read_end
        return pid

    def _words(self, part: Part, time_left_s: float) -> list[str]:
        # -P, since our working directory is a task's, from which nothing may be imported.
        words = [sys.executable, "-P", "-m", "spool.cli", "--spool", self.tree.root, "launcher"]
        words += ["--quiet", "--json", "--hand-of", str(os.getpid()), "--idle-timeout", "0"]
        words += ["--cores", str(len(part.cpus)), "--gpus", "0", "--memory", f"{part.memory_mb}M"]
        words += ["--workflow", self.wishes.workflow] if self.wishes.workflow else []
        words += ["--mode", "serial"]
        for tag in self.wishes.tags:
            words += ["--tag", tag]
        words += ["--time-limit", f"{time_left_s:.0f}s"] if time_left_s else []
        for feature in sorted(self.wishes.features):
            words += ["--requires", feature]
        return words

    def lack(self) -> float:
        """Tell the others that we have nothing to do; seconds after which to look again."""
        self.board.lack()
        return POLL_S

    def recall(self, number: signal.Signals) -> None:
        """Pass a signal on: SIGINT lets their tasks end, SIGTERM stops them."""
        self.lending = False
        if number is signal.SIGINT and self.recalled:
            return  # a second one would stop them
        self.recalled = True
        for pid in self.lent:
            os.kill(pid, number)  # ours and not reaped yet, so the number is still its own

    def returned(self, pid: int, status: int) -> tuple[Grants, dict[str, int]]:
        """A hand has ended: what it had, and how many tasks it brought where.

        After one that failed none is lent again.
        """
        if status:
            self.parts, self.smallest = [], None
        with open(self._said.pop(pid), "rb") as last_words:
            said = last_words.read()
        try:
            counts = msgspec.json.decode(said)
        except msgspec.MsgspecError:  # it was killed: its tasks are decided like any dead owner's
            counts = {}
        return self.lent.pop(pid), {k: v for k, v in counts.items() if isinstance(v, int)}


def end_with(parent: int) -> None:
    """Be sent SIGTERM as soon as the process whose hand we are is gone, prctl(2)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
