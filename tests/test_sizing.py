"""What is asked for, cancelled and said: a table of situations, and what holds in all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from spool import units
from spool.queue import shape as shapes
from spool.service.sizing import decide
from spool.service.terms import (
    Band,
    Decision,
    Live,
    Need,
    NodeShape,
    Policy,
    Queue,
    Situation,
    Trouble,
    Window,
)

M, H, D = 60.0, 3600.0, 86400.0
NODE = NodeShape(cores=16, gpus=0, memory_mb=64 * 1024)


def queue(name: str = "main", **changes: Any) -> Queue:
    """Nodes of 16 cores, up to 32 of them for up to a day."""
    given: dict[str, Any] = {"bands": (Band(1, 32, D),), "node": NODE, "max_queued": 4}
    return Queue(name=name, **{**given, **changes})


def policy(*queues: Queue, **changes: Any) -> Policy:
    """The plain cluster, or these queues."""
    given: dict[str, Any] = {"within_s": 3600.0, "min_utilisation": 0.5}
    return Policy(queues=queues or (queue(),), **{**given, **changes})


def picky(band: Band, queued: int = 0, **changes: Any) -> Policy:
    """One queue of one band, whose nodes are to be used well."""
    return policy(queue(bands=(band,), max_queued=queued), **{"min_utilisation": 0.9, **changes})


THETA_BANDS = (
    Band(128, 255, 3 * H),
    Band(256, 383, 6 * H),
    Band(384, 639, 9 * H),
    Band(640, 801, 12 * H),
    Band(802, 4392, D),
)
KNL = NodeShape(cores=64, memory_mb=192 * 1024)
DEBUG = Queue(name="debug", bands=(Band(1, 16, H),), node=KNL, max_queued=1)
DEFAULT = Queue(name="default", bands=THETA_BANDS, node=KNL, max_queued=20)
THETA = policy(DEBUG, DEFAULT)
GPU = NodeShape(cores=64, gpus=4, memory_mb=256 * 1024)
GPUS = queue("gpus", node=GPU, features=frozenset({"a100"}), bands=(Band(1, 8, 12 * H),))
BOTH = policy(queue(), GPUS)

FOURS = queue(node=NodeShape(cores=4, gpus=2), bands=(Band(4, 4, 20 * M),), max_queued=0)
TWO = (Band(1, 2, 20 * M),)
EIGHT = Band(8, 12, 2 * H)
NARROW = (Band(1, 1, 20 * M), Band(2, 2, 20 * M), Band(3, 5, 20 * M))

LAZY = policy(queue(min_s=30 * M))
UNSEEN = policy(queue(node=NodeShape()))
SMALL = policy(queue(max_queued=1, bands=(Band(1, 2, H + 5 * M),)))
WIDE_NODES = NodeShape(cores=16, gpus=4)
WIDE = policy(queue(), queue("wide", node=WIDE_NODES, cost=2.0, bands=(Band(4, 40, 4 * H),)))
DEAR = policy(queue("dear", cost=2.0), queue())

Work = dict[str, int | tuple[int, float]]
"""Shapes as lanes print them: how many tasks, or how many and how old the oldest is."""


def needs(work: Work) -> tuple[Need, ...]:
    found = []
    for text, given in work.items():
        count, age_s = given if isinstance(given, tuple) else (given, 0.0)
        found.append(Need(shapes.read(text), count, age_s))
    return tuple(found)


def live(name: str = "a", nodes: int = 1, walltime: float = H, **changes: Any) -> Live:
    """One of our allocations, queued unless it is said to run."""
    given: dict[str, Any] = {"queue": "main", "left_s": walltime}
    return Live(name=name, nodes=nodes, walltime_s=walltime, **{**given, **changes})


def situation(work: Work, *allocations: Live, **changes: Any) -> Situation:
    return Situation(needs=needs(work), live=allocations, **changes)


def windows(*found: tuple[int, float]) -> dict[str, Any]:
    """Idle nodes of the plain cluster, and for how long."""
    return {"windows": {"main": tuple(Window(*one) for one in found)}}


@dataclass(frozen=True)
class Case:
    """asks are requests as "QUEUE NODES x WALLTIME"; says are parts of what is said, in any order;
    unfit are shapes that no queue can serve, with a part of the reason."""

    name: str
    work: Work
    asks: list[str] = field(default_factory=list)
    policy: Policy = field(default_factory=policy)
    live: tuple[Live, ...] = ()
    says: tuple[str, ...] = ()
    cancels: tuple[str, ...] = ()
    unneeded: tuple[str, ...] = ()
    unfit: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def asked(decision: Decision) -> list[str]:
    return [
        f"{one.queue} {one.nodes} x {units.print_duration(one.walltime_s)}"
        for one in decision.requests
    ]


CASES = [
    # -- nothing to do ---------------------------------------------------------------------------
    Case("nothing waits", {}, says=("nothing waits",)),
    Case("a lane without tasks is nothing", {"c1.t1h": 0}, says=("nothing waits",)),
    Case("stagers' work is not ours", {"prepare.c1": 50, "close.c1": 9}, says=("nothing waits",)),
    Case("no queue at all", {"c1": 3}, policy=Policy(queues=()), unfit={"c1": "no queue to ask"}),
    # -- how much --------------------------------------------------------------------------------
    Case("a second of work gets a node for minutes", {"c1.t1s": 1}, ["main 1 x 6m"]),
    Case("a task that says nothing gets the default", {"c1": 1}, ["main 1 x 15m"]),
    Case(
        "a task that says nothing fits a short queue",
        {"c1": 1},
        ["main 1 x 10m"],
        policy(queue(bands=(Band(1, 4, 10 * M),))),
    ),
    Case("no walltime is under the queue's least", {"c1.t1m": 1}, ["main 1 x 30m"], LAZY),
    Case("what fits on a node side by side", {"c1.t1h": 16}, ["main 1 x 1h5m"]),
    Case("one more is no second node but a second hour", {"c1.t1h": 17}, ["main 1 x 2h5m"]),
    Case("a node well used is a node", {"c1.t1h": 28}, ["main 1 x 1h5m"] * 2),
    Case("twenty nodes full, in two pieces", {"c16.t1h": 20}, ["main 10 x 1h5m"] * 2),
    Case("many short tasks are few nodes", {"c1.t1m": 960}, ["main 1 x 1h5m"]),
    Case("few nodes make whole rounds", {"c16.t45m": 64}, ["main 16 x 1h35m"] * 2),
    Case("ten hours of one core", {"c1.t10h": 1}, ["main 1 x 10h5m"]),
    Case("cores are per rank", {"r4.c4.t1h": 2}, ["main 1 x 1h5m"] * 2),
    Case("at most two of them on a node", {"c1.k2.t1h": 8}, ["main 2 x 1h5m"] * 2),
    Case("memory is what is scarce", {"c1.m32G.t1h": 8}, ["main 2 x 1h5m"] * 2),
    Case("GPUs are what is scarce", {"c1.g1.t1h": 8}, ["gpus 1 x 1h5m"] * 2, BOTH),
    Case("shapes share nodes", {"c8.t1h": 1, "c1.t1h": 8}, ["main 1 x 1h5m"]),
    Case(
        "the short do not wait for the long",
        {"c16.t2h": 2, "c1.t10m": 96},
        ["main 1 x 1h5m", "main 2 x 2h5m"],
    ),
    Case("elements count one by one", {"c1.e100.t1m": 9600}, ["main 5 x 1h5m"] * 2),
    Case("one chunk runs on one node", {"c4.e100.t1h": 100}, ["main 1 x 1d"]),
    # -- wide tasks ------------------------------------------------------------------------------
    Case("a wide task", {"n8.c16.t1h": 1}, ["main 8 x 1h5m"]),
    Case("as wide as the queue", {"n32.c16.t1h": 1}, ["main 32 x 1h5m"]),
    Case("narrow work runs beside it", {"n8.c8.t1h": 1, "c1.t30m": 128}, ["main 8 x 1h5m"]),
    Case("two wide tasks share nodes", {"n8.c8.t1h": 2}, ["main 8 x 1h5m"]),
    Case(
        "a size that wide tasks fill is found beneath a widest that they do not",
        {"n8.c16.t20m": 140},
        ["main 56 x 1h45m"] * 4,
        picky(Band(29, 63, 2 * H), within_s=2 * H),
    ),
    Case(
        "also where several of them share it",
        {"n40.c8.t2h": 12},
        ["main 60 x 2h5m"] * 4,
        picky(Band(54, 72, D), within_s=2 * H),
    ),
    Case(
        "and in rounds, if it fills but some",
        {"n3.c8.k2.t10m": 17},
        ["main 5 x 55m"],
        picky(Band(4, 5, 2 * H), within_s=2 * H),
        says=("2 tasks (n3.c8.k2.t10m): too little for 4 nodes",),
    ),
    Case(
        "what is in the way of the first of many is not in the way of all",
        {"c16.t10m": (4, 2000.0), "n8.c16.t1h": 20},
        ["main 24 x 1h5m"] * 7,
        picky(Band(10, 40, H + 5 * M)),
        says=("6 tasks (c16.t10m, n8.c16.t1h) keep 24 nodes 69% busy",),
    ),
    Case("an empty node beside a wide task is its own", {"n8.c1.t1h": 1}, ["main 8 x 1h5m"]),
    # -- bands -----------------------------------------------------------------------------------
    Case("little work goes to the debug queue", {"c1.t10m": 100}, ["debug 1 x 25m"], THETA),
    Case("128 nodes full", {"c64.t20m": 128}, ["default 128 x 25m"], THETA),
    Case("five hours need 256 nodes", {"c64.t5h": 300}, ["default 300 x 5h5m"], THETA),
    Case("wide and long", {"n200.c64.t5h": 1}, ["default 256 x 5h5m"], THETA),
    Case(
        "a remainder that must wait keeps nothing else back",
        {"c1.g1": 3, "c1": 65},
        ["main 4 x 15m"] * 4,
        policy(FOURS, min_utilisation=0.9),
        says=("too little for 4 nodes",),
    ),
    Case(
        "but need not wait where all else that is asked for makes up for it",
        {"c1.g1": 3, "c1": 72},
        ["main 4 x 15m"] * 5,
        policy(FOURS, min_utilisation=0.9),
    ),
    Case(
        "nor where it would hardly be used, as long as all together are",
        {"c16.t1h": 80, "c1.g1.t1h": 2},
        [*["main 32 x 1h5m"] * 2, "main 16 x 1h5m", "wide 4 x 1h5m"],
        WIDE,
    ),
    Case(
        "but waits where it would be cancelled for want of use",
        {"c16.t1h": 80, "c1.g1.t1h": 1},
        [*["main 32 x 1h5m"] * 2, "main 16 x 1h5m"],
        WIDE,
        says=("too little for 4 nodes of queue wide",),
    ),
    Case(
        "of what fills no whole allocation the rounds that are full are asked for",
        {"c16.t1m": 21},
        ["main 4 x 10m"],
        policy(queue(bands=(Band(4, 8, D),)), min_utilisation=0.95),
        says=("1 task (c16.t1m): too little for 4 nodes",),
    ),
    Case(
        "what is wide and fills its nodes is asked for beside what does not",
        {"n3.c16": 2, "c1": 12},
        ["main 3 x 15m"] * 2 + ["main 1 x 15m"],
        policy(*(queue(name, bands=NARROW) for name in ("main", "b", "c")), min_utilisation=0.9),
    ),
    Case(
        "a remainder takes a node more of what is asked for",
        {"c16.t30m": 25},
        ["main 9 x 1h35m"],
        picky(EIGHT, min_utilisation=0.7),
        says=("25 tasks (c16.t30m) keep 9 nodes 93% busy",),
    ),
    Case(
        "or a round more where it is as wide as it may be",
        {"c16.t10m": 73},
        ["main 12 x 1h15m"],
        picky(EIGHT, min_utilisation=0.7),
    ),
    Case(
        "but not of what would start at once",
        {"c16.t30m": 9},
        ["main 8 x 35m"],
        picky(EIGHT, queued=1, min_utilisation=0.5),
        more=windows((8, H)),
    ),
    Case(
        "nor where the nodes are capped",
        {"c16.t30m": 25},
        ["main 8 x 1h35m"],
        picky(EIGHT, min_utilisation=0.7, max_live_nodes=8),
    ),
    Case(
        "nor past the budget",
        {"c16.t30m": 25},
        ["main 8 x 1h35m"],
        picky(EIGHT, min_utilisation=0.7, budget_node_s=8 * 95 * M),
    ),
    Case("too little for 128 nodes waits", {"c64.t2h": 3}, policy=THETA, says=("too little",)),
    Case("but not for ever", {"c64.t2h": (3, 4000)}, ["default 128 x 2h5m"], THETA),
    Case("nor where a day is needed", {"c64.t20h": (9, 4000)}, ["default 802 x 20h5m"], THETA),
    Case(
        "a long band is not for short work",
        {"c64.t5h": 256, "c64.t10m": 768},
        ["default 128 x 1h5m", "default 256 x 5h5m"],
        THETA,
    ),
    Case(
        "a band that fits wins over a wider one",
        {"c64.t1h": 200},
        ["default 200 x 1h5m"],
        THETA,
    ),
    # -- caps ------------------------------------------------------------------------------------
    Case("one slot: it grows", {"c16.t30m": 9}, ["main 9 x 35m"], picky(EIGHT, queued=1)),
    Case("one slot: all in one", {"c16.t1h": 20}, ["main 20 x 1h5m"], policy(queue(max_queued=1))),
    Case(
        "no slot",
        {"c16.t1h": 20},
        policy=policy(queue(max_queued=1)),
        live=(live(nodes=2, walltime=2 * H),),
        says=("1 of at most 1 allocations wait already",),
    ),
    Case(
        "no slot in any queue",
        {"c16.t1h": 20},
        policy=policy(max_queued=1),
        live=(live(nodes=2, walltime=2 * H),),
        says=("wait in all queues",),
    ),
    Case(
        "what is queued may run too, so it counts as running",
        {"c16.t1h": 20},
        policy=policy(queue(max_running=1)),
        live=(live(nodes=2, running=True, busy=1.0),),
        says=("1 of at most 1 are live already",),
    ),
    Case(
        "few nodes are asked for longer",
        {"c16.t10m": 60},
        ["main 4 x 2h35m"],
        policy(max_live_nodes=4),
    ),
    Case(
        "nodes left of a queue",
        {"c16.t1h": 20},
        ["main 5 x 4h5m"],
        policy(queue(max_live_nodes=8)),
        live=(live(nodes=3, running=True, busy=1.0),),
    ),
    Case(
        "no nodes left",
        {"c16.t1h": 20},
        policy=policy(max_live_nodes=3),
        live=(live(nodes=3, running=True, busy=1.0, frees_s=H),),
        says=("3 of at most 3 nodes are live in all queues",),
    ),
    Case(
        "a budget for two",
        {"c16.t1h": 20},
        ["main 2 x 1h5m"],
        policy(budget_node_s=2.2 * H),
        says=("the budget has 0.0 node-hours of 2.2 node-hours left",),
    ),
    Case(
        "what is spent is gone",
        {"c16.t1h": 20},
        policy=policy(budget_node_s=2.2 * H),
        says=("the budget has 1.0 node-hours",),
        more={"spent_node_s": 1.2 * H},
    ),
    Case(
        "what runs may run to its end",
        {"c16.t1h": 20},
        ["main 1 x 1h5m"],
        policy(budget_node_s=10 * H),
        live=(live(nodes=8, running=True, busy=1.0, frees_s=H),),
    ),
    Case(
        "nodes that cost double",
        {"c16.t1h": 4},
        ["main 2 x 1h5m"],
        policy(queue(cost=2.0), budget_node_s=5 * H),
    ),
    Case("the cheaper queue", {"c16.t1h": 1}, ["main 1 x 1h5m"], DEAR),
    Case(
        "the dearer while the cheaper is in trouble",
        {"c16.t1h": 1},
        ["dear 1 x 1h5m"],
        DEAR,
        more={"troubles": {"main": Trouble("wrong account", 600)}},
    ),
    Case(
        "all in trouble",
        {"c16.t1h": 4},
        more={"troubles": {"*": Trouble("controller is down", 60)}},
        says=("queue main is left alone for 1m: controller is down",),
    ),
    # -- what is live ----------------------------------------------------------------------------
    Case(
        "what is queued will serve it",
        {"c16.t1h": 4},
        live=(live(nodes=4, walltime=H + 5 * M),),
        says=("nothing more is needed",),
    ),
    Case(
        "or a part of it",
        {"c16.t1h": 10},
        ["main 6 x 1h5m"],
        live=(live(nodes=4, walltime=H + 5 * M),),
    ),
    Case("what runs has room", {"c16.t10m": 4}, live=(live(nodes=4, running=True),)),
    Case("or will have", {"c16.t10m": 4}, live=(live(nodes=4, running=True, busy=1.0),)),
    Case(
        "but not for the long",
        {"c16.t2h": 1},
        ["main 1 x 2h5m"],
        live=(live(nodes=4, running=True),),
    ),
    Case(
        "nor while it drains",
        {"c16.t10m": 4},
        ["main 1 x 45m"],
        live=(live(nodes=4, running=True, draining=True),),
    ),
    Case(
        "nor where it takes only some",
        {"c16.t10m": 4},
        ["main 1 x 45m"],
        live=(live(nodes=4, running=True, selects="workflow x"),),
    ),
    Case(
        "nor in this hour",
        {"c16.t10m": 100},
        ["main 6 x 1h5m", "main 7 x 1h5m"],
        live=(live(nodes=4, running=True, walltime=20 * H, busy=1.0),),
    ),
    Case(
        "nor if it is too narrow",
        {"n8.c16.t1h": 1},
        ["main 8 x 1h5m"],
        live=(live(nodes=4, walltime=2 * H),),
        unneeded=("a",),
    ),
    Case(
        "a crumb waits for what runs",
        {"c1.t10m": 3},
        live=(live(nodes=1, running=True, left_s=1200, busy=1.0, frees_s=1100),),
        says=("left to what is live",),
    ),
    Case(
        "until it has waited long enough",
        {"c1.t10m": (3, 4000)},
        ["main 1 x 15m"],
        live=(live(nodes=1, running=True, left_s=1200, busy=1.0, frees_s=1100),),
    ),
    Case(
        "a queue nobody told us of may serve it",
        {"c16.t1h": 1},
        live=(live(nodes=4, walltime=2 * H, queue="other"),),
    ),
    # -- what is cancelled -----------------------------------------------------------------------
    Case("unneeded, for now", {}, live=(live(),), unneeded=("a",)),
    Case(
        "unneeded for long",
        {},
        live=(live(unneeded_s=90),),
        unneeded=("a",),
        cancels=("a",),
        says=("nothing has needed it",),
    ),
    Case("what runs leaves by itself", {}, live=(live(running=True),)),
    Case(
        "of two the younger is unneeded",
        {"c16.t1h": 4},
        live=(live("a", 4, 2 * H, waited_s=10), live("b", 4, 2 * H, waited_s=900)),
        unneeded=("a",),
    ),
    Case(
        "128 nodes for a crumb",
        {"c1.t10m": 4},
        policy=THETA,
        live=(live("a", 128, H, queue="default", unneeded_s=90),),
        unneeded=("a",),
        cancels=("a",),
        says=("would keep its 128 nodes but 0% busy",),
    ),
    Case(
        "in vain for a day: the other queue",
        {"c16.t1h": 4},
        ["other 2 x 1h5m"] * 2,
        policy(queue(), queue("other", cost=1.5)),
        live=(live("a", 4, H + 5 * M, waited_s=2 * D),),
        cancels=("a",),
        says=("asked differently",),
    ),
    Case(
        "or smaller",
        {"c16.t1h": 4},
        ["main 2 x 1h5m"] * 2,
        live=(live("a", 4, H + 5 * M, waited_s=2 * D),),
        cancels=("a",),
    ),
    Case(
        "or let it wait",
        {"n4.c16.t1h": 1},
        live=(live("a", 4, H + 5 * M, waited_s=2 * D),),
        says=("a has waited 2d, and nothing else",),
    ),
    Case(
        "or as narrow as may be: perhaps there are no more nodes",
        {"c16.t1h": 40},
        ["main 20 x 2h5m"],
        policy(queue(bands=(Band(20, 32, D),), max_queued=2)),
        live=(live("a", 30, 2 * H + 5 * M, waited_s=2 * D),),
        cancels=("a",),
    ),
    # -- idle nodes ------------------------------------------------------------------------------
    Case("one wide window", {"c16.t1h": 20}, ["main 20 x 1h5m"], more=windows((20, 2 * H))),
    Case("several narrow", {"c16.t1h": 8}, ["main 2 x 1h5m"] * 4, more=windows(*[(2, 2 * H)] * 4)),
    Case("too short to use", {"c16.t1h": 8}, ["main 4 x 1h5m"] * 2, more=windows((8, H))),
    Case("a window makes it wider", {"c16.t10m": 24}, ["main 24 x 15m"], more=windows((30, H))),
    Case("and no wider than there is work", {"c1.t1m": 16}, ["main 1 x 6m"], more=windows((30, H))),
    Case(
        "what is queued will take it",
        {"c16.t1h": 8},
        live=(live("a", 8, H + 5 * M),),
        more=windows((8, 2 * H)),
    ),
    Case(
        "what is queued is too long for it",
        {"c16.t1h": 8},
        ["main 8 x 1h5m"],
        live=(live("a", 8, 3 * H),),
        unneeded=("a",),
        more=windows((8, 2 * H)),
        says=("they are idle now",),
    ),
    # -- features, unknown nodes -----------------------------------------------------------------
    Case(
        "what is to show what a node has is needed, however little is known to use it",
        {"c1.t1h": 1},
        live=(live(nodes=9, walltime=2 * H),),
        policy=UNSEEN,
    ),
    Case(
        "and takes what is older first, as its launcher will, so that nothing is asked for twice",
        {"n2.c1": 1, "c1": (1, 100.0)},
        ["b 2 x 15m"],
        policy(queue(bands=(Band(1, 1, 20 * M),)), queue("b", node=NodeShape(), bands=TWO)),
        says=("1 task (c1) keep 2 nodes 50% busy", "is to show what a node of it has"),
    ),
    Case("only where the feature is", {"c1.t1h.f-a100": 8}, ["gpus 1 x 1h5m"], BOTH),
    Case("a feature nowhere", {"c1.f-h100": 8}, policy=BOTH, unfit={"c1.f-h100": "needs h100"}),
    Case(
        "nobody knows the nodes: one to see",
        {"c1.t1h": 99},
        ["main 1 x 1h5m"],
        UNSEEN,
        says=("is to show what a node of it has",),
    ),
    Case("and no second", {"c1.t1h": 99}, policy=UNSEEN, live=(live(walltime=2 * H),)),
    # -- what fits nowhere -----------------------------------------------------------------------
    Case("too wide", {"n33.c1": 1}, unfit={"n33.c1": "needs 33 nodes, and queue main gives"}),
    Case("too long", {"c1.t2d": 1}, unfit={"c1.t2d": "takes 2d and 5m of padding"}),
    Case("too many cores", {"c17": 1}, unfit={"c17": "needs 17 cores a node"}),
    Case("too many GPUs", {"c1.g5": 1}, policy=BOTH, unfit={"c1.g5": "of queue gpus has 4"}),
    Case("too much memory", {"c1.m96G": 1}, unfit={"c1.m96G": "needs 96G of memory"}),
    Case(
        "wider than the policy",
        {"n8.c1": 1},
        policy=policy(max_live_nodes=4),
        unfit={"n8.c1": "at most 4"},
    ),
    Case(
        "and the rest is served",
        {"n33.c1": 1, "c16.t1h": 1},
        ["main 1 x 1h5m"],
        unfit={"n33.c1": "needs 33 nodes"},
    ),
    # -- who is first ----------------------------------------------------------------------------
    Case(
        "priority before age",
        {"c16.t1h": (4, 9000), "p5.c16.t1h": 2},
        ["main 2 x 1h5m"],
        SMALL,
        says=("2 tasks (p5.c16.t1h) keep",),
    ),
    Case(
        "the old before the young",
        {"n2.c16.t1h": (1, 9000), "c16.t1h": 5},
        ["main 2 x 1h5m"],
        SMALL,
        says=("1 task (n2.c16.t1h) keep",),
    ),
    Case(
        "narrow work does not take the nodes that old wide work waits for",
        {"n8.c16.t1h": (1, 9000), "c16.t1h": 50},
        policy=policy(max_live_nodes=10),
        live=(live(nodes=4, running=True, busy=1.0, frees_s=H),),
        says=("kept for older work",),
    ),
    Case(
        "young wide work lets it pass",
        {"n8.c16.t1h": 1, "c16.t10m": 12},
        ["main 1 x 1h5m"] * 2,
        policy(max_live_nodes=10),
        live=(live(nodes=4, running=True, busy=1.0, frees_s=H),),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_table(case: Case) -> None:
    decision = decide(situation(case.work, *case.live, **case.more), case.policy)
    told = "\n".join((*decision.why, *(one.why for one in decision.withdrawals)))
    assert asked(decision) == case.asks, told
    assert tuple(one.name for one in decision.withdrawals) == case.cancels, told
    assert decision.unneeded == case.unneeded, told
    for text in case.says:
        assert text in told
    assert dict(decision.unfit).keys() == case.unfit.keys()
    for text, why in decision.unfit:
        assert case.unfit[text] in why
    assert decision.why


# -- over several decisions ----------------------------------------------------------------------


def follow(
    backlogs: list[Work], chosen: Policy, *, every_s: float = M
) -> tuple[list[Decision], list[Live]]:
    """Decide again and again while nothing starts; what was asked for waits."""
    waiting: list[Live] = []
    decisions = []
    for number, work in enumerate(backlogs):
        decision = decide(situation(work, *waiting), chosen)
        decisions.append(decision)
        gone = {one.name for one in decision.withdrawals}
        waiting = [
            msgspec.structs.replace(
                one,
                waited_s=one.waited_s + every_s,
                unneeded_s=one.unneeded_s + every_s if one.name in decision.unneeded else 0.0,
            )
            for one in waiting
            if one.name not in gone
        ]
        waiting += [
            live(f"{number}-{place}", one.nodes, one.walltime_s, queue=one.queue)
            for place, one in enumerate(decision.requests)
        ]
    return decisions, waiting


def test_a_backlog_that_jitters_asks_once_and_cancels_nothing() -> None:
    jitter = [1000, 970, 1000, 985, 1000, 960, 990, 1000] * 5
    decisions, _ = follow([{"c4.t30m": count} for count in jitter], policy(queue(max_queued=0)))
    assert decisions[0].requests
    assert not any(one.requests for one in decisions[1:])
    assert not any(one.withdrawals for one in decisions)


def test_a_backlog_that_is_gone_for_a_moment_costs_no_place_in_the_queue() -> None:
    decisions, waiting = follow([{"c16.t1h": 4}, {}, {"c16.t1h": 4}, {"c16.t1h": 4}], policy())
    assert len(decisions[0].requests) == len(waiting)
    assert not any(one.withdrawals for one in decisions)


def test_a_backlog_that_is_gone_is_asked_for_no_more() -> None:
    decisions, waiting = follow([{"c16.t1h": 4}, {}, {}, {}, {}], policy())
    assert not waiting
    assert decisions[-1].requests == ()


def test_a_backlog_that_grows_is_followed() -> None:
    grows: list[Work] = [{"c16.t1h": n} for n in (2, 8, 8, 20, 20, 20)]
    decisions, waiting = follow(grows, policy(queue(max_queued=0)))
    assert sum(one.nodes for one in waiting) == 20
    assert not decisions[2].requests and not decisions[5].requests


def test_were_all_allocations_invisible_caps_and_ten_at_once_still_hold() -> None:
    free = policy(queue(max_queued=0))
    blind = [decide(situation({"c16.t1h": 10_000}), free) for _ in range(3)]
    assert all(len(one.requests) <= 10 for one in blind)
    capped = policy(queue(max_queued=3), max_live_nodes=20, budget_node_s=12 * H)
    decision = decide(situation({"c16.t1h": 10_000}), capped)
    assert sum(one.nodes * one.walltime_s for one in decision.requests) <= 12 * H


def test_one_odd_answer_is_forgotten_with_the_next() -> None:
    work: Work = {"c16.t1h": 4}
    odd = decide(situation(work, troubles={"main": Trouble("invalid job id", 300)}), policy())
    assert not odd.requests
    assert decide(situation(work), policy()).requests


def test_a_lost_allocation_is_no_reason_to_ask_for_less() -> None:
    """A preempted one leaves its tasks in READY: they are asked for as at first."""
    first = decide(situation({"c16.t1h": 4}), policy())
    again = decide(situation({"c16.t1h": (4, 600.0)}), policy())
    assert asked(again) == asked(first)


def test_the_figures_say_what_the_sentences_say() -> None:
    told = decide(
        situation({"c16.t1h": 10}, live(nodes=4, walltime=H + 5 * M)), policy(budget_node_s=100 * H)
    ).figures
    assert told["tasks"] == 10
    assert (told["backlog_node_h"], told["covered_node_h"]) == (10.0, 4.0)
    assert (told["served_node_h"], told["left_node_h"]) == (6.0, 0.0)
    assert told["budget_left_node_h"] == pytest.approx(100 - 10 * 65 / 60)


def test_thousands_of_lanes_are_decided_on_at_once() -> None:
    """Quick enough for `service --once`: some 50 ms where nothing else runs."""
    work: Work = {
        f"n{1 + n % 97}.c{1 + n % 64}.t{(1, 5, 10, 30, 60, 120, 240)[n % 7]}m.w-w{n}": 1 + n % 20
        for n in range(2000)
    }
    crowd = [
        live(f"a{n}", 128 + n, 2 * H, queue="default", running=n % 2 == 0, busy=0.5)
        for n in range(50)
    ]
    busy = msgspec.structs.replace(DEFAULT, max_queued=60)
    began = time.process_time()
    decision = decide(situation(work, *crowd), policy(DEBUG, busy))
    assert time.process_time() - began < 0.5
    assert decision.requests
