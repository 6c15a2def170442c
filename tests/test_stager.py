"""Stages as real processes: hooks, handlers, whoever is killed, and what is then found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import eventually, make_tree, run_spool, where
from test_faults import mounted
from test_launcher import QUICK, alive, events, path_of, pid_in, words_of

from spool.api import Spool
from spool.queue import files, layout, processes
from spool.queue.layout import State

BIN = str(Path(sys.executable).parent)
WAITS = "echo $$ > pid.new; mv pid.new {0}; exec sleep 1000"


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "spool", QUICK)


@pytest.fixture
def begin(tree):
    """begin("--stage") starts a launcher or stager that stays; it dies with the test."""
    begun = []

    def start(*words):
        options = ["--spool", tree.root, "launcher", "--quiet", "--idle-timeout", "never"]
        one = subprocess.Popen([sys.executable, "-m", "spool.cli", *options, *words])
        begun.append(one)
        return one

    yield start
    for one in begun:
        one.kill()
        one.wait()
    for name in os.listdir(tree.folder("launchers")):
        processes.kill_marked(name)
        parts = layout.parse_owner(name)
        if parts and parts.kind == "stager":
            with suppress(ProcessLookupError):
                os.kill(parts.pid, signal.SIGKILL)


def launch(tree, *words):
    """One launcher, and its stager, until there is nothing left to do."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    left = run_spool(tree.root, "launcher", "--idle-timeout", "0", *words, env=environment)
    assert left.returncode == 0, left.stderr
    return left


def read(tree, task, name):
    return Path(path_of(tree, task.id), name).read_text()


def is_in(tree, task, place):
    return where(tree, task.id).startswith(place)


def told(tree, task, what):
    """The last line of a kind."""
    return events(tree, task.id, what)[-1]


# -- Balsam's single tasks -----------------------------------------------------------------------


def test_normal(tree, spool, tmp_path):
    (tmp_path / "in.txt").write_text("data")
    task = spool.submit(
        "cat a/in.txt; echo run >> trail",
        stage_in=[{"source": f"{tmp_path}/in.txt", "target": "a/"}],
        preprocess="test -f a/in.txt && echo pre $SPOOL_STAGE $SPOOL_ATTEMPT | tee trail",
        postprocess=["sh", "-c", "echo post $SPOOL_STAGE $SPOOL_OUTCOME $SPOOL_EXIT_CODE >> trail"],
        stage_out=[{"source": "tr*", "target": f"{tmp_path}/out/"}],
    )
    assert is_in(tree, task, "READY/prepare.c1@")
    left = launch(tree)
    assert "1 finished" in left.stderr
    assert is_in(tree, task, "FINISHED/")
    trail = "pre prepare 1\nrun\npost close success 0\n"
    assert (tmp_path / "out" / "trail").read_text() == trail
    assert read(tree, task, "output") == "data"
    assert read(tree, task, "preprocess.log") == "pre prepare 1\n"
    staged = ["staging", "prepared", "start", "exit", "staging", "closed"]
    assert words_of(tree, task.id) == staged
    assert not Path(path_of(tree, task.id), layout.LANDING).exists()
    assert run_spool(tree.root, "check", "--deep").stdout == "nothing is wrong\n"


def test_error_unhandled(tree, spool):
    task = spool.submit("echo last words; exit 3", postprocess="echo never")
    launch(tree)
    assert is_in(tree, task, "FAILED/exit-3@")
    assert words_of(tree, task.id) == ["start", "exit"]


def test_error_handled(tree, spool):
    task = spool.submit(
        "exit 3",
        on_error="echo $SPOOL_OUTCOME $SPOOL_EXIT_CODE; echo finish harmless > $SPOOL_NEXT",
    )
    launch(tree)
    assert is_in(tree, task, "FINISHED/")
    assert read(tree, task, "handler.log") == "exit-3 3\n"
    assert told(tree, task, "decided")["reason"] == "harmless"


def test_timeout_unhandled(tree, spool):
    task = spool.submit("sleep 100", time_limit=0.2, on_error="echo finish > $SPOOL_NEXT")
    launch(tree)
    assert is_in(tree, task, "FAILED/timeout@")


