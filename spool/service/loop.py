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
from concurrent.futures import Future, ThreadPoolExecutor

from spool import config, units
from spool.config import Settings
from spool.errors import FileSystemFault, SpoolError
from spool.queue import allocations, files, tasks
from spool.queue.layout import State, Tree
from spool.queue.lookout import Lookout
from spool.queue.owner import Owner
from spool.service import post
from spool.service.deciding import Decider, Report
from spool.service.policy import ServiceSettings
from spool.service.system import BatchSystem, Unreachable
from spool.service.systems import find
from spool.service.terms import NodeShape, Policy

TICK_S = 1.0
SOON_S = 5.0  # between two decisions, where a lane came that was not there
STAGER_IDLE = "30s"
LOCAL = "local@"
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def system_of(tree: Tree, settings: ServiceSettings) -> BatchSystem:
    """The batch system that spool.toml names, or the one that is here. Raises SpoolError."""
    nodes, node = _played(settings.policy)
    folder = allocations.path(tree, f"{LOCAL}{os.uname().nodename}")
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
        wanted: ServiceSettings,
        show: Callable[[Report], None],
        say: Callable[[str], None],
    ) -> None:
        self.tree, self.settings, self.wanted = tree, settings, wanted
        self.show, self.say = show, say
        self.system = system_of(tree, wanted)
        self.decider = Decider(tree, wanted, self.system, lambda: post.is_ours(self.owner))
        self.stopped = threading.Event()
        self.stager: subprocess.Popen[bytes] | None = None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="lookout")
        self.looking: Future[None] | None = None
        self.decided_at = 0.0
        self.lanes: set[str] = set()

    # -- from the first heartbeat to the last ----------------------------------------------------

    def run(self, *, once: bool = False) -> None:
        """Look after the spool until SIGTERM or Ctrl-C; or `once`. Raises SpoolError, LeaseLost."""
        old = {number: signal.signal(number, self._stop) for number in self._heeded()}
        try:
            self._open()
            try:
                if once:
                    self._look_to_the_end()
                    self._decide()
                else:
                    while not self.stopped.wait(TICK_S):
                        self._turn()
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

    def _open(self) -> None:
        self.owner = Owner.start(self.tree, self.settings, "service", system=self.system.name)
        trusted = config.trusted_users()
        self.lookout = Lookout(self.owner, trusted, self.say, self._is_over, everyone=True)
        if holder := post.take(self.owner, self.lookout.observer.verdict):
            self.owner.end()
            silent = units.print_duration(int(self.settings.lease_dead_s))
            raise SpoolError(
                f"{self.tree.root} has its service already: {holder}. Were that dead, its post"
                f" would be free {silent} after its last heartbeat"
            )

    def _close(self) -> None:
        self.pool.shutdown(wait=True)
        post.release(self.owner)
        self.owner.end()

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
        """When the interval is over; or a little after a lane came that was not there."""
        past_s = time.monotonic() - self.decided_at
        if not self.decided_at or past_s >= self.wanted.interval_s:
            return True
        if past_s < min(SOON_S, self.wanted.interval_s):
            return False
        return not set(files.names(self.tree.state(State.READY))) <= self.lanes

    def _decide(self) -> None:
        self.decided_at = time.monotonic()
        self.lanes = set(files.names(self.tree.state(State.READY)))
        report = self.decider.step()
        self.show(report)
        if report.staged:
            self._mind_stagers()

    # -- beside the decisions --------------------------------------------------------------------

    def _look_around(self) -> None:
        """Admit, take over, release: beside the loop, for hashing an arrival may take long."""
        if self.looking is not None:
            if not self.looking.done():
                return
            done, self.looking = self.looking, None
            try:
                done.result()
            except (FileSystemFault, OSError) as fault:
                self.say(f"looking around failed, later again: {fault}")
        self.looking = self.pool.submit(self.lookout.look)

    def _look_to_the_end(self) -> None:
        """One look around, waited for while the lease is kept."""
        looking = self.pool.submit(self.lookout.look)
        while not looking.done():
            self.owner.beat_if_due()
            time.sleep(0.002)
        looking.result()

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
