"""What a launcher claims next: what fits, a little ahead, and never at the cost of others."""

from __future__ import annotations

import pytest
from crashing import start_owner

from spool.launcher import picker
from spool.launcher.book import Book
from spool.launcher.nodes import Node
from spool.launcher.picker import Picker, Wishes
from spool.queue import files, shape
from spool.queue.claim import Claimer
from spool.queue.layout import State, Tree, new_id

SHARD = "26112215-00"
NODE = Node((0, 1), ("0",), 1000)


class Backlog:
    """A spool whose READY is made by hand, and a launcher's picker over it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.owner = start_owner(tree)
        self.picker = Picker(Claimer(self.owner, seed=1), Book([NODE]), Wishes(), 0.0)
        self.held: list = []

    def ready(self, lane: str, count: int = 1) -> None:
        for number in range(count):
            task_id = new_id(f"{lane.replace('.', '-')}-{number}", SHARD)
            files.make_folder(self.tree.task(State.READY, f"{lane}@{SHARD}", task_id))

    def claims(self, limit: int = 100) -> list[str]:
        """The lanes of what is claimed now, in that order."""
        self.picker.claimer.refresh()
        found = []
        for name, wanted in self.picker.claim(self.held, limit):
            found.append(name.split(".")[0].rpartition("-")[0])
            if self.picker.book.take(wanted) is None:
                self.held.append((name, wanted))
        self.held.clear()
        return found

    def empties(self, node: Node = NODE) -> None:
        """Nothing runs any more, on a node like this one."""
        self.picker.book = Book([node])

    def runs(self, lane: str) -> None:
        assert self.picker.book.take(shape.parse(f"{lane}@{SHARD}")[0])


@pytest.fixture
def backlog(tree: Tree) -> Backlog:
    return Backlog(tree)


def test_no_more_is_claimed_than_fits_where_tasks_last(backlog: Backlog) -> None:
    backlog.ready("c1", 10)
    assert backlog.claims() == ["c1"] * 2


def test_a_quarter_of_a_second_s_work_is_claimed_ahead_where_tasks_go_fast(
    backlog: Backlog,
) -> None:
    backlog.ready("c1", 100)
    backlog.picker.rate = 40.0
    assert backlog.claims() == ["c1"] * 12


@pytest.mark.parametrize("other", ["c1.g1", "c2", "c1.m600M"])
def test_what_lacks_more_than_a_core_is_not_claimed_ahead_and_blocks_no_other(
    backlog: Backlog, other: str
) -> None:
    backlog.runs("c1.g1" if "g1" in other else "c1.m512M")
    backlog.ready(f"p9.{other}", 50)
    backlog.ready("c1", 50)
    backlog.picker.rate = 40.0
    assert set(backlog.claims()) == {"c1"}


def test_room_is_kept_for_the_tired_but_only_what_they_need(
    backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picker, "PATIENCE_S", -1.0)
    backlog.runs("c1.g1")
    backlog.ready("p9.c1.g1", 3)
    backlog.ready("c1", 3)
    assert backlog.claims() == []  # the one core that is free is kept, as the GPU will be
    backlog.empties(Node((0, 1, 2), ("0",), 1000))
    backlog.runs("c1.g1")
    assert backlog.claims() == ["c1"]


def test_what_ends_before_the_kept_room_is_complete_may_have_it(
    backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picker, "PATIENCE_S", -1.0)
    long = backlog.picker.book.take(shape.parse(f"c1@{SHARD}")[0])
    assert long
    asked: list[tuple] = []
    backlog.picker.expected = lambda *what: asked.append(what) or [(long[0], 20.0)]
    backlog.ready("p9.c2")
    backlog.ready("c1.t30s", 3)
    assert backlog.claims() == [] and backlog.picker.book.kept_for
    backlog.ready("c1.t15s", 3)
    assert backlog.claims() == ["c1-t15s"]
    assert backlog.claims() == []
    assert asked == [({0}, backlog.picker.kept_at)]  # once a second, not at each claim


def test_a_tired_wide_task_is_served_before_its_equals(backlog: Backlog) -> None:
    backlog.runs("c1")
    backlog.ready("c2.t1m")
    backlog.ready("c1.t2m", 3)
    assert backlog.claims(2) == ["c1-t2m"]
    wide = shape.parse(f"c2.t1m@{SHARD}")[0]
    backlog.picker.waiting_since[wide] -= picker.PATIENCE_S + 1
    backlog.empties()
    backlog.runs("c1")
    assert backlog.claims(2) == []  # the free core is kept
    backlog.empties()
    assert backlog.claims(1) == ["c2-t1m"]
    backlog.ready("c2.t1m")
    backlog.empties()
    backlog.runs("c1")
    assert backlog.claims(1) == ["c1-t2m"]  # its patience begins anew
