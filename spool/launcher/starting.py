"""starting - one launcher over the nodes of an allocation: who starts it, and minds it.

Owns   the words that start ranks or one launcher a node; starting again what died.
Never  runs a task. It holds no lease, so whatever happens to it, the spool is whole.
Fails  SpoolError: nothing here can start ranks, or none of what was tried works.

Which srun or mpiexec belongs to the MPI that mpi4py uses cannot be read anywhere, and the wrong one
starts silent singletons; so each is tried, with a program that tells how many ranks it sees.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import IO

from spool import units
from spool.errors import SpoolError
from spool.launcher import mpirun
from spool.launcher.run import launcher_environment
from spool.queue import claim, files, layout, owner, processes
from spool.queue.layout import State, Tree

OWN = os.path.dirname(sys.executable)
"""Python's own folder: what came with mpi4py lies there."""
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PALS_SIZE", "MPI_LOCALNRANKS")
TRY_S, PARTING_S, SWEEP_S = 60.0, 10.0, 30.0
SILENT_S = 5.0  # an answer takes less, mostly: then the next way is tried beside this one
# In which the ranks of a launcher come together: so long, and so much more for each second that
# the two of a trial took, and for each node.
JOIN_S, JOIN_MORE, JOIN_NODE_S = 10.0, 10.0, 0.1
AGAIN_MOST = 10
YOUNG_S = 30.0  # a launcher that dies sooner than that, twice, is not started again
LOOK_S = 0.2  # how soon a signal is passed on, and an end seen
TRIAL_LOOK_S = 0.02
LEFT_S = 60.0  # of its time below which starting again is not worth it
MPI_KINDS = ((), ("--mpi=pmi2",), ("--mpi=pmix",))
NEEDED = {"SLURM_OVERLAP": "1", "SLURM_CPU_BIND": "none"} | {
    f"{name}_ALLOW_RUN_AS_ROOT{more}": "1" for name in ("OMPI", "PRTE") for more in ("", "_CONFIRM")
}
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to start a process on each of some nodes: `words` go before the program's.

    took_s is how long ranks that were started so took to see each other, when that was tried.
    """

    name: str
    words: tuple[str, ...]
    took_s: float = 0.0


def ranks_claimed(environment: Mapping[str, str]) -> int:
    """How many ranks this process is one of, by its environment; 1 for none."""
    for variable in SIZES:
        if environment.get(variable, "").isdigit():
            return int(environment[variable])
    if "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "").isdigit():
        return int(environment["SLURM_STEP_NUM_TASKS"])
    return 1


def ways(system: str, hosts: Sequence[str]) -> list[Way]:
    """What may start ranks here, the likeliest first. hosts all "": so many on this machine.

    An mpiexec in Python's own folder came with the MPI that mpi4py uses, if any did.
    """
    own, others = list[Way](), list[Way]()
    if system == "slurm" and hosts[0] and shutil.which("srun"):
        others = [Way(" ".join(("srun", *kind)), _srun(hosts, kind)) for kind in MPI_KINDS]
    for flavour in mpiexecs():
        if words := _mpiexec(flavour, hosts):
            ours = os.path.dirname(flavour.program) == OWN
            (own if ours else others).append(Way(f"{flavour.program} ({flavour.name})", words))
    return own + others


def _srun(hosts: Sequence[str], kind: Sequence[str]) -> tuple[str, ...]:
    count = str(len(hosts))
    words = ["srun", "--overlap", "-N", count, "-n", count, "--ntasks-per-node=1", "--mem=0"]
    words += [f"--nodelist={','.join(hosts)}", "--cpu-bind=none", "--export=ALL", *kind]
    return (*words, "--kill-on-bad-exit=1", "--wait=0")


def _mpiexec(flavour: mpirun.Flavour, hosts: Sequence[str]) -> tuple[str, ...]:
    count, listed = str(len(hosts)), ",".join(hosts)
    words = [flavour.program]
    if flavour.name in ("hydra", "intel"):
        words += ["-hosts", listed, "-ppn", "1"] if hosts[0] else ["-launcher", "fork"]
    elif flavour.name == "openmpi":
        seats = ",".join(f"{host}:1" for host in hosts)
        words += ["--host", seats, "--map-by", "ppr:1:node"] if hosts[0] else ["--oversubscribe"]
        words += ["--bind-to", "none"]
    elif flavour.name == "pals":
        words += ["--hosts", listed, "--ppn", "1", "--cpu-bind", "none"]
    else:
        return ()
    return (*words, "-n", count)


def mpiexecs() -> list[mpirun.Flavour]:
    """Every mpiexec there is, on PATH and in Python's own folder, by the names they answer to."""
    found: dict[str, mpirun.Flavour] = {}
    for where in (os.environ.get("PATH", os.defpath), OWN):
        program = shutil.which("mpiexec", path=where) or shutil.which("mpirun", path=where)
        if program is None or program in found:
            continue
        name, version = mpirun.recognise(mpirun.ask_version(program))
        if name:
            found[program] = mpirun.Flavour(name, program, version)
    return list(found.values())


