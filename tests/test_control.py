"""A person's verbs: what each does where, what it refuses and what it advises instead."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import eventually, where
from crashing import claimed, far_owner, history_of, line, one, start_owner

from spool import config
from spool.errors import ManifestError, Refused
from spool.queue import claim, control, files, layout, tasks
from spool.queue.control import Act
from spool.queue.layout import State, Tree
from spool.queue.tasks import Spot


@pytest.fixture(autouse=True)
def _no_process_stays(tree: Tree) -> Iterator[None]:
    yield
    crashing.kill_children()
    eventually(lambda: not crashing.processes_of(tree), "guards and orphans gone")


def spot_of(tree: Tree, task_id: str) -> Spot:
    found = tasks.find(tree, task_id)
    assert found is not None
    return found


def act(tree: Tree, verb: Act, task_id: str, **words: Any) -> Spot:
    """Do a verb as a person does."""
    name = {"remove": "rm"}.get(verb.__name__, verb.__name__)
    with control.verb(tree, config.load(tree.root), name, **words) as by:
        return control.once(verb, by, spot_of(tree, task_id))


def ended(tree: Tree, code: int = 1, **keys: Any) -> str:
    """A task that has ended, by hand."""
    task_id = one(tree, **keys)
    owner = start_owner(tree)
    task = claimed(owner, task_id)
    line(task, "start", attempt=1, owner=owner.name)
    line(task, "exit", attempt=1, owner=owner.name, code=code)
    claim.settle(owner, task)
    owner.end()
    return task_id


# -- what is done --------------------------------------------------------------------------------


def test_hold_and_release_move_a_task_out_of_its_lane_and_back(tree: Tree) -> None:
    task_id = one(tree)
    lane = where(tree, task_id)
    assert act(tree, control.hold, task_id, reason="beam off").state is State.WAITING
    assert where(tree, task_id) == f"WAITING/held@{layout.shard_of(task_id)}"
    held = history_of(tree, task_id)[-1]
    assert (held["what"], held["reason"]) == ("held", "beam off") and held["by"] and held["host"]
    act(tree, control.release, task_id)
    assert where(tree, task_id) == lane


def test_release_lets_a_task_that_waits_for_a_moment_go_at_once(tree: Tree) -> None:
    task_id = one(tree, begin="2999-01-01T00:00:00Z")
    assert where(tree, task_id) == "WAITING/until@9912312359"
    act(tree, control.release, task_id)
    assert where(tree, task_id).startswith("READY/")


def test_a_held_task_that_also_waits_for_a_moment_waits_for_it_after_its_release(
    tree: Tree,
) -> None:
    task_id = one(tree, begin="2999-01-01T00:00:00Z")
    act(tree, control.hold, task_id)
    act(tree, control.release, task_id)
    assert where(tree, task_id).startswith("WAITING/until@")


@pytest.mark.parametrize("keys", [{}, {"hold": True}, {"begin": "2999-01-01T00:00:00Z"}])
def test_cancel_takes_a_queued_task_out(tree: Tree, keys: dict[str, Any]) -> None:
    task_id = one(tree, **keys)
    assert act(tree, control.cancel, task_id, reason="wrong").state is State.CANCELLED
    assert where(tree, task_id) == f"CANCELLED/{layout.shard_of(task_id)}"
    assert history_of(tree, task_id)[-1]["reason"] == "wrong"


@pytest.mark.parametrize("name", ["plain", "hi.26010100-00-k3f9x2q7bd", "naïve name"])
def test_cancel_takes_an_arrival_out_with_all_it_brought(tree: Tree, name: str) -> None:
    path = tree.task(State.CREATED, "", name)
    files.make_folder(path)
    Path(path, "numbers").write_text("1 2 3")
    Path(path, layout.HISTORY).write_bytes(b"brought along\n")
    with control.verb(tree, config.load(tree.root), "cancel") as by:
        spot = control.once(control.cancel, by, Spot(State.CREATED, "", name))
    assert spot.state is State.CANCELLED and files.names(tree.state(State.CREATED)) == []
    assert Path(spot.path(tree), "numbers").read_text() == "1 2 3"
    assert Path(spot.path(tree), "history.jsonl.1").read_bytes() == b"brought along\n"
    assert [event["what"] for event in history_of(tree, spot.id)] == ["cancelled"]


@pytest.mark.parametrize("code", [0, 1])
def test_retry_queues_an_ended_task_anew_with_changes_and_a_fresh_count(
    tree: Tree, code: int
) -> None:
    task_id = ended(tree, code)
    act(tree, control.retry, task_id, changes={"cores_per_rank": 2})
    assert where(tree, task_id).startswith("READY/c2@")
    story = crashing.story_of(tree, task_id)
    assert (story.exit, story.failures, story.attempt) == (None, 0, 1)


def test_retry_of_a_cancelled_task_runs_it(tree: Tree) -> None:
    task_id = one(tree)
    act(tree, control.cancel, task_id)
    act(tree, control.retry, task_id)
    assert where(tree, task_id).startswith("READY/")


def test_modify_moves_a_queued_task_to_its_new_lane(tree: Tree) -> None:
    task_id = one(tree)
    act(tree, control.modify, task_id, changes={"priority": 5, "memory": "2G"})
    assert where(tree, task_id).startswith("READY/p5.c1.m2G@")


def test_modify_of_an_ended_task_leaves_it_where_it_is(tree: Tree) -> None:
    task_id = ended(tree)
    act(tree, control.modify, task_id, changes={"priority": 5})
    assert where(tree, task_id).startswith("FAILED/exit-1@")
    act(tree, control.retry, task_id)
    assert where(tree, task_id).startswith("READY/p5.c1@")


@pytest.mark.parametrize("key", ["max_attempts", "max_lost", "max_interrupted"])
def test_modify_never_undoes_an_end_by_a_larger_limit(tree: Tree, key: str) -> None:
    task_id = ended(tree)
    advice = f"spool retry {task_id} --{key.replace('_', '-')}"
    with pytest.raises(Refused, match=advice):
        act(tree, control.modify, task_id, changes={key: 9})
    assert where(tree, task_id).startswith("FAILED/exit-1@")


def test_rm_deletes_a_task_and_keeps_that_it_was_here(tree: Tree) -> None:
    task_id = ended(tree, 0)
    act(tree, control.remove, task_id)
    assert where(tree, task_id) == "" and files.names(tree.tmp()) == []
    assert b"FINISHED" in (files.read(tree.seen(task_id)) or b"")


def test_rm_deletes_what_a_program_made_hard_to_delete(tree: Tree) -> None:
    task_id = ended(tree, 0)
    locked = Path(spot_of(tree, task_id).path(tree), "locked")
    (locked / "deeper").mkdir(parents=True)
    (locked / "link").symlink_to("/etc")
    locked.chmod(0o500)
    act(tree, control.remove, task_id)
    assert where(tree, task_id) == "" and Path("/etc/passwd").exists()


def test_a_verb_leaves_no_owner_behind(tree: Tree) -> None:
    task_id = one(tree)
    act(tree, control.hold, task_id)
    with pytest.raises(Refused):
        act(tree, control.retry, task_id)
    assert files.names(tree.state(State.RUNNING)) == []
    assert files.names(tree.folder("launchers")) == []


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (control.hold, "hold is not possible. To run it again: spool retry"),
        (control.release, "release is not possible. To run it again: spool retry"),
        (control.cancel, "cancel is not possible. To run it again: spool retry"),
    ],
)
def test_verbs_for_the_queue_refuse_an_ended_task_and_name_retry(
    tree: Tree, verb: Act, said: str
) -> None:
    task_id = ended(tree)
    with pytest.raises(Refused, match=f"task {task_id} is failed; {said} {task_id}"):
        act(tree, verb, task_id)


@pytest.mark.parametrize("verb", [control.retry, control.remove])
def test_verbs_for_ended_tasks_refuse_a_queued_one_and_name_cancel(tree: Tree, verb: Act) -> None:
    task_id = one(tree)
    with pytest.raises(Refused, match=f"is ready; .*To take it out: spool cancel {task_id}"):
        act(tree, verb, task_id)


@pytest.mark.parametrize("verb", [control.hold, control.release, control.retry, control.remove])
def test_a_running_task_is_refused_with_advice_and_not_touched(tree: Tree, verb: Act) -> None:
    owner, task_id = start_owner(tree), one(tree)
    claimed(owner, task_id)
    with pytest.raises(Refused, match=f"is running; .*To stop it: spool cancel {task_id}"):
        act(tree, verb, task_id)
    assert where(tree, task_id) == f"RUNNING/{owner.name}"


@pytest.mark.parametrize("verb", [control.modify, control.retry])
@pytest.mark.parametrize("changes", [{"priority": 5000}, {"command": "rm"}, {"memory": "much"}])
def test_a_wrong_change_is_refused_before_anything_is_written(
    tree: Tree, verb: Act, changes: dict[str, Any]
) -> None:
    task_id = ended(tree) if verb is control.retry else one(tree)
    before = where(tree, task_id), history_of(tree, task_id)
    with pytest.raises(ManifestError, match=next(iter(changes))):
        act(tree, verb, task_id, changes=changes)
    assert (where(tree, task_id), history_of(tree, task_id)) == before
    assert crashing.findings(tree) == []


def test_a_damaged_task_can_be_mended_in_place_and_then_retried(tree: Tree) -> None:
    task_id = ended(tree)
    path = Path(spot_of(tree, task_id).path(tree), layout.MANIFEST)
    sound = path.read_text()
    path.write_text("{")
    with pytest.raises(Refused, match=f"Mend it there, then: spool retry {task_id}"):
        act(tree, control.retry, task_id)
    assert where(tree, task_id).startswith("FAILED/exit-1@")
    path.write_text(sound)
    act(tree, control.retry, task_id)
    assert where(tree, task_id).startswith("READY/")


def test_retry_of_a_task_whose_app_is_gone_says_so(tree: Tree) -> None:
    files.write_new(tree.app("sim"), b'{"command":["true"]}')
    task_id = ended(tree)
    path = Path(spot_of(tree, task_id).path(tree), layout.MANIFEST)
    path.write_text(path.read_text().replace('"command": "true"', '"app": "sim"'))
    Path(tree.app("sim")).unlink()
    with pytest.raises(Refused, match="there is no app 'sim'. Run: spool app"):
        act(tree, control.retry, task_id)
    assert where(tree, task_id).startswith("FAILED/exit-1@")


def test_a_task_that_was_removed_meanwhile_is_named(tree: Tree) -> None:
    task_id = one(tree)
    spot = spot_of(tree, task_id)
    shutil.rmtree(spot.path(tree))
    with (
        control.verb(tree, config.load(tree.root), "hold") as by,
        pytest.raises(Refused, match=f"task {task_id} is gone"),
    ):
        control.once(control.hold, by, spot)


def test_one_refusal_does_not_stop_the_others(tree: Tree) -> None:
    first, second, third = ids = [one(tree), ended(tree), one(tree)]
    spots = [spot_of(tree, task_id) for task_id in ids]
    with control.verb(tree, config.load(tree.root), "hold") as by:
        outcomes = list(control.each(control.hold, by, spots))
    assert [bool(outcome.refused) for outcome in outcomes] == [False, True, False]
    assert where(tree, first).startswith("WAITING") and where(tree, third).startswith("WAITING")


# -- following a task, and asking its owner ------------------------------------------------------


def test_a_verb_follows_a_task_that_moved_since_it_was_listed(tree: Tree) -> None:
    task_id = one(tree)
    spot = spot_of(tree, task_id)
    act(tree, control.modify, task_id, changes={"priority": 3})
    with control.verb(tree, config.load(tree.root), "hold") as by:
        assert control.once(control.hold, by, spot).state is State.WAITING


def test_an_owner_that_does_not_answer_is_named_and_the_request_stays(tree: Tree) -> None:
    far, task_id = far_owner(tree), one(tree)
    claimed(far, task_id)
    with pytest.raises(
        Refused, match=f"RUNNING/?.*{far.name} was asked and has not answered|asked"
    ):
        act(tree, control.cancel, task_id, wait_s=0.1)
    assert files.names(tree.owner(far.name, layout.INBOX)) == [f"cancel.{task_id}"]


def test_cancel_of_a_dead_owner_s_task_takes_it_over(tree: Tree) -> None:
    task_id = one(tree)
    crashing.in_child(lambda tell: claimed(start_owner(tree), task_id))
    assert act(tree, control.cancel, task_id).state is State.CANCELLED
    assert files.names(tree.state(State.RUNNING)) == []


def test_a_running_task_is_changed_and_cancelled_by_its_own_launcher(tree: Tree) -> None:
    changed, cancelled = crashing.many(tree, 2, ["sleep", "300"], grace=1, time_limit="1h")
    launcher = crashing.Child(lambda tell: crashing.run_launcher(tree, 2, pin=False))
    eventually(lambda: "start" in crashing.words_of(tree, cancelled), "it runs")
    eventually(lambda: "start" in crashing.words_of(tree, changed), "it runs")
    assert act(tree, control.cancel, cancelled).state is State.CANCELLED
    act(tree, control.modify, changed, changes={"time_limit": "1s"})
    assert not launcher.wait().killed
    assert where(tree, changed).startswith("FAILED/timeout@")
    assert crashing.words_of(tree, changed) == ["start", "change", "exit"]
    assert crashing.words_of(tree, cancelled) == ["start", "exit", "cancelled"]
