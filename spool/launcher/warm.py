"""warm - a process that runs Python calls: forked from a warm one, or started for one task.

Owns   the frames of `calls` and of results; running them; the loop of a zygote.
Never  loads a pickle that is not its own user's; imports nothing of spool and nothing outside the
       standard library (but cloudpickle, where a pickle needs it): the interpreter that runs this
       file by its path is the submitter's, and may lie anywhere.
Fails  exit 1: a call of a task that stands for itself raised. exit 78: the calls are not ours.

A zygote has imported what calls need and has no threads. For each task it forks twice, so that the
task's process becomes the launcher's child, as if the launcher had started it. That process cannot
have an environment of its own in /proc: it writes its task's mark over a place that the zygote was
given for it, so that whoever looks for the processes of a task finds it there.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

FORMAT = 1
CALLS = "calls"
RESULTS = "results"
FUNCTION, CALL = b"F", b"C"
STARTED, VALUE, ERROR, RETURNED = b"S", b"V", b"E", b"R"
_FRAME = struct.Struct("<cIIQ")  # kind, number, function or microseconds, length of what follows
MARK = "SPOOL_TASK"
MARK_SIZE = 160  # an id has up to 128 characters
NOT_OURS = 78
MAIN = b"__main__"
QUIET_S = 0.01  # what is known is told after so long
PATIENCE_S = 0.25  # a call that lasts longer lets the others of its batch go
BATCH_S = 1.0  # a batch that lasts longer lets go what it has not begun


class Frame(NamedTuple):
    """One piece of a file of calls or results. `other`: which function, or microseconds."""

    kind: bytes
    number: int
    other: int
    body: bytes


def frame(kind: bytes, number: int, other: int, body: bytes) -> bytes:
    """A frame as it is written."""
    return _FRAME.pack(kind, number, min(other, 0xFFFFFFFF), len(body)) + body


def frames(raw: bytes, start: int = 0) -> Iterator[tuple[Frame, int]]:
    """The whole frames from `start`, each with where it ends; a torn last one is passed over."""
    while start + _FRAME.size <= len(raw):
        kind, number, other, length = _FRAME.unpack_from(raw, start)
        end = start + _FRAME.size + length
        if end > len(raw):
            return
        yield Frame(kind, number, other, raw[start + _FRAME.size : end]), end
        start = end


def results_name(mailbox: str, task_id: str, attempt: int) -> str:
    """Where an attempt's results go: into its submitter's mailbox, or beside its calls."""
    return f"{mailbox}/{task_id}.{attempt}" if mailbox else f"{RESULTS}.{attempt}"


def cancelled_name(mailbox: str, task_id: str) -> str:
    """Where a mailbox says which calls of a task nobody wants any more."""
    return f"{mailbox}/{task_id}.cancelled"


# -- pickles -------------------------------------------------------------------------------------


def dumps(thing: Any) -> bytes:
    """A pickle: by reference where that will do, by value of what is in __main__ or has no name.

    Raises whatever pickling raises.
    """
    try:
        made = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as fault:
        return _by_value(thing, fault)
    return made if MAIN not in made else _by_value(thing, None)


def _by_value(thing: Any, fault: Exception | None) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        if fault is not None:
            raise fault from None
        raise pickle.PicklingError(
            "what is defined in __main__ needs cloudpickle. Run: pip install cloudpickle"
        ) from None
    made: bytes = cloudpickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
    return made


class RemoteTraceback(Exception):
    """Where a call raised, as text; the cause of the exception that its future raises."""

    def __init__(self, text: str) -> None:
        self.tb = text

    def __str__(self) -> str:
        return self.tb


def error_body(fault: BaseException) -> bytes:
    """An exception and its traceback, for a frame."""
    told = f'\n"""\n{"".join(traceback.format_exception(fault))}"""'
    plain = f"{type(fault).__name__}: {fault}"
    try:
        whole = dumps(fault.with_traceback(None))
        pickle.loads(whole)  # some can be pickled, but not made again
    except Exception:
        whole = b""
    return pickle.dumps((whole, plain, told))


# -- running calls -------------------------------------------------------------------------------


class NotOurs(Exception):
    """A file of calls belongs to somebody else, or can be written by others."""


def read_own(name: str, folder: str | int = ".", start: int = 0) -> bytes:
    """A plain file of this very user in a folder of his, from `start`. Raises NotOurs, OSError."""
    if isinstance(folder, int):
        return _read_own(name, folder, start)
    here = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        return _read_own(name, here, start)
    finally:
        os.close(here)


def _read_own(path: str, folder: int, start: int) -> bytes:
    _refuse_foreign(os.fstat(folder), f"the folder of {path}")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, dir_fd=folder), "rb") as opened:
        file = opened.fileno()
        about = os.fstat(file)
        _refuse_foreign(about, path)
        if about.st_nlink != 1 or not _is_plain(about):
            raise NotOurs(f"{path}: is no plain file with one name, so it is not loaded")
        opened.seek(start)
        return opened.read()


def _is_plain(about: os.stat_result) -> bool:
    return about.st_mode & 0o170000 == 0o100000


def _refuse_foreign(about: os.stat_result, path: str) -> None:
    if about.st_uid != os.geteuid():
        raise NotOurs(
            f"{path}: belongs to user {about.st_uid}, we are user {os.geteuid()}:"
            " a pickle of somebody else is never loaded"
        )
    if about.st_mode & 0o002:
        raise NotOurs(f"{path}: can be written by everyone, so no pickle in it is loaded")


class Telling:
    """The file that results go to: what is added is written soon, or when it is flushed."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file = os.open(path, flags, 0o600)
        self.held: list[bytes] = []
        self.flushed = time.monotonic()
        self._lock = threading.Lock()

    def add(self, piece: bytes) -> None:
        """Tell it with the next flush."""
        with self._lock:
            self.held.append(piece)

    def flush(self, last: bytes = b"") -> None:
        """Write all that is held, and `last`."""
        with self._lock:
            whole = b"".join((*self.held, last))
            self.held.clear()
            self.flushed = time.monotonic()
            while whole:
                whole = whole[os.write(self.file, whole) :]


