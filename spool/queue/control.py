"""control - a person's verbs: cancel, hold, release, retry, modify, rm.

Owns   these moves, each by a leased owner of its own that first claims the task.
Never  moves anything out of a live owner's folder: that owner is asked through its inbox.
Fails  Refused: the verb is not possible where the task lies, with what would be.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from spool import units
from spool.config import Settings
from spool.errors import ManifestError, Refused, SpoolError
from spool.queue import (
    advance,
    array,
    asking,
    claim,
    elements,
    faults,
    files,
    history,
    kinship,
    layout,
    manifest,
    owner,
    parents,
    tasks,
)
from spool.queue.array import Some
from spool.queue.layout import FINAL, State, Tree
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.tasks import Spot, Task

QUEUED = (State.WAITING, State.READY)
TAKES: dict[str, tuple[State, ...]] = {
    "hold": QUEUED,
    "release": (State.WAITING,),
    "cancel": (State.CREATED, *QUEUED),
    "retry": FINAL,
    "modify": (*QUEUED, *FINAL),
    "rm": FINAL,
    "replace": (*QUEUED, State.FAILED, State.CANCELLED),
}
"""The states a verb itself takes a task from; a RUNNING task is asked for."""

ATTEMPTS = 20
ENDS = frozenset(("max_attempts", "max_lost", "max_interrupted"))
"""Keys that decide whether an end is final: changed after it, they would undo it by themselves."""


class Outcome(NamedTuple):
    """What a verb did to one task: where it lies now, or why nothing was done."""

    id: str
    spot: Spot | None
    refused: str = ""


@dataclass(slots=True)
class Verb:
    """One verb at work: who acts, for whom, with which words."""

    me: Owner
    name: str
    trusted: frozenset[int]
    reason: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    wait_s: float = 30.0
    elements: Callable[[str], Some | None] = field(default=lambda _: None)
    """Which elements of a chunk are meant, by its id; None: the chunk."""

    @property
    def tree(self) -> Tree:
        """The spool."""
        return self.me.tree

    def event(self, what: str, **more: Any) -> dict[str, Any]:
        """A line of history that says who did this, and why."""
        said = {"reason": self.reason} if self.reason else {}
        return {
            "time": units.now_stamp(),
            "what": what,
            "by": owner.user_name(),
            "host": self.me.record["host"],
            **said,
            **more,
        }


@contextmanager
def verb(tree: Tree, settings: Settings, name: str, **words: Any) -> Iterator[Verb]:
    """A leased owner for the time of one verb."""
    from spool.config import trusted_users

    with faults.said_plainly():
        me = Owner.start(tree, settings, name)
    try:
        yield Verb(me, name, trusted_users(), **words)
    finally:
        with faults.said_plainly():
            me.end()


Act = Callable[[Verb, Spot], Spot]


def each(act: Act, by: Verb, spots: Iterable[Spot]) -> Iterator[Outcome]:
    """Do a verb to each task; one that is refused does not stop the others."""
    for spot in spots:
        try:
            yield Outcome(spot.id, once(act, by, spot))
        except SpoolError as fault:
            yield Outcome(spot.id, None, str(fault))
        by.me.beat_if_due()


def once(act: Act, by: Verb, spot: Spot) -> Spot:
    """Do a verb to one task, following it while it moves on. Raises SpoolError."""
    for _ in range(ATTEMPTS):
        try:
            return act(by, spot)
        except FileNotFoundError:
            found = tasks.find(by.tree, spot.id)
            if found is None:
                raise Refused(f"task {spot.id} is gone: moved away or removed") from None
            spot = found
        except (OSError, SpoolError):
            _put_back(by, spot)
            with faults.said_plainly():
                raise
    raise Refused(f"task {spot.id} keeps moving. Try again: spool {by.name} {spot.id}")


def _put_back(by: Verb, spot: Spot) -> None:
    """Undo a claim after a failure; where that fails too, a taker settles the task."""
    with suppress(OSError, SpoolError):
        if files.holds(by.me.claim_path(spot.id)):
            claim.hand_on(by.me, spot.id, Place(spot.state, spot.group), sync=True)


def _grab(by: Verb, spot: Spot) -> Task:
    """Claim a task from its folder. Raises FileNotFoundError: it moved; Refused: not ours."""
    try:
        if not files.move(spot.path(by.tree), by.me.claim_path(spot.id)):
            raise FileNotFoundError(spot.path(by.tree))
    except PermissionError:
        raise Refused(f"task {spot.id} belongs to somebody else; only they can move it") from None
    except FileExistsError:
        raise Refused(f"{by.me.claims}: holds {spot.id} already. Run: spool check") from None
    return tasks.load(by.me.claim_path(spot.id), spot.id)


def _put(by: Verb, task: Task, *events: dict[str, Any]) -> Spot:
    """Write the lines, then move a claimed task to where it now belongs."""
    for event in events:
        claim.write_line(by.me, task, event, sync=True)
    if any(event["what"] == "change" for event in events):
        task = tasks.load(task.path, task.id)
    place = claim.place_of(by.tree, task, time.time())
    if place.line:
        claim.write_line(by.me, task, {"time": units.now_stamp(), **place.line}, sync=True)
    claim.hand_on(by.me, task.id, place, sync=True)
    if place.state in FINAL:
        advance.after(by.me, [task.id])
    return _seen_again(by, task, place)


def _seen_again(by: Verb, task: Task, place: Place) -> Spot:
    """Where a task is that may have been put under a parent that finished meanwhile."""
    if place.state is State.WAITING and layout.parse_id(place.group):
        advance.after(by.me, list(parents.ended(by.tree, [place.group])))
        return tasks.find(by.tree, task.id) or Spot(place.state, place.group, task.id)
    return Spot(place.state, place.group, task.id)


def _only(spot: Spot, verb_name: str) -> None:
    """Refuse a task that lies where this verb does not take it from."""
    if spot.state in TAKES[verb_name]:
        return
    where = {State.WAITING: "waiting", State.READY: "ready", State.CREATED: "not admitted yet"}
    what = where.get(spot.state, str(spot.state).lower())
    hint = _advice(spot, verb_name)
    raise Refused(f"task {spot.id} is {what}; {verb_name} is not possible.{hint}")


def _advice(spot: Spot, verb_name: str) -> str:
    if spot.state in FINAL and verb_name in ("hold", "release", "cancel"):
        return f" To run it again: spool retry {spot.id}"
    if spot.state is State.RUNNING:
        return f" To stop it: spool cancel {spot.id}"
    if verb_name in ("retry", "rm") and spot.state in QUEUED:
        return f" To take it out: spool cancel {spot.id}"
    return ""


# -- the verbs -----------------------------------------------------------------------------------


def hold(by: Verb, spot: Spot) -> Spot:
    """READY, WAITING -> WAITING/held."""
    _only(spot, "hold")
    return _put(by, _grab(by, spot), by.event("held"))


def release(by: Verb, spot: Spot) -> Spot:
    """WAITING/held, WAITING/until -> where it belongs without that."""
    _only(spot, "release")
    waits = layout.until_moment(spot.group) is not None
    more = {"until": "now"} if waits else {}
    return _put(by, _grab(by, spot), by.event("released", **more))


def retry(by: Verb, spot: Spot) -> Spot:
    """A final state -> READY, WAITING, its attempts counted anew."""
    _only(spot, "retry")
    task = _grab_to_mend(by, spot)
    changes = dict(by.changes)
    if task.manifest.array or by.elements(spot.id):
        changes |= _run_again(by, task, spot)
    manifest.changed(task.manifest, changes, f"task {spot.id}")
    events = [by.event("change", set=changes)] if changes else []
    queued = {"reason": "retry by a person", "stage": "run"}
    if by.reason:
        queued["why"] = by.reason
    if "begin" in by.changes:
        queued["until"] = by.changes["begin"]
    return _put(by, task, *events, {**by.event("queued"), **queued})


def close_again(by: Verb, spot: Spot) -> Spot:
    """A final state -> READY/close: what follows its run is done once more, not the run itself."""
    _only(spot, "retry")
    task = _grab_to_mend(by, spot)
    queued = {**by.event("queued"), "reason": "retry by a person", "stage": "close"}
    story = copy.deepcopy(task.story)
    history.tell(story, queued)
    place = claim.place_of(by.tree, msgspec.structs.replace(task, story=story), time.time())
    if place.state in FINAL or place.line:
        claim.hand_on(by.me, spot.id, Place(spot.state, spot.group), sync=True)
        why = "has nothing to do after its run"
        raise Refused(f"task {spot.id} {why}. To run it again: spool retry {spot.id}")
    return _put(by, task, queued)


def _run_again(by: Verb, task: Task, spot: Spot) -> dict[str, Any]:
    """Have elements of a chunk that we hold run again; what that changes in its manifest."""
    some = by.elements(spot.id)
    if some is not None:
        some = _own_elements(task, some)
    elif spot.state is State.FINISHED:
        raise Refused(
            f"task {spot.id} has no element that failed. To run some of them again, name them:"
            f" spool retry '{layout.array_of(spot.id)}[3-9]'"
        )
    elements.ask_again(task.path, some)
    if some is None or not task.manifest.skip:
        return {}
    return {"skip": str(array.parse_some(task.manifest.skip) - some)}


def _own_elements(task: Task, some: Some) -> Some:
    """Of these elements the ones of a chunk. Raises Refused: there is none."""
    numbers = task.manifest.elements
    if numbers is None:
        raise Refused(f"task {task.id} is no chunk of an array, so it has no elements")
    if next(some.among(numbers), None) is None:
        raise Refused(f"task {task.id} holds the elements {numbers}, not {some}")
    return some.within(numbers)


def _grab_to_mend(by: Verb, spot: Spot) -> Task:
    """Claim a finished task whose manifest must be sound now, though it may not have been."""
    path = spot.path(by.tree)
    if spot.state is State.FAILED and files.exists(f"{path}/arrival"):
        raise Refused(
            f"task {spot.id} was no usable directory; mend {path}/arrival and drop it into"
            f" {by.tree.state(State.CREATED)} again"
        )
    try:
        task = _grab(by, spot)
    except ManifestError as fault:
        raise Refused(f"{fault}. Mend it there, then: spool retry {spot.id}") from None
    if task.manifest.app and not files.exists(by.tree.app(task.manifest.app)):
        claim.hand_on(by.me, spot.id, Place(spot.state, spot.group), sync=True)
        raise Refused(f"there is no app {task.manifest.app!r}. Run: spool app")
    return task


def modify(by: Verb, spot: Spot) -> Spot:
    """Lay changed keys over a manifest, by a `change` line; the task moves if its lane changed."""
    if spot.state is State.RUNNING:
        _check_changes(by, spot)
        return asking.ask(by, spot, "change", {"set": by.changes})
    _only(spot, "modify")
    _check_changes(by, spot)
    if spot.state in FINAL and (wrong := ENDS.intersection(by.changes)):
        key = min(wrong)
        raise Refused(
            f"task {spot.id} is {str(spot.state).lower()}; {key} would be too late."
            f" To run it again with it: spool retry {spot.id} --{key.replace('_', '-')} ..."
        )
    task = _grab(by, spot)
    change = by.event("change", set=_with_all_parents(by, task))
    if spot.state in QUEUED:
        return (_put_with_parents if "after" in by.changes else _put)(by, task, change)
    claim.write_line(by.me, task, change, sync=True)
    claim.hand_on(by.me, task.id, Place(spot.state, spot.group), sync=True)
    return spot


def _put_with_parents(by: Verb, task: Task, change: dict[str, Any]) -> Spot:
    """New parents, unless another has closed a cycle at the same moment: of two, one sees it."""
    claim.write_line(by.me, task, change, sync=True)
    try:
        kinship.no_cycle(by.tree, task.id, by.changes["after"])
    except Refused:
        _put(by, task, by.event("change", set={"after": task.manifest.after}))
        raise
    return _put(by, tasks.load(task.path, task.id))


def _with_all_parents(by: Verb, task: Task) -> dict[str, Any]:
    """The changes; parents come to those that a task has."""
    if "after" not in by.changes:
        return by.changes
    both = [*task.manifest.after, *by.changes["after"]]
    return {**by.changes, "after": list(dict.fromkeys(both))}


def _check_parents(by: Verb, spot: Spot) -> None:
    """New parents make sense for what has not started, and may not wait for it themselves."""
    if spot.state not in QUEUED:
        hint = ""
        if spot.state is State.RUNNING:
            hint = f". What shall go on later: spool submit --replaces {spot.id} --after ... -- ..."
        what = f"task {spot.id} is {str(spot.state).lower()}"
        raise Refused(f"{what}; it can wait for nothing more{hint}")
    for parent in by.changes["after"]:
        if not parents.is_known(by.tree, parent):
            raise Refused(f"there is no task {parent!r}. Run: spool ls")
    kinship.no_cycle(by.tree, spot.id, by.changes["after"])


def _check_changes(by: Verb, spot: Spot) -> None:
    task = tasks.load(spot.path(by.tree), spot.id)
    manifest.changed(task.manifest, by.changes, f"task {spot.id}")
    if "after" in by.changes:
        _check_parents(by, spot)


def remove(by: Verb, spot: Spot) -> Spot:
    """A final state -> gone; seen/ keeps that it was here, and how it ended."""
    _only(spot, "rm")
    try:
        if not files.move(spot.path(by.tree), by.me.claim_path(spot.id)):
            raise FileNotFoundError(spot.id)
    except PermissionError:
        raise Refused(f"task {spot.id} belongs to somebody else; only they can remove it") from None
    outcome = {"outcome": str(spot.state), "group": spot.group, "removed": units.now_stamp()}
    files.make_folder(by.tree.folder("seen") + f"/{layout.shard_of(spot.id)}")
    files.replace(by.tree.seen(spot.id), msgspec.json.encode(outcome) + b"\n")
    grave = by.tree.tmp(by.me.name.partition(".")[2])
    files.make_folder(grave)
    files.move(by.me.claim_path(spot.id), f"{grave}/{spot.id}")
    files.remove_tree(f"{grave}/{spot.id}")
    files.remove_folder(grave)
    return spot


def cancel(by: Verb, spot: Spot) -> Spot:
    """READY, WAITING, CREATED -> CANCELLED; a RUNNING task's owner is asked, until it is done."""
    if spot.state is State.CREATED:
        return _cancel_arrival(by, spot)
    if by.elements(spot.id) is not None and not _means_all(by, spot):
        return _cancel_elements(by, spot)
    if spot.state is State.RUNNING:
        return asking.ask(by, spot, "cancel", {})
    _only(spot, "cancel")
    return _put(by, _grab(by, spot), by.event("cancelled"))


