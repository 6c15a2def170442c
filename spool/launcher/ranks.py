"""ranks - one launcher over many nodes: its first rank claims, the others run (mpi4py).

Owns   everything said between the leader and its ranks; the only import of mpi4py.
Never  waits inside MPI: a blocking call would spin on a core that belongs to a task, so both sides
       look whether something has come, and sleep in between.
Fails  SpoolError: the MPI world is not the one that was asked for. LeaseLost on a rank: the leader
       was silent too long, or our tasks were taken over.

Orders and reports are gathered and go out as one message a turn. A rank starts a task where it is
told to, writes its lines itself and makes its results durable before it reports them, so a dead
leader loses no result. Where tasks are short the leader sends *followers* ahead: tasks that start
in the room of the first task of their shape that ends, without asking.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

try:
    import mpi4py

    mpi4py.rc.thread_level = "funneled"
    from mpi4py import MPI
except (ImportError, RuntimeError) as fault:
    from spool.errors import SpoolError

    raise SpoolError(
        f"MPI cannot be used here: {fault}. Run: pip install mpi4py mpich, or use --per-node"
    ) from None

from spool.config import Settings
from spool.errors import FileSystemFault, LeaseLost, SpoolError
from spool.launcher import clock, orders
from spool.launcher.batch import WAKE, Batch
from spool.launcher.book import Book, Grants
from spool.launcher.crew import Crew, Report, Started
from spool.launcher.nodes import Grant, Node
from spool.launcher.orders import Order, Said
from spool.launcher.picker import AHEAD_S, Wishes
from spool.launcher.run import Running, Starter
from spool.queue import owner as owners
from spool.queue import shape as shapes
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.shape import Shape

TAG = 7
MEET_S = 120.0  # in which all ranks of a launcher must have reported
BEAT_S = 5.0
PARTING_S = 30.0
POLL_SHORTEST_S, POLL_LONGEST_S = 0.0005, 0.02
RETRY_S = 5.0
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, WAKE}


class Post:
    """Messages to and from other ranks, gathered; nothing here ever blocks."""

    def __init__(self) -> None:
        self.comm = MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.waiting: dict[int, list[Any]] = {}
        self._under_way: deque[tuple[Any, bytes]] = deque()
        self.poll_s = POLL_SHORTEST_S

    def add(self, rank: int, message: Any) -> None:
        """Something to say, with the next `send`."""
        self.waiting.setdefault(rank, []).append(message)

    def send(self) -> None:
        """Let all that was gathered go."""
        if self.waiting:
            self.poll_s = POLL_SHORTEST_S
        for rank, messages in self.waiting.items():
            raw = msgspec.msgpack.encode(messages)
            self._under_way.append((self.comm.Isend([raw, MPI.BYTE], rank, TAG), raw))
        self.waiting = {}
        while self._under_way and self._under_way[0][0].Test():
            self._under_way.popleft()

    def received(self) -> Iterator[tuple[int, bytes]]:
        """What has come: from whom, and the raw message."""
        status, came = MPI.Status(), False
        while self.comm.Iprobe(MPI.ANY_SOURCE, TAG, status):
            raw = bytearray(status.Get_count(MPI.BYTE))
            self.comm.Recv([raw, MPI.BYTE], status.source, TAG)
            came = True
            yield status.source, bytes(raw)
        self.poll_s = POLL_SHORTEST_S if came else min(1.5 * self.poll_s, POLL_LONGEST_S)

    def finish(self) -> None:
        """Leave the MPI job, in which nobody may miss: it ends when all have come so far."""
        MPI.Finalize()

    def abort(self, code: int) -> None:
        """End every process of this MPI job at once."""
        self.comm.Abort(code)


def meet(expected: int) -> Post:
    """The MPI world, once it is sure that it has `expected` ranks. Raises SpoolError."""
    post = Post()
    if post.size != expected:
        raise SpoolError(
            f"this is one of {expected} processes that were started together, but its MPI library"
            f" says {post.size}: mpiexec and mpi4py belong to different MPIs"
            f" ({MPI.Get_library_version().split(chr(10))[0].strip()}). Run: spool doctor"
        )
    _offices.append(post)
    return post


_offices: list[Post] = []


def post_office() -> Post:
    """The one that `meet` opened."""
    return _offices[0]


# -- the leader ----------------------------------------------------------------------------------


class Ranks:
    """The leader's side. rate is the launcher's rate of starts, for followers.

    Numbers of ranks are those of their nodes in the book; the leader is 0.
    """

    def __init__(self, post: Post, nodes: Sequence[Node], mark: bool) -> None:
        self.post = post
        self.nodes = nodes
        self.mark = mark
        self.rate = 0.0
        self.placed: dict[str, Placed] = {}
        self.followers = [0] * len(nodes)
        self.shapes: list[Counter[Shape]] = [Counter() for _ in nodes]
        self.graces = [0.0] * len(nodes)
        self.heard = [clock.now()] * len(nodes)
        self.dead: set[int] = set()
        self._back: list[tuple[str, Shape]] = []
        self._beat_at = 0.0

    def open(self, owner: Owner, book: Book, wishes: Wishes) -> None:
        """Tell every rank whose tasks it runs, and on what."""
        self.book, self.owner = book, owner
        for rank, node in enumerate(self.nodes[1:], 1):
            welcome = orders.Welcome(
                owner.name, owner.record, node, wishes.pin, str(rank) if self.mark else ""
            )
            self.post.add(rank, welcome)
        self.post.send()

    @property
    def busy(self) -> int:
        """Tasks that are with a rank, or on their way."""
        return len(self.placed)

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
        quota = self._quota()
        return quota > 0 and any(count < quota for count in self.followers[1:])

    def may_follow(self, shape: Shape) -> int:
        """How many tasks of a shape may be sent ahead now."""
        quota = self._quota()
        return sum(max(0, quota - self.followers[rank]) for rank in self._running(shape))

    def _quota(self) -> int:
        return int(self.rate * AHEAD_S / len(self.nodes))

    def _running(self, shape: Shape) -> Iterator[int]:
        return (rank for rank, counts in enumerate(self.shapes) if counts[shape])

    def follow(self, task_id: str, shape: Shape) -> bool:
        """Send a task ahead, to the rank with the fewest; False if none may have it."""
        found = min(self._running(shape), key=self.followers.__getitem__, default=0)
        if not found or self.followers[found] >= self._quota():
            return False
        self.placed[task_id] = Placed(found, shape, ())
        self.followers[found] += 1
        self._order(found, orders.Follow(task_id, shapes.print_shape(shape)))
        return True

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
        return self.post.poll_s if self.placed else POLL_LONGEST_S

    def beat(self, now: float) -> None:
        """Tell them that we hold the lease."""
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            self._order_all(orders.Beat(now - self.owner.last_beat))

    def receive(self, log: Callable[[str], None]) -> Iterator[Report]:
        """Take in what they report; yields how tasks ended."""
        self.post.send()
        for rank, raw in self.post.received():
            self.heard[rank] = clock.now()
            for said in orders.said(raw):
                if isinstance(said, orders.Ended):
                    self._forget(said.task_id)
                    place = Place(State(said.state), said.group)
                    yield Report(said.task_id, place, said.line)
                else:
                    self._note(rank, said, log)

    def _note(self, rank: int, said: Said, log: Callable[[str], None]) -> None:
        match said:
            case orders.Free():
                self._free(said.task_id)
            case orders.Took():
                self._take_room(said.task_id, said.after)
            case orders.Back():
                self._back.append((said.task_id, self.placed[said.task_id].shape))
                self._forget(said.task_id)
            case orders.Gone():
                self._forget(said.task_id)
            case orders.Alive():
                self.graces[rank] = said.longest_grace_s
            case orders.Log():
                log(f"{self.nodes[rank].name or f'rank {rank}'}: {said.text}")

    def given_back(self) -> list[tuple[str, Shape]]:
        """Tasks that never started: they are to go back to their lanes."""
        back, self._back = self._back, []
        return back

    def _take_room(self, task_id: str, after: str) -> None:
        """A follower runs where another task did."""
        ours, before = self.placed[task_id], self.placed[after]
        ours.grants, before.grants = before.grants, ()
        self.followers[ours.rank] -= 1

    def _free(self, task_id: str) -> None:
        placed = self.placed[task_id]
        if placed.grants:
            self.book.give(placed.grants)
            self.shapes[placed.rank][placed.shape] -= 1
            placed.grants = ()

    def _forget(self, task_id: str) -> None:
        placed = self.placed[task_id]
        if placed.follows:
            self.followers[placed.rank] -= 1
        self._free(task_id)
        del self.placed[task_id]

    def silent(self, now: float, dead_s: float) -> list[int]:
        """Ranks newly known to be dead: not heard of for so long that their guard has struck."""
        late = (r for r in range(1, len(self.nodes)) if now - self.heard[r] > dead_s)
        return [rank for rank in late if rank not in self.dead]

    def bury(self, rank: int) -> list[str]:
        """A rank is dead: the tasks it had. Its node's room is never given again."""
        self.dead.add(rank)
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

    __slots__ = ("follows", "grants", "rank", "shape")

    def __init__(self, rank: int, shape: Shape, grants: Grants) -> None:
        self.rank, self.shape, self.grants = rank, shape, grants
        self.follows = not grants


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


