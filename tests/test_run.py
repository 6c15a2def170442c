"""One task as processes: what it finds when it starts, and what its end is called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import make_tree, run_spool, where

from spool.api import Spool
from spool.launcher import run
from spool.queue import files, history, tasks
from spool.queue.layout import State

REPORT = """
import json, os, sys
json.dump({
    "environment": dict(os.environ),
    "cpus": sorted(os.sched_getaffinity(0)),
    "input": sys.stdin.read(),
    "input_is": os.readlink("/proc/self/fd/0"),
    "cwd": os.getcwd(),
    "leads": os.getpid() == os.getsid(0) == os.getpgid(0),
}, sys.stdout)
"""
AROUND_US = {
    "PMI_RANK": "0",
    "PMIX_NAMESPACE": "x",
    "OMPI_COMM_WORLD_RANK": "1",
    "HYDRA_X": "1",
    "MPI_LOCALRANKID": "0",
    "I_MPI_X": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "SPOOL_TASK": "outer",
    "SPOOL_NAME": "outer",
    "OMP_NUM_THREADS": "77",
    "CUDA_VISIBLE_DEVICES": "4,6",
    "OF_THE_USER": "kept",
}
FAIL_ONCE = "test -e been || { touch been; %s exit 1; }; echo second"

TASKS = {
    "plain": {"command": [sys.executable, "-c", REPORT]},
    "wide": {
        "command": [sys.executable, "-c", REPORT],
        "cores_per_rank": 2,
        "memory": "1G",
        "workflow": "scan",
        "time_limit": "10m",
    },
    "one-gpu": {"command": [sys.executable, "-c", REPORT], "gpus": 1},
    "two-gpus": {"command": [sys.executable, "-c", REPORT], "gpus": 2},
    "own-words": {
        "command": [sys.executable, "-c", REPORT],
        "environment": {
            "OMP_NUM_THREADS": "9",
            "CUDA_VISIBLE_DEVICES": "7",
            "PMI_RANK": "3",
            "SPOOL_LAUNCHER": "stolen",
            "ÜBER": "ünïcode",
        },
    },
    "signals": {"command": ["grep", "^Sig", "/proc/self/status"]},
    "descriptors": {"command": ["ls", "/proc/self/fd"]},
    "together": {"command": "echo out; echo err >&2"},
    "apart": {"command": "echo out; echo err >&2", "output": "apart"},
    "none": {"command": "echo out; echo err >&2", "output": "none"},
    "line": {"command": "printf '%s' \"$0 $#\" | tr a-z A-Z"},
    "exit-3": {"command": "exit 3"},
    "killed": {"command": "kill -9 $$"},
    "missing": {"command": ["no-such-program", "x"]},
    "missing-here": {"command": ["./no-such-program"]},
    "not-runnable": {"command": ["/etc/passwd"]},
    "app-line": {"app": "line", "args": ["a b", "c"]},
    "app-words": {"app": "words", "args": ["$HOME"], "environment": {"LEVEL": "task"}},
    "app-gone": {"app": "gone"},
    "app-broken": {"app": "broken"},
    "large": {"command": [sys.executable, "-c", "len(bytearray(200 << 20))"]},
    "small": {"command": ["true"]},
    "again": {"command": FAIL_ONCE % "", "max_attempts": 2},
    "fresh": {
        "command": "echo $SPOOL_ATTEMPT; touch attempt-1 own; test $SPOOL_ATTEMPT = 3",
        "max_attempts": 3,
        "fresh": True,
    },
    "fifo": {"command": FAIL_ONCE % "rm output; mkfifo output;", "max_attempts": 2},
    "link": {"command": FAIL_ONCE % "ln -sf ../../../victim output;", "max_attempts": 2},
    "folder": {"command": FAIL_ONCE % "rm output; mkdir -p output/x;", "max_attempts": 2},
    "later": {"command": "exit 1", "max_attempts": 2, "backoff": "1h"},
    "thrice": {"command": "exit 7", "max_attempts": 3},
    # what programs do to their own directory:
    "removes": {"command": 'cd /; rm -rf "$SPOOL_TASK_DIR"'},
    "empties": {"command": 'rm -rf "$PWD"/*'},
    "no-manifest": {"command": "rm manifest.json; echo x > kept; exit 4"},
    "no-history": {"command": "rm history.jsonl; exit 5"},
    "renames": {"command": 'mv "$PWD" "$PWD.moved"'},
    "history-link": {"command": "ln -sf ../../../victim history.jsonl"},
    "history-folder": {"command": "rm history.jsonl; mkdir -p history.jsonl/x"},
    "manifest-folder": {"command": "rm manifest.json; mkdir -p manifest.json/x"},
    "becomes-file": {"command": 'cd /; rm -rf "$SPOOL_TASK_DIR"; echo x > "$SPOOL_TASK_DIR"'},
    "becomes-link": {"command": 'cd /; rm -rf "$SPOOL_TASK_DIR"; ln -s /etc "$SPOOL_TASK_DIR"'},
    "empties-history": {"command": ": > history.jsonl; exit 1", "max_attempts": 5},
    "empties-manifest": {"command": ": > manifest.json; exit 1", "max_attempts": 5},
    "history-fifo": {"command": "rm history.jsonl; mkfifo history.jsonl"},
    "closes-itself": {"command": "chmod 000 ."},
    "read-only": {"command": "mkdir sub; touch sub/x; chmod 500 sub; chmod 500 ."},
    "all-read-only": {"command": "touch x; chmod -R a-w ."},
    "history-closed": {"command": "chmod 000 history.jsonl; exit 1", "max_attempts": 2},
}
AS_MORTAL = ("closes-itself", "read-only", "all-read-only", "history-closed")


class Ran:
    """A spool after its launcher has left: its tasks by name."""

    def __init__(self, root, ids, launcher):
        self.tree = Spool(root)._tree
        self.ids, self.launcher = ids, launcher

    def place(self, name):
        return where(self.tree, self.ids[name])

    def path(self, name):
        return f"{self.tree.root}/{self.place(name)}/{self.ids[name]}"

    def read(self, name, file="output"):
        return (files.read(f"{self.path(name)}/{file}") or b"").decode()

    def report(self, name):
        return json.loads(self.read(name))

    def events(self, name, what=""):
        told = history.events(files.read(f"{self.path(name)}/history.jsonl"))
        return [event for event in told if what in ("", event["what"])]

    def exit(self, name):
        return self.events(name, "exit")[-1]

    def shown(self, name):
        return json.loads(run_spool(self.tree.root, "show", "--json", self.ids[name]).stdout)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """All tasks, run by one launcher on two cores with two GPUs, in one go."""
    root = tmp_path_factory.mktemp("run") / "spool"
    tree = make_tree(root, '[door]\nquiet = "0.2s"\n')
    (root / "victim").write_text("untouched")
    app = {"command": "printf '[%s]'"}
    (root / "apps" / "line.json").write_text(json.dumps(app))
    app = {"command": ["sh", "-c", "echo $0 $LEVEL $BASE"]}
    app["environment"] = {"LEVEL": "app", "BASE": "app"}
    (root / "apps" / "words.json").write_text(json.dumps(app))
    for name in ("gone", "broken"):
        (root / "apps" / f"{name}.json").write_text('{"command": "true"}')
    spool = Spool(tree.root)
    ids = {name: spool.submit(**keys, name=name).id for name, keys in TASKS.items()}
    (root / "apps" / "gone.json").unlink()
    (root / "apps" / "broken.json").write_text('{"command": 7}')
    words = ["launcher", "--idle-timeout", "0", "--quiet", "--cores", "2"]
    left = run_spool(tree.root, *words, env={**os.environ, **AROUND_US})
    assert left.returncode == 0, left.stderr
    return Ran(tree.root, ids, left)


def test_every_task_came_to_an_end(ran):
    left = tasks.spots(ran.tree, (State.READY, State.CREATED))
    assert list(left) == []
    assert ran.place("later").startswith("WAITING/")
    assert ran.launcher.stderr == ""


# -- what a program finds ------------------------------------------------------------------------


def test_a_program_runs_in_its_task_s_directory_with_nothing_to_read(ran):
    told = ran.report("plain")
    assert (told["input"], told["input_is"]) == ("", "/dev/null")
    assert told["cwd"] == told["environment"]["PWD"] == told["environment"]["SPOOL_TASK_DIR"]
    assert told["cwd"].endswith(ran.ids["plain"])
    assert told["leads"]


def test_a_program_is_told_about_its_task(ran):
    told = ran.report("wide")["environment"]
    assert told["SPOOL"] == ran.tree.root
    assert told["SPOOL_TASK"] == ran.ids["wide"]
    assert told["SPOOL_NAME"] == "wide"
    assert told["SPOOL_WORKFLOW"] == "scan"
    assert told["SPOOL_ATTEMPT"] == "1"
    assert told["SPOOL_CORES"] == "2"
    assert told["SPOOL_MEMORY_MB"] == "1024"
    assert told["SPOOL_TIME_LIMIT"] == "600"
    assert told["SPOOL_LAUNCHER"].startswith("launcher.")


def test_threads_follow_the_cores_a_task_was_given(ran):
    for name, cores in (("plain", "1"), ("wide", "2")):
        told = ran.report(name)["environment"]
        assert {told[variable] for variable in run.THREADS} == {cores}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_task_is_bound_to_its_own_cores(ran):
    (cpu,) = ran.report("plain")["cpus"]
    assert ran.report("plain")["environment"]["SPOOL_CPUS"] == str(cpu)
    assert ran.events("plain", "start")[0]["cpus"] == [cpu]
    assert len(ran.report("wide")["cpus"]) == 2


def test_a_task_sees_the_gpus_it_was_given_and_no_others(ran):
    for variable in run.GPUS:
        assert ran.report("plain")["environment"][variable] == ""
        assert ran.report("one-gpu")["environment"][variable] in ("4", "6")
        assert ran.report("two-gpus")["environment"][variable] == "4,6"
    assert ran.report("two-gpus")["environment"]["SPOOL_GPUS"] == "4,6"
    assert "SPOOL_GPUS" not in ran.report("plain")["environment"]
    assert ran.events("two-gpus", "start")[0]["gpus"] == ["4", "6"]


def test_no_trace_of_an_mpi_job_or_another_spool_around_us_is_inherited(ran):
    told = ran.report("plain")["environment"]
    for gone in ("PMI_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_RANK", "HYDRA_X", "I_MPI_X"):
        assert gone not in told
    assert "MPI_LOCALRANKID" not in told
    assert told["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert told["OF_THE_USER"] == "kept"
    assert told["SPOOL_NAME"] == "plain"


def test_the_manifest_s_environment_wins_but_for_the_mark_of_its_launcher(ran):
    told = ran.report("own-words")["environment"]
    assert told["OMP_NUM_THREADS"] == "9"
    assert told["CUDA_VISIBLE_DEVICES"] == "7"
    assert told["PMI_RANK"] == "3"
    assert told["ÜBER"] == "ünïcode"
    assert told["SPOOL_LAUNCHER"].startswith("launcher.")


def test_signals_are_neither_blocked_nor_ignored(ran):
    masks = dict(line.split() for line in ran.read("signals").splitlines())
    standard = (1 << 31) - 1  # glibc ignores two of its own beyond them in whatever it spawns
    assert int(masks["SigBlk:"], 16) == int(masks["SigIgn:"], 16) & standard == 0


def test_no_descriptor_is_inherited_but_the_three(ran):
    found = ran.read("descriptors").split()
    assert found == ["0", "1", "2", "3"]  # 3: the listing itself


def test_output_goes_where_the_manifest_says(ran):
    assert ran.read("together") == "out\nerr\n"
    assert (ran.read("apart"), ran.read("apart", "errors")) == ("out\n", "err\n")
    assert not {"output", "errors"} & set(os.listdir(ran.path("none")))
    assert "errors" not in os.listdir(ran.path("together"))


def test_a_line_is_run_by_sh(ran):
    assert ran.read("line") == "/BIN/SH 0"


def test_an_app_s_command_gets_the_task_s_arguments_unharmed(ran):
    assert ran.read("app-line") == "[a b][c]"
    assert ran.read("app-words") == "$HOME task app\n"


# -- what an end is called -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group"), [("exit-3", "exit-3@"), ("killed", "signal-9@"), ("thrice", "exit-7@")]
)
def test_a_failure_is_filed_under_its_reason(ran, name, group):
    assert ran.place(name).startswith(f"FAILED/{group}")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("missing", 127, "cannot start no-such-program: no such program on PATH"),
        ("missing-here", 127, "cannot start ./no-such-program: No such file or directory"),
        ("not-runnable", 126, "cannot start /etc/passwd: Permission denied"),
        ("app-gone", 127, "there is no app 'gone'. Run: spool app"),
        ("app-broken", 127, "apps/broken.json: "),
    ],
)
def test_a_program_that_cannot_start_says_why(ran, name, code, words):
    assert ran.place(name).startswith(f"FAILED/exit-{code}@")
    assert ran.exit(name)["code"] == code
    assert words in ran.shown(name)["why"]


def test_an_exit_line_tells_times_and_peak_memory(ran):
    told = ran.exit("large")
    assert told["code"] == 0
    assert 200 <= told["peak_mb"] < 400
    assert "peak_at_most" not in told
    assert 0 <= told["elapsed_s"] < 60
    assert told["user_s"] + told["system_s"] > 0


def test_a_peak_below_the_launcher_s_own_is_only_an_upper_bound(ran):
    assert ran.exit("small")["peak_at_most"] is True
    assert ran.exit("small")["peak_mb"] > 0


# -- another attempt -----------------------------------------------------------------------------


def test_a_rerun_keeps_earlier_files_and_earlier_output_under_a_number(ran):
    assert ran.place("again").startswith("FINISHED/")
    assert (ran.read("again"), ran.read("again", "output.1")) == ("second\n", "")
    told = [event["what"] for event in ran.events("again")]
    assert told == ["start", "exit", "queued", "start", "exit"]
    assert [event["attempt"] for event in ran.events("again", "start")] == [1, 2]


def test_a_fresh_rerun_moves_all_earlier_files_aside_and_loses_none(ran):
    assert ran.place("fresh").startswith("FINISHED/")
    assert ran.read("fresh") == "3\n"
    found = sorted(os.listdir(ran.path("fresh")))
    folders = [name for name in found if os.path.isdir(f"{ran.path('fresh')}/{name}")]
    earlier = sorted(ran.read("fresh", f"{folder}/output") for folder in folders)
    assert earlier == ["1\n", "2\n"]
    assert all(files.exists(f"{ran.path('fresh')}/{folder}/own") for folder in folders)


@pytest.mark.parametrize("name", ["fifo", "link", "folder"])
def test_an_output_that_is_no_file_is_set_aside_unread(ran, name):
    assert ran.place(name).startswith("FINISHED/")
    assert ran.read(name) == "second\n"
    assert files.is_plain(f"{ran.path(name)}/output")
    assert files.exists(f"{ran.path(name)}/output.1")
    assert files.read(f"{ran.tree.root}/victim") == b"untouched"


def test_a_back_off_waits_under_the_minute_it_ends(ran):
    assert ran.place("later").startswith("WAITING/until@")
    assert ran.events("later")[-1]["reason"] == "retry"


def test_attempts_are_counted_up_to_the_most_allowed(ran):
    assert [event["code"] for event in ran.events("thrice", "exit")] == [7, 7, 7]


# -- a program and its own directory -------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "removes",
        "empties",
        "empties-history",
        "empties-manifest",
        "history-fifo",
        "no-manifest",
        "no-history",
        "renames",
        "history-link",
        "history-folder",
        "manifest-folder",
        "becomes-file",
        "becomes-link",
    ],
)
def test_a_program_that_destroys_its_task_has_vanished_and_its_story_is_told(ran, name):
    assert ran.place(name).startswith("FAILED/vanished@")
    assert files.is_folder(ran.path(name))
    told = [event["what"] for event in ran.events(name)]
    assert told[0] == "start"
    assert "exit" in told
    assert told[-1] == "vanished"
    kept = json.loads(ran.read(name, "manifest.json"))
    assert kept["command"] == TASKS[name]["command"]
    assert kept["id"] == ran.ids[name]


def test_what_a_vanished_task_still_had_is_kept(ran):
    assert ran.read("no-manifest", "kept") == "x\n"
    assert files.is_folder(f"{ran.path('history-folder')}/history.jsonl.1/x")
    assert files.is_folder(f"{ran.path('manifest-folder')}/manifest.json.1/x")
    assert files.read(f"{ran.tree.root}/victim") == b"untouched"
    assert not files.exists("/etc/manifest.json")


@pytest.fixture(scope="module")
def ran_as_mortal(tmp_path_factory):
    """The tasks that take rights away, run by a user whom permissions bind."""
    if os.geteuid() == 0 and not shutil.which("unshare"):
        pytest.skip("root is not bound by permissions, and unshare is missing")
    tree = make_tree(tmp_path_factory.mktemp("mortal") / "spool", '[door]\nquiet = "0.2s"\n')
    spool = Spool(tree.root)
    ids = {name: spool.submit(**TASKS[name], name=name).id for name in AS_MORTAL}
    prefix = ["unshare", "--user", "--map-user=1000"] if os.geteuid() == 0 else []
    words = ["--spool", tree.root, "launcher", "--idle-timeout", "0", "--quiet"]
    left = subprocess.run(
        [*prefix, sys.executable, "-m", "spool.cli", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert left.returncode == 0, left.stderr
    return Ran(tree.root, ids, left)


@pytest.mark.parametrize("name", ["closes-itself", "read-only", "all-read-only"])
def test_a_program_that_takes_rights_away_ends_as_any_other(ran_as_mortal, ran, name):
    for one in (ran_as_mortal, ran):
        assert one.place(name).startswith("FINISHED/")
        assert [event["what"] for event in one.events(name)] == ["start", "exit"]


def test_a_history_that_may_not_be_written_does_not_stop_the_retry(ran_as_mortal, ran):
    for one in (ran_as_mortal, ran):
        assert one.place("history-closed").startswith("FAILED/exit-1@")
        assert len(one.events("history-closed", "start")) == 2


# -- the pieces ----------------------------------------------------------------------------------


def test_a_program_is_looked_for_on_the_task_s_own_path(tmp_path):
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert run.find_program("mine", str(tmp_path)) == str(program)
    assert run.find_program("./anything", "") == "./anything"
    with pytest.raises(FileNotFoundError):
        run.find_program("mine", "/nowhere")


def test_only_foreign_variables_are_taken_out_of_the_environment():
    kept = {"PATH": "/bin", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "MPICH_X": "1", "SLURM_ID": "1"}
    assert run.clean_environment({**kept, **{"PMI_FD": "3", "SPOOL": "x", "PRTE_X": ""}}) == {
        **kept,
        "SPOOL": "x",
    }


def test_output_files_are_numbered_on_and_on(tmp_path):
    path = str(tmp_path / "output")
    for number in range(4):
        file = run.open_fresh(path)
        os.write(file, b"%d" % number)
        os.close(file)
    found = {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)}
    assert found == {"output.1": "0", "output.2": "1", "output.3": "2", "output": "3"}
