"""shape - pure: what placement, selection or sizing may refuse, and its printed form, the lane.

A lane is SHAPE@SHARD. The shape's tokens stand in this order, defaults left out:
  STAGE. (prepare, close)  pN priority  nN nodes  rN ranks per node  cN cores per rank (always)
  kN at most so many on a node  eN elements of a chunk  gN GPUs per node  mSIZE memory per node
  tTIME estimate
  f-FEATURE+FEATURE  w-WORKFLOW  s-SOURCE
Names that are long, or hold a dot, enter as ~HASH in place of -NAME.
Fails  ValueError: a group that is no lane.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import combinations
from typing import Any

import msgspec

from spool import units
from spool.queue import layout

_LADDER_MINUTES = (1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960)
TIME_LADDER = (
    5,
    15,
    30,
    *(60 * m for m in _LADDER_MINUTES),
    *(86400 * d for d in (1, 2, 3, 4, 5, 7, 10, 14)),
)
MEMORY_LADDER = (64, 128, 256, 512, *(1024 * g * 2**k for k in range(13) for g in (1, 1.5)))
SHAPE_LONGEST = 120
_PLAIN = r"[A-Za-z0-9_+-]{1,32}"
_TOKEN = r"(p-?|[nrckeg])([0-9]{1,9})|([mt])([0-9dhmsMGT]+)|([fws])([-~])([A-Za-z0-9_+-]+)"
_SAME = ("nodes", "ranks", "cores", "per_node", "gpus", "features", "stage")
STAGES = ("run", "prepare", "close")
MOST_HASHED = 12
MOST_ELEMENTS = 1024
"""Beyond which their number is no matter: no node has so many cores to give."""


class Shape(msgspec.Struct, frozen=True):
    """All that a launcher, a selection or the sizing may refuse a task for.

    cores is per rank, gpus and memory_mb per node; per_node tasks share a node at most, 0: as many
    as have room; elements is how many a chunk of an array has, 0: it is none; time_s is 0 where
    nothing was said;
    features, workflow and source are lane tokens: "" or "-NAME" or "~HASH".
    """

    priority: int = 0
    nodes: int = 1
    ranks: int = 1
    cores: int = 1
    per_node: int = 0
    elements: int = 0
    gpus: int = 0
    memory_mb: int = 0
    time_s: int = 0
    features: str = ""
    workflow: str = ""
    source: str = ""
    stage: str = "run"

    def within(self, lane: Shape) -> bool:
        """Whether what was claimed by this lane's shape has all that a task of ours needs."""
        same = all(getattr(self, key) == getattr(lane, key) for key in _SAME)
        return same and self.memory_mb <= lane.memory_mb and self.time_s <= lane.time_s

    @property
    def mpi(self) -> bool:
        """Whether the task needs an mpirun of its own."""
        return self.nodes > 1 or self.ranks > 1


