"""sources - many tasks from a range, a file of lines, JSON lines or a table; options in a script.

Owns   the meaning of --each, --each-line, --from and `#SPOOL` lines. What the rows of a table say
       is in csv_source, where a value enters a task in template.
Never  holds more than one line or record in memory, and submits nothing.
Fails  ManifestError at once: the range, the template or the header is wrong.
       SpoolError: the file cannot be read. A wrong line is a value, Rejected; the stream goes on.

The lines of a file may be the commands themselves; then `{}` is the line's number.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import msgspec

from spool.errors import ManifestError, SpoolError
from spool.queue import manifest
from spool.template import (
    LONGEST_LINE,
    TEMPLATE,
    TOO_LONG,
    Item,
    Task,
    decoded,
    laid_over,
    rejected,
    starts,
    task_per_command,
    task_per_value,
    to_item,
    unmarked,
)
from spool.template import Rejected as Rejected

MOST_VALUES = 100_000_000
RANGES_FORM = "numbers and ranges such as 1-500, 1-9:2, 007-100 or 1,5,7-9"
_RANGE = r"(-?[0-9]{1,18})(?:-(-?[0-9]{1,18})(?::([0-9]{1,18}))?)?"


# -- numbers: --each -----------------------------------------------------------------------------


class _Span(NamedTuple):
    numbers: range
    width: int


def count_each(ranges: str) -> int:
    """How many values `ranges` stands for. Raises ManifestError."""
    return sum(len(span.numbers) for span in _spans(ranges))


def from_each(ranges: str, template: dict[str, Any]) -> Iterator[Item]:
    """One task for each number of `ranges`. Raises ManifestError."""
    spans = _spans(ranges)
    task = task_per_value(template)
    values = (f"{number:0{width}d}" for numbers, width in spans for number in numbers)
    return (to_item(task(value, 0), f"--each {value}") for value in values)


def _spans(ranges: str) -> list[_Span]:
    spans = [_span(part.strip()) for part in ranges.split(",")]
    count = sum(len(span.numbers) for span in spans)
    if count > MOST_VALUES:
        raise ManifestError(f"--each {ranges}: {count} values, allowed are {MOST_VALUES} at a time")
    return spans


def _span(part: str) -> _Span:
    found = re.fullmatch(_RANGE, part)
    if not found:
        raise ManifestError(f"--each: expected {RANGES_FORM}, got {part!r}")
    first, last, step = found[1], found[2] or found[1], int(found[3] or 1)
    if step == 0 or int(last) < int(first):
        wrong = "has the step 0" if step == 0 else "runs backwards"
        raise ManifestError(f"--each: {part!r} {wrong}; expected {RANGES_FORM}")
    padded = (len(end) for end in (first, last) if re.match("-?0[0-9]", end))
    return _Span(range(int(first), int(last) + 1, step), max(padded, default=0))


# -- lines: --each-line, and --from with a file of commands --------------------------------------


def from_lines(lines: Iterable[bytes], where: str, template: dict[str, Any]) -> Iterator[Item]:
    """One task a line: the line is the template's value, or the command if the template has none.

    Blank lines are skipped, among commands `#` comments too. Raises ManifestError.
    """
    numbered = _numbered(lines)
    if starts(template):
        return _line_items(numbered, where, task_per_value(template))
    commands = (entry for entry in numbered if not entry[1].lstrip().startswith(b"#"))
    return _line_items(commands, where, task_per_command(template))


def _line_items(numbered: Iterable[tuple[int, bytes]], where: str, task: Task) -> Iterator[Item]:
    for number, line in numbered:
        place = f"{where}:{number}"
        text, fault = decoded(line.rstrip(b"\r\n"))
        yield Rejected(place, fault) if fault else to_item(task(text, number), place)


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, counted from 1."""
    return ((number, line) for number, line in enumerate(unmarked(lines), 1) if line.strip())


# -- JSON lines ----------------------------------------------------------------------------------


def from_jsonl(lines: Iterable[bytes], where: str, template: dict[str, Any]) -> Iterator[Item]:
    """One task a line: a JSON object of manifest keys laid over the template.

    `data` and `environment` are merged, the line's entries win. Raises ManifestError.
    """
    if template:
        sample = template if starts(template) else {**template, "app": "sample"}
        manifest.from_mapping(sample, TEMPLATE)
    return (_from_object(line, f"{where}:{number}", template) for number, line in _numbered(lines))


