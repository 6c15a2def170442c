"""The broom removes folders that were left empty, in a process of its own, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spool.launcher import broom
from spool.launcher.broom import Broom


def folders(where: Path, count: int) -> list[str]:
    paths = [str(where / f"parent {number}") for number in range(count)]
    for path in paths:
        os.mkdir(path)
    return paths


def test_it_removes_what_is_empty_and_keeps_what_holds_something(tmp_path: Path) -> None:
    sweeper = Broom(set())
    left = folders(tmp_path, broom.MOST + 3)
    os.mkdir(f"{left[1]}/child")
    for path in left:
        sweeper.drop(path)
        sweeper.mind(0.0)
    assert len(sweeper.pids) == 1  # many are removed at once, what came since is kept back
    sweeper.close()
    assert os.listdir(tmp_path) == ["parent 1"]
    assert not sweeper.pids


def test_a_few_are_removed_a_while_after(tmp_path: Path) -> None:
    sweeper = Broom(set())
    (path,) = folders(tmp_path, 1)
    sweeper.drop(path)
    sweeper.mind(sweeper.due_at - 0.01)
    assert not sweeper.pids
    sweeper.mind(sweeper.due_at)
    (pid,) = sweeper.pids
    os.waitpid(pid, 0)
    assert not os.path.exists(path)


def test_its_process_is_known_as_ours_for_as_long_as_it_lives(tmp_path: Path) -> None:
    ours = {1}
    sweeper = Broom(ours)
    sweeper.drop(*folders(tmp_path, 1))
    sweeper.sweep()
    (pid,) = sweeper.pids
    assert ours == {1, pid}
    os.waitpid(pid, 0)  # as the crew does
    sweeper.ended(pid)
    assert ours == {1}
    sweeper.close()


@pytest.mark.parametrize("ours", [None, set()])
def test_where_it_can_start_nothing_it_removes_them_itself(
    tmp_path: Path, ours: set[int] | None
) -> None:
    sweeper = Broom(ours)
    if ours is not None:
        sweeper.program = "/nowhere/rmdir"
    sweeper.drop(*folders(tmp_path, 1))
    sweeper.sweep()
    assert not os.listdir(tmp_path)
    assert not sweeper.pids


def test_more_words_than_a_command_line_holds_are_removed_here(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 200] * 15)
    deep.mkdir(parents=True)
    (left,) = folders(deep, 1)
    sweeper = Broom(set())
    for _ in range(900):  # of some 3,000 bytes each, and two million are the most
        sweeper.drop(left)
    sweeper.sweep()
    assert not sweeper.pids
    assert not os.listdir(deep)
