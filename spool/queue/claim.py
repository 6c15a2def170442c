"""claim - take tasks for one owner, keep them, hand them on.

Owns   every move out of READY/ by a claim, and every move out of RUNNING/<owner>/.
Never  sleeps or prints; writes inside a task only while its owner has it.
Fails  LeaseLost: another process has taken our tasks.

Owners that walk one sorted list collide, so each takes a random slice of the oldest lanes that
suit it; two lost races in a row mean that another is at work there, and it looks elsewhere.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from spool import units
from spool.errors import LeaseLost, ManifestError
from spool.queue import faults, files, history, layout, shape, tasks
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.parents import Lookup
from spool.queue.place import Place, next_place
from spool.queue.shape import Shape
from spool.queue.tasks import Task

LOSSES_IN_A_ROW = 2
TIDY_EVERY_S = 1.0
LOOKS = 256  # tasks of a lane looked at in vain before others get their turn
Row = tuple[Shape, str]
Wants = Callable[[Shape], int]
Suits = Callable[[str, str], bool]
"""Whether a task, by its lane and id, is to be taken, where its lane does not tell all."""


class Claimer:
    """Takes READY tasks for one owner, lane by lane in serving order.

    claimed and lost count renames won and lost; strays are groups in READY that are no lanes.
    rows holds the lanes in serving order, by shape and hour: a large backlog has many lanes of few
    shapes, and what does not want a shape must not be asked for each of its lanes.
    """

    def __init__(self, owner: Owner, seed: int | None = None) -> None:
        self.owner = owner
        self.tree = owner.tree
        self.random = random.Random(seed)
        self.claimed = 0
        self.lost = 0
        self.rows: dict[Row, list[str]] = {}
        self.shapes: set[Shape] = set()
        self.strays: list[str] = []
        self.passed_over: set[str] = set()
        self._names: list[str] = []
        self._names_of = ""
        self._suits: Suits | None = None
        self._ours: set[str] = set()
        self._emptied: set[str] = set()
        self._tidy_at = 0.0

    def refresh(self) -> list[str]:
        """List READY anew; its lanes in serving order, equals in an order of our own.

        The lane whose names we hold goes first among its equals: it need not be listed again.
        """
        lanes: list[str] = []
        self.strays = []
        for group in tasks.groups(self.tree, State.READY):
            try:
                shape.parse(group)
            except ValueError:
                self.strays.append(group)
            else:
                lanes.append(group)
        self.random.shuffle(lanes)
        lanes.sort(key=self._names_of.__ne__)
        self._arrange(lanes)
        if time.monotonic() >= self._tidy_at:
            self.tidy()
        return self.lanes

    def tidy(self) -> None:
        """Remove the lanes that we filled ourselves, as far as they are empty."""
        self._tidy_at = time.monotonic() + TIDY_EVERY_S
        for group in self._emptied:
            files.remove_folder(self.tree.group(State.READY, group))
        self._emptied.clear()
        self._ours.clear()

    def _arrange(self, lanes: list[str]) -> None:
        lanes.sort(key=shape.order)
        self.rows = {}
        for lane in lanes:
            self.rows.setdefault(_row(lane), []).append(lane)
        self.shapes = {wanted for wanted, _ in self.rows}

    def add(self, lane: str) -> None:
        """A lane that we have just put a task into: known without listing READY.

        Where it gets empty it stays for a while: chains fill it again and again.
        """
        self._ours.add(lane)
        if lane in self.rows.get(_row(lane), ()):
            return
        self._arrange([*self.lanes, lane])

    @property
    def lanes(self) -> list[str]:
        """All lanes, in serving order."""
        return [lane for row in self.rows.values() for lane in row]

    def take(self, wants: Wants, limit: int, suits: Suits | None = None) -> Iterator[str]:
        """Claim up to `limit` tasks; `wants(shape)` says how many more of a shape fit.

        Yields each id as soon as it lies in the owner's folder. A shape that is not wanted is not
        asked for again.
        """
        self._suits = suits
        left = limit
        unwanted: set[Shape] = set()
        for wanted, group in self._in_order(unwanted):
            while left > 0:
                if (count := min(left, wants(wanted))) <= 0:
                    unwanted.add(wanted)
                    break
                taken = 0
                for task_id in self._take_from(group, count):
                    taken += 1
                    yield task_id
                left -= taken
                if taken < count:
                    break
            if left <= 0:
                return

    def _in_order(self, unwanted: set[Shape]) -> Iterator[tuple[Shape, str]]:
        """The lanes in serving order, without those of shapes that are `unwanted` by then."""
        for (wanted, _), row in list(self.rows.items()):
            for group in list(row):
                if wanted in unwanted:
                    break
                yield wanted, group
            if self.shapes <= unwanted:
                return

    def _take_from(self, group: str, count: int) -> Iterator[str]:
        folder = self.tree.group(State.READY, group)
        fresh = False
        losses = looks = 0
        if self._names_of != group or not self._names:
            fresh = self._list(group, folder)
        while count > 0 and self._names:
            name = self._names.pop()
            if name in self.passed_over or name[0] == ".":
                continue
            if self._suits is not None and not self._suits(group, name):
                looks += 1
                if looks >= LOOKS:
                    return
                continue
            if self._claim(f"{folder}/{name}", name):
                count, losses = count - 1, 0
                yield name
                continue
            losses += 1
            if losses >= LOSSES_IN_A_ROW:
                if fresh:
                    self._names_of = ""
                    return
                fresh, losses = self._list(group, folder), 0
        if not self._names and not self._list(group, folder):
            self._drop(group, folder)

    def _list(self, group: str, folder: str) -> bool:
        """Hold the lane's names, turned to a random start; False if there are none for us."""
        try:
            names = files.names(folder)
        except PermissionError:
            names = []  # closed to us: `check` tells
        start = self.random.randrange(len(names)) if names else 0
        self._names = names[start:] + names[:start]
        self._names_of = group
        return bool(names)

    @property
    def known(self) -> int:
        """At least so many tasks lay in READY at the last look."""
        return len(self._names) + max(0, len(self.lanes) - 1)

    def count(self, group: str) -> int:
        """How many tasks a lane holds."""
        return len(files.names(self.tree.group(State.READY, group)))

    def _claim(self, path: str, name: str) -> bool:
        try:
            won = files.move(path, self.owner.claim_path(name))
        except (PermissionError, FileExistsError):
            self.passed_over.add(name)  # not ours to move: listed by `check`
            return False
        self.claimed += won
        self.lost += not won
        return won

    def _drop(self, group: str, folder: str) -> None:
        if group in self._ours:
            self._emptied.add(group)
        else:
            files.remove_folder(folder)
        row = self.rows.get(_row(group), [])
        if group in row:
            row.remove(group)
        if not row and self.rows.pop(_row(group), None) is not None:
            self.shapes = {wanted for wanted, _ in self.rows}


