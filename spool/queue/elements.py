"""elements - what became of the elements of a chunk: the lines of elements.jsonl, added up.

Owns   the meaning of these lines, for all but the runner (launcher/chunk.py), which writes them;
       the line by which a person has elements run again.
Never  moves a task.

Of one element the last line counts: {"element", "attempt", "code" or "signal", "timeout",
"cancelled", "error", "elapsed_s", ..., "outputs": [offset, length], "time"}. `what` marks the
others: begin (of a later run), running (it has run for a while, in a slot), interrupted, retry,
chunk (the counts at the end of a run).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from spool import units
from spool.errors import ManifestError, NoSuchTask
from spool.queue import array, files, history, layout, tasks
from spool.queue.array import Numbers, Some
from spool.queue.layout import State, Tree
from spool.queue.manifest import Manifest
from spool.queue.tasks import Spot

DONE, FAILED, CANCELLED, RUNNING, LEFT = "done", "failed", "cancelled", "running", "left"
STATES = (DONE, FAILED, CANCELLED, RUNNING, LEFT)
TAIL, FOLLOWS, LARGEST = 4096, 20, 1 << 30
OUTPUT, ERRORS = "outputs", "errors"
_decoder = msgspec.json.Decoder(dict[str, Any])


class Element(NamedTuple):
    """One element: its state, and the line that tells its last end or its run, {} if none does."""

    number: int
    state: str
    line: dict[str, Any]


class Table:
    """The elements of one chunk. running: elements may run now, so that a line that says so counts;
    cancelled: what has not run will not.

    last holds the last line of each that has any, fails how often each has failed.
    """

    def __init__(
        self, path: str, wanted: Manifest, *, running: bool = False, cancelled: bool = False
    ) -> None:
        assert wanted.elements is not None
        self.numbers: Numbers = wanted.elements
        self.skip = array.parse_some(wanted.skip)
        self.most = wanted.max_attempts
        self.running = running
        self.at_rest = CANCELLED if cancelled else LEFT
        self.last: dict[int, dict[str, Any]] = {}
        self.fails: dict[int, int] = {}
        for line in lines(path):
            self._tell(line)

    def _tell(self, line: dict[str, Any]) -> None:
        what, number = line.get("what", "end"), line.get("element")
        if what == "retry":
            self._again(line.get("elements"))
        elif what == "begin":  # what is told to run did so in a runner that has died
            dead = [n for n, last in self.last.items() if last.get("what") == "running"]
            for number in dead:
                del self.last[number]
        elif isinstance(number, int) and number in self.numbers:
            self.last[number] = line
            if what == "end" and not (succeeded(line) or line.get("cancelled")):
                self.fails[number] = self.fails.get(number, 0) + 1

    def _again(self, ranges: Any) -> None:
        if not ranges:
            self.fails.clear()
            return
        for number in Some(range(first, last + 1) for first, last in ranges).among(self.numbers):
            self.last.pop(number, None)
            self.fails.pop(number, None)

    def state(self, number: int) -> str:
        """What has become of an element."""
        line = self.last.get(number, {})
        if succeeded(line):
            return DONE
        if self.running and line.get("what") == "running":
            return RUNNING
        if number in self.skip:
            return CANCELLED
        return FAILED if self.fails.get(number, 0) >= self.most else self.at_rest

    def element(self, number: int) -> Element:
        """One element."""
        return Element(number, self.state(number), self.last.get(number, {}))

    def each(self, some: Some | None = None) -> Iterator[Element]:
        """The elements, or some of them, by number."""
        numbers = self.numbers.every() if some is None else some.among(self.numbers)
        return map(self.element, numbers)

    def counts(self) -> dict[str, int]:
        """How many are in which state."""
        found = dict.fromkeys(STATES, 0)
        touched = set(self.last)
        touched.update(self.skip.among(self.numbers))
        for number in touched:
            found[self.state(number)] += 1
        found[self.at_rest] += self.numbers.size - len(touched)
        return found


def succeeded(line: dict[str, Any]) -> bool:
    """Whether the line of an end tells of success."""
    known = line.get("timeout") or line.get("error") or line.get("cancelled") or line.get("what")
    return line.get("code") == 0 and not known


def lines(path: str) -> Iterator[dict[str, Any]]:
    """The lines of a chunk in the directory `path`; what is torn or no line is passed over."""
    try:
        with open(f"{path}/{layout.ELEMENTS}", "rb") as file:
            yield from (line for raw in file if (line := _line(raw)) is not None)
    except FileNotFoundError:
        return


def _line(raw: bytes) -> dict[str, Any] | None:
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def counts(path: str, wanted: Manifest, *, running: bool = False, ended: bool = False) -> Any:
    """How many elements of a chunk are in which state; `ended`: its last line may tell."""
    if ended and (told := told_at_end(path)) is not None:
        return {state: told.get(state, 0) for state in STATES}
    return Table(path, wanted, running=running).counts()


def told_at_end(path: str) -> dict[str, Any] | None:
    """The counts that a runner wrote as its last line; None if it could not."""
    try:
        with open(f"{path}/{layout.ELEMENTS}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            last = (file.read().splitlines() or [b""])[-1]
    except OSError:
        return None
    told = _line(last)
    if told is None or told.pop("what", None) != "chunk":
        return None
    return {key: value for key, value in told.items() if isinstance(value, int)}


def check_arrival(path: str, task_id: str, wanted: Manifest) -> None:
    """An arrival with elements is one chunk, all that it names, as its id and its values say.

    Raises ManifestError. What became of elements elsewhere is moved aside.
    """
    numbers, parts = wanted.elements, layout.parse_id(task_id)
    assert numbers is not None
    if parts and parts.chunk not in ("", numbers.chunk):
        raise ManifestError(f"{task_id} holds the elements {numbers.chunk}, its id says others")
    for brought in (layout.ELEMENTS, layout.OUTPUTS):
        if files.exists(f"{path}/{brought}"):
            files.move_aside(f"{path}/{brought}")
    if numbers.values:
        found = len((files.read(f"{path}/{layout.VALUES}") or b"").splitlines())
        if found != numbers.size:
            raise ManifestError(
                f"{layout.VALUES}: has {found} lines, {numbers.size} elements are to have one each"
            )


def ask_again(path: str, some: Some | None) -> None:
    """Have elements run again: these, or all that have not succeeded. By the chunk's owner only."""
    ranges = [[one.start, one.stop - 1] for one in some.ranges] if some else []
    event: dict[str, Any] = {"what": "retry", "elements": ranges, "time": units.now_stamp()}
    files.append(f"{path}/{layout.ELEMENTS}", history.encode(event))


