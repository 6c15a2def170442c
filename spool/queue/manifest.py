"""manifest - what a task asks for: read, check, write, and its JSON Schema.

Owns   the keys of manifest.json and their meaning; the words of every complaint about them.
Never  touches the disk or the clock.
Fails  ManifestError: names file, key, value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Literal, get_args

import msgspec

from spool import units
from spool.errors import ManifestError
from spool.queue import array as arrays
from spool.queue import shape
from spool.queue.array import Numbers
from spool.queue.kinds import (
    Amount,
    Command,
    Container,
    Count,
    Duration,
    Input,
    Memory,
    Priority,
    Retry,
    Text,
    Transfer,
    Value,
    Word,
)  # fmt: skip
from spool.queue.shape import Shape
from spool.queue.sound import check
from spool.queue.sound import signal_number as signal_number

PLANNED = frozenset(
    (
        "mpi",
    )
)  # fmt: skip
"""Keys that have their place in the format and are driven by a later version."""


class Submitted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When, by whom and where a task was submitted; written by `submit`, the first event."""

    time: str = ""
    by: str = ""
    host: str = ""


class Manifest(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    dict=True,
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
    parameters: dict[str, Value] = {}
    setup: Word = ""
    container: Container | Word | None = None
    python: Word = ""
    imports: list[Word] = []
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
    max_handled: Amount = 10
    retry: dict[str, Retry] = {}
    stage_in: list[Transfer | Word] = []
    stage_out: list[Transfer] = []
    preprocess: Command = None
    postprocess: Command = None
    on_error: Command = None
    on_timeout: Command = None
    hook_limit: Duration = 300
    inputs: list[Input | Word] = []
    after: list[Word] = []
    on_parent_failure: Literal["wait", "fail", "run"] = "wait"
    replaces: str = ""
    key: Word = ""
    output: Literal["together", "apart", "none"] = "together"
    fresh: bool = False
    data: dict[str, Any] = {}
    array: str = ""
    chunk: str = ""
    skip: str = ""
    submitted: Submitted | None = None

    @property
    def elements(self) -> Numbers | None:
        """The elements of the chunk that this task is; None if it is no part of an array."""
        if not self.array:
            return None
        whole = arrays.parse(self.array)
        return whole.of_chunk(self.chunk) if self.chunk else whole

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

    @property
    def stage_in_list(self) -> list[Transfer]:
        """What is to be brought in, each item in its full form."""
        return [Transfer(source=one) if isinstance(one, str) else one for one in self.stage_in]

    @property
    def said(self) -> frozenset[str]:
        """The keys that were said, were it with their defaults; an app fills in the others."""
        known: frozenset[str] | None = self.__dict__.get("said_keys")
        return frozenset(as_mapping(self)) if known is None else known


STAGED = (
    "setup", "container", "retry", "stage_in", "stage_out", "preprocess", "postprocess",
    "on_error", "on_timeout", "hook_limit",
)  # fmt: skip
"""Keys about what is done around a run."""

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
    "max_handled",
    "backoff",
    "begin",
    "signal",
    "grace",
    "after",
    "on_parent_failure",
    "skip",
)
"""Keys that `modify` may set after submission."""

LAID = frozenset((*CHANGEABLE, *STAGED, "parameters", "ranks_per_node", "fresh", "output"))
"""Keys that a history may lay over a manifest: those, and what an app fills in at admission."""

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
    if manifest.app:
        manifest.__dict__["said_keys"] = frozenset(msgspec.json.decode(raw))
    return manifest


def from_mapping(mapping: dict[str, Any], where: str) -> Manifest:
    """A manifest from Python values. Raises ManifestError."""
    try:
        manifest = msgspec.convert(mapping, Manifest)
    except (msgspec.MsgspecError, RecursionError) as fault:
        raise _complaint(str(fault), mapping, where) from None
    check(manifest, where)
    if manifest.app:
        manifest.__dict__["said_keys"] = frozenset(mapping)
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


def changed(
    manifest: Manifest,
    changes: dict[str, Any],
    where: str,
    allowed: Collection[str] = CHANGEABLE,
) -> Manifest:
    """The manifest with `changes`, to `allowed` keys, laid over it. Raises ManifestError."""
    if not changes:
        return manifest
    for key in changes:
        if key not in allowed:
            listed = ", ".join(CHANGEABLE)
            raise ManifestError(f"{where}: {key!r} cannot be changed; allowed are {listed}")
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
        manifest.elements.size if manifest.array and manifest.elements else 0,
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
    elements: int,
) -> Shape:
    return shape.bounded(
        Shape(
            priority=priority,
            nodes=nodes,
            ranks=ranks,
            cores=cores,
            per_node=per_node,
            elements=min(elements, shape.MOST_ELEMENTS),
            gpus=gpus,
            memory_mb=shape.round_memory(units.memory(memory)),
            time_s=shape.round_time(units.duration(time)),
            features=shape.feature_token(requires),
            workflow=shape.name_token(workflow),
            source=shape.name_token(source),
        )
    )


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


# What the command line, or another program, calls a key.
_MEANT = {
    "core": "cores_per_rank", "cores": "cores_per_rank", "cpus": "cores_per_rank",
    "ncpus": "cores_per_rank", "threads": "cores_per_rank", "ranks": "ranks_per_node",
    "walltime": "time_limit", "timeout": "time_limit", "mem": "memory", "env": "environment",
    "params": "parameters", "param": "parameters", "parents": "after", "depends": "after",
    "tag": "tags", "cmd": "command", "retries": "max_attempts",
}  # fmt: skip


@lru_cache(maxsize=256)
def _nearest(key: str) -> str:
    from difflib import get_close_matches

    if meant := _MEANT.get(key):
        return f"; did you mean {meant!r}?"
    near = get_close_matches(key, Manifest.__struct_fields__, n=1)
    return f"; did you mean {near[0]!r}?" if near else ". Run: spool schema"
