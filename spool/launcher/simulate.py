"""simulate - a launcher that really claims, places, records and moves, but runs nothing.

Owns   virtual nodes, and how long a task on them would take.
Never  charges the launcher's time for what the nodes of a real one would do themselves.

Time is virtual (clock.py): it runs while the launcher works and jumps over its waits, so what is
measured is the leader of a launcher of any size, on any machine. A task lasts as long as its time
estimate, give or take `spread`, by its id; a latency is charged for each metadata operation of the
leader, one after the other, as by a server that serialises renames.
"""

from __future__ import annotations

import heapq
import math
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spool import units
from spool.errors import SpoolError
from spool.launcher import clock
from spool.launcher.book import Grants
from spool.launcher.crew import Report, Started
from spool.launcher.field import Field
from spool.launcher.nodes import Node
from spool.queue import files, history, layout
from spool.queue.layout import State
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.shape import Shape, lane

LASTS_S = 1.0  # a task that has no time estimate
CHARGED = frozenset(
    ["rename", "mkdir", "rmdir", "list", "create", "open", "unlink", "link", "stat", "chmod"]
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is simulated. latency_s is that of one metadata operation."""

    nodes: int = 1
    cores: int = 64
    gpus: int = 0
    memory_mb: int = 0
    latency_s: float = 0.0
    spread: float = 0.2


def scene_of(text: str) -> Scene:
    """What nodes=1024,cores=64,latency=0.001 means. Raises SpoolError."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, mark, value = part.strip().partition("=")
        if not mark or name not in _READ:
            allowed = ", ".join(_READ)
            raise SpoolError(f"--simulate {text}: {part!r} means nothing; there is {allowed}")
        field, read = _READ[name]
        try:
            found[field] = read(value)
        except ValueError as fault:
            raise SpoolError(f"--simulate {text}: {name}: {fault}") from None
    return Scene(**found)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise ValueError(f"expected a number from 1 to 1000000, got {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number < 1:
        raise ValueError(f"expected 0 to 0.99 or a percentage, got {text!r}")
    return number


_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "nodes": ("nodes", _count),
    "cores": ("cores", _count),
    "gpus": ("gpus", _count),
    "memory": ("memory_mb", units.memory),
    "latency": ("latency_s", units.duration),
    "spread": ("spread", _fraction),
}


def field_of(text: str) -> Field:
    """The nodes of a simulation. Raises SpoolError."""
    scene = scene_of(text)
    gpus = tuple(map(str, range(scene.gpus)))
    node = Node(tuple(range(scene.cores)), gpus, scene.memory_mb or 2**20)
    return Field([node] * scene.nodes, crew=lambda owner: Simulated(owner, scene))


@dataclass(slots=True)
class Virtual:
    """A task that does not run."""

    id: str
    shape: Shape
    grants: Grants
    started: float
    lasts_s: float
    started_at: float
    end: dict[str, Any] | None = None  # it has none
    stopped: str = ""

    @property
    def task(self) -> Virtual:
        """Itself: all that is known of its task is its id."""
        return self


class Simulated:
    """Stands for the crews of all nodes: crew.py's Crew, as far as a launcher uses it.

    operations counts the metadata operations of the leader's own thread.
    """

    durable = True
    mpiruns = 0
    longest_grace_s = 0.0
    hurried = awaited = False

    def __init__(self, owner: Owner, scene: Scene) -> None:
        self.owner, self.scene = owner, scene
        self.running: dict[str, Virtual] = {}
        self.read: dict[str, object] = {}
        self.ended: deque[Virtual] = deque()
        self.stops = self.starter = self
        self.operations = 0
        self._ends: list[tuple[float, str]] = []
        self._leader = threading.get_ident()
        self.begun, self.begun_cpu_s, self.theirs_s = clock.now(), time.thread_time(), 0.0
        files.watch(self._charge)

    def _charge(self, when: str, operation: str, _arguments: tuple[Any, ...]) -> None:
        ours = when == "before" and threading.get_ident() == self._leader
        if ours and operation in CHARGED:
            self.operations += 1
            clock.jump(self.scene.latency_s)

    def start(self, task_id: str, shape: Shape, grants: Grants) -> Started:
        """Begin a task that lasts as long as it says."""
        lasts = random.Random(task_id).uniform(1 - self.scene.spread, 1 + self.scene.spread)
        lasts *= shape.time_s or LASTS_S
        began = clock.now()
        self.running[task_id] = Virtual(task_id, shape, grants, clock.epoch(), lasts, began)
        heapq.heappush(self._ends, (began + lasts, task_id))
        return Started.RUNS

    def reap(self, others: Callable[[int, int], object]) -> Iterator[Virtual]:
        """Those whose time has come."""
        now = clock.now()
        while self._ends and self._ends[0][0] <= now:
            one = self.running.pop(heapq.heappop(self._ends)[1])
            self.ended.append(one)
            yield one

    def reports(self, settled: Callable[[str], bool]) -> Iterator[Report]:
        """Write their lines, as their nodes would, at no charge for the leader."""
        while self.ended:
            one, operations, jumped = self.ended.popleft(), self.operations, clock.ahead()
            with clock.uncharged():
                begun = time.thread_time()
                report = self._record(one)
                clock.jump(jumped - clock.ahead())
                self.theirs_s += time.thread_time() - begun
            self.operations = operations
            yield report

    def _record(self, one: Virtual) -> Report:
        attempt = {"attempt": 1, "owner": self.owner.name, "simulated": True}
        start = {"time": units.stamp(one.started), "what": "start", **attempt}
        start["node"] = str(one.grants[0].node)
        lasted = clock.epoch() - one.started if one.stopped else one.lasts_s
        told = {"time": units.stamp(one.started + lasted), "what": one.stopped or "exit", **attempt}
        told["elapsed_s"] = round(lasted, 3)
        shard = layout.shard_of(one.id)
        place = Place(State.FINISHED, shard)
        if one.stopped:
            place = Place(State.READY, lane(one.shape, shard))
        else:
            told["code"] = 0
        if not one.stopped:  # else it goes back as if it had never begun
            path = f"{self.owner.claim_path(one.id)}/{layout.HISTORY}"
            files.append(path, history.encode(start) + history.encode(told), heal=False)
        line = {**told, "id": one.id, "state": place.state, "group": place.group}
        line |= {"started": start["time"], "nodes": len(one.grants)}
        line["cores"] = sum(len(grant.cpus) for grant in one.grants)
        return Report(one.id, place, history.encode(line))

    def told(self) -> dict[str, float]:
        """What was measured: virtual seconds, the leader's CPU seconds and metadata operations."""
        return {
            "virtual_s": round(clock.now() - self.begun, 3),
            "leader_cpu_s": round(time.thread_time() - self.begun_cpu_s - self.theirs_s, 3),
            "operations": self.operations,
        }

    @property
    def busy(self) -> int:
        """Tasks that run."""
        return len(self.running)

    @property
    def due_at(self) -> float:
        """When the next one ends."""
        return self._ends[0][0] if self._ends else math.inf

    def sleep(self, signals: set[signal.Signals], wait_s: float) -> signal.struct_siginfo | None:
        """Let virtual time pass, unless a real signal has come."""
        got = signal.sigtimedwait(signals, 0)
        if got is None:
            clock.jump(wait_s)
        return got

    def stop_all(self, why: str) -> None:
        """All that was begun ends now."""
        for one in self.running.values():
            one.stopped = why
        self._ends = [(0.0, task_id) for task_id in self.running]

    def mind(self, now: float) -> None:
        """Nothing has a limit."""

    def beat(self) -> None:
        """There is no guard."""

    def drain(self) -> None:
        """Nothing runs that could be told."""

    def answer(self, verb: str, task_id: str, said: dict[str, Any]) -> str | None:
        """Why a request cannot be met; None: the task is not here."""
        return "it is only simulated" if task_id in self.running else None

    def settle(self, verb: str, task_id: str, said: dict[str, Any]) -> str:
        """Why a request cannot be met."""
        return "it is only simulated"

    def kill_everything(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is charged any more."""
        self.measured = self.told()
        files.watch(None)
