"""submit - from a manifest to a task in the queue: built in tmp/, synced, then made visible.

Owns   tmp/HOST.BOOT.PID.RAND/ while it lives.
Never  shows a task before its manifest is durable, and never shows half a task.
Fails  ManifestError: the app is missing, or a parameter wrong.
       DiskFull, FileSystemFault: nothing became visible that was not told; a failure between the
       moves of a batch is told after the ids that were moved.

Many tasks: each group of a batch is built as a folder of its own and enters READY/ with one
rename where that group is not there yet; into a group that is there the tasks move one by one.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from spool import units
from spool.errors import ManifestError, SpoolError
from spool.queue import faults, files, layout, manifest, owner
from spool.queue.array import WITH_VALUES
from spool.queue.history import Story
from spool.queue.layout import State, Tree
from spool.queue.manifest import Manifest, Submitted
from spool.queue.place import Place, next_place

if TYPE_CHECKING:
    from spool.queue.parents import Lookup

FEW = 50  # below this, one fsync a file is cheaper than flushing the whole file system
Fill = Callable[[str], None]
_NO_STORY = Story()


def submit(tree: Tree, wanted: Manifest, fill: Fill | None = None) -> str:
    """Submit one task durably; its id. `fill(directory)` may put files beside the manifest."""
    with faults.said_plainly():
        return _submit(tree, wanted, fill)


def submit_lightly(tree: Tree, wanted: Manifest, fill: Fill) -> str:
    """Submit one task that a power cut may take: of no use without its submitter, who ends too."""
    now = time.time()
    task_id = layout.new_id(task_name(wanted), layout.lone_shard(now))
    with faults.said_plainly():
        stamped = _stamped(wanted, task_id, _submitted(now))
        place = _place(tree, task_id, stamped, now)
        nest = _make_nest(tree)
        try:
            _build(f"{nest}/{task_id}", stamped, fill)
            _move_new(f"{nest}/{task_id}", tree.task(place.state, place.group, task_id))
            _look_again(tree, [(place.state, place.group)])
        finally:
            _leave_nest(nest)
    return task_id


def _submit(tree: Tree, wanted: Manifest, fill: Fill | None) -> str:
    now, wanted = time.time(), _with_app(tree, wanted)
    task_id = layout.new_id(task_name(wanted), layout.lone_shard(now)) + chunk_mark(wanted)
    nest = _make_nest(tree)
    try:
        if wanted.key:
            task_id, ours = _first(tree, wanted.key, nest, task_id)
            if not ours:
                return task_id
        with _withdrawing(tree, wanted.key, nest):
            _submit_as(tree, task_id, wanted, now, nest, fill)
    finally:
        _leave_nest(nest)
    return task_id


def _submit_as(
    tree: Tree, task_id: str, wanted: Manifest, now: float, nest: str, fill: Fill | None
) -> None:
    if wanted.replaces:
        _may_replace(tree, wanted)
    stamped = _stamped(wanted, task_id, _submitted(now))
    place = _place(tree, task_id, stamped, now)
    built = f"{nest}/{task_id}"
    _build(built, stamped, fill, sync=True)
    if fill:
        files.sync_all(nest)
    files.sync(built)
    _move_new(built, tree.task(place.state, place.group, task_id))
    files.sync(tree.group(place.state, place.group))
    files.sync(tree.state(place.state))
    _look_again(tree, [(place.state, place.group)])


@contextmanager
def _withdrawing(tree: Tree, key: str, nest: str) -> Iterator[None]:
    """Give the key back where its task cannot be built."""
    try:
        yield
    except (OSError, SpoolError):
        if key:
            from spool.queue import keys

            keys.withdraw(tree, key, os.path.basename(nest))
        raise


def _first(tree: Tree, key: str, nest: str, task_id: str) -> tuple[str, bool]:
    from spool.queue import keys

    return keys.first(tree, key, os.path.basename(nest), task_id)


def _may_replace(tree: Tree, wanted: Manifest) -> None:
    """Raises Refused: what waits for the replaced task is waited for by the new one."""
    from spool.queue import kinship

    kinship.no_cycle(tree, wanted.replaces, wanted.after)


def _place(
    tree: Tree, task_id: str, stamped: Manifest, now: float, kin: Lookup | None = None
) -> Place:
    """Where a new task belongs; kin knows what is submitted together with it.

    Raises ManifestError: it waits for what never was, or has failed.
    """
    if not stamped.after:
        return next_place(task_id, stamped, _NO_STORY, {}, now)
    from spool.queue.parents import Lookup, is_known

    kin = Lookup(tree) if kin is None else kin
    for parent in stamped.after:
        if parent in kin.checked:
            continue
        if not is_known(tree, parent):
            raise ManifestError(f"key 'after': there is no task {parent!r}. Run: spool ls")
        kin.checked.add(parent)
    place = next_place(task_id, stamped, _NO_STORY, kin, now)
    if place.line is not None:
        hint = "retry it first, or say on_parent_failure = run"
        raise ManifestError(f"key 'after': {place.line['reason']}; {hint}")
    return place


def _look_again(tree: Tree, groups: Iterable[tuple[State, str]]) -> None:
    """A parent may have finished before its new child could be seen."""
    under = [group for state, group in groups if state is State.WAITING and layout.parse_id(group)]
    if under:
        from spool.queue import advance

        advance.look_again(tree, under)


class Submitter:
    """Submit many tasks, a batch at a time; use as a context manager.

    `shown` is called with the ids of each batch once it is durable and visible, in the order that
    they were added; a task that its key stood for before is told again. With `hold_back`
    nothing becomes visible before `finish`; without `finish` nothing of the last batch does.
    """

    def __init__(
        self,
        tree: Tree,
        shown: Callable[[list[str]], None] | None = None,
        *,
        hold_back: bool = False,
    ) -> None:
        self.tree = tree
        self.shown = shown
        self.hold_back = hold_back
        self.count = self.known = 0
        self._counter = int.from_bytes(os.urandom(2), "big")
        self._left = 0
        self._shard = ""
        self._kin: Lookup | None = None
        self._checked: set[str] = set()
        self._assumed = 0
        self._tails: list[str] = []
        self._told: list[str] = []
        self._batch: list[tuple[State, str, str]] = []
        self._groups: dict[tuple[State, str], str] = {}

    def __enter__(self) -> Submitter:
        with faults.said_plainly():
            self.nest = _make_nest(self.tree)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _leave_nest(self.nest)

    def first(self, key: str, task_id: str) -> tuple[str, bool]:
        """The id that a key means, and whether its task must still be built."""
        return _first(self.tree, key, self.nest, task_id)

    def fresh_id(self, wanted: Manifest) -> str:
        """An id that the next task may have."""
        if not self._left:
            self._next_shard()
        return f"{task_name(wanted)}.{self._shard}-{self._tails.pop()}"

    def add(self, wanted: Manifest, fill: Fill | None = None, *, array: str = "") -> str:
        """Build one task; its id. It becomes visible with its batch.

        Parents of the same submission come before their children. Raises ManifestError.
        `array` is the fresh id of the array whose chunk it is, if there are several.
        """
        if wanted.replaces:
            raise ManifestError("key 'replaces': is of one task; submit that one by itself")
        wanted = _with_app(self.tree, wanted)
        if not self._left:
            self._next_shard()
        task_id = (array or self.fresh_id(wanted)) + chunk_mark(wanted)
        if wanted.key and not array:
            task_id, ours = self.first(wanted.key, task_id)
            if not ours:
                self._told.append(task_id)
                self.known += 1
                return task_id
        with _withdrawing(self.tree, wanted.key, self.nest):
            self._add_as(task_id, wanted, fill)
        self._told.append(task_id)
        self._left -= 1
        self.count += 1
        return task_id

    def _add_as(self, task_id: str, wanted: Manifest, fill: Fill | None) -> None:
        stamped = _stamped(wanted, task_id, self._submitted)
        kin = self._kinship() if stamped.after else None
        state, group, _ = _place(self.tree, task_id, stamped, self._now, kin)
        built = f"{self._folder(state, group)}/{task_id}"
        try:
            with faults.said_plainly():
                _build(built, stamped, fill)
        except BaseException:
            files.remove_tree(built)  # its group may yet become visible
            raise
        self._batch.append((state, group, task_id))

    def _kinship(self) -> Lookup:
        """What is known of parents: those of this submission need not be looked for."""
        if self._kin is None:
            from spool.queue.parents import Lookup

            self._kin = Lookup(self.tree, once=True)
            self._kin.checked = self._checked
        for _, _, task_id in self._batch[self._assumed :]:
            self._kin.assume_unfinished(task_id)
            self._kin.checked.add(task_id)
        self._assumed = len(self._batch)
        return self._kin

    def finish(self) -> None:
        """Make durable and show all that was built."""
        self._show()

    def _next_shard(self) -> None:
        if not self.hold_back:
            self._show()
        self._now = time.time()
        self._submitted = _submitted(self._now)
        self._shard = layout.shard(self._now, self._counter)
        self._counter += 1
        self._left = layout.SHARD_SIZE
        self._tails = layout.random_tails(layout.SHARD_SIZE)

    def _folder(self, state: State, group: str) -> str:
        key = (state, group)
        if (folder := self._groups.get(key)) is None:
            folder = self._groups[key] = f"{self.nest}/{state}={group}"
            files.make_folder(folder)
        return folder

    def _show(self) -> None:
        if not self._batch:
            self._say(self._told)
            return
        with faults.said_plainly():
            self._sync()
            try:
                ids: dict[tuple[State, str], list[str]] = {key: [] for key in self._groups}
                for state, group, task_id in self._batch:
                    ids[state, group].append(task_id)
                for (state, group), folder in self._groups.items():
                    if ids[state, group]:
                        _show_group(folder, self.tree.group(state, group), ids[state, group])
            except (OSError, SpoolError):
                self._tell(self._left_the_nest())
                raise
            self._tell(self._told)

    def _left_the_nest(self) -> list[str]:
        """What of a batch is in the queue, though its moves were cut short."""
        from spool.queue import tasks

        present = {key: set(files.names(folder)) for key, folder in self._groups.items()}
        left = [one for state, group, one in self._batch if one not in present[state, group]]
        return [task_id for task_id in left if tasks.find(self.tree, task_id)]

    def _tell(self, ids: list[str]) -> None:
        """Make what was moved durable, and say so."""
        for state in {state for state, _ in self._groups}:
            files.sync(self.tree.state(state))
        _look_again(self.tree, self._groups)
        self._batch, self._groups, self._assumed = [], {}, 0
        self._kin = None
        self._say(ids)

    def _say(self, ids: list[str]) -> None:
        """Tell the ids of a batch, with those that their keys stood for already."""
        self._told = []
        if self.shown and ids:
            self.shown(ids)

    def _sync(self) -> None:
        if len(self._batch) >= FEW:
            files.sync_all(self.nest)
            return
        for state, group, task_id in self._batch:
            files.sync_below(f"{self._groups[state, group]}/{task_id}")
        for folder in self._groups.values():
            files.sync(folder)


def _with_app(tree: Tree, wanted: Manifest) -> Manifest:
    """What is submitted: with all that its app defines. Raises ManifestError."""
    if not wanted.app and not wanted.parameters:
        return wanted
    from spool.queue import apps  # here, because a lone submission must start fast

    return apps.filled(tree, wanted)


def task_name(wanted: Manifest) -> str:
    """The name a task gets in its id: its own, else its program's."""
    if wanted.name:
        return wanted.name
    if wanted.app:
        return wanted.app
    command = wanted.command or "task"
    first = command.split()[0] if isinstance(command, str) else command[0]
    return layout.as_name(os.path.basename(first))


