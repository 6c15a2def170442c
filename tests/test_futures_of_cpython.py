"""CPython's own tests of concurrent.futures, run over a spool with a launcher of its own each.

Its mixins are taken as they are installed; where Python came without its tests all is skipped.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from spool import SpoolExecutor

PARTS = ("executor", "test_shutdown", "test_wait", "test_as_completed", "util")


def _suite() -> Any:
    """The mixins: of one module up to Python 3.11, of several in a package since."""
    found: dict[str, Any] = {}
    try:
        whole = importlib.import_module("test.test_concurrent_futures")
        found.update(vars(whole))
        if hasattr(whole, "__path__"):
            for name in PARTS:
                found.update(vars(importlib.import_module(f"{whole.__name__}.{name}")))
    except Exception as why:
        pytest.skip(
            f"this Python has no tests of concurrent.futures: {why}", allow_module_level=True
        )
    return SimpleNamespace(**found)


suite = _suite()


class LocalExecutor(SpoolExecutor):
    """As ThreadPoolExecutor is made: so many workers, no more said."""

    def __init__(self, max_workers: int | None = 2, **more: Any) -> None:
        super().__init__(None, max_workers, **more)


class Mixin(suite.ExecutorMixin):  # type: ignore[misc, name-defined]
    """setUp and tearDown of CPython's, with our executor."""

    executor_type = LocalExecutor


class TestExecutor(Mixin, suite.ExecutorTest, suite.BaseTestCase):
    """submit, map, references."""

    def test_map_chunksize(self) -> None:
        """As of ProcessPoolExecutor, whose own test needs its processes."""
        wanted = list(map(pow, range(40), range(40)))
        for size in (1, 6, 50, 40):
            made = self.executor.map(pow, range(40), range(40), chunksize=size)
            assert list(made) == wanted
        with pytest.raises(ValueError, match="chunksize must be >= 1"):
            list(self.executor.map(pow, range(40), range(40), chunksize=-1))


class TestWait(Mixin, suite.WaitTests, suite.BaseTestCase):
    """futures.wait."""


class TestAsCompleted(Mixin, suite.AsCompletedTests, suite.BaseTestCase):
    """futures.as_completed."""


def script(text: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)


class TestShutdown(Mixin, suite.ExecutorShutdownTest, suite.BaseTestCase):
    """shutdown, and the end of the interpreter.

    Three tests read what a worker prints; here that goes to the task's output, so the same is asked
    of a file instead.
    """

    def test_cancel_futures(self) -> None:
        """As there, but that a call has begun is waited for: a launcher starts less soon."""
        fs = [self.executor.submit(time.sleep, 0.1) for _ in range(50)]
        while not any(future.running() for future in fs):
            time.sleep(0.001)
        self.executor.shutdown(cancel_futures=True)
        others = [future for future in fs if not future.cancelled()]
        assert 0 < len(others) < 30
        assert all(future.done() and future.exception() is None for future in others)

    def test_interpreter_shutdown(self, shutdown: str = "") -> None:
        """What was submitted is done before the interpreter ends."""
        ran = script(f"""if 1:
            import tempfile, os, time
            from spool import SpoolExecutor
            def sleep_and_print(t, path):
                time.sleep(t)
                open(path, "w").write("apple")
            if __name__ == "__main__":
                path = tempfile.mktemp()
                t = SpoolExecutor(max_workers=3)
                t.submit(sleep_and_print, 1.0, path)
                {shutdown}
                import atexit
                atexit.register(lambda: print(open(path).read()))
        """)
        assert (ran.stderr, ran.stdout.strip()) == ("", "apple")

    def test_hang_gh83386(self) -> None:
        """The same after shutdown(wait=False)."""
        self.test_interpreter_shutdown("t.shutdown(wait=False)")

    def test_submit_after_interpreter_shutdown(self) -> None:
        """It is refused, in words."""
        ran = script("""if 1:
            import atexit
            @atexit.register
            def run_last():
                try:
                    t.submit(id, None)
                except RuntimeError:
                    print("runtime-error")
                    raise
            from spool import SpoolExecutor
            if __name__ == "__main__":
                t = SpoolExecutor(max_workers=5)
                t.submit(id, 42).result()
        """)
        assert "RuntimeError: cannot schedule new futures" in ran.stderr
        assert ran.stdout.strip() == "runtime-error"


@pytest.mark.skip(reason="needs processes that outlive calls: an initializer, max_tasks_per_child")
def test_initializers_and_idle_processes() -> None:
    """InitializerMixin and test_idle_process_reuse: a task's process runs a batch and ends."""


@pytest.mark.skip(reason="a call that kills its process breaks no pool; see test_executor.py")
def test_deadlocks_of_broken_pools() -> None:
    """ExecutorDeadlockTest expects BrokenProcessPool of all futures."""
