"""ground - what the file system under a spool says of itself: looks at which nothing is written.

Owns   LOOKS, by name, and what is known of types of file systems, mount options and kernels;
       Answer, what every check of the doctor gives.
Never  writes or creates anything: a full, a read-only and a foreign spool can be looked at too.
Fails  OSError: the system refuses to tell. An `of_` function judges a fact and never fails.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spool.errors import SpoolError
from spool.queue import layout
from spool.queue.layout import State, Tree

Verdict = Literal["ok", "note", "warn", "fail"]
Answer = tuple[Verdict, str]

PATH_FREE = 512  # bytes that should be left to a task's own files
FEWEST_INODES = 10_000
HONEST_SYNCFS = (5, 8)  # the first kernel whose syncfs(2) reports write errors
FSGETXATTR = 0x801C581F  # ioctl_xfs_fsgetxattr(2): struct fsxattr, whose fourth word is the project

_OBJECTS = "a store of objects, where renaming a folder copies it file by file and may stop halfway"
_NO_CASE = "names that differ only by case are the same there, and hard links are missing"
_LOST = "lives in memory: its tasks do not survive a power cut"
_ODD = "its renames or links may not behave as POSIX says when the other side fails"
KINDS: dict[str, Answer] = {
    **dict.fromkeys(("vfat", "msdos", "exfat"), ("fail", _NO_CASE)),
    **dict.fromkeys(
        ("fuse.gcsfuse", "fuse.s3fs", "fuse.goofys", "fuse.rclone", "fuse.mount-s3"),
        ("fail", _OBJECTS),
    ),
    **dict.fromkeys(
        ("fuse.sshfs", "cifs", "smb3", "9p", "ntfs3", "fuseblk", "afs"), ("warn", _ODD)
    ),
    **dict.fromkeys(("tmpfs", "ramfs"), ("note", _LOST)),
    "overlay": ("note", "goes away with its container; its image's own folders cannot be moved"),
}
SHARED = frozenset(("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs"))
TRUSTED = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "nfs", "nfs4", "lustre", "gpfs")
    + ("beegfs", "ceph", "fuse.ceph-fuse")
)

_SOFT = "a slow server makes moves end with an error and an unknown outcome; mount it hard"
_LOCKS = "locks are not seen by other hosts, so two services may do the same work"
OPTIONS = {
    "soft": _SOFT,
    "softerr": _SOFT,
    "nolock": _LOCKS,
    "localflock": _LOCKS,
    "local_lock=all": _LOCKS,
    "local_lock=flock": _LOCKS,
    "local_lock=posix": _LOCKS,
    "noac": "every look asks the server, so everything is slow",
    "noexec": "programs inside task directories cannot be started",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a folder's file system is mounted, and how."""

    point: str
    kind: str
    source: str
    options: frozenset[str]


def reason(fault: OSError | SpoolError) -> str:
    """What the system, or our own code, says of a refusal."""
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename}: {fault.strerror}" if fault.filename else fault.strerror
    return str(fault)


# -- the mount -----------------------------------------------------------------------------------


def mount_of(folder: str) -> Mount:
    """The mount a folder lies on, by the kernel's number for it; overmounts cannot confuse it."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{here}", encoding="ascii") as file:
            number = dict(line.split(":", 1) for line in file)["mnt_id"].strip()
    finally:
        os.close(here)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        line = next((line for line in file if line.split(" ", 1)[0] == number), "")
    return parse_mount(line)


def parse_mount(line: str) -> Mount:
    """One line of /proc/self/mountinfo, proc(5); kind is "unknown" if there is none."""
    before, _, after = line.rstrip("\n").partition(" - ")
    words, tail = before.split(" "), after.split(" ")
    if len(words) < 6 or len(tail) < 3:
        return Mount("?", "unknown", "?", frozenset())
    options = frozenset(f"{words[5]},{tail[2]}".split(","))
    return Mount(_unescaped(words[4]), tail[0], _unescaped(tail[1]), options)


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def _kind(tree: Tree) -> Answer:
    mount = mount_of(tree.root)
    verdict, why = of_kind(mount.kind)
    return verdict, f"{mount.kind}, {mount.source} mounted at {mount.point}{why}"


def of_kind(kind: str) -> Answer:
    """What is known of a type of file system; the sentence ends one that names it."""
    verdict, why = KINDS.get(kind, ("ok", ""))
    if verdict in ("fail", "warn"):
        return verdict, f": {why}; put the spool on a POSIX file system"
    if why:
        return verdict, f": {why}"
    if kind not in TRUSTED:
        return "note", ": a type this version does not know; the findings below decide"
    return "ok", ""


def _options(tree: Tree) -> Answer:
    return of_options(mount_of(tree.root).options)


def of_options(options: frozenset[str]) -> Answer:
    """What is wrong with these mount options."""
    wrong = sorted(options & OPTIONS.keys())
    if not wrong:
        return "ok", "none that harms a spool"
    return "warn", ". ".join(f"{option}: {OPTIONS[option]}" for option in wrong)


def _bell(tree: Tree) -> Answer:
    kind = mount_of(tree.root).kind
    if kind in SHARED or kind.startswith("fuse."):
        return "note", f"{kind} does not announce what other hosts do: launchers there poll only"
    return "ok", "what this host does is announced by inotify; other hosts are polled for"


# -- the kernel, and the room that is left -------------------------------------------------------


def _kernel(_: Tree) -> Answer:
    return of_kernel(os.uname().release)


def of_kernel(release: str) -> Answer:
    """Whether syncfs(2) reports write errors in a kernel release."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if numbers >= HONEST_SYNCFS:
        return "ok", f"{release}: syncfs reports write errors"
    why = "syncfs reports no write errors before 5.8"
    return "note", f'{release}: {why}; set sync = "files" under [launcher] in {layout.SETTINGS}'