def chunk_mark(wanted: Manifest) -> str:
    """What the id of a chunk of an array ends in: @FIRST-LAST."""
    return f"@{wanted.elements.chunk}" if wanted.elements else ""


def folder_filler(source: str, *, move: bool = False) -> Fill:
    """A `fill` that copies a directory's contents into the task (links stay links)."""

    def fill(built: str) -> None:
        for entry in sorted(os.listdir(source)):
            if entry in (layout.MANIFEST, layout.HISTORY):
                continue
            _copy(f"{source}/{entry}", f"{built}/{entry}", move=move)

    return fill


def file_filler(source: str, name: str) -> Fill:
    """A `fill` that copies one script into the task under `name`, executable by its owner."""

    def fill(built: str) -> None:
        _copy(source, f"{built}/{name}", move=False)
        os.chmod(f"{built}/{name}", os.stat(source).st_mode | stat.S_IRWXU)

    return fill


def _copy(source: str, target: str, *, move: bool) -> None:
    import shutil

    try:
        if move:
            shutil.move(source, target)
        elif os.path.isdir(source) and not os.path.islink(source):
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    except OSError as fault:
        why = faults.explained(fault, target)
        raise why if isinstance(why, SpoolError) else SpoolError(f"{source}: {fault}") from None


def _stamped(wanted: Manifest, task_id: str, submitted: Submitted) -> Manifest:
    return msgspec.structs.replace(wanted, id=task_id, submitted=submitted)


