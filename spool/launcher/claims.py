"""claims - what the environment and the batch system's commands say, not yet believed.

Owns   the reading of one variable, one node file and one command's answer.
Never  changes anything, or waits for a command longer than ten seconds.
Fails  never, except the readers of one value: ValueError, which `Claims` turns into a complaint.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from spool.launcher import hosts
from spool.launcher.hosts import Slots
from spool.units import LONGEST, shown

Ask = Callable[[Sequence[str]], str]
"""Runs a command and gives what it prints; "" if it is missing, fails or hangs."""
Read = TypeVar("Read")

ANSWER_LIMIT_S = 10.0
LARGEST_FILE = 2**24
_JOB = re.compile(r"\w[\w.@:+\[\]-]{0,254}")  # Flux's ids start with a letter beyond ASCII
_ZERO = re.compile(r"0+")


def ask_system(command: Sequence[str]) -> str:
    """What a command prints; "" if it is missing, fails or takes more than ten seconds."""
    quiet = subprocess.DEVNULL
    try:
        asked = subprocess.Popen(
            command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, start_new_session=True
        )
    except (OSError, ValueError):
        return ""
    with asked:
        try:
            printed, _ = asked.communicate(timeout=ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(asked.pid, signal.SIGKILL)  # a wrapper's children would hold the pipe open
            return ""
    return printed.decode(errors="replace") if asked.returncode == 0 else ""


class Claims:
    """What the environment says, and a sentence for all that cannot be so."""

    __slots__ = ("ask", "complaints", "environment", "now")

    def __init__(self, environment: Mapping[str, str], ask: Ask) -> None:
        self.environment = environment
        self.ask = ask
        self.now = time.time()
        self.complaints: list[str] = []

    def text(self, name: str) -> str:
        """A variable's value, "" where it is unset or blank."""
        return self.environment.get(name, "").strip()

    def doubt(self, name: str, why: str) -> None:
        """Complain about a variable."""
        value = self.environment.get(name)
        said = "is not set" if value is None else f"is {shown(value)}"
        self.complaints.append(f"{name} {said}: {why}")

    def read(self, name: str, reader: Callable[[str], Read]) -> Read | None:
        """What a reader makes of a variable; None if it is unset or, with a complaint, wrong."""
        if not (text := self.text(name)):
            return None
        try:
            return reader(text)
        except ValueError as error:
            self.doubt(name, str(error))
        return None

    def job(self, *names: str) -> str:
        """The job's id, "" if none of the variables holds one."""
        return next((job for name in names if (job := self.read(name, job_id))), "")

    def slots(self, *sources: tuple[str, Callable[[str], Slots]]) -> Slots:
        """The hosts of the first source that has some; complains if there is none at all."""
        for name, reader in sources:
            if found := self.read(name, reader):
                return found
        if not any(self.text(name) for name, _ in sources):
            self.doubt(sources[0][0], "the nodes are unknown")
        return ()

    def moment(self, text: str) -> float:
        """Seconds since the epoch, later than now by ten years at most. Raises ValueError."""
        if not re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]*)?", text):
            raise ValueError("expected seconds since the epoch")
        return self.ahead(float(text) - self.now)

    def ahead(self, left_s: float) -> float:
        """The moment at which so many seconds have passed. Raises ValueError."""
        if not 0 < left_s <= LONGEST:
            raise ValueError(
                "that end is past already" if left_s <= 0 else "that end is over 10 years ahead"
            )
        return self.now + left_s


def job_id(text: str) -> str:
    """A job's id, fit to stand in a command. Raises ValueError."""
    if not _JOB.fullmatch(text) or _ZERO.fullmatch(text):
        raise ValueError("that is no job's id")
    return text


def lines(path: str) -> list[str]:
    """The lines of a node file. Raises ValueError."""
    if not os.path.isfile(path):  # nor a pipe, which would keep us waiting
        raise ValueError("there is no such file")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = file.read(LARGEST_FILE).splitlines()
    except OSError as error:
        raise ValueError(f"the file cannot be read, {error.strerror}") from None
    if not any(line.strip() for line in found):
        raise ValueError("the file is empty")
    return found


def node_file(path: str) -> Slots:
    """The hosts of a file with a line for each slot. Raises ValueError."""
    return hosts.count_slots(lines(path))
