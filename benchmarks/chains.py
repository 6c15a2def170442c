"""chains - what it costs that tasks wait for one another: chains of no-op tasks against as many
that wait for nothing, by the same launcher.

A link is one step of depth: all chains are one task further on. What is counted is the wall time
that each link adds.
"""

from __future__ import annotations

import json
import os
import statistics

import measure
import spools
from measure import Line, Scale

from spool.queue.layout import Tree

DEPTH = 100
CHAINS = 100
EACH_MS = 10.0


def lines(scale: Scale) -> list[Line]:
    """The same tasks in chains and flat, alternately."""
    chains = scale.tasks(CHAINS)
    count = chains * DEPTH
    wrong: list[int] = []

    def run(tree: Tree) -> float:
        os.sync()
        ran = measure.run(spools.launch(tree, "--cores", "2"), os.path.dirname(tree.root))
        wrong.append(spools.wrongly_recorded(tree, count))
        return ran.seconds

    def ours(folder: str) -> float:
        tree = spools.make(folder)
        path = write_chains(folder, chains)
        measure.run(spools.command(tree, "submit", "--from", path), folder)
        return run(tree)

    def theirs(folder: str) -> float:
        tree = spools.make(folder)
        spools.submit(tree, count)
        return run(tree)

    found = measure.paired(scale, ours, theirs, "chains")
    pairs = zip(found.ours, found.theirs, strict=True)
    each = statistics.median((a - b) / DEPTH * 1000 for a, b in pairs)
    name = f"chains: {chains:,} of depth {DEPTH}"
    wanted = measure.at_most(EACH_MS)
    seconds = f"{found.mine:.1f} s", f"{found.base:.1f} s"
    return [
        Line(f"{name} vs {count:,} flat", *seconds, found.ratio),
        Line(f"{name}: ms for each link", f"{each:.2f}", value=each, wanted=wanted),
        Line(
            "chains: tasks not recorded just once",
            str(sum(wrong)),
            value=sum(wrong),
            wanted=measure.NONE,
        ),
    ]


def write_chains(folder: str, chains: int) -> str:
    """A file of no-op tasks, link by link, each after the one before it in its chain."""
    path = f"{folder}/chains.jsonl"
    with open(path, "w") as file:
        for link in range(DEPTH):
            for chain in range(chains):
                keys: dict[str, object] = {"command": [spools.NO_OP], "name": f"c{chain}-{link}"}
                if link:
                    keys["after"] = [f"c{chain}-{link - 1}"]
                file.write(json.dumps(keys) + "\n")
    return path
