"""The launcher as a process: what it starts and when, what it survives, how it leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import all_ids, eventually, make_tree, run_spool, where

from spool.api import Spool
from spool.queue import files, history, journal, layout, owner, processes, tasks
from spool.queue.layout import State

QUICK = '[door]\nquiet = "0.2s"\n[launcher]\nsync = "none"\n'
IMPATIENT = QUICK + '[lease]\nbeat = "0.2s"\nfence = "0.5s"\ndead = "1s"\n'
TIMED = "date +%s.%N > began; sleep {}; date +%s.%N > ended"
DAEMON = "setsid sleep 1000 & echo $! > {0}.new && mv {0}.new {0}"


def launch(tree, *words, **options):
    """One launcher that leaves when there is nothing to do; it must not fail."""
    idle = () if "--idle-timeout" in words else ("--idle-timeout", "0")
    left = run_spool(tree.root, "launcher", *idle, *words, **options)
    assert left.returncode == 0, left.stderr
    return left


@pytest.fixture
def tree(tmp_path):
    """A spool whose launchers wait for no disk: what else this machine writes is no concern."""
    return make_tree(tmp_path / "spool", QUICK)


@pytest.fixture
def begin(tree):
    """begin("--cores", "2") starts a launcher that stays; what is left of it dies with the test."""
    begun = []

    def start(*words, idle="never"):
        before = kept(tree)
        options = ["--spool", tree.root, "launcher", "--quiet", "--idle-timeout", idle]
        one = subprocess.Popen([sys.executable, "-m", "spool.cli", *options, *words])
        begun.append(one)
        eventually(lambda: kept(tree) - before, "it is there")
        return one

    yield start
    for one in begun:
        if one.poll() is None:
            one.kill()
        one.wait()
    for name in os.listdir(tree.folder("launchers")):
        processes.kill_marked(name)


@pytest.fixture
def impatient(tree):
    """The same spool, whose owners count as dead after a second of silence."""
    files.replace(tree.settings, b"format = 1\n" + IMPATIENT.encode())
    return tree


def kept(tree):
    """The claim folders there are, and the owners that have left theirs."""
    told = files.names(tree.folder("launchers"))
    ended = {name for name in told if owner.read_record(tree, name).get("ended")}
    return ended | set(files.names(tree.state(State.RUNNING)))


def events(tree, task_id, what=""):
    told = history.events(files.read(f"{path_of(tree, task_id)}/history.jsonl") or b"")
    return [event for event in told if what in ("", event["what"])]


def path_of(tree, task_id):
    return f"{tree.root}/{where(tree, task_id)}/{task_id}"


def words_of(tree, task_id):
    return [event["what"] for event in events(tree, task_id)]


def runs(tree, task_id):
    return where(tree, task_id).startswith("RUNNING/") and "start" in words_of(tree, task_id)


def is_in(tree, task, place):
    return where(tree, task.id).startswith(place)


def pid_in(path):
    """The process id in a file, once it is there; 0 before."""
    return int(files.read(str(path)) or 0)


def alive(pid):
    return processes.process_start(pid) is not None


def most_at_once(tree, ids, weight=None):
    """The largest number (or sum of weights) of timed tasks that ran at one moment."""
    moments = []
    for task_id in ids:
        heavy = (weight or {}).get(task_id, 1)
        path = path_of(tree, task_id)
        moments.append((float(files.read(f"{path}/began")), heavy))
        moments.append((float(files.read(f"{path}/ended")), -heavy))
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def started_at(tree):
    """When each task was started, and its id, in that order."""
    told = []
    for task_id in all_ids(tree):
        told += [(event["time"], task_id) for event in events(tree, task_id, "start")]
    return sorted(told)


def starts(tree):
    """The ids of all tasks that were started, in that order."""
    return [task_id for _, task_id in started_at(tree)]


def submitted_at(task):
    return task.manifest.submitted.time


def count(tree, state):
    return sum(1 for _ in tasks.spots(tree, (state,)))


def place_by_hand(tree, wanted, *, lane=None, shard="26112215-00", name="task"):
    """A task that lies in READY without `submit`; its id."""
    task_id = layout.new_id(name, shard)
    path = tree.task(State.READY, lane or f"c1@{shard}", task_id)
    os.makedirs(path)
    raw = wanted if isinstance(wanted, bytes) else json.dumps(wanted).encode()
    files.write_new(f"{path}/manifest.json", raw)
    return task_id


# -- what is started, and when -------------------------------------------------------------------


def test_cores_are_filled_and_never_given_twice(tree, spool):
    weight = {}
    for number in range(14):
        cores = 1 + (number % 4 == 0)
        weight[spool.submit(TIMED.format(0.05), cores_per_rank=cores).id] = cores
    launch(tree, "--cores", "3", "--no-pin")
    assert most_at_once(tree, weight, weight) == 3
    assert all(where(tree, one).startswith("FINISHED/") for one in weight)


def test_tasks_start_by_priority_then_the_oldest_hour_then_the_longest(tree, spool):
    new = "30112215-00"
    pause = ["sleep", "0.005"]  # so that no two start in one millisecond
    order = [
        place_by_hand(tree, {"command": pause, "priority": 3}, lane=f"p3.c1@{new}", shard=new),
        place_by_hand(tree, {"command": pause}),
        place_by_hand(
            tree, {"command": pause, "time_limit": "2h"}, lane=f"c1.t2h@{new}", shard=new
        ),
        place_by_hand(
            tree, {"command": pause, "time_limit": "1m"}, lane=f"c1.t1m@{new}", shard=new
        ),
        place_by_hand(tree, {"command": pause}, lane=f"c1@{new}", shard=new),
        place_by_hand(tree, {"command": pause, "priority": -1}, lane="p-1.c1@26112215-00"),
    ]
    launch(tree, "--cores", "1")
    assert starts(tree) == order


def test_a_wide_task_is_not_starved_by_small_ones_that_never_end(tree, spool, begin):
    list(spool.submit_many({"command": ["sleep", "0.005"]} for _ in range(3000)))
    begin("--cores", "3", "--no-pin")
    eventually(lambda: count(tree, State.FINISHED) > 100, "small ones run")
    wide = spool.submit("true", cores_per_rank=3)
    eventually(lambda: is_in(tree, wide, "FINISHED/"), "the wide one ran")
    assert count(tree, State.READY) > 0


def test_short_tasks_use_the_room_that_is_kept_while_something_long_is_in_its_way(
    tree, spool, begin, tmp_path
):
    """The long one waits for the last of the short ones, and the wide one for the long one."""
    go = tmp_path / "go"
    spool.submit(f"until test -e {go}; do sleep 0.1; done", priority=9)
    short = {"command": ["sleep", "0.01"], "time_estimate": "1s", "priority": 1}
    list(spool.submit_many(short for _ in range(1000)))
    last = spool.submit(["touch", str(go)], time_estimate="1s")
    begin("--cores", "2", "--no-pin")
    eventually(lambda: count(tree, State.FINISHED) > 50, "short ones run")
    wide = spool.submit("true", cores_per_rank=2, priority=1)
    eventually(lambda: is_in(tree, wide, "FINISHED/"), "the wide one ran", 120)
    assert starts(tree)[-2:] == [last.id, wide.id]


def test_what_has_a_higher_priority_starts_before_what_was_claimed_ahead(tree, spool, begin):
    list(spool.submit_many({"command": ["sleep", "0.01"]} for _ in range(1500)))
    begin("--cores", "2", "--no-pin")
    eventually(lambda: count(tree, State.FINISHED) > 100, "they go fast")
    urgent = spool.submit("true", priority=5)
    eventually(lambda: is_in(tree, urgent, "FINISHED/"), "the urgent one ran")
    (began,) = events(tree, urgent.id, "start")
    after = [at for at, _ in started_at(tree) if at > began["time"]]
    before = [at for at, _ in started_at(tree) if submitted_at(urgent) < at < began["time"]]
    assert len(before) < 300 and len(after) > 0


def test_what_was_claimed_ahead_goes_back_once_tasks_last(tree, spool, begin):
    """Behind a long task it would wait, though another launcher had room."""
    list(spool.submit_many({"command": ["true"], "priority": 5} for _ in range(500)))
    long = list(spool.submit_many({"command": ["sleep", "1000"]} for _ in range(30)))
    begin("--cores", "1")
    eventually(lambda: any(runs(tree, one.id) for one in long), "a long one runs")
    eventually(lambda: count(tree, State.READY) == 29, "the others are free for all")
    begin("--cores", "1", "--no-pin")
    eventually(lambda: sum(runs(tree, one.id) for one in long) == 2, "another takes of them")


def test_memory_and_gpus_are_given_once_and_what_never_fits_is_left_with_the_reason(tree, spool):
    sleep = TIMED.format(0.1)
    common = {"workflow": "w", "requires": ["ib"]}
    memory = [spool.submit(sleep, memory="600M", **common).id for _ in range(2)]
    gpus = [spool.submit(sleep, gpus=1, **common).id for _ in range(2)]
    left = {
        spool.submit(["true"], memory="4G", **common).id: "too large",
        spool.submit(["true"], gpus=2, **common).id: "too large",
        spool.submit(["true"], workflow="w", requires=["x"]).id: "need a feature",
        spool.submit(["true"], workflow="other").id: "of another workflow",
        spool.submit(["true"], ranks_per_node=2, **common).id: "need several ranks",
    }
    words = ("--cores", "4", "--no-pin", "--memory", "1G", "--gpus", "1")
    told = launch(tree, *words, "--mode", "serial", "--workflow", "w", "--requires", "ib")
    assert most_at_once(tree, memory) == most_at_once(tree, gpus) == 1
    for task_id, reason in left.items():
        assert where(tree, task_id).startswith("READY/")
        assert reason in told.stderr
    assert "4 finished" in told.stderr


def test_a_program_is_bound_to_cores_unless_told_not_to_or_cores_are_shared(tree, spool):
    mine = sorted(os.sched_getaffinity(0))
    script = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    free = spool.submit(script)
    launch(tree, "--no-pin", "--quiet")
    shared = spool.submit(script)
    launch(tree, "--cores", str(len(mine) + 1), "--quiet")
    assert free.output == shared.output == f"{mine}\n"


def test_a_lane_that_says_less_than_its_manifest_is_not_believed(tree):
    wide = place_by_hand(tree, {"command": ["true"], "cores_per_rank": 2})
    held = place_by_hand(tree, {"command": ["true"], "hold": True})
    slow = place_by_hand(tree, {"command": ["true"]}, lane="c1.t2h@26112215-00")
    launch(tree, "--cores", "1")
    assert where(tree, wide) == "READY/c2@26112215-00"
    assert where(tree, held) == "WAITING/held@26112215-00"
    assert where(tree, slow) == "FINISHED/26112215-00"


def test_what_is_no_task_in_a_lane_is_rejected_and_the_launcher_goes_on(tree):
    lane = tree.group(State.READY, "c1@26112215-00")
    good = place_by_hand(tree, {"command": ["true"]}, name="good")
    place_by_hand(tree, b"", name="zero")
    place_by_hand(tree, b'{"command": ["echo", "\\ud800"]}', name="words")
    place_by_hand(tree, b'{"command": ["true"], "environment": {"A": "\\udc00"}}', name="env")
    place_by_hand(tree, {"command": ["true"], "colour": 1}, name="unknown")
    linked = place_by_hand(tree, {"command": ["true"]}, name="linked")
    os.rename(f"{lane}/{linked}", f"{tree.root}/elsewhere")
    os.symlink(f"{tree.root}/elsewhere", f"{lane}/{linked}")
    empty = layout.new_id("empty", "26112215-00")
    os.mkdir(f"{lane}/{empty}")
    os.mkfifo(f"{lane}/fifo")
    files.write_new(f"{lane}/{layout.new_id('file', '26112215-00')}", b"x")
    os.makedirs(f"{lane}/no-id")
    files.write_new(f"{lane}/no-id/manifest.json", b'{"command": ["true"]}')
    closed = place_by_hand(tree, {"command": ["true"]}, name="folder-history")
    os.mkdir(f"{lane}/{closed}/history.jsonl")
    link = place_by_hand(tree, {"command": ["true"]}, name="linked-history")
    os.symlink("/etc/passwd", f"{lane}/{link}/history.jsonl")
    launch(tree)
    assert where(tree, good) == "FINISHED/26112215-00"
    failed = {}
    for spot in tasks.spots(tree, (State.FAILED,)):
        assert spot.group.startswith("rejected@")
        told = history.fold(files.read(f"{spot.path(tree)}/history.jsonl"))
        assert told.stopped["reason"].isprintable()
        failed[layout.parse_id(spot.id).name] = told.stopped["reason"]
    ran = {layout.parse_id(one).name for one in starts(tree)}
    assert failed.keys() >= {"zero", "unknown", "linked", "empty", "fifo", "file"}
    assert not ran & failed.keys()
    assert ran | failed.keys() >= {"words", "env", "no-id", "folder-history", "linked-history"}
    assert list(tasks.spots(tree, (State.READY, State.RUNNING))) == []
    assert files.is_folder(f"{tree.root}/elsewhere")


def test_work_is_noticed_within_two_seconds_and_idleness_does_not_end_the_patient(tree, begin):
    patient = begin()
    command_submit = run_spool(tree.root, "submit", "--", "true")
    submitted = time.monotonic()
    task_id = command_submit.stdout.strip()
    eventually(lambda: where(tree, task_id).startswith("FINISHED/"), "it ran")
    assert time.monotonic() - submitted < 2.0
    arrival = f"{tree.state(State.CREATED)}/run-1"
    os.mkdir(arrival)
    files.write_new(f"{arrival}/manifest.json", b'{"command": ["true"]}')
    eventually(lambda: len(list(tasks.spots(tree, (State.FINISHED,)))) == 2, "it was admitted")
    assert patient.poll() is None
    patient.terminate()
    assert patient.wait(10) == 0


def test_an_idle_launcher_waits_for_what_is_arriving(tree):
    arrival = f"{tree.state(State.CREATED)}/run-1"
    os.mkdir(arrival)
    files.write_new(f"{arrival}/manifest.json", b'{"command": ["true"]}')
    launch(tree)
    assert len(list(tasks.spots(tree, (State.FINISHED,)))) == 1


def test_several_launchers_share_and_run_nothing_twice(tree, spool, begin):
    ids = [spool.submit("sleep 0.05").id for _ in range(60)]
    both = [begin("--cores", "2", "--no-pin", idle="0") for _ in range(2)]
    assert [one.wait(30) for one in both] == [0, 0]
    owners = set()
    for task_id in ids:
        assert where(tree, task_id).startswith("FINISHED/")
        (began,) = events(tree, task_id, "start")
        owners.add(began["owner"])
    assert len(owners) == 2


# -- time limits, and words from outside ---------------------------------------------------------


def test_a_task_over_its_limit_is_asked_then_killed(tree, spool):
    polite = spool.submit("exec sleep 1000", time_limit=0.3)
    deaf = spool.submit("trap '' TERM; while :; do sleep 0.05; done", time_limit=0.3, grace=0.3)
    trap = "trap 'echo saved; exit 0' USR1; while :; do sleep 0.05; done"
    words = ("submit", "--time-limit", "0.3", "--signal", "USR1@5s", "--", "sh", "-c", trap)
    saves = spool.task(run_spool(tree.root, *words).stdout.strip())
    launch(tree, "--cores", "3", "--no-pin")
    for task in (polite, deaf, saves):
        assert is_in(tree, task, "FAILED/timeout@")
    (ended,) = events(tree, polite.id, "exit")
    assert (ended["signal"], ended["timeout"]) == (signal.SIGTERM, True)
    assert events(tree, deaf.id, "exit")[0]["signal"] == signal.SIGKILL
    assert saves.exit_code == 0
    assert saves.output.endswith("saved\n")
    told = json.loads(run_spool(tree.root, "show", "--json", polite.id).stdout)
    assert "limit" in told["why"]


def test_a_running_task_is_cancelled_or_changed_through_its_owner_s_inbox(tree, spool, begin):
    begin("--cores", "3", "--no-pin")
    doomed = spool.submit("sleep 1000 & exec sleep 1000")
    hasty = spool.submit("exec sleep 1000", time_limit="1h")
    both = (doomed.id, hasty.id)
    eventually(lambda: all(runs(tree, one) for one in both), "they run")
    answer = run_spool(tree.root, "cancel", doomed.id, "--reason", "wrong beam")
    assert answer.returncode == 0, answer.stderr
    assert is_in(tree, doomed, "CANCELLED/")
    answer = run_spool(tree.root, "modify", hasty.id, "--time-limit", "1s")
    assert answer.returncode == 0, answer.stderr
    eventually(lambda: is_in(tree, hasty, "FAILED/timeout@"), "the new limit counts")
    assert words_of(tree, hasty.id)[:3] == ["start", "change", "exit"]


def test_a_queued_task_claimed_ahead_can_be_cancelled(tree, spool, begin):
    begin("--cores", "1")
    first = spool.submit("exec sleep 1000")
    eventually(lambda: runs(tree, first.id), "it runs")
    second = spool.submit(["true"])
    assert run_spool(tree.root, "cancel", second.id).returncode == 0
    assert is_in(tree, second, "CANCELLED/")
    assert words_of(tree, second.id) == ["cancelled"]


# -- what tasks leave behind ---------------------------------------------------------------------


def test_daemons_die_with_their_own_task_and_no_sooner(tree, spool, begin, tmp_path):
    left = {name: tmp_path / name for name in ("named", "nameless", "kept")}
    until = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    keeper = spool.submit(f"({DAEMON.format(left['kept'])}); {until}")
    begin("--cores", "2", "--no-pin")
    eventually(lambda: pid_in(left["kept"]), "a daemon of the long task")
    short = spool.submit(DAEMON.format(left["named"]))
    eventually(lambda: is_in(tree, short, "FINISHED/"), "the short task ended")
    assert not alive(pid_in(left["named"]))
    assert alive(pid_in(left["kept"]))
    spool.submit(DAEMON.format(left["nameless"]).replace("setsid", "env -i setsid"))
    eventually(lambda: pid_in(left["nameless"]), "a daemon without an environment")
    files.write_new(f"{tmp_path}/go", b"")
    eventually(lambda: is_in(tree, keeper, "FINISHED/"), "the long task ended")
    eventually(lambda: not any(map(alive, map(pid_in, left.values()))), "all daemons died")


def test_the_guard_kills_what_a_killed_launcher_ran_and_the_next_one_takes_over(
    tree, spool, begin, tmp_path
):
    line = f"test $SPOOL_ATTEMPT = 2 || {{ ({DAEMON.format(tmp_path / 'daemon')}); "
    task = spool.submit(line + f"echo $$ > {tmp_path}/first; exec sleep 1000; }}")
    doomed = begin()
    eventually(lambda: pid_in(tmp_path / "first"), "the program runs")
    first_guard = guard_of(doomed)
    os.kill(first_guard, signal.SIGKILL)
    eventually(lambda: guard_of(doomed) not in (0, first_guard), "another guard")
    doomed.kill()
    doomed.wait()
    left = [pid_in(tmp_path / name) for name in ("first", "daemon")]
    eventually(lambda: not any(map(alive, left)), "all died")
    launch(tree, "--quiet")
    assert is_in(tree, task, "FINISHED/")
    assert words_of(tree, task.id) == ["start", "lost", "start", "exit"]
    assert os.listdir(tree.state(State.RUNNING)) == []


def guard_of(launcher):
    """The process id of a launcher's guard, 0 while there is none."""
    listed = files.read(f"/proc/{launcher.pid}/task/{launcher.pid}/children") or b""
    for pid in map(int, listed.split()):
        if b"processes.py" in (files.read(f"/proc/{pid}/cmdline") or b""):
            return pid
    return 0


