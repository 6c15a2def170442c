"""Arrays end to end: real launchers, real elements, kills of all sorts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import crashing
import pytest
from conftest import eventually, where
from crashing import assert_sound, processes_of

from spool.array import Array
from spool.errors import NoSuchTask, Refused
from spool.queue import elements, files, history, layout, tasks
from spool.queue.layout import State, Tree

Command = Callable[..., subprocess.CompletedProcess[str]]


class Launchers:
    """Starts launchers, as processes."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, cores: int = 1, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "spool.cli", "--spool", self.tree.root, "launcher"]
        command += ["--cores", str(cores), "--idle-timeout", "0", "--quiet", *words]
        process = subprocess.Popen(command, start_new_session=True)
        self.started.append(process)
        return process

    def run(self, cores: int = 1, *words: str) -> None:
        assert self.start(cores, *words).wait(timeout=120) == 0


@pytest.fixture
def launcher(tree: Tree) -> Iterator[Launchers]:
    found = Launchers(tree)
    yield found
    for process in found.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    eventually(lambda: not processes_of(tree), "nothing of the launchers is left")


def spots(tree: Tree, array: Array) -> list[tasks.Spot]:
    return tasks.chunks(tree, array.id)


def ends(tree: Tree, array: Array) -> list[int]:
    """The elements whose ends are told, as often as they are."""
    return [
        line["element"]
        for spot in spots(tree, array)
        for line in elements.lines(spot.path(tree))
        if "what" not in line
    ]


def runners(tree: Tree) -> list[int]:
    """The processes that are runners."""
    found = []
    for pid in processes_of(tree):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [pid] if any(word.endswith(b"launcher/chunk.py") for word in words) else []
    return found


def runs(array: Array, number: int) -> Callable[[], bool]:
    """Whether an element is told to run."""
    return lambda: [one["state"] for one in array.elements(str(number))] == ["running"]


def words_of(tree: Tree, task_id: str) -> list[str]:
    spot = tasks.find(tree, task_id)
    assert spot is not None
    raw = files.read(f"{spot.path(tree)}/{layout.HISTORY}") or b""
    return [event["what"] for event in history.events(raw)]


# -- from submission to the end ------------------------------------------------------------------


def test_an_array_runs_all_its_elements_once_in_few_files(tree, spool, launcher):
    array = spool.submit_array(["sh", "-c", "echo {}"], array="0-99", chunk=30, name="all")
    assert [one.partition("@")[2] for one in array.chunks] == ["0-29", "30-59", "60-89", "90-99"]
    assert array.counts["left"] == 100
    launcher.run(2)
    assert array.counts == {"done": 100, "failed": 0, "cancelled": 0, "running": 0, "left": 0}
    assert sorted(ends(tree, array)) == list(range(100))
    assert [array.output(n) for n in (0, 29, 30, 99)] == ["0\n", "29\n", "30\n", "99\n"]
    for spot in spots(tree, array):
        assert spot.state is State.FINISHED
        assert len(files.names(spot.path(tree))) <= 12
    assert array.wait(timeout=5) and array.done
    assert_sound(tree)


def test_values_and_rows_from_python(tree, spool, launcher):
    rows = [{"t": 1.5, "s": "a b"}, {"t": 2, "s": "c"}]
    array = spool.submit_array(["echo", "{t}", "<{s}>"], array=rows, chunk=1)
    listed = spool.submit_array("echo {} $V", array=["x", "y"], environment={"V": "v-{}"})
    launcher.run(2)
    assert [array.output(n) for n in (0, 1)] == ["1.5 <a b>\n", "2 <c>\n"]
    assert [listed.output(n) for n in (0, 1)] == ["x v-x\n", "y v-y\n"]
    with pytest.raises(NoSuchTask, match="no element 2"):
        array.output(2)


def test_an_app_s_elements(tree, spool, launcher):
    Path(tree.app("say")).write_text('{"command": ["echo", "said"]}')
    array = spool.submit_array(app="say", args=["{}"], array="3-4")
    launcher.run()
    assert array.output(4) == "said 4\n"


def test_a_chunk_alone_runs_as_many_elements_side_by_side_as_cores_are_free(tree, spool, launcher):
    array = spool.submit_array(["sh", "-c", "echo $SPOOL_CORES; sleep 1"], array="0-7", chunk=8)
    launcher.run(4)
    (spot,) = spots(tree, array)
    told = list(elements.lines(spot.path(tree)))
    slots = {line["slot"] for line in told if line.get("what") == "running"}
    assert slots == {0, 1, 2, 3}
    assert {array.output(n) for n in range(8)} == {"1\n"}
    started = history.events(files.read(f"{spot.path(tree)}/history.jsonl") or b"")[0]
    assert len(started["cpus"]) == 4
    assert not [name for name in files.names(spot.path(tree)) if name.startswith("live")]


