"""courier - one thread that sends calls as tasks and brings their results, for one executor.

Owns   the mailbox tmp/HOST.BOOT.PID.RAND/ that results come to; which call lies in which task.
Never  loads a result that is not its own user's; forgets a call: its future ends in some way.
Fails  nothing to the outside: what goes wrong with a call is told by its future.

Calls wait here until there is reason to send them: few tasks lie unstarted at any time, so that
batches are cut late, when it is known how long such calls last. Results are heard of by inotify
where the worker is on this host, else by looking into the mailbox, ever more rarely.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import msgspec

from spool.calls import outcome
from spool.calls.letters import Batch, Call, CallFuture, written
from spool.calls.local import Local
from spool.calls.sizes import Sizes
from spool.config import Settings
from spool.errors import CallLost, SpoolError
from spool.launcher import warm
from spool.launcher.warm import Frame
from spool.queue import control, files, submit, tasks, watch
from spool.queue.layout import FINAL, State, Tree
from spool.queue.manifest import Manifest

SHORTEST_S, LONGEST_S, GROWTH = 0.01, 1.0, 1.5  # between looks into the mailbox
NEWS_S = 0.05  # after so long without an end, a call's duration is known to be at least that
LOOK_S, LONGEST_LOOK_S = 1.0, 10.0  # between looks for tasks that ended without results
GONE_EVERY = 10
MOST_IMPORTS = 12
NUMBERS = itertools.count()


class Courier:
    """Sends calls for one executor; `post` a call, `close` it, `join` it."""

    def __init__(
        self,
        tree: Tree,
        settings: Settings,
        wanted: Manifest,
        sizes: Sizes,
        linger_s: float,
        window: int,
        local: Callable[[str], Local] | None,
        tidy: Callable[[], None],
    ) -> None:
        self.tree, self.settings, self.wanted = tree, settings, wanted
        self.sizes, self.linger_s, self.window = sizes, linger_s, window
        self.tidy = tidy
        self.mailbox = tree.tmp(submit.nest_name())
        files.make_folder(self.mailbox)
        files.open_up(self.mailbox)  # nobody else is to put anything there
        self.inside = os.open(self.mailbox, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self.ear = watch.Ear(self.mailbox)
        self.local = local(f"{self.mailbox}/launcher") if local else None
        self.posted: deque[Call] = deque()
        self.unwanted: deque[int] = deque()
        self.pending: deque[Call] = deque()
        self.open: dict[int, Call] = {}
        self.batches: dict[str, Batch] = {}
        self.closing = self.dropping = self.asleep = False
        self.sent_at = self.read_at = self.look_at = 0.0
        self.pause_s, self.look_s, self.looks, self.most_running = SHORTEST_S, LOOK_S, 0, 1
        self.tasks = 0
        self.thread = threading.Thread(target=self._run, name="spool-courier", daemon=True)
        self.thread.start()

    # -- for other threads -----------------------------------------------------------------------

    def post(self, function: str, code: bytes, body: bytes) -> Future[Any]:
        """Send a call; its future."""
        number = next(NUMBERS) & 0xFFFFFFFF
        future = CallFuture(self._forgo, number)
        self.posted.append(Call(number, future, function, code, body))
        self.wake()
        return future

    def prepare(self, imports: tuple[str, ...]) -> None:
        """Let workers import these ahead, too."""
        known = self.wanted.imports
        more = [name for name in imports if name not in known]
        if more and len(known) < MOST_IMPORTS:
            kept = [name for name in known if name[0] != "#" or more[-1][0] != "#"]
            self.wanted = msgspec.structs.replace(self.wanted, imports=[*kept, *more])

    def _forgo(self, number: int) -> None:
        self.unwanted.append(number)
        self.wake()

    def wake(self) -> None:
        """There is something to do."""
        if self.asleep:
            self.asleep = False
            self.ear.wake()

    def close(self, *, drop: bool = False) -> None:
        """Nothing more will be posted. `drop`: cancel what has not begun."""
        self.dropping |= drop
        self.closing = True
        self.wake()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._turn():
                pass
        except BaseException as fault:
            self._give_up(fault)
            raise
        finally:
            if self.local:
                self.local.end()
            os.close(self.inside)
            with suppress(OSError, SpoolError):
                files.remove_tree(self.mailbox)
            self.tidy()

    def _give_up(self, fault: BaseException) -> None:
        self.closing = True
        self._take_in()
        for call in list(self.open.values()):
            call.fail(CallLost(f"the executor broke: {fault!r}"))
        self.open.clear()

    def _turn(self) -> bool:
        """Take, send, read, look; True when all is done and nothing more can come."""
        closing = self.closing
        self._take_in()
        if self.dropping:
            self.dropping = False
            self._drop()
        self._heed_cancels()
        now = time.monotonic()
        self._send(now)
        if closing and not self.open and not self.posted:
            return True
        self.asleep = True
        wait_s = 0.0 if self.posted or self.unwanted or self.dropping else self._wait_s(now)
        if closing != self.closing:
            wait_s = 0.0
        heard = self.ear.wait(wait_s)
        self.asleep = False
        self._read(heard, time.monotonic())
        self._look(time.monotonic())
        return False

    def _take_in(self) -> None:
        while self.posted:
            call = self.posted.popleft()
            self.open[call.number] = call
            self.pending.append(call)

    def _drop(self) -> None:
        for call in list(self.open.values()):
            call.future.cancel()  # comes back to us as unwanted

    def _wait_s(self, now: float) -> float:
        waits = [60.0]
        if self.batches:
            waits += [self.read_at + self.pause_s - now, self.look_at - now]
        if self.pending and self._may_send():
            waits.append(self.sent_at + self.linger_s - now)
        if self.pending and self.batches:
            waits.append(NEWS_S)
        return max(0.0, min(waits))

    # -- sending ---------------------------------------------------------------------------------

    def _may_send(self) -> bool:
        unstarted = sum(not batch.started_at for batch in self.batches.values())
        running = len(self.batches) - unstarted
        self.most_running = max(self.most_running, running)
        return unstarted < max(self.window, 2 * running) and self._next_size() > 0

    def _next_size(self) -> int:
        while self.pending and self.pending[0].heard:
            self.pending.popleft()  # cancelled while it waited
        if not self.pending:
            return 0
        if self.pending[0].alone:
            return 1
        first = list(itertools.islice(self.pending, self.sizes.most))
        names = [call.function for call in first]
        probes = 0
        if not self.sizes.knows(names[0]):
            probes = self._probes(names[0])
        return self.sizes.batch(names, len(self.pending), self.most_running, probes)

    def _probes(self, function: str) -> int:
        """Calls of a function that are under way; one that lasts tells something too."""
        now, count = time.monotonic(), 0
        for batch in self.batches.values():
            if any(call.function == function for call in batch.calls.values()):
                count += 1
                if batch.started_at and now - batch.started_at > NEWS_S:
                    self.sizes.at_least(function, now - batch.started_at)
                    return 0
        return count

    def _send(self, now: float) -> None:
        full = len(self.pending) >= self.sizes.most
        if not self.pending or (now - self.sent_at < self.linger_s and not full):
            return
        while self.pending and self._may_send():
            if self.local and not self._has_launcher():
                return
            size = self._next_size()
            calls = [self.pending.popleft() for _ in range(size)]
            calls = [call for call in calls if not call.heard]
            if calls:
                self._send_batch(calls)
            self._take_in()
            self.sent_at = time.monotonic()

    def _has_launcher(self) -> bool:
        assert self.local is not None
        try:
            self.local.see_to_it()
        except (SpoolError, OSError) as fault:
            for call in list(self.open.values()):
                self._forget(call)
                call.fail(CallLost(str(fault)))
            self.pending.clear()
            self.batches.clear()
            return False
        return True

    def _send_batch(self, calls: list[Call]) -> None:
        batch = Batch(calls)
        content = written(calls, self.mailbox)

        def fill(built: str) -> None:
            files.write_new(f"{built}/{warm.CALLS}", content, mode=0o600)

        try:
            batch.task_id = submit.submit_lightly(self.tree, self.wanted, fill)
        except (SpoolError, OSError) as fault:
            for call in calls:
                self._forget(call)
                call.fail(fault)
            return
        self.tasks += 1
        for call in calls:
            call.batch = batch
        self.batches[batch.task_id] = batch
        self._news(time.monotonic())

    def _news(self, now: float) -> None:
        """Something happened: look soon again."""
        self.pause_s, self.look_s = SHORTEST_S, LOOK_S
        self.read_at, self.look_at = now, now + LOOK_S

    # -- cancelling ------------------------------------------------------------------------------

    def _heed_cancels(self) -> None:
        """Call back what nobody wants any more; only then tell whoever waits for it."""
        calls: list[Call] = []
        while self.unwanted:
            if (call := self.open.pop(self.unwanted.popleft(), None)) is not None:
                calls.append(call)
        try:
            self._call_back(calls)
        finally:
            for call in calls:
                call.begin()

    def _call_back(self, calls: list[Call]) -> None:
        told: dict[str, Batch] = {}
        for call in calls:
            if (batch := call.batch) is not None:
                batch.calls.pop(call.number, None)
                batch.unwanted.add(call.number)
                told[batch.task_id] = batch
        for batch in told.values():
            text = "\n".join(map(str, sorted(batch.unwanted))).encode()
            with suppress(SpoolError, OSError):
                files.replace(warm.cancelled_name(self.mailbox, batch.task_id), text)
        empty = [batch for batch in told.values() if not batch.calls]
        with suppress(SpoolError, OSError):
            self._cancel([batch.task_id for batch in empty if not batch.started_at])
        for batch in empty:
            self._finish(batch, keep=True)

    def _cancel(self, task_ids: list[str]) -> None:
        """Cancel tasks of which no call is wanted, unless they run: then their worker is told."""
        spots = [spot for one in task_ids if (spot := tasks.find(self.tree, one)) is not None]
        waiting = [spot for spot in spots if spot.state not in (State.RUNNING, *FINAL)]
        if not waiting:
            return
        with control.verb(self.tree, self.settings, "cancel", reason="", changes={}) as by:
            for _ in control.each(control.cancel, by, waiting):
                pass  # one that is refused has moved on: its worker is told

    # -- results ---------------------------------------------------------------------------------

    def _read(self, heard: set[str], now: float) -> None:
        if not self.batches:
            return
        found = False
        for name in heard:
            found |= self._read_file(name, now)
        if now >= self.read_at + self.pause_s and not found:
            for name in files.names(self.mailbox):
                found |= self._read_file(name, now)
            self.pause_s = min(self.pause_s * GROWTH, LONGEST_S)
            self.read_at = now
        if found:
            self._news(now)

    def _read_file(self, name: str, now: float) -> bool:
        """Take what is new in a file of results; whether there was anything."""
        task_id, _, attempt = name.rpartition(".")
        batch = self.batches.get(task_id)
        if batch is None or not attempt.isdigit():
            return False
        start = batch.read.get(name, 0)
        try:
            raw = warm.read_own(name, self.inside, start)
        except (OSError, warm.NotOurs):
            return False
        at = 0
        for frame, end in warm.frames(raw):
            self._take(batch, frame, now)
            at = end
        batch.read[name] = start + at
        if not batch.calls:
            self._finish(batch)
        return at > 0

    def _take(self, batch: Batch, frame: Frame, now: float) -> None:
        batch.started_at = batch.started_at or now
        if (call := batch.calls.get(frame.number)) is None:
            return
        if frame.kind == warm.STARTED:
            call.begin()
            return
        del batch.calls[frame.number]
        if frame.kind == warm.RETURNED:
            call.batch = None
            self.pending.appendleft(call)
            return
        self._forget(call)
        self.sizes.learn(call.function, frame.other / 1e6)
        call.end(frame)

    def _forget(self, call: Call) -> None:
        self.open.pop(call.number, None)

    def _finish(self, batch: Batch, *, keep: bool = False) -> None:
        self.batches.pop(batch.task_id, None)
        for name in batch.read if not keep else ():
            files.unlink(f"{self.mailbox}/{name}")

    # -- tasks that ended ------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Every now and then look whether tasks have ended whose results will not come."""
        if not self.batches or now < self.look_at:
            return
        self.look_at = now + self.look_s
        self.look_s = min(self.look_s * GROWTH, LONGEST_LOOK_S)
        self.looks += 1
        if self.local and not self._has_launcher():
            return
        ended = tasks.ended(self.tree, self.batches)
        if self.looks % GONE_EVERY == 0:
            for task_id in self.batches:
                if task_id not in ended and tasks.find(self.tree, task_id) is None:
                    ended[task_id] = None
        for task_id, spot in ended.items():
            self._bury(self.batches[task_id], spot, now)

    def _bury(self, batch: Batch, spot: tasks.Spot | None, now: float) -> None:
        """A task is over: what has no result yet goes again by itself, or fails."""
        for name in files.names(self.mailbox):
            if name.startswith(f"{batch.task_id}."):
                self._read_file(name, now)
        if not batch.calls:
            return
        again = batch.started_at and len(batch.calls) > 1
        if spot is None:
            why = f"task {batch.task_id} was removed before its call had a result"
        else:
            why = "" if again else outcome.failure(self.tree, spot)
        for call in reversed(batch.calls.values()):
            if again:
                call.alone, call.batch = True, None
                self.pending.appendleft(call)
            else:
                self._forget(call)
                call.fail(CallLost(why))
        self._finish(batch)
