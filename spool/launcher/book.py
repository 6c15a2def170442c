"""book - pure: who has which part of which node; where the next task goes.

Owns   the free parts of all nodes of a launcher, and the rule of placement: first fit, lowest node
       first, so that whole nodes stay free for the wide as long as they can.
Never  looks at a machine, and never gives one core, GPU or megabyte to two.

The nodes' free cores stand in a tree of maxima, so the first node with room for a task is found in
the logarithm of their number. For one large task that waits too long, room is *kept*: what it needs
on the nodes that lack least is given to no other until it fits there, but to tasks that end sooner
than what is in its way should (EASY backfilling, D. A. Lifka, JSSPP 1995).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from spool.launcher.nodes import Grant, Node, Room, joined, needs
from spool.queue.shape import Shape

Grants = tuple[Grant, ...]
Allows = Callable[[int], bool]


class Book:
    """The room of several nodes; a node's place in `nodes` is its number."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.rooms = [Room(node, number) for number, node in enumerate(self.nodes)]
        self.free = sum(len(node.cpus) for node in self.nodes)
        self.cores = self.free
        self.gone: frozenset[int] = frozenset()
        self.kept_for: Shape | None = None
        self.kept_s = 0.0  # for so long what is in the way should last
        self.kept_on: tuple[int, ...] = ()
        self._width = 1 << (len(self.nodes) - 1).bit_length()
        self._most = [0] * (2 * self._width)
        for number in range(len(self.nodes)):
            self._renew(number)
        self.fits_ever = lru_cache(4096)(self._fits_ever)
        self._least = lru_cache(4096)(self._least_needed)

    def copy(self) -> Book:
        """The same book, to plan with."""
        twin = Book.__new__(Book)
        twin.nodes, twin.free, twin.cores = self.nodes, self.free, self.cores
        twin.rooms = [room.copy() for room in self.rooms]
        twin.gone = self.gone
        twin.kept_for, twin.kept_s, twin.kept_on = self.kept_for, self.kept_s, self.kept_on
        twin._width, twin._most = self._width, self._most.copy()
        twin.fits_ever, twin._least = self.fits_ever, self._least
        return twin

    # -- what fits -------------------------------------------------------------------------------

    def _fits_ever(self, shape: Shape) -> bool:
        """Whether a task of this shape fits the nodes that are left when they are empty."""
        wanted = shape.nodes
        for number, node in enumerate(self.nodes):
            wanted -= number not in self.gone and Room(node).count(shape) > 0
            if wanted <= 0:
                return True
        return False

    def _least_needed(self, shape: Shape) -> int:
        """The cores that a task of this shape needs on the smallest node, to search with."""
        if not shape.per_node:
            return shape.cores * shape.ranks
        return min(needs(shape, node) for node in self.nodes)

    def count(self, shape: Shape, most: int, allows: Allows | None = None) -> int:
        """How many tasks of this shape fit now, as far as it matters: no more than `most`."""
        if shape.nodes > 1:
            return int(self._find(shape, allows) is not None)
        ours, found, number = self._may_use_kept(shape), 0, -1
        while found < most and (number := self._next(number + 1, shape, ours, allows)) >= 0:
            found += self.rooms[number].count(shape, ours=ours)
        return min(found, most)

    def take(self, shape: Shape, allows: Allows | None = None) -> Grants | None:
        """Give a task of this shape what it needs on each of its nodes; None if it does not fit."""
        if (found := self._find(shape, allows)) is None:
            return None
        grants = tuple(self.rooms[number].grant(shape) for number in found)
        self._settle(grants, -1)
        if shape == self.kept_for:
            self.keep(None)
        return grants

    def widen(self, grants: Grants, shape: Shape, waiting: int) -> Grants:
        """What a chunk was given, and of the room left its share, for more of its elements.

        `waiting` others want room too. Nothing more is given where elements need GPUs.
        """
        room = self.rooms[grants[0].node]
        spare = 0 if shape.gpus else room.count(shape) // (waiting + 1)
        more = tuple(room.grant(shape) for _ in range(min(spare, shape.elements - 1)))
        self._settle(more, -1)
        return (joined((*grants, *more)),) if more else grants

    def give(self, grants: Grants) -> None:
        """Take back what a task had."""
        grants = tuple(grant for grant in grants if grant.node not in self.gone)
        for grant in grants:
            self.rooms[grant.node].give(grant)
        self._settle(grants, 1)

    def close(self, number: int) -> None:
        """A node is gone: its room is nobody's any more, what it gave away included."""
        if number in self.gone:
            return
        kept = self.kept_for if number in self.kept_on else None
        if kept:
            self.keep(None)
        self.gone |= {number}
        self.fits_ever.cache_clear()
        room = self.rooms[number]
        self.free -= len(room.cpus)
        self.cores -= len(room.node.cpus)
        room.cpus, room.gpus, room.memory_mb = [], [], 0
        self._renew(number)
        if kept:
            self.keep(kept)  # on another node, if there is one

    def lend(self, cpus: tuple[int, ...], memory_mb: int) -> Grants:
        """Give away these very cores of the only node, which are free, and so much memory."""
        grants = (self.rooms[0].lend(cpus, memory_mb),)
        self._settle(grants, -1)
        return grants

    @property
    def idle(self) -> bool:
        """Whether nothing is given away."""
        return self.free == self.cores

    # -- room kept for the large -----------------------------------------------------------------

    def keep(self, shape: Shape | None) -> None:
        """Keep room for one task of this shape, on nodes chosen now; None: for nobody.

        Nor is any kept for a task that the nodes that are left can never hold.
        """
        if shape == self.kept_for:
            return
        for number in self.kept_on:
            self.rooms[number].kept = None
            self._renew(number)
        self.kept_for, self.kept_s, self.kept_on = None, 0.0, ()
        if shape is None or not self.fits_ever(shape):
            return
        left = (room for room in self.rooms if room.number not in self.gone)
        able = [room.number for room in left if Room(room.node).count(shape)]
        able.sort(key=lambda number: self._lacks(number, shape))
        self.kept_for = shape
        self.kept_on = tuple(sorted(able[: shape.nodes]))
        for number in self.kept_on:
            self.rooms[number].kept = shape
            self._renew(number)

    def _may_use_kept(self, shape: Shape) -> bool:
        """Whether room is kept for a shape, or it will be gone before that is complete."""
        return shape == self.kept_for or 0 < shape.time_s <= self.kept_s and not shape.elements

    def frees_in(self, taken: Iterable[tuple[Grant, float]]) -> float:
        """In how many seconds what room is kept for should fit.

        taken are the grants that are in its way, each with the seconds that it should last on; all
        else is thought to be gone by then.
        """
        if self.kept_for is None:
            return 0.0
        by_node = defaultdict(list)
        for grant, left_s in taken:
            by_node[grant.node].append((left_s, grant))
        shape, nodes = self.kept_for, self.nodes
        return max((_fits_in(shape, nodes[one], by_node[one]) for one in self.kept_on), default=0)

    def _lacks(self, number: int, shape: Shape) -> tuple[int, int, int]:
        """What a node would still have to get back for a task: cores, GPUs, megabytes."""
        room = self.rooms[number]
        cores, gpus = needs(shape, room.node) - len(room.cpus), shape.gpus - len(room.gpus)
        return max(0, cores), max(0, gpus), max(0, shape.memory_mb - room.memory_mb)

    # -- the tree of maxima ----------------------------------------------------------------------

    def _find(self, shape: Shape, allows: Allows | None) -> list[int] | None:
        """The first nodes with room for each part of a task."""
        found: list[int] = []
        number, ours = -1, self._may_use_kept(shape)
        while len(found) < shape.nodes:
            if (number := self._next(number + 1, shape, ours, allows)) < 0:
                return None
            found.append(number)
        return found

    def _next(self, number: int, shape: Shape, ours: bool, allows: Allows | None) -> int:
        """The first node from `number` on that has room for a task's part; -1: none."""
        wanted, at = self._least(shape), number
        while (at := self._first(at, wanted)) >= 0:
            if self.rooms[at].count(shape) and (allows is None or allows(at)):
                break
            at += 1
        if not ours:
            return at
        for kept in self.kept_on[bisect_left(self.kept_on, number) :]:
            if 0 <= at < kept:
                break
            if self.rooms[kept].count(shape, ours=True) and (allows is None or allows(kept)):
                return kept
        return at

    def _first(self, number: int, wanted: int) -> int:
        """The first node from `number` on with so many free cores; -1: none."""
        most, at = self._most, number + self._width
        if number >= self._width:
            return -1
        while most[at] < wanted:  # up and to the right, to the next whole branch
            while at & 1:
                at >>= 1
            if not at:
                return -1
            at += 1
        while at < self._width:  # down to its first leaf
            at <<= 1
            at += most[at] < wanted
        return at - self._width

    def _renew(self, number: int) -> None:
        """A node's free cores changed: so may the maxima above it."""
        most, at = self._most, number + self._width
        most[at] = self.rooms[number].spare
        while at > 1:
            at >>= 1
            larger = max(most[2 * at], most[2 * at + 1])
            if most[at] == larger:
                return
            most[at] = larger

    def _settle(self, grants: Grants, sign: int) -> None:
        for grant in grants:
            self.free += sign * len(grant.cpus)
            self._renew(grant.node)


def _fits_in(shape: Shape, node: Node, taken: list[tuple[float, Grant]]) -> float:
    """In how many seconds a task's part fits a node, if these grants end one after the other."""
    room, in_s = Room(node), 0.0
    for _, grant in taken:
        room.occupy(grant)
    for left_s, grant in sorted(taken, key=lambda one: one[0]):
        if room.count(shape):
            break
        room.give(grant)
        in_s = left_s
    return in_s
