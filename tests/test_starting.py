"""Who starts a launcher's ranks: the words, the choice, and what a child is told in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NO_SYNC, eventually, make_tree, needs_mpiexec
from crashing import in_child
from hypothesis import given
from hypothesis import strategies as st

from spool import config
from spool.commands.launcher import launcher_command
from spool.errors import SpoolError
from spool.launcher import entry, starting
from spool.launcher.allocation import Allocation
from spool.launcher.entry import Wanted
from spool.launcher.field import Size
from spool.launcher.mpirun import Flavour
from spool.launcher.picker import Wishes
from spool.launcher.starting import Way, ranks_claimed
from spool.queue import layout
from spool.queue.processes import process_start

# -- am I one of several -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, 8),
        ({"PMI_SIZE": "many"}, 1),
        ({"PMI_SIZE": ""}, 1),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 1),  # a batch script is no step
    ],
)
def test_the_environment_tells_how_many_were_started_together(environment, count):
    assert ranks_claimed(environment) == count


# -- words ---------------------------------------------------------------------------------------


def test_the_mpiexec_that_came_with_mpi4py_is_tried_before_srun(monkeypatch):
    """An srun may pass on what ranks of another MPI tell each other, and garble some of it."""
    own = f"{os.path.dirname(sys.executable)}/mpiexec"
    found = [Flavour("openmpi", "/usr/bin/mpiexec"), Flavour("hydra", own)]
    monkeypatch.setattr(starting, "mpiexecs", lambda: found)
    monkeypatch.setattr(starting.shutil, "which", lambda name: f"/usr/bin/{name}")
    names = [way.name.rpartition("/")[2] for way in starting.ways("slurm", ["a", "b"])]
    assert names == [
        "mpiexec (hydra)", "srun", "srun --mpi=pmi2", "srun --mpi=pmix", "mpiexec (openmpi)"
    ]  # fmt: skip


def test_srun_and_every_mpiexec_start_one_rank_on_each_node():
    srun = starting._srun(["a", "b"], ("--mpi=pmi2",))
    assert srun[:3] == ("srun", "--overlap", "-N") and "--nodelist=a,b" in srun
    assert "--mpi=pmi2" in srun and "--ntasks-per-node=1" in srun
    for name in ("hydra", "intel", "openmpi", "pals"):
        words = starting._mpiexec(Flavour(name, "mpiexec"), ["a", "b"])
        assert words[0] == "mpiexec" and words[-2:] == ("-n", "2")
        assert "a,b" in words or "a:1,b:1" in words
    assert starting._mpiexec(Flavour("aprun", "aprun"), ["a"]) == ()


def test_what_fails_hangs_or_sees_the_wrong_world_is_not_chosen(tmp_path, monkeypatch):
    said = []
    good = tmp_path / "good"
    good.write_text("#!/bin/sh\necho 2; echo 2\n")
    lone = tmp_path / "lone"
    lone.write_text("#!/bin/sh\necho 1; echo 1\n")
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\necho no such host >&2; echo ---- >&2; exit 3\n")
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    for one in (good, lone, bad, slow):
        one.chmod(0o755)
    order = [Way(one.name, (str(one),)) for one in (lone, bad, slow, tmp_path / "none", good)]
    monkeypatch.setattr(starting, "TRY_S", 0.5)
    monkeypatch.setattr(starting, "ways", lambda system, hosts: order)
    assert starting.choose("", ["a", "b", "c"], said.append).name == "good"
    assert said == ["ranks are started by good"]
    monkeypatch.setattr(starting, "ways", lambda system, hosts: order[:-1])
    with pytest.raises(SpoolError, match=r"lone: 1; bad: no such host; slow: hung .*; none: "):
        starting.choose("", ["a", "b", "c"], said.append)


def test_what_hangs_is_not_waited_for_but_ended_once_another_way_works(tmp_path, monkeypatch):
    """As ranks hang whose shared memory has the name of one that a killed job left half made."""
    order = []
    for name, does in (("hangs", "exec sleep 61"), ("slow", "sleep 0.7; echo 2")):
        starter = tmp_path / name
        starter.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/{name}.pid\n{does}\n")
        starter.chmod(0o755)
        order.append(Way(name, (str(starter),)))
    monkeypatch.setattr(starting, "SILENT_S", 0.3)
    monkeypatch.setattr(starting, "ways", lambda system, hosts: order)
    begun = time.monotonic()
    chosen = starting.choose("", ["a", "b"], lambda text: None)
    assert chosen.name == "slow" and 0.7 <= chosen.took_s < 20
    assert time.monotonic() - begun < 20
    assert process_start(int((tmp_path / "hangs.pid").read_text())) is None


def test_a_node_that_does_not_answer_is_told_from_those_that_do(tmp_path, monkeypatch):
    fake = tmp_path / "ssh"
    fake.write_text(
        '#!/bin/sh\ncase $3 in up) shift 3; exec "$@";; slow) sleep 60;; *) exit 255;; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(starting, "SWEEP_S", 1.0)
    begun = time.monotonic()
    answers = starting.run_on_each("", ["up", "down", "slow", ""], ["true"])
    assert answers == {"up": 0, "down": 255, "slow": 255, "": 0}
    assert time.monotonic() - begun < 10


# -- what a child is told ------------------------------------------------------------------------


@given(
    st.sampled_from(["auto", "serial", "mpi"]),
    st.none() | st.integers(1, 99),
    st.lists(st.sampled_from(["a", "b c", "-x", "*"]), max_size=2, unique=True),
    st.booleans(),
    st.sampled_from([None, 0.0, 2.5, 600.0]),
)
def test_a_child_is_told_just_what_its_parent_wants(mode, cores, tags, pin, idle_s):
    wishes = Wishes(mode=mode, tags=tuple(tags), pin=pin, idle_s=idle_s, workflow="w")
    wanted = Wanted(Size(cores, None, 512), wishes, ends=1234.0, quiet=True)
    said = launcher_command.make_context("launcher", entry.options(wanted)).params
    assert (said["mode"], said["cores"], said["gpus"]) == (mode, cores, None)
    assert (said["tags"], said["pin"], said["workflow"]) == (tuple(tags), pin, "w")
    assert (said["ends"], said["quiet"], said["memory"]) == (1234.0, True, "512M")
    assert said["idle_timeout"] == ("never" if idle_s is None else f"{idle_s:g}")


def test_the_sooner_end_counts(monkeypatch):
    now = time.time()
    granted = Allocation("slurm", "1", ends=now + 100)
    for limit, left in ((0.0, 100), (50.0, 50), (500.0, 100)):
        found = entry._with_end(Wanted(Size(), Wishes(time_limit_s=limit)), granted)
        assert abs(found.wishes.time_limit_s - left) < 5
    alone = entry._with_end(Wanted(Size(), Wishes()), Allocation(""))
    assert alone.ends is None and alone.wishes.time_limit_s == 0


def test_leases_are_longer_inside_an_allocation_unless_somebody_set_them():
    plain, inside = config.Settings(), Allocation("slurm", "1")
    assert entry.patient_leases(plain, inside).lease_dead_s == 3600
    assert entry.patient_leases(plain, Allocation("")) == plain
    own = config.Settings(lease_dead_s=500.0)
    assert entry.patient_leases(own, inside) == own


# -- the one who minds them ----------------------------------------------------------------------


@needs_mpiexec
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_and_what_runs_is_given_back(tmp_path, number):
    from crashing import processes_of

    from spool.api import Spool
    from spool.queue import tasks
    from spool.queue.layout import State

    tree = make_tree(tmp_path / "spool", NO_SYNC)
    spool = Spool(tree.root)
    for _ in range(4):
        spool.submit(["sleep", "3" if number is signal.SIGINT else "60"], grace="1s")
    words = ["--spool", tree.root, "launcher", "--nodes", "2", "--cores-per-node", "1"]
    one = subprocess.Popen([sys.executable, "-m", "spool.cli", *words], stderr=subprocess.PIPE)
    running = [sys.executable]
    eventually(lambda: sum(1 for _ in tasks.spots(tree, (State.RUNNING,))) >= 2, "two run")
    eventually(lambda: len(processes_of(tree)) >= 2, "as processes")
    assert running
    one.send_signal(number)
    one.communicate(timeout=30)
    assert one.returncode == 0
    (log,) = Path(tree.folder("launchers")).glob("*/log")
    assert "its starter: ranks are started by" in log.read_text()
    states = [spot.state for spot in tasks.spots(tree, tuple(State))]
    ended = 2 if number is signal.SIGINT else 0  # a first Ctrl-C lets them end
    assert states.count(State.FINISHED) == ended
    assert states.count(State.READY) == 4 - ended
    assert processes_of(tree) == []


def test_ranks_that_meet_only_while_they_are_few_lines_are_started_another_way(
    tmp_path, monkeypatch
):
    """As with a PMI that cuts the longer messages of a whole launcher's ranks, or loses them."""
    tree = make_tree(tmp_path / "spool", '[launcher]\nsync = "none"\n')
    order = []
    monkeypatch.setattr(starting, "JOIN_S", 1.0)
    launches = {"cuts": "exit 15", "cuts-too": "exit 15", "loses": "exec sleep 61"}
    for name, launch in (launches | {"works": 'exec "$@"'}).items():
        starter = tmp_path / name
        takes = "sleep 1" if name == "works" else "true"  # so that it is waited for
        tried = f'[ "$3" = -c ] && {{ {takes}; echo 2; exit; }}'
        starter.write_text(f"#!/bin/sh\n{tried}\n{launch}\n")
        starter.chmod(0o755)
        order.append(Way(name, (str(starter),)))
    monkeypatch.setattr(starting, "ways", lambda system, hosts: order)

    def minds(tell):
        minder = starting.Minder(tree, "", ["", ""], tell)
        tell(minder.run(["--idle-timeout", "0", "--quiet"], None))

    said = in_child(minds)
    assert said[-1] == 0 and "ranks are started by works" in said
    for name in launches:
        assert f"ranks started by {name} did not come together" in said


