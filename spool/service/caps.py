"""caps - pure: how much more may be asked for: allocations, nodes, node-hours of the budget.

Owns   the sums over all that is live, by queue and over all; what this decision has asked for.
Never  chooses. What is withdrawn counts until it is gone, and what is running with its whole
       walltime: a cap holds whatever becomes of the allocations.
"""

from __future__ import annotations

import math
from collections import Counter

from spool import units
from spool.service.terms import Live, Policy, Queue, Situation

MOST_AT_ONCE = 10
"""Requests of one decision: should a count be wrong, there is time to see it."""
NO_LIMIT = 2**31


class Caps:
    """What is taken of every cap. Only `take` and `widen` change it."""

    def __init__(self, situation: Situation, policy: Policy) -> None:
        self.policy = policy
        self.queued: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()
        self.asked = 0
        self.committed_node_s = situation.spent_node_s
        costs = {queue.name: queue.cost for queue in policy.queues}
        for one in situation.live:
            self._count(one, costs.get(one.queue, 1.0))

    def _count(self, one: Live, cost: float) -> None:
        (self.running if one.running else self.queued)[one.queue] += 1
        self.nodes[one.queue] += one.nodes
        self.committed_node_s += one.nodes * one.walltime_s * cost

    def take(self, queue: Queue, nodes: int, walltime_s: float) -> None:
        """One more is asked for."""
        self.asked += 1
        self.queued[queue.name] += 1
        self.nodes[queue.name] += nodes
        self.committed_node_s += nodes * walltime_s * queue.cost

    def widen(self, queue: Queue, nodes: int, node_s: float) -> None:
        """What is asked for gets so many nodes and node-seconds more."""
        self.nodes[queue.name] += nodes
        self.committed_node_s += node_s * queue.cost

    def live(self, queue: Queue) -> int:
        """Allocations of a queue, queued and running."""
        return self.queued[queue.name] + self.running[queue.name]

    def slots(self, queue: Queue) -> int:
        """How many more allocations a queue may be asked for."""
        free = [NO_LIMIT]
        if queue.max_queued:
            free.append(queue.max_queued - self.queued[queue.name])
        if queue.max_running:  # what is queued may start at any moment
            free.append(queue.max_running - self.live(queue))
        if self.policy.max_queued:
            free.append(self.policy.max_queued - self.queued.total())
        return max(0, min(free))

    def nodes_left(self, queue: Queue) -> int:
        """How many nodes more may be asked for of a queue."""
        free = [NO_LIMIT]
        if queue.max_live_nodes:
            free.append(queue.max_live_nodes - self.nodes[queue.name])
        if self.policy.max_live_nodes:
            free.append(self.policy.max_live_nodes - self.nodes.total())
        return max(0, min(free))

    @property
    def enough(self) -> str:
        """Why this decision asks for nothing more, "" if it may."""
        full = self.asked >= MOST_AT_ONCE
        return f"{MOST_AT_ONCE} requests at once are enough" if full else ""

    @property
    def budget_left_node_s(self) -> float:
        """Of the budget, were all that is live to run to its end; inf where there is none."""
        if self.policy.budget_node_s is None:
            return math.inf
        return self.policy.budget_node_s - self.committed_node_s

    def affords(self, queue: Queue, walltime_s: float) -> int:
        """The nodes that the budget has for an allocation of this length."""
        left = self.budget_left_node_s
        if left == math.inf or not queue.cost:
            return NO_LIMIT
        return max(0, int(left / (walltime_s * queue.cost) + 1e-9))

    def why_closed(self, queue: Queue) -> str:
        """Which cap leaves no slot of a queue, "" if there is one."""
        if self.slots(queue):
            return ""
        named, queued = named_queue(queue), self.queued[queue.name]
        if queue.max_queued and queued >= queue.max_queued:
            return f"{named}: {queued} of at most {queue.max_queued} allocations wait already"
        if queue.max_running and self.live(queue) >= queue.max_running:
            return f"{named}: {self.live(queue)} of at most {queue.max_running} are live already"
        total = self.queued.total()
        return f"{total} of at most {self.policy.max_queued} allocations wait in all queues"

    def why_narrow(self, queue: Queue, nodes: int) -> str:
        """Which cap leaves fewer nodes than these, in a sentence."""
        named, mine = named_queue(queue), self.nodes[queue.name]
        if queue.max_live_nodes and mine + nodes > queue.max_live_nodes:
            return (
                f"{named}: {mine:,} of at most {units.count(queue.max_live_nodes, 'node')} are live"
            )
        most = units.count(self.policy.max_live_nodes, "node")
        return f"{self.nodes.total():,} of at most {most} are live in all queues"


def named_queue(queue: Queue) -> str:
    """A queue in a sentence."""
    return f"queue {queue.name}" if queue.name else "the default queue"
