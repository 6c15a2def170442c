"""faults - what an errno means here: a full disk, a passing trouble, or one task's own.

Owns   the sorting of system errors, and their words for a person.
Never  touches the disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from spool.errors import DiskFull, FileSystemFault, SpoolError

FULL = (errno.ENOSPC, errno.EDQUOT)
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
UNKNOWN = (errno.EIO, errno.ETIMEDOUT, errno.EINTR, errno.ESHUTDOWN, errno.ENOTCONN, errno.ESTALE)
OF_ONE = (errno.EPERM, errno.EACCES, errno.EBUSY, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def explained(fault: OSError, path: str) -> Exception:
    """`fault` as an error a person can act on, or itself where the caller must decide."""
    if fault.errno in FULL:
        return DiskFull(
            f"{path}: {os.strerror(fault.errno)}. Nothing was lost: free space or inodes, try again"
        )
    if fault.errno == errno.EROFS:
        return FileSystemFault(f"{path}: the file system is read-only")
    if fault.errno == errno.EXDEV:
        return FileSystemFault(
            f"{path}: the spool spans two file systems, so nothing can be moved by rename."
            " Run: spool doctor"
        )
    return fault


@contextmanager
def said_plainly() -> Iterator[None]:
    """At a person's door: what the system refuses becomes an error that says where and why."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read what we print has left
    except OSError as fault:
        why = explained(fault, str(fault.filename or "the spool"))
        if isinstance(why, SpoolError):
            raise why from fault
        raise FileSystemFault(f"{fault.filename or 'the spool'}: {fault.strerror}") from fault


def is_passing(fault: OSError) -> bool:
    """Whether a failure tells of the moment, and nothing of what was to be read."""
    return fault.errno in UNKNOWN or fault.errno in SCARCE


def is_of_one(fault: Exception) -> bool:
    """Whether a failure tells of the one task that was touched, and nothing of the file system."""
    return isinstance(fault, OSError) and fault.errno in OF_ONE
