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
from spool.queue import history, layout, shape, stages
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
    asked = Question(manifest, story, shard, now, _parent(manifest, kin, shard, under))
    if story.exit is not None:
        return _after_exit(asked)
    if (stopped := _without_exit(manifest, story, shard)) is not None:
        return stopped
    if story.lost is not None and (rule := manifest.retry.get(stages.LOST)):
        delay = _delay(rule.backoff, story.losses)
        return _again(asked, Try(story.lost, delay, rule.set, "lost"))
    return _queue(asked)


class Question(NamedTuple):
    """What a place is to be found for; blocked gives the places where its parents keep it."""

    manifest: Manifest
    story: Story
    shard: str
    now: float
    blocked: Iterator[Place]

    def failed(self, reason: str) -> Place:
        """The place of a task that failed for this reason."""
        return Place(State.FAILED, layout.failed_group(reason, self.shard))


class Try(NamedTuple):
    """Another try: after which line, how many seconds later, with which changes, and why."""

    after: dict[str, Any]
    delay_s: float
    changes: object
    reason: str


def _without_exit(manifest: Manifest, story: Story, shard: str) -> Place | None:
    """The final place of a task that has no end of its own; None where it may go on."""
    if story.stopped is not None:
        return Place(State.FAILED, layout.failed_group(stop_reason(story.stopped), shard))
    if story.cancelled is not None:
        return Place(State.CANCELLED, shard)
    if story.broke is not None or story.stage_losses > manifest.max_lost:
        return Place(State.FAILED, layout.failed_group("prepare", shard))
    if story.losses > stages.most_losses(manifest):
        return Place(State.FAILED, layout.failed_group("lost", shard))
    if story.interruptions > manifest.max_interrupted:
        return Place(State.FAILED, layout.failed_group("interrupted", shard))
    return None


def _after_exit(asked: Question) -> Place:
    """Where a task belongs that ended."""
    manifest, story = asked.manifest, asked.story
    assert story.exit is not None
    if story.exit.get("cancelled"):
        return Place(State.CANCELLED, asked.shard)
    cause = history.cause(story.exit)
    decided = story.decided or {}
    if not cause or decided.get("verdict") == "finish":
        return _after_success(asked)
    if story.cancelled is not None:
        return asked.failed(cause)
    if decided:
        return _decided(asked, decided, cause)
    rule = stages.rule_for(manifest, cause)
    policy, count = stages.policy(manifest, rule), stages.failures_of(manifest, story, rule)
    if count < policy.attempts and not manifest.array:  # whose elements tried again
        delay = _delay(policy.backoff, count)
        return _again(asked, Try(story.exit, delay, policy.set, "retry"))
    if stages.handler(manifest, cause) is None or _close_is_over(manifest, story):
        return asked.failed(cause)
    return _queue(asked, "close")


def _decided(asked: Question, decided: dict[str, Any], cause: str) -> Place:
    """Where a handler's word sends a task that failed."""
    verdict, changes = decided.get("verdict"), decided.get("set")
    if verdict == "rescue":
        line = {"what": "replaced", "with": str(decided.get("id", ""))}
        return asked.failed(layout.REPLACED)._replace(line=line)
    may = verdict == "retry" and asked.story.handled <= asked.manifest.max_handled
    if may and stages.changed_or_none(asked.manifest, changes) is not None:
        return _again(asked, Try(decided, 0.0, changes, "handler"))
    return asked.failed(cause)


def _after_success(asked: Question) -> Place:
    manifest, story = asked.manifest, asked.story
    if not stages.to_close(manifest, story):
        return Place(State.FINISHED, asked.shard)
    if _close_is_over(manifest, story):
        return asked.failed("close")
    if story.cancelled is not None:
        return Place(State.CANCELLED, asked.shard)
    return _queue(asked, "close")


def _close_is_over(manifest: Manifest, story: Story) -> bool:
    """Whether closing failed, or its stagers died or were cut short too often."""
    lost = story.stage_losses > manifest.max_lost
    return story.broke is not None or lost or story.interruptions > manifest.max_interrupted


def _again(asked: Question, wanted: Try) -> Place:
    """Back to the backlog, by a line that says so, with a changed request where one is wanted."""
    values = stages.changed_or_none(asked.manifest, wanted.changes) or {}
    place = _queue(asked._replace(manifest=msgspec.structs.replace(asked.manifest, **values)))
    if place.state is State.FAILED:
        return place
    until = _moment(str(wanted.after.get("time"))) + wanted.delay_s if wanted.delay_s else 0.0
    line: dict[str, Any] = {"what": "queued", "stage": "run", "reason": wanted.reason}
    if values:
        line["set"] = values
    if until > asked.now:
        line["until"] = units.stamp(until)
        if place.state is State.READY:
            return Place(State.WAITING, layout.until_group(until), line)
    return Place(place.state, place.group, line)


def stop_reason(event: dict[str, Any]) -> str:
    """The folder a task is filed under that failed without an exit: rejected, vanished, ..."""
    return layout.as_name(str(event.get("as") or event["what"]))


def ordered(after: Iterable[str], under: str = "") -> list[str]:
    """Parents, the youngest first; from `under` on, since those before it had finished then."""
    if isinstance(after, list) and len(after) == 1:
        return after
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


def _queue(asked: Question, stage: str = "run") -> Place:
    manifest, story, shard, now, blocked = asked
    held = manifest.hold if story.held is None else story.held
    if held:
        return Place(State.WAITING, layout.held_group(shard))
    if (until := _wait_moment(manifest, story)) > now:
        return Place(State.WAITING, layout.until_group(until))
    if stage == "run" and (place := next(blocked, None)) is not None:
        return place
    source = str(story.arrived.get("source", "")) if story.arrived else ""
    wanted = wanted_shape(manifest, source)
    if story.had_s > wanted.time_s and not manifest.array:  # a chunk goes on where it was
        had_s = shape.round_time_down(story.had_s)
        wanted = msgspec.structs.replace(wanted, time_s=max(wanted.time_s, had_s))
    if stage == "run" and stages.to_prepare(manifest, story):
        stage = "prepare"
    if stage != "run":
        wanted = shape.bounded(msgspec.structs.replace(wanted, stage=stage))
    return Place(State.READY, shape.lane(wanted, shard))


def _wait_moment(manifest: Manifest, story: Story) -> float:
    """The moment the task waits for, epoch seconds; 0 for none."""
    text = story.until or manifest.begin
    return 0.0 if text in ("", "now") else _moment(text)


def _delay(backoff: int | float | str, count: int) -> float:
    """Seconds before the next try after so many: the back-off doubles each time, up to an hour."""
    base = units.duration(backoff)
    doublings = min(max(count - 1, 0), 60)
    return min(base * 2.0**doublings, max(base, LONGEST_BACKOFF_S))


def _moment(text: str) -> float:
    """A moment told in a history, 0 where it is damaged: the task then waits for none."""
    try:
        return units.read_stamp(text)
    except ValueError:
        return 0.0
