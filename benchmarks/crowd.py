"""crowd - eight launchers at once on one queue: nothing runs twice, and few claims are lost."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import measure
import spools
from measure import Line, Scale

from spool.queue.layout import Tree

LAUNCHERS = 8
LOST_SHARE = 0.25


def lines(scale: Scale) -> list[Line]:
    """Run them once over one backlog, and look what each task and each journal says."""
    count = scale.tasks(20_000)
    folder = scale.place.fresh("crowd")
    tree = spools.make(folder)
    spools.submit(tree, count)
    os.sync()
    seconds = launch_all(tree, folder)
    wrong, untold = spools.wrongly_recorded(tree, count), spools.disagreements(tree, count)
    return [
        Line(
            f"crowd: {LAUNCHERS} launchers --cores 1, {count:,} tasks", f"{count / seconds:,.0f}/s"
        ),
        Line("crowd: tasks not run just once", str(wrong), value=wrong, wanted=measure.NONE),
        Line(
            "crowd: tasks the journals tell otherwise",
            str(untold),
            value=untold,
            wanted=measure.NONE,
        ),
        lost_line(tree),
    ]


def launch_all(tree: Tree, folder: str) -> float:
    """Seconds from the first start to the last end."""
    began = time.perf_counter()
    words = spools.launch(tree, "--cores", "1", "--no-pin")
    with ExitStack() as stack:
        running = [stack.enter_context(measure.started(words, folder)) for _ in range(LAUNCHERS)]
        for one in running:
            one.finish(measure.LONGEST_S)
    return time.perf_counter() - began


def lost_line(tree: Tree) -> Line:
    """The share of claims that another launcher was quicker to make."""
    name = "crowd: lost renames / claims"
    if (found := spools.claims(tree)) is None:
        return Line(name, "n/a", note="n/a: launcher.json does not tell")
    won, lost = found
    share = lost / max(won, 1)
    bound = measure.at_most(LOST_SHARE)
    return Line(name, f"{lost:,} / {won:,} = {share:.3f}", value=share, wanted=bound)
