"""csv_source - many tasks from a table, CSV or TSV: one a row.

Owns   the meaning of a table's header and cells: which column sets which key, how a cell is read.
Never  holds more than one record in memory.
Fails  ManifestError at once: the header or the template is wrong.
       A wrong row is a value, Rejected; the stream goes on.

The first row names the columns; the template may name them as `{column}` (see template).
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from spool.errors import ManifestError
from spool.queue import layout, manifest
from spool.queue.manifest import Manifest
from spool.template import (
    TEMPLATE,
    Item,
    Rejected,
    changed_by,
    check_template,
    decoded,
    filled,
    label,
    laid_over,
    rejected,
    starts,
    unmarked,
)


class _Record(NamedTuple):
    number: int
    cells: list[str]
    fault: str


def from_csv(
    lines: Iterable[bytes], where: str, template: dict[str, Any], *, delimiter: str = ","
) -> Iterator[Item]:
    """One task a row of a table whose first row names the columns. Raises ManifestError.

    A column named after a manifest key sets it; every other is kept in `data`, and so are `id`,
    `submitted` and `data`. Any may stand in the template as `{column}`. An empty cell is not given.
    """
    records = _records(lines, delimiter)
    header = next(records, _Record(1, [], ""))
    sheet = _Sheet(_columns(header, where), template)
    return (_from_record(record, f"{where}:{record.number}", sheet) for record in records)


def rows(
    lines: Iterable[bytes], where: str, delimiter: str
) -> tuple[list[str], Iterator[dict[str, str]]]:
    """The columns of a table that have a name, and its rows. Raises ManifestError."""
    records = _records(lines, delimiter)
    columns = _columns(next(records, _Record(1, [], "")), where, ours=True)
    return [one for one in columns if one], _rows(records, columns, where)


def _rows(records: Iterable[_Record], columns: list[str], where: str) -> Iterator[dict[str, str]]:
    unnamed = "" in columns
    for number, cells, fault in records:
        if not fault and len(cells) != len(columns):
            fault = f"has {len(cells)} cells, the header has {len(columns)}"
        if fault:
            raise ManifestError(f"{where}:{number}: {fault}")
        row = dict(zip(columns, cells, strict=True))
        if unnamed:
            del row[""]
        yield row


def _from_record(record: _Record, where: str, sheet: _Sheet) -> Item:
    if fault := record.fault or sheet.misfit(record.cells):
        return Rejected(where, fault)
    try:
        return manifest.from_mapping(sheet.task(record.cells), where)
    except ManifestError as complaint:
        return rejected(complaint, where)


class _Text:
    """Lines as text, and what was wrong with them since last asked."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self._fault = ""

    def __iter__(self) -> Iterator[str]:
        for line in unmarked(self._lines):
            text, fault = decoded(line)
            self._fault = self._fault or fault
            yield text

    def take_fault(self) -> str:
        fault, self._fault = self._fault, ""
        return fault


def _records(lines: Iterable[bytes], delimiter: str) -> Iterator[_Record]:
    """The records that are not blank, each with the number of its first line."""
    text = _Text(lines)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        number, fault = reader.line_num + 1, ""
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            fault = f"is malformed: {str(problem).partition(' - ')[0]}"
        fault = text.take_fault() or fault
        if cells or fault:
            yield _Record(number, cells, fault)


def _columns(header: _Record, where: str, *, ours: bool = False) -> list[str]:
    """The names in a header; `ours`: none of them sets a key of the manifest."""
    where = f"{where}:{header.number}"
    columns = [cell.strip() for cell in header.cells]
    named = [column for column in columns if column]
    if header.fault:
        raise ManifestError(f"{where}: the header {header.fault}")
    if not named:
        raise ManifestError(f"{where}: expected a header row that names the columns")
    for column in named:
        if named.count(column) > 1:
            raise ManifestError(f"{where}: two columns are named {column!r}; rename one of them")
        if column in manifest.PLANNED and not ours:
            raise ManifestError(
                f"{where}: column {column!r} is a key that this version does not support yet;"
                " rename the column if it is your own"
            )
    return columns


