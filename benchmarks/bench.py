"""bench - measure spool against the least that the same work could cost.

Run as  python benchmarks/bench.py [--only NAME] [--repeat N] [--dir DIR] [--quick]
Exit    0 all wanted bounds hold; 1 one is missed, or something did not work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import arrays
import bulk
import chains
import cold_start
import crowd
import functions
import measure
import metadata
import no_op
import nodes
import peers
from measure import Line, Scale

BENCHMARKS: dict[str, Callable[[Scale], list[Line]]] = {
    "no-op": no_op.lines,
    "submit": bulk.lines,
    "arrays": arrays.lines,
    "cold-start": cold_start.lines,
    "metadata": metadata.lines,
    "chains": chains.lines,
    "crowd": crowd.lines,
    "nodes": nodes.lines,
    "functions": functions.lines,
    "peers": peers.lines,
}


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Measure spool; exits 1 if a bound is missed.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="may be given again")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="pairs of runs; 3")
    parser.add_argument("--dir", default="build", help="where to make a folder to work in; build")
    parser.add_argument("--quick", action="store_true", help="a tenth of it; speed is not judged")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for; the exit code."""
    asked = arguments()
    lines: list[Line] = []
    with measure.place(asked.dir) as place:
        print(measure.header(place.path), flush=True)
        scale = Scale(place, max(1, asked.repeat), asked.quick)
        for name in asked.only or BENCHMARKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                lines += BENCHMARKS[name](scale)
            except measure.Broken as fault:
                print(f"{name}: {fault}", file=sys.stderr)
                lines.append(Line(name, "broken", value=1, wanted=measure.NONE))
        return measure.show(lines, quick=asked.quick)


if __name__ == "__main__":
    sys.exit(main())
