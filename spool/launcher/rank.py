"""rank - one launcher over many nodes, the side of a rank that is not the leader.

Owns   the crew of its node, and the tasks it was sent and has not started.
Never  claims a task, nor moves one that ran: its leader does.
Fails  LeaseLost: the leader was silent too long, or our tasks were taken over.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from spool.config import Settings
from spool.errors import FileSystemFault, LeaseLost, SpoolError
from spool.launcher import clock, orders
from spool.launcher.batch import WAKE, Batch
from spool.launcher.book import Grants
from spool.launcher.crew import Crew, Started
from spool.launcher.nodes import Grant, Node
from spool.launcher.orders import Order
from spool.launcher.ranks import BEAT_S, MEET_S
from spool.launcher.run import Running, Starter
from spool.queue import owner as owners
from spool.queue import processes
from spool.queue import shape as shapes
from spool.queue.layout import Tree
from spool.queue.owner import Owner
from spool.queue.place import Place
from spool.queue.shape import Shape

if TYPE_CHECKING:  # it starts MPI
    from spool.launcher.post import Post

RETRY_S = 5.0
FOLLOW_S = 1.0  # for which a follower waits; others may have room for it meanwhile
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = {signal.SIGCHLD, WAKE, *ENDING}


class Leader(Owner):
    """The owner of our tasks, as far as we have lately heard of it.

    A stall may come in the midst of a turn: a leader that buried us meanwhile holds its lease, and
    has given our tasks to others.
    """

    def holds_lease(self) -> bool:
        """Whether the tasks are still its and ours."""
        silent_s = clock.now() - self.last_beat
        return silent_s < self.settings.lease_fence_s and super().holds_lease()


class Rank:
    """Runs on its node what the leader orders, until the leader lets it go."""

    def __init__(
        self, post: Post, tree: Tree, settings: Settings, node: Node, trusted: frozenset[int]
    ) -> None:
        self.post, self.tree, self.settings, self.trusted = post, tree, settings, trusted
        self.node = node
        self.waiting: deque[tuple[str, Shape, Grants]] = deque()
        self.followers: dict[Shape, deque[tuple[str, float]]] = {}  # and when each came
        self.shapes: dict[str, Shape] = {}
        self.lines: dict[str, bytes] = {}
        self.over = self.stopping = False
        self.retry_at = self.tick_at = 0.0
        self.turned_at = clock.now()
        self.unheard: deque[Order] = deque()

    def run(self) -> None:
        """Until the leader says that it is over. Raises LeaseLost."""
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._join()
            while not self.over:
                self._turn()
                self._wait()
        finally:
            signal.signal(WAKE, signal.SIG_IGN)  # a thread of ours may ring once more
            while signal.sigtimedwait(SIGNALS, 0):
                pass
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
        welcome, *rest = [order for raw in came for order in orders.ordered(raw)]
        assert isinstance(welcome, orders.Welcome)
        self._open(welcome, here.host)
        self.unheard.extend(rest)
        self.turned_at = clock.now()

    def _open(self, welcome: orders.Welcome, host: str) -> None:
        record = {**welcome.record, "host": host}
        self.owner = Leader(self.tree, self.settings, welcome.owner, record)
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
            self._mind_the_gap()
            self._listen()
            if not self.over:
                self._work()
        except LeaseLost:
            self.crew.kill_everything()
            raise
        self.post.send()

    def _mind_the_gap(self) -> None:
        """Who stalled for the fence's time does nothing more: its tasks may be others' by now."""
        now, before = clock.now(), self.turned_at
        self.turned_at = now
        if now - before >= self.settings.lease_fence_s:
            raise LeaseLost(f"this rank stalled for {now - before:.0f} s")

    def _listen(self) -> None:
        for _, raw in self.post.received():
            self.unheard.extend(orders.ordered(raw))
        while self.unheard and not self.over:
            try:
                self._obey(self.unheard[0])
            except (FileSystemFault, OSError) as fault:  # it is tried again
                self._pause(fault)
                return
            self.unheard.popleft()

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
            self.batch.step(1000, now=not self.crew.busy)
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
        for shape in list(self.followers):  # a cancel, or a start that failed, may have left them
            self._let_go_without_hope(shape)
        self._let_go_who_waited(now)
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
                self.owner.last_beat = self.turned_at - order.age_s  # it came before a stall
            case orders.Recall():
                self._recall()
            case orders.Stop():
                self.stopping = True
                self._recall()
                self.crew.stop_all(order.why)
            case orders.Sweep():
                clean = processes.kill_task(order.task_id)
                self.post.add(0, orders.Swept(order.task_id, clean))
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

    def _start(self, task_id: str, shape: Shape, grants: Grants) -> bool:
        """Whether the task has its room now: it runs, or is tried again."""
        if self.stopping:
            self.post.add(0, orders.Back(task_id))
            return False
        if self.waiting or clock.now() < self.retry_at:
            self.waiting.append((task_id, shape, grants))
            return True
        try:
            what = self.crew.start(task_id, shape, grants)
        except (FileSystemFault, OSError) as fault:
            self._pause(fault)
            self.waiting.append((task_id, shape, grants))
            return True
        if what is Started.GONE:
            self.post.add(0, orders.Gone(task_id))
        elif what is Started.ENDED:
            self.post.add(0, orders.Free(task_id))
        return what is Started.RUNS

    def _retry(self) -> None:
        waiting, self.waiting = self.waiting, deque()
        for entry in waiting:
            self._start(*entry)

    def _pause(self, fault: Exception) -> None:
        if clock.now() >= self.retry_at:
            self._log(f"pausing: {fault}")
        self.retry_at = clock.now() + RETRY_S

    def _follow(self, task_id: str, shape: Shape) -> None:
        self.followers.setdefault(shape, deque()).append((task_id, self.turned_at))
        if not any(running.shape == shape for running in self.crew.running.values()):
            self.followers[shape].pop()  # whom it was to follow has ended meanwhile
            self.post.add(0, orders.Back(task_id))

    def _hand_over(self, ended: Running) -> None:
        """A task has ended: its room goes to one that follows it, or back to the leader."""
        before, queue = ended.task.id, self.followers.get(ended.shape)
        if not queue:
            self.post.add(0, orders.Free(before))
            return
        task_id, _ = queue.popleft()
        self.post.add(0, orders.Took(task_id, before))
        if not self._start(task_id, ended.shape, ended.grants):  # and its room is free again
            self._let_go_without_hope(ended.shape)

    def _let_go_without_hope(self, shape: Shape) -> None:
        """Followers whose last forerunner has ended."""
        if self.followers.get(shape) and not any(
            running.shape == shape for running in self.crew.running.values()
        ):
            for task_id, _ in self.followers.pop(shape):
                self.post.add(0, orders.Back(task_id))

    def _let_go_who_waited(self, now: float) -> None:
        """Followers of a task that turned out long: there may be room for them elsewhere."""
        for queue in self.followers.values():
            while queue and now - queue[0][1] > FOLLOW_S:
                self.post.add(0, orders.Back(queue.popleft()[0], in_vain=True))

    def _recall(self) -> None:
        self.crew.drain()
        for queue in self.followers.values():
            for task_id, _ in queue:
                self.post.add(0, orders.Back(task_id))
        self.followers = {}
        for task_id, _, _ in self.waiting:
            self.post.add(0, orders.Back(task_id))
        self.waiting.clear()

    def _answer(self, order: orders.Ask) -> None:
        why = self.crew.answer(order.verb, order.task_id, order.said)
        if why is None:
            why = self._answer_waiting(order)
        if why:
            self._log(f"{order.task_id}: {order.verb} was not possible: {why}")

    def _answer_waiting(self, order: orders.Ask) -> str:
        """A task that has not started yet goes where it then belongs."""
        queues: list[deque[Any]] = [self.waiting, *self.followers.values()]
        for queue in queues:
            for entry in queue:
                if entry[0] == order.task_id:
                    queue.remove(entry)
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
        got = signal.sigtimedwait(SIGNALS, max(0.0, wait_s))
        if got and got.si_signo in ENDING:
            self.crew.doubt()  # the leader was told as well, and decides, unless it was killed
