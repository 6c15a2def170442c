"""stager - does what is around a run: brings data in and out, runs hooks, asks handlers.

Owns   a lease of its own and the tasks of the lanes prepare.* and close.* that it claims, with
       the children that work on them.
Never  runs a task; never does a slow thing itself: each hook and each transfer is a process of its
       own, with a time limit of its own, so one that hangs keeps back none but its own task.
Fails  LeaseLost: our tasks were taken over; what runs is killed, and nothing more is touched.

It is started by a person (`spool launcher --stage`) or by a launcher as its child (staging.py). A
turn: reap, write ends, claim into free places, move what is durable, sleep until something happens.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from spool import config, units
from spool.config import Settings
from spool.errors import FileSystemFault, LeaseLost, ManifestError, SpoolError
from spool.launcher import allocation, asked, clock, ending, hooks, inputs, run
from spool.launcher.batch import WAKE, Batch
from spool.launcher.children import Children, become_subreaper
from spool.launcher.chore import Chore
from spool.launcher.gate import Gate
from spool.launcher.guard import Guard
from spool.launcher.heirs import Heirs
from spool.launcher.hooks import Step, Work
from spool.launcher.picker import Wishes
from spool.launcher.run import Running
from spool.launcher.spawner import Order, Spawner
from spool.launcher.transfer import LATER
from spool.queue import advance, claim, elements, faults, files, history, layout, processes
from spool.queue import shape as shapes
from spool.queue.claim import Claimer
from spool.queue.journal import Journal
from spool.queue.layout import State, Tree
from spool.queue.lookout import Lookout
from spool.queue.owner import Owner
from spool.queue.shape import Shape

TICK_S, PAUSE_S, GRACE_S, LEAVE_S = 1.0, 5.0, 5.0, 5.0
LATER_S, LONGEST_LATER_S = 60.0, 3600.0
MOVED_AT_ONCE = 16
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, WAKE}


class Stager:
    """One stager. `run` it once; counts says how many tasks were moved where."""

    def __init__(self, tree: Tree, settings: Settings, wishes: Wishes) -> None:
        self.tree, self.settings, self.wishes = tree, settings, wishes
        self.trusted = config.trusted_users()
        self.counts: Counter[str] = Counter()
        self.works: dict[int, Work] = {}
        self.ended: deque[Work] = deque()
        self.held: deque[str] = deque()
        self.draining = self.interrupting = False
        self.busy_at, self.tick_at, self.paused_until = clock.now(), 0.0, 0.0
        self.told_beat = 0.0
        self.spawner = Spawner()

    # -- from the first heartbeat to the last ------------------------------------------------------

    def run(self) -> Counter[str]:
        """Run until idle or told to end. Raises LeaseLost."""
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._open()
            try:
                while not self._turn():
                    self._wait()
                self._close()
            except LeaseLost:
                processes.kill_marked(self.owner.name, set(self.works))
                self.guard.end()
                raise
        finally:
            while signal.sigtimedwait(SIGNALS, 0):
                pass
            signal.signal(WAKE, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        return self.counts

    def _open(self) -> None:
        become_subreaper()
        dead_s, at_once = self.settings.lease_dead_s, self.settings.staging_at_once
        record: dict[str, Any] = {"at_once": at_once, "dead_s": dead_s, **allocation.named()}
        record |= self.wishes.told()
        self.owner = Owner.start(self.tree, self.settings, "stager", **record)
        self.children = Children()
        self.guard = self._new_guard()
        self.claimer = Claimer(self.owner)
        self.gate = Gate(self.owner, self.wishes.tags, ["local"])
        self.gate.tokens.limits = ()  # those are for tasks that run
        self.lookout = Lookout(self.owner, self.trusted, self.log, allocation.is_over)
        self.chores = Chore(self.lookout.look, WAKE)
        self.batch = Batch(self.owner, self.settings.launcher_sync)
        self.heirs = Heirs(self.owner)
        self.journal = Journal(self.tree, self.owner.name)
        self.no_input = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.base = run.clean_environment(dict(os.environ))
        self.base["SPOOL"], self.base[processes.MARK] = self.tree.root, self.owner.name
        self._note("opened", **self.owner.record)

    def _new_guard(self) -> Guard:
        guard = Guard(self.owner.name, self.settings.lease_fence_s)
        self.children.ours.add(guard.pid)
        return guard

    def _note(self, what: str, **fields: Any) -> None:
        self.journal.note({**fields, "time": units.now_stamp(), "what": what})

    def log(self, text: str) -> None:
        """A line in launchers/OWNER/log."""
        line = f"{units.now_stamp()} {claim.printable(text)}\n".encode()
        with suppress(OSError, SpoolError):  # for people: a full disk must not stop the work
            files.append(self.tree.owner(self.owner.name, layout.LOG), line, heal=False)

    def _close(self) -> None:
        try:
            self._record_ends()
            self.batch.drain()
            advance.after(self.owner, self.batch.finals)
        except (FileSystemFault, OSError) as fault:
            self.log(f"left with tasks in hand, which another owner takes over: {fault}")
        self.guard.end()
        try:
            self.chores.finish(LEAVE_S)
            self._note("closed", **self.owner.record)
            self.journal.write()
            self.owner.end(keep=True)
        except (FileSystemFault, OSError) as fault:
            self.log(f"could not sign off; our process's end says the same: {fault}")

    def _turn(self) -> bool:
        """One turn; True when the stager is done. Where the file system fails, a pause."""
        try:
            self._reap()
            now = clock.now()
            self._enforce(now)
            if now >= self.guard.tell_at:
                self.guard.tell()
            if now >= self.paused_until:
                self._record_ends()
            if now >= self.tick_at:
                self._tick(now)
            self._claim()
            moved = self.batch.step(MOVED_AT_ONCE, now=True)
            if not self.batch.moving:
                self.heirs.ended(self.batch.finals, now=not self.works)
            if self.heirs.step(MOVED_AT_ONCE) or moved:
                self.tick_at = 0.0
                return False
            return self._may_leave()
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            return False

    def _pause(self, fault: Exception) -> None:
        """Claim and write nothing for a while; what runs goes on."""
        if clock.now() >= self.paused_until:
            self.log(f"pausing: {fault}")
        self.paused_until = clock.now() + PAUSE_S

    def _tick(self, now: float) -> None:
        self.tick_at = now + TICK_S
        self.owner.beat_if_due()
        if self.owner.last_beat > self.told_beat:
            self.told_beat = self.owner.last_beat
            self.guard.beat()
        for verb, task_id, said in asked.requests(self.owner):
            self._answer(verb, task_id, said)
        if not self.draining and now >= self.paused_until:
            if not self.wishes.hand_of:  # whose hand we are looks around for us
                self.chores.poke()
            self.claimer.refresh()
        self.journal.write()

    def _wait(self) -> None:
        """Sleep until a child ends, a signal comes, a limit is near or the next tick is due."""
        if self.batch.moving:
            return
        limits = (min(work.limit_at, work.kill_at) for work in self.works.values())
        due_at = min(self.tick_at, self.guard.tell_at, self.heirs.due_at, *limits)
        got = signal.sigtimedwait(SIGNALS, max(0.0, due_at - clock.now()))
        if got is None or got.si_signo in (signal.SIGCHLD, WAKE):
            return
        if got.si_signo in SIGNALS:
            self._heed(signal.Signals(got.si_signo))

    def _heed(self, got: signal.Signals) -> None:
        """The first Ctrl-C lets what runs end; a second one, TERM or HUP stops it."""
        self.tick_at = 0.0
        if got is signal.SIGINT and not self.draining:
            self.draining = True
            self.log(f"draining: {len(self.works)} still run; Ctrl-C again stops them")
            return
        self.draining = self.interrupting = True
        self.log(f"stopping {len(self.works)}: {got.name} came")
        for work in self.works.values():
            self._stop(work, "interrupted")

    def _may_leave(self) -> bool:
        if self.draining and not self.interrupting:
            self._give_back()
        if (
            self.works
            or (self.held and not self.interrupting)
            or not (self.batch.empty and self.heirs.empty)
        ):
            return False
        if self.ended:  # unwritten, for the disk is full: a taker does these stages again
            return self.interrupting and clock.now() < self.paused_until
        if self.draining:
            return True
        if self.wishes.idle_s is None or clock.now() - self.busy_at < self.wishes.idle_s:
            return False
        if self.wishes.hand_of:
            return True
        if self.chores.busy or not self.lookout.settled or self.lookout.door.under_way:
            return False
        due = advance.next_due(self.tree)
        return due is None or due - time.time() > self.wishes.idle_s

    # -- claims ------------------------------------------------------------------------------------

    def _claim(self) -> None:
        free = self.settings.staging_at_once - len(self.works)
        if self.draining or free <= 0 or clock.now() < self.paused_until:
            return
        self._begin_held()
        suits = self.gate.suits if self.wishes.tags else None
        for task_id in self.claimer.take(self._wants, free, suits):
            self.busy_at = clock.now()
            self.held.append(task_id)
            self._begin_held()

    def _begin_held(self) -> None:
        """Begin what is claimed; on a full disk it stays held for a later turn."""
        while self.held:
            self._begin(self.held[0])
            self.held.popleft()

    def _wants(self, shape: Shape) -> int:
        ours = self.wishes.workflow
        if shape.stage == "run" or (ours and shape.workflow != shapes.name_token(ours)):
            return 0
        return self.settings.staging_at_once - len(self.works)

    def _give_back(self) -> None:
        """Return what was claimed and has not begun."""
        while self.held:
            if (task := claim.read_claim(self.owner, self.held[0], self.trusted)) is not None:
                claim.settle(self.owner, task)
            self.held.popleft()

    def _begin(self, task_id: str) -> None:
        """Begin the stage that a claimed task is in; what belongs elsewhere is sent on."""
        if layout.parse_id(task_id) is None:
            claim.reject(self.owner, task_id, "bears no task id; drop it into CREATED instead")
            return
        if (task := claim.read_claim(self.owner, task_id, self.trusted)) is None:
            return
        place = claim.place_of(self.tree, task, time.time())
        stage = shapes.parse(place.group)[0].stage if place.state is State.READY else "run"
        if stage == "run" or place.line:
            claim.settle(self.owner, task)
            return
        first, attempt = not task.story.stage_since, task.story.attempt
        event = {"time": units.now_stamp(), "what": "staging", "stage": stage}
        event["owner"] = self.owner.name
        claim.write_line(self.owner, task, event, sync=True)
        begun = Running(task, shapes.parse(place.group)[0], (), attempt, time.time(), clock.now())
        begun.last_line = history.encode(event)
        work = Work(begun, stage, deque(hooks.steps(task, stage)))
        try:
            if stage == "prepare" and first and attempt and task.manifest.fresh:
                run.move_old_files(task.path, attempt)
            if stage == "prepare":
                inputs.provide(self.tree, task)
            if stage == "close":
                hooks.forget(task)
        except (OSError, SpoolError) as fault:
            if isinstance(fault, FileSystemFault) or run.is_of_the_moment(fault):
                raise
            self._broke(work, str(fault))
            return
        self._next(work)

    # -- steps -------------------------------------------------------------------------------------

    def _next(self, work: Work) -> None:
        """Start the next step, or finish the stage."""
        if not work.left:
            self._finished(work)
            return
        if self.interrupting:
            self._end(work, {"what": "interrupted", "stage": work.stage})
            return
        work.step = work.left.popleft()
        try:
            self._spawn(work, work.step)
        except (OSError, SpoolError) as fault:
            if isinstance(fault, OSError) and fault.errno in run.SHORT:
                work.left.appendleft(work.step)
                self._off(work, str(faults.explained(fault, work.running.task.path)), 0.0)
                self._pause(fault)
                return
            why = f"{work.step.name}: cannot start: {fault}"
            self._failed(work, why)

    def _spawn(self, work: Work, step: Step) -> None:
        task = work.running.task
        words = hooks.words(self.tree, task, step)
        environment = hooks.environment(self.base, self.tree, task, work.stage)
        program = run.find_program(words[0], environment.get("PATH", os.defpath))
        log = run.open_fresh(f"{task.path}/{step.log}")
        read_end, write_end = os.pipe2(os.O_CLOEXEC) if step.carries else (-1, -1)
        outputs = (self.no_input, write_end if step.carries else log, log)
        try:
            order = Order(program, words, environment, task.path, outputs, ())
            pid = self.spawner.start(order, hurried=False)
        except OSError:
            if step.carries:
                os.close(read_end)
            raise
        finally:
            os.close(log)
            if step.carries:
                os.close(write_end)
        limit_s = math.inf if step.carries else units.duration(task.manifest.hook_limit) or math.inf
        work.said, work.limit_at, work.kill_at = read_end, clock.now() + limit_s, math.inf
        work.running.pid, work.stopping = pid, ""
        self.works[pid] = work
        self.guard.started(pid)

    def _stop(self, work: Work, why: str) -> None:
        """Ask a step to end; it is killed when its grace is over."""
        if work.stopping in ("cancelled", "interrupted"):
            return
        work.stopping, work.kill_at = why, clock.now() + GRACE_S
        work.limit_at = math.inf
        self._signal(work, signal.SIGTERM)

    def _signal(self, work: Work, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(work.running.pid, number)

    def _enforce(self, now: float) -> None:
        for work in self.works.values():
            if now >= work.kill_at:
                self._signal(work, signal.SIGKILL)
                work.kill_at = now + TICK_S
            elif now >= work.limit_at:
                self._stop(work, "limit")

    def _reap(self) -> None:
        """Collect every child that has ended, and go on with its task."""
        for work, status in list(self._reaped()):
            self.busy_at = clock.now()
            self._step_ended(work, status)

    def _reaped(self) -> Iterator[tuple[Work, int]]:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if (work := self.works.get(found.si_pid)) is None:
                os.waitpid(found.si_pid, os.WNOHANG)
                if found.si_pid == self.guard.pid:
                    self._replace_guard()
                continue
            running = {pid: one.id for pid, one in self.works.items()}
            if not self.children.end_task(work.id, found.si_pid, running):
                self.log(f"{work.id}: left a process that cannot be killed")
            _, status = os.waitpid(found.si_pid, 0)
            del self.works[found.si_pid]
            self.guard.ended(found.si_pid)
            yield work, status

    def _replace_guard(self) -> None:
        self.log("the guard was killed; starting another")
        self.children.ours.discard(self.guard.pid)
        self.guard.close()
        self.guard = self._new_guard()
        for pid in self.works:
            self.guard.started(pid)

    # -- ends --------------------------------------------------------------------------------------

    def _step_ended(self, work: Work, status: int) -> None:
        step, told = work.step, ""
        assert step is not None
        if step.carries:
            told = os.read(work.said, 65536).decode(errors="replace")
            os.close(work.said)
            work.said = -1
        if work.stopping == "cancelled":
            self._end(work, {"what": "cancelled", **work.request})
        elif work.stopping == "interrupted":
            self._end(work, {"what": "interrupted", "stage": work.stage})
        elif step.carries and status:
            later = os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == LATER
            why = f"{step.name}: {told or hooks.failure(step, status, '', '')}"
            tries = work.running.task.story.stage_tries
            delay_s = min(LATER_S * 2.0 ** min(tries, 20), LONGEST_LATER_S)
            self._off(work, why, delay_s) if later else self._broke(work, why)
        else:
            self._hook_ended(work, step, status)

    def _hook_ended(self, work: Work, step: Step, status: int) -> None:
        limit = units.print_duration(units.duration(work.running.task.manifest.hook_limit))
        stopped = f"stopped at its limit of {limit}" if work.stopping == "limit" else ""
        log = f"{work.running.task.path}/{step.log}"
        if why := hooks.failure(step, status, stopped, log):
            self._failed(work, why)
        else:
            self._next(work)

    def _failed(self, work: Work, why: str) -> None:
        """A step did not succeed: the stage failed, but of a handler it is its word."""
        if work.step is not None and work.step.name.startswith("on_"):
            self._decided(work, why)
        else:
            self._broke(work, why)

    def _finished(self, work: Work) -> None:
        if work.step is not None and work.step.name.startswith("on_"):
            self._decided(work, "")
        elif work.stage == "prepare":
            self._end(work, {"what": "prepared", "attempt": work.running.task.story.attempt + 1})
        else:
            self._end(work, {"what": "closed"})

    def _decided(self, work: Work, failed: str) -> None:
        assert work.step is not None
        told = hooks.decision(self.tree, work.running.task, work.step.name, failed)
        with suppress(OSError):
            hooks.forget(work.running.task)
        self._end(work, {"what": "decided", **told})

    def _broke(self, work: Work, why: str) -> None:
        self._end(work, {"what": "broke", "stage": work.stage, "reason": claim.printable(why)})

    def _off(self, work: Work, why: str, delay_s: float) -> None:
        """Put a stage off: it may work later."""
        event = {"what": "queued", "stage": work.stage, "reason": "staging failed for now"}
        until = units.stamp(time.time() + delay_s)
        self._end(work, {**event, "why": claim.printable(why), "until": until})

    def _end(self, work: Work, event: dict[str, Any]) -> None:
        elapsed = round(clock.now() - work.running.started_at, 3)
        told = {"owner": self.owner.name, "elapsed_s": elapsed}
        work.events = [{"time": units.now_stamp(), **event, **told}]
        self.ended.append(work)

    def _record_ends(self) -> None:
        """Write how stages ended; on a full disk, later."""
        while self.ended:
            work = self.ended[0]
            try:
                self._forgive(work)
                place = ending.written(self.owner, work.running, list(work.events))
            except (FileSystemFault, OSError) as fault:
                if not faults.is_of_one(fault):
                    raise
                self.ended.popleft()
                self.log(f"{work.id}: its end cannot be written, so it stays: {fault}")
                continue
            self.ended.popleft()
            self.counts[place.state] += 1
            line = {**work.events[0], "id": work.id, "state": place.state, "group": place.group}
            self.journal.add(history.encode({**line, "stage": work.stage}))
            self.batch.add(work.id, place)

    def _forgive(self, work: Work) -> None:
        """A handler's retry of a chunk is for its elements: those that failed run again."""
        task = work.running.task
        if task.manifest.array and work.events[0].get("verdict") == "retry":
            elements.ask_again(task.path, None)

    # -- requests ----------------------------------------------------------------------------------

    def _answer(self, verb: str, task_id: str, said: dict[str, Any]) -> None:
        if verb in asked.OF_OURSELVES:
            self._heed(signal.SIGINT if verb == "drain" else signal.SIGTERM)
            return
        work = next((one for one in self.works.values() if one.id == task_id), None)
        if work is None:
            return
        task = work.running.task
        try:
            if verb == "cancel":
                work.request = {key: said[key] for key in ("by", "host", "reason") if key in said}
                self._stop(work, "cancelled")
            elif verb == "change":
                asked.change(self.owner, task, said)
            else:
                event = {**said, "time": units.now_stamp(), "what": verb}
                claim.write_line(self.owner, task, event, sync=True)
        except (ManifestError, FileNotFoundError) as fault:
            self.log(f"{task_id}: {verb} was not possible: {fault}")
