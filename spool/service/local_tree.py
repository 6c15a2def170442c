"""local_tree - the allocations of this machine, each one file whose folder is its state.

    queued/ID                           asked for, not yet started
    running/ID@HOST@BOOT@PID@TICKS      has its nodes; PID and its start time are of the process
                                        (local_run.py) that runs the script and ends it in time
    ended/ID@OUTCOME                    over
    lock                                held for an instant by who takes nodes
    trouble                             what those processes had to complain of

Owns   these names and moves; whether a running one lives; the start of queued ones.
Never  starts one twice: the process that renames it into running/ is the one that runs it.
       Correctness does not rest on the lock; without it more nodes may be in use than there are.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from spool.queue import files, owner, processes
from spool.service.system import FOREIGN, MARK

FOLDERS = ("queued", "running", "ended")
KEPT = 200  # of those that are over
START_S = 3.0  # in which a process that was started for a queued one should have taken it
FAR_S = 600.0  # after its walltime one on another host is believed to be over
CLOCKS_S = 60.0  # by so much a clock may have been set since
_ID = re.compile(r"\d{16}-[0-9a-f]{4}")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, and what is known of the run."""

    name: str
    nodes: int
    walltime_s: float
    script: str
    folder: str  # the working directory
    output: str = ""
    began: float = 0.0  # since the epoch; for other hosts, which share no other clock
    used_s: float | None = None
    code: int | None = None


class Run(msgspec.Struct, frozen=True):
    """A file's name in running/."""

    id: str
    host: str
    boot: str
    pid: int
    ticks: int

    @classmethod
    def ours(cls, id_: str) -> Run:
        """This process's."""
        here = owner.here()
        return cls(id_, here.host, here.boot, here.pid, processes.process_start(here.pid) or 0)

    def __str__(self) -> str:
        return f"{self.id}@{self.host}@{self.boot}@{self.pid}@{self.ticks}"

    def is_here(self) -> bool:
        """Whether its process is, or was, in this process table."""
        here = owner.here()
        return (self.host, self.boot) == (here.host, here.boot)

    def lives(self) -> bool:
        """Whether its process, of this table, is still there."""
        return processes.process_start(self.pid) == self.ticks

    def age_s(self) -> float:
        """Since its process started, on this host's clock that never jumps."""
        return max(0.0, _since_boot_s() - self.ticks / os.sysconf("SC_CLK_TCK"))


