"""Ended tasks on their way out: what waits for a disk, and how often one is waited for."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import crashing
import pytest
from conftest import where
from crashing import claimed

from spool.launcher import clock
from spool.launcher.batch import EVERY_S, WAKE, Batch
from spool.queue import files, layout
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.place import Place


@pytest.fixture
def batch(owner: Owner) -> Iterator[Batch]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {WAKE})
    one = Batch(owner, "auto")
    yield one
    one.drain()
    while signal.sigtimedwait({WAKE}, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, old)
    clock.reset()


def test_folders_of_durable_results_are_synced_once_a_second_not_after_each_task(
    tree: Tree, owner: Owner, batch: Batch
) -> None:
    ids = crashing.many(tree, 20)
    for task_id in ids:
        claimed(owner, task_id)
    synced: list[str] = []
    files.watch(lambda when, what, _: synced.append(what) if what == "fsync" else None)
    for task_id in ids:
        batch.add_durable(task_id, Place(State.FINISHED, layout.shard_of(task_id)))
        assert batch.step(4, now=True) == 1
        wait_for(batch)
        assert where(tree, task_id).startswith("FINISHED/")
    before = synced.count("fsync")
    assert before <= 4 and not batch.empty  # a group and its state, before and after
    clock.jump(EVERY_S)
    batch.step(4, now=False)
    wait_for(batch)
    assert synced.count("fsync") == before + 4 and batch.empty


def test_once_all_is_over_the_folders_wait_for_no_others(
    tree: Tree, owner: Owner, batch: Batch
) -> None:
    for task_id in crashing.many(tree, 2):
        claimed(owner, task_id)
        batch.add_durable(task_id, Place(State.FINISHED, layout.shard_of(task_id)))
        batch.step(4, now=True, over=True)
        wait_for(batch)
        assert batch.empty


def wait_for(batch: Batch) -> None:
    """Until what is being synced is, and its answer taken."""
    deadline = time.monotonic() + 30
    while batch.syncing and time.monotonic() < deadline:
        signal.sigtimedwait({WAKE}, 1.0)
        batch.step(0, now=False)
