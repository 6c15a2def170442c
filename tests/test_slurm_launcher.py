"""Launchers in real Slurm allocations of several nodes: serial tasks, MPI tasks, and both."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from conftest import MPI_PROGRAM, MPIEXEC, NO_SYNC, eventually, make_tree, needs_mpiexec, where
from crashing import history_of, processes_of, words_of

from spool.api import Spool
from spool.queue import files, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.owner import read_record

pytestmark = [pytest.mark.system, needs_mpiexec, pytest.mark.usefixtures("nothing_runs_on")]
slurm = slurm_cluster.slurm
# Not srun: Slurm 22.05's pmi2 passes some messages of MPICH 5 on garbled.
SETTINGS = f'{NO_SYNC}mpirun = "{MPIEXEC}"\n'
PROGRAM = MPI_PROGRAM
LAUNCH = f"{sys.executable} -m spool.cli --spool $ROOT launcher"


@pytest.fixture(scope="module", autouse=True)
def cut_short(tmp_path_factory) -> Iterator[CutShort]:
    """A job of one minute, the shortest there is: it begins before and ends after other tests."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("minute")
    with slurm_cluster.Slurm(folder / "up") as cluster:
        yield CutShort(cluster, make_tree(folder / "spool", SETTINGS))


class CutShort:
    """What the end of an allocation finds: tasks that are done, that run, and that never start."""

    def __init__(self, slurm: slurm_cluster.Slurm, tree: Tree) -> None:
        self.slurm, self.tree, spool = slurm, tree, Spool(tree.root)
        trap = "trap 'echo checkpoint > saved; exit 0' TERM; test -e saved || sleep 300 & wait $!"
        long = [spool.submit(trap, signal="TERM", grace="2s").id for _ in range(4)]
        once = f"test -e been || {{ touch been; sleep 300; }}; exec {' '.join(PROGRAM)}"
        self.mpi = spool.submit(["sh", "-c", once], nodes=2, ranks_per_node=2, grace="2s").id
        self.cut = [*long, self.mpi]
        self.too_long = spool.submit(["true"], time_estimate="30m").id
        self.short = [spool.submit(["true"]).id for _ in range(50)]
        self.job = allocated(slurm, tree, "-t1", launcher="--cores-per-node 8")


def allocated(slurm, tree: Tree, *options: str, launcher: str = "", nodes: int = 4) -> str:
    """A batch job that runs a launcher on whole nodes; its id."""
    words = f"{LAUNCH} --idle-timeout 2s {launcher}".replace("$ROOT", tree.root)
    return slurm.sbatch(words, f"-N{nodes}", "--exclusive", "-t5", *options)


def ranks_of(tree: Tree, task_id: str) -> list[dict]:
    """What the ranks of a finished MPI task told, after whatever its mpirun had to say."""
    spot = tasks.find(tree, task_id)
    assert spot is not None and spot.state is State.FINISHED, (spot, said_by(tree, task_id))
    return json.loads(said_by(tree, task_id).splitlines()[-1])


def said_by(tree: Tree, task_id: str) -> str:
    spot = tasks.find(tree, task_id)
    return Path(spot.path(tree), layout.OUTPUT).read_text() if spot else ""


def finished(tree: Tree, ids: list[str]) -> bool:
    return all(where(tree, task).startswith("FINISHED/") for task in ids)


# -- what runs where -----------------------------------------------------------------------------


def test_serial_and_mpi_tasks_share_the_nodes_of_one_allocation(slurm, tree, spool):
    shapes = [(1, 2), (1, 8), (2, 1), (2, 4), (3, 2), (4, 1), (4, 2)]
    mpi = {
        (nodes, ranks): spool.submit(PROGRAM, nodes=nodes, ranks_per_node=ranks).id
        for nodes, ranks in shapes
    }
    serial = [spool.submit(["sh", "-c", "sleep 0.2; hostname"]).id for _ in range(300)]
    job = allocated(slurm, tree, launcher="--cores-per-node 8")
    assert slurm.wait(job, within=120) == "COMPLETED", slurm.output(job)
    for (nodes, ranks), task in mpi.items():
        told = ranks_of(tree, task)
        assert [row["rank"] for row in told] == list(range(nodes * ranks))
        assert all(row["size"] == nodes * ranks and row["task"] == task for row in told)
        assert Counter(Counter(row["host"] for row in told).values()) == {ranks: nodes}
    assert finished(tree, serial), slurm.output(job)
    hosts = Counter(said_by(tree, task).strip() for task in serial)
    assert set(hosts) == {"node1", "node2", "node3", "node4"}
    assert processes_of(tree) == []