class LocalTree(msgspec.Struct, frozen=True):
    """The folder, and how many nodes this machine plays; begun tells when we last started a process
    for what is queued, so that whoever looks often starts no crowd of them."""

    root: str
    nodes: int
    grace_s: float  # from SIGTERM to SIGKILL
    begun: dict[str, float] = {}

    def path(self, *parts: str) -> str:
        """A path below it."""
        return "/".join((self.root, *parts))

    # -- reading ---------------------------------------------------------------------------------

    def queued(self) -> list[str]:
        """The ids, the oldest first."""
        return sorted(name for name in files.names(self.path("queued")) if _ID.fullmatch(name))

    def running(self) -> list[Run]:
        """Those that have nodes, or had until their process was killed."""
        return [run for name in files.names(self.path("running")) if (run := _run(name))]

    def ended(self) -> list[tuple[str, str]]:
        """(id, outcome) of those that are over."""
        split = (name.partition("@") for name in sorted(files.names(self.path("ended"))))
        return [(id_, outcome) for id_, _, outcome in split if _ID.fullmatch(id_)]

    def record(self, *parts: str) -> Record | None:
        """What a file says; None if it has moved on."""
        content = files.read(self.path(*parts))
        try:
            return None if content is None else msgspec.json.decode(content, type=Record)
        except msgspec.DecodeError:
            return None

    def used_nodes(self) -> int:
        """Nodes of this machine that running ones have."""
        here = (run for run in self.running() if run.is_here() and run.lives())
        records = (self.record("running", str(run)) for run in here)
        return sum(record.nodes for record in records if record)

    # -- moves -----------------------------------------------------------------------------------

    def add(self, record: Record) -> str:
        """Put one into queued/; its id. The oldest of those that are over are forgotten."""
        for folder in FOLDERS:
            files.make_folder(self.path(folder))
        for old in self.ended()[:-KEPT]:
            files.unlink(self.path("ended", "@".join(old)))
        id_ = f"{time.time_ns() // 1000:016d}-{secrets.token_hex(2)}"
        self.write(record, "queued", id_)
        return id_

    def write(self, record: Record, *parts: str) -> None:
        """Write one's file whole."""
        files.replace(self.path(*parts), msgspec.json.encode(record) + b"\n")

    def take(self, run: Run) -> Record | None:
        """Move a queued one to running/ as ours; None if it is gone, or its nodes are not free."""
        with self._locked():
            record = self.record("queued", run.id)
            if record is None or record.nodes + self.used_nodes() > self.nodes:
                return None
            moved = files.move(self.path("queued", run.id), self.path("running", str(run)))
        return record if moved else None

    def finish(self, run: Run, outcome: str) -> bool:
        """Move a running one to ended/; False if somebody else did."""
        done = self.path("ended", f"{run.id}@{outcome}")
        return files.move(self.path("running", str(run)), done)

    def withdraw(self, id_: str) -> bool:
        """Move a queued one to ended/; False if it is queued no more."""
        return files.move(self.path("queued", id_), self.path("ended", f"{id_}@cancelled"))

    def tidy(self) -> None:
        """File what died without a word, its processes killed."""
        for run in self.running():
            if run.is_here() and not run.lives():
                processes.sweep([f"{MARK}={run.id}"], quiet_s=0.0)
                self.finish(run, "failed")
            elif not run.is_here() and self._surely_over(run):
                self.finish(run, "node-fail")

    def _surely_over(self, run: Run) -> bool:
        """Whether one of another process table has ended: by a reboot, or by its walltime."""
        if (record := self.record("running", str(run))) is None:
            return False
        began = record.began or int(run.id[:16]) / 1e6
        booted = time.time() - _since_boot_s()
        rebooted = run.host == owner.here().host and 0 < record.began < booted - CLOCKS_S
        return rebooted or time.time() > began + record.walltime_s + FAR_S

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import portalocker

        with open(files.open_log(self.path("lock")), "ab") as lock:
            with suppress(portalocker.LockException):  # a file system without locks
                portalocker.lock(lock, portalocker.LOCK_EX)
            yield

    # -- starting --------------------------------------------------------------------------------

    def start_queued(self) -> None:
        """Start a process for each queued one that fits, the oldest first and none before it."""
        free, now = self.nodes - self.used_nodes(), time.monotonic()
        queued = self.queued()
        for gone in self.begun.keys() - queued:
            del self.begun[gone]
        for id_ in queued:
            record = self.record("queued", id_)
            free -= record.nodes if record else 0
            if free < 0:
                return
            if record and now - self.begun.get(id_, -math.inf) >= START_S:
                self.begun[id_] = now
                self._start(id_)

    def _start(self, id_: str) -> None:
        """A process of its own session that outlives us, and that nobody has to wait for."""
        words = [sys.executable, "-P", "-m", "spool.service.local_run"]
        words += [self.root, str(self.nodes), str(self.grace_s), id_]
        # The shell goes at once, so that a long-lived service collects no zombies.
        away = ["/bin/sh", "-c", '"$@" </dev/null >/dev/null 2>>"$0" &', self.path("trouble")]
        foreign = re.compile(FOREIGN)
        env = {name: text for name, text in os.environ.items() if not foreign.fullmatch(name)}
        subprocess.run([*away, *words], check=False, start_new_session=True, cwd="/", env=env)


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _run(name: str) -> Run | None:
    parts = name.split("@")
    if len(parts) != 5 or not (_ID.fullmatch(parts[0]) and parts[3].isdecimal()):
        return None
    id_, host, boot, pid, ticks = parts
    return Run(id_, host, boot, int(pid), int(ticks)) if ticks.isdecimal() else None
