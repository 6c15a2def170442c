"""year - a year of bursts on a machine of 4,392 nodes: spool's sizing against what else people do.

Run as  python benchmarks/year.py [--days N] [--seed N] [--load SHARE] [--only WORD] [--no-gaps]
Exit    0 spool is best or equal in waiting and in waste; 1 it is not.

Theta's queue bands with 20 allocations queued at most; its debug queue; and the queue that fills
gaps with 20 to 127 nodes, through which the campaign of 48 hours ran. Others' jobs come for nine
tenths of the nodes, first come first served with EASY backfill. Every strategy meets the same tasks
and the same jobs of others, sees the same idle nodes and runs the same launcher. What is not served
by the end has waited until then. --no-gaps takes that queue away.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import dataclass

import msgspec
import tabulate
import year_rivals
from year_machine import DAY, DEBUG_NODES, HOUR, MAX_QUEUED, NODES, Clock, Machine
from year_rivals import Strategy
from year_work import Ready, arrivals

SPEEDS = (0.5, 0.65, 0.8, 0.95)
"""What tasks need in truth, of what they are said to need: a quarter of a burst each."""
AFTER = 7 * DAY
"""So long after the last arrival what is left may still be served."""


@dataclass(frozen=True)
class Told:
    """How a strategy did; times in hours, weighed by tasks and by bursts."""

    name: str
    used: float
    granted: float
    mean: float
    median: float
    late: float
    makespan: float
    unserved: int
    asked: int
    cancelled: int
    looks: int
    seconds: float

    @property
    def idle(self) -> float:
        """Node-hours granted and not used."""
        return self.granted - self.used


def main() -> int:
    """Run all; the exit code."""
    asked = arguments()
    until = asked.days * DAY
    nodes = NODES + DEBUG_NODES
    print(f"{asked.days} days, seed {asked.seed}, others {asked.load:.0%}, {nodes:,} nodes")
    found = []
    for strategy in chosen(asked.only, asked.no_gaps):
        found.append(played(strategy, asked.seed, until, asked.load))
        print(f"  {strategy.name}: {found[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    show(found)
    return verdict(found)


def chosen(word: str, no_gaps: bool) -> list[type[Strategy]]:
    """Spool, and the strategies with this word in their names."""
    found = [one for one in year_rivals.ALL if word in one.name or one is year_rivals.Spool]
    if not no_gaps:
        return found
    ours = year_rivals.Spool
    ours.policy = msgspec.structs.replace(
        ours.policy, queues=year_rivals.queues(("debug", "default"))
    )
    MAX_QUEUED["backfill"] = 0
    return [one for one in found if getattr(one, "queue", "") != "backfill"]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="A simulated year; exits 1 if a rival is better.")
    parser.add_argument("--days", type=int, default=365, help="365")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and of others' jobs; 1")
    parser.add_argument("--load", type=float, default=0.9, help="of others' jobs; 0.9")
    parser.add_argument("--only", default="", help="spool and those with this in their names")
    parser.add_argument("--no-gaps", action="store_true", help="without the queue that fills gaps")
    return parser.parse_args()


def played(strategy: type[Strategy], seed: int, until: float, load: float) -> Told:
    """A whole year of one strategy."""
    began = time.perf_counter()
    clock = Clock()
    machine = Machine(clock, seed, load)
    machine.fill(until + AFTER)
    ready = Ready(clock)
    one = strategy(machine, ready)
    for moment, source, shape, count, dice in arrivals(seed, until):
        clock.at(moment, ready.arrive, source, shape, split(count, shape.time_s, dice))
    clock.run(until + AFTER)
    return told(one, time.perf_counter() - began)


def split(count: int, time_s: int, dice: random.Random) -> list[tuple[int, float]]:
    """The tasks of a burst by their true times, in any order."""
    speeds = list(SPEEDS)
    dice.shuffle(speeds)
    each = -(-count // len(speeds))
    return [
        (min(each, count - each * n), time_s * s) for n, s in enumerate(speeds) if count > each * n
    ]


def told(one: Strategy, seconds: float) -> Told:
    """The figures."""
    ready, now = one.ready, one.clock.now
    waits = list(ready.waits)
    unserved = 0
    for lane in ready.lanes.values():
        for batch in lane:
            unserved += batch.count
            waits.append((now - batch.burst.arrived, batch.count))
    running = sum(a.job.width * (now - a.job.started_at) for a in one.live.values() if a.running)
    waits.sort()
    spans = [(b.ended if b.ended >= 0 else now) - b.arrived for b in ready.bursts]
    return Told(
        one.name,
        ready.used_node_s / HOUR,
        (ready.granted_node_s + running) / HOUR,
        sum(wait * count for wait, count in waits) / sum(count for _, count in waits) / HOUR,
        quantile(waits, 0.5) / HOUR,
        quantile(waits, 0.95) / HOUR,
        statistics.mean(spans) / HOUR,
        unserved,
        one.asked,
        one.cancelled,
        one.looks,
        seconds,
    )


def quantile(waits: list[tuple[float, int]], share: float) -> float:
    """Of sorted (wait, tasks)."""
    wanted = share * sum(count for _, count in waits)
    for wait, count in waits:
        wanted -= count
        if wanted <= 0:
            return wait
    return waits[-1][0]


def show(found: list[Told]) -> None:
    """The table, then what each strategy is."""
    rows = [
        (
            one.name,
            f"{one.used:,.0f}",
            f"{one.idle:,.0f}",
            f"{one.used / one.granted:.0%}" if one.granted else "",
            f"{one.mean:.2f}",
            f"{one.median:.2f}",
            f"{one.late:.2f}",
            f"{one.makespan:.2f}",
            f"{one.unserved:,}",
            f"{one.asked:,}",
            f"{one.cancelled:,}",
            f"{one.looks:,}",
        )
        for one in found
    ]
    heads = (
        "", "node-h used", "idle", "use", "mean wait h", "median", "p95", "burst h",
        "unserved", "asked", "cancelled", "looks",
    )  # fmt: skip
    print(tabulate.tabulate(rows, heads, disable_numparse=True))
    notes = {strategy.name: strategy.note for strategy in year_rivals.ALL}
    for one in found:
        print(f"  {one.name}: {notes[one.name]}")


def verdict(found: list[Told]) -> int:
    """Whether spool is best or equal: in mean waiting, and in idle node-hours for those used."""
    ours, rivals = found[0], [one for one in found[1:] if not one.name.startswith("spool")]
    waiting = all(ours.mean <= one.mean * 1.005 for one in rivals)
    waste = all(ours.idle / ours.used <= one.idle / max(one.used, 1) * 1.005 for one in rivals)
    print(f"waiting: {'ok' if waiting else 'MISSED'}; waste: {'ok' if waste else 'MISSED'}")
    return int(not (waiting and waste))


if __name__ == "__main__":
    sys.exit(main())
