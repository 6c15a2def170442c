"""A campaign for the service: 300 mixed tasks in three bursts, and what must hold once it is over.

They last seconds, and allocations minutes: starts and ends of these take seconds on a busy machine.
Serial tasks, MPI tasks, wide ones, long ones that say too little of their time; some submitted,
some dropped at the door. The service alone brings them to FINISHED; it is killed on the way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from conftest import MPI_PROGRAM, eventually, where

from spool import Spool
from spool.queue import allocations, files, history, layout, tasks
from spool.queue.allocations import Closed
from spool.queue.layout import State, Tree

BURST = 100
LONG = "trap 'echo saved > checkpoint; exit 0' TERM; test -e checkpoint || sleep 600 & wait $!"
"""Ends only in its second attempt: the first is cut short by the walltime."""


class Service:
    """`spool service` as a process of its own, to be killed and started again."""

    def __init__(self, tree: Tree, around: Mapping[str, str]) -> None:
        self.tree, self.around = tree, dict(around)
        self.said = Path(tree.root).parent / "service.out"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "spool.cli", "--spool", self.tree.root, "service"]
        with open(self.said, "ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=self.around)

    def killed_and_started_again(self) -> None:
        """SIGKILL, at whatever it does just now."""
        assert self.process.poll() is None, self.said.read_text()
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stopped(self) -> str:
        """Ctrl-C; what it said from the first start on."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, self.said.read_text()
        return self.said.read_text()

    def kill(self) -> None:
        """At the end of a test, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def burst(spool: Spool, tree: Tree, number: int, long_ones: int) -> list[str]:
    """A hundred tasks: 70 serial ones, 14 MPI ones, 6 wide, the rest at the door; their ids."""
    ids = []
    for at in range(70 - long_ones):
        seconds = str(1 + at % 4)
        ids.append(spool.submit(["sleep", seconds], time_estimate="5s", name="serial").id)
    for _ in range(long_ones):
        ids.append(spool.submit(LONG, time_estimate="15s", grace="2s", name="long", priority=1).id)
    for at in range(14):
        wide = 1 + at % 2
        ids.append(
            spool.submit(
                ["sh", "-c", f"sleep 2; exec {' '.join(MPI_PROGRAM)}"],
                nodes=wide, ranks_per_node=2 // wide, time_estimate="15s", name="mpi",
            ).id
        )  # fmt: skip
    for _ in range(6):
        ids.append(spool.submit(["sleep", "4"], cores_per_rank=2, time_estimate="5s").id)
    for at in range(10):
        name = f"door{number}-{at}.26010100-aa-{'abcdefghij'[number]}{'abcdefghij'[at]}aaaaaaaa"
        _drop(tree, name, {"command": ["sleep", "2"], "time_estimate": "5s"})
        ids.append(name)
    assert len(ids) == BURST
    return ids


def _drop(tree: Tree, name: str, wanted: Mapping[str, object]) -> None:
    folder = Path(tree.state(State.CREATED), name)
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(wanted))


def all_finished(tree: Tree, ids: list[str]) -> bool:
    """Whether all lie in FINISHED."""
    done: set[str] = set()
    for shard in files.names(tree.state(State.FINISHED)):
        done.update(files.names(tree.group(State.FINISHED, shard)))
    return done.issuperset(ids)


def left(tree: Tree, ids: list[str]) -> str:
    """What is not finished, and all that was decided: for a failed test."""
    places = {task: where(tree, task) for task in ids}
    rest = [f"{task}: {place}" for task, place in places.items() if place[:9] != "FINISHED/"]
    said = Path(tree.root).parent / "service.out"
    outputs = [
        f"{name}: {(files.read(tree.allocation(name, 'output')) or b'').decode()[-1500:]}"
        for name in allocations.names(tree)
    ]
    return "\n".join([*rest[:20], f"{len(rest)} left", said.read_text()[-6000:], *outputs])


def run(
    tree: Tree,
    around: Mapping[str, str],
    *,
    long_ones: int,
    between_s: float,
    within: float,
    meanwhile: Callable[[int], object] = lambda number: None,
) -> list[Closed]:
    """The whole campaign; the ledger. meanwhile(burst) makes more trouble after each burst."""
    spool, ids, service = Spool(tree.root), [], Service(tree, around)
    try:
        for number in range(3):
            ids += burst(spool, tree, number, long_ones if number == 0 else 0)
            eventually(
                lambda: any(one.standing.job for one in allocations.live(tree)),
                "an allocation is asked for", 60,
            )  # fmt: skip
            if number < 2:
                service.killed_and_started_again()
            meanwhile(number)
            time.sleep(between_s)
        deadline = time.monotonic() + within
        while not all_finished(tree, ids):
            assert time.monotonic() < deadline, left(tree, ids)
            assert service.process.poll() is None, service.said.read_text()
            time.sleep(0.5)
        eventually(lambda: not list(allocations.live(tree)), "back to zero", 90)
        said = service.stopped()
    finally:
        service.kill()
    assert files.names(tree.state(State.READY)) == [], said
    for task in ids:
        spot = tasks.find(tree, task)
        assert spot is not None
        told = [event["what"] for event in history.events(_history(tree, spot))]
        assert told.count("start") == 1 + told.count("interrupted") + told.count("lost"), told
    return allocations.ledger(tree)


def _history(tree: Tree, spot: tasks.Spot) -> bytes:
    return files.read(f"{spot.path(tree)}/{layout.HISTORY}") or b""


def interrupted(tree: Tree) -> int:
    """How many finished tasks were interrupted on the way."""
    count = 0
    for spot in tasks.spots(tree, (State.FINISHED,)):
        told = [event["what"] for event in history.events(_history(tree, spot))]
        count += "interrupted" in told
    return count


def utilisation(closed: list[Closed]) -> float:
    """The share of all granted time in which tasks ran."""
    used = sum(line.busy_core_s + line.wasted_core_s for line in closed)
    return used / sum(line.granted_core_s for line in closed)


def empty(closed: list[Closed]) -> int:
    """How many allocations ran for nothing: no attempt at any task, whatever became of it."""
    return sum(bool(line.ran_s) and not (line.tasks or line.failed) for line in closed)


def shown(closed: list[Closed]) -> str:
    """The ledger, a line each."""
    return "\n".join(
        f"{line.name} {line.nodes} nodes {line.outcome} waited {line.waited_s:.0f} s ran"
        f" {line.ran_s:.0f} s, {line.tasks} tasks, {line.failed} cut short, {line.utilisation:.0%}"
        for line in closed
    )


def environment(**more: str) -> dict[str, str]:
    """Ours, with more."""
    return {**os.environ, **more}
