"""nodes - a launcher over MPI ranks against one process, and its mpiruns against a bare loop.

Four ranks on this machine play four nodes of half a core each; an mpirun starts two ranks of a
program that does nothing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import sys

import measure
import spools
from measure import Line, Scale

from spool.launcher import mpirun

RANKS = 4
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")


def lines(scale: Scale) -> list[Line]:
    """Both, where there is an mpiexec."""
    if MPIEXEC is None:
        return [Line("nodes: needs mpiexec. Run: pip install mpi4py mpich", "not run")]
    return [*over_ranks(scale), *mpiruns(scale)]


def over_ranks(scale: Scale) -> list[Line]:
    """Tasks a second by a launcher of four ranks, against one of a single process."""
    count = scale.tasks(2_000)
    wrong: list[int] = []

    def ours(folder: str) -> float:
        words = ["--cores-per-node", "1"]
        tree = spools.make(folder)
        spools.submit(tree, count)
        os.sync()
        began = [str(MPIEXEC), "-n", str(RANKS), *spools.launch(tree, *words)]
        ran = measure.run(began, folder)
        wrong.append(spools.wrongly_recorded(tree, count))
        return count / ran.seconds

    def theirs(folder: str) -> float:
        tree = spools.make(folder)
        spools.submit(tree, count)
        os.sync()
        return count / measure.run(spools.launch(tree, "--cores", str(RANKS)), folder).seconds

    found = measure.paired(scale, ours, theirs, "ranks")
    return [
        Line(
            f"ranks: {count:,} no-op tasks, {RANKS} MPI ranks vs one process, start included",
            measure.rate(found.mine),
            measure.rate(found.base),
            found.ratio,
        ),
        Line(
            "ranks: not recorded just once", str(sum(wrong)), value=sum(wrong), wanted=measure.NONE
        ),
    ]


def mpiruns(scale: Scale) -> list[Line]:
    """MPI tasks a second, one at a time, against the same mpiexec in a loop of sh.

    The same with the words that the launcher gives it, which bind each rank to its core.
    """
    count = scale.tasks(600)
    plain: list[float] = []

    def ours(folder: str) -> float:
        tree = spools.make(folder)
        spools.submit(tree, count, "--ranks-per-node", "2")
        os.sync()
        words = spools.launch(tree, "--cores", "2", "--mode", "mpi")
        return count / measure.run(words, folder).seconds

    def theirs(folder: str) -> float:
        plain.append(loop(folder, count, f"{MPIEXEC} -launcher fork -n 2 {spools.NO_OP}", {}))
        return loop(folder, count, *bound())

    found = measure.paired(scale, ours, theirs, "mpiruns")
    return [
        Line(
            f"mpi: {count} mpiexec -n 2, one after the other, vs a loop of sh, the same words",
            f"{found.mine:.1f}/s",
            f"{found.base:.1f}/s",
            found.ratio,
            measure.at_least(0.8),
        ),
        Line(
            "mpi: the same vs a loop of sh that binds no rank to a core",
            f"{found.mine:.1f}/s",
            f"{statistics.median(plain):.1f}/s",
            found.mine / statistics.median(plain),
        ),
    ]


def loop(folder: str, count: int, line: str, more: dict[str, str]) -> float:
    """How often a second sh runs a line."""
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in more.items())
    words = ["sh", "-c", f"for i in $(seq {count}); do {settings} {line}; done"]
    return count / measure.run(words, folder).seconds


def bound() -> tuple[str, dict[str, str]]:
    """The line that a launcher would run, and the variables that it would add."""
    flavour = mpirun.find(str(MPIEXEC), os.environ, "")
    assert flavour is not None
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:2]
    seats = [mpirun.Seat("", cpus, ())]
    words = mpirun.words(flavour, seats, 2, 1, [spools.NO_OP], pin=True, forwarded=())
    return shlex.join(words), mpirun.environment(seats, 2, 1, pin=True, flavour=flavour)
