"""The runner of a chunk by itself: a real process in a directory with chunk.json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

from spool.launcher import chunk
from spool.queue import elements, manifest

SPEC: dict[str, Any] = {
    "words": ["true"], "environment": {}, "array": "a.26112215-4k-k3f9x2q7bd",
    "numbers": [0, 9, 1, 0], "values": False, "slots": [[0]], "pin": True, "output": "together",
    "signal": 15, "grace": 5.0, "time_limit": 0.0, "max_attempts": 1, "backoff": 0.0, "skip": [],
}  # fmt: skip


class Place:
    """A chunk's directory, and its runner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[bytes]] = []
        self.spec = dict(SPEC)

    def start(self, **spec: Any) -> subprocess.Popen[bytes]:
        self.spec.update(spec)
        self.write()
        words = [sys.executable, "-I", "-S", chunk.__file__]
        process = subprocess.Popen(words, cwd=self.path, start_new_session=True)
        self.processes.append(process)
        return process

    def write(self) -> None:
        (self.path / "new").write_text(json.dumps(self.spec))
        (self.path / "new").rename(self.path / "chunk.json")

    def run(self, *words: str, **spec: Any) -> int:
        return self.start(**spec, **({"words": list(words)} if words else {})).wait(timeout=60)

    def table(self) -> elements.Table:
        first, last, _, _ = self.spec["numbers"]
        asked = {
            "command": ["x"], "array": f"{first}-{last}",
            "max_attempts": self.spec["max_attempts"],
            "skip": ",".join(f"{a}-{b}" for a, b in self.spec["skip"]),
        }  # fmt: skip
        return elements.Table(str(self.path), manifest.from_mapping(asked, "m"), running=True)

    def states(self) -> dict[str, int]:
        return {state: count for state, count in self.table().counts().items() if count}

    def ends(self) -> list[dict[str, Any]]:
        return [line for line in elements.lines(str(self.path)) if "what" not in line]

    def said(self, number: int, stream: str = "outputs") -> bytes:
        return elements.output(str(self.path), self.table().element(number), stream)

    def names(self) -> set[str]:
        return {entry.name for entry in self.path.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path)
    yield one
    for process in one.processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_every_element_runs_once_with_its_number_and_output(place: Place) -> None:
    code = place.run("sh", "-c", "echo {} $SPOOL_ELEMENT $SPOOL_ATTEMPT $SPOOL_ARRAY; echo e >&2")
    assert code == 0
    assert [line["element"] for line in place.ends()] == list(range(10))
    for number in range(10):
        assert place.said(number) == b"%d %d 1 a.26112215-4k-k3f9x2q7bd\ne\n" % (number, number)
    assert place.names() == {"chunk.json", "elements.jsonl", "outputs"}
    assert elements.told_at_end(str(place.path)) == {
        "done": 10, "failed": 0, "cancelled": 0, "left": 0, "ran": 10,
    }  # fmt: skip


def test_streams_apart_and_none(place: Place) -> None:
    assert place.run("sh", "-c", "echo o{}; echo e{} >&2", output="apart") == 0
    assert (place.said(3), place.said(3, "errors")) == (b"o3\n", b"e3\n")
    assert place.names() == {"chunk.json", "elements.jsonl", "outputs", "errors"}


def test_no_output_where_none_is_wanted(place: Place) -> None:
    assert place.run("echo", "x", output="none") == 0
    assert place.names() == {"chunk.json", "elements.jsonl"}
    assert place.said(3) == b""


def test_large_output_stands_where_its_line_says(place: Place) -> None:
    line = "head -c 3000000 /dev/zero | tr '\\0' x; echo {}"
    assert place.run("sh", "-c", line, numbers=[0, 2, 1, 0]) == 0
    assert place.said(1) == b"x" * 3_000_000 + b"1\n"


def test_values_fill_places_in_words_and_environment(place: Place) -> None:
    rows = [{"t": "1.5", "n": 2, "z": None}, {"t": "a b", "n": 3, "z": True}]
    (place.path / "values").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = 'echo "{t}/{n}/{z}/${t}x/{other}/$T/$SPOOL_VALUE"'
    code = place.run(
        "sh", "-c", line, numbers=[0, 1, 1, 0], values=True, environment={"T": "T={t}"}
    )
    assert code == 0
    assert place.said(0) == b'1.5/2//x/{other}/T=1.5/{"t": "1.5", "n": 2, "z": null}\n'
    assert place.said(1).startswith(b"a b/3/true/x/{other}/T=a b/")


