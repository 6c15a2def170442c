"""ended - why a task is in FINISHED, FAILED or CANCELLED, and how it could be tried again.

Owns   `sentence`, how a task came to lie where it lies, for `show` and `why`.
"""

from __future__ import annotations

from typing import Any

from spool import units
from spool.queue import elements, files, history, layout, stages, tasks
from spool.queue.claim import printable
from spool.queue.layout import State
from spool.queue.tasks import Spot, Task
from spool.queue.why.answer import Answer
from spool.queue.why.scene import Scene

TAIL_BYTES, TAIL_LINES = 16384, 5
_ARRIVAL = "mend {}/arrival and drop it into CREATED again"


# -- in one sentence -----------------------------------------------------------------------------


def sentence(found: Task) -> str:
    """In one sentence, how a task came to lie where it lies; "" where there is nothing to say."""
    story = found.story
    if story.replaced:
        ran = _why_of_run(found)
        return f"replaced by {story.replaced}" + (f"; before that, {ran}" if ran else "")
    if story.stopped:
        return str(story.stopped.get("reason", ""))
    if story.broke is not None:
        return str(story.broke.get("reason", ""))
    return f"{_why_of_run(found)}{_why_decided(story.decided)}"


def _why_decided(decided: dict[str, Any] | None) -> str:
    """What a handler made of an end."""
    if decided is None:
        return ""
    if error := decided.get("error"):
        return f"; {error}"
    more = decided.get("reason") or decided.get("id") or ""
    return (
        f"; {decided.get('handler', 'its handler')} says {decided.get('verdict')} {more}".rstrip()
    )


def _why_of_run(found: Task) -> str:
    """How its last attempt ended, or what it waits for."""
    story = found.story
    if story.exit is None:
        if story.cancelled:
            return f"cancelled by {story.cancelled.get('by', 'somebody')}"
        if story.losses > found.manifest.max_lost:
            return f"its launcher died {story.losses} times while it ran"
        if story.interruptions > found.manifest.max_interrupted:
            return f"its launcher ended {story.interruptions} times before it did"
        if story.until in ("", "now"):
            return ""
        return f"not before {story.until}" + (f": {story.delayed}" if story.delayed else "")
    ended = story.exit
    elapsed = ended.get("elapsed_s")
    took = units.print_duration(elapsed if isinstance(elapsed, (int, float)) else 0)
    if error := ended.get("error"):
        return str(error)
    if ended.get("timeout"):
        return f"stopped at its time limit, after {took}"
    if ended.get("signal"):
        return f"killed by signal {ended['signal']} after {took}"
    return f"exit code {ended.get('code')} after {took}"


# -- in several ----------------------------------------------------------------------------------


def explain(scene: Scene, spot: Spot, task: Task, answer: Answer) -> None:
    """Why it ended as it did, how often it was tried, what waits for it, what can be done."""
    if spot.state is State.CANCELLED:
        _cancelled(scene, task, answer)
    else:
        _how(scene, spot, task, answer)
    if spot.state is State.FAILED:
        _failed(scene, spot, task, answer)
    if spot.state is not State.FINISHED:
        _waited_for(scene, task, answer)
    _advise(spot, task, answer)
    if task.story.attempt and not task.manifest.array:
        _output(task, answer)


def _cancelled(scene: Scene, task: Task, answer: Answer) -> None:
    events = history.events(task.told)
    said = {one["what"]: one for one in events}  # an exit, where a running one was stopped
    told = said.get("cancelled") or said.get("exit") or {}
    by, when = str(told.get("by", "")), str(told.get("time", ""))
    who = f" by {by}" if by else ", asked while it ran" if told.get("cancelled") else ""
    why = f": {told['reason']}" if told.get("reason") else ""
    text = f"it was cancelled{who}, {scene.ago(when)}{why}"
    answer.because("cancelled", text, by=by, time=when, reason=str(told.get("reason", "")))
    if ended := task.story.exit:
        answer.because("exit", f"it ran until then: {_why_of_run(task)}", **_facts(ended))


def _how(scene: Scene, spot: Spot, task: Task, answer: Answer) -> None:
    """How its last attempt ended, when and where."""
    story = task.story
    ended = story.exit or story.stopped or story.broke or {}
    ago = scene.ago(ended.get("time"))
    where = str((ended if "node" in ended else _last_start(task)).get("node", ""))
    said = sentence(task) or "nothing in its history tells why"
    text = f"{said}{f', {ago}' if ago else ''}{f', on {where}' if where and story.exit else ''}"
    reason = layout.group_label(spot.group) if spot.state is State.FAILED else "finished"
    answer.because(reason, text, **_facts(ended))
    if story.exit and history.cause(story.exit) == "signal-9":
        peak = ended.get("peak_mb")
        asked = units.memory(task.manifest.memory)
        had = f", of {units.print_memory(asked)} it asked for" if asked else ""
        if isinstance(peak, (int, float)):
            text = f"KILL is what the kernel sends when memory runs out: it used {peak:.0f}M{had}"
            answer.because("memory", text, peak_mb=peak, asked_mb=asked)
    if task.manifest.elements is not None and spot.state is State.FAILED:
        counts = elements.counts(task.path, task.manifest, ended=True)
        told = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
        answer.because("elements", f"of its elements: {told}", **counts)


