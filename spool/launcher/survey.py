"""survey - can tasks run here: the allocation, the mpiruns and MPI there are, nodes, leases.

Owns   what `spool doctor` says of this machine as a place to run tasks: `examine`, which reports
       as it goes. An `of_` function judges a fact and never fails.
Never  touches the spool. It does not load MPI either: whatever does is a process of its own, which
       is killed with all it started when it hangs.
Fails  never: what is refused, missing or hangs is a finding.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from spool import units
from spool.config import Settings
from spool.errors import SpoolError
from spool.launcher import allocation, entry, field, hosts, mpirun, starting
from spool.launcher.allocation import Allocation
from spool.launcher.mpirun import Flavour, Seat
from spool.launcher.nodes import Node
from spool.launcher.run import clean_environment
from spool.queue import layout
from spool.queue.doctor import Finding
from spool.queue.ground import Answer

LIMIT_S, GRACE_S = 30.0, 2.0
NAMED_MOST = 8
SAID_MOST = 200  # characters of another program's last line

RANKS = (
    "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE",
    "MV2_COMM_WORLD_RANK", "MPI_RANKID", "MPI_RANK", "SLURM_PROCID",
)  # fmt: skip
"""Where a rank finds its number, the first that is set; as in mpirun's lines before a program."""

MARK = "spool-rank:"
_TELL_RANK = f"echo {MARK}{''.join(f'${{{name}-' for name in RANKS)}{'}' * len(RANKS)}"
_TELL_MPI = """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False  # the library is asked, but MPI not started
from mpi4py import MPI
print(mpi4py.__version__)
print(MPI.Get_library_version())
"""
_SET = f"set launcher.mpirun in {layout.SETTINGS}"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that was run: its exit code, None if it hung, and what it printed."""

    code: int | None
    out: str = ""
    err: str = ""
    took_s: float = 0.0

    @property
    def last_line(self) -> str:
        """What it said last of why it failed."""
        said = [line.strip() for line in self.err.splitlines() if re.search(r"\w", line)]
        return _fit(said[-1]) if said else f"exit code {self.code}"


def examine(
    settings: Settings, *, start: bool = True, say: Say = lambda _: None
) -> Iterator[Finding]:
    """Findings about this machine or allocation, each as soon as it is made.

    Without `start` no ranks are started and nothing is run on other nodes. `say` is told what is
    under way where that may take seconds.
    """
    granted = allocation.find(os.environ)
    own = field.own_node(field.Size(), settings, granted)
    yield Finding("allocation", *of_allocation(granted, own, time.time()))
    for complaint in granted.complaints:
        yield Finding("allocation", "warn", _fit(complaint, 4 * SAID_MOST))
    yield from _mpi_of_tasks(settings, granted, own, say if start else None)
    say("loading mpi4py")
    verdict, said = of_mpi4py(_run([sys.executable, "-P", "-c", _TELL_MPI], _base()))
    yield Finding("mpi4py", verdict, said)
    if start and verdict == "ok":
        yield from _ranks(granted, say)
    if start and len(granted.nodes) > 1:
        say("running a command on every other node")
        yield Finding("per node", *_per_node(granted))
    if granted.system:
        yield Finding("leases", *of_leases(settings, entry.patient_leases(settings, granted)))


# -- the allocation ------------------------------------------------------------------------------


def of_allocation(granted: Allocation, own: Node, now: float) -> Answer:
    """What a batch system has granted, and what of this machine a launcher would use."""
    if not granted.system:
        return "note", f"none (this machine alone: {_size(own)})"
    nodes = _counted(len(granted.nodes) or 1, "node")
    name = f"{granted.system} job {granted.job}" if granted.job else granted.system
    said = f"{name}: {nodes}, {_cores(granted.cores)}, {_left(granted.ends, now)}"
    over = granted.ends is not None and granted.ends <= now
    return "warn" if over else "ok", f"{said}; this one: {_size(own)}"


def _size(node: Node) -> str:
    gpus = f"GPUs {', '.join(node.gpus)}" if node.gpus else "no GPUs"
    return f"{_counted(len(node.cpus), 'core')}, {node.memory_mb:,} MB, {gpus}"


def _cores(cores: Sequence[int]) -> str:
    """The cores on each node as a batch system tells them."""
    if not cores:
        return "cores not told"
    least, most = min(cores), max(cores)
    told = _counted(most, "core") if least == most else f"{least} to {most} cores"
    return f"{told} each" if len(cores) > 1 else told


def _left(ends: float | None, now: float) -> str:
    if ends is None:
        return "its end is not known"
    return f"{units.print_age(ends - now)} left" if ends > now else "its time is up"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


# -- an mpirun for each task ---------------------------------------------------------------------


def _mpi_of_tasks(
    settings: Settings, granted: Allocation, own: Node, say: Say | None
) -> Iterator[Finding]:
    """Which mpirun starts tasks of several ranks and, if there is a `say`, whether it does."""
    setting = settings.launcher_mpirun
    try:
        flavour = mpirun.find(setting, os.environ, granted.system)
    except SpoolError as fault:
        yield Finding("mpi tasks", "fail", f"launcher.mpirun: {_fit(str(fault), 4 * SAID_MOST)}")
        return
    yield Finding("mpi tasks", *of_flavour(flavour))
    if flavour and say:
        say(f"starting 2 ranks with {flavour.program}")
        yield Finding("mpi start", *of_start(_run(*_two_ranks(flavour, own))))


def of_flavour(flavour: Flavour | None) -> Answer:
    """Which mpirun it is, or what to do without one."""
    if flavour is None:
        what = f"Run: pip install mpich, or load an MPI module, or {_SET}"
        return "note", f"no mpirun or srun was found, so tasks of several ranks wait. {what}"
    if flavour.template:
        return "ok", f"each is started by the template {_fit(flavour.template)}"
    name = f"{flavour.name} {flavour.version}".strip()
    extra = f" with {' '.join(flavour.extra)}" if flavour.extra else ""
    return "ok", f"each is started by {name}, {flavour.program}{extra}"


def _two_ranks(flavour: Flavour, own: Node) -> tuple[list[str], dict[str, str]]:
    """The words and the environment that start two ranks here as a task's are started."""
    seats, pin = [Seat(own.name, own.cpus[:2], ())], not own.shared
    made = mpirun.environment(seats, 2, 1, pin=pin, flavour=flavour)
    program = ["/bin/sh", "-c", _TELL_RANK]
    words = mpirun.words(flavour, seats, 2, 1, program, pin=pin, forwarded=sorted(made))
    kept = {name: text for name, text in _base().items() if name not in mpirun.MISLEADING}
    return words, kept | made


