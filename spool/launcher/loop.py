"""loop - the launcher: claim, place, start, collect, finish; until nothing is left or time is up.

Owns   one launcher from its first heartbeat to its last.
Never  waits for a disk while a slot is free; never starts what it may not finish in its time.
Fails  LeaseLost: our tasks were taken over; they are killed, and nothing more is touched.

One thread decides, in turns; others only sync and look around for it. A turn: reap what
ended, start what fits, a small piece of other work (claim, move), and only when there is none of it
sleep until a child ends, a signal comes or the next second begins.

The tasks of this node are its crew's (crew.py), those of other nodes their ranks' (ranks.py); which
node a task goes to, the book says (book.py), and it is here that all three meet.
"""

from __future__ import annotations

import math
import signal
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from spool import config, units
from spool.config import Settings
from spool.errors import FileSystemFault, LeaseLost, SpoolError
from spool.launcher import allocation, answers, clock, stopping
from spool.launcher.adoption import Adoption
from spool.launcher.batch import WAKE, Batch
from spool.launcher.book import Book
from spool.launcher.broom import Broom
from spool.launcher.chore import Chore
from spool.launcher.crew import Report
from spool.launcher.field import Field
from spool.launcher.gate import Gate
from spool.launcher.hands import Hands
from spool.launcher.heirs import Heirs
from spool.launcher.leaving import may_leave
from spool.launcher.picker import Held, Picker, Wishes
from spool.launcher.places import Places
from spool.launcher.staging import Staging
from spool.queue import allocations, claim, files, layout, watch
from spool.queue.claim import Claimer
from spool.queue.journal import Journal
from spool.queue.layout import Tree
from spool.queue.lookout import Lookout
from spool.queue.owner import Owner
from spool.queue.shape import Shape

TICK_S = 1.0
SLICE, SLICE_FAR = 4, 128
LOOK_AT = 32
FULL_PAUSE_S, LEAVE_S = 5.0, 5.0
TELL_WHY_S = 10.0
PACE_S = 0.25
LIST_S = 0.02  # between two looks whether an empty READY got something, as each task ends
HURRIED = 20.0  # starts a second on each core: tasks last milliseconds
BELL = signal.SIGUSR1
SIGNALS = {BELL, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, WAKE}


