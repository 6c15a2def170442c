"""The real program: what each command prints where, its exit code, and what a person does wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tree, run_spool, where

from spool.api import Spool
from spool.queue import history, layout, tasks
from spool.queue.layout import State, Tree

Ran = subprocess.CompletedProcess[str]
Command = Callable[..., Ran]
WRONG_USAGE, ERROR, TASK_FAILED, TIMED_OUT, FOUND = 2, 1, 3, 5, 6
STRANGE = b"b\xff"


def ids_of(ran: Ran) -> list[str]:
    """The ids a submission printed: one a line, nothing else on standard output."""
    ids = ran.stdout.split("\n")
    assert ids.pop() == ""
    assert all(layout.parse_id(task_id) for task_id in ids), ran
    return ids


def wanted(tree: Tree, task_id: str) -> dict[str, Any]:
    """A task's manifest.json as it lies there."""
    spot = tasks.find(tree, task_id)
    assert spot is not None
    found: dict[str, Any] = json.loads(Path(spot.path(tree), layout.MANIFEST).read_text())
    return found


def json_lines(ran: Ran) -> list[dict[str, Any]]:
    """Standard output as one JSON object a line."""
    assert ran.returncode in (0, FOUND), ran
    return [json.loads(line) for line in ran.stdout.splitlines()]


def failed(ran: Ran, code: int, *says: str) -> str:
    """What a refused command said on standard error; it printed nothing, and no traceback."""
    assert ran.returncode == code, ran
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    for text in says:
        assert text in ran.stderr
    return ran.stderr


# -- a spool to look at --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A spool in which a launcher has run: the ids by name, and the root."""
    tree = make_tree(tmp_path_factory.mktemp("seen") / "spool", '[door]\nquiet = "0.2s"\n')
    spool = Spool(tree.root)
    both = ["sh", "-c", "echo one; echo two; echo three >&2"]
    made = {
        "ok": spool.submit(both, name="ok", workflow="007", tags=["hot"], time_limit="1h"),
        "apart": spool.submit(both, name="apart", output="apart"),
        "bad": spool.submit(["false"], name="bad"),
        "held": spool.submit(["true"], name="held", hold=True),
        "gone": spool.submit(["true"], name="gone"),
    }
    spool.cancel(made["gone"], reason="not needed")
    os.mkdir(tree.state(State.CREATED).encode() + b"/" + STRANGE)
    ran = run_spool(tree.root, "launcher", "--idle-timeout", "0", "--quiet")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    return {"root": tree.root, **{name: task.id for name, task in made.items()}}


@pytest.fixture
def look(seen: dict[str, str]) -> Command:
    """look("ls") runs the program on the spool in which a launcher has run."""
    return lambda *words, **options: run_spool(seen["root"], *words, **options)


def test_ls_prints_state_group_and_id(look: Command, seen: dict[str, str]) -> None:
    lines = [line.split() for line in look("ls").stdout.splitlines()]
    assert ["CREATED", "door", r"b\xff"] in lines
    assert ["FAILED", f"exit-1@{layout.shard_of(seen['bad'])}", seen["bad"]] in lines
    assert [line[0] for line in lines] == [
        "CREATED", "WAITING", "FINISHED", "FINISHED", "FAILED", "CANCELLED",
    ]  # fmt: skip


def test_ls_takes_filters_and_prints_json(look: Command, seen: dict[str, str]) -> None:
    found = json_lines(
        look("ls", "--json", "--state", "finished", "--workflow", "0*", "--tag", "hot")
    )
    assert [line["id"] for line in found] == [seen["ok"]]
    assert set(found[0]) == {"state", "group", "id", "path"}
    assert os.path.isdir(found[0]["path"])


def test_ls_prints_strange_names_as_json(look: Command) -> None:
    found = json_lines(look("ls", "--json", "--state", "CREATED"))
    assert [(line["state"], line["id"]) for line in found] == [("CREATED", r"b\xff")]


def test_ls_of_nothing_is_an_error(look: Command) -> None:
    failed(look("ls", "zzz"), ERROR, "Error: no task matches 'zzz'. Run: spool ls")


