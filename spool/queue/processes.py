"""processes - find and kill what carries a mark; and the guard that does so when its owner dies.

Owns   the environment mark of a launcher's tasks; reading /proc.
Never  touches the spool, and imports nothing outside the standard library: the guard runs this file
       by its path, so that nothing it needs can stall with the spool's file server.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress

MARK = "SPOOL_LAUNCHER"
"""The environment variable that every process of a launcher's tasks carries."""
NODE, TASK = "SPOOL_NODE", "SPOOL_TASK"
"""And those that say which of the launcher's nodes started it, and for which task."""
MINDER = "SPOOL_MINDER"
"""And this, every rank of a launcher that somebody minds; its tasks do not."""

SIGKILL = 9  # by number: every submission imports this file, and signal(3)'s enums are slow
KILL_WAIT_S = 10.0
EXEC_WAIT_S = 1.0  # its file may lie on a slow disk
LOOKS = 2  # the second, once it was seen to be done
QUIET_S = 1.0  # after an mpirun was killed, a rank that it had sent off may yet begin
BEAT, DONE = b".", b"q"


def process_start(pid: int) -> int | None:
    """The start time of a living process, clock ticks since boot; None if it is gone or a zombie.

    Field 22 of /proc/PID/stat, proc(5).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def environment(pid: int) -> dict[bytes, bytes]:
    """The environment a process was started with; {} if it is gone or not ours to read.

    Of one in the midst of execve(2), which shows none for a moment, the one it will have.
    """
    wait_until, looks = time.monotonic() + EXEC_WAIT_S, 0
    while not (raw := _read(pid, "environ")):
        if _is_in_exec(pid) and time.monotonic() < wait_until:
            time.sleep(0.001)
            continue
        looks += 1
        if looks == LOOKS:
            return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {name: value for name, _, value in pairs}


def _is_in_exec(pid: int) -> bool:
    """Whether a process has a program but no arguments yet. Kernel threads, zombies have none."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return not _read(pid, "cmdline")


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def session(pid: int) -> int:
    """The session a living process belongs to, field 6 of /proc/PID/stat; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[3])
    except OSError:
        return 0


def marked(owner: str, sessions: Collection[int] = (), node: str = "") -> list[int]:
    """The living processes, but this one, that carry an owner's mark or are in these sessions.

    `node`: of those with the mark only the ones that this node of the owner started.
    """
    marks = {MARK.encode(): owner.encode()}
    if node:
        marks[NODE.encode()] = node.encode()
    return _carrying(marks, sessions)


def _carrying(marks: dict[bytes, bytes], sessions: Collection[int] = ()) -> list[int]:
    return _those(
        lambda pid: (
            marks.items() <= environment(pid).items() or bool(sessions and session(pid) in sessions)
        )
    )


def _carrying_any(marks: frozenset[bytes]) -> list[int]:
    return _those(lambda pid: not marks.isdisjoint(map(b"=".join, environment(pid).items())))


def _those(theirs: Callable[[int], bool]) -> list[int]:
    """The living processes, but this one, of which that is true."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    found = (pid for pid in pids if pid != os.getpid() and theirs(pid))
    return [pid for pid in found if process_start(pid) is not None]


def kill_marked(
    owner: str, sessions: Collection[int] = (), *, node: str = "", wait_s: float = KILL_WAIT_S
) -> bool:
    """SIGKILL every process that carries an owner's mark or is in these sessions.

    Until none is left; False if some live on after `wait_s` seconds (in uninterruptible sleep, or
    another user's).
    """
    return _kill_all(lambda: marked(owner, sessions, node), wait_s)


def kill_task(task_id: str) -> bool:
    """SIGKILL every process of a task on this host, in whatever session; as `kill_marked`."""
    return _kill_all(lambda: _carrying({TASK.encode(): task_id.encode()}), KILL_WAIT_S)


def carrying(marks: Collection[str]) -> list[int]:
    """The living processes, but this one, that carry any of these marks, NAME=VALUE each."""
    return _carrying_any(frozenset(mark.encode() for mark in marks))


def sweep(marks: Collection[str], quiet_s: float = QUIET_S) -> bool:
    """SIGKILL all that carry any of these marks, NAME=VALUE each, until none was seen for a while.

    False as of `kill_marked`.
    """
    return _kill_all(lambda: carrying(marks), KILL_WAIT_S, quiet_s)


def _kill_all(listed: Callable[[], list[int]], wait_s: float, quiet_s: float = 0.0) -> bool:
    begun = quiet_since = time.monotonic()
    while True:
        found, now = listed(), time.monotonic()
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, SIGKILL)
        quiet_since = now if found else quiet_since
        if not found and now - quiet_since >= quiet_s:
            return True
        if found and now - begun > wait_s:
            return False
        time.sleep(0.01 if found else 0.05)


def guard(owner: str, fence_s: float, node: str = "") -> None:
    """Read the owner's pipe on standard input; kill its tasks when it closes or no beat comes.

    A line is "." (a beat), "+PID" or "-PID" (the session of a task that began or ended), or "q".
    """
    import select
    import signal

    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sessions: set[int] = set()
    fence_at, rest = time.monotonic() + fence_s, b""
    while True:
        heard, _, _ = select.select([0], [], [], max(0.0, fence_at - time.monotonic()))
        said = os.read(0, 65536) if heard else b""
        *lines, rest = (rest + said).split(b"\n")
        _note(sessions, lines)
        if DONE in lines:
            return
        if (heard and not said) or time.monotonic() >= fence_at:
            kill_marked(owner, sessions, node=node)
        if heard and not said:
            return
        if BEAT in lines or not heard:
            fence_at = time.monotonic() + fence_s


def _note(sessions: set[int], lines: list[bytes]) -> None:
    for line in lines:
        if line[:1] == b"+":
            sessions.add(int(line[1:]))
        elif line[:1] == b"-":
            sessions.discard(int(line[1:]))


if __name__ == "__main__":
    if sys.argv[1] == "--kill":
        ranks = {MINDER.encode(): sys.argv[3].encode()}  # first, since they start more
        sys.exit(
            not (
                _kill_all(lambda: _carrying(ranks), KILL_WAIT_S)
                and sweep([f"{MARK}={sys.argv[2]}"])
            )
        )
    if sys.argv[1] == "--sweep":
        sys.exit(not sweep(sys.argv[2:]))
    guard(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
