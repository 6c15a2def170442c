"""Fixtures: a fresh spool, tasks in it, owners that really live, and waiting for a condition."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from spool import config
from spool.api import Spool
from spool.queue import files, layout, processes, tasks
from spool.queue.layout import Tree
from spool.queue.owner import Owner

hypothesis.settings.register_profile("untimed", deadline=None)  # speed is for the benchmarks
hypothesis.settings.load_profile("untimed")
PATIENCE_S = 30.0
QUIET_DOOR = '[door]\nquiet = "0.2s"\n'
NO_SYNC = '[launcher]\nsync = "none"\n'
MPIEXEC = Path(sys.executable).parent / "mpiexec"
MPI_PROGRAM = [sys.executable, str(Path(__file__).parent / "mpi_program.py")]
needs_mpiexec = pytest.mark.skipif(
    not MPIEXEC.exists(), reason="needs mpiexec beside python. Run: pip install mpi4py mpich"
)


LONGEST_FIRST = (
    "service_slurm", "service_local", "stager", "ranks", "slurm_launcher", "crash", "hands",
    "launcher", "dependencies", "function", "leftovers", "arrays", "cli", "readme", "transfer",
    "seams", "executor", "slurm_cluster", "queue_command", "faults", "gate", "balsam_mixture",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that none of them is alone at the end."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _no_watcher_stays() -> Iterator[None]:
    yield
    files.watch(None)


@pytest.fixture(autouse=True)
def _no_spool_around_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPOOL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def make_tree(root: Path, settings: str = "") -> Tree:
    """A spool's folders, with spool.toml as `spool init` leaves it, or with other settings."""
    for name in layout.FOLDERS:
        (root / name).mkdir(parents=True)
    text = f"format = 1\n{settings}" if settings else config.TEMPLATE
    (root / layout.SETTINGS).write_text(text)
    return Tree(str(root))


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Tree:
    """An empty spool, its door quiet after 0.2 s, or set as the test module's SETTINGS say."""
    return make_tree(tmp_path / "spool", getattr(request.module, "SETTINGS", QUIET_DOOR))


@pytest.fixture
def nothing_runs_on(tree: Tree) -> Iterator[None]:
    """Whatever the launchers of a failed test left is killed; its report has what they said."""
    yield
    for name in files.names(tree.folder("launchers")):
        sys.stdout.write(f"{name}:\n{(files.read(tree.owner(name, layout.LOG)) or b'').decode()}")
        processes.kill_marked(name)


@pytest.fixture
def spool(tree: Tree) -> Spool:
    """The same spool through the API."""
    return Spool(tree.root)


@pytest.fixture
def owner(tree: Tree) -> Iterator[Owner]:
    """A living owner of kind launcher: this process."""
    one = Owner.start(tree, config.load(tree.root), "launcher")
    yield one
    if os.path.isdir(one.claims):
        one.end()


def run_spool(
    root: str, *words: str, timeout: float = 60, check: bool = False, **options: object
) -> subprocess.CompletedProcess[str]:
    """The real program, as a person runs it."""
    command = [sys.executable, "-m", "spool.cli", "--spool", root, *words]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, timeout=timeout, check=check, **options
    )


@pytest.fixture
def command(tree: Tree) -> Callable[..., subprocess.CompletedProcess[str]]:
    """command("ls", "--json") runs the program on the test's spool."""

    def call(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        return run_spool(tree.root, *words, **options)  # type: ignore[arg-type]

    return call


def eventually(
    true: Callable[[], object], what: str = "condition", within: float = PATIENCE_S
) -> None:
    """Wait until `true()` is; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.02)


def where(tree: Tree, task_id: str) -> str:
    """STATE/GROUP of a task, "" if it is nowhere."""
    spot = tasks.find(tree, task_id)
    return f"{spot.state}/{spot.group}" if spot else ""


def all_ids(tree: Tree) -> list[str]:
    """Every task id that lies anywhere but in tmp/."""
    return [spot.id for spot in tasks.spots(tree, tuple(layout.State))]
