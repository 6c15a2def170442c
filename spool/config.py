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
from spool.queue.layout import SETTINGS, is_name

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
# mpirun = "auto"          # srun, mpiexec, a path with options, or a template with {command}
# mpiruns = 512            # at most so many mpiruns at once
# mpirun_every = "0.001s"  # between the starts of two of them
# too_large = "leave"      # what fits no node here: leave it for others, or reject it
# reserve_cores = 0        # on each node, left to the system
# reserve_gpus = 0
# reserve_memory = "0M"
# simulate = false         # whether --simulate may finish tasks here that never run

[staging]
# launchers = true         # whether a launcher starts a stager where something is to be staged
# at_once = 8              # hooks and transfers at once in one stager
# deadline = "1d"          # a transfer that fails for so long has failed
# ssh = "ssh"              # for HOST:PATH, with options

[service]
# system = "auto"          # slurm, pbs, torque, lsf, flux, sge, local; auto: what is here
# interval = "60s"         # how often the service looks
# account = ""             # who is charged, where the batch system wants to know
# max_queued = 0           # at most so many allocations wait at once, over all queues; 0: no limit
# max_nodes = 0            # at most so many nodes queued and running at once; 0: no limit
#budget = "1000 node-hours"  # never more than this over all allocations; without it there is none
# padding = "5m"           # of each walltime: to start, and to bring home what runs
# default_time = "10m"     # what a task is taken to need that gives no time
# min_utilisation = 0.7    # what is asked for should be busy at least so much, all together,
# patience = "1h"          # except for work that has waited so long
# within = "2h"            # so soon after a start all work should have begun: sets how many nodes
# queue_wait = "1d"        # what has waited longer is asked for differently
# settle = "60s"           # what nothing needs for so long is cancelled
# stagers = true           # whether the service starts stagers where it runs itself
# idle_timeout = "60s"     # a launcher of the service without work leaves after so long
# setup = []               # lines of the job script before the launcher: ["module load x"]
# directives = []          # options for the batch system, as in a script: ["--constraint=knl"]
# template = ""            # a job script of your own, by its path from here

# What may be asked for. Without any section: the default queue as the batch system tells it.
#[queues.debug]
#nodes = "1-16"            # and what is left out is as the batch system tells it
#time = "5m-1h"
#bands = ["128-255 3h", "256-383 6h"]  # in place of both, where the time depends on the nodes
#max_queued = 1            # allocations that wait at once
#max_running = 0           # that wait and run at once; 0: no limit
#max_nodes = 0             # their nodes at once
#cores = 64                # of a node; gpus and memory likewise
#gpus = 0
#memory = "192G"
#features = []             # what its nodes have of what tasks require
#cost = 1.0                # node-hours charged for an hour of a node
#account = ""              # in place of the common one
#directives = []           # beside the common ones; setup likewise
#setup = []

[transfers]
# How `via` brings {source} to {target}: a line for sh that fails with code 66 where there is none.
#globus = "my-globus-copy {source} {target}"

[containers]
# What `kind` runs: a template with {image}, {folder}, {options} and {command}.
#shifter = "shifter --image={image} {options} {command}"

[limits]
# How many tasks may run at once over the whole spool, however many launchers there are; 0: none.
#"feature:matlab" = 4      # of those that require this feature; tag:, workflow: and app: likewise
#"tag:scratch per node" = 2
"""

OTHERS = ("service", "queues")
"""Sections that only the service reads, and checks: spool/service/policy.py."""
LIMITED = ("feature", "tag", "workflow", "app")
PER_NODE = " per node"
HIGHEST_LIMIT = 10_000


class Limit(msgspec.Struct, frozen=True):
    """At most `count` tasks at once of one feature, tag, workflow or app."""

    kind: str
    name: str
    count: int
    per_node: bool = False

    @property
    def key(self) -> str:
        """As it stands in spool.toml."""
        return f"{self.kind}:{self.name}{PER_NODE if self.per_node else ''}"


class Limited(msgspec.Struct, frozen=True, kw_only=True):
    """The sections of spool.toml whose keys are the user's own words, so they have no defaults."""

    limits: tuple[Limit, ...] = ()
    transfers: tuple[tuple[str, str], ...] = ()
    containers: tuple[tuple[str, str], ...] = ()


class Settings(Limited, frozen=True):
    """What spool.toml says; durations in seconds."""

    door_quiet_s: float = 10.0
    lease_beat_s: float = 20.0
    lease_fence_s: float = 90.0
    lease_dead_s: float = 240.0
    launcher_idle_timeout_s: float = 60.0
    launcher_sync: str = "auto"
    launcher_mpirun: str = "auto"
    launcher_mpiruns: int = 512
    launcher_mpirun_every_s: float = 0.001
    launcher_too_large: str = "leave"
    launcher_reserve_cores: int = 0
    launcher_reserve_gpus: int = 0
    launcher_reserve_memory_mb: int = 0
    launcher_simulate: bool = False
    staging_launchers: bool = True
    staging_at_once: int = 8
    staging_deadline_s: float = 86400.0
    staging_ssh: str = "ssh"


_WORDS = {
    "service_system": ("auto", "slurm", "pbs", "torque", "lsf", "flux", "sge", "local"),
    "launcher_sync": ("auto", "syncfs", "files", "none"),
    "launcher_too_large": ("leave", "reject"),
}


def with_leases(settings: Settings, fence_s: float, dead_s: float) -> Settings:
    """The same settings with other times of a lease."""
    return msgspec.structs.replace(settings, lease_fence_s=fence_s, lease_dead_s=dead_s)


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
    text = _text(root, path)
    if text == TEMPLATE:  # untouched: no parser needed, and a lone submission starts faster
        return Settings()
    return _parse(text, path)


