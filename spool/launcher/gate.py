"""gate - what a lane does not tell of its tasks: their tags, and the limits they fall under.

Owns   the look at a task before it is claimed, where that is needed at all; the tokens of limits.
Never  claims or moves a task.
Fails  LeaseLost; DiskFull, OSError from a token's move: nothing was taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from spool.config import Limit
from spool.errors import ManifestError
from spool.launcher.book import Grants
from spool.queue import limits, tasks
from spool.queue import shape as shapes
from spool.queue.layout import State
from spool.queue.limits import Tokens
from spool.queue.manifest import Manifest
from spool.queue.owner import Owner
from spool.queue.shape import Shape

REMEMBERED = 10_000
Limits = tuple[Limit, ...]


class Gate:
    """The gate of one launcher, which looks for tasks with all of `tags`; hosts are its nodes."""

    def __init__(self, owner: Owner, tags: Sequence[str], hosts: Sequence[str]) -> None:
        self.owner, self.tree = owner, owner.tree
        self.tokens = Tokens(owner)
        self.tags = set(tags)
        self.hosts = hosts
        self.held: dict[str, tuple[Limits, list[str]]] = {}
        self._seen: OrderedDict[str, Limits] = OrderedDict()

    @property
    def looks(self) -> bool:
        """Whether tasks must be looked at before they are claimed."""
        return bool(self.tags or self.tokens.limits)

    def may(self, shape: Shape) -> bool:
        """Whether the limits that a lane tells of let another task run."""
        known = self.tokens.limits
        return not known or self._may(limits.of_shape(known, shape))

    def _may(self, found: Limits) -> bool:
        """Whether no limit is reached that holds everywhere, nor one on all of our nodes."""
        wide = [limit for limit in found if not limit.per_node]
        near = [limit for limit in found if limit.per_node]
        if not self.tokens.may(wide):
            return False
        return not near or any(self.tokens.may(near, [host]) for host in self.hosts)

    def suits(self, group: str, task_id: str) -> bool:
        """Whether a READY task bears our tags, and its limits let another one run."""
        known = self.tokens.limits
        if not self.tags and not limits.needs_manifest(known, shapes.parse(group)[0]):
            return True
        path = self.tree.task(State.READY, group, task_id)
        wanted = self._look(path, task_id)
        if wanted is None:
            return not self.tags  # whoever claims it rejects it
        return self.tags <= set(wanted.tags) and self._may(self._seen[task_id])

    def _look(self, path: str, task_id: str) -> Manifest | None:
        """A task's manifest, and its limits kept in mind; None if it cannot be read."""
        try:
            wanted = tasks.load(path, task_id).manifest
        except (OSError, ManifestError):
            return None
        self._seen[task_id] = limits.applying(self.tokens.limits, wanted)
        self._seen.move_to_end(task_id)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return wanted

    def limits_of(self, task_id: str, shape: Shape) -> Limits:
        """The limits that a claimed task falls under."""
        known = self.tokens.limits
        if not known:
            return ()
        if not limits.needs_manifest(known, shape):
            return limits.of_shape(known, shape)
        if task_id not in self._seen:  # the limits are newer than its claim
            self._look(self.owner.claim_path(task_id), task_id)
        return self._seen.get(task_id, limits.of_shape(known, shape))

    def allows(self, found: Limits) -> Callable[[int], bool] | None:
        """Which nodes have not reached a limit of their own; None: all."""
        each = tuple(limit for limit in found if limit.per_node)
        if not each:
            return None
        return lambda number: self.tokens.may(each, [self.hosts[number]])

    def take(self, task_id: str, found: Limits, grants: Grants) -> bool:
        """Take the tokens a task needs; False if there are not all of them now."""
        if not found:
            return True
        self._seen.pop(task_id, None)
        hosts = [self.hosts[grant.node] for grant in grants]
        if not self.tokens.take(found, hosts):
            return False
        self.held[task_id] = (found, hosts)
        return True

    def give(self, task_id: str) -> None:
        """A task has ended: what it held is free for the next."""
        if (held := self.held.pop(task_id, None)) is not None:
            self.tokens.give(*held)