def _submitted(now: float) -> Submitted:
    return Submitted(time=units.stamp(now), by=owner.user_name(), host=os.uname().nodename)


def _make_nest(tree: Tree) -> str:
    nest = tree.tmp(nest_name())
    files.make_folder(nest)
    return nest


def nest_name() -> str:
    """A fresh name for this process's folder in tmp/."""
    place = owner.here()
    return layout.owner_name("tmp", place.host, place.boot, place.pid).removeprefix("tmp.")


def _leave_nest(nest: str) -> None:
    if not files.remove_folder(nest):
        files.remove_tree(nest)


def _build(built: str, stamped: Manifest, fill: Fill | None, *, sync: bool = False) -> None:
    files.new_folder(built)
    if fill:
        fill(built)
    if stamped.array.startswith(WITH_VALUES) and not files.exists(f"{built}/{layout.VALUES}"):
        raise ManifestError("key 'array': its values are missing; use: spool submit --array-from")
    content = manifest.encode(stamped)
    files.write_new(f"{built}/{layout.MANIFEST}", content, sync=sync)


def _show_group(folder: str, target: str, ids: list[str]) -> None:
    """One rename for the whole group where it is new; else task by task."""
    with suppress(FileExistsError):  # others may use the same group, so only its task proves it
        _move_new(folder, target, f"{target}/{ids[0]}")
        return
    for task_id in ids:
        _move_new(f"{folder}/{task_id}", f"{target}/{task_id}")
    files.remove_folder(folder)
    files.sync(target)


def _move_new(built: str, target: str, proof: str = "") -> None:
    if not files.move(built, target, proof=proof):
        raise SpoolError(f"{built}: vanished before it was submitted; somebody emptied tmp/")
