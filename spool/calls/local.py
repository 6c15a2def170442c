"""local - a launcher of one's own, for an executor that asked for workers.

Owns   that process: started when there is work, started again should it be killed, ended last.
Fails  SpoolError: it ends time and again, with its last words.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from spool.errors import SpoolError
from spool.queue.layout import Tree

IDLE = "30s"  # it leaves by itself then, should we be killed
QUICK_S, TRIES = 5.0, 3
END_S, ENDS_AT_ONCE_S = 20.0, 1.0


class Local:
    """A launcher for `workers` calls at once. `tag`: it runs only tasks with it."""

    def __init__(self, tree: Tree, workers: int, tag: str, errors: str) -> None:
        self.tree, self.errors = tree, errors
        self.words = [sys.executable, "-P", "-m", "spool.cli", "--spool", tree.root, "launcher"]
        self.words += ["--quiet", "--cores", str(workers), "--idle-timeout", IDLE]
        self.words += ["--mode", "serial"] + (["--tag", tag] if tag else [])
        if workers > len(os.sched_getaffinity(0)):
            self.words.append("--no-pin")
        self.process: subprocess.Popen[bytes] | None = None
        self.began, self.quick = 0.0, 0

    def see_to_it(self) -> None:
        """There is work: see that the launcher runs. Raises SpoolError."""
        if self.process is not None:
            if self.process.poll() is None:
                return
            self.quick = self.quick + 1 if time.monotonic() - self.began < QUICK_S else 0
            if self.quick >= TRIES:
                raise SpoolError(f"the launcher of this executor ends at once: {self._last()}")
        self.began = time.monotonic()
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                cwd="/",
            )

    def _last(self) -> str:
        with open(self.errors, "rb") as errors:
            return errors.read()[-1000:].decode(errors="replace").strip() or "without a word"

    def end(self) -> None:
        """Let it go. What it still runs may end, if it does so at once, else it is interrupted."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_AT_ONCE_S)
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its guard ends what it ran
            self.process.wait()
