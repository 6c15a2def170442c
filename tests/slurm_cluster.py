"""A real Slurm of several nodes on this machine, started and stopped by the scripts in slurm/.

A test module takes it with

    import slurm_cluster
    slurm = slurm_cluster.slurm

and its tests by their argument `slurm`: four nodes that claim 64 CPUs each. Where Slurm cannot run,
they are skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import eventually

SCRIPTS = Path(__file__).parent / "slurm"
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "flock", "bash")
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY")
) | {"PREEMPTED", "TIMEOUT"}

QUICK_DOWN = ("SlurmdTimeout=2", "MessageTimeout=2")
"""Where a test kills a node: Slurm sees it sooner, but may give up a node that is only slow."""

GUARD = 'folder=${@: -1}; "$0/slurm-up" "$@" </dev/null && read -r _; "$0/slurm-down" "$folder"'
"""Starts Slurm, and kills it when its input ends: the kernel sees to that if we are killed."""


def missing() -> str:
    """Why a private Slurm cannot run here; "" if it can."""
    if sys.platform != "linux":
        return "needs Linux for a Slurm of its own"
    absent = [one for one in PROGRAMS if shutil.which(one, path=PATH) is None]
    return f"needs {', '.join(absent)} (packages slurm-wlm and munge)" if absent else ""


class Slurm:
    """A Slurm that lives in a folder as long as a with statement, and never longer than we do."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 4,
        cpus: int = 64,
        gpus: int = 0,
        settings: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._words = ["-n", str(nodes), "-c", str(cpus), "-g", str(gpus)]
        self._words += [word for line in settings for word in ("-o", line)]
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Slurm:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Start all of it; return when every node is idle."""
        (self.folder / "jobs").mkdir(parents=True)
        with open(self.folder / "messages", "w") as messages:
            self._guard = subprocess.Popen(
                ["bash", "-c", GUARD, SCRIPTS, *self._words, self.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=self._around(),
                start_new_session=True,  # a Ctrl-C at the terminal is for us, not for it
            )
        assert self._guard.stdout is not None
        started = self._guard.stdout.readline()
        assert started, (self.folder / "messages").read_text()

    def down(self) -> None:
        """Kill all of it, the jobs too."""
        if self._guard is None:
            return
        with self._guard as guard:  # leaving closes its pipes and waits for it
            assert guard.stdin is not None
            with suppress(BrokenPipeError):
                guard.stdin.close()
        assert guard.returncode == 0, (self.folder / "messages").read_text()
        self._guard = None

    def _around(self) -> dict[str, str]:
        """Our environment, but of this Slurm, even where we are a job of some other Slurm."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
        return {**kept, "PATH": PATH, **self.environment}

    def run(self, *words: str, text: str = "", within: float = 60) -> str:
        """A client's output, such as squeue's; CalledProcessError if it fails."""
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            timeout=within,
            env=self._around(),
            cwd=self.folder / "jobs",
        )
        if done.returncode:
            fault = subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
            fault.add_note(done.stderr)
            raise fault
        return done.stdout

    # -- jobs ------------------------------------------------------------------------------------

    def sbatch(self, script: str, *options: str) -> str:
        """Submit a script, of /bin/sh unless it says otherwise; the job's id."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}"
        return self.run("sbatch", "--parsable", *options, text=text).strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ...; of an array, each state that a part of it is in."""
        return " ".join(sorted(self._states(job)))

    def _states(self, job: str) -> set[str]:
        return set(self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split())

    def wait(self, job: str, within: float = 60.0) -> str:
        """Wait until all of a job has ended; its state."""
        try:
            eventually(lambda: self._states(job) <= ENDED, f"job {job} ends", within)
        except AssertionError as fault:
            fault.add_note(self.told(job))
            raise
        return self.state(job)

    def told(self, job: str) -> str:
        """All that may tell why a job is not over: its words, steps and nodes, Slurm's own logs."""
        asked = [
            ["scontrol", "show", "job", job],
            ["squeue", "--steps", "-j", job],
            ["sinfo", "-N", "-p", "batch", "-o", "%n %T %E"],
            ["ps", "--ppid", "2", "-N", "-o", "pid,ppid,stat,etimes,wchan:12,args", "--forest"],
        ]
        told = [f"job's output:\n{self.output(job)}", *(self.run(*words) for words in asked)]
        for log in sorted((self.folder / "log").glob("*.log")):
            last = log.read_text(errors="replace").splitlines()[-30:]
            told.append("\n".join([f"{log.name}:", *last]))
        return "\n".join(told)

    def output(self, job: str) -> str:
        """What a job has written to its standard output so far."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        (path,) = (word for word in shown.split() if word.startswith("StdOut="))
        with suppress(FileNotFoundError):
            return Path(path.removeprefix("StdOut=")).read_text()
        return ""

    # -- nodes -----------------------------------------------------------------------------------

    def node_state(self, name: str) -> str:
        """Such as idle, mixed or down; with a star at its end while the node does not answer."""
        return self.run("sinfo", "-h", "-N", "-p", "batch", "-n", name, "-o", "%T").strip()

    def kill_node(self, name: str) -> None:
        """SIGKILL everything that runs on a node; with QUICK_DOWN Slurm sees it some 16 s later."""
        self.run(str(SCRIPTS / "slurm-down"), str(self.folder), name)

    def node_up(self, name: str) -> None:
        """Start a killed node's slurmd again."""
        self.run(str(SCRIPTS / "slurm-up"), str(self.folder), name)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of four nodes with 64 CPUs each, for all tests of a module."""
    if reason := missing():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm") / "up") as cluster:
        yield cluster
