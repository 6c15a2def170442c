"""running - who has a RUNNING task, what they do with it, whether they live.

Never  says that an owner is dead because it is silent: it says for how long.
"""

from __future__ import annotations

from spool import units
from spool.queue import elements, files, layout
from spool.queue.layout import Tree
from spool.queue.tasks import Spot, Task
from spool.queue.why.answer import Answer
from spool.queue.why.scene import DEAD, LOOKERS, RUN_ONE, Living, Scene


def explain(scene: Scene, spot: Spot, task: Task, answer: Answer) -> None:
    """By whom, where, since when, for how long yet; and whether its owner lives."""
    one = scene.owner_of(spot.group)
    if "~" in spot.group:
        dead = spot.group.partition("~")[0]
        text = f"it is being taken over by {one.called} from {dead}, which is dead"
        answer.because("takeover", text, owner=dead, taker=one.name)
    elif one.kind not in LOOKERS:
        answer.because("verb", f"it is in the hands of {one.called} just now", owner=one.name)
    elif task.story.started is not None:
        _runs(scene, task, one, answer)
    elif task.story.staging is not None:
        _staged(scene, task, one, answer)
    else:
        text = f"it is claimed by {one.called} and has not started: it waits for room there"
        answer.because("claimed", text, owner=one.name, host=one.host)
    _owner(scene, one, answer)
    _asked(scene.tree, one, task, answer)


def _runs(scene: Scene, task: Task, one: Living, answer: Answer) -> None:
    """How long it has run, where, and which end is set for it."""
    story = task.story
    assert story.started is not None
    node = str(story.started.get("node") or _nodes(story.started.get("nodes")) or one.host)
    ran_s = scene.since(story.started.get("time")) or 0.0
    limit_s = task.manifest.time_limit_s
    attempt = f" (attempt {story.attempt})" if story.attempt > 1 else ""
    ran = units.print_age(ran_s)
    text = f"it has run for {ran}{attempt} on {node}, started by {one.called}"
    facts = {"owner": one.name, "node": node, "attempt": story.attempt, "ran_s": round(ran_s, 1)}
    answer.because("runs", text, **facts)
    if limit_s and not task.manifest.array:
        left = units.print_age(limit_s - ran_s) if limit_s > ran_s else "no time"
        text = f"its time limit is {units.print_duration(limit_s)}: {left} left"
        answer.because("time-limit", text, limit_s=limit_s, left_s=round(limit_s - ran_s, 1))
    else:
        answer.because("time-limit", "it has no time limit of its own", limit_s=0)
    if task.manifest.elements is not None:
        counts = elements.counts(task.path, task.manifest, running=True)
        told = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
        answer.because("elements", f"of its elements: {told}", **counts)
    _launchers_end(scene, one, answer)
    answer.advise(f"{_log_of(task.id)}   to see what it writes")


def _nodes(told: object) -> str:
    """The first of several nodes."""
    if not isinstance(told, list) or not told:
        return ""
    more = f" and {len(told) - 1} more" if len(told) > 1 else ""
    return f"{told[0]}{more}"


def _launchers_end(scene: Scene, one: Living, answer: Answer) -> None:
    """When its launcher has to stop it."""
    ends = one.record.get("ends")
    if not isinstance(ends, (int, float)):
        return
    left_s = max(0.0, ends - scene.now)
    text = (
        f"the launcher's time is up in {units.print_age(left_s)}: what still runs then goes back"
        " to READY, at no cost"
    )
    answer.because("launcher-ends", text, left_s=round(left_s, 1))


def _staged(scene: Scene, task: Task, one: Living, answer: Answer) -> None:
    begun = task.story.staging or {}
    stage = str(begun.get("stage", "prepare"))
    what = {"prepare": "what comes before its run", "close": "what follows its run"}
    since = scene.ago(begun.get("time"))
    text = f"{what.get(stage, stage)} is being done by {one.called}, begun {since}"
    answer.because("staging", text, stage=stage, owner=one.name)
    log = "stage_in.log, preprocess.log" if stage == "prepare" else "postprocess.log, handler.log"
    answer.advise(f"what it prints is in {task.path}: {log}")


def _owner(scene: Scene, one: Living, answer: Answer) -> None:
    """Whether its owner lives; what follows if it does not."""
    facts = {"owner": one.name, "verdict": one.verdict, "silent_s": one.silent_s}
    if one.alive:
        answer.because("owner", f"{one.called} lives: {one.heard}", **facts)
        return
    if one.verdict == DEAD:
        text = f"{one.called} is dead; another launcher or the service takes its tasks over"
    else:
        dead = units.print_duration(one.dead_s)
        text = f"{one.called} is silent: {one.heard}; after {dead} of silence it is taken over"
    answer.because("owner", text, **facts)
    if not [other for other in scene.lookers if other.name != one.name]:
        answer.because("nobody", "but no launcher and no service is at work to do that")
        answer.advise(f"run: {RUN_ONE}")


def _asked(tree: Tree, one: Living, task: Task, answer: Answer) -> None:
    """What a person asked its owner for that is not done yet."""
    words = {"cancel": "to stop it", "change": "to change it", "replaced": "to replace it"}
    for verb, what in words.items():
        if files.exists(tree.request(one.name, verb, task.id)):
            answer.because("asked", f"its owner was asked {what}, and has yet to do so", verb=verb)


def _log_of(task_id: str) -> str:
    """How to see what it writes."""
    array = layout.array_of(task_id)
    if array != task_id:
        first = task_id.rpartition("@")[2].partition("-")[0]
        return f"spool log -f '{array}[{first}]'"
    return f"spool log -f {task_id}"
