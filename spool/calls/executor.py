"""executor - `SpoolExecutor`: concurrent.futures over a spool.

Owns   what a user of concurrent.futures sees; the end of the interpreter.
Fails  as an Executor does: RuntimeError after shutdown; a call's own exception from its future,
       CallLost where its process ended without one.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from spool import units
from spool.api import Spool
from spool.calls import ahead
from spool.calls.courier import Courier
from spool.calls.local import Local
from spool.calls.sizes import Sizes
from spool.errors import NotASpool
from spool.launcher import warm
from spool.queue import files, layout, manifest

_lock = threading.Lock()
_couriers: weakref.WeakSet[Courier] = weakref.WeakSet()
_leaving = False


def _leave() -> None:
    """The interpreter ends: what was submitted is still done, as with any executor."""
    global _leaving
    with _lock:
        _leaving = True
        left = list(_couriers)
    for courier in left:
        courier.close()
    for courier in left:
        courier.thread.join()


threading._register_atexit(_leave)  # type: ignore[attr-defined]  # as concurrent.futures does


class SpoolExecutor(Executor):
    """Runs calls as tasks of a spool; any number of launchers, anywhere, take them.

    spool is a Spool, a path, or None: found as `Spool()` does. With max_workers a launcher for so
    many calls at once is started here and ended with the executor; where there is no spool then, a
    temporary one is made. Short calls travel together, at most max_batch a task; a lone call goes
    at once, further ones within linger seconds. No more than window tasks wait unstarted (but twice
    those that run): further calls wait here. imports are modules that warm workers import ahead;
    None: those that the functions come from.
    Other keys are those of the manifest, and hold for each task: cores_per_rank, memory,
    time_limit, workflow, ...
    Raises NotASpool, ManifestError, ValueError.
    """

    def __init__(
        self,
        spool: Spool | str | os.PathLike[str] | None = None,
        max_workers: int | None = None,
        *,
        max_batch: int = 500,
        linger: float | str = 0.005,
        window: int = 64,
        imports: Iterable[str] | None = None,
        **keys: Any,
    ) -> None:
        for name, number in (("max_workers", max_workers), ("max_batch", max_batch)):
            if number is not None and number <= 0:
                raise ValueError(f"{name} must be greater than 0")
        for name in ("key", "replaces"):
            if name in keys:
                raise ValueError(f"{name} is of one task, and an executor sends many")
        given = {"name": "calls", "python": sys.executable, "imports": list(imports or ()), **keys}
        self._ahead = imports is None
        wanted = manifest.from_mapping(given, "SpoolExecutor")
        self.spool, tidy = _opened(spool, temporary=max_workers is not None)
        if max_workers is not None:
            tag = f"executor-{layout.random_tails(1)[0]}"
            wanted = manifest.from_mapping(
                {**given, "tags": [*given.get("tags", ()), tag]}, "SpoolExecutor"
            )
        tree = self.spool._tree
        self._shut = False
        self._shutting = threading.Lock()
        self._courier = Courier(
            tree,
            self.spool.settings,
            wanted,
            Sizes(max_batch),
            units.duration(linger),
            window,
            (lambda errors: Local(tree, max_workers, tag, errors)) if max_workers else None,
            tidy,
        )
        with _lock:
            _couriers.add(self._courier)
        weakref.finalize(self, self._courier.close)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send fn(*args, **kwargs). What cannot be pickled is told by the future."""
        return self._post(fn, None, args, kwargs)

    def _post(
        self,
        fn: Callable[..., Any],
        code: bytes | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Future[Any]:
        with self._shutting:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _leaving:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            try:
                code = code or warm.dumps(fn)
                body = warm.dumps((args, kwargs))
            except Exception as fault:
                failed: Future[Any] = Future()
                failed.set_exception(fault)
                return failed
            if self._courier.closing:
                raise RuntimeError("cannot schedule new futures: the executor broke")
            if self._ahead:
                self._courier.prepare(ahead.imports(fn))
            return self._courier.post(_name(fn), code, body)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[Any]:
        """Like map(), in order. chunksize items make one call; calls form batches in any case."""
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        end = None if timeout is None else time.monotonic() + timeout
        items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize is None or chunksize == 1:
            return _results(self._post_all(fn, items), end)
        chunks = ((chunk,) for chunk in _chunks(items, chunksize))
        return _flat(_results(self._post_all(_Chunk(fn), chunks), end))

    def _post_all(
        self, fn: Callable[..., Any], items: Iterator[tuple[Any, ...]]
    ) -> list[Future[Any]]:
        """Send a call for each item; the function is pickled but once."""
        try:
            code = warm.dumps(fn)
        except Exception:
            code = None  # each future tells why
        return [self._post(fn, code, words, {}) for words in items]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; `wait` until all are done; `cancel_futures` that have not begun."""
        with self._shutting:
            self._shut = True
        self._courier.close(drop=cancel_futures)
        if wait:
            self._courier.thread.join()


def _results(futures: list[Future[Any]], end: float | None) -> Iterator[Any]:
    """The results in order; what is left when the iterator is closed is cancelled."""
    futures.reverse()

    def each() -> Iterator[Any]:
        try:
            while futures:
                left = None if end is None else end - time.monotonic()
                yield _result(futures.pop(), left)
        finally:
            for future in futures:
                future.cancel()

    return each()


def _result(future: Future[Any], timeout: float | None) -> Any:
    """Its result, and no reference to either left behind."""
    try:
        try:
            return future.result(timeout)
        finally:
            future.cancel()
    finally:
        del future


class _Chunk:
    """Calls a function for each item of a chunk."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__qualname__ = f"chunk of {_name(fn)}"

    def __call__(self, chunk: list[tuple[Any, ...]]) -> list[Any]:
        return [self.fn(*words) for words in chunk]


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _flat(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()  # and keep no reference to it


def _name(fn: Callable[..., Any]) -> str:
    """What calls of about the same duration share."""
    inner = getattr(fn, "func", fn)  # of a partial
    module, name = getattr(inner, "__module__", ""), getattr(inner, "__qualname__", "")
    return f"{module}.{name or type(inner).__qualname__}"


def _opened(spool: Any, *, temporary: bool) -> tuple[Spool, Callable[[], None]]:
    """The spool to use, and what tidies up after it."""
    if isinstance(spool, Spool):
        return spool, lambda: None
    try:
        return Spool(spool), lambda: None
    except NotASpool:
        if spool is not None or not temporary:
            raise
    folder = tempfile.mkdtemp(prefix="spool-")
    made = Spool.create(f"{folder}/spool")
    return made, lambda: files.remove_tree(folder)