def _from_object(line: bytes, where: str, template: dict[str, Any]) -> Item:
    if len(line) > LONGEST_LINE:
        return Rejected(where, TOO_LONG)
    try:
        if not template:
            return manifest.parse(line, where)
        return manifest.from_mapping(laid_over(template, _object(line, where)), where)
    except ManifestError as fault:
        return rejected(fault, where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        made = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ManifestError(f"{where}: is not JSON: {fault}") from None
    if not isinstance(made, dict):
        raise ManifestError(f"{where}: must be a JSON object, got {type(made).__name__}")
    return made


# -- a file, whatever its form: --from -----------------------------------------------------------

_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
}  # fmt: skip
_FORMS = ("jsonl", "csv", "tsv", "lines")


class Source:
    """The items of a file, and how far it is read. Close it, or use it as a context manager."""

    def __init__(self, path: str, form: str, template: dict[str, Any]) -> None:
        """Raises SpoolError: the file cannot be read; ManifestError as the `from_` functions do."""
        self._name = "stdin" if path == "-" else path
        self._owned = path != "-"
        self._file = _open(path)
        self._position = 0
        self.size = _size(self._file)
        try:
            self.items = self._items(form, template)
        except SpoolError:
            self.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def position(self) -> int:
        """The bytes consumed so far."""
        return self._position

    def close(self) -> None:
        """Give the file back; standard input stays open."""
        if self._owned:
            self._file.close()

    def _items(self, form: str, template: dict[str, Any]) -> Iterator[Item]:
        if form == "jsonl":
            return from_jsonl(self._lines(), self._name, template)
        if form == "lines":
            return from_lines(self._lines(), self._name, template)
        from spool.csv_source import from_csv  # here, because a lone submission must start fast

        delimiter = "\t" if form == "tsv" else ","
        return from_csv(self._lines(), self._name, template, delimiter=delimiter)

    def _lines(self) -> Iterator[bytes]:
        while line := self._read():
            yield line
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = self._read()  # the rest of a line that is too long is only counted
        self.close()

    def _read(self) -> bytes:
        try:
            line = self._file.readline(LONGEST_LINE + 1)
        except OSError as fault:
            raise SpoolError(f"{self._name}: cannot be read: {fault.strerror}") from None
        self._position += len(line)
        return line


def open_source(path: str, form: str | None, template: dict[str, Any]) -> Source:
    """The tasks of a file ('-' is standard input), by `form` or by suffix. Raises SpoolError."""
    suffix = os.path.splitext(path)[1].lower()
    chosen = form or ("jsonl" if _streams_objects(path) else _SUFFIXES.get(suffix, "lines"))
    if chosen not in _FORMS:
        raise SpoolError(f"{path}: unknown form {chosen!r}; expected {', '.join(_FORMS)}")
    if chosen == "csv" and suffix == ".tsv":
        chosen = "tsv"
    return Source(path, chosen, template)


def _streams_objects(path: str) -> bool:
    """Whether standard input, which has no suffix, begins like JSON lines."""
    stream = sys.stdin.buffer
    return path == "-" and isinstance(stream, io.BufferedReader) and stream.peek(1)[:1] == b"{"


def _open(path: str) -> BinaryIO:
    if path == "-":
        return sys.stdin.buffer
    try:
        return open(path, "rb")  # noqa: SIM115 - the Source closes it
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise SpoolError(f"{path}: cannot be read: {reason}") from None


def _size(file: BinaryIO) -> int:
    try:
        found = os.fstat(file.fileno())
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


# -- options in a script: #SPOOL -----------------------------------------------------------------


def directives(path: str) -> list[str]:
    """The words of the `#SPOOL` lines in a script's leading comments. Raises ManifestError."""
    from shlex import split

    words: list[str] = []
    for number, line in _directive_lines(path):
        try:
            words += split(line.decode(), comments=True)
        except (UnicodeDecodeError, ValueError) as fault:
            raise ManifestError(f"{path}:{number}: #SPOOL line: {str(fault).lower()}") from None
    return words


def _directive_lines(path: str) -> list[tuple[int, bytes]]:
    """What stands after `#SPOOL`, with line numbers; nothing for what is no text file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return []  # opening a pipe would wait for its writer
        with open(path, "rb") as file:
            return _leading(file)
    except (OSError, ValueError):
        return []


def _leading(file: BinaryIO) -> list[tuple[int, bytes]]:
    found = []
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        words = line.split(maxsplit=1)
        if b"\0" in line:
            return []
        if words and not words[0].startswith(b"#"):
            break
        if words[:1] == [b"#SPOOL"]:
            found.append((number, b"".join(words[1:])))
    return found
