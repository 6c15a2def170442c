"""takeover - dead owners: the evidence, and what becomes of their tasks.

Owns   the moves RUNNING/L -> RUNNING/L~T -> where each task belongs.
Never  compares two clocks or trusts a modification time to decide, or touches a live owner's tasks.
Fails  LeaseLost: the taker itself was taken over.

Evidence, best first: the owner said that it ended; on the same boot and pid namespace its process
is gone; else its heartbeat's token did not change for `dead` seconds of our own monotonic clock.
Of an owner with mpiruns on nodes where it has no guard, neither tells that its tasks are gone: the
nodes must have been swept, or the batch system say that the allocation is over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import msgspec

from spool import units
from spool.errors import FileSystemFault
from spool.queue import (
    admit,
    advance,
    allocations,
    claim,
    faults,
    files,
    history,
    layout,
    limits,
    owner,
    processes,
    silence,
    tasks,
)
from spool.queue.journal import Journal
from spool.queue.layout import State, Tree
from spool.queue.owner import Here, Owner
from spool.queue.place import Place
from spool.queue.silence import Silence
from spool.queue.tasks import Task

ASKED_EVERY_S = 30.0  # the batch system, about one allocation
LOOKS_WITHIN_S = 5.0  # a launcher looks every two seconds, however often owners beat


class Verdict(Enum):
    """What is known of an owner."""

    ALIVE = "alive"
    DEAD = "dead"
    UNDECIDED = "undecided"
    UNSWEPT = "dead, but only those in its allocation can know that its tasks are gone"


class Observer:
    """Watches other owners for one owner; keeps what it saw between looks.

    over(system, job) is the batch system's word on whether an allocation has ended; clear(name)
    sweeps the nodes of our own allocation bit by bit, and is true once nothing of that owner is
    left there. everyone: none is left to another owner that watches too. one_shot: we are but one
    of many short processes, which go on with what the last one saw.
    """

    def __init__(
        self,
        me: Owner,
        clock: Callable[[], float] = time.monotonic,
        over: Callable[[str, str], bool | None] | None = None,
        clear: Callable[[str], bool] | None = None,
        *,
        everyone: bool = False,
        one_shot: bool = False,
    ) -> None:
        self.me, self.one_shot = me, one_shot
        self.tree = me.tree
        self.clock = clock
        self.over, self.clear, self.everyone = over, clear, everyone
        self.words: dict[tuple[str, str], bool | None] = {}
        self.asked: dict[tuple[str, str], float] = {}
        self.place = owner.here()
        self.silences: dict[str, Silence] = {}
        self.tried: dict[str, float] = {}

    def look(self) -> tuple[list[str], bool]:
        """RUNNING groups whose holder is dead, and whether any other is still undecided.

        Owners are looked at from our own name onward, up to the first living launcher that looks
        around itself: so each owner has a watcher, and the work does not grow with their square.
        """
        dead, undecided = self._begun(), False
        for group in self._neighbours():
            verdict = self.verdict(group)
            if verdict is Verdict.DEAD:
                dead.append(group)
            elif verdict is Verdict.UNDECIDED:
                undecided = True
            elif verdict is Verdict.ALIVE and self._is_enough(holder(group)):
                break
        return dead, undecided

    def _is_enough(self, name: str) -> bool:
        """Whether this owner lives and watches those behind it."""
        if self.everyone:
            return False
        record = owner.read_record(self.tree, name)
        return record.get("kind") == "launcher" and not record.get("hand_of")

    def _begun(self) -> list[str]:
        """What we took over ourselves and could not finish: a full disk came between."""
        groups = tasks.groups(self.tree, State.RUNNING)
        return [group for group in groups if group.endswith(f"~{self.me.name}")]

    def _neighbours(self) -> list[str]:
        groups = tasks.groups(self.tree, State.RUNNING)
        others = [group for group in groups if holder(group) != self.me.name]
        return [g for g in others if g > self.me.name] + [g for g in others if g <= self.me.name]

    def verdict(self, group: str) -> Verdict:
        """What is known of the holder of a RUNNING group."""
        name = holder(group)
        record = owner.read_record(self.tree, name)
        known = at_one_look(name, record, self.place)
        if record.get("unguarded") and known is not Verdict.DEAD:
            return self._of_unguarded(name, record, on_this_host(name, record, self.place))
        verdict = known or self._by_token(name, record)
        if verdict is Verdict.UNDECIDED and self._allocation_over(record):
            return Verdict.DEAD
        return verdict

    def _of_unguarded(self, name: str, record: dict[str, Any], known: Verdict | None) -> Verdict:
        """Of an owner whose mpiruns reach nodes where nothing kills what they left."""
        if known is Verdict.ALIVE:
            return known
        silent = self._by_token(name, record)
        if silent is not Verdict.DEAD and known is None:
            over = silent is Verdict.UNDECIDED and self._allocation_over(record)
            return Verdict.DEAD if over else silent
        if self._allocation_over(record):
            return Verdict.DEAD
        if self.clear is not None and record.get("allocation") == self.me.record.get("allocation"):
            tried_s = self.clock() - self.tried.setdefault(name, self.clock())
            # A node that has not answered for so long is as dead as its launcher.
            gone = self.clear(name) or tried_s >= self._patience_s(record)
            return Verdict.DEAD if gone else Verdict.UNDECIDED
        if self._word(record) is False or self.over is None:
            return Verdict.UNSWEPT
        return silent  # nobody can tell more

    def _allocation_over(self, record: dict[str, Any]) -> bool:
        """Whether the batch system says that an owner's allocation has ended."""
        return self._word(record) is True

    def _word(self, record: dict[str, Any]) -> bool | None:
        """What the batch system says of that; None: it cannot be asked, or does not know."""
        if (seen := allocations.is_over(self.tree, record)) is not None:
            return seen
        told = record.get("allocation")
        if self.over is None or not isinstance(told, dict):
            return None
        if told.get("cluster", "") != os.environ.get("SLURM_CLUSTER_NAME", ""):
            return None  # another cluster's job of that number
        job, now = (str(told.get("system", "")), str(told.get("job", ""))), self.clock()
        if now >= self.asked.get(job, 0.0):
            self.asked[job] = now + ASKED_EVERY_S
            self.words[job] = self.over(*job)
        return self.words.get(job)

    def _patience_s(self, record: dict[str, Any]) -> float:
        """For how long an owner's token may be silent."""
        told = record.get("dead_s")
        return max(self.me.settings.lease_dead_s, told if isinstance(told, (int, float)) else 0.0)

    def _by_token(self, name: str, record: dict[str, Any]) -> Verdict:
        settings, now = self.me.settings, self.clock()
        token = files.read(self.tree.owner(name, layout.HEARTBEAT), 256)
        before = self.silences.get(name)
        if before is None and self.one_shot:
            before = silence.recall(self.tree, name, now)
        if before is None or before.token != token:
            boot = owner.boot_id() if self.one_shot else ""
            self._keep(name, Silence(token, now, now, alive=before is not None, boot=boot))
            return Verdict.ALIVE if before else Verdict.UNDECIDED
        away = now - before.looked
        if not before.kept and away > max(2 * settings.lease_beat_s, LOOKS_WITHIN_S):
            before.since = now  # we were away ourselves: the count starts again
        if not before.kept or away >= settings.lease_beat_s:
            before.looked, before.looks = now, before.looks + 1
            self._keep(name, before)
        quiet = now - before.since
        if quiet >= self._patience_s(record) and before.counts:
            return Verdict.DEAD
        steady = before.alive and quiet < 2 * settings.lease_beat_s
        return Verdict.ALIVE if steady else Verdict.UNDECIDED

    def _keep(self, name: str, seen: Silence) -> None:
        self.silences[name] = seen
        if seen.kept:
            silence.keep(self.tree, name, seen)


