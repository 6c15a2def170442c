"""doctor - is this file system fit to hold a spool, and how fast will it be?

Owns   the order of all checks and the probes of the file system: `examine` reports as it goes and
       takes a few seconds; `prove` is the short part that `spool init` insists on. The looks at
       which nothing is written are in ground, the races and the speed in rates.
Never  touches a task. It probes in a folder of its own in tmp/, and for a moment in one folder per
       state whose name starts with a dot; all are removed at the end, also after a failure.
Fails  FileSystemFault, from `prove` alone: what does not work here, and what to do.
       `examine` turns every refusal into a finding.
"""

from __future__ import annotations

import errno
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from spool.errors import FileSystemFault, SpoolError
from spool.queue import files, layout
from spool.queue.ground import LOOKS, Answer, Verdict, reason
from spool.queue.layout import State, Tree
from spool.queue.rates import claims, creations, speed
from spool.queue.submit import nest_name

NAME_EXPECTED, NAME_NEEDED = 255, 200  # bytes; a group taken over bears the names of two owners
SYNC_SLOW_S = 1.0
CLOCK_APART_S = 1.0
STEP_WATCHED_S = 0.05

BATCH_SYSTEMS = ("sbatch", "qsub", "bsub", "flux")
MPI_LAUNCHERS = ("srun", "mpiexec", "mpirun")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: the measured fact and, if it is not ok, what to do."""

    check: str
    verdict: Verdict
    says: str


def examine(tree: Tree, *, rate_s: float = 1.0) -> Iterator[Finding]:
    """Findings about the file system of a spool, each as soon as it is made.

    `rate_s` is how long each of the two measurements of speed lasts.
    """
    for name, look in LOOKS.items():
        yield _ask(name, look, tree)
    mine = nest_name()
    nest = tree.tmp(mine)
    try:
        yield (writable := _ask("writable", _open_nest, nest))
        if writable.verdict == "ok":
            yield _ask("moves", _moves, tree, mine)
            for name, probe in {**PROBES, "speed": partial(speed, seconds=rate_s)}.items():
                yield _ask(name, _in_fresh_folder, probe, f"{nest}/{name}")
    finally:
        left = _clear([nest, *_doorsteps(tree, mine).values()])
    if left:
        yield Finding("cleanup", "warn", f"could not be removed, do it by hand: {' '.join(left)}")
    yield _ask("tools", _tools)


def prove(tree: Tree) -> None:
    """Make sure that moves work here as every verb assumes. Raises FileSystemFault."""
    mine = nest_name()
    nest = tree.tmp(mine)
    try:
        _insist(tree, _ask("writable", _open_nest, nest))
        _insist(tree, _ask("moves", _moves, tree, mine))
        for name in ("occupied", "case"):
            _insist(tree, _ask(name, _in_fresh_folder, PROBES[name], f"{nest}/{name}"))
    finally:
        _clear([nest, *_doorsteps(tree, mine).values()])


def _insist(tree: Tree, finding: Finding) -> None:
    if finding.verdict == "fail":
        raise FileSystemFault(f"{tree.root}: cannot hold a spool: {finding.says}")


def _ask(name: str, check: Callable[..., Answer], *arguments: object) -> Finding:
    """A check's answer as a finding; what the system refuses is an answer too."""
    try:
        return Finding(name, *check(*arguments))
    except (OSError, SpoolError) as fault:
        return Finding(name, "fail", f"could not be tried: {reason(fault)}")


# -- the ground we probe on ----------------------------------------------------------------------


def _open_nest(nest: str) -> Answer:
    try:
        files.new_folder(nest)
    except FileNotFoundError:
        return "fail", f"{os.path.dirname(nest)}: is missing. Run: spool check"
    except (OSError, SpoolError) as fault:
        return "fail", f"nothing can be made here: {reason(fault)}"
    return "ok", f"{os.path.dirname(nest)} can be written"


def _doorsteps(tree: Tree, mine: str) -> dict[str, str]:
    """A folder of ours in each state; readers pass over names that start with a dot."""
    return {state.value: tree.group(state, f".{mine}") for state in State}


def _in_fresh_folder(probe: Callable[[str], Answer], here: str) -> Answer:
    files.new_folder(here)
    try:
        return probe(here)
    finally:
        files.remove_tree(here)


def _clear(folders: Iterable[str]) -> list[str]:
    """Remove folders whatever happens; those that could not be."""
    left = []
    for folder in folders:
        with suppress(OSError, SpoolError):
            files.remove_tree(folder)
        if files.exists(folder):
            left.append(folder)
    return left


# -- moves between the states --------------------------------------------------------------------