class _Sheet:
    """The columns of a table and the template its rows are laid over."""

    def __init__(self, columns: list[str], template: dict[str, Any]) -> None:
        """Raises ManifestError: no task could come of it."""
        self._columns = columns
        self._template = template
        self._kinds = _kinds()
        self._keys = [column for column in columns if column in self._kinds]
        self._kept = [column for column in columns if column and column not in self._kinds]
        self._place = _place_pattern(columns)
        self._check()
        slots = changed_by(template, lambda text: self._place.sub("", text))
        formats = filled(slots, self._as_format)
        self._name = formats.pop("name", "")
        self._formats = formats

    def _check(self) -> None:
        sample = self._template
        if {"command", "app"} & set(self._columns) and not starts(sample):
            sample = {**sample, "app": "sample"}
        ones = "1" * len(self._columns)
        check_template(sample, lambda text: self._as_format(text).format(*ones))

    def _as_format(self, text: str) -> str:
        """A text of the template as a format string over a row's cells: fast for many rows."""
        pieces = self._place.split(text)  # text, column, text, column, ..., text
        pieces[::2] = [piece.replace("{", "{{").replace("}", "}}") for piece in pieces[::2]]
        pieces[1::2] = [f"{{{self._index(column)}}}" for column in pieces[1::2]]
        return "".join(pieces)

    def _index(self, column: str) -> int:
        if column not in self._columns:
            known = ", ".join(name for name in self._columns if name)
            raise ManifestError(
                f"{TEMPLATE}: {{{column}}} names no column; the columns are {known}."
                f" If the braces are the program's own, write {{ {column} }}"
            )
        return self._columns.index(column)

    def misfit(self, cells: list[str]) -> str:
        """Why a row's cells are none of this table's; '' if they are."""
        if len(cells) != len(self._columns):
            return f"has {len(cells)} cells, the header has {len(self._columns)}"
        return "" if any(cells) else "has empty cells only"

    def task(self, cells: list[str]) -> dict[str, Any]:
        """The manifest keys of a row. Raises ManifestError."""
        row = dict(zip(self._columns, cells, strict=True))
        made = filled(self._formats, lambda text: text.format(*cells))
        if self._name:
            made["name"] = layout.as_name(self._name.format(*map(label, cells)))
        given = {
            key: _value(self._kinds[key], key, cell)
            for key in self._keys
            if (cell := row[key].strip())
        }
        if kept := {column: row[column] for column in self._kept if row[column]}:
            given["data"] = kept
        return laid_over({**self._template, **made}, given)


def _place_pattern(columns: list[str]) -> re.Pattern[str]:
    """What finds `{column}`, and what looks like it."""
    known = [re.escape(column) for column in columns if column]
    return re.compile(r"(?<!\$)\{(" + "|".join((*known, "[A-Za-z_][A-Za-z0-9_]*")) + r")\}")


_NO_COLUMNS = ("id", "submitted", "data", "parameters", "retry", "stage_out")
"""Not the user's to set, or no one cell's to say."""


def _kinds() -> dict[str, type]:
    """The keys that a column may set, each with the type of its default."""
    kinds = {}
    for field in msgspec.structs.fields(Manifest):
        factory = field.default_factory
        kind = type(field.default) if factory is msgspec.NODEFAULT else factory
        kinds[field.name] = kind if isinstance(kind, type) else str
    return {key: kind for key, kind in kinds.items() if key not in _NO_COLUMNS}


def _value(kind: type, key: str, cell: str) -> Any:
    """What a cell says of a key; what cannot be read is left for the manifest to refuse."""
    if key == "environment":
        return _environment(cell)
    if key == "args":
        return _words(key, cell)
    if kind is list:
        return cell.replace(",", " ").split()
    if kind is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            cell.lower(), cell
        )
    if kind is int and (whole := re.fullmatch(r"([+-]?[0-9]{1,18})(?:\.0+)?", cell)):
        return int(whole[1])  # pandas writes 4 as 4.0 where another row's cell is empty
    return cell


def _environment(cell: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words("environment", cell)]
    for name, mark, _ in pairs:
        if not mark:
            raise ManifestError(f"key 'environment': expected NAME=VALUE words, got {name!r}")
    return {name: value for name, _, value in pairs}


def _words(key: str, cell: str) -> list[str]:
    try:
        return shlex.split(cell)
    except ValueError as fault:
        raise ManifestError(f"key {key!r}: {str(fault).lower()} in {cell!r}") from None
