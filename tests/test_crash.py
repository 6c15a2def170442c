"""Killed at every call on the tree: nothing promised is lost, nothing done is done again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import all_ids, eventually, make_tree, where
from crashing import Ended, Scenario, Tell, claimed, in_child, killed_at_each_call, one

from spool import config
from spool.config import trusted_users
from spool.queue import claim, control, files, history, layout, manifest, submit, tasks
from spool.queue.admit import Door
from spool.queue.claim import Claimer
from spool.queue.control import Act
from spool.queue.history import Story
from spool.queue.layout import State, Tree
from spool.queue.takeover import Observer, take_over

TRUE = manifest.from_mapping({"command": "true"}, "test")
FOUR_CORES = manifest.from_mapping({"command": "true", "cores_per_rank": 4}, "test")


tmp_path, no_process_stays = crashing.tmp_path, crashing.no_process_stays


# -- submit --------------------------------------------------------------------------------------


def test_a_killed_submission_shows_the_whole_task_or_nothing_and_keeps_its_promise(
    tree: Tree,
) -> None:
    promised: list[str] = []

    def submitted(tell: Tell) -> None:
        tell(submit.submit(tree, TRUE))

    for point, ended in killed_at_each_call(lambda: submitted):
        promised += ended.told
        ids = crashing.recovered(tree, point)
        assert set(promised) <= set(ids), point
    assert len(promised) >= 2
    crashing.drained(tree)
    assert {where(tree, task_id)[:8] for task_id in promised} == {"FINISHED"}
    assert files.names(tree.state(State.READY)) == []


def test_a_killed_submission_with_files_beside_the_manifest_never_shows_half_of_them(
    tree: Tree, tmp_path: Path
) -> None:
    source = tmp_path / "inputs"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "numbers").write_text("1 2 3\n")
    (source / "link").symlink_to("deep/numbers")
    fill = submit.folder_filler(str(source))

    for point, _ in killed_at_each_call(lambda: lambda tell: submit.submit(tree, TRUE, fill)):
        crashing.recovered(tree, point)
        for spot in tasks.spots(tree, (State.READY,)):
            assert Path(spot.path(tree), "link").read_text() == "1 2 3\n", point


def _bulk(tree: Tree, *, hold_back: bool) -> Scenario:
    def submitted(tell: Tell) -> None:
        with submit.Submitter(tree, tell, hold_back=hold_back) as submitter:
            for wanted in (TRUE, FOUR_CORES, TRUE):
                submitter.add(wanted)
            submitter.finish()

    return submitted


@pytest.mark.parametrize("hold_back", [False, True])
def test_a_killed_bulk_submission_shows_whole_tasks_only_and_keeps_its_promise(
    tree: Tree, hold_back: bool
) -> None:
    promised: set[str] = set()
    for point, ended in killed_at_each_call(lambda: _bulk(tree, hold_back=hold_back)):
        promised.update(task_id for ids in ended.told for task_id in ids)
        assert promised <= set(crashing.recovered(tree, point)), point
    assert len(promised) >= 6


def test_a_killed_bulk_submission_into_lanes_that_are_there_loses_nothing_promised(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = "26010100-00"
    monkeypatch.setattr(submit.layout, "shard", lambda when, counter: shard)
    in_child(_bulk(tree, hold_back=False))
    promised: set[str] = set()
    for point, ended in killed_at_each_call(lambda: _bulk(tree, hold_back=False)):
        promised.update(task_id for ids in ended.told for task_id in ids)
        assert promised <= set(crashing.recovered(tree, point)), point
    assert sorted(files.names(tree.state(State.READY))) == [f"c1@{shard}", f"c4@{shard}"]
    assert len(promised) >= 6


# -- the door ------------------------------------------------------------------------------------


def _dropped(tree: Tree, name: str) -> str:
    path = tree.task(State.CREATED, "", name)
    files.new_folder(path)
    files.write_new(f"{path}/numbers", b"1 2 3\n")
    files.write_new(f"{path}/{layout.HISTORY}", history.line("exit", attempt=1, code=0))
    files.write_new(f"{path}/{layout.MANIFEST}", manifest.encode(TRUE))
    return path


def _opened(tree: Tree) -> Scenario:
    def admitted(tell: Tell) -> None:
        moments = iter((0.0, 0.0, 9.0, 9.0, 9.0))
        me = crashing.start_owner(tree)
        door = Door(me, trusted_users(), clock=lambda: next(moments, 20.0))
        while not door.look():
            pass
        tell("admitted")
        me.end()

    return admitted


@pytest.mark.parametrize("with_id", [True, False])
def test_a_killed_admission_leaves_each_arrival_once_and_complete(
    tree: Tree, with_id: bool
) -> None:
    names: list[str] = []

    def prepare() -> Scenario:
        number = len(names)
        names.append(layout.new_id(f"a{number}", "26010100-00") if with_id else f"a{number}")
        _dropped(tree, names[-1])
        return _opened(tree)

    for point, ended in killed_at_each_call(prepare):
        crashing.findings(tree, repair=True)
        if files.names(tree.state(State.CREATED)):
            in_child(_opened(tree))
        ids = crashing.recovered(tree, point)
        assert {layout.parse_id(task_id).name for task_id in ids} == {  # type: ignore[union-attr]
            name.partition(".")[0] for name in names
        }, point
        assert len(ids) == len(names), point
        assert not with_id or set(ids) == set(names), point
        assert ended.killed or ended.told == ["admitted"]
    spots = list(tasks.spots(tree, tuple(State)))
    assert {spot.state for spot in spots} == {State.READY}
    assert all(Path(spot.path(tree), "history.jsonl.1").exists() for spot in spots)
    assert all(Path(spot.path(tree), "numbers").read_text() == "1 2 3\n" for spot in spots)


# -- claims without a launcher -------------------------------------------------------------------


def test_a_killed_claimer_s_tasks_go_back_free_of_charge(tree: Tree) -> None:
    ids = {*crashing.many(tree, 3), one(tree), one(tree, cores_per_rank=2)}

    def claims(tell: Tell) -> None:
        claimer = Claimer(crashing.start_owner(tree))
        claimer.refresh()
        tell(list(claimer.take(lambda shape: 5, 5)))

    for point, _ in killed_at_each_call(lambda: claims):
        assert set(crashing.recovered(tree, point)) == ids, point
        assert all(crashing.words_of(tree, task_id) == [] for task_id in ids), point
        assert {spot.state for spot in tasks.spots(tree, tuple(State))} == {State.READY}


# -- takeover ------------------------------------------------------------------------------------


def _dies_with(tree: Tree, kind: str, ids: list[str]) -> Scenario:
    """An owner that dies with four tasks: claimed, started, ended, and asked to be cancelled."""

    def lives(tell: Tell) -> None:
        me = crashing.start_owner(tree, kind)
        held = [claimed(me, task_id) for task_id in ids]
        for task in held[1:]:
            crashing.line(task, "start", attempt=1, owner=me.name)
        crashing.line(held[2], "exit", attempt=1, owner=me.name, code=0)
        for task in held[2:]:
            files.write_new(tree.request(me.name, "cancel", task.id), b"{}\n")
        tell(me.name)

    return lives


def _takes_over(tree: Tree) -> Scenario:
    def takes(tell: Tell) -> None:
        me = crashing.start_owner(tree)
        for group in Observer(me).look()[0]:
            take_over(me, group, trusted_users())
        me.end(keep=True)

    return takes


@pytest.mark.parametrize(("kind", "stride"), [("launcher", 1), ("hold", 4)])
def test_a_killed_taker_is_taken_over_itself_and_nothing_is_lost_or_run_again(
    tree: Tree, kind: str, stride: int
) -> None:
    ids: list[str] = []

    def prepare() -> Scenario:
        ids[:] = [one(tree, name=name) for name in ("claimed", "started", "ended", "cancelled")]
        in_child(_dies_with(tree, kind, ids))
        return _takes_over(tree)

    for point, _ in killed_at_each_call(prepare, stride=stride):
        crashing.recovered(tree, point)
        untouched, started, ended, cancelled = ids
        assert where(tree, untouched).startswith("READY"), point
        assert crashing.words_of(tree, untouched) == [], point
        assert where(tree, started).startswith("READY"), point
        assert crashing.words_of(tree, started) == ["start", "lost"], point
        assert where(tree, ended).startswith("FINISHED"), point
        assert crashing.words_of(tree, ended) == ["start", "exit"], point
        assert where(tree, cancelled).startswith("CANCELLED"), point


# -- a person's verbs ----------------------------------------------------------------------------


def _by(tree: Tree, act: Act, task_id: str, **words: Any) -> Scenario:
    """A verb as a person's process does it; it tells the id once it is promised."""

    def acts(tell: Tell) -> None:
        spot = tasks.find(tree, task_id)
        assert spot is not None
        with control.verb(tree, config.load(tree.root), act.__name__, **words) as by:
            tell(str(control.once(act, by, spot).state))

    return acts


