"""no_op - how many programs that do nothing a launcher runs in a second, against xargs.

Everything is recorded: the output captured, the start and the end written and made durable.
"""

from __future__ import annotations

import os
import statistics
import sys

import measure
import spools
from measure import Line, Scale

BARE = f"{os.path.dirname(os.path.abspath(__file__))}/bare_loop.py"


def lines(scale: Scale) -> list[Line]:
    """The launcher against xargs, and against a loop that only starts and waits."""
    count = scale.tasks(10_000)
    wrong: list[int] = []
    bare: list[float] = []

    def ours(folder: str) -> float:
        tree = spools.make(folder)
        spools.submit(tree, count)
        os.sync()
        ran = measure.run(spools.launch(tree, "--cores", "2"), folder)
        wrong.append(spools.wrongly_recorded(tree, count))
        bare.append(loop(scale.place.fresh("no-op-bare"), count))
        return count / ran.seconds

    def theirs(folder: str) -> float:
        words = ["sh", "-c", f"seq {count} | xargs -P2 -n1 {spools.NO_OP}"]
        return count / measure.run(words, folder).seconds

    found = measure.paired(scale, ours, theirs, "no-op")
    to_bare = statistics.median(a / b for a, b in zip(found.ours, bare, strict=True))
    return [
        Line(
            f"no-op: launcher --cores 2 vs xargs -P2, {count:,} tasks",
            measure.rate(found.mine),
            measure.rate(found.base),
            found.ratio,
            measure.at_least(0.9),
        ),
        Line(
            "no-op: launcher vs bare loop of posix_spawn, wait4",
            measure.rate(found.mine),
            measure.rate(statistics.median(bare)),
            to_bare,
        ),
        Line(
            "no-op: tasks not recorded just once",
            str(sum(wrong)),
            value=sum(wrong),
            wanted=measure.NONE,
        ),
    ]


def loop(folder: str, count: int) -> float:
    """Programs a second by a process that does nothing but start and wait, two at a time."""
    words = [sys.executable, BARE, str(count), spools.NO_OP]
    return count / measure.run(words, folder).seconds
