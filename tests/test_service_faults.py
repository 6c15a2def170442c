"""The service as a process: killed at every call, told new settings, slow and full disks."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import crashing
import msgspec
import pytest
from conftest import eventually, make_tree
from crashing import Child, findings, killed_at_each_call, many, memory_folder, one
from scripted import Scripted

from spool import config
from spool.queue import allocations, files, layout, owner
from spool.queue.layout import State, Tree
from spool.service import loop, policy, post, troubles
from spool.service.deciding import Decider
from spool.service.local_tree import LocalTree, Record, Run
from spool.service.loop import Service, system_of

SETTINGS = """
[door]
quiet = "0.2s"
[lease]
beat = "0.1s"
fence = "0.5s"
dead = "1s"
[service]
system = "local"
interval = "0.2s"
patience = "0s"
settle = "1h"
[queues.local]
nodes = "1-2"
time = "5m-1h"
cores = 2
max_queued = 1
"""


@pytest.fixture(autouse=True)
def _no_child_stays() -> Iterator[None]:
    yield
    crashing.kill_children()


# -- killed at every call ------------------------------------------------------------------------


def occupied(tree: Tree) -> LocalTree:
    """This machine's nodes are in use, by this very process: what is submitted stays queued."""
    local = LocalTree(tree.allocation(f"local@{os.uname().nodename}"), 2, 1.0)
    for folder in ("queued", "running", "ended"):
        files.make_folder(local.path(folder))
    run = Run.ours(f"{1:016d}-aaaa")
    record = Record(name="ours", nodes=2, walltime_s=1e6, script="", folder="/", began=time.time())
    local.write(record, "running", str(run))
    return local


def a_step(tree: Tree) -> None:
    wanted = policy.load(tree.root)
    Decider(tree, wanted, system_of(tree, wanted), lambda: True).step()


def test_a_kill_at_any_call_of_a_decision_submits_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trees: list[Tree] = []
    begun = time.time()
    with memory_folder() as folder:

        def prepare() -> crashing.Scenario:
            tree = make_tree(folder / str(len(trees)), SETTINGS)
            many(tree, 3, time_estimate="10m")
            occupied(tree)
            trees.append(tree)
            return lambda tell: a_step(tree)

        kinds = set()
        for spot, _ in killed_at_each_call(prepare, stride=2):
            tree, moment = trees[-1], begun
            local = LocalTree(tree.allocation(f"local@{os.uname().nodename}"), 2, 1.0)
            kinds.add((len(allocations.names(tree)), len(local.queued())))
            for number in range(5):
                moment = begun + 60.0 * number
                with monkeypatch.context() as patched:
                    patched.setattr(time, "time", lambda moment=moment: moment)
                    a_step(tree)
                live = list(allocations.live(tree))
                assert len(live) == 1 and len(local.queued()) <= 1, spot
            (job,) = local.queued()
            record = local.record("queued", job)
            assert record is not None and live[0].standing.job == job, spot
            assert record.name == live[0].asked.name, spot
            raw = files.read(tree.allocation(layout.LEDGER)) or b""
            lines = [msgspec.json.decode(line) for line in raw.splitlines()]
            assert {line["outcome"] for line in lines} <= {allocations.NEVER}, spot
            assert len({line["name"] for line in lines}) == len(lines), spot
            findings(tree, repair=True)
            assert findings(tree) == [], spot
    assert kinds == {(0, 0), (1, 0), (1, 1)}, "kills fell before, between and after"


# -- a service in a child, its words by pipe -----------------------------------------------------


class Words:
    """A service at work in a child; what it said and decided."""

    def __init__(
        self, tree: Tree, watcher: files.Watcher | None = None, *, once: bool = False
    ) -> None:
        self.path = f"{tree.root}/../said"

        def scenario(tell: crashing.Tell) -> None:
            settings = config.load(tree.root)
            service = Service(tree, settings, lambda: policy.load(tree.root), self.show, self.say)
            service.run(once=once)

        self.child = Child(scenario, watcher)

    def say(self, text: str) -> None:
        files.append(self.path, msgspec.json.encode({"say": text}) + b"\n")

    def show(self, report: Any) -> None:
        files.append(self.path, msgspec.json.encode(report) + b"\n")

    def said(self) -> list[str]:
        return [line["say"] for line in self._lines() if "say" in line]

    def reports(self) -> list[dict[str, Any]]:
        return [line for line in self._lines() if "why" in line]

    def _lines(self) -> list[dict[str, Any]]:
        raw = files.read(self.path) or b""
        return [msgspec.json.decode(line) for line in raw.splitlines()]

    def stop(self) -> None:
        os.kill(self.child.pid, signal.SIGTERM)
        self.child.wait()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    system = Scripted()
    monkeypatch.setattr(loop, "system_of", lambda tree, wanted: system)
    monkeypatch.setattr(loop, "TICK_S", 0.02)
    return system


def test_a_service_that_is_told_to_stop_leaves_nothing(tree: Tree, scripted: Scripted) -> None:
    service = Words(tree)
    eventually(service.reports, "it decides")
    assert len(post.holders(tree)) == 1 and findings(tree, repair=True) == []
    service.stop()
    assert files.names(tree.folder("launchers")) == [post.NOBODY]
    assert files.names(tree.state(State.RUNNING)) == []
    assert findings(tree) == []