def _means_all(by: Verb, spot: Spot) -> bool:
    """Whether all elements of a chunk are meant. Raises Refused: none is, FileNotFoundError."""
    task = tasks.load(spot.path(by.tree), spot.id)
    some = _own_elements(task, by.elements(spot.id) or Some())
    assert task.manifest.elements is not None
    return sum(1 for _ in some.among(task.manifest.elements)) == task.manifest.elements.size


def _cancel_elements(by: Verb, spot: Spot) -> Spot:
    """Elements of a chunk are not to run, or to be stopped; the others go on."""
    some = by.elements(spot.id) or Some()
    if spot.state is State.RUNNING:
        task = tasks.load(spot.path(by.tree), spot.id)
        return asking.ask(by, spot, "change", {"set": {"skip": str(_own_elements(task, some))}})
    _only(spot, "cancel")
    task = _grab(by, spot)
    skip = array.parse_some(task.manifest.skip) | _own_elements(task, some)
    return _put(by, task, by.event("change", set={"skip": str(skip)}))


def _cancel_arrival(by: Verb, spot: Spot) -> Spot:
    task_id = spot.id
    if layout.parse_id(task_id) is None:
        name = layout.as_name(claim.printable(spot.id))
        task_id = layout.new_id(name, layout.lone_shard(time.time()))
    if not files.is_folder(spot.path(by.tree)):
        raise Refused(f"{spot.id} in CREATED is no directory; remove it by hand")
    held = by.me.claim_path(layout.arriving(task_id, ""))  # till it is cancelled, an arrival
    if not files.move(spot.path(by.tree), held):
        raise FileNotFoundError(spot.id)
    path = f"{held}/{layout.HISTORY}"
    if files.exists(path):
        files.move_aside(path)
    claim.append(
        by.me, path, history.encode(by.event("cancelled", called=claim.printable(spot.id)))
    )
    files.sync(path)
    files.move(held, by.me.claim_path(task_id))
    place = Place(State.CANCELLED, layout.shard_of(task_id))
    claim.hand_on(by.me, task_id, place, sync=True)
    return Spot(place.state, place.group, task_id)


