"""watch - a bell that rings when something may have come; polling stays the truth.

Owns   the only use of watchdog: READY/ and CREATED/ themselves, not what lies below them. A new
       lane or a new arrival shortens the wait for the next poll; inotify sees this host alone.
"""

from __future__ import annotations

import signal
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
