"""ahead - what a warm worker should have imported before it runs a function.

Owns   the choice of modules, the folder they are found in, a mark of the code as it is now.
Never  imports anything.

The mark changes with any source file of this program that lies outside the interpreter's own
folders, so that a worker kept warm since yesterday never runs yesterday's code.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def imports(fn: Callable[..., Any]) -> tuple[str, ...]:
    """The manifest's `imports` for a function: a folder to look in, its module, a mark."""
    inner = getattr(fn, "func", fn)
    name = getattr(inner, "__module__", None) or ""
    root = name.partition(".")[0]
    module = sys.modules.get(root)
    path = getattr(module, "__file__", None)
    if root in sys.stdlib_module_names or root in ("__main__", "__mp_main__", "spool") or not path:
        return ()
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.basename(path).startswith("__init__."):
        folder = os.path.dirname(folder)
    return (name,) if _is_installed(folder) else (folder, name, f"#{_mark(len(sys.modules)):08x}")


def _is_installed(folder: str) -> bool:
    return folder.startswith(_own_folders())


@lru_cache(maxsize=1)
def _own_folders() -> tuple[str, ...]:
    return tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


@lru_cache(maxsize=1)
def _mark(loaded: int) -> int:
    """Of the sources in use that are not installed; asked again only when more are `loaded`."""
    seen = 0
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and not _is_installed(path):
            try:
                about = os.stat(path)
            except OSError:
                continue
            seen = zlib.crc32(f"{path} {about.st_mtime_ns} {about.st_size}".encode(), seen)
    return seen
