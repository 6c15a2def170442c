"""answers - a launcher does what its inbox asks for: of a task it has, or of itself.

Owns   who is asked: the crew for what runs here, a rank for what runs there, else the claimed.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from spool.launcher import asked

if TYPE_CHECKING:
    from spool.launcher.loop import Launcher


def answer(launcher: Launcher) -> None:
    """Deal with every request in the inbox."""
    for verb, task_id, said in asked.requests(launcher.owner):
        if verb in asked.OF_OURSELVES:  # by whoever started us: srun passes no Ctrl-C on
            launcher.heed(signal.SIGINT if verb == "drain" else signal.SIGTERM)
        elif why := _done(launcher, verb, task_id, said):
            launcher.log(f"{task_id}: {verb} was not possible: {why}")


def _done(launcher: Launcher, verb: str, task_id: str, said: dict[str, Any]) -> str:
    """Do what was asked of a task we have; why it was not possible, if it was not."""
    why: str | None = launcher.crew.answer(verb, task_id, said)
    if why is None and launcher.ranks and launcher.ranks.ask(verb, task_id, said):
        return ""  # its rank answers, and says so if it cannot be done
    if why is not None:
        return why
    for held in launcher.claimed:
        if held[0] == task_id:
            launcher.claimed.remove(held)
            launcher.batch.finals.append(task_id)  # if it has ended, its children go on
            return str(launcher.crew.settle(verb, task_id, said))
    return ""
