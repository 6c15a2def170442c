"""template - a line and a template become a task, or the reason why not.

Owns   where a value enters a task; Rejected; what is wrong with a line, whatever form it has.
Never  opens a file, nor holds more than one line.
Fails  ManifestError: no task could come of the template, whatever the value.
       What is wrong with a line or its value alone is told as a value, Rejected or a reason.

A template is a dict of manifest keys. A value enters its command, args, name, environment and
inputs: where `{}` stands, or for a table `{column}`. There is no escape, none is needed:
  `{}`        every other brace is left alone: awk '{print $1}', ${HOME}, {a,b}
  `{column}`  `${column}` is the shell's own. A lone word in braces that is no column is an error,
              since it is most likely a typing slip; `{ word }` with spaces passes
  nowhere     an error for `{}`: a value put at the end unasked could become an order, as it would
              with `hostname`. A table's columns need not be used: they are kept in `data`
A value enters as it stands: inside a line for the shell, write the quotes around the braces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from spool.errors import ManifestError
from spool.queue import layout, manifest
from spool.queue.manifest import Manifest

LONGEST_LINE = 1024 * 1024
TOO_LONG = f"is longer than {LONGEST_LINE} bytes; put long values into a file"
PLACE = "{}"
TEMPLATE = "template"
_FILLED = (
    "command", "args", "name", "environment", "inputs", "parameters", "stage_in", "stage_out",
    "preprocess", "postprocess", "on_error", "on_timeout", "key",
)  # fmt: skip
_MARK = b"\xef\xbb\xbf"  # what spreadsheets put before UTF-8


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that makes no task: where it stands (runs.jsonl:17), and why."""

    where: str
    reason: str


Item = Manifest | Rejected
Task = Callable[[str, int], dict[str, Any]]  # a value and its line number, to manifest keys
Put = Callable[[str], str]  # a text of the template, to the same with the value in its place


# -- lines ---------------------------------------------------------------------------------------


def unmarked(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without the mark that may stand before the first."""
    stream = iter(lines)
    for first in stream:
        yield first.removeprefix(_MARK)
        yield from stream


def decoded(line: bytes) -> tuple[str, str]:
    """A line's text, and what is wrong with it, if anything."""
    if len(line) > LONGEST_LINE:
        return "", TOO_LONG
    try:
        text = line.decode()
    except UnicodeDecodeError as fault:
        wrong = f"is not UTF-8 text (byte {line[fault.start]:#04x} at column {fault.start + 1})"
        return line.decode(errors="replace"), wrong
    return text, "holds a NUL character, none may" if "\0" in text else ""


# -- where a value enters a template -------------------------------------------------------------


def task_per_value(template: dict[str, Any]) -> Task:
    """What lays a value over a template. Raises ManifestError: no task could come of it."""
    check_template(template, lambda text: text.replace(PLACE, "1"))
    slots = changed_by(template, lambda text: text.replace(PLACE, ""))
    if not slots:
        raise ManifestError(_no_place(template))
    stem = _stem(template)

    def task(value: str, _number: int) -> dict[str, Any]:
        texts = filled(slots, lambda text: text.replace(PLACE, value))
        return {**template, **texts, "name": _named(stem, value)}

    return task


def task_per_command(template: dict[str, Any]) -> Task:
    """What makes a task of a shell command. Raises ManifestError: none could come of it."""
    sample = {**template, "command": "true"}
    check_template(sample, lambda text: text.replace(PLACE, "1"))
    slots = changed_by(sample, lambda text: text.replace(PLACE, ""))
    given = template.get("name")

    def task(command: str, number: int) -> dict[str, Any]:
        texts = filled(slots, lambda text: text.replace(PLACE, str(number)))
        stem = given or layout.as_name(_program(command))
        return {**template, **texts, "command": command, "name": _named(stem, str(number))}

    return task


def _no_place(template: dict[str, Any]) -> str:
    """Why a template is refused that would make the same task of every value."""
    command = template.get("command") or [f"app {template['app']}", *template.get("args", ())]
    shown = command if isinstance(command, str) else " ".join(command)
    return (
        f"{TEMPLATE}: {shown!r} has no place for the value; put {{}} where the value belongs,"
        f" or into the name (--name '{_stem(template)}-{{}}') if the program needs none"
    )


def check_template(template: dict[str, Any], put: Put) -> None:
    """Raises ManifestError if the template is wrong whatever the value."""
    manifest.from_mapping({**template, **filled(changed_by(template, put), put)}, TEMPLATE)


def changed_by(template: dict[str, Any], put: Put) -> dict[str, Any]:
    """The part of a template that `put` changes."""
    parts = {key: template[key] for key in _FILLED if key in template}
    return {key: part for key, part in parts.items() if _replaced(part, put) != part}


def filled(slots: dict[str, Any], put: Put) -> dict[str, Any]:
    """The same part with every text `put`."""
    return {key: _replaced(part, put) for key, part in slots.items()}


def _replaced(part: Any, put: Put) -> Any:
    if isinstance(part, str):
        return put(part)
    if isinstance(part, list):
        return [_replaced(item, put) for item in part]
    if isinstance(part, tuple):
        return tuple([_replaced(item, put) for item in part])
    if isinstance(part, dict):
        return {key: _replaced(item, put) for key, item in part.items()}
    return part


def starts(template: dict[str, Any]) -> bool:
    """Whether the template says by itself what to run."""
    return bool(template.get("command") or template.get("app"))


def _stem(template: dict[str, Any]) -> str:
    """What the tasks of a template are named after; may hold a place."""
    if template.get("name"):
        return str(template["name"])
    command = template.get("command")
    first = _program(command) if isinstance(command, str) else command[0] if command else ""
    stem = os.path.basename(first) or str(template.get("app", ""))
    return stem if PLACE in stem else layout.as_name(stem)


def _program(command: str) -> str:
    return os.path.basename(next(iter(command.split()), ""))


def _named(stem: str, value: str) -> str:
    """The name that tells which task is which: STEM-VALUE, or the stem with the value in place."""
    shown = label(value)
    if PLACE in stem:
        return layout.as_name(stem.replace(PLACE, shown))
    room = layout.NAME_LONGEST - 1 - len(shown)
    return layout.as_name(f"{stem[: max(room, layout.NAME_LONGEST // 2)]}-{shown}")


def label(value: str) -> str:
    """A value as a name shows it: of a path its last part, without the suffix."""
    if "/" not in value:
        return value
    return os.path.splitext(os.path.basename(value.rstrip("/")))[0]


def to_item(mapping: dict[str, Any], where: str) -> Item:
    """Manifest keys as a task, or why they are none."""
    try:
        return manifest.from_mapping(mapping, where)
    except ManifestError as fault:
        return rejected(fault, where)


def rejected(fault: ManifestError, where: str) -> Rejected:
    """A complaint about a line as a value."""
    return Rejected(where, str(fault).removeprefix(f"{where}: "))


def laid_over(template: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """The template with a line's keys over it; `data` and `environment` are merged."""
    made = {**template, **line}
    for key in ("data", "environment"):
        below, above = template.get(key), line.get(key)
        if isinstance(below, dict) and isinstance(above, dict):
            made[key] = {**below, **above}
    return made
