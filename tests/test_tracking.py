"""Allocations look by look: what is missing, what comes late, whose word counts."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from conftest import where
from crashing import claimed, far_owner, line, one, start_owner, story_of, words_of
from scripted import Scripted

from spool import units
from spool.config import trusted_users
from spool.queue import allocations, files
from spool.queue.allocations import ENDED, NEVER, QUEUED, RUNNING, Asked, Standing
from spool.queue.layout import Tree
from spool.queue.owner import Owner
from spool.queue.takeover import Observer, Verdict, take_over
from spool.service import tracking, usage
from spool.service.requests import request_end
from spool.service.system import Job, Unreachable
from spool.service.tracking import Tracker


@pytest.fixture
def system() -> Scripted:
    return Scripted()


def asked_for(tree: Tree, job: str = "", system: str = "scripted", **more: Any) -> str:
    """An allocation's record, as a service leaves it."""
    name = allocations.new_name(tree)
    one = Asked(
        name=name, system=system, queue="batch", nodes=2, walltime_s=3600.0, time="", **more
    )
    allocations.make(tree, one, "#!/bin/sh\n")
    if job:
        allocations.write(tree, name, Standing(state=QUEUED, job=job))
    return name


def known(system: Scripted, name: str, id_: str = "7", **more: Any) -> None:
    system.table[id_] = Job(id=id_, name=name, **{"state": "queued", **more})


class Looks:
    """A tracker that is new at each look, as in one-shots, with a clock set by hand."""

    def __init__(self, tree: Tree, system: Scripted) -> None:
        self.tree, self.system, self.now = tree, system, 1_800_000_000.0
        self.over: list[str] = []
        self.strays: list[Job] = []

    def __call__(self, after_s: float = 60.0) -> dict[str, Standing]:
        self.now += after_s
        tracker = Tracker(self.tree, self.system)
        live = tracker.look(self.now)
        self.over += [line.name for _, line in tracker.over]
        self.strays = tracker.strays
        return {one.asked.name: one.standing for one in live}


@pytest.fixture
def look(tree: Tree, system: Scripted) -> Looks:
    return Looks(tree, system)


def ledger(tree: Tree) -> dict[str, allocations.Closed]:
    lines = (files.read(tree.allocation("ledger.jsonl")) or b"").splitlines()
    found = {line.name: line for line in allocations.ledger(tree)}
    assert len(found) == len(lines), "each stands in the ledger once"
    return found


def test_a_job_that_is_missing_is_over_after_three_looks_that_took_a_while(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree, "7")
    known(system, name, state="running", used_s=100.0)
    assert look()[name].state == RUNNING
    system.hidden = True
    assert look()[name].missing == 1
    assert look()[name].missing == 2
    assert name not in look()
    closed = ledger(tree)[name]
    assert (closed.outcome, closed.why) == ("", "the batch system does not know it")
    assert closed.ran_s >= 160, "it ran on while nobody saw it"


def test_three_quick_looks_are_not_enough(tree: Tree, system: Scripted, look: Looks) -> None:
    name = asked_for(tree, "7")
    known(system, name)
    look()
    system.hidden = True
    for _ in range(8):
        assert name in look(1.0)
    system.hidden = False
    assert look(1.0)[name].missing == 0


def test_a_controller_that_is_down_tells_nothing(tree: Tree, system: Scripted, look: Looks) -> None:
    name = asked_for(tree, "7")
    known(system, name)
    look()
    system.down()
    for _ in range(5):
        with pytest.raises(Unreachable):
            look(300)
    system.up()
    assert look()[name] == allocations.standing(tree, name)
    assert allocations.standing(tree, name).missing == 0


def test_what_was_submitted_but_not_recorded_is_adopted_by_its_name(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree)
    known(system, name, "12")
    assert look()[name].job == "12"


def test_what_was_recorded_but_never_submitted_is_closed_as_that(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree)
    for _ in range(4):
        look()
    assert ledger(tree)[name].outcome == NEVER
    assert look.over == [name]


def test_a_job_that_comes_after_it_was_given_up_is_a_stray(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree)
    for _ in range(4):
        look()
    known(system, name, "12")
    look.now = time.time()
    assert look() == {}
    assert [job.id for job in look.strays] == ["12"]


def test_an_id_given_out_anew_is_no_job_of_ours(tree: Tree, system: Scripted, look: Looks) -> None:
    name = asked_for(tree, "7")
    known(system, "another-program", "7", state="running")
    assert look()[name].missing == 1
    known(system, name, "8")
    assert look()[name].job == "8"


