"""Reading /proc: what a process carries, also while it is becoming another program."""

from __future__ import annotations

import os
import subprocess

from spool.queue import processes

AGAIN = '[ $1 -lt 300 ] && exec sh -c "$0" "$0" $(($1 + 1))'
"""A program that does little but become itself anew."""


def test_a_process_keeps_its_mark_while_it_becomes_another_program() -> None:
    """In the midst of execve(2) it shows no environment: it was nobody's, and outlived its task."""
    marked = {**os.environ, processes.TASK: "mine"}
    with subprocess.Popen(["sh", "-c", AGAIN, AGAIN, "0"], env=marked) as one:
        found = []
        while processes.process_start(one.pid) is not None:
            carried = processes.environment(one.pid).get(b"SPOOL_TASK")
            if processes.process_start(one.pid) is not None:
                found.append(carried == b"mine")
    assert len(found) > 100
    assert found.count(False) < len(found) / 200  # two looks may meet two execs; one in 20 before


def test_what_has_no_environment_at_all_is_not_waited_for() -> None:
    with subprocess.Popen(["sleep", "60"], env={}) as one:
        try:
            assert processes.environment(one.pid) == {}
        finally:
            one.kill()
    assert processes.environment(one.pid) == {}  # gone
    assert processes.environment(2) == {}  # a kernel thread, or nobody
