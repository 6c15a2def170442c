"""nodes - pure: what a node has, what is free on it, and which cores and GPUs a task gets.

Owns   `Room`, the free cores, GPUs and memory of one node.
Never  starts anything; `this_node` alone looks at the machine.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from fractions import Fraction

from spool.queue.shape import Shape


@dataclass(frozen=True, slots=True)
class Node:
    """What one node offers: cpu numbers (one for each core to fill), GPU names, megabytes.

    name is its host, as the batch system says it; "" for this machine.
    """

    cpus: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    memory_mb: int = 0
    name: str = ""

    @property
    def shared(self) -> bool:
        """Whether more cores are offered than there are, so that pinning would only hurt."""
        return len(set(self.cpus)) < len(self.cpus)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one task was given on one node; `node` is its number in the launcher's book.

    per_node is its shape's: it has that part of the node's tasks of such shapes.
    """

    cpus: tuple[int, ...]
    gpus: tuple[str, ...]
    memory_mb: int
    node: int = 0
    per_node: int = 0


def joined(grants: tuple[Grant, ...]) -> Grant:
    """One grant of all that several on one node have."""
    first = grants[0]
    cpus = tuple(cpu for one in grants for cpu in one.cpus)
    memory_mb = sum(one.memory_mb for one in grants)
    return Grant(cpus, first.gpus, memory_mb, first.node, first.per_node)


def needs(shape: Shape, node: Node) -> int:
    """The cores a task of this shape needs on a node: its own, or its even share of the node's."""
    own = shape.cores * shape.ranks
    return max(own, len(node.cpus) // shape.per_node) if shape.per_node else own


class Room:
    """The free part of a node. kept is the shape that some of it is kept for, from all others.

    shared is how much of the node those tasks have that say how many of them may be on one: its
    whole is 1, so that tasks of different counts share it evenly.
    """

    __slots__ = ("cpus", "gpus", "kept", "memory_mb", "node", "number", "shared")

    def __init__(self, node: Node, number: int = 0) -> None:
        self.node = node
        self.number = number
        self.cpus = list(node.cpus)
        self.gpus = list(node.gpus)
        self.memory_mb = node.memory_mb
        self.shared: Fraction | int = 0
        self.kept: Shape | None = None

    def copy(self) -> Room:
        """The same room, to plan with."""
        twin = Room(self.node, self.number)
        twin.cpus, twin.gpus = self.cpus.copy(), self.gpus.copy()
        twin.memory_mb, twin.kept, twin.shared = self.memory_mb, self.kept, self.shared
        return twin

    @property
    def spare(self) -> int:
        """Free cores that are kept for nobody."""
        kept = needs(self.kept, self.node) if self.kept else 0
        return max(0, len(self.cpus) - kept)

    def count(self, shape: Shape, *, ours: bool = False) -> int:
        """How many tasks' parts of this shape still fit; `ours`: it is what room is kept for."""
        cores, gpus, memory_mb = len(self.cpus), len(self.gpus), self.memory_mb
        if self.kept and not ours:
            cores, gpus = self.spare, max(0, gpus - self.kept.gpus)
            memory_mb = max(0, memory_mb - self.kept.memory_mb)
        found = cores // needs(shape, self.node)
        if shape.gpus:
            found = min(found, gpus // shape.gpus)
        if shape.memory_mb:
            found = min(found, memory_mb // shape.memory_mb)
        if shape.per_node:
            found = min(found, self._shares(shape, ours))
        return found

    def _shares(self, shape: Shape, ours: bool) -> int:
        """How many more of a shape that says how many of it may be here."""
        kept = self.kept.per_node if self.kept and not ours else 0
        free = 1 - self.shared - (Fraction(1, kept) if kept else 0)
        return max(0, int(free * shape.per_node))

    def grant(self, shape: Shape) -> Grant:
        """Give a task's part, which fits, its lowest free cores and GPUs."""
        cores, gpus = needs(shape, self.node), shape.gpus
        cpus, names = tuple(self.cpus[:cores]), tuple(self.gpus[:gpus])
        del self.cpus[:cores]
        del self.gpus[:gpus]
        self.memory_mb -= shape.memory_mb
        if shape.per_node:
            self.shared += Fraction(1, shape.per_node)
        return Grant(cpus, names, shape.memory_mb, self.number, shape.per_node)

    def occupy(self, grant: Grant) -> None:
        """Let a grant of this node have what it has."""
        for cpu in grant.cpus:
            self.cpus.remove(cpu)
        for gpu in grant.gpus:
            self.gpus.remove(gpu)
        self.memory_mb -= grant.memory_mb
        if grant.per_node:
            self.shared += Fraction(1, grant.per_node)

    def lend(self, cpus: tuple[int, ...], memory_mb: int) -> Grant:
        """Give away these very cores, which are free, and so much memory."""
        grant = Grant(cpus, (), memory_mb, self.number)
        self.occupy(grant)
        return grant

    def give(self, grant: Grant) -> None:
        """Take a grant back."""
        self.cpus += grant.cpus
        self.cpus.sort()
        if grant.gpus:
            self.gpus += grant.gpus
            self.gpus.sort(key=self.node.gpus.index)
        self.memory_mb += grant.memory_mb
        if grant.per_node:
            self.shared -= Fraction(1, grant.per_node)


def fits_ever(node: Node, shape: Shape) -> bool:
    """Whether a task of this shape fits the empty node."""
    return shape.nodes == 1 and Room(node).count(shape) > 0


def this_node(
    cores: int | None = None, gpus: int | None = None, memory_mb: int | None = None
) -> Node:
    """This machine as far as this process may use it; each figure may be overruled."""
    allowed = sorted(os.sched_getaffinity(0))
    count = len(allowed) if cores is None else cores
    # Launchers side by side that take a part each shall not all take the first cores.
    first = random.randrange(len(allowed)) if count < len(allowed) else 0
    cpus = tuple(sorted(allowed[(first + number) % len(allowed)] for number in range(count)))
    found = visible_gpus(dict(os.environ), os.listdir("/dev"))
    names = found if gpus is None else tuple((*found, *map(str, range(len(found), gpus)))[:gpus])
    return Node(cpus, names, _memory() if memory_mb is None else memory_mb)


def visible_gpus(environment: dict[str, str], devices: list[str]) -> tuple[str, ...]:
    """The GPUs this process may use: as the batch system says, else the devices there are."""
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if variable in environment:
            named = [name.strip() for name in environment[variable].split(",")]
            return tuple(name for name in named if name not in _NO_GPU)
    numbers = sorted(int(found[1]) for name in devices if (found := _DEVICE.fullmatch(name)))
    return tuple(str(number) for number in numbers)


_DEVICE = re.compile(r"nvidia([0-9]+)")
_NO_GPU = ("", "-1", "NoDevFiles")  # the last is what batch systems write where none is granted
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def _memory() -> int:
    """Megabytes of memory, or of the control group's limit where that is less."""
    import psutil

    total: int = psutil.virtual_memory().total
    for path in _LIMITS:
        try:
            with open(path, encoding="ascii") as file:
                limit = file.read().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total >> 20
