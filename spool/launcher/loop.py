"""loop - the launcher: claim, place, start, collect, finish; until nothing is left or time is up.

Owns   one launcher from its first heartbeat to its last.
Never  waits for a disk while a slot is free; never starts what it may not finish in its time.
Fails  LeaseLost: our tasks were taken over; they are killed, and nothing more is touched.

One thread decides, in turns; others only sync and look around for it. A turn: reap what
ended, start what fits, a small piece of other work (claim, move), and only when there is none of it
sleep until a child ends, a signal comes or the next second begins.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from spool import config, units
from spool.config import Settings
from spool.errors import FileSystemFault, LeaseLost, SpoolError
from spool.launcher import asked, ending, run
from spool.launcher.batch import WAKE, Batch
from spool.launcher.children import Children, become_subreaper
from spool.launcher.chore import Chore
from spool.launcher.guard import Guard
from spool.launcher.hands import Hands
from spool.launcher.lookout import Lookout
from spool.launcher.nodes import Node, Room
from spool.launcher.picker import Picker, Wishes
from spool.launcher.run import Running, Starter
from spool.launcher.stopping import Stops
from spool.queue import advance, claim, faults, files, layout, manifest, processes, takeover, watch
from spool.queue.claim import Claimer
from spool.queue.journal import Journal
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.shape import Shape
from spool.queue.tasks import Task

TICK_S = 1.0
SLICE = 4
LOOK_AT = 32
FULL_PAUSE_S, MARGIN_S, LEAVE_S = 5.0, 5.0, 5.0
PACE_S = 0.25
HURRIED = 20.0  # starts a second on each core: tasks last milliseconds
BELL = signal.SIGUSR1
SIGNALS = {BELL, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, WAKE}


class Launcher:
    """One launcher on this machine. `run` it once; counts holds what became of its tasks."""

    def __init__(
        self,
        tree: Tree,
        settings: Settings,
        node: Node,
        wishes: Wishes,
        show: Callable[[Any], None] | None = None,
    ) -> None:
        self.tree, self.settings, self.node, self.wishes = tree, settings, node, wishes
        self.show = show
        self.signals = set(SIGNALS)
        self.counts: Counter[str] = Counter()
        self.started = 0
        self.room = Room(node)
        self.claimed: deque[tuple[Task, Shape]] = deque()
        self.running: dict[int, Running] = {}
        self.stops = Stops(self.running)
        self.ended: list[Running] = []
        self.draining = self.interrupting = self.nothing_to_claim = False
        self.slept_s, self.counted = 0.0, 0
        self.peak_kb = run.own_peak_kb()
        self.began = self.busy_at = time.monotonic()
        self.ends_at = self.began + wishes.time_limit_s if wishes.time_limit_s else 0.0
        self.tick_at = self.paused_until = self.pace_at = self.told_beat = 0.0
        self.last_word = ""

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
        become_subreaper()
        self.trusted = config.trusted_users()
        self.owner = Owner.start(
            self.tree,
            self.settings,
            "launcher",
            cores=len(self.node.cpus),
            gpus=list(self.node.gpus),
            memory_mb=self.node.memory_mb,
            features=sorted(self.wishes.features),
            hand_of=self.wishes.hand_of,
            ends=time.time() + self.wishes.time_limit_s if self.ends_at else None,
        )
        self.guard = Guard(self.owner.name, self.settings.lease_fence_s)
        self.children = Children()
        self.children.ours.add(self.guard.pid)
        self.hands = Hands(self.tree, self.node, self.wishes)
        pin = self.wishes.pin and not self.node.shared
        self.starter = Starter(self.owner, pin=pin, hide_gpus=bool(self.node.gpus))
        self.picker = Picker(Claimer(self.owner), self.node, self.wishes, self.ends_at)
        self.lookout = Lookout(self.owner, self.trusted, self.log)
        self.journal = Journal(self.tree, self.owner.name)
        self.batch = Batch(self.owner, self.settings.launcher_sync)
        self.answers = asked.Answers(self.owner, self.running, self.claimed, self.stops)
        self.bell = watch.Bell(self.tree, BELL)
        self.chores = Chore(self.lookout.look, WAKE)
        self.journal.note({"time": units.now_stamp(), "what": "opened", **self.owner.record})

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
        self._reap()
        self._start_what_fits()
        now = time.monotonic()
        if self.ended and now >= self.paused_until:
            self._record_ends()
        if now >= self.stops.due_at:
            self.stops.enforce(now)
        if now >= self.guard.tell_at:
            self.guard.tell()
        if now >= self.pace_at:
            self._mind_the_pace(now)
        if now >= self.tick_at:
            self._tick()
        if self._claim_more() or self._move_some():
            return False
        if not self.running and (self.draining or not self.claimed) and self._may_leave():
            return True
        self._wait()
        return False

    def _close(self) -> None:
        self._drain()
        self.bell.close()
        self.guard.end()
        claimer = self.picker.claimer
        self.log(f"closed after {self.started} starts")
        try:
            self.chores.finish(LEAVE_S)
            self.journal.note({**self.owner.record, "time": units.now_stamp(), "what": "closed"})
            self.journal.write()
            self.owner.end(keep=True, claimed=claimer.claimed, lost=claimer.lost)
        except (FileSystemFault, OSError) as fault:
            self.log(f"could not sign off; our process's end says the same: {fault}")

    def _drain(self) -> None:
        """Bring home what ended; what a full disk refuses is left to a taker."""
        try:
            while self.claimed:
                ending.give_back(self.owner, self.claimed[0][0])
                self.claimed.popleft()
            self._record_ends()
            self.batch.drain()
        except (FileSystemFault, OSError) as fault:
            self.log(f"left with tasks in hand, which another owner takes over: {fault}")

    def _kill_everything(self) -> None:
        processes.kill_marked(self.owner.name, set(self.running))
        self.bell.close()
        self.guard.end()

    def log(self, text: str) -> None:
        """A line in launchers/OWNER/log, and the last word of the live line."""
        line = f"{units.now_stamp()} {claim.printable(text)}\n".encode()
        with suppress(OSError, SpoolError):  # for people: a full disk must not stop the tasks
            files.append(self.tree.owner(self.owner.name, layout.LOG), line, heal=False)
        self.last_word = text

    running_count = property(lambda self: len(self.running), doc="Tasks that run now.")

    # -- ends ------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if (running := self.running.get(found.si_pid)) is not None:
                self._collect(running)
                continue
            _, status = os.waitpid(found.si_pid, os.WNOHANG)  # an orphan, a hand, or the guard
            if found.si_pid == self.guard.pid:
                self._new_guard()
            if found.si_pid in self.hands.lent:
                self._take_back(found.si_pid, status)

    def _new_guard(self) -> None:
        self.log("the guard was killed; starting another")
        self.children.ours.discard(self.guard.pid)
        self.guard.close()
        self.guard = Guard(self.owner.name, self.settings.lease_fence_s)
        self.children.ours.add(self.guard.pid)
        for pid in self.running:
            self.guard.started(pid)

    def _collect(self, running: Running) -> None:
        """One task's first process has ended: kill what it left, write its end."""
        if self.children.orphans(self.running):
            tasks = {pid: one.task.id for pid, one in self.running.items()}
            if not self.children.end_task(running.task.id, running.pid, tasks):
                self.log(f"{running.task.id}: left a process that cannot be killed")
        _, status, used = os.wait4(running.pid, 0)
        del self.running[running.pid]
        self.guard.ended(running.pid)
        self.room.give(running.grant)
        self.busy_at = time.monotonic()
        self.nothing_to_claim = False
        if running.stopping == "interrupted" or self._was_fenced(status):
            what = running.stopping or "lost"
            running.end = {**run.exit_event(running, self.owner.name), "what": what}
        else:
            running.end = run.ended(running, self.owner.name, status, used, self.peak_kb)
        self.ended.append(running)

    def _was_fenced(self, status: int) -> bool:
        """Whether our own guard may have killed a task, since we were stalled too long to beat."""
        silent = time.monotonic() - self.owner.last_beat >= self.settings.lease_fence_s
        return silent and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def _record_ends(self) -> None:
        """Write how tasks ended, after their slots were filled anew; on a full disk, later."""
        waiting, self.ended = self.ended, []
        for number, running in enumerate(waiting):
            try:
                place = ending.record(self.owner, running)
            except (FileSystemFault, OSError) as fault:
                if faults.is_of_one(fault):
                    self.log(f"{running.task.id}: its end cannot be written, so it stays: {fault}")
                    continue
                self.ended = waiting[number:]
                self._pause(fault)
                return
            self.counts[place.state] += 1
            self.journal.note(ending.journal_line(running, place, self.owner.name))
            self.batch.add(running.task.id, place)

    def _pause(self, fault: Exception) -> None:
        """Claim and start nothing for a while; what runs goes on."""
        if time.monotonic() >= self.paused_until:
            self.log(f"pausing: {fault}")
        self.paused_until = time.monotonic() + FULL_PAUSE_S

    # -- starts ----------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        if not self.claimed or not self.room.cpus or time.monotonic() < self.paused_until:
            return
        if self.hands.lending and not self.draining and not self._lend():
            return
        passed: list[tuple[Task, Shape]] = []
        while self.claimed and self.room.cpus and len(passed) < LOOK_AT:
            task, shape = self.claimed.popleft()
            if self.draining or (grant := self.room.take(shape)) is None:
                passed.append((task, shape))
                continue
            try:
                running = self.starter.start(task, shape, grant)
            except FileNotFoundError:
                self.room.give(grant)
                self.log(f"{task.id}: vanished before its start")
                continue
            except (FileSystemFault, OSError) as fault:
                self.room.give(grant)
                if faults.is_of_one(fault):
                    self.log(f"{task.id}: cannot be started, so it stays: {fault}")
                    continue
                passed.append((task, shape))
                self._pause(fault)
                break
            self.started += 1
            self.busy_at = time.monotonic()
            self._note_start(running)
        self.claimed.extendleft(reversed(passed))

    def _note_start(self, running: Running) -> None:
        if running.pid:
            self.running[running.pid] = running
            self.guard.started(running.pid)
            self.stops.watch(running)
            return
        self.room.give(running.grant)
        self.ended.append(running)

    def _claim_more(self) -> int:
        """Claim a slice; how many."""
        if self.draining or len(self.claimed) >= self.picker.ahead_low or self.nothing_to_claim:
            return 0
        if time.monotonic() < self.paused_until:
            return 0
        if not self.room.cpus and not self.picker.may_claim_ahead(len(self.claimed)):
            return 0
        if not self.picker.claimer.lanes:
            self.picker.claimer.refresh()
        count = 0
        for task_id in self.picker.claim(self.room, self.claimed, SLICE):
            self._receive(task_id)
            count += 1
        self.nothing_to_claim = not count  # until a task ends, or a tick lists READY anew
        return count

    def _receive(self, task_id: str) -> None:
        """Look at a task just claimed: run it, or send it where it belongs."""
        if layout.parse_id(task_id) is None:
            claim.reject(self.owner, task_id, "bears no task id; drop it into CREATED instead")
            return
        task = claim.read_claim(self.owner, task_id, self.trusted)
        if task is None:
            return
        if claim.place_of(task, time.time()).state is not State.READY:
            takeover.settle(self.owner, task)
            return
        shape = manifest.wanted_shape(task.manifest)
        if self.picker.why_not(shape, time.monotonic()):
            takeover.settle(self.owner, task)  # its lane said less than its manifest asks for
            return
        above = bool(self.claimed) and shape.priority > self.claimed[-1][1].priority
        self.claimed.append((task, shape))
        if above:
            ordered = sorted(self.claimed, key=lambda entry: -entry[1].priority)
            self.claimed.clear()
            self.claimed.extend(ordered)

    def _move_some(self) -> int:
        """Move a slice of ended tasks; begin a sync at once when slots are idle."""
        idle = self.nothing_to_claim and not self.claimed and len(self.room.cpus) > 0
        try:
            moved = self.batch.step(SLICE, now=idle)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            return 0
        while self.batch.stuck:
            task_id, why = self.batch.stuck.pop()
            self.log(f"{task_id}: cannot be moved, left to a taker: {why}")
        if moved and not self.batch.moving:
            self.journal.write()
        return moved

    # -- once a second ---------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self.tick_at = now + TICK_S
        self.peak_kb = run.own_peak_kb()
        self.owner.beat_if_due()
        if self.owner.last_beat > self.told_beat:  # a takeover beats too, beside the loop
            self.told_beat = self.owner.last_beat
            self.guard.beat()
        for verb, task_id, said in asked.requests(self.owner):
            if why := self.answers.answer(verb, task_id, said):
                self.log(f"{task_id}: {verb} was not possible: {why}")
        if not self.draining and now >= self.paused_until:
            if not self.wishes.hand_of:  # whose hand we are looks around for us
                self.chores.poke()
            self.picker.claimer.refresh()
            self.nothing_to_claim = False
        if self.ends_at and not self.interrupting:
            self._mind_the_time(now)
        if not self.batch.moving:
            self.journal.write()
        if self.show:
            try:
                self.show(self)
            except OSError as fault:  # the terminal is gone; the work is not
                self.show = None
                self.log(f"no live line any more: {fault}")

    def _mind_the_time(self, now: float) -> None:
        """Stop claiming when time is short; interrupt what runs so early that it can still end."""
        margin = max(min(MARGIN_S, self.wishes.time_limit_s / 10), 2 * TICK_S)
        if now >= self.ends_at - margin - self.stops.longest_grace_s:
            self._interrupt("its time is up")

    def _interrupt(self, why: str) -> None:
        self.draining = self.interrupting = True
        self.hands.recall(signal.SIGTERM)
        self.log(f"interrupting {len(self.running)} running tasks: {why}")
        self.stops.stop_all("interrupted")

    # -- hands -----------------------------------------------------------------------------------

    def _mind_the_pace(self, now: float) -> None:
        """Four times a second: how fast tasks go, and whether hands would make them go faster."""
        past = now - self.pace_at + PACE_S
        rate, awake = (self.started - self.counted) / past, 1.0 - self.slept_s / past
        self.pace_at, self.counted, self.slept_s = now + PACE_S, self.started, 0.0
        self.picker.rate = rate
        self.starter.hurried = rate > HURRIED * len(self.node.cpus)
        if not self.draining:
            shapes = self.picker.waiting_shapes() | {shape for _, shape in self.claimed}
            self.hands.mind(now, rate, awake, shapes)

    def _lend(self) -> bool:
        """Share out our cores as soon as nothing runs on them; whether they may be used."""
        if not self.room.idle:
            return False
        self.hands.lend(self.room, self.ends_at)
        self.children.ours.update(self.hands.lent)
        self.starter.confine(self.hands.kept())
        if self.hands.lent:
            self.log(f"lent cores to {len(self.hands.lent)} hands")
        return True

    def _take_back(self, pid: int, status: int) -> None:
        """A hand has ended: its cores are ours again, and what it did counts as ours."""
        grant, counts = self.hands.returned(pid, status)
        self.children.ours.discard(pid)
        self.room.give(grant)
        self.counts.update(counts)
        self.busy_at, self.nothing_to_claim = time.monotonic(), False
        self.starter.confine(self.hands.kept())
        if not self.hands.lent:
            self.log("all hands are back")

    # -- waiting and leaving ---------------------------------------------------------------------

    def _wait(self) -> None:
        """Sleep until a child ends, a signal comes, a limit is near or the next tick is due."""
        if not self.running and not self.claimed and time.monotonic() - self.busy_at > TICK_S:
            self.bell.hang()
        wake_at = min(self.tick_at, self.stops.due_at, self.guard.tell_at)
        asleep_at = time.monotonic()
        got = signal.sigtimedwait(self.signals, max(0.0, wake_at - asleep_at))
        self.slept_s += time.monotonic() - asleep_at
        if got is None or got.si_signo in (signal.SIGCHLD, WAKE):
            return
        if got.si_signo == BELL:
            self.tick_at = 0.0
            return
        if got.si_signo in self.signals:  # garbage when SIGCONT ends a wait too late
            self._heed(signal.Signals(got.si_signo))

    def _heed(self, got: signal.Signals) -> None:
        """The first Ctrl-C lets running tasks end; a second one, TERM or HUP interrupts them."""
        if got is signal.SIGINT and not self.draining:
            self.draining = True
            self.hands.recall(got)
            self.log(f"draining: {len(self.running)} tasks still run; Ctrl-C again interrupts them")
        elif not self.interrupting:
            self._interrupt(f"{got.name} came")
        self.tick_at = 0.0

    def _may_leave(self) -> bool:
        """Nothing runs: whether to go. Not while ends are unwritten or another's death is open."""
        if self.hands.lent:
            return False
        if self.ended:  # unwritten, for the disk is full: a taker knows them as interrupted
            return self.interrupting and time.monotonic() < self.paused_until
        if self.draining:
            return True
        if not self.batch.empty or not self.nothing_to_claim:
            return False
        if self.wishes.hand_of:
            return not self._new_lanes()
        if self.chores.busy or not self.lookout.settled or self.wishes.idle_s is None:
            return False
        now = time.monotonic()
        leave_at = self.busy_at + self.wishes.idle_s
        due = advance.next_due(self.tree)
        if due is not None and now + due - time.time() <= leave_at:
            return False
        if self.lookout.door.under_way:
            leave_at = max(leave_at, self.busy_at + self.settings.door_quiet_s + 2 * TICK_S)
        return now >= leave_at and not self._new_lanes()

    def _new_lanes(self) -> bool:
        """Whether READY got a lane since our last look: by a retry, a takeover, the door, ..."""
        known = set(self.picker.claimer.lanes)
        self.nothing_to_claim = known.issuperset(self.picker.claimer.refresh())
        return not self.nothing_to_claim
