"""asking - what a living owner has is not touched: it is asked, until the task shows the answer.

Owns   the requests of verbs, as files in an owner's inbox.
Fails  Refused: nobody answered in time; the request stays. FileNotFoundError: the task moved on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from spool import units
from spool.errors import ManifestError, Refused
from spool.queue import array, files, layout, takeover, tasks
from spool.queue.layout import FINAL, State
from spool.queue.takeover import Verdict
from spool.queue.tasks import Spot

if TYPE_CHECKING:
    from spool.queue.control import Verb

ASK_EVERY_S = 0.2


def ask(by: Verb, spot: Spot, what: str, said: dict[str, Any]) -> Spot:
    """Put a request into the inbox of the owner until the task shows that it was heard."""
    if spot.id.endswith(layout.ARRIVING):
        raise Refused(f"{spot.id} is just being admitted; try again in a moment")
    deadline = time.monotonic() + by.wait_s
    observer = takeover.Observer(by.me)
    asked = by.event(what, **said)
    while True:
        _request(by, spot, what, asked)
        time.sleep(ASK_EVERY_S)
        by.me.beat_if_due()
        now_at = tasks.find(by.tree, spot.id)
        if now_at is None:
            raise FileNotFoundError(spot.id)
        if what == "cancel" and now_at.state in FINAL:
            return now_at
        if what in ("change", "replaced") and _heard(by, now_at, asked):
            return now_at
        if now_at.state is not State.RUNNING:
            raise FileNotFoundError(spot.id)  # moved on: the verb starts again where it lies now
        if observer.verdict(now_at.group) is Verdict.DEAD:
            takeover.take_over(by.me, now_at.group, by.trusted)
        if time.monotonic() > deadline:
            raise Refused(
                f"task {spot.id}: {spot.group} was asked and has not answered in"
                f" {units.print_duration(by.wait_s)}; the request stays in its inbox"
            )
        spot = now_at


def _request(by: Verb, spot: Spot, what: str, asked: dict[str, Any]) -> None:
    path = by.tree.request(takeover.holder(spot.group), what, spot.id)
    try:
        files.write_new(path, msgspec.json.encode(asked) + b"\n")
    except FileExistsError:
        return
    except FileNotFoundError:
        return  # its owner has just ended: the next look tells


def _heard(by: Verb, spot: Spot, asked: dict[str, Any]) -> bool:
    try:
        task = tasks.load(spot.path(by.tree), spot.id)
    except (OSError, ManifestError):
        return False
    if "with" in asked:
        return bool(task.story.replaced == asked["with"])
    told = task.story.changes
    return all(_is_told(told.get(key), key, value) for key, value in asked["set"].items())


def _is_told(told: object, key: str, value: object) -> bool:
    """Whether a change stands; elements that are not to run are added to those told before."""
    if key != "skip":
        return told == value
    return not array.parse_some(str(value)) - array.parse_some(str(told or ""))