def test_status_counts(look: Command, seen: dict[str, str]) -> None:
    shown = look("status").stdout
    assert "FAILED           1  exit-1 1" in shown
    assert "FINISHED         2  " in shown
    (told,) = json_lines(look("status", "--json"))
    assert told["root"] == seen["root"]
    assert told["states"] == {
        "CREATED": 1, "WAITING": 1, "READY": 0, "RUNNING": 0, "FINISHED": 2, "FAILED": 1,
        "CANCELLED": 1,
    }  # fmt: skip
    assert told["groups"]["WAITING"] == {"held": 1}
    assert told["launchers"] == [] and told["oldest_ready"] is None


def test_show_tells_what_became_of_a_task(look: Command, seen: dict[str, str]) -> None:
    shown = look("show", "ok").stdout
    assert "007" in shown and "hot" in shown and "1h" in shown
    assert "sh -c 'echo one; echo two; echo three >&2'" in shown
    assert "exit code 0 after" in shown
    assert shown.endswith("last lines of output:\none\ntwo\nthree\n")
    (told,) = json_lines(look("show", "--json", seen["gone"]))
    assert told["manifest"]["command"] == ["true"]
    assert told["why"].startswith("cancelled by ")
    assert [event["what"] for event in told["history"]] == ["cancelled"]


def test_show_of_a_damaged_task_says_what_is_wrong(look: Command) -> None:
    shown = look("show", "CREATED/b\udcff")
    assert shown.returncode == 0
    assert "is empty; expected a JSON object" in shown.stdout
    assert r"b\xff" in shown.stdout


def test_show_of_several_tasks_asks_for_more(look: Command) -> None:
    failed(look("show", "*"), ERROR, "'*' means several tasks", "write more of the id")


def test_history_tells_it_in_order(look: Command) -> None:
    lines = look("history", "gone").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["submitted", "cancelled"]
    assert "reason=not needed" in lines[1]
    told = json_lines(look("history", "bad", "--json"))
    assert [event["what"] for event in told] == ["submitted", "start", "exit"]
    assert told[2]["code"] == 1


def test_log_prints_what_a_task_wrote(look: Command) -> None:
    assert look("log", "ok").stdout == "one\ntwo\nthree\n"
    assert look("log", "ok", "-n", "2").stdout == "two\nthree\n"
    assert look("log", "ok", "-n", "0").stdout == ""
    assert look("log", "-f", "apart").stdout == "one\ntwo\n"
    assert look("log", "apart", "--errors").stdout == "three\n"


def test_log_of_a_task_that_wrote_nothing_says_so(look: Command, seen: dict[str, str]) -> None:
    ran = look("log", "held")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == f"task {seen['held']} has written no output yet\n"


def test_path_prints_directories_and_files_in_them(look: Command, seen: dict[str, str]) -> None:
    shard = layout.shard_of(seen["ok"])
    assert look("path", "ok").stdout == f"{seen['root']}/FINISHED/{shard}/{seen['ok']}\n"
    (told,) = json_lines(look("path", "--json", "--workflow", "007", "--file", "output"))
    assert Path(told["path"]).read_text() == "one\ntwo\nthree\n"
    failed(look("path", "zzz"), ERROR, "no task matches 'zzz'")


def test_wait_says_by_its_exit_code_how_it_went(look: Command) -> None:
    done = look("wait", "ok", "apart")
    assert (done.returncode, done.stdout) == (0, "2 finished\n")
    mixed = look("wait", "--state", "FINISHED", "--state", "FAILED", "--state", "CANCELLED")
    assert mixed.returncode == TASK_FAILED
    assert mixed.stdout == "2 finished, 1 failed, 1 cancelled\n"
    late = look("wait", "held", "--timeout", "0", "--json")
    assert late.returncode == TIMED_OUT
    assert json.loads(late.stdout) == {
        "FINISHED": 0,
        "FAILED": 0,
        "CANCELLED": 0,
        "pending": 1,
        "blocked": 0,
    }


def test_wait_for_what_is_not_there_is_an_error(look: Command) -> None:
    failed(look("wait", "zzz"), ERROR, "no task matches")
    failed(look("wait", "--state", "CREATED"), ERROR, r"b\xff in CREATED has no id to wait for")


