"""Tasks that wait for others, in real processes: graphs of any form, races, kills, tasks that make
tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import eventually, run_spool, where
from crashing import Tell, claimed, killed_at_each_call, one, start_owner
from test_race import together

from spool import Spool, config
from spool.errors import ManifestError, Refused
from spool.launcher import inputs
from spool.queue import (
    advance,
    claim,
    control,
    files,
    keys,
    kinship,
    layout,
    manifest,
    submit,
    tasks,
    wait,
)
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner

Command = Callable[..., subprocess.CompletedProcess[str]]
SPOOL = f"{sys.executable} -m spool.cli"


tmp_path, no_process_stays = crashing.tmp_path, crashing.no_process_stays


# -- helpers -------------------------------------------------------------------------------------


def bulk(folder: Path, items: list[dict[str, Any]]) -> str:
    """A file for `submit --from`."""
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps({"command": ["true"], **item}) + "\n" for item in items))
    return str(path)


def by_name(tree: Tree) -> dict[str, str]:
    """Ids by names, each of which must be the only one."""
    found = [spot.id for spot in tasks.spots(tree, tuple(State))]
    ids = {task_id.partition(".")[0]: task_id for task_id in found}
    assert len(ids) == len(found)
    return ids


def states(tree: Tree) -> Counter[str]:
    """How many tasks lie in each state."""
    return Counter(str(spot.state) for spot in tasks.spots(tree, tuple(State)))


def launched(tree: Tree, *words: str, timeout: float = 120) -> None:
    """A launcher until nothing is left that it can run."""
    ran = run_spool(
        tree.root, "launcher", "--idle-timeout", "0", "--quiet", *words, timeout=timeout
    )
    assert ran.returncode == 0, ran.stderr


def ended(tree: Tree, me: Owner, task_id: str, code: int = 0) -> claim.Place:
    """End a task as a launcher does, up to its move and not further; where it went."""
    task = claimed(me, task_id)
    attempt = task.story.attempt + 1
    crashing.line(task, "start", attempt=attempt, owner=me.name)
    crashing.line(task, "exit", attempt=attempt, owner=me.name, code=code)
    place = claim.place_of(tree, task, time.time())
    assert claim.hand_on(me, task_id, place)
    return place


def finished(tree: Tree, me: Owner, task_id: str, code: int = 0) -> None:
    """End a task and move its children on."""
    ended(tree, me, task_id, code)
    advance.after(me, [task_id])


class Tally:
    """A watcher that counts the calls on the tree."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "before":
            self.calls[operation] += 1


def counted(work: Callable[[], object]) -> Counter[str]:
    """The calls on the tree that some work takes."""
    tally = Tally()
    files.watch(tally)
    try:
        work()
    finally:
        files.watch(None)
    return tally.calls


def python(tree: Tree, text: str, folder: Path, name: str) -> list[str]:
    """A command that runs a Python program with this spool's package."""
    path = folder / f"{name}.py"
    path.write_text(text)
    return [sys.executable, str(path)]


# -- graphs of any form --------------------------------------------------------------------------


def test_a_chain_of_five_hundred_runs_link_by_link_in_one_launcher(
    tree: Tree, tmp_path: Path, command: Command
) -> None:
    ran = tmp_path / "ran"
    links = 500
    items = [
        {"name": f"c{n}", "command": f"echo {n} >> {ran}", "after": [f"c{n - 1}"] if n else []}
        for n in range(links)
    ]
    assert command("submit", "--from", bulk(tmp_path, items)).returncode == 0
    launched(tree, "--cores", "2")
    assert [int(line) for line in ran.read_text().split()] == list(range(links))
    assert states(tree) == {"FINISHED": links}
    crashing.assert_sound(tree)


