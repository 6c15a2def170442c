"""trust - read a file only where its owner and the way to it can be trusted.

Never  follows a link.
Fails  PermissionError with the reason; FileNotFoundError.
"""

from __future__ import annotations

import errno
import os
import stat

from spool.queue import files


def read_trusted(folder: str, name: str, trusted: frozenset[int]) -> bytes:
    """A task's file, reached without following links, owned by a user we trust.

    Raises FileNotFoundError if folder or file is gone, PermissionError with the reason otherwise.
    """
    here = _open_safely(folder, os.O_DIRECTORY, None)
    try:
        owner = os.fstat(here).st_uid
        if owner not in trusted:
            raise PermissionError(errno.EPERM, f"belongs to user {owner}, who is not trusted")
        file = _open_safely(name, 0, here)
    finally:
        os.close(here)
    try:
        found = os.fstat(file)
        if reason := _unsafe(found, trusted):
            raise PermissionError(errno.EPERM, f"{name} {reason}")
        return files.read_from(file, files.LARGEST_MANIFEST)
    finally:
        os.close(file)


def _open_safely(path: str, extra: int, inside: int | None) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | extra
    try:
        return files.open_inside(path, flags, inside)
    except OSError as fault:
        if fault.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise PermissionError(errno.EPERM, f"{path} is a link or no plain file") from None
        raise


def _unsafe(found: os.stat_result, trusted: frozenset[int]) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "is no plain file"
    if found.st_uid not in trusted:
        return f"belongs to user {found.st_uid}, who is not trusted"
    if found.st_nlink != 1:
        return "has a second hard link"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by everyone"
    if found.st_size > files.LARGEST_MANIFEST:
        return f"is larger than {files.LARGEST_MANIFEST} bytes"
    return ""
