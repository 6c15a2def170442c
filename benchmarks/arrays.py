"""arrays - an array of programs that do nothing, against a loop that only starts and waits.

Every element's end is told by a line of its own; the loop records nothing. Submission is timed as a
person sees it, with Python's own start, for a range and for the rows of a table.
"""

from __future__ import annotations

import os
import statistics

import measure
import no_op
import spools
from measure import Line, Scale

from spool.queue import elements, files, tasks
from spool.queue.layout import State, Tree

WANTED = 200_000


def lines(scale: Scale) -> list[Line]:
    """Starts a second, files a chunk, elements submitted a second."""
    count = scale.tasks(100_000)
    wrong: list[int] = []
    most: list[int] = []

    def ours(folder: str) -> float:
        tree = spools.make(folder)
        os.sync()
        words = spools.command(tree, "submit", "--array", f"0-{count - 1}", "--", spools.NO_OP)
        measure.run(words, folder)
        os.sync()
        ran = measure.run(spools.launch(tree, "--cores", "2"), folder)
        wrong.append(wrongly_recorded(tree, count))
        most.append(max(len(files.names(path)) for _, path in spools.tasks_in(tree, DONE)))
        return count / ran.seconds

    def theirs(folder: str) -> float:
        return no_op.loop(folder, count)

    found = measure.paired(scale, ours, theirs, "arrays")
    many = scale.tasks(1_000_000)
    sent = [from_range(scale.place.fresh("arrays-sent"), many) for _ in range(scale.repeat)]
    rows = [from_rows(scale.place.fresh("arrays-rows"), many) for _ in range(scale.repeat)]
    return [
        Line(
            f"arrays: launcher --cores 2 vs bare loop of posix_spawn, wait4, {count:,} elements",
            measure.rate(found.mine),
            measure.rate(found.base),
            found.ratio,
            measure.at_least(0.8),
        ),
        _submitted(f"arrays: submit --array 0-{many - 1} vs {WANTED:,}/s", sent),
        _submitted(f"arrays: submit --array-from CSV, {many:,} rows vs {WANTED:,}/s", rows),
        Line(
            "arrays: most files in a chunk",
            str(max(most)),
            value=max(most),
            wanted=measure.at_most(12, timed=False),
        ),
        Line(
            "arrays: elements not recorded just once",
            str(sum(wrong)),
            value=sum(wrong),
            wanted=measure.NONE,
        ),
    ]


DONE = State.FINISHED


def _submitted(name: str, rates: list[float]) -> Line:
    """Elements a second, against the rate that is wanted."""
    rate = statistics.median(rates)
    bound = measure.at_least(1.0)
    return Line(name, measure.rate(rate), measure.rate(WANTED), rate / WANTED, bound)


def from_range(folder: str, count: int) -> float:
    """Elements a second where each is a number."""
    tree = spools.make(folder)
    os.sync()
    words = spools.command(tree, "submit", "--array", f"0-{count - 1}", "--", spools.NO_OP)
    return count / measure.run(words, folder).seconds


def from_rows(folder: str, count: int) -> float:
    """Elements a second where each has a row of a table."""
    tree = spools.make(folder)
    path = f"{folder}/rows.csv"
    with open(path, "w") as file:
        file.write("temperature,seed\n")
        file.writelines(f"{number / 7:.3f},{number}\n" for number in range(count))
    os.sync()
    words = spools.command(tree, "submit", "--array-from", path, "--", spools.NO_OP, "{seed}")
    return count / measure.run(words, folder).seconds


def wrongly_recorded(tree: Tree, count: int) -> int:
    """How many of `count` elements are not told by just one line, of success."""
    right = 0
    for task_id, path in spools.tasks_in(tree, DONE):
        told = [line for line in elements.lines(path) if "what" not in line]
        once = len({line["element"] for line in told}) == len(told)
        numbers = tasks.load(path, task_id).manifest.elements
        assert numbers is not None
        right += sum(map(elements.succeeded, told)) if once and len(told) == numbers.size else 0
    return abs(count - right)
