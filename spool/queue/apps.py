"""apps - applications: what tasks may name in place of a command, and what it means for them.

Owns   apps/NAME.json: its keys, their checks; parameters with types, and where they go.
Never  changes a task: what an app says is filled into a manifest when it is submitted or admitted.
Fails  ManifestError: a malformed app, a missing or wrong parameter.

The command and the environment are looked up at each start, so that a mended program is used by
what still waits; all else (shape, hooks, staging, container, setup, parameters) is the task's own
from its submission on. A word `{name}` of a declared parameter stands for its value; in a line for
sh it is quoted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

import msgspec

from spool import units
from spool.errors import ManifestError
from spool.queue import files, manifest
from spool.queue.kinds import Command, Container, Duration, Retry, Text, Transfer, Value, Word
from spool.queue.layout import Tree
from spool.queue.manifest import STAGED, Manifest

SHAPE = (
    "nodes", "ranks_per_node", "cores_per_rank", "per_node", "gpus", "memory", "requires",
    "time_estimate", "time_limit", "signal", "grace", "max_attempts", "backoff", "max_lost",
    "max_handled", "fresh", "output",
)  # fmt: skip
"""Keys of a manifest that `defaults` may hold."""
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ARGUMENTS = re.compile(r"\$\{?[@*#0-9]")  # a line that places its arguments itself
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parameter(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A value that tasks of an app give. Without a default it must be given."""

    type: Literal["text", "int", "float", "bool"] = "text"
    default: Value | None = None
    choices: list[Value] = []
    description: Text = ""


