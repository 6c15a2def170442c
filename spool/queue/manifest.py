"""manifest - what a task asks for: read, check, write, and its JSON Schema.

Owns   the keys of manifest.json and their meaning; the words of every complaint about them.
Never  touches the disk or the clock.
Fails  ManifestError: names file, key, value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from spool import units
from spool.errors import ManifestError
from spool.queue import layout, shape
from spool.queue.shape import Shape

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Amount = Annotated[int, Meta(ge=0, le=1_000_000)]
Priority = Annotated[int, Meta(ge=-999, le=999)]
Text = Annotated[str, Meta(max_length=65536)]
Word = Annotated[str, Meta(max_length=4096)]
Duration = Annotated[int | float | str, Meta(description=units.DURATION_FORM)]
Memory = Annotated[int | str, Meta(description=units.MEMORY_FORM + "; a number is megabytes")]

DEEPEST = 100
PLANNED = frozenset(
    (
        "array", "chunk", "stage_in", "stage_out", "preprocess", "postprocess", "on_error",
        "on_timeout", "container", "mpi", "setup",
    )
)  # fmt: skip
"""Keys that have their place in the format and are driven by a later version."""


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that must be present before an arrival counts as complete.

    Or, with `from`, what matches `glob` in the directory of a parent, or of all (*): linked into
    the task's own before it starts, or copied.
    """

    path: Word = ""
    sha256: str = ""
    size: Annotated[int, Meta(ge=-1)] = -1
    source: Word = msgspec.field(default="", name="from")
    glob: Word = ""
    copy: bool = False


class Submitted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When, by whom and where a task was submitted; written by `submit`, the first event."""

    time: str = ""
    by: str = ""
    host: str = ""


class Manifest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """All that a task asks for. Durations in seconds or as text, memory in megabytes or as text."""

    id: str = ""
    name: str = ""
    workflow: str = ""
    tags: list[str] = []
    description: Text = ""
    command: list[Text] | Text | None = None
    app: str = ""
    args: list[Text] = []
    environment: dict[str, Text] = {}
    nodes: Count = 1
    ranks_per_node: Count = 1
    cores_per_rank: Count = 1
    per_node: Amount = 0
    gpus: Amount = 0
    memory: Memory = 0
    requires: list[str] = []
    time_estimate: Duration = 0
    time_limit: Duration = 0
    signal: str = "TERM"
    grace: Duration = 10
    priority: Priority = 0
    begin: str = ""
    hold: bool = False
    max_attempts: Count = 1
    backoff: Duration = 0
    max_lost: Amount = 5
    max_interrupted: Amount = 10
    inputs: list[Input | Word] = []
    after: list[Word] = []
    on_parent_failure: Literal["wait", "fail", "run"] = "wait"
    replaces: str = ""
    key: Word = ""
    output: Literal["together", "apart", "none"] = "together"
    fresh: bool = False
    data: dict[str, Any] = {}
    submitted: Submitted | None = None

    @property
    def time_limit_s(self) -> float:
        """Seconds after which the task is stopped; 0 for no limit."""
        return units.duration(self.time_limit)

    @property
    def estimate_s(self) -> float:
        """Seconds the task is thought to run: the estimate, else the limit, else 0."""
        return units.duration(self.time_estimate) or units.duration(self.time_limit)

    @property
    def input_list(self) -> list[Input]:
        """The files an arrival must bring, each in its full form."""
        full = (Input(path=item) if isinstance(item, str) else item for item in self.inputs)
        return [item for item in full if not item.source]

    @property
    def taken_list(self) -> list[Input]:
        """What is taken from parents."""
        return [item for item in self.inputs if isinstance(item, Input) and item.source]


CHANGEABLE = (
    "priority",
    "time_limit",
    "time_estimate",
    "memory",
    "cores_per_rank",
    "per_node",
    "gpus",
    "nodes",
    "requires",
    "workflow",
    "max_attempts",
    "max_lost",
    "max_interrupted",
    "backoff",
    "begin",
    "signal",
    "grace",
    "after",
    "on_parent_failure",
)
"""Keys that `modify` may set after submission."""

_encoder = msgspec.json.Encoder()


def parse(raw: bytes, where: str) -> Manifest:
    """A manifest from its JSON bytes. Raises ManifestError."""
    if not raw.strip(b"\0 \t\r\n"):
        raise ManifestError(f"{where}: is empty; expected a JSON object with a command or an app")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise _explain(fault, raw, where) from None
    check(manifest, where)
    return manifest


def from_mapping(mapping: dict[str, Any], where: str) -> Manifest:
    """A manifest from Python values. Raises ManifestError."""
    try:
        manifest = msgspec.convert(mapping, Manifest)
    except (msgspec.MsgspecError, RecursionError) as fault:
        raise _complaint(str(fault), mapping, where) from None
    check(manifest, where)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: indented, one key a line, so that grep finds it.

    Raises ManifestError: Python gave us what JSON cannot hold.
    """
    try:
        return msgspec.json.format(_encoder.encode(manifest), indent=1) + b"\n"
    except (TypeError, ValueError, RecursionError):
        raise _unwritable(manifest) from None


