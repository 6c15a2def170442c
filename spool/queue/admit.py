"""admit - the door: what was dropped into CREATED/ becomes a task, or is rejected with a reason.

Owns   every move out of CREATED/ by a launcher or service; seen/SHARD/ID of delivered ids.
Never  takes up what is still changing; never loses what it rejects.
Fails  LeaseLost. A bad arrival is no failure: it lands in FAILED/rejected.

An arrival is a directory with a manifest. It is complete once its declared inputs are there and
it has been quiet: two looks, `quiet` apart on our own clock, saw the same names, sizes, change
times and inodes, and no temporary names of rsync, scp and the like. Inputs with a sha256 replace
the wait by proof. We claim it first as ID~new (ID@SOURCE~new from a source's door, so that a taker
knows it too), look again, check it, write `arrived`, sync, and move it on.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spool import units
from spool.errors import ManifestError, SpoolError
from spool.queue import (
    advance,
    apps,
    claim,
    elements,
    faults,
    files,
    history,
    layout,
    manifest,
    parents,
    tasks,
    trust,
)
from spool.queue.claim import printable
from spool.queue.complete import (
    Print,
    below,
    fingerprint,
    kind_of,
    may_start,
    peek,
    wrong_input,
)
from spool.queue.manifest import Manifest
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.submit import chunk_mark, nest_name
from spool.queue.tasks import Spot

MOST_AT_ONCE = 1_000


@dataclass(slots=True)
class Watched:
    """One arrival under way: its last fingerprint, since when, and when to look again."""

    seen: Print
    since: float
    next_look: float


@dataclass(slots=True)
class Arrival:
    """One arrival we have claimed: `held` is its name in our folder, `name` what it was called.

    again says that its admission was begun before, so that an `arrived` line in it may be ours.
    """

    held: str
    name: str
    source: str
    watched: Watched | None = None
    again: bool = False


class Door:
    """Watches CREATED/ for one owner and admits what is complete."""

    def __init__(
        self, owner: Owner, trusted: frozenset[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.owner = owner
        self.tree = owner.tree
        self.trusted = trusted
        self.clock = clock
        self.quiet = owner.settings.door_quiet_s
        self.watched: dict[Spot, Watched] = {}
        self.holding: list[Arrival] = []
        self.under_way = 0

    def look(self) -> int:
        """One round; how many arrivals were admitted or rejected."""
        complete = [self._claim(spot) for spot in self._complete()]
        ripe = [arrival for arrival in complete if arrival]
        ripe += self._quiet_again()
        if not ripe:
            return 0
        ready = [arrival for arrival in ripe if self._still(arrival)]
        try:
            return admit_all(self.owner, ready, self.trusted)
        except (SpoolError, OSError):
            self._keep(ready)
            raise

    def _keep(self, arrivals: list[Arrival]) -> None:
        """Hold on to what could not be admitted now, for the disk is full: it is tried again."""
        now = self.clock()
        for arrival in arrivals:
            if files.exists(self.owner.claim_path(arrival.held)):
                arrival.watched, arrival.again = Watched((), now, now + 1.0), True
                self.holding.append(arrival)

    def _complete(self) -> list[Spot]:
        """Arrivals that have come to rest, or can never become tasks."""
        complete: list[Spot] = []
        present: set[Spot] = set()
        for spot in tasks.arrivals(self.tree):
            if len(complete) >= MOST_AT_ONCE:
                break
            present.add(spot)
            if self._is_complete(spot):
                complete.append(spot)
        self.watched = {spot: seen for spot, seen in self.watched.items() if spot in present}
        self.under_way = len(self.watched)
        return complete

    def _is_complete(self, spot: Spot) -> bool:
        path = spot.path(self.tree)
        kind = kind_of(path)
        if kind in ("gone", "file"):
            return False
        if kind != "folder":
            return True  # a link, FIFO or device: claimed, and rejected with that reason
        if not files.exists(f"{path}/{layout.MANIFEST}"):
            return False
        watched, now = self.watched.get(spot), self.clock()
        if watched and now < watched.next_look:
            return False
        self.watched[spot] = self._next(watched, fingerprint(path), now)
        at_rest = now - self.watched[spot].since >= self.quiet
        return may_start(path, at_rest)

    def _next(self, watched: Watched | None, seen: Print | None, now: float) -> Watched:
        """Count on from the last look if nothing changed, else begin again."""
        pause = max(min(1.0, self.quiet / 4), 20 * (self.clock() - now))
        if seen is None or watched is None or watched.seen != seen:
            return Watched(seen or (), now, now + pause)
        return Watched(seen, watched.since, now + pause)

    def _claim(self, spot: Spot) -> Arrival | None:
        """Take an arrival into our folder; None if it is gone or not ours to move."""
        seen = self.watched.pop(spot, None)
        source = spot.group.removeprefix("@")
        held = _held_name(self._id_for(spot), source)
        try:
            if not files.move(spot.path(self.tree), self.owner.claim_path(held)):
                return None
        except (PermissionError, FileExistsError):
            self.watched[spot] = Watched((), self.clock(), self.clock() + 60)
            return None
        return Arrival(held, spot.id, source, seen)

    def _id_for(self, spot: Spot) -> str:
        if layout.parse_id(spot.id):
            return spot.id
        wanted = peek(spot.path(self.tree))
        name = wanted.name if wanted and wanted.name else layout.as_name(printable(spot.id))
        mark = chunk_mark(wanted) if wanted else ""
        return layout.new_id(name, layout.lone_shard(time.time())) + mark

    def _still(self, arrival: Arrival) -> bool:
        """Look once more now that it is ours; one that still changes is kept and watched."""
        before = arrival.watched
        if before is None or not before.seen:
            return True
        seen = fingerprint(self.owner.claim_path(arrival.held))
        if seen == before.seen:
            return True
        now = self.clock()
        arrival.watched = Watched(seen or (), now, now + 1.0)
        self.holding.append(arrival)
        return False

    def _quiet_again(self) -> list[Arrival]:
        """What we hold that has come to rest since."""
        ripe, now = [], self.clock()
        for arrival in self.holding:
            assert arrival.watched is not None
            seen = fingerprint(self.owner.claim_path(arrival.held))
            arrival.watched = self._next(arrival.watched, seen, now)
            if now - arrival.watched.since >= self.quiet:
                ripe.append(arrival)
        self.holding = [arrival for arrival in self.holding if arrival not in ripe]
        return ripe


def _held_name(task_id: str, source: str) -> str:
    """The name of an arrival in our folder; a source whose name is none is rejected anyway."""
    return layout.arriving(task_id, source if layout.is_name(source) else "")


# -- from claimed to queued ----------------------------------------------------------------------


def admit_all(owner: Owner, arrivals: list[Arrival], trusted: frozenset[int]) -> int:
    """Check, mark, sync once and move on all that we hold; how many were dealt with."""
    marked = []
    for arrival in arrivals:
        try:
            task_id = _mark(owner, arrival, trusted)
        except (ManifestError, OSError) as fault:
            _reject(owner, arrival, fault)
        else:
            marked.append((arrival, task_id))
    if marked:
        files.sync_all(owner.claims)
    places = [_moved_on(owner, arrival, task_id) for arrival, task_id in marked]
    claim.sync_places(owner.tree, [place for place in places if place])
    under = {place.group for place in places if place and layout.parse_id(place.group)}
    advance.after(owner, list(parents.ended(owner.tree, under)))
    return len(arrivals)


def _moved_on(owner: Owner, arrival: Arrival, task_id: str) -> Place | None:
    try:
        return _move_on(owner, arrival, task_id)
    except (ManifestError, OSError) as fault:
        _reject(owner, arrival, fault)
        return None


def _reject(owner: Owner, arrival: Arrival, fault: ManifestError | OSError) -> None:
    """File an arrival under FAILED/rejected, unless somebody removed it meanwhile.

    Raises OSError for a fault of the moment, which is none of the arrival's.
    """
    if isinstance(fault, OSError) and faults.is_passing(fault):
        raise fault
    if not files.exists(owner.claim_path(arrival.held)):
        return
    reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
    plain = _held_name(_id_of(arrival.held), "")
    if plain != arrival.held:
        files.move(owner.claim_path(arrival.held), owner.claim_path(plain))
    called = printable(arrival.name)
    claim.reject(owner, plain, reason, called=called, source=printable(arrival.source))


def _id_of(held: str) -> str:
    return layout.parse_arriving(held)[0]


def readmit(owner: Owner, held: str, trusted: frozenset[int]) -> None:
    """Finish what a dead owner began: an arrival that it had claimed, as ID~new."""
    source = layout.parse_arriving(held)[1]
    called = _id_of(held)
    if told := _own_story(owner.claim_path(held)):
        called = str(told.get("called", called))
    admit_all(owner, [Arrival(held, called, source, again=True)], trusted)


def _mark(owner: Owner, arrival: Arrival, trusted: frozenset[int]) -> str:
    """Check an arrival and write `arrived` into it; its id. Raises ManifestError, OSError."""
    path = owner.claim_path(arrival.held)
    if reason := _forbidden(path, arrival):
        raise ManifestError(reason)
    try:
        raw = trust.read_trusted(path, layout.MANIFEST, trusted)
    except FileNotFoundError:
        raise ManifestError(f"holds no {layout.MANIFEST}") from None
    begun = arrival.again and _own_story(path)
    if not begun:
        for brought in (layout.HISTORY, layout.OUTPUT, layout.ERRORS):
            if files.exists(f"{path}/{brought}"):
                files.move_aside(f"{path}/{brought}")
    _no_twins(raw)
    wanted = manifest.parse(raw, layout.MANIFEST)
    if wanted.replaces:
        raise ManifestError("key 'replaces': is not possible here; use: spool submit --replaces")
    filled = apps.additions(owner.tree, wanted)
    _parents_exist(owner, wanted)
    if wanted.array and not begun:
        elements.check_arrival(path, _id_of(arrival.held), wanted)
    for item in wanted.input_list:
        if reason := wrong_input(path, item):
            raise ManifestError(reason)
    if not begun:
        _write_arrived(owner, arrival, path)
    if filled:  # by a taker perhaps once more: the same again
        line = history.line("change", set=filled, by=owner.name, reason=f"app {wanted.app}")
        claim.append(owner, f"{path}/{layout.HISTORY}", line)
    return _id_of(arrival.held)


def _parents_exist(owner: Owner, wanted: Manifest) -> None:
    for parent in wanted.after:
        if not parents.is_known(owner.tree, parent):
            raise ManifestError(f"key 'after': there is no task {parent!r}")


def _forbidden(path: str, arrival: Arrival) -> str:
    """Why this can be no task's directory; "" if it can."""
    if any(not char.isprintable() for char in arrival.name):
        return f"its name {printable(arrival.name)!r} holds characters that are no plain text"
    if not files.is_folder(path):
        return "is a link, a FIFO or a device, not a directory"
    if arrival.source and not layout.is_name(arrival.source):
        return f"its door '@{printable(arrival.source)}' is named after no source"
    try:
        for name, about in below(path):
            if reason := _forbidden_inside(about.st_mode, bool(arrival.source)):
                return f"holds {printable(name)!r}, {reason}"
    except OSError as fault:
        inside = printable(str(fault.filename or path)[len(path) + 1 :])
        return f"holds {inside[:80]!r}, which cannot be read: {fault.strerror}"
    return ""