class App(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """An application. defaults are keys of a manifest about room, time and tries."""

    command: list[Text] | Text
    environment: dict[str, Text] = {}
    description: Text = ""
    parameters: dict[str, Parameter] = {}
    defaults: dict[str, Any] = {}
    setup: Word = ""
    container: Container | Word | None = None
    retry: dict[str, Retry] = {}
    stage_in: list[Transfer | Word] = []
    stage_out: list[Transfer] = []
    preprocess: Command = None
    postprocess: Command = None
    on_error: Command = None
    on_timeout: Command = None
    hook_limit: Duration = 300


@lru_cache(maxsize=64)
def read(path: str, raw: bytes | None) -> App:
    """An application from its file. Raises ManifestError: it is missing or malformed."""
    if raw is None:
        raise ManifestError(f"{path}: there is no such app. Run: spool app")
    try:
        app = msgspec.json.decode(raw, type=App)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ManifestError(f"{path}: {fault}") from None
    for key in app.defaults:
        if key not in SHAPE:
            allowed = ", ".join(SHAPE)
            raise ManifestError(f"{path}: key 'defaults': {key!r}; allowed are {allowed}")
    for name, one in app.parameters.items():
        _check_parameter(name, one, path)
    _as_manifest(app, path)
    return app


def _as_manifest(app: App, path: str) -> None:
    """An app's words are a manifest's, and what is wrong with them is said by the same."""
    keys = {key: getattr(app, key) for key in ("environment", *STAGED)}
    made: dict[str, Any] = msgspec.to_builtins(keys)
    manifest.from_mapping({"command": app.command, **app.defaults, **made}, path)


def _check_parameter(name: str, one: Parameter, path: str) -> None:
    where = f"{path}: parameter {units.shown(name)}"
    if not _PLACE.fullmatch(f"{{{name}}}"):
        raise ManifestError(f"{where}: a name is letters, digits and _, the first no digit")
    for value in (*([] if one.default is None else [one.default]), *one.choices):
        _typed(value, one.type, where)
    if one.choices and one.default is not None and one.default not in one.choices:
        raise ManifestError(f"{where}: its default is none of its choices")


def lookup(tree: Tree, name: str) -> App:
    """An application as it is defined now. Raises ManifestError."""
    raw = files.read(tree.app(name))
    if raw is None:
        raise ManifestError(f"there is no app {name!r}. Run: spool app")
    return read(tree.app(name), raw)


# -- what an app means for a task ------------------------------------------------------------------


def filled(tree: Tree, wanted: Manifest) -> Manifest:
    """A manifest with what its app defines and it does not say. Raises ManifestError."""
    if not wanted.app:
        if wanted.parameters:
            raise ManifestError("key 'parameters': they belong to an 'app'")
        return wanted
    return with_app(wanted, lookup(tree, wanted.app))


def with_app(wanted: Manifest, app: App) -> Manifest:
    """The same, with the app at hand."""
    values = parameters(app, wanted)
    said, made = wanted.said, dict(app.defaults)
    made.update((key, put(getattr(app, key), values)) for key in STAGED)
    more = {key: value for key, value in msgspec.to_builtins(made).items() if key not in said}
    whole = {**manifest.as_mapping(wanted), **more, "parameters": values}
    return manifest.from_mapping(whole, f"app {wanted.app}")


def additions(tree: Tree, wanted: Manifest) -> dict[str, Any]:
    """The keys that `filled` would change, with their values. Raises ManifestError."""
    before = manifest.as_mapping(wanted)
    after = manifest.as_mapping(filled(tree, wanted))
    return {key: value for key, value in after.items() if before.get(key) != value}


def parameters(app: App, wanted: Manifest) -> dict[str, Value]:
    """The value of each parameter, of its type. Raises ManifestError."""
    where = f"app {wanted.app}"
    for name in wanted.parameters:
        if name not in app.parameters:
            known = ", ".join(app.parameters) or "none"
            raise ManifestError(f"{where}: has no parameter {units.shown(name)}; it has {known}")
    made: dict[str, Value] = {}
    for name, one in app.parameters.items():
        value = wanted.parameters.get(name, one.default)
        if value is None:
            raise ManifestError(f"{where}: needs the parameter {name!r}. Say: --param {name}=...")
        made[name] = _typed(value, one.type, f"{where}: parameter {name!r}")
        if one.choices and made[name] not in one.choices:
            allowed = ", ".join(map(str, one.choices))
            got = units.shown(value)
            raise ManifestError(f"{where}: parameter {name!r}: expected {allowed}, got {got}")
    return made


def _typed(value: Value, kind: str, where: str) -> Value:
    """A value as its type wants it: what a command line gives is text. Raises ManifestError."""
    if isinstance(value, str) and kind != "text":
        value = parsed(value, kind)
    if not isinstance(value, _TYPES[kind]) or (kind != "bool" and isinstance(value, bool)):
        raise ManifestError(f"{where}: expected {kind}, got {units.shown(value)}")
    return value


def parsed(text: str, kind: str) -> Value:
    """A text as a value of this type, or as it is where it is none."""
    if kind == "bool":
        return _TRUTHS.get(text.lower(), text)
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        return text


def put(part: Any, values: dict[str, Value], *, quoted: bool | None = None) -> Any:
    """A part of an app with the values of its parameters in their places.

    A lone text is a line for sh, where values are quoted; in a list of words they are not.
    """
    if isinstance(part, str):
        return _put(part, values, quoted=quoted is not False)
    if isinstance(part, list):
        return [put(one, values, quoted=False) for one in part]
    if isinstance(part, Transfer):
        near, far = (_put(one, values, quoted=False) for one in (part.source, part.target))
        return msgspec.structs.replace(part, source=near, target=far)
    return part


def _put(text: str, values: dict[str, Value], *, quoted: bool) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            return found[0]
        shown = _shown(values[found[1]])
        if not quoted:
            return shown
        from shlex import quote

        return quote(shown)

    return _PLACE.sub(value, text) if values else text


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def words(app: App, wanted: Manifest) -> list[str]:
    """The words to run for a task of an app."""
    command = put(app.command, dict(wanted.parameters))
    if isinstance(command, str):
        line = command if _ARGUMENTS.search(command) else f'{command} "$@"'
        return ["/bin/sh", "-c", line, wanted.app, *wanted.args]
    return [*command, *wanted.args]
