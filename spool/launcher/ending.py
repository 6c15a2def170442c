"""ending - how a running task's end is written down, whatever its program did to its directory.

Owns   the lines between a program's exit and the move that follows; rebuilding a vanished task.
Fails  LeaseLost; DiskFull: nothing was decided, try again.
"""

from __future__ import annotations

import errno
from typing import Any

from spool import units
from spool.errors import LeaseLost
from spool.launcher import clock
from spool.launcher.run import Running
from spool.queue import claim, files, history, layout
from spool.queue.owner import Owner
from spool.queue.place import Place

REPLACED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""What opening a history answers that its program removed, or put something else in its place."""


def record(owner: Owner, running: Running) -> Place:
    """Write how an attempt ended (`running.end`) and what follows; where the task belongs now."""
    assert running.end is not None
    events = [running.end]
    if running.stopping == "cancelled":
        said = {"by": owner.name, **running.said}
        events.append({**said, "time": units.now_stamp(), "what": "cancelled"})
    return written(owner, running, events)


def written(owner: Owner, running: Running, events: list[dict[str, Any]]) -> Place:
    """Write events into a task that may be damaged, and the line that its move needs."""
    task = running.task
    for event in events:
        history.tell(task.story, event)  # told again after a full disk, it changes nothing more
    place = claim.place_of(owner.tree, task, clock.epoch())
    if place.line:
        events.append({"time": units.now_stamp(), **place.line})
    if _write(owner, running, events):
        return place
    if not owner.holds_lease():
        raise LeaseLost(f"{owner.claims}: is gone; another process has taken over")
    return _rebuilt(owner, running, events)


def _write(owner: Owner, running: Running, events: list[dict[str, Any]]) -> bool:
    """Append the lines; False if the program destroyed its manifest, its history or all of it."""
    task, path = running.task, running.task.path
    if not _is_whole(running):
        return False
    lines = b"".join(history.encode(event) for event in events)
    try:
        claim.append(owner, f"{path}/{layout.HISTORY}", lines, heal=False, create=False)
    except PermissionError:  # the program took our right to write; what was told before is known
        files.replace(f"{path}/{layout.HISTORY}", task.told + running.last_line + lines)
    except OSError as fault:
        if fault.errno not in REPLACED:
            raise
        return False
    return True


def _is_whole(running: Running) -> bool:
    """Whether the task is still a directory, no link to another, with all that was told in it."""
    path = running.task.path
    known = len(running.task.told) + len(running.last_line)
    if not files.is_folder(path):
        return False
    try:
        return _holds(path, known)
    except PermissionError:
        files.open_up(path)
        return _holds(path, known)


def _holds(path: str, known: int) -> bool:
    told, asked = (files.size(f"{path}/{name}") for name in (layout.HISTORY, layout.MANIFEST))
    return told >= known and asked > 0


def _rebuilt(owner: Owner, running: Running, events: list[dict[str, Any]]) -> Place:
    """Write manifest and history again, from memory, and file the task under FAILED/vanished."""
    task = running.task
    reason = "its program removed or replaced the task's directory, its manifest or its history"
    vanished = {"time": units.now_stamp(), "what": "vanished", "reason": reason}
    lines = [task.told, running.last_line, *map(history.encode, [*events, vanished])]
    _make_folder_again(task.path)
    for name, content in ((layout.MANIFEST, task.raw), (layout.HISTORY, b"".join(lines))):
        _set_aside(f"{task.path}/{name}")
        files.replace(f"{task.path}/{name}", content)
    history.tell(task.story, vanished)
    return claim.place_of(owner.tree, task, clock.epoch())


def _make_folder_again(path: str) -> None:
    """See to it that the task is a directory; what the program left in its place goes into it."""
    odd = files.exists(path) and not files.is_folder(path)
    found = files.move_aside(path) if odd else ""
    files.make_folder(path)
    files.open_up(path)
    if found:
        files.rename_file(found, f"{path}/found")


def _set_aside(path: str) -> None:
    if files.exists(path) and not files.is_plain(path):
        files.move_aside(path)


def journal_line(running: Running, place: Place, owner: str) -> dict[str, Any]:
    """What the journal keeps of an end: enough for throughput, use and waiting times."""
    assert running.end is not None
    task = running.task
    submitted = task.manifest.submitted.time if task.manifest.submitted else ""
    return {
        **running.end,
        "id": task.id,
        "state": place.state,
        "group": place.group,
        "started": units.stamp(running.started),
        "submitted": submitted,
        "nodes": len(running.grants),
        "cores": sum(len(grant.cpus) for grant in running.grants),
        "gpus": sum(len(grant.gpus) for grant in running.grants),
        "memory_mb": sum(grant.memory_mb for grant in running.grants),
        "workflow": task.manifest.workflow,
        "owner": owner,
    }