def _moves(tree: Tree, mine: str) -> Answer:
    """Move a folder with something in it from every state, and tmp, to every other and back."""
    doorsteps = _doorsteps(tree, mine)
    places = {"tmp": f"{tree.tmp(mine)}/moves", **doorsteps}
    try:
        for name, place in places.items():
            if why := _cannot_open(place):
                return "fail", f"{name}/ cannot be written: {why}"
        refused = {
            pair: why
            for pair in combinations(places, 2)
            if (why := _refuses(pair[0], places[pair[0]], places[pair[1]]))
        }
    finally:
        _clear(doorsteps.values())
    if refused:
        return of_refusals(refused)
    return "ok", f"by rename between all {len(places)} folders"


def _cannot_open(place: str) -> str:
    try:
        files.new_folder(place)
    except FileNotFoundError:
        return "it is missing. Run: spool check"
    except (OSError, SpoolError) as fault:
        return reason(fault)
    return ""


def _refuses(name: str, here: str, there: str) -> str:
    """Why a folder cannot be moved there and back; "" if it can."""
    source, target = f"{here}/from-{name}", f"{there}/from-{name}"
    try:
        if files.make_folder(source):
            files.write_new(f"{source}/inside", b"")
        moved = files.move(source, target) and files.move(target, source)
    except SpoolError as fault:
        return "they lie on two file systems or mounts" if _crosses(fault) else str(fault)
    except OSError as fault:
        return fault.strerror or str(fault)
    return "" if moved and files.is_plain(f"{source}/inside") else "what was moved has vanished"


def _crosses(fault: SpoolError) -> bool:
    cause = fault.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EXDEV


def of_refusals(refused: dict[tuple[str, str], str]) -> Answer:
    """Which states cannot exchange tasks, and why."""
    pairs = ", ".join(f"{one}/ and {other}/" for one, other in refused)
    reasons = ", ".join(sorted(set(refused.values())))
    what = "keep all folders in one directory of one mount, subvolume and quota project"
    return "fail", f"nothing can be moved between {pairs}: {reasons}; {what}"


# -- probes: each in a fresh folder --------------------------------------------------------------


def _filled(folder: str, content: bytes) -> str:
    files.new_folder(folder)
    files.write_new(f"{folder}/inside", content)
    return folder


def _occupied(here: str) -> Answer:
    """Whether a move to a name that is taken is refused, and both sides keep what they hold."""
    one, other = _filled(f"{here}/one", b"one"), _filled(f"{here}/other", b"other")
    try:
        files.move(one, other)
    except FileExistsError:
        pass
    else:
        what = "the target's files are lost; put the spool on another file system"
        return "fail", f"a move onto a folder with content is not refused: {what}"
    intact = files.read(f"{one}/inside") == b"one" and files.read(f"{other}/inside") == b"other"
    if not intact:
        return "fail", "a refused move loses files; put the spool on another file system"
    return "ok", "a move onto a folder with content is refused, and nothing is lost"


def _empty(here: str) -> Answer:
    one, other = _filled(f"{here}/one", b"one"), f"{here}/other"
    files.new_folder(other)
    try:
        files.move(one, other)
    except FileExistsError:
        return "note", "a move onto an empty folder is refused, which is more than spool needs"
    return "ok", "a move onto an empty folder replaces it, as POSIX says; no task is ever empty"


def _sync(here: str) -> Answer:
    """Whether files and folders can be made durable one by one."""
    costs = []
    for number in range(5):
        before = time.monotonic()
        files.write_new(f"{here}/{number}", b"durable", sync=True)
        files.sync(here)
        costs.append(time.monotonic() - before)
    return "ok", f"a file and its folder are durable in {statistics.median(costs) * 1e3:.2g} ms"


def _syncfs(here: str) -> Answer:
    files.write_new(f"{here}/file", b"durable")
    before = time.monotonic()
    files.sync_all(here)
    return of_syncfs(time.monotonic() - before)


def of_syncfs(cost_s: float) -> Answer:
    """Whether flushing the whole file system at once is affordable."""
    if cost_s <= SYNC_SLOW_S:
        return "ok", f"the whole file system was flushed in {cost_s * 1e3:.2g} ms"
    why = "it flushes what everybody has written from this node"
    what = f'set sync = "files" under [launcher] in {layout.SETTINGS}'
    return "warn", f"flushing the whole file system took {cost_s:.1f} s, as {why}: {what}"


def _listing(here: str) -> Answer:
    """Whether a listing tells folders from files by itself.

    The folder is removed between the listing and the question, so that a second look would fail.
    """
    files.new_folder(f"{here}/folder")
    entries = list(files.scan(here))
    files.remove_folder(f"{here}/folder")
    if any(entry.is_dir(follow_symlinks=False) for entry in entries):
        return "ok", "listings tell folders from files without asking again (d_type)"
    what = "telling folders from files costs a call for each; keep the number of tasks small"
    return "warn", f"listings do not carry types (d_type): {what}"


