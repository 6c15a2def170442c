"""outlook - what the service would do for a READY task: which allocations and queues could take it.

Owns   the questions to sizing about one shape alone, by the records that the service keeps.
Never  asks a batch system what the service has written down; never changes anything.

The answer is sizing's own, for the tasks of this shape as if they waited alone: who is older or of
higher priority comes first, and may use up what is told here to be free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec

from spool import units
from spool.errors import SpoolError
from spool.queue import allocations, files, layout
from spool.queue import shape as shapes
from spool.queue.allocations import RUNNING, Allocation
from spool.queue.shape import Shape
from spool.queue.why.answer import Answer
from spool.queue.why.scene import Scene
from spool.service import (
    fitting,
    memory,
    policy,
    post,
    reasons,
    situation,
    sizing,
    tracking,
    troubles,
)
from spool.service.caps import Caps, named_queue
from spool.service.packing import Skyline, Work
from spool.service.policy import ServiceSettings
from spool.service.system import Partition
from spool.service.terms import Live, Need, Policy, Queue, Situation

TOLD = 6
TAIL = 1 << 18  # of the journal, which is searched for the last decision
SOON = " at its next look"
LONGEST_WORD = 120  # of a batch system's message


class Outlook:
    """The service of one spool as it stands, for any number of questions."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.tree = scene, scene.tree

    @cached_property
    def settings(self) -> ServiceSettings | str:
        """What spool.toml says of the service; or what is wrong there."""
        try:
            return policy.load(self.tree.root)
        except SpoolError as fault:
            return str(fault)

    @cached_property
    def stages_here(self) -> bool:
        """Whether a service is at work that starts stagers."""
        wanted = self.settings
        return self.runs and isinstance(wanted, ServiceSettings) and wanted.stagers

    @cached_property
    def runs(self) -> bool:
        """Whether a service is at work."""
        return bool(self.scene.living("service"))

    @cached_property
    def remembered(self) -> memory.Memory:
        """What the service knew last."""
        return memory.load(self.tree)

    @cached_property
    def ours(self) -> list[Allocation]:
        """The allocations that wait or run, as of the service's last look."""
        return [one for one in allocations.live(self.tree) if one.live]

    @cached_property
    def lives(self) -> list[Live]:
        """The same, as sizing sees them."""
        return [situation.live_of(self.tree, one) for one in self.ours]

    @cached_property
    def last(self) -> dict[str, Any] | None:
        """The last decision that was new, as the journal has it."""
        return last_decision(self.tree.journal(layout.SERVICE_JOURNAL))

    def completed(self, wanted: ServiceSettings) -> tuple[Policy, str]:
        """The policy with what the batch system has; and why that is not known, where it is not."""
        partitions: Sequence[Partition] = self.remembered.partitions
        word = ""
        if not partitions:
            from spool.service.loop import system_of

            try:
                partitions = system_of(self.tree, wanted).partitions()
            except SpoolError as fault:
                said = " ".join(str(fault).split())[:LONGEST_WORD]
                word = f"what queues there are is not known here, as no answer came: {said}"
        return policy.completed(wanted.policy, partitions), word

    def situation(self, need: Need) -> Situation:
        """As if only this waited."""
        return Situation(
            needs=(need,),
            live=tuple(self.lives),
            spent_node_s=tracking.spent_node_s(self.tree),
            troubles=troubles.standing(self.remembered.marks, self.scene.now),
        )


def last_decision(path: str) -> dict[str, Any] | None:
    """The last line of a journal that tells of a decision; None if there is none."""
    raw = files.tail(path, TAIL)
    for line in reversed(raw.splitlines()):
        try:
            event = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("what") == "decision":
            return event
    return None


# -- what is said --------------------------------------------------------------------------------


