"""Random graphs of tasks, random verbs, random crashes: what must hold, holds after each step.

SPOOL_DEEP=N runs N examples of up to 60 steps instead of the few of the default profile.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tree
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from spool import config
from spool.errors import ManifestError, Refused, SpoolError
from spool.queue import (
    advance,
    check,
    claim,
    control,
    files,
    history,
    layout,
    manifest,
    owner,
    parents,
    processes,
    submit,
    takeover,
    tasks,
)
from spool.queue.claim import Claimer
from spool.queue.family import Family
from spool.queue.layout import FINAL, State, Tree
from spool.queue.owner import Owner
from spool.queue.tasks import Spot, Task

DEEP = int(os.environ.get("SPOOL_DEEP", "0"))
FIRST_PID = 1 << 23  # above any that Linux gives: none of them lives but in our book
EVERYONE = frozenset((os.getuid(),))
CRASHES = st.one_of(st.just(0), st.just(0), st.integers(1, 60))
WHICH = st.integers(0, 1 << 16)
POLICIES = st.sampled_from(("wait", "wait", "fail", "run"))


class Crash(BaseException):
    """The process is no more: it touches nothing after this."""


class Dying:
    """A watcher that lets its process die at the n-th call, and do nothing from then on."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        self.left -= 1
        if self.left <= 0 and (when, operation) != ("after", "list"):  # it could not be closed
            raise Crash


class World:
    """The processes that there are: each has a number, and lives or does not."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.last = FIRST_PID
        self.ids = 0
        self.real = owner.here()
        self.now = self.real

    @contextmanager
    def process(self) -> Iterator[int]:
        """Be another process; it lives on until `alive` forgets it."""
        self.last += 1
        self.alive.add(self.last)
        self.now = self.real._replace(pid=self.last)
        yield self.last

    def resume(self, pid: int) -> None:
        """Be that process again."""
        self.now = self.real._replace(pid=pid)

    def tails(self, count: int) -> list[str]:
        """Ids that are the same when an example is tried again; the last is given out first."""
        self.ids += count
        return [f"x{number:09}" for number in range(self.ids, self.ids - count, -1)]

    def start_of(self, pid: int) -> int | None:
        """When a process began: what the kernel would say."""
        return pid if pid in self.alive else None


@contextmanager
def pretended(world: World) -> Iterator[None]:
    """Processes are as our book has them, and nothing is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "here", lambda: world.now)
        patch.setattr(takeover.owner, "here", lambda: world.now)
        patch.setattr(processes, "process_start", world.start_of)
        patch.setattr(processes, "kill_marked", lambda *_, **__: True)
        patch.setattr(layout, "random_tails", world.tails)
        patch.setattr(layout, "lone_shard", lambda when: "26010100-00")
        patch.setattr(tasks, "LOOKS_AFTER_S", (0.0, 0.0))
        patch.setattr(check, "PAUSE_S", 0.0)
        yield


class Launcher:
    """What a launcher does with tasks, without the programs: claim, start, end, move, advance."""

    def __init__(self, tree: Tree, pid: int) -> None:
        self.pid = pid
        self.owner = Owner.start(tree, config.load(tree.root), "launcher")
        self.sweep = advance.Sweep(self.owner)
        self.running: dict[str, Task] = {}


