"""spool why: for each place a task can be in, what it waits for, who is in the way, what helps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, run_spool
from crashing import claimed, far_owner, line, many, one, run_launcher, start_owner

from spool import config, units
from spool.api import Spool
from spool.commands.why import Teller
from spool.errors import NoSuchTask, SpoolError
from spool.launcher import prospects
from spool.launcher.field import Field
from spool.launcher.nodes import Node
from spool.launcher.picker import Wishes
from spool.queue import advance, allocations, claim, control, files, layout, shape, tasks
from spool.queue import owner as owners
from spool.queue.allocations import Asked, Standing
from spool.queue.layout import State, Tree
from spool.queue.limits import Tokens
from spool.queue.owner import Owner
from spool.queue.why.answer import Answer
from spool.queue.why.scene import Scene
from spool.service import loop, memory, outlook, policy, post
from spool.service.deciding import Decider
from spool.service.memory import Memory
from spool.service.system import Partition
from spool.service.terms import NodeShape
from spool.service.troubles import Mark

H = 3600.0
SETTINGS = """
[door]
quiet = "0.2s"
[service]
system = "local"
"""
QUEUES = """
[queues.debug]
nodes = "1-2"
time = "5m-1h"
max_queued = 1
cores = 16
[queues.long]
nodes = "1-8"
time = "1d"
max_queued = 2
cores = 16
"""


def told(tree: Tree, word: str, *, later_s: float = 0.0) -> Answer:
    """The one answer about a word, as it would be given `later_s` from now."""
    answers = list(teller(tree, later_s=later_s).answers((word,)))
    assert len(answers) == 1
    json.dumps(answers[0].as_json())
    return answers[0]


def teller(tree: Tree, *, later_s: float = 0.0) -> Teller:
    return Teller(Scene(tree, config.load(tree.root), time.time() + later_s))


def text(answer: Answer) -> str:
    """All that a person reads."""
    return "\n".join(answer.as_text())


def fact(answer: Answer, what: str) -> dict[str, Any]:
    """The facts of the first reason of a kind."""
    return next(reason.facts for reason in answer.reasons if reason.what == what)


def settle(tree: Tree, *more: str) -> None:
    """Write spool.toml anew."""
    Path(tree.settings).write_text("\n".join(("format = 1", SETTINGS, *more)))


def launcher(tree: Tree, *nodes: Node, ends_s: float = 0.0, **wishes: Any) -> Owner:
    """A launcher that lives, which is this process, by the record that a real one writes."""
    place = Field(nodes or [Node(tuple(range(16)), (), 64 * 1024)])
    ends = time.time() + ends_s if ends_s else None
    return start_owner(tree, **place.told(), **Wishes(**wishes).told(), ends=ends)


def service(tree: Tree) -> Owner:
    """A service that lives, which is this process, and holds its post."""
    owner = start_owner(tree, "service", system="local")
    assert post.take(owner, lambda _: pytest.fail("nobody else is there")) == ""
    memory.save(tree, Memory(partitions=(Partition(name="debug", node=NodeShape(16)),)))
    return owner


def ended_with(tree: Tree, me: Owner, task_id: str, **how: Any) -> None:
    """Run a task to its end as a launcher does, and move it on."""
    task = claimed(me, task_id)
    attempt = task.story.attempt + 1
    line(task, "start", attempt=attempt, owner=me.name, node="node7")
    line(task, "exit", attempt=attempt, owner=me.name, elapsed_s=3.0, **how)
    claim.settle(me, tasks.load(task.path, task_id))
    advance.after(me, [task_id])


def act(tree: Tree, verb: str, task_id: str, **words: Any) -> None:
    """A person's verb on one task."""
    spot = tasks.find(tree, task_id)
    assert spot is not None
    with control.verb(tree, config.load(tree.root), verb, **words) as by:
        control.once(getattr(control, verb), by, spot)


# -- CREATED -------------------------------------------------------------------------------------


@pytest.fixture
def drop(tree: Tree) -> Callable[..., Path]:
    """drop("name", manifest={...}, file=b"...") puts something into CREATED."""

    def put(name: str, manifest: object = None, **contents: bytes) -> Path:
        folder = Path(tree.state(State.CREATED), name)
        folder.mkdir()
        for inner, content in contents.items():
            (folder / inner).write_bytes(content)
        if manifest is not None:
            (folder / layout.MANIFEST).write_text(json.dumps(manifest))
        return folder

    return put


def test_an_arrival_without_a_manifest_is_under_way(tree: Tree, drop: Any) -> None:
    drop("a", data=b"1")
    answer = told(tree, "a")
    assert answer.has("no-manifest") and answer.has("nobody")
    assert "run: spool launcher, or spool service" in answer.advice


