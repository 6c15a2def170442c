"""bulk - how many tasks a second become durable in the queue, against the bare system calls."""

from __future__ import annotations

import os
import statistics
import sys

import measure
import spools
from measure import Line, Scale

from spool.queue import layout
from spool.queue.layout import State

RAW = f"{os.path.dirname(os.path.abspath(__file__))}/raw_submit.py"


def lines(scale: Scale) -> list[Line]:
    """`submit --from` against a raw loop, and `submit --each` beside it."""
    count = scale.tasks(100_000)
    size = manifest_bytes(scale)
    each: list[float] = []

    def ours(folder: str) -> float:
        path = spools.write_tasks(folder, count)
        tree = spools.make(folder)
        os.sync()
        words = spools.command(tree, "submit", "--from", path)
        figure = count / measure.run(words, folder).seconds
        os.sync()
        each.append(from_each(scale.place.fresh("submit-each"), count))
        return figure

    def theirs(folder: str) -> float:
        words = [sys.executable, RAW, str(count), str(size)]
        return count / measure.run(words, folder).seconds

    found = measure.paired(scale, ours, theirs, "submit")
    to_each = statistics.median(a / b for a, b in zip(each, found.theirs, strict=True))
    base = measure.rate(found.base)
    return [
        Line(
            f"submit: --from JSONL vs mkdir+write+rename of {size} bytes, {count:,} tasks",
            measure.rate(found.mine),
            base,
            found.ratio,
            measure.at_least(0.5),
        ),
        Line(
            f"submit: --each 1-{count} vs the same",
            measure.rate(statistics.median(each)),
            base,
            to_each,
        ),
    ]


def from_each(folder: str, count: int) -> float:
    """Tasks a second by --each."""
    tree = spools.make(folder)
    os.sync()
    words = spools.command(tree, "submit", "--each", f"1-{count}", "--", spools.NO_OP, "{}")
    return count / measure.run(words, folder).seconds


def manifest_bytes(scale: Scale) -> int:
    """The size of the manifest that spool writes for such a task."""
    tree = spools.make(scale.place.fresh("submit-size"))
    spools.submit(tree, 1)
    _, path = next(spools.tasks_in(tree, State.READY))
    return os.stat(f"{path}/{layout.MANIFEST}").st_size