def test_timeout_automatic_retry_with_more_time(tree, spool):
    policy = {"timeout": {"attempts": 3, "set": {"time_limit": "*20"}}}
    task = spool.submit("sleep 1", time_limit=0.2, retry=policy)
    launch(tree)
    assert is_in(tree, task, "FINISHED/")
    assert told(tree, task, "queued")["set"] == {"time_limit": 4}


def test_timeout_handler(tree, spool):
    task = spool.submit(
        "test -f mended || sleep 100",
        time_limit=0.3,
        on_timeout="touch mended; echo retry time_limit=+1m priority=5 > $SPOOL_NEXT",
    )
    launch(tree)
    assert is_in(tree, task, "FINISHED/")
    assert told(tree, task, "decided")["set"] == {"time_limit": "+1m", "priority": 5}
    assert told(tree, task, "queued")["set"] == {"time_limit": 61, "priority": 5}


def test_an_interrupted_run_is_not_prepared_again(tree, spool, begin):
    task = spool.submit(
        "test -f go || { touch went; exec sleep 100; }", preprocess="echo pre >> trail"
    )
    one = begin()
    eventually(lambda: is_in(tree, task, "RUNNING/launcher"), "it runs")
    eventually(lambda: os.path.exists(f"{path_of(tree, task.id)}/went"), "it is under way")
    Path(path_of(tree, task.id), "go").touch()
    one.terminate()
    one.wait()
    launch(tree)
    assert is_in(tree, task, "FINISHED/")
    assert read(tree, task, "trail") == "pre\n"
    assert "interrupted" in words_of(tree, task.id)


def test_a_rescue_takes_its_place_for_those_that_wait(tree, spool):
    line = 'echo rescue $(spool submit --name rescuer -- touch saved) > "$SPOOL_NEXT"'
    lost = spool.submit("sleep 100", name="parent", time_limit=0.3, on_timeout=line)
    child = spool.submit("true", after=[lost.id])
    launch(tree)
    assert is_in(tree, lost, "FAILED/replaced@")
    assert is_in(tree, child, "FINISHED/")
    rescuer = told(tree, lost, "replaced")["with"]
    assert rescuer == told(tree, lost, "decided")["id"]
    assert where(tree, rescuer).startswith("FINISHED/")


def test_a_handler_may_submit_its_rescuer_in_the_task_s_place(tree, spool):
    line = 'spool submit --name rescuer --replaces "$SPOOL_TASK" --key r -- true'
    lost = spool.submit("exit 1", on_error=line)
    child = spool.submit("true", after=[lost.id])
    launch(tree)
    assert is_in(tree, lost, "FAILED/replaced@"), read(tree, lost, "handler.log")
    assert is_in(tree, child, "FINISHED/")


# -- handlers that do not do their part ----------------------------------------------------------


NONSENSE = [
    ("true", "on_error decided nothing"),
    ("echo finish > $SPOOL_NEXT; exit 4", "on_error: exit code 4"),
    ("echo oops; kill -9 $$", "on_error: killed by signal 9"),
    ("echo dunno > $SPOOL_NEXT", "nonsense, 'dunno': expected retry, finish, fail, rescue"),
    ("echo retry memory > $SPOOL_NEXT", "expected KEY=VALUE"),
    ("echo retry command=x > $SPOOL_NEXT", "cannot be changed"),
    ("echo retry nodes=*x > $SPOOL_NEXT", "a factor such as *2"),
    ("echo rescue nobody > $SPOOL_NEXT", "the id of the task"),
    ("echo rescue $SPOOL_TASK > $SPOOL_NEXT", "there is no other task"),
    ("printf 'fail\\nfinish\\n' > $SPOOL_NEXT", "expected one line"),
    ("printf 'fail \"' > $SPOOL_NEXT", "No closing quotation"),
    ("mkdir $SPOOL_NEXT", "decided nothing"),
    ("ln -s /etc/passwd $SPOOL_NEXT", "decided nothing"),
    ("head -c 100000 /dev/zero > $SPOOL_NEXT", "nonsense"),
    ("rm -f /nowhere; no-such-program", "on_error: exit code 127"),
]
"""What a handler does, and the fault that is told of it."""


