"""Hands: how cores are shared out, when they are lent, and what becomes of a hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import eventually, make_tree, run_spool
from hypothesis import given
from hypothesis import strategies as st

from spool.api import Spool
from spool.launcher import hands
from spool.launcher.hands import Hands
from spool.launcher.nodes import Node
from spool.launcher.picker import Wishes
from spool.queue import files, history, owner, processes, tasks
from spool.queue.layout import State, Tree
from spool.queue.shape import Shape

FOUR = Node((0, 1, 2, 3), (), 4000)
TINY, FAST, BUSY = Shape(), 1000.0, 1.0
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


# -- pure ----------------------------------------------------------------------------------------


@given(st.integers(2, 300), st.integers(0, 10**6))
def test_parts_share_out_every_core_once_and_evenly(cores, memory_mb):
    found = hands.parts(Node(tuple(range(cores)), (), memory_mb))
    assert sum((part.cpus for part in found), ()) == tuple(range(cores))
    assert 2 <= len(found) <= hands.MOST
    sizes = [len(part.cpus) for part in found]
    assert max(sizes) - min(sizes) <= 1
    assert sum(part.memory_mb for part in found) <= memory_mb


@pytest.mark.parametrize("cpus", [(0,), (0, 0), (0, 0, 1, 1)])
def test_one_core_or_cores_offered_twice_are_not_shared_out(cpus):
    assert hands.parts(Node(cpus, (), 0)) == []


def decided(shapes, *, rate=FAST, awake=BUSY, wishes=None):
    ours = Hands(Tree("/nowhere"), [FOUR], wishes or Wishes())
    ours.mind(100.0, rate, awake, shapes)
    return ours.lending


def test_cores_are_lent_where_a_busy_launcher_starts_many_small_tasks():
    assert decided({TINY})
    assert decided({TINY, Shape(memory_mb=1000)})


@pytest.mark.parametrize(
    "other",
    [Shape(cores=2), Shape(ranks=2), Shape(gpus=1), Shape(nodes=2), Shape(memory_mb=1001)],
)
def test_cores_are_not_lent_where_a_task_waits_that_no_hand_could_run(other):
    assert not decided({TINY, other})


def test_cores_are_not_lent_by_an_idle_or_slow_launcher_nor_by_a_hand():
    assert not decided(set())
    assert not decided({TINY}, rate=10.0)
    assert not decided({TINY}, awake=0.3)
    assert not decided({TINY}, wishes=Wishes(hand_of=1))


def test_a_core_that_stays_busy_ends_the_try_and_the_next_one_waits():
    ours = Hands(Tree("/nowhere"), [FOUR], Wishes())
    found = []
    for now in (100.0, 100.25, 100.5, 105.0, 110.5):
        ours.mind(now, FAST, BUSY, {TINY})
        found.append(ours.lending)
    assert found == [True, False, False, False, True]


# -- as processes --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "spool", '[launcher]\nsync = "none"\n')


@pytest.fixture
def begin(tree):
    """A launcher on two cores; what is left of it, and of its hands, dies with the test."""
    begun = []

    def start():
        words = ["--spool", tree.root, "launcher", "--cores", "2", "--idle-timeout", "0"]
        one = subprocess.Popen(
            [sys.executable, "-m", "spool.cli", *words], stderr=subprocess.PIPE, text=True
        )
        begun.append(one)
        return one

    yield start
    for one in begun:
        one.kill()
        one.communicate()
    for name in os.listdir(tree.folder("launchers")):
        processes.kill_marked(name)


def submit(tree, count, command="true", **wanted):
    return [
        one.id
        for one in Spool(tree.root).submit_many(
            {"command": [command], **wanted} for _ in range(count)
        )
    ]


def records(tree):
    return [owner.read_record(tree, name) for name in os.listdir(tree.folder("launchers"))]


def lent(tree):
    return len(records(tree)) > 1 and len(files.names(tree.state(State.RUNNING))) > 1


def exits(tree):
    """How many exit lines each finished task has."""
    return [
        sum(
            event["what"] == "exit"
            for event in history.events(files.read(f"{spot.path(tree)}/history.jsonl") or b"")
        )
        for spot in tasks.spots(tree, (State.FINISHED,))
    ]


@two_cores
def test_a_hand_shares_the_work_and_its_tasks_count_as_ours(tree, begin):
    ids = submit(tree, 5000)
    one = begin()
    _, said = one.communicate(timeout=60)
    assert one.returncode == 0
    assert "5,000 finished" in said
    assert exits(tree) == [1] * len(ids)
    mine = [one for one in records(tree) if one["pid"] == one_pid(said)]
    theirs = [one for one in records(tree) if one["pid"] != one_pid(said)]
    assert len(mine) == 1 and len(theirs) >= 1
    assert all(record["claimed"] > 0 for record in [*mine, *theirs[:1]])
    assert all(record["ended"] for record in records(tree))


def one_pid(said):
    return int(said.split(":")[0].split(".")[3])


@two_cores
def test_hands_share_a_board_of_which_no_task_inherits_anything(tree, begin):
    submit(tree, 10_000)
    one = begin()
    eventually(lambda: lent(tree), "cores are lent")
    looks = Spool(tree.root).submit_many(
        {"command": ["sh", "-c", "ls -l /proc/$$/fd"], "priority": 9} for _ in range(20)
    )
    hand = next(record for record in records(tree) if record["pid"] != one.pid)
    for pid in (one.pid, hand["pid"]):
        eventually(lambda pid=pid: "spool-board" in Path(f"/proc/{pid}/maps").read_text(), "shared")
    eventually(lambda: all(tasks.find(tree, look.id).state is State.FINISHED for look in looks))
    for look in looks:
        seen = files.read(f"{tasks.find(tree, look.id).path(tree)}/output").decode()
        assert len(seen.splitlines()) == 1 + 3 and "spool-board" not in seen, seen
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=60)


@two_cores
def test_a_wide_task_calls_the_hands_back_and_runs_before_the_rest(tree, begin):
    submit(tree, 10_000)
    one = begin()
    eventually(lambda: lent(tree), "cores are lent")
    (wide,) = submit(tree, 1, cores_per_rank=2, priority=9)
    eventually(lambda: tasks.find(tree, wide).state is State.FINISHED, "it ran")
    assert sum(1 for _ in tasks.spots(tree, (State.READY,))) > 0
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=60)
    assert one.returncode == 0


@two_cores
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hands_drain_with_the_launcher_and_nothing_is_left_in_running(tree, begin, number):
    ids = submit(tree, 8000)
    one = begin()
    eventually(lambda: lent(tree), "cores are lent")
    one.send_signal(number)
    one.communicate(timeout=60)
    assert one.returncode == 0
    assert files.names(tree.state(State.RUNNING)) == []
    found = [spot.id for spot in tasks.spots(tree, (State.READY, State.FINISHED))]
    assert sorted(found) == sorted(ids)


@two_cores
def test_hands_leave_when_their_launcher_is_killed_and_no_task_runs_twice(tree, begin):
    ids = submit(tree, 8000)
    one = begin()
    eventually(lambda: lent(tree), "cores are lent")
    one.kill()
    one.wait()
    hand = next(record for record in records(tree) if record["pid"] != one.pid)
    eventually(lambda: processes.process_start(hand["pid"]) is None, "the hand is gone")
    assert sum(1 for _ in tasks.spots(tree, (State.READY,))) > 0
    left = run_spool(tree.root, "launcher", "--cores", "2", "--idle-timeout", "0")
    assert left.returncode == 0, left.stderr
    finished = [spot.id for spot in tasks.spots(tree, (State.FINISHED,))]
    assert sorted(finished) == sorted(ids)
    assert exits(tree) == [1] * len(ids)


@two_cores
def test_after_a_hand_was_killed_its_tasks_are_run_by_the_launcher_itself(tree, begin):
    ids = submit(tree, 5000)
    one = begin()
    eventually(lambda: lent(tree), "cores are lent")
    hand = next(record for record in records(tree) if record["pid"] != one.pid)
    os.kill(hand["pid"], signal.SIGKILL)
    one.communicate(timeout=60)
    assert one.returncode == 0
    assert sorted(spot.id for spot in tasks.spots(tree, (State.FINISHED,))) == sorted(ids)
    assert exits(tree) == [1] * len(ids)