def test_of_several_jobs_of_one_name_the_live_one_counts(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree)
    known(system, name, "7", state="ended", outcome="failed")
    known(system, name, "8", state="running")
    assert look()[name].job == "8"


def test_another_batch_system_s_word_is_none(tree: Tree, system: Scripted, look: Looks) -> None:
    elsewhere = asked_for(tree, "7", system="slurm")
    for _ in range(9):
        seen = look(600)[elsewhere]
    assert seen.state == QUEUED
    assert seen.why == "was asked of slurm, which is not here"
    files.make_folder(tree.allocation(elsewhere, "launchers"))
    one = start_owner(tree)
    allocations.sign_in(tree, {"allocation_name": elsewhere}, one.name)
    one.end(keep=True)
    assert elsewhere not in look(), "its launchers came and went"


def test_this_machine_s_word_on_another_s_local_jobs_is_none(tree: Tree, look: Looks) -> None:
    look.system.name = "local"
    mine = asked_for(tree, "7", system="local", host=os.uname().nodename)
    theirs = asked_for(tree, "8", system="local", host="elsewhere")
    for _ in range(4):
        live = look()
    assert (
        mine not in live
        and live[theirs].why == "was asked of local on elsewhere, which is not here"
    )


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_was_set_adds_little_to_any_time(
    tree: Tree, system: Scripted, look: Looks, jump: float
) -> None:
    queued, running = asked_for(tree, "7"), asked_for(tree, "8")
    known(system, queued, "7")
    known(system, running, "8", state="running")
    look()
    look()
    look(jump)
    seen = look()
    assert seen[queued].waited_s <= 2 * 60 + tracking.LONGEST_GAP_S
    assert seen[running].ran_s <= 3 * 60 + tracking.LONGEST_GAP_S
    assert seen[queued].missing_s == 0 and len(seen) == 2


def test_a_job_that_ended_before_it_was_seen_to_run_is_charged(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree, "7", cost=2.0)
    known(system, name, state="ended", outcome="completed", used_s=50.0)
    look()
    closed = ledger(tree)[name]
    assert (closed.outcome, closed.ran_s, closed.charged_node_s) == ("completed", 50.0, 200.0)
    assert tracking.spent_node_s(tree) == 200.0


@pytest.mark.parametrize("ended", [True, False])
def test_what_vanished_unseen_is_charged_by_what_its_launchers_told(
    tree: Tree, system: Scripted, look: Looks, ended: bool
) -> None:
    name = asked_for(tree, "7")
    one = start_owner(tree, allocation_name=name)
    one.record["started"] = "2026-01-01T10:00:00Z"
    allocations.sign_in(tree, one.record, one.name)
    one.write_record(**({"ended": "2026-01-01T10:20:00Z"} if ended else {}))
    for _ in range(4):
        look()
    assert ledger(tree)[name].ran_s == (1200.0 if ended else 3600.0)


def test_a_kill_between_an_end_and_its_line_in_the_ledger_is_made_good(
    tree: Tree, system: Scripted, look: Looks
) -> None:
    name = asked_for(tree, "7")
    ended = Standing(state=ENDED, job="7", outcome="timeout", ran_s=9.0)
    allocations.write(tree, name, ended)
    look()
    look()
    assert ledger(tree)[name].outcome == "timeout" and look.over == [name]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b"[" * 5000, b'{"state": 3}'])
def test_a_damaged_state_is_found_out_anew(
    tree: Tree, system: Scripted, look: Looks, damage: bytes
) -> None:
    name = asked_for(tree, "7")
    known(system, name, state="running")
    files.replace(tree.allocation(name, "state"), damage)
    assert look()[name].state == RUNNING


def test_a_torn_line_of_the_ledger_costs_nothing(tree: Tree, system: Scripted, look: Looks) -> None:
    first, second = asked_for(tree, "7"), asked_for(tree, "8")
    known(system, first, "7", state="ended", outcome="completed", used_s=1.0)
    known(system, second, "8")
    look()
    path = tree.allocation("ledger.jsonl")
    files.append(path, b'{"name": "sp-', heal=False)
    system.change("8", state="ended", outcome="failed", used_s=2.0)
    look()
    look()
    assert {line.name: line.outcome for line in allocations.ledger(tree)} == {
        first: "completed",
        second: "failed",
    }