def _row(group: str) -> Row:
    """What all lanes have in common that are served in random order."""
    wanted, shard = shape.parse(group)
    return wanted, shard[:8]


# -- reading and writing what we hold ------------------------------------------------------------


def read_claim(owner: Owner, task_id: str, trusted: frozenset[int]) -> Task | None:
    """Read a task just claimed; None if it vanished, or had to be rejected.

    None too where the file system fails for the moment: the task stays with us, for our taker.
    """
    path = owner.claim_path(task_id)
    try:
        return tasks.load(path, task_id, trusted)
    except FileNotFoundError:
        return None
    except ManifestError as fault:
        reject(owner, task_id, str(fault))
    except OSError as fault:
        if not faults.is_passing(fault):
            reject(owner, task_id, fault.strerror or str(fault))
    return None


def write_line(owner: Owner, task: Task, event: dict[str, Any], *, sync: bool = False) -> None:
    """Write an event into a task we hold, and let it happen to the story."""
    path = f"{task.path}/{layout.HISTORY}"
    append(owner, path, history.encode(event))
    history.tell(task.story, event)
    if sync:
        files.sync(path)
        files.sync(task.path)


def append(
    owner: Owner, path: str, lines: bytes, *, heal: bool = True, create: bool = True
) -> None:
    """Append to the history of a task we hold. Raises LeaseLost, FileNotFoundError: it vanished."""
    try:
        files.append(path, lines, heal=heal, create=create)
    except PermissionError:
        if not files.open_up(os.path.dirname(path)):
            raise
        files.open_up(path)
        files.append(path, lines, heal=heal, create=create)
    except FileNotFoundError:
        if not owner.holds_lease():
            raise LeaseLost(f"{owner.claims}: is gone; another process has taken over") from None
        raise


