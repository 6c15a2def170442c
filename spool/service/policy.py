"""policy - the sections [service] and [queues.NAME] of spool.toml as frozen settings.

Owns   their keys, defaults and meaning; what of a queue is taken from the batch system where
       nobody said it.
Never  asks a batch system: `completed` is told what one said.
Fails  SpoolError: a bad value, with file, key and what is allowed. NotASpool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from spool import config, units
from spool.errors import SpoolError
from spool.queue import files
from spool.queue.layout import SETTINGS, is_name
from spool.service.system import Partition
from spool.service.terms import Band, NodeShape, Policy, Queue

HOUR = 3600.0
MOST_QUEUED = 4
"""Allocations that may wait at once in a queue whose settings nobody wrote."""
COUNT_LARGEST = 10**9
LEAST_S = 300.0
BANDS = 'lines such as "128-255 3h", in order, none over another'


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is said to the batch system with each request for a queue."""

    account: str = ""
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What spool.toml says of the service; the queues' own settings by their names."""

    policy: Policy = Policy(queues=())
    system: str = "auto"
    interval_s: float = 60.0
    stagers: bool = True
    idle_timeout_s: float = 60.0
    template: str = ""
    account: str = ""
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    queues: dict[str, QueueSettings] = {}

    def of(self, queue: str) -> QueueSettings:
        """What holds for a queue: its own account, else the common one; the common lines first."""
        own = self.queues.get(queue, QueueSettings())
        return QueueSettings(
            account=own.account or self.account,
            directives=(*self.directives, *own.directives),
            setup=(*self.setup, *own.setup),
        )


# -- one value -----------------------------------------------------------------------------------

Reader = Callable[[Any, str], Any]


def _kind(kind: str) -> Reader:
    return lambda value, where: config.read_value(kind, value, where)


def _fault(where: str, expected: str, value: Any) -> SpoolError:
    return SpoolError(f"{where}: expected {expected}, got {units.shown(value)}")


