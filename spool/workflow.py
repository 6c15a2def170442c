"""workflow - one file that says a whole campaign: parameters times steps, and who waits for whom.

Owns   the form of a workflow file (TOML, JSON, YAML) and of a Python script that makes one.
Never  submits anything.
Fails  WorkflowError: names the file, the step, the key, and what is expected.

  workflow = "g2"                        in every task; optional
  [parameters]                           every combination of these, each a list
  molecule = ["H2O", "CH4"]
  [defaults]                             manifest keys of every step
  time_limit = "1h"
  [[steps]]                              a task for each combination, named optimise-H2O, ...
  name = "optimise"
  command = ["optimise", "{molecule}"]
  [[steps]]
  name = "table"
  over = []                              the parameters it has; all by default, here none: one task
  after = ["optimise"]                   waits for those that share its values: here for all

A step's keys are those of a manifest; `{parameter}` is filled in wherever text stands, and the
values are kept in `data`. A script defines `tasks()`, which yields mappings of manifest keys; their
`name` and `after` tie them together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from spool.errors import ManifestError, SpoolError
from spool.queue import layout, manifest
from spool.queue.manifest import Manifest
from spool.template import label

Values = dict[str, Any]
KEYS = ("workflow", "parameters", "defaults", "steps")
_PLACE = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
FORMS = ".toml, .json, .yaml, .yml or .py"


class WorkflowError(SpoolError):
    """A workflow file that cannot be understood."""


def read(path: str, chosen: Mapping[str, list[str]]) -> Iterator[Manifest]:
    """The tasks of a workflow file, parents before children; `chosen` replaces parameters.

    `after` holds names of other tasks of the file, or ids. Raises WorkflowError.
    """
    if path.endswith(".py"):
        if chosen:
            raise WorkflowError(f"{path}: is a script; --set goes with a file of parameters")
        return _of_script(path)
    whole = _loaded(path)
    for key in whole:
        if key not in KEYS:
            raise WorkflowError(f"{path}: unknown key {key!r}; allowed are {', '.join(KEYS)}")
    return _tasks(path, whole, _parameters(path, whole, chosen))


# -- the file ------------------------------------------------------------------------------------


def _loaded(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as fault:
        raise WorkflowError(f"{path}: {fault.strerror}") from None
    try:
        found = _parsed(path, raw)
    except (ValueError, RecursionError) as fault:
        raise WorkflowError(f"{path}: {fault}") from None
    if not isinstance(found, dict):
        raise WorkflowError(f"{path}: must hold keys ({', '.join(KEYS)})")
    return found


def _parsed(path: str, raw: bytes) -> Any:
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(raw.decode())
    if suffix == ".json":
        return json.loads(raw)
    if suffix in (".yaml", ".yml"):
        return _yaml(path, raw)
    raise WorkflowError(f"{path}: expected {FORMS}")


def _yaml(path: str, raw: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise WorkflowError(f"{path}: YAML needs PyYAML. Run: pip install 'spool[yaml]'") from None
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as fault:
        raise WorkflowError(f"{path}: {' '.join(str(fault).split())}") from None


def _of_script(path: str) -> Iterator[Manifest]:
    """What the function `tasks` of a script yields. The script is the user's own, and is run."""
    import runpy

    if not os.path.isfile(path):
        raise WorkflowError(f"{path}: is no file")
    try:
        make = runpy.run_path(path, run_name="spool_workflow").get("tasks")
    except Exception as fault:
        raise _told_of(path, fault) from fault
    if not callable(make):
        raise WorkflowError(f"{path}: defines no function tasks() that yields tasks")
    for number, keys in enumerate(_yielded(path, make), 1):
        if not isinstance(keys, Mapping):
            raise WorkflowError(f"{path}: task {number} is no mapping of manifest keys")
        yield manifest.from_mapping(dict(keys), f"{path}: task {number}")