class Launcher:
    """One launcher over the nodes of `field`. `run` it once; counts holds what became of its tasks.

    Its own node is the first; `field` says how the others are reached, if there are any.
    """

    def __init__(
        self,
        tree: Tree,
        settings: Settings,
        field: Field,
        wishes: Wishes,
        show: Callable[[Any], None] | None = None,
    ) -> None:
        self.tree, self.settings, self.field, self.wishes = tree, settings, field, wishes
        self.show = show
        self.signals = set(SIGNALS)
        self.counts: Counter[str] = Counter()
        self.book = Book(field.nodes)
        self.claimed: deque[Held] = deque()
        self.draining = self.interrupting = self.nothing_to_claim = False
        self.slept_s, self.counted, self.last_word = 0.0, 0, ""
        self.began = self.busy_at = clock.now()
        self.ends_at = self.began + wishes.time_limit_s if wishes.time_limit_s else 0.0
        self.tick_at = self.paused_until = self.pace_at = 0.0
        self.list_at = self.journal_at = 0.0

    # -- from the first heartbeat to the last ----------------------------------------------------

    def run(self) -> Counter[str]:
        """Run until idle, drained or out of time; how many tasks went where. Raises LeaseLost."""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            self.signals.discard(signal.SIGHUP)  # as nohup(1) wants it
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        try:
            self._open()
            try:
                while not self._calm_turn():
                    pass
                self._close()
            except LeaseLost:
                self._kill_everything()
                raise
        finally:
            while signal.sigtimedwait(self.signals, 0):
                pass  # what is still pending must not strike once the mask is lifted
            for number in (WAKE, BELL):  # a thread of ours may ring after the mask is lifted
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        return self.counts

    def _open(self) -> None:
        self.trusted = config.trusted_users()
        self.owner = Owner.start(self.tree, self.settings, "launcher", **self._record())
        self.crew = self.field.new_crew(
            self.owner, self.settings, self.wishes, self.trusted, self.log
        )
        self.picker = Picker(Claimer(self.owner), self.book, self.wishes, self.ends_at)
        self.hands = Hands(self.tree, self.field.nodes, self.wishes, self.log)
        if self.field.crew:  # what is only simulated, no hand could run
            self.hands.parts, self.picker.ahead = [], lambda _: 0
        told, no_mpi = self.owner.tell, self.field.no_mpi
        self.picker.no_mpi = lambda: told("no_mpi", no_mpi(self.settings))
        hosts = [node.name or self.owner.record["host"] for node in self.field.nodes]
        self.gate = Gate(self.owner, self.wishes.tags, hosts)
        self.picker.may = self.gate.may
        self.journal = Journal(self.tree, self.owner.name)
        self.batch = Batch(self.owner, self.settings.launcher_sync, board=self.hands.board)
        self.adoption = Adoption(self)
        self.broom = Broom(None if self.field.crew else self.crew.children.ours)
        self.heirs = Heirs(self.owner, self.picker.claimer.add, self.adoption.take, self.broom)
        self.picker.few = lambda: bool(self.heirs.waited_for)
        self.bell = watch.Bell(self.tree, BELL)
        self.ranks = self.field.ranks
        if self.ranks:
            self.ranks.open(self.owner, self.book, self.wishes, self.gate.give)
            self.picker.ahead = self.ranks.may_follow
        self.staging = Staging(self)
        self.places = Places(self.owner, self.book, self.gate, self.crew, self.ranks)
        self.picker.expected = self.places.expected
        if not self.field.crew:  # what is only simulated leaves nothing
            ours = self.crew.children.ours
            self.places.left = self.field.leftovers(self.owner, ours, self.log)
        clear = self.places.left.clear if self.places.left else None
        self.lookout = Lookout(self.owner, self.trusted, self.log, allocation.is_over, clear)
        self.chores = Chore(self.lookout.look, WAKE)
        self.slice = SLICE if len(self.field.nodes) == 1 else SLICE_FAR
        allocations.sign_in(self.tree, self.owner.record, self.owner.name)
        self._note("opened")

    def _record(self) -> dict[str, Any]:
        return {
            **self.field.told(),
            **allocation.named(),
            **self.wishes.told(),
            "ends": clock.epoch() + self.wishes.time_limit_s if self.ends_at else None,
            "dead_s": self.settings.lease_dead_s,
        }

    def _note(self, what: str) -> None:
        self.journal.note({**self.owner.record, "time": units.stamp(clock.epoch()), "what": what})

    def _calm_turn(self) -> bool:
        """A turn; where the file system fails, a pause: what runs goes on."""
        try:
            return self._turn()
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            self._wait()
            return False

    def _turn(self) -> bool:
        """One turn of the loop; True when the launcher is done."""
        self._collect()
        self._start_what_fits()
        now = clock.now()
        if self.crew.ended and now >= self.paused_until:
            self._record_ends()
        if now >= self.crew.due_at:
            self.crew.mind(now)
        if now >= self.pace_at:
            self._mind_the_pace(now)
        if now >= self.tick_at:
            self._tick()
        if self._claim_more() or self._move_some():
            return False
        if not self.running_count and (self.draining or not self.claimed) and may_leave(self):
            return True
        self._wait()
        return False

    def _close(self) -> None:
        self._drain()
        self.bell.close()
        if self.ranks:
            self.ranks.close()
        self.crew.close()
        (claimer := self.picker.claimer).tidy()
        self.log(f"closed after {self.started} starts")
        try:
            self.chores.finish(LEAVE_S)
            self._note("closed")
            self.journal.write()
            self.owner.end(keep=True, claimed=claimer.claimed, lost=claimer.lost)
        except (FileSystemFault, OSError) as fault:
            self.log(f"could not sign off; our process's end says the same: {fault}")

    def _drain(self) -> None:
        """Bring home what ended; what a full disk refuses is left to a taker."""
        try:
            while self.claimed:
                self.places.give_back(*self.claimed[0])
                self.claimed.popleft()
            self._record_ends()
            self.batch.drain()
            self.heirs.finish(self.batch.finals)
        except (FileSystemFault, OSError) as fault:
            self.log(f"left with tasks in hand, which another owner takes over: {fault}")

    def _kill_everything(self) -> None:
        self.crew.kill_everything()
        self.places.abandon()
        if self.ranks:
            self.ranks.abandon()
        self.bell.close()

    @property
    def started(self) -> int:
        """How many tasks were started."""
        return self.places.started

    def log(self, text: str) -> None:
        """A line in launchers/OWNER/log, and the last word of the live line."""
        line = f"{units.now_stamp()} {claim.printable(text)}\n".encode()
        with suppress(OSError, SpoolError):  # for people: a full disk must not stop the tasks
            files.append(self.tree.owner(self.owner.name, layout.LOG), line, heal=False)
        self.last_word = text

    @property
    def running_count(self) -> int:
        """Tasks that run now, are on their way to a rank or back, or may have left something."""
        far = self.ranks.busy if self.ranks else self.places.unsettled
        return int(self.crew.busy) + far

    # -- ends ------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take back the room of what has ended, here and on other nodes."""
        if self.places.collect(self._other_child):
            self._was_busy()
        before = self.book.free
        for report in self.ranks.receive(self.log) if self.ranks else ():
            self._note_end(report, durable=True)
            self._was_busy()
        while self.ranks and self.ranks.back:
            self._place_anew(*self.ranks.back[0])
            self.ranks.back.popleft()
        if self.book.free > before and self.picker.claimer.lanes:
            self.nothing_to_claim = False  # what did not fit may now

    def _place_anew(self, task_id: str, wanted: Shape) -> None:
        """A task that never started at its rank: into other room at once, else back to READY."""
        if self.draining or self.claimed or not self._start(task_id, wanted):
            self.places.give_back(task_id, wanted)
            self.nothing_to_claim = False

    def _was_busy(self) -> None:
        self.busy_at, self.nothing_to_claim = clock.now(), False

    def _record_ends(self) -> None:
        """Write how tasks ended, after their slots were filled anew; on a full disk, later."""
        try:
            for report in self.crew.reports(self.places.settled):
                self._note_end(report, durable=self.crew.durable)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)

    def _note_end(self, report: Report, *, durable: bool) -> None:
        self.counts[report.place.state] += 1
        self.journal.add(report.line)
        (self.batch.add_durable if durable else self.batch.add)(report.task_id, report.place)

    def _pause(self, fault: Exception) -> None:
        """Claim and start nothing for a while; what runs goes on."""
        if clock.now() >= self.paused_until:
            self.log(f"pausing: {fault}")
        self.paused_until = clock.now() + FULL_PAUSE_S

    # -- starts ----------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        if not self.claimed or not self.book.free or clock.now() < self.paused_until:
            return
        if (
            self.hands.lending
            and not self.draining
            and not self.hands.share_out(self.book, self.crew, self.ends_at)
        ):
            return
        passed: list[Held] = []
        while self.claimed and self.book.free and len(passed) < LOOK_AT:
            held = self.claimed.popleft()
            if self.draining or not self._start(*held):
                passed.append(held)
                if clock.now() < self.paused_until:
                    break
        self.claimed.extendleft(reversed(passed))

    def _start(self, task_id: str, wanted: Shape) -> bool:
        """Start a claimed task if there is room; False: it is still only claimed."""
        before = self.places.started
        try:
            waiting = len(self.claimed) + self.picker.known
            dealt_with = self.places.start(task_id, wanted, waiting)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            return False
        self.busy_at = clock.now() if self.places.started > before else self.busy_at
        return dealt_with

    def _claim_more(self) -> int:
        """Claim a slice; how many."""
        if self.draining or self.nothing_to_claim:
            return 0
        ahead = sum(not wanted.mpi for _, wanted in self.claimed)
        if ahead >= self.picker.ahead_low and self.book.kept_for is None:
            return 0
        if clock.now() < self.paused_until:
            return 0
        if not self.book.free and not self._may_claim_ahead():
            return 0
        if not self.picker.claimer.rows and clock.now() >= self.list_at:
            self.picker.claimer.refresh()
            self.list_at = clock.now() + LIST_S
        self.picker.suits = self.gate.suits if self.gate.looks else None
        self.picker.mpiruns = self.places.mpiruns_left - (len(self.claimed) - ahead)
        count = 0
        for task_id, wanted in self.picker.claim(self.claimed, self.slice):
            self.receive(task_id, wanted)
            count += 1
        self.nothing_to_claim = not count  # until a task ends, or a tick lists READY anew
        return count

    def _may_claim_ahead(self) -> bool:
        if self.ranks:
            return self.ranks.any_may_follow()
        return not self.field.crew and self.picker.may_claim_ahead(len(self.claimed))

    def receive(self, task_id: str, wanted: Shape) -> None:
        """Start a task just claimed, or hold it until there is room."""
        if layout.parse_id(task_id) is None:
            claim.reject(self.owner, task_id, "bears no task id; drop it into CREATED instead")
            return
        first = not self.claimed or wanted == self.book.kept_for
        if first and not self.hands.lending and self._start(task_id, wanted):
            return
        if self.places.follow(task_id, wanted):
            return
        above = bool(self.claimed) and wanted.priority > self.claimed[-1][1].priority
        self.claimed.append((task_id, wanted))
        if above:
            self.claimed = deque(sorted(self.claimed, key=lambda entry: -entry[1].priority))

    def _move_some(self) -> int:
        """Move a slice of ended tasks; begin a sync at once when slots are idle, or others wait."""
        idle = self.nothing_to_claim and not self.claimed and self.book.free > 0
        now = idle or (clock.now() >= self.batch.soon_at and self._awaited)
        try:
            moved = self.batch.step(self.slice, now=now, over=not self.running_count)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            return 0
        while self.batch.stuck:
            task_id, why = self.batch.stuck.pop()
            self.log(f"{task_id}: cannot be moved, left to a taker: {why}")
        if moved and not self.batch.moving and clock.now() >= self.journal_at:
            self.journal_at = clock.now() + PACE_S  # a tick writes what is noted until then
            self.journal.write()
        if not self.batch.moving:
            self.heirs.ended(self.batch.finals, now=idle and not self.running_count)
        try:
            heirs = self.heirs.step(self.slice)
        finally:
            self.adoption.start()
        if heirs:
            self.nothing_to_claim = False
        return moved + heirs

    @property
    def _awaited(self) -> bool:
        """Whether others wait for what has ended and is not yet durable."""
        return not self.batch.syncing and self.heirs.awaited(self.batch.gathered)

    # -- once a second ---------------------------------------------------------------------------

    def _tick(self) -> None:
        now = clock.now()
        self.tick_at = now + TICK_S
        if self.ends_at and not self.interrupting:
            self._mind_the_time(now)
        self.owner.busy = 1 - self.book.free / max(1, self.book.cores)
        self.owner.beat_if_due()
        self.crew.beat()
        self.places.beat(now, self.log)
        answers.answer(self)
        if not self.draining and now >= self.paused_until:
            if not self.wishes.hand_of:  # whose hand we are looks around for us
                self.chores.poke()
            self.places.let_go(self.claimed, now - TICK_S)
            self.picker.claimer.refresh()
            self.nothing_to_claim = False
            self._tell_why(now)
            self.staging.mind()
            if self.settings.launcher_too_large == "reject":
                self.places.reject(self.picker.too_large(SLICE_FAR))
        if not self.batch.moving:
            self.journal.write()
        if self.show:
            try:
                self.show(self)
            except OSError as fault:  # the terminal is gone; the work is not
                self.show = None
                self.log(f"no live line any more: {fault}")

    def _tell_why(self, now: float) -> None:
        """Every ten seconds without a start, why nothing of what is ready starts."""
        if now - self.places.start_at >= TELL_WHY_S and self.picker.claimer.rows:
            self.places.start_at = now
            self.log(self.picker.tally())

    def _mind_the_time(self, now: float) -> None:
        """Stop claiming when time is short; interrupt what runs so early that it can still end."""
        margin = stopping.margin_s(self.wishes.time_limit_s, self.running_count)
        self.picker.margin_s = margin
        grace = self.crew.stops.longest_grace_s
        if self.ranks:
            grace = max(grace, self.ranks.longest_grace_s)
        if now >= self.ends_at - margin - grace:
            self._interrupt("its time is up")

    def _interrupt(self, why: str) -> None:
        self.draining = self.interrupting = self.owner.tell("draining", True)
        self.hands.recall(signal.SIGTERM)
        self._collect()  # what ended by itself before we asked has its own end
        self.log(f"interrupting {self.running_count} running tasks: {why}")
        self.crew.stop_all("interrupted")
        if self.ranks:
            self.ranks.stop_all("interrupted")

    # -- hands -----------------------------------------------------------------------------------

    def _mind_the_pace(self, now: float) -> None:
        """Four times a second: how fast tasks go, and whether hands would make them go faster."""
        past = now - self.pace_at + PACE_S
        rate, awake = (self.started - self.counted) / past, 1.0 - self.slept_s / past
        self.pace_at, self.counted, self.slept_s = now + PACE_S, self.started, 0.0
        self.picker.rate = rate
        if self.ranks:
            self.ranks.rate = rate
        self.crew.starter.hurried = not self.ranks and rate > HURRIED * self.book.cores
        if not self.draining and self.hands.parts:
            shapes = self.picker.waiting_shapes() | {wanted for _, wanted in self.claimed}
            self.hands.mind(now, rate, awake, shapes)

    def _other_child(self, pid: int, status: int) -> None:
        """A child that is no task has ended: what a hand did counts as ours."""
        self.staging.ended(pid, status)
        self.broom.ended(pid)
        if pid in self.hands.lent:
            self.counts.update(self.hands.take_back(pid, status, self.book, self.crew))
            self._was_busy()

    # -- waiting and leaving ---------------------------------------------------------------------

    def _wait(self) -> None:
        """Sleep until a child ends, a signal comes, a limit is near or the next tick is due."""
        idle = not self.running_count and clock.now() - self.busy_at > TICK_S
        if not self.claimed and (idle or self.crew.awaited):
            self.bell.hang()
        asleep_at = clock.now()
        soon_at = self.batch.soon_at if self._awaited else math.inf
        wait_s = min(self.tick_at, self.crew.due_at, self.heirs.due_at, soon_at) - asleep_at
        if self.claimed and self.places.mpirun_at > asleep_at:
            wait_s = min(wait_s, self.places.mpirun_at - asleep_at)
        if self.ranks:
            wait_s = min(wait_s, self.ranks.flush())
        shares = self.nothing_to_claim and bool(self.hands.lent or self.wishes.hand_of)
        if shares and self.heirs.may_come(asleep_at - self.busy_at):
            wait_s = min(wait_s, self.hands.lack())
        got = self.crew.sleep(self.signals, max(0.0, wait_s))
        if shares and got is None:
            self.new_lanes()
        self.slept_s += clock.now() - asleep_at
        if got is None or got.si_signo in (signal.SIGCHLD, WAKE):
            return
        if got.si_signo == BELL:
            self.tick_at = 0.0
            return
        if got.si_signo in self.signals:  # garbage when SIGCONT ends a wait too late
            self.heed(signal.Signals(got.si_signo))

    def heed(self, got: signal.Signals) -> None:
        """The first Ctrl-C lets running tasks end; a second one, TERM or HUP interrupts them."""
        if got is signal.SIGINT and not self.draining:
            self.draining = self.owner.tell("draining", True)
            self.hands.recall(got)
            self.crew.drain()
            if self.ranks:
                self.ranks.recall()
            self.log(f"draining: {self.running_count} still run; Ctrl-C again interrupts them")
        elif not self.interrupting:
            self._interrupt(f"{got.name} came")
        self.tick_at = 0.0

    def new_lanes(self) -> bool:
        """Whether READY got a lane since our last look: by a retry, a takeover, the door, ..."""
        known = set(self.picker.claimer.lanes)
        self.nothing_to_claim = known.issuperset(self.picker.claimer.refresh())
        return not self.nothing_to_claim
