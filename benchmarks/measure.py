"""measure - run things against one another, fairly; print what came out and whether it is enough.

Owns   the benchmark's own folder, the order of paired runs, the table, the verdicts.
Never  deletes a tree between two runs: on ext4 that slows the making of the next ones.
Fails  Broken: a program under measurement failed or took too long; its last words are shown.
"""

from __future__ import annotations

import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import psutil
import tabulate

LONGEST_S = 900.0
Contestant = Callable[[str], float]
"""Does its work in the fresh folder it is given; its figure, mostly seconds or a rate."""


class Broken(Exception):
    """What was to be measured did not work."""


# -- figures and verdicts ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bound:
    """What is wanted of a value. `timed`: it depends on speed, so a smoke run does not judge it."""

    limit: float
    at_least: bool = False
    timed: bool = True

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Whether the value is good enough."""
        return value >= self.limit if self.at_least else value <= self.limit


def at_least(limit: float) -> Bound:
    """A speed that is wanted."""
    return Bound(limit, at_least=True)


def at_most(limit: float, *, timed: bool = True) -> Bound:
    """A cost that is allowed."""
    return Bound(limit, timed=timed)


NONE = at_most(0, timed=False)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `value` is what the bound judges, None: unknown, so not judged.

    It is shown as the ratio where there is a baseline.
    """

    name: str
    figure: str
    baseline: str = ""
    value: float | None = None
    wanted: Bound | None = None
    note: str = ""

    def verdict(self, quick: bool) -> str:
        """ok, MISSED, or why there is neither."""
        if self.wanted is None or self.value is None or (quick and self.wanted.timed):
            return self.note
        return "ok" if self.wanted.holds(self.value) else "MISSED"


def show(lines: Sequence[Line], *, quick: bool) -> int:
    """Print the table; the exit code it deserves."""
    rows = [
        (
            line.name,
            line.figure,
            line.baseline,
            f"{line.value:.2f}" if line.baseline and line.value is not None else "",
            line.wanted or "",
            line.verdict(quick),
        )
        for line in lines
    ]
    heads = ("name", "figure", "baseline", "ratio", "wanted", "verdict")
    print(tabulate.tabulate(rows, heads, disable_numparse=True), flush=True)
    if quick:
        print("smoke run: bounds on speed were not judged")
    return int(any(row[-1] == "MISSED" for row in rows))


# -- a place to work in --------------------------------------------------------------------------


class Place:
    """The benchmark's own folder: hands out fresh ones; all go at the very end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0

    def fresh(self, name: str) -> str:
        """A new empty folder."""
        self.count += 1
        path = f"{self.path}/{self.count:03}-{name}"
        os.mkdir(path)
        return path


@contextmanager
def place(parent: str) -> Iterator[Place]:
    """A new folder in `parent` (made if missing), and nothing but it removed at the end."""
    os.makedirs(parent, exist_ok=True)
    path = tempfile.mkdtemp(prefix="bench-", dir=os.path.abspath(parent))
    try:
        yield Place(path)
    finally:
        print(f"removing {path} ...", file=sys.stderr, flush=True)
        subprocess.run(["rm", "-rf", "--", path], check=False)


def header(path: str) -> str:
    """Where this was measured: without it a figure says nothing."""
    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    return (
        f"{len(os.sched_getaffinity(0))} cores, Linux {platform.release()},"
        f" Python {platform.python_version()}, {file_system(path)} at {path}, load {load}"
    )


def file_system(path: str) -> str:
    """The type of the file system a path lies on."""
    whole = os.path.realpath(path)
    mounts = [
        (len(one.mountpoint), number, one.fstype)
        for number, one in enumerate(psutil.disk_partitions(all=True))
        if os.path.commonpath((whole, one.mountpoint)) == one.mountpoint
    ]
    return max(mounts)[2] if mounts else "unknown"


# -- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do: where, how often, and whether a tenth is enough."""

    place: Place
    repeat: int = 3
    quick: bool = False

    def tasks(self, full: int) -> int:
        """So many tasks, or a tenth of them."""
        return full // 10 if self.quick else full


@dataclass(frozen=True, slots=True)
class Pairs:
    """Figures of two contestants, run by run."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """The median of the ratios ours / theirs of each pair: slow drifts cancel out."""
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def mine(self) -> float:
        """Our median."""
        return statistics.median(self.ours)

    @property
    def base(self) -> float:
        """Their median."""
        return statistics.median(self.theirs)


def paired(scale: Scale, ours: Contestant, theirs: Contestant, name: str) -> Pairs:
    """Run the two alternately, theirs first, each in a fresh folder on a disk come to rest."""
    found = Pairs([], [])
    for number in range(scale.repeat):
        found.theirs.append(settled(theirs, scale.place.fresh(f"{name}-base")))
        found.ours.append(settled(ours, scale.place.fresh(f"{name}-ours")))
        pair = f"{found.ours[-1]:.4g} vs {found.theirs[-1]:.4g}"
        print(f"  {name} {number + 1}/{scale.repeat}: {pair}", file=sys.stderr, flush=True)
    return found


def settled(contestant: Contestant, folder: str) -> float:
    """Run one once nothing is left to write: nobody pays for what another left behind."""
    os.sync()
    return contestant(folder)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program went. peak_mb is its own peak, but never less than this process's."""

    seconds: float
    peak_mb: float


def run(
    words: Sequence[str],
    folder: str,
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    longest_s: float = LONGEST_S,
) -> Ran:
    """Run a program in `folder` to its end and time it. Raises Broken unless it exits with 0."""
    with started(words, folder, output=output) as running:
        return running.finish(longest_s)


class Started:
    """A program that runs, timed from before its start."""

    def __init__(self, words: Sequence[str], process: subprocess.Popen[bytes], log: str) -> None:
        self.words, self.process, self.log = words, process, log
        self.began = 0.0

    def finish(self, longest_s: float) -> Ran:
        """Wait for its end. Raises Broken."""
        watched = os.pidfd_open(self.process.pid)
        try:
            if not select.select([watched], [], [], longest_s)[0]:
                raise Broken(f"{self._line}: still running after {longest_s:g} s")
            _, status, used = os.wait4(self.process.pid, 0)
        finally:
            os.close(watched)
        seconds = time.perf_counter() - self.began
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise Broken(f"{self._line}: exit code {self.process.returncode}: {self._last_words()}")
        return Ran(seconds, used.ru_maxrss / 1024)

    @property
    def _line(self) -> str:
        return " ".join(self.words)[:200]

    def _last_words(self) -> str:
        with open(self.log, errors="replace") as file:
            return file.read()[-2000:].strip()


@contextmanager
def started(
    words: Sequence[str],
    folder: str,
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[Started]:
    """Start a program; if it is still there at the end of the block it is killed."""
    with tempfile.NamedTemporaryFile(prefix="errors-", dir=folder) as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        running = Started(words, process, errors.name)
        running.began = began
        try:
            yield running
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


# -- words ---------------------------------------------------------------------------------------


def rate(value: float) -> str:
    """Things per second."""
    return f"{value:,.0f}/s"


def milliseconds(seconds: float) -> str:
    """A short time."""
    return f"{seconds * 1000:.1f} ms"
