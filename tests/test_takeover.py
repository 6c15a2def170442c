"""Dead owners: what counts as evidence, and what becomes of the tasks they held."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import all_ids, eventually, make_tree, where
from crashing import claimed, far_owner, in_child, line, one, start_owner

from spool import config, units
from spool.config import trusted_users
from spool.errors import DiskFull, LeaseLost
from spool.queue import claim, files, history, journal, layout, processes, takeover, tasks
from spool.queue import owner as owner_module
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner, read_record
from spool.queue.takeover import Observer, Verdict, take_over
from spool.report import series

ME = trusted_users()


class Clock:
    """Our own monotonic clock, set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(owner: Owner, clock: Clock) -> Observer:
    return Observer(owner, clock)


@pytest.fixture(autouse=True)
def _no_process_stays(tree: Tree) -> Iterator[None]:
    yield
    crashing.kill_children()
    eventually(lambda: not crashing.processes_of(tree), "guards and orphans gone")


def dead_owner(tree: Tree, *ids: str, kind: str = "launcher", **record: Any) -> str:
    """The RUNNING group of an owner on this host that claimed tasks and is gone."""

    def lives(tell: crashing.Tell) -> None:
        me = start_owner(tree, kind, **record)
        for task_id in ids:
            claimed(me, task_id)
        tell(me.name)

    return str(in_child(lives)[0])


def held(tree: Tree, group: str, task_id: str) -> tasks.Task:
    """A task as it lies in a RUNNING group."""
    return tasks.load(tree.task(State.RUNNING, group, task_id), task_id)


# -- evidence ------------------------------------------------------------------------------------


def test_an_owner_whose_process_is_gone_from_this_host_is_dead_at_first_sight(
    tree: Tree, observer: Observer
) -> None:
    group = dead_owner(tree)
    assert observer.verdict(group) is Verdict.DEAD
    assert observer.look() == ([group], False)