def test_a_launcher_s_guard_and_tasks_are_gone_when_it_has_left(tree, spool, begin):
    one = begin(idle="0")
    eventually(lambda: guard_of(one) or one.poll() is not None, "its guard")
    guard = guard_of(one)
    assert one.wait(20) == 0
    assert not alive(guard)


# -- leaving -------------------------------------------------------------------------------------


def test_sigterm_interrupts_and_requeues_at_no_cost(tree, spool, begin):
    counted = "test $SPOOL_ATTEMPT = 2 || exec sleep 1000"
    running = spool.submit(counted, max_attempts=1)
    queued = [spool.submit(["true"]) for _ in range(3)]
    one = begin("--cores", "1")
    eventually(lambda: any(runs(tree, task.id) for task in (running, *queued)), "one runs")
    eventually(lambda: runs(tree, running.id), "the long one runs")
    one.terminate()
    assert one.wait(10) == 0
    assert is_in(tree, running, "READY/")
    (said,) = events(tree, running.id, "interrupted")
    assert said["attempt"] == 1
    assert os.listdir(tree.state(State.RUNNING)) == []
    launch(tree)
    assert is_in(tree, running, "FINISHED/")
    assert "lost" not in words_of(tree, running.id)


def test_one_ctrl_c_lets_running_tasks_end_and_starts_nothing_new(tree, spool, begin, tmp_path):
    line = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    running = spool.submit(line, priority=1)
    waiting = [spool.submit(["true"]) for _ in range(5)]
    one = begin("--cores", "1")
    eventually(lambda: runs(tree, running.id), "it runs")
    one.send_signal(signal.SIGINT)
    eventually(lambda: "draining" in log_of(tree), "it drains")
    files.write_new(f"{tmp_path}/go", b"")
    assert one.wait(10) == 0
    assert is_in(tree, running, "FINISHED/")
    assert all(is_in(tree, task, "READY/") for task in waiting)
    assert starts(tree) == [running.id]


