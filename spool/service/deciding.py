"""deciding - one look at everything, one decision, what is done about it, and its report.

Owns   the step of the service: follow, learn from what ended, size, withdraw, ask; its line in
       journal/service.jsonl.
Never  asks for anything unless `may_ask` says, just before, that it may.
Fails  SpoolError, OSError: the spool itself cannot be read or written.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from spool import units
from spool.queue import allocations
from spool.queue.allocations import ENDED, NEVER, QUEUED, Allocation, Closed
from spool.queue.layout import Tree
from spool.service import backlog, memory, policy, situation, sizing, troubles, usage
from spool.service.policy import ServiceSettings
from spool.service.requests import REFUSED, Requests, wanted_end
from spool.service.system import BatchSystem, Declined, Unreachable
from spool.service.terms import Decision, Queue, Request
from spool.service.tracking import Tracker

NO_TROUBLE = ("preempted", "cancelled", NEVER)
"""Outcomes that say nothing of the queue or of our script."""
LEFT = ("completed", "failed")
"""Outcomes of launchers that left by themselves."""
DOUBT = 10
"""For so many times `settle` the idle nodes of a queue are not counted on where one of ours waited
in it until nothing needed it: what batch systems call idle is at times kept for another job, and
what was just cancelled would be asked for again."""
NOT_OURS = "the post of service is not ours any more: nothing is asked"
_LASTS = re.compile(r"\b(?:\d+[dhms])+\b")


class Report(msgspec.Struct, kw_only=True):
    """One decision and what became of it, as the journal has it.

    ready counts tasks and chunks, live allocations; why are sentences, for people; loud is what a
    person should see to, said once.
    """

    system: str
    ready: int = 0
    live: dict[str, int] = {}
    why: tuple[str, ...] = ()
    loud: tuple[str, ...] = ()
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
        return bool(self.asked or self.withdrawn or self.refused or self.ended or self.loud)


def gist(words: Iterable[str]) -> tuple[str, ...]:
    """What sentences say, whatever they say of how long something lasts: ages alone are no news."""
    return tuple(sorted({_LASTS.sub("...", word) for word in words}))


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
        self.tree, self.wanted, self.system = tree, wanted, system
        self.may_ask, self.dry = may_ask, dry
        self.requests = Requests(tree, system, wanted)
        self.tracker = Tracker(tree, system, keep=dry)
        self.memory = memory.load(tree)
        self.mark = policy.mark(tree.root, wanted.template)
        if self.mark != self.memory.settings:
            self.memory.settings, self.memory.marks, self.memory.unfit = self.mark, {}, ()
            self.memory.doubted = {}
        self.policy = wanted.policy
        self.complete = False
        self.report = Report(system=system.name)
        self.strays: set[str] = set()

    def step(self) -> Report:
        """Look, decide, act."""
        now = time.time()
        report = self.report = Report(system=self.system.name)
        self.memory.marks = troubles.bounded(self.memory.marks, now)
        try:
            ours = self.tracker.look(now)
            self._complete()
        except Unreachable as fault:
            self._silent(fault, now)
            report.why = (f"nothing is decided: {self.system.name} gives no answer: {fault}",)
            return self._told(report)
        finally:
            self._learn(report, now)
        self._answered()
        self._cancel_strays(now)
        waits = backlog.take(self.tree, now)
        report.ready, report.staged, report.live = waits.tasks, waits.staged, _by_state(ours)
        rests = troubles.standing(self.memory.marks, now)
        spent_node_s = self.tracker.spent_node_s
        doubted = self._doubted(now)
        found = situation.gather(
            self.tree, self.system, self.policy, waits, ours, rests, spent_node_s, doubted
        )
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
        """An allocation in which no launcher came to work is a trouble of its queue, the more so
        the longer it took; and so are several in a row whose launchers found nothing to do."""
        if line.tasks or line.failed:
            self.memory.marks = troubles.cleared(self.memory.marks, line.queue)
        if line.tasks or line.failed or line.outcome in NO_TROUBLE or one.standing.withdrawn:
            return
        if allocations.launchers(self.tree, line.name):
            if line.outcome in LEFT and not one.asked.by_hand:
                said = f"{line.name}: no task ended in its {line.ran_s:.0f} s"
                self._trouble(line.queue, troubles.IDLE, said, now)
        else:
            tail = usage.output_tail(self.tree, line.name).splitlines()
            said = tail[-1][:200] if tail else "it said nothing"
            self._trouble(line.queue, troubles.AT_START, f"{line.name}: {said}", now)

    def _trouble(self, queue: str, cause: str, said: str, now: float) -> None:
        before = self.memory.marks.get(queue)
        self.memory.marks = troubles.marked(self.memory.marks, queue, cause, said, now)
        mark = self.memory.marks[queue]
        if (before is None or mark.until != before.until) and mark.until > now:
            times = f", {mark.count} times in a row" if mark.count > 1 else ""
            rest = units.print_duration(round(mark.until - now))
            self._say(f"{_named(queue)} is left alone for {rest}: {cause}{times}: {said}")

    def _silent(self, fault: Exception, now: float) -> None:
        """The batch system gives no answer; that is said once."""
        marks = troubles.marked(
            self.memory.marks, troubles.EVERYWHERE, troubles.SILENT, str(fault), now
        )
        self.memory.marks = marks
        if marks[troubles.EVERYWHERE].count == 1:
            self._say(f"{self.system.name} gives no answer: {fault}")

    @property
    def rest_s(self) -> float:
        """For how long a batch system without an answer is not asked again."""
        mark = self.memory.marks.get(troubles.EVERYWHERE)
        return troubles.rest_s(mark.cause, mark.count) if mark else 0.0

    def _say(self, text: str) -> None:
        self.report.loud = (*self.report.loud, text)

    def _answered(self) -> None:
        mark = self.memory.marks.get(troubles.EVERYWHERE)
        if mark is not None and mark.cause == troubles.SILENT:
            self.memory.marks = troubles.cleared(self.memory.marks, troubles.EVERYWHERE)

    # -- what is done ----------------------------------------------------------------------------

    def _do(self, decision: Decision, ours: list[Allocation], report: Report, now: float) -> None:
        report.why, report.figures = decision.why, dict(decision.figures)
        report.unfit = decision.unfit
        for shape, why in decision.unfit:
            if shape not in self.memory.unfit:
                self._say(
                    f"{shape} can never run: {why}. Change [queues] in spool.toml, or the task"
                )
        for one in ours:
            if one.standing.unneeded != (one.asked.name in decision.unneeded):
                one.standing.unneeded = not one.standing.unneeded
                self._write(one)
        if not self._withdraw(ours, self._ends(decision, ours), report, now):
            return
        refused: set[str] = set()
        for request in decision.requests:
            if request.queue not in refused and not self._ask(request, report, now):
                if not report.refused or report.refused[-1]["queue"] != request.queue:
                    break
                refused.add(request.queue)

    def _ends(self, decision: Decision, ours: list[Allocation]) -> dict[str, str]:
        """What is to be cancelled, and why: what sizing says, but for what a person asked for;
        what a person wants; and again what was cancelled and is still there."""
        by_name = {one.asked.name: one for one in ours}
        ends = {
            gone.name: gone.why
            for gone in decision.withdrawals
            if not by_name[gone.name].asked.by_hand
        }
        for name, one in by_name.items():
            if word := one.standing.withdrawn or wanted_end(self.tree, name):
                ends[name] = word
        return ends

    def _doubt(self, withdrawn: Iterable[Allocation], now: float) -> None:
        """Believe no more for a while that nodes are idle where these waited in vain."""
        until = now + DOUBT * self.policy.settle_s
        self.memory.doubted |= {one.asked.queue: until for one in withdrawn}

    def _doubted(self, now: float) -> set[str]:
        """The queues whose idle nodes are not counted on; a clock may have been set back."""
        most_s = DOUBT * self.policy.settle_s
        held = {q: until for q, until in self.memory.doubted.items() if 0 < until - now <= most_s}
        self.memory.doubted = held
        return set(held)

    def _write(self, one: Allocation) -> None:
        if not self.dry:
            allocations.write(self.tree, one.asked.name, one.standing)

    def _withdraw(
        self, ours: list[Allocation], whys: dict[str, str], report: Report, now: float
    ) -> bool:
        """Cancel these; False if the batch system gives no answer, then the next decision does."""
        gone = [one for one in ours if one.asked.name in whys]
        new = [one for one in gone if not one.standing.withdrawn]
        report.withdrawn += ({"name": o.asked.name, "why": whys[o.asked.name]} for o in new)
        self._doubt((one for one in new if one.standing.state == QUEUED), now)
        if self.dry or not gone:
            return True
        try:
            self.requests.withdraw(gone)
        except Unreachable as fault:
            self._silent(fault, now)
            return False
        except Declined as fault:
            if report.withdrawn:  # else it was said before
                self._say(f"cannot be cancelled, tried again and again: {fault}")
        for one in gone:
            one.standing.withdrawn = whys[one.asked.name]
            self._write(one)
        return True

    def _cancel_strays(self, now: float) -> None:
        """Jobs of ours that were given up, and wait now after all, must not run beside others."""
        waiting = {job.id: job for job in self.tracker.strays if job.state == "queued"}
        if self.dry or not waiting:
            return
        for job in waiting.values():
            if job.id not in self.strays:
                self._say(f"{job.name} was given up and is there after all: cancelled")
        self.strays |= set(waiting)
        try:
            self.system.cancel(list(waiting))
        except Unreachable as fault:
            self._silent(fault, now)
        except Declined:
            return  # the next look tries again

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
            report.why = (*report.why, NOT_OURS)
            return False
        try:
            one = self.requests.ask(asked, order, text, self.may_ask)
        except Declined as fault:
            report.refused.append(told | {"cause": fault.cause, "said": str(fault)})
            self._trouble(queue.name, fault.cause, str(fault), now)
            return False
        if one.standing.state == ENDED:
            report.why = (*report.why, NOT_OURS)
            return False
        report.asked.append(told | {"job": one.standing.job})
        if not one.standing.job:
            self._trouble(queue.name, troubles.UNANSWERED, one.standing.why, now)
            return False
        mark = self.memory.marks.get(queue.name)
        if mark is not None and mark.cause not in troubles.IN_VAIN:
            self.memory.marks = troubles.cleared(self.memory.marks, queue.name)
        return True

    def _queue(self, name: str) -> Queue:
        return next(queue for queue in self.policy.queues if queue.name == name)

    # -- what is said ----------------------------------------------------------------------------

    def _told(self, report: Report) -> Report:
        """Keep the report in the journal where it says anything new."""
        if self.dry:
            return report
        words = gist(report.why)
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
    """A report for the screen, a line each; what is loud comes last."""
    lines = [f"{line['name']} ended: {_outcome(line)}" for line in report.ended]
    verb = "would cancel" if dry else "cancels"
    lines += [f"{verb} {one['name']}: {one['why']}" for one in report.withdrawn]
    lines += report.why
    lines += [_asked(one) for one in report.asked if not dry]
    return lines + warnings(report)


def warnings(report: Report) -> list[str]:
    """What a person should see to, a line each."""
    return [f"WARNING: {one}" for one in report.loud]


def _named(queue: str) -> str:
    return f"queue {queue}" if queue else "the default queue"


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
