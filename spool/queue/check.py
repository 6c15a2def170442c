"""check - find, explain and repair what a crash, or a person, left inconsistent.

Owns   the list of what can be wrong, and what is done about it.
Never  acts on one look, and never touches a live owner's tasks.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

from spool.config import Settings, trusted_users
from spool.errors import ManifestError, SpoolError
from spool.queue import (
    advance,
    claim,
    files,
    layout,
    limits,
    owner,
    parents,
    processes,
    remains,
    shape,
    takeover,
    tasks,
)
from spool.queue.layout import FINAL, State, Tree
from spool.queue.owner import Owner
from spool.queue.parents import Lookup
from spool.queue.place import Place
from spool.queue.takeover import Observer, Verdict
from spool.queue.tasks import Spot

PAUSE_S = 0.2
OVERDUE_S = 180.0
AT_ONCE = 1_000
_BELONGS = "belongs in "


class Finding(NamedTuple):
    """One thing that is wrong: where, what, what mends it, and whether that was done."""

    where: str
    what: str
    mend: str
    repaired: bool = False


def check(tree: Tree, settings: Settings, *, repair: bool, deep: bool) -> Iterator[Finding]:
    """Everything that is wrong. `deep` opens finished tasks too; `repair` mends what it can."""
    yield from _folders(tree, repair)
    with _alone(tree) if repair else nullcontext(), _checker(tree, settings) as me:
        yield from _owners(me, repair)
        yield from _of_services(me, repair)
        yield from _leftovers(me, repair)
        yield from _queued(me, repair)
        yield from _final(me, repair, deep)
        yield from _door(tree)
        yield from _tokens(tree, repair)
        if repair:
            for path in advance.empty_groups(tree):
                files.remove_folder(path)


@contextmanager
def _alone(tree: Tree) -> Iterator[None]:
    """Two repairs at once would only do each other's work; where locks fail, they may."""
    import portalocker

    with open(tree.settings, "rb") as file:
        with suppress(portalocker.LockException):
            try:
                portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
            except portalocker.AlreadyLocked:
                raise SpoolError(f"{tree.root}: another check --repair is at work") from None
        yield


@contextmanager
def _checker(tree: Tree, settings: Settings) -> Iterator[Owner]:
    me = Owner.start(tree, settings, "check")
    try:
        yield me
    finally:
        me.end()


def _folders(tree: Tree, repair: bool) -> Iterator[Finding]:
    for name in layout.FOLDERS:
        path = tree.folder(name)
        if not files.is_folder(path):
            done = repair and files.make_folder(path)
            yield Finding(path, "is missing", "made again", done)


def _tokens(tree: Tree, repair: bool) -> Iterator[Finding]:
    """Tokens of limits that are nowhere: a person or a power cut has removed them."""
    found = limits.lost(tree)
    done = set(limits.restore(tree)) if repair and found else set()
    for token in found:
        yield Finding(tree.folder(layout.LIMITS), f"{token} is lost", "made again", token in done)


# -- owners --------------------------------------------------------------------------------------


def _owners(me: Owner, repair: bool) -> Iterator[Finding]:
    """RUNNING groups of dead owners, and records of owners that died before or after them."""
    tree, observer = me.tree, Observer(me)
    groups = tasks.groups(tree, State.RUNNING)
    for group in groups:
        if group != me.name and observer.verdict(group) is Verdict.DEAD:
            yield _dead_owner(me, group, repair)
    held = {name for group in groups for name in (group.partition("~")[0], takeover.holder(group))}
    for name in sorted(files.names(tree.folder("launchers"))):
        if name not in held and not layout.is_post(name):
            yield from _dead_record(me, name, repair)


def _dead_owner(me: Owner, group: str, repair: bool) -> Finding:
    path = me.tree.group(State.RUNNING, group)
    count = len(files.names(path))
    if repair:
        takeover.take_over(me, group, trusted_users())
    done = repair and not files.holds(path)
    mend = "taken over: each task went where its history says"
    return Finding(path, f"its owner is dead and holds {count} tasks", mend, done)


