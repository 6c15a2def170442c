"""prospects - whether launchers that are at work would take a READY task, by their records.

Owns   the reading of launcher.json back into the rules a launcher goes by (picker.Rules).
Never  guesses what it cannot see: which cores are free just now only the launcher itself knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spool import units
from spool.launcher.book import Book
from spool.launcher.nodes import Node
from spool.launcher.picker import Rules, Wishes
from spool.launcher.stopping import margin_s
from spool.queue import allocations, owner
from spool.queue import shape as shapes
from spool.queue.shape import Shape
from spool.queue.tasks import Task
from spool.queue.why import ready
from spool.queue.why.answer import Answer, listed
from spool.queue.why.ready import Backlog
from spool.queue.why.scene import Living, Scene

MOST_NODES = 10_000
TOLD = 6
FULL = 0.99


@dataclass(frozen=True, slots=True)
class Prospect:
    """One launcher and a task: "" if it would take it, else why not; busy as it last told."""

    launcher: Living
    rules: Rules
    why_not: str
    busy: float | None
    left_s: float

    @property
    def described(self) -> str:
        """In a sentence: the launcher on node7 (pid 4711; 2 nodes, 64 cores, 40% busy, 1h left)."""
        book, name = self.rules.book, allocations.of_owner(self.launcher.record)
        words = [units.count(len(book.nodes), "node")] if len(book.nodes) > 1 else []
        words.append(units.count(book.cores, "core"))
        words += [f"{self.busy:.0%} busy"] if self.busy is not None else []
        words += [f"{units.print_age(self.left_s)} left"] if self.left_s < math.inf else []
        words += [f"allocation {name}"] if name else []
        return f"{self.launcher.called.rstrip(')')}; {', '.join(words)})"


# -- from a record -------------------------------------------------------------------------------


def rules_of(record: dict[str, Any], tasks: int) -> Rules:
    """The rules of a launcher by its record, its time by the clock of the day; tasks run in it."""
    ends = record.get("ends")
    ends_at = float(ends) if isinstance(ends, (int, float)) else 0.0
    found = Rules(Book(_nodes(record)), _wishes(record), ends_at)
    found.margin_s = margin_s(_limit_s(record, ends_at), tasks) if ends_at else 0.0
    found.no_mpi = lambda: str(record.get("no_mpi") or "")
    return found


def _wishes(record: dict[str, Any]) -> Wishes:
    return Wishes(
        mode=str(record.get("mode", "auto")),
        workflow=str(record.get("workflow", "")),
        tags=tuple(_words(record.get("tags"))),
        features=frozenset(_words(record.get("features"))),
    )


def _words(told: object) -> Iterator[str]:
    yield from map(str, told if isinstance(told, list) else ())


def _nodes(record: dict[str, Any]) -> list[Node]:
    """Its nodes, as `each` counts them; one that has no such word is taken for even nodes."""
    each = record.get("each")
    if isinstance(each, list) and all(_is_row(row) for row in each) and each:
        nodes = [_node(*row[1:]) for row in each for _ in range(min(row[0], MOST_NODES))]
        return nodes[:MOST_NODES]
    count = max(1, min(_whole(record.get("nodes")), MOST_NODES))
    gpus = record.get("gpus")
    has = len(gpus) if isinstance(gpus, list) else 0
    cores, memory_mb = _whole(record.get("cores")), _whole(record.get("memory_mb"))
    return [_node(cores // count, has, memory_mb // count)] * count


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(type(one) is int for one in row)


def _node(cores: int, gpus: int, memory_mb: int) -> Node:
    return Node(tuple(range(cores)), tuple(map(str, range(gpus))), memory_mb)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _limit_s(record: dict[str, Any], ends_at: float) -> float:
    """The time it was given in all."""
    try:
        return max(0.0, ends_at - units.read_stamp(str(record.get("started"))))
    except ValueError:
        return 0.0


# -- what each would do --------------------------------------------------------------------------


def of(scene: Scene, shape: Shape, tags: list[str]) -> list[Prospect]:
    """Each launcher at work and what it would do with such a task; its hands go with it."""
    return [_prospect(scene, one, shape, tags) for one in scene.living("launcher")]


def _prospect(scene: Scene, one: Living, shape: Shape, tags: list[str]) -> Prospect:
    rules = rules_of(one.record, one.tasks)
    left_s = rules.ends_at - scene.now if rules.ends_at else math.inf
    busy = owner.read_busy(scene.tree, one.name)
    why = _why_not(rules, one, shape, tags, scene.now)
    return Prospect(one, rules, why, busy, max(0.0, left_s))


def _why_not(rules: Rules, one: Living, shape: Shape, tags: list[str], now: float) -> str:
    if one.record.get("draining"):
        return "it takes nothing more, since it was told to end"
    if why := rules.why_not(shape, now):
        return f"such tasks {'' if why.startswith(('need ', 'are ')) else 'are '}{why}"
    if lacking := set(rules.wishes.tags) - set(tags):
        return f"it takes only tasks with the tag {min(lacking)}"
    return ""


def explain(scene: Scene, task: Task, shape: Shape, found: Backlog, answer: Answer) -> bool:
    """Tell what each launcher at work would do with a READY task; whether one takes it."""
    prospects = of(scene, shape, task.manifest.tags)
    willing = [one for one in prospects if not one.why_not]
    for one in willing[:TOLD]:
        _tell_willing(one, found, answer)
    others = [one for one in prospects if one.why_not]
    for one in others[: max(1, TOLD - len(willing))]:
        text = f"{one.described} does not take it: {one.why_not}"
        answer.because("launcher", text, owner=one.launcher.name, takes=False, why=one.why_not)
    if (more := len(prospects) - TOLD) > 0:
        able = len(willing) - min(TOLD, len(willing))
        text = f"and {units.count(more, 'launcher')} more, of which {able:,} would take it"
        answer.because("launchers", text, more=more, able=able)
    silent = [one for one in scene.owners if one.kind == "launcher" and not one.alive]
    if silent:
        called = listed([f"{one.called} ({one.verdict})" for one in silent], 2)
        answer.because("gone", f"not counted, as they do not live: {called}", count=len(silent))
    return bool(willing)


def _tell_willing(one: Prospect, found: Backlog, answer: Answer) -> None:
    """A launcher that would take it: what is before it there."""
    taken = {row.shape: not one.rules.why_not(row.shape, _now(one)) for row in found.rows}
    total, words = ready.ahead(found, taken)
    if words:
        text = f"{one.described} may take it; it serves {words}"
    elif one.busy is not None and one.busy >= FULL:
        text = f"{one.described} takes it next, as soon as it has room"
    else:
        text = f"{one.described} should take it soon: nothing is served before it"
    facts = {"owner": one.launcher.name, "takes": True, "ahead": total, "busy": one.busy}
    answer.because("launcher", text, **facts)


def _now(one: Prospect) -> float:
    return one.rules.ends_at - one.left_s if one.rules.ends_at else 0.0


# -- stages --------------------------------------------------------------------------------------


def explain_stage(
    scene: Scene, task: Task, shape: Shape, found: Backlog, answer: Answer, *, service: bool
) -> None:
    """Tell who could do what is around the run of a task. service: it starts stagers here."""
    what = "brought in and prepared" if shape.stage == "prepare" else "closed: what follows its run"
    answer.because("stage", f"it is to be {what}, which a stager does", stage=shape.stage)
    willing = [one for one in scene.owners if _may_stage(one, shape, task)]
    for one in willing[:TOLD]:
        text = f"{one.called} is at work on {units.count(one.tasks, 'task')}"
        places = one.record.get("at_once")
        text += f" of at most {places} at once" if isinstance(places, int) else ""
        _, words = ready.ahead(found, {})
        text += f"; {words}" if words else ""
        answer.because("stager", text, owner=one.name, tasks=one.tasks, at_once=places)
    if not willing:
        _no_stager(scene, shape, task, answer, service=service)


def _may_stage(one: Living, shape: Shape, task: Task) -> bool:
    """Whether this is a stager at work that takes such tasks."""
    if one.kind != "stager" or not one.alive or one.group != one.name:
        return False
    wishes = _wishes(one.record)
    token = shapes.name_token(wishes.workflow)
    return token in ("", shape.workflow) and set(wishes.tags) <= set(task.manifest.tags)


def _no_stager(scene: Scene, shape: Shape, task: Task, answer: Answer, *, service: bool) -> None:
    """Who would start one."""
    allowed = scene.settings.staging_launchers and scene.settings.staging_at_once > 0
    if not scene.settings.staging_at_once:
        answer.because("no-stager", "staging.at_once = 0 in spool.toml: no stager does anything")
        answer.advise("set at_once under [staging] in spool.toml")
        return
    starters = [
        one
        for one in scene.living("launcher")
        if shapes.name_token(_wishes(one.record).workflow) in ("", shape.workflow)
        and not one.record.get("draining")
    ]
    if starters and allowed:
        text = f"no stager is at work; {starters[0].called} starts one when it sees this"
        answer.because("no-stager", text, starter=starters[0].name)
    elif service:
        answer.because("no-stager", "no stager is at work; the service starts one when it looks")
    else:
        why = "" if allowed else " (staging.launchers = false: launchers start none)"
        answer.because("no-stager", f"no stager is at work, and nobody starts one{why}")
        answer.advise("run: spool launcher --stage" if not allowed else "run: spool launcher")
