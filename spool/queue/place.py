"""place - pure: the one answer to "where does this task belong?".

Owns   `next_place`, asked by submit, admit, finish, requeue, takeover, advance, release, retry,
       modify and check.
Never  touches the disk or the clock: what it needs to know is handed to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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


class Parent(NamedTuple):
    """A parent, or whoever took its place, and its state: a final one, or WAITING for "not yet".

    None says that it is nowhere.
    """

    id: str
    state: State | None


def next_place(
    task_id: str,
    manifest: Manifest,
    story: Story,
    kin: Mapping[str, Parent],
    now: float,
    under: str = "",
) -> Place:
    """Where a task belongs that nobody is working on.

    manifest is the one in force (changes laid over it), kin says what has become of its parents,
    now is the moment in epoch seconds, against which only a time to wait for is held. under is the
    parent it waited for last: those younger had finished then.
    """
    shard = layout.shard_of(task_id)
    if story.replaced and story.started is None:
        return Place(State.FAILED, layout.failed_group(layout.REPLACED, shard))
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
    place = _queue(manifest, story, shard, now, _parent(manifest, kin, shard, under))
    if story.exit is None or place.state is State.FAILED:
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


def ordered(after: Iterable[str], under: str = "") -> list[str]:
    """Parents, the youngest first; from `under` on, since those before it had finished then."""
    numbered = enumerate(dict.fromkeys(after))
    young = sorted(numbered, key=lambda entry: (layout.shard_of(entry[1])[:8], entry[0]))
    found = [task_id for _, task_id in reversed(young)]
    start = found.index(under) if under in found else 0
    return found[start:] + found[:start]


def _parent(
    manifest: Manifest, kin: Mapping[str, Parent], shard: str, under: str
) -> Iterator[Place]:
    """Where a task belongs because of its parents; nothing, if none of them is in its way."""
    for parent in ordered(manifest.after, under) if manifest.after else ():
        found = kin[parent]
        if found.state is State.FINISHED:
            continue
        if found.state is None:
            yield _stopped("no-parent", f"its parent {found.id} is nowhere", shard)
        elif found.state is not State.WAITING and manifest.on_parent_failure == "run":
            continue
        elif found.state is not State.WAITING and manifest.on_parent_failure == "fail":
            told = f"its parent {found.id} was {str(found.state).lower()}"
            yield _stopped("parent", told.replace("was failed", "failed"), shard)
        yield Place(State.WAITING, found.id)


def _stopped(kind: str, reason: str, shard: str) -> Place:
    line = {"what": "rejected", "as": kind, "reason": reason}
    return Place(State.FAILED, layout.failed_group(kind, shard), line)


def _queue(
    manifest: Manifest, story: Story, shard: str, now: float, blocked: Iterator[Place]
) -> Place:
    held = manifest.hold if story.held is None else story.held
    if held:
        return Place(State.WAITING, layout.held_group(shard))
    if (until := _wait_moment(manifest, story)) > now:
        return Place(State.WAITING, layout.until_group(until))
    if (place := next(blocked, None)) is not None:
        return place
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