def test_check_finds_what_is_left_to_do(look: Command, seen: dict[str, str]) -> None:
    ran = look("check", "--json")
    assert ran.returncode == FOUND
    (finding,) = json_lines(ran)
    assert r"b\xff" in finding["where"] and finding["repaired"] is False
    assert "has no manifest.json" in finding["what"]


@pytest.mark.parametrize("named", [True, False], ids=["option", "environment"])
def test_completion_offers_ids(seen: dict[str, str], named: bool) -> None:
    words = f"spool --spool {seen['root']} show a" if named else "spool show a"
    told = {"_SPOOL_COMPLETE": "bash_complete", "COMP_WORDS": words}
    told["COMP_CWORD"] = str(len(words.split()) - 1)
    if not named:
        told["SPOOL"] = seen["root"]
    ran = subprocess.run(
        [sys.executable, "-m", "spool.cli"],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == f"plain,{seen['apart']}\n", ran


# -- the spool itself ----------------------------------------------------------------------------


def test_init_makes_a_spool_and_completes_one(tmp_path: Path) -> None:
    root = str(tmp_path / "new")
    made = run_spool(root, "init")
    assert (made.returncode, made.stdout) == (0, f"{root}\n")
    assert "Next: spool submit" in made.stderr
    os.rmdir(f"{root}/READY")
    assert run_spool(root, "init").returncode == 0
    assert os.path.isdir(f"{root}/READY")


def test_init_refuses_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "READY").mkdir()
    failed(run_spool(str(tmp_path), "init"), ERROR, "choose another place")


def test_without_a_spool_the_way_to_one_is_said(tmp_path: Path) -> None:
    failed(run_spool(str(tmp_path), "ls"), ERROR, "is no spool", "Run: spool init")


def test_a_healthy_spool_has_nothing_wrong(command: Command) -> None:
    ran = command("check")
    assert (ran.returncode, ran.stdout) == (0, "nothing is wrong\n")


def test_doctor_gives_a_verdict_a_line(command: Command) -> None:
    told = json_lines(command("doctor", "--json"))
    assert {"check", "verdict", "says"} == set(told[0])
    assert len(told) > 5


def test_schema_is_json(tree: Tree, command: Command) -> None:
    assert "command" in json.loads(command("schema").stdout)["$defs"]["Manifest"]["properties"]


def test_a_launcher_tells_in_json_what_it_did(tree: Tree, spool: Spool, command: Command) -> None:
    spool.submit(["true"])
    (told,) = json_lines(command("launcher", "--idle-timeout", "0", "--json"))
    assert told["FINISHED"] == 1
    assert layout.parse_owner(told["owner"]) is not None


# -- wrong usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("submti",), "there is no command 'submti'. Did you mean 'submit'?"),
        (("frobnicate",), "there is no command 'frobnicate'. Run: spool --help"),
        (("submit", "--chunk", "5", "--", "true"), "say which elements, by --array or by"),
        (("submit", "--time-limit", "soon", "--", "true"), "expected a duration such as 90"),
        (("submit", "--move", "--", "true"), "--move goes with --dir"),
        (("submit", "--each", "1-2", "--dir", "/tmp", "--move", "--", "x"), "--move gives a"),
        (("submit", "--shell", "a", "--", "b"), "--shell and COMMAND exclude each other"),
        (("submit", "--env", "A", "--", "b"), "expected NAME=VALUE"),
        (("submit", "--each", "1", "--each-line", "f", "--", "b"), "exclude each other"),
        (("cancel",), "say which tasks (ids, --state, --workflow, ...), or cancel --all"),
        (("modify", "x"), "say what to change"),
        (("ls", "--state", "SLEEPING"), "'SLEEPING' is not one of"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_said(command: Command, words: tuple[str, ...], says: str) -> None:
    failed(command(*words), WRONG_USAGE, says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("submit",), "needs 'command'"),
        (("submit", "--nodes", "0", "--", "true"), "key 'nodes': expected int >= 1, got 0"),
        (("submit", "--", "echo", "\udcff"), "is not UTF-8"),
        (("submit", "--app", "dock"), "there is no app 'dock'. Run: spool app"),
        (("submit", "--dir", "/nowhere", "--", "true"), "/nowhere: is no directory"),
        (("submit", "--from", "/nowhere.csv", "--", "x"), "/nowhere.csv: cannot be read"),
        (("cancel", ""), "an empty word names no task"),
        (("app", "../x", "--rm"), "is no name"),
    ],
    ids=lambda value: ascii(" ".join(value))[:30] if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_an_error(
    tree: Tree, spool: Spool, command: Command, words: tuple[str, ...], says: str
) -> None:
    before = spool.submit(["true"])
    failed(command(*words), ERROR, "Error: ", says)
    assert [task.id for task in spool.tasks()] == [before.id]
    assert before.state is State.READY
    assert os.listdir(tree.tmp()) == []


