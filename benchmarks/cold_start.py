"""cold_start - how long a person waits for `spool submit -- true`, against bare imports."""

from __future__ import annotations

import compileall
import os
import sys
from dataclasses import replace

import measure
import spools
from measure import Line, Pairs, Scale

import spool

PAIRS = 21
SHM = "/dev/shm"
IMPORTS = [sys.executable, "-c", "import click, msgspec"]


def lines(scale: Scale) -> list[Line]:
    """On the benchmark's file system, which must make the task durable; and in memory."""
    kind = measure.file_system(scale.place.path)
    found = [_line(kind, pairs(scale), bound=True)]
    if kind != "tmpfs" and os.path.isdir(SHM) and os.access(SHM, os.W_OK):
        with measure.place(SHM) as place:
            found.append(_line("tmpfs", pairs(replace(scale, place=place)), bound=False))
    return found


def _line(kind: str, found: Pairs, *, bound: bool) -> Line:
    return Line(
        f"cold start: submit -- true on {kind} vs import click, msgspec",
        measure.milliseconds(found.mine),
        measure.milliseconds(found.base),
        found.ratio,
        measure.at_most(1.3) if bound else None,
    )


def pairs(scale: Scale) -> Pairs:
    """Seconds of both, alternately, all in one small spool, after one of each to warm up.

    An installed package is compiled, as the libraries are; a development tree may not be.
    """
    compileall.compile_dir(os.path.dirname(spool.__file__), quiet=1)
    folder = scale.place.fresh("cold-start")
    tree = spools.make(folder)
    words = spools.command(tree, "submit", "--", "true")
    found = Pairs([], [])
    os.sync()
    for number in range(1 + (PAIRS // 4 if scale.quick else PAIRS)):
        theirs = measure.run(IMPORTS, folder).seconds
        ours = measure.run(words, folder).seconds
        if number:
            found.theirs.append(theirs)
            found.ours.append(ours)
    return found