def test_failed_elements_put_their_chunk_aside_and_are_retried_alone(tree, spool, launcher):
    line = "echo $SPOOL_ATTEMPT; test {} != 7 || test -e mended"
    array = spool.submit_array(["sh", "-c", line], array="0-19", chunk=10)
    launcher.run(2)
    first, second = array.chunks
    assert where(tree, first).startswith("FAILED/elements@")
    assert where(tree, second).startswith("FINISHED/")
    event = history.events(files.read(f"{spots(tree, array)[0].path(tree)}/history.jsonl"))[-1]
    assert event["elements"] == {"done": 9, "failed": 1, "cancelled": 0, "left": 0, "ran": 10}
    Path(spots(tree, array)[0].path(tree), "mended").touch()
    array.retry()
    assert array.counts["left"] == 1
    launcher.run(2)
    assert array.counts["done"] == 20
    assert Counter(ends(tree, array)) == Counter(range(20)) + Counter([7])
    assert array.output(7) == "2\n"
    assert_sound(tree)


def test_an_array_that_finished_is_retried_by_naming_elements(tree, spool, launcher):
    array = spool.submit_array(["true"], array="0-9", chunk=5)
    launcher.run()
    with pytest.raises(Refused, match="no element that failed"):
        spool.retry(array.chunks[0])
    array.retry("3-6")
    assert array.counts == {"done": 6, "failed": 0, "cancelled": 0, "running": 0, "left": 4}
    launcher.run()
    assert Counter(ends(tree, array)) == Counter(range(10)) + Counter(range(3, 7))


def test_the_same_key_means_the_same_array(tree, spool):
    first = spool.submit_array(["true"], array="0-99", chunk=10, key="once")
    again = spool.submit_array(["true"], array="0-99", chunk=10, key="once")
    assert first.id == again.id and len(again.chunks) == 10


def test_a_child_waits_for_all_chunks(tree, spool, launcher):
    array = spool.submit_array(["sleep", "0.05"], array="0-9", chunk=3)
    child = spool.submit(["true"], after=[array])
    assert sorted(child.manifest.after) == sorted(array.chunks)
    assert where(tree, child.id).startswith("WAITING/")
    launcher.run(2)
    assert child.state is State.FINISHED and array.done
    assert_sound(tree)


# -- kills ---------------------------------------------------------------------------------------


def test_a_killed_runner_loses_only_the_element_that_ran(tree, spool, launcher):
    line = "echo {}; test {} != 5 || test $SPOOL_ATTEMPT$(ls | grep -c once) != 10 || { touch once;"
    line += " sleep 60; }"
    array = spool.submit_array(["sh", "-c", line], array="0-9")
    process = launcher.start()
    eventually(runs(array, 5), "element 5 runs")
    (runner,) = runners(tree)
    os.kill(runner, signal.SIGKILL)
    assert process.wait(timeout=60) == 0
    assert array.counts["done"] == 10
    assert sorted(ends(tree, array)) == list(range(10))
    (chunk,) = array.chunks
    assert words_of(tree, chunk) == ["start", "lost", "start", "exit"]
    assert_sound(tree)


def test_a_killed_launcher_s_chunk_is_taken_over_and_goes_on_where_it_was(tree, spool, launcher):
    line = "test {} != 5 || test -e once || { touch once; exec env -i sleep 60; }"
    array = spool.submit_array(["sh", "-c", line], array="0-9", chunk=10)
    process = launcher.start()
    eventually(runs(array, 5), "element 5 runs")
    time.sleep(0.3)  # the guard has been told of the runner's session
    process.kill()
    process.wait()
    eventually(lambda: not processes_of(tree), "the guard has killed the runner")
    launcher.run()
    assert array.counts["done"] == 10
    assert sorted(ends(tree, array)) == list(range(10))
    assert words_of(tree, array.chunks[0]) == ["start", "lost", "start", "exit"]
    assert not sleepers(), "an element without the mark of its launcher outlived it"
    assert_sound(tree)


