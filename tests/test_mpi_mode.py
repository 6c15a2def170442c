"""MPI tasks on this machine: one mpiexec each, pinned, stopped, killed; nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    MPI_PROGRAM,
    NO_SYNC,
    eventually,
    make_tree,
    needs_mpiexec,
    run_spool,
    where,
)
from crashing import history_of, processes_of, words_of

from spool.api import Spool
from spool.queue import layout, processes, tasks
from spool.queue.layout import Tree

pytestmark = [needs_mpiexec, pytest.mark.usefixtures("nothing_runs_on")]
SETTINGS = NO_SYNC
PROGRAM = MPI_PROGRAM
HANGS = [sys.executable, "-c", "from mpi4py import MPI; import time; time.sleep(300)"]
TWO = len(os.sched_getaffinity(0)) >= 2
"""Whether there are two cores, so that tasks are pinned."""


def launch(tree: Tree, *words: str) -> subprocess.CompletedProcess[str]:
    return run_spool(tree.root, "launcher", "--idle-timeout", "0", *words)


@pytest.fixture
def begin(tree: Tree) -> Iterator:
    begun = []

    def start(*words: str) -> subprocess.Popen[str]:
        own = ["--spool", tree.root, "launcher", "--idle-timeout", "0", "--quiet", *words]
        one = subprocess.Popen([sys.executable, "-m", "spool.cli", *own])
        begun.append(one)
        return one

    yield start
    for one in begun:
        one.kill()
        one.wait()


def told(tree: Tree, task_id: str) -> list[dict]:
    spot = tasks.find(tree, task_id)
    assert spot is not None
    return json.loads(Path(spot.path(tree), layout.OUTPUT).read_text().splitlines()[-1])


def ranks_run(tree: Tree, task_id: str) -> list[int]:
    """The processes of a task's ranks."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            around = processes.environment(int(entry))
            if around.get(b"SPOOL_TASK") == task_id.encode() and b"PMI_RANK" in around:
                found.append(int(entry))
    return found


def test_ranks_see_one_another_their_task_and_cores_of_their_own(tree, spool):
    many = {ranks: spool.submit(PROGRAM, ranks_per_node=ranks).id for ranks in (2, 3, 4)}
    assert launch(tree, "--cores", "4").returncode == 0
    for ranks, task in many.items():
        rows = told(tree, task)
        assert [row["rank"] for row in rows] == list(range(ranks))
        assert all(row["size"] == ranks and row["task"] == task for row in rows)
    if TWO:
        pinned = spool.submit(PROGRAM, ranks_per_node=2).id
        assert launch(tree, "--cores", "2").returncode == 0
        assert sorted(row["cpus"] for row in told(tree, pinned)) == [[0], [1]]


def test_several_mpi_tasks_and_serial_ones_run_beside_one_another(tree, spool):
    mpi = [spool.submit(PROGRAM, ranks_per_node=2).id for _ in range(6)]
    serial = [spool.submit(["sleep", "0.05"]).id for _ in range(40)]
    assert launch(tree, "--cores", "6").returncode == 0
    assert all(where(tree, task).startswith("FINISHED/") for task in [*mpi, *serial])
    spans = [(one["start"], one["exit"]) for task in mpi for one in [times(tree, task)]]
    assert any(a < d and c < b for (a, b) in spans for (c, d) in spans if (a, b) != (c, d))


def test_so_many_share_a_node_and_its_cores_as_per_node_says(tree, spool):
    serial = [spool.submit(["sleep", "0.2"], per_node=2).id for _ in range(5)]
    mpi = spool.submit(PROGRAM, ranks_per_node=2, per_node=1).id
    assert launch(tree, "--cores", "4").returncode == 0
    starts = [event for task in serial for event in history_of(tree, task)]
    assert [len(event["cpus"]) for event in starts if event["what"] == "start"] == [2] * 5
    spans = [times(tree, task) for task in serial]
    for one in spans:
        beside = [other for other in spans if other["start"] <= one["start"] < other["exit"]]
        assert len(beside) <= 2
    assert all(row["size"] == 2 for row in told(tree, mpi))
    threads = next(event for event in history_of(tree, mpi) if event["what"] == "start")
    assert len(threads["cpus"]) == 4


def times(tree: Tree, task_id: str) -> dict[str, str]:
    return {event["what"]: event["time"] for event in history_of(tree, task_id)}


def test_the_mode_says_which_tasks_are_taken(tree, spool):
    mpi, serial = spool.submit(PROGRAM, ranks_per_node=2).id, spool.submit(["true"]).id
    one = launch(tree, "--cores", "2", "--mode", "serial")
    assert where(tree, serial).startswith("FINISHED/") and where(tree, mpi).startswith("READY/")
    assert "need several ranks, and this launcher runs serial tasks only" in one.stderr
    serial = spool.submit(["true"]).id
    one = launch(tree, "--cores", "2", "--mode", "mpi")
    assert where(tree, mpi).startswith("FINISHED/") and where(tree, serial).startswith("READY/")
    assert "are serial, and this launcher runs MPI tasks only" in one.stderr