def sections(root: str, *names: str) -> dict[str, dict[str, Any]]:
    """Sections whose keys another module knows, {} where they are missing.

    Raises NotASpool, SpoolError.
    """
    path = f"{root}/{SETTINGS}"
    loose = _loose(_text(root, path), path)
    return {name: loose.get(name, {}) for name in names}


def _text(root: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as fault:
        raise NotASpool(f"{path}: {fault.strerror}. Run: spool init {root}") from None
    except UnicodeDecodeError as fault:
        raise SpoolError(f"{path}: is not UTF-8 text: {fault}") from None


def _loose(text: str, path: str) -> dict[str, Any]:
    """All sections as they stand there, in a format that is ours."""
    import tomllib

    try:
        loose = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise SpoolError(f"{path}: is not TOML: {fault}") from None
    found = loose.pop("format", None)
    if type(found) is not int or found != FORMAT:
        raise NotASpool(f"{path}: format is {found!r}; this version reads format {FORMAT}")
    for name in OTHERS:
        if not isinstance(loose.get(name, {}), dict):
            raise SpoolError(f"{path}: {name}: expected a section, got {units.shown(loose[name])}")
    return loose


def _parse(text: str, path: str) -> Settings:
    loose = _loose(text, path)
    for name in OTHERS:
        loose.pop(name, None)
    fields = msgspec.structs.fields(Settings)
    own = Limited.__struct_fields__
    known = {field.name: field.default for field in fields if field.name not in own}
    values: dict[str, Any] = {"limits": _limits(loose.pop("limits", {}), path)}
    for section, place in (("transfers", "{target}"), ("containers", "{command}")):
        values[section] = _templates(loose.pop(section, {}), section, place, path)
    for section, keys in loose.items():
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            name, read = _setting(section, key, known, path)
            values[name] = read_value(read, value, f"{path}: {section}.{key}")
    settings = Settings(**values)
    if not 0 < settings.lease_beat_s < settings.lease_fence_s < settings.lease_dead_s:
        raise SpoolError(
            f"{path}: lease.beat, lease.fence and lease.dead must grow in this order, else a task"
            " could be started again while it still runs"
        )
    return settings


def _setting(section: str, key: str, known: dict[str, Any], path: str) -> tuple[str, str]:
    for name, default in known.items():
        if _plain(name).split("_", 1) == [section, key]:
            return name, _kind(name, default)
    allowed = ", ".join(_plain(name).replace("_", ".", 1) for name in known)
    named = f"{section}.{key}" if key else section
    raise SpoolError(f"{path}: unknown setting {named}; allowed are {allowed}")


def _plain(name: str) -> str:
    """A field's name without its unit."""
    return name.removesuffix("_s").removesuffix("_mb")


def _kind(name: str, default: Any) -> str:
    if name in _WORDS:
        return name
    if name.endswith("_mb"):
        return "memory"
    return {str: "text", bool: "flag", int: "count", float: "duration"}[type(default)]


def read_value(kind: str, given: Any, where: str) -> Any:
    """One setting of such a kind as it was meant. Raises SpoolError that begins with `where`."""
    if given not in (allowed := _WORDS.get(kind, (given,))):
        listed = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise SpoolError(f"{where}: expected {listed}, got {given!r}")
    if kind == "text" or kind in _WORDS:
        if not isinstance(given, str) or not given.strip():
            raise SpoolError(f"{where}: expected a text, got {given!r}")
        return given
    if kind == "flag":
        if not isinstance(given, bool):
            raise SpoolError(f"{where}: expected true or false, got {given!r}")
        return given
    if kind == "count":
        if type(given) is not int or given < 0:
            raise SpoolError(f"{where}: expected a whole number, 0 or more, got {given!r}")
        return given
    try:
        if kind == "memory":
            return units.memory(given if isinstance(given, int) else str(given))
        return units.duration(given if isinstance(given, (int, float)) else str(given))
    except ValueError as fault:
        raise SpoolError(f"{where}: {fault}") from None


def _limits(section: Any, path: str) -> tuple[Limit, ...]:
    if not isinstance(section, dict):
        raise SpoolError(f'{path}: limits: expected a section of lines such as "tag:io" = 32')
    return tuple(_limit(key, count, path) for key, count in section.items())


def _templates(section: Any, name: str, place: str, path: str) -> tuple[tuple[str, str], ...]:
    """Names and their lines, each with a place for what matters most."""
    where = f"{path}: {name}"
    if not isinstance(section, dict):
        raise SpoolError(f'{where}: expected a section of lines such as name = "program {place}"')
    for key, line in section.items():
        if not is_name(key) or not isinstance(line, str) or place not in line:
            got = units.shown(line)
            raise SpoolError(f"{where}.{key}: expected a line with {place}, got {got}")
    return tuple(section.items())


def _limit(key: str, count: Any, path: str) -> Limit:
    where = f"{path}: limits.{units.shown(key)}"
    kind, mark, named = key.partition(":")
    name = named.removesuffix(PER_NODE)
    if not mark or kind not in LIMITED or not is_name(name):
        allowed = ", ".join(f'"{kind}:NAME"' for kind in LIMITED)
        raise SpoolError(f'{where}: expected {allowed}, or one with "{PER_NODE}" behind it')
    if type(count) is not int or not 0 <= count <= HIGHEST_LIMIT:
        got = units.shown(count)
        raise SpoolError(f"{where}: expected a number of tasks, 0 to {HIGHEST_LIMIT}, got {got}")
    return Limit(kind, name, count, name != named)


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
