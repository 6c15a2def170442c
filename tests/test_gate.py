"""The gate: only tasks with the tags that were asked for, and never more than a limit allows."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import crashing
import pytest
from conftest import eventually, make_tree, run_spool, where
from crashing import in_child, many, one, run_launcher, start_owner, words_of

from spool.launcher import entry, loop
from spool.launcher.book import Book, Grants
from spool.launcher.gate import Gate
from spool.launcher.nodes import Node
from spool.launcher.picker import Wishes
from spool.queue import files, layout, limits, processes, shape, tasks
from spool.queue.layout import State, Tree
from spool.queue.shape import Shape

HOSTS = ("n1", "n2")
QUICK = '[door]\nquiet = "0.2s"\n[launcher]\nsync = "none"\n'
TIMED = "date +%s.%N > began; sleep {}; date +%s.%N > ended"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A spool whose launchers wait for no disk; none of them outlives the test."""
    found = make_tree(tmp_path / "spool", QUICK)
    Path(found.app("relax")).write_text('{"command": ["true"]}')
    yield found
    for name in files.names(found.folder("launchers")):
        processes.kill_marked(name)


def allow(tree: Tree, *lines: str) -> None:
    """Write spool.toml with these lines of limits."""
    Path(tree.settings).write_text(f"format = 1\n{QUICK}[limits]\n" + "\n".join(lines))


def open_gate(tree: Tree, *tags: str, hosts: tuple[str, ...] = HOSTS) -> Gate:
    """The gate of a new launcher, which is this process, as spool.toml is now."""
    return Gate(start_owner(tree), tags, hosts)


def ready(tree: Tree, **keys: object) -> tuple[str, str]:
    """Submit a task; its lane and id."""
    task_id = one(tree, **keys)
    spot = tasks.find(tree, task_id)
    assert spot is not None and spot.state is State.READY
    return spot.group, task_id


def looked_at(gate: Gate, **keys: object) -> tuple[str, Shape]:
    """A task that the gate has seen before its claim; its id and shape."""
    group, task_id = ready(gate.tree, **keys)
    assert gate.suits(group, task_id)
    return task_id, shape.parse(group)[0]


def started(gate: Gate, book: Book, **keys: object) -> tuple[str, Grants] | None:
    """Look at a task and place it as a launcher does; None if a limit or the room says no."""
    group, task_id = ready(gate.tree, **keys)
    if not gate.suits(group, task_id):
        return None
    wanted = shape.parse(group)[0]
    found = gate.limits_of(task_id, wanted)
    if (grants := book.take(wanted, gate.allows(found))) is None:
        return None
    if gate.take(task_id, found, grants):
        return task_id, grants
    book.give(grants)
    return None


def two_nodes(cores: int = 8) -> Book:
    return Book([Node(tuple(range(cores)))] * len(HOSTS))


# -- tags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "borne", "suits"),
    [
        ((), (), True),
        ((), ("a",), True),
        (("a",), ("a",), True),
        (("a",), ("b", "a"), True),
        (("a",), ("b",), False),
        (("a",), (), False),
        (("a",), ("aa",), False),
        (("a", "b"), ("a",), False),
        (("a", "b"), ("c", "b", "a"), True),
    ],
)
def test_a_task_suits_if_it_bears_all_tags_that_were_asked_for(
    tree: Tree, asked: tuple[str, ...], borne: tuple[str, ...], suits: bool
) -> None:
    assert open_gate(tree, *asked).suits(*ready(tree, tags=list(borne))) == suits


def test_what_cannot_be_read_suits_only_who_asks_for_no_tag(tree: Tree) -> None:
    group, task_id = ready(tree, tags=["a"])
    path = tree.task(State.READY, group, task_id)
    files.replace(f"{path}/manifest.json", b"{")
    assert open_gate(tree).suits(group, task_id)
    assert not open_gate(tree, "a").suits(group, task_id)
    assert open_gate(tree).suits(group, "gone")
    assert not open_gate(tree, "a").suits(group, "gone")


