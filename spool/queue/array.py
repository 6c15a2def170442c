"""array - pure: the elements of an array by number, which of them are meant, and the cut.

Owns   the text forms `0-99999:STEP` (all elements) and `3-9,12` (some); the default cut.
Never  touches the disk or the clock.
Fails  ValueError: a text that is no such form, with what is allowed.

An element is called by its number. Of a range these are the numbers themselves; of values they
count the values from 0. Each chunk holds a run of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from spool.queue.layout import ELEMENT_MOST

MOST_CHUNKS = 10_000
MANY_CHUNKS, FEW_ELEMENTS = 64, 16
LONG_S, SHORT_S = 600.0, 2.0
WITH_VALUES = "values "
FORM = "a range of numbers such as 0-99999 or 0-90:10, up to 999999999"
SOME = "numbers and ranges such as 17 or 3-9,12"
ALONE = {"nodes": 1, "ranks_per_node": 1, "per_node": 0, "fresh": False}
"""Keys of a manifest that arrays leave as they are."""
_NUMBER = r"([0-9]{1,9})"


class Numbers(NamedTuple):
    """All elements of an array, or of one chunk: first, last and what lies between two.

    width is the digits they are padded to as a value; values: each has a line in the file
    `values`, and is not just its number.
    """

    first: int
    last: int
    step: int = 1
    width: int = 0
    values: bool = False

    def __str__(self) -> str:
        ends = f"{self.first:0{self.width}d}-{self.last:0{self.width}d}"
        step = f":{self.step}" if self.step > 1 else ""
        return f"{WITH_VALUES if self.values else ''}{ends}{step}"

    @property
    def size(self) -> int:
        """How many there are."""
        return (self.last - self.first) // self.step + 1

    @property
    def chunk(self) -> str:
        """FIRST-LAST, as it stands in a chunk's id and manifest."""
        return f"{self.first}-{self.last}"

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int) or not self.first <= number <= self.last:
            return False
        return (number - self.first) % self.step == 0

    def every(self) -> range:
        """All the numbers."""
        return range(self.first, self.last + 1, self.step)

    def of_chunk(self, chunk: str) -> Numbers:
        """Those of one chunk, FIRST-LAST. Raises ValueError: it is no part of these."""
        first, last = _ends(chunk)
        if not (first in self and last in self and first <= last):
            raise ValueError(f"{chunk!r} is no part of {self}")
        return self._replace(first=first, last=last)


@lru_cache(maxsize=1024)
def parse(text: str) -> Numbers:
    """The elements a manifest's `array` names. Raises ValueError."""
    found = re.fullmatch(rf"({WITH_VALUES})?{_NUMBER}-{_NUMBER}(?::{_NUMBER})?", text)
    if not found:
        raise ValueError(f"expected {FORM}, got {text[:80]!r}")
    first, last, step = int(found[2]), int(found[3]), int(found[4] or 1)
    if step < 1 or last < first:
        wrong = "runs backwards" if step else "has the step 0"
        raise ValueError(f"{text!r} {wrong}; expected {FORM}")
    padded = (len(end) for end in (found[2], found[3]) if re.match("0[0-9]", end))
    last -= (last - first) % step
    return Numbers(first, last, step, max(padded, default=0), bool(found[1]))


def wrong(whole: str, chunk: str, skip: str, others: Mapping[str, object]) -> str:
    """Which of a manifest's keys is wrong, and why; "" if none is. others: its values of ALONE."""
    forms: tuple[tuple[str, Callable[[str], object], str], ...] = (
        ("array", parse, whole),
        ("skip", parse_some, skip),
    )
    for key, form, text in forms:
        try:
            if text:
                form(text)
        except ValueError as fault:
            return f"{key!r}: {fault}"
    if not whole:
        return f"{'chunk' if chunk else 'skip'!r} goes with 'array'"
    try:
        if chunk:
            parse(whole).of_chunk(chunk)
    except ValueError as fault:
        return f"'chunk': {fault}"
    for key, value in others.items():
        if value != ALONE[key]:
            return (
                f"{key!r}: {value} is not possible for the elements of an array, each of which"
                " runs on one node by itself. Submit tasks instead: --each, --from"
            )
    return ""


