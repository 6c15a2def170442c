"""A file system that refuses: every error at every call, and disks that are really full."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import all_ids, eventually, make_tree, run_spool, where
from crashing import claimed, line, one, start_owner

from spool import config
from spool.errors import DiskFull, FileSystemFault, SpoolError
from spool.queue import claim, control, files, layout, manifest, submit, tasks
from spool.queue.claim import Claimer
from spool.queue.control import Act
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.place import Place

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE]
TRUE = manifest.from_mapping({"command": "true"}, "test")
named = pytest.mark.parametrize("error", ERRORS, ids=lambda error: errno.errorcode[error])


class Failing:
    """A watcher that lets the n-th call fail, before its effect or after it: a lost reply."""

    def __init__(self, error: int, number: int, when: str) -> None:
        self.error, self.left, self.when = error, number, when

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == self.when:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.error, os.strerror(self.error), str(arguments[:1]))


def each_call_fails(error: int, work: Callable[[], object]) -> Iterator[tuple[str, object]]:
    """Do the work with its 1st, 2nd, ... call failing, until none fails; where, what came of it."""
    for when in ("before", "after"):
        for number in count(1):
            failing = Failing(error, number, when)
            files.watch(failing)
            try:
                answer = work()
            except (SpoolError, OSError) as fault:
                answer = fault
            finally:
                files.watch(None)
            yield f"{when} call {number}", answer
            if failing.left > 0:
                break


# -- one error at one call -----------------------------------------------------------------------


@named
def test_a_submission_that_meets_an_error_says_so_or_succeeds_and_shows_no_half_task(
    tree: Tree, error: int
) -> None:
    answered = []
    for point, answer in each_call_fails(error, lambda: submit.submit(tree, TRUE)):
        assert not isinstance(answer, OSError), point
        if isinstance(answer, str):
            answered.append(answer)
            assert where(tree, answer).startswith("READY/"), point
        elif error in (errno.ENOSPC, errno.EDQUOT):
            assert isinstance(answer, DiskFull), point
        for spot in tasks.spots(tree, (State.READY,)):
            assert tasks.load(spot.path(tree), spot.id).manifest.id == spot.id, point
    assert set(answered) <= set(all_ids(tree))
    assert answered


@named
@pytest.mark.parametrize("crowded", [False, True], ids=["new groups", "groups in use"])
def test_a_bulk_submission_tells_exactly_what_it_made_visible(
    tree: Tree, error: int, crowded: bool
) -> None:
    wide = manifest.from_mapping({"command": "true", "cores_per_rank": 4}, "test")
    told: list[str] = []

    def bulk() -> None:
        with submit.Submitter(tree, told.extend) as submitter:
            if crowded:
                submitter._counter = 7
            for wanted in (TRUE, wide, TRUE):
                submitter.add(wanted)
            submitter.finish()

    silent = 0
    for point, answer in each_call_fails(error, bulk):
        assert set(told) <= set(all_ids(tree)), point
        untold = len(all_ids(tree)) - len(told)
        # Only where the folder itself could not be made durable is nothing promised.
        assert untold == silent or isinstance(answer, FileSystemFault), point
        silent = untold
        for spot in tasks.spots(tree, (State.READY,)):
            assert tasks.load(spot.path(tree), spot.id).manifest.id == spot.id, point
    assert silent <= 6


@named
def test_a_claimer_that_meets_an_error_loses_no_task(tree: Tree, error: int) -> None:
    ids = sorted([*crashing.many(tree, 2), one(tree)])
    owner = start_owner(tree)

    def claims() -> list[str]:
        claimer = Claimer(owner)
        claimer.refresh()
        return list(claimer.take(lambda shape: 5, 5))

    for point, _ in each_call_fails(error, claims):
        assert sorted(all_ids(tree)) == ids, point
        for task_id in files.names(owner.claims):
            claim.hand_on(owner, task_id, Place(State.READY, f"c1@{layout.shard_of(task_id)}"))


@named
def test_a_lost_reply_to_a_move_is_found_out(tree: Tree, owner: Owner, error: int) -> None:
    task_id = one(tree)
    finished = Place(State.FINISHED, layout.shard_of(task_id))
    for point, answer in each_call_fails(
        error, lambda: claimed(owner, task_id) and claim.hand_on(owner, task_id, finished)
    ):
        assert all_ids(tree) == [task_id], point
        if answer is True:
            assert where(tree, task_id).startswith("FINISHED/"), point
        if not where(tree, task_id).startswith("READY"):
            spot = tasks.find(tree, task_id)
            assert spot is not None
            lane = tree.task(State.READY, f"c1@{layout.shard_of(task_id)}", task_id)
            assert files.move(spot.path(tree), lane)


@pytest.mark.parametrize("error", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ENOENT])
def test_a_move_whose_answer_was_lost_is_not_done_twice(tree: Tree, error: int) -> None:
    task_id = one(tree)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    target = tree.task(State.FINISHED, layout.shard_of(task_id), task_id)
    files.make_folder(os.path.dirname(target))
    with crashing.failing("rename", error, when="after"):
        assert files.move(spot.path(tree), target) is True


def test_a_move_that_never_answers_names_both_ends(tree: Tree) -> None:
    task_id = one(tree)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    with (
        crashing.failing("rename", errno.EIO, times=9),
        pytest.raises(FileSystemFault, match=rf"{task_id}.*cannot be moved to.*spool doctor"),
    ):
        files.move(spot.path(tree), tree.task(State.FINISHED, "x", task_id))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("act", [control.hold, control.retry])
def test_a_verb_that_meets_an_error_says_so_and_puts_the_task_back(
    tree: Tree, act: Act, error: int
) -> None:
    for when in ("before", "after"):
        for number in count(1, 2):
            task_id = one(tree) if act is control.hold else _failed(tree)
            failing = Failing(error, number, when)

            spot = tasks.find(tree, task_id)
            assert spot is not None

            def acts(
                tell: crashing.Tell, spot: tasks.Spot = spot, failing: Failing = failing
            ) -> None:
                try:
                    with control.verb(tree, config.load(tree.root), act.__name__) as by:
                        (outcome,) = control.each(act, by, [spot])
                    tell(outcome.refused)
                except SpoolError as fault:
                    tell(str(fault))
                tell(failing.left > 0)

            said, done = crashing.Child(acts, failing).wait().told
            crashing.findings(tree, repair=True)
            crashing.taken_over(tree)
            state = where(tree, task_id).partition("/")[0]
            assert state, f"{when} call {number}: {said}"
            assert said or state == ("WAITING" if act is control.hold else "READY")
            assert files.names(tree.state(State.RUNNING)) == []
            if done:
                break


def _failed(tree: Tree) -> str:
    task_id = one(tree)
    owner = start_owner(tree)
    task = claimed(owner, task_id)
    line(task, "start", attempt=1, owner=owner.name)
    line(task, "exit", attempt=1, owner=owner.name, code=1)
    claim.settle(owner, task)
    owner.end()
    return task_id


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_task_that_cannot_be_read_for_the_moment_is_not_rejected(
    tree: Tree, owner: Owner, error: int
) -> None:
    task_id = one(tree)
    claimed(owner, task_id)
    with crashing.failing("open", error):
        assert claim.read_claim(owner, task_id, config.trusted_users()) is None
    with crashing.failing("open", error):
        assert claim.read_any(owner, task_id) is None
    assert where(tree, task_id) == f"RUNNING/{owner.name}"
    assert claim.read_claim(owner, task_id, config.trusted_users()) is not None


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_owner_that_cannot_be_made_leaves_nothing(tree: Tree, error: int) -> None:
    for _, answer in each_call_fails(error, lambda: _begin_and_end(tree)):
        assert answer is None or isinstance(answer, (SpoolError, OSError))
    assert files.names(tree.folder("launchers")) == []


def _begin_and_end(tree: Tree) -> object:
    try:
        owner = start_owner(tree)
    except OSError as fault:
        return fault
    files.watch(None)
    return owner.end()


def test_half_a_line_that_a_full_disk_still_took_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"what":"start"}\n')

    def tear(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "before" and operation == "write":
            os.write(arguments[0], b'{"what":"ex')
            raise OSError(errno.ENOSPC, "No space left on device")

    files.watch(tear)
    with pytest.raises(DiskFull):
        files.append(str(path), b'{"what":"exit"}\n', heal=False)
    files.watch(None)
    files.append(str(path), b'{"what":"exit"}\n', heal=False)
    assert path.read_bytes() == b'{"what":"start"}\n{"what":"exit"}\n'


@pytest.mark.parametrize("name", ["tmp", "launchers", "READY", "FINISHED", "seen", "journal"])
def test_a_folder_that_vanished_is_made_again(tree: Tree, name: str) -> None:
    shutil.rmtree(tree.folder(name))
    task_id = one(tree)
    crashing.drained(tree)
    assert where(tree, task_id).startswith("FINISHED/")


def test_a_nest_that_somebody_emptied_is_never_told_as_submitted(tree: Tree) -> None:
    told: list[str] = []
    with submit.Submitter(tree, told.extend) as submitter:
        submitter.add(TRUE)
        shutil.rmtree(tree.tmp())
        with pytest.raises(SpoolError, match="somebody emptied tmp/"):
            submitter.finish()
    assert told == []


# -- real disks ----------------------------------------------------------------------------------


def mounted(*words: str) -> None:
    """mount(8), or skip with its reason."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=1m,nr_inodes=150", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        crashing.kill_children()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Use up every inode, and every byte."""
    folder.mkdir()
    try:
        for number in count():
            (folder / str(number)).write_bytes(b"x" * 65536)
    except OSError as fault:
        assert fault.errno == errno.ENOSPC
    try:
        for number in count(1000):
            (folder / str(number)).touch()
    except OSError as fault:
        assert fault.errno == errno.ENOSPC


def test_a_submission_to_a_full_disk_fails_clearly_and_shows_nothing(small_disk: Path) -> None:
    tree = make_tree(small_disk / "spool")
    fill(small_disk / "ballast")
    said = run_spool(tree.root, "submit", "--", "true")
    assert said.returncode == 1
    assert "No space left on device. Nothing was lost: free space" in said.stderr
    assert all_ids(tree) == [] and files.names(tree.tmp()) == []
    shutil.rmtree(small_disk / "ballast")
    assert run_spool(tree.root, "submit", "--", "true").returncode == 0


def test_a_bulk_submission_that_fills_the_disk_keeps_what_it_told(small_disk: Path) -> None:
    tree = make_tree(small_disk / "spool")
    told: list[str] = []
    with pytest.raises(DiskFull), submit.Submitter(tree, told.extend) as submitter:
        while True:
            submitter.add(TRUE)
    assert told == [] and all_ids(tree) == [] and files.names(tree.tmp()) == []
    lone = []
    with pytest.raises(DiskFull):
        while True:
            lone.append(one(tree))
    assert sorted(all_ids(tree)) == sorted(lone) and files.names(tree.tmp()) == []


def test_a_launcher_that_cannot_begin_on_a_full_disk_says_so(small_disk: Path) -> None:
    tree = make_tree(small_disk / "spool")
    one(tree)
    fill(small_disk / "ballast")
    said = run_spool(tree.root, "launcher", "--cores", "1")
    assert said.returncode == 1 and "No space left" in said.stderr, said.stderr
    assert files.names(tree.folder("launchers")) == []


def test_a_verb_on_a_full_disk_leaves_the_task_where_it_was(small_disk: Path) -> None:
    tree = make_tree(small_disk / "spool")
    task_id = one(tree)
    fill(small_disk / "ballast")
    said = run_spool(tree.root, "hold", task_id)
    assert said.returncode == 1 and "No space left" in said.stderr, said.stderr
    assert where(tree, task_id).startswith("READY/")
    assert files.names(tree.state(State.RUNNING)) == []


@pytest.fixture
def read_only(tree: Tree) -> Iterator[str]:
    """The id of a task in a spool that can only be read any more."""
    task_id = one(tree)
    mounted("--bind", tree.root, tree.root)
    try:
        mounted("-o", "remount,bind,ro", tree.root)
        yield task_id
    finally:
        subprocess.run(["umount", "-l", tree.root], check=True)


@pytest.mark.parametrize(
    "words", [("submit", "--", "true"), ("launcher", "--cores", "1"), ("hold", "ID")]
)
def test_a_read_only_spool_is_named_as_such(
    tree: Tree, read_only: str, words: tuple[str, ...]
) -> None:
    said = run_spool(tree.root, *(read_only if word == "ID" else word for word in words))
    assert said.returncode == 1
    assert "read-only" in said.stderr.lower() and "Traceback" not in said.stderr
    assert where(tree, read_only).startswith("READY/")


def test_a_read_only_spool_can_be_looked_at(tree: Tree, read_only: str) -> None:
    for words in (("ls",), ("status",), ("show", read_only)):
        assert run_spool(tree.root, *words, check=True).returncode == 0


def test_a_launcher_on_a_disk_that_fills_up_loses_nothing_and_goes_on(small_disk: Path) -> None:
    tree = make_tree(small_disk / "spool")
    gate = small_disk.parent / "gate"
    ids = [one(tree, f"until test -e {gate}; do sleep 0.05; done"), *crashing.many(tree, 2)]
    launcher = crashing.Child(lambda tell: crashing.run_launcher(tree, 1))
    eventually(lambda: "start" in crashing.words_of(tree, ids[0]), "the first task runs")
    fill(small_disk / "ballast")
    gate.touch()
    eventually(lambda: "exit" in crashing.words_of(tree, ids[0]), "the first task has ended")
    assert sorted(all_ids(tree)) == sorted(ids)
    shutil.rmtree(small_disk / "ballast")
    assert not launcher.wait().killed
    crashing.drained(tree)
    assert sorted(all_ids(tree)) == sorted(ids)
    assert {where(tree, task_id)[:8] for task_id in ids} == {"FINISHED"}
    for task_id in ids:
        assert crashing.words_of(tree, task_id).count("start") == 1
