"""Scenarios in processes of their own, killed at their n-th call on the tree or telling by pipe."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from conftest import all_ids, eventually

from spool import config
from spool.config import trusted_users
from spool.launcher import nodes
from spool.launcher.field import Field
from spool.launcher.loop import Launcher
from spool.launcher.picker import Wishes
from spool.queue import check, files, history, layout, manifest, owner, processes, submit, tasks
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.takeover import Observer, take_over

CHANGING = frozenset(
    ("rename", "mkdir", "rmdir", "rmtree", "create", "write", "unlink", "link", "chmod", "fsync")
) | {"syncfs"}
"""Calls after which a kill is worth a try of its own; after a mere look nothing is new."""

SIDE_BY_SIDE = 16
Tell = Callable[[object], None]
Scenario = Callable[[Tell], object]


@dataclass(frozen=True)
class Ended:
    """How a child ended: killed by its watcher or complete, and what it told until then."""

    killed: bool
    told: list[Any]


class Killer:
    """A watcher that kills this process at its n-th call.

    when is "before" (any call), "after" (a changing call), or "before a change".
    """

    def __init__(self, number: int, when: str) -> None:
        self.left = number
        self.when = when

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when != self.when.partition(" ")[0]:
            return
        if self.when != "before" and operation not in CHANGING:
            return
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A forked process at work; `wait` for it."""

    alive: ClassVar[set[Child]] = set()

    def __init__(self, scenario: Scenario, watcher: files.Watcher | None = None) -> None:
        read_end, write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read_end)
            _be_a_child(scenario, watcher, write_end)
        os.close(write_end)
        self.pipe = os.fdopen(read_end, "rb")
        Child.alive.add(self)

    def line(self) -> Any:
        """The next thing it tells."""
        return msgspec.json.decode(self.pipe.readline())

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait for its end; an error inside it is an error here."""
        with self.pipe:
            told = [msgspec.json.decode(line) for line in self.pipe if line.endswith(b"\n")]
        _, status = os.waitpid(self.pid, 0)
        Child.alive.discard(self)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Ended(True, told)
        assert status == 0, f"status {status}: {told[-1] if told else 'nothing said'}"
        return Ended(False, told)


def kill_children() -> None:
    """Kill what a failed test left."""
    for child in tuple(Child.alive):
        child.kill()
        child.wait()


def _be_a_child(scenario: Scenario, watcher: files.Watcher | None, pipe: int) -> None:
    def tell(what: object) -> None:
        os.write(pipe, msgspec.json.encode(what) + b"\n")

    code = 1
    Child.alive.clear()
    try:
        files.watch(watcher)
        scenario(tell)
        code = 0
    except BaseException:  # said by pipe: nothing else of pytest may run in here
        tell(traceback.format_exc())
    finally:
        os._exit(code)


def in_child(scenario: Scenario) -> list[Any]:
    """Run a scenario in a process of its own, undisturbed; what it told."""
    ended = Child(scenario).wait()
    assert not ended.killed
    return ended.told


def killed_at_each_call(
    prepare: Callable[[], Scenario], *, stride: int = 1
) -> Iterator[tuple[str, Ended]]:
    """Kill a fresh scenario at its 1st, 2nd, ... call, until one completes; where, and its end."""
    for when in ("before", "after"):
        for number in count(1, stride):
            ended = Child(prepare(), Killer(number, when)).wait()
            yield f"{when} call {number}", ended
            if not ended.killed:
                break


def at_once_until(works: Iterable[Scenario], enough: Callable[[list[Any]], bool]) -> int:
    """Run scenarios side by side until one told enough; how many were begun before it."""
    running: list[Child] = []
    done = 0
    for work in works:
        running.append(Child(work))
        if len(running) < SIDE_BY_SIDE:
            continue
        if enough(running.pop(0).wait().told):
            break
        done += 1
    for child in running:
        child.wait()
    return done


@contextmanager
def failing(
    operation: str, error: int, *, number: int = 1, when: str = "before", times: int = 1
) -> Iterator[None]:
    """Let the n-th call of an operation and `times` - 1 more fail, before or after its effect."""
    calls = count(1)

    def fail(now: str, name: str, arguments: tuple[Any, ...]) -> None:
        if now == when and name == operation and number <= next(calls) < number + times:
            raise OSError(error, os.strerror(error))

    files.watch(fail)
    try:
        yield
    finally:
        files.watch(None)


# -- tasks and owners ----------------------------------------------------------------------------


def one(tree: Tree, command: object = "true", **keys: Any) -> str:
    """Submit one task; its id."""
    return submit.submit(tree, manifest.from_mapping({"command": command, **keys}, "test"))


def many(tree: Tree, number: int, command: object = "true", **keys: Any) -> list[str]:
    """Submit some tasks in one batch; their ids."""
    wanted = manifest.from_mapping({"command": command, **keys}, "test")
    with submit.Submitter(tree) as submitter:
        ids = [submitter.add(wanted) for _ in range(number)]
        submitter.finish()
    return ids


def start_owner(tree: Tree, kind: str = "launcher", **record: Any) -> Owner:
    """An owner that is this very process."""
    return Owner.start(tree, config.load(tree.root), kind, **record)


def claimed(one_owner: Owner, task_id: str) -> tasks.Task:
    """Claim a task for an owner, wherever it lies; the task."""
    spot = tasks.find(one_owner.tree, task_id)
    assert spot is not None
    path = one_owner.claim_path(task_id)
    assert files.move(spot.path(one_owner.tree), path)
    return tasks.load(path, task_id)


def line(task: tasks.Task, what: str, **more: Any) -> None:
    """Write a line into a task's history by hand."""
    files.append(f"{task.path}/{layout.HISTORY}", history.line(what, **more))
    history.tell(task.story, {"time": "2026-01-01T00:00:00Z", "what": what, **more})