def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json."""
    made = msgspec.json.schema(Manifest)
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "spool task manifest"
    return made


def changed(manifest: Manifest, changes: dict[str, Any], where: str) -> Manifest:
    """The manifest with `changes` laid over it. Raises ManifestError."""
    if not changes:
        return manifest
    for key in changes:
        if key not in CHANGEABLE:
            allowed = ", ".join(CHANGEABLE)
            raise ManifestError(f"{where}: {key!r} cannot be changed; allowed are {allowed}")
    return from_mapping({**as_mapping(manifest), **changes}, where)


def as_mapping(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain values, defaults left out."""
    made: dict[str, Any] = msgspec.to_builtins(manifest)
    return made


def wanted_shape(manifest: Manifest, source: str = "") -> Shape:
    """What placement, selection or sizing may refuse this task for."""
    return _shape(
        manifest.priority,
        manifest.nodes,
        manifest.ranks_per_node,
        manifest.cores_per_rank,
        manifest.per_node,
        manifest.gpus,
        manifest.memory,
        manifest.time_estimate or manifest.time_limit,
        tuple(manifest.requires),
        manifest.workflow,
        source,
    )


@lru_cache(maxsize=4096)
def _shape(
    priority: int,
    nodes: int,
    ranks: int,
    cores: int,
    per_node: int,
    gpus: int,
    memory: int | str,
    time: int | float | str,
    requires: tuple[str, ...],
    workflow: str,
    source: str,
) -> Shape:
    return shape.bounded(
        Shape(
            priority=priority,
            nodes=nodes,
            ranks=ranks,
            cores=cores,
            per_node=per_node,
            gpus=gpus,
            memory_mb=shape.round_memory(units.memory(memory)),
            time_s=shape.round_time(units.duration(time)),
            features=shape.feature_token(requires),
            workflow=shape.name_token(workflow),
            source=shape.name_token(source),
        )
    )


# -- what the types do not say -------------------------------------------------------------------


def check(manifest: Manifest, where: str) -> None:
    """Everything the types leave open. Raises ManifestError."""
    if manifest.command is None and not manifest.app:
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
    _check_amounts(manifest, where)


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


# -- saying what is wrong ------------------------------------------------------------------------


def _explain(fault: Exception, raw: bytes, where: str) -> ManifestError:
    if isinstance(fault, RecursionError):
        return ManifestError(f"{where}: is nested too deeply")
    try:
        loose = msgspec.json.decode(raw)
    except RecursionError:
        return ManifestError(f"{where}: is nested too deeply")
    except (msgspec.MsgspecError, UnicodeDecodeError) as deeper:
        if "out of range" in str(fault):  # sound JSON, but no computer's number
            return _complaint(str(fault), {}, where)
        return ManifestError(f"{where}: is not JSON: {deeper}")
    return _complaint(str(fault), loose, where)


def _complaint(message: str, loose: object, where: str) -> ManifestError:
    if not isinstance(loose, dict):
        return ManifestError(f"{where}: must be a JSON object, got {type(loose).__name__}")
    known = Manifest.__struct_fields__
    for key in loose:
        if key in PLANNED:
            return ManifestError(f"{where}: key {key!r} is not supported yet by this version")
        if key not in known:
            near = _nearest(str(key)[:80])
            return ManifestError(f"{where}: unknown key {units.shown(key)}{near}")
    problem, _, path = message.partition(" - at `$")
    key = re.split(r"[.\[]", path.strip("`").lstrip("."))[0] if path else ""
    if not key:
        return ManifestError(f"{where}: {problem}")
    if problem.startswith("Invalid enum value"):
        problem = f"Expected {', '.join(get_args(_types()[key]))}"
    got = f", got {units.shown(loose[key])}" if key in loose else ". Run: spool schema"
    return ManifestError(f"{where}: key {key!r}: {_lower(problem)}{got}")


def _types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(Manifest)}


def _unwritable(manifest: Manifest) -> ManifestError:
    """Which key holds it, and what."""
    for key in manifest.__struct_fields__:
        value = getattr(manifest, key)
        try:
            _encoder.encode(value)
        except (TypeError, ValueError, RecursionError) as fault:
            return ManifestError(
                f"task {manifest.id}: key {key!r}: only what JSON can hold is allowed (UTF-8 text,"
                f" numbers, lists, mappings), got {ascii(units.shown(value))}: {fault}"
            )
    raise AssertionError("each key can be written, but not all together")


def _lower(problem: str) -> str:
    return problem[:1].lower() + problem[1:].replace("`", "")


@lru_cache(maxsize=256)
def _nearest(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, Manifest.__struct_fields__, n=1)
    return f"; did you mean {near[0]!r}?" if near else ". Run: spool schema"


# -- applications --------------------------------------------------------------------------------


class App(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An application: a command that tasks name and give arguments to. Lies in apps/NAME.json."""

    command: list[Text] | Text
    environment: dict[str, Text] = {}
    description: Text = ""


def read_app(path: str, raw: bytes | None) -> App:
    """An application from its file. Raises ManifestError: it is missing or malformed."""
    if raw is None:
        raise ManifestError(f"{path}: there is no such app. Run: spool app")
    try:
        app = msgspec.json.decode(raw, type=App)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ManifestError(f"{path}: {fault}") from None
    words = [app.command] if isinstance(app.command, str) else app.command
    if not words or not words[0].strip():
        raise ManifestError(f"{path}: key 'command' names no program")
    _check_plain("command", words, path)
    _check_environment(app.environment, path)
    return app
