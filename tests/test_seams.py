"""Where arrays, dependencies, stages and Python calls meet."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import run_spool, where

import spool as package
from spool.api import Spool
from spool.queue import elements, files, layout, submit
from spool.queue.layout import State, Tree

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


def test_calls_are_found_by_a_fresh_attempt(tree: Tree, spool: Spool) -> None:
    again = package.function(max_attempts=2, fresh=True)(fails_first)
    task = spool.call(again, 3)
    run(tree)
    assert task.result(5) == 3 and os.path.isdir(f"{task.path}/attempt-1")


def fails_first(number: int) -> int:
    if os.environ["SPOOL_ATTEMPT"] == "1":
        raise ValueError("first")
    return number
