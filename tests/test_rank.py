"""What a leader and a rank say to each other, both in this process: only MPI itself is left out."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterator

import msgspec
import pytest
from conftest import all_ids, eventually, where

from spool import config
from spool.errors import LeaseLost
from spool.launcher import clock, orders
from spool.launcher.book import Book
from spool.launcher.children import PR_SET_CHILD_SUBREAPER
from spool.launcher.nodes import Node
from spool.launcher.picker import Wishes
from spool.launcher.rank import FOLLOW_S, SIGNALS, WAKE, Rank
from spool.launcher.ranks import FRESH_S, REST_S, SWEEP_AGAIN_S, SWEEPS, Ranks, gather
from spool.queue import processes, takeover
from spool.queue.claim import Claimer
from spool.queue.shape import Shape

NODES = (Node((0,)), Node((0, 1)))
ONE, TWO = Shape(), Shape(cores=2)


class Office:
    """The post of one end, as messages really look; `out` is what lies with the other end."""

    size, poll_s, poll_longest_s = 2, 0.001, 0.02

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.waiting: list[object] = []
        self.came: deque[bytes] = deque()
        self.sent = 0

    def reach(self, other: Office) -> None:
        self.other = other

    def add(self, rank: int, message: object) -> None:
        assert rank == self.other.rank
        self.waiting.append(message)

    def send(self) -> None:
        if self.waiting:
            self.other.came.append(msgspec.msgpack.encode(self.waiting))
            self.waiting, self.sent = [], self.sent + 1

    def received(self) -> Iterator[tuple[int, bytes]]:
        while self.came:
            yield self.other.rank, self.came.popleft()


class Pair:
    """A leader and one rank, which has two cores."""

    def __init__(self, tree, spool, owner) -> None:
        self.tree, self.spool, self.owner = tree, spool, owner
        ours, theirs = Office(0), Office(1)
        ours.reach(theirs)
        theirs.reach(ours)
        self.book, self.said = Book(NODES), []
        self.ranks = Ranks(ours, NODES, mark=False)
        self.rank = Rank(theirs, tree, config.load(tree.root), NODES[1], config.trusted_users())
        self.ranks.open(owner, self.book, Wishes(pin=False), lambda task_id: None)
        self.rank._join()
        gather(ours)
        self.ranks.rate = 80.0
        self.ended_lately()

    def ended_lately(self) -> None:
        self.ranks.freed[1] = clock.now()

    def claimed(self, *words: str) -> str:
        """A task that our owner has just claimed."""
        task_id = self.spool.submit([*words]).id
        claimer = Claimer(self.owner)
        claimer.refresh()
        (found,) = claimer.take(lambda shape: 1, 1)
        assert found == task_id
        return task_id

    def start(self, *words: str) -> str:
        task_id, grants = self.claimed(*words), self.book.take(ONE, lambda node: node == 1)
        assert grants
        self.ranks.start(task_id, ONE, grants)
        return task_id

    def follow(self, *words: str) -> str:
        task_id = self.claimed(*words)
        assert self.ranks.follow(task_id, ONE)
        return task_id

    def turn(self) -> list[str]:
        """One turn of both; the tasks that ended."""
        self.ranks.beat(clock.now())
        self.ranks.post.send()
        self.rank._turn()
        return [report.task_id for report in self.ranks.receive(self.said.append)]

    def pass_time(self, seconds: float) -> None:
        clock.jump(seconds)
        self.owner.last_beat += seconds  # it beats all the while


@pytest.fixture
def pair(tree, spool, owner) -> Iterator[Pair]:
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    one = Pair(tree, spool, owner)
    yield one
    clock.reset()
    one.rank.crew.kill_everything()
    one.rank.batch.drain()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    signal.signal(WAKE, signal.SIG_IGN)
    while signal.sigtimedwait(SIGNALS, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    signal.signal(WAKE, signal.SIG_DFL)


# -- stalls --------------------------------------------------------------------------------------


def test_a_rank_that_stalls_in_the_midst_of_a_turn_brings_no_task_back(pair):
    task_id = pair.start("sleep", "0.1")
    pair.turn()
    (running,) = pair.rank.crew.running.values()
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    takeover.settle_lost(pair.owner, task_id, 0.0)  # its leader has buried it
    clock.jump(pair.owner.settings.lease_fence_s + 1)  # and now it goes on where it stood
    with pytest.raises(LeaseLost):
        pair.rank._work()
    assert all_ids(pair.tree) == [task_id]
    assert where(pair.tree, task_id).startswith("READY/")


def test_a_beat_heard_before_a_stall_is_as_old_as_the_stall(pair):
    pair.turn()
    clock.jump(100.0)
    pair.rank._obey(orders.Beat(1.0))
    assert clock.now() - pair.rank.owner.last_beat > 100


# -- what an mpirun left -------------------------------------------------------------------------


def left_behind(task_id: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], env={**os.environ, processes.TASK: task_id})


def test_what_a_task_left_on_a_node_is_killed_before_its_end_counts(pair):
    one = left_behind("t.x")
    pair.ranks.sweep("t.x", [0, 1, 1])
    assert set(pair.ranks.sweeping) == {"t.x"} and pair.ranks.busy == 1
    pair.turn()
    assert not pair.ranks.sweeping and not pair.said
    assert one.poll() is not None


def test_a_sweep_that_failed_is_tried_again_and_its_task_s_end_stays_open(pair, monkeypatch):
    one = left_behind("t.x")
    monkeypatch.setattr(processes, "KILL_WAIT_S", 0.05)
    with monkeypatch.context() as world:
        world.setattr(os, "kill", lambda pid, number: None)  # as if its disk were dead
        pair.ranks.sweep("t.x", [1])
        pair.turn()
        assert set(pair.ranks.sweeping) == {"t.x"} and one.poll() is None
    pair.turn()
    assert set(pair.ranks.sweeping) == {"t.x"}, "not at once"
    pair.pass_time(SWEEP_AGAIN_S)
    pair.turn()
    assert not pair.ranks.sweeping and not pair.ranks.sweeps
    assert [text for text in pair.said if "trying again in 1 s" in text] == pair.said
    assert one.poll() is not None


def test_sweeps_are_not_tried_for_ever(pair):
    pair.ranks.sweep("t.x", [1])
    pair.ranks.post.send()
    pair.rank.post.came.clear()  # we answer for it
    for _ in range(SWEEPS):
        assert pair.ranks.sweeping
        pair.rank.post.add(0, orders.Swept("t.x", False))
        pair.turn()
        pair.ranks.sweeps.clear()
    assert not pair.ranks.sweeping
    assert "its end counts all the same" in pair.said[-1]


def test_a_sweep_of_a_task_that_nobody_asked_for_is_passed_over(pair):
    pair.rank.post.add(0, orders.Swept("t.x", True))
    assert pair.turn() == [] and not pair.ranks.sweeping


# -- followers -----------------------------------------------------------------------------------


def test_a_follower_starts_in_the_room_of_the_first_that_ends(pair):
    first, then = pair.start("true"), pair.follow("true")
    ended = []
    eventually(lambda: ended.extend(pair.turn()) or len(ended) == 2, "both ended")
    assert ended == [first, then]
    assert pair.ranks.took == 1 and not pair.ranks.back and not pair.ranks.resting
    assert pair.book.idle


def test_followers_that_wait_in_vain_are_given_back_and_no_more_come_for_a_while(pair):
    long = pair.start("sleep", "60")
    waiting = [pair.follow("true") for _ in range(3)]
    pair.turn()
    before = pair.rank.post.sent
    pair.pass_time(FOLLOW_S / 2)
    pair.turn()
    assert not pair.ranks.back
    pair.pass_time(FOLLOW_S + 1)
    pair.turn()
    assert list(pair.ranks.back) == [(task_id, ONE) for task_id in waiting]
    assert list(pair.ranks.placed) == [long] and pair.ranks.followers == [0, 0]
    assert pair.rank.post.sent <= before + 2, "one message, however many"
    assert pair.ranks.may_follow(ONE) == 0 and not pair.ranks.follow("x", ONE)
    pair.ended_lately()
    assert pair.ranks.may_follow(ONE) == 0
    pair.pass_time(REST_S)
    pair.turn()
    pair.ended_lately()
    assert pair.ranks.may_follow(ONE) > 0


def test_no_follower_is_sent_where_nothing_has_ended_lately(pair):
    pair.start("sleep", "60")
    assert pair.ranks.may_follow(ONE) > 0
    pair.pass_time(FRESH_S)
    assert pair.ranks.may_follow(ONE) == 0
    short = pair.start("true")
    eventually(lambda: pair.turn() or not pair.ranks.placed[short].grants, "it ended")
    assert pair.ranks.may_follow(ONE) > 0


def test_other_shapes_may_still_follow_where_one_has_waited_in_vain(pair):
    pair.ranks.shapes[1][TWO] = 1
    pair.start("sleep", "60")
    pair.follow("true")
    pair.turn()
    pair.pass_time(FOLLOW_S + 1)
    pair.turn()
    pair.ended_lately()
    assert pair.ranks.may_follow(ONE) == 0 and pair.ranks.may_follow(TWO) > 0


def test_a_follower_can_be_cancelled_while_it_waits(pair):
    pair.start("sleep", "60")
    one, other = pair.follow("true"), pair.follow("true")
    pair.turn()
    assert pair.ranks.ask("cancel", one, {"by": "me"})
    pair.turn()
    assert where(pair.tree, one).startswith("CANCELLED/")
    assert where(pair.tree, other).startswith("RUNNING/")
    assert pair.ranks.followers == [0, 1]
