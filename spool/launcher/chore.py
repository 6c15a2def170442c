"""chore - slow work beside the loop: one piece at a time, on a thread of its own.

Owns   the thread on which a launcher minds the door, dead owners and what waits for a moment, so
       that hashing a large input or waiting for a process to die never delays a task.
Fails  whatever the work raised, at the next `poke` or `finish`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class Chore:
    """Does `work` whenever poked, never twice at once; sends `wake` to the maker when done."""

    def __init__(self, work: Callable[[], None], wake: signal.Signals) -> None:
        self.work = work
        self.wake = wake
        self._main = threading.get_ident()
        self._at_work = False
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether it is at work."""
        return self._at_work

    def poke(self) -> None:
        """Begin, unless still at work."""
        if self.busy:
            return
        self.finish()
        self._at_work = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self, wait_s: float | None = None) -> None:
        """Wait for the end of what was begun; after `wait_s` seconds it is left to our taker."""
        if self._thread is not None:
            self._thread.join(wait_s)
            self._thread = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def _run(self) -> None:
        try:
            self.work()
        except Exception as fault:  # handed to the loop's thread, which raises it
            self._fault = fault
        self._at_work = False
        signal.pthread_kill(self._main, self.wake)
