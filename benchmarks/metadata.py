"""metadata - how many metadata operations a no-op task costs over its life, counted by strace.

On a parallel file system each of them may cost a millisecond, so their number is a budget. Counted
are those that succeeded inside the spool: mkdir, rename, link, unlink, rmdir and creating opens.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator

import measure
import spools
from measure import Line, Scale

from spool.queue.layout import Tree

OPENS = ("open", "openat", "creat")
OTHERS = ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat")
REMOVALS = ("unlink", "unlinkat", "rmdir")
TRACED = ",".join(f"?{call}" for call in OPENS + OTHERS + REMOVALS)
BUDGET = 8.0

_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_PATH = re.compile(r'(?:AT_FDCWD<(?P<here>[^>]*)>, |\d+<(?P<folder>[^>]*)>, )?"(?P<path>[^"]*)"')


def lines(scale: Scale) -> list[Line]:
    """Operations for each task: submitted in bulk, then run by one launcher."""
    name = "metadata: operations per no-op task"
    if not shutil.which("strace"):
        return [Line(name, "", note="skipped: no strace. Run: apt-get install -y strace")]
    count = scale.tasks(1000)
    folder = scale.place.fresh("metadata")
    tree = spools.make(folder)
    path = spools.write_tasks(folder, count)
    submitting = traced(tree, spools.command(tree, "submit", "--from", path), f"{folder}/submit")
    running = traced(tree, spools.launch(tree, "--cores", "2"), f"{folder}/launcher")
    wrong = spools.wrongly_recorded(tree, count)
    whole = (submitting + running).total() / count
    return [
        Line(
            f"{name}, {count:,} tasks",
            f"{whole:.2f}",
            value=whole,
            wanted=measure.at_most(BUDGET, timed=False),
        ),
        Line("metadata: of it, submit --from", _figure(submitting, count)),
        Line("metadata: of it, launcher", _figure(running, count)),
        Line(
            "metadata: tasks not recorded just once", str(wrong), value=wrong, wanted=measure.NONE
        ),
    ]


def _figure(found: Counter[str], count: int) -> str:
    kinds = ", ".join(f"{kind} {number / count:.2f}" for kind, number in found.most_common())
    return f"{found.total() / count:.2f} ({kinds})"


def traced(tree: Tree, words: list[str], logs: str) -> Counter[str]:
    """Run a command under strace, a log for each process; its operations inside the spool."""
    os.mkdir(logs)
    strace = ["strace", "-ff", "-y", "-qq", "-s", "4096", "-e", "signal=none", "-e"]
    measure.run([*strace, f"trace={TRACED}", "-o", f"{logs}/log", *words], logs)
    found: Counter[str] = Counter()
    for name in os.listdir(logs):
        with open(f"{logs}/{name}", errors="replace") as log:
            found.update(operations(log, tree.root))
    return found


def operations(log: Iterator[str], root: str) -> Iterator[str]:
    """The kind of each metadata operation inside `root` that a log tells of."""
    for line in log:
        if not (call := _CALL.match(line)) or int(call[3]) < 0:
            continue
        name, arguments = call[1], call[2]
        if name in OPENS and name != "creat" and "O_CREAT" not in arguments:
            continue
        if any(path.startswith(f"{root}/") for path in paths(arguments)):
            yield kind(name)


def paths(arguments: str) -> Iterator[str]:
    """The paths a call names, made whole."""
    for found in _PATH.finditer(arguments):
        yield os.path.join(found["here"] or found["folder"] or "/", found["path"])


def kind(call: str) -> str:
    """The operation behind a call's name."""
    if call in OPENS:
        return "create"
    return re.sub(r"at2?$", "", call)
