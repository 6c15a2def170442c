"""batch - ended tasks on their way out: synced together, moved, their folders synced.

Owns   the order durable results -> moves -> durable folders; the one thread that waits for disks.
Never  moves a task whose exit line is not durable yet.
Fails  DiskFull, OSError from a sync: what was to be moved is gathered again.
"""

from __future__ import annotations

import signal
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from spool.errors import SpoolError
from spool.launcher import clock
from spool.launcher.board import Board
from spool.queue import claim, faults, files, layout
from spool.queue.layout import FINAL
from spool.queue.owner import Owner
from spool.queue.place import Place

EVERY_S = 1.0
SOON_S, SOON_SHARE = 0.05, 4.0
"""Where others wait for what ended, but there is work meanwhile, a few go together: so long, and at
least so many times what a sync took. A journal that is always written stalls all moves."""
SLOW_S = 10.0
WAKE = signal.SIGUSR2
Ended = tuple[str, Place]


class Batch:
    """Gathers ended tasks. `add` each, `step` often, `drain` at the end.

    A thread makes what was gathered durable; then the caller's own steps move it, a few tasks at
    a time, so that slots are never left waiting for a disk. The folders moved into are synced
    with the next batch; where none is gathered, a second after the last, or once all is `over`.

    What another on this node has synced, as the `board` says, is durable as well.

    finals are the ids of those whose children are to be looked for: for the caller to take.
    deliver takes a durable task where it is not we who move it: a rank tells its leader.
    """

    def __init__(
        self,
        owner: Owner,
        mode: str,
        deliver: Callable[[str, Place], None] | None = None,
        board: Board | None = None,
    ) -> None:
        self.owner = owner
        self.mode = mode
        self.deliver = deliver
        self.board = board or Board()
        self.gathered: list[Ended] = []
        self._when: list[float] = []  # each of these was added
        self.ordered = 0.0
        self.moving: deque[Ended] = deque()
        self.places: set[Place] = set()
        self.stuck: list[tuple[str, str]] = []
        self.finals: list[str] = []
        self.syncing = False
        self._lasted_s = 0.0
        self._orders: SimpleQueue[tuple[list[Ended], set[Place]] | None] = SimpleQueue()
        self._answers: SimpleQueue[Exception | None] = SimpleQueue()
        self._order: tuple[list[Ended], set[Place]] = ([], set())
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def add(self, task_id: str, place: Place) -> None:
        """A task whose exit line is written and whose place is known."""
        self.gathered.append((task_id, place))
        self._when.append(clock.now())

    def add_durable(self, task_id: str, place: Place) -> None:
        """A task whose node has made its results durable: only the move is left."""
        self.moving.append((task_id, place))

    @property
    def empty(self) -> bool:
        """Whether nothing is gathered, moving or being synced."""
        return not (self.gathered or self.moving or self.places or self.syncing)

    @property
    def since(self) -> float:
        """When the first of those that are gathered was; 0 where none is."""
        return self._when[0] if self._when else 0.0

    @property
    def soon_at(self) -> float:
        """When what is gathered is to be synced if others wait for it."""
        return self.since + max(SOON_S, SOON_SHARE * self._lasted_s)

    def step(self, count: int, *, now: bool, over: bool = False) -> int:
        """Move up to `count` synced tasks; `now` begins a sync without waiting for more.

        `over`: no task is left that may end, so that the folders need wait for no others either.
        """
        if self.syncing and not self._answers.empty():
            self._take_answer()
        if self._when and self.since < self.board.durable_until:
            self._take_durable()
        done = 0
        while self.moving and done < count:
            task_id, place = self.moving.popleft()
            done += 1
            if self.deliver:
                self.deliver(task_id, place)
                continue
            try:
                claim.hand_on(self.owner, task_id, place)
            except (OSError, SpoolError) as fault:
                if not faults.is_of_one(fault):
                    self.moving.appendleft((task_id, place))
                    raise
                self.stuck.append((task_id, str(fault)))
            else:
                self.places.add(Place(place.state, place.group))
                if place.state in FINAL:
                    self.finals.append(task_id)
                elif layout.is_parent_group(place.state, place.group):
                    self.finals.append(place.group)  # it may have ended before we came there
        if not self.syncing and (not self.moving or clock.now() - self.ordered >= EVERY_S):
            self._next_order(now, over)
        return done

    def _take_durable(self) -> None:
        """What another's sync, or a part of our own that was not waited for, has made durable."""
        count = bisect_left(self._when, self.board.durable_until)
        self.moving.extend(self.gathered[:count])
        del self.gathered[:count], self._when[:count]

    def _next_order(self, now: bool, over: bool) -> None:
        ripe = self.gathered and (now or clock.now() - self.since >= EVERY_S)
        due = self.places and (over or clock.now() - self.ordered >= EVERY_S)
        if not ripe and (self.gathered or not due):
            return
        self.ordered = clock.now()
        self._order = (self.gathered if ripe else [], self.places)
        self.gathered, self._when, self.places = [], [], set()
        self.syncing = True
        self._orders.put(self._order)

    def _take_answer(self) -> None:
        fault = self._answers.get()
        ended, places = self._order
        self.syncing = False
        if fault is None:
            self.moving.extend(ended)
            return
        self.gathered = ended + self.gathered
        self._when = [clock.now()] * len(self.gathered)
        self.places |= places
        raise fault

    def _serve(self) -> None:
        """The thread: make an order's results durable, and the folders of the last moves."""
        while (order := self._orders.get()) is not None:
            ended, places = order
            fault: Exception | None = None
            since, begun = clock.now(), time.monotonic()
            try:
                if ended and self._sync_results([task_id for task_id, _ in ended]):
                    self.board.synced(since)
                else:
                    claim.sync_places(self.owner.tree, places)
            except Exception as found:  # raised by the loop's thread, which must not wait in vain
                fault = found
            self._lasted_s = time.monotonic() - begun
            self._answers.put(fault)
            signal.pthread_kill(self._main, WAKE)

    def _sync_results(self, ids: list[str]) -> bool:
        """Make results durable; whether all that was moved before is so, too."""
        if self.mode == "none":
            return False
        if self.mode == "files":
            for task_id in ids:
                files.sync_below(self.owner.claim_path(task_id))
            return False
        begun = clock.now()
        files.sync_all(self.owner.claims)
        if self.mode == "auto" and clock.now() - begun > SLOW_S:
            self.mode = "files"  # others write much here: flush our own files only
        return True

    def drain(self) -> None:
        """Bring everything home, waiting as long as it takes; then the thread ends."""
        while not self.empty:
            self.step(1000, now=True, over=True)
            if self.syncing:
                signal.sigtimedwait({WAKE}, 1.0)
        self._orders.put(None)
        self._thread.join()