@pytest.mark.parametrize(
    ("nodes", "ranks", "threads"), [(2, 32, 2), (2, 64, 1), (1, 2, 64)], ids=str
)
def test_every_rank_and_thread_is_there_once_and_nodes_are_balanced(
    slurm, tree, spool, nodes, ranks, threads
):
    cores = ranks * threads
    task = spool.submit(PROGRAM, nodes=nodes, ranks_per_node=ranks, cores_per_rank=threads).id
    words = f"--cores-per-node {cores} --mode mpi"
    more = "--overcommit" if cores > 64 else "--exclusive"
    job = allocated(slurm, tree, more, launcher=words, nodes=nodes)
    assert slurm.wait(job, within=120) == "COMPLETED", slurm.output(job)
    told = ranks_of(tree, task)
    assert [row["rank"] for row in told] == list(range(nodes * ranks))
    assert all(row["threads"] == list(range(threads)) for row in told)
    assert set(Counter(row["host"] for row in told).values()) == {ranks}


def test_mpi_tasks_beside_one_another_on_one_node_have_cores_of_their_own(slurm, tree, spool):
    ids = [spool.submit(PROGRAM, nodes=2, ranks_per_node=1).id for _ in range(2)]
    job = allocated(slurm, tree, launcher="--mode mpi --cores-per-node 2", nodes=2)
    assert slurm.wait(job, within=60) == "COMPLETED", slurm.output(job)
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores to see them apart")
    cores = [{tuple(row["cpus"]) for row in ranks_of(tree, task)} for task in ids]
    assert all(len(one) == 1 and len(*one) == 1 for one in cores)
    starts = [history_of(tree, task)[0] for task in ids]
    assert all(start["nodes"] == ["node1", "node2"] for start in starts)