def _space(tree: Tree) -> Answer:
    return of_space(os.statvfs(tree.root))


def of_space(found: os.statvfs_result) -> Answer:
    """Whether there is room for files' contents."""
    share = found.f_bavail / found.f_blocks if found.f_blocks else 1.0
    free = f"{found.f_bavail * found.f_frsize / 1e9:,.1f} GB free ({share:.0%})"
    if share < 0.01:
        return "warn", f"{free}: free some space before submitting more"
    return "ok", f"{free}; quotas are not seen from here"


def _inodes(tree: Tree) -> Answer:
    return of_inodes(os.statvfs(tree.root))


def of_inodes(found: os.statvfs_result) -> Answer:
    """Whether there is room for more files; a task takes four or more."""
    if found.f_files == 0:
        return "note", "this file system does not count its inodes, so running out is not foreseen"
    if found.f_favail < max(found.f_files / 100, FEWEST_INODES):
        what = "remove or archive finished tasks before submitting more"
        return "warn", f"only {found.f_favail:,} inodes free of {found.f_files:,}: {what}"
    return "ok", f"{found.f_favail:,} inodes free ({found.f_favail / found.f_files:.0%})"


# -- the folders of the spool --------------------------------------------------------------------


def _permissions(tree: Tree) -> Answer:
    inner = [tree.state(state) for state in State if state is not State.CREATED]
    modes = {path: os.stat(path).st_mode for path in (tree.root, tree.tmp(), *inner)}
    bare = [path for path, mode in modes.items() if mode & stat.S_IWOTH and not mode & stat.S_ISVTX]
    if bare:
        return "warn", f"everybody can rename or remove what is here: chmod o-w {' '.join(bare)}"
    return "ok", "not everybody may move tasks"


def _together(tree: Tree) -> dict[str, str]:
    """The folders between which tasks are moved and records of delivery linked."""
    return {name: tree.folder(name) for name in ("tmp", *State, "seen")}


def _one_device(tree: Tree) -> Answer:
    root = os.stat(tree.root).st_dev
    devices = {name: os.stat(path).st_dev for name, path in _together(tree).items()}
    apart = [f"{name}/" for name, device in devices.items() if device != root]
    if apart:
        what = "keep all folders of a spool on one file system"
        return "fail", f"{', '.join(apart)} lie on another file system than {tree.root}: {what}"
    return "ok", "tmp/, seen/ and all states lie on one"


def _one_project(tree: Tree) -> Answer:
    projects = {name: _project(path) for name, path in _together(tree).items()}
    distinct = {project for project in projects.values() if project is not None}
    if len(distinct) > 1:
        said = ", ".join(f"{name}/ {project}" for name, project in projects.items())
        return "warn", f"project quota ids differ ({said}): give all folders of the spool the same"
    if not distinct:
        return "ok", "this file system tells of no project quotas"
    return "ok", f"all folders belong to project {min(distinct)}"


def _project(folder: str) -> int | None:
    """The project a folder's quota counts for; None if it cannot be asked."""
    try:
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    try:
        raw = fcntl.ioctl(here, FSGETXATTR, bytes(28))
    except OSError:
        return None
    finally:
        os.close(here)
    return int(struct.unpack_from("=IIII", raw)[3])


def _paths(tree: Tree) -> Answer:
    return of_paths(tree, os.pathconf(tree.root, "PC_PATH_MAX"))


def of_paths(tree: Tree, longest: int) -> Answer:
    """How many bytes of a path are left to the files of a task in the deepest folder."""
    owner = layout.owner_name("launcher", "h" * 64, "0" * 8, 2**22)
    group = layout.claims_group(owner, owner)
    deepest = tree.task(State.RUNNING, group, "i" * layout.ID_LONGEST)
    left = longest - len(os.fsencode(deepest)) - 2  # the slash behind it and the final zero
    said = f"{left} bytes of a path are left to the files of a task"
    if left < len(layout.MANIFEST) + 16:
        return "fail", f"{said}: put the spool nearer to the root"
    if left < PATH_FREE:
        return "warn", f"{said}: programs with deep folders need the spool nearer to the root"
    return "ok", said


LOOKS: dict[str, Callable[[Tree], Answer]] = {
    "file system": _kind,
    "mount options": _options,
    "inotify": _bell,
    "kernel": _kernel,
    "space": _space,
    "inodes": _inodes,
    "permissions": _permissions,
    "one device": _one_device,
    "one project": _one_project,
    "paths": _paths,
}