def test_an_arrival_with_a_temporary_file_is_a_transfer(tree: Tree, drop: Any) -> None:
    folder = drop("a", {"command": ["true"]})
    (folder / ".big.dat.x7Yz12").write_bytes(b"1")
    assert fact(told(tree, "a"), "transfer")["file"] == ".big.dat.x7Yz12"


def test_an_arrival_lacks_its_inputs(tree: Tree, drop: Any) -> None:
    drop("a", {"command": ["true"], "inputs": ["b.dat", "c.dat"]}, **{"b.dat": b""})
    assert fact(told(tree, "a"), "inputs")["missing"] == ["c.dat"]


def test_an_arrival_that_just_changed_is_not_complete_until_it_rests(tree: Tree, drop: Any) -> None:
    drop("a", {"command": ["true"]})
    assert told(tree, "a", later_s=-0.1).has("changing")
    rested = told(tree, "a", later_s=60)
    assert rested.has("complete") and not rested.has("changing")


def test_an_arrival_that_will_be_rejected_says_so_before(tree: Tree, drop: Any) -> None:
    drop("a", {"command": ["true"], "coers": 2})
    assert "unknown key 'coers'" in text(told(tree, "a"))
    drop("b", {"command": ["true"], "inputs": [{"path": "x", "size": 3}]}, x=b"1")
    assert "has 1 bytes, the manifest says 3" in text(told(tree, "b"))


def test_who_looks_at_the_door_is_named(tree: Tree, drop: Any) -> None:
    drop("a", {"command": ["true"]})
    launcher(tree)
    answer = told(tree, "a", later_s=60)
    assert fact(answer, "door") == {"lookers": 1} and not answer.has("nobody")


def test_a_file_and_a_link_at_the_door(tree: Tree) -> None:
    Path(tree.state(State.CREATED), "notes.txt").write_text("")
    os.symlink("/", f"{tree.state(State.CREATED)}/link")
    assert told(tree, "notes.txt").has("file")
    assert told(tree, "link").has("rejected")


def test_what_came_late_names_its_task(tree: Tree, drop: Any) -> None:
    task_id = one(tree)
    drop(task_id, late=b"1")
    spot = tasks.Spot(State.CREATED, "", task_id)
    answer = teller(tree).of_task(spot)
    assert fact(answer, "late")["where"].startswith("READY/")


def test_an_arrival_in_somebody_s_hands(tree: Tree, drop: Any) -> None:
    task_id = layout.new_id("a", "26112215-00")
    folder = drop(task_id, {"command": ["true"]})
    owner = launcher(tree)
    os.rename(folder, owner.claim_path(f"{task_id}{layout.ARRIVING}"))
    answer = told(tree, task_id)
    assert fact(answer, "admitted")["owner"] == owner.name
    assert answer.id == task_id


# -- WAITING -------------------------------------------------------------------------------------


def test_a_held_task_says_by_whom_and_how_to_release_it(tree: Tree) -> None:
    task_id = one(tree)
    act(tree, "hold", task_id, reason="wait for the new pseudopotentials")
    answer = told(tree, task_id)
    assert "wait for the new pseudopotentials" in text(answer)
    assert fact(answer, "held")["by"]
    assert answer.advice == [f"spool release {task_id}"]
    assert "submitted held" in text(told(tree, one(tree, hold=True)))


def test_a_held_task_tells_the_parents_that_come_after(tree: Tree) -> None:
    parent = one(tree)
    answer = told(tree, one(tree, hold=True, after=[parent]))
    assert [reason.what for reason in answer.reasons] == ["held", "parents", "parent"]


def test_a_task_that_begins_later(tree: Tree) -> None:
    task_id = one(tree, begin=units.stamp(time.time() + 1800))
    answer = told(tree, task_id)
    assert fact(answer, "until")["cause"] == "begin"
    assert 1700 < fact(answer, "until")["left_s"] < 1900
    due = told(tree, task_id, later_s=3600)
    assert fact(due, "due")["state"] == "READY" and due.has("nobody")


def test_a_back_off_names_the_failure_it_follows(tree: Tree) -> None:
    owner = launcher(tree)
    task_id = one(tree, max_attempts=3, backoff="10m")
    ended_with(tree, owner, task_id, code=7)
    answer = told(tree, task_id)
    assert fact(answer, "until")["cause"] == "back-off"
    assert "attempt 1, which ended with exit-7 (1 of 3 attempts used)" in text(answer)