@pytest.mark.parametrize(
    ("tags", "limit", "looks"),
    [
        ((), "", False),
        (("a",), "", True),
        ((), '"tag:io" = 2', True),
        ((), '"app:relax" = 2', True),
        (("a",), '"workflow:w" = 2', True),
    ],
)
def test_tasks_are_opened_only_where_their_lane_does_not_tell(
    tree: Tree, tags: tuple[str, ...], limit: str, looks: bool
) -> None:
    allow(tree, limit)
    assert open_gate(tree, *tags).looks == looks


# -- limits --------------------------------------------------------------------------------------

UNDER = {
    '"feature:x" = 1': {"requires": ["x"]},
    '"tag:io" = 1': {"tags": ["io"]},
    '"workflow:w" = 1': {"workflow": "w"},
    '"app:relax" = 1': {"app": "relax", "command": None},
}
"""A limit of each kind, and what brings a task under it."""


@pytest.mark.parametrize(("limit", "keys"), UNDER.items())
def test_under_each_kind_of_limit_one_runs_and_then_the_next(
    tree: Tree, limit: str, keys: dict[str, object]
) -> None:
    allow(tree, limit)
    gate, other, book = open_gate(tree), open_gate(tree), two_nodes()
    first = started(gate, book, **keys)
    assert first is not None
    assert started(gate, book, **keys) is None
    assert started(other, book, **keys) is None
    assert started(gate, book) is not None  # under no limit
    assert book.free == 14
    gate.give(first[0])
    book.give(first[1])
    gate.tokens.rest()
    other.tokens.rest()
    second = started(other, book, **keys)
    assert second is not None
    assert started(gate, book, **keys) is None


@pytest.mark.parametrize(("limit", "keys"), list(UNDER.items())[::2])
def test_a_lane_whose_limit_is_reached_is_passed_over_unopened(
    tree: Tree, limit: str, keys: dict[str, object]
) -> None:
    allow(tree, limit)
    gate, book = open_gate(tree), two_nodes()
    lane, free = (shape.parse(ready(tree, **some)[0])[0] for some in (keys, {}))
    assert gate.may(lane) and gate.may(free)
    first = started(gate, book, **keys)
    assert first is not None
    assert started(gate, book, **keys) is None
    assert gate.may(free) and not gate.may(lane)
    gate.give(first[0])
    gate.tokens.rest()
    assert gate.may(lane)


def test_a_task_of_several_limits_takes_a_token_of_each_or_of_none(tree: Tree) -> None:
    allow(tree, '"tag:io" = 2', '"workflow:w" = 1')
    gate, book = open_gate(tree), two_nodes()
    both = started(gate, book, tags=["io"], workflow="w")
    assert both is not None
    assert gate.tokens.held == {"tag-io": 1, "workflow-w": 1}
    assert started(gate, book, tags=["io"], workflow="w") is None
    assert gate.tokens.held == {"tag-io": 1, "workflow-w": 1}
    assert started(gate, book, tags=["io"]) is not None
    gate.give(both[0])
    gate.give(both[0])  # it has nothing more to give
    assert gate.tokens.held == {"tag-io": 1}


def test_without_limits_no_token_is_taken(tree: Tree) -> None:
    gate, book = open_gate(tree), two_nodes()
    assert started(gate, book, tags=["io"]) is not None
    assert gate.held == {} and gate.allows(()) is None
    gate.give("unknown")
    assert files.names(tree.folder(layout.LIMITS)) == []


def test_a_limit_per_node_sends_the_next_task_to_the_next_node(tree: Tree) -> None:
    allow(tree, '"tag:io per node" = 2')
    gate, book = open_gate(tree), two_nodes()
    placed = []
    for _ in range(12):
        if found := started(gate, book, tags=["io"]):
            placed.append(found)
    assert [grants[0].node for _, grants in placed] == [0, 0, 1, 1]
    assert gate.tokens.held == {"tag-io@n1": 2, "tag-io@n2": 2}
    assert book.take(Shape(cores=6))
    task_id, grants = placed[1]
    gate.give(task_id)
    book.give(grants)
    again = started(gate, book, tags=["io"])
    assert again is not None and again[1][0].node == 0


