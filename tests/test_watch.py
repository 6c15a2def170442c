"""The bell rings when a lane or an arrival appears; without inotify, polling must do."""

from __future__ import annotations

import os
import resource
import signal
import threading

import pytest
from conftest import eventually

from spool.queue import files, layout
from spool.queue.layout import State
from spool.queue.watch import Bell

RING = signal.SIGUSR2
LANE = "c1@26112215-00"


@pytest.fixture
def bell(tree):
    """A bell whose signal is blocked, so that a test waits for it; nothing of it stays behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {RING})
    one = Bell(tree, RING)
    yield one
    one.close()
    while rang(0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def rang(within=10.0):
    return signal.sigtimedwait({RING}, within) is not None


@pytest.mark.parametrize(
    ("state", "name"), [(State.READY, LANE), (State.CREATED, "run-1"), (State.CREATED, "@xpcs")]
)
def test_the_bell_rings_for_a_new_lane_and_a_new_arrival(tree, bell, state, name):
    bell.hang()
    os.mkdir(tree.group(state, name))
    assert rang()


def test_the_bell_rings_for_what_is_moved_in(tree, bell):
    built = tree.tmp("nest")
    os.mkdir(built)
    bell.hang()
    files.move(built, tree.group(State.READY, LANE))
    assert rang()


def test_the_bell_is_silent_before_it_hangs_and_after_it_is_closed(tree, bell):
    os.mkdir(tree.group(State.READY, LANE))
    assert not rang(0.05)
    bell.hang()
    bell.close()
    bell.close()
    os.mkdir(tree.group(State.CREATED, "run-1"))
    assert not rang(0.05)


def test_hanging_a_bell_twice_hangs_it_once_and_closing_leaves_no_thread(bell):
    before = threading.active_count()
    bell.hang()
    observer = bell.observer
    bell.hang()
    assert bell.observer is observer
    bell.close()
    eventually(lambda: threading.active_count() == before, "threads end")


def test_a_folder_that_cannot_be_watched_leaves_polling_and_no_thread(tree, bell):
    before = threading.active_count()
    os.rename(tree.state(State.CREATED), tree.folder("moved"))
    bell.hang()
    assert bell.observer is None
    eventually(lambda: threading.active_count() == before, "threads end")
    os.rename(tree.folder("moved"), tree.state(State.CREATED))
    bell.hang()
    os.mkdir(tree.group(State.CREATED, "run-1"))
    assert rang()


def test_no_inotify_at_all_leaves_polling(tree, bell):
    """As where the user's inotify instances are used up: here, where no file can be opened."""
    bell.hang()
    bell.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        bell.hang()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert bell.observer is None


def test_a_submission_rings_the_bell(spool, tree, bell):
    bell.hang()
    task = spool.submit(["true"])
    assert rang()
    assert layout.is_shard(task.group.rpartition("@")[2])
