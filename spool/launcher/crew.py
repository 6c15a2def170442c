"""crew - the tasks of one node: started, stopped, reaped, and their ends written down.

Owns   the children of this process, its guard, the lines from a task's start to its end.
Never  claims, and never moves a task that ran: it reports where each belongs.
Fails  LeaseLost: our tasks were taken over. DiskFull, OSError: what was to be done can be tried
       again later; what runs goes on.

The launcher's own node and every other rank have one crew each, all under the launcher's name.
"""

from __future__ import annotations

import math
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from spool.errors import FileSystemFault, ManifestError
from spool.launcher import asked, chunks, clock, ending, mpirun, run
from spool.launcher.book import Grants
from spool.launcher.children import Children, become_subreaper
from spool.launcher.guard import Guard
from spool.launcher.run import Running, Starter
from spool.launcher.stopping import Stops
from spool.launcher.zygote import Zygotes
from spool.queue import claim, faults, history, layout, manifest, processes
from spool.queue import shape as shapes
from spool.queue.layout import State
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.shape import Shape
from spool.queue.tasks import Task

HOLD_S, LONG_S = 2.0, 60.0
KILLED = (signal.SIGKILL, signal.SIGTERM)
"""What ends a task from outside. A batch system that ends an allocation kills its processes one by
one, and a task's may be the first: whoever is killed in an allocation is not yet a failure."""


class Started(Enum):
    """What became of a start: it runs, it could not and that is its end, or it is not ours."""

    RUNS = "runs"
    ENDED = "ended"
    GONE = "gone"


class Report(NamedTuple):
    """How a task ended: where it belongs, and what the journal is to say of it."""

    task_id: str
    place: Place
    line: bytes