def test_a_limit_per_node_is_that_of_all_launchers_on_the_node(tree: Tree) -> None:
    allow(tree, '"tag:io per node" = 1')
    gate, other = open_gate(tree), open_gate(tree, hosts=("n2", "n3"))
    books = two_nodes(), two_nodes()
    assert started(gate, books[0], tags=["io"]) and started(gate, books[0], tags=["io"])
    found = [started(other, books[1], tags=["io"]) for _ in range(3)]
    assert [one[1][0].node for one in found if one] == [1]


def test_a_task_of_several_nodes_takes_a_token_on_each(tree: Tree) -> None:
    allow(tree, '"tag:io per node" = 1')
    gate, book = open_gate(tree), two_nodes()
    wide = started(gate, book, tags=["io"], nodes=2)
    assert wide is not None
    assert gate.tokens.held == {"tag-io@n1": 1, "tag-io@n2": 1}
    assert started(gate, book, tags=["io"]) is None
    gate.give(wide[0])
    book.give(wide[1])
    small = started(gate, book, tags=["io"])
    assert small is not None
    assert started(gate, book, tags=["io"], nodes=2) is None
    assert gate.tokens.held == {"tag-io@n1": 1}


def test_a_limit_everywhere_and_one_per_node_both_hold(tree: Tree) -> None:
    allow(tree, '"tag:io" = 3', '"feature:x per node" = 1')
    gate, book = open_gate(tree), two_nodes()
    some = [started(gate, book, tags=["io"], requires=["x"]) for _ in range(4)]
    assert [found is not None for found in some] == [True, True, False, False]
    assert [started(gate, book, tags=["io"]) is not None for _ in range(2)] == [True, False]


def test_a_task_that_found_no_room_at_first_is_still_under_its_limits(tree: Tree) -> None:
    allow(tree, '"tag:io" = 1')
    gate = open_gate(tree)
    task_id, wanted = looked_at(gate, tags=["io"])
    first = gate.limits_of(task_id, wanted)
    assert [limit.key for limit in first] == ["tag:io"]
    assert gate.limits_of(task_id, wanted) == first


@pytest.mark.parametrize(
    ("limit", "keys"),
    [
        ('"feature:a.b" = 1', {"requires": ["a.b"]}),
        ('"feature:x" = 1', {"requires": ["x", *(f"feature-{n}" for n in range(8))]}),
    ],
)
def test_a_limit_holds_where_the_lane_names_its_features_by_hash(
    tree: Tree, limit: str, keys: dict[str, object]
) -> None:
    allow(tree, limit)
    gate, book = open_gate(tree), two_nodes()
    for count in (1, 0):
        group, task_id = ready(tree, **keys)
        wanted = shape.parse(group)[0]
        assert wanted.features.startswith("~")
        suits = not gate.looks or gate.suits(group, task_id)
        found = gate.limits_of(task_id, wanted)
        grants = book.take(wanted, gate.allows(found))
        assert grants is not None
        assert (suits and gate.take(task_id, found, grants)) == bool(count)


# -- the real program ----------------------------------------------------------------------------


@pytest.fixture
def begin(tree: Tree) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """begin("--cores", "2") starts a launcher; what is left of it dies with the test."""
    begun: list[subprocess.Popen[str]] = []

    def start(*words: str, idle: str = "never") -> subprocess.Popen[str]:
        before = set(files.names(tree.folder("launchers")))
        options = ["--spool", tree.root, "launcher", "--no-pin", "--idle-timeout", idle]
        command = [sys.executable, "-m", "spool.cli", *options, *words]
        one = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        begun.append(one)
        eventually(lambda: set(files.names(tree.folder("launchers"))) - before, "it is there")
        return one

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


def number_in(tree: Tree, task_id: str, name: str) -> float:
    return float(files.read(f"{tree.root}/{where(tree, task_id)}/{task_id}/{name}") or b"nan")


def most_at_once(tree: Tree, ids: list[str]) -> int:
    """The largest number of timed tasks that ran at one moment."""
    moments = [(number_in(tree, task_id, "began"), 1) for task_id in ids]
    moments += [(number_in(tree, task_id, "ended"), -1) for task_id in ids]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def finished(tree: Tree, ids: list[str]) -> bool:
    return all(where(tree, task_id).startswith("FINISHED/") for task_id in ids)


