"""Where arrays, dependencies, stages and Python calls meet."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_spool, where

import spool as package
from spool.api import Spool
from spool.errors import ManifestError
from spool.queue import (
    check,
    elements,
    files,
    history,
    keys,
    layout,
    parents,
    select,
    submit,
    tasks,
)
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner

Command = Callable[..., subprocess.CompletedProcess[str]]


def run(tree: Tree) -> None:
    left = run_spool(tree.root, "launcher", "--idle-timeout", "0", "--cores", "2")
    assert left.returncode == 0, left.stderr


def chunk_of(spool: Spool, command: str, **keys: object) -> str:
    return spool.submit_array(command, array="0-3", **keys).chunks[0]


def test_a_child_takes_nothing_that_tells_what_its_parent_is(tree: Tree, spool: Spool) -> None:
    parent = chunk_of(spool, "echo p > f$SPOOL_ELEMENT", name="parent")
    call = spool.call(leaves, "kept")
    run(tree)
    inputs = [{"from": "*", "glob": "*", "copy": True}]
    child = chunk_of(spool, "cat f{}; echo >> ran", name="child", after=[parent], inputs=inputs)
    kid = spool.submit("ls", after=[call], inputs=inputs)
    run(tree)
    lines = list(elements.lines(spool.task(child).path))
    assert sum("code" in line for line in lines) == 4, "each element of the child has run itself"
    assert kid.output.split() == ["history.jsonl", "kept", "manifest.json", "output"]


def leaves(name: str) -> None:
    Path(name).touch()


def half(number: int) -> float:
    return number / 2


def test_inputs_may_name_an_array(tree: Tree, spool: Spool) -> None:
    parent = chunk_of(spool, "echo {} > part{}", name="parent")
    inputs = [{"from": layout.array_of(parent), "glob": "part*"}]
    child = spool.submit("cat part*", after=[parent], inputs=inputs)
    run(tree)
    assert child.output == "0\n1\n2\n3\n"


def test_inputs_that_cannot_be_taken_keep_no_other_stage_back(tree: Tree, spool: Spool) -> None:
    parent = spool.submit("mkdir a && touch a/b")
    item = {"from": "*", "glob": "a/b", "copy": True}
    wanted = {"preprocess": "true", "after": [parent], "inputs": [item], "command": "true"}
    task_id = submit.submit(
        tree,
        package.queue.manifest.from_mapping({**wanted, "after": [parent.id]}, "test"),
        lambda built: files.write_new(f"{built}/a", b"in the way"),
    )
    other = spool.submit("true", preprocess="true", after=[parent])
    run(tree)
    assert where(tree, task_id).startswith("FAILED/prepare@") and other.state is State.FINISHED


def test_a_handler_s_retry_of_a_chunk_runs_what_failed(tree: Tree, spool: Spool) -> None:
    once = "test {} != 2 || test $SPOOL_ATTEMPT -gt 1"
    chunk = chunk_of(spool, once, on_error='echo retry > "$SPOOL_NEXT"')
    child = spool.submit("true", after=[chunk])
    run(tree)
    assert where(tree, chunk).startswith("FINISHED/") and child.state is State.FINISHED
    ends = [line["element"] for line in elements.lines(spool.task(chunk).path) if "code" in line]
    assert sorted(ends) == [0, 1, 2, 2, 3]


def test_a_policy_that_elements_would_not_heed_is_refused(spool: Spool) -> None:
    with pytest.raises(ManifestError, match="'retry': exit-1: elements try again by max_attempts"):
        chunk_of(spool, "false", retry={"exit-1": {"attempts": 3}})
    chunk_of(spool, "true", retry={"lost": {"attempts": 3}})


def test_elements_are_not_cancelled_with_what_waits(spool: Spool, command: Command) -> None:
    chunk = chunk_of(spool, "true")
    said = command("cancel", "-r", f"{layout.array_of(chunk)}[1]")
    assert said.returncode == 2 and "without -r" in said.stderr
    assert spool.task(chunk).state is State.READY


def test_an_array_is_closed_again_as_a_whole(tree: Tree, spool: Spool, command: Command) -> None:
    chunk = chunk_of(spool, "true", postprocess="echo >> closed")
    run(tree)
    said = command("retry", "--close", layout.array_of(chunk))
    assert said.stdout.startswith("READY/close."), said.stderr
    run(tree)
    assert files.read(f"{spool.task(chunk).path}/closed") == b"\n\n"


def test_who_takes_another_s_place_comes_alone(
    tree: Tree, spool: Spool, command: Command, tmp_path: Path
) -> None:
    old = spool.submit("false")
    rows = tmp_path / "rows.jsonl"
    row = {"command": "true", "replaces": old.id}
    rows.write_text(json.dumps(row))
    said = command("submit", "--from", str(rows))
    assert said.returncode == 1 and "'replaces': is of one task" in said.stderr
    os.mkdir(f"{tree.state(State.CREATED)}/dropped")
    Path(f"{tree.state(State.CREATED)}/dropped/manifest.json").write_text(json.dumps(row))
    run(tree)
    rejected = [spot for spot in tasks.spots(tree, (State.FAILED,)) if "dropped" in spot.id]
    assert rejected[0].group.startswith("rejected@")


def test_values_come_with_an_array(command: Command, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"command": ["echo", "{}"], "array": "values 0-3"}))
    said = command("submit", "--from", str(rows))
    assert said.returncode == 1 and "its values are missing" in said.stderr


def test_a_key_of_many_tasks_tells_them_apart(command: Command) -> None:
    said = command("submit", "--each", "1-3", "--key", "one", "--", "echo", "{}")
    assert said.returncode == 2 and "put {} into it" in said.stderr
    words = ("submit", "--each", "1-3", "--key", "one-{}", "--", "echo", "{}")
    first = command(*words).stdout.split()
    assert len(set(first)) == 3 and command(*words).stdout.split() == first


def test_a_key_counts_within_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOOL_TASK", "t.26112215-00-aaaaaaaaaa@0-3")
    hashes = {keys._hash("k")}
    for element in "01":
        monkeypatch.setenv("SPOOL_ELEMENT", element)
        hashes.add(keys._hash("k"))
    assert len(hashes) == 3


def test_calls_are_found_by_a_fresh_attempt(tree: Tree, spool: Spool) -> None:
    again = package.function(max_attempts=2, fresh=True)(fails_first)
    task = spool.call(again, 3)
    run(tree)
    assert task.result(5) == 3 and os.path.isdir(f"{task.path}/attempt-1")


def fails_first(number: int) -> int:
    if os.environ["SPOOL_ATTEMPT"] == "1":
        raise ValueError("first")
    return number


def test_a_chunk_that_is_being_admitted_is_known(tree: Tree, spool: Spool, owner: object) -> None:
    chunk = "a.26112215-00-aaaaaaaaaa@0-3"
    for source in ("", "beam"):
        held = owner.claim_path(layout.arriving(chunk, source))  # type: ignore[attr-defined]
        files.new_folder(held)
        assert parents.is_known(tree, chunk) and chunk in parents.unfinished(tree)
        files.remove_folder(held)


def test_an_executor_leaves_no_task_behind(tree: Tree, spool: Spool) -> None:
    for _ in range(3):
        with package.SpoolExecutor(spool, max_workers=2, linger=0) as pool:
            assert list(pool.map(half, range(4))) == [0, 0.5, 1, 1.5]
    left = tasks.spots(tree, (State.WAITING, State.READY, State.RUNNING))
    assert list(left) == []


def test_many_ids_are_looked_up_one_by_one(
    tree: Tree, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [task.id for task in spool.submit_many(["true"] * 40)]
    is_meant, asked = select._is_meant, []

    def counted(task_id: str, word: str) -> bool:
        asked.append(word)
        return is_meant(task_id, word)

    monkeypatch.setattr(select, "_is_meant", counted)
    assert len(list(select.find(tree, select.Selection(words=tuple(ids))))) == 40
    assert len(asked) == 40


def test_a_child_that_is_about_to_move_on_is_no_finding(tree: Tree, spool: Spool) -> None:
    settings = spool.settings
    parent = spool.submit("true")
    child = spool.submit("true", after=[parent])
    working = Owner.start(tree, settings, "launcher")
    group = layout.shard_of(parent.id)
    files.append(f"{parent.path}/history.jsonl", history.line("start", attempt=1))
    files.append(f"{parent.path}/history.jsonl", history.line("exit", attempt=1, code=0))
    assert files.move(parent.path, tree.task(State.FINISHED, group, parent.id))
    assert list(check.check(tree, settings, repair=False, deep=True)) == []
    working.end()
    found = list(check.check(tree, settings, repair=True, deep=True))
    assert [finding.repaired for finding in found] == [True] and child.state is State.READY


def test_an_array_s_own_words_go_before_its_app_s(tree: Tree, spool: Spool) -> None:
    app = {"command": "true", "defaults": {"max_attempts": 3, "time_limit": "1m"}}
    Path(tree.app("dock")).write_text(json.dumps(app))
    array = spool.submit_array(array="0-3", app="dock", max_attempts=1)
    wanted = spool.task(array.chunks[0]).manifest
    assert (wanted.max_attempts, wanted.time_limit_s) == (1, 60)