def _case(here: str) -> Answer:
    files.new_folder(f"{here}/case")
    try:
        files.new_folder(f"{here}/CASE")
    except FileExistsError:
        return "fail", "names that differ only by case are the same here; ids would be mixed up"
    if set(files.names(here)) != {"case", "CASE"}:
        return "fail", "names that differ only by case are not both listed; ids would be mixed up"
    return "ok", "names that differ only by case are different"


def _odd_names(here: str) -> Answer:
    odd = os.fsdecode(b"odd-\xff")
    with suppress(OSError):
        files.write_new(f"{here}/{odd}", b"")
    if odd in files.names(here):
        return "ok", "names that are no UTF-8 can be made and listed"
    return "note", "names that are no UTF-8 cannot be made: programs must not write such files"


def _long_names(here: str) -> Answer:
    for length in (NAME_EXPECTED, NAME_NEEDED):
        with suppress(OSError):
            files.write_new(f"{here}/{'n' * length}", b"")
            return of_longest_name(length)
    return of_longest_name(0)


def of_longest_name(length: int) -> Answer:
    """Whether names of `length` bytes, the longest that could be made, are enough."""
    if length >= NAME_EXPECTED:
        return "ok", f"a name may have {length} bytes"
    if length >= NAME_NEEDED:
        return "note", f"a name may have {length} bytes but not {NAME_EXPECTED}, which is enough"
    return "fail", f"a name may not have {NAME_NEEDED} bytes; put the spool elsewhere"


def _links_count(here: str) -> Answer:
    """Whether a folder's link count tells how many folders it holds."""
    before = _asked_afresh(here).st_nlink
    for number in range(3):
        files.new_folder(f"{here}/{number}")
    more = _asked_afresh(here).st_nlink - before
    if more == 3:
        return "ok", "the link count of a folder counts the folders in it"
    return "note", f"three new folders changed the link count by {more}: only listings count here"


def _asked_afresh(path: str) -> os.stat_result:
    """What the server says of a path: opening asks it anew, where stat may answer from a cache."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.fstat(file)
    finally:
        os.close(file)


def _clock(here: str) -> Answer:
    path = f"{here}/file"
    before = time.time()
    files.write_new(path, b"0")
    written = _asked_afresh(path).st_mtime
    return of_clock(written - (before + time.time()) / 2, _step(path))


def _step(path: str) -> float | None:
    """By how much the time of a file moves on, in seconds; None if it did not while we watched."""
    first = now = _asked_afresh(path).st_mtime_ns
    end = time.monotonic() + STEP_WATCHED_S
    while now == first and time.monotonic() < end:
        files.overwrite(path, b"1")
        now = _asked_afresh(path).st_mtime_ns
    return (now - first) / 1e9 if now != first else None


def of_clock(ahead_s: float, step_s: float | None) -> Answer:
    """How far the clock that stamps files is from ours; no lease or deadline depends on it."""
    limit = STEP_WATCHED_S * 1e3
    step = f"more than {limit:.0f} ms" if step_s is None else f"{step_s * 1e3:.2g} ms"
    if abs(ahead_s) <= CLOCK_APART_S:
        return "ok", f"files are stamped {ahead_s:+.3f} s from this clock, in steps of {step}"
    said = f"files are stamped {ahead_s:+.1f} s from this machine's clock, in steps of {step}"
    return "note", f"{said}; spool does not depend on it, but ls -l and make may mislead"


def _hard_links(here: str) -> Answer:
    one, other = _filled(f"{here}/one", b""), f"{here}/other"
    files.new_folder(other)
    what = "a delivery that comes twice cannot be told; put the spool on another file system"
    try:
        first = files.link(f"{one}/inside", f"{other}/name")
    except OSError as fault:
        return "fail", f"hard links are refused ({fault.strerror}), so {what}"
    if not first or files.link(f"{one}/inside", f"{other}/name"):
        return "fail", f"a hard link onto a name that is taken is not refused, so {what}"
    return "ok", "a file can be linked to a second folder, and only once to a name"


# -- tools ---------------------------------------------------------------------------------------


def _tools() -> Answer:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    machine = f"Python {sys.version.split()[0]}, {cores} cores, {memory:.0f} GiB memory"
    batch = _found(BATCH_SYSTEMS) or "none, so launchers run on this machine only"
    mpi = _found(MPI_LAUNCHERS) or "none"
    return "note", f"{machine}; batch system: {batch}; MPI launchers: {mpi}"


def _found(commands: tuple[str, ...]) -> str:
    return ", ".join(command for command in commands if shutil.which(command))


PROBES: dict[str, Callable[[str], Answer]] = {
    "occupied": _occupied,
    "empty": _empty,
    "case": _case,
    "odd names": _odd_names,
    "long names": _long_names,
    "link counts": _links_count,
    "listings": _listing,
    "clock": _clock,
    "hard links": _hard_links,
    "creations": creations,
    "claims": claims,
    "fsync": _sync,
    "syncfs": _syncfs,
}
