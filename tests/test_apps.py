"""Applications: what a definition must be, and what it means for the tasks that name it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, run_spool, where
from hypothesis import given, settings
from hypothesis import strategies as st

from spool import config
from spool.api import Spool
from spool.errors import ManifestError
from spool.queue import apps, layout, manifest, tasks
from spool.queue.admit import Door
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "there is no such app"),
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "required field `command`"),
        (b'{"command": []}', "names no program"),
        (b'{"command": "  "}', "names no program"),
        (b'{"command": ["a\\u0000"]}', "none may"),
        (b'{"command": ["a"], "environment": {"A=": "1"}}', "cannot be set"),
        (b'{"command": ["a"], "nodes": 2}', "unknown field `nodes`"),
        (b'{"command": ["a"], "defaults": {"workflow": "x"}}', "allowed are nodes"),
        (b'{"command": ["a"], "defaults": {"nodes": 0}}', ">= 1"),
        (b'{"command": ["a"], "on_error": []}', "names no program"),
        (b'{"command": ["a"], "parameters": {"a b": {}}}', "a name is letters"),
        (b'{"command": ["a"], "parameters": {"a": {"type": "list"}}}', "Invalid enum"),
        (b'{"command": "a", "parameters": {"a": {"type": "int", "default": "x"}}}', "expected int"),
        (b'{"command": ["a"], "parameters": {"a": {"default": "x", "choices": ["y"]}}}', "none of"),
    ],
)  # fmt: skip
def test_a_broken_app_is_refused(raw: bytes | None, says: str) -> None:
    with pytest.raises(ManifestError, match=f"^/s/apps/a.json: .*{re.escape(says)}"):
        apps.read("/s/apps/a.json", raw)


def test_an_app_is_a_command_and_its_environment() -> None:
    app = apps.read("a", b'{"command": ["dock", "-q"], "environment": {"A": "1"}}')
    assert (app.command, app.environment) == (["dock", "-q"], {"A": "1"})


FIT = {
    "command": ["printf", "%s\n", "{model}", "-T", "{temperature}", "{other}", "{deep}"],
    "defaults": {"cores_per_rank": 4, "memory": "2G", "time_limit": "1h", "max_attempts": 2},
    "parameters": {
        "temperature": {"type": "float", "default": 300.0},
        "model": {"choices": ["A", "B b"]},
        "deep": {"type": "bool", "default": False},
    },
    "on_error": "echo {model}",
    "stage_in": ["/data/{model}.h5"],
    "setup": "/opt/setup.sh",
}


def define(tree: Tree, name: str = "fit", **changes: Any) -> None:
    Path(tree.app(name)).write_text(json.dumps({**FIT, **changes}))


def wanted(tree: Tree, **keys: Any) -> manifest.Manifest:
    return apps.filled(tree, manifest.from_mapping({"app": "fit", **keys}, "test"))


def test_what_a_task_does_not_say_its_app_fills_in(tree: Tree) -> None:
    define(tree)
    made = wanted(tree, parameters={"model": "B b"}, memory="8G", cores_per_rank=1, args=["x"])
    assert (made.cores_per_rank, made.memory, made.time_limit) == (1, "8G", "1h")
    assert made.parameters == {"temperature": 300.0, "model": "B b", "deep": False}
    assert made.on_error == "echo 'B b'"
    assert made.stage_in == ["/data/B b.h5"] and made.setup == "/opt/setup.sh"
    words = apps.words(apps.lookup(tree, "fit"), made)
    assert words == ["printf", "%s\n", "B b", "-T", "300.0", "{other}", "false", "x"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs the parameter 'model'"),
        ({"model": "C"}, "expected A, B b, got 'C'"),
        ({"model": "A", "temperature": "warm"}, "expected float, got 'warm'"),
        ({"model": "A", "temperature": True}, "expected float, got True"),
        ({"model": "A", "deep": "perhaps"}, "expected bool"),
        ({"model": "A", "pressure": 1}, "has no parameter 'pressure'; it has temperature, model"),
    ],
)
def test_wrong_parameters_are_refused(tree: Tree, given: dict[str, Any], says: str) -> None:
    define(tree)
    with pytest.raises(ManifestError, match=re.escape(says)):
        wanted(tree, parameters=given)


def test_parameters_without_an_app_are_refused(tree: Tree, spool: Spool) -> None:
    with pytest.raises(ManifestError, match="belong to an 'app'"):
        spool.submit("true", parameters={"a": 1})


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
def test_whatever_a_value_sh_sees_it_as_one_word(value: str) -> None:
    app = apps.App(command="printf %s {a}", parameters={"a": apps.Parameter()})
    task = manifest.Manifest(app="x", parameters={"a": value})
    assert shlex.split(apps.words(app, task)[2].removesuffix(' "$@"')) == ["printf", "%s", value]
    words = apps.words(apps.App(command=["printf", "%s", "{a}"]), task)
    assert words == ["printf", "%s", value]


def test_an_arrival_gets_what_its_app_defines_by_a_line_of_its_history(
    tree: Tree, owner: Owner
) -> None:
    define(tree)
    for name, said in (("good", {"model": "A"}), ("bad", {})):
        dropped = Path(tree.state(State.CREATED)) / name
        dropped.mkdir()
        keys = {"app": "fit", "parameters": said}
        (dropped / layout.MANIFEST).write_text(json.dumps(keys))
    door = Door(owner, config.trusted_users())
    ends = (State.READY, State.FAILED)
    eventually(lambda: (door.look(), len(list(tasks.spots(tree, ends))) == 2)[1])
    good, bad = tasks.spots(tree, (State.READY, State.FAILED))
    assert good.group.startswith("prepare.c4.m2G.t1h@")
    assert tasks.load(good.path(tree), good.id).manifest.on_error == "echo A"
    assert "needs the parameter 'model'" in Path(bad.path(tree), layout.HISTORY).read_text()


def test_from_the_command_line(tree: Tree) -> None:
    def spool(*words: str) -> subprocess.CompletedProcess[str]:
        return run_spool(tree.root, *words)

    made = spool(
        *("app", "heat", "--param", "t:float=300", "--param", "mode:text", "--cores", "2"),
        *("--on-error", "echo fail", "--env", "A=1", "--", "echo", "{mode}", "{t}"),
    )
    assert made.returncode == 0, made.stderr
    assert spool("app", "heat", "--json").stdout.startswith('{"name":"heat"')
    assert "needs the parameter 'mode'" in spool("submit", "--app", "heat").stderr
    sent = spool("submit", "--app", "heat", "--param", "mode=a b", "--param", "t=7", "--", "end")
    task_id = sent.stdout.strip()
    assert where(tree, task_id).startswith("READY/c2@"), sent.stderr
    many = spool("submit", "--app", "heat", "--param", "mode={}", "--each", "1-3")
    assert len(many.stdout.split()) == 3, many.stderr
    # A change of the app's hooks and shape reaches no task that is there; its command does.
    spool(
        "app", "heat", "--param", "t:float=300", "--param", "mode:text", "--", "echo", "new{mode}"
    )
    left = run_spool(tree.root, "launcher", "--idle-timeout", "0")
    assert left.returncode == 0, left.stderr
    path = tree.task(State.FINISHED, layout.shard_of(task_id), task_id)
    assert Path(path, layout.OUTPUT).read_text() == "newa b end\n"
    assert tasks.load(path, task_id).manifest.on_error == "echo fail"
