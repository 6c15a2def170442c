"""hosts - pure: the ways in which batch systems write lists of hosts, and how many slots each has.

Owns   host lists with brackets, counts with repeats, node files line by line, pairs, Cray numbers.
Never  reads a file, a variable or the machine.
Fails  ValueError, with what is allowed; a list is read wholly or not at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

Slots = tuple[tuple[str, int], ...]
"""Each host once, in order, with its number of slots."""

MOST = 2**18
"""More hosts than any machine has: a list that says more is a lie, and could fill the memory."""
HOSTLIST_FORM = "expected a host list such as node[001-003,7],login1"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_ITEM = re.compile(r"(?:[A-Za-z0-9._-]|\[[0-9,-]+\])+")
_RANGE = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?")
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}")


def expand_hostlist(text: str) -> tuple[str, ...]:
    """The hosts of a Slurm or Flux host list, in its order, each once. Raises ValueError."""
    text = text.strip()
    items = _ITEM.findall(text)
    if not items or ",".join(items) != text:
        raise ValueError(HOSTLIST_FORM)
    names: dict[str, None] = {}
    for item in items:
        names.update(dict.fromkeys(_checked(name) for name in _expand_item(item)))
        _few(len(names))
    return tuple(names)


def _expand_item(item: str) -> list[str]:
    """Every combination of what the brackets of one item list."""
    names = [""]
    for index, part in enumerate(re.split(r"\[([0-9,-]+)\]", item)):
        choices = [part] if index % 2 == 0 else list(_numbers(part))
        _few(len(names) * len(choices))
        names = [name + choice for name in names for choice in choices]
    return names


def _numbers(ranges: str) -> Iterator[str]:
    """The numbers of 001-003,7, each as wide as the first of its range."""
    for part in ranges.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (found[1], found[2] or found[1]) if found else ("1", "0")
        if int(last) < int(first):
            raise ValueError(HOSTLIST_FORM)
        _few(int(last) - int(first))
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def _few(count: int) -> None:
    if count > MOST:
        raise ValueError(f"expected at most {MOST} hosts")


def _checked(name: str) -> str:
    """The name; a word that starts with a dash would be an option of the next command."""
    if not _HOST.fullmatch(name):
        raise ValueError("expected host names of letters, digits, dots and dashes")
    return name


def read_counts(text: str) -> tuple[int, ...]:
    """2(x3),4 is 2, 2, 2, 4: one count for each node. Raises ValueError."""
    counts: list[int] = []
    for part in text.strip().split(","):
        found = _COUNT.fullmatch(part)
        count, times = (int(found[1]), int(found[2] or 1)) if found else (0, 0)
        if not count or not times:
            raise ValueError("expected counts of at least 1, such as 2(x3),4")
        _few(len(counts) + times)
        counts += [count] * times
    return tuple(counts)


def count_slots(names: Iterable[str]) -> Slots:
    """Hosts that stand once for each slot, as lines or words. Raises ValueError."""
    words = (name.strip() for name in names)
    slots = Counter(_checked(word) for word in words if word)
    if not slots:
        raise ValueError("it names no host")
    return tuple(slots.items())


def read_pairs(words: Sequence[str]) -> Slots:
    """Hosts and slots in turn: h41n03 42 h41n05 42. Raises ValueError."""
    slots: Counter[str] = Counter()
    for name, count in zip(words[::2], words[1::2], strict=False):
        slots[_checked(name)] += positive(count)
    if not slots or len(words) % 2:
        raise ValueError("expected hosts and slots in turn, such as n1 42 n2 42")
    return tuple(slots.items())


def read_table(lines: Iterable[str]) -> Slots:
    """Lines of host, slots and whatever follows, as Grid Engine writes. Raises ValueError."""
    return read_pairs([word for line in lines for word in line.split()[:2]])


def expand_nids(text: str) -> tuple[str, ...]:
    """3-5,8 is what Cobalt on a Cray calls nid00003 to nid00005 and nid00008."""
    if not re.fullmatch(r"[0-9,-]+", text):
        raise ValueError("expected node numbers such as 3-5,8")
    return tuple(dict.fromkeys(f"nid{int(number):05d}" for number in _numbers(text)))


def without_launch_node(slots: Slots) -> Slots:
    """Without LSF's launch node: a first host of one slot where all others have more."""
    if len(slots) > 1 and slots[0][1] == 1 and all(count > 1 for _, count in slots[1:]):
        return slots[1:]
    return slots


def short(host: str) -> str:
    """A host's name up to its first dot, to compare; an address is itself."""
    return host if _ADDRESS.fullmatch(host) else host.partition(".")[0].lower()


def positive(text: str) -> int:
    """A whole number of at least 1. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,12}", text) or not int(text):
        raise ValueError("expected a whole number of at least 1")
    return int(text)
