"""scaling - one leader over more and more nodes, its tasks simulated; and what one spool can carry.

Run as  python benchmarks/scaling.py [--repeat N] [--dir DIR] [--quick]
Exit    0 all wanted bounds hold; 1 one is missed, or something did not work.

The launcher is the real one (spool launcher --simulate): it claims, places, records and moves; only
the tasks do not run, and time is virtual. Efficiency is the time that a scheduler without any cost
would need for the same tasks, over the time that the launcher needed, its start and end included.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import shutil
import sys
import tempfile
import time

import measure
import spools
from large import roomy
from measure import Line, Scale

from spool.queue import tasks
from spool.queue.layout import State, Tree

CORES = 64
NODES = (128, 256, 512, 1024)
EACH = 5  # tasks for each core: five minutes
LASTS, SPREAD = 60.0, 0.2
LATENCIES_MS = (0.0, 0.1, 1.0, 5.0)


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description="Weak scaling; exits 1 if a bound is missed.")
    parser.add_argument("--dir", help="where to work; in memory if it has room, else build")
    parser.add_argument("--quick", action="store_true", help="a tenth of it; speed is not judged")
    asked = parser.parse_args()
    lines: list[Line] = []
    with measure.place(asked.dir or roomy(NODES[-1] * CORES * EACH)) as place:
        print(measure.header(place.path), flush=True)
        scale = Scale(place, 1, asked.quick)
        try:
            lines += weak(scale) + carried(scale)
        except measure.Broken as fault:
            print(f"scaling: {fault}", file=sys.stderr)
            lines.append(Line("scaling", "broken", value=1, wanted=measure.NONE))
        return measure.show(lines, quick=asked.quick)


def weak(scale: Scale) -> list[Line]:
    """The same work for each core, on more and more nodes."""
    lines: list[Line] = []
    first: dict[str, float] = {}
    for nodes in NODES:
        nodes = nodes // 8 if scale.quick else nodes
        count = nodes * CORES * EACH
        print(f"weak scaling: {nodes} nodes, {count:,} tasks ...", file=sys.stderr, flush=True)
        tree = scratch(scale.place.fresh(f"weak-{nodes}"))
        spools.submit(tree, count, "--time-estimate", f"{LASTS:.0f}s")
        told = simulated(tree, f"nodes={nodes},cores={CORES},spread={SPREAD}")
        lasts = [lasting(task_id, LASTS) for task_id in finished(tree)]
        wanted = greedy(lasts, nodes * CORES)
        renames = renamed(tree, nodes * CORES) / count * 1e6
        shutil.rmtree(os.path.dirname(tree.root))  # a million tasks would use up the inodes
        cost = told["leader_cpu_s"] / count * 1e6
        operations = told["operations"] / count
        first = first or {"cost": cost, "operations": operations}
        name = f"weak scaling: {nodes} nodes x {CORES}, {count:,} tasks of 60 s"
        lines += [
            Line(
                f"{name}: efficiency",
                f"{told['virtual_s']:.1f} s",
                f"{wanted:.1f} s",
                wanted / told["virtual_s"],
                measure.at_least(0.98),
            ),
            Line(
                f"{name}: leader's CPU a task",
                f"{cost:.0f} us",
                f"{first['cost']:.0f} us",
                cost / first["cost"],
                measure.at_most(1.25),
            ),
            Line(
                f"{name}: the same, to its two renames alone",
                f"{cost:.0f} us",
                f"{renames:.0f} us",
                cost / renames,
            ),
            Line(
                f"{name}: metadata operations a task",
                f"{operations:.2f}",
                f"{first['operations']:.2f}",
                operations / first["operations"],
                measure.at_most(1.1, timed=False),
            ),
        ]
    return lines


def carried(scale: Scale) -> list[Line]:
    """What one leader claims and finishes a second, by the latency of a metadata operation."""
    lines = []
    for latency in LATENCIES_MS:
        count = scale.tasks(100_000 if latency < 0.05 else round(8_000 / latency**0.5))
        tree = scratch(scale.place.fresh(f"carried-{latency}"))
        spools.submit(tree, count)
        told = simulated(tree, f"nodes=1024,cores={CORES},latency={latency / 1000}s")
        rate = count / told["virtual_s"]
        wanted = measure.at_least(3000) if not latency else None
        name = f"one spool carries, at {latency:g} ms an operation, renames one after the other"
        lines.append(
            Line(name, f"{rate:,.0f}/s", value=rate, wanted=wanted, note="claims and finishes")
        )
    return lines


def scratch(folder: str) -> Tree:
    """A spool in which tasks may be finished that never ran."""
    tree = spools.make(folder)
    with open(tree.settings, "w") as file:
        file.write("format = 1\n[launcher]\nsimulate = true\n")
    return tree


def simulated(tree: Tree, scene: str) -> dict[str, float]:
    """Run a launcher that only simulates; what it measured."""
    words = spools.launch(tree, "--simulate", scene, "--json")
    with tempfile.TemporaryFile(dir=os.path.dirname(tree.root)) as output:
        measure.run(words, tree.root, output=output)
        output.seek(0)
        told: dict[str, float] = json.load(output)
    return told


def finished(tree: Tree) -> list[str]:
    """The ids of all that finished."""
    return [spot.id for spot in tasks.spots(tree, (State.FINISHED,))]


def renamed(tree: Tree, slots: int) -> float:
    """CPU seconds of a bare loop that moves every task into a folder of so many, and out again."""
    found = tasks.spots(tree, (State.FINISHED,))
    spots = [(tree.group(spot.state, spot.group), spot.id) for spot in found]
    claims = tree.group(State.RUNNING, "bare")
    os.mkdir(claims)
    begun = time.thread_time()
    for number in range(len(spots) + slots):
        if number < len(spots):
            group, task_id = spots[number]
            os.rename(f"{group}/{task_id}", f"{claims}/{task_id}")
        if number >= slots:
            group, task_id = spots[number - slots]
            os.rename(f"{claims}/{task_id}", f"{group}/{task_id}")
    return time.thread_time() - begun


def lasting(task_id: str, lasts: float) -> float:
    """How long the simulation lets a task last."""
    return lasts * random.Random(task_id).uniform(1 - SPREAD, 1 + SPREAD)


def greedy(lasts: list[float], slots: int) -> float:
    """How long tasks take that are started, in this order, on whatever slot is free, at no cost."""
    ends = [0.0] * slots
    for one in lasts:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


if __name__ == "__main__":
    sys.exit(main())
