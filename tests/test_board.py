"""What a launcher and its hands share in memory: whose sync does for all, and who lacks work."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import crashing
import pytest
from conftest import where
from crashing import claimed, one

from spool.launcher import board as boards
from spool.launcher import clock
from spool.launcher.batch import WAKE, Batch
from spool.launcher.board import GIVEN, Board
from spool.queue import files, layout
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.place import Place

SAY = """
import os
from spool.launcher.board import GIVEN, Board
board = Board.inherited()
{words}
try:
    os.fstat(GIVEN)
except OSError:
    os._exit(7 if board.durable_until == 5.0 else 8)
"""


# -- the memory ----------------------------------------------------------------------------------


def said_by_another(board: Board, words: str) -> int:
    """Have a process say something on a board that it is offered; its exit code."""
    with board.offered() as file:
        assert file > GIVEN
        program = [sys.executable, "-c", SAY.format(words=words)]
        given = [(os.POSIX_SPAWN_DUP2, file, GIVEN)]
        pid = os.posix_spawn(sys.executable, program, os.environ, file_actions=given)
    with pytest.raises(OSError):
        os.fstat(file)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_another_process_reads_and_writes_it_and_hands_nothing_on() -> None:
    board = Board()
    board.synced(5.0)
    assert not board.lacking
    assert said_by_another(board, "board.lack()") == 7
    assert board.lacking and board.durable_until == 5.0
    assert said_by_another(board, "board.synced(9.0)") == 8
    assert board.durable_until == 9.0


def test_who_lacked_work_a_while_ago_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    board.lack()
    assert board.lacking
    now = clock.now() + boards.LACK_S
    monkeypatch.setattr(clock, "now", lambda: now)
    assert not board.lacking


@pytest.mark.parametrize(("given", "size"), [("nothing", -1), ("a file", 4096), ("a pipe", 0)])
def test_what_is_no_board_is_left_alone(given: str, size: int) -> None:
    """A person may start a hand, with whatever her shell has open."""

    def work(tell: crashing.Tell) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 4096)
            file.flush()
            pipe = os.pipe()
            os.dup2({"nothing": 0, "a file": file.fileno(), "a pipe": pipe[0]}[given], GIVEN)
            if given == "nothing":
                os.close(GIVEN)
            board = Board.inherited()
            board.synced(3.0)
            tell(board.durable_until)
            tell(os.pread(file.fileno(), 4097, 0) == b"x" * 4096)
            tell(os.fstat(GIVEN).st_size if given != "nothing" else -1)

    assert crashing.in_child(work) == [3.0, True, size]


def test_where_the_system_has_no_such_files_each_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    board = Board()
    with board.offered() as file:
        assert file == -1
    board.synced(1.0)
    assert board.durable_until == 1.0


# -- one sync for all ----------------------------------------------------------------------------


@pytest.fixture
def batches(owner: Owner) -> Iterator[tuple[Batch, Batch]]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {WAKE})
    board = Board()
    found = Batch(owner, "auto", board=board), Batch(owner, "auto", board=board)
    yield found
    files.watch(None)
    for batch in found:
        batch.drain()
    while signal.sigtimedwait({WAKE}, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


def ended(tree: Tree, owner: Owner, batch: Batch) -> str:
    """A task whose end was written and gathered."""
    task_id = one(tree)
    claimed(owner, task_id)
    batch.add(task_id, Place(State.FINISHED, layout.shard_of(task_id)))
    return task_id


def synced(batch: Batch) -> None:
    """Have a batch sync what it gathered, and take the answer."""
    batch.step(0, now=True)
    while batch.syncing:
        signal.sigtimedwait({WAKE}, 1.0)
        batch.step(0, now=False)


def test_what_one_syncs_is_durable_for_all(
    tree: Tree, owner: Owner, batches: tuple[Batch, Batch]
) -> None:
    ours, theirs = batches
    mine, other = ended(tree, owner, ours), ended(tree, owner, theirs)
    ours.step(4, now=False)
    assert where(tree, mine).startswith("RUNNING/")
    synced(theirs)
    later = ended(tree, owner, ours)
    calls: list[str] = []
    files.watch(lambda when, what, _: calls.append(what) if when == "before" else None)
    assert ours.step(4, now=False) == 1
    assert "syncfs" not in calls and not ours.syncing
    assert where(tree, mine).startswith("FINISHED/")
    assert where(tree, later).startswith("RUNNING/"), "it ended after that sync began"
    assert where(tree, other).startswith("RUNNING/")
    synced(ours)
    assert ours.step(4, now=False) == 1
    assert where(tree, later).startswith("FINISHED/")


def test_what_was_written_while_another_synced_is_not_taken_for_durable(
    tree: Tree, owner: Owner, batches: tuple[Batch, Batch]
) -> None:
    ours, theirs = batches
    ended(tree, owner, theirs)
    during: list[str] = []

    def write(when: str, what: str, _: tuple[Any, ...]) -> None:
        if (when, what) == ("before", "syncfs") and not during:
            during.append("")
            during[0] = ended(tree, owner, ours)

    files.watch(write)
    synced(theirs)
    assert ours.step(4, now=False) == 0
    assert where(tree, during[0]).startswith("RUNNING/")


def test_a_sync_that_failed_tells_nobody_that_anything_is_durable(
    tree: Tree, owner: Owner, batches: tuple[Batch, Batch]
) -> None:
    ours, theirs = batches
    mine = ended(tree, owner, ours)
    ended(tree, owner, theirs)

    def fail(when: str, what: str, _: tuple[Any, ...]) -> None:
        if (when, what) == ("before", "syncfs"):
            raise OSError(5, "the disk is broken")

    files.watch(fail)
    with pytest.raises(OSError, match="broken"):
        synced(theirs)
    assert ours.step(4, now=False) == 0
    assert where(tree, mine).startswith("RUNNING/")