def _swept(
    tree: Tree, new: Callable[[], str], act: Act, **words: Any
) -> Iterator[tuple[str, str, Ended]]:
    """Kill a verb at each of its calls, on a task of its own each time; after each recovery."""
    ids: list[str] = []

    def prepare() -> Scenario:
        ids.append(new())
        return _by(tree, act, ids[-1], **words)

    for point, ended in killed_at_each_call(prepare):
        crashing.recovered(tree, point)
        yield point, ids[-1], ended


def _final(tree: Tree, state: State, **exit_keys: Any) -> str:
    """A task that ended, by hand."""
    task_id = one(tree)
    me = crashing.start_owner(tree)
    task = claimed(me, task_id)
    crashing.line(task, "start", attempt=1, owner=me.name)
    crashing.line(task, "exit", attempt=1, owner=me.name, **exit_keys)
    place = claim.place_of(tree, task, 0.0)
    assert place.state is state
    claim.hand_on(me, task_id, place)
    me.end()
    return task_id


def _story(tree: Tree, task_id: str) -> Story:
    return crashing.story_of(tree, task_id)


def test_a_killed_cancel_of_a_queued_task_leaves_it_queued_or_cancelled(tree: Tree) -> None:
    for point, task_id, ended in _swept(tree, lambda: one(tree), control.cancel):
        state = where(tree, task_id).partition("/")[0]
        asked = _story(tree, task_id).cancelled is not None
        assert state == ("CANCELLED" if asked else "READY"), point
        assert state == "CANCELLED" or not ended.told, point


