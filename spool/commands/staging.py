"""staging - options about what is done around a run, the same for submit and app.

Owns   their words, and how each becomes a key of the manifest.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from spool.commands import shared
from spool.queue.layout import is_name

F = TypeVar("F", bound=Callable[..., Any])
HOOKS = ("preprocess", "postprocess", "on_error", "on_timeout")


def stage_options(command: F) -> F:
    """Options for hooks, transfers, set-up, containers and policies."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--stage-in", multiple=True, metavar="SRC[:TARGET]", help="Bring in first."),
    click.option(
        "--stage-out", multiple=True, metavar="GLOB:DEST", help="Bring out after success."
    ),
    click.option("--preprocess", metavar="LINE", help="Run before the first attempt."),
    click.option("--postprocess", metavar="LINE", help="Run after success."),
    click.option("--on-error", metavar="LINE", help="Decides what follows an error."),
    click.option("--on-timeout", metavar="LINE", help="Decides what follows its time limit."),
    click.option("--hook-limit", type=shared.Duration(), help="Stop each of these after so long."),
    click.option("--setup", metavar="SCRIPT", help="Sourced by sh before the command."),
    click.option("--container", metavar="[KIND=]IMAGE", help="Run the command in it."),
    click.option(
        "--retry",
        multiple=True,
        metavar="CAUSE:ATTEMPTS[:KEY=VALUE,...]",
        help="Tries for one cause: timeout:3:time_limit=*2,backoff=1m.",
    ),
    click.option("--param", multiple=True, help="A parameter of an app."),
)


def stage_keys(keys: dict[str, Any]) -> dict[str, Any]:
    """Take what these options say out of a command's arguments, as manifest keys; not --param."""
    made: dict[str, Any] = {}
    if items := keys.pop("stage_in"):
        made["stage_in"] = [_stage_in(text) for text in items]
    if items := keys.pop("stage_out"):
        made["stage_out"] = [_stage_out(text) for text in items]
    for name in HOOKS:
        if (line := keys.pop(name)) is not None:
            made[name] = _line(line)
    if (limit := keys.pop("hook_limit")) is not None:
        made["hook_limit"] = limit
    if setup := keys.pop("setup"):
        made["setup"] = _here(setup)
    if container := keys.pop("container"):
        made["container"] = _container(container)
    if policies := keys.pop("retry"):
        made["retry"] = dict(map(_policy, policies))
    return made


def values(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE words of --param as a mapping."""
    for pair in pairs:
        if "=" not in pair[1:]:
            raise click.BadParameter(f"{pair!r}: expected NAME=VALUE", param_hint="--param")
    return dict(pair.split("=", 1) for pair in pairs)


def declared(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """NAME[:TYPE][=DEFAULT] words of an app's --param as its parameters."""
    made = {}
    for pair in pairs:
        head, given, default = pair.partition("=")
        name, _, kind = head.partition(":")
        made[name] = {"type": kind or "text"}
        if given:
            made[name]["default"] = _typed(default, kind)
    return made


def _typed(text: str, kind: str) -> Any:
    """A default as its type; what cannot be is left to the check of the app."""
    from spool.queue.apps import parsed

    return parsed(text, kind) if kind not in ("", "text") else text


def _here(path: str) -> str:
    """A file that is there, by its full path: it will be used in the task's directory."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _line(line: str) -> str:
    """A line for sh whose program is named relative to here, with its full path."""
    first, _, rest = line.strip().partition(" ")
    if "/" in first and not os.path.isabs(first) and os.path.isfile(first):
        return f"{shlex.quote(os.path.abspath(first))} {rest}".strip()
    return line


def _stage_in(text: str) -> dict[str, str]:
    """SRC[:TARGET]; the colons of URLs and of HOST:PATH are no ends of SRC."""
    begin = 0
    if "://" in text:
        begin = text.find("/", text.index("://") + 3)
    elif ":" in text and "/" not in (host := text.partition(":")[0]) and not os.path.exists(host):
        begin = len(host) + 1
    at = text.find(":", begin) if begin >= 0 else -1
    source, target = (text[:at], text[at + 1 :]) if at >= 0 else (text, "")
    if begin == 0:
        source = os.path.abspath(source) + ("/" if source.endswith("/") else "")
    return {"source": source, "target": target} if target else {"source": source}


def _stage_out(text: str) -> dict[str, str]:
    source, colon, target = text.partition(":")
    if not colon or not target or not source:
        raise click.BadParameter(f"{text!r}: expected GLOB:DEST", param_hint="--stage-out")
    if ":" not in target:
        target = os.path.abspath(target) + ("/" if target.endswith("/") else "")
    return {"source": source, "target": target}


def _container(text: str) -> dict[str, str]:
    kind, given, image = text.partition("=")
    if not given or not is_name(kind):
        return {"image": _here(text)}
    return {"image": _here(image), "kind": kind}


def _policy(text: str) -> tuple[str, dict[str, Any]]:
    cause, _, rest = text.partition(":")
    count, _, changes = rest.partition(":")
    pairs = [pair.partition("=") for pair in changes.split(",") if pair]
    if not count.isdecimal() or any(not given for _, given, _ in pairs):
        raise click.BadParameter(
            f"{text!r}: expected CAUSE:ATTEMPTS[:KEY=VALUE,...]", param_hint="--retry"
        )
    wanted: dict[str, Any] = {name: _number(value) for name, _, value in pairs}
    backoff = {"backoff": wanted.pop("backoff")} if "backoff" in wanted else {}
    changed = {"set": wanted} if wanted else {}
    return cause, {"attempts": int(count), **backoff, **changed}


def _number(text: str) -> Any:
    return int(text) if text.isdecimal() else text
