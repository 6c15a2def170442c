"""post - messages between the processes that mpiexec or srun started together (mpi4py).

Owns   the only import of mpi4py, which starts MPI: nothing else may pull it in.
Never  waits inside MPI: a blocking call would spin on a core that belongs to a task, so whoever
       waits looks whether something has come, and sleeps in between.
Fails  SpoolError: there is no MPI, or its world is not the one that was asked for.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from spool.errors import SpoolError

INIT_S = 180  # MPI_Init waits for all, and for ever where one of them does not come

try:
    import mpi4py

    mpi4py.rc.thread_level = "funneled"
    signal.alarm(INIT_S)
    from mpi4py import MPI

    signal.alarm(0)
except (ImportError, RuntimeError) as fault:
    raise SpoolError(
        f"MPI cannot be used here: {fault}. Run: pip install mpi4py mpich, or use --per-node"
    ) from None

TAG = 7
POLL_SHORTEST_S, POLL_LONGEST_S = 0.0005, 0.02


class Post:
    """Messages to and from other ranks, gathered; nothing here ever blocks."""

    def __init__(self) -> None:
        self.comm = MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.waiting: dict[int, list[Any]] = {}
        self._under_way: deque[tuple[Any, bytes]] = deque()
        self.poll_s, self.poll_longest_s = POLL_SHORTEST_S, POLL_LONGEST_S

    def add(self, rank: int, message: Any) -> None:
        """Something to say, with the next `send`."""
        self.waiting.setdefault(rank, []).append(message)

    def send(self) -> None:
        """Let all that was gathered go."""
        if self.waiting:
            self.poll_s = POLL_SHORTEST_S
        for rank, messages in self.waiting.items():
            raw = msgspec.msgpack.encode(messages)
            self._under_way.append((self.comm.Isend([raw, MPI.BYTE], rank, TAG), raw))
        self.waiting = {}
        while self._under_way and self._under_way[0][0].Test():
            self._under_way.popleft()

    def received(self) -> Iterator[tuple[int, bytes]]:
        """What has come: from whom, and the raw message."""
        status, came = MPI.Status(), False
        while self.comm.Iprobe(MPI.ANY_SOURCE, TAG, status):
            raw = bytearray(status.Get_count(MPI.BYTE))
            self.comm.Recv([raw, MPI.BYTE], status.source, TAG)
            came = True
            yield status.source, bytes(raw)
        self.poll_s = POLL_SHORTEST_S if came else min(1.5 * self.poll_s, POLL_LONGEST_S)

    def finish(self) -> None:
        """Leave the MPI job, in which nobody may miss: it ends when all have come so far."""
        MPI.Finalize()

    def abort(self, code: int) -> None:
        """End every process of this MPI job at once."""
        self.comm.Abort(code)


def meet(expected: int) -> Post:
    """The MPI world, once it is sure that it has `expected` ranks. Raises SpoolError."""
    post = Post()
    if post.size != expected:
        raise SpoolError(
            f"this is one of {expected} processes by its environment, but its MPI library says"
            f" {post.size}: PMI_SIZE, OMPI_COMM_WORLD_SIZE or the like is left over from elsewhere,"
            f" or mpiexec and mpi4py belong to different MPIs"
            f" ({MPI.Get_library_version().split(chr(10))[0].strip()}). Run: spool doctor"
        )
    _offices.append(post)
    return post


_offices: list[Post] = []


def post_office() -> Post:
    """The one that `meet` opened."""
    return _offices[0]