def choose(system: str, hosts: Sequence[str], log: Log, without: Sequence[str] = ()) -> Way:
    """The first way whose ranks see each other, tried on two nodes. Raises SpoolError.

    `without` names ways that are known not to work after all.
    """
    said = [f"{name}: its ranks did not come together" for name in without]
    pairs = zip(ways(system, hosts), ways(system, hosts[:2]), strict=True)
    left = [(full, tried) for full, tried in pairs if full.name not in without]
    trials: list[tuple[Way, Trial]] = []
    with ExitStack() as ends_all:
        while left or trials:
            if left and (not trials or trials[-1][1].age_s >= SILENT_S):
                full, tried = left.pop(0)
                trials.append((full, ends_all.enter_context(Trial(tried))))
            for full, trial in [pair for pair in trials if pair[1].answer()]:
                if (answer := trial.answer()) == str(len(hosts[:2])):
                    log(f"ranks are started by {full.name}")
                    return replace(full, took_s=trial.age_s)
                said.append(f"{full.name}: {answer}")
                trials.remove((full, trial))
            time.sleep(TRIAL_LOOK_S)
    why = "; ".join(said) or "there is neither srun nor mpiexec here"
    raise SpoolError(
        f"no ranks can be started on {len(hosts)} nodes ({why})."
        " Run: pip install mpi4py mpich, or spool launcher --per-node, or spool doctor"
    )


def sizes_seen(way: Way) -> str:
    """How many ranks the ranks see that are started this way, or what went wrong."""
    with Trial(way) as trial:
        while not (answer := trial.answer()):
            time.sleep(TRIAL_LOOK_S)
    return answer


