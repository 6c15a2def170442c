"""ready - why a task is still in READY, as far as the tree tells: who is served first, which limits
of spool.toml are reached.

Never  opens another task; counts lanes by listing them, up to a bound.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from spool import units
from spool.queue import files, layout, limits, takeover, tasks
from spool.queue import shape as shapes
from spool.queue.layout import State, Tree
from spool.queue.limits import Use
from spool.queue.shape import Shape
from spool.queue.tasks import Task
from spool.queue.why.answer import Answer, listed
from spool.queue.why.scene import Living, Scene

MOST_LANES, MOST_TASKS = 1_000, 100_000
HIGHER, OLDER, LARGER, EQUAL = "of higher priority", "older", "larger", "alike"


class Row(NamedTuple):
    """Tasks of one lane that are served before a task, or like it, and which of these."""

    shape: Shape
    tasks: int
    rank: str


class Backlog(NamedTuple):
    """rows of a task's stage; same: all tasks of its shape; oldest: the start of their first hour,
    epoch seconds. whole: nothing was left out of the count."""

    rows: list[Row]
    same: int
    oldest: float
    whole: bool


def backlog(tree: Tree, group: str) -> Backlog:
    """What is served before a task of this lane, or at the same turn. Raises ValueError: no lane.

    Lanes are taken in serving order, so where the bound is met the first were counted.
    """
    mine, shard = shapes.parse(group)
    rows, same, counted, whole = [], 0, 0, True
    oldest = layout.shard_hour(shard)
    for number, lane in enumerate(_lanes_of(tree, mine.stage)):
        wanted, other = shapes.parse(lane)
        rank = _rank(lane, group)
        if not rank and wanted != mine:
            continue
        if number >= MOST_LANES or counted >= MOST_TASKS:
            whole = False
            break
        if not (count := len(files.names(tree.group(State.READY, lane)))):
            continue
        counted += count
        if wanted == mine:
            same += count
            oldest = min(oldest, layout.shard_hour(other))
        if rank:
            rows.append(Row(wanted, count, rank))
    return Backlog(rows, max(1, same), oldest, whole)


def _lanes_of(tree: Tree, stage: str) -> list[str]:
    """The lanes of a stage in serving order."""
    lanes = []
    for group in tasks.groups(tree, State.READY):
        try:
            if shapes.parse(group)[0].stage == stage:
                lanes.append(group)
        except ValueError:
            continue  # a stray: `check` tells
    return sorted(lanes, key=shapes.order)


def _rank(lane: str, mine: str) -> str:
    """Why a lane is served no later than a task's own; "" where it is later."""
    other, own = shapes.order(lane), shapes.order(mine)
    if other > own:
        return ""
    if other == own:
        return EQUAL
    return HIGHER if other[0] < own[0] else OLDER if other[1] < own[1] else LARGER


def ahead(found: Backlog, taken: dict[Shape, bool]) -> tuple[int, str]:
    """How many tasks that a launcher takes are served before ours, and in words which."""
    counts: Counter[str] = Counter()
    for row in found.rows:
        if taken.get(row.shape, True):
            counts[row.rank] += row.tasks
    alike = counts.pop(EQUAL, 1) - 1
    words = [f"{count:,} {rank}" for rank, count in counts.items()]
    total = counts.total()
    least = "" if found.whole else "at least "
    text = f"{least}{units.count(total, 'task')} before it ({', '.join(words)})" if total else ""
    if alike > 0:
        text += f"{' and ' if text else ''}{alike:,} at the same turn, in random order"
    return total, text


def asks_for(shape: Shape) -> str:
    """The room of a shape in words."""
    cores = units.count(shape.cores * shape.ranks, "core")
    where = f"{units.count(shape.nodes, 'node')} with {cores} each" if shape.nodes > 1 else cores
    words = [where]
    words += [units.count(shape.gpus, "GPU")] if shape.gpus else []
    words += [f"{units.print_memory(shape.memory_mb)} of memory"] if shape.memory_mb else []
    if shape.features:
        named = shapes.features_of(shape.features)
        words.append(f"a node with {' and '.join(sorted(named))}" if named else "certain features")
    lasts = f" for {units.print_duration(shape.time_s)}" if shape.time_s else ""
    return f"{', '.join(words)}{lasts}"


def tell_tries(scene: Scene, task: Task, answer: Answer) -> None:
    """That it has begun before, and what became of that."""
    story = task.story
    if not story.attempt:
        return
    counts = ((story.failures, "failed"), (story.interruptions, "was interrupted"),
              (story.losses, "was lost with its launcher"))  # fmt: skip
    words = [f"{count} of them {what}" for count, what in counts if count]
    told = f", {', '.join(words)}" if words else ""
    text = f"it was started {story.attempt} times before{told}".replace(" 1 times", " once")
    answer.because("tries", text, attempts=story.attempt)


# -- limits --------------------------------------------------------------------------------------


def limits_reached(scene: Scene, task: Task) -> list[Use]:
    """The limits that it falls under and of which no token is free."""
    found = limits.applying(scene.settings.limits, task.manifest)
    owners = {name for one in scene.owners for name in (one.name, one.group.partition("~")[0])}
    uses = (use for limit in found for use in limits.use(scene.tree, limit, sorted(owners)))
    return [use for use in uses if use.reached or not use.limit.count]


def tell_limits(scene: Scene, task: Task, answer: Answer) -> bool:
    """Tell which limits are reached; whether one of them keeps the task back wherever it may."""
    reached = limits_reached(scene, task)
    for use in reached:
        held = [f"{_called(scene, name)} has {count}" for name, count in use.owners.items()]
        where = f" on {use.node}" if use.node else ""
        text = f"the limit {use.limit.key!r} is reached{where}: {use.limit.count} at once"
        text += f", and {listed(held)}" if held else ""
        answer.because(
            "limit", text, limit=use.limit.key, count=use.limit.count, node=use.node,
            holders=use.owners,
        )  # fmt: skip
    hard = [use for use in reached if not use.node]
    hard += [use for use in reached if not use.limit.count]
    if hard:
        answer.advise(f"raise {hard[0].limit.key!r} under [limits] in spool.toml, or wait")
    return bool(hard)


def _called(scene: Scene, name: str) -> str:
    found: Living | None = next((one for one in scene.owners if one.name == name), None)
    dead = f" ({found.verdict})" if found and not found.alive else ""
    return (found.called if found else takeover.holder(name)) + dead