def test_the_ledger_says_who_wanted_an_end(tree: Tree, system: Scripted, look: Looks) -> None:
    name = asked_for(tree, "7")
    known(system, name, state="ended", outcome="cancelled")
    request_end(tree, name, "asked by hand")
    look()
    assert ledger(tree)[name].why.endswith("asked by hand")


def test_the_names_of_two_spools_never_meet(tmp_path: Any, tree: Tree) -> None:
    other = Tree(str(tmp_path / "other"))
    assert allocations.prefix(other) != allocations.prefix(tree)
    assert allocations.is_name(allocations.new_name(tree))
    assert len(allocations.new_name(tree)) <= 15


# -- an owner's evidence -------------------------------------------------------------------------


def over(tree: Tree, name: str, outcome: str, job: str = "7") -> None:
    allocations.write(tree, name, Standing(state=ENDED, job=job, outcome=outcome))


@pytest.mark.parametrize("outcome", ["timeout", "preempted", "cancelled", "node-fail", "failed"])
def test_an_ended_allocation_is_evidence_for_takers(tree: Tree, outcome: str) -> None:
    name = asked_for(tree, "7")
    record = {"allocation_name": name, "allocation": {"system": "slurm", "job": "7"}}
    assert allocations.is_over(tree, record) is None
    over(tree, name, outcome)
    assert allocations.is_over(tree, record) is True
    assert allocations.was_stopped(tree, record) is (outcome in allocations.STOPPED)


@pytest.mark.parametrize("outcome", ["", NEVER])
def test_a_batch_system_that_knows_it_no_more_has_not_said_that_it_ended(
    tree: Tree, outcome: str
) -> None:
    name = asked_for(tree, "7")
    over(tree, name, outcome)
    assert allocations.is_over(tree, {"allocation_name": name}) is None


def test_a_name_inherited_from_an_outer_allocation_is_no_evidence(tree: Tree) -> None:
    name = asked_for(tree, "7")
    over(tree, name, "timeout")
    inner = {"allocation_name": name, "allocation": {"system": "slurm", "job": "8"}}
    assert allocations.is_over(tree, inner) is None
    assert not allocations.was_stopped(tree, inner)


def test_a_launcher_inside_another_spool_s_allocation_signs_in_nowhere(tree: Tree) -> None:
    foreign = "sp-zzzz-abcde"
    allocations.sign_in(tree, {"allocation_name": foreign}, "launcher.x.00000000.1.aaaa")
    assert allocations.names(tree) == []


@pytest.mark.parametrize(
    ("outcome", "what", "charged"),
    [("timeout", "interrupted", 0), ("preempted", "interrupted", 0), ("node-fail", "lost", 1)],
)
def test_tasks_of_an_allocation_that_was_stopped_were_interrupted(
    tree: Tree, owner: Owner, outcome: str, what: str, charged: int
) -> None:
    name = asked_for(tree, "7")
    far = far_owner(tree, allocation_name=name, allocation={"system": "slurm", "job": "7"})
    task = one(tree, max_attempts=1)
    line(claimed(far, task), "start", attempt=1, owner=far.name, node="far")
    observer = Observer(owner)
    assert observer.verdict(far.name) is Verdict.UNDECIDED
    over(tree, name, outcome)
    assert observer.verdict(far.name) is Verdict.DEAD
    assert take_over(owner, far.name, trusted_users()) == 1
    assert where(tree, task).startswith("READY/")
    assert words_of(tree, task) == ["start", what]
    story = story_of(tree, task)
    assert (story.losses, story.interruptions) == (charged, 1 - charged)


# -- figures -------------------------------------------------------------------------------------


def test_the_end_of_a_large_output_is_shown(tree: Tree) -> None:
    name = asked_for(tree)
    path = tree.allocation(name, "output")
    with open(path, "wb") as file:
        file.seek(200 << 20)
        file.write(b"\nmodule: command not found\xff\n")
    begun = time.process_time()
    assert usage.output_tail(tree, name, 100).endswith("command not found\ufffd")
    assert time.process_time() - begun < 0.1
    assert usage.output_tail(tree, "sp-none-aaaaa") == ""


def test_ages_of_stamps_that_are_none_are_none() -> None:
    assert allocations.age_s("yesterday", 5.0) == 0.0
    assert allocations.age_s(units.stamp(10.0), 5.0) == 0.0