def at_one_look(name: str, record: dict[str, Any], place: Here) -> Verdict | None:
    """What is known of an owner at one look; None: its token has to tell, or the batch system."""
    if record.get("ended") or record.get("swept"):
        return Verdict.DEAD
    known = on_this_host(name, record, place)
    if known is Verdict.DEAD and (record.get("unguarded") or not _all_here(record, place)):
        return None  # its ranks may live on elsewhere, until their guards strike
    return known


def _all_here(record: dict[str, Any], place: Here) -> bool:
    """Whether all processes of an owner are, or were, in our own process table."""
    boots = record.get("boots")
    return not isinstance(boots, list) or set(map(str, boots)) <= {place.boot}


def holder(group: str) -> str:
    """Who holds a RUNNING group: its owner, or its taker."""
    return group.rpartition("~")[2]


def on_this_host(name: str, record: dict[str, Any], place: Here) -> Verdict | None:
    """What the process table says; None if the owner runs where we cannot look."""
    parts = layout.parse_owner(name)
    if parts is None or parts.boot != place.boot:
        return None
    started = processes.process_start(parts.pid)
    told = record.get("process_start")
    alive = started is not None and (told is None or told == started)
    return Verdict.ALIVE if alive else Verdict.DEAD


def take_over(me: Owner, group: str, trusted: frozenset[int]) -> int:
    """Take a dead holder's RUNNING group and decide each of its tasks; how many were moved on.

    0 too if another taker was faster, or if processes of the dead owner are still dying.
    """
    dead, last = group.partition("~")[0], holder(group)
    mine = layout.claims_group(dead, me.name)
    if group != mine:
        source = me.tree.group(State.RUNNING, group)
        if not os.access(source, os.W_OK) or not kill_left(owner.here(), {dead, last}):
            return 0  # another user's, or still dying
        if not _rename_group(source, me.tree.group(State.RUNNING, mine)):
            return 0
    moved = _settle_all(me, me.within(mine), Ending.of(me.tree, dead, last), trusted)
    limits.bring_back(me.tree, dead)  # first: once the group is gone nobody looks after its owner
    files.remove_folder(me.tree.group(State.RUNNING, mine))
    _bury(me, {dead, last})
    advance.catch_up(me)
    return moved


