"""history - a task's own story: the lines of history.jsonl, and what they add up to.

Owns   the words of the events and the keys beside them; the fold from lines to a `Story`.
Never  touches the disk or the clock.

A line is one JSON object: {"time", "what", ...}. The events:
  arrived      an arrival was admitted: nonce, as (its name in CREATED), source
  start        attempt, owner, node: a try begins
  exit         attempt, owner, code or signal, timeout, elapsed_s, user_s, system_s, peak_mb
  queued       stage (run), reason, until: back to the backlog; after it no earlier exit counts
  interrupted  attempt, owner: the allocation or the launcher ended first; costs no attempt
  lost         attempt, owner: the launcher died with the task running
  held, released, cancelled, rejected, vanished: by, reason; a release may set until
  change       set: keys of the manifest laid over it
  replaced     with: the task that took its place; look-ups of this one follow it
"""

from __future__ import annotations

from typing import Any

import msgspec

from spool import units

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


class Story(msgspec.Struct):
    """What a task's history adds up to.

    attempt counts starts; failures, losses and interruptions count since a person's last retry.
    exit is the line that counts now, else None; started says that an attempt has begun and nothing
    yet tells how it ended; had_s is the longest time an interrupted try already had; replaced is
    the id of the task that took its place.
    """

    arrived: dict[str, Any] | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    interruptions: int = 0
    had_s: float = 0.0
    started: dict[str, Any] | None = None
    exit: dict[str, Any] | None = None
    until: str = ""
    held: bool | None = None
    cancelled: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    replaced: str = ""
    changes: dict[str, Any] = {}
    lines: int = 0
    damaged: int = 0


def line(what: str, **fields: Any) -> bytes:
    """One event as it stands in history.jsonl, with the time of now."""
    return encode({"time": units.now_stamp(), "what": what, **fields})


def encode(event: dict[str, Any]) -> bytes:
    """An event made elsewhere, as a line; a file's name that is not UTF-8 stands there escaped."""
    try:
        return _encoder.encode(event) + b"\n"
    except UnicodeEncodeError:
        plain = {key: _escaped(v) if isinstance(v, str) else v for key, v in event.items()}
        return _encoder.encode(plain) + b"\n"


def _escaped(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def events(raw: bytes) -> list[dict[str, Any]]:
    """The events of a history; a torn or damaged line is passed over."""
    return [event for event in map(_event, raw.splitlines()) if event is not None]


def _event(text: bytes) -> dict[str, Any] | None:
    try:
        event = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return event if isinstance(event.get("what"), str) else None


def fold(raw: bytes | None) -> Story:
    """What the lines of a history add up to."""
    story = Story()
    for text in (raw or b"").splitlines():
        if not text.strip():
            continue
        if (event := _event(text)) is None:
            story.damaged += 1
            continue
        story.lines += 1
        tell(story, event)
    return story


def tell(story: Story, event: dict[str, Any]) -> None:
    """Let one event happen to a story."""
    what = event["what"]
    if what == "start":
        story.attempt = max(story.attempt + 1, _whole(event.get("attempt")))
        story.started, story.exit, story.until = event, None, "now"
        story.stopped = None
    elif what == "exit":
        if story.started and _whole(event.get("attempt")) == story.attempt:
            story.started, story.exit = None, event
            story.failures += 0 if succeeded(event) else 1
    elif what in ("lost", "interrupted"):
        _cut_short(story, event)
    elif what == "queued":
        _queued(story, event)
    elif what in ("held", "released"):
        story.held = what == "held"
        story.until = str(event.get("until", story.until))
    elif what == "cancelled":
        story.cancelled = event
    elif what in ("rejected", "vanished"):
        story.stopped, story.exit = event, None
    elif what == "replaced":
        story.replaced = str(event.get("with", ""))
    elif what == "arrived":
        story.arrived = event
    elif what == "change" and isinstance(event.get("set"), dict):
        story.changes.update(event["set"])
        story.until = "" if "begin" in event["set"] else story.until


def _cut_short(story: Story, event: dict[str, Any]) -> None:
    if story.started is None or _whole(event.get("attempt")) != story.attempt:
        return  # the same end told twice, or a late word about an attempt already decided
    story.started = None
    elapsed = event.get("elapsed_s")
    if isinstance(elapsed, (int, float)):
        story.had_s = min(max(story.had_s, elapsed), units.LONGEST)
    if event["what"] == "lost":
        story.losses += 1
    else:
        story.interruptions += 1


def _queued(story: Story, event: dict[str, Any]) -> None:
    if event.get("stage", "run") != "run":
        return
    story.exit = story.started = story.cancelled = story.stopped = None
    story.replaced = ""
    story.until = str(event.get("until", "now"))
    if event.get("reason") == "retry by a person":
        story.failures = story.losses = story.interruptions = 0
        story.held = False


def succeeded(event: dict[str, Any]) -> bool:
    """Whether an exit line tells of success."""
    return event.get("code") == 0 and not event.get("timeout") and not event.get("error")


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
