"""Nodes without a rank or a guard: what an mpirun left there is gone before its task runs again.

The nodes are process tables of their own (unshare, nsenter), reached by a program named ssh.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import MPIEXEC, eventually, make_tree, run_spool, where
from crashing import history_of, words_of

from spool.api import Spool
from spool.launcher.leftovers import Leftovers
from spool.queue import files, layout, processes, tasks
from spool.queue.layout import State, Tree
from spool.queue.owner import read_record

HERE = os.uname().nodename
SSH = """#!{python} -IS
import socket, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[1 + (words[0] == "-o"):]
daemon = socket.socket(socket.AF_UNIX)
daemon.connect("{folder}/socket")
socket.send_fds(daemon, ["\\0".join(words).encode()], [0, 1, 2])
sys.exit(int(daemon.recv(16) or 255))
"""
"""Has its words run by `Nodes`, since one process table cannot reach the other by itself. As with
ssh, what was started stays when this program is killed, and gets none of its environment."""
STAYS = """
setsid sh -c 'while :; do date +%s.%N > beat.new-$0; mv beat.new-$0 beat-$0; sleep 0.05; done' \
    $SPOOL_ATTEMPT-$PMI_RANK &
[ $SPOOL_ATTEMPT = 1 ] || { date +%s.%N > again; sleep 0.5; setsid true; kill $!; exit 0; }
sleep 300
"""
"""A rank whose helper is in a session of its own, so that no mpiexec ends it."""


def namespaces() -> bool:
    """Whether this machine can play nodes with process tables of their own."""
    words = ["unshare", "-p", "-f", "--mount-proc", "true"]
    try:
        return subprocess.run(words, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


needs_nodes = pytest.mark.skipif(
    not MPIEXEC.exists() or not shutil.which("nsenter") or not namespaces(),
    reason="needs mpiexec beside python, and unshare and nsenter with the right to use them",
)


class Nodes:
    """Two nodes of an allocation, this one and another, each with its own process table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        (folder / "ssh").write_text(SSH.format(python=sys.executable, folder=folder))
        (folder / "ssh").chmod(0o755)
        (folder / "nodes").write_text(f"{HERE}\nfar\n")
        self.began = [self._begin(name) for name in (HERE, "far")]
        self.begun: list[subprocess.Popen[str]] = []
        self.answers = True
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(f"{folder}/socket")
        self.door.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        """Run what is asked for on the far node, as its sshd."""
        while True:
            try:
                asker, _ = self.door.accept()
            except OSError:
                return
            threading.Thread(target=self._run, args=(asker,), daemon=True).start()

    def _run(self, asker: socket.socket) -> None:
        said, given, _, _ = socket.recv_fds(asker, 65536, 3)
        host, *words = said.decode().split("\0")
        enter = ["nsenter", "-t", str(self.pid(host)), "-p", "-m", "--", "/bin/sh", "-c"]
        code = 255
        if self.answers:
            streams = dict(zip(("stdin", "stdout", "stderr"), given, strict=True))
            code = subprocess.call([*enter, " ".join(words)], **streams)
        for one in given:
            os.close(one)
        with asker, suppress(OSError):
            asker.send(str(code % 256).encode())

    def _begin(self, name: str) -> subprocess.Popen[bytes]:
        words = ["unshare", "-p", "-f", "--mount-proc", "--kill-child", "sleep", "600"]
        one = subprocess.Popen(words)
        children = Path(f"/proc/{one.pid}/task/{one.pid}/children")
        eventually(lambda: children.read_text().strip(), "the node is up")
        (self.folder / f"{name}.pid").write_text(children.read_text().strip())
        return one

    def down(self) -> None:
        self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        for launcher in self.begun:
            launcher.kill()
            launcher.communicate()
        for one in self.began:
            one.kill()
            one.wait()

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def left(self, task_id: str, name: str) -> list[int]:
        """The processes of a task on one of them, by this machine's numbers."""
        space = os.readlink(f"/proc/{self.pid(name)}/ns/pid")
        mark = task_id.encode()
        found = []
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            if processes.environment(pid).get(b"SPOOL_TASK") == mark and _is_in(pid, space):
                found.append(pid)
        return found

    def launcher(self, tree: Tree, *words: str) -> subprocess.Popen[str]:
        """A launcher for MPI tasks on the first, in an allocation of both."""
        own = ["launcher", "--mode", "mpi", "--cores-per-node", "1", "--idle-timeout", "1s", *words]
        here = ["nsenter", "-t", str(self.pid(HERE)), "-p", "-m", "--", sys.executable]
        around = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "PBS_JOBID": "17.here",
            "PBS_NODEFILE": str(self.folder / "nodes"),
        }
        one = subprocess.Popen(
            [*here, "-m", "spool.cli", "--spool", tree.root, *own],
            env=os.environ | around,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.begun.append(one)
        return one


def _is_in(pid: int, space: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == space
    except OSError:
        return False


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    one = Nodes(tmp_path / "nodes")
    yield one
    one.down()


@pytest.fixture
def tree(tmp_path: Path, nodes: Nodes) -> Tree:
    mpirun = f"{MPIEXEC} -launcher ssh -launcher-exec {nodes.folder}/ssh"
    lease = '[lease]\nbeat = "1s"\nfence = "100s"\ndead = "1000s"\n'
    return make_tree(tmp_path / "spool", f'[launcher]\nsync = "none"\nmpirun = "{mpirun}"\n{lease}')


def submitted(tree: Tree, **keys: object) -> str:
    return Spool(tree.root).submit(["sh", "-c", STAYS], nodes=2, grace="1s", **keys).id


def begun(nodes: Nodes, tree: Tree, task: str) -> None:
    """Wait until a task runs on both nodes."""
    eventually(lambda: beat(tree, task, "beat-1-0") and beat(tree, task, "beat-1-1"), "it runs")
    assert nodes.left(task, HERE) and nodes.left(task, "far")


def beat(tree: Tree, task: str, name: str) -> float:
    """The moment that one of a task's processes wrote last."""
    spot = tasks.find(tree, task)
    raw = files.read(f"{spot.path(tree)}/{name}") if spot else None
    return float(raw) if raw else 0.0


def launchers(tree: Tree) -> list[str]:
    return files.names(tree.state(State.RUNNING))


def process_of(tree: Tree, nodes: Nodes) -> int:
    """The running launcher's own process, by this machine's number."""
    (name,) = launchers(tree)
    space = os.readlink(f"/proc/{nodes.pid(HERE)}/ns/pid")
    inner = str(read_record(tree, name)["pid"])
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        if _is_in(pid, space) and _inner(pid) == inner:
            return pid
    raise AssertionError(f"{name} is not there")


def _inner(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("NSpid:"))


def mpirun_of(launcher: int) -> int:
    """The mpirun that a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    named = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return next(pid for pid, words in named.items() if b"-launcher-exec" in words)


def assert_nothing_is_left(nodes: Nodes, task: str) -> None:
    assert nodes.left(task, HERE) == [] and nodes.left(task, "far") == []


def assert_ran_again_only_after(tree: Tree, task: str) -> None:
    """The second attempt began when no process of the first one lived."""
    assert where(tree, task).startswith("FINISHED/"), history_of(tree, task)
    last = max(beat(tree, task, f"beat-1-{rank}") for rank in (0, 1))
    assert 0 < last < beat(tree, task, "again")


# -- a task whose mpirun ended badly -------------------------------------------------------------


@needs_nodes
def test_a_killed_mpirun_s_task_runs_again_only_when_the_far_node_is_swept(tree, nodes):
    task = submitted(tree, max_attempts=2)
    one = nodes.launcher(tree)
    begun(nodes, tree, task)
    os.kill(mpirun_of(process_of(tree, nodes)), signal.SIGKILL)
    said = one.communicate(timeout=60)[1]
    assert one.returncode == 0, said
    assert_ran_again_only_after(tree, task)
    assert_nothing_is_left(nodes, task)


@needs_nodes
@pytest.mark.parametrize("how", ["limit", "cancel", "interrupt"])
def test_a_stopped_task_s_end_shows_only_when_nothing_is_left(tree, nodes, how):
    task = submitted(tree, **({"time_limit": "5s"} if how == "limit" else {}))
    one = nodes.launcher(tree)
    begun(nodes, tree, task)
    if how == "cancel":
        assert run_spool(tree.root, "cancel", task).returncode == 0
    elif how == "interrupt":
        os.kill(process_of(tree, nodes), signal.SIGTERM)
    eventually(lambda: not where(tree, task).startswith("RUNNING/"), "it has ended")
    assert_nothing_is_left(nodes, task)
    one.communicate(timeout=60)
    place = {"limit": "FAILED/timeout@", "cancel": "CANCELLED/", "interrupt": "READY/"}[how]
    assert where(tree, task).startswith(place)


@needs_nodes
def test_a_task_s_end_waits_for_a_node_that_does_not_answer(tree, nodes):
    task = submitted(tree)
    one = nodes.launcher(tree)
    begun(nodes, tree, task)
    nodes.answers = False
    (name,) = launchers(tree)
    os.kill(mpirun_of(process_of(tree, nodes)), signal.SIGKILL)
    log = tree.owner(name, layout.LOG)
    told = b"far: what was left there is not known to be gone"
    eventually(lambda: told in (files.read(log) or b""), "it was tried")
    assert where(tree, task).startswith("RUNNING/") and words_of(tree, task) == ["start"]
    nodes.answers = True
    assert one.wait(60) == 0
    assert where(tree, task).startswith("FAILED/")
    assert_nothing_is_left(nodes, task)


# -- a launcher that was killed ------------------------------------------------------------------


@needs_nodes
def test_a_killed_launcher_is_started_again_and_its_tasks_too_when_all_nodes_are_swept(tree, nodes):
    task = submitted(tree)
    one = nodes.launcher(tree)
    begun(nodes, tree, task)
    os.kill(process_of(tree, nodes), signal.SIGKILL)
    said = one.communicate(timeout=90)[1]
    assert one.returncode == 0, said
    assert "starting it again" in said
    assert words_of(tree, task) == ["start", "lost", "start", "exit"]
    assert_ran_again_only_after(tree, task)
    assert_nothing_is_left(nodes, task)


@needs_nodes
def test_who_takes_over_in_the_same_allocation_sweeps_its_nodes_first(tree, nodes):
    """The launcher and who minds it are killed at once: nobody has swept, nobody says so."""
    task = submitted(tree)
    one = nodes.launcher(tree)
    begun(nodes, tree, task)
    own = process_of(tree, nodes)
    minder = int(Path(f"/proc/{own}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(minder, signal.SIGKILL)
    os.kill(own, signal.SIGKILL)
    one.communicate(timeout=30)
    eventually(lambda: nodes.left(task, HERE) == [], "the guard has killed what was here")
    assert nodes.left(task, "far") != []
    with_others = nodes.launcher(tree)
    said = with_others.communicate(timeout=90)[1]
    assert with_others.returncode == 0, said
    assert words_of(tree, task) == ["start", "lost", "start", "exit"]
    assert_ran_again_only_after(tree, task)
    assert_nothing_is_left(nodes, task)


# -- one by one ----------------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named ssh that reaches this machine while `ssh.parent / "up"` is there."""
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ntest -e {fake.parent}/up || exit 255\nshift 3; exec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    return fake


def reap(left: Leftovers) -> None:
    """What the loop does, until nothing is under way."""
    while left.working:
        pid, status = os.waitpid(next(iter(left.working)), 0)
        assert left.ended(pid, status)


def test_a_node_that_is_silent_for_too_long_is_given_up_and_that_is_told(ssh):
    said: list[str] = []
    ours: set[int] = set()
    left = Leftovers("", (), 1.0, ours, said.append)
    begun_at = time.monotonic()
    left.of_task("t1", ["far", HERE])
    assert ours and left.unsettled == 1 and not left.settled("t1")
    while not left.settled("t1"):
        reap(left)
        left.beat(time.monotonic())
    assert time.monotonic() - begun_at >= 1.0
    assert "not known to be gone" in said[0]
    assert said[-1] == "SPOOL_TASK=t1: processes may live on at far: no answer for too long"
    reap(left)
    assert not ours and left.unsettled == 0


def test_a_dead_owner_s_marks_are_killed_on_every_node_of_the_allocation(ssh):
    (ssh.parent / "up").touch()
    left = Leftovers("", ("far", HERE), 100.0, set(), print)
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARK: "some-owner"})
    assert not left.clear("some-owner")
    left.beat(time.monotonic())
    assert not left.clear("some-owner") and len(left.working) == 2
    assert child.wait(30) == -signal.SIGKILL
    reap(left)
    assert left.clear("some-owner")


def test_many_tasks_that_end_badly_cost_a_node_few_programs(ssh):
    (ssh.parent / "up").touch()
    left = Leftovers("", (), 100.0, set(), print)
    programs = 0
    for number in range(200):
        left.of_task(f"no-such-task-{number}", ["far"])
    while left.left:
        programs += len(left.working)
        reap(left) if not programs > 1 else [left.ended(*os.waitpid(next(iter(left.working)), 0))]
    assert programs <= 2


def test_a_rank_that_begins_late_is_killed_too(tmp_path):
    """Its mpirun had sent it off just before it was killed."""
    late = [
        "sh",
        "-c",
        f"sleep 0.4; SPOOL_TASK=late {sys.executable} -c 'import time; time.sleep(60)'",
    ]
    child = subprocess.Popen(late)
    assert processes.sweep(["SPOOL_TASK=late"])
    assert child.wait(10) != 0