def test_all_parents_in_the_way_are_told_with_where_they_are(tree: Tree) -> None:
    owner = launcher(tree)
    first, second, third = one(tree), one(tree), one(tree)
    child = one(tree, after=[first, second, third])
    ended_with(tree, owner, second, code=0)
    claimed(owner, third)
    answer = told(tree, child)
    assert fact(answer, "parents") == {"unfinished": 2, "parents": 3}
    states = {reason.facts["id"]: reason.facts["state"] for reason in answer.reasons[1:]}
    assert states == {first: "READY", third: "RUNNING"}
    assert not answer.has("blocked")


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_blocked_task_names_the_one_that_blocks_it(tree: Tree, how: str) -> None:
    owner = launcher(tree)
    parent = one(tree)
    child = one(tree, after=[parent])
    grandchild = one(tree, after=[child])
    if how == "failed":
        ended_with(tree, owner, parent, code=1)
    else:
        act(tree, "cancel", parent)
    for task_id in (child, grandchild):
        answer = told(tree, task_id)
        assert fact(answer, "blocked") == {"culprits": [parent]}
        assert f"spool retry {parent}" in answer.advice
    assert f"{child} waits in vain itself" in text(told(tree, grandchild))
    assert fact(told(tree, parent), "waited-for") == {"count": 1}


def test_a_replaced_parent_is_followed(tree: Tree) -> None:
    owner = launcher(tree)
    parent = one(tree)
    child = one(tree, after=[parent])
    ended_with(tree, owner, parent, code=1)
    heir = one(tree)
    act(tree, "replace", parent, changes={"with": heir})
    answer = told(tree, child)
    assert f"{heir} (in the place of {parent}) is in READY" in text(answer)
    assert not answer.has("blocked")
    assert fact(told(tree, parent), "heir")["heir"] == heir


def test_a_parent_that_is_nowhere(tree: Tree) -> None:
    parent = one(tree)
    child = one(tree, after=[parent])
    spot = tasks.find(tree, parent)
    assert spot is not None
    files.remove_tree(spot.path(tree))
    answer = told(tree, child)
    assert answer.has("no-parent") and "is nowhere" in text(answer)


def test_a_task_whose_parents_have_finished_is_due(tree: Tree) -> None:
    parent = one(tree)
    child = one(tree, after=[parent])
    with_owner = launcher(tree)
    task = claimed(with_owner, parent)
    line(task, "start", attempt=1, owner=with_owner.name)
    line(task, "exit", attempt=1, owner=with_owner.name, code=0)
    claim.settle(with_owner, task)
    assert fact(told(tree, child), "due")["state"] == "READY"


def test_many_parents_of_an_array_are_told_as_one(tree: Tree, spool: Spool) -> None:
    array = spool.submit_array(["true"], array=range(100), chunk=10)
    child = one(tree, after=array.chunks)
    answer = told(tree, child)
    assert fact(answer, "parents") == {"unfinished": 10, "parents": 10}
    assert sum(reason.what == "parent" for reason in answer.reasons) == 1


# -- READY: launchers ----------------------------------------------------------------------------


def test_without_anybody_at_work_it_says_what_to_run(tree: Tree) -> None:
    settle(tree, QUEUES)
    answer = told(tree, one(tree))
    assert answer.has("no-launcher") and answer.has("no-service")
    assert answer.advice == ["run: spool service, or spool launcher"]


def test_a_launcher_with_room_should_take_it_soon(tree: Tree) -> None:
    owner = launcher(tree)
    answer = told(tree, one(tree))
    found = fact(answer, "launcher")
    assert found == {"owner": owner.name, "takes": True, "ahead": 0, "busy": None}
    assert "should take it soon" in text(answer) and not answer.advice


def test_a_full_launcher_takes_it_when_it_has_room(tree: Tree) -> None:
    owner = launcher(tree)
    owner.busy = 1.0
    owner.beat()
    assert "as soon as it has room" in text(told(tree, one(tree)))


def test_what_is_served_before_it_is_counted(tree: Tree) -> None:
    launcher(tree)
    task_id = one(tree)
    many(tree, 5, priority=9)
    many(tree, 3, cores_per_rank=4)
    many(tree, 2, cores_per_rank=64, priority=9)  # too large, so not before it there
    many(tree, 4, priority=-3)
    answer = told(tree, task_id)
    assert fact(answer, "launcher")["ahead"] == 8
    assert "8 tasks before it (5 of higher priority, 3 larger)" in text(answer)


