"""large - a million waiting tasks: how long `spool status` takes, and what memory anything needs.

Run as  python benchmarks/large.py [--count N] [--repeat N] [--dir DIR]
Exit    0 all wanted bounds hold; 1 one is missed, or something did not work.

In memory (/dev/shm) where there is room, so that the figures are spool's and not the disk's. The
tasks are built in a child process: a peak that wait4 tells is never below that of the parent.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import measure
import psutil
import spools
from measure import Line, Place, Scale

from spool.queue.layout import State, Tree

SHM = "/dev/shm"
BYTES_EACH = 6 << 10
MOST_MB = 100.0
TIME_LIMIT = "12s"
GRACE_S = 1  # a launcher interrupts its tasks so long, and a margin, before its time is up
LAUNCHER_LONGEST_S = 120.0
NO_BUDGET = 'system = "local"\nbudget = 0\n'
LOCAL_QUEUE = '[queues.local]\nnodes = "1-4"\ncores = 2\n'


def main() -> int:
    """Build, look, run; the exit code."""
    asked = arguments()
    lines: list[Line] = []
    with measure.place(asked.dir or roomy(asked.count)) as place:
        print(measure.header(place.path), flush=True)
        scale = Scale(place, max(1, asked.repeat))
        try:
            for step in STEPS:
                print(f"{step.__name__} ...", file=sys.stderr, flush=True)
                lines += step(scale, asked.count)
        except measure.Broken as fault:
            print(f"large: {fault}", file=sys.stderr)
            lines.append(Line("large", "broken", value=1, wanted=measure.NONE))
        return measure.show(lines, quick=False)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="A million tasks; exits 1 if a bound is missed.")
    parser.add_argument("--count", type=int, default=1_000_000, metavar="N", help="1000000")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="pairs of runs; 3")
    parser.add_argument("--dir", help=f"where to work; {SHM} if it has room, else build")
    return parser.parse_args()


def roomy(count: int) -> str:
    """In memory where there is room for so many tasks, else on the disk."""
    if not os.path.isdir(SHM) or not os.access(SHM, os.W_OK):
        return "build"
    space = os.statvfs(SHM)
    free = min(space.f_bavail * space.f_frsize, psutil.virtual_memory().available)
    return SHM if free >= count * BYTES_EACH else "build"


def spool_in(place: Place) -> Tree:
    """The one spool of this benchmark."""
    return Tree(f"{place.path}/spool")


# -- the steps -----------------------------------------------------------------------------------


def build(scale: Scale, count: int) -> list[Line]:
    """Submit through the Python API, in a process of its own."""
    tree = spools.make(scale.place.path)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as child:
        seconds = child.submit(submit, tree.root, count).result(measure.LONGEST_S)
    return [Line(f"build: Submitter.add, {count:,} tasks", measure.rate(count / seconds))]


def submit(root: str, count: int) -> float:
    """Seconds that it takes to submit no-op tasks, manifest by manifest."""
    from spool.queue import manifest
    from spool.queue.submit import Submitter

    began = time.perf_counter()
    with Submitter(Tree(root)) as submitter:
        for number in range(count):
            asked = {"command": [spools.NO_OP, str(number)], "grace": GRACE_S}
            submitter.add(manifest.from_mapping(asked, "item"))
        submitter.finish()
    return time.perf_counter() - began


def status(scale: Scale, count: int) -> list[Line]:
    """`spool status` against find, which only counts names: it asks nothing about them."""
    tree = spool_in(scale.place)
    peaks: list[float] = []
    count_names = f"find {tree.state(State.READY)} -mindepth 2 -maxdepth 2 -printf x | wc -c"

    def ours(folder: str) -> float:
        ran = measure.run(spools.command(tree, "status"), folder)
        peaks.append(ran.peak_mb)
        return ran.seconds

    def theirs(folder: str) -> float:
        return shell(count_names, folder, count)

    found = measure.paired(scale, ours, theirs, "status")
    return [
        Line(
            f"status vs find -mindepth 2 -maxdepth 2 -printf x | wc -c, {count:,} READY",
            measure.milliseconds(found.mine),
            measure.milliseconds(found.base),
            found.ratio,
            measure.at_most(2.0),
        ),
        memory("status", max(peaks)),
    ]


def service(scale: Scale, count: int) -> list[Line]:
    """`spool service --once`: its whole decision, on a budget that lets it ask for nothing."""
    tree, folder = spool_in(scale.place), scale.place.fresh("service")
    with open(tree.settings) as settings:
        text = settings.read()
    with open(tree.settings, "w") as settings:
        settings.write(text.replace("[service]\n", f"[service]\n{NO_BUDGET}", 1) + LOCAL_QUEUE)
    runs = [
        measure.run(spools.command(tree, "service", "--once"), folder)
        for _ in range(max(3, scale.repeat))
    ]
    seconds = statistics.median(ran.seconds for ran in runs)
    figure, wanted = measure.milliseconds(seconds), measure.at_most(1.0)
    return [
        Line(f"service --once, {count:,} READY: seconds", figure, value=seconds, wanted=wanted),
        memory("service --once", max(ran.peak_mb for ran in runs)),
    ]


def ls(scale: Scale, count: int) -> list[Line]:
    """`spool ls` of all, through a pipe."""
    tree, folder = spool_in(scale.place), scale.place.fresh("ls")
    words = spools.command(tree, "ls", "--state", "READY")
    with open(f"{folder}/count", "wb") as counted:
        wc = subprocess.Popen(["wc", "-l"], stdin=subprocess.PIPE, stdout=counted)
        assert wc.stdin is not None
        ran = measure.run(words, folder, output=wc.stdin)
        wc.stdin.close()
        wc.wait()
    with open(f"{folder}/count") as file:
        lines = int(file.read())
    figure = f"{ran.seconds:.1f} s, {measure.rate(count / ran.seconds)}, {lines:,} lines"
    return [
        Line("ls --state READY | wc -l", figure),
        Line("ls --state READY: peak memory", f"{ran.peak_mb:.0f} MB"),
    ]


def launcher(scale: Scale, count: int) -> list[Line]:
    """A launcher that sees all the tasks, runs some for seconds and leaves."""
    tree, folder = spool_in(scale.place), scale.place.fresh("launcher")
    words = spools.launch(tree, "--cores", "2", "--time-limit", TIME_LIMIT)
    ran = measure.run(words, folder, longest_s=LAUNCHER_LONGEST_S)
    finished = sum(1 for _ in spools.tasks_in(tree, State.FINISHED))
    left = sum(1 for _ in spools.tasks_in(tree, State.READY))
    lost = abs(count - finished - left)
    done = f"{finished:,} in {ran.seconds:.1f} s"
    return [
        memory(f"launcher --time-limit {TIME_LIMIT} ({done})", ran.peak_mb),
        Line("launcher: neither FINISHED nor READY", str(lost), value=lost, wanted=measure.NONE),
    ]


# -- what they share -----------------------------------------------------------------------------


def memory(name: str, peak_mb: float) -> Line:
    """A peak of memory, and what is allowed."""
    bound = measure.at_most(MOST_MB, timed=False)
    return Line(f"{name}: peak memory, MB", f"{peak_mb:.0f}", value=peak_mb, wanted=bound)


def shell(line: str, folder: str, wanted: int) -> float:
    """Seconds of a shell line that must print a number. Raises Broken: it printed another."""
    with open(f"{folder}/count", "w+b") as counted:
        seconds = measure.run(["sh", "-c", line], folder, output=counted).seconds
        counted.seek(0)
        if (said := int(counted.read())) != wanted:
            raise measure.Broken(f"{line}: counts {said:,}, not {wanted:,}")
    return seconds


STEPS: tuple[Callable[[Scale, int], list[Line]], ...] = (build, status, service, ls, launcher)

if __name__ == "__main__":
    sys.exit(main())
