"""checking - whether the batch system would take what the policy may ask for, by its own dry run.

Owns   one request per queue that is never submitted; the comparison of queues with what there is.
Fails  Unreachable: the batch system gives no answer. SpoolError: a bad template.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import msgspec

from spool import units
from spool.queue.layout import Tree
from spool.service import policy
from spool.service.policy import ServiceSettings
from spool.service.requests import Requests
from spool.service.system import BatchSystem, Declined, Partition
from spool.service.terms import Queue


class Checked(msgspec.Struct, frozen=True):
    """One queue: whether a request would be taken, and what the batch system says."""

    queue: str
    ok: bool
    said: str


def queues(tree: Tree, wanted: ServiceSettings, system: BatchSystem) -> Iterator[Checked]:
    """Each queue of the policy, tried with its smallest request."""
    partitions = system.partitions()
    requests = Requests(tree, system, wanted)
    for queue in policy.completed(wanted.policy, partitions).queues:
        if missing := _missing(queue, partitions):
            yield Checked(queue.name, False, missing)
        else:
            yield _tried(requests, system, queue)


def _missing(queue: Queue, partitions: list[Partition]) -> str:
    """What is wrong with a queue by the list of those there are; "" for nothing."""
    names = sorted(one.name for one in partitions)
    if queue.name and names and queue.name not in names:
        return f"there is no such queue; there are {', '.join(names)}"
    return ""


def _tried(requests: Requests, system: BatchSystem, queue: Queue) -> Checked:
    band = queue.bands[0]
    walltime_s = min(max(queue.min_s, 60.0), band.max_s or queue.min_s)
    nodes = band.min_nodes
    _, order, text = requests.prepared(queue, nodes, walltime_s, "a check")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(text)
        file.flush()
        try:
            said = system.dry_run(file.name, order)
        except Declined as fault:
            return Checked(queue.name, False, f"{fault} (asked for {_words(nodes, walltime_s)})")
    if said is None:
        return Checked(queue.name, True, f"{system.name} has no dry run; the script was rendered")
    return Checked(queue.name, True, f"{said} (asked for {_words(nodes, walltime_s)})")


def _words(nodes: int, walltime_s: float) -> str:
    return f"{units.count(nodes, 'node')}, {walltime_s / 60:.0f} min"