def test_srun_starts_ranks_in_block_order_on_the_nodes_a_task_was_given(slurm, tmp_path):
    tree = make_tree(tmp_path / "srun", NO_SYNC)
    words = ["sh", "-c", "echo rank $SLURM_PROCID $(hostname) $SPOOL_NODES"]
    shapes = [(1, 4), (2, 2), (3, 2), (4, 1)]
    ids = {
        shape: Spool(tree.root).submit(words, nodes=shape[0], ranks_per_node=shape[1]).id
        for shape in shapes
    }
    job = allocated(slurm, tree, launcher="--mode mpi --cores-per-node 8")
    assert slurm.wait(job, within=60) == "COMPLETED", slurm.output(job)
    for (nodes, ranks), task in ids.items():
        lines = [line.split() for line in said_by(tree, task).splitlines() if "rank" in line]
        told = sorted((int(rank), host, given) for _, rank, host, given in lines)
        assert [rank for rank, *_ in told] == list(range(nodes * ranks))
        given = told[0][2].split(",")
        assert [host for _, host, _ in told] == [given[n // ranks] for n in range(nodes * ranks)]


def test_two_launchers_share_an_allocation_by_parts(slurm, tree, spool):
    ids = [spool.submit(["sh", "-c", "sleep 0.3; hostname"]).id for _ in range(40)]
    one = f"{LAUNCH} --idle-timeout 1s --cores-per-node 2 --nodes".replace("$ROOT", tree.root)
    job = slurm.sbatch(f"{one} 1-2 & {one} node3,node4 --per-node & wait", "-N4", "--exclusive")
    assert slurm.wait(job, within=90) == "COMPLETED", slurm.output(job)
    assert finished(tree, ids)
    assert {said_by(tree, task).strip() for task in ids} == {"node1", "node2", "node3", "node4"}
    records = [read_record(tree, name) for name in files.names(tree.folder("launchers"))]
    assert sorted(record["nodes"] for record in records) == [1, 1, 2]


# -- what dies in an allocation ------------------------------------------------------------------


def test_a_killed_allocation_loses_nothing_and_the_next_one_finishes_it(slurm, tree, spool):
    ids = [spool.submit(["sleep", "0.5"]).id for _ in range(100)]
    ids += [spool.submit(["sleep", "0.5"], nodes=2, ranks_per_node=2).id for _ in range(5)]
    job = allocated(slurm, tree, launcher="--cores-per-node 4")
    done = tree.state(State.FINISHED)
    eventually(lambda: len(list(Path(done).glob("*/*"))) > 10, "they run")
    slurm.run("scancel", "-f", "-s", "KILL", job)
    slurm.wait(job, within=60)
    eventually(lambda: processes_of(tree) == [], "nothing is left")
    job = allocated(slurm, tree, launcher="--cores-per-node 4")
    assert slurm.wait(job, within=120) == "COMPLETED", slurm.output(job)
    left = {where(tree, task): history_of(tree, task) for task in ids}
    assert finished(tree, ids), (slurm.output(job), left)
    for task in ids:
        told = words_of(tree, task)
        assert told.count("start") == 1 + told.count("lost") + told.count("interrupted")


def test_a_killed_launcher_for_mpi_tasks_is_started_again_when_its_nodes_are_swept(
    slurm, tree, spool
):
    hangs = f"test -e been || {{ touch been; setsid sleep 300; }}; exec {' '.join(PROGRAM)}"
    task = spool.submit(["sh", "-c", hangs], nodes=3, ranks_per_node=1).id
    job = allocated(slurm, tree, launcher="--mode mpi --cores-per-node 2", nodes=3)
    eventually(lambda: "been" in files.names(_path(tree, task)), "it runs")
    (name,) = files.names(tree.state(State.RUNNING))
    os.kill(read_record(tree, name)["pid"], signal.SIGKILL)
    assert slurm.wait(job, within=120) == "COMPLETED", slurm.output(job)
    assert "starting it again" in slurm.output(job)
    assert read_record(tree, name)["swept"] is True
    assert words_of(tree, task) == ["start", "lost", "start", "exit"]
    assert len(ranks_of(tree, task)) == 3 and processes_of(tree) == []


def _path(tree: Tree, task_id: str) -> str:
    spot = tasks.find(tree, task_id)
    return spot.path(tree) if spot else ""


def test_a_killed_mpirun_s_nodes_are_swept_by_srun_before_its_task_ends(slurm, tree, spool):
    task = spool.submit(["sh", "-c", "touch been; setsid sleep 300"], nodes=3).id
    job = allocated(slurm, tree, launcher="--mode mpi --cores-per-node 2", nodes=3)
    eventually(lambda: "been" in files.names(_path(tree, task)), "it runs")
    (name,) = files.names(tree.state(State.RUNNING))
    pid = read_record(tree, name)["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    mpiruns = [one for one in map(int, children) if Path(f"/proc/{one}/exe").samefile(MPIEXEC)]
    os.kill(*mpiruns, signal.SIGKILL)
    assert slurm.wait(job, within=120) == "COMPLETED", slurm.output(job)
    assert where(tree, task).startswith("FAILED/") and processes_of(tree) == []
    said = (files.read(tree.owner(name, layout.LOG)) or b"").decode()
    assert "not known to be gone" not in said and "may live on" not in said


def test_a_node_that_vanishes_costs_its_tasks_an_attempt_and_the_launcher_goes_on(
    tmp_path, tree, spool
):
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    ids = [spool.submit(["sleep", "2"]).id for _ in range(60)]
    quick = slurm_cluster.QUICK_DOWN
    with slurm_cluster.Slurm(tmp_path / "up", nodes=3, cpus=8, settings=quick) as cluster:
        job = allocated(cluster, tree, "--no-kill", launcher="--cores-per-node 4", nodes=3)
        done = tree.state(State.FINISHED)
        eventually(lambda: len(list(Path(done).glob("*/*"))) >= 12, "they run")
        cluster.kill_node("node2")
        assert cluster.wait(job, within=150) in ("COMPLETED", "NODE_FAIL"), cluster.output(job)
        assert "going on without node2" in cluster.output(job)
    assert finished(tree, ids)
    assert any("lost" in words_of(tree, task) for task in ids)


# -- the end of an allocation --------------------------------------------------------------------


def test_what_the_walltime_cuts_short_is_finished_by_a_second_allocation(cut_short):
    """The launcher knows its end from Slurm, and stops its tasks in time."""
    slurm, tree, cut = cut_short.slurm, cut_short.tree, cut_short.cut
    assert slurm.wait(cut_short.job, within=150) in ("COMPLETED", "TIMEOUT")
    said = slurm.output(cut_short.job)
    assert finished(tree, cut_short.short), said
    too_long = cut_short.too_long
    assert where(tree, too_long).startswith("READY/") and words_of(tree, too_long) == []
    for task in cut:
        assert where(tree, task).startswith("READY/"), (said, history_of(tree, task))
        assert words_of(tree, task)[-1] == "interrupted"
    assert processes_of(tree) == []
    job = allocated(slurm, tree, "-t40", launcher="--cores-per-node 8")
    assert slurm.wait(job, within=90) == "COMPLETED", slurm.output(job)
    assert finished(tree, [*cut, too_long])
    assert len(ranks_of(tree, cut_short.mpi)) == 4
