"""function_calls - no-op calls through an executor on two workers; prints calls a second.

Run as  PYTHON function_calls.py spool|parsl|pool COUNT FOLDER
Exit    1: a call did not give what it should.

A hundred calls go before, so that whatever starts lazily has started; then all are submitted one
by one and waited for, as parsl-perf does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

WORKERS = 2
Submit = Callable[[int], Future]


def same(number: int) -> int:
    """Nothing."""
    return number


@contextmanager
def spool(folder: str) -> Any:
    """A spool in the folder, and a launcher of its own."""
    from spool import Spool, SpoolExecutor

    with SpoolExecutor(Spool.create(f"{folder}/spool"), WORKERS) as executor:
        yield lambda number: executor.submit(same, number)


@contextmanager
def pool(folder: str) -> Any:
    """The standard library's."""
    with ProcessPoolExecutor(WORKERS) as executor:
        yield lambda number: executor.submit(same, number)


@contextmanager
def parsl(folder: str) -> Any:
    """Parsl's HighThroughputExecutor on this machine."""
    import parsl as library
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    blocks = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(
        label="htex", address="127.0.0.1", max_workers_per_node=WORKERS, provider=blocks
    )
    wanted = Config(executors=[executor], run_dir=folder, initialize_logging=False)
    with library.load(wanted):
        yield library.python_app(same)


EXECUTORS: dict[str, Callable[[str], AbstractContextManager[Submit]]] = {
    "spool": spool,
    "parsl": parsl,
    "pool": pool,
}


def rate(submit: Submit, count: int) -> float:
    """Calls a second, from the first submission to the last result."""
    began = time.perf_counter()
    futures = [submit(number) for number in range(count)]
    results = [future.result() for future in futures]
    seconds = time.perf_counter() - began
    if results != list(range(count)):
        sys.exit("a call gave something else")
    return count / seconds


if __name__ == "__main__":
    with EXECUTORS[sys.argv[1]](sys.argv[3]) as submit:
        rate(submit, 100)
        print(rate(submit, int(sys.argv[2])))
