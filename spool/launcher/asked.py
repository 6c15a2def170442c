"""asked - what people ask of a launcher through its inbox: cancel and change.

Owns   reading a request; a change written into a task we hold; settling one that never started.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from spool import units
from spool.errors import ManifestError
from spool.launcher import chunks, clock, run
from spool.launcher.run import Running
from spool.launcher.stopping import Stops
from spool.queue import array, claim, files, manifest
from spool.queue.owner import Owner
from spool.queue.tasks import Task

OF_TASKS, OF_OURSELVES = ("cancel", "change", "replaced"), ("drain", "stop")


def of_running(
    owner: Owner, stops: Stops, verb: str, running: Running, said: dict[str, Any]
) -> str:
    """Do what was asked of a task that runs; why it was not possible, if it was not."""
    if verb == "cancel":
        if running.stopping in ("", "timeout"):
            running.said = said
            stops.stop(running, "cancelled")
        return ""
    if verb == "replaced":  # it runs on; where it goes then is decided
        claim.write_line(owner, running.task, {**said, "time": units.now_stamp(), "what": verb})
        return ""
    try:
        change(owner, running.task, said)
    except (ManifestError, FileNotFoundError) as fault:
        return str(fault)
    if running.task.manifest.array:
        chunks.changed(running)
    limit = run.limit_s(running.task)
    running.limit_at = running.started_at + limit if limit else 0.0
    stops.enforce(clock.now())
    return ""


def requests(owner: Owner) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each request in the inbox: verb, id and what it says; it is removed once dealt with."""
    for name in owner.requests():
        verb, _, task_id = name.partition(".")
        if verb in (*OF_TASKS, *OF_OURSELVES) and task_id:
            yield verb, task_id, read(owner, verb, task_id)
        files.unlink(owner.tree.request(owner.name, verb, task_id))


def read(owner: Owner, verb: str, task_id: str) -> dict[str, Any]:
    """What a request says, {} if it is gone or malformed: the verb alone is enough to cancel."""
    raw = files.read(owner.tree.request(owner.name, verb, task_id), 1 << 20)
    try:
        said = msgspec.json.decode(raw or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def change(owner: Owner, task: Task, said: dict[str, Any]) -> None:
    """Lay changed keys over a task's manifest. Raises ManifestError, FileNotFoundError."""
    changes = said.get("set")
    if not isinstance(changes, dict):
        raise ManifestError(f"{task.id}: the request names no keys to change")
    if "skip" in changes and isinstance(changes["skip"], str):
        manifest.changed(task.manifest, changes, task.id)
        skip = array.parse_some(task.manifest.skip) | array.parse_some(changes["skip"])
        changes = {**changes, "skip": str(skip)}
    wanted = manifest.changed(task.manifest, changes, task.id)
    event = {**said, "set": changes, "time": units.now_stamp(), "what": "change"}
    claim.write_line(owner, task, event, sync=True)
    task.manifest = wanted


def settle_claimed(owner: Owner, verb: str, task: Task, said: dict[str, Any]) -> str:
    """A claimed task that has not started goes where it then belongs; why not, if it cannot."""
    try:
        if verb == "change":
            change(owner, task, said)
        else:
            what = "replaced" if verb == "replaced" else "cancelled"
            event = {**said, "time": units.now_stamp(), "what": what}
            claim.write_line(owner, task, event, sync=True)
    except (ManifestError, FileNotFoundError) as fault:
        return str(fault)
    finally:
        claim.settle(owner, task)
    return ""
