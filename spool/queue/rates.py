"""rates - many moves at once: does one of several win, and how many a second are there?

Owns   the races for a file or a folder, the two measurements of speed, and what they mean.
Never  leaves the folder it is given; the doctor makes that and removes it.
Fails  FileSystemFault: a racing process was refused or died, or a folder has vanished.
       OSError: the file system refuses.
"""

from __future__ import annotations

import mmap
import os
import time
import warnings
from collections.abc import Callable
from functools import partial

from spool.errors import FileSystemFault, SpoolError
from spool.queue import files
from spool.queue.ground import Answer, Verdict, reason

RACERS, ROUNDS = 4, 50
TOGETHER_S = 5.0  # racers that have raced for so long no longer wait for each other
CROWD = 8  # threads of the second measurement of speed


# -- races ---------------------------------------------------------------------------------------


def creations(here: str) -> Answer:
    """Whether only one of several processes can create a file."""

    def create(_: int, number: int) -> bool:
        try:
            files.write_new(f"{here}/{number}", b"")
        except FileExistsError:
            return False
        return True

    return of_race(_race(create), "created the file")


def claims(here: str) -> Answer:
    """Whether only one of several processes can move a folder to its own."""
    for racer in range(RACERS):
        files.new_folder(f"{here}/racer-{racer}")
    for number in range(ROUNDS):
        files.new_folder(f"{here}/{number}")

    def claim(racer: int, number: int) -> bool:
        return files.move(f"{here}/{number}", f"{here}/racer-{racer}/{number}")

    return of_race(_race(claim), "claimed the folder by rename")


def of_race(winners: list[int], what: str) -> Answer:
    """Whether each round of a race had exactly one winner."""
    wrong = sum(count != 1 for count in winners)
    if not wrong:
        return "ok", f"exactly one of {RACERS} processes {what}, in each of {len(winners)} rounds"
    said = f"none or several of {RACERS} processes {what} in {wrong} of {len(winners)} rounds"
    return "fail", f"{said}, so tasks would run twice; put the spool on another file system"


def _race(run: Callable[[int, int], bool]) -> list[int]:
    """How many processes won each round of run(racer, round), each round begun together."""
    racers: list[tuple[int, int]] = []
    with mmap.mmap(-1, RACERS) as arrived:  # anonymous, and shared with what is forked
        try:
            for racer in range(RACERS):
                racers.append(_fork(partial(_rounds, run, arrived, racer)))
        finally:
            told = [_told(*racer) for racer in racers]
    if refusal := next((text for text in told if text.strip(b"01")), None):
        raise FileSystemFault(refusal.decode(errors="replace"))
    return [sum(wins) - RACERS * ord("0") for wins in zip(*told, strict=True)]


def _rounds(run: Callable[[int, int], bool], arrived: mmap.mmap, racer: int) -> bytes:
    """A racer's results, "1" for each round it won, or the reason why it gave up."""
    won, end = bytearray(), time.monotonic() + TOGETHER_S
    try:
        for number in range(ROUNDS):
            arrived[racer] = number + 1
            while min(arrived[:]) <= number and time.monotonic() < end:
                os.sched_yield()
            won += b"1" if run(racer, number) else b"0"
    except (OSError, SpoolError) as fault:
        return f"a racing process was refused: {reason(fault)}".encode(errors="replace")
    finally:
        arrived[racer] = ROUNDS
    return bytes(won)


def _fork(report: Callable[[], bytes]) -> tuple[int, int]:
    """A process that makes a report: its id, and where to read what it says.

    A fork and not a thread, since it is processes that compete for tasks; it makes system calls
    only, so it may be forked where there are threads.
    """
    answer, mine = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process:
        os.close(mine)
        return process, answer
    try:
        os.write(mine, report())
    finally:
        os._exit(0)


def _told(process: int, answer: int) -> bytes:
    with open(answer, "rb") as file:
        text = file.read()
    os.waitpid(process, 0)
    return text or b"a racing process died"


# -- speed ---------------------------------------------------------------------------------------


def speed(here: str, *, seconds: float) -> Answer:
    """How many state moves a second there are; each of two measurements lasts `seconds`."""
    return of_speed(_rate(f"{here}/alone", 1, seconds), _rate(f"{here}/crowd", CROWD, seconds))


def _rate(here: str, crowd: int, seconds: float) -> float:
    """State moves a second by `crowd` threads, each moving a folder to and fro."""
    from concurrent.futures import ThreadPoolExecutor

    files.make_folder(f"{here}/running")
    for number in range(crowd):
        files.make_folder(f"{here}/ready/{number}")
    with ThreadPoolExecutor(crowd) as pool:
        began = time.monotonic()
        counts = list(pool.map(partial(_shuttle, here, began + seconds), range(crowd)))
        return sum(counts) / (time.monotonic() - began)


def _shuttle(here: str, end: float, number: int) -> int:
    source, target, count = f"{here}/ready/{number}", f"{here}/running/{number}", 0
    while not count or time.monotonic() < end:
        if not files.move(source, target):
            raise FileSystemFault(f"{source}: vanished while it was moved to and fro")
        source, target, count = target, source, count + 1
    return count


def of_speed(alone: float, crowd: float) -> Answer:
    """What so many state moves a second, by one thread and by several, mean for tasks."""
    best = max(alone, crowd)
    cost = f"a state move takes {1e3 / alone:.2g} ms"
    moves = f"{_about(alone)} a second from one thread, {_about(crowd)} from {CROWD}"
    tasks = f"at most about {_about(best / 3)} to {_about(best / 2)} tasks a second"
    return _speed_verdict(best), f"{cost}: {moves}, which allows {tasks}; beyond that use arrays"


def _speed_verdict(best: float) -> Verdict:
    if best < 100:
        return "warn"
    return "ok" if best >= 1000 else "note"


def _about(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}"
