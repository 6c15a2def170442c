"""hooks - the steps of a stage: what each runs, in which environment, and what its end means.

Owns   the order of steps; the variables of hooks and handlers; the reading of a handler's decision.
Never  starts a process, moves a task or writes its history: a stager does.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spool import units
from spool.errors import ManifestError, SpoolError
from spool.launcher import run
from spool.launcher.run import Running
from spool.queue import apps, files, history, layout, stages, tasks
from spool.queue.kinds import Command
from spool.queue.layout import Tree
from spool.queue.tasks import Task

NEXT_LONGEST = 65536
SUCCESS = "success"


class Step(NamedTuple):
    """One part of a stage, a child process of its own. log is the file that it writes to."""

    name: str
    log: str
    command: Command = None

    @property
    def carries(self) -> bool:
        """Whether it moves data, and no hook's command."""
        return self.command is None


@dataclass(slots=True)
class Work:
    """A task in one stage: the steps that are left, and the one that runs.

    stopping is why we end it: limit, cancelled or interrupted. said is the read end of what a
    transfer says. events are the lines of its end, once it has one.
    """

    running: Running
    stage: str
    left: deque[Step]
    step: Step | None = None
    limit_at: float = math.inf
    kill_at: float = math.inf
    stopping: str = ""
    said: int = -1
    request: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.running.task.id


def steps(task: Task, stage: str) -> list[Step]:
    """What is to be done in a stage, in order."""
    wanted, found = task.manifest, []
    if stage == "prepare":
        found += [Step("stage_in", "stage_in.log")] if wanted.stage_in else []
        if wanted.preprocess is not None:
            found.append(Step("preprocess", "preprocess.log", wanted.preprocess))
        return found
    if (cause := open_cause(task)) != SUCCESS:
        name = "on_timeout" if cause == "timeout" else "on_error"
        return [Step(name, "handler.log", stages.handler(wanted, cause))]
    if wanted.postprocess is not None:
        found.append(Step("postprocess", "postprocess.log", wanted.postprocess))
    return found + ([Step("stage_out", "stage_out.log")] if wanted.stage_out else [])


def open_cause(task: Task) -> str:
    """How the attempt ended that is to be closed: success, or why it failed."""
    story = task.story
    finished = (story.decided or {}).get("verdict") == "finish"
    return SUCCESS if finished or story.exit is None else history.cause(story.exit) or SUCCESS


def words(tree: Tree, task: Task, step: Step) -> list[str]:
    """The words that a step runs."""
    if step.carries:
        way = "in" if step.name == "stage_in" else "out"
        # -P, since our working directory is a task's, from which nothing may be imported.
        program = [sys.executable, "-P", "-m", "spool.launcher.transfer"]
        return [*program, tree.root, task.path, task.id, way]
    if isinstance(step.command, str):
        return ["/bin/sh", "-c", step.command]
    assert step.command
    return step.command


def environment(base: Mapping[str, str], tree: Tree, task: Task, stage: str) -> dict[str, str]:
    """What a step is told. Raises SpoolError: the app is broken."""
    wanted, story = task.manifest, task.story
    made = dict(base)
    if wanted.app:
        made.update(apps.lookup(tree, wanted.app).environment)
    made.update(wanted.environment)
    made["SPOOL_TASK"] = task.id
    made["SPOOL_TASK_DIR"] = made["PWD"] = task.path
    made["SPOOL_NAME"] = wanted.name or task.id.partition(".")[0]
    made["SPOOL_STAGE"] = stage
    made["SPOOL_ATTEMPT"] = str(story.attempt + (stage == "prepare"))
    if wanted.workflow:
        made["SPOOL_WORKFLOW"] = wanted.workflow
    if wanted.after and len(said := " ".join(wanted.after)) <= run.LONGEST_VARIABLE:
        made["SPOOL_PARENTS"] = said
    if stage == "close":
        made["SPOOL_OUTCOME"] = outcome = open_cause(task)
        if outcome != SUCCESS:  # a handler, which decides
            made["SPOOL_NEXT"] = f"{task.path}/{layout.NEXT}"
        if story.exit and isinstance(code := story.exit.get("code"), int):
            made["SPOOL_EXIT_CODE"] = str(code)
    return made


# -- a handler's decision --------------------------------------------------------------------------


def forget(task: Task) -> None:
    """Remove a decision that an earlier handler left."""
    path = f"{task.path}/{layout.NEXT}"
    if files.is_folder(path):
        files.remove_tree(path)
    else:
        files.unlink(path)


def decision(tree: Tree, task: Task, name: str, failed: str) -> dict[str, Any]:
    """The keys of a `decided` line; failed is why the handler itself did not succeed."""
    if failed:
        return {"verdict": "fail", "handler": name, "error": failed}
    path = f"{task.path}/{layout.NEXT}"
    raw = (files.read(path, NEXT_LONGEST) or b"") if files.is_plain(path) else b""
    text = raw.decode(errors="replace").strip()
    if not text:
        return {"verdict": "fail", "handler": name, "error": f"{name} decided nothing"}
    try:
        return {"handler": name, **_read(tree, task, text)}
    except (ManifestError, SpoolError, ValueError) as fault:
        said = f"{name} wrote nonsense, {units.shown(text)}: {fault}"
        return {"verdict": "fail", "handler": name, "error": said}


def _read(tree: Tree, task: Task, text: str) -> dict[str, Any]:
    if "\n" in text:
        raise ValueError("expected one line")
    verdict, *rest = shlex.split(text)
    if verdict not in stages.VERDICTS:
        raise ValueError(f"expected {', '.join(stages.VERDICTS)}")
    if verdict == "retry":
        wanted = _changes(rest)
        stages.changed(task.manifest, wanted, "retry")
        return {"verdict": verdict, "set": wanted} if wanted else {"verdict": verdict}
    if verdict == "rescue":
        return {"verdict": verdict, "id": _rescuer(tree, task, rest)}
    reason = {"reason": " ".join(rest)} if rest else {}
    return {"verdict": verdict, **reason}


def _changes(pairs: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for pair in pairs:
        key, given, value = pair.partition("=")
        if not given:
            raise ValueError(f"{units.shown(pair)}: expected KEY=VALUE")
        made[key] = int(value) if value.lstrip("-").isdecimal() else value
    return made


def _rescuer(tree: Tree, task: Task, rest: list[str]) -> str:
    """The id of the task that takes this one's place."""
    if len(rest) != 1 or layout.parse_id(rest[0]) is None:
        raise ValueError("expected the id of the task that takes this one's place")
    if rest[0] == task.id or tasks.find(tree, rest[0]) is None:
        raise ValueError(f"there is no other task {rest[0]}")
    return rest[0]


def failure(step: Step, status: int, stopped: str, log: str) -> str:
    """Why a step did not succeed, "" if it did; status is wait(2)'s."""
    if stopped:
        return f"{step.name}: {stopped}"
    if os.WIFSIGNALED(status):
        return f"{step.name}: killed by signal {os.WTERMSIG(status)}"
    if not (code := os.WEXITSTATUS(status)):
        return ""
    last = last_line(log)
    return f"{step.name}: exit code {code}" + (f": {last}" if last else "")


def last_line(path: str) -> str:
    """The end of a log, for a person."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 2048))
            lines = file.read(2048).decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = next((line for line in reversed(lines) if line.strip()), "")
    return told.strip()[:200]
