"""Several real processes at once: every race has one winner, and no task is lost or run twice."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import all_ids, where
from crashing import Child, Tell, claimed, one, start_owner

from spool import config
from spool.config import trusted_users
from spool.errors import Refused
from spool.queue import advance, claim, control, files, layout, manifest, submit, tasks
from spool.queue.claim import Claimer
from spool.queue.layout import State, Tree
from spool.queue.takeover import take_over

TRUE = manifest.from_mapping({"command": "true"}, "test")


tmp_path, no_process_stays = crashing.tmp_path, crashing.no_process_stays


def together(*works: crashing.Scenario) -> list[list[object]]:
    """Let every work start at the same moment, in a process of its own; what each told."""
    gate_read, gate_write = os.pipe()

    def waits(work: crashing.Scenario) -> crashing.Scenario:
        def works(tell: Tell) -> None:
            os.close(gate_write)
            os.read(gate_read, 1)
            work(tell)

        return works

    children = [Child(waits(work)) for work in works]
    os.close(gate_write)
    os.close(gate_read)
    return [child.wait().told for child in children]


def test_four_launchers_run_several_hundred_tasks_once_each(tree: Tree, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    ids = crashing.many(tree, 200, f"echo $SPOOL_TASK >> {ran}")
    ids += crashing.many(tree, 100, f"echo $SPOOL_TASK >> {ran}", priority=3)

    def launches(tell: Tell) -> None:
        tell(crashing.run_launcher(tree, 2, pin=False).total())

    counts = [int(str(told[0])) for told in together(*[launches] * 4)]
    crashing.drained(tree)
    assert Counter(ran.read_text().split()) == Counter(ids)
    assert {where(tree, task_id)[:8] for task_id in ids} == {"FINISHED"}
    assert sum(counts) == 300
    crashing.recovered(tree)


def test_claimers_on_one_lane_never_share_a_task(tree: Tree) -> None:
    ids = crashing.many(tree, 300)

    def claims(tell: Tell) -> None:
        claimer = Claimer(start_owner(tree))
        while claimer.refresh():
            for task_id in claimer.take(lambda shape: 7, 7):
                tell(task_id)

    told = together(*[claims] * 4)
    assert Counter(task_id for ids in told for task_id in ids) == Counter(ids)
    assert files.names(tree.state(State.READY)) == []


def test_submitters_into_lanes_that_are_emptied_and_removed_lose_nothing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "shard", lambda when, counter: "26010100-00")
    stop = tree.folder("stop")

    def submits(tell: Tell) -> None:
        for _ in range(25):
            with submit.Submitter(tree, tell) as submitter:
                for _ in range(2):
                    submitter.add(TRUE)
                submitter.finish()
            tell([submit.submit(tree, TRUE)])
        files.write_new(f"{stop}.{os.getpid()}", b"")

    def empties(tell: Tell) -> None:
        me, done = start_owner(tree), False
        claimer = Claimer(me)
        while not done:
            done = sum(name.startswith("stop.") for name in os.listdir(tree.root)) == 2
            claimer.refresh()
            for task_id in claimer.take(lambda shape: 9, 99):
                claim.hand_on(me, task_id, claim.Place(State.CANCELLED, layout.shard_of(task_id)))
            for path in advance.empty_groups(tree):
                files.remove_folder(path)

    told = together(submits, submits, empties, empties)
    promised = [task_id for batches in told for batch in batches for task_id in batch]  # type: ignore[attr-defined]
    assert len(promised) == 150
    assert Counter(all_ids(tree)) == Counter(promised)


def test_of_several_takers_of_a_dead_owner_one_wins_and_each_task_moves_once(tree: Tree) -> None:
    for _ in range(10):
        ids = crashing.many(tree, 5)

        def dies(tell: Tell, ids: list[str] = ids) -> None:
            me = start_owner(tree)
            for task_id in ids:
                crashing.line(claimed(me, task_id), "start", attempt=1, owner=me.name)
            tell(me.name)

        (group,) = crashing.in_child(dies)

        def takes(tell: Tell, group: str = group) -> None:
            me = start_owner(tree, "taker")
            tell(take_over(me, group, trusted_users()))
            me.end()

        assert sorted(told[0] for told in together(*[takes] * 4)) == [0, 0, 0, 5]  # type: ignore[type-var]
        for task_id in ids:
            assert crashing.words_of(tree, task_id) == ["start", "lost"]
    crashing.assert_sound(tree)


def test_cancel_racing_claim_ends_each_task_in_one_of_the_two_ways(tree: Tree) -> None:
    ids = crashing.many(tree, 60)
    lane = where(tree, ids[0]).partition("/")[2]
    spots = [tasks.Spot(State.READY, lane, task_id) for task_id in ids]

    def claims(tell: Tell) -> None:
        claimer = Claimer(start_owner(tree, "claimer"))
        while claimer.refresh():
            for task_id in claimer.take(lambda shape: 3, 3):
                tell(task_id)

    def cancels(tell: Tell) -> None:
        with control.verb(tree, config.load(tree.root), "cancel", wait_s=0.0) as by:
            for spot in spots:
                try:
                    control.once(_cancel_queued, by, spot)
                except Refused:
                    continue
                tell(spot.id)

    taken, cancelled = together(claims, cancels)
    assert Counter([*taken, *cancelled]) == Counter(ids)
    for task_id in cancelled:
        assert where(tree, str(task_id)).startswith("CANCELLED/")
    assert sorted(crashing.recovered(tree, "before")) == sorted(ids)


def _cancel_queued(by: control.Verb, spot: tasks.Spot) -> tasks.Spot:
    """A cancel that asks no owner: what is claimed already is refused."""
    if spot.state is State.RUNNING:
        raise Refused("claimed")
    return control.cancel(by, spot)


def test_holds_and_releases_of_the_same_tasks_lose_nothing(tree: Tree) -> None:
    ids = crashing.many(tree, 10)

    def acts(act: control.Act) -> crashing.Scenario:
        def works(tell: Tell) -> None:
            with control.verb(tree, config.load(tree.root), act.__name__) as by:
                for _ in range(6):
                    spots = [spot for task_id in ids if (spot := tasks.find(tree, task_id))]
                    list(control.each(act, by, spots))

        return works

    together(acts(control.hold), acts(control.release), acts(control.hold), acts(control.release))
    assert sorted(crashing.assert_sound(tree)) == sorted(ids)
    for task_id in ids:
        held = crashing.story_of(tree, task_id).held
        assert where(tree, task_id).startswith("WAITING/held@" if held else "READY/")


def test_sweepers_racing_for_tasks_whose_moment_has_come_move_each_once(tree: Tree) -> None:
    ids = crashing.many(tree, 100, begin="2020-01-01T00:00:00Z")
    for spot in list(tasks.spots(tree, (State.READY,))):
        overdue = tree.task(State.WAITING, "until@2601010000", spot.id)
        assert files.move(spot.path(tree), overdue)

    def sweeps(tell: Tell) -> None:
        me = start_owner(tree, "sweeper")
        tell(advance.release_due(me))
        me.end()

    moved = [int(str(told[0])) for told in together(*[sweeps] * 4)]
    # A loser that finds the task at its common target cannot tell this from a lost reply.
    assert 100 <= sum(moved) < 400
    assert sorted(crashing.assert_sound(tree)) == sorted(ids)
    assert {where(tree, task_id)[:5] for task_id in ids} == {"READY"}
    assert not advance.due_groups(tree, time.time())


def test_a_task_is_found_or_truly_gone_while_it_moves(tree: Tree) -> None:
    """A look-up may meet a task on the move; two looks that agree are no accident."""
    task_id = one(tree)

    def moves(tell: Tell) -> None:
        me = start_owner(tree)
        for _ in range(300):
            claimed_by(me, task_id)
            lane = claim.Place(State.READY, f"c1@{layout.shard_of(task_id)}")
            claim.hand_on(me, task_id, lane)
        me.end()

    def looks(tell: Tell) -> None:
        tell(sum(tasks.find(tree, task_id) is None for _ in range(300)))

    missed = int(str(together(moves, looks)[1][0]))
    assert missed <= 3


def claimed_by(me: claim.Owner, task_id: str) -> None:
    spot = tasks.find(me.tree, task_id)
    while spot is None:
        spot = tasks.find(me.tree, task_id)
    files.move(spot.path(me.tree), me.claim_path(task_id))


def test_a_task_that_moves_between_its_manifest_and_its_history_is_not_read_by_halves(
    tree: Tree,
) -> None:
    """Else a change that was told would be missed, and a cycle closed."""
    task_id = one(tree, hold=True)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    there, away = spot.path(tree), tree.tmp("away")

    def move(phase: str, operation: str, arguments: tuple[Any, ...]) -> None:
        asked = (phase, operation, arguments[0])
        if asked == ("before", "open", f"{there}/{layout.HISTORY}"):
            os.rename(there, away)

    files.watch(move)
    with pytest.raises(FileNotFoundError):
        tasks.load(there, task_id)
    assert tasks.load(away, task_id).story.lines == 0