def explain(
    outlook: Outlook, shape: Shape, count: int, oldest: float, answer: Answer, *, served: bool
) -> None:
    """Tell which allocation, and which queue, could take such tasks; served: a launcher will."""
    wanted = outlook.settings
    if not isinstance(wanted, ServiceSettings):
        answer.because("settings", f"the service cannot start: {wanted}")
        answer.advise("mend spool.toml")
        return
    known, word = outlook.completed(wanted)
    need = Need(shape, count * max(1, shape.elements), max(0.0, outlook.scene.now - oldest))
    work = fitting.work_of(need, known, _with_strange(known, outlook), fitting.longest_s(known))
    coming = _allocations(outlook, known, work, answer)
    if served:
        return
    if word:
        answer.because("batch-system", word)
    if not known.queues:
        if not word:
            answer.because("no-queue", "there is no queue that an allocation could be asked of")
        _service(outlook, wanted, answer, coming=coming)
        return
    able = _queues(known, work, answer)
    if able:
        _would_ask(outlook, known, need, able, answer)
    else:
        answer.advise("ask for less (spool modify), or add a queue to spool.toml")
    _service(outlook, wanted, answer, coming=coming or not able)
    _last(outlook, shape, answer)


def _with_strange(known: Policy, outlook: Outlook) -> list[Queue]:
    """The queues of the policy, then those of which only allocations tell."""
    names = {queue.name for queue in known.queues}
    strange = dict.fromkeys(one.queue for one in outlook.lives if one.queue not in names)
    return [*known.queues, *(Queue(name=name, bands=()) for name in strange)]


# -- allocations ---------------------------------------------------------------------------------


def _allocations(outlook: Outlook, known: Policy, work: Work, answer: Answer) -> bool:
    """Tell of those that wait, or in which no launcher shows itself; whether one will take it."""
    queues = _with_strange(known, outlook)
    numbers = {queue.name: number for number, queue in enumerate(queues)}
    shown = {allocations.of_owner(one.record) for one in outlook.scene.living("launcher")}
    coming, told = False, 0
    for one, live in zip(outlook.ours, outlook.lives, strict=True):
        if one.asked.name in shown:
            continue  # its launcher was told of
        number = numbers[live.queue]
        why = why_not(live, work, number, queues[number], known)
        coming |= not why
        told += 1
        if told <= TOLD:
            _tell_allocation(one, why, answer)
    if told > TOLD:
        more = units.count(told - TOLD, "allocation")
        answer.because("allocations", f"and {more} more: spool queue", more=told - TOLD)
    return coming


def why_not(live: Live, work: Work, number: int, queue: Queue, known: Policy) -> str:
    """Why an allocation, of this queue by its number, will not take a task; "" if it may."""
    if live.draining:
        return "it takes no more tasks"
    if live.selects:
        return f"it takes only some tasks ({live.selects})"
    usable_s = live.left_s - (sizing.START_S if live.running else known.padding_s)
    if Skyline(number, live.nodes, usable_s).can_hold(work):
        return ""
    if not work.parts[number]:
        return fitting.obstacle(work, queue, known)[2]
    if work.nodes > live.nodes:
        return f"it needs {units.count(work.nodes, 'node')}"
    takes = units.print_duration(work.time_s)
    return f"it takes {takes}, and {units.print_age(max(0.0, usable_s))} of time would be left"


def _tell_allocation(one: Allocation, why: str, answer: Answer) -> None:
    asked, seen = one.asked, one.standing
    nodes = units.count(asked.nodes, "node")
    queue = f" in queue {asked.queue}" if asked.queue else ""
    if seen.state == RUNNING:
        left_s = asked.walltime_s - seen.ran_s if seen.left_s is None else seen.left_s
        text = f"allocation {asked.name} runs{queue} ({nodes}, {units.print_age(left_s)} left)"
        text += ", and no launcher shows itself in it yet" if not why else ""
    else:
        waited = units.print_age(seen.waited_s)
        lasts = units.print_duration(asked.walltime_s)
        text = f"allocation {asked.name} waits{queue} for {waited} now ({nodes} for {lasts})"
        text += f" because of {seen.why}" if seen.why else ""
    text += f"; it cannot serve this: {why}" if why else "; it could serve this"
    facts = {"name": asked.name, "queue": asked.queue, "nodes": asked.nodes, "now": seen.state}
    answer.because("allocation", text, **facts, walltime_s=asked.walltime_s, takes=not why, why=why)


# -- queues --------------------------------------------------------------------------------------


