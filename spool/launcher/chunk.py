"""chunk - the program of a chunk of an array: runs its elements, some side by side.

Owns   elements.jsonl, outputs, errors and live-N of a chunk, while it runs.
Never  imports anything outside the standard library, nor moves a task: a launcher starts this file
       by its path, in the chunk's directory, and says in chunk.json what is wanted (chunks.py).
Fails  exit 1: elements have failed; 75: some are left, since it was told to stop; 2: it cannot run.

Elements share this process's session, so that the launcher's guard finds them; each leads a process
group of its own. What an element writes goes to live-N, and at its end from there into `outputs`,
so that a few files hold the output of all; then its end is told by one line. What ran when this
process dies has no such line, and runs again.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import re
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

Spec = dict[str, Any]
SPEC, VALUES, LINES = "chunk.json", "values", "elements.jsonl"
STREAMS = ("outputs", "errors")
AGAIN_S = 1.0  # between one KILL and the next, and between tries to write to a full disk
LONG_S = 0.3  # an element that runs so long is told of while it runs
LEFT, BROKEN = 75, 2
NOT_FOUND, NOT_RUNNABLE = 127, 126
FULL = (errno.ENOSPC, errno.EDQUOT)
SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
RESET = (signal.SIGPIPE, signal.SIGXFSZ)
RELOAD = signal.SIGURG  # ignored where it comes before we listen
PLACE = re.compile(r"(?<!\$)\{([^{}]*)\}")
PIECE = 1 << 20


class Slot:
    """Where one element runs at a time, and the one that does. Times are monotonic seconds."""

    def __init__(
        self, number: int, cpus: list[int], output: str, environment: dict[bytes, bytes]
    ) -> None:
        self.number, self.cpus = number, cpus
        self.environment = dict(environment)
        self.environment[b"SPOOL_CPUS"] = ",".join(map(str, cpus)).encode()
        self.live = _open_live(number, output)
        self.pid = self.element = self.attempt = 0
        self.started = self.limit_at = self.kill_at = 0.0
        self.why, self.told = "", False

    def begin(self, element: int, attempt: int, limit: float) -> None:
        """An element runs here now."""
        self.element, self.attempt = element, attempt
        self.started = time.monotonic()
        self.limit_at = self.started + limit if limit else 0.0
        self.kill_at, self.why, self.told = 0.0, "", False

    @property
    def due_at(self) -> float:
        """When something must be done about it."""
        at = self.kill_at if self.why else self.limit_at
        tell_at = 0.0 if self.told else self.started + LONG_S
        return min(at or tell_at, tell_at or at)


def _open_live(number: int, output: str) -> tuple[int, ...]:
    if output == "none":
        return ()
    names = (f"live-{number}", f"live-{number}.errors")[: 2 if output == "apart" else 1]
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return tuple(os.open(name, flags, 0o666) for name in names)


class Chunk:
    """The elements of one chunk: which are done, which run, which are left."""

    def __init__(self, spec: Spec) -> None:
        self.stopping = ""
        self.listen = {signal.SIGCHLD, RELOAD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        if spec["signal"] not in (signal.SIGKILL, signal.SIGSTOP):
            self.listen.add(spec["signal"])
        signal.pthread_sigmask(signal.SIG_BLOCK, self.listen)
        self.spec = spec
        first, last, step, self.pad = spec["numbers"]
        self.numbers = range(first, last + 1, step)
        self.values = _read_values(len(self.numbers)) if spec["values"] else None
        self.words = Filler(spec["words"])
        self.added = Filler(list(spec["environment"].values()))
        self.lines, torn = _open_lines()
        self.done: set[int] = set()
        self.tries: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        self.ran = 0
        fold(LINES, self.tell)
        if torn:
            self._write(self.lines, b"\n")
        self.second, self.stamp = 0, ""
        if os.fstat(self.lines).st_size:
            self.write('{"what": "begin"')
        names = STREAMS[: {"none": 0, "together": 1, "apart": 2}[spec["output"]]]
        self.files = tuple(map(_open_stream, names))
        self.ends = [os.lseek(file, 0, os.SEEK_END) for file in self.files]
        self.nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        mine = dict(os.environb)
        mine[b"SPOOL_ARRAY"] = spec["array"].encode()
        self.slots = [Slot(n, cpus, spec["output"], mine) for n, cpus in enumerate(spec["slots"])]
        self.free = self.slots[::-1]
        pins = spec["pin"] and len(self.slots) > 1  # else elements live where we do
        self.everywhere: Collection[int] = os.sched_getaffinity(0) if pins else ()
        self.by_pid: dict[int, Slot] = {}
        self.later: list[tuple[float, int]] = []
        self.programs: dict[str, str] = {}
        self.reload()
        self.queue = [n for n in reversed(self.numbers) if self._open(n)]

    def tell(self, line: Spec) -> None:
        """Let one line of elements.jsonl happen."""
        what = line.get("what", "end")
        if what == "retry":
            self._again(line.get("elements"))
        elif what in ("end", "interrupted"):
            number = line["element"]
            self.tries[number] = max(self.tries.get(number, 0), line["attempt"])
            if what == "end" and succeeded(line):
                self.done.add(number)
            elif what == "end" and not line.get("cancelled"):
                self.failures[number] = self.failures.get(number, 0) + 1

    def _again(self, ranges: list[list[int]] | None) -> None:
        """A person wants elements again: these, or all that have not succeeded."""
        if not ranges:
            self.failures.clear()
            return
        for first, last in ranges:
            for number in [n for n in (*self.done, *self.failures) if first <= n <= last]:
                self.done.discard(number)
                self.failures.pop(number, None)

    def _open(self, number: int) -> bool:
        """Whether an element still is to be run."""
        failed = self.failures.get(number, 0) >= self.spec["max_attempts"]
        return not (failed or number in self.done or self._skipped(number))

    def _skipped(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.spec["skip"])

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Run all that is to be run; the exit code."""
        while True:
            self.reap()
            self.wake(time.monotonic())
            while self.free and self.queue and not self.stopping and self.start():
                pass
            if not self.by_pid and (self.stopping or not (self.queue or self.later)):
                return self.close()
            self.wait()

    def start(self) -> bool:
        """Start the next element, or tell why it cannot be; False: the machine refuses for now."""
        number = self.queue.pop()
        if self._skipped(number):
            return True
        slot, attempt = self.free[-1], self.tries.get(number, 0) + 1
        slot.begin(number, attempt, self.spec["time_limit"])
        try:
            words, environment = self.filled(slot)
            pid = self.spawn(slot, words, environment)
        except (OSError, ValueError) as fault:
            if getattr(fault, "errno", 0) in SCARCE:
                heapq.heappush(self.later, (slot.started + AGAIN_S, number))
                return False
            missing = isinstance(fault, FileNotFoundError)
            why = f"cannot start {words[0]}: {getattr(fault, 'strerror', '') or fault}"
            told = {"code": NOT_FOUND if missing else NOT_RUNNABLE, "error": why}
            self.ended(slot, f", {json.dumps(told)[1:-1]}", told)
            return True
        self.free.pop()
        slot.pid = pid
        self.by_pid[pid] = slot
        return True

    def spawn(self, slot: Slot, words: list[str], environment: dict[bytes, bytes]) -> int:
        """The pid of an element's program, on the cores of its slot."""
        out = slot.live[0] if slot.live else self.nothing
        err = slot.live[-1] if slot.live else self.nothing
        actions = [(os.POSIX_SPAWN_DUP2, f, n) for n, f in enumerate((self.nothing, out, err))]
        program = self.program(words[0])
        if self.everywhere:
            _pin(slot.cpus)
        try:
            return os.posix_spawn(
                program, words, environment,
                file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=RESET,
            )  # fmt: skip
        finally:
            if self.everywhere:
                _pin(self.everywhere)

    def filled(self, slot: Slot) -> tuple[list[str], dict[bytes, bytes]]:
        """The words and the environment of an element."""
        number, made = slot.element, slot.environment
        value = f"{number:0{self.pad}d}"
        made[b"SPOOL_ELEMENT"] = b"%d" % number
        made[b"SPOOL_ATTEMPT"] = b"%d" % slot.attempt
        if self.values is not None:
            value = json.loads(self.values[self.numbers.index(number)])
            made[b"SPOOL_VALUE"] = os.fsencode(text(value))
        if self.spec["time_limit"]:
            made[b"SPOOL_TIME_LIMIT"] = f"{self.spec['time_limit']:g}".encode()
        for name, one in zip(self.spec["environment"], self.added.fill(value), strict=True):
            made[os.fsencode(name)] = os.fsencode(one)
        return self.words.fill(value), made

    def program(self, word: str) -> str:
        """The file that a first word means. Raises FileNotFoundError."""
        if "/" in word:
            return word
        if word not in self.programs:
            path = os.environ.get("PATH", os.defpath)
            found = (f"{folder or '.'}/{word}" for folder in path.split(os.pathsep))
            self.programs[word] = next(filter(_runs, found), "")
        if not self.programs[word]:
            raise FileNotFoundError(errno.ENOENT, "no such program on PATH", word)
        return self.programs[word]

    # -- ends ------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect elements that have ended, with what they left in their process group."""
        while self.by_pid:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return
            slot = self.by_pid.pop(found.si_pid, None)
            if slot is not None:
                _kill(found.si_pid, signal.SIGKILL)
            _, status, used = os.wait4(found.si_pid, 0)
            if slot is not None:
                self.collect(slot, status, used)
                self.free.append(slot)

    def collect(self, slot: Slot, status: int, used: resource.struct_rusage) -> None:
        """One element has ended: keep what it wrote, tell its end."""
        signalled = os.WIFSIGNALED(status)
        key, number = ("signal", os.WTERMSIG(status)) if signalled else ("code", status >> 8)
        told = {key: number}
        if slot.why and slot.why != "interrupted":
            told[slot.why] = True
        elapsed = time.monotonic() - slot.started
        more = "".join(f', "{key}": {json.dumps(value)}' for key, value in told.items())
        more += (
            f', "elapsed_s": {elapsed:.3f}, "user_s": {used.ru_utime:.3f},'
            f' "system_s": {used.ru_stime:.3f}, "peak_mb": {-(-used.ru_maxrss // 1024)}'
        )
        self.ended(slot, more, told)

    def ended(self, slot: Slot, more: str, told: Spec) -> None:
        """Write how an element ended, and what follows for it."""
        if slot.why == "interrupted":
            told = {"what": "interrupted"}
            more = ', "what": "interrupted"' + more
        more += self.keep(slot)
        line = {"element": slot.element, "attempt": slot.attempt, **told}
        self.write(f'{{"element": {slot.element}, "attempt": {slot.attempt}{more}')
        self.tell(line)
        if slot.why == "interrupted":
            return
        self.ran += 1
        if slot.why != "cancelled" and slot.element not in self.done and self._open(slot.element):
            failures = self.failures[slot.element]
            pause = min(self.spec["backoff"] * 2.0 ** min(failures - 1, 60), 3600.0)
            heapq.heappush(self.later, (time.monotonic() + pause, slot.element))

    def keep(self, slot: Slot) -> str:
        """Move what an element wrote to the files for all; where it stands there."""
        more = ""
        for at, (live, file) in enumerate(zip(slot.live, self.files, strict=True)):
            begin, offset = self.ends[at], 0
            while part := os.pread(live, PIECE, offset):
                self._write(file, part)
                offset += len(part)
            if offset:
                os.ftruncate(live, 0)
                self.ends[at] += offset
                more += f', "{STREAMS[at]}": [{begin}, {offset}]'
        return more

    def write(self, told: str) -> None:
        """Write one line, with the time of now."""
        now = time.time()
        if int(now) != self.second:
            self.second = int(now)
            self.stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = f'{told}, "time": "{self.stamp}.{int(now * 1000) % 1000:03d}Z"}}\n'
        self._write(self.lines, line.encode())

    def _write(self, file: int, content: bytes) -> None:
        while content:
            try:
                content = content[os.write(file, content) :]
            except OSError as fault:
                if fault.errno not in FULL:
                    raise
                time.sleep(AGAIN_S)  # somebody makes room, or our launcher ends us

    # -- now and then ----------------------------------------------------------------------------

    def wake(self, now: float) -> None:
        """Do what is due: stop, kill, tell of the long, start again what failed."""
        while self.later and (now >= self.later[0][0]):
            self.queue.append(heapq.heappop(self.later)[1])
        for slot in self.by_pid.values():
            if now < slot.due_at:
                continue
            if slot.kill_at and now >= slot.kill_at:
                _kill(slot.pid, signal.SIGKILL)
                slot.kill_at = now + AGAIN_S
            elif slot.limit_at and now >= slot.limit_at and not slot.why:
                self.stop(slot, "timeout")
            if not slot.told and now >= slot.started + LONG_S:
                slot.told = True
                told = f'"attempt": {slot.attempt}, "what": "running", "slot": {slot.number}'
                self.write(f'{{"element": {slot.element}, {told}')

    def stop(self, slot: Slot, why: str) -> None:
        """Ask an element to end; it is killed when its grace is over."""
        slot.why, slot.kill_at = why, time.monotonic() + self.spec["grace"]
        _kill(slot.pid, self.spec["signal"])

    def wait(self) -> None:
        """Sleep until an element ends, a signal comes or something is due."""
        due = min((slot.due_at for slot in self.by_pid.values()), default=float("inf"))
        if self.later and not self.stopping:
            due = min(due, self.later[0][0])
        left = min(max(0.0, due - time.monotonic()), 3600.0)
        got = signal.sigtimedwait(self.listen, left)
        if got is None or got.si_signo == signal.SIGCHLD:
            return
        if got.si_signo == RELOAD:
            self.reload()
            return
        self.reap()  # what ended before we were asked has its own end
        self.stopping = self.stopping or "interrupted"
        for slot in self.by_pid.values():
            if not slot.why:
                self.stop(slot, "interrupted")

    def reload(self) -> None:
        """Read again what may change while we run."""
        spec = _read_spec()
        for key in ("time_limit", "max_attempts", "backoff", "grace", "skip"):
            self.spec[key] = spec[key]
        self.later = sorted(one for one in self.later if not self._skipped(one[1]))
        if spec.get("drain"):
            self.stopping = self.stopping or "drained"
        for slot in self.by_pid.values():
            limit = self.spec["time_limit"]
            slot.limit_at = slot.started + limit if limit else 0.0
            if self._skipped(slot.element) and slot.why in ("", "timeout"):
                self.stop(slot, "cancelled")

    def close(self) -> int:
        """Tell what became of all; the exit code."""
        failed = cancelled = 0
        for number in self.numbers:
            if number not in self.done:
                if self._skipped(number):
                    cancelled += 1
                else:
                    failed += self.failures.get(number, 0) >= self.spec["max_attempts"]
        done = len(self.done)
        left = len(self.numbers) - done - failed - cancelled
        told = {"done": done, "failed": failed, "cancelled": cancelled, "left": left}
        told["ran"] = self.ran
        self.write(f'{{"what": "chunk", {json.dumps(told)[1:-1]}')
        for slot in self.slots:
            for name in (f"live-{slot.number}", f"live-{slot.number}.errors")[: len(slot.live)]:
                os.unlink(name)
        return LEFT if left else int(failed > 0)