def sleepers() -> list[int]:
    """Elements of the test above that wiped their environment."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes()
            bare = Path(f"/proc/{entry}/environ").read_bytes() == b""
        except OSError:
            continue
        if words == b"sleep\x0060\x00" and bare:
            found.append(int(entry))
    return found


def test_an_interrupted_chunk_that_got_on_is_not_charged(tree, spool, launcher):
    line = "test {} != 3 || test -e once || { touch once; exec sleep 60; }"
    keys = {"array": "0-9", "chunk": 10, "max_interrupted": 0, "grace": 1}
    array = spool.submit_array(["sh", "-c", line], **keys)
    process = launcher.start()
    eventually(runs(array, 3), "element 3 runs")
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    (chunk,) = array.chunks
    assert where(tree, chunk).startswith("READY/")
    assert words_of(tree, chunk)[:2] == ["start", "interrupted"]
    launcher.run()
    assert array.counts["done"] == 10 and sorted(ends(tree, array)) == list(range(10))
    assert_sound(tree)


def test_a_draining_launcher_lets_the_element_end_and_leaves_the_rest(tree, spool, launcher):
    array = spool.submit_array(["sleep", "1"], array="0-99", chunk=100)
    process = launcher.start()
    eventually(runs(array, 0), "element 0 runs")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    counts = array.counts
    assert 1 <= counts["done"] <= 3 and counts["done"] + counts["left"] == 100
    assert where(tree, array.chunks[0]).startswith("READY/")


def test_a_killed_element_has_failed_and_the_others_go_on(tree, spool, launcher):
    array = spool.submit_array(["sh", "-c", "test {} != 2 || kill -9 $$"], array="0-9")
    launcher.run()
    assert array.counts["failed"] == 1 and array.counts["done"] == 9
    (two,) = array.elements("2")
    assert (two["state"], two["signal"]) == ("failed", 9)


def test_a_time_limit_is_an_element_s(tree, spool, launcher):
    line = "test {} != 2 || exec sleep 60; sleep 0.3"
    array = spool.submit_array(["sh", "-c", line], array="0-4", time_limit=2, grace=1)
    launcher.run()
    assert array.counts["failed"] == 1 and array.counts["done"] == 4
    assert next(array.elements("2"))["timeout"] is True


def test_chunks_run_on_other_nodes_too_and_are_cancelled_there(tree, spool, launcher):
    line = "echo $SPOOL_NODE; sleep 0.05; test {} -lt 90 || exec sleep 60"
    array = spool.submit_array(["sh", "-c", line], array="0-99", chunk=10, grace=1)
    nodes = ("--nodes", "3", "--cores-per-node", "1")
    words = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "launcher", *nodes]
    process = subprocess.Popen([*words, "--idle-timeout", "0", "--quiet"], start_new_session=True)
    launcher.started.append(process)
    eventually(lambda: array.counts["done"] == 90 and array.counts["running"] == 1, "the last runs")
    array.cancel("90-98")
    eventually(runs(array, 99), "the last of all runs")
    array.cancel("99")
    assert process.wait(timeout=60) == 0
    assert array.counts == {"done": 90, "failed": 0, "cancelled": 10, "running": 0, "left": 0}
    assert sorted(set(ends(tree, array)) & set(range(90))) == list(range(90))
    assert len({array.output(n).strip() for n in range(90)}) >= 2  # a rank may be late
    assert_sound(tree)


# -- cancel --------------------------------------------------------------------------------------


def test_elements_of_a_chunk_that_waits_are_cancelled_by_a_line(tree, spool, launcher):
    array = spool.submit_array(["true"], array="0-29", chunk=10)
    array.cancel("3-5,12,20-29")
    assert where(tree, array.chunks[2]).startswith("CANCELLED/")
    assert array.counts["cancelled"] == 14
    launcher.run()
    assert sorted(ends(tree, array)) == [n for n in range(20) if n not in (3, 4, 5, 12)]
    array.retry("4")
    launcher.run()
    assert 4 in ends(tree, array) and 3 not in ends(tree, array)


def test_a_killed_cancel_of_elements_leaves_them_cancelled_or_not_and_the_chunk_whole(tree, spool):
    arrays: list[Array] = []

    def prepare() -> crashing.Scenario:
        arrays.append(spool.submit_array(["true"], array="0-9"))

        def cancels(tell: crashing.Tell) -> None:
            arrays[-1].cancel("3-5")
            tell("promised")

        return cancels

    for point, ended in crashing.killed_at_each_call(prepare):
        crashing.recovered(tree, point)
        (chunk,) = arrays[-1].chunks
        assert where(tree, chunk).startswith("READY/"), point
        cancelled = arrays[-1].counts["cancelled"]
        assert cancelled == 3 or (cancelled == 0 and not ended.told), point


def test_elements_are_cancelled_where_they_run(tree, spool, launcher):
    array = spool.submit_array(
        ["sh", "-c", "test {} != 2 || exec sleep 60"], array="0-9", chunk=10, grace=1
    )
    process = launcher.start()
    eventually(runs(array, 2), "element 2 runs")
    array.cancel("2,5")
    assert process.wait(timeout=60) == 0
    assert array.counts == {"done": 8, "failed": 0, "cancelled": 2, "running": 0, "left": 0}
    assert where(tree, array.chunks[0]).startswith("FINISHED/")
    assert next(array.elements("2"))["cancelled"] is True
    assert_sound(tree)


def test_an_array_is_cancelled_where_it_runs_and_where_it_waits(tree, spool, launcher):
    array = spool.submit_array(["sleep", "60"], array="0-5", chunk=2, grace=1)
    process = launcher.start()
    eventually(lambda: any(s.state is State.RUNNING for s in spots(tree, array)), "it runs")
    eventually(lambda: array.counts["running"] == 1, "an element runs")
    array.cancel(reason="enough")
    assert process.wait(timeout=60) == 0
    assert {spot.state for spot in spots(tree, array)} == {State.CANCELLED}
    assert_sound(tree)


# -- the command line ----------------------------------------------------------------------------


def test_the_tour_of_an_array(tree: Tree, command: Command, launcher: Launchers) -> None:
    words = ("submit", "--array", "0-39", "--chunk", "10", "--name", "fit", "--json", "--")
    told = json.loads(command(*words, "sh", "-c", "echo {}; test {} != 17").stdout)
    assert (told["elements"], told["chunks"]) == (40, 4)
    array = told["id"]
    assert command("ls").stdout.split() == ["array", "40", "left", array]
    assert command("cancel", f"{array}[3-5]").stdout.strip().endswith(f"{array}@0-9")
    launcher.run(2)
    (line,) = command("ls", "--json").stdout.splitlines()
    assert json.loads(line)["elements"]["done"] == 36
    assert json.loads(line)["chunks"] == {"FINISHED": 3, "FAILED": 1}
    listed = command("ls", f"{array}[15-18]").stdout.splitlines()
    assert [one.split()[0] for one in listed] == ["done", "done", "failed", "done"]
    assert command("ls", "--elements", "fit").stdout.count("\n") == 40
    assert command("log", f"{array}[17]").stdout == "17\n"
    shown = json.loads(command("show", f"{array}[17]", "--json").stdout)
    assert (shown["state"], shown["value"], shown["history"][-1]["code"]) == ("failed", "17", 1)
    assert "36 done 1 failed 3 cancelled" in command("show", array).stdout
    assert command("wait", array).returncode == 3
    assert command("retry", array).stdout.strip().endswith(f"{array}@10-19")
    assert command("cancel", array).stdout.startswith("CANCELLED/")
    assert command("check").returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("submit", "--array", "0-9", "--nodes", "2", "--", "x"), "not possible for the elements"),
        (("submit", "--array", "0-9", "--each", "1-2", "--", "x"), "an array is submitted alone"),
        (("submit", "--chunk", "5", "--", "x"), "say which elements"),
        (("submit", "--array", "7-1", "--", "x"), "runs backwards"),
        (("submit", "--array", "0-99999999", "--chunk", "1", "--", "x"), "--chunk 10000 or more"),
        (("log", "fit[3]"), "no array 'fit' with an element 3"),
        (("cancel", "nothing[3]"), "no task matches 'nothing[3]'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    tree: Tree, command: Command, words: tuple[str, ...], says: str
) -> None:
    ran = command(*words)
    assert ran.returncode and says in ran.stderr, ran.stderr


def test_the_log_of_an_array_asks_for_an_element(tree, spool, command):
    array = spool.submit_array(["true"], array="5-9")
    said = command("log", array.id).stderr
    assert f"name an element of it: spool log '{array.id}[5]'" in said


def test_output_is_seen_while_an_element_runs(tree, spool, command, launcher):
    array = spool.submit_array(["sh", "-c", "echo begun; exec sleep 60"], array="0-3", grace=1)
    process = launcher.start()
    eventually(runs(array, 0), "element 0 runs")
    assert command("log", f"{array.id}[0]").stdout == "begun\n"
    assert "running" in command("ls", f"{array.id}[0]").stdout
    array.cancel()
    process.wait(timeout=60)


# -- the door ------------------------------------------------------------------------------------


def drop(tree: Tree, name: str, manifest: dict[str, object], **extra: str) -> None:
    folder = Path(tree.folder("tmp"), "drop")
    folder.mkdir()
    for file, text in extra.items():
        (folder / file).write_text(text)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    folder.rename(Path(tree.state(State.CREATED), name))


def test_an_arrival_with_elements_is_one_chunk(tree, spool, launcher):
    drop(tree, "scan", {"command": ["echo", "{}"], "array": "0-9"}, outputs="forged")
    launcher.run()
    (spot,) = tasks.spots(tree, (State.FINISHED,))
    assert spot.id.startswith("scan.") and spot.id.endswith("@0-9")
    array = spool.array(spot.id)
    assert array.output(9) == "9\n" and array.counts["done"] == 10


def test_a_chunk_keeps_its_id_through_a_source_s_door(tree, spool, launcher):
    name = "fit.26112215-4k-k3f9x2q7bd@0-4"
    Path(tree.state(State.CREATED), "@0-9").mkdir()
    drop(tree, f"@0-9/{name}", {"command": ["true"], "array": "0-9", "chunk": "0-4"})
    launcher.run()
    (spot,) = tasks.spots(tree, (State.FINISHED,))
    assert spot.id == name
    assert tasks.load(spot.path(tree), name).story.arrived["source"] == "0-9"


@pytest.mark.parametrize(
    ("name", "manifest", "extra", "says"),
    [
        ("fit.26112215-4k-k3f9x2q7bd@0-9", {"array": "0-4"}, {}, "its id says others"),
        ("few", {"array": "values 0-4"}, {"values": "1\n2\n"}, "has 2 lines, 5 elements"),
        ("wide", {"array": "0-4", "nodes": 2}, {}, "not possible for the elements"),
    ],
)
def test_an_arrival_that_is_no_chunk_is_rejected(
    tree: Tree, launcher: Launchers, name: str, manifest: dict[str, object],
    extra: dict[str, str], says: str,
) -> None:  # fmt: skip
    drop(tree, name, {"command": ["true"], **manifest}, **extra)
    launcher.run()
    (spot,) = tasks.spots(tree, (State.FAILED,))
    assert spot.group.startswith("rejected@")
    story = history.fold(files.read(f"{spot.path(tree)}/{layout.HISTORY}"))
    assert says in story.stopped["reason"]


@pytest.mark.parametrize("verb", ["rm", "hold", "release", "modify"])
def test_a_verb_on_tasks_takes_no_elements(tree, spool, command, verb):
    array = spool.submit_array(["true"], array="0-9", chunk=5)
    more = ("--priority", "3") if verb == "modify" else ()
    before = spots(tree, array)
    ran = command(verb, f"{array.id}[3]", *more)
    assert ran.returncode == 2 and f"{verb} takes whole tasks" in ran.stderr
    assert spots(tree, array) == before


def test_elements_are_listed_by_their_own_state(tree, spool, command, launcher):
    array = spool.submit_array("test {} != 7", array="0-9", chunk=5)
    launcher.run()
    failed = command("ls", "--elements", "--state", "FAILED").stdout.split("\n")[:-1]
    assert [line.split()[-1] for line in failed] == [f"{array.id}[7]"]
    done = command("ls", f"{array.id}[6-8]", "--state", "FINISHED").stdout
    assert "[6]" in done and "[8]" in done and "[7]" not in done
    refused = command("cancel", f"{array.id}[7]")
    assert refused.returncode == 1 and "is failed; cancel is not possible" in refused.stderr


def test_what_waits_for_an_array_is_drawn_once(tree, spool, command):
    array = spool.submit_array(["true"], array="0-9", chunk=5)
    kid = command("submit", "--after", array.id, "--", "true").stdout.strip()
    drawn = command("tree").stdout.splitlines()
    assert drawn == [f"{array.id}  chunks: 2 READY", f"| {kid}  WAITING"]
    assert len(command("tree", "--json").stdout.splitlines()) == 3
    assert f"after      {array.id}\n" in command("show", kid).stdout


def test_the_history_of_an_array_asks_for_a_chunk(tree, spool, command):
    array = spool.submit_array(["true"], array="5-14", chunk=5)
    said = command("history", array.id)
    assert said.returncode == 1 and f"'{array.id}@5-9', '{array.id}[5]'" in said.stderr
    assert command("history", f"{array.id}[7]").returncode == 0