@pytest.mark.parametrize(
    ("wishes", "keys", "says"),
    [
        ({}, {"cores_per_rank": 17}, "too large"),
        ({}, {"gpus": 1}, "too large"),
        ({}, {"nodes": 2}, "too large"),
        ({"ends_s": 600.0}, {"time_limit": "1h"}, "too long for the time left"),
        ({}, {"requires": ["knl"]}, "need a feature that is not here"),
        ({"workflow": "g2"}, {"workflow": "g3"}, "of another workflow"),
        ({"mode": "mpi"}, {}, "this launcher runs MPI tasks only"),
        ({"mode": "serial"}, {"ranks_per_node": 2}, "this launcher runs serial tasks only"),
        ({"tags": ("hot",)}, {"tags": ["cold"]}, "only tasks with the tag hot"),
    ],
)
def test_a_launcher_that_does_not_take_it_says_why(
    tree: Tree, wishes: dict[str, Any], keys: dict[str, Any], says: str
) -> None:
    launcher(tree, **wishes)
    answer = told(tree, one(tree, **keys))
    assert fact(answer, "launcher")["takes"] is False
    assert says in text(answer)


@pytest.mark.parametrize(
    ("wishes", "keys"),
    [
        ({"ends_s": 7200.0}, {"time_limit": "1h"}),
        ({"features": frozenset(["knl"])}, {"requires": ["knl"]}),
        ({"workflow": "g2"}, {"workflow": "g2"}),
        ({"mode": "mpi"}, {"ranks_per_node": 2}),
        ({"tags": ("hot",)}, {"tags": ["hot", "cold"]}),
    ],
)
def test_a_launcher_that_takes_it_is_found(
    tree: Tree, wishes: dict[str, Any], keys: dict[str, Any]
) -> None:
    launcher(tree, **wishes)
    assert fact(told(tree, one(tree, **keys)), "launcher")["takes"] is True


def test_nodes_of_several_sizes_are_known_from_the_record(tree: Tree) -> None:
    small, large = Node((0, 1)), Node(tuple(range(8)), ("0", "1"))
    owner = launcher(tree, small, large, small, large)
    assert owner.record["each"] == [[2, 2, 0, 0], [2, 8, 2, 0]]
    rules = prospects.rules_of(owner.record, 0)
    for text_, fits in (("n2.c8", True), ("n3.c8", False), ("n4.c2", True), ("c1.g2", True)):
        assert (rules.why_not(shape.read(text_), 0.0) == "") is fits


def test_records_of_older_launchers_are_taken_for_even_nodes(tree: Tree) -> None:
    rules = prospects.rules_of({"cores": 8, "nodes": 2, "memory_mb": 2048, "gpus": ["0"]}, 0)
    assert [len(node.cpus) for node in rules.book.nodes] == [4, 4]
    assert rules.why_not(shape.read("n2.c4.g1.m1G"), 0.0) == ""


def test_a_launcher_that_drains_or_is_dead_or_silent_does_not_count(tree: Tree) -> None:
    task_id = one(tree)
    draining = launcher(tree)
    assert draining.tell("draining", True) is True
    assert "told to end" in text(told(tree, task_id))
    far = far_owner(tree)
    os.utime(tree.owner(far.name, layout.HEARTBEAT), (0, time.time() - 500))
    answer = told(tree, task_id)
    assert fact(answer, "gone") == {"count": 1}
    assert "(silent)" in text(answer)


def test_hands_are_told_with_the_launcher_that_lends_to_them(tree: Tree) -> None:
    launcher(tree)
    launcher(tree, hand_of=os.getpid())
    answer = told(tree, one(tree))
    assert sum(reason.what == "launcher" for reason in answer.reasons) == 1


def test_a_limit_that_is_reached_names_who_has_its_tokens(tree: Tree) -> None:
    settle(tree, '[limits]\n"tag:io" = 2\n"tag:never" = 0')
    owner = launcher(tree)
    tokens = Tokens(owner)
    io = (tokens.limits[0],)
    assert tokens.take(io)
    task_id = one(tree, tags=["io"])
    assert not told(tree, task_id).has("limit")
    assert tokens.take(io)
    answer = told(tree, task_id)
    assert fact(answer, "limit")["holders"] == {owner.name: 2}
    assert "the limit 'tag:io' is reached: 2 at once" in text(answer)
    assert told(tree, one(tree, tags=["never"])).has("limit")


def test_a_limit_per_node_is_told_where_it_is_reached(tree: Tree) -> None:
    settle(tree, '[limits]\n"tag:io per node" = 1')
    tokens = Tokens(launcher(tree))
    task_id = one(tree, tags=["io"])
    assert not told(tree, task_id).has("limit")
    assert tokens.take(tokens.limits, ["n1"])
    assert fact(told(tree, task_id), "limit")["node"] == "n1"