def test_a_killed_cancel_of_an_arrival_loses_nothing_of_it(tree: Tree) -> None:
    names: list[str] = []

    def prepare() -> Scenario:
        names.append(layout.new_id("arrival", "26010100-00"))
        _dropped(tree, names[-1])

        def cancels(tell: Tell) -> None:
            with control.verb(tree, config.load(tree.root), "cancel") as by:
                spot = tasks.Spot(State.CREATED, "", names[-1])
                tell(str(control.once(control.cancel, by, spot).state))

        return cancels

    for point, ended in killed_at_each_call(prepare):
        crashing.findings(tree, repair=True)
        assert sorted(all_ids(tree)) == sorted(names), point
        assert where(tree, names[-1]).startswith("CANCELLED") or not ended.told, point


def test_a_killed_hold_leaves_the_task_held_or_ready(tree: Tree) -> None:
    for point, task_id, ended in _swept(tree, lambda: one(tree), control.hold):
        held = _story(tree, task_id).held
        assert where(tree, task_id).startswith("WAITING/held@" if held else "READY/"), point
        assert held or not ended.told, point


def test_a_killed_release_leaves_the_task_held_or_ready(tree: Tree) -> None:
    for point, task_id, ended in _swept(tree, lambda: one(tree, hold=True), control.release):
        released = _story(tree, task_id).held is False
        assert where(tree, task_id).startswith("READY/" if released else "WAITING/held@"), point
        assert released or not ended.told, point


def test_a_killed_modify_leaves_the_task_in_the_lane_its_history_says(tree: Tree) -> None:
    changes = {"cores_per_rank": 8}
    for point, task_id, ended in _swept(tree, lambda: one(tree), control.modify, changes=changes):
        changed = _story(tree, task_id).changes == changes
        assert where(tree, task_id).startswith("READY/c8@" if changed else "READY/c1@"), point
        assert changed or not ended.told, point


def test_a_killed_modify_of_a_failed_task_never_runs_it_again(tree: Tree) -> None:
    new = lambda: _final(tree, State.FAILED, code=1)  # noqa: E731
    for point, task_id, _ in _swept(tree, new, control.modify, changes={"priority": 3}):
        assert where(tree, task_id).startswith("FAILED/exit-1@"), point


@pytest.mark.parametrize("exit_keys", [{"code": 1}, {"code": 0}])
def test_a_killed_retry_leaves_the_task_where_it_was_or_queued(
    tree: Tree, exit_keys: dict[str, Any]
) -> None:
    state = State.FAILED if exit_keys["code"] else State.FINISHED
    for point, task_id, ended in _swept(
        tree, lambda: _final(tree, state, **exit_keys), control.retry, changes={"priority": 2}
    ):
        queued = _story(tree, task_id).exit is None
        assert where(tree, task_id).startswith("READY/p2" if queued else state), point
        assert queued or not ended.told, point
    crashing.drained(tree)
    assert files.names(tree.state(State.READY)) == []


@pytest.mark.parametrize("state", [State.FINISHED, State.FAILED])
def test_a_killed_rm_leaves_the_whole_task_or_a_record_of_it(tree: Tree, state: State) -> None:
    codes = {"code": 0 if state is State.FINISHED else 1}
    for point, task_id, ended in _swept(tree, lambda: _final(tree, state, **codes), control.remove):
        if not where(tree, task_id):
            assert files.exists(tree.seen(task_id)), point
        else:
            assert where(tree, task_id).startswith(state) and not ended.told, point


