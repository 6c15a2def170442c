"""tasks - read one task: its manifest, its history, and where it is to be found.

Owns   `Task` as it lies on disk, the look-up of an id across the tree.
Never  changes anything.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from spool.errors import ManifestError
from spool.queue import files, history, layout, manifest, trust
from spool.queue.history import Story
from spool.queue.layout import State, Tree
from spool.queue.manifest import Manifest

MANY = 64  # groups
LOOKS_AFTER_S = (0.0, 0.0, 0.001, 0.003, 0.01, 0.03)


class Spot(NamedTuple):
    """Where a task lies: state, group and id (an arrival's own name in CREATED)."""

    state: State
    group: str
    id: str

    def path(self, tree: Tree) -> str:
        """The task's directory."""
        return tree.task(self.state, self.group, self.id)


class Task(msgspec.Struct):
    """One task as read from its directory; `manifest` is in force, changes laid over it.

    raw and told are manifest.json and history.jsonl as they were read.
    """

    id: str
    path: str
    raw: bytes
    told: bytes
    manifest: Manifest
    story: Story


def load(path: str, task_id: str, trusted: frozenset[int] | None = None) -> Task:
    """Read a task; with `trusted`, only what such users own, reached without following links.

    Raises FileNotFoundError: the directory is gone; ManifestError; PermissionError.
    """
    where = f"{path}/{layout.MANIFEST}"
    if trusted is None:
        found = files.read(where, files.LARGEST_MANIFEST + 1)
        if found is None and not files.is_folder(path):
            raise FileNotFoundError(path)
        raw = found or b""
    else:
        raw = _read_trusted(path, trusted)
    told = files.read(f"{path}/{layout.HISTORY}")
    if told is None:
        if trusted is None and not files.is_folder(path):
            raise FileNotFoundError(path)  # it moved between the two: its history is elsewhere
        told = b""
    story = history.fold(told)
    wanted = manifest.parse(raw, where)
    if story.changes:
        where = f"{path}/{layout.HISTORY}"
        wanted = manifest.changed(wanted, story.changes, where, manifest.LAID)
    return Task(task_id, path, raw, told, wanted, story)


def _read_trusted(path: str, trusted: frozenset[int]) -> bytes:
    try:
        return trust.read_trusted(path, layout.MANIFEST, trusted)
    except FileNotFoundError:
        if not files.is_folder(path):
            raise
        raise ManifestError(f"{path}: holds no {layout.MANIFEST}") from None


def find(tree: Tree, task_id: str, *, looks: int = len(LOOKS_AFTER_S)) -> Spot | None:
    """Where an id lies now; None after several `looks` that agree.

    A look goes from state to state and misses a task that moves the other way meanwhile, so one
    that found nothing waits, ever longer, for such moves to be over. All but the first list, since
    a network file system may answer a stat from a stale "no".
    """
    there = files.exists
    for pause_s in LOOKS_AFTER_S[:looks]:
        time.sleep(pause_s)
        if (spot := _look(tree, task_id, there)) is not None:
            return spot
        there = files.holds
    return None


def chunks(tree: Tree, array_id: str) -> list[Spot]:
    """Where the chunks of an array lie now, by their first elements; [] if it has none.

    A chunk that moves meanwhile may be missed by a look, so looks go on until one finds none more.
    """
    if (parts := layout.parse_id(array_id)) is None:
        return []
    found: dict[str, Spot] = {}
    for pause_s in LOOKS_AFTER_S:
        time.sleep(pause_s)
        fresh = {spot.id: spot for spot in _look_for_chunks(tree, array_id, parts.shard)}
        if found and not fresh.keys() - found.keys():
            found.update(fresh)
            break
        found.update(fresh)
    return sorted(found.values(), key=lambda spot: _first_element(spot.id))


def _first_element(task_id: str) -> int:
    return int(task_id.rpartition("@")[2].partition("-")[0])


def _look_for_chunks(tree: Tree, array_id: str, shard: str) -> Iterator[Spot]:
    for state, group in _candidates(tree, shard):
        for name in files.names(tree.group(state, group)):
            if name.startswith(f"{array_id}@") and layout.parse_id(name):
                yield Spot(state, group, name)


def ended(tree: Tree, ids: Iterable[str]) -> dict[str, Spot | None]:
    """Those of `ids` that are in a final state, by a few listings however many they are."""
    shards: dict[str, set[str]] = defaultdict(set)
    for task_id in ids:
        shards[layout.shard_of(task_id)].add(task_id)
    failed = files.names(tree.state(State.FAILED))
    found: dict[str, Spot | None] = {}
    for shard, wanted in shards.items():
        places = [(State.FAILED, group) for group in failed if group.endswith(f"@{shard}")]
        for state, group in [(State.FINISHED, shard), (State.CANCELLED, shard), *places]:
            there = wanted.intersection(files.names(tree.group(state, group)))
            found |= {task_id: Spot(state, group, task_id) for task_id in there}
    return found


def _look(tree: Tree, task_id: str, there: Callable[[str], bool]) -> Spot | None:
    if (parts := layout.parse_id(task_id)) is None:
        return None
    for state, group in _candidates(tree, parts.shard):
        if there(tree.task(state, group, task_id)):
            return Spot(state, group, task_id)
    return None


def _candidates(tree: Tree, shard: str) -> Iterator[tuple[State, str]]:
    """The groups an id of this shard can lie in, in the order in which tasks move."""
    waiting = files.names(tree.state(State.WAITING))
    if len(waiting) > MANY:  # long to go through: first where it mostly is
        yield from _behind_waiting(tree, shard)
    for group in waiting:
        if not group.startswith("held@") or group.endswith(f"@{shard}"):
            yield State.WAITING, group
    yield from _behind_waiting(tree, shard)


def _behind_waiting(tree: Tree, shard: str) -> Iterator[tuple[State, str]]:
    for state in (State.READY, State.RUNNING, State.FAILED):
        for group in files.names(tree.state(state)):
            tail = group.rpartition("@")[2]
            if state in (State.READY, State.FAILED) and tail != shard:
                continue
            yield state, group
    yield State.FINISHED, shard
    yield State.CANCELLED, shard


def groups(tree: Tree, state: State) -> list[str]:
    """The groups of a state, sorted; names that start with a dot are none."""
    return sorted(name for name in files.names(tree.state(state)) if name[0] != ".")


def arrivals(tree: Tree) -> Iterator[Spot]:
    """What lies in CREATED and its @SOURCE doors, files and all; a link to a door leads out."""
    for name in groups(tree, State.CREATED):
        if name.startswith("@"):
            door = tree.group(State.CREATED, name)
            inner = files.names(door) if files.is_folder(door) else []
            yield from (Spot(State.CREATED, name, one) for one in sorted(inner) if one[0] != ".")
        else:
            yield Spot(State.CREATED, "", name)


def spots(tree: Tree, states: tuple[State, ...]) -> Iterator[Spot]:
    """All tasks of these states, by state, group and id; one group held in memory at a time."""
    for state in states:
        if state is State.CREATED:
            yield from arrivals(tree)
            continue
        for group in groups(tree, state):
            for name in sorted(files.names(tree.group(state, group))):
                if name[0] != ".":
                    yield Spot(state, group, name)