def assert_all_free(tree: Tree, name: str, count: int) -> None:
    """No owner has a token, and each lies where it belongs."""
    owners = files.names(tree.folder("launchers"))
    folders = [path for one in owners for path in (tree.tokens(one), tree.tokens_taken(one))]
    assert [token for folder in folders for token in files.names(folder)] == []
    free = {tail for tail in files.names(tree.limit(name)) if tail.isdecimal()}
    assert free == {str(number) for number in range(1, count + 1)}
    assert limits.lost(tree) == []


def owners_of(tree: Tree, ids: list[str]) -> set[str]:
    """The launchers that ran these tasks."""
    told = [event for one in ids for event in crashing.history_of(tree, one)]
    return {event["owner"] for event in told if event["what"] == "start"}


def test_two_launchers_together_never_run_more_than_the_limit_says(
    tree: Tree, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    allow(tree, '"tag:io" = 2')
    both = [begin("--cores", "4", idle="4s") for _ in range(2)]
    eventually(lambda: len(tasks.groups(tree, State.RUNNING)) == 2)
    others = many(tree, 40, TIMED.format(0.2))
    limited = many(tree, 12, TIMED.format(0.2), tags=["io"])
    assert [one.wait(40) for one in both] == [0, 0]
    assert finished(tree, limited + others)
    assert most_at_once(tree, limited) == 2
    assert most_at_once(tree, limited + others) > 2
    assert len(owners_of(tree, limited + others)) == 2
    assert_all_free(tree, "tag-io", 2)


def test_a_limit_holds_where_tasks_go_fast_and_are_claimed_ahead(tree: Tree) -> None:
    allow(tree, '"workflow:w" = 1')
    limited, others = [], []
    for _ in range(20):
        limited += many(tree, 1, TIMED.format(0.01), workflow="w")
        others += many(tree, 4, ["sleep", "0.01"])
    told = run_spool(tree.root, "launcher", "--cores", "4", "--no-pin", "--idle-timeout", "1.5s")
    assert told.returncode == 0, told.stderr
    assert finished(tree, limited + others)
    assert most_at_once(tree, limited) == 1
    assert_all_free(tree, "workflow-w", 1)


def test_a_launcher_of_a_tag_takes_exactly_the_tasks_that_bear_it(tree: Tree) -> None:
    borne = [["a"], ["a", "b"], ["b"], [], ["ab"]]
    ids = [one(tree, tags=tags) for tags in borne]
    for words, done in ((("a", "b"), {1}), (("a",), {0, 1})):
        options = [word for tag in words for word in ("--tag", tag)]
        told = run_spool(tree.root, "launcher", "--idle-timeout", "0", *options)
        assert told.returncode == 0, told.stderr
        for number, task_id in enumerate(ids):
            state = "FINISHED/" if number in done else "READY/"
            assert where(tree, task_id).startswith(state)
    assert "start" not in [word for task_id in ids[2:] for word in words_of(tree, task_id)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--tag", "b"), "no task of tag b is"),
        (("--tag", "a", "--tag", "b"), "no task of tag a and tag b is"),
        (("--workflow", "v"), "no task of workflow v is"),
        (("--workflow", "v", "--tag", "a"), "no task of workflow v and tag a is"),
        (("--workflow", "*"), "no task of workflow * is"),
    ],
)
def test_a_launcher_whose_selection_means_nothing_says_so_at_once(
    tree: Tree, words: tuple[str, ...], named: str
) -> None:
    one(tree, tags=["a"], workflow="w")
    began = time.monotonic()
    told = run_spool(tree.root, "launcher", *words)
    assert told.returncode == 1
    assert named in told.stderr and "--idle-timeout" in told.stderr
    assert time.monotonic() - began < 10
    assert files.names(tree.folder("launchers")) == []


def test_a_tag_means_just_itself_when_a_launcher_looks_for_it(tree: Tree) -> None:
    one(tree, tags=["a"])
    assert entry.nothing_selected(tree, Wishes(tags=("b",)))
    assert entry.nothing_selected(tree, Wishes(tags=("*",)))


