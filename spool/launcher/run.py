"""run - one task as processes: its environment, its place, its output, its start and its end.

Owns   the start line, the environment and pinning of a task, the words of its exit line.
Never  moves a task; never waits.
Fails  LeaseLost; DiskFull; FileNotFoundError: the task's directory vanished before it could start.
"""

from __future__ import annotations

import errno
import math
import os
import re
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from spool import units
from spool.errors import SpoolError
from spool.launcher import clock, inputs, mpirun, wrapping, zygote
from spool.launcher.book import Grants
from spool.launcher.spawner import Order, Spawner
from spool.queue import allocations, apps, claim, faults, files, history, layout, processes
from spool.queue.owner import Owner
from spool.queue.shape import Shape
from spool.queue.tasks import Task

NOT_FOUND, NOT_RUNNABLE = 127, 126  # as shells say it
SHORT = (*faults.FULL, *faults.SCARCE, errno.EAGAIN)
"""What the machine, and no fault of the program, answers when it is not to be started now."""
FLOOR_SLACK_KB = 4096  # our mark is read once a second, and the kernel counts pages in batches
SAID_LAST = 4096
LONGEST_VARIABLE = 100_000  # Linux takes 128 KiB; more parents stand in manifest.json
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
_OURS = re.compile(
    r"(PMI_|PMIX_|OMPI_|PRTE_|OPAL_|ORTE_|HYDI_|HYDRA_|MPIR_|MPI_LOCAL|I_MPI_|SPOOL_).*"
)
_KEPT = re.compile(r"OMPI_ALLOW_RUN_AS_ROOT.*")


@dataclass(slots=True)
class Running:
    """One task that runs: what it was given on each of its nodes, and how it is being ended.

    Times ending in _at are seconds of the monotonic clock; 0 is never. stopping says why we end
    it: timeout, cancelled or interrupted; said is what came with a request to cancel. last_line is
    its start line, kept because the program may remove its own directory.
    """

    task: Task
    shape: Shape
    grants: Grants
    attempt: int
    started: float
    started_at: float
    pid: int = 0
    limit_at: float = 0.0
    kill_at: float = 0.0
    stopping: str = ""
    said: dict[str, Any] = field(default_factory=dict)
    last_line: bytes = b""
    end: dict[str, Any] | None = None

    @property
    def due_at(self) -> float:
        """When something must be done about it: its limit is reached, or its grace is over."""
        if self.stopping:
            return self.kill_at or math.inf
        return self.limit_at or math.inf


