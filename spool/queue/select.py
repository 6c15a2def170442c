"""select - one grammar for which tasks a verb means.

A word is an id, a task's whole name, the beginning of an id, or a glob over ids (* ? [...]);
an array's id means all its chunks, and with [17] or [3-9,12] behind it those that hold such
elements; optionally STATE/GROUP/ID as `ls` and `path` print it; where a task bears just that name,
a word means no longer ones. Words are alternatives; state, workflow, name, tag and since each
narrow what the words leave. Nothing said means everything.
Never  changes anything; reads a manifest only where the question needs it.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from spool import units
from spool.errors import ManifestError, NoSuchTask
from spool.queue import array, layout, shape, tasks
from spool.queue.array import Some
from spool.queue.layout import State, Tree
from spool.queue.tasks import Spot, Task

ORDER = (
    State.CREATED,
    State.WAITING,
    State.READY,
    State.RUNNING,
    State.FINISHED,
    State.FAILED,
    State.CANCELLED,
)


WHOLE = "\0"  # put behind a word that is some task's whole name; it stands in no id


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks. words: ids, names, beginnings, globs; since: epoch seconds, 0 for ever.

    strict: a word that means nothing is an error, told after all that the others mean.
    """

    words: tuple[str, ...] = ()
    states: tuple[State, ...] = ()
    workflow: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    since: float = 0.0
    strict: bool = False

    @property
    def everything(self) -> bool:
        """Whether nothing at all narrows it."""
        return replace(self, strict=False) == Selection()

    @property
    def needs_manifest(self) -> bool:
        """Whether tasks must be opened to answer."""
        return bool(self.workflow or self.tags or self.since)


def plain_word(word: str) -> str:
    """The id in a word that may be a path such as READY/c1@26112215-00/ID."""
    return os.path.basename(word.rstrip("/")) if "/" in word else word


@lru_cache(maxsize=1024)
def split(word: str) -> tuple[str, Some | None]:
    """The tasks and the elements that a word such as ARRAY-ID[3-9,12] means; None: it says none.

    Raises NoSuchTask: what stands in the brackets names no elements.
    """
    found = re.fullmatch(r"([^*?\[\]]+)\[([0-9][0-9,-]*)\]", word)
    if not found:
        return word, None
    try:
        return found[1], array.parse_some(found[2])
    except ValueError as fault:
        raise NoSuchTask(f"{word}: {fault}") from None


def elements(words: Collection[str], task_id: str) -> Some | None:
    """The elements of a chunk that words mean; None: all of it, by one of them at least."""
    total = Some()
    if not any("[" in word for word in words):
        return None
    for word in map(plain_word, words):
        base, some = split(word)
        if not _is_meant(task_id, word) and _name_of(task_id) != base:
            continue
        if some is None:
            return None
        total |= some
    return total or None


def find(tree: Tree, selection: Selection) -> Iterator[Spot]:
    """The tasks that are meant, streamed, by state, group and id. Raises NoSuchTask.

    An empty word means nothing: it is what a script's unset variable leaves of `cancel "$id"`.
    """
    words = tuple(plain_word(word) for word in selection.words)
    if "" in words:
        raise NoSuchTask("an empty word names no task. Run: spool ls")
    states = selection.states or ORDER
    if words and all(layout.parse_id(split(word)[0]) for word in words):
        yield from _by_id(tree, words, selection, states)
        return
    exact = _names_among(tree, words)
    words = tuple(_whole(word) if split(word)[0] in exact else word for word in words)
    unmet = set(words)
    for spot in tasks.spots(tree, tuple(state for state in ORDER if state in states)):
        if unmet:
            unmet -= {word for word in unmet if _is_meant(spot.id, word)}
        if matches(tree, spot, selection, words):
            yield spot
    if selection.strict:
        _all_met(unmet)


def _names_among(tree: Tree, words: tuple[str, ...]) -> set[str]:
    """The words that are some task's whole name."""
    left = {split(word)[0] for word in words if not _is_glob(split(word)[0])}
    found: set[str] = set()
    for spot in tasks.spots(tree, ORDER) if left else ():
        name = _name_of(spot.id)
        if name in left and name != spot.id:  # an arrival in CREATED has a name only
            found.add(name)
            left.discard(name)
            if not left:
                break
    return found


def _all_met(unmet: set[str]) -> None:
    """Raises NoSuchTask for words that meant nothing."""
    if unmet:
        shown = ", ".join(repr(word.replace(WHOLE, "")) for word in sorted(unmet)[:3])
        globbed = [word for word in sorted(unmet) if split(word)[1] is not None]
        hint = f". A glob over ids takes in their ends: '{globbed[0]}.*'" if globbed else ""
        raise NoSuchTask(f"no task matches {shown}. Run: spool ls{hint}")