def test_ten_thousand_links_are_told_in_one_file_and_move_on_one_by_one(
    tree: Tree, tmp_path: Path, command: Command
) -> None:
    """All that a link costs, but its program: the calls on the tree are counted."""
    links, steps = 10_000, 300
    items = [{"name": f"c{n}", "after": [f"c{n - 1}"] if n else []} for n in range(links)]
    assert command("submit", "--from", bulk(tmp_path, items), timeout=200).returncode == 0
    assert states(tree) == {"READY": 1, "WAITING": links - 1}
    ids, me = by_name(tree), start_owner(tree)

    def goes_on(first: int) -> Counter[str]:
        total: Counter[str] = Counter()
        for n in range(first, first + steps):
            ended(tree, me, ids[f"c{n}"])
            total += counted(lambda n=n: advance.after(me, [ids[f"c{n}"]]))
            assert where(tree, ids[f"c{n + 1}"]).startswith("READY/")
        return total

    assert goes_on(0).total() <= 12 * steps
    me.end()


def test_a_fan_out_of_ten_thousand_costs_a_few_calls_a_child(
    tree: Tree, tmp_path: Path, command: Command
) -> None:
    children = 10_000
    root = one(tree, name="root")
    items = [{"name": f"c{n}", "after": [root]} for n in range(children)]
    assert command("submit", "--from", bulk(tmp_path, items), timeout=200).returncode == 0
    assert len(files.names(tree.group(State.WAITING, root))) == children
    me = start_owner(tree)
    ended(tree, me, root)
    calls = counted(lambda: advance.after(me, [root]))
    assert calls["rename"] <= children + 10
    assert calls.total() <= 4 * children + 100, calls  # two opens, a rename; a stat for all
    assert states(tree) == {"FINISHED": 1, "READY": children}
    me.end()


@pytest.mark.parametrize("order", ["oldest first", "youngest first"])
def test_a_fan_in_of_ten_thousand_looks_at_each_parent_about_once(tree: Tree, order: str) -> None:
    count, at_once = 10_000, 500
    ids = crashing.many(tree, count)
    reduce = one(tree, name="reduce", after=ids)
    assert where(tree, reduce) == f"WAITING/{ids[-1]}"
    me = start_owner(tree)
    left = ids if order == "oldest first" else ids[::-1]
    calls: Counter[str] = Counter()
    for start in range(0, count, at_once):
        batch = left[start : start + at_once]
        for task_id in batch:
            shard = layout.shard_of(task_id)
            group = next(iter(files.names(tree.state(State.READY))))
            source = tree.task(State.READY, group, task_id)
            assert files.move(source, tree.task(State.FINISHED, shard, task_id))
        calls += counted(lambda batch=batch: advance.after(me, batch))
        assert where(tree, reduce).startswith("READY" if start + at_once == count else "WAITING")
    assert calls.total() <= 3 * count, calls
    me.end()


def test_diamonds_run_each_corner_once_and_in_order_by_two_launchers_at_once(
    tree: Tree, tmp_path: Path, command: Command
) -> None:
    ran = tmp_path / "ran"
    items = []
    for d in range(30):
        for corner, after in (("t", []), ("l", ["t"]), ("r", ["t"]), ("b", ["l", "r"])):
            items.append({
                "name": f"{corner}{d}",
                "command": f"echo {corner}{d} >> {ran}",
                "after": [f"{one}{d}" for one in after],
            })  # fmt: skip
    assert command("submit", "--from", bulk(tmp_path, items[::-1])).returncode == 0  # forward
    words = [*SPOOL.split(), "--spool", tree.root, "launcher", "--quiet", "--cores", "1"]
    two = [subprocess.Popen([*words, "--idle-timeout", "2s"]) for _ in range(2)]
    assert [launcher.wait(100) for launcher in two] == [0, 0]
    lines = ran.read_text().split()
    assert Counter(lines) == Counter(item["name"] for item in items)
    at = {name: number for number, name in enumerate(lines)}
    for d in range(30):
        assert at[f"t{d}"] < min(at[f"l{d}"], at[f"r{d}"]) < max(at[f"l{d}"], at[f"r{d}"])
        assert max(at[f"l{d}"], at[f"r{d}"]) < at[f"b{d}"]
    crashing.assert_sound(tree)


