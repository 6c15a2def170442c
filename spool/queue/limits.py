"""limits - how many tasks of a feature, tag, workflow or app may run at once, on all nodes.

A token is an empty file: limits/NAME/NUMBER while it is free, launchers/OWNER/tokens/NAME.NUMBER
while an owner has it. A running task has a token of each limit it falls under.
Owns   limits/ and launchers/OWNER/tokens/: tokens made, taken, given and brought back, by rename.
Never  removes a token that was ever free, nor makes its number again: what lies above the count
       that spool.toml allows is passed over, and is there when the count is raised again.
Fails  LeaseLost: our tokens were brought back by a taker. DiskFull, OSError: try again.
"""

from __future__ import annotations

import errno
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from spool import config
from spool.config import Limit
from spool.errors import LeaseLost, SpoolError
from spool.queue import files, layout, shape
from spool.queue.faults import explained
from spool.queue.layout import KEY, LIMITS, SIZE, Tree
from spool.queue.manifest import Manifest
from spool.queue.owner import Owner
from spool.queue.shape import Shape

REREAD_S = 10.0  # so soon a running launcher sees what was changed in spool.toml
PAUSE_S = 0.2

# -- pure: which limits a task falls under -------------------------------------------------------


def applying(limits: Iterable[Limit], manifest: Manifest) -> tuple[Limit, ...]:
    """The limits a task falls under."""
    return tuple(limit for limit in limits if limit.name in _words(limit.kind, manifest))


def _words(kind: str, manifest: Manifest) -> Sequence[str]:
    if kind == "feature":
        return manifest.requires
    if kind == "tag":
        return manifest.tags
    return (manifest.workflow,) if kind == "workflow" else (manifest.app,)


def of_shape(limits: Iterable[Limit], lane: Shape) -> tuple[Limit, ...]:
    """The limits that every task of this shape surely falls under, by what its lane says."""
    features = shape.features_of(lane.features) or frozenset()
    return tuple(
        limit
        for limit in limits
        if (limit.kind == "feature" and limit.name in features)
        or (limit.kind == "workflow" and lane.workflow == shape.name_token(limit.name))
    )


def needs_manifest(limits: Iterable[Limit], lane: Shape | None = None) -> bool:
    """Whether only its manifest tells all the limits of a task; of one in this lane, if given."""
    kinds = {limit.kind for limit in limits}
    hashed = lane is not None and (
        ("feature" in kinds and lane.features.startswith("~"))
        or ("workflow" in kinds and lane.workflow.startswith("~"))
    )
    return hashed or not kinds.isdisjoint(("tag", "app"))


# -- the tokens of one owner ---------------------------------------------------------------------


@dataclass(slots=True)
class Look:
    """What a limit's folder held at our last look: the count in force, free numbers not tried."""

    count: int
    free: list[int]


