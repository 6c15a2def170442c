"""api - the spool from Python: open, submit, query, wait.

Owns   `Spool` and `Task`, the only public classes.
Never  keeps state of its own: every answer is read from the tree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from spool import config, units
from spool.array import Array as Array
from spool.errors import ManifestError, NoSuchTask, Refused, TaskFailed
from spool.queue import (
    control,
    files,
    history,
    kinship,
    layout,
    manifest,
    select,
    submit,
    tasks,
    wait,
)
from spool.queue.family import Family
from spool.queue.layout import FINAL, State, Tree
from spool.queue.manifest import Manifest
from spool.queue.select import Selection

if TYPE_CHECKING:
    from spool.calls import outcome

_BLOCKED = "one that it waits for failed or was cancelled"
Command = str | list[str] | tuple[str, ...]


class Task:
    """A task in a spool; a light handle, its answers are looked up when asked.

    Two handles of one id are equal.
    """

    __slots__ = ("_tree", "id")

    def __init__(self, tree: Tree, task_id: str) -> None:
        self._tree = tree
        self.id = task_id

    def __repr__(self) -> str:
        return f"Task({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and (other.id, other._tree.root) == (
            self.id,
            self._tree.root,
        )

    def __hash__(self) -> int:
        return hash(self.id)

    def _spot(self) -> tasks.Spot:
        if (spot := tasks.find(self._tree, self.id)) is None:
            raise NoSuchTask(f"task {self.id} is not in {self._tree.root}")
        return spot

    def _read(self) -> tasks.Task:
        for _ in range(20):
            spot = self._spot()
            try:
                return tasks.load(spot.path(self._tree), self.id)
            except FileNotFoundError:
                continue  # it moved between the look and the touch
        raise NoSuchTask(f"task {self.id} keeps moving; try again")

    @property
    def state(self) -> State:
        """Where it lies now. Raises NoSuchTask: it was removed."""
        return self._spot().state

    @property
    def group(self) -> str:
        """The group it lies in: its lane, its owner, why it failed, ..."""
        return self._spot().group

    @property
    def path(self) -> str:
        """Its directory at this moment; it changes with the state."""
        return self._spot().path(self._tree)

    @property
    def done(self) -> bool:
        """Whether it is finished, failed or cancelled."""
        return self.state in FINAL

    @property
    def manifest(self) -> Manifest:
        """What it asks for, changes laid over it."""
        return self._read().manifest

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its events, oldest first."""
        return history.events(self._read().told)

    @property
    def parents(self) -> list[Task]:
        """The tasks that it waits, or waited, for."""
        return [Task(self._tree, task_id) for task_id in self._read().manifest.after]

    @property
    def children(self) -> list[Task]:
        """The tasks that wait, or waited, for this one; every task is looked at."""
        every = kinship.nodes(self._tree, select.ORDER[1:])
        return [Task(self._tree, node.spot.id) for node in every if self.id in node.after]

    @property
    def exit_code(self) -> int | None:
        """The exit code of its last attempt; None if there is none, or a signal ended it."""
        ended = self._read().story.exit
        code = ended.get("code") if ended else None
        return code if isinstance(code, int) else None

    @property
    def output(self) -> str:
        """What its last attempt wrote to standard output (and error, where together)."""
        before = None
        while (spot := self._spot()) != before:
            raw = files.read(f"{spot.path(self._tree)}/{layout.OUTPUT}")
            if raw is not None:
                return raw.decode(errors="replace")
            before = spot  # it may have moved while we looked
        return ""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is finished, failed, cancelled or removed; False after `timeout` s.

        Nobody waits for a task whose parent failed or was cancelled: its state is WAITING then.
        """
        return wait.wait(wait.Pending(self._tree, [self.id]), timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its result: what its call gave; of a command, its exit code, 0.

        Raises what its call raised, TaskFailed (CallLost: a call without a result), CancelledError
        of concurrent.futures, TimeoutError, NoSuchTask.
        """
        fault = self._outcome(timeout)
        try:
            if fault.fault is not None:
                raise fault.fault
            return fault.value
        finally:
            del fault

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does; what that would raise, None if it has a result."""
        return self._outcome(timeout).fault

    def _outcome(self, timeout: float | None) -> outcome.Outcome:
        from spool.calls import outcome

        if not self.wait(timeout):
            raise TimeoutError(f"task {self.id} is not done after {timeout:g} s")
        for _ in range(20):
            spot = self._spot()
            if spot.state is State.WAITING and kinship.blocked(self._tree, {self.id}):
                return outcome.Outcome(
                    fault=TaskFailed(f"task {self.id} waits in vain: {_BLOCKED}")
                )
            if spot.state not in FINAL:  # retried, just after it had ended
                return self._outcome(timeout)
            with suppress(FileNotFoundError):
                return outcome.of(self._tree, spot, tasks.load(spot.path(self._tree), self.id))
        raise NoSuchTask(f"task {self.id} keeps moving; try again")

    def cancel(self, reason: str = "") -> bool:
        """Cancel it, stopping it if it runs; False if it has ended already."""
        try:
            return Spool(self._tree.root).cancel(self, reason) is State.CANCELLED
        except Refused:
            return self.state is State.CANCELLED


class Spool:
    """One spool. `path` defaults to $SPOOL, then to a search upward from here.

    Raises NotASpool.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.root = config.find_root(os.fspath(path) if path is not None else None)
        self.settings = config.load(self.root)
        self._tree = Tree(self.root)

    def __repr__(self) -> str:
        return f"Spool({self.root!r})"

    def __fspath__(self) -> str:
        return self.root

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Spool:
        """Make a spool at `path` (or complete one), after trying the file system; open it."""
        from spool.queue import init

        return cls(init.create(os.fspath(path)).root)

    def submit(self, command: Command | None = None, **keys: Any) -> Task:
        """Submit one task durably.

        command is a list of words, or one line for sh; keys are those of the manifest (see
        `spool schema`), such as cores_per_rank=4, time_limit="1h", workflow="scan"; after takes
        tasks as well as ids.
        Raises ManifestError, DiskFull.
        """
        wanted = _manifest(command, keys)
        task = Task(self._tree, submit.submit(self._tree, wanted))
        if wanted.replaces:
            control.take_place(self._tree, self.settings, wanted.replaces, task.id)
        return task

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """Submit one call of a Python function durably; `Task.result` waits for what it gives.

        What the task asks for is said by @spool.function. Raises what pickling raises.
        """
        from spool.calls import function

        return Task(self._tree, function.send(self, fn, args, kwargs))

    def submit_many(self, items: Iterable[Mapping[str, Any] | Command]) -> Iterator[Task]:
        """Submit tasks in durable batches of 10,000, yielding each once it is in the queue.

        An item is a mapping of manifest keys, or a command alone; `after` may name other items by
        their `name`. A wrong item, an unknown parent or a cycle raises ManifestError; what came
        before it in its batch is not submitted.
        """
        shown: list[str] = []
        with submit.Submitter(self._tree, shown.extend) as submitter:
            family = Family(submitter.add)
            for number, item in enumerate(items, 1):
                keys = dict(item) if isinstance(item, Mapping) else {"command": _words(item)}
                wanted = manifest.from_mapping(_with_ids(keys), "item")
                _none_rejected(family.add(wanted, f"item {number}"))
                yield from self._handles(shown)
            _none_rejected(family.left())
            submitter.finish()
        yield from self._handles(shown)

    def submit_array(
        self,
        command: Command | None = None,
        *,
        array: str | range | Iterable[Any],
        chunk: int = 0,
        **keys: Any,
    ) -> Array:
        """Submit an array durably: one command, many elements, in few directories.

        array is a range ("0-99999", range(10)), or a value for each element: a text, a number, or
        a mapping of names. `{}`, or `{name}`, stands for it in the words and the environment.
        Raises ManifestError, DiskFull.
        """
        from spool import array_source
        from spool.queue.submit_array import submit_array

        if isinstance(array, range) and array and array.step > 0 and array.start >= 0:
            array = f"{array[0]}-{array[-1]}:{array.step}"
        if isinstance(array, str):
            found = array_source.from_text(array)
        else:
            found = array_source.from_values(array, "array")
        keys = keys if command is None else {**keys, "command": _words(command)}
        array_source.check_places(keys, found)
        wanted = manifest.from_mapping(_with_ids({**keys, "array": found.array}), "submit")
        ids = submit_array(self._tree, wanted, found.values, chunk=chunk)
        return Array(self._tree, self.settings, layout.array_of(ids[0]))

    def array(self, array_id: str) -> Array:
        """The array of an id. Raises NoSuchTask."""
        found = Array(self._tree, self.settings, layout.array_of(array_id))
        return found if found.chunks else found

    def _handles(self, shown: list[str]) -> Iterator[Task]:
        ready = shown.copy()
        shown.clear()
        return (Task(self._tree, task_id) for task_id in ready)

    def task(self, task_id: str) -> Task:
        """The one task that an id, or the beginning of one, means. Raises NoSuchTask."""
        return Task(self._tree, select.one(self._tree, task_id).id)

    def tasks(
        self,
        *words: str,
        state: str | Iterable[str] = (),
        workflow: str = "",
        name: str = "",
        tags: Iterable[str] = (),
        since: float | str = 0.0,
    ) -> Iterator[Task]:
        """The tasks a selection means, streamed; the same grammar as on the command line.

        words are ids, beginnings or globs; since is a moment (epoch seconds, or text).
        """
        states = (state,) if isinstance(state, str) and state else tuple(state)
        chosen = Selection(
            words=words,
            states=tuple(State(one.upper()) for one in states),
            workflow=workflow,
            name=name,
            tags=tuple(tags),
            since=_moment(since),
        )
        found = select.find(self._tree, chosen)
        return (Task(self._tree, spot.id) for spot in found)

    def wait(self, tasks: Iterable[Task | Array | str], timeout: float | None = None) -> bool:
        """Wait until all are finished, failed, cancelled or removed; False after `timeout` s.

        Nobody waits for tasks whose parents failed or were cancelled.
        Raises NoSuchTask: what was given is no id.
        """
        ids = [task_id for task in tasks for task_id in _ids_of(task)]
        if strangers := [one for one in ids if layout.parse_id(one) is None]:
            raise NoSuchTask(f"{strangers[0]!r} is no task id; look it up with Spool.task")
        return wait.wait(wait.Pending(self._tree, ids), timeout)

    def cancel(self, task: Task | str, reason: str = "") -> State:
        """Cancel one task; where it ended. Raises Refused where it is final already."""
        return self._act(control.cancel, "cancel", task, reason)

    def retry(self, task: Task | str, **changes: Any) -> State:
        """Queue a final task anew, with manifest keys changed; where it lies then."""
        return self._act(control.retry, "retry", task, changes=changes)

    def _act(
        self,
        act: control.Act,
        verb: str,
        task: Task | str,
        reason: str = "",
        changes: dict[str, Any] | None = None,
    ) -> State:
        spot = select.one(self._tree, task if isinstance(task, str) else task.id)
        words = {"reason": reason, "changes": changes or {}}
        with control.verb(self._tree, self.settings, verb, **words) as by:
            return control.once(act, by, spot).state


def _words(command: Command) -> str | list[str]:
    return command if isinstance(command, str) else list(command)


def _manifest(command: Command | None, keys: dict[str, Any]) -> Manifest:
    given = keys if command is None else {**keys, "command": _words(command)}
    return manifest.from_mapping(_with_ids(given), "submit")


def _with_ids(keys: dict[str, Any]) -> dict[str, Any]:
    """Manifest keys with ids where tasks were given."""
    plain = {key: value.id if isinstance(value, Task) else value for key, value in keys.items()}
    if "after" in plain:
        after = plain["after"]
        some = [after] if isinstance(after, (str, Array)) else after
        plain["after"] = [task_id for one in some for task_id in _ids_of(one)]
    return plain


def _ids_of(one: Task | Array | str) -> list[str]:
    """The ids of what was given: of an array those of its chunks."""
    if isinstance(one, Array):
        return one.chunks
    return [one if isinstance(one, str) else one.id]


def _none_rejected(rejected: Iterable[tuple[str, str]]) -> None:
    for where, reason in rejected:
        raise ManifestError(f"{where}: {reason}")


def _moment(since: float | str) -> float:
    import time

    return units.moment(since, time.time()) if isinstance(since, str) else since