def test_silence_failure_and_nonsense_fail_and_are_told(tree, spool):
    ids = [spool.submit("exit 7", on_error=line) for line, _ in NONSENSE]
    launch(tree)
    for task, (line, says) in zip(ids, NONSENSE, strict=True):
        assert is_in(tree, task, "FAILED/exit-7@"), line
        assert says in told(tree, task, "decided")["error"], line
        assert says in run_spool(tree.root, "show", task.id).stdout, line


def test_a_handler_cannot_ask_for_ever(tree, spool):
    task = spool.submit("exit 1", on_error="echo retry > $SPOOL_NEXT", max_handled=3)
    launch(tree)
    assert is_in(tree, task, "FAILED/exit-1@")
    assert len(events(tree, task.id, "start")) == 4


def test_a_hook_that_hangs_is_stopped_with_all_it_started_and_keeps_nobody_back(tree, spool):
    stuck = spool.submit(
        "true", preprocess="trap '' TERM; setsid sleep 1000 & echo $! > pid; wait", hook_limit=0.5
    )
    quick = [spool.submit("true", preprocess="true") for _ in range(5)]
    launch(tree)
    assert is_in(tree, stuck, "FAILED/prepare@")
    assert "stopped at its limit" in told(tree, stuck, "broke")["reason"]
    assert not alive(pid_in(f"{path_of(tree, stuck.id)}/pid"))
    assert all(is_in(tree, one, "FINISHED/") for one in quick)
    last = max(told(tree, one, "prepared")["time"] for one in quick)
    assert last < told(tree, stuck, "broke")["time"]


def test_a_hook_that_fails_says_why_and_a_person_may_try_again(tree, spool):
    task = spool.submit("true", preprocess="test -f ../../../mended || { echo no luck; exit 2; }")
    launch(tree)
    assert is_in(tree, task, "FAILED/prepare@")
    shown = run_spool(tree.root, "show", task.id).stdout
    assert "preprocess: exit code 2: no luck" in shown
    Path(tree.root, "mended").touch()
    spool.retry(task)
    launch(tree)
    assert is_in(tree, task, "FINISHED/")
    assert read(tree, task, "preprocess.log.1") == "no luck\n"


def test_what_failed_after_the_run_is_done_again_without_it(tree, spool):
    task = spool.submit("echo run >> trail", postprocess="test -f ../../../mended")
    launch(tree)
    assert is_in(tree, task, "FAILED/close@")
    Path(tree.root, "mended").touch()
    again = run_spool(tree.root, "retry", "--close", task.id)
    assert again.stdout.startswith("READY/close."), again.stderr
    launch(tree)
    assert is_in(tree, task, "FINISHED/")
    assert read(tree, task, "trail") == "run\n"
    refused = run_spool(tree.root, "retry", "--close", spool.submit("true").id)
    assert refused.returncode == 1


@pytest.mark.parametrize("what", ["rm -rf $PWD", "rm history.jsonl", ": > manifest.json"])
def test_a_hook_that_destroys_its_task_has_made_it_vanish(tree, spool, what):
    task = spool.submit("true", preprocess=what)
    other = spool.submit("true", preprocess="true")
    launch(tree)
    assert is_in(tree, task, "FAILED/vanished@")
    assert is_in(tree, other, "FINISHED/"), (where(tree, other.id), words_of(tree, other.id))


def test_with_fresh_each_attempt_is_prepared_in_an_empty_directory(tree, spool):
    task = spool.submit(
        "cat made; exit 1", preprocess="test ! -e made && echo $SPOOL_ATTEMPT > made",
        fresh=True, max_attempts=3,
    )  # fmt: skip
    launch(tree)
    assert is_in(tree, task, "FAILED/exit-1@")
    assert read(tree, task, "output") == "3\n"
    assert [read(tree, task, f"attempt-{n}/made") for n in (1, 2)] == ["1\n", "2\n"]