def test_an_owner_whose_process_lives_on_this_host_is_alive_however_silent(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    other = start_owner(tree)
    for _ in range(5):
        assert observer.verdict(other.name) is Verdict.ALIVE
        clock.now += 1000


def test_another_process_under_a_dead_owner_s_number_does_not_keep_it_alive(
    tree: Tree, observer: Observer
) -> None:
    group = start_owner(tree).name
    record = read_record(tree, group)
    Owner(tree, observer.me.settings, group, record).write_record(process_start=1)
    assert observer.verdict(group) is Verdict.DEAD


def test_an_owner_of_this_host_without_a_record_is_judged_by_its_process_alone(
    tree: Tree, observer: Observer
) -> None:
    group = start_owner(tree).name
    files.unlink(tree.owner(group, layout.LAUNCHER))
    assert observer.verdict(group) is Verdict.ALIVE


def test_an_owner_that_said_it_ended_is_dead_wherever_it_was(
    tree: Tree, observer: Observer
) -> None:
    far = far_owner(tree, ended="2026-01-01T00:00:00Z")
    assert observer.verdict(far.name) is Verdict.DEAD


def test_a_far_owner_is_undecided_at_first_sight_and_alive_once_its_token_changes(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    far = far_owner(tree)
    assert observer.verdict(far.name) is Verdict.UNDECIDED
    clock.now += 10
    assert observer.verdict(far.name) is Verdict.UNDECIDED  # nobody has seen it alive yet
    far.beat()
    clock.now += 10
    assert observer.verdict(far.name) is Verdict.ALIVE
    clock.now += 10
    assert observer.verdict(far.name) is Verdict.ALIVE


def test_a_far_owner_silent_for_the_whole_time_is_dead(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    far = far_owner(tree)
    verdicts = []
    for _ in range(13):
        verdicts.append(observer.verdict(far.name))
        clock.now += 20
    assert verdicts == [Verdict.UNDECIDED] * 12 + [Verdict.DEAD]


def test_a_beat_in_the_last_moment_starts_the_count_again(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    far = far_owner(tree)
    for _ in range(12):
        assert observer.verdict(far.name) is Verdict.UNDECIDED
        clock.now += 20
    far.beat()
    assert observer.verdict(far.name) is Verdict.ALIVE
    clock.now += 20
    assert observer.verdict(far.name) is Verdict.ALIVE
    clock.now += 20
    assert observer.verdict(far.name) is Verdict.UNDECIDED


def test_a_gap_in_the_observer_s_own_reading_starts_the_count_again(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    far = far_owner(tree)
    for _ in range(10):
        observer.verdict(far.name)
        clock.now += 20
    clock.now += 300  # the observer was stopped, and the owner may have been so too
    assert observer.verdict(far.name) is Verdict.UNDECIDED
    for _ in range(11):
        clock.now += 20
        assert observer.verdict(far.name) is Verdict.UNDECIDED
    clock.now += 20
    assert observer.verdict(far.name) is Verdict.DEAD


def test_an_owner_without_a_heartbeat_file_is_dead_after_its_silence_too(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    group = layout.owner_name("launcher", "far", "0123abcd", 78)
    files.make_folder(tree.group(State.RUNNING, group))
    for _ in range(12):
        assert observer.verdict(group) is Verdict.UNDECIDED
        clock.now += 20
    assert observer.verdict(group) is Verdict.DEAD


def test_owners_are_watched_in_name_order_up_to_the_first_seen_alive(
    tree: Tree, observer: Observer
) -> None:
    alive = start_owner(tree, "m")
    alive.write_record(kind="launcher")
    dead = {dead_owner(tree, kind=kind) for kind in ("a", "z")}
    found, undecided = observer.look()
    me = observer.me.name
    assert me < alive.name < max(dead)
    assert found == [] and not undecided  # the living one after us watches what comes after it
    assert Observer(alive).look() == ([max(dead), min(dead)], False)


@pytest.mark.parametrize("record", [{}, {"kind": "launcher", "hand_of": 7}], ids=["verb", "hand"])
def test_a_living_owner_that_watches_nobody_does_not_end_the_watch(
    tree: Tree, observer: Observer, record: dict[str, Any]
) -> None:
    start_owner(tree, "m").write_record(**record)
    dead = dead_owner(tree, kind="z")
    assert observer.look() == ([dead], False)


def test_an_undecided_owner_is_reported_so_that_an_idle_launcher_stays(
    tree: Tree, observer: Observer
) -> None:
    far_owner(tree)
    assert observer.look() == ([], True)


# -- what becomes of the tasks -------------------------------------------------------------------


def test_a_claimed_task_that_never_started_goes_back_free_of_charge(
    tree: Tree, owner: Owner
) -> None:
    task_id = one(tree)
    assert take_over(owner, dead_owner(tree, task_id), ME) == 1
    assert where(tree, task_id).startswith("READY/c1@")
    assert crashing.words_of(tree, task_id) == []


def test_a_started_task_counts_as_lost_and_goes_back(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id)
    line(held(tree, group, task_id), "start", attempt=1, owner=group)
    take_over(owner, group, ME)
    story = crashing.story_of(tree, task_id)
    assert (where(tree, task_id)[:5], story.losses, story.failures) == ("READY", 1, 0)


def begun(tree: Tree, owner_name: str, task_id: str, ago_s: float, **keys: Any) -> None:
    """A start line of some time ago in a task of a dead owner."""
    event = {"what": "start", "attempt": 1, "owner": owner_name, **keys}
    event["time"] = units.stamp(time.time() - ago_s)
    path = tree.task(State.RUNNING, owner_name, task_id)
    files.append(f"{path}/{layout.HISTORY}", history.encode(event))


def test_the_taker_s_journal_tells_what_lost_attempts_cost(tree: Tree, owner: Owner) -> None:
    idle, *ids = [one(tree), one(tree, cores_per_rank=2, workflow="w"), one(tree, nodes=2)]
    group = dead_owner(tree, idle, *ids)
    for task_id in ids:
        begun(tree, group, task_id, ago_s=100, node="n1")
    heartbeat = tree.owner(group, layout.HEARTBEAT)
    os.utime(heartbeat, (0, time.time() - 40))  # since when nobody has heard of it
    opened: list[str] = []
    files.watch(lambda when, what, words: opened.append(f"{when} {what} {words[0]}"))
    take_over(owner, group, ME)
    files.watch(None)
    assert opened.count(f"before create {tree.journal(owner.name)}") == 1
    told = {event["id"]: event for event in journal.read(tree)}
    assert sorted(told) == sorted(ids), "what never started cost nothing"
    for task_id, cores in zip(ids, (2, 2), strict=True):
        event = told[task_id]
        assert (event["what"], event["owner"], event["by"]) == ("lost", group, owner.name)
        assert (event["cores"], event["node"], event["attempt"]) == (cores, "n1", 1)
        assert event["state"] == "READY" and abs(event["elapsed_s"] - 60) < 5
    found = series.totals(journal.read(tree))
    assert (found.interrupted, found.finished) == (2, 0)
    assert abs(found.lost_core_s - 240) < 20 and found.used_core_s == found.lost_core_s


def test_what_was_interrupted_is_used_but_not_lost(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id, ends=1.0)
    begun(tree, group, task_id, ago_s=100)
    take_over(owner, group, ME)
    found = series.totals(journal.read(tree))
    assert (found.interrupted, found.lost_core_s) == (1, 0) and found.used_core_s > 90


def test_a_journal_that_cannot_be_written_stops_no_takeover(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id)
    begun(tree, group, task_id, ago_s=1)
    os.rmdir(tree.folder("journal"))
    Path(tree.folder("journal")).write_text("no folder")
    assert take_over(owner, group, ME) == 1
    assert where(tree, task_id).startswith("READY/")


@pytest.mark.parametrize("record", [{"ended": "2026-01-01T00:00:00Z"}, {"ends": 1.0}])
def test_a_task_whose_launcher_s_time_was_up_counts_as_interrupted(
    tree: Tree, owner: Owner, record: dict[str, Any]
) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id, **record)
    line(held(tree, group, task_id), "start", attempt=1, owner=group)
    take_over(owner, group, ME)
    story = crashing.story_of(tree, task_id)
    assert (where(tree, task_id)[:5], story.losses, story.interruptions) == ("READY", 0, 1)


def test_a_task_lost_too_often_is_filed_under_failed_lost(tree: Tree, owner: Owner) -> None:
    task_id = one(tree, max_lost=1)
    for attempt in (1, 2):
        group = dead_owner(tree, task_id)
        line(held(tree, group, task_id), "start", attempt=attempt, owner=group)
        take_over(owner, group, ME)
    assert where(tree, task_id).startswith("FAILED/lost@")
    assert crashing.words_of(tree, task_id) == ["start", "lost", "start", "lost"]


@pytest.mark.parametrize(
    ("code", "place"), [(0, "FINISHED/"), (3, "FAILED/exit-3@")], ids=["good", "bad"]
)
def test_an_exit_already_written_is_honoured(
    tree: Tree, owner: Owner, code: int, place: str
) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id)
    task = held(tree, group, task_id)
    line(task, "start", attempt=1, owner=group)
    line(task, "exit", attempt=1, owner=group, code=code)
    take_over(owner, group, ME)
    assert where(tree, task_id).startswith(place)
    assert crashing.words_of(tree, task_id) == ["start", "exit"]


def test_a_failed_attempt_that_may_be_tried_again_goes_back_with_a_line(
    tree: Tree, owner: Owner
) -> None:
    task_id = one(tree, max_attempts=2)
    group = dead_owner(tree, task_id)
    task = held(tree, group, task_id)
    line(task, "start", attempt=1, owner=group)
    line(task, "exit", attempt=1, owner=group, code=1)
    take_over(owner, group, ME)
    assert where(tree, task_id).startswith("READY/")
    assert crashing.words_of(tree, task_id) == ["start", "exit", "queued"]


def test_a_torn_last_line_is_ended_before_the_taker_writes_its_own(
    tree: Tree, owner: Owner
) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id)
    task = held(tree, group, task_id)
    line(task, "start", attempt=1, owner=group)
    files.append(f"{task.path}/{layout.HISTORY}", b'{"time":"2026-01-01T00:00:00Z","wh')
    take_over(owner, group, ME)
    assert crashing.words_of(tree, task_id) == ["start", "lost"]
    assert crashing.story_of(tree, task_id).damaged == 1


def test_a_request_to_cancel_in_the_dead_owner_s_inbox_is_honoured(
    tree: Tree, owner: Owner
) -> None:
    queued, started, ended = ids = crashing.many(tree, 3)
    group = dead_owner(tree, *ids)
    for task_id in (started, ended):
        line(held(tree, group, task_id), "start", attempt=1, owner=group)
    line(held(tree, group, ended), "exit", attempt=1, owner=group, code=0)
    for task_id in ids:
        files.write_new(tree.request(group, "cancel", task_id), b"{}\n")
    take_over(owner, group, ME)
    assert where(tree, queued).startswith("CANCELLED")
    assert where(tree, started).startswith("CANCELLED")
    assert where(tree, ended).startswith("FINISHED")  # an exit already written wins


def test_a_request_put_to_a_taker_that_died_is_honoured_by_the_next(
    tree: Tree, owner: Owner
) -> None:
    task_id = one(tree)
    first, taker = dead_owner(tree, task_id), dead_owner(tree)
    group = layout.claims_group(first, taker)
    files.rename_file(tree.group(State.RUNNING, first), tree.group(State.RUNNING, group))
    files.write_new(tree.request(taker, "cancel", task_id), b"{}\n")
    assert Observer(owner).look() == (sorted([group, taker]), False)
    take_over(owner, group, ME)
    assert where(tree, task_id).startswith("CANCELLED")


def test_a_damaged_task_of_a_dead_owner_is_rejected_with_the_reason(
    tree: Tree, owner: Owner
) -> None:
    task_id, sound = one(tree), one(tree)
    group = dead_owner(tree, task_id, sound)
    Path(tree.task(State.RUNNING, group, task_id), layout.MANIFEST).write_text("{")
    assert take_over(owner, group, ME) == 2
    assert where(tree, task_id).startswith("FAILED/rejected@")
    assert where(tree, sound).startswith("READY")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_task_in_a_dead_owner_s_folder_is_kept_as_rejected(
    tree: Tree, owner: Owner, kind: str
) -> None:
    group = dead_owner(tree)
    path = Path(tree.group(State.RUNNING, group), "notes")
    (path.mkdir if kind == "folder" else path.touch)()
    take_over(owner, group, ME)
    assert files.names(tree.state(State.RUNNING)) == [owner.name]
    (found,) = all_ids(tree)
    assert where(tree, found).startswith("FAILED/rejected@")


def test_an_arrival_that_a_dead_owner_had_claimed_is_admitted(tree: Tree, owner: Owner) -> None:
    task_id = one(tree)
    group = dead_owner(tree, task_id)
    path = tree.task(State.RUNNING, group, task_id)
    assert files.move(path, path + layout.ARRIVING)
    take_over(owner, group, ME)
    assert where(tree, task_id).startswith("READY")
    assert crashing.words_of(tree, task_id) == ["arrived"]


def test_a_dead_launcher_s_record_says_how_it_ended_and_a_dead_verb_s_goes(
    tree: Tree, owner: Owner
) -> None:
    launcher, verb = dead_owner(tree), dead_owner(tree, kind="hold")
    take_over(owner, launcher, ME)
    take_over(owner, verb, ME)
    assert read_record(tree, launcher)["taken_by"] == owner.name
    assert not files.exists(tree.owner(verb))
    assert files.names(tree.state(State.RUNNING)) == [owner.name]


def test_the_second_taker_of_a_group_gets_nothing(tree: Tree, owner: Owner) -> None:
    group = dead_owner(tree, one(tree))
    second = start_owner(tree)
    assert take_over(owner, group, ME) == 1
    assert take_over(second, group, ME) == 0
    assert sorted(files.names(tree.state(State.RUNNING))) == sorted([owner.name, second.name])


def test_a_taker_stopped_by_a_full_disk_goes_on_where_it_was(tree: Tree, owner: Owner) -> None:
    ids = crashing.many(tree, 3)
    group = dead_owner(tree, *ids)
    for task_id in ids:
        line(held(tree, group, task_id), "start", attempt=1, owner=group)
    observer = Observer(owner)
    with crashing.failing("fsync", errno.ENOSPC, number=2), pytest.raises(DiskFull):
        take_over(owner, group, ME)
    (begun,) = observer.look()[0]
    assert begun == layout.claims_group(group, owner.name)
    take_over(owner, begun, ME)
    assert {where(tree, task_id)[:5] for task_id in ids} == {"READY"}
    assert all(crashing.story_of(tree, task_id).losses == 1 for task_id in ids)
    assert observer.look() == ([], False)


def test_an_owner_whose_folder_was_taken_has_lost_its_lease(tree: Tree, owner: Owner) -> None:
    task = claimed(owner, one(tree))
    files.rename_file(owner.claims, owner.claims + "~x")
    with pytest.raises(LeaseLost, match="taken over"):
        claim.write_line(owner, task, {"time": "now", "what": "held"})
    with pytest.raises(LeaseLost, match="taken over"):
        owner.beat()
    assert not files.exists(owner.claims)


def test_a_taker_that_was_taken_over_itself_stops(tree: Tree, owner: Owner) -> None:
    group = dead_owner(tree, one(tree))
    files.rename_file(owner.claims, owner.claims + "~x")
    owner.last_beat = -1e9
    with pytest.raises(LeaseLost):
        take_over(owner, group, ME)


def test_a_taker_kills_what_a_dead_launcher_left_on_this_host(tree: Tree, owner: Owner) -> None:
    group = dead_owner(tree, one(tree))
    orphan = subprocess.Popen(["sleep", "300"], env={**os.environ, processes.MARK: group})
    assert take_over(owner, group, ME) == 1
    assert orphan.wait() == -signal.SIGKILL


def test_what_runs_for_the_taker_survives_its_second_turn(tree: Tree, owner: Owner) -> None:
    group = layout.claims_group(dead_owner(tree), owner.name)
    files.make_folder(tree.group(State.RUNNING, group))
    mine = subprocess.Popen(["sleep", "300"], env={**os.environ, processes.MARK: owner.name})
    take_over(owner, group, ME)
    assert mine.poll() is None
    mine.kill()
    mine.wait()


# -- real launchers ------------------------------------------------------------------------------


def launcher_process(tree: Tree, *words: str) -> subprocess.Popen[str]:
    """`spool launcher` as a person starts it."""
    command = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def groups(tree: Tree) -> list[str]:
    return files.names(tree.state(State.RUNNING))


def test_the_guard_of_a_killed_launcher_kills_its_tasks_and_a_taker_runs_them_again(
    tree: Tree, tmp_path: Path
) -> None:
    flag = tmp_path / "seen"
    command = f"test -e {flag} && exit 0; touch {flag}; (setsid sleep 300 &) ; sleep 300"
    running, waiting = one(tree, command), one(tree)
    launcher = launcher_process(tree, "--cores", "1")
    eventually(flag.exists, "the first task runs")
    (group,) = groups(tree)
    eventually(lambda: len(processes.marked(group)) >= 2, "what it leaves behind runs too")
    launcher.kill()
    launcher.communicate()
    eventually(lambda: not processes.marked(group), "the guard has killed the tasks")
    assert where(tree, running).startswith("RUNNING/")
    crashing.drained(tree)
    assert where(tree, running).startswith("FINISHED")
    assert crashing.words_of(tree, running) == ["start", "lost", "start", "exit"]
    assert where(tree, waiting).startswith("FINISHED")
    crashing.recovered(tree)


def test_a_launcher_that_lost_its_lease_kills_its_tasks_and_exits_with_4(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "fast", '[lease]\nbeat = "0.2s"\n')
    task_id = one(tree, ["sleep", "300"])
    launcher = launcher_process(tree, "--cores", "1")
    eventually(lambda: "start" in (crashing.words_of(tree, task_id)), "it runs")
    (group,) = groups(tree)
    taker = start_owner(tree, "taker")
    taken = layout.claims_group(group, taker.name)
    files.rename_file(tree.group(State.RUNNING, group), tree.group(State.RUNNING, taken))
    said, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 4, said
    assert "taken over" in said
    eventually(lambda: not processes.marked(group), "its tasks are killed")
    assert sorted(groups(tree)) == sorted([taken, taker.name])  # and it made nothing anew
    assert take_over(taker, taken, ME) == 1
    assert crashing.words_of(tree, task_id) == ["start", "lost"]
    taker.end()


def test_a_killed_verb_s_task_is_taken_over_by_the_next_launcher(tree: Tree) -> None:
    task_id = one(tree)
    dead_owner(tree, task_id, kind="hold")
    crashing.drained(tree)
    assert where(tree, task_id).startswith("FINISHED")
    assert files.names(tree.state(State.RUNNING)) == []


def test_what_names_no_owner_is_never_taken_for_dead_at_once(
    tree: Tree, observer: Observer, clock: Clock
) -> None:
    files.make_folder(tree.group(State.RUNNING, "by-hand"))
    assert observer.verdict("by-hand") is Verdict.UNDECIDED
    clock.now += 10
    assert observer.look()[1] is True


def test_holder_names_who_has_a_group() -> None:
    assert takeover.holder("a") == "a"
    assert takeover.holder("a~b") == "b"
    assert layout.claims_group("a~b", "c") == "a~c"


# -- owners of several nodes ---------------------------------------------------------------------


def own_kind(tree: Tree, pid: int, **record: object) -> str:
    """An owner of this host under a process number that is nobody's or ours, with this record."""
    place = owner_module.here()
    name = layout.owner_name("launcher", place.host, place.boot, pid)
    whole = {"owner": name, "kind": "launcher", "host": place.host, "pid": pid, **record}
    one = Owner(tree, config.load(tree.root), name, whole)
    files.make_folder(tree.owner(name, layout.INBOX))
    files.write_new(tree.owner(name, layout.HEARTBEAT), b"0")
    one.write_record()
    files.make_folder(one.claims)
    return name


NOBODY = 2**22 + 1  # above any process number there can be


def test_a_leader_gone_from_this_host_is_dead_where_all_its_ranks_were_here(
    tree: Tree, owner: Owner
) -> None:
    name = own_kind(tree, NOBODY, boots=[owner_module.here().boot])
    assert Observer(owner).verdict(name) is Verdict.DEAD


def test_a_leader_gone_from_this_host_is_not_yet_dead_where_it_had_ranks_elsewhere(
    tree: Tree, owner: Owner, clock: Clock
) -> None:
    name = own_kind(tree, NOBODY, boots=[owner_module.here().boot, "0123abcd"], dead_s=1000.0)
    observer = Observer(owner, clock)
    assert observer.verdict(name) is Verdict.UNDECIDED
    for _ in range(99):
        clock.now += 10.0
        assert observer.verdict(name) is Verdict.UNDECIDED  # its guards there may not have struck
    clock.now += 20.0
    assert observer.verdict(name) is Verdict.DEAD


def test_ranks_elsewhere_matter_no_more_once_their_nodes_were_swept(
    tree: Tree, owner: Owner
) -> None:
    name = own_kind(tree, NOBODY, boots=["0123abcd"], swept=True)
    assert Observer(owner).verdict(name) is Verdict.DEAD


OURS = {"system": "slurm", "job": "17"}


@pytest.mark.parametrize(
    ("job", "word", "verdict"),
    [
        ("17", False, Verdict.UNDECIDED),  # ours: its nodes are being swept
        ("18", False, Verdict.UNSWEPT),  # another's, which lives on, and so may the tasks
        ("18", True, Verdict.DEAD),
        ("18", None, Verdict.UNDECIDED),  # then its silence is all there is
    ],
)
def test_an_owner_with_tasks_on_unguarded_nodes_is_dead_only_when_they_are_gone(
    tree: Tree, owner: Owner, clock: Clock, job: str, word: bool | None, verdict: Verdict
) -> None:
    owner.record["allocation"] = OURS
    name = own_kind(tree, NOBODY, unguarded=True, allocation={**OURS, "job": job})
    cleared: list[str] = []
    observer = Observer(owner, clock, lambda *_: word, cleared.__contains__)
    assert observer.verdict(name) is verdict
    clock.now += 60.0
    assert observer.verdict(name) is verdict
    assert observer.look()[1] is (verdict is Verdict.UNDECIDED)
    cleared.append(name)
    assert observer.verdict(name) is (Verdict.DEAD if job == "17" else verdict)


def test_a_node_that_answers_no_sweep_is_given_up_after_as_long_as_a_silent_owner(
    tree: Tree, owner: Owner, clock: Clock
) -> None:
    owner.record["allocation"] = OURS
    name = own_kind(tree, NOBODY, unguarded=True, allocation=OURS, dead_s=1000.0)
    observer = Observer(owner, clock, lambda *_: False, lambda _: False)
    for _ in range(100):
        assert observer.verdict(name) is Verdict.UNDECIDED
        clock.now += 10.0
    assert observer.verdict(name) is Verdict.DEAD


def test_who_cannot_ask_the_batch_system_leaves_unguarded_nodes_alone(
    tree: Tree, owner: Owner, clock: Clock
) -> None:
    name = own_kind(tree, NOBODY, unguarded=True, allocation=OURS)
    observer = Observer(owner, clock)
    assert observer.verdict(name) is Verdict.UNSWEPT
    assert observer.look() == ([], False)  # and nobody stays for its sake


@pytest.mark.parametrize(
    ("word", "verdict"),
    [(True, Verdict.DEAD), (False, Verdict.UNDECIDED), (None, Verdict.UNDECIDED)],
)
def test_the_batch_system_s_word_is_the_best_evidence_and_is_asked_for_now_and_then(
    tree: Tree, owner: Owner, clock: Clock, word: bool | None, verdict: Verdict
) -> None:
    asked = []

    def over(system: str, job: str) -> bool | None:
        asked.append((system, job))
        return word

    far = far_owner(tree, allocation={"system": "slurm", "job": "17"})
    observer = Observer(owner, clock, over)
    for _ in range(3):
        assert observer.verdict(far.name) is verdict
        clock.now += 1.0
    assert asked == [("slurm", "17")]
    clock.now += 60.0
    observer.verdict(far.name)
    assert len(asked) == 2


def test_an_owner_s_own_patience_counts_where_it_is_longer_than_ours(
    tree: Tree, owner: Owner, clock: Clock
) -> None:
    far = far_owner(tree, dead_s=2 * config.Settings().lease_dead_s)
    observer = Observer(owner, clock)
    observer.verdict(far.name)
    for _ in range(30):
        clock.now += 10.0
        assert observer.verdict(far.name) is not Verdict.DEAD
    for _ in range(30):
        clock.now += 10.0
        last = observer.verdict(far.name)
    assert last is Verdict.DEAD


def test_a_task_of_a_node_that_died_is_lost_and_goes_back(tree: Tree, owner: Owner) -> None:
    task = claimed(owner, one(tree))
    line(task, "start", attempt=1, owner=owner.name)
    takeover.settle_lost(owner, task.id, 0.0)
    assert where(tree, task.id).startswith("READY/")
    assert "lost" in crashing.words_of(tree, task.id)
