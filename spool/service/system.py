"""system - what every batch system can be asked, and the running of its commands.

Owns   the words Job, Order and the interface BatchSystem; one command's run, with its time limit.
Never  decides anything: an adapter translates, the service judges.
Fails  Declined: the batch system says no to this request. Unreachable: it gives no usable answer
       (missing command, time-out, controller down, nonsense); nothing follows from that.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from spool.errors import SpoolError
from spool.service.terms import NodeShape, Window


class Declined(SpoolError):
    """The batch system will not take this: wrong account, queue, limits, script.

    cause is one word or two for the back-off per cause: "account", "partition", "limit", "quota",
    "script" or "other"; the message is the batch system's own, in one line.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Unreachable(SpoolError):
    """No usable answer: neither yes nor no. What was asked may or may not have happened."""


ANSWER_LIMIT_S = 30.0
LINGER_S = 2.0
LONGEST_WORD = 300  # of a batch system's message
MOST_IDS = 500  # on one command line
MARK = "SPOOL_LOCAL_JOB"
"""The environment variable that every process of a local allocation carries."""
FOREIGN = rf"SPOOL_(LAUNCHER|NODE|TASK|MINDER|ALLOCATION)|{MARK}"
"""Marks by which we would be killed with another's tasks: no job of ours inherits them."""
C_LOCALE: Mapping[str, str] = {"LC_ALL": "C"}  # of commands whose answers we read
UNBOUNDED_S = 365 * 86400.0
"""Where a queue has no limit of time: a year."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a job script's head and the submission say."""

    name: str  # the job's name, unique for ever; by it a job is adopted
    queue: str
    nodes: int
    walltime_s: float
    account: str = ""
    node: NodeShape = NodeShape()  # of the queue, where a batch system wants cores or slots named
    output: str = ""  # the file for what the script prints
    directives: tuple[str, ...] = ()  # the user's own, without the "#SBATCH "


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch system says of one job now."""

    id: str
    name: str
    state: str  # "queued", "running", "ending" (completing) or "ended"
    queue: str = ""
    nodes: int = 0
    left_s: float | None = None
    why: str = ""  # queued: why it waits; in the batch system's words
    outcome: str = ""  # ended: completed failed timeout cancelled node-fail preempted, "" unknown
    used_s: float | None = None  # wall-clock seconds it has run, where told
    hosts: str = ""


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as the batch system describes it: for a policy that leaves it out, and for checks."""

    name: str
    default: bool = False
    nodes: int = 0
    node: NodeShape = NodeShape()
    max_s: float | None = None
    max_nodes: int | None = None


class BatchSystem(Protocol):
    """One adapter. All times are seconds; every call may raise Unreachable."""

    name: str

    def head(self, order: Order) -> list[str]:
        """The directive lines of a job script."""
        ...

    def submit(self, script: str, order: Order) -> str:
        """Submit the script at this path; the job's id. Raises Declined."""
        ...

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """Jobs of ours, by id: all whose name starts with `names`, and those `known` by id.

        One or two commands however many there are. What the batch system does not know (any more)
        is missing: the service needs several such looks before it believes that.
        """
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask for their end; those that are over or unknown are no error."""
        ...

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """What would start at once; None where this batch system cannot say."""
        ...

    def partitions(self) -> list[Partition]:
        """The queues there are; [] where it cannot say."""
        ...

    def dry_run(self, script: str, order: Order) -> str | None:
        """What the batch system says to this script without taking it; None if it cannot be asked.

        Raises Declined.
        """
        ...


def host_of(system: BatchSystem) -> str:
    """The host that alone can tell of this batch system's jobs; "" for any."""
    return os.uname().nodename if system.name == "local" else ""


# -- one command ---------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def word(self) -> str:
        """What it has to say about a failure, in one line."""
        said = " ".join((self.err.strip() or self.out.strip() or f"exit code {self.code}").split())
        return said if len(said) <= LONGEST_WORD else f"{said[: LONGEST_WORD - 3]}..."


Causes = Sequence[tuple[str, str]]
"""(cause, pattern) in order: the first pattern found in a refusal names its cause."""


