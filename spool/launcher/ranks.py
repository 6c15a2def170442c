"""ranks - one launcher over many nodes, the leader's side: its first rank claims, the others run.

Owns   what the leader knows of its ranks: who has which task, where room gets free.
Never  waits, but for the ranks to report at the start and to leave at the end.
Fails  SpoolError: a rank did not report at the start.

Orders and reports are gathered and go out as one message a turn. A rank starts a task where it is
told to, writes its lines itself and makes its results durable before it reports them, so a dead
leader loses no result. Where tasks are short the leader sends *followers* ahead: tasks that start
in the room of the first task of their shape that ends, without asking.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from spool.errors import SpoolError
from spool.launcher import clock, orders
from spool.launcher.book import Book, Grants
from spool.launcher.crew import Report
from spool.launcher.nodes import Node
from spool.launcher.orders import Order, Said
from spool.launcher.picker import AHEAD_S, Wishes
from spool.queue import shape as shapes
from spool.queue.layout import State
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.shape import Shape

if TYPE_CHECKING:  # it starts MPI
    from spool.launcher.post import Post

MEET_S = 120.0  # in which all ranks of a launcher must have reported
BEAT_S = 5.0
PARTING_S = 30.0
FRESH_S = 1.0  # within which a task must have ended where followers are sent
SWEEPS = 6  # of one task on one node; the pause between them doubles from SWEEP_AGAIN_S
SWEEP_AGAIN_S = 1.0
REST_S = 10.0  # in which no follower is sent where one has waited in vain


class Ranks:
    """The leader's side. rate is the launcher's rate of starts, for followers.

    Numbers of ranks are those of their nodes in the book; the leader is 0. back are tasks that
    never started, to be given back to their lanes.
    """

    def __init__(self, post: Post, nodes: Sequence[Node], mark: bool) -> None:
        self.post = post
        self.nodes = nodes
        self.mark = mark
        self.rate = 0.0
        self.placed: dict[str, Placed] = {}
        self.followers = [0] * len(nodes)
        self.shapes: list[Counter[Shape]] = [Counter() for _ in nodes]
        self.resting: dict[Shape, dict[int, float]] = {}
        self.graces = [0.0] * len(nodes)
        self.freed = [0.0] * len(nodes)
        self.heard = [clock.now()] * len(nodes)
        self.dead: set[int] = set()
        self.sweeping: dict[str, dict[int, int]] = {}  # how often a node was swept in vain
        self.sweeps: deque[tuple[float, str, int]] = deque()  # those to come
        self.took = 0
        self.unheard: deque[tuple[int, Said]] = deque()
        self.back: deque[tuple[str, Shape]] = deque()
        self._beat_at = 0.0

    def open(self, owner: Owner, book: Book, wishes: Wishes, ended: Callable[[str], None]) -> None:
        """Tell every rank whose tasks it runs, and on what; `ended` is told of each that ends."""
        self.book, self.owner, self.ended = book, owner, ended
        for rank, node in enumerate(self.nodes[1:], 1):
            welcome = orders.Welcome(
                owner.name, owner.record, node, wishes.pin, str(rank) if self.mark else ""
            )
            self.post.add(rank, welcome)
        self.post.send()

    @property
    def busy(self) -> int:
        """Tasks that are with a rank, or on their way."""
        return len(self.placed) + len(self.sweeping)

    @property
    def longest_grace_s(self) -> float:
        """How long the most patient of their tasks may take to end."""
        return max(self.graces)

    def start(self, task_id: str, shape: Shape, grants: Grants) -> None:
        """Order a rank to start a task in the room it was given."""
        rank = grants[0].node
        self.placed[task_id] = Placed(rank, shape, grants)
        self.shapes[rank][shape] += 1
        grant = grants[0]
        told = shapes.print_shape(shape)
        self._order(rank, orders.Run(task_id, told, grant.cpus, grant.gpus, grant.memory_mb))

    def any_may_follow(self) -> bool:
        """Whether tasks go so fast that some should lie at their ranks before there is room."""
        quota, since = self._quota(), clock.now() - FRESH_S
        pairs = zip(self.followers, self.freed, strict=True)
        return quota > 0 and any(count < quota and freed > since for count, freed in pairs)

    def may_follow(self, shape: Shape) -> int:
        """How many tasks of a shape may be sent ahead now."""
        quota = self._quota()
        return sum(max(0, quota - self.followers[rank]) for rank in self._running(shape))

    def _quota(self) -> int:
        return int(self.rate * AHEAD_S / len(self.nodes))

    def _running(self, shape: Shape) -> Iterator[int]:
        """Ranks that run such a task, and where it seems that one will end soon."""
        resting, since = self.resting.get(shape, ()), clock.now() - FRESH_S
        return (
            rank
            for rank, counts in enumerate(self.shapes)
            if counts[shape] and self.freed[rank] > since and rank not in resting
        )

    def follow(self, task_id: str, shape: Shape) -> bool:
        """Send a task ahead, to the rank with the fewest; False if none may have it."""
        found = min(self._running(shape), key=self.followers.__getitem__, default=0)
        if not found or self.followers[found] >= self._quota():
            return False
        self.placed[task_id] = Placed(found, shape, ())
        self.followers[found] += 1
        self._order(found, orders.Follow(task_id, shapes.print_shape(shape)))
        return True

    def sweep(self, task_id: str, nodes: Sequence[int]) -> None:
        """Let the ranks of these nodes kill what an mpirun left there."""
        asked = dict.fromkeys((node for node in nodes if node and node not in self.dead), 0)
        if asked:
            self.sweeping[task_id] = asked
        for rank in asked:
            self._order(rank, orders.Sweep(task_id))

    def _swept(self, task_id: str, rank: int, clean: bool, log: Callable[[str], None]) -> None:
        """A rank has swept for a task, whose end stays open until nothing of it is left.

        Not for ever: what no KILL ends (a process that waits for a dead disk) is let be, and told.
        """
        left = self.sweeping.get(task_id, {})
        if rank not in left:
            return  # that rank was thought dead meanwhile
        if clean:
            self._is_swept(task_id, rank)
            return
        left[rank] += 1
        what = f"{task_id}: left processes on {self._name(rank)} that cannot be killed"
        if left[rank] < SWEEPS:
            pause_s = SWEEP_AGAIN_S * 2.0 ** (left[rank] - 1)
            self.sweeps.append((clock.now() + pause_s, task_id, rank))
            log(f"{what}; trying again in {pause_s:.0f} s")
        else:
            log(f"{what}, in {SWEEPS} tries; its end counts all the same")
            self._is_swept(task_id, rank)

    def _is_swept(self, task_id: str, rank: int) -> None:
        left = self.sweeping[task_id]
        del left[rank]
        if not left:
            del self.sweeping[task_id]

    def _sweep_again(self, now: float) -> None:
        for _ in range(len(self.sweeps)):
            at, task_id, rank = self.sweeps.popleft()
            if at > now:
                self.sweeps.append((at, task_id, rank))
            elif rank in self.sweeping.get(task_id, {}):
                self._order(rank, orders.Sweep(task_id))

    def _name(self, rank: int) -> str:
        return self.nodes[rank].name or f"rank {rank}"

    def ask(self, verb: str, task_id: str, said: dict[str, Any]) -> bool:
        """Pass a request on to the rank that has a task; False if none has."""
        if (placed := self.placed.get(task_id)) is None:
            return False
        self._order(placed.rank, orders.Ask(verb, task_id, said))
        return True

    def recall(self) -> None:
        """Let them give back what has not started."""
        self._order_all(orders.Recall())

    def stop_all(self, why: str) -> None:
        """Let them stop what runs and give back what does not."""
        self._order_all(orders.Stop(why))

    def _order(self, rank: int, order: Order) -> None:
        self.post.add(rank, order)

    def _order_all(self, order: Order) -> None:
        for rank in range(1, len(self.nodes)):
            if rank not in self.dead:
                self.post.add(rank, order)

    def flush(self) -> float:
        """Send what was ordered; in how many seconds to look for answers again."""
        self.post.send()
        return self.post.poll_s if self.placed else self.post.poll_longest_s

    def beat(self, now: float) -> None:
        """Tell them that we hold the lease, and do what was put off until now."""
        if self.resting:
            self._wake(now)
        if self.sweeps:
            self._sweep_again(now)
        if now >= self._beat_at:
            self._beat_at = now + min(BEAT_S, self.owner.settings.lease_fence_s / 4)
            self._order_all(orders.Beat(now - self.owner.last_beat))

    def _wake(self, now: float) -> None:
        """Let followers go again where none went for a while."""
        for shape, ranks in list(self.resting.items()):
            self.resting[shape] = {rank: until for rank, until in ranks.items() if until > now}
            if not self.resting[shape]:
                del self.resting[shape]

    def receive(self, log: Callable[[str], None]) -> Iterator[Report]:
        """Take in what they report; yields how tasks ended."""
        self.post.send()
        for rank, raw in self.post.received():
            if rank in self.dead:  # it only stalled, but what it had is others' now
                self.post.add(rank, orders.Kill())
                continue
            self.heard[rank] = clock.now()
            self.unheard.extend((rank, said) for said in orders.said(raw))
        while self.unheard:  # each by itself, since what follows must not be lost with it
            rank, said = self.unheard.popleft()
            if isinstance(said, orders.Ended):
                self._forget(said.task_id)
                yield Report(said.task_id, Place(State(said.state), said.group), said.line)
            else:
                self._note(rank, said, log)

    def _note(self, rank: int, said: Said, log: Callable[[str], None]) -> None:
        match said:
            case orders.Free():
                self.freed[rank] = self.heard[rank]
                self._free(said.task_id)
            case orders.Took():
                self.freed[rank] = self.heard[rank]
                self._take_room(said.task_id, said.after)
            case orders.Back():
                self._take_back(rank, said)
            case orders.Gone():
                self._forget(said.task_id)
            case orders.Alive():
                self.graces[rank] = said.longest_grace_s
            case orders.Swept():
                self._swept(said.task_id, rank, said.clean, log)
            case orders.Log():
                log(f"{self._name(rank)}: {said.text}")

    def _take_room(self, task_id: str, after: str) -> None:
        """A follower runs where another task did."""
        ours, before = self.placed[task_id], self.placed[after]
        ours.grants, before.grants = before.grants, ()
        ours.follows, ours.since = False, clock.now()
        self.took += 1
        self.followers[ours.rank] -= 1

    def _take_back(self, rank: int, said: orders.Back) -> None:
        """A task never started, and is the loop's again."""
        shape = self.placed[said.task_id].shape
        if said.in_vain:
            self.resting.setdefault(shape, {})[rank] = clock.now() + REST_S
        self.back.append((said.task_id, shape))
        self._forget(said.task_id)

    def _free(self, task_id: str) -> None:
        placed = self.placed[task_id]
        grants, placed.grants = placed.grants, ()
        if grants:
            self.book.give(grants)
            self.shapes[placed.rank][placed.shape] -= 1
            self.ended(task_id)

    def _forget(self, task_id: str) -> None:
        placed = self.placed[task_id]
        if placed.follows:
            self.followers[placed.rank] -= 1
        self._free(task_id)
        del self.placed[task_id]

    def silent(self, now: float) -> list[int]:
        """Ranks newly known to be dead: not heard of for so long that their guards have struck."""
        dead_s = self.owner.settings.lease_dead_s
        late = (r for r in range(1, len(self.nodes)) if now - self.heard[r] > dead_s)
        return [rank for rank in late if rank not in self.dead]

    def bury(self, rank: int) -> list[str]:
        """A rank is dead: the tasks it had. Its node's room is never given again."""
        self.dead.add(rank)
        for task_id in [one for one, left in self.sweeping.items() if rank in left]:
            self._is_swept(task_id, rank)
        tasks = [task_id for task_id, placed in self.placed.items() if placed.rank == rank]
        for task_id in tasks:
            del self.placed[task_id]
        self.followers[rank], self.shapes[rank], self.graces[rank] = 0, Counter(), 0.0
        self.book.close(rank)
        return tasks

    def close(self) -> None:
        """Nothing runs any more: let them go, and hear them out, as MPI wants it."""
        self._order_all(orders.End())
        self._hear_out(PARTING_S)

    def abandon(self) -> None:
        """Our lease is lost: they are to kill their tasks."""
        self._order_all(orders.Kill())
        self._hear_out(PARTING_S)

    def _hear_out(self, wait_s: float) -> None:
        """Until each has said its last word."""
        left = set(range(1, len(self.nodes))) - self.dead
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            self.post.send()
            for rank, raw in self.post.received():
                if any(isinstance(one, orders.Bye) for one in orders.said(raw)):
                    left.discard(rank)
            time.sleep(self.post.poll_s)


class Placed:
    """A task that a rank has: grants is its room, () for a follower and for one that has ended."""

    __slots__ = ("follows", "grants", "rank", "shape", "since")

    def __init__(self, rank: int, shape: Shape, grants: Grants) -> None:
        self.rank, self.shape, self.grants = rank, shape, grants
        self.follows, self.since = not grants, clock.now()


def gather(post: Post) -> list[orders.Hello]:
    """What every other rank says of itself, by rank. Raises SpoolError."""
    found: dict[int, orders.Hello] = {}
    deadline = time.monotonic() + MEET_S
    while len(found) < post.size - 1:
        for rank, raw in post.received():
            found[rank] = msgspec.msgpack.decode(raw, type=list[orders.Hello])[0]
        if time.monotonic() > deadline:
            missing = sorted(set(range(1, post.size)) - found.keys())[:5]
            raise SpoolError(f"ranks {missing} did not report within {MEET_S:.0f} s")
        time.sleep(post.poll_s)
    return [found[rank] for rank in sorted(found)]