# -- people --------------------------------------------------------------------------------------


def test_kill_during_preprocess(tree, spool, begin):
    task = spool.submit("true", preprocess=WAITS.format("pid"))
    begin()
    eventually(lambda: is_in(tree, task, "RUNNING/stager"), "it is staged")
    eventually(lambda: os.path.exists(f"{path_of(tree, task.id)}/pid"), "the hook is under way")
    pid = pid_in(f"{path_of(tree, task.id)}/pid")
    done = run_spool(tree.root, "cancel", task.id)
    assert done.stdout.startswith("CANCELLED/"), done.stderr
    assert not alive(pid)
    assert "start" not in words_of(tree, task.id)


def test_a_change_asked_for_while_a_hook_runs_is_obeyed(tree, spool, begin):
    task = spool.submit("true", preprocess="while [ ! -f go ]; do sleep 0.1; done")
    begin("--stage")
    eventually(lambda: is_in(tree, task, "RUNNING/stager"), "it is staged")
    done = run_spool(tree.root, "modify", task.id, "--priority", "7")
    assert done.returncode == 0, done.stderr
    Path(path_of(tree, task.id), "go").touch()
    eventually(lambda: is_in(tree, task, "READY/p7.c1@"), "it is prepared, with its new priority")


def test_a_stager_alone_leaves_runs_to_others(tree, spool):
    task = spool.submit("true", preprocess="true")
    plain = spool.submit("true")
    launch(tree, "--stage")
    assert is_in(tree, task, "READY/c1@") and is_in(tree, plain, "READY/c1@")


def test_a_launcher_that_may_not_stage_leaves_stages_to_others(tree, spool):
    files.replace(tree.settings, f"format = 1\n{QUICK}[staging]\nlaunchers = false\n".encode())
    task = spool.submit("true", preprocess="true")
    left = launch(tree)
    assert is_in(tree, task, "READY/prepare.") and "need a stager" in left.stderr


def test_a_stager_keeps_to_its_workflow_and_tags(tree, spool):
    ours = spool.submit("true", preprocess="true", workflow="w", tags=["x"])
    others = [spool.submit("true", preprocess="true", **more)
              for more in ({"workflow": "w"}, {"tags": ["x"]})]  # fmt: skip
    launch(tree, "--workflow", "w", "--tag", "x")
    assert is_in(tree, ours, "FINISHED/")
    assert all(is_in(tree, one, "READY/prepare.") for one in others)


# -- whoever is killed ---------------------------------------------------------------------------

PHASES = {
    "stage_in": {"stage_in": [{"source": "x", "target": "y", "via": "slow"}]},
    "preprocess": {"preprocess": WAITS.format("pid")},
    "postprocess": {"postprocess": WAITS.format("pid")},
    "stage_out": {"stage_out": [{"source": "output", "target": "/x", "via": "slow"}]},
    "handler": {"command": "exit 1", "on_error": WAITS.format("pid")},
}
SLOW = '[transfers]\nslow = "if test -f go; then touch {target} {source}; else echo $$ > pid;' \
    ' exec sleep 1000; fi"\n'  # fmt: skip


@pytest.fixture
def phase(tree, spool, request):
    """A task that waits in one phase until there is `go`, then goes on."""
    files.replace(tree.settings, f"format = 1\n{QUICK}{SLOW}".encode())
    keys = {"command": "true", **PHASES[request.param]}
    for key, value in keys.items():
        if value == WAITS.format("pid"):
            keys[key] = (
                f"test -f go && {{ echo finish > ${{SPOOL_NEXT:-/dev/null}}; exit; }}; {value}"
            )
    return spool.submit(**keys)


each_phase = pytest.mark.parametrize("phase", sorted(PHASES), indirect=True)


def hangs(tree, task):
    """The process that hangs in a stage; 0 before it is there."""
    return is_in(tree, task, "RUNNING/stager") and pid_in(f"{path_of(tree, task.id)}/pid")