def _dead_record(me: Owner, name: str, repair: bool) -> Iterator[Finding]:
    record = owner.read_record(me.tree, name)
    verdict = takeover.on_this_host(name, record, owner.here())
    if record.get("ended") or verdict is not Verdict.DEAD:
        return
    path = me.tree.owner(name)
    if repair:
        files.remove_tree(path)
    yield Finding(path, "its owner died while it began or ended", "record removed", repair)


def _of_services(me: Owner, repair: bool) -> Iterator[Finding]:
    observer = Observer(me)

    def is_dead(name: str) -> bool:
        return observer.verdict(name) is Verdict.DEAD

    for one in remains.found(me.tree, is_dead, repair=repair):
        yield Finding(*one)


def _leftovers(me: Owner, repair: bool) -> Iterator[Finding]:
    """Tasks being built by a process that is gone: nobody was ever told that they exist."""
    tree, here = me.tree, owner.here()
    for name in sorted(files.names(tree.tmp())):
        parts = layout.parse_owner(f"tmp.{name}")
        path = tree.tmp(name)
        if parts is None or parts.boot != here.boot:
            what = "was left by another host or boot, which cannot be asked from here"
            yield Finding(path, what, f"if that process is gone: rm -r {path}")
        elif parts.pid != here.pid and processes.process_start(parts.pid) is None:
            if repair:
                _discard(path)
            what = "was being built by a process that is gone; nothing in it was promised"
            yield Finding(path, what, "removed", repair)


def _discard(path: str) -> None:
    if files.is_folder(path):
        files.remove_tree(path)
    else:
        files.unlink(path)


# -- tasks ---------------------------------------------------------------------------------------


def _queued(me: Owner, repair: bool) -> Iterator[Finding]:
    """READY and WAITING: damaged, misfiled, overdue, or there a second time."""
    alive = parents.unfinished(me.tree)
    attended = _is_attended(me)
    for suspects in _slices(me.tree, (State.READY, State.WAITING), alive):
        for spot, what in _twice(me.tree, suspects, alive):
            waits = layout.is_parent_group(spot.state, spot.group)
            if attended and waits and what.startswith(_BELONGS):
                continue  # its parent has just ended; who ended it, or a sweep, moves it on
            done = repair and _mend(me, spot, alive)
            yield Finding(spot.path(me.tree), what, "moved where its history says", done)
    if repair:
        advance.catch_up(me)  # what was mended may itself have ended


def _is_attended(me: Owner) -> bool:
    """Whether an owner is at work that moves on what waited for others."""
    observer, groups = Observer(me), tasks.groups(me.tree, State.RUNNING)
    kinds = {group: takeover.holder(group).partition(".")[0] for group in groups}
    working = (group for group, kind in kinds.items() if kind in ("launcher", "stager"))
    return any(observer.verdict(group) is not Verdict.DEAD for group in working)


def _slices(
    tree: Tree, states: tuple[State, ...], alive: Container[str]
) -> Iterator[list[tuple[Spot, str]]]:
    """What looks wrong at first sight, so many at a time."""
    suspects: list[tuple[Spot, str]] = []
    for spot in tasks.spots(tree, states):
        if what := trouble(tree, spot, alive):
            suspects.append((spot, what))
        if len(suspects) >= AT_ONCE:
            yield suspects
            suspects = []
    yield suspects


def _twice(
    tree: Tree, suspects: list[tuple[Spot, str]], alive: Container[str]
) -> list[tuple[Spot, str]]:
    """Those of which a second look, a little later, says the same."""
    if not suspects:
        return []
    time.sleep(PAUSE_S)
    return [(spot, what) for spot, what in suspects if trouble(tree, spot, alive) == what]


def trouble(tree: Tree, spot: Spot, alive: Container[str] = ()) -> str:
    """What is wrong with a queued task, "" if nothing is or it is gone.

    alive are unfinished tasks: other parents are searched for.
    """
    path = spot.path(tree)
    if not files.exists(path):
        return ""
    if spot.state is State.READY and not _is_lane(spot.group):
        return f"lies in {spot.group!r}, which is no lane"
    if not files.is_folder(path):
        return "is no directory"
    if layout.parse_id(spot.id) is None:
        return "bears no task id; drop such a directory into CREATED instead"
    try:
        task = tasks.load(path, spot.id)
    except FileNotFoundError:
        return ""
    except (ManifestError, OSError) as fault:
        return f"cannot be read: {fault}"
    if other := _elsewhere(tree, spot):
        return f"lies in {other} too"
    return _misfiled(tree, task, spot, alive)