def _queues(known: Policy, work: Work, answer: Answer) -> list[Queue]:
    """Tell of queues that can never take it; those that can."""
    able = [queue for queue, asks in zip(known.queues, work.asks, strict=True) if asks]
    if not able:
        why = fitting.why_unfit(work, known)
        answer.because("unfit", f"no queue can ever serve it: {why}", why=why)
        return []
    for queue in known.queues[:TOLD]:
        if queue in able:
            continue
        why = fitting.obstacle(work, queue, known)[2]
        text = f"{named_queue(queue)} can never take it: {why}"
        answer.because("queue", text, queue=queue.name, able=False, why=why)
    return able


def _would_ask(
    outlook: Outlook, known: Policy, need: Need, able: list[Queue], answer: Answer
) -> None:
    """Sizing's answer, were these tasks alone."""
    found = outlook.situation(need)
    decision = sizing.decide(found, known)
    names = [named_queue(queue) for queue in able]
    could = f"{', '.join(names[:TOLD])} could take it"
    facts: dict[str, Any] = {"queues": [queue.name for queue in able]}
    if decision.requests:
        one = decision.requests[0]
        wanted = f"{units.count(one.nodes, 'node')} for {units.print_duration(one.walltime_s)}"
        queue = f" of queue {one.queue}" if one.queue else ""
        who = "the service asks" if outlook.runs else "a service would ask"
        soon = SOON if outlook.runs else ""
        text = f"{could}: {who}{soon} for {wanted}{queue}, if nothing older needs them first"
        asks = {"queue": one.queue, "nodes": one.nodes, "walltime_s": one.walltime_s}
        answer.because("queue", text, able=True, **facts, asks=asks)
    elif decision.figures.get("left_node_h", 0.0) <= 0:
        text = f"{could}, but nothing is asked for: what runs and waits already will serve it"
        answer.because("covered", text, able=True, **facts)
    else:
        work = fitting.work_of(need, known, known.queues, fitting.longest_s(known))
        obstacles = reasons.Obstacles(Caps(found, known), found, known, set())
        why, _ = obstacles.why_not(work, able)
        answer.because("queue", f"{could}, but {why}", able=True, **facts, why=why)


# -- the service itself --------------------------------------------------------------------------


def _service(outlook: Outlook, wanted: ServiceSettings, answer: Answer, *, coming: bool) -> None:
    """Whether one is at work, and when it looked last. coming: nothing need be asked for."""
    every = units.print_duration(wanted.interval_s)
    looked = files.modified(outlook.tree.allocation(layout.SERVICE_MEMORY))
    ago = f", and looked last {units.print_age(outlook.scene.now - looked)} ago" if looked else ""
    if outlook.runs:
        one = outlook.scene.living("service")[0]
        text = f"{one.called} is at work, looks every {every}{ago}"
        answer.because("service", text, owner=one.name, interval_s=wanted.interval_s)
        return
    holders = post.holders(outlook.tree)
    dead = f"; the post is still held by {holders[0]}, which does not live" if holders else ""
    last = f" (one looked last {units.print_age(outlook.scene.now - looked)} ago)" if looked else ""
    answer.because("no-service", f"no service is at work{last}{dead}", looked=looked or None)
    if not coming:
        answer.advise("run: spool service, or spool launcher")


def _last(outlook: Outlook, shape: Shape, answer: Answer) -> None:
    """What it decided last, as far as that is of this shape or of all."""
    told = outlook.last
    if told is None:
        return
    name = re.compile(rf"(?<![\w.]){re.escape(shapes.print_shape(shape))}(?![\w.])")
    why = [str(line) for line in _list(told.get("why"))]
    ours = [line for line in why if name.search(line)] or why
    ours += [
        f"{one.get('queue') or 'the default queue'} refused: {one.get('said')}"
        for one in _list(told.get("refused"))
        if isinstance(one, dict)
    ]
    ago = outlook.scene.ago(told.get("time"))
    text = f"its last decision, {ago}: {'; '.join(ours[:TOLD])}"
    answer.because("decision", text, time=told.get("time"), why=ours)


def _list(told: object) -> list[Any]:
    return told if isinstance(told, list) else []