@pytest.fixture
def minder(tree, owner) -> Iterator[starting.Minder]:
    """One that has started a launcher, which is our owner."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    one = starting.Minder(tree, "", ["", ""], lambda text: None)
    one.token = "token"
    owner.write_record(started_by="token")
    yield one
    for number, action in before.items():
        signal.signal(number, action)


def log_of(owner) -> str:
    return Path(owner.tree.owner(owner.name, layout.LOG)).read_text()


def test_what_its_starter_says_and_fails_of_stands_in_the_launcher_s_log(
    minder, owner, monkeypatch
):
    minder.log("before there is one")
    assert minder._launchers() == [owner.name]
    monkeypatch.setattr(starting.os, "urandom", lambda count: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        minder.run([], None)
    lines = log_of(owner).splitlines()
    assert "its starter: before there is one" in lines[0]
    assert "Traceback" in lines[1] and "ZeroDivisionError" in lines[-1]
    assert all("its starter: " in line for line in lines)


def test_a_signal_only_leaves_a_note_and_the_loop_acts_on_it(minder, tree, owner):
    inbox = Path(tree.owner(owner.name, layout.INBOX))
    minder._note(signal.SIGINT, None)
    assert not list(inbox.iterdir()) and not minder.told
    minder._heed()
    minder._note(signal.SIGINT, None)
    minder._heed()
    assert {path.name for path in inbox.iterdir()} == {"drain.launcher", "stop.launcher"}
    assert minder.told == ["drain", "stop"]


def test_a_request_that_cannot_be_written_ends_the_ranks_by_a_signal(minder, tree, owner):
    inbox = Path(tree.owner(owner.name, layout.INBOX))
    inbox.rmdir()
    inbox.write_text("no folder")
    minder.child = subprocess.Popen(["sleep", "60"])
    minder._note(signal.SIGTERM, None)
    minder._heed()
    assert minder.child.wait(10) == -signal.SIGTERM