def test_a_service_that_was_killed_is_succeeded_at_once(tree: Tree, scripted: Scripted) -> None:
    one(tree, time_estimate="10m")
    first = Words(tree)
    eventually(lambda: any(told["asked"] for told in first.reports()), "it asks")
    first.child.kill()
    first.child.wait()
    assert any("next service would take it" in each.what for each in findings(tree))
    second = Words(tree)
    eventually(lambda: post.holders(tree) and second.reports()[-1]["live"], "it goes on")
    eventually(lambda: len(files.names(tree.state(State.RUNNING))) == 1, "and buries")
    second.stop()
    assert len(allocations.names(tree)) == 1 and findings(tree) == []


def test_changed_settings_hold_at_the_next_decision_and_bad_ones_never(
    tree: Tree, scripted: Scripted
) -> None:
    old = (files.read(tree.settings) or b"").decode()
    one(tree, time_estimate="10m")
    one(tree, nodes=4)
    service = Words(tree)
    eventually(service.reports, "it decides")
    files.replace(tree.settings, old.replace("max_queued = 1", "max_queued = many").encode())
    eventually(service.said, "it says what is wrong")
    count = len(service.reports())
    eventually(lambda: len(service.reports()) > count + 3, "it goes on")
    (said,) = service.said()
    assert "the settings from before hold" in said and tree.settings in said
    files.replace(tree.settings, old.replace('nodes = "1-2"', 'nodes = "1-8"').encode())
    eventually(lambda: len(service.said()) > 1, "it takes the new ones")
    assert "the new settings hold" in service.said()[1]
    eventually(lambda: not service.reports()[-1]["unfit"], "wide tasks fit now")
    files.replace(tree.settings, (old + '[service.x]\n"').encode())
    eventually(lambda: len(service.said()) > 2, "torn TOML is no end of it")
    service.stop()


def test_a_slow_batch_system_costs_no_lease(
    tree: Tree, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BEAT_WITHIN_S", 0.05)
    usual = scripted.jobs

    def jobs(names: str, known: Any) -> Any:
        time.sleep(1.5)
        return usual(names, known)

    scripted.jobs = jobs  # type: ignore[method-assign]
    one(tree, time_estimate="10m")
    files.make_folder(tree.allocation("x"))
    asked = allocations.Asked(
        name=allocations.new_name(tree), system="scripted", queue="local", nodes=1,
        walltime_s=600.0, time="",
    )  # fmt: skip
    allocations.make(tree, asked, "#!/bin/sh\n")
    service = Words(tree)
    eventually(lambda: post.holders(tree), "it begins")
    beat = tree.owner(post.holders(tree)[0], "heartbeat")
    tokens = set()
    while not service.reports():
        tokens.add(files.read(beat))
        time.sleep(0.05)
    service.stop()
    assert len(tokens) >= 5


def test_a_controller_that_is_down_is_asked_less_and_less(
    tree: Tree, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troubles, "SILENT_REST_S", (0.1, 0.2, 0.4, 100.0))
    scripted.down()
    service = Words(tree)
    eventually(lambda: len(service.reports()) >= 4, "it tries again")
    time.sleep(0.7)
    service.stop()
    assert len(service.reports()) == 4 and service.said() == []
    assert sum(len(told["loud"]) for told in service.reports()) == 1


def test_a_full_disk_stops_no_service(tree: Tree, scripted: Scripted) -> None:
    one(tree, time_estimate="10m")
    full = f"{tree.root}/../full"
    files.write_new(full, b"")

    def watcher(when: str, call: str, arguments: tuple[Any, ...]) -> None:
        ours = "/sp-" in str(arguments[0]) if arguments else False
        if when == "before" and call == "create" and ours and os.path.exists(full):
            raise OSError(errno.ENOSPC, "No space left on device")

    service = Words(tree, watcher)
    eventually(service.said, "it says so")
    time.sleep(0.5)
    assert len(service.said()) == 1 and "later again" in service.said()[0]
    assert allocations.names(tree) == []
    os.unlink(full)
    eventually(lambda: any(told["asked"] for told in service.reports()), "then it asks")
    service.stop()


def test_one_shots_admit_arrivals(tree: Tree, scripted: Scripted) -> None:
    folder = f"{tree.state(State.CREATED)}/drop"
    files.make_folder(folder)
    files.write_new(f"{folder}/manifest.json", b'{"command": "true", "time_estimate": "10m"}')
    Words(tree, once=True).child.wait()
    assert files.names(tree.state(State.CREATED)) == []
    service = Words(tree, once=True)
    service.child.wait()
    assert len(allocations.names(tree)) == 1
    assert [len(told["asked"]) for told in service.reports()] == [1, 0]


def test_a_service_on_another_host_keeps_its_post_until_its_silence_is_over(
    tree: Tree, scripted: Scripted
) -> None:
    far = crashing.far_owner(tree, "service")
    files.make_folder(tree.owner(f"{post.MARK}{far.name}"))

    def refused(tell: Callable[[object], None]) -> None:
        service = Service(
            tree, config.load(tree.root), lambda: policy.load(tree.root), print, print
        )
        try:
            service.run(once=True)
        except Exception as fault:
            tell(str(fault))

    begun = time.monotonic()
    (said,) = crashing.in_child(refused)
    assert f"has its service already: {far.name}" in said and "third look" in said
    assert files.names(tree.state(State.RUNNING)) == [far.name]
    eventually(lambda: crashing.in_child(refused) == [], "its post is free some time")
    assert time.monotonic() - begun >= 1.0
    assert post.holders(tree) == []
    assert owner.read_record(tree, far.name) == {}, "and it is buried"