def test_a_second_ctrl_c_interrupts(tree, spool, begin):
    running = spool.submit("exec sleep 1000")
    one = begin("--cores", "1")
    eventually(lambda: runs(tree, running.id), "it runs")
    one.send_signal(signal.SIGINT)
    eventually(lambda: "draining" in log_of(tree), "it drains")
    assert one.poll() is None
    one.send_signal(signal.SIGINT)
    assert one.wait(10) == 0
    assert is_in(tree, running, "READY/")
    assert words_of(tree, running.id) == ["start", "interrupted"]


def log_of(tree):
    """What the only launcher says in its log."""
    (owner,) = os.listdir(tree.folder("launchers"))
    return (files.read(tree.owner(owner, "log")) or b"").decode()


def test_before_its_time_is_up_a_launcher_interrupts_and_starts_nothing_too_long(tree, spool):
    short = spool.submit(["true"])
    running = spool.submit("exec sleep 1000", grace=0)
    long = spool.submit(["true"], time_estimate="2m")
    begun = time.monotonic()
    told = launch(tree, "--cores", "2", "--no-pin", "--time-limit", "8s")
    assert time.monotonic() - begun < 11
    assert is_in(tree, short, "FINISHED/")
    assert is_in(tree, long, "READY/c1.t2m@")
    assert is_in(tree, running, "READY/c1.t5s@"), "a lane about as long as the time it had"
    assert words_of(tree, running.id) == ["start", "interrupted"]
    assert "too long for the time left" in told.stderr