def test_cycles_unknown_parents_and_ambiguous_names_are_told_and_the_rest_goes_in(
    tree: Tree, tmp_path: Path, command: Command
) -> None:
    items = [
        {"name": "a", "after": ["c"]},
        {"name": "b", "after": ["a"]},
        {"name": "c", "after": ["b"]},
        {"name": "d", "after": ["nobody"]},
        {"name": "e", "after": ["d"]},
        {"name": "twin"},
        {"name": "twin"},
        {"name": "f", "after": ["twin"]},
        {"name": "self", "after": ["self"]},
        {"name": "late", "after": ["early"]},
        {"name": "early"},
    ]
    said = command("submit", "--from", bulk(tmp_path, items))
    assert said.returncode == 1
    assert "a after c after b after a" in said.stderr or "c after b after a after c" in said.stderr
    assert "there is no task 'nobody'" in said.stderr
    assert "several tasks here are named 'twin'" in said.stderr
    assert "self after self" in said.stderr
    assert "submitted 4 tasks, rejected 7" in said.stderr
    names = Counter(spot.id.partition(".")[0] for spot in tasks.spots(tree, tuple(State)))
    assert names == {"twin": 2, "late": 1, "early": 1}
    late = next(s for s in tasks.spots(tree, (State.WAITING,)))
    assert late.group.startswith("early.")
    before = crashing.assert_sound(tree)
    said = command("submit", "--all-or-nothing", "--from", bulk(tmp_path, items))
    assert said.returncode == 1 and said.stdout == ""
    assert crashing.assert_sound(tree) == before
    said = command("submit", "--after", "nobody", "--", "true")
    assert said.returncode != 0 and "nobody" in said.stderr


# -- races and kills -----------------------------------------------------------------------------


def test_two_finishers_at_once_let_each_child_go_once(tree: Tree) -> None:
    for _ in range(20):
        mother, father = one(tree, name="mother"), one(tree, name="father")
        children = crashing.many(tree, 10, after=[mother, father])

        def finishes(parent: str) -> crashing.Scenario:
            def works(tell: Tell) -> None:
                me = start_owner(tree)
                finished(tree, me, parent)
                me.end()

            return works

        together(finishes(mother), finishes(father))
        assert {where(tree, child)[:6] for child in children} == {"READY/"}
    crashing.assert_sound(tree)


@pytest.mark.parametrize("repair", ["sweep", "takeover", "check"])
def test_a_finisher_killed_at_any_call_leaves_no_child_behind(tree: Tree, repair: str) -> None:
    family: list[str] = []

    def prepare() -> crashing.Scenario:
        root, other = one(tree, name="root"), one(tree, name="other")
        child = one(tree, name="child", after=[root])
        both = one(tree, name="both", after=[other, root])
        fails = one(tree, name="fails", after=[root], on_parent_failure="fail")
        below = one(tree, name="below", after=[fails], on_parent_failure="fail")
        family[:] = [root, other, child, both, fails, below]

        def works(tell: Tell) -> None:
            me = start_owner(tree)
            finished(tree, me, root, code=1)
            with control.verb(tree, config.load(tree.root), "retry") as by:
                control.once(control.retry, by, tasks.Spot(*_spot(tree, root)))
            finished(tree, me, root)
            tell("done")
            os.kill(os.getpid(), signal.SIGKILL)

        return works

    for point, told in killed_at_each_call(prepare, stride=3):
        root, other, child, both, fails, below = family
        if repair == "check":
            crashing.findings(tree, repair=True)
        else:
            crashing.taken_over(tree)
        if repair == "sweep":
            me = start_owner(tree)
            advance.Sweep(me).step()
            me.end()
        over = where(tree, root).startswith("FINISHED")
        assert where(tree, child).startswith("READY/" if over else f"WAITING/{root}"), point
        assert where(tree, both) == f"WAITING/{other if over else root}", point
        failed = where(tree, fails)
        assert failed.startswith(("FAILED/parent@", "READY/" if over else "WAITING/")), point
        assert where(tree, below).startswith(
            "FAILED/parent@" if failed.startswith("FAILED") else f"WAITING/{fails}"
        ), point
        if told.told == ["done"]:
            break
    crashing.findings(tree, repair=True)
    crashing.assert_sound(tree)


