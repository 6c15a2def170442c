"""fitting - pure: which queue can ever serve a task, and which limit is in the way if none can.

Owns   the work that a need comes to; what a queue grants for so many nodes and seconds; the words
       for what fits nowhere.
Never  looks at caps that pass, a budget, or what runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from spool import units
from spool.queue import shape as shapes
from spool.queue.shape import Shape
from spool.service.caps import NO_LIMIT, named_queue
from spool.service.packing import Work, parts
from spool.service.terms import Band, Need, NodeShape, Policy, Queue


def work_of(need: Need, policy: Policy, queues: Sequence[Queue], longest_s: float) -> Work:
    """A need as sizing reckons with it; queues may be more than the policy's own.

    longest_s is what an allocation of the longest band can hold.
    """
    shape = need.shape
    work = Work(
        shape,
        need.count,
        shape.nodes,
        float(shape.time_s or min(policy.default_task_s, longest_s)),
        need.oldest_s,
        tuple(_parts(shape, queue) for queue in queues),
        left=need.count,
    )
    if shape.elements:
        _by_chunks(work, longest_s, min(policy.within_s, longest_s))
    work.asks = tuple(
        work.parts[number] > 0 and granted(work.nodes, work.time_s, queue, policy)
        for number, queue in enumerate(policy.queues)
    )
    return work


def longest_s(policy: Policy) -> float:
    """The usable seconds of the longest allocation there is; at least one."""
    bands = (band for queue in policy.queues for band in queue.bands)
    return max(1.0, max((_usable(band, policy) for band in bands), default=0.0))


def _by_chunks(work: Work, longest_s: float, within_s: float) -> None:
    """Elements of few chunks: a chunk runs on one node, so it is one task that fills it.

    It may be interrupted where its allocation ends.
    """
    chunks, parts = -(-work.count // work.shape.elements), max(work.parts, default=0)
    if not parts or work.count * work.time_s <= chunks * parts * within_s:
        return
    each_s = max(work.time_s, work.count * work.time_s / (chunks * parts))
    work.time_s = min(each_s, max(work.time_s, longest_s))
    work.count = work.left = chunks
    work.parts = tuple(min(one, 1) for one in work.parts)


def _parts(shape: Shape, queue: Queue) -> int:
    if not shapes.has_features(shape.features, queue.features):
        return 0
    return parts(shape, queue.node)


def _usable(band: Band, policy: Policy) -> float:
    return (band.max_s or math.inf) - policy.padding_s


def most_nodes(band: Band, queue: Queue, policy: Policy) -> int:
    """The widest allocation of a band that the policy's standing limits leave."""
    limits = (band.max_nodes, queue.max_live_nodes, policy.max_live_nodes)
    return min((limit for limit in limits if limit), default=NO_LIMIT)


def bands_for(nodes: int, time_s: float, queue: Queue, policy: Policy) -> Iterator[Band]:
    """The bands of a queue that can hold a task of so many nodes for so long."""
    for band in queue.bands:
        widest = most_nodes(band, queue, policy)
        if band.min_nodes <= widest >= nodes and _usable(band, policy) >= time_s:
            yield band


def granted(nodes: int, time_s: float, queue: Queue, policy: Policy) -> bool:
    """Whether any band does."""
    return next(bands_for(nodes, time_s, queue, policy), None) is not None


# -- what fits nowhere ---------------------------------------------------------------------------


def why_unfit(work: Work, policy: Policy) -> str:
    """The limit that is nearest to letting a task in, as a person says it."""
    if not policy.queues:
        return "there is no queue to ask"
    found = (obstacle(work, queue, policy) for queue in policy.queues)
    return max(found, key=lambda one: one[:2])[2]


def obstacle(work: Work, queue: Queue, policy: Policy) -> tuple[int, float, str]:
    """How far a task gets with a queue that never takes it, how much there is of what it lacks,
    and the words."""
    shape, named = work.shape, named_queue(queue)
    if not shapes.has_features(shape.features, queue.features):
        return 0, 0, f"needs {_features(shape)}, and the nodes of {named} have {_has(queue)}"
    if why := _too_large(shape, queue.node, named):
        return 1, queue.node.cores, why
    widest = max((most_nodes(band, queue, policy) for band in queue.bands), default=0)
    if work.nodes > widest:
        wanted = units.count(work.nodes, "node")
        return 2, widest, f"needs {wanted}, and {named} gives at most {widest:,}"
    return 3, *_too_long(work, queue, policy, named)


def _features(shape: Shape) -> str:
    named = shapes.features_of(shape.features)
    return " and ".join(sorted(named)) if named else "features whose names its lane only hashes"


def _has(queue: Queue) -> str:
    return ", ".join(sorted(queue.features)) or "no features"


def _too_large(shape: Shape, node: NodeShape, named: str) -> str:
    if not node.cores or parts(shape, node):
        return ""
    cores = shape.cores * shape.ranks
    for wanted, there, word in ((cores, node.cores, "core"), (shape.gpus, node.gpus, "GPU")):
        if wanted > there:
            return f"needs {units.count(wanted, word)} a node, and a node of {named} has {there:,}"
    memory, has = units.print_memory(shape.memory_mb), units.print_memory(node.memory_mb)
    return f"needs {memory} of memory a node, and a node of {named} has {has}"


def _too_long(work: Work, queue: Queue, policy: Policy, named: str) -> tuple[float, str]:
    longest = max(
        (
            band.max_s or math.inf
            for band in queue.bands
            if most_nodes(band, queue, policy) >= work.nodes
        ),
        default=0.0,
    )
    padding = units.print_duration(policy.padding_s)
    takes = units.print_duration(work.time_s)
    if longest - policy.padding_s >= work.time_s:
        return (
            longest,
            f"{named} gives only allocations of more nodes than the policy's limits allow",
        )
    return longest, (
        f"takes {takes} and {padding} of padding, and {named} gives"
        f" {units.count(work.nodes, 'node')} for at most {units.print_duration(longest)}"
    )
