"""terms - the words the service's modules speak to each other in: pure data, no behaviour.

Owns   demand (Need), what a node is (NodeShape), a queue's rules (Queue, Band), an allocation as
       sizing sees it (Live), idle nodes (Window), and what sizing answers (Request, Withdrawal).
"""

from __future__ import annotations

import msgspec

from spool.queue.shape import Shape


class NodeShape(msgspec.Struct, frozen=True):
    """One node of a queue; 0 is unknown, and then an allocation is asked for to find out."""

    cores: int = 0
    gpus: int = 0
    memory_mb: int = 0


class Band(msgspec.Struct, frozen=True):
    """What a queue grants: allocations of these many nodes last at most so long, in seconds."""

    min_nodes: int
    max_nodes: int
    max_s: float


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One queue (PBS, LSF), partition (Slurm, Flux), and what we may ask of it.

    bands are in order of their nodes and do not overlap; 0 for a maximum is: no limit.
    """

    name: str  # the batch system's own; "" is its default queue
    bands: tuple[Band, ...]
    min_s: float = 300.0  # the shortest walltime worth asking for
    node: NodeShape = NodeShape()
    features: frozenset[str] = frozenset()  # what its nodes have of what tasks may require
    max_queued: int = 1  # allocations waiting at once
    max_running: int = 0  # allocations running at once
    max_live_nodes: int = 0  # nodes of all queued and running allocations
    cost: float = 1.0  # node-hours charged for an hour of one node


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What sizing has to respect; times in seconds, the budget in node-seconds as charged."""

    queues: tuple[Queue, ...]
    max_queued: int = 0  # over all queues; 0: no limit
    max_live_nodes: int = 0
    budget_node_s: float | None = None  # the hard cap over all allocations ever; None: none
    padding_s: float = 300.0  # of a walltime, for start and drain
    default_task_s: float = 600.0  # the estimate for a task that gives none
    min_utilisation: float = 0.7  # what is asked for is to be busy at least so much
    queue_wait_s: float = 86400.0  # our own allocation that waited longer is withdrawn
    settle_s: float = 60.0  # unneeded for so long before a queued allocation is withdrawn
    within_s: float = 7200.0  # so soon after a start all work is to have begun that nodes allow
    patience_s: float = 3600.0  # so long may work wait for company where it alone would waste nodes


class Need(msgspec.Struct, frozen=True):
    """READY work of one shape: `count` tasks, or elements where the shape is of a chunk.

    `started` counts no one: running tasks are no demand. A Need is what a lane's name says, its
    shards added up. oldest_s is the age of its oldest hour.
    """

    shape: Shape
    count: int
    oldest_s: float = 0.0


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """One of our allocations, queued or running."""

    name: str
    queue: str
    nodes: int
    walltime_s: float
    running: bool = False
    left_s: float = 0.0  # running: until it ends; queued: its walltime
    waited_s: float = 0.0  # queued: since it was asked for
    unneeded_s: float = 0.0  # queued: for how long sizing has called it unneeded
    busy: float = 0.0  # running: the share of its nodes' cores that run tasks now, 0 to 1
    frees_s: float = 0.0  # running: until its busy cores are free again, on average; 0: unknown
    draining: bool = False  # it takes no more tasks
    selects: str = ""  # "" any task; else only some (asked for by hand): serves no demand here


class Window(msgspec.Struct, frozen=True):
    """So many nodes are idle for so long: what would start at once.

    The windows of one queue share no node, and a request is sized to fit into one of them.
    """

    nodes: int
    seconds: float


class Trouble(msgspec.Struct, frozen=True):
    """Why a queue is left alone for now: a refusal, a failed start, a controller that is down."""

    cause: str
    until_s: float  # from now


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision rests on, at one moment.

    live is all that our own records hold open, whether or not the batch system shows it just now:
    what is missing here is asked for again.
    """

    needs: tuple[Need, ...]
    live: tuple[Live, ...]
    windows: dict[str, tuple[Window, ...]] = {}  # by queue; a queue that is missing is unknown
    spent_node_s: float = 0.0  # charged by allocations that are over
    troubles: dict[str, Trouble] = {}  # by queue; "*" is for all of them


class Request(msgspec.Struct, frozen=True):
    """An allocation to ask for, and why in one sentence."""

    queue: str
    nodes: int
    walltime_s: float
    why: str

    @property
    def node_s(self) -> float:
        """The node-seconds that it is charged for at most."""
        return self.nodes * self.walltime_s


class Withdrawal(msgspec.Struct, frozen=True):
    """A queued allocation of ours to cancel, and why in one sentence."""

    name: str
    why: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What sizing answers. `why` always says something, above all where nothing is asked for."""

    requests: tuple[Request, ...] = ()
    withdrawals: tuple[Withdrawal, ...] = ()
    why: tuple[str, ...] = ()
    unfit: tuple[tuple[str, str], ...] = ()  # shapes (as lanes print them) no queue can ever serve
    unneeded: tuple[str, ...] = ()  # queued allocations nothing needs: withdrawn once that lasts
    figures: dict[str, float] = {}  # node-hours of backlog, to be served, asked for …
