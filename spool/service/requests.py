"""requests - asking a batch system for an allocation, and asking for its end.

Owns   the order record -> submission -> record: an allocation that was submitted is written down
       before, so that whoever is killed in between is found again by its name.
Never  decides whether to ask.
Fails  Declined: the batch system said no, and the record says what. SpoolError: a bad template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spool import units
from spool.queue import allocations, files, layout, owner
from spool.queue.allocations import (
    ASKED,
    ENDED,
    NEVER,
    QUEUED,
    Allocation,
    Asked,
    Closed,
    Standing,
)
from spool.queue.layout import Tree
from spool.service import script
from spool.service.policy import ServiceSettings
from spool.service.system import BatchSystem, Declined, Order, Unreachable, host_of
from spool.service.terms import NodeShape, Queue

REFUSED = "refused"
TIMELESS = ("local", "lsf", "sge")
"""Where a launcher cannot ask for its time left: it is told."""
SLACK_S = 20.0  # between the start of a job and that of its launcher


class Requests:
    """Asks one batch system on behalf of one spool."""

    def __init__(self, tree: Tree, system: BatchSystem, settings: ServiceSettings) -> None:
        self.tree, self.system, self.settings = tree, system, settings
        self.template = script.template(tree, settings.template)

    def prepared(
        self,
        queue: Queue,
        nodes: int,
        walltime_s: float,
        why: str,
        *,
        account: str = "",
        options: Sequence[str] = (),
        selects: str = "",
        by_hand: bool = False,
    ) -> tuple[Asked, Order, str]:
        """What would be asked: the record, the order and the script."""
        own = self.settings.of(queue.name)
        name = allocations.new_name(self.tree)
        words = (*self._options(queue, nodes, walltime_s), *options)
        asked = Asked(
            name=name,
            system=self.system.name,
            queue=queue.name,
            nodes=nodes,
            walltime_s=walltime_s,
            time=units.now_stamp(),
            account=account or own.account,
            by=owner.user_name(),
            why=why,
            launcher=words,
            selects=selects,
            by_hand=by_hand,
            cost=queue.cost,
            cores=queue.node.cores,
            host=host_of(self.system),
        )
        order = Order(
            name=name,
            queue=queue.name,
            nodes=nodes,
            walltime_s=walltime_s,
            account=asked.account,
            node=queue.node,
            output=self.tree.allocation(name, layout.OUTPUT),
            directives=own.directives,
        )
        text = script.filled(
            self.template,
            self.tree,
            head=self.system.head(order),
            name=name,
            why=why,
            setup=own.setup,
            options=words,
            nodes=nodes,
            queue=queue.name,
            walltime_s=int(walltime_s),
        )
        return asked, order, text

    def _options(self, queue: Queue, nodes: int, walltime_s: float) -> list[str]:
        """The launcher's options for a node of this queue."""
        words = ["--idle-timeout", f"{self.settings.idle_timeout_s:g}s"]
        for feature in sorted(queue.features):
            words += ["--requires", feature]
        if self.system.name in TIMELESS:
            words += ["--time-limit", f"{max(1.0, walltime_s - min(SLACK_S, walltime_s / 10)):g}s"]
        words += _of_node(queue.node)
        if self.system.name == "local":  # several allocations may play their nodes on one machine
            words += ["--nodes", str(nodes), "--no-pin"]
        return words

    def ask(
        self, asked: Asked, order: Order, text: str, may: Callable[[], bool] = lambda: True
    ) -> Allocation:
        """Write it down and submit it. Raises Declined, DiskFull, OSError.

        Where no usable answer comes it may have been submitted: it stays asked for, and the next
        looks at the batch system tell. `may` is asked once the record is there, so that of two
        services at work by mistake one sees that it is not alone, or the other sees the record;
        where it says no the allocation is over at once.
        """
        allocations.make(self.tree, asked, text)
        one = Allocation(asked, Standing(state=ASKED))
        if not may():
            self._closed(one, NEVER, "the post of service was another's")
            return one
        try:
            one.standing.job = self.system.submit(
                self.tree.allocation(asked.name, layout.SCRIPT), order
            )
            one.standing.state = QUEUED
        except Unreachable as fault:
            one.standing.why = f"no answer to the submission: {fault}"
        except Declined as fault:
            self._closed(one, REFUSED, str(fault))
            raise
        allocations.write(self.tree, asked.name, one.standing)
        return one

    def _closed(self, one: Allocation, outcome: str, said: str) -> None:
        """Close an allocation that was not submitted, or not taken."""
        one.standing.state, one.standing.outcome = ENDED, outcome
        one.standing.why, one.standing.ended = said, units.now_stamp()
        allocations.write(self.tree, one.asked.name, one.standing)
        line = Closed(
            name=one.asked.name,
            queue=one.asked.queue,
            nodes=one.asked.nodes,
            outcome=outcome,
            ended=one.standing.ended,
            waited_s=0.0,
            ran_s=0.0,
            charged_node_s=0.0,
            why=said,
        )
        allocations.close(self.tree, line)

    def withdraw(self, ours: Sequence[Allocation]) -> None:
        """Ask the batch system for the end of those that it knows. Raises Unreachable, Declined."""
        mine = (one for one in ours if tells_of(self.system, one))
        if jobs := [one.standing.job for one in mine if one.standing.job]:
            self.system.cancel(jobs)


def tells_of(system: BatchSystem, one: Allocation) -> bool:
    """Whether this batch system is the one that was asked for an allocation."""
    asked = one.asked
    return asked.system == system.name and asked.host in ("", host_of(system))


def request_end(tree: Tree, name: str, why: str) -> None:
    """Leave word that somebody wants an allocation's end, for whoever keeps its record."""
    path = tree.allocation(name, layout.END_WANTED)
    files.replace(path, f"{owner.user_name()}: {why}\n".encode())


def wanted_end(tree: Tree, name: str) -> str:
    """That word; "" where there is none."""
    raw = files.read(tree.allocation(name, layout.END_WANTED), 4096)
    return raw.decode(errors="replace").strip() if raw else ""


def _of_node(node: NodeShape) -> list[str]:
    words = ["--cores-per-node", str(node.cores)] if node.cores else []
    words += ["--gpus-per-node", str(node.gpus)] if node.gpus else []
    return words + (["--memory-per-node", f"{node.memory_mb}M"] if node.memory_mb else [])