class Crew:
    """Runs tasks here for one owner; mpiruns says how many of them are mpiruns.

    read holds claimed tasks that were read, and found to belong here, since they are ours.
    `node` tells its guard which processes are its own, where
    several crews of one owner share a process table; "" where they do not."""

    measured: Mapping[str, float] = {}
    durable = False
    """Whether what is reported is on the disk already."""

    def __init__(
        self,
        owner: Owner,
        starter: Starter,
        trusted: frozenset[int],
        log: Callable[[str], None],
        node: str = "",
    ) -> None:
        become_subreaper()
        self.owner, self.starter, self.trusted, self.log = owner, starter, trusted, log
        self.node = node
        self.running: dict[int, Running] = {}
        self.stops = Stops(self.running)
        self.ended: deque[Running] = deque()
        self.children = Children()
        starter.zygotes = self.zygotes = Zygotes(starter.base, self.children.ours)
        self.peak_kb = run.own_peak_kb()
        self.told_beat = 0.0
        self.mpiruns = 0
        self.read: dict[str, Task] = {}
        self.hold_s = HOLD_S if owner.record.get("allocation") else 0.0
        self.doubtful: deque[tuple[float, Running]] = deque()
        self.guard = self._new_guard()

    def _new_guard(self) -> Guard:
        guard = Guard(self.owner.name, self.owner.settings.lease_fence_s, self.node)
        self.children.ours.add(guard.pid)
        return guard

    # -- starts ----------------------------------------------------------------------------------

    def start(self, task_id: str, shape: Shape, grants: Grants) -> Started:
        """Start a claimed task; GONE too if it stays where it is, for `check` to find.

        Raises FileSystemFault, OSError: the machine or the disk refuses for now.
        """
        task = self.read.pop(task_id, None) or self._admissible(task_id, shape)
        if task is None:
            return Started.GONE
        try:
            running = self.starter.start(task, shape, grants)
        except FileNotFoundError:
            self.log(f"{task_id}: vanished before its start")
            return Started.GONE
        except (FileSystemFault, OSError) as fault:
            if not faults.is_of_one(fault):
                raise
            self.log(f"{task_id}: cannot be started, so it stays: {fault}")
            return Started.GONE
        if not running.pid:
            self.ended.append(running)
            return Started.ENDED
        self.running[running.pid] = running
        self.mpiruns += shape.mpi
        self.guard.started(running.pid)
        self.stops.watch(running)
        return Started.RUNS

    def _admissible(self, task_id: str, shape: Shape) -> Task | None:
        """A claimed task as read, if it is to be run as its lane says; else it is sent on."""
        if layout.parse_id(task_id) is None:
            claim.reject(self.owner, task_id, "bears no task id; drop it into CREATED instead")
            return None
        task = claim.read_claim(self.owner, task_id, self.trusted)
        if task is None:
            return None
        place = claim.place_of(self.owner.tree, task, clock.epoch())
        belongs = place.state is State.READY and shapes.parse(place.group)[0].stage == "run"
        if belongs and manifest.wanted_shape(task.manifest).within(shape):
            return task
        claim.settle(self.owner, task)  # its lane said less than its manifest asks for
        return None

    # -- ends ------------------------------------------------------------------------------------

    def reap(self, others: Callable[[int, int], object]) -> Iterator[Running]:
        """Collect every child that has ended; of those that are no task, `others(pid, status)`."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if (running := self.running.get(found.si_pid)) is not None:
                self._collect(running)
                yield running
                continue
            _, status = os.waitpid(found.si_pid, os.WNOHANG)  # an orphan, a hand, or the guard
            if found.si_pid == self.guard.pid:
                self._replace_guard()
            elif self.zygotes.ended(found.si_pid):
                self.log("a zygote ended; the next Python task starts another")
            others(found.si_pid, status)

    def _replace_guard(self) -> None:
        self.log("the guard was killed; starting another")
        self.children.ours.discard(self.guard.pid)
        self.guard.close()
        self.guard = self._new_guard()
        for pid in self.running:
            self.guard.started(pid)

    def _collect(self, running: Running) -> None:
        """One task's first process has ended: kill what it left, tell its end."""
        if self.children.orphans(self.running):
            tasks = {pid: one.task.id for pid, one in self.running.items()}
            if not self.children.end_task(running.task.id, running.pid, tasks):
                self.log(f"{running.task.id}: left a process that cannot be killed")
        _, status, used = os.wait4(running.pid, 0)
        if running.shape.mpi and status and not processes.kill_task(running.task.id):
            self.log(f"{running.task.id}: left a rank that cannot be killed")
        del self.running[running.pid]
        self.mpiruns -= running.shape.mpi
        self.guard.ended(running.pid)
        array = bool(running.task.manifest.array)
        short = chunks.cut_short(running, status) if array and not running.stopping else ""
        if short or running.stopping == "interrupted" or self._was_fenced(status):
            what = running.stopping or short or "lost"
            running.end = {**run.exit_event(running, self.owner.name), "what": what}
        elif running.shape.mpi and status and (why := mpirun.refused(run.said_last(running))):
            said = {"what": "interrupted", "reason": f"no rank began: {why}"}
            running.end = {**run.exit_event(running, self.owner.name), **said}
        else:
            running.end = run.ended(running, self.owner.name, status, used, self.peak_kb)
        if array:
            running.end["elements"] = chunks.counts(running)
        if self.hold_s and running.end["what"] == "exit" and _was_killed(running):
            self.doubtful.append((clock.now() + self.hold_s, running))
        else:
            self.ended.append(running)

    def _was_fenced(self, status: int) -> bool:
        """Whether our own guard may have killed a task, since we were stalled too long to beat."""
        silent = clock.now() - self.owner.last_beat >= self.owner.settings.lease_fence_s
        return silent and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def reports(self, settled: Callable[[str], bool] = lambda _: True) -> Iterator[Report]:
        """Write how tasks ended, one after the other; on a full disk the rest waits.

        What is not `settled`, since something of it may live on elsewhere, waits too.
        Raises FileSystemFault, OSError.
        """
        for _ in range(len(self.ended)):
            running = self.ended[0]
            if not settled(running.task.id):
                self.ended.rotate(-1)
                continue
            try:
                place = ending.record(self.owner, running)
            except (FileSystemFault, OSError) as fault:
                if not faults.is_of_one(fault):
                    raise
                self.ended.popleft()
                self.log(f"{running.task.id}: its end cannot be written, so it stays: {fault}")
                continue
            self.ended.popleft()
            line = ending.journal_line(running, place, self.owner.name)
            yield Report(running.task.id, place, history.encode(line))

    # -- now and then ----------------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When `mind` has something to do."""
        doubt_at = self.doubtful[0][0] if self.doubtful else math.inf
        return min(self.stops.due_at, self.guard.tell_at, doubt_at)

    @property
    def awaited(self) -> bool:
        """Whether tasks came here that somebody waits for, call by call: more may come any time."""
        return bool(self.zygotes.known)

    @property
    def busy(self) -> int:
        """Tasks that run, or whose end is still in doubt."""
        return len(self.running) + len(self.doubtful)

    def mind(self, now: float) -> None:
        """Stop what has reached a limit; tell the guard what began."""
        if now >= self.stops.due_at:
            self.stops.enforce(now)
        if now >= self.guard.tell_at:
            self.guard.tell()
        while self.doubtful and now >= self.doubtful[0][0]:
            self.ended.append(self.doubtful.popleft()[1])

    def beat(self) -> None:
        """Pass our owner's last beat on to the guard, and look how much memory we use."""
        self.peak_kb = run.own_peak_kb()
        if self.owner.last_beat > self.told_beat:  # a takeover beats too, beside the loop
            self.told_beat = self.owner.last_beat
            self.guard.beat()

    def sleep(self, signals: set[signal.Signals], wait_s: float) -> signal.struct_siginfo | None:
        """Wait for a signal."""
        return signal.sigtimedwait(signals, wait_s)

    def doubt(self) -> None:
        """We were told to end ourselves: what was killed about now was no failure of its own."""
        self.hold_s = LONG_S
        until = clock.now() + LONG_S
        self.doubtful = deque((until, running) for _, running in self.doubtful)

    def stop_all(self, why: str) -> None:
        """Ask all tasks to end that were not asked before."""
        self.stops.stop_all(why)
        for _, running in self.doubtful:  # they were told to end a little before we were
            running.end = {**run.exit_event(running, self.owner.name), "what": why}
            self.ended.append(running)
        self.doubtful.clear()

    def drain(self) -> None:
        """Let the chunks of arrays that run start no more of their elements."""
        for running in self.running.values():
            if running.task.manifest.array and not running.stopping:
                chunks.drain(running)

    def answer(self, verb: str, task_id: str, said: dict[str, Any]) -> str | None:
        """Do what was asked of a task that runs; why it was not possible. None: it is not here."""
        for running in self.running.values():
            if running.task.id == task_id:
                return asked.of_running(self.owner, self.stops, verb, running, said)
        return None

    def settle(self, verb: str, task_id: str, said: dict[str, Any]) -> str:
        """Do what was asked of a claimed task that has not started, and send it on."""
        self.read.pop(task_id, None)
        try:
            task = claim.read_claim(self.owner, task_id, self.trusted)
        except ManifestError as fault:
            return str(fault)
        return "" if task is None else asked.settle_claimed(self.owner, verb, task, said)

    def kill_everything(self) -> None:
        """Our tasks are no longer ours: none of their processes may live on."""
        processes.kill_marked(self.owner.name, set(self.running), node=self.node)
        self.guard.end()

    def close(self) -> None:
        """No task is left."""
        self.zygotes.close()
        self.guard.end()


def _was_killed(running: Running) -> bool:
    """Whether a task was killed by somebody else: itself, or the ranks of its mpirun."""
    if running.stopping or running.end is None:
        return False
    told = running.end.get("signal") or running.end.get("code", 0) - 128
    return told in KILLED
