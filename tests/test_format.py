"""FORMAT.md against the code: its tables of keys, states and moves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import eventually

from spool import config
from spool.api import Spool
from spool.queue import control, files, layout
from spool.queue.layout import State, Tree
from spool.queue.manifest import PLANNED, Manifest

FORMAT = Path(files.__file__).parent / "FORMAT.md"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    text = FORMAT.read_text().split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_every_key_stands_in_the_table_with_its_default() -> None:
    told = {key: json.loads(default) for key, default, _ in rows("4.")}
    empty = Manifest()
    kept = {name: msgspec.to_builtins(getattr(empty, name)) for name in Manifest.__struct_fields__}
    assert told == kept


def test_every_planned_key_is_named() -> None:
    text = FORMAT.read_text().split("An unknown key is refused.", 1)[1].split("\n\n", 1)[0]
    assert set(re.findall(r"`(\w+)`", text)) == PLANNED


def test_every_state_stands_in_the_table() -> None:
    assert [row[0] for row in rows("5.")] == [str(state) for state in State]


def allowed_moves() -> set[tuple[str, str]]:
    return {
        (source, target)
        for sources, targets, _, _ in rows("6.")
        for source in sources.split()
        for target in targets.split()
    }


@pytest.mark.parametrize("name", sorted(control.TAKES))
def test_a_verb_takes_tasks_from_the_states_the_table_names(name: str) -> None:
    claims = [row for row in rows("6.") if row[2] == name and row[1] == "RUNNING"]
    (named,) = [set(sources.split()) for sources, *_ in claims]
    assert named == set(control.TAKES[name])


def folder(tree: Tree, path: str) -> str:
    """The state, or tmp, that a path of the tree lies in."""
    return path[len(tree.root) + 1 :].split("/")[0]


def test_only_moves_of_the_table_happen(tree: Tree, spool: Spool) -> None:
    seen: set[tuple[str, str]] = set()

    def note(phase: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if phase == "after" and operation == "rename":
            source, target = (folder(tree, path) for path in arguments[:2])
            in_states = {source, target} <= {*State, "tmp"}
            inside = Path(arguments[0]).parent == Path(arguments[1]).parent
            if in_states and not (inside and source == target):
                seen.add((source, target))

    files.watch(note)
    held = spool.submit(["true"], hold=True)
    many = list(spool.submit_many(["true"] for _ in range(3)))
    settings = config.load(tree.root)
    with control.verb(tree, settings, "release") as by:
        control.once(control.release, by, held._spot())
    with control.verb(tree, settings, "cancel") as by:
        control.once(control.cancel, by, many[0]._spot())
    spool.retry(many[0])
    files.watch(None)
    assert seen and seen <= allowed_moves(), seen - allowed_moves()


TRACE = """
import sys
from spool import cli
from spool.queue import files
log = open(sys.argv.pop(1), "w")
def note(phase, operation, arguments):
    if phase == "after" and operation == "rename":
        print(*arguments[:2], sep="\\t", file=log, flush=True)
files.watch(note)
cli.main()
"""


def test_a_launcher_makes_only_moves_of_the_table(tree: Tree, spool: Spool, tmp_path: Path) -> None:
    spool.submit(["true"])
    spool.submit(["false"], max_attempts=2)
    spool.submit(["false"])
    arrival = Path(tree.state(State.CREATED)) / "dropped"
    arrival.mkdir()
    (arrival / layout.MANIFEST).write_text('{"command": ["true"]}')
    (Path(tree.state(State.CREATED)) / "bad").mkdir()
    (Path(tree.state(State.CREATED)) / "bad" / layout.MANIFEST).write_text("{")
    log = tmp_path / "renames"
    words = [sys.executable, "-c", TRACE, str(log), "--spool", tree.root, "launcher"]
    subprocess.run([*words, "--idle-timeout", "1", "--quiet"], check=True, timeout=60)
    moves = [line.split("\t") for line in log.read_text().splitlines()]
    seen = {(folder(tree, a), folder(tree, b)) for a, b in moves}
    between = {pair for pair in seen if set(pair) <= {*State, "tmp"}}
    assert {("READY", "RUNNING"), ("RUNNING", "FINISHED"), ("CREATED", "RUNNING")} <= between
    assert between - {("RUNNING", "RUNNING")} <= allowed_moves()
    eventually(lambda: not list(Path(tree.state(State.RUNNING)).iterdir()))