# -- other owners --------------------------------------------------------------------------------

FOREIGN = "launcher.otherhost.deadbeef.1.abcdef"


def foreign_owner(tree):
    """A launcher of another host that holds a task it has started; the task's id."""
    task_id = place_by_hand(tree, {"command": ["true"]})
    os.mkdir(tree.owner(FOREIGN))
    files.write_new(tree.owner(FOREIGN, "heartbeat"), b"000000000000 00000000\n")
    files.write_new(tree.owner(FOREIGN, "launcher.json"), b'{"kind": "launcher"}')
    os.mkdir(tree.group(State.RUNNING, FOREIGN))
    claimed = tree.task(State.RUNNING, FOREIGN, task_id)
    files.move(tree.task(State.READY, "c1@26112215-00", task_id), claimed)
    files.append(f"{claimed}/history.jsonl", history.line("start", attempt=1, owner=FOREIGN))
    return task_id


def test_a_launcher_stays_until_another_s_silence_is_decided_and_takes_over(impatient):
    task_id = foreign_owner(impatient)
    launch(impatient, "--quiet")
    assert where(impatient, task_id) == "FINISHED/26112215-00"
    assert words_of(impatient, task_id) == ["start", "lost", "start", "exit"]
    assert not files.exists(impatient.group(State.RUNNING, FOREIGN))