def story_of(tree: Tree, task_id: str) -> history.Story:
    """What a task's history adds up to, wherever it lies."""
    spot = tasks.find(tree, task_id)
    assert spot is not None, f"{task_id} is nowhere"
    return tasks.load(spot.path(tree), task_id).story


def words_of(tree: Tree, task_id: str) -> list[str]:
    """The events of a task's history, by their words."""
    spot = tasks.find(tree, task_id)
    assert spot is not None, f"{task_id} is nowhere"
    raw = files.read(f"{spot.path(tree)}/{layout.HISTORY}") or b""
    return [event["what"] for event in history.events(raw)]


def run_launcher(tree: Tree, cores: int = 1, **wishes: Any) -> Counter[str]:
    """A real launcher, in this process, until it is idle."""
    wished = Wishes(**{"idle_s": 0, **wishes})
    place = Field([nodes.this_node(cores)])
    return Launcher(tree, config.load(tree.root), place, wished).run()


def drained(tree: Tree, cores: int = 2) -> None:
    """Let launchers in children of their own bring everything to an end that can be.

    One that leaves at once may itself have queued a task anew with its last move.
    """
    for _ in range(4):
        in_child(lambda tell: run_launcher(tree, cores))
        if not any(tasks.spots(tree, (State.READY, State.RUNNING))):
            return


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing that it wrote there."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="spool-test-", dir=shared)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, for a test module that kills many processes."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def no_process_stays(tree: Tree) -> Iterator[None]:
    """What a test of such a module left is killed, and has to be gone."""
    yield
    kill_children()
    eventually(lambda: not processes_of(tree), "guards and orphans gone")


# -- recovery and what must hold after it --------------------------------------------------------


def taken_over(tree: Tree) -> None:
    """Let a new owner take over whatever dead owners hold, as launchers do."""
    me = start_owner(tree)
    try:
        dead, undecided = Observer(me).look()
        for group in dead:
            take_over(me, group, trusted_users())
        assert not undecided
    finally:
        me.end()


def findings(tree: Tree, *, repair: bool = False) -> list[check.Finding]:
    """What `spool check --deep` finds."""
    return list(check.check(tree, config.load(tree.root), repair=repair, deep=True))


def assert_sound(tree: Tree, where: str = "") -> Counter[str]:
    """The invariants of a spool at rest: each task once, readable, where it belongs; its ids."""
    ids = Counter(all_ids(tree))
    twice = [task_id for task_id, number in ids.items() if number > 1]
    assert not twice, f"{where}: in two places: {twice}"
    for spot in tasks.spots(tree, (State.READY, State.WAITING, *layout.FINAL)):
        task = tasks.load(spot.path(tree), spot.id)
        assert task.story.damaged == 0, f"{where}: {spot}"
    assert files.names(tree.state(State.RUNNING)) == [], where
    assert findings(tree) == [], where
    assert files.names(tree.tmp()) == [], where
    return ids


def recovered(tree: Tree, where: str = "") -> Counter[str]:
    """Take over and repair after a kill, by turns as launchers and as a person would."""
    if "before" in where:
        taken_over(tree)
    findings(tree, repair=True)
    return assert_sound(tree, where)


def processes_of(tree: Tree) -> list[int]:
    """Guards and tasks of any launcher this spool ever had that still live."""
    marks = {name.encode() for name in files.names(tree.folder("launchers"))}
    marks |= {name.removesuffix(".jsonl").encode() for name in files.names(tree.folder("journal"))}
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and processes.process_start(int(entry)) is not None:
            mark = processes.environment(int(entry)).get(processes.MARK.encode())
            if mark in marks or marks & set(_words(int(entry))):
                found.append(int(entry))
    return found


def _words(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def far_owner(tree: Tree, kind: str = "launcher", **record: Any) -> Owner:
    """An owner on a host whose process table we cannot see, at its first beat."""
    name = layout.owner_name(kind, "far", "0123abcd", 77)
    whole = {"owner": name, "kind": kind, "host": "far", **record}
    far = Owner(tree, config.load(tree.root), name, whole)
    files.make_folder(tree.owner(name, layout.INBOX))
    files.write_new(tree.owner(name, layout.HEARTBEAT), b"0")
    far.write_record()
    files.make_folder(far.claims)
    return far


def gone(name: str) -> bool:
    """Whether an owner's process is no more."""
    parts = layout.parse_owner(name)
    assert parts is not None
    return parts.boot == owner.here().boot and processes.process_start(parts.pid) is None


def history_of(tree: Tree, task_id: str) -> list[dict[str, Any]]:
    """The events of a task's history, wherever it lies."""
    spot = tasks.find(tree, task_id)
    assert spot is not None, f"{task_id} is nowhere"
    return history.events(files.read(f"{spot.path(tree)}/{layout.HISTORY}") or b"")