def of_start(ran: Ran) -> Answer:
    """Whether two ranks ran that each know which one they are."""
    lines = ran.out.splitlines()
    told = sorted(line.partition(MARK)[2].strip() for line in lines if MARK in line)
    if ran.code is None:
        heard = f" ({ran.last_line})" if ran.err.strip() else ""
        return "warn", f"2 ranks did not end within {LIMIT_S:.0f} s{heard}; {_SET}"
    if ran.code:
        return "warn", f"2 ranks could not be started: {ran.last_line}; {_SET}"
    if len(told) < 2:
        return "warn", f"of 2 ranks {len(told)} ran; {_SET}"
    if told == ["0", "1"]:
        return "ok", f"2 ranks started and ended in {ran.took_s * 1e3:.0f} ms"
    if set(told) == {""}:
        why = "none finds its number in its environment, so their cores are not bound"
    else:
        why = f"they are numbered {', '.join(told)} and not 0, 1"
    return "warn", f"{_counted(len(told), 'rank')} ran, but {why}; {_SET}"


# -- one launcher with ranks ---------------------------------------------------------------------


def of_mpi4py(ran: Ran) -> Answer:
    """Which mpi4py and which MPI library Python has."""
    told = [line.strip() for line in ran.out.splitlines() if line.strip()]
    if ran.code == 0 and len(told) > 1:
        return "ok", f"{told[0]} with {_fit(' '.join(told[1].split()))}"
    if ran.code is None:
        return "warn", f"loading it did not end within {LIMIT_S:.0f} s"
    if "No module named 'mpi4py'" in ran.last_line:
        what = "Run: pip install mpi4py mpich, or use --per-node"
        return "note", f"not installed; serial tasks on several nodes need it. {what}"
    what = "Run: pip install mpi4py mpich, or load the module of its MPI, or use --per-node"
    return "warn", f"it cannot be used: {ran.last_line}. {what}"


