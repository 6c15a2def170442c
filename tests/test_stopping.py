"""Tasks that must end: the first signal, the grace, the kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from spool.launcher.run import Running
from spool.launcher.stopping import Stops
from spool.queue.history import Story
from spool.queue.manifest import Manifest
from spool.queue.tasks import Task

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def running(pid: int, **wanted: object) -> Running:
    task = Task(
        "a.26112215-00-aaaaaaaaaa", "", b"", b"", Manifest(command=["true"], **wanted), Story()
    )
    return Running(task, None, None, 1, 0.0, time.monotonic(), pid=pid)


def test_stopping_a_task_that_has_just_ended_is_no_error():
    with subprocess.Popen(["true"], start_new_session=True) as gone:
        gone.wait()
        Stops({}).stop(running(gone.pid), "timeout")


def test_a_task_that_ignores_its_signal_is_killed_when_its_grace_is_over():
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout.readline()
        one = running(deaf.pid, grace=5)
        one.limit_at = one.started_at + 1
        stops = Stops({deaf.pid: one})
        stops.watch(one)
        assert stops.due_at == one.limit_at
        stops.enforce(one.limit_at - 0.5)
        assert not one.stopping
        stops.enforce(one.limit_at)
        assert one.stopping == "timeout" and deaf.poll() is None
        assert stops.due_at == one.kill_at
        stops.enforce(one.kill_at)
        assert deaf.wait(20) == -signal.SIGKILL


def test_all_are_asked_once_and_the_most_patient_tells_how_long_to_wait():
    tasks = {}
    with (
        subprocess.Popen(["sleep", "60"], start_new_session=True) as first,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as second,
    ):
        for child, grace in ((first, 7), (second, 3)):
            tasks[child.pid] = running(child.pid, grace=grace, signal="INT")
        stops = Stops(tasks)
        assert stops.longest_grace_s == 7
        stops.stop(tasks[first.pid], "cancelled")
        stops.stop_all("interrupted")
        assert [first.wait(20), second.wait(20)] == [-signal.SIGINT] * 2
    assert [one.stopping for one in tasks.values()] == ["cancelled", "interrupted"]
    assert Stops({}).longest_grace_s == 0