def _settle_all(me: Owner, held: Owner, why: Ending, trusted: frozenset[int]) -> int:
    """Decide all that a dead owner had; how many were moved on."""
    moved, lines = 0, []
    try:
        for name in files.names(held.claims):
            me.beat_if_due()
            try:
                lines.append(_settle(held, name, why, trusted))
            except OSError as fault:
                if not faults.is_of_one(fault):
                    raise
                continue  # closed to us: it stays here, where `check` finds it
            moved += 1
    finally:
        tell(me, lines)
    return moved


def _rename_group(source: str, target: str) -> bool:
    """False if another was faster. Never makes the group anew: nobody but its owner may."""
    try:
        files.rename_file(source, target)
    except OSError:
        return files.holds(target) and not files.holds(source)
    return True


@dataclass(frozen=True, slots=True)
class Ending:
    """How an owner came to its end, and what it was asked before.

    seen is when it last showed that it lived: it tells reports how long its tasks ran, no more.
    """

    what: str
    owner: str
    last: str
    requests: frozenset[str]
    seen: float

    @classmethod
    def of(cls, tree: Tree, dead: str, last: str) -> Ending:
        """interrupted where its end was announced (it said so, its time was up, the batch system
        stopped its allocation), else lost.

        Requests were put to whoever held its tasks: itself, or `last`, a taker.
        """
        record = owner.read_record(tree, dead)
        ends = record.get("ends")
        expected = isinstance(ends, (int, float)) and time.time() >= ends
        inboxes = (files.names(tree.owner(name, layout.INBOX)) for name in {dead, last})
        stopped = record.get("ended") or expected or allocations.was_stopped(tree, record)
        what = "interrupted" if stopped else "lost"
        seen = files.modified(tree.owner(dead, layout.HEARTBEAT)) or time.time()
        requests = frozenset(chain(*inboxes))
        return cls(what, dead, last, requests, min(seen, time.time()))


def _settle(me: Owner, name: str, why: Ending, trusted: frozenset[int]) -> bytes | None:
    """Decide one task of a dead owner; a line for the journal, if an attempt was cut short."""
    if name.endswith(layout.ARRIVING):
        admit.readmit(me, name, trusted)
        return None
    if layout.parse_id(name) is None:
        claim.reject(me, name, f"{name!r} in RUNNING/{why.owner} is no task id")
        return None
    if (task := claim.read_any(me, name)) is None:
        return None
    event: dict[str, Any] = {"what": why.what, "owner": why.owner, "by": me.name}
    if (started := task.story.started) is not None:
        event["attempt"] = task.story.attempt
        claim.write_line(me, task, {"time": units.now_stamp(), **event}, sync=True)
    elif (begun := task.story.staging) is not None:
        staged = {**event, "stage": begun.get("stage")}
        claim.write_line(me, task, {"time": units.now_stamp(), **staged}, sync=True)
    _grant_requests(me, task, why)
    place = claim.settle(me, task)
    if started is None:
        return None
    return history.encode(event | _cost(task, started, place, why.seen))