def replace(by: Verb, spot: Spot) -> Spot:
    """Give a task's place to another (`changes["with"]`): what waits for it waits for that one.

    A running one runs on; it is replaced when it ends.
    """
    said = {"with": by.changes["with"]}
    kinship.no_cycle(by.tree, spot.id, [by.changes["with"]])
    if spot.state is State.RUNNING:
        return asking.ask(by, spot, "replaced", said)
    _only(spot, "replace")
    return _put(by, _grab(by, spot), by.event("replaced", **said))


def check_place(tree: Tree, replaced: str) -> None:
    """Raises Refused where a task has no place to give any more, before another is made for it."""
    if (spot := tasks.find(tree, replaced)) is not None and spot.state is not State.RUNNING:
        _only(spot, "replace")


def take_place(tree: Tree, settings: Settings, replaced: str, task_id: str) -> None:
    """Give a new task (`task_id`) the place of an older one. Raises SpoolError.

    Within a handler of that one, it is the handler's decision.
    """
    decision = os.environ.get("SPOOL_NEXT")
    if decision and os.environ.get("SPOOL_TASK") == replaced:
        files.replace(decision, f"rescue {task_id}\n".encode())
        return
    if (spot := tasks.find(tree, replaced)) is None:
        raise Refused(f"task {replaced} is gone, so {task_id} cannot take its place")
    with verb(tree, settings, "replace", changes={"with": task_id}) as by:
        once(replace, by, spot)