def _number(expected: str, least: float, most: float) -> Reader:
    def read(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _fault(where, expected, value)
        if not least <= value <= most:
            raise _fault(where, expected, value)
        return float(value)

    return read


def _count(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_LARGEST:
        raise _fault(where, "a whole number, 0 or more; 0 is no limit", value)
    return value


def _lines(value: Any, where: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(_is_line(line) for line in found):
        raise _fault(where, 'lines of text, such as ["module load x"]', value)
    return tuple(found)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\n" not in value


def _word(value: Any, where: str) -> str:
    """A text that goes onto a command's line: no blanks, nothing that begins an option."""
    if not isinstance(value, str) or not re.fullmatch(r"([^\s-]\S*)?", value):
        raise _fault(where, "a name without blanks", value)
    return value


def _path(value: Any, where: str) -> str:
    """A file of the spool's own, by its path from the root."""
    inside = _is_line(value) and not value.startswith("/") and ".." not in value.split("/")
    if value != "" and not inside:
        raise _fault(where, "a path inside the spool, such as job.template", value)
    return str(value)


def _features(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _fault(where, 'names, such as ["knl", "gpu"]', value)
    if bad := next((one for one in value if not is_name(one)), None):
        raise _fault(where, "a feature's name", bad)
    return frozenset(value)


def _budget(value: Any, where: str) -> float:
    """Node-seconds; written in node-hours."""
    found = (
        re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*node-hours?", value)
        if isinstance(value, str)
        else None
    )
    hours = float(found[1]) if found else value
    read = _number('node-hours, such as "1000 node-hours"', 0.0, 1e12)
    return float(read(hours, where)) * HOUR


def _nodes(value: Any, where: str) -> tuple[int, int]:
    """16 is 1-16; 128- has no end."""
    text = f"1-{value}" if type(value) is int else value
    found = (
        re.fullmatch(r"(?:([0-9]{1,9})(-))?([0-9]{0,9})", text) if isinstance(text, str) else None
    )
    if not found or not (found[2] or found[3]):
        raise _fault(where, 'numbers of nodes, such as "1-16" or "128-"', value)
    least, most = int(found[1] or 1), int(found[3] or 0)
    if least < 1 or 0 < most < least or (found[3] and not most):
        raise _fault(where, "at least 1 node, and no fewer at most than at least", value)
    return least, most


def _time(value: Any, where: str) -> tuple[float, float]:
    """(least, most); 1h is up to an hour, 5m- at least five minutes."""
    if not isinstance(value, str):
        return 0.0, _seconds(value, where)
    least, mark, most = value.rpartition("-")
    if mark and re.fullmatch(r"\d+", least) and ":" in most:  # 1-00:00:00 is a day
        least, mark, most = "", "", value
    found = (_seconds(least, where) if mark else 0.0, _seconds(most, where) if most else 0.0)
    if 0 < found[1] < found[0]:
        raise _fault(where, "no less at most than at least", value)
    return found


def _seconds(value: Any, where: str) -> float:
    return float(config.read_value("duration", value, where))


def _bands(value: Any, where: str) -> tuple[Band, ...]:
    if not isinstance(value, list) or not value:
        raise _fault(where, BANDS, value)
    bands = tuple(_band(line, where) for line in value)
    for one, other in zip(bands, bands[1:], strict=False):
        if not one.max_nodes or one.max_nodes >= other.min_nodes:
            raise _fault(where, BANDS, value)
    return bands


def _band(line: Any, where: str) -> Band:
    words = line.replace(":", " ", 1).split() if isinstance(line, str) else []
    if len(words) != 2:
        raise _fault(where, BANDS, line)
    least, most = _nodes(words[0], where)
    return Band(least, most, _seconds(words[1], where))


# -- the sections --------------------------------------------------------------------------------

SERVICE: dict[str, Reader] = {
    "system": _kind("service_system"),
    "interval": _kind("duration"),
    "account": _word,
    "max_queued": _count,
    "max_nodes": _count,
    "budget": _budget,
    "padding": _kind("duration"),
    "default_time": _kind("duration"),
    "min_utilisation": _number("a share, 0 to 1", 0.0, 1.0),
    "queue_wait": _kind("duration"),
    "settle": _kind("duration"),
    "within": _kind("duration"),
    "patience": _kind("duration"),
    "stagers": _kind("flag"),
    "idle_timeout": _kind("duration"),
    "setup": _lines,
    "directives": _lines,
    "template": _path,
}
QUEUE: dict[str, Reader] = {
    "nodes": _nodes,
    "time": _time,
    "bands": _bands,
    "max_queued": _count,
    "max_running": _count,
    "max_nodes": _count,
    "cores": _count,
    "gpus": _count,
    "memory": _kind("memory"),
    "features": _features,
    "cost": _number("a number, 0 or more", 0.0, 1e6),
    "account": _word,
    "directives": _lines,
    "setup": _lines,
}
_IN_POLICY = {
    "max_queued": "max_queued",
    "max_nodes": "max_live_nodes",
    "budget": "budget_node_s",
    "padding": "padding_s",
    "default_time": "default_task_s",
    "min_utilisation": "min_utilisation",
    "queue_wait": "queue_wait_s",
    "settle": "settle_s",
    "within": "within_s",
    "patience": "patience_s",
}
_POSITIVE = ("interval", "default_time", "within")
_OWN = ("account", "directives", "setup")


def load(root: str) -> ServiceSettings:
    """The service's settings of a spool. Raises NotASpool, SpoolError."""
    sections = config.sections(root, "service", "queues")
    path = f"{root}/{SETTINGS}"
    queues = _tables(sections["queues"], path)
    read = {name: _read(keys, QUEUE, f"queues.{name}", path) for name, keys in queues.items()}
    found = _read(sections["service"], SERVICE, "service", path)
    for key in _POSITIVE:
        if found.get(key) == 0:
            raise SpoolError(f"{path}: service.{key}: must be more than 0")
    policy: dict[str, Any] = {_IN_POLICY[key]: found.pop(key) for key in _IN_POLICY if key in found}
    policy["queues"] = tuple(_queue(name, keys, path) for name, keys in read.items())
    for key in ("interval", "idle_timeout"):
        if key in found:
            found[f"{key}_s"] = found.pop(key)
    return ServiceSettings(
        policy=Policy(**policy),
        queues={name: QueueSettings(**_some(keys, _OWN)) for name, keys in read.items()},
        **found,
    )


def mark(root: str, template: str) -> str:
    """A mark of spool.toml and the job script's template as they are: another is a change."""
    paths = [f"{root}/{SETTINGS}"] + [f"{root}/{template}"] * bool(template)
    return hashlib.sha256(b"\0".join(files.read(path) or b"" for path in paths)).hexdigest()[:16]


def _tables(section: Any, path: str) -> dict[str, Any]:
    if not all(isinstance(keys, dict) for keys in section.values()):
        raise SpoolError(f"{path}: queues: expected a section for each queue: [queues.NAME]")
    for name in section:
        if name and not re.fullmatch(r"[^\s-]\S*", name):
            raise SpoolError(f"{path}: queues.{units.shown(name)}: expected a queue's name")
    return dict(section)


def _read(
    keys: dict[str, Any], known: dict[str, Reader], section: str, path: str
) -> dict[str, Any]:
    for key in keys:
        if key not in known:
            allowed = ", ".join(known)
            raise SpoolError(f"{path}: unknown setting {section}.{key}; allowed are {allowed}")
    return {key: known[key](value, f"{path}: {section}.{key}") for key, value in keys.items()}


def _some(keys: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    return {key: keys[key] for key in wanted if key in keys}


def _queue(name: str, keys: dict[str, Any], path: str) -> Queue:
    where = f"{path}: queues.{name}"
    least_s, most_s = keys.get("time", (0.0, 0.0))
    if "bands" in keys and ("nodes" in keys or most_s):
        raise SpoolError(
            f'{where}: bands say nodes and times; beside them only time = "5m-" may stand'
        )
    least, most = keys.get("nodes", (1, 0))
    bands = keys.get("bands", (Band(least, most, most_s),))
    shortest_s = min((band.max_s for band in bands if band.max_s), default=LEAST_S)
    least_s = least_s or min(LEAST_S, shortest_s)
    given: dict[str, Any] = _some(keys, ("max_queued", "max_running", "features", "cost"))
    if "max_nodes" in keys:
        given["max_live_nodes"] = keys["max_nodes"]
    node = NodeShape(keys.get("cores", 0), keys.get("gpus", 0), keys.get("memory", 0))
    return Queue(name=name, bands=bands, min_s=least_s, node=node, **given)


# -- what the batch system says ------------------------------------------------------------------


def from_partitions(partitions: Sequence[Partition]) -> tuple[Queue, ...]:
    """The queues to ask where spool.toml names none: the default one; all, if none is the default.

    Which of several others a person may use, and what they cost, only that person knows.
    """
    wanted = [one for one in partitions if one.default] or list(partitions)
    return tuple(
        filled(Queue(name=one.name, bands=(Band(1, 0, 0.0),), max_queued=MOST_QUEUED), one)
        for one in wanted
    )


def filled(queue: Queue, partition: Partition) -> Queue:
    """A queue with what nobody said of it as the batch system tells it."""
    node, told = queue.node, partition.node
    if not node.cores:
        node = NodeShape(told.cores, node.gpus or told.gpus, node.memory_mb or told.memory_mb)
    most_nodes = min(partition.max_nodes or partition.nodes, partition.nodes or 10**9)
    bands = tuple(
        Band(band.min_nodes, band.max_nodes or most_nodes, band.max_s or partition.max_s or 0.0)
        for band in queue.bands
    )
    shortest = min((band.max_s for band in bands if band.max_s), default=queue.min_s)
    return msgspec.structs.replace(queue, node=node, bands=bands, min_s=min(queue.min_s, shortest))


def completed(policy: Policy, partitions: Sequence[Partition]) -> Policy:
    """The policy with what its queues leave open, or with queues where it has none.

    "" is the batch system's default queue.
    """
    if not policy.queues:
        return msgspec.structs.replace(policy, queues=from_partitions(partitions))
    by_name = {one.name: one for one in partitions}
    if default := next((one for one in partitions if one.default), None):
        by_name[""] = default
    queues = (filled(q, by_name[q.name]) if q.name in by_name else q for q in policy.queues)
    return msgspec.structs.replace(policy, queues=tuple(queues))


def chosen(policy: Policy, name: str | None) -> Queue:
    """The queue of this name, open where the policy does not know it; None: the first there is."""
    if name is None:
        return policy.queues[0] if policy.queues else Queue(name="", bands=(Band(1, 0, 0.0),))
    found = (queue for queue in policy.queues if queue.name == name)
    return next(found, Queue(name=name, bands=(Band(1, 0, 0.0),)))