def _spot(tree: Tree, task_id: str) -> tasks.Spot:
    spot = tasks.find(tree, task_id)
    assert spot is not None
    return spot


def test_a_child_submitted_while_its_parent_ends_is_never_left_behind(tree: Tree) -> None:
    rounds = 100
    roots = crashing.many(tree, rounds)
    wanted = [manifest.from_mapping({"command": "true", "after": [root]}, "t") for root in roots]

    def finishes(tell: Tell) -> None:
        me = start_owner(tree)
        for root in roots:
            finished(tree, me, root)
        me.end()

    def submits(tell: Tell) -> None:
        for each in wanted:
            tell(submit.submit(tree, each))

    _, told, more = together(finishes, submits, submits)
    for child in [*told, *more]:
        assert where(tree, str(child)).startswith("READY/"), child
    crashing.assert_sound(tree)


def test_a_launcher_does_not_leave_what_a_killed_submitter_left_under_a_finished_parent(
    tree: Tree,
) -> None:
    root = one(tree, name="root")
    child = one(tree, name="child", after=[root])
    me = start_owner(tree)
    ended(tree, me, root)
    me.end()
    launched(tree)
    assert where(tree, child).startswith("FINISHED/")


# -- tasks that make tasks -----------------------------------------------------------------------

MAKES = """
import os, spool
here = spool.Spool()
me = os.environ["SPOOL_TASK"]
first = here.submit("true", name="first", key="first")
second = here.submit(["sh", "-c", "echo $SPOOL_PARENTS > told"], name="second", key="second",
                     after=[me, first])
print(first.id, second.id)
open("made", "a").write(f"{first.id} {second.id}\\n")
if not os.path.exists("again"):
    open("again", "w").close()
    import signal, time
    %s
"""


def test_a_task_submits_children_of_its_own_which_wait_for_its_end(
    tree: Tree, tmp_path: Path
) -> None:
    maker = one(tree, python(tree, MAKES % "pass", tmp_path, "makes"), name="maker")
    launched(tree)
    ids = by_name(tree)
    assert states(tree) == {"FINISHED": 3}
    told = Path(tree.task(State.FINISHED, layout.shard_of(ids["second"]), ids["second"]), "told")
    assert told.read_text().split() == [maker, ids["first"]]


def test_a_task_killed_with_its_launcher_makes_its_children_once_though_it_runs_twice(
    tree: Tree, tmp_path: Path
) -> None:
    dies = "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    maker = one(tree, python(tree, MAKES % dies, tmp_path, "makes"), name="maker")
    words = [*SPOOL.split(), "--spool", tree.root, "launcher", "--quiet", "--no-pin"]
    assert subprocess.run(words, timeout=60, check=False).returncode == -signal.SIGKILL
    launched(tree)
    assert states(tree) == {"FINISHED": 3}
    made = Path(tree.task(State.FINISHED, layout.shard_of(maker), maker), "made")
    first, second = made.read_text().splitlines()
    assert first == second
    assert crashing.words_of(tree, maker) == ["start", "lost", "start", "exit"]


def test_a_key_whose_submitter_is_killed_at_any_call_yields_one_task(tree: Tree) -> None:
    keyed = iter(range(10_000))
    wanted: list[manifest.Manifest] = []

    def prepare() -> crashing.Scenario:
        mapping = {"command": "true", "key": f"k{next(keyed)}"}
        wanted[:] = [manifest.from_mapping(mapping, "test")]
        return lambda tell: tell(submit.submit(tree, wanted[0]))

    for count, (point, told) in enumerate(killed_at_each_call(prepare), 1):
        again = [
            work[0] for work in together(*[lambda tell: tell(submit.submit(tree, wanted[0]))] * 3)
        ]
        assert len({*again, *told.told}) == 1, point
        crashing.findings(tree, repair=True)
        assert len(crashing.assert_sound(tree, point)) == count, point