def test_plain_values_and_padded_numbers(place: Place) -> None:
    (place.path / "values").write_text('"x y"\n7\n')
    assert place.run("echo", "<{}>", numbers=[5, 6, 1, 0], values=True) == 0
    assert (place.said(5), place.said(6)) == (b"<x y>\n", b"<7>\n")


def test_numbers_are_padded(place: Place) -> None:
    assert place.run("echo", "{}", numbers=[7, 9, 2, 3]) == 0
    assert (place.said(7), place.said(9)) == (b"007\n", b"009\n")


def test_a_failed_element_is_tried_again_and_the_others_go_on(place: Place) -> None:
    line = "echo $SPOOL_ATTEMPT; test {} != 3 || test $SPOOL_ATTEMPT = 3"
    assert place.run("sh", "-c", line, max_attempts=3, backoff=0.1) == 0
    assert [line["attempt"] for line in place.ends() if line["element"] == 3] == [1, 2, 3]
    assert [line["element"] for line in place.ends()][-2:] == [3, 3]
    assert place.said(3) == b"3\n"


def test_failures_are_told_by_code_and_signal(place: Place) -> None:
    line = "case {} in 1) exit 7;; 2) kill -9 $$;; esac"
    assert place.run("sh", "-c", line) == 1
    assert place.states() == {"done": 8, "failed": 2}
    assert place.table().last[1]["code"] == 7 and place.table().last[2]["signal"] == 9


def test_a_program_that_is_not_there_fails_every_element(place: Place) -> None:
    assert place.run("no-such-program", "{}") == 1
    assert place.states() == {"failed": 10}
    assert "no such program on PATH" in place.table().last[0]["error"]
    assert place.table().last[0]["code"] == 127


def test_an_element_is_stopped_at_its_time_limit_with_grace_then_killed(place: Place) -> None:
    line = "test {} = 1 && { trap 'echo caught' TERM; while :; do sleep 0.05; done; }; true"
    begun = time.monotonic()
    code = place.run("sh", "-c", line, numbers=[0, 3, 1, 0], time_limit=0.4, grace=0.4)
    assert code == 1 and 0.7 < time.monotonic() - begun < 20
    assert place.table().last[1] | {"timeout": True, "signal": 9} == place.table().last[1]
    assert b"caught\n" in place.said(1)
    assert place.states() == {"done": 3, "failed": 1}


def test_a_restart_runs_only_what_has_no_success(place: Place) -> None:
    assert place.run("sh", "-c", "test {} != 4") == 1
    assert place.run("sh", "-c", "true") == 1  # its attempts are used up
    assert len(place.ends()) == 10
    elements.ask_again(str(place.path), None)
    assert place.states() == {"done": 9, "left": 1}
    assert place.run("sh", "-c", "echo again") == 0
    assert len(place.ends()) == 11 and place.said(4) == b"again\n"
    assert place.table().last[4]["attempt"] == 2


def test_named_elements_run_again_though_they_succeeded(place: Place) -> None:
    assert place.run() == 0
    elements.ask_again(str(place.path), place.table().skip.__class__([range(2, 5)]))
    assert place.states() == {"done": 7, "left": 3}
    assert place.run() == 0
    assert [line["element"] for line in place.ends()[10:]] == [2, 3, 4]


def test_a_torn_line_is_ended_and_passed_over(place: Place) -> None:
    assert place.run("true", numbers=[0, 4, 1, 0]) == 0
    with open(place.path / "elements.jsonl", "ab") as file:
        file.write(b'{"element": 7, "att')
    place.spec["numbers"] = [0, 9, 1, 0]
    assert place.run() == 0
    assert place.states() == {"done": 10}
    assert sorted(line["element"] for line in place.ends()) == list(range(10))


def running(place: Place, number: int) -> Callable[[], bool]:
    return lambda: place.table().state(number) == elements.RUNNING


