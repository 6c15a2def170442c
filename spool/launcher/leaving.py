"""leaving - when a launcher that runs nothing may go.

Never  lets it go while an end is unwritten, another's death is undecided or work may still come.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from spool.launcher import clock
from spool.queue import advance
from spool.queue.lookout import DOOR_S

if TYPE_CHECKING:
    from spool.launcher.loop import Launcher


def may_leave(launcher: Launcher) -> bool:
    """Whether to go, now that nothing runs."""
    if launcher.batch.empty and launcher.heirs.empty:
        launcher.broom.sweep()  # a folder that is left looks as if something waited there
    if launcher.hands.lent or launcher.staging.keeps():
        return False
    if launcher.crew.ended:  # unwritten, for the disk is full: a taker knows them as interrupted
        return launcher.interrupting and clock.now() < launcher.paused_until
    if launcher.draining:
        return True
    if not (launcher.batch.empty and launcher.heirs.empty and launcher.nothing_to_claim):
        return False
    if launcher.wishes.hand_of:
        idle_s = clock.now() - launcher.busy_at
        return not launcher.heirs.tarry(idle_s) and _is_left_empty(launcher)
    if launcher.chores.busy or not launcher.lookout.settled or launcher.wishes.idle_s is None:
        return False
    leave_at = launcher.busy_at + launcher.wishes.idle_s
    due = advance.next_due(launcher.tree)
    if due is not None and clock.now() + due - time.time() <= leave_at:
        return False
    if launcher.lookout.door.under_way:
        leave_at = max(leave_at, launcher.busy_at + launcher.settings.door_quiet_s + DOOR_S)
    if clock.now() < leave_at or advance.catch_up(launcher.owner):
        return False
    return _is_left_empty(launcher)


def _is_left_empty(launcher: Launcher) -> bool:
    """Whether READY got no lane since our last look; those we emptied ourselves are removed."""
    launcher.picker.claimer.tidy()
    return not launcher.new_lanes()