# -- submit --------------------------------------------------------------------------------------


EVERY_OPTION = """
submit --name n-1 --workflow w --tag a --tag b --description D --env A=1=2 --priority 5
--nodes 2 --ranks-per-node 3 --cores 4 --per-node 2 --gpus 1 --memory 8G --requires ssd
--time-estimate 1h --time-limit 2h --begin 2027-01-02T03:04 --hold --signal INT@30s --max-attempts 2
--max-lost 0 --backoff 5m --output apart --fresh -- prog --flag {}
"""


def test_submit_prints_the_id_alone_and_keeps_every_option(tree: Tree, command: Command) -> None:
    ran = command(*EVERY_OPTION.split())
    assert (ran.returncode, ran.stderr) == (0, "")
    (task_id,) = ids_of(ran)
    found = wanted(tree, task_id)
    assert found.pop("submitted")["by"]
    assert found == {
        "id": task_id, "name": "n-1", "workflow": "w", "tags": ["a", "b"], "description": "D",
        "command": ["prog", "--flag", "{}"], "environment": {"A": "1=2"}, "priority": 5, "nodes": 2,
        "ranks_per_node": 3, "cores_per_rank": 4, "per_node": 2, "gpus": 1, "memory": "8G",
        "requires": ["ssd"], "time_estimate": "1h", "time_limit": "2h",
        "begin": "2027-01-02T03:04:00.000Z", "hold": True, "signal": "INT", "grace": "30s",
        "max_attempts": 2, "max_lost": 0, "backoff": "5m", "output": "apart", "fresh": True,
    }  # fmt: skip
    assert where(tree, task_id).startswith("WAITING/held@")


def test_submit_tells_ids_in_json(tree: Tree, command: Command) -> None:
    (told,) = json_lines(command("submit", "--json", "--shell", "echo $HOME | wc"))
    assert wanted(tree, told["id"])["command"] == "echo $HOME | wc"


