"""spool - run large ensembles of programs; a task is a directory, its state the folder it lies in.

    from spool import Spool
    spool = Spool("/scratch/me/campaign")
    task = spool.submit(["./simulate", "--seed", "7"], time_limit="1h")
    spool.wait([task])

Importing this starts nothing and reads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spool.api import Array, Spool, Task
    from spool.calls.executor import SpoolExecutor
    from spool.calls.function import function
    from spool.calls.handles import as_completed, wait
    from spool.errors import SpoolError

__all__ = [
    "Array",
    "Spool",
    "SpoolError",
    "SpoolExecutor",
    "Task",
    "__version__",
    "as_completed",
    "function",
    "wait",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the API only where it is used, so that the command line starts fast."""
    if name in ("Array", "Spool", "Task"):
        from spool import api

        return getattr(api, name)
    if name == "SpoolExecutor":
        from spool.calls.executor import SpoolExecutor

        return SpoolExecutor
    if name == "function":
        from spool.calls.function import function

        return function
    if name in ("as_completed", "wait"):
        from spool.calls import handles

        return getattr(handles, name)
    if name == "SpoolError":
        from spool.errors import SpoolError

        return SpoolError
    raise AttributeError(f"module 'spool' has no attribute {name!r}")