def _is_lane(group: str) -> bool:
    try:
        shape.parse(group)
    except ValueError:
        return False
    return True


def _elsewhere(tree: Tree, spot: Spot) -> str:
    shard = layout.shard_of(spot.id)
    for state in (State.FINISHED, State.CANCELLED):
        if files.exists(tree.task(state, shard, spot.id)):
            return f"{state}/{shard}"
    return ""


def _misfiled(tree: Tree, task: tasks.Task, spot: Spot, alive: Container[str]) -> str:
    now = time.time()
    moment = layout.until_moment(spot.group)
    if moment is not None and moment <= now <= moment + OVERDUE_S:
        return ""  # due: the next sweep moves it
    kin = Lookup(tree, closely=True, alive=alive)
    place = claim.place_of(tree, task, now, spot.group, kin)
    if (place.state, place.group) == (spot.state, spot.group):
        return ""
    return f"{_BELONGS}{place.state}/{place.group}"


def _mend(me: Owner, spot: Spot, alive: Container[str]) -> bool:
    """Claim a troubled task and put it where it belongs, or reject it with the reason."""
    try:
        if not files.move(spot.path(me.tree), me.claim_path(spot.id)):
            return False
    except (PermissionError, FileExistsError):
        return False
    if layout.parse_id(spot.id) is None or not files.is_folder(me.claim_path(spot.id)):
        claim.reject(me, spot.id, f"was found in {spot.state}/{spot.group} without a task id")
        return True
    if other := _elsewhere(me.tree, spot):
        claim.set_aside(me, spot.id, f"{other} holds a task of this id")
        return True
    if (task := claim.read_any(me, spot.id)) is not None:
        claim.settle(me, task, Lookup(me.tree, closely=True, alive=alive))
    return True


def _final(me: Owner, repair: bool, deep: bool) -> Iterator[Finding]:
    """Final states: filed under another shard than the id says; with `deep`, unreadable."""
    for spot in tasks.spots(me.tree, FINAL):
        path = spot.path(me.tree)
        parts = layout.parse_id(spot.id)
        if parts is None:
            yield Finding(path, "bears no task id", "move it out of the spool by hand")
        elif spot.group.rpartition("@")[2] != parts.shard:
            yield Finding(path, *_refile(me, spot, parts.shard, repair))
        elif deep and (what := _unreadable(me.tree, spot)):
            yield Finding(path, what, "look at it; its files are as the program left them")


def _refile(me: Owner, spot: Spot, shard: str, repair: bool) -> tuple[str, str, bool]:
    label = spot.group.rpartition("@")[0]
    group = layout.failed_group(label, shard) if label else shard
    done = False
    if repair and files.move(spot.path(me.tree), me.claim_path(spot.id)):
        place = Place(spot.state, group)
        done = claim.hand_on(me, spot.id, place, sync=True)
    return f"is filed under {spot.group}, its id says {shard}", f"moved to {group}", done


def _unreadable(tree: Tree, spot: Spot) -> str:
    if spot.state is State.FAILED and spot.group.startswith(("rejected@", "duplicate@")):
        return ""
    try:
        task = tasks.load(spot.path(tree), spot.id)
    except FileNotFoundError:
        return ""
    except (ManifestError, OSError) as fault:
        return f"cannot be read: {fault}"
    if task.story.damaged:
        return f"its history has {task.story.damaged} damaged lines"
    if spot.state is State.FINISHED and task.story.exit is None:
        return "is FINISHED, but no exit was recorded"
    return ""


def _door(tree: Tree) -> Iterator[Finding]:
    for spot in tasks.arrivals(tree):
        path = spot.path(tree)
        if not files.is_folder(path):
            mend = "put it into a task directory, or remove it"
            yield Finding(path, "is no directory", mend)
        elif not files.exists(f"{path}/{layout.MANIFEST}"):
            what = f"has no {layout.MANIFEST}: under way, or late data of a task taken up already"
            yield Finding(path, what, "wait, add the manifest, or remove it")


def repaired_all(findings: list[Finding]) -> bool:
    """Whether nothing is left to do."""
    return all(finding.repaired for finding in findings)
