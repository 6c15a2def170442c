"""transfer - bring one task's data in, or out: a process of its own, started by a stager.

Owns   the items of `stage_in` and `stage_out`: each way to carry one, its resumption, its check.
Never  touches the task's history; says how it went by its exit code, and why on standard output.
       What the tools say goes to standard error, which is the stage's log.

Exit 0: all is there; 75: it may work later, what came already is kept; 1: it will not. What is
brought in lands beside its place and is renamed into it when it is whole and right, so a program
never sees half a file, and a try that was cut short goes on where it stopped.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from spool import config, units
from spool.config import Settings
from spool.errors import SpoolError
from spool.queue import faults, files, layout, tasks
from spool.queue.kinds import Transfer, is_far
from spool.queue.tasks import Task

LATER = 75  # as sendmail says it: EX_TEMPFAIL
NO_SOURCE = 66  # EX_NOINPUT
TRIES, FIRST_PAUSE_S = 3, 1.0
CHUNK = 1 << 20
TOLD = 2000
QUIET_S = 60.0
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20")
GONE = (400, 401, 403, 404, 405, 410, 501)
RSYNC_PASSING = (5, 10, 11, 12, 14, 20, 21, 22, 30, 35, 255)
WAYS = ("copy", "link", "rsync", "scp", "http")


class Failed(Exception):
    """An item cannot be carried; `passing`: it may work later."""

    def __init__(self, why: str, *, passing: bool = False) -> None:
        super().__init__(why)
        self.passing = passing


class Carrier:
    """Carries the items of one task."""

    def __init__(self, settings: Settings, task: Task, *, inward: bool) -> None:
        self.settings, self.task, self.inward = settings, task, inward
        self.templates = dict(settings.transfers)
        self.ssh = [*shlex.split(settings.staging_ssh), *SSH_OPTIONS]

    def run(self) -> None:
        """Carry all. Raises Failed."""
        wanted = self.task.manifest
        items = wanted.stage_in_list if self.inward else wanted.stage_out
        work = self._bring_in if self.inward else self._bring_out
        for number, item in enumerate(items):
            say(f"{item.source} -> {item.target or '.'}")
            self._try(work, item, number)
        if self.inward:
            files.remove_tree(self._landing())

    def _try(self, work: Callable[[Transfer, int], None], item: Transfer, number: int) -> None:
        """A few tries at once; after them, and before the deadline, there will be more later."""
        for trial in range(TRIES):
            try:
                work(item, number)
                return
            except Failed as fault:
                why, passing = str(fault), fault.passing
            except OSError as fault:
                why, passing = f"{fault.filename or item.source}: {fault.strerror}", _passes(fault)
            say(why)
            if not passing:
                raise Failed(f"{item.source}: {why}")
            if trial + 1 < TRIES:
                time.sleep(FIRST_PAUSE_S * 2**trial)
        if self._is_late(item):
            raise Failed(f"{item.source}: {why}; tried in vain until its deadline")
        raise Failed(f"{item.source}: {why}", passing=True)

    def _is_late(self, item: Transfer) -> bool:
        allowed = units.duration(item.deadline) or self.settings.staging_deadline_s
        try:
            since = units.read_stamp(self.task.story.stage_since)
        except ValueError:
            return False
        return time.time() - since >= allowed

    def _way(self, item: Transfer, far: str) -> str:
        if item.via:
            if item.via not in (*WAYS, *self.templates):
                known = ", ".join((*WAYS, *self.templates))
                raise Failed(f"via {item.via!r} is unknown; known are {known}")
            return item.via
        if far.startswith(("http://", "https://")):
            return "http"
        if not is_far(far):
            return "copy"
        return "rsync" if shutil.which("rsync") else "scp"

    # -- in ----------------------------------------------------------------------------------------

    def _landing(self, number: int | None = None) -> str:
        base = f"{self.task.path}/{layout.LANDING}"
        return base if number is None else f"{base}/{number}"

    def _bring_in(self, item: Transfer, number: int) -> None:
        way = self._way(item, item.source)
        landing = self._landing(number)
        files.make_folder(landing)
        name = os.path.basename(item.source.rstrip("/").partition("?")[0]) or "data"
        if way == "link":
            _need(item.source)
            files.symlink(item.source, f"{landing}/{name}")
        elif way == "copy":
            for found in _matching(item.source):
                _copy(found, f"{landing}/{os.path.basename(found)}")
        elif way == "http":
            _download(item.source, f"{landing}/{name}")
        elif way == "rsync":
            self._rsync([item.source], f"{landing}/")
        elif way == "scp":
            self._scp([item.source], f"{landing}/")
        else:
            self._template(way, item.source, f"{landing}/{name}")
        self._settle(item, landing)

    def _settle(self, item: Transfer, landing: str) -> None:
        """Check what has landed, and rename it into its place."""
        landed = [name for name in files.names(landing) if not name.startswith(".~")]
        if not landed:
            raise Failed("nothing came")
        single = len(landed) == 1 and not item.target.endswith("/")
        for name in landed:
            path = f"{landing}/{name}"
            try:
                _verify(path, item)
            except Failed:
                files.remove_tree(path) if files.is_folder(path) else files.unlink(path)
                raise
            _sync(path)
            at = item.target if single and item.target else os.path.join(item.target, name)
            _into_place(path, f"{self.task.path}/{at}")

    # -- out ---------------------------------------------------------------------------------------

    def _bring_out(self, item: Transfer, number: int) -> None:
        way = self._way(item, item.target)
        own = (layout.MANIFEST, layout.HISTORY, layout.LANDING)
        found = sorted(glob.glob(item.source, root_dir=self.task.path, recursive=True))
        found = [name.rstrip("/") for name in found if name.split("/")[0] not in own]
        if not found:
            raise Failed("nothing in the task's directory matches")
        for name in found:
            _verify(f"{self.task.path}/{name}", item)
        many = len(found) > 1 or glob.has_magic(item.source) or item.target.endswith("/")
        sources = [f"{self.task.path}/{name}" for name in found]
        target = item.target.rstrip("/") + "/" if many else item.target
        if way == "rsync":
            self._rsync(sources, target)
        elif way == "scp":
            self._scp(sources, target)
        else:
            for source in sources:
                whole = target + os.path.basename(source) if many else target
                self._send(way, source, whole)

    def _send(self, way: str, source: str, target: str) -> None:
        if way == "http":
            _upload(source, target)
        elif way == "copy":
            folder, name = os.path.split(target)
            files.make_folder(folder)
            aside = f"{folder}/.{name}.spool-part"
            _copy(source, aside)
            _sync(aside)
            _into_place(aside, target)
        elif way == "link":
            raise Failed("via link brings nothing out; the task's directory moves")
        else:
            self._template(way, source, target)

    # -- tools -------------------------------------------------------------------------------------

    def _rsync(self, sources: list[str], target: str) -> None:
        words = ["rsync", "-rptL", "--partial", "-s", f"--timeout={QUIET_S:.0f}"]
        shell = ["-e", shlex.join(self.ssh)]
        code, said = _run([*words, *shell, "--", *sources, target])
        if code:
            raise Failed(f"rsync: {said}", passing=code in RSYNC_PASSING and not _is_final(said))

    def _scp(self, sources: list[str], target: str) -> None:
        code, said = _run(["scp", "-q", "-p", "-r", *self.ssh[1:], "--", *sources, target])
        if code:
            raise Failed(f"scp: {said}", passing=not _is_final(said))

    def _template(self, way: str, source: str, target: str) -> None:
        line = self.templates[way]
        for place, value in (("{source}", source), ("{target}", target)):
            line = line.replace(place, shlex.quote(value))
        code, said = _run(["/bin/sh", "-c", line])
        if code:
            final = code in (NO_SOURCE, 126, 127)
            raise Failed(f"{way}: {said or f'exit code {code}'}", passing=not final)


def _run(words: list[str]) -> tuple[int, str]:
    """A tool's exit code and the last line it printed. Raises Failed: there is none."""
    try:
        ran = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError:
        raise Failed(f"there is no program {words[0]} here") from None
    told = ran.stdout[-65536:].decode(errors="replace").strip()
    if told:
        say(told)
    lines = [line for line in told.splitlines() if "rsync error:" not in line]
    final = [line for line in lines if _is_final(line)]  # what else was said follows from it
    last = lines[-1] if lines else f"exit code {ran.returncode}"
    return ran.returncode, (final[0] if final else last)


