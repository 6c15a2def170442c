"""staging - a launcher's own stager: started when lanes of stages show, waited for at the end.

Owns   that child process: its start, its recall, whether another is worth it.
Never  gives it a core: what it runs moves data, or is a short hook.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from spool.launcher import clock
from spool.queue import shape as shapes
from spool.queue.layout import FINAL

if TYPE_CHECKING:
    from spool.launcher.loop import Launcher

NOTHING_DONE = 9
"""The exit code of a stager that found nothing it could take."""
IN_VAIN = 2  # so often in a row, and the lanes that are left are not ours
AGAIN_S = 30.0


class Staging:
    """The stager of one launcher; `mind` it each second."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        wishes, settings = launcher.wishes, launcher.settings
        alone = not wishes.hand_of and launcher.field.crew is None
        self.allowed = alone and settings.staging_launchers and settings.staging_at_once > 0
        self.pid = self.recalled = self.in_vain = 0
        self.again_at, self._said = 0.0, -1

    def _wanted(self, lanes: Iterable[str]) -> bool:
        """Whether a stager of ours would find work."""
        if not self.allowed or clock.now() < self.again_at:
            return False
        token = shapes.name_token(self.launcher.wishes.workflow)
        found = (shapes.parse(lane)[0] for lane in lanes)
        return any(one.stage != "run" and token in ("", one.workflow) for one in found)

    def keeps(self) -> bool:
        """Whether the launcher must not leave yet."""
        if self.launcher.draining:
            self.mind()
            return bool(self.pid)
        return bool(self.pid) or self._wanted(self.launcher.picker.claimer.lanes)

    def mind(self) -> None:
        """Start a stager where there is work for one; pass on that all shall end."""
        launcher = self.launcher
        if launcher.draining:
            self._recall(signal.SIGTERM if launcher.interrupting else signal.SIGINT)
        elif not self.pid and self._wanted(launcher.picker.claimer.lanes):
            self._start()

    def _recall(self, number: signal.Signals) -> None:
        if self.pid and self.recalled != number:
            self.recalled = number
            os.kill(self.pid, number)  # ours and not reaped yet, so the number is still its own

    def _start(self) -> None:
        launcher = self.launcher
        self._said, write_end = os.pipe()
        try:
            self.pid = os.posix_spawn(
                sys.executable, self._words(), os.environ, setsid=True, setsigmask=(),
                file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1)],
            )  # fmt: skip
        except OSError as fault:
            os.close(self._said)
            launcher.log(f"no stager could be started: {fault}")
            self.again_at = clock.now() + AGAIN_S
            return
        finally:
            os.close(write_end)
        self.recalled = 0
        launcher.crew.children.ours.add(self.pid)
        launcher.log("started a stager")

    def _words(self) -> list[str]:
        # -P, since our working directory is a task's, from which nothing may be imported.
        wishes: Any = self.launcher.wishes
        words = [sys.executable, "-P", "-m", "spool.cli", "--spool", self.launcher.tree.root]
        words += ["launcher", "--stage", "--quiet", "--json", "--idle-timeout", "1"]
        words += ["--hand-of", str(os.getpid())]
        words += ["--workflow", wishes.workflow] if wishes.workflow else []
        for tag in wishes.tags:
            words += ["--tag", tag]
        return words

    def ended(self, pid: int, status: int) -> None:
        """A child of the launcher has ended; if it was our stager, what it did counts as ours."""
        if pid != self.pid:
            return
        self.launcher.crew.children.ours.discard(pid)
        self.pid = 0
        self.launcher.counts.update(self._last_words())
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:  # one that was killed costs its tasks a loss, so they bound it
            self.in_vain = self.in_vain + 1 if code else 0
        if self.in_vain >= IN_VAIN:
            self.launcher.log("the stager found nothing it could do in the lanes that are left")
            self.again_at = clock.now() + AGAIN_S
        self.launcher.picker.claimer.refresh()
        self.launcher.nothing_to_claim = False
        self.launcher.busy_at = clock.now()

    def _last_words(self) -> dict[str, int]:
        """How many tasks the stager brought to an end; nothing of one that was killed."""
        with open(self._said, "rb") as last_words:
            said = last_words.read()
        try:
            counts = msgspec.json.decode(said)
        except msgspec.MsgspecError:
            return {}
        return {state: counts[state] for state in FINAL if isinstance(counts.get(state), int)}
