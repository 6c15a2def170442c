"""watch - a bell that rings when something may have come; polling stays the truth.

Owns   the only use of watchdog: READY/ and CREATED/ themselves, not what lies below them. A new
       lane or a new arrival shortens the wait for the next poll; inotify sees this host alone.
       An ear for one folder, for a thread that waits there for files to grow.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
from typing import Any

from spool.queue.layout import State, Tree


class Bell:
    """Signals the thread that made it when a folder's entries change, once it is hung."""

    def __init__(self, tree: Tree, number: signal.Signals) -> None:
        self.tree = tree
        self.number = number
        self._thread = threading.get_ident()
        self.observer: Any = None

    def hang(self) -> None:
        """Start listening; where the file system cannot, polling must do."""
        if self.observer is not None:
            return
        import logging

        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # its parting words are no news
        ring = self._ring

        class Ringer(FileSystemEventHandler):
            def on_created(self, event: Any) -> None:
                ring()

            def on_moved(self, event: Any) -> None:
                ring()

        observer = None
        try:
            observer = Observer()
            for state in (State.READY, State.CREATED):
                observer.schedule(Ringer(), self.tree.state(state), recursive=False)
            observer.start()
        except OSError:
            if observer is not None:
                observer.stop()  # it has threads already
            return
        self.observer = observer

    def _ring(self) -> None:
        signal.pthread_kill(self._thread, self.number)

    def close(self) -> None:
        """Stop listening."""
        if self.observer is not None:
            self.observer.stop()
            self.observer.join()
            self.observer = None


IN_MODIFY, IN_CREATE = 0x2, 0x100
_EVENT = struct.Struct("iIII")


class Ear:
    """Waits until a file in `folder` grows or appears, or somebody calls `wake`; inotify(7).

    deaf where there is no inotify to be had: only `wake` and the time that is given end a wait.
    """

    def __init__(self, folder: str) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._heard = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        watch = libc.inotify_add_watch
        self.deaf = (
            self._heard < 0 or watch(self._heard, os.fsencode(folder), IN_MODIFY | IN_CREATE) < 0
        )
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        if self._heard >= 0:
            self._poll.register(self._heard, select.POLLIN)

    def wait(self, longest_s: float) -> set[str]:
        """The names of the files that grew, as far as they were heard of."""
        names: set[str] = set()
        for file, _ in self._poll.poll(max(0.0, longest_s * 1000)):
            if file == self._woken:
                os.eventfd_read(file)
            else:
                names |= _names(os.read(file, 65536))
        return names

    def wake(self) -> None:
        """End the wait of another thread, now or the next time."""
        os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Hear nothing more."""
        for file in (self._woken, self._heard):
            if file >= 0:
                os.close(file)


def _names(raw: bytes) -> set[str]:
    found, at = set(), 0
    while at < len(raw):
        _, _, _, length = _EVENT.unpack_from(raw, at)
        at += _EVENT.size
        found.add(os.fsdecode(raw[at : at + length].rstrip(b"\0")))
        at += length
    return found