@pytest.mark.parametrize("victim", ["mpirun", "rank"])
def test_a_killed_mpirun_or_rank_fails_the_task_and_leaves_nothing(tree, spool, begin, victim):
    task = spool.submit(HANGS, ranks_per_node=2).id
    launcher = begin("--cores", "2")
    eventually(lambda: len(ranks_run(tree, task)) >= 2, "its ranks run")
    pids = ranks_run(tree, task)
    if victim == "mpirun":
        parent = int(
            Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[-1]
        )
        os.kill(parent, signal.SIGKILL)
    else:
        os.kill(pids[0], signal.SIGKILL)
    assert launcher.wait(30) == 0
    assert where(tree, task).startswith("FAILED/")
    assert processes_of(tree) == [] and ranks_run(tree, task) == []


def test_a_limit_and_a_cancel_end_all_ranks(tree, spool, begin):
    limited = spool.submit(HANGS, ranks_per_node=2, time_limit="1s", grace="1s").id
    cancelled = spool.submit(HANGS, ranks_per_node=2, grace="1s").id
    launcher = begin("--cores", "4")
    eventually(lambda: len(ranks_run(tree, cancelled)) >= 2, "its ranks run")
    assert run_spool(tree.root, "cancel", cancelled).returncode == 0
    assert launcher.wait(30) == 0
    assert where(tree, limited).startswith("FAILED/timeout@")
    assert where(tree, cancelled).startswith("CANCELLED/")
    assert processes_of(tree) == []


def test_a_killed_launcher_s_ranks_die_and_the_task_runs_again(tree, spool, begin):
    again = "test -e been || {{ touch been; exec {}; }}; exec {}"
    task = spool.submit(again.format(_line(HANGS), _line(PROGRAM)), ranks_per_node=2).id
    launcher = begin("--cores", "2")
    eventually(lambda: len(ranks_run(tree, task)) >= 2, "its ranks run")
    launcher.kill()
    eventually(lambda: ranks_run(tree, task) == [], "the guard has killed them")
    assert launch(tree, "--cores", "2").returncode == 0
    assert words_of(tree, task) == ["start", "lost", "start", "exit"]
    assert len(told(tree, task)) == 2


def _line(words: list[str]) -> str:
    return " ".join(f"'{word}'" for word in words)


def test_no_more_mpiruns_are_alive_than_spool_toml_allows(tmp_path):
    tree = make_tree(tmp_path / "one", '[launcher]\nsync = "none"\nmpiruns = 1\n')
    spool = Spool(tree.root)
    ids = [spool.submit(["sleep", "0.2"], ranks_per_node=2).id for _ in range(3)]
    assert launch(tree, "--cores", "6").returncode == 0
    spans = sorted((one["start"], one["exit"]) for one in (times(tree, task) for task in ids))
    assert all(ended <= begun for (_, ended), (begun, _) in zip(spans, spans[1:], strict=False))


def test_a_template_of_spool_toml_starts_what_no_flavour_knows(tmp_path):
    script = tmp_path / "starter"
    script.write_text('#!/bin/sh\necho "for $1: $2 x $3"; shift 3; PMI_RANK=0 exec "$@"\n')
    script.chmod(0o755)
    settings = f'mpirun = "{script} {{nodes}} {{ranks}} {{ranks_per_node}} {{command}}"'
    tree = make_tree(tmp_path / "one", f"[launcher]\n{settings}\n")
    task = Spool(tree.root).submit(["echo", "a b"], ranks_per_node=2).id
    assert launch(tree, "--cores", "2").returncode == 0
    spot = tasks.find(tree, task)
    assert Path(spot.path(tree), layout.OUTPUT).read_text() == "for 1: 2 x 2\na b\n"


def test_a_wrong_mpirun_is_told_and_its_tasks_are_left(tmp_path):
    tree = make_tree(tmp_path / "one", '[launcher]\nmpirun = "no-such-mpirun"\n')
    spool = Spool(tree.root)
    task, serial = spool.submit(PROGRAM, ranks_per_node=2).id, spool.submit(["true"]).id
    one = launch(tree, "--cores", "2")
    assert "there is no program no-such-mpirun" in one.stderr
    assert where(tree, task).startswith("READY/") and where(tree, serial).startswith("FINISHED/")


@pytest.mark.parametrize("policy", ["leave", "reject"])
def test_what_fits_no_node_is_left_or_rejected_as_spool_toml_says(tmp_path, policy):
    tree = make_tree(tmp_path / "one", f'[launcher]\ntoo_large = "{policy}"\n')
    spool = Spool(tree.root)
    large = [spool.submit(PROGRAM, nodes=9).id, spool.submit(["true"], cores_per_rank=99).id]
    good = spool.submit(["true"]).id
    one = launch(tree, "--cores", "2")
    assert where(tree, good).startswith("FINISHED/")
    for task in large:
        if policy == "leave":
            assert where(tree, task).startswith("READY/") and "too large" in one.stderr
        else:
            assert where(tree, task).startswith("FAILED/rejected@")
            assert "fits nowhere" in history_of(tree, task)[-1]["reason"]