# -- a rank --------------------------------------------------------------------------------------


class Rank:
    """Runs on its node what the leader orders, until the leader lets it go."""

    def __init__(self, post: Post, tree: Tree, settings: Settings, node: Node, trusted: frozenset[int]):
        self.post, self.tree, self.settings, self.trusted = post, tree, settings, trusted
        self.node = node
        self.waiting: deque[tuple[str, Shape, Grants]] = deque()
        self.followers: dict[Shape, deque[str]] = {}
        self.shapes: dict[str, Shape] = {}
        self.lines: dict[str, bytes] = {}
        self.over = self.stopping = False
        self.retry_at = self.tick_at = 0.0

    def run(self) -> None:
        """Until the leader says that it is over. Raises LeaseLost."""
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._join()
            while not self.over:
                self._turn()
                self._wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)

    def _join(self) -> None:
        """Say who we are; wait for the leader's answer."""
        here = owners.here()
        self.post.add(0, orders.Hello(here.host, here.boot, here.pid, self.node))
        self.post.send()
        deadline = time.monotonic() + MEET_S + BEAT_S
        while not (came := [raw for _, raw in self.post.received()]):
            if time.monotonic() > deadline:
                raise SpoolError("the launcher's first rank did not answer")
            time.sleep(self.post.poll_s)
        welcome, *rest = orders.ordered(came[0])
        assert isinstance(welcome, orders.Welcome)
        self._open(welcome, here.host)
        for order in rest:
            self._obey(order)

    def _open(self, welcome: orders.Welcome, host: str) -> None:
        record = {**welcome.record, "host": host}
        self.owner = Owner(self.tree, self.settings, welcome.owner, record)
        node = welcome.node
        starter = Starter(
            self.owner,
            pin=welcome.pin and not node.shared,
            hide_gpus=bool(node.gpus),
            node=str(self.post.rank),
        )
        self.crew = Crew(self.owner, starter, self.trusted, self._log, welcome.mark)
        self.batch = Batch(self.owner, self.settings.launcher_sync, self._deliver)

    def _turn(self) -> None:
        try:
            self._listen()
            if not self.over:
                self._work()
        except LeaseLost:
            self.crew.kill_everything()
            raise
        self.post.send()

    def _listen(self) -> None:
        for _, raw in self.post.received():
            for order in orders.ordered(raw):
                self._obey(order)

    def _work(self) -> None:
        for running in self.crew.reap(lambda pid, status: None):
            self._hand_over(running)
        now = clock.now()
        if now >= self.retry_at:
            self._retry()
        self._record(now)
        if now >= self.crew.due_at:
            self.crew.mind(now)
        if now >= self.tick_at:
            self._tick(now)

    def _record(self, now: float) -> None:
        try:
            if now >= self.retry_at:
                for report in self.crew.reports():
                    self.lines[report.task_id] = report.line
                    self.batch.add(report.task_id, report.place)
            self.batch.step(1000, now=not self.crew.running)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)

    def _deliver(self, task_id: str, place: Place) -> None:
        line = self.lines.pop(task_id)
        self.post.add(0, orders.Ended(task_id, place.state, place.group, line))

    def _tick(self, now: float) -> None:
        self.tick_at = now + BEAT_S / 5
        self.crew.beat()
        if now - self.owner.last_beat >= self.settings.lease_fence_s:
            raise LeaseLost(f"no word of the leader for {now - self.owner.last_beat:.0f} s")
        self.post.add(0, orders.Alive(self.crew.stops.longest_grace_s))

    # -- orders ----------------------------------------------------------------------------------

    def _obey(self, order: Order) -> None:
        match order:
            case orders.Run():
                grant = Grant(order.cpus, order.gpus, order.memory_mb)
                self._start(order.task_id, shapes.read(order.shape), (grant,))
            case orders.Follow():
                self._follow(order.task_id, shapes.read(order.shape))
            case orders.Ask():
                self._answer(order)
            case orders.Beat():
                self.owner.last_beat = clock.now() - order.age_s
            case orders.Recall():
                self._recall()
            case orders.Stop():
                self._recall()
                self.crew.stop_all(order.why)
            case orders.Kill():
                self.crew.kill_everything()
                self._part()
            case orders.End():
                self.batch.drain()
                self.crew.close()
                self._part()

    def _part(self) -> None:
        self.post.add(0, orders.Bye())
        self.post.send()
        self.over = True

    def _start(self, task_id: str, shape: Shape, grants: Grants) -> None:
        if self.waiting or clock.now() < self.retry_at:
            self.waiting.append((task_id, shape, grants))
            return
        try:
            what = self.crew.start(task_id, shape, grants)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            self.waiting.append((task_id, shape, grants))
            return
        if what is Started.GONE:
            self.post.add(0, orders.Gone(task_id))
        elif what is Started.ENDED:
            self.post.add(0, orders.Free(task_id))

    def _retry(self) -> None:
        waiting, self.waiting = self.waiting, deque()
        for entry in waiting:
            self._start(*entry)

    def _pause(self, fault: Exception) -> None:
        if clock.now() >= self.retry_at:
            self._log(f"pausing: {fault}")
        self.retry_at = clock.now() + RETRY_S

    def _follow(self, task_id: str, shape: Shape) -> None:
        self.followers.setdefault(shape, deque()).append(task_id)
        if not any(running.shape == shape for running in self.crew.running.values()):
            self.followers[shape].pop()  # whom it was to follow has ended meanwhile
            self.post.add(0, orders.Back(task_id))

    def _hand_over(self, ended: Running) -> None:
        """A task has ended: its room goes to one that follows it, or back to the leader."""
        queue = self.followers.get(ended.shape)
        if not queue or self.stopping:
            self.post.add(0, orders.Free(ended.task.id))
            self._let_go_without_hope(ended.shape)
            return
        task_id = queue.popleft()
        self.post.add(0, orders.Took(task_id, ended.task.id))
        self._start(task_id, ended.shape, ended.grants)

    def _let_go_without_hope(self, shape: Shape) -> None:
        """Followers whose last forerunner has ended."""
        if self.followers.get(shape) and not any(
            running.shape == shape for running in self.crew.running.values()
        ):
            for task_id in self.followers.pop(shape):
                self.post.add(0, orders.Back(task_id))

    def _recall(self) -> None:
        for queue in self.followers.values():
            for task_id in queue:
                self.post.add(0, orders.Back(task_id))
        self.followers = {}

    def _answer(self, order: orders.Ask) -> None:
        why = self.crew.answer(order.verb, order.task_id, order.said)
        if why is None:
            why = self._answer_waiting(order)
        if why:
            self._log(f"{order.task_id}: {order.verb} was not possible: {why}")

    def _answer_waiting(self, order: orders.Ask) -> str:
        """A task that has not started yet goes where it then belongs."""
        for queue in self.followers.values():
            if order.task_id in queue:
                queue.remove(order.task_id)
                self.post.add(0, orders.Gone(order.task_id))
                return self.crew.settle(order.verb, order.task_id, order.said)
        for entry in self.waiting:
            if entry[0] == order.task_id:
                self.waiting.remove(entry)
                self.post.add(0, orders.Gone(order.task_id))
                return self.crew.settle(order.verb, order.task_id, order.said)
        return ""

    def _log(self, text: str) -> None:
        self.post.add(0, orders.Log(text))

    def _wait(self) -> None:
        if self.over:
            return
        now = clock.now()
        wait_s = min(self.crew.due_at, self.tick_at, now + self.post.poll_s) - now
        signal.sigtimedwait(SIGNALS, max(0.0, wait_s))
