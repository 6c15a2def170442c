"""sound - whether a manifest means something: what the types of its keys leave open.

Owns   the words of these complaints; the numbers of signals.
Never  touches the disk or the clock.
Fails  ManifestError: names file, key, value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from spool import units
from spool.errors import ManifestError
from spool.queue import array, layout
from spool.queue.kinds import Input

if TYPE_CHECKING:
    from spool.queue.manifest import Manifest

DEEPEST = 100


def check(manifest: Manifest, where: str) -> None:
    """Everything the types leave open. Raises ManifestError."""
    if manifest.python or manifest.imports:
        _check_python(manifest, where)
    elif manifest.command is None and not manifest.app:
        raise ManifestError(f"{where}: needs 'command' (a list of words, or a line) or 'app'")
    if manifest.command is not None:
        _check_command(manifest, where)
    elif manifest.app:
        _check_name("app", manifest.app, where)
        _check_plain("args", manifest.args, where)
    for key in ("name", "workflow"):
        if value := getattr(manifest, key):
            _check_name(key, value, where)
    if manifest.tags or manifest.requires:
        _check_words(manifest, where)
    if manifest.after or manifest.replaces:
        _check_kin(manifest, where)
    if manifest.inputs:
        _check_inputs(manifest.input_list, where)
        _check_taken(manifest.taken_list, where)
    if manifest.environment:
        _check_environment(manifest.environment, where)
    if manifest.data:
        _check_data(manifest.data, where)
    if manifest.array or manifest.chunk or manifest.skip:
        _check_array(manifest, where)
    _check_stages(manifest, where)
    _check_amounts(manifest, where)


def _check_array(manifest: Manifest, where: str) -> None:
    """Its elements are there, and each runs on one node by itself."""
    alone = {key: getattr(manifest, key) for key in array.ALONE}
    if why := array.wrong(manifest.array, manifest.chunk, manifest.skip, alone):
        raise ManifestError(f"{where}: key {why}")


def _check_python(manifest: Manifest, where: str) -> None:
    if manifest.command is not None or manifest.app or not manifest.python.startswith("/"):
        raise ManifestError(
            f"{where}: key 'python': {units.shown(manifest.python)} must be the full path of an"
            " interpreter, and stands alone: no 'command', no 'app'"
        )
    if manifest.nodes * manifest.ranks_per_node > 1 or manifest.array:
        raise ManifestError(f"{where}: key 'python': calls run in one process; no ranks, no array")
    _check_plain("imports", [manifest.python, *manifest.imports], where)


def _check_command(manifest: Manifest, where: str) -> None:
    command = manifest.command
    if manifest.app or manifest.args:
        raise ManifestError(f"{where}: 'command' stands alone; 'args' belong to an 'app'")
    words = [command] if isinstance(command, str) else command or []
    if not words or not words[0].strip():
        raise ManifestError(
            f"{where}: key 'command': {units.shown(command)} names no program; expected a list of"
            ' words such as ["echo", "hello"], or a line for sh'
        )
    _check_plain("command", words, where)


def _check_stages(manifest: Manifest, where: str) -> None:
    """What is done around a run: asked only where there is something of it."""
    from spool.queue import stages

    if wrong := stages.wrong(manifest):
        raise ManifestError(f"{where}: key {wrong}")


def _check_plain(key: str, words: list[str], where: str) -> None:
    """Words must survive both exec(3), which knows no NUL, and JSON, which is UTF-8."""
    for word in words:
        if "\0" in word:
            raise ManifestError(f"{where}: key {key!r}: a word holds a NUL character, none may")
        if not word.isascii() and any("\ud800" <= char <= "\udfff" for char in word):
            shown = ascii(word[:80])
            raise ManifestError(f"{where}: key {key!r}: {shown} is not UTF-8, as JSON must be")


def _check_name(key: str, value: str, where: str) -> None:
    if not layout.is_name(value):
        raise ManifestError(
            f"{where}: key {key!r}: {units.shown(value)} is no name; allowed are up to"
            f" {layout.NAME_LONGEST} letters, digits and . _ + -, the first a letter or digit"
        )


def _check_words(manifest: Manifest, where: str) -> None:
    for key, values in (("tags", manifest.tags), ("requires", manifest.requires)):
        for value in values:
            _check_name(key, value, where)


def _check_kin(manifest: Manifest, where: str) -> None:
    """Parents are ids, or names within one bulk submission, which knows them."""
    for key, values in (("after", manifest.after), ("replaces", [manifest.replaces])):
        for value in filter(None, values):
            if not _KIN.fullmatch(value):
                shown = units.shown(value)
                raise ManifestError(f"{where}: key {key!r}: {shown} is no task id. Run: spool ls")
            if value == manifest.id:
                raise ManifestError(f"{where}: key {key!r}: a task cannot wait for itself")
    if manifest.replaces and layout.parse_id(manifest.replaces) is None:
        shown = units.shown(manifest.replaces)
        raise ManifestError(f"{where}: key 'replaces': {shown} is no task id. Run: spool ls")


_KIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,199}")


def _check_inputs(inputs: list[Input], where: str) -> None:
    for item in inputs:
        parts = item.path.split("/")
        if "\0" in item.path or {"", ".", ".."} & set(parts):
            raise ManifestError(
                f"{where}: key 'inputs': {units.shown(item.path)} must be a relative path inside"
                " the task's directory, without '.' or '..'"
            )
        if item.sha256 and not re.fullmatch(r"[0-9a-f]{64}", item.sha256):
            raise ManifestError(
                f"{where}: key 'inputs': sha256 of {units.shown(item.path)} must be"
                " 64 hexadecimal digits"
            )


def _check_taken(inputs: list[Input], where: str) -> None:
    for item in inputs:
        parts = item.glob.split("/")
        if item.path or item.sha256 or "\0" in item.glob or {"", ".", ".."} & set(parts):
            raise ManifestError(
                f"{where}: key 'inputs': what is taken from a parent has a 'glob' inside its"
                f" directory and nothing else but 'copy', got {units.shown(item.glob)}"
            )


def _check_environment(environment: dict[str, str], where: str) -> None:
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise ManifestError(
                f"{where}: key 'environment': {units.shown(name)} cannot be set; a name holds no"
                " '=', neither name nor value a NUL"
            )


def _check_data(data: dict[str, Any], where: str) -> None:
    """What Python reads at one depth of its stack, it must be able to write at another."""
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        inner = [one for outer in level for one in _members(outer)]
        level = [one for one in inner if isinstance(one, (dict, list, tuple))]
        if not level:
            return
    raise ManifestError(f"{where}: key 'data' is nested more than {DEEPEST} deep")


def _members(outer: Any) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _check_amounts(manifest: Manifest, where: str) -> None:
    checks = _amount_checks(
        manifest.memory, manifest.time_estimate, manifest.time_limit, manifest.grace,
        manifest.backoff, manifest.begin, manifest.signal,
    )  # fmt: skip
    if checks:
        raise ManifestError(f"{where}: {checks}")


@lru_cache(maxsize=1024)
def _amount_checks(
    memory: int | str,
    estimate: int | float | str,
    limit: int | float | str,
    grace: int | float | str,
    backoff: int | float | str,
    begin: str,
    signal: str,
) -> str:
    checks: tuple[tuple[str, Callable[[Any], object], Any], ...] = (
        ("memory", units.memory, memory),
        ("time_estimate", units.duration, estimate),
        ("time_limit", units.duration, limit),
        ("grace", units.duration, grace),
        ("backoff", units.duration, backoff),
        ("begin", lambda text: text and units.read_stamp(text), begin),
        ("signal", signal_number, signal),
    )
    for key, read, value in checks:
        try:
            read(value)
        except ValueError as fault:
            return f"key {key!r}: {fault}"
    return ""


def signal_number(name: str) -> int:
    """The number of a signal such as TERM, SIGUSR1 or 15. Raises ValueError."""
    plain = name.upper().removeprefix("SIG")
    if plain == "TERM":
        return 15
    from signal import Signals  # here, because a lone submission must start fast

    known = {signal.name.removeprefix("SIG"): signal.value for signal in Signals}
    if plain.isdecimal() and int(plain[:9]) in known.values():
        return int(plain)
    if plain not in known:
        raise ValueError(f"expected a signal such as TERM, INT or USR1, got {units.shown(name)}")
    return known[plain]
