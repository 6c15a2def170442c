"""function - `@spool.function`: a function whose calls can be tasks.

Owns   the decorator and what it makes of a function.
Fails  ManifestError: a key that no task has; what pickling raises.

A call that is submitted so is a task that stands for itself: durable, with its result in its own
directory, FAILED if it raised, and found again by its id from anywhere.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from spool.calls import ahead
from spool.launcher import warm
from spool.queue import files, layout, manifest, submit

if TYPE_CHECKING:
    from spool.api import Spool, Task

P = ParamSpec("P")
R = TypeVar("R")


class Function(Generic[P, R]):
    """A function, called here as ever; `submit` makes a task of a call."""

    def __init__(self, fn: Callable[P, R], keys: dict[str, Any]) -> None:
        self.fn, self.keys = fn, keys
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain call, here and now."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<spool function {self.fn.__qualname__}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By reference where the name leads here; else with the function itself."""
        found: Any = sys.modules.get(self.fn.__module__)
        for name in self.fn.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is self and self.fn.__module__ != "__main__":
            return str(self.fn.__qualname__)
        return Function, (self.fn, self.keys)

    def options(self, **keys: Any) -> Function[P, R]:
        """The same function with other keys for its tasks."""
        return Function(self.fn, {**self.keys, **_named(keys)})

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Task:
        """Submit a call to the spool that `Spool()` finds; see `Spool.call`."""
        from spool.api import Spool

        return Spool(self.keys.get("spool")).call(self, *args, **kwargs)


@overload
def function(fn: Callable[P, R], /) -> Function[P, R]: ...
@overload
def function(**keys: Any) -> Callable[[Callable[P, R]], Function[P, R]]: ...
def function(fn: Any = None, /, **keys: Any) -> Any:
    """Let calls of a function be tasks: @function, or @function(cores=4, memory="8G", ...).

    Keys are those of the manifest, `cores` short for cores_per_rank; `spool` names the spool.
    """
    named = _named(keys)
    return Function(fn, named) if fn is not None else lambda fn: Function(fn, named)


def _named(keys: dict[str, Any]) -> dict[str, Any]:
    named = dict(keys)
    if "cores" in named:
        named["cores_per_rank"] = named.pop("cores")
    manifest.from_mapping({"python": "/", **_asked(named)}, "function")  # wrong keys are told here
    return named


def _asked(keys: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in keys.items() if name != "spool"}


def send(
    spool: Spool, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Submit one call as a task that stands for itself; its id."""
    from spool.calls.letters import Call, written

    keys = _asked(fn.keys) if isinstance(fn, Function) else {}
    name = layout.as_name(getattr(fn, "__name__", type(fn).__name__))
    wanted = manifest.from_mapping(
        {"name": name, "python": sys.executable, "imports": ahead.imports(fn), **keys}, "call"
    )
    content = written(
        [Call(0, Future(), "", warm.dumps(fn), warm.dumps((args, kwargs)))], "", alone=True
    )

    def fill(built: str) -> None:
        files.write_new(f"{built}/{warm.CALLS}", content, mode=0o600)

    return submit.submit(spool._tree, wanted, fill)