def test_what_was_tried_before_is_told(tree: Tree) -> None:
    owner = launcher(tree)
    task_id = one(tree, max_attempts=3)
    ended_with(tree, owner, task_id, code=1)
    assert "it was started once before, 1 of them failed" in text(told(tree, task_id))


def test_a_lane_that_is_none_is_told(tree: Tree) -> None:
    task_id = one(tree)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    shard = layout.shard_of(task_id)
    files.make_folder(tree.group(State.READY, f"c0@{shard}"))
    files.rename_file(spot.path(tree), tree.task(State.READY, f"c0@{shard}", task_id))
    assert told(tree, task_id).advice == ["run: spool check"]


# -- READY: stages -------------------------------------------------------------------------------


def test_a_task_to_prepare_needs_a_stager(tree: Tree) -> None:
    task_id = one(tree, preprocess=["true"])
    answer = told(tree, task_id)
    assert fact(answer, "stage")["stage"] == "prepare"
    assert answer.advice == ["run: spool launcher"]
    launcher(tree)
    assert fact(told(tree, task_id), "no-stager")["starter"]
    settle(tree, "[staging]\nlaunchers = false")
    assert told(tree, task_id).advice == ["run: spool launcher --stage"]
    start_owner(tree, "stager", at_once=8)
    assert fact(told(tree, task_id), "stager")["at_once"] == 8


def test_a_stager_of_another_workflow_does_not_count(tree: Tree) -> None:
    start_owner(tree, "stager", at_once=8, workflow="g2")
    assert told(tree, one(tree, preprocess=["true"], workflow="g3")).has("no-stager")
    assert told(tree, one(tree, preprocess=["true"], workflow="g2")).has("stager")


# -- READY: the service --------------------------------------------------------------------------


def test_a_queue_that_could_take_it_is_told_with_what_would_be_asked(tree: Tree) -> None:
    settle(tree, QUEUES)
    answer = told(tree, one(tree, time_limit="30m", nodes=2, cores_per_rank=16))
    asks = fact(answer, "queue")
    assert asks["queues"] == ["debug", "long"] and asks["asks"]["nodes"] == 2
    service(tree)
    answer = told(tree, one(tree, time_limit="30m", nodes=2, cores_per_rank=16))
    assert "the service asks at its next look" in text(answer)
    assert answer.has("service") and not answer.advice


def test_what_no_queue_can_ever_take_is_told_with_the_limit(tree: Tree) -> None:
    settle(tree, QUEUES)
    answer = told(tree, one(tree, nodes=9, time_limit="30m"))
    assert "queue long gives at most 8" in fact(answer, "unfit")["why"]
    assert answer.advice[0].startswith("ask for less")
    answer = told(tree, one(tree, nodes=4, time_limit="2h"))
    assert fact(answer, "queue")["able"] is False
    assert "queue debug can never take it: needs 4 nodes" in text(answer)


def test_caps_budget_and_back_off_stand_in_the_way(tree: Tree) -> None:
    settle(tree, QUEUES)
    task_id = one(tree, time_limit="30m", nodes=2, cores_per_rank=16)
    allocation(tree, queue="debug", nodes=1)
    allocation(tree, queue="long", nodes=1)
    allocation(tree, queue="long", nodes=1)
    answer = told(tree, task_id)
    assert "1 of at most 1 allocations wait already" in fact(answer, "queue")["why"]
    assert fact(answer, "allocation")["takes"] is False
    settle(tree, 'budget = "3 node-hours"', QUEUES.replace("max_queued = 2", "max_queued = 9"))
    assert "budget has 0.0 node-hours of 3.0" in text(told(tree, task_id))
    settle(tree, QUEUES.replace("max_queued = 2", "max_queued = 9"))
    mark = Mark("account", "no such account: Project", 1, time.time() + 320)
    memory.save(tree, Memory(marks={"long": mark}))
    assert "left alone for 5m: account: no such account" in text(told(tree, task_id))


def allocation(tree: Tree, *, state: str = "queued", **asked: Any) -> str:
    """An allocation that the service asked for."""
    name = allocations.new_name(tree)
    given = {"queue": "debug", "nodes": 2, "walltime_s": H, **asked}
    record = Asked(name=name, system="local", time=units.now_stamp(), **given)
    allocations.make(tree, record, "#!/bin/sh\n")
    allocations.write(tree, name, Standing(state=state, job="7", why="Priority", waited_s=720.0))
    return name