def reject(owner: Owner, name: str, reason: str, kind: str = "rejected", **more: Any) -> str:
    """File what we hold under FAILED/rejected with a readable reason; the id it lies under.

    What is no directory, bears no id or lets us write nothing into it is put, unchanged, inside a
    fresh task directory as `arrival`.
    """
    task_id = _as_task(owner, name)
    history_path = f"{owner.claim_path(task_id)}/{layout.HISTORY}"
    if files.exists(history_path) and not files.is_plain(history_path):
        files.rename_file(history_path, f"{history_path}.found")
    told = {**more, "reason": printable(reason), "by": owner.name, "as": kind}
    append(owner, history_path, history.line("rejected", **told))
    files.sync(history_path)
    group = layout.failed_group(kind, layout.shard_of(task_id))
    hand_on(owner, task_id, Place(State.FAILED, group), sync=True)
    return task_id


def _as_task(owner: Owner, name: str) -> str:
    """Make sure that what we hold as `name` is a directory with an id, writable; the id."""
    path = owner.claim_path(name)
    usable = files.is_folder(path) and os.access(path, os.W_OK | os.X_OK)
    if usable and layout.parse_id(name):
        return name
    plain = layout.as_name(name.removesuffix(layout.ARRIVING))
    known = layout.parse_id(plain)
    task_id = layout.new_id(known.name if known else plain, layout.lone_shard(time.time()))
    if usable:
        files.move(path, owner.claim_path(task_id))
    else:
        files.new_folder(owner.claim_path(task_id))
        files.rename_file(path, f"{owner.claim_path(task_id)}/arrival")
    return task_id


def printable(text: str) -> str:
    """Any name or message, fit for a terminal and for JSON: what is no plain text is escaped."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in plain)


def place_of(
    tree: Tree, task: Task, now: float, under: str = "", kin: Lookup | None = None
) -> Place:
    """Where a task that nobody is working on belongs; see `next_place`."""
    return next_place(
        task.id, task.manifest, task.story, Lookup(tree) if kin is None else kin, now, under
    )


def read_any(me: Owner, task_id: str) -> Task | None:
    """Read a task we hold; None for a damaged one, which is rejected, and one unreadable now."""
    try:
        return tasks.load(me.claim_path(task_id), task_id)
    except FileNotFoundError:
        return None
    except (ManifestError, OSError) as fault:
        if isinstance(fault, ManifestError) or not faults.is_passing(fault):
            reject(me, task_id, str(fault))
        return None


def settle(me: Owner, task: Task, kin: Lookup | None = None) -> Place:
    """Ask where a task we hold belongs, write the line that move needs, and move it there.

    Where it then lies under a parent, that is looked at again: it may have ended meanwhile.
    """
    while True:
        place = place_of(me.tree, task, time.time(), "", kin)
        if place.line is not None:
            write_line(me, task, {"time": units.now_stamp(), **place.line}, sync=True)
        hand_on(me, task.id, place, sync=True)
        if not layout.is_parent_group(place.state, place.group):
            return place
        again, kin = place_of(me.tree, task, time.time(), place.group), None
        if (again.state, again.group) == (place.state, place.group):
            return place
        try:
            if not files.move(me.tree.task(*place[:2], task.id), me.claim_path(task.id)):
                return place
        except (PermissionError, FileExistsError):
            return place


def hand_on(owner: Owner, task_id: str, place: Place, *, sync: bool = False) -> bool:
    """Move a task we hold to its place; False if it was taken from us.

    A place that is occupied by the same id keeps what it has: ours is filed as a duplicate.
    """
    source = owner.claim_path(task_id)
    try:
        moved = files.move(source, owner.tree.task(place.state, place.group, task_id))
    except FileExistsError:
        set_aside(owner, task_id, f"{place.state}/{place.group} holds a task of this id already")
        return True
    if sync:
        sync_places(owner.tree, [place])
    return moved


def set_aside(owner: Owner, task_id: str, reason: str) -> str:
    """File a second task of one id under a fresh id in FAILED/duplicate; that id."""
    parts = layout.parse_id(task_id)
    assert parts is not None
    fresh = layout.new_id(parts.name, parts.shard)
    files.move(owner.claim_path(task_id), owner.claim_path(fresh))
    return reject(owner, fresh, f"{reason}; this one came as {task_id}", "duplicate")


def sync_places(tree: Tree, places: Iterable[Place]) -> None:
    """Make moves into these places durable: each group once, then its state."""
    groups = {(place.state, place.group) for place in places}
    for state, group in groups:
        files.sync(tree.group(state, group))
    for state in {state for state, _ in groups}:
        files.sync(tree.state(state))