def test_on_term_elements_are_stopped_and_the_rest_is_left(place: Place) -> None:
    process = place.start(words=["sh", "-c", "test {} -lt 4 || { echo {}; exec sleep 60; }"])
    eventually(running(place, 4))
    assert place.said(4) == b"4\n"  # while it runs
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == chunk.LEFT
    assert place.states() == {"done": 4, "left": 6}
    assert elements.told_at_end(str(place.path)) == {
        "done": 4, "failed": 0, "cancelled": 0, "left": 6, "ran": 4,
    }  # fmt: skip
    assert place.run("true") == 0
    assert [line["element"] for line in place.ends()] == list(range(10))
    assert place.table().last[4]["attempt"] == 2


def test_an_element_that_ignores_the_signal_is_killed_after_its_grace(place: Place) -> None:
    process = place.start(words=["sh", "-c", "trap '' TERM; sleep 60"], grace=0.3)
    eventually(running(place, 0))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == chunk.LEFT


def test_a_killed_runner_loses_only_what_ran(place: Place) -> None:
    process = place.start(words=["sh", "-c", "echo {}; test {} -lt 6 || exec sleep 60"])
    eventually(running(place, 6))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for pid in marked_by_session(process.pid):
        os.kill(pid, signal.SIGKILL)
    assert place.run("sh", "-c", "echo new {}") == 0
    assert [line["element"] for line in place.ends()] == list(range(10))
    assert [place.said(n) for n in (5, 6)] == [b"5\n", b"new 6\n"]


def marked_by_session(session: int) -> list[int]:
    """The processes that a runner left: they are in its session, for the guard to find."""
    from spool.queue import processes

    found = map(int, filter(str.isdigit, os.listdir("/proc")))
    left = [pid for pid in found if processes.session(pid) == session]
    assert left
    return left


def test_elements_that_are_cancelled_while_it_runs(place: Place) -> None:
    process = place.start(words=["sh", "-c", "test {} != 2 || exec sleep 60"])
    eventually(running(place, 2))
    place.spec["skip"] = [[2, 4]]
    place.write()
    process.send_signal(signal.SIGURG)
    assert process.wait(timeout=20) == 0
    assert place.states() == {"done": 7, "cancelled": 3}
    assert place.table().last[2]["cancelled"] is True


def test_a_changed_time_limit_holds_at_once(place: Place) -> None:
    process = place.start(words=["sh", "-c", "exec sleep 60"], numbers=[0, 0, 1, 0])
    eventually(running(place, 0))
    place.spec["time_limit"] = 0.1
    place.write()
    process.send_signal(signal.SIGURG)
    assert process.wait(timeout=20) == 1
    assert place.table().last[0]["timeout"] is True


def test_drained_it_lets_what_runs_end(place: Place) -> None:
    process = place.start(words=["sh", "-c", "exec sleep 1"])
    eventually(running(place, 0))
    place.spec["drain"] = True
    place.write()
    process.send_signal(signal.SIGURG)
    assert process.wait(timeout=20) == chunk.LEFT
    assert place.states() == {"done": 1, "left": 9}


def test_slots_run_side_by_side_each_on_its_cores(place: Place) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2] * 4
    line = "echo $SPOOL_CPUS; grep Cpus_allowed_list /proc/self/status; sleep 0.5"
    begun = time.monotonic()
    slots = [[core] for core in cores[:4]]
    assert place.run("sh", "-c", line, slots=slots, numbers=[0, 7, 1, 0]) == 0
    took = time.monotonic() - begun
    spread = sum(line["elapsed_s"] for line in place.ends())
    assert spread > 2 * took, (spread, took)
    for number in range(8):
        told, allowed = place.said(number).decode().splitlines()
        assert allowed.split()[-1] == told


def test_what_an_element_leaves_in_its_group_dies_with_it(place: Place) -> None:
    line = "sleep 600 & echo $!"
    assert place.run("sh", "-c", line, numbers=[0, 2, 1, 0]) == 0
    for number in range(3):
        pid = int(place.said(number))
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or zombie(pid))


def zombie(pid: int) -> bool:
    from spool.queue import processes

    return processes.process_start(pid) is None


def test_a_chunk_whose_values_do_not_fit_says_so(place: Place) -> None:
    (place.path / "values").write_text("1\n")
    assert place.run(values=True) == chunk.BROKEN