def test_an_allocation_that_waits_is_told_and_whether_it_could_serve(tree: Tree) -> None:
    settle(tree, QUEUES)
    name = allocation(tree, nodes=2)
    fits = told(tree, one(tree, nodes=2, time_limit="30m", cores_per_rank=16))
    assert f"allocation {name} waits in queue debug for 12m now (2 nodes for 1h)" in text(fits)
    assert "because of Priority; it could serve this" in text(fits)
    assert fits.has("covered") and not fits.advice
    wide = told(tree, one(tree, nodes=4, time_limit="30m"))
    assert fact(wide, "allocation")["why"] == "it needs 4 nodes"
    long = told(tree, one(tree, time_limit="2h"))
    assert "it takes 2h" in fact(long, "allocation")["why"]
    chosen = allocation(tree, selects="workflow g2")
    some = told(tree, one(tree, time_limit="30m"))
    why = {reason.facts["name"]: reason.facts["why"] for reason in some.reasons
           if reason.what == "allocation"}  # fmt: skip
    assert why[chosen] == "it takes only some tasks (workflow g2)"


def test_an_allocation_whose_launcher_is_told_is_not_told_twice(tree: Tree) -> None:
    settle(tree, QUEUES)
    name = allocation(tree, state="running")
    task_id = one(tree, time_limit="30m")
    assert "no launcher shows itself in it yet" in text(told(tree, task_id))
    start_owner(tree, cores=16, nodes=1, allocation_name=name, each=[[1, 16, 0, 0]])
    answer = told(tree, task_id)
    assert not answer.has("allocation") and f"allocation {name}" in text(answer)


def test_the_last_decision_is_told_as_far_as_it_is_of_this_shape(tree: Tree) -> None:
    settle(tree, QUEUES)
    task_id = one(tree, time_limit="30m")
    refused = [{"queue": "debug", "said": "invalid account"}]
    whys = ["9 tasks wait", "2 tasks (c16.t30m): not these", "1 task (c1.t30m): the budget"]
    memory.note(tree, "decision", why=["an older one"])
    memory.note(tree, "decision", why=whys, refused=refused)
    found = fact(told(tree, task_id), "decision")
    assert found["why"] == ["1 task (c1.t30m): the budget", "debug refused: invalid account"]


def test_a_damaged_journal_or_memory_costs_nothing_but_words(tree: Tree) -> None:
    settle(tree, QUEUES)
    files.make_folder(tree.folder("journal"))
    Path(tree.journal(layout.SERVICE_JOURNAL)).write_bytes(b'{"what": "decision"\n\xff\n[1]\n')
    assert outlook.last_decision(tree.journal(layout.SERVICE_JOURNAL)) is None
    Path(tree.folder("allocations"), layout.SERVICE_MEMORY).write_bytes(b"\xff")
    assert told(tree, one(tree)).has("queue")


def test_wrong_settings_of_the_service_are_told(tree: Tree) -> None:
    settle(tree, '[queues.debug]\nnodes = "none"')
    answer = told(tree, one(tree))
    assert "the service cannot start" in text(answer) and answer.advice == ["mend spool.toml"]


def test_a_batch_system_that_does_not_answer_is_told(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tree.settings).write_text('format = 1\n[service]\nsystem = "slurm"\n')
    monkeypatch.setenv("PATH", "/nonexistent")
    assert told(tree, one(tree)).has("batch-system")


# -- RUNNING -------------------------------------------------------------------------------------


def test_a_running_task_is_told_with_its_owner_and_limits(tree: Tree) -> None:
    owner = launcher(tree, ends_s=1800.0)
    task = claimed(owner, task_id := one(tree, time_limit="1h"))
    assert told(tree, task_id).has("claimed")
    line(task, "start", attempt=1, owner=owner.name, node="node7")
    answer = told(tree, task_id, later_s=600)
    assert fact(answer, "runs")["node"] == "node7"
    assert 590 < fact(answer, "runs")["ran_s"] < 660
    assert 2900 < fact(answer, "time-limit")["left_s"] < 3010
    assert 1100 < fact(answer, "launcher-ends")["left_s"] < 1210
    assert fact(answer, "owner")["verdict"] == "alive"
    files.write_new(tree.request(owner.name, "cancel", task_id), b"{}")
    assert fact(told(tree, task_id), "asked") == {"verb": "cancel"}


def test_a_dead_owner_and_one_that_is_silent(tree: Tree) -> None:
    far = far_owner(tree)
    claimed(far, task_id := one(tree))
    os.utime(tree.owner(far.name, layout.HEARTBEAT), (0, time.time() - 100))
    answer = told(tree, task_id)
    assert fact(answer, "owner")["verdict"] == "silent" and answer.has("nobody")
    assert "after 4m of silence it is taken over" in text(answer)
    far.write_record(ended=units.now_stamp())
    assert fact(told(tree, task_id), "owner")["verdict"] == "dead"


