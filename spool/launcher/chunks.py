"""chunks - a chunk of an array for its launcher: its runner, what that is told, what it tells.

Owns   chunk.json, the words that start the runner (chunk.py), the counts in a chunk's exit line.
Never  runs an element.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from spool import units
from spool.launcher import chunk
from spool.launcher.run import Running
from spool.queue import array, elements, files, layout, manifest
from spool.queue.tasks import Task


def width(running: Running) -> int:
    """How many elements run side by side in what a chunk was given."""
    return max(1, len(running.grants[0].cpus) // running.shape.cores)


def prepare(running: Running, words: list[str], *, pin: bool) -> list[str]:
    """Say what is wanted of a chunk; the words that start its runner."""
    write(running.task, {**_fixed(running, words, pin), **_changing(running.task)})
    return [sys.executable, "-I", "-S", chunk.__file__]


def _fixed(running: Running, words: list[str], pin: bool) -> dict[str, Any]:
    wanted, cpus, cores = running.task.manifest, running.grants[0].cpus, running.shape.cores
    numbers = wanted.elements
    assert numbers is not None
    slots = [cpus[at * cores : (at + 1) * cores] for at in range(width(running))]
    return {
        "words": words,
        "environment": {key: text for key, text in wanted.environment.items() if "{" in text},
        "array": layout.array_of(running.task.id),
        "numbers": [numbers.first, numbers.last, numbers.step, numbers.width],
        "values": numbers.values,
        "slots": slots,
        "pin": pin,
        "output": wanted.output,
        "signal": manifest.signal_number(wanted.signal),
    }


def _changing(task: Task) -> dict[str, Any]:
    """What may change while it runs."""
    wanted = task.manifest
    skip = array.parse_some(wanted.skip)
    return {
        "grace": units.duration(wanted.grace),
        "time_limit": wanted.time_limit_s,
        "max_attempts": wanted.max_attempts,
        "backoff": units.duration(wanted.backoff),
        "skip": [[one.start, one.stop - 1] for one in skip.ranges],
    }


def write(task: Task, spec: dict[str, Any]) -> None:
    """Write chunk.json, which its runner reads."""
    files.replace(f"{task.path}/{layout.CHUNK}", json.dumps(spec).encode() + b"\n")


def changed(running: Running, **more: Any) -> None:
    """Let a runner know what was changed."""
    path = f"{running.task.path}/{layout.CHUNK}"
    try:
        spec = json.loads(files.read(path) or b"")
    except ValueError:
        return  # an element took it away: the change holds from the next start on
    write(running.task, {**spec, **_changing(running.task), **more})
    with suppress(ProcessLookupError, PermissionError):
        os.kill(running.pid, signal.SIGURG)


def drain(running: Running) -> None:
    """Let a runner start no more elements, and end when those that run have ended."""
    changed(running, drain=True)


def cut_short(running: Running, status: int) -> str:
    """Whether a runner's end is none of its chunk's: lost, interrupted, or "" if it is one."""
    if os.WIFSIGNALED(status):
        return "lost"
    return "interrupted" if os.WEXITSTATUS(status) == chunk.LEFT else ""


def counts(running: Running) -> dict[str, Any]:
    """How many of a chunk's elements are done, failed, cancelled and left; ran: in this attempt."""
    task = running.task
    told = elements.told_at_end(task.path)
    return told or {**elements.counts(task.path, task.manifest), "ran": 0}