def test_a_launcher_leaves_a_living_owner_of_another_host_alone(impatient, begin):
    task_id = foreign_owner(impatient)
    one = begin(idle="0")
    beats = 0

    def beat():
        nonlocal beats
        beats += 1
        files.overwrite(impatient.owner(FOREIGN, "heartbeat"), b"%012d" % beats)
        return one.poll() is not None

    eventually(beat, "it leaves")
    assert one.returncode == 0
    assert where(impatient, task_id) == f"RUNNING/{FOREIGN}"


def test_a_launcher_whose_claims_were_taken_kills_its_tasks_and_says_so(
    impatient, spool, begin, tmp_path
):
    task = spool.submit(f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    one = begin()
    eventually(lambda: pid_in(tmp_path / "pid"), "it runs")
    (owner,) = os.listdir(impatient.state(State.RUNNING))
    os.rename(impatient.group(State.RUNNING, owner), f"{impatient.root}/tmp/taken")
    assert one.wait(10) == 4
    assert not alive(pid_in(tmp_path / "pid"))
    assert files.exists(f"{impatient.root}/tmp/taken/{task.id}")
    assert owner not in os.listdir(impatient.state(State.RUNNING))


def test_a_directory_replaced_by_a_link_to_a_neighbour_tells_nothing_there(tree, spool):
    neighbour = spool.submit("sleep 1.5; echo ran", name="neighbour")
    swap = 'sleep 0.5; here=$PWD; cd ..; rm -rf "$here"; ln -s neighbour.* "$here"'
    bad = spool.submit(swap, name="bad")
    launch(tree, "--cores", "2", "--no-pin")
    assert where(tree, neighbour.id).startswith("FINISHED/")
    assert words_of(tree, neighbour.id) == ["start", "exit"]
    assert where(tree, bad.id).startswith("FAILED/vanished@")
    assert os.path.isdir(path_of(tree, bad.id)) and not os.path.islink(path_of(tree, bad.id))


def test_a_removed_record_is_made_again_and_the_work_goes_on(impatient, spool, begin):
    begin("--cores", "1")
    (name,) = os.listdir(impatient.folder("launchers"))
    files.remove_tree(impatient.owner(name))
    eventually(lambda: files.exists(impatient.owner(name, "heartbeat")), "it beats again")
    task = spool.submit("true")
    eventually(lambda: is_in(impatient, task, "FINISHED/"), "it still works")


def test_a_request_that_is_nonsense_stops_nobody(tree, spool, begin):
    task = spool.submit("sleep 1000")
    begin("--cores", "1")
    eventually(lambda: runs(tree, task.id), "it runs")
    (name,) = os.listdir(tree.folder("launchers"))
    files.write_new(tree.request(name, "change", task.id), b"[" * 100_000)
    eventually(lambda: files.names(tree.owner(name, "inbox")) == [], "it was read")
    spool.cancel(task, reason="enough")
    assert where(tree, task.id).startswith("CANCELLED/")
    (told,) = events(tree, task.id, "cancelled")
    assert told["reason"] == "enough"


def test_a_terminal_that_goes_away_takes_no_work_along(tree, spool):
    list(spool.submit_many({"command": ["sleep", "0.3"]} for _ in range(10)))
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher"]
    words += ["--cores", "1", "--no-pin", "--idle-timeout", "0"]
    with subprocess.Popen(words, stdout=slave, stderr=slave, start_new_session=True):
        os.close(slave)
        eventually(lambda: count(tree, State.FINISHED) > 0, "it works")
        os.close(master)
    assert count(tree, State.FINISHED) == 10


def test_a_hangup_that_is_to_be_ignored_interrupts_nothing(tree, spool, begin):
    task = spool.submit("sleep 2")
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup(1) does
    try:
        one = begin("--cores", "1", idle="0")
    finally:
        signal.signal(signal.SIGHUP, old)
    eventually(lambda: runs(tree, task.id), "it runs")
    one.send_signal(signal.SIGHUP)
    assert one.wait(20) == 0
    assert where(tree, task.id).startswith("FINISHED/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files immutable")
def test_a_task_that_cannot_be_touched_is_set_aside_and_the_rest_goes_on(tree, spool):
    bad = spool.submit("chattr +i history.jsonl", name="bad", priority=5)
    good = [spool.submit("true") for _ in range(5)]
    try:
        launch(tree, "--cores", "1")
        assert all(is_in(tree, task, "FINISHED/") for task in good)
        if not where(tree, bad.id).startswith("RUNNING/"):
            pytest.skip("this file system knows no immutable files")
        launch(tree, "--cores", "1")  # and its taker is not stopped by it either
    finally:
        subprocess.run(["chattr", "-R", "-i", tree.root], check=False, stderr=subprocess.DEVNULL)


# -- what it says --------------------------------------------------------------------------------


def test_the_journal_tells_of_the_launcher_and_of_every_end(tree, spool):
    good = spool.submit(["true"], cores_per_rank=2, workflow="scan", memory="100M")
    bad = spool.submit("exit 3")
    told = launch(tree, "--cores", "2", "--no-pin", "--json")
    summary = json.loads(told.stdout)
    assert (summary["FINISHED"], summary["FAILED"]) == (1, 1)
    opened, *ends, closed = journal.read(tree)
    assert (opened["what"], closed["what"]) == ("opened", "closed")
    assert opened["owner"] == closed["owner"] == summary["owner"]
    assert opened["cores"] == 2
    by_id = {event["id"]: event for event in ends}
    assert by_id[good.id]["state"] == "FINISHED"
    assert by_id[good.id]["cores"] == 2
    assert by_id[good.id]["memory_mb"] == 128
    assert by_id[good.id]["workflow"] == "scan"
    assert by_id[good.id]["submitted"] <= by_id[good.id]["started"] <= by_id[good.id]["time"]
    assert (by_id[bad.id]["state"], by_id[bad.id]["code"]) == ("FAILED", 3)
    assert by_id[bad.id]["group"].startswith("exit-3@")


def test_a_pipe_gets_a_summary_and_a_terminal_a_live_line(tree, spool):
    spool.submit(["true"])
    told = launch(tree)
    assert re.fullmatch(r"launcher\.\S+: 1 finished\n", told.stderr)
    assert told.stdout == ""
    assert launch(tree, "--quiet").stderr == ""
    spool.submit("exit 1")
    seen = on_a_terminal([sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher"])
    assert "\r" in seen.rstrip()
    assert "running" in seen
    assert "1 failed" in seen


def on_a_terminal(words):
    """What a program writes to a pseudo-terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen([*words, "--idle-timeout", "1s"], stderr=follower) as one:
        os.close(follower)
        seen = b""
        while part := read_terminal(leader):
            seen += part
        assert one.wait(20) == 0
    os.close(leader)
    return seen.decode()


def read_terminal(leader):
    try:
        return os.read(leader, 4096)
    except OSError:  # EIO: the other side is closed
        return b""


# -- launchers inside tasks ----------------------------------------------------------------------


def test_a_launcher_may_run_inside_a_task_of_the_same_spool_or_of_another(tree, spool, tmp_path):
    inner = make_tree(tmp_path / "inner", QUICK)
    theirs = Spool(inner.root).submit("echo $SPOOL_NAME $SPOOL_LAUNCHER", name="theirs")
    ours = spool.submit("echo $SPOOL_LAUNCHER", name="ours", cores_per_rank=2)
    words = [sys.executable, "-m", "spool.cli"]
    rest = ["launcher", "--quiet", "--idle-timeout", "0", "--cores", "2", "--no-pin"]
    spool.submit([*words, "--spool", inner.root, *rest], name="outer")
    spool.submit([*words, *rest], name="nested")  # $SPOOL is set for it
    launch(tree, "--cores", "1")
    assert where(inner, theirs.id).startswith("FINISHED/")
    assert theirs.output.startswith("theirs launcher.")
    assert is_in(tree, ours, "FINISHED/")
    outer = {event["owner"] for event in events(tree, starts(tree)[0], "start")}
    assert ours.output.strip() not in outer
