"""array_source - what --array and --array-from say: a range, a list of values, rows of a file.

Owns   the grammar of --array; the lines of the file `values`, JSON each, made of a file.
Never  submits anything. An array is submitted whole, so its values are held in memory as lines.
Fails  ManifestError: a wrong text or row, with what is allowed; SpoolError: unreadable file.

--array is either one range (0-99999, 0-90:10, 007-100), whose numbers are the elements, or a list
with commas (a,b,c), whose values are taken as they stand and whose elements count from 0.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from spool.errors import ManifestError, SpoolError
from spool.queue import array
from spool.template import LONGEST_LINE, TOO_LONG, decoded, unmarked

LIST_FORM = "or values with commas such as a,b,c (one alone: a,)"
_RANGE_LIKE = re.compile(r"-?[0-9]+-[0-9]+(:[0-9]+)?")
_encode = msgspec.json.Encoder().encode


class Elements(NamedTuple):
    """What `array` says in a manifest, and the lines of its values; columns name those of rows."""

    array: str
    values: bytes | None = None
    columns: tuple[str, ...] = ()


def from_text(text: str) -> Elements:
    """The elements that --array names. Raises ManifestError."""
    if "," in text:
        return from_values(_listed(text), "--array")
    number = re.fullmatch("[0-9]{1,9}", text.strip())
    try:
        return Elements(str(array.parse(f"{text}-{text}" if number else text.strip())))
    except ValueError as fault:
        raise ManifestError(f"--array: {fault}, {LIST_FORM}") from None


def _listed(text: str) -> list[str]:
    words = text.removesuffix(",").split(",")
    for word in words:
        if len(words) > 1 and _RANGE_LIKE.fullmatch(word.strip()):
            raise ManifestError(
                f"--array: {word!r} stands in a list, where values are taken as they are; expected"
                " one range alone. For several, or such values: --array-from FILE"
            )
    return words


def from_values(values: Iterable[Any], where: str) -> Elements:
    """An element for each value: a text, a number, or a mapping whose keys are names."""
    columns: dict[str, None] = {}
    lines = []
    for number, value in enumerate(values):
        try:
            lines.append(_encode(value))
        except (TypeError, ValueError, RecursionError) as fault:
            raise ManifestError(f"{where}: value {number}: {fault}") from None
        if isinstance(value, dict):
            columns.update(dict.fromkeys(map(str, value)))
    return _elements(lines, where, tuple(columns))


def _elements(lines: list[bytes], where: str, columns: tuple[str, ...] = ()) -> Elements:
    if not lines:
        raise ManifestError(f"{where}: holds no value; an array needs one element at least")
    lines.append(b"")
    last = len(lines) - 2
    return Elements(f"{array.WITH_VALUES}0-{last}", b"\n".join(lines), columns)


def from_file(path: str, form: str | None = None) -> Elements:
    """An element for each row of a table, or each line of a file ('-': standard input)."""
    suffix = os.path.splitext(path)[1].lower()
    chosen = form or _FORMS.get(suffix, "lines")
    where = "stdin" if path == "-" else path
    lines = _lines(path)
    if chosen == "csv":
        from spool import csv_source

        names, rows = csv_source.rows(lines, where, "\t" if suffix == ".tsv" else ",")
        return _elements([_encode(row) for row in rows], where, tuple(names))
    if chosen == "jsonl":
        made = list(_read(lines, where, _object))
        return _elements(made, where, _columns_of(made))
    return _elements(list(_read(lines, where, _encode)), where)


_FORMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}


def _columns_of(lines: list[bytes]) -> tuple[str, ...]:
    """The names in all the objects among JSON lines."""
    names: dict[str, None] = {}
    for line in lines:
        if line[:1] == b"{":
            names.update(dict.fromkeys(msgspec.json.decode(line)))
    return tuple(names)


def _read(lines: Iterable[bytes], where: str, read: Callable[[str], bytes]) -> Iterator[bytes]:
    """The lines that are not blank, as JSON. Raises ManifestError: one is wrong."""
    for number, line in enumerate(unmarked(lines), 1):
        if not line.strip():
            continue
        text, fault = decoded(line.rstrip(b"\r\n"))
        if fault:
            raise ManifestError(f"{where}:{number}: {fault}")
        try:
            yield read(text)
        except (msgspec.MsgspecError, RecursionError) as wrong:
            raise ManifestError(f"{where}:{number}: is not JSON: {wrong}") from None


def _object(text: str) -> bytes:
    return _encode(msgspec.json.decode(text))  # on one line, as it must be


def _lines(path: str) -> Iterator[bytes]:
    try:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise SpoolError(f"{path}: cannot be read: {reason}") from None
    with file:
        for line in file:
            if len(line) > LONGEST_LINE:
                raise ManifestError(f"{path}: a line {TOO_LONG}")
            yield line


def check_places(template: dict[str, Any], elements: Elements) -> None:
    """Raises ManifestError for a place in a template that no element fills."""
    texts = [template.get("command"), template.get("args"), template.get("environment")]
    for text in _texts(texts):
        for name in re.findall(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*|)\}", text):
            if elements.columns and name and name not in elements.columns:
                known = ", ".join(elements.columns)
                raise ManifestError(
                    f"template: {{{name}}} names no column; the columns are {known}."
                    f" If the braces are the program's own, write {{ {name} }}"
                )


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        yield from _texts(list(part.values()))
    elif isinstance(part, (list, tuple)):
        for one in part:
            yield from _texts(one)