def stager_of(tree, task):
    parts = layout.parse_owner(where(tree, task.id).split("/")[1])
    assert parts and parts.kind == "stager"
    return parts.pid


@each_phase
def test_a_stager_killed_in_a_phase_is_taken_over(tree, phase, begin):
    begin()
    eventually(lambda: hangs(tree, phase), "it hangs")
    hung, path = hangs(tree, phase), path_of(tree, phase.id)
    Path(path, "go").touch()
    os.kill(stager_of(tree, phase), signal.SIGKILL)
    eventually(lambda: is_in(tree, phase, "FINISHED/"), "another stager did it again")
    assert not alive(hung)
    assert told(tree, phase, "lost")["stage"] in ("prepare", "close")
    assert len(events(tree, phase.id, "start")) == 1


@each_phase
def test_a_launcher_told_to_end_interrupts_its_stager_and_nothing_is_stuck(tree, phase, begin):
    one = begin()
    eventually(lambda: hangs(tree, phase), "it hangs")
    hung, path = hangs(tree, phase), path_of(tree, phase.id)
    Path(path, "go").touch()
    one.terminate()
    assert one.wait(timeout=30) == 0
    assert is_in(tree, phase, "READY/") and not alive(hung)
    assert told(tree, phase, "interrupted")["stage"] in ("prepare", "close")
    launch(tree)
    assert is_in(tree, phase, "FINISHED/")


@pytest.mark.parametrize("phase", ["preprocess", "handler"], indirect=True)
def test_a_killed_launcher_takes_its_stager_along(tree, phase, begin):
    one = begin()
    eventually(lambda: hangs(tree, phase), "it hangs")
    hung, pid = hangs(tree, phase), stager_of(tree, phase)
    Path(path_of(tree, phase.id), "go").touch()
    one.kill()
    one.wait()
    eventually(lambda: not alive(pid) and not alive(hung), "nothing of it is left")
    launch(tree)
    assert is_in(tree, phase, "FINISHED/")


def test_a_stage_whose_stagers_die_too_often_has_failed(tree, spool, begin):
    task = spool.submit("true", preprocess=WAITS.format("pid"), max_lost=1)
    begin()
    for _ in range(2):
        eventually(lambda: hangs(tree, task), "it hangs")
        hung, pid = hangs(tree, task), stager_of(tree, task)
        files.unlink(f"{path_of(tree, task.id)}/pid")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda hung=hung: not alive(hung), "its hook is gone")
    eventually(lambda: is_in(tree, task, "FAILED/prepare@"), "it has failed")


def test_nothing_is_left_waiting_where_each_is_killed_at_random(tree, spool, begin):
    """Ten tasks with every stage; stagers killed again and again while they go through."""
    line = "sleep 0.05; echo {} >> trail"
    made = [
        spool.submit(
            line.format("run"), preprocess=line.format("pre"), postprocess=line.format("post"),
            max_lost=100,
        )
        for _ in range(10)
    ]  # fmt: skip
    begin()
    deadline = time.monotonic() + 60
    kills = 0
    while not all(is_in(tree, one, "FINISHED/") for one in made):
        assert time.monotonic() < deadline, run_spool(tree.root, "status").stdout
        time.sleep(0.3)
        found = [layout.parse_owner(name) for name in files.names(tree.state(State.RUNNING))]
        for parts in found if kills < 6 else ():
            if parts and parts.kind == "stager":
                with suppress(ProcessLookupError):
                    os.kill(parts.pid, signal.SIGKILL)
                    kills += 1
    assert kills
    for one in made:
        trail = read(tree, one, "trail").split()
        assert trail.count("run") == 1 and trail[-1] == "post" and trail[0] == "pre"