def test_where_its_tasks_only_wait_or_run_a_launcher_of_a_tag_does_not_refuse(tree: Tree) -> None:
    other, held = one(tree, tags=["b"]), one(tree, tags=["a"], hold=True)
    assert where(tree, held).startswith("WAITING/")
    text = Path(tree.settings).read_text().replace("[launcher]", '[launcher]\nidle_timeout = "0s"')
    Path(tree.settings).write_text(text)
    told = run_spool(tree.root, "launcher", "--tag", "a")
    assert told.returncode == 0, told.stderr
    assert where(tree, other).startswith("READY/")


def test_a_launcher_that_was_told_to_wait_waits_for_its_tag(
    tree: Tree, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    patient = begin("--tag", "late", "--quiet", idle="20s")
    other, late = one(tree), one(tree, tags=["late"])
    eventually(lambda: finished(tree, [late]), "it ran")
    assert where(tree, other).startswith("READY/")
    assert patient.poll() is None
    patient.terminate()
    assert patient.wait(20) == 0


def test_a_launcher_that_was_told_to_wait_a_moment_leaves_after_it(tree: Tree) -> None:
    began = time.monotonic()
    told = run_spool(tree.root, "launcher", "--workflow", "w", "--idle-timeout", "1s")
    assert told.returncode == 0, told.stderr
    assert time.monotonic() - began >= 1


# -- why nothing starts --------------------------------------------------------------------------


def log_of_an_idle_launcher(tree: Tree, **wishes: object) -> str:
    """What a launcher of one core logs that starts nothing for a while."""

    def idles(tell: crashing.Tell) -> None:
        loop.TELL_WHY_S, loop.TICK_S = 0.3, 0.1  # a child of its own: nobody else sees this
        run_launcher(tree, **{"idle_s": 1.0, **wishes})

    before = set(files.names(tree.folder("launchers")))
    in_child(idles)
    (name,) = set(files.names(tree.folder("launchers"))) - before
    return (files.read(tree.owner(name, layout.LOG)) or b"").decode()


def test_a_launcher_that_starts_nothing_says_why_again_and_again(tree: Tree) -> None:
    many(tree, 3, cores_per_rank=2)
    many(tree, 2, requires=["x"])
    one(tree, workflow="other")
    one(tree, workflow="w", time_limit="2h")
    told = log_of_an_idle_launcher(tree, workflow="w", time_limit_s=60.0)
    (line, *more) = [line for line in told.splitlines() if "no start for a while" in line]
    assert more
    assert "no start for a while: 7 ready: " in line
    assert "3 too large" in line
    assert "1 too long for the time left" in line
    assert "3 of another workflow" in line


def test_a_launcher_says_so_where_its_tag_is_the_reason(tree: Tree) -> None:
    one(tree)
    told = log_of_an_idle_launcher(tree, tags=("a",))
    assert "no start for a while: 1 ready" in told
    assert "tag" in told.partition("1 ready")[2].splitlines()[0]


def test_a_launcher_whose_tasks_all_wait_for_a_limit_leaves_when_its_time_is_up(tree: Tree) -> None:
    allow(tree, '"workflow:w" = 0')
    one(tree, workflow="w")

    def idles(tell: crashing.Tell) -> None:
        signal.alarm(6)
        run_launcher(tree, idle_s=0.5)

    in_child(idles)


def test_a_launcher_that_finds_nothing_at_all_has_nothing_to_explain(tree: Tree) -> None:
    assert "no start" not in log_of_an_idle_launcher(tree)


# -- killed --------------------------------------------------------------------------------------


def test_a_killed_launcher_s_tokens_come_back(
    tree: Tree, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    allow(tree, '"tag:io" = 1')
    hanging = "test -e here && exit; touch here; exec sleep 1000"
    first = one(tree, hanging, tags=["io"])
    killed = begin("--cores", "2", "--quiet")
    eventually(lambda: "start" in words_of(tree, first), "it runs")
    second = one(tree, TIMED.format(0.01), tags=["io"])
    assert files.names(tree.limit("tag-io")).count("1") == 0
    killed.kill()
    killed.wait()
    told = run_spool(tree.root, "launcher", "--cores", "2", "--no-pin", "--idle-timeout", "2s")
    assert told.returncode == 0, told.stderr
    assert finished(tree, [first, second])
    assert_all_free(tree, "tag-io", 1)