def test_a_killed_cancel_of_a_running_task_is_heard_or_changes_nothing(tree: Tree) -> None:
    """All tasks run in one launcher; each has a cancel of its own, killed at another call."""
    points = [("before", n) for n in range(1, 25)] + [("after", n) for n in range(1, 9)]
    ids = crashing.many(tree, len(points) + 1, ["sleep", "300"], grace=1)
    launcher = crashing.Child(lambda tell: crashing.run_launcher(tree, len(ids), pin=False))
    eventually(lambda: all(where(tree, i).startswith("RUNNING") for i in ids), "all run")
    cancels = [
        crashing.Child(_by(tree, control.cancel, task_id), crashing.Killer(number, when))
        for (when, number), task_id in zip(points, ids, strict=False)
    ]
    assert all(cancel.wait().killed for cancel in cancels)
    assert in_child(_by(tree, control.cancel, ids[-1])) == ["CANCELLED"]
    crashing.findings(tree, repair=True)
    assert sorted(all_ids(tree)) == sorted(ids)
    left = {spot.id for spot in tasks.spots(tree, (State.RUNNING,))}
    asked = {task_id for task_id in ids if task_id not in left}
    assert len(asked) > 1 and len(left) > 1
    assert {where(tree, task_id)[:9] for task_id in asked} == {"CANCELLED"}
    spots = list(tasks.spots(tree, (State.RUNNING,)))
    for spot in spots:
        files.write_new(tree.request(spot.group, "cancel", spot.id), b"{}\n")
    with control.verb(tree, config.load(tree.root), "cancel") as by:
        assert [one.refused for one in control.each(control.cancel, by, spots[:1])] == [""]
    assert not launcher.wait().killed
    assert {where(tree, task_id)[:9] for task_id in ids} == {"CANCELLED"}
    crashing.assert_sound(tree)


# -- launchers -----------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _killed_launcher(root: Path, number: int, when: str, interrupt: bool) -> Scenario:
    """A spool of its own, whose launcher is killed at one call; then all is recovered and told."""

    def sweeps(tell: Tell) -> None:
        tree = make_tree(root / f"{when}-{number}".replace(" ", "-"), '[door]\nquiet = "0s"\n')
        ran = Path(tree.root) / "ran"
        ids = _launcher_s_tasks(tree, ran)
        killer = crashing.Killer(number, when)
        ended = crashing.Child(
            lambda tell: crashing.run_launcher(tree), _interrupted(killer) if interrupt else killer
        ).wait()
        done = {i: _lines(ran).count(i) for i in ids if _has_exit(tree, i)}
        if number % 2:
            crashing.recovered(tree, when)
        crashing.drained(tree)
        for finding in crashing.findings(tree, repair=True):
            assert finding.what == "its owner died while it began or ended", finding
        _assert_all_ended(tree, ids, ran, done)
        tell(ended.killed)

    return sweeps


def _interrupted(killer: crashing.Killer) -> files.Watcher:
    """Let TERM come to the launcher as soon as its first task was started."""
    writes = []

    def watch(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "after" and operation == "write":
            writes.append(operation)
            if len(writes) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        killer(when, operation, arguments)

    return watch


def _launcher_s_tasks(tree: Tree, ran: Path) -> list[str]:
    note = f"echo $SPOOL_TASK >> {ran}"
    second = f"{note}; test -e again || {{ touch again; exit 1; }}"
    return [one(tree, note), one(tree, second, max_attempts=2, name="twice")]


def _has_exit(tree: Tree, task_id: str) -> bool:
    return _story(tree, task_id).exit is not None


def _assert_all_ended(tree: Tree, ids: list[str], ran: Path, done: dict[str, int]) -> None:
    found = crashing.assert_sound(tree)
    assert sorted(found) == sorted(ids)
    for task_id in ids:
        assert where(tree, task_id).startswith("FINISHED"), crashing.words_of(tree, task_id)
        words, times = crashing.words_of(tree, task_id), _lines(ran).count(task_id)
        assert words.count("start") >= times >= words.count("exit"), words
        assert words.count("exit") in ((1, 2) if task_id.startswith("twice") else (1,)), words
    for task_id, times in done.items():
        assert _lines(ran).count(task_id) == times, f"{task_id} ended, and ran again"


@pytest.mark.parametrize(
    ("when", "stride", "interrupt"),
    [
        ("before a change", 1, False),
        ("after", 1, False),
        ("before", 9, False),
        ("before a change", 5, True),
        ("after", 5, True),
    ],
)
def test_a_killed_launcher_s_tasks_all_come_to_their_end_and_none_that_ended_runs_again(
    tmp_path: Path, when: str, stride: int, interrupt: bool
) -> None:
    works = (_killed_launcher(tmp_path, n, when, interrupt) for n in range(1, 1000, stride))
    killed = crashing.at_once_until(works, lambda told: told == [False])
    assert killed > 25 / stride
    spools = [Tree(str(path.parent)) for path in tmp_path.glob("*/launchers")]
    eventually(lambda: not any(map(crashing.processes_of, spools)), "guards and orphans gone")