class Starter:
    """Starts tasks for one owner, with as few system calls as can be."""

    def __init__(
        self,
        owner: Owner,
        *,
        pin: bool,
        hide_gpus: bool,
        node: str = "0",
        hosts: Sequence[str] = ("",),
        mpirun: Callable[[], mpirun.Flavour | None] = lambda: None,
    ) -> None:
        self.owner = owner
        self.pin = pin
        self.hosts = hosts
        self.mpirun = mpirun
        self.spawner = Spawner()
        self.zygotes: zygote.Zygotes | None = None
        self.hide_gpus = hide_gpus
        self.allowed = os.sched_getaffinity(0)
        self.base = clean_environment(dict(os.environ))
        self.base["SPOOL"] = owner.tree.root
        self.base[processes.MARK], self.base[processes.NODE] = owner.name, node
        self.hurried = False
        self.no_input = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def confine(self, cpus: set[int]) -> None:
        """Live on these cores; a task that gets all of them needs no pinning."""
        os.sched_setaffinity(0, cpus)
        self.allowed = self.spawner.everywhere = cpus

    def start(self, task: Task, shape: Shape, grants: Grants) -> Running:
        """Write the start line and start the program. `end` of one that could not start is set."""
        attempt = task.story.attempt + 1
        rerun = task.story.lines > 0 and self._clear(task, attempt)
        now = clock.epoch()
        event = {
            "time": units.stamp(now),
            "what": "start",
            "attempt": attempt,
            "owner": self.owner.name,
            "node": self.owner.record["host"],
            **self._told(grants),
        }
        line = history.encode(event)
        self._write_start(task, line, rerun)
        history.tell(task.story, event)
        running = Running(task, shape, grants, attempt, now, clock.now(), last_line=line)
        if limit := limit_s(task):
            running.limit_at = running.started_at + limit
        try:
            if task.manifest.inputs and task.story.prepared is None:  # else its stager did it
                inputs.provide(self.owner.tree, task)
            self._spawn(running, self._words(running))
        except (OSError, SpoolError) as fault:
            if isinstance(fault, OSError) and fault.errno in SHORT:
                raise faults.explained(fault, task.path) from fault
            running.end = self._never_started(running, fault)
        return running

    def _told(self, grants: Grants) -> dict[str, Any]:
        """What a start line tells of the cores, GPUs and nodes that an attempt got."""
        if len(grants) > 1:
            return {"nodes": [self.hosts[grant.node] for grant in grants]}
        told: dict[str, Any] = {"cpus": grants[0].cpus}
        if grants[0].gpus:
            told["gpus"] = grants[0].gpus
        return told

    def _words(self, running: Running) -> list[str]:
        """The words to run: of the task, or of the mpirun that starts its ranks."""
        task, shape = running.task, running.shape
        words = command_of(self.owner, task)
        if task.manifest.container or task.manifest.setup:
            templates = dict(self.owner.settings.containers)
            words = wrapping.wrapped(words, task.manifest, task.path, templates)
        if task.manifest.array:
            from spool.launcher import chunks  # which knows what runs

            return chunks.prepare(running, words, pin=self.pin)
        if not shape.mpi:
            return words
        if (flavour := self.mpirun()) is None:
            raise SpoolError("there is no mpirun here. Run: spool doctor")
        made = self._environment(running).items()
        forwarded = {name for name, value in made if os.environ.get(name) != value}
        return mpirun.words(
            flavour,
            self._seats(running.grants),
            shape.ranks,
            cores_per_rank(running),
            words,
            pin=self.pin,
            forwarded=sorted(forwarded),
        )

    def _seats(self, grants: Grants) -> list[mpirun.Seat]:
        return [mpirun.Seat(self.hosts[one.node], one.cpus, one.gpus) for one in grants]

    def _write_start(self, task: Task, line: bytes, rerun: bool) -> None:
        path = f"{task.path}/{layout.HISTORY}"
        try:
            claim.append(self.owner, path, line, heal=rerun)
        except FileNotFoundError:
            raise
        except OSError:  # a link, a folder, or closed to us: what was told before is known
            if not files.is_plain(path):
                files.move_aside(path)
            files.replace(path, b"\n".join((task.told, line)))

    def _clear(self, task: Task, attempt: int) -> bool:
        """Keep what an earlier attempt wrote; True, since the history may end in a torn line."""
        ready = task.story.prepared is not None  # its files were moved aside before that
        if attempt > 1 and task.manifest.fresh and not ready:
            move_old_files(task.path, attempt - 1)
        return True

    def _spawn(self, running: Running, words: list[str]) -> None:
        task, cpus = running.task, running.grants[0].cpus
        environment = self._environment(running)
        program = find_program(words[0], environment.get("PATH", os.defpath))
        own = self.pin and not running.shape.mpi and set(cpus) != self.allowed
        cores = cpus if own else ()
        opened = self._output(task)
        outputs = (self.no_input, opened[0], opened[-1])
        order = Order(program, words, environment, task.path, outputs, cores)
        try:
            running.pid = self._forked(running, words, order) or self.spawner.start(
                order, hurried=self.hurried
            )
        finally:
            for file in opened:
                os.close(file)

    def _forked(self, running: Running, words: list[str], order: Order) -> int | None:
        """The process of a task with calls, from a warm one; None: it is started as a program."""
        wanted = running.task.manifest
        if not wanted.python or self.zygotes is None or not zygote.is_plain(words, wanted.python):
            return None
        cpus = running.grants[0].cpus
        if self.pin:  # a fork starts where its zygote lives, which may be more than we do now
            order = order._replace(cores=tuple(cpus))
        return self.zygotes.start(order, wanted, len(cpus))

    def _output(self, task: Task) -> list[int]:
        """The files that stdout and stderr go to, one for both or one each."""
        if task.manifest.output == "none":
            return [os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)]
        if task.manifest.array:  # of its runner alone, which says little
            return [files.open_log(f"{task.path}/{layout.OUTPUT}")]
        opened = [open_fresh(f"{task.path}/{layout.OUTPUT}")]
        if task.manifest.output == "apart":
            opened.append(open_fresh(f"{task.path}/{layout.ERRORS}"))
        return opened

    def _environment(self, running: Running) -> dict[str, str]:
        wanted = running.task.manifest
        made = self._given(running)
        if wanted.app:
            made.update(apps.lookup(self.owner.tree, wanted.app).environment)
        made.update(wanted.environment)
        made[processes.MARK] = self.owner.name  # the guard finds a task's processes by this
        whole = self.base | made
        if running.shape.mpi:
            for name in mpirun.MISLEADING:
                whole.pop(name, None)
        return whole

    def _mpi_environment(self, running: Running) -> dict[str, str]:
        """What the ranks of a task are told, and what its mpirun needs."""
        shape, flavour = running.shape, self.mpirun()
        if not shape.mpi or flavour is None:
            return {}
        seats = self._seats(running.grants)
        cores = cores_per_rank(running)
        return mpirun.environment(seats, shape.ranks, cores, pin=self.pin, flavour=flavour)

    def _given(self, running: Running) -> dict[str, str]:
        """The variables that differ from task to task."""
        task, grant = running.task, running.grants[0]
        wanted = task.manifest
        made: dict[str, str] = {}
        width = len(grant.cpus) // running.shape.cores if wanted.array else 1
        threads = str(len(grant.cpus) // width)
        for variable in THREADS:
            made[variable] = threads
        if grant.gpus or self.hide_gpus:
            visible = ",".join(grant.gpus)
            for variable in GPUS:
                made[variable] = visible
        made["SPOOL_TASK"] = task.id
        made["SPOOL_TASK_DIR"] = made["PWD"] = task.path
        made["SPOOL_NAME"] = wanted.name or task.id.partition(".")[0]
        made["SPOOL_ATTEMPT"] = str(running.attempt)
        made["SPOOL_CORES"] = threads
        made["SPOOL_CPUS"] = ",".join(map(str, grant.cpus))
        if grant.gpus:
            made["SPOOL_GPUS"] = ",".join(grant.gpus)
        if grant.memory_mb:
            made["SPOOL_MEMORY_MB"] = str(grant.memory_mb // width)
        if wanted.after and len(said := " ".join(wanted.after)) <= LONGEST_VARIABLE:
            made["SPOOL_PARENTS"] = said
        if wanted.setup:
            made["SPOOL_SETUP"] = wrapping.setup_path(wanted.setup, task.path)
        if wanted.workflow:
            made["SPOOL_WORKFLOW"] = wanted.workflow
        if running.limit_at:
            made["SPOOL_TIME_LIMIT"] = f"{wanted.time_limit_s:g}"
        if running.shape.mpi:
            made.update(self._mpi_environment(running))
        return made

    def _never_started(self, running: Running, fault: Exception) -> dict[str, Any]:
        missing = isinstance(fault, (FileNotFoundError, SpoolError))
        reason = str(fault) if isinstance(fault, SpoolError) else program_fault(running, fault)
        code = NOT_FOUND if missing else NOT_RUNNABLE
        return {**exit_event(running, self.owner.name), "code": code, "error": reason}


def is_of_the_moment(fault: Exception) -> bool:
    """Whether a failure tells of the machine as it is now, and nothing of the task."""
    return isinstance(fault, OSError) and (fault.errno in SHORT or faults.is_passing(fault))


def limit_s(task: Task) -> float:
    """The seconds a task may run; 0: for ever, as a chunk, whose elements have the limit."""
    return 0.0 if task.manifest.array else task.manifest.time_limit_s


def cores_per_rank(running: Running) -> int:
    """What its shape says, or more where it has its share of each node."""
    return min(len(grant.cpus) for grant in running.grants) // running.shape.ranks


def program_fault(running: Running, fault: Exception) -> str:
    """Why a program did not start, for a person."""
    why = fault.strerror if isinstance(fault, OSError) else str(fault)
    what = getattr(fault, "filename", None) or running.task.manifest.command
    shown = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
    return f"cannot start {shown}: {why}"


def clean_environment(environment: dict[str, str]) -> dict[str, str]:
    """What a task inherits: without the traces of an MPI job or of another spool around us."""
    return {
        name: value
        for name, value in environment.items()
        if not _OURS.fullmatch(name) or _KEPT.fullmatch(name)
    }


def said_last(running: Running) -> bytes:
    """The end of what a task's program wrote, to both streams where they are apart."""
    apart = running.task.manifest.output == "apart"
    names = (layout.OUTPUT, layout.ERRORS) if apart else (layout.OUTPUT,)
    return b"".join(files.tail(f"{running.task.path}/{name}", SAID_LAST) for name in names)


def launcher_environment() -> dict[str, str]:
    """What launchers that we start inherit: as a task, and the allocation we are in."""
    kept = {allocations.VARIABLE: os.environ.get(allocations.VARIABLE, "")}
    return clean_environment(dict(os.environ)) | {key: val for key, val in kept.items() if val}


@lru_cache(maxsize=1024)
def find_program(word: str, path: str) -> str:
    """The file a command's first word means. Raises FileNotFoundError; remembers what it found."""
    if "/" in word:
        return word
    found = shutil.which(word, path=path)
    if found is None:
        raise FileNotFoundError(2, "no such program on PATH", word)
    return found


def command_of(owner: Owner, task: Task) -> list[str]:
    """The words to run. Raises SpoolError: the app is missing or broken."""
    wanted = task.manifest
    command = wanted.command
    if wanted.python:
        return zygote.words(wanted.python)
    if wanted.app:
        return apps.words(apps.lookup(owner.tree, wanted.app), wanted)
    if isinstance(command, str):
        return ["/bin/sh", "-c", command]
    assert command is not None
    return command


def open_fresh(path: str) -> int:
    """A new output file; one that is there already is kept under a number."""
    try:
        return files.open_output(path)
    except FileExistsError:
        files.move_aside(path)
        return files.open_output(path)


def move_old_files(path: str, attempt: int) -> None:
    """Put what an earlier attempt left into attempt-N/, for a manifest that says fresh."""
    aside = base = f"{path}/attempt-{attempt}"
    kept = {layout.MANIFEST, layout.HISTORY, layout.CALLS}
    old = [name for name in files.names(path) if name not in kept and name[:8] != "attempt-"]
    if not old:
        return
    number = 0
    while not files.make_folder(aside):  # the program made something of that name itself
        number += 1
        aside = f"{base}.{number}"
    for name in old:
        files.rename_file(f"{path}/{name}", f"{aside}/{name}")


# -- the end -------------------------------------------------------------------------------------


def exit_event(running: Running, owner: str) -> dict[str, Any]:
    """The exit line as far as it is the same for every end."""
    return {
        "time": units.stamp(clock.epoch()),
        "what": "exit",
        "attempt": running.attempt,
        "owner": owner,
        "elapsed_s": round(clock.now() - running.started_at, 3),
    }


def ended(
    running: Running, owner: str, status: int, used: resource.struct_rusage, floor_kb: int
) -> dict[str, Any]:
    """The exit line of a program that ran.

    status is wait(2)'s; used what wait4(2) says it used. A spawned child inherits its parent's
    high-water mark, so a peak not above `floor_kb`, ours, is only an upper bound: peak_at_most.
    """
    event = exit_event(running, owner)
    if os.WIFSIGNALED(status):
        event["signal"] = os.WTERMSIG(status)
    else:
        event["code"] = os.WEXITSTATUS(status)
    if running.stopping in ("timeout", "cancelled"):
        event[running.stopping] = True
    event["user_s"] = round(used.ru_utime, 3)
    event["system_s"] = round(used.ru_stime, 3)
    event["peak_mb"] = -(-used.ru_maxrss // 1024)
    if used.ru_maxrss <= floor_kb + FLOOR_SLACK_KB:
        event["peak_at_most"] = True
    return event


def own_peak_kb() -> int:
    """This process's high-water mark of resident memory, kilobytes: what a child inherits.

    VmHWM of proc(5), since getrusage(2) counts what was before our own exec too.
    """
    with open("/proc/self/status", "rb") as file:
        status = file.read()
    return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0])