def _forbidden_inside(mode: int, from_source: bool) -> str:
    if stat.S_ISLNK(mode):
        return "a link; links are not taken from a source's door" if from_source else ""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "which is a FIFO, a socket or a device"
    return ""


def _no_twins(raw: bytes) -> None:
    """Refuse a key that stands twice: two readers would understand two different tasks."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twins = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}
        if twins:
            raise ManifestError(f"{layout.MANIFEST}: key {min(twins)!r} stands twice")
        return dict(pairs)

    try:
        json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return  # manifest.parse says it better


def _own_story(path: str) -> dict[str, Any] | None:
    """The `arrived` line of an admission of this very directory; None: there was none yet."""
    if not files.is_plain(f"{path}/{layout.HISTORY}"):
        return None
    arrived = history.fold(files.read(f"{path}/{layout.HISTORY}")).arrived
    mine = arrived is not None and arrived.get("inode") == os.lstat(path).st_ino
    return arrived if mine else None


def _write_arrived(owner: Owner, arrival: Arrival, path: str) -> None:
    line = history.line(
        "arrived",
        nonce=layout.random_tails(1)[0],
        called=printable(arrival.name),
        source=arrival.source,
        inode=os.lstat(path).st_ino,
        by=owner.name,
    )
    claim.append(owner, f"{path}/{layout.HISTORY}", line)


def _move_on(owner: Owner, arrival: Arrival, task_id: str) -> Place | None:
    """Move a marked arrival to its place, or set a duplicate aside."""
    path = owner.claim_path(arrival.held)
    if arrival.name == task_id and (reason := _delivered_before(owner, path, task_id)):
        files.move(path, owner.claim_path(task_id))
        claim.set_aside(owner, task_id, reason)
        return None
    task = tasks.load(path, task_id)
    place = claim.place_of(owner.tree, task, time.time())
    if place.line is not None:
        claim.write_line(owner, task, {"time": units.now_stamp(), **place.line}, sync=True)
    try:
        files.move(path, owner.tree.task(place.state, place.group, task_id))
    except FileExistsError:
        files.move(path, owner.claim_path(task_id))
        claim.set_aside(owner, task_id, f"{place.state}/{place.group} holds this id already")
        return None
    return place


def _delivered_before(owner: Owner, path: str, task_id: str) -> str:
    """Why an arrival that bears an id is a duplicate; "" if it is the first of that id."""
    arrived = history.fold(files.read(f"{path}/{layout.HISTORY}")).arrived or {}
    nonce = str(arrived.get("nonce", "")).encode()
    if not _link_seen(owner, task_id, nonce):
        if files.read(owner.tree.seen(task_id)) == nonce:
            return ""
        return f"the id {task_id} was delivered before"
    if spot := tasks.find(owner.tree, task_id, looks=2):  # mostly it is new, and nowhere
        return f"{spot.state}/{spot.group} holds the id {task_id} already"
    return ""


def _link_seen(owner: Owner, task_id: str, nonce: bytes) -> bool:
    """Record a delivered id; False if it was recorded before."""
    draft = owner.tree.tmp(nest_name())
    files.make_folder(owner.tree.tmp())
    files.write_new(draft, nonce, sync=True)
    try:
        return files.link(draft, owner.tree.seen(task_id))
    finally:
        files.unlink(draft)
