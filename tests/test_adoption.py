"""Children claimed where they wait: only what may run here, and nothing before what goes first."""

from __future__ import annotations

import os
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crashing
import pytest
from conftest import make_tree, where
from crashing import Tell, killed_at_each_call, many, one, run_launcher, words_of

from spool.launcher import adoption, broom, heirs, loop
from spool.launcher.adoption import Adoption
from spool.launcher.board import Board
from spool.queue import files, history, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner

tmp_path, no_process_stays = crashing.tmp_path, crashing.no_process_stays


def moves(tree: Tree, **wishes: Any) -> Counter[str]:
    """The moves of tasks that a launcher makes until it is idle, as FROM-TO by states."""

    def work(tell: Tell) -> None:
        def note(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
            if when == "after" and operation == "rename":
                states = [os.path.relpath(path, tree.root).split("/")[0] for path in arguments[:2]]
                tell("-".join(states))

        files.watch(note)
        run_launcher(tree, **wishes)

    return Counter(crashing.in_child(work))


def start_of(tree: Tree, task: str) -> str:
    """When a task was started, by its history."""
    spot = tasks.find(tree, task)
    assert spot is not None
    raw = files.read(f"{spot.path(tree)}/{layout.HISTORY}") or b""
    return next(str(event["time"]) for event in history.events(raw) if event["what"] == "start")


def test_a_chain_goes_from_waiting_to_running(tree: Tree) -> None:
    """What spares each link a move, a listing and a reading."""
    last = one(tree, name="link")
    for _ in range(9):
        last = one(tree, name="link", after=[last])
    seen = moves(tree)
    assert seen["WAITING-RUNNING"] == 9 and seen["READY-RUNNING"] == 1
    assert seen["WAITING-READY"] == 0 and seen["RUNNING-FINISHED"] == 10
    assert words_of(tree, last) == ["start", "exit"]


def test_what_has_another_parent_still_waits_for_it(tree: Tree) -> None:
    slow = one(tree, ["sleep", "0.5"])
    child = one(tree, after=[one(tree), slow, one(tree)])
    seen = moves(tree, cores=2)
    assert where(tree, child).startswith("FINISHED/")
    assert words_of(tree, child) == ["start", "exit"]
    assert seen["RUNNING-FINISHED"] == 4


@pytest.mark.parametrize(
    ("keys", "wishes"),
    [
        ({"requires": ["gpu-x"]}, {}),
        ({"cores_per_rank": 2}, {}),
        ({"workflow": "other"}, {"workflow": "this"}),
        ({"tags": ["other"]}, {"tags": ("this",)}),
        ({"time_estimate": "2h"}, {"time_limit_s": 600.0}),
        ({"nodes": 2}, {}),
    ],
    ids=lambda value: next(iter(value), "any") if isinstance(value, dict) else "",
)
def test_a_child_that_is_not_for_this_launcher_goes_to_ready(
    tree: Tree, keys: dict[str, Any], wishes: dict[str, Any]
) -> None:
    parent = one(tree, workflow="this", tags=["this"])
    child = one(tree, after=[parent], **{"workflow": "this", "tags": ["this"], **keys})
    crashing.in_child(lambda tell: run_launcher(tree, **wishes))
    assert where(tree, child).startswith("READY/") and words_of(tree, child) == []


def test_a_child_does_not_go_before_what_is_more_urgent(tree: Tree) -> None:
    child = one(tree, name="child", after=[one(tree, priority=9)])
    urgent = many(tree, 20, name="urgent", priority=5)
    crashing.in_child(lambda tell: run_launcher(tree))
    begun = {task: start_of(tree, task) for task in [child, *urgent]}
    assert begun[child] > max(begun[task] for task in urgent)


def test_a_child_of_a_failed_parent_is_not_run(tree: Tree) -> None:
    child = one(tree, after=[one(tree, "false")])
    last = one(tree, after=[one(tree, "false")], on_parent_failure="run")
    fails = one(tree, after=[one(tree, "false")], on_parent_failure="fail")
    crashing.in_child(lambda tell: run_launcher(tree))
    assert where(tree, child).startswith("WAITING/")
    assert where(tree, last).startswith("FINISHED/")
    assert where(tree, fails).startswith("FAILED/")


def test_a_fan_out_is_not_all_kept_by_one(tree: Tree) -> None:
    """One that runs long tasks leaves to others what it cannot start soon."""
    parent = one(tree)
    children = [one(tree, ["sleep", "0.3"], after=[parent]) for _ in range(6)]
    seen = moves(tree)
    assert all(where(tree, child).startswith("FINISHED/") for child in children)
    assert seen["WAITING-READY"] >= 4


def stub(board: Board, owner: Owner | None = None, lent: tuple[int, ...] = ()) -> Any:
    """What adoption asks of a launcher: one that holds some, and whose tasks are fast."""
    return SimpleNamespace(
        draining=False,
        ranks=None,
        paused_until=0.0,
        owner=owner,
        claimed=deque(range(adoption.FEW)),
        book=SimpleNamespace(free=1),
        field=SimpleNamespace(crew=None),
        gate=SimpleNamespace(looks=False),
        wishes=SimpleNamespace(hand_of=0 if owner else 1),
        hands=SimpleNamespace(lending=False, board=board, lent=dict.fromkeys(lent)),
        picker=SimpleNamespace(may_adopt=lambda held, most: held < most),
    )


@pytest.mark.parametrize("lacking", [False, True])
def test_few_children_are_kept_while_another_on_the_node_lacks_work(lacking: bool) -> None:
    board = Board()
    if lacking:
        board.lack()
    launcher = stub(board)
    assert Adoption(launcher).may() is not lacking
    launcher.claimed.extend(range(adoption.MOST))
    assert not Adoption(launcher).may()


@pytest.mark.parametrize(
    ("other", "many_kept"),
    [
        ("launcher.{host}.{boot}.4711.abc123", True),  # a hand of ours
        ("launcher.{host}.{boot}.4712.abc123", False),
        ("launcher.elsewhere.0123abcd.4711.abc123", False),
        ("service.elsewhere.0123abcd.4711.abc123", True),
    ],
)
def test_few_children_are_kept_while_launchers_are_about_that_cannot_say_what_they_lack(
    tree: Tree, owner: Owner, other: str, many_kept: bool
) -> None:
    ours = layout.parse_owner(owner.name)
    assert ours is not None
    board = Board()
    one = Adoption(stub(board, owner, lent=(4711,)))
    assert one.may()
    os.mkdir(tree.group(State.RUNNING, other.format(host=ours.host, boot=ours.boot)))
    assert one.may(), "it looks around but once a second"
    one.look_at = 0.0
    assert one.may() is many_kept
    assert Adoption(stub(board)).may() is many_kept, "its hands know it from the board"


def ran_and_ticks(tell: Tell, tree: Tree, **wishes: Any) -> None:
    """Tell how many tasks a launcher ran until it left, and how often it ticked, at 20 s each."""
    ticks, tick = [0], loop.Launcher._tick

    def counted(launcher: loop.Launcher) -> None:
        ticks[0] += 1
        tick(launcher)

    # In a child of its own, so that nobody else sees this.
    loop.Launcher._tick, loop.TICK_S = counted, 20.0
    tell((run_launcher(tree, **wishes)["FINISHED"], ticks[0]))


def test_a_lane_that_it_filled_and_emptied_itself_keeps_no_launcher(tree: Tree) -> None:
    """It looked new to it each time it wanted to leave, until a tick or two had come."""
    parent = one(tree)
    for _ in range(5):
        one(tree, after=[parent])
    assert crashing.in_child(lambda tell: ran_and_ticks(tell, tree)) == [[6, 1]]


def test_a_folder_it_left_itself_keeps_no_hand(tree: Tree) -> None:
    """It looked as if something waited there, until somebody came to remove it."""

    def work(tell: Tell) -> None:
        broom.WAIT_S = heirs.LINGER_S = 30.0
        ran_and_ticks(tell, tree, hand_of=os.getppid())

    one(tree, after=[one(tree)])
    assert crashing.in_child(work) == [[2, 1]]


def test_a_launcher_killed_anywhere_while_it_adopts_loses_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    trees: list[tuple[Tree, list[str]]] = []

    def prepare() -> Any:
        tree = make_tree(tmp_path / f"spool{len(trees)}")
        first = one(tree)
        second = one(tree, after=[first])
        trees.append((tree, [first, second, one(tree, after=[second])]))
        return lambda tell: run_launcher(tree)

    for point, _ in killed_at_each_call(prepare, stride=11):
        tree, ids = trees[-1]
        crashing.drained(tree, cores=1)
        for task in ids:
            assert where(tree, task).startswith("FINISHED/"), (point, task)
            told = words_of(tree, task)
            assert told.count("start") == 1 + told.count("lost"), (point, told)
