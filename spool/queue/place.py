"""place - pure: the one answer to "where does this task belong?".

Owns   `next_place`, asked by submit, admit, finish, requeue, takeover, advance, release, retry,
       modify and check.
Never  touches the disk or the clock: what it needs to know is handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from spool import units
from spool.queue import history, layout, shape
from spool.queue.history import Story
from spool.queue.layout import State
from spool.queue.manifest import Manifest, wanted_shape

LONGEST_BACKOFF_S = 3600.0


class Place(NamedTuple):
    """A state and a group in it; `line` is the event that must be written before the move."""

    state: State
    group: str
    line: dict[str, Any] | None = None


def next_place(
    task_id: str,
    manifest: Manifest,
    story: Story,
    parents: Mapping[str, State | None],
    now: float,
) -> Place:
    """Where a task belongs that nobody is working on.

    manifest is the one in force (changes laid over it), parents the looked-up states of its
    parents (none in this version), now the moment in epoch seconds, against which only a time to
    wait for is held.
    """
    shard = layout.shard_of(task_id)
    if story.exit is not None:
        if (ended := _after_exit(manifest, story, shard)) is not None:
            return ended
    elif story.stopped is not None:
        return Place(State.FAILED, layout.failed_group(stop_reason(story.stopped), shard))
    elif story.cancelled is not None:
        return Place(State.CANCELLED, shard)
    elif story.losses > manifest.max_lost:
        return Place(State.FAILED, layout.failed_group("lost", shard))
    elif story.interruptions > manifest.max_interrupted:
        return Place(State.FAILED, layout.failed_group("interrupted", shard))
    place = _queue(manifest, story, shard, now)
    if story.exit is None:
        return place
    until = _retry_moment(manifest, story)
    waits = until > now
    line = {"what": "queued", "stage": "run", "reason": "retry"}
    if waits:
        line["until"] = units.stamp(until)
        if place.state is State.READY:
            return Place(State.WAITING, layout.until_group(until), line)
    return Place(place.state, place.group, line)


def _after_exit(manifest: Manifest, story: Story, shard: str) -> Place | None:
    """The final place of a task that ended; None where it may try again."""
    assert story.exit is not None
    if story.exit.get("cancelled"):
        return Place(State.CANCELLED, shard)
    if history.succeeded(story.exit):
        return Place(State.FINISHED, shard)
    if story.failures < manifest.max_attempts and story.cancelled is None:
        return None
    return Place(State.FAILED, layout.failed_group(exit_reason(story.exit), shard))


def exit_reason(event: dict[str, Any]) -> str:
    """The folder an unsuccessful exit is filed under: timeout, signal-9, exit-1.

    Its program can write into its history, so that what stands there must first become a name.
    """
    if event.get("timeout"):
        return "timeout"
    if event.get("signal"):
        return layout.as_name(f"signal-{event['signal']}")
    return layout.as_name(f"exit-{event.get('code', 'unknown')}")


def stop_reason(event: dict[str, Any]) -> str:
    """The folder a task is filed under that failed without an exit: rejected, vanished, ..."""
    return layout.as_name(str(event.get("as") or event["what"]))


def _queue(manifest: Manifest, story: Story, shard: str, now: float) -> Place:
    held = manifest.hold if story.held is None else story.held
    if held:
        return Place(State.WAITING, layout.held_group(shard))
    if (until := _wait_moment(manifest, story)) > now:
        return Place(State.WAITING, layout.until_group(until))
    source = str(story.arrived.get("source", "")) if story.arrived else ""
    wanted = wanted_shape(manifest, source)
    if story.had_s > wanted.time_s:
        wanted = msgspec.structs.replace(wanted, time_s=shape.round_time(story.had_s))
    return Place(State.READY, shape.lane(wanted, shard))


def _wait_moment(manifest: Manifest, story: Story) -> float:
    """The moment the task waits for, epoch seconds; 0 for none."""
    text = story.until or manifest.begin
    return 0.0 if text in ("", "now") else _moment(text)


def _retry_moment(manifest: Manifest, story: Story) -> float:
    """When a failed task may try again: the back-off doubles with each failure, up to an hour."""
    assert story.exit is not None
    base = units.duration(manifest.backoff)
    doublings = min(max(story.failures - 1, 0), 60)
    delay = min(base * 2.0**doublings, max(base, LONGEST_BACKOFF_S))
    return _moment(str(story.exit.get("time"))) + delay if base else 0.0


def _moment(text: str) -> float:
    """A moment told in a history, 0 where it is damaged: the task then waits for none."""
    try:
        return units.read_stamp(text)
    except ValueError:
        return 0.0
