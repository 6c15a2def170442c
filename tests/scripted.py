"""A batch system whose answers are set by hand, for those that cannot be had here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from spool.service.system import Job, Order, Partition, Unreachable
from spool.service.terms import NodeShape, Window


class Scripted:
    """Takes jobs and keeps them queued; faults are raised by the call of that name.

    before and after are for submit: what it raises without, or in spite of, having taken the job.
    """

    name = "scripted"

    def __init__(self, nodes: int = 8, cores: int = 4) -> None:
        self.table: dict[str, Job] = {}
        self.faults: dict[str, Exception] = {}
        self.before: Exception | None = None
        self.after: Exception | None = None
        self.hidden = False
        self.idle: tuple[Window, ...] | None = None
        self.orders: list[Order] = []
        self.cancelled: list[str] = []
        self.nodes, self.cores = nodes, cores
        self.next_id = 1

    def head(self, order: Order) -> list[str]:
        return [f"#SCRIPTED {line}" for line in order.directives]

    def submit(self, script: str, order: Order) -> str:
        self._may("submit")
        if self.before is not None:
            raise self.before
        id_, self.next_id = str(self.next_id), self.next_id + 1
        self.orders.append(order)
        self.table[id_] = Job(
            id=id_, name=order.name, state="queued", queue=order.queue, nodes=order.nodes
        )
        assert Path(script).read_text().startswith("#!"), "there is a script"
        if self.after is not None:
            raise self.after
        return id_

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        self._may("jobs")
        if self.hidden:
            return {}
        wanted = set(known)
        return {
            id_: job
            for id_, job in self.table.items()
            if id_ in wanted or job.name.startswith(names)
        }

    def cancel(self, ids: Sequence[str]) -> None:
        self._may("cancel")
        self.cancelled += ids
        for id_ in ids:
            if self.table[id_].state == "queued":
                self.change(id_, state="ended", outcome="cancelled")

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        self._may("windows")
        return self.idle

    def partitions(self) -> list[Partition]:
        self._may("partitions")
        node = NodeShape(self.cores, 0, 16_000)
        return [Partition(name="batch", default=True, nodes=self.nodes, node=node, max_s=36_000.0)]

    def dry_run(self, script: str, order: Order) -> str | None:
        self._may("dry_run")
        return None

    def change(self, id_: str, **what: object) -> None:
        """What it will say of a job from now on."""
        self.table[id_] = msgspec.structs.replace(self.table[id_], **what)

    def _may(self, call: str) -> None:
        if (fault := self.faults.get(call) or self.faults.get("all")) is not None:
            raise fault

    def down(self) -> None:
        """No answer to anything."""
        self.faults["all"] = Unreachable("slurm_load_jobs error: Unable to contact controller")

    def up(self) -> None:
        """Answers again."""
        self.faults.clear()