class Filler:
    """Texts with places for a value: `{}` for a plain one, `{name}` for those of a row."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.places = [at for at, one in enumerate(texts) if "{" in one]

    def fill(self, value: object) -> list[str]:
        """The texts with a value in its places."""
        if not self.places:
            return self.texts
        made = list(self.texts)
        for at in self.places:
            if isinstance(value, dict):
                made[at] = PLACE.sub(
                    lambda found: text(value[found[1]]) if found[1] in value else found[0], made[at]
                )
            else:
                made[at] = made[at].replace("{}", text(value))
        return made


def text(value: object) -> str:
    """A value as a word."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def succeeded(line: Spec) -> bool:
    """Whether the line of an end tells of success."""
    known = line.get("timeout") or line.get("error") or line.get("cancelled")
    return line.get("code") == 0 and not known


def fold(path: str, tell: Callable[[Spec], None]) -> None:
    """Call `tell` with each line of a file that can be read; one that is torn is passed over."""
    with open(path, "rb") as file:
        for raw in file:
            try:
                tell(json.loads(raw))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue


def _read_spec() -> Spec:
    with open(SPEC, encoding="utf-8") as file:
        spec: Spec = json.load(file)
        return spec


def _read_values(count: int) -> list[bytes]:
    with open(VALUES, "rb") as file:
        lines = file.read().splitlines()
    if len(lines) != count:
        raise ValueError(f"{VALUES} has {len(lines)} lines for {count} elements")
    return lines


def _open_lines() -> tuple[int, bool]:
    """elements.jsonl to append to, and whether its last line is torn."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(LINES, flags, 0o666)
    size = os.fstat(file).st_size
    return file, bool(size) and os.pread(file, 1, size - 1) != b"\n"


def _open_stream(name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _runs(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK)


def _pin(cpus: Collection[int]) -> None:
    with suppress(OSError):  # a core was taken from us
        os.sched_setaffinity(0, cpus)


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has just ended: its end tells
        os.killpg(pid, number)


def main() -> int:
    """Run the chunk in this directory."""
    try:
        chunk = Chunk(_read_spec())
    except (OSError, ValueError, KeyError) as fault:
        print(f"this chunk cannot run: {fault}", file=sys.stderr)
        return BROKEN
    return chunk.run()


if __name__ == "__main__":
    sys.exit(main())