def _by_id(
    tree: Tree, words: tuple[str, ...], selection: Selection, states: tuple[State, ...]
) -> Iterator[Spot]:
    """Whole ids are looked up where their shard says, without a walk."""
    unmet: set[str] = set()
    for word in dict.fromkeys(words):
        found = _of_id(tree, split(word)[0])
        meant = [spot for spot in found if _is_meant(spot.id, word)]
        if not meant:
            unmet.add(word)
        for spot in meant:
            if spot.state in states and matches(tree, spot, selection, ()):
                yield spot
    if selection.strict:
        _all_met(unmet)


def _of_id(tree: Tree, task_id: str) -> list[Spot]:
    """The task of an id, or the chunks of the array of that id."""
    if (spot := tasks.find(tree, task_id, looks=1)) is not None:
        return [spot]
    if "@" not in task_id and (found := tasks.chunks(tree, task_id)):
        return found
    spot = tasks.find(tree, task_id) or _arrival(tree, task_id)
    return [spot] if spot else []


def _arrival(tree: Tree, name: str) -> Spot | None:
    return next((spot for spot in tasks.arrivals(tree) if spot.id == name), None)


def matches(tree: Tree, spot: Spot, selection: Selection, words: tuple[str, ...]) -> bool:
    """Whether one task is meant; a task that vanishes while we look is not."""
    if words and not any(_is_meant(spot.id, word) for word in words):
        return False
    if selection.name and not _named(spot.id, selection.name):
        return False
    if not selection.needs_manifest or not _lane_allows(spot, selection.workflow):
        return not selection.needs_manifest
    try:
        task = tasks.load(spot.path(tree), spot.id)
    except (OSError, ManifestError):
        return False
    return _manifest_allows(task, selection)


def _whole(word: str) -> str:
    base, _ = split(word)
    return f"{base}{WHOLE}{word[len(base) :]}"


def _is_meant(task_id: str, word: str) -> bool:
    base, some = split(word)
    if some is not None and not _may_hold(task_id, base, some):
        return False
    if _is_glob(base):
        return fnmatch.fnmatchcase(task_id, base)
    if base.endswith(WHOLE):
        return _name_of(task_id) == base.removesuffix(WHOLE)
    if "@" in base and layout.parse_id(base):
        return task_id == base  # and no chunk whose last element merely begins so
    return task_id.startswith(base)


def _may_hold(task_id: str, base: str, some: Some) -> bool:
    """Whether a task may hold such elements; an id without a chunk does not tell.

    Its whole name must stand before them: `scan-[12]` is most likely meant for a glob.
    """
    parts = layout.parse_id(task_id)
    if parts is None or not f"{base.removesuffix(WHOLE)}.".startswith(f"{parts.name}."):
        return False
    return not parts.chunk or array.overlaps(parts.chunk, some)


def _is_glob(word: str) -> bool:
    return any(mark in word for mark in "*?[")


def _named(task_id: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(_name_of(task_id), pattern)


def _name_of(task_id: str) -> str:
    parts = layout.parse_id(task_id)
    return parts.name if parts else task_id


def _lane_allows(spot: Spot, workflow: str) -> bool:
    """A READY task's lane already names its workflow, so most need not be opened."""
    if spot.state is not State.READY or not workflow or any(mark in workflow for mark in "*?["):
        return True
    try:
        return _workflow_of(spot.group) == shape.name_token(workflow)
    except ValueError:
        return True


@lru_cache(maxsize=4096)
def _workflow_of(group: str) -> str:
    return shape.parse(group)[0].workflow


def _manifest_allows(task: Task, selection: Selection) -> bool:
    wanted = task.manifest
    if selection.workflow and not fnmatch.fnmatchcase(wanted.workflow, selection.workflow):
        return False
    if not all(fnmatch.filter(wanted.tags, tag) for tag in selection.tags):
        return False
    return not selection.since or submitted_at(task) >= selection.since


def submitted_at(task: Task) -> float:
    """When a task entered the spool, epoch seconds: by its manifest, its arrival, or its shard."""
    told = task.manifest.submitted.time if task.manifest.submitted else ""
    told = told or str((task.story.arrived or {}).get("time", ""))
    try:
        return units.read_stamp(told)
    except ValueError:
        parts = layout.parse_id(task.id)
        return layout.shard_hour(parts.shard) if parts else 0.0


def one(tree: Tree, word: str) -> Spot:
    """The single task a word means. Raises NoSuchTask: none, or several."""
    found: list[Spot] = []
    for spot in find(tree, Selection(words=(word,))):
        found.append(spot)
        if len(found) > 3:
            break
    if not found:
        raise NoSuchTask(f"no task matches {word!r}. Run: spool ls")
    exact = [spot for spot in found if spot.id == plain_word(word)]
    if len(found) > 1 and not exact:
        some = ", ".join(spot.id for spot in found[:3])
        more = ", ..." if len(found) > 3 else ""
        raise NoSuchTask(f"{word!r} means several tasks ({some}{more}); write more of the id")
    return (exact or found)[0]
