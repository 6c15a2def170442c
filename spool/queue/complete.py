"""complete - whether what was dropped into CREATED/ is all there: names, rest, declared inputs.

Owns   the names under which transfers keep unfinished files; the fingerprint of an arrival; the
       proof by size and sha256 of declared inputs.
Never  moves or writes anything: admit.py decides, why/arriving.py tells.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator

from spool.errors import ManifestError
from spool.queue import files, layout, manifest
from spool.queue.kinds import Input
from spool.queue.manifest import Manifest

TEMPORARY = (
    ".*.??????",
    ".~tmp~",
    ".rsync-partial",
    "*.part",
    "*.filepart",
    "*.tmp",
    ".nfs*",
    "*.crdownload",
)
"""Names under which rsync, scp, sftp clients and NFS keep unfinished files."""

MOST_ENTRIES = 200_000
Print = tuple[tuple[str, int, int, int], ...]


def kind_of(path: str) -> str:
    """What an arrival is: folder, file, other (a link, a FIFO, a device) or gone."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "gone"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def fingerprint(path: str) -> Print | None:
    """Names, sizes, change times and inodes below a directory; None while a transfer is under way.

    The directory's own change time is left out: claiming it changes that. What cannot be read
    counts as unchanged: it comes to rest, and is then rejected.
    """
    found: list[tuple[str, int, int, int]] = []
    try:
        for name, about in below(path):
            if is_temporary(name):
                return None
            found.append((name, about.st_size, about.st_ctime_ns, about.st_ino))
            if len(found) > MOST_ENTRIES:
                break
    except FileNotFoundError:
        return None
    except OSError as fault:
        found.append((f"unreadable: {fault.strerror}", 0, 0, 0))
    return tuple(sorted(found))


def is_temporary(name: str) -> bool:
    """Whether a transfer program keeps unfinished files under such a name."""
    inner = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(inner, pattern) for pattern in TEMPORARY)


def below(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The names of all that lies below a directory, with what lstat says. Raises OSError."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        for entry in files.scan(f"{path}/{prefix}"):
            about = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, about
            if stat.S_ISDIR(about.st_mode):
                folders.append(f"{prefix}{entry.name}/")


def peek(path: str) -> Manifest | None:
    """The manifest as it looks before the claim: a hint only."""
    try:
        raw = files.read(f"{path}/{layout.MANIFEST}", files.LARGEST_MANIFEST)
        return manifest.parse(raw or b"", path)
    except (ManifestError, OSError):
        return None


def may_start(path: str, at_rest: bool) -> bool:
    """Whether an arrival is complete: by proof at once, else by rest, with all inputs there."""
    wanted = peek(path)
    if wanted is None:
        return at_rest  # a manifest that will never parse is rejected; one still growing is not
    inputs = wanted.input_list
    proven = bool(inputs) and all(item.sha256 for item in inputs)
    if not proven and not at_rest:
        return False
    if missing(path, wanted):
        return False
    return at_rest or not any(wrong_input(path, item) for item in inputs)


def missing(path: str, wanted: Manifest) -> list[str]:
    """The declared inputs that are not there yet."""
    return [item.path for item in wanted.input_list if not files.exists(f"{path}/{item.path}")]


def wrong_input(path: str, item: Input) -> str:
    """What is wrong with one declared input; "" if it is as declared."""
    where = f"{path}/{item.path}"
    try:
        about = os.lstat(where)
    except OSError:
        return f"input {item.path!r} is missing"
    if item.size >= 0 and about.st_size != item.size:
        return f"input {item.path!r} has {about.st_size} bytes, the manifest says {item.size}"
    if item.sha256 and (found := _sha256(where)) != item.sha256:
        return f"input {item.path!r} has sha256 {found}, the manifest says {item.sha256}"
    return ""


def _sha256(path: str) -> str:
    import hashlib

    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as fault:
        return f"unreadable ({fault.strerror})"
