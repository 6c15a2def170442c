"""spawner - start a program on chosen cores, beside the launcher and without moving it there.

Owns   the one thread that starts programs, and the only call of posix_spawn(3).

A spawning thread sleeps until its child has called exec, and a child inherits the affinity of the
thread that spawns it. So a thread of its own does it: the launcher goes on with other work
meanwhile, and gives it the cores of the next task while it sleeps, since a running thread that
narrows its own affinity waits to be moved. Python's os.posix_spawn would keep every thread waiting
(it holds the interpreter's lock), hence the call through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

SETSIGDEF, SETSIGMASK, SETSID = 0x04, 0x08, 0x80  # spawn.h of glibc and musl
OPAQUE = 1024  # bytes, more than any C library's spawn attributes, file actions or signal sets
RESET = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these; a program expects the default


class Order(NamedTuple):
    """A program to start. files become its descriptors 0, 1, 2; cores () are all there are.

    `opened` is closed once it has started, or has not.
    """

    program: str
    words: Sequence[str]
    environment: list[bytes]
    folder: str
    files: tuple[int, int, int]
    opened: Sequence[int]
    cores: tuple[int, ...]


class _Call:
    """posix_spawn with the attributes that every task gets: own session, signals as by default."""

    def __init__(self) -> None:
        self.spawn = ctypes.CDLL(None).posix_spawn
        self.quick = ctypes.PyDLL(None)
        self.attributes = ctypes.create_string_buffer(OPAQUE)
        nothing, reset = (ctypes.create_string_buffer(OPAQUE) for _ in range(2))
        self.quick.sigemptyset(nothing)
        self.quick.sigemptyset(reset)
        for number in RESET:
            self.quick.sigaddset(reset, number)
        self.quick.posix_spawnattr_init(self.attributes)
        flags = ctypes.c_short(SETSIGDEF | SETSIGMASK | SETSID)
        self.quick.posix_spawnattr_setflags(self.attributes, flags)
        self.quick.posix_spawnattr_setsigmask(self.attributes, nothing)
        self.quick.posix_spawnattr_setsigdefault(self.attributes, reset)

    def __call__(self, order: Order) -> int:
        """The pid. Raises OSError."""
        actions = ctypes.create_string_buffer(OPAQUE)
        self.quick.posix_spawn_file_actions_init(actions)
        try:
            for target, file in enumerate(order.files):
                self.quick.posix_spawn_file_actions_adddup2(actions, file, target)
            pid = ctypes.c_int()
            fault = self.spawn(
                ctypes.byref(pid),
                os.fsencode(order.program),
                actions,
                self.attributes,
                _strings(map(os.fsencode, order.words)),
                _strings(order.environment),
            )
        finally:
            self.quick.posix_spawn_file_actions_destroy(actions)
        if fault:
            raise OSError(fault, os.strerror(fault), order.program)
        return pid.value


def _strings(words: Iterable[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """A NULL-terminated array for C."""
    listed = [*words, None]
    return (ctypes.c_char_p * len(listed))(*listed)


class Spawner:
    """Starts one program at a time: `begin` it, then `answer` tells its pid."""

    def __init__(self) -> None:
        self.busy = False
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._answers: SimpleQueue[int | Exception] = SimpleQueue()
        self._everywhere = tuple(sorted(os.sched_getaffinity(0)))
        self._cores = self._everywhere
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def begin(self, order: Order) -> None:
        """Start a program; the last one's answer must have been taken."""
        assert not self.busy and self._thread.native_id is not None
        cores = order.cores or self._everywhere
        if cores != self._cores:
            os.sched_setaffinity(self._thread.native_id, cores)
            self._cores = cores
        self.busy = True
        self._orders.put(order)

    def answer(self) -> int | Exception:
        """The pid of what was begun, or why it did not start; waits for it."""
        found = self._answers.get()
        self.busy = False
        return found

    def _serve(self) -> None:
        call = _Call()
        while (order := self._orders.get()) is not None:
            try:
                os.chdir(order.folder)  # nothing else in this process minds where it is
                found: int | Exception = call(order)
            except Exception as fault:  # told to the launcher, which must not wait in vain
                found = fault
            for file in order.opened:
                os.close(file)
            self._answers.put(found)

    def close(self) -> None:
        """End the thread."""
        self._orders.put(None)
        self._thread.join()