def load(tree: Tree, spot: Spot) -> tuple[Spot, Table]:
    """Where a chunk lies, and its elements, following it while it moves. Raises NoSuchTask."""
    for _ in range(FOLLOWS):
        try:
            task = tasks.load(spot.path(tree), spot.id)
            if task.manifest.elements is None:
                raise NoSuchTask(f"task {spot.id} is no chunk of an array; it has no elements")
            running, cancelled = (spot.state is one for one in (State.RUNNING, State.CANCELLED))
            table = Table(task.path, task.manifest, running=running, cancelled=cancelled)
            return spot, table
        except FileNotFoundError:
            if (found := tasks.find(tree, spot.id)) is None:
                break
            spot = found
    raise NoSuchTask(f"task {spot.id} is gone. Run: spool ls")


def output(path: str, element: Element, stream: str = OUTPUT) -> bytes:
    """What the last attempt of an element wrote; of one that runs, what it has written so far."""
    line = element.line
    if element.state == RUNNING:
        name = f"live-{line.get('slot', 0)}{'.errors' if stream == ERRORS else ''}"
        return files.read(f"{path}/{name}", LARGEST) or b""
    return piece(path, line, stream) or b""


def piece(path: str, line: dict[str, Any], stream: str) -> bytes | None:
    """What an element wrote, by the line of its end; None where it is nothing."""
    place = line.get(stream)
    if not (isinstance(place, list) and len(place) == 2 and all(isinstance(n, int) for n in place)):
        return None
    try:
        with open(f"{path}/{stream}", "rb") as file:
            return os.pread(file.fileno(), max(0, place[1]), max(0, place[0]))
    except OSError:
        return None


def value(path: str, numbers: Numbers, number: int) -> Any:
    """The value of an element: its number as a word, or what its line says."""
    if not numbers.values:
        return f"{number:0{numbers.width}d}"
    at = numbers.every().index(number)
    raw = files.read(f"{path}/{layout.VALUES}") or b""
    found = raw.splitlines()[at : at + 1]
    try:
        return msgspec.json.decode(found[0]) if found else None
    except msgspec.MsgspecError:
        return None


def summed(many: Iterable[dict[str, int]]) -> dict[str, int]:
    """The counts of several chunks together."""
    total = dict.fromkeys(STATES, 0)
    for one in many:
        for state, count in one.items():
            total[state] += count
    return total
