"""zygote - a launcher's side of the warm Python processes that tasks with calls are forked from.

Owns   the zygotes of one crew: their start, their orders, their end; `ours`, their pids.
Never  waits for a zygote to become warm, nor rests on one: where there is none yet, or it is dead
       or slow, the caller starts the task as any other program.
Fails  nothing: None means "not from here".

One zygote for each interpreter and list of imports. It bears the owner's mark in its environment,
and so does whatever it forks, so the guard finds them all.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress

from spool.launcher import warm
from spool.launcher.spawner import RESET, Order
from spool.queue import processes
from spool.queue.manifest import Manifest

MOST = 4
ANSWER_S = 10.0
TRIES = 3
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
OF_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "OMP_", "OPENBLAS_", "MKL_")
"""Beginnings of variables that are read when a program starts: a fork would come too late."""

Key = tuple[str, tuple[str, ...]]


def words(python: str) -> list[str]:
    """The command line of a task with calls that is not forked."""
    return [python, "-P", warm.__file__, "--cold"]


class Zygote:
    """One warm process. `warm` once it has imported all; `dead` when it can be asked no more."""

    def __init__(self, key: Key, environment: Mapping[str, str]) -> None:
        python, imports = key
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = os.posix_spawn(
                python,
                [python, "-P", warm.__file__, "--zygote", *imports],
                {**environment, **dict.fromkeys(ONE_THREAD, "1"), warm.MARK: " " * warm.MARK_SIZE},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=RESET,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.link = ours
        self.warm = self.dead = self.unfit = False

    def look(self) -> None:
        """See whether it has become warm, without waiting."""
        if not self.warm and not self.dead and select.select([self.link], [], [], 0)[0]:
            answer = self._heard()
            self.warm, self.unfit = answer == b"ready", answer == b"threads"
            self.dead = not self.warm

    def fork(self, order: Order) -> int | None:
        """The pid of a task's process, which runs; None: it has none, and never will."""
        read_end, write_end = os.pipe()
        try:
            raw = json.dumps((dict(order.environment), order.folder, list(order.cores))).encode()
            socket.send_fds(self.link, [raw], [*order.files, read_end])
            pid = self._pid()
            if pid:
                os.write(write_end, b"g")
        except OSError as fault:
            self.dead = fault.errno != errno.EMSGSIZE
            pid = None
        finally:
            os.close(read_end)
            os.close(write_end)  # without a go the fork ends by itself
        return pid

    def _pid(self) -> int | None:
        if not select.select([self.link], [], [], ANSWER_S)[0]:
            self.dead = True  # a late answer would be taken for that of the next order
            return None
        answer = self._heard()
        self.dead = not answer
        return int(answer) if answer.isdigit() else None

    def _heard(self) -> bytes:
        try:
            return self.link.recv(4096)
        except OSError:
            return b""

    def close(self) -> None:
        """Let it go: it ends when its link closes."""
        self.link.close()
        self.dead = True


class Zygotes:
    """The zygotes of one crew."""

    def __init__(self, environment: Mapping[str, str], ours: set[int]) -> None:
        self.environment = environment
        self.ours = ours
        self.known: dict[Key, Zygote] = {}
        self.going: set[int] = set()
        self.failures: dict[Key, int] = {}
        self.forks = 0

    def start(self, order: Order, wanted: Manifest, cores: int) -> int | None:
        """The pid of a task's process forked from a warm one; None: start it as a program.

        What is imported ahead is imported for one thread, so only tasks of one core get that.
        """
        if any(name.startswith(OF_START) for name in wanted.environment):
            return None
        key = (wanted.python, tuple(wanted.imports) if cores == 1 else ())
        if self.failures.get(key, 0) >= TRIES:
            key = (wanted.python, ())  # what is to be imported starts threads, say
        one = self._of(key)
        if one is None or not one.warm:
            return None
        pid = one.fork(order)
        self.forks += pid is not None
        return pid

    def _of(self, key: Key) -> Zygote | None:
        one = self.known.get(key)
        if one is not None:
            one.look()
            if not one.dead:
                return one
            self._count(key, one)
        if self.failures.get(key, 0) >= TRIES:
            return None
        if len(self.known) >= MOST:
            self._let_go(next(iter(self.known)))
        try:
            one = self.known[key] = Zygote(key, self.environment)
        except OSError:
            self.failures[key] = TRIES
            return None
        self.ours.add(one.pid)
        return one

    def _count(self, key: Key, one: Zygote) -> None:
        """A dead one: after three that never became warm, or one that cannot fork, no more."""
        self._let_go(key)
        self.failures[key] = TRIES if one.unfit else self.failures.get(key, 0) + (not one.warm)

    def _let_go(self, key: Key) -> None:
        one = self.known.pop(key)
        one.close()
        self.going.add(one.pid)

    def ended(self, pid: int) -> bool:
        """A child has been reaped: whether it was a zygote."""
        for key, one in list(self.known.items()):
            if one.pid == pid:
                one.look()
                self._count(key, one)
        if pid not in self.going:
            return False
        self.going.discard(pid)
        self.ours.discard(pid)
        return True

    def close(self) -> None:
        """Let all go, and see them end."""
        for key in list(self.known):
            self._let_go(key)
        deadline = time.monotonic() + 1.0
        while self.going and time.monotonic() < deadline:
            for pid in list(self.going):
                with suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0] == 0:
                        continue
                self.going.discard(pid)
            time.sleep(0.001)
        for pid in self.going:  # it imports something long, or hangs in it
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, processes.SIGKILL)
                os.waitpid(pid, 0)


def is_plain(made: Collection[str], python: str) -> bool:
    """Whether these words are just a task's calls, with nothing wrapped around them."""
    return list(made) == words(python)
