"""Balsam's mixture, re-enacted: all 27 triples of outcomes, launchers interrupted and killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from conftest import eventually

from spool import Spool
from spool.queue import kinship
from spool.queue.layout import State, Tree
from spool.queue.wait import Pending, wait
from spool.report import graph

OUTCOMES = ("normal", "error", "timeout")
PROGRAM = """#!/bin/sh
echo "$SPOOL_TASK attempt $SPOOL_ATTEMPT in $PWD"
sleep 0.2
[ -e tried ] && exit 0
touch tried
case $1 in error) exit 7;; timeout) exec sleep 60;; esac
"""
HANDLERS = {
    "on_error": 'echo "finish it is harmless" > "$SPOOL_NEXT"',
    "on_timeout": 'echo "retry time_limit=30s" > "$SPOOL_NEXT"',
}


def keys_of(program: Path, name: str, outcome: str, after: list[str]) -> dict[str, Any]:
    limit = {"time_limit": 1} if outcome == "timeout" else {}
    command = [str(program), outcome]
    return {"name": name, "command": command, "after": after, **HANDLERS, **limit}


def begin(tree: Tree) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher", "--quiet"]
    return subprocess.Popen([*words, "--cores", "6", "--idle-timeout", "3s"])


def counted(spool: Spool) -> Counter[State]:
    return Counter(task.state for task in spool.tasks())


def test_all_81_finish_though_their_launchers_do_not(
    tree: Tree, spool: Spool, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    items, outcome_of = [], {}
    for number, triple in enumerate(product(OUTCOMES, repeat=3)):
        parent, *children = (f"{role}{number}" for role in "pab")
        outcome_of |= dict(zip((parent, *children), triple, strict=True))
        items.append(keys_of(program, parent, triple[0], []))
        items += [
            keys_of(program, c, o, [parent]) for c, o in zip(children, triple[1:], strict=True)
        ]
    ids = [task.id for task in spool.submit_many(items)]
    assert len(ids) == 81

    first = begin(tree)
    eventually(lambda: counted(spool)[State.FINISHED] >= 1 and counted(spool)[State.RUNNING] >= 1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    second = begin(tree)
    eventually(lambda: counted(spool)[State.FINISHED] >= 5 and counted(spool)[State.RUNNING] >= 2)
    second.kill()
    second.wait()
    third = begin(tree)
    assert third.wait(240) == 0

    assert counted(spool) == {State.FINISHED: 81}
    told = {task.id: task.history for task in spool.tasks()}
    assert set(told) == set(ids)
    for task in spool.tasks():
        own = [line for line in task.output.splitlines() if line.startswith(task.id)]
        assert own and "/RUNNING/" in own[-1]
        assert task.path.endswith(task.id)  # no two share a directory
    happened = Counter(event["what"] for history in told.values() for event in history)
    assert happened["interrupted"] + happened["lost"] >= 2 and happened["lost"] >= 1
    for task_id, history in told.items():
        check_story(outcome_of[task_id.split(".")[0]], [dict(event) for event in history])
    check_order(spool, told)


def check_story(outcome: str, history: list[dict[str, Any]]) -> None:
    """An error is told and called harmless; a time limit is told and the task ran again."""
    ends = [event for event in history if event["what"] == "exit"]
    if outcome == "normal":
        assert all(end["code"] == 0 for end in ends)
    cut = any(event["what"] in ("lost", "interrupted") for event in history)
    decided = [event for event in history if event["what"] == "decided"]
    if outcome == "error" and not cut:
        assert [end["code"] for end in ends] == [7] and decided[-1]["verdict"] == "finish"
    if outcome == "timeout" and not cut:
        assert ends[0]["timeout"] and ends[-1]["code"] == 0
        assert decided[0]["verdict"] == "retry"


def check_order(spool: Spool, told: dict[str, list[dict[str, Any]]]) -> None:
    """No child began before its parent had ended for good."""
    for task in spool.tasks():
        for parent in task.manifest.after:
            ended = max(event["time"] for event in told[parent])
            began = min(event["time"] for event in told[task.id] if event["what"] == "start")
            assert ended <= began


def test_a_parent_that_timed_out_is_rescued_and_its_children_run(tree: Tree, spool: Spool) -> None:
    """The handler's new task takes the parent's place for both children: four tasks in all."""
    here = f"{sys.executable} -m spool.cli --spool {tree.root}"
    rescue = f"{here} submit --key again --name rescue --replaces $SPOOL_TASK -- echo rescued"
    parent = spool.submit(["sleep", "60"], name="parent", time_limit=1, on_timeout=rescue)
    children = [spool.submit(["true"], name=name, after=[parent]) for name in "ab"]
    assert begin(tree).wait(60) == 0
    assert [child.state for child in children] == [State.FINISHED] * 2
    (heir,) = spool.tasks("rescue")
    assert heir.output == "rescued\n" and heir.manifest.replaces == parent.id
    assert parent.group.startswith("replaced@")
    (line,) = [event for event in parent.history if event["what"] == "replaced"]
    assert line["with"] == heir.id
    everyone = list(spool.tasks())
    assert len(everyone) == 4
    pending = Pending(tree, [task.id for task in everyone])
    assert wait(pending, 10) and +pending.ends == {State.FINISHED: 3}
    nodes = {node.spot.id: node for node in kinship.nodes(tree, (State.FINISHED, State.FAILED))}
    drawn = list(graph.draw(nodes))
    assert f"{parent.id}  FAILED, replaced by {heir.id}" in drawn
    assert f"{heir.id}  FINISHED" in drawn