def _ends(chunk: str) -> tuple[int, int]:
    found = re.fullmatch(f"{_NUMBER}-{_NUMBER}", chunk)
    if not found:
        raise ValueError(f"expected FIRST-LAST, got {chunk[:80]!r}")
    return int(found[1]), int(found[2])


def overlaps(chunk: str, some: Some) -> bool:
    """Whether a chunk's FIRST-LAST may hold one of these."""
    first, last = _ends(chunk)
    return any(one.start <= last and one.stop > first for one in some.ranges)


# -- some of them --------------------------------------------------------------------------------


class Some:
    """A set of elements, as a person or `skip` names them: 3-9,12. Falsy where it is empty."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: Iterable[range] = ()) -> None:
        self.ranges = _merged(ranges)

    def __str__(self) -> str:
        ends = ((one.start, one.stop - 1) for one in self.ranges)
        return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in ends)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Some) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __contains__(self, number: object) -> bool:
        return any(number in one for one in self.ranges)

    def __or__(self, other: Some) -> Some:
        return Some((*self.ranges, *other.ranges))

    def __sub__(self, other: Some) -> Some:
        left = list(self.ranges)
        for hole in other.ranges:
            left = [
                part
                for one in left
                for part in (
                    range(one.start, min(one.stop, hole.start)),
                    range(max(one.start, hole.stop), one.stop),
                )
                if part
            ]
        return Some(left)

    def among(self, numbers: Numbers) -> Iterator[int]:
        """Those that are elements of `numbers`, ascending."""
        for one in self.ranges:
            start = max(one.start, numbers.first)
            start += -(start - numbers.first) % numbers.step
            yield from range(start, min(one.stop - 1, numbers.last) + 1, numbers.step)

    def within(self, numbers: Numbers) -> Some:
        """The part that lies between the first and the last of `numbers`."""
        outside = (range(0, numbers.first), range(numbers.last + 1, ELEMENT_MOST + 1))
        return self - Some(part for part in outside if part)


def _merged(ranges: Iterable[range]) -> tuple[range, ...]:
    made: list[range] = []
    for one in sorted((one for one in ranges if one), key=lambda one: one.start):
        if made and one.start <= made[-1].stop:
            made[-1] = range(made[-1].start, max(made[-1].stop, one.stop))
        else:
            made.append(range(one.start, one.stop))
    return tuple(made)


def parse_some(text: str) -> Some:
    """The elements that `3-9,12` names; "" is none. Raises ValueError."""
    ranges = []
    for part in text.split(",") if text else ():
        found = re.fullmatch(rf"\s*{_NUMBER}(?:-{_NUMBER})?\s*", part)
        if not found:
            raise ValueError(f"expected {SOME}, got {text[:80]!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"{part.strip()!r} runs backwards; expected {SOME}")
        ranges.append(range(first, last + 1))
    return Some(ranges)


# -- the cut -------------------------------------------------------------------------------------


def chunk_size(count: int, element_s: float = 0.0) -> int:
    """How many elements a chunk holds where nobody says.

    Some 64 chunks keep several launchers busy to the end, and few files; a chunk holds 16 elements
    at least, since its cores may run them side by side. Where it is known how long an element
    takes, a chunk takes ten minutes at most on one core, and two seconds at least. Never are there
    more than 10,000 chunks.
    """
    size = max(-(-count // MANY_CHUNKS), min(FEW_ELEMENTS, count))
    if element_s > 0:
        size = min(size, max(1, int(min(LONG_S / element_s, count))))
        size = max(size, min(int(min(SHORT_S / element_s, count)), -(-count // 8)))
    return max(size, -(-count // MOST_CHUNKS), 1)


def cut(numbers: Numbers, size: int) -> Iterator[Numbers]:
    """The elements in chunks of `size`, the last one perhaps smaller."""
    every = numbers.every()
    for start in range(0, len(every), size):
        part = every[start : start + size]
        yield numbers._replace(first=part[0], last=part[-1])
