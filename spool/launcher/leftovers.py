"""leftovers - what was left on nodes where nothing of ours runs: killed there, and known as gone.

Owns   the programs that do so: one on a node at a time, started by srun, ssh or mpiexec.
Never  waits for one, but when the lease is lost. Never gives up a node before `dead_s` is over.

An mpirun that is killed may leave its ranks on other nodes, and where a launcher has no rank it has
no guard either. So what carries a mark is killed there before it may run again: a task's mark when
its mpirun ended badly, an owner's when it died and we are in the same allocation.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from spool.errors import SpoolError
from spool.launcher import clock, starting
from spool.launcher.run import clean_environment
from spool.queue import processes

TRY_S = 30.0
PAUSE_S, PAUSE_MOST_S = 2.0, 60.0
AT_ONCE = 64  # programs, each for one node
MARKS_MOST = 1000  # for one program: its words must fit a command line
NO_WAY = 255


@dataclass(slots=True)
class Node:
    """What is to be killed on one node, and how that goes.

    way is the words that start a program there, [] on this machine, None if nothing does. Times
    are seconds of the launcher's clock; failed says how often in a row there was no answer.
    """

    way: list[str] | None
    marks: dict[str, None] = field(default_factory=dict)
    at_work: tuple[str, ...] = ()
    pid: int = 0
    kill_at: float = 0.0
    again_at: float = 0.0
    failed: int = 0


class Leftovers:
    """Sweeps nodes by marks, NAME=VALUE each. `ours` are the pids of children that are no task."""

    def __init__(
        self,
        system: str,
        allocated: Sequence[str],
        dead_s: float,
        ours: set[int],
        log: Callable[[str], None],
    ) -> None:
        self.system, self.allocated, self.dead_s = system, allocated, dead_s
        self.ours, self.log = ours, log
        self.nodes: dict[str, Node] = {}
        self.left: dict[str, set[str]] = {}
        self.since: dict[str, float] = {}
        self.working: dict[int, str] = {}
        self.wanted: dict[str, None] = {}
        self.cleared: set[str] = set()

    # -- what is to be killed --------------------------------------------------------------------

    def of_task(self, task_id: str, hosts: Sequence[str]) -> None:
        """Kill what a task left on these nodes but our own, where its crew has done so."""
        if far := [host for host in hosts if self._node(host).way != []]:
            self._sweep(_task(task_id), far)

    def settled(self, task_id: str) -> bool:
        """Whether nothing of a task that has ended can be left."""
        return _task(task_id) not in self.left

    @property
    def unsettled(self) -> int:
        """Of how many tasks something may be left."""
        return sum(mark.startswith(f"{processes.TASK}=") for mark in self.left)

    def clear(self, owner: str) -> bool:
        """Kill what a dead owner left in our allocation; whether nothing of it is left by now.

        Called from another thread: the loop does the work.
        """
        mark = f"{processes.MARK}={owner}"
        if mark in self.cleared:
            return True
        self.wanted[mark] = None
        return False

    def _sweep(self, mark: str, hosts: Sequence[str]) -> None:
        self.left[mark], self.since[mark] = set(hosts), clock.now()
        for host in self.left[mark]:
            self._node(host).marks[mark] = None
        self._start_some(clock.now())

    def _node(self, host: str) -> Node:
        if host not in self.nodes:
            try:
                self.nodes[host] = Node(starting.on_node(self.system, host))
            except SpoolError as fault:
                self.log(str(fault))
                self.nodes[host] = Node(None)
        return self.nodes[host]

    # -- the programs that do it -----------------------------------------------------------------

    def beat(self, now: float) -> None:
        """Now and then: try again where there was no answer, and see what takes too long."""
        for mark in list(self.wanted):
            if mark not in self.left and mark not in self.cleared:
                self._sweep(mark, self.allocated)
        for host in self.working.values():
            if now >= self.nodes[host].kill_at:
                with suppress(ProcessLookupError):
                    os.killpg(self.nodes[host].pid, signal.SIGKILL)
        for mark in [mark for mark, since in self.since.items() if now - since >= self.dead_s]:
            self._give_up(mark)
        self._start_some(now)

    def _start_some(self, now: float) -> None:
        for host, node in self.nodes.items():
            if len(self.working) >= AT_ONCE:
                return
            if node.marks and not node.pid and now >= node.again_at:
                self._start(host, node, now)

    def _start(self, host: str, node: Node, now: float) -> None:
        node.at_work = tuple(node.marks)[:MARKS_MOST]
        if node.way is None:
            self._judge(host, NO_WAY)
            return
        try:
            node.pid = _spawn([*node.way, *sweeper(node.at_work)])
        except OSError as fault:  # no more processes, for now
            self.log(f"no program was started to sweep {host}: {fault}")
            self._judge(host, NO_WAY)
            return
        node.kill_at = now + TRY_S
        self.working[node.pid] = host
        self.ours.add(node.pid)

    def ended(self, pid: int, status: int) -> bool:
        """A child of ours has ended; whether it was one of these."""
        if (host := self.working.pop(pid, None)) is None:
            return False
        self.ours.discard(pid)
        self.nodes[host].pid = 0
        self._judge(host, status)
        self._start_some(clock.now())
        return True

    def _judge(self, host: str, status: int) -> None:
        """A node has answered, with 0 if all is gone; else ask it again a little later."""
        node = self.nodes[host]
        if status:
            pause_s = min(PAUSE_S * 2**node.failed, PAUSE_MOST_S)
            if not node.failed:
                self.log(f"{host}: what was left there is not known to be gone; trying again")
            node.failed, node.again_at = node.failed + 1, clock.now() + pause_s
            return
        node.failed = 0
        for mark in node.at_work:
            node.marks.pop(mark, None)
            if mark in self.left:
                self.left[mark].discard(host)
                if not self.left[mark]:
                    self._done(mark)

    def _done(self, mark: str) -> None:
        del self.left[mark], self.since[mark]
        if mark in self.wanted:
            self.cleared.add(mark)
            del self.wanted[mark]

    def _give_up(self, mark: str) -> None:
        """A node has not answered for so long that it counts as dead."""
        hosts = sorted(self.left[mark])
        self.log(f"{mark}: processes may live on at {', '.join(hosts)}: no answer for too long")
        for host in hosts:
            self.nodes[host].marks.pop(mark, None)
        self._done(mark)

    def abandon(self, owner: str, hosts: Sequence[str]) -> None:
        """Our lease is lost: kill all we have on these nodes, as far as they answer in time."""
        far = [host for host in hosts if self._node(host).way]
        if far:
            starting.run_on_each(self.system, far, sweeper([f"{processes.MARK}={owner}"]))


def _task(task_id: str) -> str:
    return f"{processes.TASK}={task_id}"


def sweeper(marks: Sequence[str]) -> list[str]:
    """The words of the program that kills what carries any of these marks."""
    return [sys.executable, "-I", "-S", processes.__file__, "--sweep", *marks]


def _spawn(words: list[str]) -> int:
    """Start a program with nothing to read or to say, in a group of its own."""
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    environment = clean_environment(dict(os.environ))
    return os.posix_spawnp(
        words[0], words, environment, file_actions=quiet, setsid=True, setsigmask=()
    )