def _yielded(path: str, make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    try:
        yield from make()
    except Exception as fault:
        raise _told_of(path, fault) from fault


def _told_of(path: str, fault: Exception) -> WorkflowError:
    """What a script raised, with where in it: its own lines and what they called, not ours."""
    import traceback

    frames = traceback.extract_tb(fault.__traceback__)
    inside = next((at for at, one in enumerate(frames) if one.filename == path), len(frames))
    where = "".join(traceback.format_list(frames[inside:]))
    said = "".join(traceback.format_exception_only(fault)).strip()
    return WorkflowError(f"{path}: {said}" + (f"\n{where}".rstrip() if where else ""))


# -- parameters ----------------------------------------------------------------------------------


def _parameters(
    path: str, whole: dict[str, Any], chosen: Mapping[str, list[str]]
) -> dict[str, list[Any]]:
    found = whole.get("parameters", {})
    if not isinstance(found, dict):
        raise WorkflowError(f"{path}: 'parameters' must be a table of lists")
    for name, values in found.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise WorkflowError(f"{path}: parameter {name!r}: is no plain word")
        if not isinstance(values, list) or not values:
            raise WorkflowError(f"{path}: parameter {name!r}: expected a list of values")
        if len({str(value) for value in values}) < len(values):
            raise WorkflowError(f"{path}: parameter {name!r}: a value stands twice")
    if strangers := chosen.keys() - found.keys():
        known = ", ".join(found) or "none"
        raise WorkflowError(f"{path}: has no parameter {min(strangers)!r}; it has {known}")
    return {**found, **chosen}


# -- steps ---------------------------------------------------------------------------------------


def _tasks(
    path: str, whole: dict[str, Any], parameters: dict[str, list[Any]]
) -> Iterator[Manifest]:
    steps = _steps(path, whole)
    overs = {step["name"]: _over(path, step, parameters) for step in steps}
    defaults = whole.get("defaults", {})
    if not isinstance(defaults, dict):
        raise WorkflowError(f"{path}: 'defaults' must be a table of manifest keys")
    base = {**({"workflow": whole["workflow"]} if "workflow" in whole else {}), **defaults}
    for step in steps:
        where = f"{path}: step {step['name']!r}"
        keys = {**base, **{key: value for key, value in step.items() if key != "over"}}
        for values in _combinations(parameters, overs[step["name"]]):
            made = _filled(keys, values, where)
            made["name"] = _name(step["name"], values)
            made["after"] = list(_after(step, values, overs, parameters))
            made["data"] = {**made.get("data", {}), **values}
            yield _checked(made, where)


def _steps(path: str, whole: dict[str, Any]) -> list[dict[str, Any]]:
    steps = whole.get("steps")
    if not isinstance(steps, list) or not steps:
        raise WorkflowError(f"{path}: needs 'steps', a list of them")
    seen: set[str] = set()
    for number, step in enumerate(steps, 1):
        name = step.get("name") if isinstance(step, dict) else None
        if not isinstance(name, str) or not layout.is_name(name):
            raise WorkflowError(f"{path}: step {number}: needs a 'name' of letters and digits")
        if name in seen:
            raise WorkflowError(f"{path}: two steps are named {name!r}; rename one of them")
        seen.add(name)
        after = step.get("after", [])
        if not isinstance(after, list) or not all(isinstance(one, str) for one in after):
            raise WorkflowError(f"{path}: step {name!r}: 'after' must be a list of step names")
    return steps


def _over(path: str, step: dict[str, Any], parameters: dict[str, list[Any]]) -> tuple[str, ...]:
    over = step.get("over", list(parameters))
    if not isinstance(over, list) or not set(map(str, over)) <= parameters.keys():
        known = ", ".join(parameters) or "none"
        raise WorkflowError(
            f"{path}: step {step['name']!r}: 'over' must be a list of parameters; there are {known}"
        )
    return tuple(name for name in parameters if name in over)


def _combinations(parameters: dict[str, list[Any]], over: Iterable[str]) -> Iterator[Values]:
    names = list(over)
    for values in product(*(parameters[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _name(step: str, values: Values) -> str:
    """A step's name with its values, each as a name shows it."""
    parts = [step, *(label(str(value)) for value in values.values())]
    name = layout.as_name("-".join(parts))
    if len(name) >= layout.NAME_LONGEST:
        raise WorkflowError(f"step {step!r}: the name {name!r}... is too long; shorten the values")
    return name


def _after(
    step: dict[str, Any],
    values: Values,
    overs: dict[str, tuple[str, ...]],
    parameters: dict[str, list[Any]],
) -> Iterator[str]:
    """The tasks a task waits for: of each step named, those that share its values."""
    for parent in step.get("after", []):
        if parent not in overs:
            yield parent  # an id, or a name that whoever submits will find or refuse
            continue
        fixed = {name: [values[name]] for name in overs[parent] if name in values}
        for combination in _combinations({**parameters, **fixed}, overs[parent]):
            yield _name(parent, combination)


def _filled(part: Any, values: Values, where: str) -> Any:
    """A step's keys with the values in place of `{parameter}`."""
    if isinstance(part, str):
        return _PLACE.sub(lambda found: _value(found, values, where), part)
    if isinstance(part, list):
        return [_filled(item, values, where) for item in part]
    if isinstance(part, dict):
        return {key: _filled(item, values, where) for key, item in part.items()}
    return part


def _value(found: re.Match[str], values: Values, where: str) -> str:
    if found[1] not in values:
        known = ", ".join(values) or "none"
        raise WorkflowError(
            f"{where}: {found[0]} is no parameter of it; it has {known}."
            f" If the braces are the program's own, write {{ {found[1]} }}"
        )
    return str(values[found[1]])


def _checked(made: Values, where: str) -> Manifest:
    try:
        return manifest.from_mapping(made, where)
    except ManifestError as fault:
        raise WorkflowError(str(fault)) from None
