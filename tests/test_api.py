"""The spool from Python: submit, ask, wait, change one's mind."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import run_spool

import spool as package
from spool import Spool, SpoolError, Task
from spool.errors import ManifestError, NoSuchTask, NotASpool, Refused
from spool.queue import files, layout
from spool.queue.layout import State, Tree


def run_all(spool: Spool) -> None:
    """Let a launcher run what there is."""
    ran = run_spool(spool.root, "launcher", "--idle-timeout", "0", "--quiet")
    assert ran.returncode == 0, ran


# -- the package and the spool -------------------------------------------------------------------


def test_the_package_shows_what_it_promises() -> None:
    assert {getattr(package, name) for name in package.__all__} >= {Spool, Task, SpoolError}
    with pytest.raises(AttributeError, match="has no attribute 'Spoon'"):
        _ = package.Spoon


def test_a_spool_is_made_and_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Spool.create(tmp_path / "new")
    assert Spool(tmp_path / "new").root == made.root
    monkeypatch.setenv("SPOOL", made.root)
    assert Spool().root == made.root
    assert made.root in repr(made)
    with pytest.raises(NotASpool, match="Run: spool init"):
        Spool(tmp_path)


# -- submit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["echo", "a b"], ("echo", "a b"), "echo 'a b'"])
def test_a_command_is_words_or_a_line(spool: Spool, command: Any) -> None:
    task = spool.submit(command, cores_per_rank=2, time_limit=0.1 + 0.2)
    wanted = task.manifest
    assert wanted.command == (command if isinstance(command, str) else ["echo", "a b"])
    assert (wanted.id, wanted.cores_per_rank, wanted.time_limit_s) == (task.id, 2, 0.1 + 0.2)
    assert (task.state, task.done, task.exit_code, task.output) == (State.READY, False, None, "")
    assert os.path.isdir(task.path) and task.path.endswith(f"/{task.group}/{task.id}")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "needs 'command'"),
        ({"command": []}, "names no program"),
        ({"command": ["x"], "nodes": 0}, "key 'nodes': expected int >= 1, got 0"),
        ({"command": ["x"], "core": 1}, "unknown key 'core'"),
        ({"command": ["x"], "data": {"path": Path("/")}}, "key 'data': only what JSON can hold"),
        ({"command": ["x"], "description": "\udcff"}, "key 'description': only what JSON can hold"),
    ],
)
def test_a_wrong_submission_leaves_nothing_behind(
    tree: Tree, spool: Spool, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(ManifestError, match=says.replace("[", r"\[")):
        spool.submit(**keys)
    assert list(spool.tasks()) == []
    assert os.listdir(tree.tmp()) == []


def test_many_are_submitted_as_mappings_or_commands(spool: Spool) -> None:
    items = [["a"], "b | c", {"command": ["d"], "hold": True}, ("e", "1")]
    made = list(spool.submit_many(items))
    assert [task.manifest.command for task in made] == [["a"], "b | c", ["d"], ["e", "1"]]
    assert [task.state for task in made] == [State.READY] * 2 + [State.WAITING, State.READY]


def test_many_are_drawn_lazily_and_yielded_batch_by_batch(
    tree: Tree, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARD_SIZE", 3)
    drawn = itertools.count()
    made = spool.submit_many({"command": ["x", str(number)]} for number in drawn)
    first = [next(made) for _ in range(3)]
    assert [task.state for task in first] == [State.READY] * 3
    assert next(drawn) <= 5
    assert next(made).manifest.command == ["x", "3"]
    made.close()  # type: ignore[attr-defined]
    assert len(list(spool.tasks())) == 6
    assert os.listdir(tree.tmp()) == []


def test_a_wrong_item_takes_its_batch_with_it(
    tree: Tree, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARD_SIZE", 2)
    made = []
    with pytest.raises(ManifestError, match="key 'nodes'"):
        for task in spool.submit_many([["a"], ["b"], ["c"], {"command": ["d"], "nodes": 0}]):
            made.append(task)
    assert [task.manifest.command for task in made] == [["a"], ["b"]]
    assert len(list(spool.tasks())) == 2
    assert os.listdir(tree.tmp()) == []


def test_many_of_none_are_none(spool: Spool) -> None:
    assert list(spool.submit_many([])) == []


# -- handles -------------------------------------------------------------------------------------


def test_two_handles_of_one_task_are_equal(spool: Spool, tmp_path: Path) -> None:
    task, other = spool.submit(["x"]), spool.submit(["x"])
    again = Spool(spool.root).task(task.id)
    assert again == task and hash(again) == hash(task) and again is not task
    assert task != other and task != task.id
    assert {task, again, other} == {task, other}
    elsewhere = Task(Tree(str(tmp_path / "elsewhere")), task.id)
    assert elsewhere != task
    assert repr(task) == f"Task({task.id!r})"


def test_a_handle_follows_its_task(spool: Spool) -> None:
    task = spool.submit(["x"], name="hi")
    ready = task.path
    assert spool.cancel(task) is State.CANCELLED
    assert task.done and task.path != ready
    assert spool.retry(task, priority=3) is State.READY
    assert task.manifest.priority == 3 and task.group.startswith("p3.c1@")
    assert [event["what"] for event in task.history] == ["cancelled", "change", "queued"]


def test_a_removed_task_is_no_more(spool: Spool) -> None:
    task = spool.submit(["x"])
    files.remove_tree(task.path)
    for ask in ("state", "group", "path", "done", "manifest", "history", "exit_code", "output"):
        with pytest.raises(NoSuchTask, match=f"task {task.id} is not in"):
            getattr(task, ask)


def test_a_task_is_looked_up_by_the_beginning_of_its_id(spool: Spool) -> None:
    task = spool.submit(["x"], name="hi-1")
    spool.submit(["x"], name="ho-1")
    assert spool.task("hi") == task
    with pytest.raises(NoSuchTask, match="means several"):
        spool.task("h")
    with pytest.raises(NoSuchTask, match="an empty word"):
        spool.task("")


def test_tasks_are_selected_as_on_the_command_line(spool: Spool) -> None:
    one = spool.submit(["x"], name="a", workflow="w", tags=["t"])
    other = spool.submit(["x"], name="b", hold=True)
    assert set(spool.tasks()) == {one, other}
    assert list(spool.tasks("a*")) == list(spool.tasks(name="a")) == [one]
    assert list(spool.tasks(state="WAITING")) == [other]
    assert set(spool.tasks(state=["READY", State.WAITING])) == {one, other}
    assert list(spool.tasks(workflow="w", tags=["t"], since="1h")) == [one]
    assert list(spool.tasks(since=4e9)) == []
    with pytest.raises(ValueError, match="SLEEPING"):
        spool.tasks(state="SLEEPING")


# -- wait, cancel, retry -------------------------------------------------------------------------


def test_what_a_launcher_ran_is_waited_for_and_read(spool: Spool) -> None:
    good = spool.submit("echo out; echo err >&2")
    bad = spool.submit(["sh", "-c", "exit 3"])
    killed = spool.submit(["sh", "-c", "kill -9 $$"])
    held = spool.submit(["true"], hold=True)
    run_all(spool)
    assert spool.wait([good, bad.id, killed])
    assert (good.state, good.exit_code, good.output) == (State.FINISHED, 0, "out\nerr\n")
    assert (bad.state, bad.exit_code, bad.group[:6]) == (State.FAILED, 3, "exit-3")
    assert (killed.exit_code, killed.group[:8]) == (None, "signal-9")
    assert not spool.wait([good, held], timeout=0)


def test_waiting_ends_when_somebody_cancels(spool: Spool) -> None:
    task = spool.submit(["x"])
    spool.cancel(task.id, reason="enough")
    assert spool.wait([task], timeout=0)
    assert task.history[-1]["reason"] == "enough"


def test_nothing_to_wait_for_is_there_at_once(spool: Spool) -> None:
    assert spool.wait([])
    with pytest.raises(NoSuchTask, match="'hi' is no task id"):
        spool.wait(["hi"])


def test_what_is_not_possible_is_refused_with_what_would_be(spool: Spool) -> None:
    task = spool.submit(["x"])
    with pytest.raises(Refused, match="is ready; retry is not possible. To take it out: spool"):
        spool.retry(task)
    spool.cancel(task)
    with pytest.raises(Refused, match="is cancelled; cancel is not possible. To run it again"):
        spool.cancel(task)
    with pytest.raises(ManifestError, match="'command' cannot be changed"):
        spool.retry(task, command=["y"])
    assert task.state is State.CANCELLED
    assert [event["what"] for event in task.history] == ["cancelled"]