def test_a_key_twice_in_one_submission_and_a_key_whose_task_could_not_be_built(
    tree: Tree, tmp_path: Path, command: Command
) -> None:
    items = [{"key": "a", "after": ["x.26010100-00-aaaaaaaaaa"]}, {"key": "a"}, {"key": "a"}]
    began = time.monotonic()
    said = command("submit", "--from", bulk(tmp_path, items))
    assert time.monotonic() - began < 30
    assert said.returncode == 1 and "there is no task" in said.stderr
    assert states(tree) == {"READY": 1}
    assert command("submit", "--key", "a", "--", "true").stdout.strip() in by_name(tree).values()
    nobody = manifest.from_mapping(
        {"command": "true", "key": "b", "after": ["x.26010100-00-aaaaaaaaaa"]}, "test"
    )
    with pytest.raises(ManifestError, match="there is no task"):
        submit.submit(tree, nobody)
    good = submit.submit(tree, manifest.from_mapping({"command": "true", "key": "b"}, "test"))
    assert where(tree, good).startswith("READY/")
    assert keys.first.__doc__


# -- parents that go -----------------------------------------------------------------------------


def test_a_removed_parent_counts_as_what_it_was(tree: Tree) -> None:
    me = start_owner(tree)
    good, bad = one(tree, name="good"), one(tree, name="bad")
    waits = one(tree, name="waits", after=[good, bad])
    ended(tree, me, good)
    ended(tree, me, bad, code=1)
    with control.verb(tree, config.load(tree.root), "rm") as by:
        for parent in (good, bad):
            control.once(control.remove, by, _spot(tree, parent))
    after_good = one(tree, name="late", after=[good])
    assert where(tree, after_good).startswith("READY/")
    assert where(tree, waits) == f"WAITING/{bad}"
    assert kinship.blocked(tree, {waits}) == {waits}
    with control.verb(tree, config.load(tree.root), "modify",
                      changes={"on_parent_failure": "run"}) as by:  # fmt: skip
        control.once(control.modify, by, _spot(tree, waits))
    assert where(tree, waits).startswith("READY/")
    me.end()


