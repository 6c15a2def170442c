"""loop - the service: looks around and decides, again and again, until it is told to stop.

Owns   one service from its first heartbeat to its last: its lease, its post, its stager.
Never  runs a task.
Fails  SpoolError: the post is another's, or spool.toml is wrong. LeaseLost: we were taken over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from spool import config, units
from spool.config import Settings
from spool.errors import FileSystemFault, SpoolError
from spool.queue import allocations, files, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.lookout import DOOR_S, Lookout
from spool.queue.owner import Owner
from spool.queue.takeover import Observer
from spool.service import policy, post
from spool.service.deciding import Decider, Report
from spool.service.policy import ServiceSettings
from spool.service.system import BatchSystem, Unreachable
from spool.service.systems import find
from spool.service.terms import NodeShape, Policy

T = TypeVar("T")
TICK_S = 1.0
BEAT_WITHIN_S = 1.0
SOON_S = 5.0  # between two decisions, where a lane came that was not there
STAGER_IDLE = "30s"
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def system_of(tree: Tree, settings: ServiceSettings) -> BatchSystem:
    """The batch system that spool.toml names, or the one that is here. Raises SpoolError."""
    nodes, node = _played(settings.policy)
    folder = tree.allocation(f"{layout.LOCAL}{os.uname().nodename}")
    return find(settings.system, folder=folder, nodes=nodes, node=node)


def _played(wanted: Policy) -> tuple[int, NodeShape | None]:
    """How many nodes this machine plays, and what of it each has, as [queues.local] says."""
    own = next((queue for queue in wanted.queues if queue.name in ("", "local")), None)
    if own is None:
        return 1, None
    most = max((band.max_nodes for band in own.bands), default=1)
    return most or 1, own.node if own.node.cores else None


class Service:
    """The service of one spool; `show` is told of each decision, `say` of all else."""

    def __init__(
        self,
        tree: Tree,
        settings: Settings,
        load: Callable[[], ServiceSettings],
        show: Callable[[Report], None],
        say: Callable[[str], None],
    ) -> None:
        """`load` reads spool.toml: at once, and again whenever that has changed."""
        self.tree, self.settings, self.load = tree, settings, load
        self.show, self.say = show, say
        self.mark = ""
        self._renew()
        self.stopped = threading.Event()
        self.stager: subprocess.Popen[bytes] | None = None
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="service")
        self.looking: Future[None] | None = None
        self.complaint = ""
        self.decided_at = 0.0
        self.lanes: set[str] = set()

    def _renew(self) -> None:
        """Take spool.toml and the template as they are now. Raises SpoolError."""
        wanted = self.load()
        system = system_of(self.tree, wanted)
        decider = Decider(self.tree, wanted, system, self._may_ask)
        self.wanted, self.system, self.decider, self.mark = wanted, system, decider, decider.mark

    def _may_ask(self) -> bool:
        return post.is_ours(self.owner)

    # -- from the first heartbeat to the last ----------------------------------------------------

    def run(self, *, once: bool = False) -> None:
        """Look after the spool until SIGTERM or Ctrl-C; or `once`. Raises SpoolError, LeaseLost."""
        old = {number: signal.signal(number, self._stop) for number in self._heeded()}
        try:
            self._open(one_shot=once)
            try:
                if once:
                    self._look_to_the_end()
                    self._decide()
                else:
                    while not self.stopped.wait(TICK_S):
                        self._calm_turn()
            finally:
                self._close()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @staticmethod
    def _heeded() -> list[signal.Signals]:
        """Not blocked but handled: what we start would inherit the mask."""
        return [one for one in STOP if signal.getsignal(one) is not signal.SIG_IGN]  # nohup(1)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped.set()

    def _open(self, *, one_shot: bool) -> None:
        self.owner = Owner.start(self.tree, self.settings, "service", system=self.system.name)
        self.lookout = Lookout(
            self.owner,
            config.trusted_users(),
            self.say,
            self._is_over,
            everyone=True,
            one_shot=one_shot,
        )
        # Whoever is started again and again is a one-shot too until it has the post.
        observer = Observer(self.owner, over=self._is_over, one_shot=True)
        holder = self.owner.name
        try:
            holder = post.take(self.owner, observer.verdict)
        finally:
            if holder:
                self.owner.end()
        if holder:
            raise SpoolError(self._taken(holder))

    def _taken(self, holder: str) -> str:
        silent = units.print_duration(int(self.settings.lease_dead_s))
        return (
            f"{self.tree.root} has its service already: {holder}. If that host is gone, start"
            f" another now and then: at the third look, its heartbeat silent for {silent}, the"
            " post is free"
        )

    def _close(self) -> None:
        self.pool.shutdown(wait=True)
        try:
            post.release(self.owner)
        finally:
            self.owner.end()

    def _calm_turn(self) -> None:
        """A turn; where the file system fails it is said, and tried again."""
        try:
            self._turn()
        except (FileSystemFault, OSError) as fault:
            kind = f"{type(fault).__name__} {getattr(fault, 'errno', '')}"
            if kind != self.complaint:
                self.say(f"{fault}; later again")
            self.complaint = kind

    def _is_over(self, system: str, job: str) -> bool | None:
        """The batch system's word on a launcher's allocation that is none of ours."""
        if system != self.system.name:
            return None
        try:
            found = self.system.jobs(allocations.prefix(self.tree), [job]).get(job)
        except Unreachable:
            return None
        return None if found is None else found.state == "ended"

    def _turn(self) -> None:
        self.owner.beat_if_due()
        self._look_around()
        if self._is_due():
            self._decide()

    def _is_due(self) -> bool:
        """When the interval is over; or a little after a lane came that was not there; but later
        where the batch system gave no answer."""
        past_s = time.monotonic() - self.decided_at
        if self.decided_at and past_s < self.decider.rest_s:
            return False
        if not self.decided_at or past_s >= self.wanted.interval_s:
            return True
        if past_s < min(SOON_S, self.wanted.interval_s):
            return False
        return not set(files.names(self.tree.state(State.READY))) <= self.lanes

    def _decide(self) -> None:
        self.decided_at = time.monotonic()
        self.lanes = set(files.names(self.tree.state(State.READY)))
        self._heed_changes()
        report = self._beside(self.decider.step)
        self.complaint = ""
        self.show(report)
        if report.staged:
            self._mind_stagers()

    def _heed_changes(self) -> None:
        """Where spool.toml or the template was changed go by it, if it is any good."""
        mark = policy.mark(self.tree.root, self.wanted.template)
        if mark == self.mark:
            return
        try:
            self._renew()
        except SpoolError as fault:
            self.mark = mark
            self.say(f"{fault}. Until that is mended the settings from before hold")
        else:
            self.say("spool.toml has changed: the new settings hold from now on")

    def _beside(self, work: Callable[[], T]) -> T:
        """Do it in a thread: a batch system may take its time, and the lease must be kept."""
        doing = self.pool.submit(work)
        while not wait([doing], BEAT_WITHIN_S).done:
            self.owner.beat_if_due()
        return doing.result()

    # -- beside the decisions --------------------------------------------------------------------

    def _look_around(self) -> None:
        """Admit, take over, release: beside the loop, for hashing an arrival may take long."""
        if self.looking is not None:
            if not self.looking.done():
                return
            done, self.looking = self.looking, None
            done.result()
        self.looking = self.pool.submit(self.lookout.look)

    def _look_to_the_end(self) -> None:
        """One look around; arrivals that may be complete are waited for until they were quiet."""
        door, quiet_s = self.lookout.door, self.settings.door_quiet_s
        until = time.monotonic() + quiet_s + DOOR_S
        try:
            self._beside(self.lookout.look)
            while (door.under_way or door.holding) and time.monotonic() < until:
                if self.stopped.wait(min(TICK_S, quiet_s / 4)):
                    return
                self._beside(self.lookout.look)
        except (FileSystemFault, OSError) as fault:
            self.say(f"looking around failed: {fault}")

    def _mind_stagers(self) -> None:
        """Start a stager where lanes wait for one and none is at work on this host."""
        if not self.wanted.stagers or (self.stager is not None and self.stager.poll() is None):
            return
        host = f"stager.{os.uname().nodename}."
        if any(name.startswith(host) for name in tasks.groups(self.tree, State.RUNNING)):
            return
        command = [sys.executable, "-P", "-m", "spool.cli", "--spool", self.tree.root, "launcher"]
        quiet = subprocess.DEVNULL
        self.stager = subprocess.Popen(
            [*command, "--stage", "--quiet", "--idle-timeout", STAGER_IDLE],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,  # it ends by itself, whatever becomes of us
        )