def _ranks(granted: Allocation, say: Say) -> Iterator[Finding]:
    """Every way to start a launcher's ranks, tried on two nodes; without them, twice here."""
    several = len(granted.nodes) > 1
    two = granted.nodes[:2] if several else ("", "")
    chosen = False
    for way in starting.ways(granted.system, two):
        say(f"starting 2 ranks with {way.name}")
        seen = _seen(way)
        yield Finding("ranks", *of_way(way.name, seen, chosen=chosen))
        chosen = chosen or seen == "2"
    if not chosen:
        yield Finding("ranks", *of_no_way(several=several))


def _seen(way: starting.Way) -> str:
    try:
        return starting.sizes_seen(way)
    except UnicodeDecodeError:
        return "what it printed is no text"


def of_way(name: str, seen: str, *, chosen: bool) -> Answer:
    """What ranks saw that were started one way; chosen: one before it is the launcher's choice."""
    if seen == "2":
        said = f"{name}: 2 ranks see each other"
        return ("note", f"{said} as well") if chosen else ("ok", f"{said}; chosen")
    if seen == "1":
        program = name.split()[0].rpartition("/")[2]
        return "note", f"{name}: 2 singletons: this {program} belongs to another MPI than mpi4py"
    why = f"ranks see {seen} of 2" if seen.isdigit() else _fit(seen)
    return "note", f"{name}: does not work: {why}"


def of_no_way(*, several: bool) -> Answer:
    """What it means that no launcher can have ranks; it matters where there are several nodes."""
    what = "Run: pip install mpi4py mpich, or use --per-node"
    return "warn" if several else "note", f"nothing here starts ranks of one launcher. {what}"


# -- other nodes ---------------------------------------------------------------------------------


def _per_node(granted: Allocation) -> Answer:
    here = hosts.short(os.uname().nodename)
    others = [host for host in granted.nodes if hosts.short(host) != here]
    try:
        return of_answers(starting.run_on_each(granted.system, others, ["true"]))
    except SpoolError as fault:
        return "warn", f"{fault}, so --per-node cannot be used"


def of_answers(codes: Mapping[str, int]) -> Answer:
    """Which of the other nodes ran a command, by its exit codes."""
    lost = [host for host, code in codes.items() if code != 0]
    if not lost:
        return "ok", f"a command ran on {_counted(len(codes), 'other node')}"
    more = f" and {len(lost) - NAMED_MOST:,} more" if len(lost) > NAMED_MOST else ""
    named = ", ".join(lost[:NAMED_MOST]) + more
    said = f"no answer from {len(lost):,} of {_counted(len(codes), 'other node')}: {named}"
    return "warn", f"{said}; choose others with spool launcher --nodes"


def of_leases(settings: Settings, used: Settings) -> Answer:
    """How long a launcher here may be silent."""
    fence, dead = map(units.print_duration, (used.lease_fence_s, used.lease_dead_s))
    why = f"as {layout.SETTINGS} says" if used == settings else "longer, as in any allocation"
    said = f"a launcher that cannot beat for {fence} kills its own tasks"
    return "ok", f"{said}, one silent for {dead} is taken over ({why})"


# -- programs ------------------------------------------------------------------------------------


def _base() -> dict[str, str]:
    return clean_environment(dict(os.environ))


def _run(words: Sequence[str], environment: Mapping[str, str]) -> Ran:
    """Run a program to its end, or for LIMIT_S."""
    begun = time.monotonic()
    # Files, since a pipe that an orphan keeps open would hold us too.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as fault:
            return Ran(127, err=f"{words[0]}: {fault.strerror}")
        code = _code(child)
        took_s = time.monotonic() - begun
        out.seek(0)
        err.seek(0)
        told, why = (file.read().decode(errors="replace") for file in (out, err))
    return Ran(code, told, why, took_s)


def _code(child: subprocess.Popen[bytes]) -> int | None:
    """Its exit code once it has ended; None if it did not in time, and was killed."""
    try:
        return child.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.returncode is None:
            _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End it and its group; srun and mpiexec need the chance to end their ranks elsewhere."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)


def _fit(text: str, most: int = SAID_MOST) -> str:
    """Another's words as part of a line: printable, and not too many."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."
