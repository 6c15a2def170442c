"""local_run - the process that runs one local allocation's script, and ends it in time.

Owns   the script's session, its walltime, and the allocation's file in running/.
Never  trusts a wall clock for the walltime; looks at the spool.
Fails  not: another process may have taken the allocation, or its nodes; then it leaves.

Run as python -m spool.service.local_run FOLDER NODES GRACE_S ID.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from contextlib import suppress

import msgspec

from spool.queue import processes
from spool.service.local_tree import LocalTree, Record, Run
from spool.service.system import MARK

POLL_S = 0.1
LONGEST_WAIT_S = 3600.0
FAILED_START = 127
_AWAITED = {signal.SIGCHLD, signal.SIGTERM}


class Script:
    """The running script: all that carries its mark belongs to it, as in a batch system."""

    def __init__(self, tree: LocalTree, run: Run, record: Record) -> None:
        self.mark = f"{MARK}={run.id}"
        self.grace_s = tree.grace_s
        self.code: int | None = None
        self.pid = 0
        output = record.output or tree.path(f"{run.id}.out")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, flags, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        around = {**os.environ, MARK: run.id}
        words = [*_interpreter(record.script), record.script]
        try:
            os.chdir(record.folder)
            self.pid = os.posix_spawn(
                words[0], words, around, file_actions=actions, setsid=True, setsigmask=[]
            )
        except OSError as fault:
            print(f"{record.script}: {fault}", file=sys.stderr)
            self.code = FAILED_START

    def over(self) -> bool:
        """Whether it has ended by itself."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = _shell_code(status) if pid else None
        return self.code is not None

    def stop(self) -> None:
        """SIGTERM, and what is there after the grace SIGKILL.

        The shell may go at once: the grace is for the launcher that it ran.
        """
        if self.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
        until = time.monotonic() + self.grace_s
        while time.monotonic() < until and not (
            self.over() and not processes.carrying([self.mark])
        ):
            time.sleep(POLL_S)

    def clear(self) -> None:
        """Kill what it left, and itself."""
        processes.sweep([self.mark], quiet_s=0.0)
        if self.code is None:
            self.code = _shell_code(os.waitpid(self.pid, 0)[1])


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _interpreter(script: str) -> list[str]:
    """Of its first line, as batch systems do it: the file need not be executable."""
    try:
        with open(script, "rb") as file:
            first = os.fsdecode(file.readline(4096))
    except OSError:
        return ["/bin/sh"]
    return (first.startswith("#!") and first[2:].split(None, 1)) or ["/bin/sh"]


def run_script(tree: LocalTree, run: Run, record: Record) -> str:
    """Run it to its end; the outcome."""
    begun = time.monotonic()
    script = Script(tree, run, record)
    outcome = ""
    while not script.over() and not outcome:
        left_s = begun + record.walltime_s - time.monotonic()
        got = signal.sigtimedwait(_AWAITED, max(0.0, min(left_s, LONGEST_WAIT_S)))
        if got is not None and got.si_signo == signal.SIGTERM:
            outcome = "cancelled"
        elif got is None and left_s <= 0:
            outcome = "timeout"
    if outcome:
        script.stop()
    script.clear()
    used_s = math.ceil((time.monotonic() - begun) * 1000) / 1000
    told = msgspec.structs.replace(record, used_s=used_s, code=script.code)
    tree.write(told, "running", str(run))
    return outcome or ("failed" if script.code else "completed")


def main(root: str, nodes: str, grace_s: str, id_: str) -> None:
    """Take the allocation, run it, file it, and start what waited for its nodes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # a shell ignores them for what it starts with &
    tree = LocalTree(root, int(nodes), float(grace_s))
    run = Run.ours(id_)
    record = tree.take(run)
    if record is None:
        return
    record = msgspec.structs.replace(record, began=time.time())
    tree.write(record, "running", str(run))
    tree.finish(run, run_script(tree, run, record))
    tree.start_queued()


if __name__ == "__main__":
    main(*sys.argv[1:])
