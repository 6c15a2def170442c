"""local - this machine as a batch system: its allocations are processes that outlive their asker.

Owns   the translation between local_tree's files and what the service asks.
Never  runs as a daemon: who asks about jobs, or submits one, starts what is queued and fits; and a
       job that ends starts the next. A process per job (local_run.py) keeps its walltime.
Fails  Declined. Unreachable: to cancel a job that runs on another host.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from spool.service.local_tree import LocalTree, Record, Run
from spool.service.system import UNBOUNDED_S, Declined, Job, Order, Partition, Unreachable
from spool.service.terms import NodeShape, Window

QUEUE = "local"
GRACE_S = 30.0


class Local:
    """This machine, as `nodes` equal nodes; folder holds the jobs' files and nothing else."""

    name = "local"

    def __init__(
        self,
        folder: str,
        *,
        nodes: int = 1,
        node: NodeShape | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._tree = LocalTree(os.path.abspath(folder), nodes, grace_s)
        self._node = node or _share_of_this_machine(nodes)

    # -- submission ------------------------------------------------------------------------------

    def head(self, order: Order) -> list[str]:
        """No directives: all that counts stands in the order."""
        return []

    def submit(self, script: str, order: Order) -> str:
        """The job's id; it starts at once if its nodes are free."""
        self._check(script, order)
        record = Record(
            name=order.name,
            nodes=order.nodes,
            walltime_s=order.walltime_s,
            script=os.path.abspath(script),
            folder=os.getcwd(),
            output=os.path.abspath(order.output) if order.output else "",
        )
        id_ = self._tree.add(record)
        self._tree.start_queued()
        return id_

    def dry_run(self, script: str, order: Order) -> str | None:
        """Whether this machine has such nodes."""
        self._check(script, order)
        return f"{order.nodes} of the {self._tree.nodes} nodes that this machine plays"

    def _check(self, script: str, order: Order) -> None:
        if order.queue not in ("", QUEUE):
            raise Declined("partition", f"no queue {order.queue!r} here, only {QUEUE!r}")
        if not 1 <= order.nodes <= self._tree.nodes:
            have = self._tree.nodes
            raise Declined("limit", f"{order.nodes} nodes, but this machine plays only {have}")
        if order.walltime_s <= 0:
            raise Declined("limit", f"a walltime of {order.walltime_s:g} s is none")
        if not os.path.isfile(script):
            raise Declined("script", f"{script}: no such file")

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL after the grace; a queued one is gone at once."""
        left = {id_ for id_ in ids if not self._tree.withdraw(id_)}
        far = []
        for run in self._tree.running() if left else ():
            if run.id in left and run.is_here() and run.lives():
                with suppress(ProcessLookupError):
                    os.kill(run.pid, signal.SIGTERM)
            elif run.id in left and not run.is_here():
                far.append(run)
        if far:
            raise Unreachable(f"{far[0].id} runs on {far[0].host} and can be cancelled only there")

    # -- jobs ------------------------------------------------------------------------------------

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """In the order in which a job moves on, so that none is missed."""
        self._tree.tidy()
        self._tree.start_queued()
        found: dict[str, Job] = {}
        for id_ in self._tree.queued():
            if record := self._tree.record("queued", id_):
                found[id_] = self._job(id_, record, "queued", why="Resources: it waits for nodes")
        for run in self._tree.running():
            if record := self._tree.record("running", str(run)):
                found[run.id] = self._running(run, record)
        for id_, outcome in self._tree.ended():
            if record := self._tree.record("ended", f"{id_}@{outcome}"):
                found[id_] = self._job(id_, record, "ended", outcome=outcome, used_s=record.used_s)
        wanted = set(known)
        return {i: job for i, job in found.items() if i in wanted or job.name.startswith(names)}

    def _running(self, run: Run, record: Record) -> Job:
        if not run.is_here():
            return self._job(run.id, record, "running", hosts=run.host)
        used_s = run.age_s()
        left_s = max(0.0, record.walltime_s - used_s)
        state = "running" if left_s else "ending"
        return self._job(run.id, record, state, hosts=run.host, used_s=used_s, left_s=left_s)

    def _job(
        self,
        id_: str,
        record: Record,
        state: str,
        *,
        why: str = "",
        outcome: str = "",
        hosts: str = "",
        used_s: float | None = None,
        left_s: float | None = None,
    ) -> Job:
        return Job(
            id=id_,
            name=record.name,
            state=state,
            queue=QUEUE,
            nodes=record.nodes,
            left_s=left_s,
            why=why,
            outcome=outcome,
            used_s=used_s,
            hosts=hosts,
        )

    # -- the machine -----------------------------------------------------------------------------

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """The free nodes, unless others wait for them."""
        free = 0 if self._tree.queued() else self._tree.nodes - self._tree.used_nodes()
        return (Window(free, UNBOUNDED_S),) if free > 0 else ()

    def partitions(self) -> list[Partition]:
        """The one there is."""
        nodes = self._tree.nodes
        return [Partition(name=QUEUE, default=True, nodes=nodes, node=self._node, max_nodes=nodes)]


def _share_of_this_machine(nodes: int) -> NodeShape:
    cores = len(os.sched_getaffinity(0))
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return NodeShape(max(1, cores // nodes), 0, memory_mb // nodes)
