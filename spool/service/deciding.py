"""deciding - one look at everything, one decision, what is done about it, and its report.

Owns   the step of the service: follow, learn from what ended, size, withdraw, ask; its line in
       journal/service.jsonl.
Never  asks for anything unless `may_ask` says, just before, that it may.
Fails  SpoolError, OSError: the spool itself cannot be read or written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from spool import units
from spool.queue import allocations
from spool.queue.allocations import NEVER, STOPPED, Allocation, Closed
from spool.queue.layout import Tree
from spool.service import backlog, memory, policy, situation, sizing, troubles, usage
from spool.service.policy import ServiceSettings
from spool.service.requests import REFUSED, Requests, wanted_end
from spool.service.system import BatchSystem, Declined, Unreachable
from spool.service.terms import Decision, Queue, Request
from spool.service.tracking import Tracker

AT_START_S = 30.0
"""An allocation that ends so soon, and in which no launcher signed in, died at its start."""


class Report(msgspec.Struct, kw_only=True):
    """One decision and what became of it, as the journal has it.

    ready counts tasks and chunks, live allocations; why are sentences, for people.
    """

    system: str
    ready: int = 0
    live: dict[str, int] = {}
    why: tuple[str, ...] = ()
    asked: list[dict[str, Any]] = []
    withdrawn: list[dict[str, str]] = []
    refused: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    unfit: tuple[tuple[str, str], ...] = ()
    figures: dict[str, float] = {}
    staged: bool = False  # lanes for stagers are there

    @property
    def acted(self) -> bool:
        """Whether anything was asked for, cancelled or found to have ended."""
        return bool(self.asked or self.withdrawn or self.refused or self.ended)


class Decider:
    """Decides for one spool; dry: nothing is changed or written."""

    def __init__(
        self,
        tree: Tree,
        wanted: ServiceSettings,
        system: BatchSystem,
        may_ask: Callable[[], bool],
        *,
        dry: bool = False,
    ) -> None:
        self.tree, self.wanted, self.system, self.may_ask, self.dry = (
            tree, wanted, system, may_ask, dry,
        )  # fmt: skip
        self.requests = Requests(tree, system, wanted)
        self.tracker = Tracker(tree, system, keep=dry)
        self.memory = memory.load(tree)
        self.policy = wanted.policy
        self.complete = False

    def step(self) -> Report:
        """Look, decide, act."""
        now = time.time()
        report = Report(system=self.system.name)
        try:
            ours = self.tracker.look(now)
            self._complete()
        except Unreachable as fault:
            self._trouble(troubles.EVERYWHERE, troubles.SILENT, str(fault), now)
            report.why = (f"nothing is decided: {self.system.name} gives no answer: {fault}",)
            return self._told(report)
        finally:
            self._learn(report, now)
        self._answered()
        waits = backlog.take(self.tree, now)
        report.ready, report.staged, report.live = waits.tasks, waits.staged, _by_state(ours)
        rests = troubles.standing(self.memory.marks, now)
        found = situation.gather(self.tree, self.system, self.policy, waits, ours, rests)
        decision = sizing.decide(found, self.policy)
        self._do(decision, ours, report, now)
        return self._told(report)

    def _complete(self) -> None:
        """What spool.toml leaves open of the queues, as the batch system tells it."""
        if not self.complete:
            self.memory.partitions = tuple(self.system.partitions())
            self.policy = policy.completed(self.wanted.policy, self.memory.partitions)
            self.complete = True

    # -- what is learnt --------------------------------------------------------------------------

    def _learn(self, report: Report, now: float) -> None:
        """From what has ended since the last look."""
        over, self.tracker.over = self.tracker.over, []
        for one, line in over:
            report.ended.append(msgspec.to_builtins(line) | {"utilisation": line.utilisation})
            self._judge(one, line, now)

    def _judge(self, one: Allocation, line: Closed, now: float) -> None:
        """An allocation that died at its start is a trouble of its queue; preemption is none."""
        if line.outcome in (*STOPPED, NEVER) or one.standing.withdrawn:
            return
        signed_in = bool(allocations.launchers(self.tree, line.name))
        if signed_in:
            self.memory.marks = troubles.cleared(self.memory.marks, line.queue)
        elif line.ran_s < AT_START_S:
            said = usage.output_tail(self.tree, line.name).splitlines()[-1:] or ["it said nothing"]
            self._trouble(line.queue, "died at start", f"{line.name}: {said[0][:200]}", now)

    def _trouble(self, queue: str, cause: str, said: str, now: float) -> None:
        self.memory.marks = troubles.marked(self.memory.marks, queue, cause, said, now)

    def _answered(self) -> None:
        mark = self.memory.marks.get(troubles.EVERYWHERE)
        if mark is not None and mark.cause == troubles.SILENT:
            self.memory.marks = troubles.cleared(self.memory.marks, troubles.EVERYWHERE)

    # -- what is done ----------------------------------------------------------------------------

    def _do(self, decision: Decision, ours: list[Allocation], report: Report, now: float) -> None:
        report.why, report.figures = decision.why, dict(decision.figures)
        report.unfit = decision.unfit
        by_hand = {one.asked.name for one in ours if one.asked.by_hand}
        ends = {gone.name: gone.why for gone in decision.withdrawals if gone.name not in by_hand}
        for one in ours:
            name, seen = one.asked.name, one.standing
            if (word := wanted_end(self.tree, name)) and not seen.withdrawn:
                ends[name] = word
            if seen.unneeded != (name in decision.unneeded):
                seen.unneeded = not seen.unneeded
                self._write(one)
        self._withdraw([one for one in ours if one.asked.name in ends], ends, report, now)
        for request in decision.requests:
            if not self._ask(request, report, now):
                break

    def _write(self, one: Allocation) -> None:
        if not self.dry:
            allocations.write(self.tree, one.asked.name, one.standing)

    def _withdraw(
        self, gone: list[Allocation], whys: dict[str, str], report: Report, now: float
    ) -> None:
        if not gone:
            return
        for one in gone:
            one.standing.withdrawn = whys[one.asked.name]
            report.withdrawn.append({"name": one.asked.name, "why": whys[one.asked.name]})
        if self.dry:
            return
        try:
            self.requests.withdraw(gone)
        except Unreachable as fault:
            self._trouble(troubles.EVERYWHERE, troubles.SILENT, str(fault), now)
            return  # the next decision withdraws them again
        for one in gone:
            self._write(one)

    def _ask(self, request: Request, report: Report, now: float) -> bool:
        """Ask for one allocation; False: ask for no more now."""
        queue = self._queue(request.queue)
        asked, order, text = self.requests.prepared(
            queue, request.nodes, request.walltime_s, request.why
        )
        told = {
            "name": asked.name,
            "queue": asked.queue,
            "nodes": asked.nodes,
            "walltime_s": asked.walltime_s,
            "why": asked.why,
        }
        if self.dry:
            report.asked.append(told)
            return True
        if not self.may_ask():
            report.why = (*report.why, "the post of service is not ours any more: nothing is asked")
            return False
        try:
            one = self.requests.ask(asked, order, text)
        except Declined as fault:
            report.refused.append(told | {"cause": fault.cause, "said": str(fault)})
            self._trouble(queue.name, fault.cause, str(fault), now)
            return False
        report.asked.append(told | {"job": one.standing.job})
        if not one.standing.job:
            self._trouble(troubles.EVERYWHERE, troubles.SILENT, one.standing.why, now)
            return False
        mark = self.memory.marks.get(queue.name)
        if mark is not None and mark.cause != "died at start":
            self.memory.marks = troubles.cleared(self.memory.marks, queue.name)
        return True

    def _queue(self, name: str) -> Queue:
        return next(queue for queue in self.policy.queues if queue.name == name)

    # -- what is said ----------------------------------------------------------------------------

    def _told(self, report: Report) -> Report:
        """Keep the report in the journal where it says anything new."""
        if self.dry:
            return report
        words = tuple(sorted(report.why))
        if report.acted or words != self.memory.last:
            memory.note(self.tree, "decision", **msgspec.to_builtins(report))
        self.memory.last = words
        self.memory.unfit = tuple(shape for shape, _ in report.unfit)
        memory.save(self.tree, self.memory)
        return report


def _by_state(ours: list[Allocation]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in ours:
        found[one.standing.state] = found.get(one.standing.state, 0) + 1
    return found


def sentences(report: Report, *, dry: bool = False) -> list[str]:
    """A report for the screen, a line each."""
    lines = [f"{line['name']} ended: {_outcome(line)}" for line in report.ended]
    verb = "would cancel" if dry else "cancels"
    lines += [f"{verb} {one['name']}: {one['why']}" for one in report.withdrawn]
    lines += report.why
    lines += [_asked(one) for one in report.asked if not dry]
    queue = "the default queue"
    return lines + [f"{one['queue'] or queue} refuses: {one['said']}" for one in report.refused]


def _asked(one: dict[str, Any]) -> str:
    job = f"job {one['job']}" if one["job"] else "no answer yet"
    minutes = math.ceil(one["walltime_s"] / 60)
    return f"asked: {one['name']}, {units.count(one['nodes'], 'node')}, {minutes} min, {job}"


def _outcome(line: dict[str, Any]) -> str:
    if line["outcome"] in (REFUSED, NEVER):
        return str(line["outcome"])
    share = f", {line['utilisation']:.0%} busy" if line["granted_core_s"] else ""
    hours = line["charged_node_s"] / 3600
    tasks = units.count(line["tasks"], "task")
    return f"{line['outcome'] or 'gone'}, {tasks}, {hours:.2f} node-hours{share}"