def _is_final(said: str) -> bool:
    """Whether a tool's last words say that trying again is no use."""
    return bool(re.search("No such file|Permission denied|not found|Is a directory", said))


def _passes(fault: OSError) -> bool:
    return fault.errno in faults.FULL or faults.is_passing(fault)


def _need(path: str) -> None:
    if not os.path.exists(path):
        raise Failed("No such file or directory")


def _matching(pattern: str) -> list[str]:
    """The paths that a local source means: itself, or what a glob finds."""
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        _need(pattern)
        return [pattern.rstrip("/")]
    if not (found := sorted(glob.glob(pattern, recursive=True))):
        raise Failed("nothing matches")
    return found


def _copy(source: str, target: str) -> None:
    """Copy a file, or a folder with all it holds. Raises Failed: it changed meanwhile."""
    if os.path.isdir(source):
        if files.is_folder(target):
            files.remove_tree(target)
        shutil.copytree(source, target, symlinks=True)
        return
    before = _state(source)
    shutil.copy2(source, target)
    if _state(source) != before:
        raise Failed("changed while it was read", passing=True)


def _state(path: str) -> tuple[int, int, int]:
    about = os.stat(path)
    return about.st_ino, about.st_size, about.st_mtime_ns


def _verify(path: str, item: Transfer) -> None:
    if not (item.sha256 or item.size >= 0):
        return
    if os.path.isdir(path):
        raise Failed("is a folder; size and sha256 are of files")
    size = os.stat(path).st_size
    if item.size >= 0 and size != item.size:
        raise Failed(f"has {size} bytes, expected {item.size}")
    if item.sha256 and (found := _digest(path)) != item.sha256:
        raise Failed(f"its sha256 is {found}, expected {item.sha256}")


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    if files.is_folder(path):
        files.sync_below(path)
    elif files.is_plain(path):
        files.sync(path)


