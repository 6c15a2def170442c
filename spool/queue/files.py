"""files - the only rename, mkdir, fsync and listing; every call that touches the tree stands here.

Owns   durable writes, moves, listings, appends; the seam that tests and benchmarks can watch.
Never  decides where a task belongs, and never copies as a fallback for a rename.
Fails  DiskFull, FileSystemFault: the disk is full, read-only, or the tree spans two mounts.
       FileExistsError: the target of a move holds something already.
       FileNotFoundError, PermissionError: as the system says, where the caller must decide.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from spool.errors import FileSystemFault, SpoolError
from spool.queue.faults import UNKNOWN, explained

T = TypeVar("T")
Watcher = Callable[[str, str, tuple[Any, ...]], None]

watcher: Watcher | None = None
"""Called as watcher("before" or "after", operation, arguments) around every call; see `watch`."""

LARGEST_MANIFEST = 1 << 20
MOVE_TRIES = 100  # whoever empties a group removes it, maybe each time before we have moved into it
UNANSWERED_TRIES = 3
STALE_TRIES = 3


def watch(new: Watcher | None) -> None:
    """Install a watcher: it may count, delay, raise or kill at any call. None removes it."""
    global watcher
    watcher = new


def _do(operation: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    if watcher is None:
        return call(*arguments, **options)
    watcher("before", operation, arguments)
    result = call(*arguments, **options)
    watcher("after", operation, arguments)
    return result


# -- moves ---------------------------------------------------------------------------------------


def move(source: str, target: str, *, proof: str = "") -> bool:
    """Move a task by one rename; False if it is gone, that is: lost the race for it.

    A missing target folder is made. A failed answer to a move that happened (a lost reply of a
    network file system) is found out by listing: it did where `proof` is there, by default the
    target, whose name nobody else uses. Raises FileExistsError if target is occupied.
    """
    proof = proof or target
    opened, unanswered = False, 0
    for _ in range(MOVE_TRIES):
        try:
            _do("rename", os.rename, source, target)
        except FileNotFoundError:
            if holds(proof):
                return True
            if not holds(source):
                return False
            make_folder(os.path.dirname(target))
        except PermissionError:
            # Moving a directory rewrites its "..", so it must itself be writable.
            if opened or not open_up(source):
                raise
            opened = True
        except OSError as fault:
            if fault.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(fault.errno, "already there", target) from None
            if fault.errno not in UNKNOWN:
                raise explained(fault, target) from fault
            if (answer := _settled(source, proof)) is not None:
                return answer
            if (unanswered := unanswered + 1) == UNANSWERED_TRIES:
                break
        else:
            return True
    raise FileSystemFault(f"{source}: cannot be moved to {target}. Run: spool doctor")


def _settled(source: str, proof: str) -> bool | None:
    """Whether a rename whose answer was lost happened; None if it must be tried again."""
    if holds(proof):
        return True
    return None if holds(source) else False


def holds(path: str) -> bool:
    """Whether a path is there, by a fresh listing of its folder (a cached stat may lie)."""
    folder, name = os.path.split(path)
    return name in names(folder)


def open_up(path: str) -> bool:
    """Give a task directory or a file its owner's rights back; False if that is not ours to do."""
    try:
        mode = os.lstat(path).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return False
        _do("chmod", os.chmod, path, 0o700 if stat.S_ISDIR(mode) else 0o600)
    except OSError:
        return False
    return True


# -- folders -------------------------------------------------------------------------------------


