"""Claims: in which order, with how many tries, and what happens to what is not ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import crashing
import pytest
from conftest import all_ids, where
from crashing import claimed, one, start_owner

from spool.config import trusted_users
from spool.errors import LeaseLost
from spool.queue import claim, files, layout, shape
from spool.queue.claim import Claimer
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.place import Place

ME = trusted_users()


def everything(wanted: shape.Shape) -> int:
    return 1000


def put(tree: Tree, task_id: str, group: str) -> None:
    """Put a READY task into another lane by hand."""
    state, _, lane = where(tree, task_id).partition("/")
    assert files.move(
        tree.task(State(state), lane, task_id), tree.task(State.READY, group, task_id)
    )


def test_lanes_are_served_by_priority_then_the_oldest_hour_then_the_longest(
    tree: Tree, owner: Owner
) -> None:
    lanes = [
        "p9.c1@26010103-zz",
        "c1.t2h@26010101-aa",
        "c1.t30m@26010101-zz",
        "c1@26010101-00",
        "c4.t1d@26010102-00",
        "p-5.c1@25010100-00",
    ]
    for lane in reversed(lanes):
        files.make_folder(tree.group(State.READY, lane))
    assert Claimer(owner).refresh() == lanes


def test_a_claim_yields_each_task_once_it_lies_in_our_folder(tree: Tree, owner: Owner) -> None:
    ids = crashing.many(tree, 5)
    claimer = Claimer(owner)
    claimer.refresh()
    taken = []
    for task_id in claimer.take(everything, 3):
        assert files.exists(owner.claim_path(task_id))
        taken.append(task_id)
    assert len(taken) == 3 == claimer.claimed and set(taken) < set(ids)
    assert len(files.names(owner.claims)) == 3


def test_what_a_shape_does_not_fit_is_left(tree: Tree, owner: Owner) -> None:
    small, large = one(tree), one(tree, cores_per_rank=8)
    claimer = Claimer(owner)
    claimer.refresh()
    assert list(claimer.take(lambda wanted: 9 if wanted.cores == 1 else 0, 9)) == [small]
    assert where(tree, large).startswith("READY/c8@")


def test_a_shape_that_is_not_wanted_is_asked_for_once_however_many_lanes_it_has(
    tree: Tree, owner: Owner
) -> None:
    for number in range(30):
        files.make_folder(tree.group(State.READY, f"c8@260101{number % 3:02}-{number:02}"))
    small = one(tree)
    asked: list[int] = []

    def wants(wanted: shape.Shape) -> int:
        asked.append(wanted.cores)
        return 9 if wanted.cores == 1 else 0

    claimer = Claimer(owner)
    claimer.refresh()
    assert list(claimer.take(wants, 9)) == [small]
    assert asked.count(8) == 1
    assert len(claimer.lanes) == 30 and {wanted.cores for wanted in claimer.shapes} == {8}


def test_a_lane_that_was_begun_is_not_listed_again_after_a_look_at_ready(
    tree: Tree, owner: Owner
) -> None:
    ids = crashing.many(tree, 60)
    for number, task_id in enumerate(ids):
        put(tree, task_id, f"c1@26010101-{number // 3:02}")
    claimer = Claimer(owner)
    claimer.refresh()
    (first,) = claimer.take(everything, 1)
    listed: list[str] = []
    files.watch(lambda when, what, where: listed.append(where[0]) if what == "list" else None)
    claimer.refresh()
    (second,) = claimer.take(everything, 1)
    files.watch(None)
    assert ids.index(first) // 3 == ids.index(second) // 3
    assert set(listed) == {tree.state(State.READY)}


def test_the_second_claimer_to_reach_a_task_gets_nothing(tree: Tree, owner: Owner) -> None:
    crashing.many(tree, 1)
    first, second = Claimer(owner), Claimer(start_owner(tree))
    first.refresh()
    second.refresh()
    assert len(list(first.take(everything, 9))) == 1
    assert list(second.take(everything, 9)) == []
    assert second.lanes == []


def test_an_emptied_lane_is_removed_and_one_with_tasks_stays(tree: Tree, owner: Owner) -> None:
    one(tree), one(tree, cores_per_rank=2)
    claimer = Claimer(owner)
    claimer.refresh()
    list(claimer.take(lambda wanted: wanted.cores % 2, 9))
    (left,) = files.names(tree.state(State.READY))
    assert left.startswith("c2@")


def test_after_two_lost_races_in_a_row_a_claimer_lists_anew_and_then_looks_elsewhere(
    tree: Tree, owner: Owner
) -> None:
    ids = crashing.many(tree, 6)
    lane = where(tree, ids[0]).partition("/")[2]
    for task_id in ids:
        put(tree, task_id, lane)
    claimer = Claimer(owner)
    claimer.refresh()
    first = next(claimer.take(everything, 9))
    for task_id in set(ids) - {first}:
        files.remove_tree(tree.task(State.READY, lane, task_id))
    assert list(claimer.take(everything, 9)) == []
    assert claimer.lost == 2


def test_what_is_not_ours_to_move_is_passed_over_from_then_on(tree: Tree, owner: Owner) -> None:
    ids = crashing.many(tree, 2)
    foreign = ids[0]

    def refuse(when: str, operation: str, arguments: tuple[object, ...]) -> None:
        if when == "before" and operation in ("rename", "chmod") and foreign in str(arguments[0]):
            raise PermissionError(errno.EPERM, "not ours")

    files.watch(refuse)
    claimer = Claimer(owner)
    claimer.refresh()
    assert list(claimer.take(everything, 9)) == [ids[1]]
    assert claimer.passed_over == {foreign}
    assert list(claimer.take(everything, 9)) == []
    files.watch(None)
    assert where(tree, foreign).startswith("READY/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's task")
def test_a_foreign_user_s_task_is_rejected_and_not_run(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    path = claimed(owner, task_id).path
    os.chown(path, 65534, 65534)
    assert claim.read_claim(owner, task_id, ME) is None
    assert where(tree, task_id).startswith("FAILED/rejected@")
    assert "not trusted" in str(crashing.history_of(tree, task_id)[-1]["reason"])


def test_groups_that_are_no_lanes_are_strays_and_hidden_ones_are_nothing(
    tree: Tree, owner: Owner
) -> None:
    for group in ("junk", ".nfs123", "c1@26010100-00"):
        files.make_folder(tree.group(State.READY, group))
    claimer = Claimer(owner)
    assert claimer.refresh() == ["c1@26010100-00"]
    assert claimer.strays == ["junk"]


def test_a_directory_without_write_permission_is_opened_up_and_claimed(
    tree: Tree, owner: Owner
) -> None:
    task_id = one(tree)
    with crashing.failing("rename", errno.EACCES):
        claimer = Claimer(owner)
        claimer.refresh()
        assert list(claimer.take(everything, 9)) == [task_id]
    assert Path(owner.claim_path(task_id)).stat().st_mode & 0o777 == 0o700


# -- what we hold --------------------------------------------------------------------------------


def test_a_task_that_vanished_after_the_claim_is_none(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    files.remove_tree(claimed(owner, task_id).path)
    assert claim.read_claim(owner, task_id, ME) is None
    assert all_ids(tree) == []


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.HISTORY])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "huge"])
def test_a_trap_in_place_of_a_file_is_rejected_not_followed(
    tree: Tree, owner: Owner, name: str, kind: str
) -> None:
    task_id = one(tree)
    path = Path(claimed(owner, task_id).path, name)
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x" * (2 << 20))
    read = claim.read_claim(owner, task_id, ME)
    if name == layout.MANIFEST or kind == "folder":
        assert read is None and where(tree, task_id).startswith("FAILED/rejected@")
    assert Path("/etc/passwd").read_text().startswith("root")


def test_a_line_is_written_into_the_task_and_happens_to_its_story(tree: Tree, owner: Owner) -> None:
    task = claimed(owner, one(tree))
    claim.write_line(owner, task, {"time": "2026-01-01T00:00:00Z", "what": "held"}, sync=True)
    assert task.story.held is True
    assert claim.place_of(tree, task, 0.0).group.startswith("held@")


def test_a_line_for_a_task_that_vanished_is_no_lost_lease(tree: Tree, owner: Owner) -> None:
    task = claimed(owner, one(tree))
    files.remove_tree(task.path)
    with pytest.raises(FileNotFoundError):
        claim.write_line(owner, task, {"time": "now", "what": "held"})
    files.rename_file(owner.claims, f"{owner.claims}~x")
    with pytest.raises(LeaseLost):
        claim.write_line(owner, task, {"time": "now", "what": "held"})


def test_a_task_handed_on_to_an_occupied_place_is_filed_as_a_duplicate(
    tree: Tree, owner: Owner
) -> None:
    task_id = one(tree)
    shard = layout.shard_of(task_id)
    claimed(owner, task_id)
    files.make_folder(f"{tree.task(State.FINISHED, shard, task_id)}/kept")
    assert claim.hand_on(owner, task_id, Place(State.FINISHED, shard)) is True
    assert Path(tree.task(State.FINISHED, shard, task_id), "kept").is_dir()
    (twin,) = [other for other in all_ids(tree) if other != task_id]
    assert where(tree, twin) == f"FAILED/duplicate@{shard}"
    assert task_id in str(crashing.history_of(tree, twin)[-1]["reason"])


def test_handing_on_what_was_taken_from_us_is_false(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    claimed(owner, task_id)
    files.rename_file(owner.claims, f"{owner.claims}~x")
    assert claim.hand_on(owner, task_id, Place(State.FINISHED, "26010100-00")) is False


@pytest.mark.parametrize("text", ["bell\a", "caf\udce9", "line\nline", "‮"])
def test_a_printable_reason_holds_nothing_that_a_terminal_would_obey(text: str) -> None:
    assert claim.printable(text).isprintable()
    assert claim.printable(text).encode()
