"""config - spool.toml as frozen settings, and where the spool is.

Owns   the keys of spool.toml, their defaults, the search for the root, whom we trust.
Fails  NotASpool: nothing there, or a format this version cannot read; SpoolError: a bad value.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from spool import units
from spool.errors import NotASpool, SpoolError
from spool.queue.layout import SETTINGS

FORMAT = 1
TEMPLATE = """\
# spool: this file marks the root of a spool. Every setting is shown with its default.
format = 1

[door]
# quiet = "10s"            # an arrival in CREATED/ that changes no more for so long is complete

[lease]
# beat = "20s"             # how often an owner shows that it lives
# fence = "90s"            # an owner that could not beat for so long kills its own tasks
# dead = "240s"            # an owner that was silent for so long is taken over

[launcher]
# idle_timeout = "60s"     # a launcher without work leaves after so long
# sync = "auto"            # auto, syncfs, files or none: how results are made durable
"""


class Settings(msgspec.Struct, frozen=True):
    """What spool.toml says; durations in seconds."""

    door_quiet_s: float = 10.0
    lease_beat_s: float = 20.0
    lease_fence_s: float = 90.0
    lease_dead_s: float = 240.0
    launcher_idle_timeout_s: float = 60.0
    launcher_sync: str = "auto"


def find_root(start: str | None = None) -> str:
    """The root of the spool: `start`, else $SPOOL, else the nearest folder upward that holds one.

    Raises NotASpool.
    """
    named = start or os.environ.get("SPOOL")
    if named:
        root = os.path.abspath(named)
        if os.path.isfile(f"{root}/{SETTINGS}"):
            return root
        raise NotASpool(f"{root}: is no spool (no {SETTINGS}). Run: spool init {named}")
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise NotASpool("this folder was removed. Run: cd, or set SPOOL=FOLDER") from None
    while not os.path.isfile(f"{here}/{SETTINGS}"):
        if (above := os.path.dirname(here)) == here:
            raise NotASpool(
                f"{os.getcwd()}: no spool here or above. Run: spool init, or set SPOOL=FOLDER"
            )
        here = above
    return here


def load(root: str) -> Settings:
    """The settings of a spool. Raises NotASpool, SpoolError."""
    path = f"{root}/{SETTINGS}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as fault:
        raise NotASpool(f"{path}: {fault.strerror}. Run: spool init {root}") from None
    except UnicodeDecodeError as fault:
        raise SpoolError(f"{path}: is not UTF-8 text: {fault}") from None
    if text == TEMPLATE:  # untouched: no parser needed, and a lone submission starts faster
        return Settings()
    return _parse(text, path)


def _parse(text: str, path: str) -> Settings:
    import tomllib

    try:
        loose = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise SpoolError(f"{path}: is not TOML: {fault}") from None
    found = loose.pop("format", None)
    if type(found) is not int or found != FORMAT:
        raise NotASpool(f"{path}: format is {found!r}; this version reads format {FORMAT}")
    known = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    values = {}
    for section, keys in loose.items():
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            name, read = _setting(section, key, known, path)
            values[name] = _value(read, value, f"{path}: {section}.{key}")
    settings = Settings(**values)
    if not 0 < settings.lease_beat_s < settings.lease_fence_s < settings.lease_dead_s:
        raise SpoolError(
            f"{path}: lease.beat, lease.fence and lease.dead must grow in this order, else a task"
            " could be started again while it still runs"
        )
    return settings


def _setting(section: str, key: str, known: dict[str, Any], path: str) -> tuple[str, str]:
    for name, default in known.items():
        if name.removesuffix("_s").split("_", 1) == [section, key]:
            return name, "word" if isinstance(default, str) else "duration"
    allowed = ", ".join(name.removesuffix("_s").replace("_", ".", 1) for name in known)
    named = f"{section}.{key}" if key else section
    raise SpoolError(f"{path}: unknown setting {named}; allowed are {allowed}")


def _value(kind: str, value: Any, where: str) -> Any:
    if kind == "word":
        if value not in ("auto", "syncfs", "files", "none"):
            raise SpoolError(f"{where}: expected auto, syncfs, files or none, got {value!r}")
        return value
    try:
        return units.duration(value if isinstance(value, (int, float)) else str(value))
    except ValueError as fault:
        raise SpoolError(f"{where}: {fault}") from None


def trusted_users() -> frozenset[int]:
    """User ids whose tasks a launcher runs: our own, and those of ~/.config/spool/trusted.

    The file stands outside every spool, since who can write a spool must not become trusted by it.
    One user name or number a line. Raises SpoolError.
    """
    mine = os.geteuid()
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = f"{base}/spool/trusted"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = os.fstat(file.fileno())
            lines = file.read().split()
    except OSError:
        return frozenset((mine,))
    if found.st_uid not in (0, mine) or found.st_mode & 0o022:
        raise SpoolError(f"{path}: must belong to you or root, and only its owner may write it")
    return frozenset((mine, *(_user(word, path) for word in lines)))


def _user(word: str, path: str) -> int:
    import pwd

    try:
        return int(word) if word.isdecimal() else pwd.getpwnam(word).pw_uid
    except KeyError:
        raise SpoolError(f"{path}: there is no user {word!r}") from None
