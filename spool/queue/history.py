"""history - a task's own story: the lines of history.jsonl, and what they add up to.

Owns   the words of the events and the keys beside them; the fold from lines to a `Story`.
Never  touches the disk or the clock.

A line is one JSON object: {"time", "what", ...}. The events:
  arrived      an arrival was admitted: nonce, as (its name in CREATED), source
  start        attempt, owner, node: a try begins
  exit         attempt, owner, code or signal, timeout, elapsed_s, user_s, system_s, peak_mb
  queued       stage (run, prepare, close), reason, until, set: back to the backlog; after one for
               run no earlier exit counts; set is laid over the manifest
  interrupted  attempt, owner: the allocation or the launcher ended first; costs no attempt
  lost         attempt, owner: the launcher died with the task running; with a stage: its stager
  staging      stage, owner: a stager begins
  prepared     attempt: all is done that must be before that attempt
  closed       what follows a good end is done
  decided      verdict (retry, finish, fail, rescue), set, reason, id, error: a handler's word
  broke        stage, reason: a stage failed
  held, released, cancelled, rejected, vanished: by, reason; a release may set until
  change       set: keys of the manifest laid over it
  replaced     with: the task that took its place; look-ups of this one follow it
"""

from __future__ import annotations

from typing import Any

import msgspec

from spool import units
from spool.queue import layout

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


class Story(msgspec.Struct):
    """What a task's history adds up to.

    attempt counts starts; failures, losses and interruptions count since a person's last retry.
    exit is the line that counts now, else None; started says that an attempt has begun and nothing
    yet tells how it ended; had_s is the longest time an interrupted try already had; replaced is
    the id of the task that took its place.
    causes counts the failures by their cause; lost is a loss that nothing was done about yet;
    handled counts the retries that handlers asked for. Of the stage under way staging is the line
    that a stager has begun, stage_since the first such, stage_tries how often it was put off,
    delayed why.
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
    causes: dict[str, int] = {}
    lost: dict[str, Any] | None = None
    handled: int = 0
    staging: dict[str, Any] | None = None
    stage_since: str = ""
    stage_tries: int = 0
    stage_losses: int = 0
    delayed: str = ""
    prepared: dict[str, Any] | None = None
    closed: dict[str, Any] | None = None
    decided: dict[str, Any] | None = None
    broke: dict[str, Any] | None = None
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
        story.stopped = story.lost = None
        _stage_over(story)
    elif what == "exit":
        if story.started and _whole(event.get("attempt")) == story.attempt:
            _ended(story, event)
    elif what in ("lost", "interrupted"):
        _cut_short(story, event)
    elif what == "queued":
        _queued(story, event)
    elif what in ("held", "released"):
        story.held = what == "held"
        story.until = str(event.get("until", story.until))
    elif what == "cancelled":
        story.cancelled = event
    elif what in _STAGE_WORDS:
        _tell_stage(story, event)
    elif what in ("rejected", "vanished"):
        story.stopped, story.exit = event, None
    elif what == "replaced":
        story.replaced = str(event.get("with", ""))
    elif what == "arrived":
        story.arrived = event
    elif what == "change" and isinstance(event.get("set"), dict):
        story.changes.update(event["set"])
        story.until = "" if "begin" in event["set"] else story.until


def _ended(story: Story, event: dict[str, Any]) -> None:
    story.started, story.exit = None, event
    _stage_over(story)
    if why := cause(event):
        story.failures += 1
        story.causes[why] = story.causes.get(why, 0) + 1


_STAGE_WORDS = ("staging", "prepared", "closed", "decided", "broke")


def _tell_stage(story: Story, event: dict[str, Any]) -> None:
    """A stager's word. Those about an end count only while there is one."""
    what = event["what"]
    if what == "staging":
        story.staging = event
        story.stage_since = story.stage_since or str(event.get("time", ""))
        return
    if what == "prepared" and story.exit is None:
        _stage_over(story)
        story.prepared = event
    elif what == "broke":
        story.staging, story.broke = None, event
    elif story.exit is None:
        return
    elif what == "closed":
        story.staging, story.closed = None, event
    elif what == "decided" and story.decided is None:
        _stage_over(story)
        story.decided = event
        story.handled += event.get("verdict") == "retry"


def _stage_over(story: Story) -> None:
    """Another stage begins: what was told of the one before is past."""
    story.staging = story.closed = story.decided = story.broke = None
    story.stage_since, story.stage_tries, story.stage_losses = "", 0, 0


def _cut_short(story: Story, event: dict[str, Any]) -> None:
    if "stage" in event:
        if story.staging is not None:
            story.staging = None
            story.stage_losses += event["what"] == "lost"
            story.interruptions += event["what"] == "interrupted"
        return
    if story.started is None or _whole(event.get("attempt")) != story.attempt:
        return  # the same end told twice, or a late word about an attempt already decided
    story.started = None
    elapsed = event.get("elapsed_s")
    if isinstance(elapsed, (int, float)):
        story.had_s = min(max(story.had_s, elapsed), units.LONGEST)
    if event["what"] == "lost":
        story.losses += 1
        story.lost = event
    elif not _got_on(event):
        story.interruptions += 1


def _got_on(event: dict[str, Any]) -> bool:
    """Whether a chunk of an array ran some of its elements before it was interrupted."""
    told = event.get("elements")
    return isinstance(told, dict) and _whole(told.get("ran")) > 0


def _queued(story: Story, event: dict[str, Any]) -> None:
    by_hand = event.get("reason") == "retry by a person"
    story.until = str(event.get("until", "now"))
    story.lost, story.delayed = None, str(event.get("why", ""))
    if isinstance(event.get("set"), dict):
        story.changes.update(event["set"])
    if by_hand:
        story.held, story.cancelled = False, None
    if event.get("stage", "run") != "run":
        tries = story.stage_tries + 1
        story.staging = None
        if by_hand:
            _stage_over(story)
            story.interruptions, story.replaced = 0, ""
            return
        story.stage_tries = tries
        return
    story.exit = story.started = story.cancelled = story.stopped = None
    _stage_over(story)
    story.replaced = ""
    if by_hand:
        story.failures = story.losses = story.interruptions = story.handled = 0
        story.causes, story.prepared = {}, None


def cause(event: dict[str, Any]) -> str:
    """Why an attempt failed, by its exit line: timeout, signal-9, exit-1; "" if it did not.

    Its program can write into its history, so that what stands there must first become a name.
    """
    if succeeded(event):
        return ""
    if event.get("timeout"):
        return "timeout"
    if isinstance(told := event.get("elements"), dict) and told.get("failed"):
        return "elements"
    if event.get("signal"):
        return layout.as_name(f"signal-{event['signal']}")
    return layout.as_name(f"exit-{event.get('code', 'unknown')}")


def succeeded(event: dict[str, Any]) -> bool:
    """Whether an exit line tells of success."""
    return event.get("code") == 0 and not event.get("timeout") and not event.get("error")


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
