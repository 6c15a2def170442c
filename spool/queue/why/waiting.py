"""waiting - why a task is in WAITING: for a person, for a moment, for which of its parents.

Never  walks the tasks: parents are looked up one by one, and no more than matter to a person.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from spool import units
from spool.queue import history, kinship, layout, place, stages, tasks
from spool.queue.layout import State
from spool.queue.parents import Lookup
from spool.queue.place import Place
from spool.queue.tasks import Spot, Task
from spool.queue.why.answer import Answer
from spool.queue.why.scene import RUN_ONE, Scene

LOOKED_UP = 5_000  # parents; of more, only these are told
SEARCHED = 20  # parents whose own place is searched for
TOLD = 8


class Kin(NamedTuple):
    """A parent in the way: as it was named, who stands in its place, and where that lies.

    culprit is the task that ended unfinished because of which it never comes; "" for none.
    """

    named: str
    id: str
    state: State | None
    spot: Spot | None = None
    culprit: str = ""


def explain(scene: Scene, spot: Spot, task: Task, answer: Answer) -> None:
    """Tell what it waits for, and what is to be done about it."""
    kin = Lookup(scene.tree, once=True)
    if spot.group.startswith("held@"):
        _held(scene, task, answer)
    elif layout.until_moment(spot.group) is not None:
        _until(scene, spot, task, answer)
    elif layout.parse_id(spot.group) is None:
        answer.because("stray", f"nothing is known that waits in WAITING/{spot.group}")
        answer.advise("run: spool check")
        return
    in_the_way = list(in_the_way_of(scene, task, kin))
    if in_the_way:
        _parents(scene, task, in_the_way, answer)
    _moves_on(scene, spot, task, kin, answer)


def _moves_on(scene: Scene, spot: Spot, task: Task, kin: Lookup, answer: Answer) -> None:
    """Where the one rule says that it belongs elsewhere by now, somebody has to move it."""
    under = spot.group if layout.parse_id(spot.group) else ""
    try:
        there = place.next_place(task.id, task.manifest, task.story, kin, scene.now, under)
    except ValueError:
        return  # a parent's name that is no id: `check` tells
    if (there.state, there.group) == (spot.state, spot.group) or _is_no_move(spot, there):
        return
    text = f"what it lay here for is over: it belongs in {there.state}/{there.group}"
    if there.state is State.FAILED:
        text = f"so it goes to {there.state}/{there.group}"
    if scene.lookers:
        text += ", where a launcher or the service moves it within a minute or two"
    answer.because("due", text, state=str(there.state), to=there.group)
    if why := scene.nobody_looks():
        answer.because("nobody", why)
        answer.advise(f"run: {RUN_ONE}")


def _is_no_move(spot: Spot, there: Place) -> bool:
    """Whether only another group of the same kind is meant, such as the next minute."""
    both = (layout.until_moment(spot.group), layout.until_moment(there.group))
    return there.state is State.WAITING and None not in both


# -- for a person --------------------------------------------------------------------------------


def _held(scene: Scene, task: Task, answer: Answer) -> None:
    events = history.events(task.told)
    told = next((one for one in reversed(events) if one["what"] == "held"), None)
    if told is None:
        submitted = task.manifest.submitted
        who, when = (submitted.by, submitted.time) if submitted else ("", "")
        text = "it was submitted held"
    else:
        who, when, text = str(told.get("by", "")), str(told.get("time", "")), "it is held"
    reason = str(told.get("reason", "")) if told else ""
    by = f" by {who}" if who else ""
    why = f": {reason}" if reason else ""
    ago = f", {scene.ago(when)}" if scene.ago(when) else ""
    answer.because("held", f"{text}{by}{ago}{why}", by=who, since=when, reason=reason)
    answer.advise(f"spool release {task.id}")


# -- for a moment --------------------------------------------------------------------------------


def _until(scene: Scene, spot: Spot, task: Task, answer: Answer) -> None:
    moment = layout.until_moment(spot.group)
    assert moment is not None
    left_s = moment - scene.now
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
    what, why = _why_until(task)
    if left_s > 0:
        text = f"it waits until {when}, {units.print_age(left_s)} from now: {why}"
        answer.advise(f"spool release {task.id}   to start it at once")
    else:
        text = f"it waited until {when}, which has come: {why}"
    facts = {"until": units.stamp(moment), "left_s": round(left_s, 1), "cause": what}
    answer.because("until", text, **facts)


def _why_until(task: Task) -> tuple[str, str]:
    """Why it waits for a moment: in a word, and as a person says it."""
    events = history.events(task.told)
    said = ("queued", "held", "released", "start", "change")
    told: dict[str, Any] = {}
    for one in reversed(events):
        if one["what"] in said and ("until" in one or one["what"] == "start"):
            told = one
            break
        if one["what"] == "change" and "begin" in (one.get("set") or {}):
            return "begin", f"{one.get('by', 'somebody')} set begin to that"
    if told.get("what") != "queued":
        return "begin", "its manifest says not to begin before that"
    if told.get("stage", "run") != "run":
        cause = str(told.get("why") or told.get("reason") or "it failed for now")
        tries = f", try {task.story.stage_tries}" if task.story.stage_tries > 1 else ""
        return "stage", f"to {told['stage']} it was put off{tries}: {cause}"
    reason = str(told.get("reason", ""))
    if reason == "retry by a person":
        return "begin", f"{told.get('by', 'somebody')} retried it for then"
    return "back-off", f"back-off after {_last_failure(task, events)}"


def _last_failure(task: Task, events: list[dict[str, Any]]) -> str:
    """The failure that the back-off is for."""
    ends = ("exit", "lost", "interrupted")
    end = next((one for one in reversed(events) if one["what"] in ends), None)
    if end is None:
        return "a failure"
    attempt = end.get("attempt", task.story.attempt)
    if end["what"] != "exit":
        return f"attempt {attempt}, which was {end['what']}"
    cause = history.cause(end)
    rule = stages.rule_for(task.manifest, cause)
    failed = stages.failures_of(task.manifest, task.story, rule)
    allowed = units.count(stages.policy(task.manifest, rule).attempts, "attempt")
    return f"attempt {attempt}, which ended with {cause} ({failed} of {allowed} used)"


# -- for parents ---------------------------------------------------------------------------------


def in_the_way_of(scene: Scene, task: Task, kin: Lookup) -> Iterator[Kin]:
    """The parents that keep it from running, by the rule of place.py, each with where it lies."""
    runs_anyway = task.manifest.on_parent_failure == "run"
    searched = 0
    for parent in place.ordered(task.manifest.after)[:LOOKED_UP]:
        if layout.parse_id(parent) is None:
            continue
        found = kin[parent]
        ended = found.state is not State.WAITING
        if found.state is State.FINISHED or (ended and runs_anyway and found.state is not None):
            continue
        if ended or searched >= SEARCHED:
            culprit = found.id if ended and found.state is not None else ""
            yield Kin(parent, found.id, found.state, None, culprit)
            continue
        searched += 1
        yield _searched(scene, parent, found.id)


def _searched(scene: Scene, parent: str, heir: str) -> Kin:
    """A parent that has not ended: where it lies, if it lies anywhere."""
    spot = tasks.find(scene.tree, heir, looks=3)
    if spot is None:
        again = Lookup(scene.tree, closely=True)[heir]
        return Kin(parent, again.id, again.state, None, again.id if _in_vain(again.state) else "")
    return Kin(parent, heir, spot.state, spot, kinship.culprit(scene.tree, spot))


def _in_vain(state: State | None) -> bool:
    return state in (State.FAILED, State.CANCELLED)


def _parents(scene: Scene, task: Task, found: list[Kin], answer: Answer) -> None:
    count, whole = len(found), len(dict.fromkeys(task.manifest.after))
    several = f"{count:,} of its {units.count(whole, 'parent')}" if whole > 1 else "its parent"
    later = "after that it waits" if answer.reasons else "it waits"
    first = sorted(found, key=lambda one: not _in_vain(one.state) and one.state is not None)
    answer.because("parents", f"{later} for {several}:", unfinished=count, parents=whole)
    for one in _of_arrays(first):
        _tell(one, answer)
    if (more := count - TOLD) > 0 and len(_of_arrays(first)) >= TOLD:
        states = Counter(str(one.state) for one in first[TOLD:])
        listed = ", ".join(f"{number:,} {state}" for state, number in states.items())
        answer.because("more", f"  and {units.count(more, 'parent')} more: {listed}")
    _blocked(task, first, answer)


def _of_arrays(found: list[Kin]) -> list[Kin]:
    """The first of them; of the chunks of one array that stand alike, the first."""
    alike: dict[tuple[str, State | None], Kin] = {}
    for one in found:
        alike.setdefault((layout.array_of(one.id), one.state), one)
    return list(alike.values())[:TOLD]


def _tell(one: Kin, answer: Answer) -> None:
    """One parent, where it is, and who took its place."""
    name = one.id if one.id == one.named else f"{one.id} (in the place of {one.named})"
    facts = {"id": one.named, "now": one.id, "state": str(one.state) if one.state else ""}
    if one.spot is not None:
        facts["group"] = one.spot.group
    if one.state is None:
        text = f"  {name} is nowhere: it vanished, or was never submitted here"
    elif one.culprit and one.culprit != one.id:
        text = f"  {name} waits in vain itself, since {one.culprit} did not finish"
        facts["culprit"] = one.culprit
    elif one.spot is None:
        text = f"  {name} {_ended(one.state)}"
    else:
        text = f"  {name} is in {one.spot.state}/{one.spot.group}"
    answer.because("parent", text, **facts)


def _ended(state: State) -> str:
    words = {State.FAILED: "has FAILED", State.CANCELLED: "was CANCELLED"}
    return words.get(state, "has not ended")


def _blocked(task: Task, found: list[Kin], answer: Answer) -> None:
    """Where it waits in vain: which tasks that hangs on, and what to do."""
    culprits = list(dict.fromkeys(one.culprit for one in found if one.culprit))
    if any(one.state is None for one in found):
        text = "a parent that is nowhere by two rounds of a sweep sends it to FAILED/no-parent"
        answer.because("no-parent", text)
        answer.advise(f"spool cancel {task.id}   if it has no sense without that parent")
    if not culprits:
        answer.advise(f"spool why {found[0].id}")
        return
    if task.manifest.on_parent_failure == "fail":
        answer.because("fails", "and on_parent_failure = fail says that it is to fail as well")
    else:
        text = "so it is blocked: it goes on by itself once that task is retried and finishes"
        answer.because("blocked", text, culprits=culprits)
    answer.advise(f"spool why {culprits[0]}")
    answer.advise(f"spool retry {' '.join(culprits[:TOLD])}")
    answer.advise(f"spool submit --replaces {culprits[0]} -- ...   to put another in its place")