def test_a_removal_that_was_cut_short_does_not_tell_of_a_parent_that_runs_again(
    tree: Tree,
) -> None:
    """rm dies between its record and the removal; the task comes back, and is retried."""
    me = start_owner(tree)
    root = one(tree, name="root")
    ended(tree, me, root)

    def removes(tell: Tell) -> None:
        with control.verb(tree, config.load(tree.root), "rm") as by:
            control.once(control.remove, by, _spot(tree, root))

    def dies(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "rename" and arguments[1].startswith(f"{tree.tmp()}/"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert crashing.Child(removes, dies).wait().killed
    crashing.findings(tree, repair=True)
    assert where(tree, root).startswith("FINISHED/") and files.exists(tree.seen(root))
    with control.verb(tree, config.load(tree.root), "retry") as by:
        control.once(control.retry, by, _spot(tree, root))
    child = one(tree, name="child", after=[root])
    assert where(tree, child) == f"WAITING/{root}"
    finished(tree, me, root)
    assert where(tree, child).startswith("READY/")
    me.end()


def test_a_parent_that_is_nowhere_sends_its_child_to_no_parent_at_the_second_round(
    tree: Tree,
) -> None:
    root = one(tree, name="root")
    child = one(tree, name="child", after=[root])
    below = one(tree, name="below", after=[child], on_parent_failure="fail")
    files.remove_tree(_spot(tree, root).path(tree))
    me = start_owner(tree)
    sweep = advance.Sweep(me)
    assert sweep.step() == 0 and where(tree, child) == f"WAITING/{root}"
    assert sweep.step() == 2
    assert where(tree, child).startswith("FAILED/no-parent@")
    assert where(tree, below).startswith("FAILED/parent@")
    assert crashing.history_of(tree, child)[-1]["reason"] == f"its parent {root} is nowhere"
    other = one(tree, name="other")
    again = one(tree, name="again", after=[other])
    files.remove_tree(_spot(tree, other).path(tree))
    me.end()  # what a living launcher sweeps is left to it
    assert [found.repaired for found in crashing.findings(tree, repair=True)] == [True]
    assert where(tree, again).startswith("FAILED/no-parent@")


def test_a_cancelled_parent_blocks_its_children_and_wait_says_so(
    tree: Tree, command: Command
) -> None:
    root = one(tree, name="root")
    child = one(tree, name="child", after=[root])
    below = one(tree, name="below", after=[child])
    runs = one(tree, name="runs", after=[root], on_parent_failure="run")
    fails = one(tree, name="fails", after=[root], on_parent_failure="fail")
    assert command("cancel", root).returncode == 0
    assert where(tree, runs).startswith("READY/")
    assert where(tree, fails).startswith("FAILED/parent@")
    assert kinship.blocked(tree, {child, below, runs}) == {child, below}
    said = command("wait", child, below, timeout=30)
    assert said.returncode != 0 and "blocked" in said.stderr + said.stdout
    assert not crashing.findings(tree)
    assert command("retry", root).returncode == 0
    launched(tree)
    assert states(tree) == {"FINISHED": 4, "FAILED": 1}
    pending = wait.Pending(tree, [child, below])
    assert wait.wait(pending, 5) and pending.ends[State.FINISHED] == 2


def test_a_subtree_is_cancelled_and_its_neighbour_goes_on(tree: Tree, command: Command) -> None:
    """Balsam's kill of a subtree: A with {B, C} below it ends, D with E below it does not."""
    top = one(tree, ["sleep", "300"], name="A", grace=1)
    inner = one(tree, name="B", after=[top])
    both = one(tree, name="C", after=[top, inner], on_parent_failure="run")
    other = one(tree, name="D")
    last = one(tree, name="E", after=[other])
    words = [*SPOOL.split(), "--spool", tree.root, "launcher", "--quiet", "--cores", "1",
             "--idle-timeout", "1s"]  # fmt: skip
    launcher = subprocess.Popen(words)
    eventually(lambda: where(tree, top).startswith("RUNNING"), "A runs")
    assert command("cancel", "-r", top).returncode == 0
    assert {where(tree, one)[:9] for one in (top, inner, both)} == {"CANCELLED"}
    assert launcher.wait(60) == 0
    assert {where(tree, one)[:8] for one in (other, last)} == {"FINISHED"}
    assert crashing.words_of(tree, both) == ["cancelled"]
    crashing.assert_sound(tree)


def test_a_claimed_task_that_is_cancelled_before_its_start_lets_its_children_know(
    tree: Tree, command: Command
) -> None:
    crashing.many(tree, 1, ["sleep", "30"], grace=1)
    waits = crashing.many(tree, 3)
    runs = [one(tree, after=[task_id], on_parent_failure="fail") for task_id in waits]
    for number, task_id in enumerate(waits):
        assert command("cancel", task_id).returncode == 0
        assert where(tree, runs[number]).startswith("FAILED/parent@")


# -- changing one's mind -------------------------------------------------------------------------


def test_parents_are_added_and_a_cycle_is_refused_with_its_way(
    tree: Tree, command: Command
) -> None:
    a, b = one(tree, name="a"), one(tree, name="b")
    c = one(tree, name="c", after=[a])
    assert command("modify", a, "--after", b).returncode == 0
    assert where(tree, a) == f"WAITING/{b}"
    said = command("modify", b, "--after", c)
    assert said.returncode == 1 and f"{b} after {c} after {a} after {b}" in said.stderr
    said = command("modify", b, "--after", b)
    assert said.returncode == 1
    assert where(tree, b).startswith("READY/")
    launched(tree)
    assert states(tree) == {"FINISHED": 3}
    said = command("modify", b, "--after", c)
    assert said.returncode == 1


def test_a_cycle_through_a_task_s_replacement_is_refused(tree: Tree) -> None:
    me = start_owner(tree)
    root = one(tree, name="root")
    child = one(tree, name="child", after=[root])
    ended(tree, me, root, code=1)
    with pytest.raises(Refused, match="would wait for itself"):
        one(tree, name="rescue", after=[child], replaces=root)
    rescue = Spool(tree.root).submit("true", name="rescue", replaces=root)
    assert where(tree, root).startswith("FAILED/replaced@")
    assert where(tree, child) == f"WAITING/{rescue.id}"
    with (
        control.verb(tree, config.load(tree.root), "modify", changes={"after": [child]}) as by,
        pytest.raises(Refused, match="would wait for itself"),
    ):
        control.once(control.modify, by, _spot(tree, rescue.id))
    finished(tree, me, rescue.id)
    assert where(tree, child).startswith("READY/")
    me.end()


def test_two_people_who_close_a_cycle_at_once_do_not_both_succeed(tree: Tree) -> None:
    for _ in range(25):
        a, b = one(tree, name="a"), one(tree, name="b")

        def waits(child: str, parent: str) -> crashing.Scenario:
            def works(tell: Tell) -> None:
                changes = {"after": [parent]}
                with control.verb(tree, config.load(tree.root), "modify", changes=changes) as by:
                    spot = _spot(tree, child)
                    tell([outcome.refused for outcome in control.each(control.modify, by, [spot])])

            return works

        together(waits(a, b), waits(b, a))
        for task_id in (a, b):
            kinship.no_cycle(tree, task_id, tasks.load(_spot(tree, task_id).path(tree),
                                                       task_id).manifest.after)  # fmt: skip


# -- files from parents --------------------------------------------------------------------------


def test_files_are_taken_from_parents_linked_or_copied_and_again_in_a_second_attempt(
    tree: Tree, tmp_path: Path
) -> None:
    makes = "mkdir -p deep/er; echo 1 > a.txt; echo 2 > b.txt; echo 3 > deep/er/c.dat"
    first = one(tree, makes, name="first")
    second = one(tree, "echo second > a2.txt", name="second")
    reads = "cat a.txt a2.txt deep/er/c.dat > read; echo x >> %s; test -e b || { touch b; false; }"
    linked = one(tree, reads % "/dev/null", name="linked", after=[first, second], max_attempts=2,
                 inputs=[{"from": "*", "glob": "a*.txt"}, {"from": "first", "glob": "deep"}],
                 )  # fmt: skip
    copied = one(tree, reads % "a.txt deep/er/c.dat", name="copied", after=[first, second],
                 max_attempts=2,
                 inputs=[{"from": "*", "glob": "a*.txt", "copy": True},
                         {"from": first, "glob": "deep", "copy": True}])  # fmt: skip
    none = one(tree, "true", name="none", after=[first], inputs=[{"from": "first", "glob": "z*"}])
    launched(tree)
    for task_id in (linked, copied):
        path = Path(_spot(tree, task_id).path(tree))
        assert path.parent.parent.name == "FINISHED", crashing.history_of(tree, task_id)
        assert (path / "read").read_text() == "1\nsecond\n3\n"
        assert (path / "a.txt").is_symlink() == (task_id == linked)
        assert not (path / "b.txt").exists()
    of_first = Path(_spot(tree, first).path(tree))
    assert (of_first / "a.txt").read_text() == "1\n"
    assert (of_first / "deep" / "er" / "c.dat").read_text() == "3\n"
    assert where(tree, none).startswith("FAILED/")
    assert "nothing there matches 'z*'" in str(crashing.history_of(tree, none))


def test_a_name_means_that_parent_alone_and_not_one_that_begins_so(tree: Tree) -> None:
    short, long = one(tree, "echo short > x", name="a"), one(tree, "echo long > y", name="a.b")
    child = one(tree, "ls > told", after=[short, long], inputs=[{"from": "a", "glob": "*[xy]"}])
    launched(tree)
    path = Path(_spot(tree, child).path(tree))
    assert (path / "x").exists() and not (path / "y").exists()
    assert inputs.provide.__doc__


# -- the door ------------------------------------------------------------------------------------


def test_an_arrival_waits_for_its_parents_and_is_refused_without_them(
    tree: Tree, command: Command
) -> None:
    root = one(tree, name="root")
    arrival = layout.new_id("drop", "26010100-00")
    for name, after in ((arrival, [root]), ("stranger", ["x.26010100-00-aaaaaaaaaa"]),
                        ("second", [arrival])):  # fmt: skip
        path = tree.task(State.CREATED, "", name)
        files.new_folder(path)
        wanted = manifest.from_mapping({"command": "true", "after": after}, "test")
        files.write_new(f"{path}/{layout.MANIFEST}", manifest.encode(wanted))
    launched(tree)
    told = [crashing.history_of(tree, s.id)[-1] for s in tasks.spots(tree, (State.FAILED,))]
    assert states(tree) == {"FINISHED": 3, "FAILED": 1}, told
    assert where(tree, arrival).startswith("FINISHED/")
    failed = next(tasks.spots(tree, (State.FAILED,)))
    assert failed.group.startswith("rejected@")
    assert "there is no task" in crashing.history_of(tree, failed.id)[-1]["reason"]
    ends = {spot.id.partition(".")[0]: _ended_at(tree, spot.id)
            for spot in tasks.spots(tree, (State.FINISHED,))}  # fmt: skip
    assert ends["root"] <= ends["drop"] <= ends["second"]


def _ended_at(tree: Tree, task_id: str) -> str:
    return str(next(e["time"] for e in crashing.history_of(tree, task_id) if e["what"] == "exit"))


# -- Balsam's graphs -----------------------------------------------------------------------------

MAKE_SIDES = "for n in 1 2 3; do echo $((n + 1)) > side$n.dat; done"
SQUARE = "for f in side*.dat; do n=$(cat $f); echo $((n * n)) > square${f#side}; done"
REDUCE = "s=0; for f in square*.dat; do s=$((s + $(cat $f))); done; echo $s > total"


def test_balsam_s_static_graph_adds_up_the_squares_of_its_sides(tree: Tree) -> None:
    sides = one(tree, MAKE_SIDES, name="make_sides")
    squares = [
        one(tree, SQUARE, name=f"square{n}", after=[sides],
            inputs=[{"from": "make_sides", "glob": f"side{n}.dat"}])
        for n in (1, 2, 3)
    ]  # fmt: skip
    reduce = one(tree, REDUCE, name="reduce", after=squares,
                 inputs=[{"from": "*", "glob": "square*.dat"}])  # fmt: skip
    launched(tree)
    assert states(tree) == {"FINISHED": 5}
    total = Path(_spot(tree, reduce).path(tree), "total").read_text()
    assert int(total) == 4 + 9 + 16


SPAWNS = """
import os, random, subprocess, sys, spool
here, me = spool.Spool(), os.environ["SPOOL_TASK"]
for n in range(6):
    open(f"side{n}.dat", "w").write(str(n + 1))
    child = here.submit(%r, name=f"square{n}", after=[me], key=f"square{n}",
                        inputs=[{"from": "make_sides", "glob": f"side{n}.dat"}])
    subprocess.run([sys.executable, "-m", "spool.cli", "modify", "reduce", "--after", child.id],
                   check=True)
"""


def test_balsam_s_dynamic_graph_children_spawned_while_reduce_already_waits(
    tree: Tree, tmp_path: Path
) -> None:
    sides = one(tree, python(tree, SPAWNS % SQUARE, tmp_path, "spawns"), name="make_sides")
    reduce = one(tree, REDUCE, name="reduce", after=[sides],
                 inputs=[{"from": "*", "glob": "s*.dat"}])  # fmt: skip
    launched(tree)
    assert states(tree) == {"FINISHED": 8}, crashing.history_of(tree, reduce)
    task = tasks.load(_spot(tree, reduce).path(tree), reduce)
    assert len(task.manifest.after) == 7
    assert int(Path(task.path, "total").read_text()) == sum(n * n for n in range(1, 7))
    crashing.assert_sound(tree)