def make_folder(path: str) -> bool:
    """Make a folder and what is missing above it; False if it was there."""
    for _ in range(MOVE_TRIES):
        try:
            _do("mkdir", os.mkdir, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            make_folder(os.path.dirname(path))
        except OSError as fault:
            raise explained(fault, path) from fault
        else:
            return True
    raise FileSystemFault(f"{path}: cannot be made")


def new_folder(path: str) -> None:
    """Make a folder that must not exist. Raises FileExistsError, FileNotFoundError."""
    try:
        _do("mkdir", os.mkdir, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as fault:
        raise explained(fault, path) from fault


def remove_folder(path: str) -> bool:
    """Remove a folder if it is empty."""
    try:
        _do("rmdir", os.rmdir, path)
    except OSError:
        return False
    return True


def remove_tree(path: str) -> None:
    """Delete a tree without following links; what is gone already is no error."""
    import shutil

    def mend(call: Callable[..., Any], where: str, fault: BaseException) -> None:
        if isinstance(fault, FileNotFoundError):
            return
        raise fault

    _unlock(path)
    try:
        _do("rmtree", _rmtree, shutil.rmtree, path, mend)
    except RecursionError:
        import subprocess

        subprocess.run(
            ["rm", "-rf", "--", path], check=False
        )  # it walks step by step, however deep
        if exists(path):
            raise FileSystemFault(f"{path}: cannot be deleted; it is nested too deep") from None
    except OSError as fault:
        if fault.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise explained(fault, path) from fault
        _rmtree(shutil.rmtree, path, mend)  # somebody put something in meanwhile: a request


def _rmtree(rmtree: Any, path: str, mend: Callable[..., Any]) -> None:
    rmtree(path, onerror=lambda call, where, info: mend(call, where, info[1]))


def _unlock(path: str) -> None:
    with suppress(OSError, SpoolError):  # what cannot be opened up, the removal itself complains of
        os.chmod(path, 0o700)
        for folder in folders_below(path):
            os.chmod(folder, 0o700)


def folders_below(path: str) -> Iterator[str]:
    """The folders below a folder, links not followed, each before what it holds, however deep."""
    left = [path]
    while left:
        here = left.pop()
        found = [f"{here}/{name}" for name in names(here) if is_folder(f"{here}/{name}")]
        left += found
        yield from found


def names(folder: str) -> list[str]:
    """The names in a folder, [] if it is not there; a rumour by the time it is read."""
    return _listed(os.listdir, folder) or []


def scan(folder: str) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, streamed; nothing if it is not there."""
    if (entries := _listed(os.scandir, folder)) is not None:
        with entries:
            yield from entries


def _listed(call: Callable[[str], T], folder: str) -> T | None:
    """A listing; None if the folder is not there, or its handle is stale time and again."""
    for _ in range(STALE_TRIES):
        try:
            return _do("list", call, folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as fault:
            if fault.errno != errno.ESTALE:
                raise explained(fault, folder) from fault
    return None


def is_folder(path: str) -> bool:
    """Whether path is a folder itself, not a link to one."""
    return stat.S_ISDIR(_mode(path))


def is_plain(path: str) -> bool:
    """Whether path is a plain file itself, not a link to one."""
    return stat.S_ISREG(_mode(path))


def exists(path: str) -> bool:
    """Whether something is there, by one look; on a network file system a "no" may be stale."""
    return _mode(path) != 0


def size(path: str) -> int:
    """Bytes of a plain file; -1 where none is there, or a link. Raises PermissionError."""
    try:
        about = _do("stat", os.lstat, path)
    except PermissionError:
        raise
    except OSError:
        return -1
    return about.st_size if stat.S_ISREG(about.st_mode) else -1


def _mode(path: str) -> int:
    """What lstat says something is, 0 where there is nothing."""
    try:
        return _do("stat", os.lstat, path).st_mode
    except OSError:
        return 0


# -- files ---------------------------------------------------------------------------------------


def write_new(path: str, content: bytes, *, sync: bool = False, mode: int = 0o666) -> None:
    """Create a file that must not exist. Raises FileExistsError, FileNotFoundError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = _do("create", os.open, path, flags, mode)
        try:
            _write(file, content)
            if sync:
                _do("fsync", os.fsync, file)
        except OSError:
            with suppress(OSError):
                os.unlink(path)  # half a file, or one whose pages the kernel has dropped
            raise
        finally:
            os.close(file)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as fault:
        raise explained(fault, path) from fault


def _write(file: int, content: bytes) -> None:
    written = os.write(file, content)
    while written < len(content):
        written += os.write(file, content[written:])


def replace(path: str, content: bytes, *, sync: bool = False) -> None:
    """Write a file whole: aside, then renamed over the old one."""
    aside = f"{path}.{os.getpid()}.tmp"
    with suppress(FileNotFoundError):
        os.unlink(aside)
    write_new(aside, content, sync=sync)
    try:
        _do("rename", os.replace, aside, path)
    except OSError as fault:
        with suppress(OSError):
            os.unlink(aside)
        raise explained(fault, path) from fault


def overwrite(path: str, content: bytes) -> None:
    """Write over the start of a file in place. Raises FileNotFoundError."""
    file = _do("open", os.open, path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.pwrite(file, content, 0)
    finally:
        os.close(file)


def modified(path: str) -> float:
    """When a file was last written, by its server's clock: a hint for people; 0 for unknown."""
    try:
        return float(_do("stat", os.lstat, path).st_mtime)
    except OSError:
        return 0.0


def append(path: str, content: bytes, *, create: bool = True, heal: bool = True) -> None:
    """Append whole lines, opened by full path for each call.

    `heal` first ends a line that a dying writer tore. Raises FileNotFoundError without `create`.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    operation = "create" if create else "open"
    try:
        file = _do(operation, os.open, path, flags | (os.O_CREAT if create else 0), 0o666)
        try:
            if heal and _torn(file):
                content = b"\n" + content
            _do("write", _write, file, content)
        except OSError:
            with suppress(OSError):
                _cut_torn(file)
            raise
        finally:
            os.close(file)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as fault:
        raise explained(fault, path) from fault


def _cut_torn(file: int) -> None:
    """Take back the piece of a line that a full disk still took, so that it can be told again."""
    size = os.fstat(file).st_size
    tail = os.pread(file, 65536, max(0, size - 65536))
    os.ftruncate(file, size - len(tail) + tail.rfind(b"\n") + 1)


def _torn(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def open_output(path: str) -> int:
    """Create a file for a program to write to. Raises FileExistsError: something is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return _do("create", os.open, path, flags, 0o666)


def open_log(path: str) -> int:
    """Open a file for a program to go on writing to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return _do("create", os.open, path, flags, 0o666)


def rename_file(source: str, target: str) -> None:
    """Rename a plain file inside a task we own."""
    _do("rename", os.rename, source, target)


def move_aside(path: str) -> str:
    """Rename a file to the first free PATH.1, PATH.2, ...; the new path."""
    folder, name = os.path.split(path)
    taken = set(names(folder))
    number = 1
    while f"{name}.{number}" in taken:
        number += 1
    aside = f"{path}.{number}"
    rename_file(path, aside)
    return aside


def unlink(path: str) -> bool:
    """Remove a file; False if it is gone."""
    try:
        _do("unlink", os.unlink, path)
    except FileNotFoundError:
        return False
    return True


def link(source: str, target: str) -> bool:
    """Give a file a second name; False if that name is taken."""
    try:
        _do("link", os.link, source, target)
    except FileExistsError:
        return False
    except FileNotFoundError:
        make_folder(os.path.dirname(target))
        return link(source, target)
    return True


def symlink(source: str, target: str) -> None:
    """Make `target` a link to `source`, in place of a file or a link that is there."""
    with suppress(FileNotFoundError):
        os.unlink(target)
    try:
        _do("symlink", os.symlink, source, target)
    except OSError as fault:
        raise explained(fault, target) from fault


def read(path: str, limit: int = 1 << 26) -> bytes | None:
    """A regular file's bytes, at most `limit`; None if it is not there."""
    try:
        file = _do("open", os.open, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return read_from(file, limit)
    finally:
        os.close(file)


def tail(path: str, most: int) -> bytes:
    """The last bytes of a regular file, at most so many; b"" if there is none that can be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        about = os.fstat(file)
        start = max(0, about.st_size - most)
        return os.pread(file, most, start) if stat.S_ISREG(about.st_mode) else b""
    finally:
        os.close(file)


def read_from(file: int, limit: int) -> bytes:
    """What an open file holds, at most `limit` bytes."""
    content = os.read(file, min(limit, 65536))
    if len(content) < 65536:
        return content
    parts = [content]
    limit -= len(content)
    while limit > 0 and (part := os.read(file, min(limit, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def open_inside(path: str, flags: int, inside: int | None) -> int:
    """Open a path, relative to the open folder `inside` if there is one. Raises OSError."""
    return _do("open", os.open, path, flags, dir_fd=inside)


# -- durability ----------------------------------------------------------------------------------


def sync(path: str) -> bool:
    """Make a file or folder durable; False if it is gone.

    A failed fsync is final: the kernel has dropped the pages, so a second try would lie.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        _do("fsync", os.fsync, file)
    except OSError as fault:
        raise explained(fault, path) from fault
    finally:
        os.close(file)
    return True


def sync_all(path: str) -> None:
    """Make everything on path's file system durable with one syncfs(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _do("syncfs", libc.syncfs, file) != 0:
            fault = OSError(ctypes.get_errno(), "syncfs failed")
            raise explained(fault, path) from fault
    finally:
        os.close(file)


def sync_below(folder: str) -> None:
    """Make every plain file and folder below a directory durable, the directory last."""
    for here in reversed([folder, *folders_below(folder)]):
        for name in names(here):
            if is_plain(f"{here}/{name}"):
                sync(f"{here}/{name}")
        sync(here)
