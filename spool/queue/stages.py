"""stages - pure: what is done around a run (prepare, close, handlers), and what follows an end.

Owns   which stage a task needs, which handler an end has, the policies of `retry`, and the
       arithmetic of changed requests ("*2", "+1h").
Never  touches the disk or the clock.

What cannot be known from manifest and story alone (did the transfer work?) is a stager's to tell,
in lines that the story has learned: staging, prepared, closed, decided, broke.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from spool import units
from spool.errors import ManifestError
from spool.queue.history import Story
from spool.queue.kinds import CAUSE, CAUSE_FORM, Command, Retry, wrong_amount, wrong_transfer

if TYPE_CHECKING:
    from spool.queue.manifest import Manifest

VERDICTS = ("retry", "finish", "fail", "rescue")
LOST = "lost"
_COMMANDS = ("preprocess", "postprocess", "on_error", "on_timeout")
_TIMES = r"\*([0-9]{1,3}(?:\.[0-9]{1,3})?)"
_PLAIN: dict[str, tuple[Callable[[Any], float], float, float]] = {
    "memory": (units.memory, 0, 2**40),
    "time_limit": (units.duration, 0, units.LONGEST),
    "time_estimate": (units.duration, 0, units.LONGEST),
    "grace": (units.duration, 0, units.LONGEST),
    "cores_per_rank": (int, 1, 1_000_000),
    "per_node": (int, 0, 1_000_000),
    "nodes": (int, 1, 1_000_000),
    "gpus": (int, 0, 1_000_000),
    "priority": (int, -999, 999),
}
"""Keys that are amounts: how one is read, the least and the most it can be."""


# -- which stage -----------------------------------------------------------------------------------


def to_prepare(manifest: Manifest, story: Story) -> bool:
    """Whether something must still be done before the task can run.

    Once it is done it stays done, whatever befalls the task; but with `fresh` an attempt begins
    in an empty directory, so it is done for each.
    """
    if not manifest.stage_in and manifest.preprocess is None:
        return False
    done = story.prepared
    return done is None or (manifest.fresh and done.get("attempt") != story.attempt + 1)


def to_close(manifest: Manifest, story: Story) -> bool:
    """Whether something must still be done for a task that ended well."""
    return story.closed is None and bool(manifest.stage_out or manifest.postprocess is not None)


def handler(manifest: Manifest, cause: str) -> Command:
    """The command that is asked what to do about an end; None: there is none."""
    return manifest.on_timeout if cause == "timeout" else manifest.on_error


# -- what follows an end ---------------------------------------------------------------------------


def rule_for(manifest: Manifest, cause: str) -> str | None:
    """The key of the policy for a cause, the narrowest there is."""
    wider = {"timeout": ("*",), LOST: ()}.get(cause, ("error", "*"))
    return next((key for key in (cause, *wider) if key in manifest.retry), None)


def failures_of(manifest: Manifest, story: Story, rule: str | None) -> int:
    """How many ends fell under a policy (None: under none) since a person last retried."""
    if not manifest.retry:
        return story.failures
    ends = story.causes.items()
    return sum(count for cause, count in ends if rule_for(manifest, cause) == rule)


def most_losses(manifest: Manifest) -> int:
    """How many deaths of launchers a task survives."""
    rule = manifest.retry.get(LOST)
    return rule.attempts - 1 if rule else manifest.max_lost


def policy(manifest: Manifest, rule: str | None) -> Retry:
    """A policy by its key; what holds where there is none."""
    if rule is not None:
        return manifest.retry[rule]
    return Retry(attempts=manifest.max_attempts, backoff=manifest.backoff)


# -- changed requests ------------------------------------------------------------------------------


def applied(manifest: Manifest, changes: dict[str, Any]) -> dict[str, Any]:
    """The values that a change asks for: "*2" and "+1h" worked out. Raises ValueError."""
    return {key: _applied(key, getattr(manifest, key, 0), to) for key, to in changes.items()}


def _applied(key: str, now: Any, to: Any) -> Any:
    if not isinstance(to, str) or to[:1] not in ("*", "+") or key == "begin":
        return to
    if key not in _PLAIN:
        raise ValueError(f"{key!r} is no amount, so {units.shown(to)} cannot be worked out")
    read, least, most = _PLAIN[key]
    if to[0] == "+":
        wanted = read(now) + read(to[1:])
    elif factor := re.fullmatch(_TIMES, to):
        wanted = read(now) * float(factor[1])
    else:
        raise ValueError(f"{units.shown(to)}: expected a factor such as *2 or *1.5, at most *999")
    return math.ceil(min(max(wanted, least), most))


def changed(manifest: Manifest, changes: dict[str, Any], where: str) -> dict[str, Any]:
    """The same, once it is sure that a sound manifest results. Raises ManifestError."""
    from spool.queue import manifest as manifests

    try:
        values = applied(manifest, changes)
    except ValueError as fault:
        raise ManifestError(f"{where}: {fault}") from None
    manifests.changed(msgspec.structs.replace(manifest, retry={}), values, where)
    return values


def changed_or_none(manifest: Manifest, changes: object) -> dict[str, Any] | None:
    """The same of what stands in a history, which a program can write; None: it makes no sense."""
    try:
        return changed(manifest, changes, "") if isinstance(changes, dict) and changes else {}
    except (ManifestError, TypeError, OverflowError):
        return None


# -- what is wrong ---------------------------------------------------------------------------------


def wrong(manifest: Manifest) -> str:
    """What is wrong with the keys about stages, with the key's name in front; "" if nothing is."""
    for key in _COMMANDS:
        command = getattr(manifest, key)
        words = [command] if isinstance(command, str) else command
        if words is not None and (not words or not words[0].strip()):
            return f"{key!r}: names no program"
        if words and any("\0" in word for word in words):
            return f"{key!r}: a word holds a NUL character, none may"
    if said := wrong_amount(units.duration, manifest.hook_limit):
        return f"'hook_limit': {said}"
    for item in manifest.stage_in_list if manifest.stage_in else ():
        if said := wrong_transfer(item, inward=True):
            return f"'stage_in': {said}"
    for item in manifest.stage_out:
        if said := wrong_transfer(item, inward=False):
            return f"'stage_out': {said}"
    if "\0" in manifest.setup:
        return "'setup': a path holds no NUL"
    return _wrong_policies(manifest) if manifest.retry else ""


def _wrong_policies(manifest: Manifest) -> str:
    for cause, rule in manifest.retry.items():
        if not CAUSE.fullmatch(cause):
            return f"'retry': {units.shown(cause)} is no cause; expected {CAUSE_FORM}"
        if said := wrong_amount(units.duration, rule.backoff):
            return f"'retry': {cause}: backoff: {said}"
        try:
            changed(manifest, rule.set, f"'retry': {cause}")
        except ManifestError as fault:
            return str(fault)
    return ""