def test_a_takeover_under_way(tree: Tree) -> None:
    far = far_owner(tree)
    claimed(far, task_id := one(tree))
    me = launcher(tree)
    files.rename_file(far.claims, tree.group(State.RUNNING, layout.claims_group(far.name, me.name)))
    assert fact(told(tree, task_id), "takeover") == {"owner": far.name, "taker": me.name}


def test_a_task_in_a_verb_s_hands_and_one_that_is_staged(tree: Tree) -> None:
    verb = start_owner(tree, "hold")
    claimed(verb, task_id := one(tree))
    assert "in the hands of the `spool hold`" in text(told(tree, task_id))
    stager = start_owner(tree, "stager")
    task = claimed(stager, staged := one(tree, preprocess=["true"]))
    line(task, "staging", stage="prepare", owner=stager.name)
    assert fact(told(tree, staged), "staging")["stage"] == "prepare"


# -- final states --------------------------------------------------------------------------------


def test_a_failure_is_told_with_its_tries_and_its_output(tree: Tree) -> None:
    task_id = one(tree, "echo too bad; exit 7", max_attempts=2)
    run_launcher(tree)
    answer = told(tree, task_id)
    assert fact(answer, "exit-7")["code"] == 7
    assert fact(answer, "tries") == {"used": 2, "allowed": 2, "rule": ""}
    assert answer.as_json()["tail"] == ["too bad"]
    assert f"spool retry {task_id}" in answer.advice
    assert "  | too bad" in text(answer)


def test_a_finished_task_is_told_too(tree: Tree) -> None:
    owner = launcher(tree)
    ended_with(tree, owner, task_id := one(tree), code=0)
    answer = told(tree, task_id)
    assert "exit code 0 after 3s" in text(answer) and "on node7" in text(answer)


@pytest.mark.parametrize(
    ("how", "what", "advice"),
    [
        ({"code": 143, "timeout": True}, "timeout", "--time-limit"),
        ({"signal": 9, "peak_mb": 900.0}, "signal-9", "--memory"),
    ],
)
def test_what_a_retry_should_change_is_hinted(
    tree: Tree, how: dict[str, Any], what: str, advice: str
) -> None:
    ended_with(tree, launcher(tree), task_id := one(tree), **how)
    answer = told(tree, task_id)
    assert answer.has(what) and any(advice in line for line in answer.advice)
    assert answer.has("memory") is (what == "signal-9")


def test_a_handler_s_word_is_told(tree: Tree) -> None:
    owner = launcher(tree)
    task = claimed(owner, task_id := one(tree, on_error=["true"]))
    line(task, "start", attempt=1, owner=owner.name)
    line(task, "exit", attempt=1, owner=owner.name, code=1)
    line(task, "decided", verdict="fail", handler="on_error", reason="diverged")
    claim.settle(owner, task)
    assert "on_error says fail diverged" in text(told(tree, task_id))


def test_a_cancelled_task_names_who_did_it_and_why(tree: Tree) -> None:
    act(tree, "cancel", task_id := one(tree), reason="not needed")
    answer = told(tree, task_id)
    assert fact(answer, "cancelled")["reason"] == "not needed"
    assert answer.advice == [f"spool retry {task_id}"]


def test_a_rejected_arrival_says_what_to_mend(tree: Tree) -> None:
    owner = launcher(tree)
    task_id = one(tree)
    claimed(owner, task_id)
    claim.reject(owner, task_id, "key 'coers' is unknown")
    answer = told(tree, task_id)
    assert "key 'coers' is unknown" in text(answer)
    assert answer.advice[0].startswith("mend it in")


def test_a_damaged_task_still_says_why(tree: Tree) -> None:
    spot = tasks.find(tree, task_id := one(tree))
    assert spot is not None
    Path(spot.path(tree), layout.MANIFEST).write_text("{")
    answer = told(tree, task_id)
    assert "is not JSON" in text(answer) and answer.advice == ["run: spool check"]


# -- arrays --------------------------------------------------------------------------------------