def ask(
    command: Sequence[str],
    *,
    without: str = "",
    more: Mapping[str, str] = C_LOCALE,
    stdin: str = os.devnull,
    limit_s: float = ANSWER_LIMIT_S,
) -> Answer:
    """Run one command to its end; raises Unreachable where it cannot be had or takes too long.

    `without` is a pattern: variables whose names it matches are kept from the command, as they
    would change what it answers; `more` is added: a submission, whose variables the job inherits,
    leaves the C locale away. Its own session shields the command from our terminal's signals, and
    lets it be killed with all that it started.
    """
    try:
        with open(stdin, "rb") as given:
            asked = subprocess.Popen(
                command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=_environment(without, more),
            )
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise Unreachable(f"{command[0]} cannot be run: {why}") from None
    try:
        out, err = asked.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(asked)
        raise Unreachable(f"{command[0]} gave no answer within {limit_s:g} s") from None
    return Answer(asked.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def _environment(without: str, more: Mapping[str, str]) -> dict[str, str]:
    foreign = re.compile(f"{FOREIGN}|{without}")
    kept = {name: text for name, text in os.environ.items() if not foreign.fullmatch(name)}
    return {**kept, **more}


def _end(asked: subprocess.Popen[bytes]) -> None:
    """Kill a command and all of its session that stayed in its group; never wait for long."""
    with suppress(ProcessLookupError):
        os.killpg(asked.pid, signal.SIGKILL)
    # What sits in a dead file server's queue cannot be killed: then it is left behind.
    with suppress(subprocess.TimeoutExpired):
        asked.wait(LINGER_S)
    for pipe in (asked.stdout, asked.stderr):
        if pipe is not None:
            pipe.close()


def judged(answer: Answer, causes: Causes, down: str) -> None:
    """Raise what a failed command means: Unreachable where `down` is found in it, else Declined."""
    if answer.code == 0:
        return
    said = f"{answer.err}\n{answer.out}"
    if re.search(down, said, re.IGNORECASE):
        raise Unreachable(answer.word())
    found = (cause for cause, pattern in causes if re.search(pattern, said, re.IGNORECASE))
    raise Declined(next(found, "other"), answer.word())


def judged_cancel(answer: Answer, unknown: str, down: str, *, marked: str = "") -> None:
    """Raise what a failed cancel means: Unreachable where `down` is found in it, else Declined.

    That a job is over or `unknown` is no fault. Complaints are all lines of a command that failed;
    or, whatever its exit code, those with the word `marked`.
    """
    if re.search(down, answer.err, re.IGNORECASE):
        raise Unreachable(answer.word())
    if not answer.code and not marked:
        return
    complaints = [line for line in answer.err.splitlines() if line.strip() and marked in line]
    if any(not re.search(unknown, line, re.IGNORECASE) for line in complaints):
        raise Declined("other", answer.word())


def usable(answer: Answer, harmless: str = "(?!)") -> str:
    """What a query printed; raises Unreachable where it failed, but for `harmless` complaints."""
    if answer.code and not re.search(harmless, f"{answer.err}\n{answer.out}", re.IGNORECASE):
        raise Unreachable(answer.word())
    return answer.out


def printed_id(out: str, pattern: str, command: str) -> str:
    """The id that a submission printed, its pattern's group; the last where several lines match.

    Raises Unreachable where there is none: something may have been submitted.
    """
    found = re.findall(pattern, out, re.MULTILINE)
    if not found:
        raise Unreachable(f"{command} printed no job id, but {shown_line(out)}")
    return str(found[-1])


def shown_line(text: str) -> str:
    """Text of any length as a message shows it."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:77]}...")


def meant(reason: str, meanings: Mapping[str, str]) -> str:
    """A reason in the batch system's words, with what it means where that is known."""
    words = reason.strip().strip("()")
    meaning = next((what for start, what in meanings.items() if re.match(start, words)), "")
    return f"{words}: {meaning}" if words and meaning else words


def clock(seconds: float) -> str:
    """A walltime as HH:MM:SS, the hours without limit."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def portions(ids: Sequence[str]) -> list[list[str]]:
    """Ids in portions that fit on a command line."""
    return [list(ids[start : start + MOST_IDS]) for start in range(0, len(ids), MOST_IDS)]