class Tokens:
    """The tokens of one owner: `take` before a start, `give` after the end, `rest` each second.

    limits are those in force: a change of spool.toml shows in them at some later `rest`.
    """

    def __init__(self, owner: Owner, clock: Callable[[], float] = time.monotonic) -> None:
        self.owner = owner
        self.tree = owner.tree
        self.clock = clock
        self.limits = owner.settings.limits
        parts = layout.parse_owner(owner.name)
        self.node = parts.host if parts else "host"
        self._used: dict[str, list[int]] = {}
        self._spare: dict[str, list[int]] = {}
        self._looks: dict[str, Look] = {}
        self._made: dict[str, int] = {}
        self._read_at = clock()

    @property
    def held(self) -> Counter[str]:
        """How many tokens our tasks use, by the name of the limit's folder."""
        return +Counter({name: len(numbers) for name, numbers in self._used.items()})

    def may(self, limits: Iterable[Limit], nodes: Iterable[str] = ()) -> bool:
        """Whether `take` is worth a try, by what we saw since the last `rest`; touches no disk."""
        return not any(self._exhausted(name) for name in self._named(limits, nodes))

    def take(self, limits: Iterable[Limit], nodes: Iterable[str] = ()) -> bool:
        """A token of each limit, for a task on these nodes (by default ours); all or none.

        Raises LeaseLost, DiskFull, OSError; then too none is kept.
        """
        named = self._named(limits, nodes)
        if any(self._exhausted(name) for name in named):
            return False
        taken: list[str] = []
        try:
            for name, limit in named.items():
                if not self._take_one(name, limit):
                    break
                taken.append(name)
        finally:
            if len(taken) < len(named):
                self._give(taken, keep=False)  # others may be able to use them at once
        return len(taken) == len(named)

    def give(self, limits: Iterable[Limit], nodes: Iterable[str] = ()) -> None:
        """The tokens of a task that has ended; some stay with us for the next until we rest."""
        self._give(self._named(limits, nodes), keep=True)

    def rest(self) -> None:
        """Give back what no task uses, look anew from now on, and read spool.toml when due."""
        self._looks.clear()
        for name in self._spare:
            self._put_spares_back(name)
        if self.clock() - self._read_at >= REREAD_S:
            self._read_at = self.clock()
            with suppress(SpoolError):  # somebody is just writing it: what we know still holds
                self.limits = config.load(self.tree.root).limits

    def _named(self, limits: Iterable[Limit], nodes: Iterable[str]) -> dict[str, Limit]:
        named: dict[str, Limit] = {}
        here = tuple(nodes) or (self.node,)
        for limit in limits:
            for node in here if limit.per_node else ("",):
                named[layout.limit_name(limit.kind, limit.name, node)] = limit
        return named

    def _exhausted(self, name: str) -> bool:
        look = self._looks.get(name)
        return look is not None and not look.free and not self._spare.get(name)

    def _take_one(self, name: str, limit: Limit) -> bool:
        look = self._looks.get(name) or self._look(name, limit)
        number = self._reused(name, look) or self._pulled(name, look)
        if number:
            self._used.setdefault(name, []).append(number)
        return number > 0

    def _reused(self, name: str, look: Look) -> int:
        spare = self._spare.get(name)
        return spare.pop() if spare and spare[-1] <= look.count else 0

    def _pulled(self, name: str, look: Look) -> int:
        while look.free:
            number = look.free.pop()
            if _moved(self.tree.limit(name, str(number)), self._mine(name, number)):
                return number
        return 0

    def _mine(self, name: str, tail: object) -> str:
        return self.tree.tokens(self.owner.name, name, str(tail))

    def _give(self, names: Collection[str], *, keep: bool) -> None:
        for name in names:  # all of them first: where the disk fails, `rest` tries again
            self._spare.setdefault(name, []).append(self._used[name].pop())
        for name in names:
            look = self._looks.get(name)
            # Without a look since the last rest, we do not know what count is in force now.
            if not keep or look is None or self._spare[name][-1] > look.count:
                self._put_spares_back(name)

    def _put_spares_back(self, name: str) -> None:
        spare, look = self._spare.get(name, []), self._looks.get(name)
        while spare:
            _put_back(self.tree, self._mine(name, spare[-1]), name, str(spare[-1]))
            number = spare.pop()
            if look and number <= look.count:
                look.free.append(number)

    # -- looking, making, growing

    def _look(self, name: str, limit: Limit) -> Look:
        """List a limit's free tokens, made first where there are too few."""
        self._open()
        count = next((known.count for known in self.limits if known.key == limit.key), limit.count)
        if count > self._made.get(name, 0):
            self._provide(name, limit, count)
        found = files.names(self.tree.limit(name))
        if not found:
            self._made.pop(name, None)  # it is never empty: somebody has removed it
        free = [int(tail) for tail in found if tail.isdecimal() and int(tail) <= count]
        random.shuffle(free)
        self._looks[name] = look = Look(count, free)
        return look

    def _open(self) -> None:
        """Make the folder for our tokens; a taker closes it, and then we must not make it anew."""
        if files.make_folder(self.tree.tokens(self.owner.name)) and not self.owner.holds_lease():
            raise LeaseLost(f"{self.owner.claims}: is gone; another process has taken over")

    def _provide(self, name: str, limit: Limit, count: int) -> None:
        made = _read_size(self.tree.limit(name, SIZE))
        if made is None and not files.holds(self.tree.limit(name)):
            self._make(name, limit, count)
        elif made is None or made < count:
            self._grow(name, count)
        else:
            self._made[name] = made

    def _make(self, name: str, limit: Limit, count: int) -> None:
        """Build the limit's folder aside and rename it into place, all tokens at once."""
        nest = self.tree.tmp(self.owner.name.partition(".")[2])
        try:
            files.make_folder(nest)
            files.write_new(f"{nest}/{KEY}", f"{limit.key}\n".encode())
            for number in range(1, count + 1):
                files.write_new(f"{nest}/{number}", b"")
            files.write_new(f"{nest}/{SIZE}", b"%d\n" % count, sync=True)
            files.sync(nest)
            files.move(nest, self.tree.limit(name))
        except FileExistsError:
            pass  # another was faster
        finally:
            files.remove_tree(nest)
        files.sync(self.tree.folder(LIMITS))

    def _grow(self, name: str, count: int) -> None:
        """Add numbers up to count. Whoever has SIZE is alone at it; if another has, let him."""
        mine = self._mine(name, SIZE)
        if not _moved(self.tree.limit(name, SIZE), mine):
            return
        made = _read_size(mine)
        new = range(0) if made is None else range(made + 1, count + 1)
        try:
            for number in new:
                with suppress(FileExistsError):  # a full disk stopped us here before
                    files.write_new(self._mine(name, number), b"")
            if new:
                files.sync(self.tree.tokens(self.owner.name))
                # From here on they count, whoever brings them back; until here, they never were.
                files.replace(mine, b"%d\n" % count, sync=True)
        except FileNotFoundError:
            raise LeaseLost(f"{self.owner.claims}: is gone; another has our tokens") from None
        self._spare.setdefault(name, []).extend(new)
        self._put_spares_back(name)
        _put_back(self.tree, mine, name, SIZE)