class Dag(RuleBasedStateMachine):
    """The model: which tasks were promised, who may have been removed, which ran again."""

    def __init__(self) -> None:
        super().__init__()
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="spool-dag-", dir=shared))
        self.tree = make_tree(self.folder / "spool")
        self.settings = config.load(self.tree.root)
        self.world = World()
        self.pretence = pretended(self.world)
        self.pretence.__enter__()
        self.promised: list[str] = []
        self.after: dict[str, list[str]] = {}
        self.removing: set[str] = set()
        self.again: set[str] = set()  # retried, so that a child may have been let go before
        self.launchers: list[Launcher] = []
        self.swept = True  # nobody has died since all children were last looked after
        self.starts: Counter[str] = Counter()
        self.done_for: set[str] = set()  # an exit line of success was written by its owner

    def teardown(self) -> None:
        try:
            self._everything_ends()
        finally:
            files.watch(None)
            self.pretence.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    # -- processes -------------------------------------------------------------------------------

    def _crashing(self, number: int, pid: int, work: Callable[[], object]) -> bool:
        """Do it as that process, which dies at its n-th call (0: never); whether it lived."""
        files.watch(Dying(number) if number else None)
        try:
            work()
        except Crash:
            self.world.alive.discard(pid)
            self.launchers = [one for one in self.launchers if one.pid != pid]
            self.swept = False
            return False
        finally:
            files.watch(None)
        return True

    def _in_new_process(self, crash: int, work: Callable[[], object]) -> bool:
        with self.world.process() as pid:
            lived = self._crashing(crash, pid, work)
            self.world.alive.discard(pid)
        return lived

    def _as(self, one: Launcher, crash: int, work: Callable[[], object]) -> bool:
        self.world.resume(one.pid)
        return self._crashing(crash, one.pid, work)

    def _pick(self, which: int) -> str:
        return self.promised[which % len(self.promised)]

    def _some(self, picks: list[int]) -> list[str]:
        return list(dict.fromkeys(self._pick(which) for which in picks)) if self.promised else []

    @initialize(links=st.lists(st.lists(st.integers(0, 5), max_size=2), min_size=3, max_size=6))
    def begin(self, links: list[list[int]]) -> None:
        self.submit_many(links, [], "wait", 0, whole=False)
        self.open(0)

    # -- submission ------------------------------------------------------------------------------

    @rule(
        picks=st.lists(WHICH, max_size=3), policy=POLICIES, crash=CRASHES,
        more=st.sampled_from(({}, {}, {}, {"hold": True}, {"begin": "2098-01-01T00:00:00Z"},
                              {"max_attempts": 2})),
    )  # fmt: skip
    def submit(self, picks: list[int], policy: str, crash: int, more: dict[str, Any]) -> None:
        after = self._some(picks)
        keys = {"command": "true", "after": after, "on_parent_failure": policy, **more}
        self._submitted(crash, lambda told: told.append(self._one(keys)))

    def _one(self, keys: dict[str, Any]) -> str:
        return submit.submit(self.tree, manifest.from_mapping(keys, "test"))

    @rule(
        links=st.lists(st.lists(st.integers(0, 5), max_size=2), min_size=1, max_size=5),
        picks=st.lists(WHICH, max_size=1), policy=POLICIES, crash=CRASHES, whole=st.booleans(),
    )  # fmt: skip
    def submit_many(
        self, links: list[list[int]], picks: list[int], policy: str, crash: int, whole: bool
    ) -> None:
        def works(told: list[str]) -> None:
            with submit.Submitter(self.tree, told.extend, hold_back=whole) as submitter:
                family = Family(submitter.add)
                for number, link in enumerate(links):
                    mates = [f"t{one}" for one in link if one < len(links) and one != number]
                    keys = {"name": f"t{number}", "command": "true", "on_parent_failure": policy}
                    after = [*self._some(picks), *mates]
                    family.add(manifest.from_mapping({**keys, "after": after}, "test"), "here")
                list(family.left())
                submitter.finish()

        self._submitted(crash, works)

    def _submitted(self, crash: int, works: Callable[[list[str]], object]) -> None:
        told: list[str] = []
        before = set(self._spots())

        def does() -> None:
            try:
                works(told)
            except (ManifestError, Refused) as fault:
                expected = ("its parent", "there is no task", "would wait for itself")
                assert any(words in str(fault) for words in expected), fault

        self._in_new_process(crash, does)
        new = set(self._spots()) - before
        assert set(told) <= new, "a promise that was not kept"
        self.promised += sorted(new)  # maybe more than was told: whole tasks, to be run
        for task_id in new:
            self.after[task_id] = list(self._task(task_id).manifest.after)

    # -- launchers -------------------------------------------------------------------------------

    @rule(crash=CRASHES)
    @precondition(lambda self: len(self.launchers) < 3)
    def open(self, crash: int) -> None:
        made: list[Launcher] = []
        with self.world.process() as pid:
            lived = self._crashing(crash, pid, lambda: made.append(Launcher(self.tree, pid)))
        if lived:
            self.launchers += made

    def _one_of(self, which: int) -> Launcher:
        return self.launchers[which % len(self.launchers)]

    @rule(which=WHICH, count=st.integers(1, 4), crash=CRASHES)
    @precondition(lambda self: self.launchers)
    def claim_and_start(self, which: int, count: int, crash: int) -> None:
        one = self._one_of(which)
        self._as(one, crash, lambda: self._start(one, count))

    def _start(self, one: Launcher, count: int) -> None:
        claimer = Claimer(one.owner, seed=1)
        claimer.refresh()
        for task_id in claimer.take(lambda shape: count, count):
            task = claim.read_claim(one.owner, task_id, EVERYONE)
            assert task is not None
            self._assert_may_run(task)
            event = {"what": "start", "attempt": task.story.attempt + 1, "owner": one.owner.name}
            claim.write_line(one.owner, task, {"time": "2026-01-01T00:00:00Z", **event})
            self.starts[task_id] += 1
            one.running[task_id] = task

    def _assert_may_run(self, task: Task) -> None:
        assert task.id not in self.done_for, f"{task.id} had ended, and runs again"
        watcher, files.watcher = files.watcher, None
        try:
            for parent, found in ((p, parents.Lookup(self.tree)[p]) for p in task.manifest.after):
                good = found.state is State.FINISHED or self.again & {parent, found.id}
                fails = found.state in FINAL and task.manifest.on_parent_failure == "run"
                assert good or fails, f"{task.id} runs before its parent {parent}: {found}"
        finally:
            files.watcher = watcher

    @rule(which=WHICH, codes=st.lists(st.sampled_from((0, 0, 1)), min_size=1), crash=CRASHES)
    @precondition(lambda self: any(one.running for one in self.launchers))
    def finish(self, which: int, codes: list[int], crash: int) -> None:
        able = [one for one in self.launchers if one.running]
        one = able[which % len(able)]
        self._as(one, crash, lambda: self._finish(one, codes))

    def _finish(self, one: Launcher, codes: list[int]) -> None:
        """As the launcher does: lines, sync, moves, folders synced, then the children."""
        ended: list[tuple[str, claim.Place]] = []
        for task_id, code in zip(list(one.running), codes, strict=False):
            task = one.running.pop(task_id)
            asked = [name for name in one.owner.requests() if name == f"cancel.{task_id}"]
            cancelled = {"cancelled": True, "signal": 15} if asked else {"code": code}
            event = {"what": "exit", "attempt": task.story.attempt, **cancelled}
            claim.write_line(one.owner, task, {"time": "2026-01-01T00:00:00Z", **event})
            if not asked and code == 0:
                self.done_for.add(task_id)
            place = claim.place_of(self.tree, task, time.time())
            if place.line:
                claim.write_line(one.owner, task, {"time": "2026-01-01T00:00:00Z", **place.line})
            ended.append((task_id, place))
        files.sync_all(one.owner.claims)
        follow = []
        for task_id, place in ended:
            claim.hand_on(one.owner, task_id, place)
            under = layout.is_parent_group(place.state, place.group)
            follow.append(place.group if under else task_id)
        advance.after(one.owner, follow)

    @rule(which=WHICH)
    @precondition(lambda self: self.launchers)
    def kill(self, which: int) -> None:
        one = self._one_of(which)
        self.world.alive.discard(one.pid)
        self.launchers.remove(one)

    @rule(crash=CRASHES)
    def take_over(self, crash: int) -> None:
        self._in_new_process(crash, lambda: self._take_over(None))

    @rule(which=WHICH, crash=CRASHES)
    @precondition(lambda self: self.launchers)
    def launcher_takes_over(self, which: int, crash: int) -> None:
        one = self._one_of(which)
        self._as(one, crash, lambda: self._take_over(one.owner))

    def _take_over(self, me: Owner | None) -> None:
        mine = me or Owner.start(self.tree, self.settings, "launcher")
        observer = takeover.Observer(mine)
        for group in observer.look()[0]:
            takeover.take_over(mine, group, EVERYONE)
            self.swept = True
        if me is None:
            mine.end()

    @rule(which=WHICH, crash=CRASHES)
    @precondition(lambda self: self.launchers)
    def sweep(self, which: int, crash: int) -> None:
        one = self._one_of(which)

        def sweeps() -> None:
            one.sweep.step()
            advance.release_due(one.owner)
            for path in advance.empty_groups(self.tree):
                files.remove_folder(path)

        if self._as(one, crash, sweeps):
            self.swept = True

    # -- a person's verbs ------------------------------------------------------------------------

    def _verb(self, act: control.Act, which: int, crash: int, **words: Any) -> str | None:
        """A verb on any task but a running one; its id if it was done, or may have been."""
        task_id = self._pick(which)
        spot = tasks.find(self.tree, task_id)
        if spot is None or spot.state is State.RUNNING:
            return None
        refused: list[str] = []

        def does() -> None:
            assert spot is not None
            try:
                with control.verb(self.tree, self.settings, act.__name__, **words) as by:
                    control.once(act, by, spot)
            except SpoolError as fault:
                refused.append(str(fault))

        self._in_new_process(crash, does)
        return None if refused else task_id

    @rule(which=WHICH, crash=CRASHES, act=st.sampled_from((control.hold, control.release)))
    @precondition(lambda self: self.promised)
    def hold_or_release(self, which: int, crash: int, act: control.Act) -> None:
        self._verb(act, which, crash)

    @rule(which=WHICH, crash=CRASHES)
    @precondition(lambda self: self.promised)
    def cancel(self, which: int, crash: int) -> None:
        self._verb(control.cancel, which, crash)

    @rule(which=WHICH)
    @precondition(lambda self: any(one.running for one in self.launchers))
    def ask_to_cancel(self, which: int) -> None:
        able = [one for one in self.launchers if one.running]
        one = able[which % len(able)]
        for task_id in list(one.running)[:1]:
            request = self.tree.request(one.owner.name, "cancel", task_id)
            if not files.exists(request):
                files.write_new(request, b"{}\n")

    @rule(which=WHICH, crash=CRASHES)
    @precondition(lambda self: self.promised)
    def retry(self, which: int, crash: int) -> None:
        spot = tasks.find(self.tree, self._pick(which))
        if spot is not None and spot.state in FINAL:
            self.again.add(spot.id)
            self.done_for.discard(spot.id)
            self._verb(control.retry, which, crash)

    @rule(which=WHICH, picks=st.lists(WHICH, min_size=1, max_size=2), crash=CRASHES)
    @precondition(lambda self: self.promised)
    def modify_after(self, which: int, picks: list[int], crash: int) -> None:
        task_id = self._pick(which)
        changes = {"after": self._some(picks)}
        if self._verb(control.modify, which, crash, changes=changes) and task_id in self._spots():
            told = self._task(task_id).manifest.after
            assert crash or set(changes["after"]) <= set(told)
            self.after[task_id] = list(told)

    @rule(which=WHICH, policy=POLICIES, crash=CRASHES)
    @precondition(lambda self: self.promised)
    def modify_policy(self, which: int, policy: str, crash: int) -> None:
        self._verb(control.modify, which, crash, changes={"on_parent_failure": policy})

    @rule(which=WHICH, crash=CRASHES)
    @precondition(lambda self: self.promised)
    def remove(self, which: int, crash: int) -> None:
        task_id = self._pick(which)
        if self._verb(control.remove, which, crash) is not None:
            self.removing.add(task_id)
            assert crash or task_id not in self._spots()

    @rule(which=WHICH, crash=CRASHES, second=CRASHES)
    @precondition(lambda self: self.promised)
    def replace(self, which: int, crash: int, second: int) -> None:
        replaced = self._pick(which)
        spot = tasks.find(self.tree, replaced)
        if spot is None or spot.state not in control.TAKES["replace"]:
            return
        count = len(self.promised)
        keys = {"command": "true", "replaces": replaced, "name": "rescue"}
        self._submitted(crash, lambda told: told.append(self._one(keys)))
        if len(self.promised) > count:
            self._verb(control.replace, which, second, changes={"with": self.promised[-1]})

    @rule()
    def repair(self) -> None:
        self._in_new_process(0, self._repair)

    def _repair(self) -> None:
        found = list(check.check(self.tree, self.settings, repair=True, deep=True))
        assert all(one.repaired for one in found), found
        found = list(check.check(self.tree, self.settings, repair=False, deep=True))
        assert found == []
        self.swept = True

    # -- what must hold --------------------------------------------------------------------------

    def _spots(self) -> dict[str, Spot]:
        found: dict[str, Spot] = {}
        for spot in tasks.spots(self.tree, tuple(State)):
            assert spot.id not in found, f"in two places: {spot} and {found[spot.id]}"
            found[spot.id] = spot
        return found

    def _task(self, task_id: str) -> Task:
        return tasks.load(self._spots()[task_id].path(self.tree), task_id)

    @invariant()
    def each_task_is_in_one_place_and_whole(self) -> None:
        found = self._spots()
        for task_id in self.promised:
            if task_id not in found:
                assert task_id in self.removing, f"{task_id} is nowhere"
                assert files.exists(self.tree.seen(task_id)), f"{task_id} left no record"
                continue
            task = tasks.load(found[task_id].path(self.tree), task_id)
            assert task.story.damaged == 0
            assert set(self.after[task_id]) <= set(task.manifest.after)
            if found[task_id].state is State.FINISHED:
                assert task.story.exit and history.succeeded(task.story.exit)

    @invariant()
    def no_child_is_left_behind(self) -> None:
        """Whoever lies under a task that ended waits for its retry; after a death, once swept."""
        for spot in tasks.spots(self.tree, (State.WAITING,)):
            if not self.swept or not layout.is_parent_group(spot.state, spot.group):
                continue
            found = parents.Lookup(self.tree)[spot.group]
            assert found.id == spot.group, f"{spot} lies under one that was replaced"
            if found.state is not State.WAITING:
                policy = tasks.load(spot.path(self.tree), spot.id).manifest.on_parent_failure
                assert found.state is not State.FINISHED, f"{spot} is left behind"
                assert policy == "wait", f"{spot} waits for {found}, though told to {policy}"

    def _everything_ends(self) -> None:
        """All owners die, are taken over, all that waits for a person goes on: all comes home."""
        for one in self.launchers:
            self.world.alive.discard(one.pid)
        self.launchers.clear()
        self._in_new_process(0, lambda: self._take_over(None))
        self._in_new_process(0, self._repair)
        for _ in range(2):  # what was held may have to wait for a moment too
            for spot in list(tasks.spots(self.tree, (State.WAITING,))):
                if not layout.is_parent_group(spot.state, spot.group):
                    assert self._verb(control.release, self.promised.index(spot.id), 0)
        with self.world.process() as pid:
            last = Launcher(self.tree, pid)
            while True:
                self._start(last, 100)
                if not last.running:
                    break
                self._finish(last, [0] * len(last.running))
                last.sweep.step()
            last.owner.end()
            self.world.alive.discard(pid)
        self._in_new_process(0, self._repair)
        self.each_task_is_in_one_place_and_whole()
        self.no_child_is_left_behind()
        assert not any(tasks.spots(self.tree, (State.READY, State.RUNNING)))
        self._assert_rightly_blocked()
        assert files.names(self.tree.tmp()) == []

    def _assert_rightly_blocked(self) -> None:
        """What still waits does so, however far, for one that failed or was cancelled."""
        waiting = {spot.id: spot.group for spot in tasks.spots(self.tree, (State.WAITING,))}
        kin = parents.Lookup(self.tree)
        for task_id in waiting:
            seen = {task_id}
            here = waiting[task_id]
            while here in waiting:
                assert here not in seen, f"{task_id} waits for itself"
                seen.add(here)
                here = waiting[here]
            assert kin[here].state in (State.FAILED, State.CANCELLED), (task_id, here, kin[here])


def test_random_graphs_verbs_and_crashes_lose_nothing_and_run_nothing_too_early() -> None:
    profile = settings(
        max_examples=DEEP or 60,
        stateful_step_count=60 if DEEP else 25,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Dag, settings=profile)