def _grant_requests(me: Owner, task: Task, why: Ending) -> None:
    """What a dead owner was asked of a task, and did not come to."""
    if f"replaced.{task.id}" in why.requests and not task.story.replaced:
        said = _said(me.tree, {why.owner, why.last}, "replaced", task.id)
        event = {**said, "time": units.now_stamp(), "what": "replaced"}
        claim.write_line(me, task, event, sync=True)
    if f"cancel.{task.id}" in why.requests and not _is_over(me, task):
        event = {"what": "cancelled", "by": me.name, "reason": "asked before its launcher died"}
        claim.write_line(me, task, {"time": units.now_stamp(), **event}, sync=True)


def _said(tree: Tree, owners: set[str], verb: str, task_id: str) -> dict[str, Any]:
    """What a request to one of these owners says; {} for one that is damaged."""
    for name in owners:
        raw = files.read(tree.request(name, verb, task_id), 1 << 20)
        try:
            said = msgspec.json.decode(raw or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(said, dict):
            return said
    return {}


def _is_over(me: Owner, task: Task) -> bool:
    """Whether a request to cancel comes too late: what has ended has ended."""
    if task.story.exit is None:
        return False
    return claim.place_of(me.tree, task, time.time()).state in layout.FINAL


def _cost(task: Task, started: dict[str, Any], place: Place, seen: float) -> dict[str, Any]:
    """What an attempt that was cut short had and for how long, as the journal keeps of any end."""
    wanted = task.manifest
    try:
        begun = units.read_stamp(str(started.get("time")))
    except ValueError:
        begun = seen
    ended = max(begun, seen)
    return {
        "time": units.stamp(ended),
        "started": units.stamp(begun),
        "elapsed_s": round(ended - begun, 3),
        "submitted": wanted.submitted.time if wanted.submitted else "",
        "id": task.id,
        "state": place.state,
        "group": place.group,
        "node": str(started.get("node", "")),
        "nodes": wanted.nodes,
        "cores": wanted.nodes * wanted.ranks_per_node * wanted.cores_per_rank,
        "gpus": wanted.nodes * wanted.gpus,
        "memory_mb": wanted.nodes * units.memory(wanted.memory),
        "workflow": wanted.workflow,
    }


def tell(me: Owner, lines: Iterable[bytes | None]) -> None:
    """Add attempts of others to our own journal, by one write; it may fail, being for reports."""
    if not (told := [line for line in lines if line is not None]):
        return
    with suppress(OSError, FileSystemFault):
        journal = Journal(me.tree, me.name)
        journal.waiting = told
        journal.write()


def settle_lost(me: Owner, task_id: str, seen: float) -> bytes | None:
    """Decide a task of our own whose node has died, and was last heard of then; as `_settle`."""
    why = Ending("lost", me.name, me.name, frozenset(me.requests()), seen)
    return _settle(me, task_id, why, frozenset())


def _bury(me: Owner, names: set[str]) -> None:
    """Keep dead launchers' records with how they ended; a dead verb's goes."""
    tree = me.tree
    for name in names - {me.name}:
        record = owner.read_record(tree, name)
        if not files.exists(tree.owner(name)) or files.exists(tree.group(State.RUNNING, name)):
            continue
        if record.get("kind") not in ("launcher", "stager"):
            files.remove_tree(tree.owner(name))
        elif not record.get("ended"):
            grave = owner.Owner(tree, me.settings, name, record)
            grave.write_record(ended=units.now_stamp(), taken_by=me.name)


def kill_left(place: Here, names: set[str]) -> bool:
    """Kill what dead owners left on this host; whether nothing of it is left.

    An owner of another host has been fenced by its own guard when its silence has lasted `dead`.
    """
    parts = {name: layout.parse_owner(name) for name in names}
    local = [name for name, told in parts.items() if told and told.boot == place.boot]
    return all(processes.kill_marked(name) for name in local)