# -- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_hook_that_fills_the_disk_fails_and_nothing_is_lost(small_disk):
    tree = make_tree(small_disk / "spool", QUICK)
    spool = Spool(tree.root)
    greedy = spool.submit("true", preprocess="cat /dev/zero > fill")
    other = spool.submit("true", preprocess="sleep 0.5")
    options = ["--spool", tree.root, "launcher", "--quiet", "--idle-timeout", "0"]
    with subprocess.Popen([sys.executable, "-m", "spool.cli", *options]) as one:
        eventually(lambda: full(tree, greedy), "nothing can be written, the hook is over")
        fill = f"{path_of(tree, greedy.id)}/fill"
        os.truncate(fill, 0)
        assert one.wait(timeout=60) == 0
    assert is_in(tree, greedy, "FAILED/prepare@")
    assert "preprocess: exit code 1" in told(tree, greedy, "broke")["reason"]
    assert is_in(tree, other, "FINISHED/"), (where(tree, other.id), words_of(tree, other.id))


def full(tree, task):
    """Whether the disk is full, and the hook that filled it has ended: its last line may have had
    room in the page that its history begins with."""
    if is_in(tree, task, "FAILED/prepare@"):
        return True
    if os.statvfs(tree.root).f_bavail or not is_in(tree, task, "RUNNING/stager"):
        return False
    name = where(tree, task.id).split("/")[1]
    return not [pid for pid in processes.marked(name) if alive(pid) and holds(pid, "cat")]


def holds(pid, word):
    return word.encode() in (files.read(f"/proc/{pid}/cmdline") or b"")


# -- set-up scripts and containers ---------------------------------------------------------------


def test_a_setup_script_is_sourced_before_the_command(tree, spool, tmp_path):
    script = tmp_path / "env.sh"
    script.write_text('test $# = 0 || exit 9\nexport GREETING="hi there"\n')
    made = spool.submit(["sh", "-c", 'echo "$GREETING $0 $1"', "a b", "c"], setup=str(script))
    gone = spool.submit("true", setup="/no/such/env.sh")
    script2 = tmp_path / "bad.sh"
    script2.write_text("return 3\n")
    bad = spool.submit("true", setup=str(script2))
    launch(tree)
    assert read(tree, made, "output") == "hi there a b c\n"
    assert is_in(tree, gone, "FAILED/exit-127@")
    assert "the set-up script /no/such/env.sh is missing" in told(tree, gone, "exit")["error"]
    assert is_in(tree, bad, "FAILED/exit-3@")


def test_a_container_by_template(tree, spool, tmp_path):
    box = tmp_path / "box"
    box.write_text('#!/bin/sh\necho "in $1 at $2 with $3 $4"; shift 4; exec "$@"\n')
    box.chmod(0o755)
    line = f'[containers]\nbox = "{box} {{image}} {{folder}} {{options}} {{command}}"\n'
    files.replace(tree.settings, f"format = 1\n{QUICK}{line}".encode())
    container = {"image": "my.sif", "kind": "box", "options": ["-a", "b c"]}
    made = spool.submit(["echo", "a b"], container=container)
    unknown = spool.submit("true", container={"image": "x", "kind": "crate"})
    launch(tree)
    first, second = read(tree, made, "output").splitlines()
    assert first.startswith("in my.sif at ") and first.endswith(" with -a b c")
    assert second == "a b"
    assert is_in(tree, unknown, "FAILED/exit-127@")
    assert "known are apptainer, singularity, podman, box" in told(tree, unknown, "exit")["error"]


def test_a_container_of_namespaces_really_contains(tree, spool):
    """unshare as the container: the program sees a pid namespace of its own."""
    probe = subprocess.run(["unshare", "-r", "-p", "-f", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("unshare needs user namespaces")
    line = '[containers]\ndefault = "unshare -r -p -f {command}"\n'
    files.replace(tree.settings, f"format = 1\n{QUICK}{line}".encode())
    made = spool.submit(["sh", "-c", "echo $$"], container="whatever")
    launch(tree)
    assert read(tree, made, "output") == "1\n"


def test_the_format_s_words_of_a_stage_can_be_read(tree, spool):
    task = spool.submit("exit 1", preprocess="true", on_error="true")
    launch(tree)
    shown = json.loads(run_spool(tree.root, "show", "--json", task.id).stdout)
    assert "exit code 1" in shown["why"] and "on_error decided nothing" in shown["why"]
