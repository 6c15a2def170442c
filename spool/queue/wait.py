"""wait - for tasks to reach a final state, by few listings however many they are.

Never  opens a task, but one whose place another took.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from spool.queue import files, kinship, layout, tasks
from spool.queue.layout import State, Tree
from spool.queue.parents import Lookup

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
BLOCKED_EVERY = 5
LOOKED_FOR = {3: 10, 0: 1000}
"""At which of each twenty looks so many are looked for one by one, whether they are still there."""


class Pending:
    """Ids that are not final yet; `look` takes those that became so.

    Whoever took the place of one of them is waited for in its stead, and counted once. ends counts
    by state; blocked are those left that wait in vain, for a parent that failed.
    """

    def __init__(self, tree: Tree, ids: Iterable[str]) -> None:
        self.tree = tree
        self.shards: dict[str, set[str]] = defaultdict(set)
        self.ends: Counter[State] = Counter()
        self.blocked: set[str] = set()
        self._counted: set[str] = set()
        for task_id in ids:
            self.shards[layout.shard_of(task_id)].add(task_id)

    def __len__(self) -> int:
        return sum(map(len, self.shards.values()))

    def look(self) -> int:
        """How many are still not final."""
        failed = files.names(self.tree.state(State.FAILED))
        for shard, ids in list(self.shards.items()):
            groups = [(State.FINISHED, shard), (State.CANCELLED, shard)]
            tail = f"@{shard}"
            groups += [(State.FAILED, group) for group in failed if group.endswith(tail)]
            for state, group in groups:
                found = ids.intersection(files.names(self.tree.group(state, group)))
                ids -= found
                if layout.group_label(group) == layout.REPLACED:
                    found -= self._follow(found)
                self.ends[state] += len(found)
                self._counted |= found
            if not self.shards[shard]:
                del self.shards[shard]
        return len(self)

    def _follow(self, replaced: set[str]) -> set[str]:
        """Wait for those that took the place of others; the others."""
        kin, followed = Lookup(self.tree), set()
        for task_id in replaced:
            if (heir := kin[task_id].id) != task_id:
                followed.add(task_id)
                if heir not in self._counted:
                    self.shards[layout.shard_of(heir)].add(heir)
        return followed

    def gone(self) -> list[str]:
        """Of those left, the ones that are nowhere: removed by somebody."""
        left = [task_id for ids in self.shards.values() for task_id in ids]
        return [task_id for task_id in left if tasks.find(self.tree, task_id) is None]

    def all_blocked(self) -> bool:
        """Whether those left all wait in vain."""
        left = {task_id for ids in self.shards.values() for task_id in ids}
        self.blocked = kinship.blocked(self.tree, left)
        return bool(left) and self.blocked == left

    def forget(self, ids: Iterable[str]) -> None:
        """Wait no longer for these."""
        for task_id in ids:
            self.shards[layout.shard_of(task_id)].discard(task_id)


def wait(
    pending: Pending, timeout_s: float | None, show: Callable[[Pending], None] | None = None
) -> bool:
    """Wait until all are final, gone or blocked; False when the time was up first."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause, looks = FIRST_PAUSE_S, 0
    while pending.look():
        looks += 1
        if len(pending) <= LOOKED_FOR.get(looks % 20, 0):
            pending.forget(pending.gone())
        if looks % BLOCKED_EVERY == 2 and pending.all_blocked():
            return True
        if show:
            show(pending)
        left = pause if deadline is None else min(pause, deadline - time.monotonic())
        if left < 0:
            return False
        time.sleep(left)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    return True
