"""One launcher over several nodes: real MPI ranks on this machine, each of which plays a node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import (
    MPIEXEC,
    NO_SYNC,
    all_ids,
    eventually,
    make_tree,
    needs_mpiexec,
    run_spool,
    where,
)
from crashing import history_of, processes_of, words_of

from spool.api import Spool
from spool.queue import files, journal, layout, processes, tasks
from spool.queue.layout import State, Tree
from spool.queue.owner import read_record

pytestmark = [needs_mpiexec, pytest.mark.usefixtures("nothing_runs_on")]
SETTINGS = NO_SYNC
NODES, CORES = 4, 2
REPORT = (
    "echo $SPOOL_NODE $SPOOL_CPUS $EPOCHREALTIME;"
    "status=$(</proc/$$/status); set -- ${status#*Cpus_allowed_list:}; echo $1;"  # in one read
    "echo x >> ran; echo $EPOCHREALTIME"
)
"""What a task says: its node and cores as told, when, the cores it may use, and when again."""
PARENTLESS = {name: value for name, value in os.environ.items() if not name.startswith("PMI")}


def ranks(tree: Tree, *words: str, count: int = NODES) -> list[str]:
    """The words that start so many ranks by hand."""
    own = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher"]
    sized = ["--cores-per-node", str(CORES), "--idle-timeout", "0", *words]
    return [str(MPIEXEC), "-n", str(count), *own, *sized]


def run_ranks(tree: Tree, *words: str, count: int = NODES) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ranks(tree, *words, count=count), capture_output=True, text=True, timeout=120, check=False
    )


def begin(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def minded(tree: Tree, *words: str) -> list[str]:
    """The words of a launcher that starts its ranks itself."""
    own = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher"]
    sized = ["--nodes", str(NODES), "--cores-per-node", str(CORES), "--idle-timeout", "0"]
    return [*own, *sized, *words]


def count(tree: Tree, state: State) -> int:
    return sum(1 for _ in tasks.spots(tree, (state,)))


def reports(tree: Tree) -> dict[str, list[str]]:
    """What each finished task said."""
    return {
        spot.id: Path(spot.path(tree), layout.OUTPUT).read_text().split()
        for spot in tasks.spots(tree, (State.FINISHED,))
    }


def assert_disjoint(said: dict[str, list[str]]) -> None:
    """No two tasks of one node ever had the same core at the same time."""
    by_core: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for node, cpu, begun, allowed, ended in said.values():
        assert allowed == cpu, "a task may use the core it was told, and no other"
        by_core.setdefault((node, cpu), []).append((float(begun), float(ended)))
    for spans in by_core.values():
        spans.sort()
        for (_, ended), (begun, _) in zip(spans, spans[1:], strict=False):
            assert ended <= begun
    assert len(by_core) == NODES * CORES, "every core of every node was used"


def rank_pids(tree: Tree, leader: bool) -> list[int]:
    """The processes of a launcher's ranks: its leader, or the others."""
    (name,) = [n for n in files.names(tree.state(State.RUNNING)) if n.startswith("launcher")]
    own = read_record(tree, name)["pid"]
    if leader:
        return [own]
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != own:
            told = processes.environment(int(entry))
            theirs = tree.root.encode() in words_of_process(int(entry))
            if theirs and told.get(b"PMI_RANK", b"0") != b"0":
                found.append(int(entry))
    return found