def _into_place(path: str, target: str) -> None:
    """Rename what is whole to where it belongs; what was there before gives way."""
    files.make_folder(os.path.dirname(target))
    if files.is_folder(target):
        files.remove_tree(target)
    files.rename_file(path, target)
    files.sync(os.path.dirname(target))


# -- http ------------------------------------------------------------------------------------------


def _download(url: str, target: str) -> None:
    """Fetch a URL; a part that came before is gone on from, if the source is still the same."""
    part, mark = _hidden(target, "part"), _hidden(target, "etag")
    have = max(0, files.size(part))
    known = (files.read(mark, 4096) or b"").decode(errors="replace")
    asked = urllib.request.Request(url, headers={"User-Agent": "spool"})
    if have and known:
        asked.add_header("Range", f"bytes={have}-")
        asked.add_header("If-Range", known)
    with _opened(asked) as answer:
        etag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        goes_on = answer.status == 206
        if not goes_on:
            files.unlink(mark)
            if etag and not etag.startswith("W/"):
                files.replace(mark, etag.encode())
        _receive(answer, part, append=goes_on)
    files.rename_file(part, target)
    files.unlink(mark)


def _receive(answer: Any, part: str, *, append: bool) -> None:
    told = answer.headers.get("Content-Length")
    left = int(told) if told and told.isdecimal() else None
    with open(part, "ab" if append else "wb") as file:
        try:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                left = None if left is None else left - len(chunk)
        except (OSError, ValueError) as fault:
            raise Failed(f"the connection broke: {fault}", passing=True) from None
    if left:
        raise Failed(f"the connection ended {left} bytes too early", passing=True)


def _hidden(target: str, kind: str) -> str:
    folder, name = os.path.split(target)
    return f"{folder}/.~{name}.{kind}"


def _upload(source: str, url: str) -> None:
    if os.path.isdir(source):
        raise Failed("is a folder; http sends files")
    with open(source, "rb") as file:
        asked = urllib.request.Request(url, data=file, method="PUT")
        asked.add_header("Content-Length", str(os.path.getsize(source)))
        with _opened(asked):
            pass


def _opened(asked: urllib.request.Request) -> Any:
    """An open answer. Raises Failed."""
    try:
        return urllib.request.urlopen(asked, timeout=QUIET_S)
    except urllib.error.HTTPError as fault:
        raise Failed(f"{fault.code} {fault.reason}", passing=fault.code not in GONE) from None
    except urllib.error.URLError as fault:
        raise Failed(str(fault.reason), passing=True) from None
    except (OSError, ValueError) as fault:
        raise Failed(str(fault), passing=isinstance(fault, OSError)) from None


def say(text: str) -> None:
    """A line of the stage's log; where the disk is full, without."""
    try:
        sys.stderr.write(f"{units.now_stamp()} {text}\n")
        sys.stderr.flush()
    except OSError:
        return


def main(words: list[str]) -> int:
    """ROOT PATH ID in|out."""
    root, path, task_id, way = words
    try:
        task = tasks.load(path, task_id)
        Carrier(config.load(root), task, inward=way == "in").run()
    except Failed as fault:
        os.write(1, str(fault)[-TOLD:].encode())
        return LATER if fault.passing else 1
    except (OSError, SpoolError, shutil.Error) as fault:
        os.write(1, str(fault)[-TOLD:].encode())
        return LATER if isinstance(fault, OSError) and _passes(fault) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