def _moved(source: str, target: str) -> bool:
    """Rename to a name that nobody else uses; False if source is gone: lost the race for it."""
    try:
        files.rename_file(source, target)
    except FileNotFoundError:
        return files.holds(target)
    except OSError as fault:
        if not files.holds(target):
            raise explained(fault, target) from fault
    return True


def _put_back(tree: Tree, source: str, name: str, tail: str) -> None:
    """Rename a token, or SIZE, back to its limit; what is gone was brought back already."""
    target = tree.limit(name, tail)
    try:
        files.rename_file(source, target)
    except FileNotFoundError:
        if not files.holds(tree.limit(name)):
            files.unlink(source)  # a person removed the limit: it will be made anew, and whole
    except OSError as fault:
        raise explained(fault, target) from fault


def _read_size(path: str) -> int | None:
    """How many tokens were made; None if SIZE is not there, or damaged."""
    raw = (files.read(path, 64) or b"").strip()
    return int(raw) if raw.isdigit() else None


# -- dead owners ---------------------------------------------------------------------------------


def bring_back(tree: Tree, owner: str) -> None:
    """Free all tokens of an owner that is dead or at its end; any number of takers may race.

    Its folder is renamed first, so that an owner that was only thought dead can neither take nor
    make another. Numbers above its SIZE were being made and never were anybody's.
    """
    _close(tree, owner)
    found = files.names(tree.tokens_taken(owner))
    sizes = {name for name, tail in map(layout.parse_token, found) if tail == SIZE}
    made = {name: _read_size(tree.tokens_taken(owner, f"{name}.{SIZE}")) for name in sizes}
    for token in sorted(found, key=lambda token: token.endswith(f".{SIZE}")):
        name, tail = layout.parse_token(token)
        most = made.get(name)
        half_made = tail.isdecimal() and most is not None and int(tail) > most
        if half_made or not (tail.isdecimal() or tail == SIZE):
            files.unlink(tree.tokens_taken(owner, token))
        else:
            _put_back(tree, tree.tokens_taken(owner, token), name, tail)
    files.remove_folder(tree.tokens_taken(owner))