def words_of_process(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def assert_each_once(tree: Tree, ids: list[str]) -> None:
    """Each task has finished, in one place, after as many runs as its history tells."""
    assert Counter(all_ids(tree)) == Counter(ids)
    for spot in tasks.spots(tree, (State.FINISHED,)):
        told = words_of(tree, spot.id)
        runs = len((Path(spot.path(tree)) / "ran").read_text().split())
        assert told[-1] == "exit" and told.count("exit") == 1
        assert runs <= told.count("start")
        assert told.count("start") == 1 + told.count("lost") + told.count("interrupted")
    assert count(tree, State.FINISHED) == len(ids)
    assert processes_of(tree) == []


# -- many short tasks ----------------------------------------------------------------------------


def test_five_thousand_tasks_run_on_four_nodes_each_once_and_on_cores_of_their_own(tree, spool):
    if len(os.sched_getaffinity(0)) < CORES:
        pytest.skip("needs two cores")
    many = ({"command": ["bash", "-c", REPORT], "name": "t"} for _ in range(5000))
    ids = [task.id for task in spool.submit_many(many)]
    done = run_ranks(tree)
    assert done.returncode == 0, done.stderr
    assert_each_once(tree, ids)
    assert_disjoint(reports(tree))
    nodes = Counter(node for node, *_ in reports(tree).values())
    assert min(nodes.values()) > 100


@pytest.mark.parametrize("leader", [False, True], ids=["another-rank", "the-leader"])
def test_a_killed_rank_loses_and_doubles_nothing_and_the_launcher_starts_again(tree, spool, leader):
    many = ({"command": ["bash", "-c", f"{REPORT}; sleep 0.01"]} for _ in range(1500))
    ids = [task.id for task in spool.submit_many(many)]
    one = begin(minded(tree))
    eventually(lambda: count(tree, State.FINISHED) > 300, "they run")
    os.kill(rank_pids(tree, leader)[0], signal.SIGKILL)
    said = one.communicate(timeout=120)[1]
    assert one.returncode == 0, said
    assert "starting it again" in said
    logs = [path.read_text() for path in Path(tree.folder("launchers")).glob("*/log")]
    assert sum("starting it again" in log for log in logs) == 1
    assert_each_once(tree, ids)


@pytest.mark.parametrize("leader", [False, True], ids=["another-rank", "the-leader"])
def test_ranks_started_by_hand_end_together_and_the_next_ones_go_on(tree, spool, leader):
    many = ({"command": ["bash", "-c", f"{REPORT}; sleep 0.01"]} for _ in range(1200))
    ids = [task.id for task in spool.submit_many(many)]
    one = begin(ranks(tree))
    eventually(lambda: count(tree, State.FINISHED) > 300, "they run")
    os.kill(rank_pids(tree, leader)[0], signal.SIGKILL)
    one.communicate(timeout=60)
    assert one.returncode != 0
    eventually(lambda: processes_of(tree) == [], "the guards have killed what ran")
    done = run_ranks(tree)
    assert done.returncode == 0, done.stderr
    assert_each_once(tree, ids)


# -- what people ask, limits, time ---------------------------------------------------------------


def test_a_task_of_another_node_is_cancelled_changed_and_stopped_at_its_limit(tree, spool):
    sleepers = [spool.submit(["sleep", "60"], name=f"s{n}").id for n in range(NODES * CORES - 1)]
    limited = spool.submit(["sleep", "60"], time_limit="1s").id
    one = begin(ranks(tree))
    eventually(lambda: count(tree, State.RUNNING) == NODES * CORES, "all run")
    eventually(lambda: all("start" in words_of(tree, one) for one in sleepers), "all started")
    assert run_spool(tree.root, "modify", sleepers[0], "--time-limit", "1s").returncode == 0
    assert run_spool(tree.root, "cancel", *sleepers[1:]).returncode == 0
    one.communicate(timeout=60)
    assert one.returncode == 0
    assert where(tree, limited).startswith("FAILED/timeout@")
    assert where(tree, sleepers[0]).startswith("FAILED/timeout@")
    assert all(where(tree, task).startswith("CANCELLED/") for task in sleepers[1:])


def test_at_the_end_of_its_time_what_runs_is_interrupted_and_what_waits_is_given_back(tree, spool):
    ids = [spool.submit(["sleep", "60"], grace="1s").id for _ in range(2 * NODES * CORES)]
    begun = time.monotonic()
    done = run_ranks(tree, "--time-limit", "8s")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 9
    assert all(where(tree, task).startswith("READY/") for task in ids)
    told = Counter(tuple(words_of(tree, task)) for task in ids)
    assert told == {("start", "interrupted"): 8, (): 8}
    assert processes_of(tree) == []


def test_a_disk_that_refuses_a_start_on_a_node_stops_nothing_else(tree, spool):
    good = [spool.submit(["true"]).id for _ in range(20)]
    bad = spool.submit(["no-such-program"]).id
    damaged = spool.submit(["true"]).id
    Path(tasks.find(tree, damaged).path(tree), layout.MANIFEST).write_text("{")
    assert run_ranks(tree).returncode == 0
    assert all(where(tree, task).startswith("FINISHED/") for task in good)
    assert where(tree, bad).startswith("FAILED/exit-127@")
    assert where(tree, damaged).startswith("FAILED/rejected@")


def test_followers_that_cannot_start_keep_nobody_waiting(tree, spool):
    words = [["true"], ["no-such-program"], ["true"]]
    ids = [task.id for task in spool.submit_many({"command": words[n % 3]} for n in range(3000))]
    assert run_ranks(tree).returncode == 0
    states = Counter(where(tree, task).partition("@")[0].partition("/2")[0] for task in ids)
    assert states == {"FINISHED": 2000, "FAILED/exit-127": 1000}


def test_short_tasks_do_not_wait_behind_long_ones_while_cores_are_idle(tree, spool):
    long_ones = NODES * CORES - 1  # one core is left for all others
    words = [["true"]] * 800 + [["sleep", "12"]] * long_ones + [["true"]] * 400
    ids = [task.id for task in spool.submit_many({"command": one} for one in words)]
    assert run_ranks(tree).returncode == 0
    assert count(tree, State.FINISHED) == len(ids)
    ends = {task: history_of(tree, task)[-1]["time"] for task in ids}
    short = [task for task, one in zip(ids, words, strict=True) if one == ["true"]]
    first_long = min(ends[task] for task in ids if task not in set(short))
    late = [task for task in short if ends[task] > first_long]
    assert not late, f"{len(late)} waited for the end of a long one"


def test_a_rank_that_stalled_too_long_does_nothing_more_and_no_task_is_there_twice(tmp_path):
    lease = '[lease]\nbeat = "0.5s"\nfence = "3s"\ndead = "5s"\n'
    tree = make_tree(tmp_path / "leased", NO_SYNC + lease)
    spool = Spool(tree.root)
    ids = [spool.submit(["sleep", "1"]).id for _ in range(60)]
    one = begin(minded(tree))
    eventually(lambda: count(tree, State.FINISHED) >= 8, "they run")
    stalled = rank_pids(tree, leader=False)[0]
    os.kill(stalled, signal.SIGSTOP)
    try:
        eventually(lambda: lost_by_journal(tree), "it is mourned")
    finally:
        os.kill(stalled, signal.SIGCONT)
    one.communicate(timeout=120)
    if one.returncode:  # MPI ended with the rank: the next launcher goes on
        assert run_ranks(tree).returncode == 0
    assert Counter(all_ids(tree)) == Counter(ids)
    assert all(where(tree, task).startswith("FINISHED/") for task in ids)
    assert all("vanished" not in words_of(tree, task) for task in ids)
    assert all("lost" in words_of(tree, task) for task in lost_by_journal(tree))
    assert processes_of(tree) == []


def lost_by_journal(tree: Tree) -> set[str]:
    return {event["id"] for event in journal.read(tree) if event["what"] == "lost"}


def test_a_program_that_starts_mpi_by_itself_works_below_a_rank(tree, spool):
    program = "from mpi4py import MPI; print(MPI.COMM_WORLD.size)"
    alone = [spool.submit([sys.executable, "-c", program]).id for _ in range(NODES * CORES)]
    assert run_ranks(tree).returncode == 0
    assert {tuple(reports(tree)[task]) for task in alone} == {("1",)}


def test_idle_ranks_cost_nothing(tree, spool):
    one = begin(ranks(tree, "--idle-timeout", "6s"))
    eventually(lambda: len(files.names(tree.state(State.RUNNING))) == 1, "it is there")

    def pids_now() -> list[int]:
        return [*rank_pids(tree, leader=True), *rank_pids(tree, leader=False)]

    eventually(lambda: len(pids_now()) == NODES, "what is forked at their start is gone")
    pids = pids_now()
    before, begun = sum(map(cpu_seconds, pids)), time.monotonic()
    time.sleep(3)
    used = (sum(map(cpu_seconds, pids)) - before) / (time.monotonic() - begun)
    one.communicate(timeout=60)
    assert used / NODES < 0.05


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- worlds that are not what they seem ----------------------------------------------------------


def test_an_mpi_that_is_not_mpi4py_s_own_is_told_and_nothing_starts(tree, spool):
    task = spool.submit(["true"]).id
    words = ["--spool", tree.root, "launcher", "--idle-timeout", "0"]
    lying = {**PARENTLESS, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
    one = subprocess.run(
        [sys.executable, "-m", "spool.cli", *words],
        env=lying, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert one.returncode == 1
    assert "one of 4" in one.stderr and "says 1:" in one.stderr and "spool doctor" in one.stderr
    assert where(tree, task).startswith("READY/")


def test_without_any_mpiexec_that_fits_the_reason_is_told(tree, spool, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    broken = folder / "mpiexec"
    broken.write_text(
        "#!/bin/sh\ncase $1 in --version) echo HYDRA build details:;; *) exit 3;; esac\n"
    )
    broken.chmod(0o755)
    only = {**PARENTLESS, "PATH": f"{folder}:/usr/bin:/bin"}
    python = shutil.copy(Path(sys.executable).resolve(), tmp_path / "python")
    only["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    only["PYTHONHOME"] = sys.base_prefix
    words = [python, "-m", "spool.cli", "--spool", tree.root, "launcher", "--nodes", "4"]
    one = subprocess.run(words, env=only, capture_output=True, text=True, timeout=60, check=False)
    assert one.returncode == 1
    assert "no ranks can be started" in one.stderr and "--per-node" in one.stderr


# -- without MPI ---------------------------------------------------------------------------------


def test_a_launcher_of_its_own_on_each_node_needs_no_mpi(tree, spool):
    ids = [task.id for task in spool.submit_many({"command": ["true"]} for _ in range(200))]
    done = run_spool(
        tree.root, "launcher", "--nodes", "3", "--per-node", "--cores", "1", "--idle-timeout", "0"
    )
    assert done.returncode == 0, done.stderr
    assert all(where(tree, task).startswith("FINISHED/") for task in ids)
    owners = {history_of(tree, task)[0]["owner"] for task in ids}
    assert len(files.names(tree.folder("journal"))) == 3 and len(owners) > 1
