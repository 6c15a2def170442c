"""What tasks leave behind becomes the launcher's child, and is killed at its own task's end.

A child subreaper stays one for life, so each test is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import atexit, os, signal, sys, threading, time
from spool.launcher.children import Children, become_subreaper
from spool.queue.processes import process_start

def alive(pid):
    return process_start(pid) is not None

def task(name, line):
    "A task's first process, in a session of its own."
    marked = {**os.environ, "SPOOL_TASK": name}
    return os.posix_spawn("/bin/sh", ["sh", "-c", line], marked, setsid=True)

def ended(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def eventually(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def told(name):
    "The process id that a task wrote into a file of this name."
    eventually(lambda: os.path.exists(name) and open(name).read().endswith("\\n"))
    with open(name) as file:
        return int(file.read())

def leave_nothing():
    while left := children._read().split():
        for pid in map(int, left):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

become_subreaper()
atexit.register(leave_nothing)
guard = task("", "exec sleep 1000")
children = Children()
children.ours.add(guard)
"""


@pytest.fixture
def alone(tmp_path):
    """alone(text) runs a test's text as a process; its assertions are ours."""

    def run(text):
        words = [sys.executable, "-c", PRELUDE + text]
        left = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert left.returncode == 0, left.stderr

    return run


def test_a_daemon_in_a_session_of_its_own_dies_with_its_task(alone):
    alone("""
a = task("a", "setsid sleep 1000 & echo $! > daemon")
ended(a)
daemon = told("daemon")
eventually(lambda: children.orphans({a}) == [daemon])
assert children.end_task("a", a, {a: "a"})
assert not alive(daemon)
assert children.orphans({a}) == []
""")


def test_a_daemon_of_a_task_that_still_runs_is_left_alone(alone):
    alone("""
a = task("a", "setsid sleep 1000 & echo $! > of-a")
b = task("b", "(setsid sleep 1000 & echo $! > of-b); exec sleep 1000")
ended(a)
of_a, of_b = told("of-a"), told("of-b")
running = {a: "a", b: "b"}
eventually(lambda: sorted(children.orphans(running)) == sorted([of_a, of_b]))
assert children.end_task("a", a, running)
assert not alive(of_a)
assert alive(of_b) and alive(b)
os.kill(b, signal.SIGKILL)
ended(b)
assert children.end_task("b", b, {b: "b"})
assert not alive(of_b)
""")


def test_a_daemon_without_an_environment_dies_with_the_last_task_that_may_have_left_it(alone):
    alone("""
a = task("a", "env -i setsid sleep 1000 & echo $! > daemon")
b = task("b", "exec sleep 1000")
ended(a)
daemon = told("daemon")
eventually(lambda: open(f"/proc/{daemon}/cmdline", "rb").read().startswith(b"sleep"))
assert children.end_task("a", a, {a: "a", b: "b"})
os.waitpid(a, 0)
assert alive(daemon)
c = task("c", "exec sleep 1000")
os.kill(b, signal.SIGKILL)
ended(b)
assert children.end_task("b", b, {b: "b", c: "c"})
assert not alive(daemon)
assert alive(c)
""")


def test_whole_trees_die_and_what_ignores_signals_too(alone):
    alone("""
line = "trap '' TERM HUP INT; setsid sh -c 'sleep 1000 & sleep 1000 & echo $$ > top; wait' &"
a = task("a", line + " sleep 1000 & echo $! > same-group")
ended(a)
top, same_group = told("top"), told("same-group")
assert children.end_task("a", a, {a: "a"})
assert not alive(top) and not alive(same_group)
assert children.orphans({a}) == []
""")


def test_a_task_that_left_nothing_costs_no_kill(alone):
    alone("""
a, b = task("a", "true"), task("b", "exec sleep 1000")
ended(a)
assert children.orphans({a, b}) == []
assert children.end_task("a", a, {a: "a", b: "b"})
assert alive(b) and alive(guard)
""")


def test_orphans_are_found_among_hundreds_of_children(alone):
    alone("""
running = {task(str(number), "exec sleep 1000") for number in range(600)}
assert children.orphans(running) == []
a = task("a", "setsid sleep 1000 & echo $! > daemon")
ended(a)
daemon = told("daemon")
eventually(lambda: children.orphans({*running, a}) == [daemon])
""")