def test_a_script_brings_its_options_and_the_command_line_wins(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    script = tmp_path / "run me.sh"
    script.write_text(
        "#!/bin/sh\n#SPOOL --cores 4 --time-limit 1h\n#SPOOL --tag from-script\necho $1\n"
    )
    (task_id,) = ids_of(command("submit", "--cores", "2", str(script), "7"))
    found = wanted(tree, task_id)
    assert (found["cores_per_rank"], found["time_limit"]) == (2, "1h")
    assert found["tags"] == ["from-script"]
    assert found["name"] == "run-me.sh"
    assert found["command"] == ["./run-me.sh", "7"]
    spot = tasks.find(tree, task_id)
    assert spot and Path(spot.path(tree), "run-me.sh").read_text() == script.read_text()


def test_a_script_with_a_slip_in_its_options_is_refused(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#SPOOL --cores 4 --mem 3\n")
    failed(command("submit", str(script)), WRONG_USAGE, "No such option", "--mem")
    script.write_text("#SPOOL --cores 4 cores --memory 8G\n")
    failed(command("submit", str(script)), ERROR, "hold options only, got 'cores'")


def test_each_makes_a_task_for_each_number(tree: Tree, command: Command) -> None:
    ran = command("submit", "--each", "8-10", "--name", "s-{}", "--", "sim", "--seed={}")
    assert ran.stderr == "submitted 3 tasks\n"
    found = [wanted(tree, task_id) for task_id in ids_of(ran)]
    assert [(one["name"], one["command"][1]) for one in found] == [
        ("s-8", "--seed=8"), ("s-9", "--seed=9"), ("s-10", "--seed=10"),
    ]  # fmt: skip


def test_a_value_that_has_no_place_is_refused(tree: Tree, command: Command) -> None:
    for options in (("--each", "1-3"), ("--each-line", "-"), ("--from", "-")):
        refused = command("submit", *options, "--", "touch", "here", input="a\n")
        failed(refused, ERROR, "'touch here' has no place", "put {} where the value belongs")
    assert not list(tasks.spots(tree, tuple(State)))


def test_a_value_may_have_its_place_outside_the_command(tree: Tree, command: Command) -> None:
    ran = command("submit", "--each", "7", "--env", "SEED={}", "--", "sim")
    ran_named = command("submit", "--each", "7", "--name", "n{}", "--", "sim")
    first, second = wanted(tree, *ids_of(ran)), wanted(tree, *ids_of(ran_named))
    assert (first["command"], first["environment"]) == (["sim"], {"SEED": "7"})
    assert (second["command"], second["name"]) == (["sim"], "n7")


def test_each_line_makes_a_task_for_each_line_of_standard_input(
    tree: Tree, command: Command
) -> None:
    words = ("submit", "--each-line", "-", "--", "fit", "--fast", "{}")
    ran = command(*words, input="a.h5\n\n/d/b c.h5\n")
    found = [wanted(tree, task_id) for task_id in ids_of(ran)]
    assert [one["command"][2] for one in found] == ["a.h5", "/d/b c.h5"]
    assert [one["name"] for one in found] == ["fit-a.h5", "fit-b-c"]


def test_a_rejected_line_is_named_and_the_rest_is_submitted(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    source = tmp_path / "runs.jsonl"
    source.write_text(
        '{"command": "a"}\n{"comand": "b"}\nnonsense\n{"command": ["c"], "nodes": 2}\n'
    )
    ran = command("submit", "--from", str(source), "--workflow", "w")
    assert ran.returncode == ERROR
    assert [wanted(tree, task_id)["command"] for task_id in ids_of(ran)] == ["a", ["c"]]
    told = ran.stderr.splitlines()
    assert told[0].startswith(f"{source}:2: unknown key 'comand'; did you mean 'command'?")
    assert told[1].startswith(f"{source}:3: is not JSON")
    assert told[2] == "submitted 2 tasks, rejected 2"


def test_all_or_nothing_submits_nothing_if_a_line_is_rejected(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    source = tmp_path / "runs.csv"
    source.write_text("t,nodes\n1,1\n2,none\n")
    words = ("submit", "--from", str(source), "--all-or-nothing", "--", "sim", "{t}")
    failed(command(*words), ERROR, f"{source}:3: ", "submitted 0 tasks, rejected 1")
    assert next(tasks.spots(tree, tuple(State)), None) is None
    source.write_text("t,nodes\n1,1\n2,2\n")
    found = [wanted(tree, task_id) for task_id in ids_of(command(*words))]
    assert [(one["command"], one.get("nodes", 1)) for one in found] == [
        (["sim", "1"], 1), (["sim", "2"], 2),
    ]  # fmt: skip


def test_the_lines_of_a_file_may_be_the_commands(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    source = tmp_path / "todo.txt"
    source.write_text("# first\n./a 1 | tee out\n./b\n")
    found = [wanted(tree, one) for one in ids_of(command("submit", "--from", str(source)))]
    assert [one["command"] for one in found] == ["./a 1 | tee out", "./b"]


@pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
def test_a_directory_is_put_into_the_task(
    tree: Tree, command: Command, tmp_path: Path, move: bool
) -> None:
    source = tmp_path / "inputs"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "mesh").write_text("m")
    (source / layout.MANIFEST).write_text("not ours")
    options = ("--move",) if move else ()
    (task_id,) = ids_of(command("submit", "--dir", str(source), *options, "--", "solve"))
    spot = tasks.find(tree, task_id)
    assert spot is not None
    assert Path(spot.path(tree), "deep", "mesh").read_text() == "m"
    assert wanted(tree, task_id)["command"] == ["solve"]
    assert (source / "deep").exists() is not move
    assert (source / layout.MANIFEST).exists()


def test_an_app_is_defined_shown_used_and_removed(tree: Tree, command: Command) -> None:
    made = command("app", "dock", "--env", "A=1", "--description", "Docks.", "--", "dock", "-q")
    assert made.returncode == 0
    assert command("app").stdout.split() == ["dock", "dock", "-q", "#", "Docks."]
    assert json_lines(command("app", "dock", "--json")) == [
        {
            "name": "dock",
            "command": ["dock", "-q"],
            "environment": {"A": "1"},
            "description": "Docks.",
        }
    ]
    (task_id,) = ids_of(command("submit", "--app", "dock", "--", "l7.mol2"))
    found = wanted(tree, task_id)
    assert (found["app"], found["args"]) == ("dock", ["l7.mol2"])
    assert command("app", "dock", "--rm").returncode == 0
    failed(command("app", "dock"), ERROR, "there is no such app")


# -- verbs ---------------------------------------------------------------------------------------


def test_a_task_is_led_through_every_verb_by_the_beginning_of_its_id(
    tree: Tree, spool: Spool, command: Command
) -> None:
    task = spool.submit(["true"], name="hi")
    shard = layout.shard_of(task.id)
    steps = [
        (("hold", "hi"), f"WAITING/held@{shard}"),
        (("release", "hi"), f"READY/c1@{shard}"),
        (("modify", "hi", "--priority", "5", "--cores", "2"), f"READY/p5.c2@{shard}"),
        (("cancel", "hi", "--reason", "wrong beam"), f"CANCELLED/{shard}"),
        (("retry", "hi", "--time-limit", "10m"), f"READY/p5.c2.t10m@{shard}"),
    ]
    for words, place in steps:
        ran = command(*words)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{place}/{task.id}\n", "")
        assert where(tree, task.id) == place
    told = [event["what"] for event in task.history]
    assert told == ["held", "released", "change", "cancelled", "change", "queued"]
    assert task.history[3]["reason"] == "wrong beam"


def test_an_exact_name_means_no_longer_ones_and_every_word_must_mean_something(
    spool: Spool, command: Command
) -> None:
    for number in (1, 10, 11):
        spool.submit(["true"], name=f"sq-{number}")
    ran = command("hold", "sq-1", "nosuch")
    assert ran.returncode == ERROR and "no task matches 'nosuch'" in ran.stderr
    assert [task.id.split(".")[0] for task in spool.tasks(state="waiting")] == ["sq-1"]
    assert command("show", "sq-1").returncode == 0


def test_a_script_runs_by_its_own_interpreter_though_it_is_not_executable(
    tree: Tree, spool: Spool, command: Command, tmp_path: Path
) -> None:
    script = tmp_path / "report.py"
    script.write_text(f"#!{sys.executable}\n#SPOOL --name report\nprint(6 * 7)\n")
    (task_id,) = ids_of(command("submit", str(script)))
    assert command("launcher", "--idle-timeout", "0").returncode == 0
    assert command("log", task_id).stdout == "42\n"


def test_a_program_named_from_here_is_found_when_the_task_runs_elsewhere(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    program = tmp_path / "simulate"
    program.write_text("#!/bin/sh\necho run $1\n")
    program.chmod(0o755)
    (task_id,) = ids_of(command("submit", "--", "./simulate", "7", cwd=tmp_path))
    assert wanted(tree, task_id)["command"] == [str(program), "7"]


def test_a_bare_duration_to_begin_at_counts_from_now_and_a_bare_number_is_refused(
    tree: Tree, command: Command
) -> None:
    (task_id,) = ids_of(command("submit", "--begin", "2h", "--", "true"))
    assert where(tree, task_id).startswith("WAITING/until@")
    for unclear in ("90", "20:30"):
        ran = command("submit", "--begin", unclear, "--", "true")
        assert ran.returncode == WRONG_USAGE and f"say now+{unclear}" in ran.stderr


def test_a_retry_may_begin_later_and_keeps_its_reason(
    tree: Tree, spool: Spool, command: Command
) -> None:
    ended = spool.submit(["true"])
    spool.cancel(ended)
    assert command("retry", ended.id, "--begin", "1h", "--reason", "beam is off").returncode == 0
    assert where(tree, ended.id).startswith("WAITING/until@")
    assert "beam is off" in command("history", ended.id).stdout


def test_a_missing_app_rejects_its_own_line_alone(
    spool: Spool, command: Command, tmp_path: Path
) -> None:
    lines = tmp_path / "tasks.jsonl"
    lines.write_text('{"command": ["true"]}\n{"app": "missing"}\n{"command": ["true"]}\n')
    ran = command("submit", "--from", str(lines))
    assert ran.returncode == ERROR and len(ran.stdout.split()) == 2
    assert "task 2: there is no app 'missing'" in ran.stderr


def test_what_lies_behind_a_link_to_a_door_is_nobody_s(
    tree: Tree, command: Command, tmp_path: Path
) -> None:
    kept = tmp_path / "outside" / "data"
    kept.mkdir(parents=True)
    os.symlink(kept.parent, f"{tree.state(State.CREATED)}/@lnk")
    assert command("cancel", "--state", "created", "--all").returncode == ERROR
    assert os.listdir(kept) == [] and os.listdir(kept.parent) == ["data"]


def test_inputs_that_hold_the_spool_itself_are_refused(tree: Tree, command: Command) -> None:
    ran = command("submit", "--dir", os.path.dirname(tree.root), "--", "ls")
    assert ran.returncode == ERROR and "holds the spool itself" in ran.stderr
    assert os.listdir(tree.folder("tmp")) == []


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null"])
def test_a_place_where_no_spool_can_be_is_an_error_of_one_line(
    command: Command, place: str
) -> None:
    ran = command("init", place)
    assert ran.returncode == ERROR
    assert ran.stderr.startswith("Error: ") and ran.stderr.count("\n") == 1


def test_rm_removes_what_has_ended_and_nothing_else(
    tree: Tree, spool: Spool, command: Command
) -> None:
    ended, ready = spool.submit(["true"], name="hi-1"), spool.submit(["true"], name="hi-2")
    spool.cancel(ended)
    ran = command("rm", ended.id, ready.id)
    assert (ran.returncode, ran.stdout) == (ERROR, f"{ended.id}\n")
    assert ran.stderr.startswith(f"Error: task {ready.id} is ready; rm is not possible.")
    assert f"spool cancel {ready.id}" in ran.stderr
    assert where(tree, ended.id) == ""
    assert ready.state is State.READY
    assert os.path.exists(tree.seen(ended.id))


def test_a_verb_on_a_wide_choice_takes_what_it_can_and_tells_in_json(
    tree: Tree, spool: Spool, command: Command
) -> None:
    ready, held = spool.submit(["true"], name="a"), spool.submit(["true"], name="b", hold=True)
    ended = spool.submit(["true"], name="c")
    spool.cancel(ended)
    told = json_lines(command("cancel", "--all", "--json"))
    assert [(one["id"], one["refused"]) for one in told] == [(held.id, ""), (ready.id, "")]
    assert all(one["now"] == f"CANCELLED/{layout.shard_of(one['id'])}" for one in told)
    removed = json_lines(command("rm", "--state", "CANCELLED", "--json"))
    assert {one["id"] for one in removed} == {ready.id, held.id, ended.id}
    assert {one["now"] for one in removed} == {""}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("retry", "hi"), "is ready; retry is not possible. To take it out: spool cancel hi."),
        (("release", "hi"), "is ready; release is not possible"),
        (("modify", "hi", "--nodes", "0"), "key 'nodes': expected int >= 1, got 0"),
        (("hold", "zzz"), "no task matches 'zzz'. Run: spool ls"),
        (("hold", "--name", "zzz"), "no task to hold matches. Run: spool ls"),
        (("retry", "--state", "FAILED"), "no task to retry matches"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_verb_that_is_not_possible_says_why(
    tree: Tree, spool: Spool, command: Command, words: tuple[str, ...], says: str
) -> None:
    task = spool.submit(["true"], name="hi")
    failed(command(*words), ERROR, "Error: ", says)
    assert task.state is State.READY
    assert task.history == []
    assert os.listdir(tree.state(State.RUNNING)) == []


def test_an_arrival_of_a_strange_name_can_be_cancelled(tree: Tree, command: Command) -> None:
    os.mkdir(tree.state(State.CREATED).encode() + b"/" + STRANGE)
    (told,) = json_lines(command("cancel", "b*", "--json"))
    assert told["id"] == r"b\xff"
    assert told["now"].startswith("CANCELLED/")
    (spot,) = tasks.spots(tree, (State.CANCELLED,))
    story = history.fold(Path(spot.path(tree), layout.HISTORY).read_bytes())
    assert story.cancelled and story.cancelled["called"] == r"b\xff"


def test_a_reader_who_leaves_early_is_no_trouble_of_the_spool(tree: Tree) -> None:
    words = f"{sys.executable} -m spool.cli --spool {tree.root} submit --each 1-20000 -- true {{}}"
    ran = subprocess.run(
        ["bash", "-c", f"{words} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1 and "Error" not in ran.stderr


# -- what a first day brings ---------------------------------------------------------------------


def test_a_key_for_many_tasks_names_each(command: Command, spool: Spool) -> None:
    each = ("submit", "--each", "1-3")
    failed(command(*each, "--key", "k", "--", "echo", "{}"), WRONG_USAGE, "--key means one task")
    assert list(spool.tasks()) == []
    first = command(*each, "--key", "k-{}", "--", "echo", "{}")
    assert len(ids_of(first)) == 3
    again = command("submit", "--each", "1-4", "--key", "k-{}", "--", "echo", "{}")
    assert ids_of(again)[:3] == ids_of(first) and len(ids_of(again)) == 4
    assert again.stderr == "submitted 1 task, 3 were there by their keys\n"
    keyed = [{"command": ["true"], "key": f"m{n}"} for n in range(3)]
    assert list(spool.submit_many(keyed)) == list(spool.submit_many(keyed))


def test_one_that_has_no_place_to_give_is_told_before_another_is_made(
    command: Command, spool: Spool
) -> None:
    done = spool.submit(["true"])
    command("launcher", "--idle-timeout", "0", check=True)
    ran = command("submit", "--replaces", done.id, "--", "true")
    failed(ran, ERROR, "is finished; replace is not possible")
    assert [task.id for task in spool.tasks()] == [done.id]


def test_a_program_here_is_meant_where_path_has_none(
    command: Command, tree: Tree, tmp_path: Path
) -> None:
    for name in ("mine", "true"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    [mine] = ids_of(command("submit", "mine", "7", cwd=str(tmp_path)))
    assert wanted(tree, mine)["command"] == [str(tmp_path / "mine"), "7"]
    [plain] = ids_of(command("submit", "true", cwd=str(tmp_path)))
    assert wanted(tree, plain)["command"] == ["true"]


def test_show_tells_kin_keys_and_who_took_its_place(command: Command, spool: Spool) -> None:
    bad = spool.submit(["false"], name="bad", key="only")
    kid = spool.submit(["true"], name="kid", after=[bad])
    assert f"after      {bad.id}\n" in command("show", kid.id).stdout
    assert "key        only\n" in command("show", bad.id).stdout
    command("launcher", "--idle-timeout", "0", check=True)
    [heir] = ids_of(command("submit", "--replaces", bad.id, "--", "true"))
    why = command("show", bad.id).stdout
    assert f"replaced by {heir}; before that, exit code 1" in why


def test_an_app_is_shown_whole(command: Command) -> None:
    words = ("--cores", "2", "--param", "t:float=300", "--param", "mode=ok", "--on-error", "./mend")
    command("app", "heat", *words, "--", "./heat", "{t}", "{mode}", check=True)
    shown = command("app", "heat").stdout
    assert "t:float=300.0, mode=ok" in shown and "cores_per_rank=2" in shown and "./mend" in shown
    assert len(command("app").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "meant"), [("cores", "cores_per_rank"), ("walltime", "time_limit"), ("env", "environ")]
)
def test_a_key_by_another_s_name_is_told(command: Command, key: str, meant: str) -> None:
    line = json.dumps({"command": "true", key: 2})
    ran = command("submit", "--from", "-", "--format", "jsonl", input=line)
    failed(ran, ERROR, f"did you mean '{meant}")


def test_a_task_that_runs_takes_no_parents_and_is_told_what_does(
    command: Command, spool: Spool
) -> None:
    other = spool.submit(["true"], hold=True)
    here = f"{sys.executable} -m spool.cli --spool {spool.root}"
    task = spool.submit(f"{here} modify $SPOOL_TASK --after {other.id}")
    command("launcher", "--idle-timeout", "0", check=True)
    assert f"spool submit --replaces {task.id} --after" in task.output