class Batch:
    """The calls of one task. `alone`: the task stands for itself, so that its failure is too."""

    def __init__(self, raw: bytes, folder: str, task_id: str, attempt: int) -> None:
        line, _, rest = raw.partition(b"\n")
        header = json.loads(line)
        if header["format"] != FORMAT:
            raise NotOurs(f"calls have format {header['format']}, this launcher knows {FORMAT}")
        self.path: list[str] = header["path"]
        self.mailbox: str = header["mailbox"]
        self.alone: bool = header["alone"]
        self.task_id, self.attempt = task_id, attempt
        self.functions: dict[int, bytes] = {}
        self.loaded: dict[int, Any] = {}
        self.todo: deque[Frame] = deque()
        for one, _ in frames(rest):
            if one.kind == FUNCTION:
                self.functions[one.number] = one.body
            else:
                self.todo.append(one)
        self.now: Frame | None = None
        self.began = time.monotonic()
        self.failed = False

    def skip(self, numbers: set[int]) -> None:
        """Do not run these."""
        kept = [one for one in self.todo if one.number not in numbers]
        self.todo.clear()
        self.todo.extend(kept)

    def known(self) -> set[int]:
        """The calls that an earlier attempt told the result of, and those it gave back."""
        kinds = (VALUE, RETURNED) if self.alone else (VALUE, ERROR, RETURNED)
        found: set[int] = set()
        for attempt in range(1, self.attempt):
            name = results_name(self.mailbox, self.task_id, attempt)
            with suppress(OSError, NotOurs):
                raw = read_own(os.path.basename(name), self.mailbox or ".")
                found |= {one.number for one, _ in frames(raw) if one.kind in kinds}
        return found

    def cancelled(self) -> set[int]:
        """The calls that nobody wants any more."""
        if not self.mailbox:
            return set()
        try:
            name = cancelled_name("", self.task_id)[1:]
            return set(map(int, read_own(name, self.mailbox).split()))
        except (OSError, NotOurs, ValueError):
            return set()

    def run(self, telling: Telling) -> None:
        """Run one after the other, telling each result."""
        last_s = 0.0
        while True:
            if last_s > PATIENCE_S:
                self.skip(self.cancelled())
            try:
                one = self.todo.popleft()  # atomic: the minder takes from the other end
            except IndexError:
                break
            self.began = began = time.monotonic()
            self.now = one
            if began - telling.flushed > QUIET_S:
                telling.flush(frame(STARTED, one.number, 0, b""))
            kind, body = self._call(one)
            last_s = time.monotonic() - began
            telling.add(frame(kind, one.number, int(last_s * 1e6), body))
        self.now = None
        telling.flush()

    def _call(self, one: Frame) -> tuple[bytes, bytes]:
        try:
            if (function := self.loaded.get(one.other)) is None:
                function = self.loaded[one.other] = pickle.loads(self.functions[one.other])
            words, named = pickle.loads(one.body)
            value = function(*words, **named)
            return VALUE, dumps(value)
        except BaseException as fault:
            self.failed = True
            if self.alone:
                traceback.print_exc()
            if isinstance(fault, KeyboardInterrupt):
                self.todo.clear()
            return ERROR, error_body(fault)


def _mind(batch: Batch, telling: Telling) -> None:
    """Beside a batch: tell what is known though a call lasts; let the others go if it lasts long.

    What is let go is told, and whoever sent it sends it again elsewhere.
    """
    first = batch.began
    while batch.todo:
        time.sleep(QUIET_S)
        now, current = time.monotonic(), batch.now
        if current is None:
            return
        if now - telling.flushed > QUIET_S:
            telling.flush(frame(STARTED, current.number, 0, b"") if batch.now is current else b"")
        if now - batch.began > PATIENCE_S or now - first > BATCH_S:
            telling.flush(b"".join(frame(RETURNED, one.number, 0, b"") for one in _rest(batch)))
            return


def _rest(batch: Batch) -> Iterator[Frame]:
    while True:
        try:
            yield batch.todo.pop()
        except IndexError:
            return