def _close(tree: Tree, owner: str) -> None:
    try:
        files.rename_file(tree.tokens(owner), tree.tokens_taken(owner))
    except OSError as fault:
        if fault.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise explained(fault, tree.tokens(owner)) from fault


# -- who has them, for people --------------------------------------------------------------------


class Use(NamedTuple):
    """A limit at one look: on which node, if it is one for each; how many of its tokens are free,
    and who has the others, by owner."""

    limit: Limit
    node: str
    free: int
    owners: dict[str, int]

    @property
    def reached(self) -> bool:
        """Whether not one more may run now."""
        return self.free <= 0


def use(tree: Tree, limit: Limit, owners: Collection[str]) -> list[Use]:
    """How a limit stands: once, or for each node where it was ever met. owners may hold tokens."""
    whole = layout.limit_name(limit.kind, limit.name)
    if not limit.per_node:
        return [_use(tree, limit, whole, "", owners)]
    met = (name for name in files.names(tree.folder(LIMITS)) if name.startswith(f"{whole}@"))
    return [_use(tree, limit, name, name[len(whole) + 1 :], owners) for name in sorted(met)]


def _use(tree: Tree, limit: Limit, name: str, node: str, owners: Collection[str]) -> Use:
    tails = files.names(tree.limit(name))
    free = sum(tail.isdecimal() and int(tail) <= limit.count for tail in tails)
    held: dict[str, int] = {}
    for owner in owners:
        for folder in (tree.tokens(owner), tree.tokens_taken(owner)):
            tokens = (layout.parse_token(token) for token in files.names(folder))
            count = sum(told == name and tail.isdecimal() for told, tail in tokens)
            if count:
                held[owner] = held.get(owner, 0) + count
    made = _read_size(tree.limit(name, SIZE)) or 0
    return Use(limit, node, free + max(0, limit.count - made), held)


# -- what a person or a power cut has removed ----------------------------------------------------


def lost(tree: Tree) -> list[str]:
    """Tokens (LIMIT.NUMBER, LIMIT.size) that are nowhere, by two looks that agree."""
    if not (missing := _missing(tree)):
        return []
    time.sleep(PAUSE_S)
    return sorted(missing & _missing(tree))


def restore(tree: Tree) -> list[str]:
    """Make what is lost again; what was made."""
    missing = lost(tree)
    for token in missing:
        name, tail = layout.parse_token(token)
        with suppress(FileExistsError, FileNotFoundError):
            if tail == SIZE:
                files.replace(tree.limit(name, SIZE), b"%d\n" % _highest(tree, name), sync=True)
            else:
                files.write_new(tree.limit(name, tail), b"")
    return missing


def _missing(tree: Tree) -> set[str]:
    missing: set[str] = set()
    for name in files.names(tree.folder(LIMITS)):
        there = _there(tree, name)
        made = _read_size(there.get(SIZE, ""))
        if made is None:
            missing.add(f"{name}.{SIZE}")
        else:
            missing.update(f"{name}.{k}" for k in range(1, made + 1) if str(k) not in there)
    return missing


def _there(tree: Tree, name: str) -> dict[str, str]:
    """Where the tokens of a limit lie, by number or SIZE; owners first, then free, then owners."""
    out = _out(tree, name)
    free = {tail: tree.limit(name, tail) for tail in files.names(tree.limit(name))}
    return {**out, **free, **_out(tree, name)}


def _out(tree: Tree, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for owner in files.names(tree.folder("launchers")):
        for folder in (tree.tokens(owner), tree.tokens_taken(owner)):
            for token in files.names(folder):
                limit, tail = layout.parse_token(token)
                if limit == name:
                    found[tail] = f"{folder}/{token}"
    return found


def _highest(tree: Tree, name: str) -> int:
    return max((int(tail) for tail in _there(tree, name) if tail.isdecimal()), default=0)