def _last_start(task: Task) -> dict[str, Any]:
    events = history.events(task.told)
    return next((one for one in reversed(events) if one["what"] == "start"), {})


def _facts(event: dict[str, Any]) -> dict[str, Any]:
    """What a program wants to know of an end."""
    names = ("time", "code", "signal", "timeout", "elapsed_s", "peak_mb", "attempt", "reason")
    return {name: event[name] for name in names if name in event}


def _failed(scene: Scene, spot: Spot, task: Task, answer: Answer) -> None:
    """Why there is no other try."""
    story, wanted = task.story, task.manifest
    label = layout.group_label(spot.group)
    if label == layout.REPLACED and story.replaced:
        there = tasks.find(scene.tree, story.replaced, looks=2)
        where = f"{there.state}/{there.group}" if there else "nowhere any more"
        text = f"what waits for it waits for {story.replaced}, which is {where}"
        answer.because("heir", text, heir=story.replaced, where=where)
    elif story.exit is not None and not wanted.array:
        _tries(task, history.cause(story.exit), answer)
    elif label == "lost":
        most = stages.most_losses(wanted)
        text = f"it survives {most} deaths of launchers (max_lost); it had {story.losses}"
        answer.because("tries", text, used=story.losses, allowed=most)


def _tries(task: Task, cause: str, answer: Answer) -> None:
    """The policy for its end, and that it is used up."""
    wanted, story = task.manifest, task.story
    rule = stages.rule_for(wanted, cause)
    used, allowed = stages.failures_of(wanted, story, rule), stages.policy(wanted, rule).attempts
    key = f"retry of {rule}" if rule else "max_attempts"
    text = f"{used} of {units.count(allowed, 'attempt')} used ({key}): it is not tried again"
    answer.because("tries", text, used=used, allowed=allowed, rule=rule or "")
    if story.handled:
        text = f"its handlers had it tried again {story.handled} times of {wanted.max_handled}"
        answer.because("handled", text, used=story.handled, allowed=wanted.max_handled)


def _waited_for(scene: Scene, task: Task, answer: Answer) -> None:
    """Those that lie under it, and so wait in vain."""
    if count := len(files.names(scene.tree.group(State.WAITING, task.id))):
        verbs = ("waits", "goes") if count == 1 else ("wait", "go")
        text = f"{units.count(count, 'task')} {verbs[0]} for it, and {verbs[1]} on with its retry"
        answer.because("waited-for", text, count=count)


_HINTS = {
    "timeout": " --time-limit ...",
    "signal-9": " --memory ...",
    "lost": " --max-lost ...",
}
"""What a person may want to change with a retry, by the reason of a failure."""


def _advise(spot: Spot, task: Task, answer: Answer) -> None:
    label = layout.group_label(spot.group) if spot.state is State.FAILED else ""
    if label == "rejected" or label == "duplicate":
        if files.exists(f"{task.path}/arrival"):
            answer.advise(_ARRIVAL.format(task.path))
            return
        answer.advise(f"mend it in {task.path}, then: spool retry {task.id}")
        return
    if label in ("parent", "no-parent"):
        for parent in task.manifest.after[:1]:
            answer.advise(f"spool why {parent}")
    if label == "close":
        answer.advise(f"spool retry --close {task.id}   to do once more only what follows its run")
    if label == "elements":
        answer.advise(f"spool ls --elements --state FAILED '{layout.array_of(task.id)}'")
    if spot.state is not State.FINISHED and label != layout.REPLACED:
        answer.advise(f"spool retry {task.id}{_HINTS.get(label, '')}")


def _output(task: Task, answer: Answer) -> None:
    """Where its output is, and the last lines of it."""
    apart = task.manifest.output == "apart"
    name = layout.ERRORS if apart and files.size(f"{task.path}/{layout.ERRORS}") > 0 else None
    path = f"{task.path}/{name or layout.OUTPUT}"
    answer.more["output"] = path
    answer.lines = tail(path)
    answer.more["tail"] = answer.lines
    option = " --errors" if name else ""
    answer.advise(f"spool log{option} {task.id}")


def tail(path: str) -> list[str]:
    """The last lines of a file, fit to print."""
    lines = files.tail(path, TAIL_BYTES).splitlines()[-TAIL_LINES:]
    return [printable(line.decode(errors="replace")) for line in lines]


def explain_damaged(scene: Scene, spot: Spot, fault: Exception, answer: Answer) -> None:
    """A task that cannot be read: its history may still say why."""
    path = spot.path(scene.tree)
    story = history.fold(files.read(f"{path}/{layout.HISTORY}"))
    told = story.stopped or {}
    answer.because(str(told.get("as") or "damaged"), str(told.get("reason") or fault))
    if files.exists(f"{path}/arrival"):
        answer.advise(_ARRIVAL.format(path))
    elif spot.state is State.FAILED:
        answer.advise(f"mend {path}/{layout.MANIFEST}, then: spool retry {spot.id}")
    else:
        answer.advise("run: spool check")
