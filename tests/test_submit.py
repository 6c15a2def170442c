"""Submission: durable before visible, few calls a task, and memory that does not grow."""

from __future__ import annotations

import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import all_ids, where

from spool.errors import SpoolError
from spool.queue import files, layout, manifest, submit, tasks
from spool.queue.layout import State, Tree

TRUE = manifest.from_mapping({"command": "true"}, "test")


class Log:
    """Every call on the tree, in order, with the paths behind open files."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "before":
            first = arguments[0]
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            self.calls.append((operation, path))

    def first(self, operation: str, ending: str) -> int:
        """The place in the order of the first such call on such a path."""
        return next(n for n, (o, p) in enumerate(self.calls) if o == operation and ending in p)

    def last(self, operation: str, ending: str) -> int:
        """The place in the order of the last such call."""
        return max(n for n, (o, p) in enumerate(self.calls) if o == operation and ending in p)

    def count(self) -> Counter[str]:
        """How often each operation came."""
        return Counter(operation for operation, _ in self.calls)


@pytest.fixture
def log() -> Log:
    log = Log()
    files.watch(log)
    return log


def test_a_task_is_durable_before_it_is_visible_and_its_place_after(tree: Tree, log: Log) -> None:
    task_id = submit.submit(tree, TRUE)
    written = log.first("fsync", layout.MANIFEST)
    built = log.first("fsync", f"tmp/{log.calls[0][1].rsplit('/', 1)[1]}/{task_id}")
    shown = log.first("rename", task_id)
    assert written < shown and built < shown
    lane = where(tree, task_id).partition("/")[2]
    lane_at = max(n for n, (o, p) in enumerate(log.calls) if o == "fsync" and p.endswith(lane))
    assert shown < lane_at < log.last("fsync", "/READY")


def test_files_beside_the_manifest_are_durable_before_the_task_is_visible(
    tree: Tree, tmp_path: Path, log: Log
) -> None:
    source = tmp_path / "numbers"
    source.write_text("1 2 3")
    task_id = submit.submit(tree, TRUE, submit.file_filler(str(source), "numbers"))
    assert log.first("syncfs", "tmp/") < log.first("rename", task_id)


@pytest.mark.parametrize("number", [2, 60])
def test_a_batch_is_durable_before_it_is_visible_and_its_places_after(
    tree: Tree, log: Log, number: int
) -> None:
    ids = crashing.many(tree, number)
    shown = log.first("rename", "tmp/")
    if number < submit.FEW:
        synced = [path for operation, path in log.calls[:shown] if operation == "fsync"]
        for task_id in ids:
            assert any(path.endswith(f"{task_id}/{layout.MANIFEST}") for path in synced)
            assert any(path.endswith(task_id) for path in synced)
        assert any(path.rsplit("/", 1)[1].startswith("READY=c1@") for path in synced)
    else:
        assert log.first("syncfs", "tmp/") < shown
    assert shown < log.last("fsync", "/READY")


def test_a_bulk_submission_costs_two_calls_a_task_and_one_sync_a_batch(
    tree: Tree, log: Log
) -> None:
    crashing.many(tree, 500)
    counts = log.count()
    assert counts["mkdir"] <= 500 + 5 and counts["create"] == 500
    assert counts["rename"] <= 3 and counts["syncfs"] == 1 and counts["fsync"] <= 2
    assert counts.total() <= 2 * 500 + 20


def test_a_lane_that_is_there_costs_one_rename_a_task(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(layout, "shard", lambda when, counter: "26010100-00")
    crashing.many(tree, 3)
    log.calls.clear()
    crashing.many(tree, 60)
    assert log.count()["rename"] <= 60 + 3
    assert len(files.names(tree.group(State.READY, "c1@26010100-00"))) == 63


def test_the_streaming_of_many_tasks_takes_no_more_memory_the_more_there_are(tree: Tree) -> None:
    def streams(tell: crashing.Tell, number: int) -> None:
        with submit.Submitter(tree, lambda ids: None) as submitter:
            for _ in range(number):
                submitter.add(TRUE)
        tell(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    shard_size, layout_size = 300, layout.SHARD_SIZE
    try:
        layout.SHARD_SIZE = shard_size
        small, large = (
            crashing.in_child(lambda tell, n=number: streams(tell, n))[0] for number in (600, 4500)
        )
    finally:
        layout.SHARD_SIZE = layout_size
    assert large - small < 4096  # kilobytes
    assert len(all_ids(tree)) == 300 + 4200  # the last batch was never finished


def test_each_batch_is_told_once_it_is_visible(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_SIZE", 10)
    told: list[list[str]] = []

    def shown(ids: list[str]) -> None:
        assert all(where(tree, task_id).startswith("READY/") for task_id in ids)
        told.append(ids)

    with submit.Submitter(tree, shown) as submitter:
        made = [submitter.add(TRUE) for _ in range(25)]
        submitter.finish()
    assert [len(ids) for ids in told] == [10, 10, 5] and sum(told, []) == made
    assert len({layout.shard_of(task_id) for task_id in made}) == 3


def test_what_is_held_back_becomes_visible_all_at_once_or_not_at_all(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARD_SIZE", 10)
    with submit.Submitter(tree, hold_back=True) as submitter:
        for _ in range(25):
            submitter.add(TRUE)
        assert all_ids(tree) == []
    assert all_ids(tree) == [] and files.names(tree.tmp()) == []


def test_a_fill_that_fails_leaves_nothing(tree: Tree) -> None:
    def fill(built: str) -> None:
        Path(built, "half").touch()
        raise SpoolError("numbers: is gone")

    with pytest.raises(SpoolError, match="numbers: is gone"):
        submit.submit(tree, TRUE, fill)
    with pytest.raises(SpoolError), submit.Submitter(tree) as submitter:
        submitter.add(TRUE, fill)
    assert all_ids(tree) == [] and files.names(tree.tmp()) == []


def test_a_bulk_goes_on_after_a_fill_that_failed_and_shows_no_half_task(tree: Tree) -> None:
    def fill(built: str) -> None:
        (Path(built) / "half").write_text("half")
        raise SpoolError("no input")

    told: list[str] = []
    with submit.Submitter(tree, told.extend) as submitter:
        for wanted in (None, TRUE, None):
            if wanted:
                submitter.add(wanted)
                continue
            with pytest.raises(SpoolError, match="no input"):
                submitter.add(TRUE, fill)
        submitter.finish()
    assert all_ids(tree) == told and len(told) == 1
    assert files.names(f"{tree.root}/tmp") == []


def test_a_folder_beside_the_manifest_comes_along_with_its_links_in_a_small_batch(
    tree: Tree, tmp_path: Path
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "numbers").write_text("1 2 3")
    (tmp_path / "in" / "link").symlink_to("deep/numbers")
    (tmp_path / "in" / layout.MANIFEST).write_text("not this one")
    with submit.Submitter(tree) as submitter:
        for _ in range(2):
            submitter.add(TRUE, submit.folder_filler(str(tmp_path / "in")))
        submitter.finish()
    for spot in tasks.spots(tree, (State.READY,)):
        assert Path(spot.path(tree), "link").read_text() == "1 2 3"
        assert tasks.load(spot.path(tree), spot.id).manifest.command == "true"


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({}, "READY/c1@"),
        ({"hold": True}, "WAITING/held@"),
        ({"begin": "2999-01-01T00:00:00Z"}, "WAITING/until@"),
        ({"begin": "2020-01-01T00:00:00Z"}, "READY/c1@"),
        ({"priority": -3, "gpus": 2, "time_limit": "90m"}, "READY/p-3.c1.g2.t1h30m@"),
    ],
)
def test_a_task_goes_where_its_manifest_says(tree: Tree, keys: dict[str, Any], place: str) -> None:
    assert where(tree, crashing.one(tree, **keys)).startswith(place)
    assert where(tree, crashing.many(tree, 2, **keys)[1]).startswith(place)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"name": "mine", "command": "true"}, "mine"),
        ({"app": "sim"}, "sim"),
        ({"command": ["/opt/bin/g2 solver", "x"]}, "g2-solver"),
        ({"command": "echo $HOME | cat"}, "echo"),
    ],
)
def test_a_task_without_a_name_is_named_after_its_program(keys: dict[str, Any], name: str) -> None:
    assert submit.task_name(manifest.from_mapping(keys, "test")) == name
