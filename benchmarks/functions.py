"""functions - no-op Python functions a second, against Parsl's HighThroughputExecutor.

Parsl is installed into an environment of its own below the benchmark's folder; where it cannot be,
that is printed, and concurrent.futures.ProcessPoolExecutor takes its place, with nothing wanted.
"""

from __future__ import annotations

import os
import subprocess
import sys

import measure
from measure import Broken, Line, Scale

PROGRAM = f"{os.path.dirname(os.path.abspath(__file__))}/function_calls.py"
INSTALL_S = 300


def lines(scale: Scale) -> list[Line]:
    """Our executor and another, two workers each."""
    count = scale.tasks(10_000)
    python = install(scale.place.fresh("parsl"))
    other, peer = ("parsl", python) if python else ("pool", sys.executable)

    def ours(folder: str) -> float:
        return calls(sys.executable, "spool", count, folder)

    def theirs(folder: str) -> float:
        return calls(peer, other, count, folder)

    found = measure.paired(scale, ours, theirs, "functions")
    what = "Parsl HTEX" if python else "ProcessPoolExecutor: Parsl cannot be installed"
    return [
        Line(
            f"functions: SpoolExecutor vs {what}, 2 workers, {count:,} calls",
            measure.rate(found.mine),
            measure.rate(found.base),
            found.ratio,
            measure.at_least(2.0) if python else None,
        )
    ]


def install(folder: str) -> str:
    """A Python that has Parsl; "" where the package index does not give it."""
    python = f"{folder}/venv/bin/python"
    steps = [
        [sys.executable, "-m", "venv", f"{folder}/venv"],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "parsl"],
    ]
    try:
        for step in steps:
            measure.run(step, folder, longest_s=INSTALL_S)
    except Broken as fault:
        print(f"  functions: Parsl cannot be installed: {fault}", file=sys.stderr, flush=True)
        return ""
    return python


def calls(python: str, which: str, count: int, folder: str) -> float:
    """Calls a second, as a program of its own tells."""
    path = f"{os.path.dirname(python)}:{os.environ['PATH']}"  # Parsl starts programs of its own
    words = [python, PROGRAM, which, str(count), folder]
    ran = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=measure.LONGEST_S,
        check=False,
    )
    if ran.returncode:
        raise Broken(f"{' '.join(words)}: exit code {ran.returncode}: {ran.stderr[-2000:]}")
    return float(ran.stdout.split()[-1])
