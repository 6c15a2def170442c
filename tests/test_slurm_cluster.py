"""The Slurm that other tests stand on: real nodes, real MPI, a node that dies, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path

import pytest
import slurm_cluster
from conftest import eventually
from slurm_cluster import Slurm

pytestmark = pytest.mark.system
slurm = slurm_cluster.slurm


def no_mpi():
    """Why an MPI program cannot run; "" if it can."""
    try:
        for name in ("mpi4py", "mpich"):
            metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"needs the Python package {name}"
    return ""


def own_names(slurm):
    return not (slurm.folder / "run" / "shared").exists()


def test_all_nodes_are_idle(slurm):
    assert slurm.nodes == ["node1", "node2", "node3", "node4"]
    assert [slurm.node_state(name) for name in slurm.nodes] == ["idle"] * 4
    assert slurm.run("sinfo", "-h", "-p", "batch", "-o", "%D %c").split() == ["4", "64"]


def test_srun_reaches_four_hosts(slurm):
    if not own_names(slurm):
        pytest.skip("needs root and unshare for nodes with names of their own")
    assert sorted(slurm.run("srun", "-N4", "hostname").split()) == slurm.nodes


def test_a_job_is_followed_to_its_end(slurm):
    good = slurm.sbatch("echo on $SLURM_JOB_NUM_NODES nodes", "-N2", "-t", "1")
    bad = slurm.sbatch("#!/usr/bin/env bash\nexit 3")
    late = slurm.sbatch("true", "--hold", "--job-name=late")
    assert slurm.state(late) == "PENDING"
    assert slurm.wait(good) == "COMPLETED"
    assert slurm.output(good) == "on 2 nodes\n"
    assert slurm.wait(bad) == "FAILED"
    slurm.run("scancel", late)
    assert slurm.wait(late) == "CANCELLED"


@pytest.mark.skipif(bool(no_mpi()), reason=no_mpi())
def test_ranks_of_mpi_find_each_other_across_nodes(slurm, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(
        "from mpi4py import MPI\n"
        "world = MPI.COMM_WORLD\n"
        "names = world.gather(MPI.Get_processor_name())\n"
        "print(world.size, *sorted(set(names or []))) if world.rank == 0 else None\n"
    )
    words = ["srun", "--mpi=pmi2", "-N4", "-n8", sys.executable, "-m", "mpi4py", str(program)]
    size, *names = slurm.run(*words).split()
    assert size == "8"
    assert names == slurm.nodes or not own_names(slurm)


@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())
def test_a_killed_node_goes_down_and_comes_back(tmp_path):
    with Slurm(tmp_path / "up", nodes=2, settings=slurm_cluster.QUICK_DOWN) as slurm:
        goes_down_and_comes_back(slurm)


def goes_down_and_comes_back(slurm):
    job = slurm.sbatch("srun sleep 600", "-N1", "-w", "node2", "--no-requeue")
    eventually(lambda: slurm.state(job) == "RUNNING", "the job runs")
    slurm.kill_node("node2")
    eventually(lambda: slurm.node_state("node2").startswith("down"), "node2 is down", 60)
    assert slurm.wait(job) == "NODE_FAIL"
    slurm.node_up("node2")
    eventually(lambda: slurm.node_state("node2") == "idle", "node2 is back")
    assert slurm.wait(slurm.sbatch("true", "-w", "node2")) == "COMPLETED"


PROGRAM = """\
import signal, sys, time
from pathlib import Path
from slurm_cluster import Slurm
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's background job
with Slurm(Path(sys.argv[1]), nodes=2) as slurm:
    job = slurm.sbatch("setsid sleep 600 & srun sleep 600", "-N2")
    while slurm.state(job) != "RUNNING":
        time.sleep(0.1)
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_started_it(tmp_path, number):
    folder = tmp_path / "up"
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", PROGRAM, str(folder)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": there}
    with subprocess.Popen(words, **options) as owner:
        try:
            assert owner.stdout.readline() == b"up\n"
            spaces = {file.read_text().strip() for file in (folder / "run").glob("*.ns")}
            with kept(spaces):
                assert living(folder, spaces)
                owner.send_signal(number)
                owner.wait(30)
                eventually(lambda: not living(folder, spaces), "all of it is gone")
        finally:
            owner.kill()


@contextmanager
def kept(spaces):
    """As long as these namespaces are open here, none of another Slurm gets the number of one."""
    with ExitStack() as opened:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(process / "ns" / "uts") in spaces:
                    opened.enter_context(open(process / "ns" / "uts"))
        yield


def living(folder, spaces):
    """The processes that are on one of its nodes or know its configuration."""
    return [one.name for one in Path("/proc").glob("[0-9]*") if concerned(one, folder, spaces)]


def concerned(process, folder, spaces):
    try:
        space = os.readlink(process / "ns" / "uts")
        return space in spaces or bytes(folder) in (process / "environ").read_bytes()
    except OSError:
        return False
