"""What can be wrong in a spool: each made by hand, found, explained, mended, and then gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import crashing
import pytest
from conftest import all_ids, where
from crashing import claimed, far_owner, findings, in_child, line, one, start_owner

from spool.queue import check, files, layout, tasks
from spool.queue.layout import State, Tree


def moved(tree: Tree, task_id: str, state: State, group: str) -> str:
    """Put a task somewhere by hand; its new path."""
    spot = tasks.find(tree, task_id)
    assert spot is not None
    target = tree.task(state, group, task_id)
    assert files.move(spot.path(tree), target)
    return target


def found(tree: Tree, what: str) -> check.Finding:
    """The one finding, which names what is wrong; nothing is changed by it."""
    before = sorted(all_ids(tree))
    (finding,) = findings(tree)
    assert what in finding.what and not finding.repaired, finding
    assert sorted(all_ids(tree)) == before
    return finding


def mended(tree: Tree) -> check.Finding:
    """The one finding, mended; a second check finds nothing."""
    (finding,) = findings(tree, repair=True)
    assert finding.repaired, finding
    assert findings(tree) == []
    return finding


def test_a_sound_spool_has_nothing_to_find(tree: Tree) -> None:
    one(tree)
    one(tree, hold=True)
    one(tree, begin="2999-01-01T00:00:00Z")
    assert findings(tree) == []
    assert files.names(tree.folder("launchers")) == []


@pytest.mark.parametrize("name", ["tmp", "CREATED", "seen", "launchers"])
def test_a_missing_folder_is_made_again(tree: Tree, name: str) -> None:
    shutil.rmtree(tree.folder(name))
    finding = findings(tree, repair=True)[0]
    assert (finding.where, finding.what) == (tree.folder(name), "is missing")
    assert files.is_folder(tree.folder(name))
    assert findings(tree) == []


def test_a_dead_owner_s_tasks_are_taken_over(tree: Tree) -> None:
    task_id = one(tree)
    (group,) = in_child(lambda tell: tell(claimed(start_owner(tree), task_id).path.split("/")[-2]))
    finding = found(tree, "its owner is dead and holds 1 tasks")
    assert finding.where == tree.group(State.RUNNING, group)
    mended(tree)
    assert where(tree, task_id).startswith("READY/")


def test_the_record_of_an_owner_that_died_while_it_began_is_removed(tree: Tree) -> None:
    in_child(lambda tell: files.remove_folder(start_owner(tree).claims))
    found(tree, "its owner died while it began or ended")
    mended(tree)
    assert files.names(tree.folder("launchers")) == []


def test_what_a_killed_submission_left_in_tmp_is_removed(tree: Tree) -> None:
    path = tree.tmp(layout.owner_name("tmp", "here", _boot(), 4194304).removeprefix("tmp."))
    files.make_folder(f"{path}/half")
    found(tree, "was being built by a process that is gone")
    mended(tree)
    assert files.names(tree.tmp()) == []


def test_what_another_host_left_in_tmp_is_named_and_left_alone(tree: Tree) -> None:
    path = tree.tmp("far.0123abcd.77.abcdef")
    files.make_folder(path)
    (finding,) = findings(tree, repair=True)
    assert "another host" in finding.what and f"rm -r {path}" in finding.mend
    assert not finding.repaired and files.exists(path)


def test_what_a_living_process_builds_in_tmp_is_no_finding(tree: Tree) -> None:
    from spool.queue.submit import Submitter

    with Submitter(tree):
        assert findings(tree, repair=True) == []


def _boot() -> str:
    from spool.queue.owner import here

    return here().boot


@pytest.mark.parametrize("group", ["junk", "c1@nonsense", "x9@26010100-00"])
def test_a_task_in_a_folder_that_is_no_lane_goes_to_its_lane(tree: Tree, group: str) -> None:
    task_id = one(tree)
    moved(tree, task_id, State.READY, group)
    found(tree, f"lies in {group!r}, which is no lane")
    mended(tree)
    assert where(tree, task_id) == f"READY/c1@{layout.shard_of(task_id)}"
    assert group not in files.names(tree.state(State.READY))


def test_a_task_in_another_task_s_lane_goes_to_its_own(tree: Tree) -> None:
    task_id = one(tree, cores_per_rank=4)
    moved(tree, task_id, State.READY, f"c1@{layout.shard_of(task_id)}")
    found(tree, "belongs in READY/c4@")
    mended(tree)
    assert where(tree, task_id).startswith("READY/c4@")


def test_a_held_task_put_into_ready_by_hand_goes_back(tree: Tree) -> None:
    task_id = one(tree, hold=True)
    moved(tree, task_id, State.READY, f"c1@{layout.shard_of(task_id)}")
    found(tree, "belongs in WAITING/held@")
    mended(tree)
    assert where(tree, task_id).startswith("WAITING/held@")


def test_a_task_long_overdue_goes_to_ready(tree: Tree) -> None:
    task_id = one(tree)
    moved(tree, task_id, State.WAITING, "until@2601010000")
    found(tree, "belongs in READY/")
    mended(tree)


def test_a_task_that_ended_but_lies_in_ready_is_filed_and_never_runs_again(tree: Tree) -> None:
    task_id = one(tree)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    task = tasks.load(spot.path(tree), task_id)
    line(task, "start", attempt=1, owner="x")
    line(task, "exit", attempt=1, owner="x", code=0)
    found(tree, "belongs in FINISHED/")
    mended(tree)
    assert where(tree, task_id).startswith("FINISHED/")


@pytest.mark.parametrize("damage", ["", "{", '{"command":1}', "missing"])
def test_a_damaged_manifest_goes_to_failed_rejected_with_its_files(tree: Tree, damage: str) -> None:
    task_id = one(tree)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    path = Path(spot.path(tree), layout.MANIFEST)
    path.unlink() if damage == "missing" else path.write_text(damage)
    Path(spot.path(tree), "numbers").write_text("1 2 3")
    found(tree, "cannot be read")
    mended(tree)
    assert where(tree, task_id).startswith("FAILED/rejected@")
    kept = tasks.find(tree, task_id)
    assert kept is not None and Path(kept.path(tree), "numbers").read_text() == "1 2 3"
    assert crashing.history_of(tree, task_id)[-1]["reason"]


@pytest.mark.parametrize("state", [State.FINISHED, State.CANCELLED])
def test_a_task_that_lies_in_two_places_is_set_aside(tree: Tree, state: State) -> None:
    task_id = one(tree)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    shutil.copytree(spot.path(tree), tree.task(state, layout.shard_of(task_id), task_id))
    if state is State.CANCELLED:
        finding = [one for one in findings(tree) if "too" in one.what]
        assert finding[0].what == f"lies in {state}/{layout.shard_of(task_id)} too"
    findings(tree, repair=True)
    (twin,) = tasks.spots(tree, (State.FAILED,))
    assert twin.group.startswith("duplicate@") and twin.id != task_id
    assert where(tree, task_id).startswith(state)
    assert list(tasks.spots(tree, (State.READY,))) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_task_in_ready_is_kept_under_rejected(tree: Tree, kind: str) -> None:
    lane = tree.group(State.READY, "c1@26010100-00")
    files.make_folder(lane)
    path = Path(lane, "notes")
    path.write_text("x") if kind == "file" else path.mkdir()
    found(tree, "is no directory" if kind == "file" else "bears no task id")
    mended(tree)
    (task_id,) = all_ids(tree)
    assert where(tree, task_id).startswith("FAILED/rejected@")


@pytest.mark.parametrize(
    ("state", "wrong", "right"),
    [
        (State.FINISHED, "26010100-zz", "{}"),
        (State.CANCELLED, "26010100-zz", "{}"),
        (State.FAILED, "exit-1@26010100-zz", "exit-1@{}"),
    ],
)
def test_a_finished_task_filed_under_another_shard_is_filed_anew(
    tree: Tree, state: State, wrong: str, right: str
) -> None:
    task_id = one(tree)
    moved(tree, task_id, state, wrong)
    finding = findings(tree, repair=True)[0]
    assert finding.repaired and "its id says" in finding.what
    assert where(tree, task_id) == f"{state}/{right.format(layout.shard_of(task_id))}"


def test_a_deep_check_names_a_finished_task_without_an_exit(tree: Tree) -> None:
    task_id = one(tree)
    moved(tree, task_id, State.FINISHED, layout.shard_of(task_id))
    found(tree, "is FINISHED, but no exit was recorded")


def test_an_arrival_without_a_manifest_and_a_file_at_the_door_are_named(tree: Tree) -> None:
    files.make_folder(tree.task(State.CREATED, "", "late"))
    Path(tree.task(State.CREATED, "", "notes")).touch()
    whats = sorted(finding.what for finding in findings(tree, repair=True))
    assert whats[0].startswith(f"has no {layout.MANIFEST}") and whats[1] == "is no directory"


def test_empty_groups_go_with_a_repair(tree: Tree) -> None:
    for state, group in ((State.READY, "c1@26010100-00"), (State.WAITING, "held@26010100-00")):
        files.make_folder(tree.group(state, group))
    assert findings(tree, repair=True) == []
    assert files.names(tree.state(State.READY)) == files.names(tree.state(State.WAITING)) == []


def test_a_living_owner_s_tasks_are_never_touched(tree: Tree) -> None:
    near, far = start_owner(tree), far_owner(tree)
    ids = [one(tree), one(tree)]
    claimed(near, ids[0])
    claimed(far, ids[1])
    files.make_folder(near.claim_path("no-id-at-all"))
    assert findings(tree, repair=True) == []
    assert where(tree, ids[0]) == f"RUNNING/{near.name}"
    assert where(tree, ids[1]) == f"RUNNING/{far.name}"


def test_a_task_that_only_moves_on_is_not_reported(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look finds it where it belongs: what was seen was a moment."""
    task_id = one(tree)
    junk = moved(tree, task_id, State.READY, "junk")
    lane = tree.task(State.READY, f"c1@{layout.shard_of(task_id)}", task_id)
    monkeypatch.setattr(check.time, "sleep", lambda seconds: files.move(junk, lane))
    assert findings(tree, repair=True) == []
    assert files.exists(lane)
