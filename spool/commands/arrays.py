"""arrays - arrays for the commands that look: a line each, their elements, one element's output."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import click

from spool.commands import shared
from spool.errors import ManifestError, NoSuchTask, SpoolError
from spool.queue import elements, files, layout, select, tasks
from spool.queue.array import Some
from spool.queue.elements import Element, Table
from spool.queue.layout import FINAL, State, Tree
from spool.queue.tasks import Spot

TAIL_LINES = 10


def is_chunk(task_id: str) -> bool:
    """Whether an id names one chunk of an array."""
    parts = layout.parse_id(task_id) if "@" in task_id else None
    return parts is not None and bool(parts.chunk)


class Lines:
    """Takes chunks out of a listing, to tell each array in one line at its end."""

    def __init__(self, tree: Tree, words: tuple[str, ...]) -> None:
        self.tree = tree
        self.named = set(map(select.plain_word, words))
        self.arrays: dict[str, dict[str, Spot]] = {}

    def takes(self, spot: Spot) -> bool:
        """Whether a task is told with its array, and not by itself."""
        if spot.id in self.named or not is_chunk(spot.id):
            return False
        self.arrays.setdefault(layout.array_of(spot.id), {})[spot.id] = spot
        return True

    def show(self, *, as_json: bool) -> None:
        """A line for each array."""
        for array_id, found in self.arrays.items():
            told = summary(self.tree, array_id, found.values())
            if as_json:
                shared.print_json(told)
            else:
                click.echo(f"{'array':<9} {in_words(told['elements']):<24} {array_id}")


def summary(tree: Tree, array_id: str, chunks: Iterable[Spot]) -> dict[str, Any]:
    """What there is to say of an array: its chunks by state, its elements by state."""
    states: Counter[str] = Counter()
    counted = []
    for spot in chunks:
        states[spot.state] += 1
        try:
            counted.append(_counts(tree, spot))
        except (ManifestError, NoSuchTask):
            continue  # damaged, or removed just now: `check` tells
    return {"array": array_id, "chunks": states, "elements": elements.summed(counted)}


def _counts(tree: Tree, spot: Spot) -> dict[str, int]:
    """The counts of a chunk; of one that has ended by the last line of its runner."""
    if spot.state in (State.FINISHED, State.FAILED) and (
        told := elements.told_at_end(spot.path(tree))
    ):
        return {state: told.get(state, 0) for state in elements.STATES}
    _, table = elements.load(tree, spot)
    return table.counts()


def in_words(counts: dict[str, int]) -> str:
    """The counts that are not 0."""
    return " ".join(f"{count} {state}" for state, count in counts.items() if count) or "empty"


# -- elements ------------------------------------------------------------------------------------


def show_elements(tree: Tree, chosen: select.Selection, *, js: bool) -> bool:
    """A line for each element that is meant, in such a state itself; whether one was meant."""
    any_found = False
    states = {_ELEMENT_STATES[state] for state in chosen.states or State}
    for spot in select.find(tree, replace(chosen, states=())):
        if not is_chunk(spot.id) and not chosen.words:
            continue
        spot, table = elements.load(tree, spot)
        for element in table.each(select.elements(chosen.words, spot.id)):
            any_found = True
            if element.state in states:
                _show_line(spot, element, js=js)
    return any_found


_ELEMENT_STATES = {
    State.CREATED: elements.LEFT,
    State.WAITING: elements.LEFT,
    State.READY: elements.LEFT,
    State.RUNNING: elements.RUNNING,
    State.FINISHED: elements.DONE,
    State.FAILED: elements.FAILED,
    State.CANCELLED: elements.CANCELLED,
}


def _show_line(spot: Spot, element: Element, *, js: bool) -> None:
    name = f"{layout.array_of(spot.id)}[{element.number}]"
    if js:
        told = {**element.line, "state": element.state, "element": element.number}
        shared.print_json({"id": layout.array_of(spot.id), "chunk": spot.id, **told})
        return
    click.echo(f"{element.state:<9} {how(element):<24} {name}")


def how(element: Element) -> str:
    """How an element ended, in few words."""
    line = element.line
    if element.state == elements.RUNNING:
        return f"attempt {line.get('attempt')}"
    if not line or "element" not in line:
        return ""
    took = f" after {line['elapsed_s']:g}s" if "elapsed_s" in line else ""
    for key in ("timeout", "cancelled"):
        if line.get(key):
            return f"{key}{took}"
    if line.get("what"):
        return f"{line['what']}{took}"
    return (
        f"signal {line['signal']}{took}" if "signal" in line else f"exit {line.get('code')}{took}"
    )


def one(tree: Tree, word: str) -> tuple[Spot, Table, Element] | None:
    """The element that a word such as ARRAY-ID[17] means; None where it names none."""
    base, some = select.split(select.plain_word(word))
    if some is None:
        return None
    if str(some) != str(some).partition(",")[0] or "-" in str(some):
        raise NoSuchTask(
            f"{word!r} means several elements; name one, such as {base}[{_first(some)}]"
        )
    number = _first(some)
    for spot in select.find(tree, select.Selection(words=(word,))):
        spot, table = elements.load(tree, spot)
        if number in table.numbers:
            return spot, table, table.element(number)
    raise NoSuchTask(f"no array {base!r} with an element {number}. Run: spool ls")


def _first(some: Some) -> int:
    return some.ranges[0].start


def show_one(tree: Tree, spot: Spot, table: Table, element: Element, *, as_json: bool) -> None:
    """One element: how it ended, every attempt, its value, the end of its output."""
    path, name = spot.path(tree), f"{layout.array_of(spot.id)}[{element.number}]"
    tries = [line for line in elements.lines(path) if line.get("element") == element.number]
    value = elements.value(path, table.numbers, element.number)
    if as_json:
        told = {"element": name, "state": element.state, "chunk": spot.id, "value": value}
        shared.print_json({**told, "path": path, "history": tries})
        return
    from spool.report import tables

    rows = [("element", name), ("state", element.state), ("value", str(value))]
    rows += [("how", how(element))] * bool(how(element))
    rows += [("chunk", f"{spot.state}/{spot.group}/{spot.id}"), ("directory", path)]
    click.echo(tables.table(rows))
    ends = [line for line in tries if line.get("what") != "running"]
    if ends:
        hidden = ("element", "time", "what")
        listed = [(str(line.get("time", "")), *_words(line, hidden)) for line in ends]
        click.echo("\n" + tables.table(listed))
    if tail := elements.output(path, element).splitlines()[-TAIL_LINES:]:
        click.echo("\nlast lines of output:\n" + b"\n".join(tail).decode(errors="replace"))


def _words(line: dict[str, Any], hidden: tuple[str, ...]) -> Iterator[str]:
    yield " ".join(f"{key}={value}" for key, value in line.items() if key not in hidden)


def show_array(tree: Tree, word: str, *, as_json: bool) -> bool:
    """An array as a whole, if that is what a word means; False if it is not."""
    base, some = select.split(select.plain_word(word))
    if some is not None or "@" in base:
        return False
    found = list(select.find(tree, select.Selection(words=(word,))))
    ids = {layout.array_of(spot.id) for spot in found if is_chunk(spot.id)}
    if len(ids) != 1 or not all(is_chunk(spot.id) for spot in found):
        return False
    told = summary(tree, ids.pop(), found)
    wanted = tasks.load(found[0].path(tree), found[0].id).manifest
    told["of"] = wanted.array
    if as_json:
        shared.print_json({**told, "where": [spot._asdict() for spot in found]})
        return True
    from spool.report import tables

    rows = [("array", told["array"]), ("elements", f"{wanted.array}: {in_words(told['elements'])}")]
    command = wanted.command if wanted.command is not None else [wanted.app, *wanted.args]
    rows.append(("command", command if isinstance(command, str) else tables.words(command)))
    click.echo(tables.table(rows))
    click.echo("\n" + "\n".join(map(tables.listing, found)))
    return True


# -- output --------------------------------------------------------------------------------------


def print_log(tree: Tree, word: str, *, follow: bool, lines: int | None, errors: bool) -> bool:
    """Print what an element wrote, if a word means one; False if it means none."""
    if (found := one(tree, word)) is None:
        return False
    stream = elements.ERRORS if errors else elements.OUTPUT
    printed = 0
    while True:
        spot, table, element = found
        raw = elements.output(spot.path(tree), element, stream)
        _write(raw, printed, lines)
        printed = max(printed, len(raw)) if lines is None else len(raw)
        if not follow or element.state not in (elements.RUNNING, elements.LEFT):
            break
        if spot.state in FINAL:
            break
        time.sleep(0.2)
        lines = None
        found = (*(again := elements.load(tree, spot)), again[1].element(element.number))
    if not printed:
        click.echo(f"element {word} ({element.state}) has written no {stream}", err=True)
    return True


def _write(raw: bytes, printed: int, lines: int | None) -> None:
    """What is new of an output, or its last lines."""
    if lines is not None:
        raw = b"".join(raw.splitlines(keepends=True)[-lines:]) if lines else b""
        printed = 0
    sys.stdout.buffer.write(raw[printed:])
    sys.stdout.buffer.flush()


def refuse_many(tree: Tree, word: str) -> None:
    """Raises SpoolError for a word that means an array as a whole, of several chunks."""
    if select.split(select.plain_word(word))[1] is not None:
        return
    found = {spot.id for spot in select.find(tree, select.Selection(words=(word,)))}
    arrays = set(map(layout.array_of, found))
    if len(arrays) == 1 and len(found) > 1:
        array_id, chunk = arrays.pop(), min(found, key=lambda one: int(_first_of(one)))
        raise SpoolError(
            f"{array_id} is an array, and its {len(found)} chunks have a history each; name one,"
            f" or an element of it: '{chunk}', '{array_id}[{_first_of(chunk)}]'"
        )


def _first_of(chunk: str) -> str:
    return chunk.rpartition("@")[2].partition("-")[0]


def refuse_whole(tree: Tree, word: str) -> None:
    """Raises SpoolError for the log of chunks whose runners said nothing: elements have logs."""
    for spot in select.find(tree, select.Selection(words=(word,))):
        if not is_chunk(spot.id) or files.size(f"{spot.path(tree)}/{layout.OUTPUT}") > 0:
            return
        first = _first_of(spot.id)
        array_id = layout.array_of(spot.id)
        raise SpoolError(
            f"{array_id} is an array; name an element of it: spool log '{array_id}[{first}]'"
        )
