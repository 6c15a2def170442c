"""peers - other tools on the same no-op tasks, where they are installed; nothing is wanted.

They record less than spool does, or more; the figures say what order of magnitude is usual.
"""

from __future__ import annotations

import shutil
import statistics

import measure
import spools
from measure import Line, Scale


def lines(scale: Scale) -> list[Line]:
    """A line for each peer."""
    return [gnu_parallel(scale)]


def gnu_parallel(scale: Scale) -> Line:
    """GNU parallel with its job log, which is what it can resume from."""
    name = "peers: GNU parallel -j2 --joblog"
    if not shutil.which("parallel"):
        return Line(name, "", note="skipped: not installed. Run: apt-get install -y parallel")
    count = scale.tasks(2000)
    script = f"seq {count} | parallel --will-cite -j2 --joblog log {spools.NO_OP}"
    rates = [
        count / measure.run(["sh", "-c", script], scale.place.fresh("parallel")).seconds
        for _ in range(scale.repeat)
    ]
    return Line(f"{name}, {count:,} tasks", measure.rate(statistics.median(rates)))