def run_calls() -> int:
    """Run the calls that lie in this directory; the exit code."""
    task_id, attempt = os.environ[MARK], int(os.environ["SPOOL_ATTEMPT"])
    try:
        batch = Batch(read_own(CALLS), ".", task_id, attempt)
        if batch.mailbox:
            about = os.lstat(batch.mailbox)
            _refuse_foreign(about, batch.mailbox)
    except FileNotFoundError as fault:
        print(f"spool: {fault.filename}: is gone, so nobody waits for these calls", file=sys.stderr)
        return NOT_OURS
    except (NotOurs, OSError) as fault:
        print(f"spool: {fault}", file=sys.stderr)
        return NOT_OURS
    sys.path[:] = batch.path
    if attempt > 1:
        batch.skip(batch.known())
    batch.skip(batch.cancelled())
    telling = Telling(results_name(batch.mailbox, task_id, attempt))
    if batch.todo:
        telling.flush(frame(STARTED, batch.todo[0].number, 0, b""))
    if len(batch.todo) > 1:
        batch.now = batch.todo[0]
        threading.Thread(target=_mind, args=(batch, telling), daemon=True).start()
    batch.run(telling)
    return int(batch.failed and batch.alone)


# -- the zygote ----------------------------------------------------------------------------------


class Order(NamedTuple):
    """What a zygote is asked for, beside four descriptors: input, output, errors, and the go."""

    environment: dict[str, str]
    folder: str
    cores: list[int]


def zygote(imports: list[str]) -> None:
    """Import, then fork a task's process for each order on descriptor 0, until it closes."""
    import socket

    link = socket.socket(fileno=os.dup(0))
    place = _mark_place()
    _import(imports)
    import gc

    gc.collect()
    gc.freeze()  # what is here already shall not be copied because it is looked through
    ready = len(os.listdir("/proc/self/task")) == 1  # a thread that was started would be missing
    ready = ready and "mpi4py.MPI" not in sys.modules  # which has begun an MPI of its own
    link.sendall(b"ready" if ready else b"threads")
    while ready:
        raw, files, _, _ = socket.recv_fds(link, 1 << 20, 4)
        if not raw:
            return
        answer = _fork(Order(*json.loads(raw)), files, place, link)
        for file in files:
            os.close(file)
        link.sendall(answer)


def _import(names: list[str]) -> None:
    import importlib

    sys.path += [name for name in names if name.startswith("/")]
    for name in ("cloudpickle", *names):
        if name[0] not in "/#":  # a folder, or a mark of the code that only tells it from other
            with suppress(Exception):  # whoever needs it will be told when it is not there
                importlib.import_module(name)


def _mark_place() -> int:
    """The address of our own SPOOL_TASK in the environment we were started with; 0 for none."""
    import ctypes

    environ = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    number = 0
    while address := environ[number]:
        if ctypes.string_at(address).startswith(f"{MARK}=".encode()):
            return int(address)
        number += 1
    return 0


def _fork(order: Order, files: list[int], place: int, link: Any) -> bytes:
    """Fork twice; the pid of the task's process, or why there is none."""
    read_end, write_end = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            link.close()
            os.close(read_end)
            _become_task(order, files, place, write_end)
        os._exit(0)
    os.close(write_end)
    os.waitpid(middle, 0)  # now the other is the launcher's child
    with open(read_end, "rb") as answer:
        return answer.read() or b"its process ended before it began"


def _become_task(order: Order, files: list[int], place: int, write_end: int) -> None:
    """In the fork: be a task's process in all that others can see, then run its calls."""
    code = 1
    try:
        try:
            _settle(order, files, place)
        except OSError as fault:
            os.write(write_end, str(fault).encode())
            os._exit(1)
        os.write(write_end, b"%d" % os.getpid())
        os.close(write_end)
        if os.read(files[3], 1) != b"g":  # whoever asked has given us up, or is gone
            os._exit(1)
        os.close(files[3])
        _seed()
        code = run_calls()
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)


def _settle(order: Order, files: list[int], place: int) -> None:
    import ctypes

    os.setsid()
    if place:
        mark = f"{MARK}={order.environment[MARK]}".encode()[: MARK_SIZE - 1]
        ctypes.memmove(place, mark.ljust(MARK_SIZE, b"\0"), MARK_SIZE)
    os.chdir(order.folder)
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
        os.close(file)
    if order.cores:
        with suppress(OSError):  # a core was taken from us: it runs on the others
            os.sched_setaffinity(0, order.cores)
    os.environ.clear()
    os.environ.update(order.environment)


def _seed() -> None:
    """Forks of one process must not draw the same numbers; `random` sees to that itself."""
    numbers = sys.modules.get("numpy.random")
    if numbers is not None:
        numbers.seed()


def _leave(code: int) -> None:
    """End as an interpreter does, without what only the zygote could tell."""
    import atexit

    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at each exit
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    os._exit(code)


MAINS: dict[str, Callable[[list[str]], object]] = {
    "--zygote": zygote,
    "--cold": lambda _: sys.exit(run_calls()),
}

if __name__ == "__main__":
    MAINS[sys.argv[1]](sys.argv[2:])