class Trial:
    """Ranks that are started to tell how many they see; leaving it ends them."""

    def __init__(self, way: Way) -> None:
        self.begun = time.monotonic()
        self.out, self.err = _kept(), _kept()
        self.process: subprocess.Popen[bytes] | None = None
        self.fault = ""
        try:
            self.process = subprocess.Popen(
                [*way.words, sys.executable, "-P", "-c", _PROBE],
                env=launcher_environment() | NEEDED,
                stdin=subprocess.DEVNULL,
                stdout=self.out,
                stderr=self.err,
            )
        except OSError as fault:
            self.fault = str(fault)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            _end(self.process)
        self.out.close()
        self.err.close()

    @property
    def age_s(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self.begun

    def answer(self) -> str:
        """How many ranks they see, or what went wrong; "" as long as that is not known."""
        if self.process is None:
            return self.fault
        if self.process.poll() is None:
            return f"hung for {TRY_S:.0f} s" if self.age_s >= TRY_S else ""
        told = {line for line in _said(self.out).split() if line.isdigit()}
        if self.process.returncode == 0 and len(told) == 1:
            return told.pop()
        worded = [line for line in _said(self.err).splitlines() if re.search(r"\w", line)]
        return (worded or [f"exit code {self.process.returncode}"])[-1].strip()[:200]


def _kept() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _said(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


_PROBE = """
import sys
from mpi4py import MPI
sys.stdout.write(f"{len(MPI.COMM_WORLD.allgather(MPI.COMM_WORLD.rank))}\\n")
"""


class Stopped(Exception):
    """Somebody wants no launcher any more."""


class Minder:
    """Starts one launcher's ranks, passes signals on, and starts it again should it be killed.

    A `lone` launcher has none: it is one process here, whose mpiruns reach the other nodes. What it
    says stands in the launcher's log too: nobody may read our standard error.
    """

    def __init__(
        self, tree: Tree, system: str, hosts: Sequence[str], say: Log, *, lone: bool = False
    ) -> None:
        self.tree, self.system, self.say, self.lone = tree, system, say, lone
        self.hosts = list(hosts)
        self.child: subprocess.Popen[bytes] | None = None
        self.signals: list[int] = []
        self.told: list[str] = []
        self.known: list[str] = []
        self.unwritten: list[bytes] = []
        self.useless: list[str] = []
        self.token = ""
        self.trying = False

    def run(self, words: Sequence[str], ends: float | None) -> int:
        """Until it is over; the launcher's exit code. Raises SpoolError."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) wants it
                signal.signal(number, self._note)
        try:
            return self._run(words, ends)
        except SpoolError as fault:
            self._write(str(fault))
            raise
        except Exception:
            self._write(traceback.format_exc())
            raise

    def log(self, text: str) -> None:
        """Say something, and keep it in the log of the launcher that we started."""
        self.say(text)
        self._write(text)

    def _write(self, text: str) -> None:
        """Add lines to the log of our last launcher, or of the first once it is there."""
        stamp = units.now_stamp()
        for line in text.splitlines():
            self.unwritten.append(f"{stamp} its starter: {claim.printable(line)}\n".encode())
        if not self.known:
            return
        lines, self.unwritten = b"".join(self.unwritten), []
        for name in self.known:
            with suppress(OSError, SpoolError):  # for people: a full disk must not stop the tasks
                files.append(self.tree.owner(name, layout.LOG), lines, heal=False)

    def _run(self, words: Sequence[str], ends: float | None) -> int:
        short = 0
        for _ in range(AGAIN_MOST):
            begun, useless = time.monotonic(), len(self.useless)
            code = self._once(words)
            if code:
                self._sweep()
            self._heed()
            if code in (0, 2) or self.told:
                return code
            another_way = len(self.useless) > useless  # is tried next: that is no second try
            young = time.monotonic() - begun < YOUNG_S and not another_way
            short = short + 1 if young else 0
            if short > 1 or (ends is not None and ends - time.time() < LEFT_S):
                break
            self._leave_out_the_dead()
            self.log(f"the launcher was killed (exit code {code}); starting it again")
        raise SpoolError(
            f"the launcher was killed (exit code {code}); its tasks are requeued by the next one"
        )

    def _once(self, words: Sequence[str]) -> int:
        self.token = os.urandom(8).hex()
        if (way := Way("", ()) if self.lone else self._way()) is None or self.told:
            return 0
        own = [sys.executable, "-P", "-m", "spool.cli", "--spool", self.tree.root, "launcher"]
        whole = [*way.words, *own, *words, "--parent", self.token]
        whole += ["--nodes", self._chosen()] if self.lone else []
        needed = {} if self.lone else NEEDED
        self._heed()
        if self.told:
            return 0
        self.child = subprocess.Popen(
            whole,
            env=launcher_environment() | needed | {processes.MINDER: self.token},
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is for us alone: they would get it twice
        )
        wait_s = JOIN_S + JOIN_MORE * way.took_s + JOIN_NODE_S * len(self.hosts)
        if not self.lone and not self._came_together(self.child, wait_s):
            self.log(f"ranks started by {way.name} did not come together")
            self.useless.append(way.name)
            _end(self.child)
        while self.child.poll() is None:
            self._heed()
            time.sleep(LOOK_S)
        code, self.child = self.child.returncode, None
        return 128 - code if code < 0 else code

    def _way(self) -> Way | None:
        """How ranks are started; None if we are told to stop while we try. Raises SpoolError."""
        self.trying = True
        try:
            return choose(self.system, self.hosts, self.log, self.useless)
        except Stopped:
            return None
        finally:
            self.trying = False

    def _chosen(self) -> str:
        """The nodes that are left, as --nodes has them: names, or how many this machine plays."""
        return ",".join(self.hosts) if self.hosts[0] else str(len(self.hosts))

    def _came_together(self, child: subprocess.Popen[bytes], wait_s: float) -> bool:
        """Whether a launcher is there within that time, or it ended without a fault.

        Ranks of a few lines may meet, as `choose` saw, where those of a whole launcher do not: what
        they tell each other is longer, and some starters cut it.
        """
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            self._heed()
            with suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_S)
            if self._launchers() or self.told:
                self._write("")  # what was said before
                return True
            if child.poll() is not None:
                return child.returncode in (0, 2)
        return False

    def _note(self, number: int, _frame: object) -> None:
        """A signal came: no more than that is done here, where anything may be half done.

        Raises Stopped where ranks are only being tried.
        """
        self.signals.append(number)
        if self.trying:
            raise Stopped

    def _heed(self) -> None:
        """The first Ctrl-C drains, the next signal stops; what still does not end is signalled."""
        while self.signals:
            number = self.signals.pop(0)
            verb = "drain" if number == signal.SIGINT and not self.told else "stop"
            asked = not self.lone and verb not in self.told and self._ask(verb)
            self.told.append(verb)
            if not asked and self.child is not None:
                with suppress(ProcessLookupError):
                    self.child.send_signal(number if self.lone else signal.SIGTERM)

    def _ask(self, verb: str) -> bool:
        """Put a request to the launchers that we started; False if it reached none."""
        asked = False
        for name in self._launchers():
            with suppress(OSError, SpoolError):
                files.replace(self.tree.request(name, verb, "launcher"), b"{}")
                asked = True
        return asked

    def _sweep(self) -> None:
        """Kill on every node what the launchers that we started left; then say so."""
        for name in self._launchers():
            kill = [sys.executable, "-I", "-S", processes.__file__, "--kill", name, self.token]
            if self._on_every_node(kill):
                record = owner.read_record(self.tree, name)
                grave = f"{self.tree.owner(name, layout.LAUNCHER)}"
                files.replace(grave, owner.encoded({**record, "swept": True}))

    def _launchers(self) -> list[str]:
        """Those that we started, and that have not ended."""
        found = []
        for group in files.names(self.tree.state(State.RUNNING)):
            record = owner.read_record(self.tree, group)
            if record.get("started_by") == self.token:
                found.append(group)
        self.known = found or self.known
        return found

    def _on_every_node(self, words: Sequence[str]) -> bool:
        """Run something once on each node; whether it went well on all."""
        return all(code == 0 for code in run_on_each(self.system, self.hosts, words).values())

    def _leave_out_the_dead(self) -> None:
        """Go on without the nodes that no longer answer."""
        answers = run_on_each(self.system, self.hosts, ["true"])
        lost = [host for host, code in answers.items() if code != 0]
        if lost and len(lost) < len(self.hosts):
            self.log(f"going on without {', '.join(lost)}: no answer")
            self.hosts = [host for host in self.hosts if host not in lost]


def _end(child: subprocess.Popen[bytes]) -> None:
    """End who starts ranks, who ends them; with KILL, if it must be."""
    child.terminate()
    try:
        child.wait(PARTING_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def run_on_each(system: str, hosts: Sequence[str], words: Sequence[str]) -> dict[str, int]:
    """The exit code of a command on each node; 255 where it could not be run in time."""
    environment = launcher_environment()
    running = {}
    for host in dict.fromkeys(hosts):
        whole = [*on_node(system, host), *words]
        try:
            running[host] = subprocess.Popen(
                whole,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            continue
    deadline = time.monotonic() + SWEEP_S
    return {host: _code(running.get(host), deadline) for host in dict.fromkeys(hosts)}


def _code(process: subprocess.Popen[bytes] | None, deadline: float) -> int:
    if process is None:
        return 255
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return 255


def on_node(system: str, host: str) -> list[str]:
    """The words that start a program once on one node: nothing for this machine."""
    if not host or host.partition(".")[0] == os.uname().nodename.partition(".")[0]:
        return []
    if system == "slurm" and shutil.which("srun"):
        words = ["srun", "--overlap", "-N", "1", "-n", "1", f"--nodelist={host}", "--mem=0"]
        return [*words, "--cpu-bind=none", "--export=ALL", "--mpi=none", "--quiet"]
    if shutil.which("ssh"):
        return ["ssh", "-o", "BatchMode=yes", host]
    for flavour in mpiexecs():
        if words := list(_mpiexec(flavour, [host])):
            return words
    raise SpoolError(f"nothing here starts a program on {host}: no srun, ssh or mpiexec")


def one_on_each(system: str, hosts: Sequence[str], words: Sequence[str], log: Log) -> int:
    """Run one independent launcher on each node; 0 if all ended well, else the worst exit code."""
    environment = launcher_environment()
    lines = [
        [*on_node(system, host), *words, *(("--nodes", host) if host else ())] for host in hosts
    ]
    children = [
        subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, process_group=0)
        for line in lines
    ]

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    codes = []
    for host, child in zip(hosts, children, strict=True):
        code = child.wait()
        codes.append(code := 128 - code if code < 0 else code)
        if code:
            log(f"the launcher on {host} ended with exit code {code}")
    return max(codes, default=0)