def round_time(seconds: float) -> int:
    """Up to the next step of the time ladder, beyond it to whole weeks; 0 stays 0.

    At most the longest duration there is, or a lane could not be read back.
    """
    if seconds <= 0:
        return 0
    if seconds >= units.LONGEST:
        return units.LONGEST
    for step in TIME_LADDER:
        if seconds <= step:
            return step
    return min(int(-(-seconds // 604800)) * 604800, units.LONGEST)


def round_time_down(seconds: float) -> int:
    """Down to the last step of the time ladder; 0 below its first.

    For a task that was interrupted after so long: rounded up, it might fit into no allocation of
    the length it had.
    """
    steps = (step for step in reversed(TIME_LADDER) if step <= seconds)
    return next(steps, 0)


def round_memory(megabytes: int) -> int:
    """Up to the next step of the memory ladder, beyond it to whole terabytes; 0 stays 0."""
    if megabytes <= 0:
        return 0
    for step in MEMORY_LADDER:
        if megabytes <= step:
            return int(step)
    return -(-megabytes // 2**20) * 2**20


@lru_cache(maxsize=4096)
def name_token(name: str) -> str:
    """A workflow or source as it stands in a lane; "" for none."""
    if not name:
        return ""
    return f"-{name}" if re.fullmatch(_PLAIN, name) else f"~{_hash(name)}"


@lru_cache(maxsize=4096)
def feature_token(features: tuple[str, ...]) -> str:
    """A feature list as it stands in a lane; "" for none."""
    if not features:
        return ""
    joined = "+".join(sorted(features))
    plain = all(re.fullmatch(r"[A-Za-z0-9_-]+", feature) for feature in features)
    return f"-{joined}" if plain and len(joined) <= 32 else f"~{_hash(joined)}"


def features_of(token: str) -> frozenset[str] | None:
    """The features a token names; None where only their hash stands there."""
    if token.startswith("~"):
        return None
    return frozenset(token[1:].split("+")) if token else frozenset()


@lru_cache(maxsize=4096)
def has_features(token: str, here: frozenset[str]) -> bool:
    """Whether a node with the features `here` has all that a lane's token asks for.

    A hash is compared with those of all lists that could be meant, of up to 12 features.
    """
    wanted = features_of(token)
    if wanted is not None:
        return wanted <= here
    known = sorted(here)[:MOST_HASHED]
    lists = (chosen for n in range(1, len(known) + 1) for chosen in combinations(known, n))
    return any(token == f"~{_hash('+'.join(chosen))}" for chosen in lists)


def _hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]


@lru_cache(maxsize=65536)
def print_shape(shape: Shape) -> str:
    """The shape as the first part of a lane."""
    tokens = [] if shape.stage == "run" else [shape.stage]
    for letter, value, default in (
        ("p", shape.priority, 0),
        ("n", shape.nodes, 1),
        ("r", shape.ranks, 1),
        ("c", shape.cores, None),
        ("k", shape.per_node, 0),
        ("e", shape.elements, 0),
        ("g", shape.gpus, 0),
    ):
        if value != default:
            tokens.append(f"{letter}{value}")
    if shape.memory_mb:
        tokens.append("m" + units.print_memory(shape.memory_mb))
    if shape.time_s:
        tokens.append("t" + units.print_duration(shape.time_s))
    names = (("f", shape.features), ("w", shape.workflow), ("s", shape.source))
    tokens += [letter + token for letter, token in names if token]
    return ".".join(tokens)


def bounded(shape: Shape) -> Shape:
    """The same shape, its names hashed where it would print over 120 bytes."""
    for field in ("features", "workflow", "source"):
        if len(print_shape(shape)) > SHAPE_LONGEST and getattr(shape, field)[:1] == "-":
            hashed: Any = {field: f"~{_hash(getattr(shape, field)[1:])}"}
            shape = msgspec.structs.replace(shape, **hashed)
    return shape


def lane(shape: Shape, shard: str) -> str:
    """The READY group of tasks of this shape and shard."""
    return f"{print_shape(shape)}@{shard}"


@lru_cache(maxsize=65536)
def parse(group: str) -> tuple[Shape, str]:
    """Shape and shard of a lane. Raises ValueError."""
    text, mark, shard = group.rpartition("@")
    if not mark or not layout.is_shard(shard):
        raise ValueError(f"{group!r} is no lane: expected SHAPE@SHARD")
    fields: dict[str, str | int] = {}
    head, _, rest = text.partition(".")
    if head in STAGES[1:]:
        fields["stage"], text = head, rest
    for token in text.split("."):
        fields.update(_parse_token(token, group))
    if "cores" not in fields:
        raise ValueError(f"{group!r} is no lane: it names no cores (c1, c16, ...)")
    return Shape(**fields), shard  # type: ignore[arg-type]


_FIELDS = {
    "p": "priority",
    "n": "nodes",
    "r": "ranks",
    "c": "cores",
    "k": "per_node",
    "e": "elements",
    "g": "gpus",
    "f": "features",
    "w": "workflow",
    "s": "source",
}


@lru_cache(maxsize=65536)
def read(text: str) -> Shape:
    """A shape as `print_shape` writes it. Raises ValueError."""
    return parse(f"{text}@00000000-00")[0]


def _parse_token(token: str, group: str) -> dict[str, str | int]:
    if not (found := re.fullmatch(_TOKEN, token)):
        raise ValueError(f"{group!r} is no lane: {token!r} means nothing")
    if found[1]:
        count = int(found[1][1:] + found[2])
        if count < 1 and found[1] in ("n", "r", "c"):
            raise ValueError(f"{group!r} is no lane: {token!r} asks for nothing")
        return {_FIELDS[found[1][0]]: count}
    if found[3] == "m":
        return {"memory_mb": units.memory(found[4])}
    if found[3] == "t":
        return {"time_s": int(units.duration(found[4]))}
    return {_FIELDS[found[5]]: found[6] + found[7]}


def order(group: str) -> tuple[int, str, int, int]:
    """The key lanes are served by: priority, the oldest hour, then the widest, then the longest."""
    shape, shard = parse(group)
    return (-shape.priority, shard[:8], -width(shape), -shape.time_s)


def width(shape: Shape) -> int:
    """All cores of a task, on all its nodes."""
    return shape.nodes * shape.ranks * shape.cores