def test_an_array_is_counted_and_explained_by_chunks_that_stand_alike(
    tree: Tree, spool: Spool
) -> None:
    array = spool.submit_array("test {} -ne 3", array=range(20), chunk=10)
    act(tree, "hold", array.chunks[1])
    run_launcher(tree)
    answer = told(tree, array.id)
    assert fact(answer, "elements")["failed"] == 1
    assert answer.as_json()["chunks"] == {"FAILED": 1, "WAITING": 1}
    parts = {part.state: part for part in answer.parts}
    assert parts["WAITING"].has("held") and parts["FAILED"].has("elements")
    assert f"spool release {array.chunks[1]}" in text(answer)
    some = told(tree, f"{array.id}[3-4,12]")
    assert {key: fact(some, "elements")[key] for key in ("done", "failed", "left")} == {
        "done": 1, "failed": 1, "left": 1,
    }  # fmt: skip
    assert f"spool retry '{array.id}[3]'" in some.advice
    assert told(tree, array.chunks[0]).state == "FAILED"


# -- what launchers and the service leave to be read ---------------------------------------------


def test_a_real_launcher_s_record_says_what_it_takes(tree: Tree) -> None:
    settle(tree, '[launcher]\nmpirun = "/nonexistent/mpiexec"')
    several = one(tree, ranks_per_node=2)
    run_launcher(tree, 2, workflow="", tags=("hot",), mode="auto")
    assert records(tree)[0].keys() >= {"each", "mode", "workflow", "tags", "features", "dead_s"}
    run_launcher(tree, 2)
    told_ = next(record for record in records(tree) if "no_mpi" in record)
    why = prospects.rules_of(told_, 0).why_not(shape.read("r2.c1"), 0.0)
    assert "/nonexistent/mpiexec" in why
    assert told(tree, several).state == "READY"


def records(tree: Tree) -> list[dict[str, Any]]:
    """The records of all launchers there were."""
    return [owners.read_record(tree, name) for name in files.names(tree.folder("launchers"))]


def test_a_launcher_that_is_told_to_end_says_so_while_its_task_runs(tree: Tree) -> None:
    settle(tree, '[launcher]\nsync = "none"')
    task_id = one(tree, "sleep 1.5")
    command = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher", "--quiet"]
    with subprocess.Popen([*command, "--cores", "1"]) as process:
        eventually(lambda: told(tree, task_id).has("runs"), "it runs")
        waits = one(tree)
        assert fact(told(tree, waits), "launcher")["takes"] is True
        process.send_signal(signal.SIGINT)
        eventually(lambda: "told to end" in text(told(tree, waits)), "it drains")
    assert process.returncode == 0
    assert told(tree, task_id).state == "FINISHED"


def test_a_decision_keeps_what_the_batch_system_has(tree: Tree) -> None:
    settle(tree)
    wanted = policy.load(tree.root)
    Decider(tree, wanted, loop.system_of(tree, wanted), lambda: True).step()
    assert [one_.name for one_ in memory.load(tree).partitions] == ["local"]


# -- words and the command -----------------------------------------------------------------------


def test_unknown_and_removed_tasks(tree: Tree) -> None:
    with pytest.raises(NoSuchTask, match="no task matches"):
        told(tree, "nobody")
    with pytest.raises(NoSuchTask, match="there is no task"):
        told(tree, layout.new_id("a", "26112215-00"))
    act(tree, "cancel", task_id := one(tree))
    act(tree, "remove", task_id)
    with pytest.raises(NoSuchTask, match="was removed; it was CANCELLED"):
        told(tree, task_id)


def test_a_word_that_means_too_many_is_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spool.commands.why.MOST", 3)
    many(tree, 4, name="a")
    with pytest.raises(SpoolError, match="more than 3 tasks"):
        list(teller(tree).answers(("a",)))


def test_few_files_are_read_however_large_the_spool_is(tree: Tree) -> None:
    launcher(tree)
    many(tree, 2_000, priority=1)
    task_id = one(tree)
    opened: list[str] = []
    files.watch(lambda when, name, arguments: opened.append(name) if when == "before" else None)
    answer = told(tree, task_id)
    files.watch(None)
    assert fact(answer, "launcher")["ahead"] == 2_000
    assert len(opened) < 150


def test_the_command_prints_for_people_and_for_programs(tree: Tree) -> None:
    settle(tree, QUEUES)
    first, second = one(tree, name="a"), one(tree, name="b")
    ran = run_spool(tree.root, "why", first, second, check=True)
    blocks = ran.stdout.split("\n\n")
    assert [block.split(":")[0] for block in blocks] == [first, second]
    ran = run_spool(tree.root, "why", "--json", first, second, check=True)
    found = [json.loads(row) for row in ran.stdout.splitlines()]
    assert [one_["id"] for one_ in found] == [first, second]
    for one_ in found:
        assert {"id", "state", "group", "path", "reasons", "advice"} <= one_.keys()
        assert all({"what", "text"} <= reason.keys() for reason in one_["reasons"])
    ran = run_spool(tree.root, "why", "nobody")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Error: no task matches 'nobody'")
