"""Limits over all nodes: never one too many, none lost, whoever is killed and whenever."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import crashing
import pytest
from conftest import eventually, make_tree
from crashing import Child, Tell, in_child, killed_at_each_call, start_owner
from hypothesis import given, settings
from hypothesis import strategies as st

from spool import config
from spool.config import Limit, Settings, trusted_users
from spool.errors import DiskFull, LeaseLost, SpoolError
from spool.queue import files, layout, limits, manifest
from spool.queue.layout import KEY, SIZE, State, Tree
from spool.queue.limits import Tokens, applying, bring_back, lost, needs_manifest, of_shape, restore
from spool.queue.manifest import Manifest, wanted_shape
from spool.queue.owner import Owner
from spool.queue.takeover import take_over

RACERS = 8
IO = "tag-io"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with crashing.memory_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    yield
    crashing.kill_children()


def limit(count: int, kind: str = "tag", name: str = "io", *, per_node: bool = False) -> Limit:
    return Limit(kind, name, count, per_node)


def allow(tree: Tree, **counts: int) -> None:
    """Write spool.toml with these limits of tags."""
    lines = "".join(f'"tag:{name}" = {count}\n' for name, count in counts.items())
    Path(tree.settings).write_text(f"format = 1\n[limits]\n{lines}")


def new_tokens(tree: Tree, kind: str = "launcher") -> Tokens:
    """The tokens of an owner of its own, as spool.toml is now."""
    return Tokens(start_owner(tree, kind))


def many_taken(tokens: Tokens, *wanted: Limit, tries: int = 20) -> int:
    """How many tasks of these limits can be started."""
    return sum(tokens.take(wanted) for _ in range(tries))


def free(tree: Tree, name: str = IO) -> set[int]:
    """The numbers that lie free."""
    return {int(tail) for tail in files.names(tree.limit(name)) if tail.isdecimal()}


def out(tree: Tree) -> list[str]:
    """The tokens, and the like, that any owner has."""
    owners = files.names(tree.folder("launchers"))
    folders = [path for owner in owners for path in (tree.tokens(owner), tree.tokens_taken(owner))]
    return [token for folder in folders for token in files.names(folder)]


def assert_whole(tree: Tree, made: int, name: str = IO, where: str = "") -> None:
    """At rest: every number that was made is free, and nobody holds anything."""
    assert out(tree) == [], where
    found = sorted(files.names(tree.limit(name)))
    assert found == sorted([KEY, SIZE, *map(str, range(1, made + 1))]), where
    assert files.read(tree.limit(name, SIZE)) == b"%d\n" % made, where
    assert lost(tree) == [], where


# -- spool.toml ----------------------------------------------------------------------------------


def test_limits_are_read(tree: Tree) -> None:
    Path(tree.settings).write_text(
        'format = 1\nlimits."app:relax" = 8\n'
        'limits."feature:matlab" = 0\n"limits"."tag:scratch per node" = 2\n'
    )
    told = config.load(tree.root).limits
    assert told == (
        Limit("app", "relax", 8),
        Limit("feature", "matlab", 0),
        Limit("tag", "scratch", 2, per_node=True),
    )
    assert [one.key for one in told] == ["app:relax", "feature:matlab", "tag:scratch per node"]


def test_the_template_shows_limits_that_can_be_uncommented(tmp_path: Path) -> None:
    text = config.TEMPLATE.replace('\n#"', '\n"')
    (tmp_path / layout.SETTINGS).write_text(text)
    assert config.load(str(tmp_path)) == Settings(
        limits=(limit(4, "feature", "matlab"), limit(2, name="scratch", per_node=True))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limits = 3", "limits: expected a section of lines"),
        ("[[limits]]", "limits: expected a section of lines"),
        ("[limits]\nio = 3", 'limits.\'io\': expected "feature:NAME", "tag:NAME"'),
        ("[limits]\ntag.io = 3", "limits.'tag': expected"),
        ("[limits]\n'user:me' = 3", "limits.'user:me': expected"),
        ("[limits]\n':io' = 3", "limits.':io': expected"),
        ("[limits]\n'tag:' = 3", "limits.'tag:': expected"),
        ("[limits]\n'tag: io' = 3", "limits.'tag: io': expected"),
        ("[limits]\n'tag:../x' = 3", "limits.'tag:../x': expected"),
        ("[limits]\n'tag:io per host' = 3", 'or one with " per node" behind it'),
        ("[limits]\n'tag:io  per node' = 3", "limits.'tag:io  per node': expected"),
        ("[limits]\n'tag:io' = -1", "limits.'tag:io': expected a number of tasks, 0 to 10000"),
        ("[limits]\n'tag:io' = 10001", "0 to 10000, got 10001"),
        ("[limits]\n'tag:io' = 1.5", "0 to 10000, got 1.5"),
        ("[limits]\n'tag:io' = '4'", "0 to 10000, got '4'"),
        ("[limits]\n'tag:io' = true", "0 to 10000, got True"),
        ("[limits]\n'tag:io' = []", "0 to 10000, got []"),
    ],
)
def test_a_wrong_limit_is_refused_with_what_is_allowed(tree: Tree, text: str, says: str) -> None:
    Path(tree.settings).write_text(f"format = 1\n{text}\n")
    with pytest.raises(SpoolError) as caught:
        config.load(tree.root)
    assert str(caught.value).startswith(f"{tree.settings}: limits")
    assert says in str(caught.value)


# -- which limits a task falls under -------------------------------------------------------------

WORDS = ("a", "b", "c-d", "e.f", "g+h", "long" * 10)
words = st.sampled_from(WORDS)
some_limits = st.lists(
    st.builds(Limit, st.sampled_from(config.LIMITED), words, st.integers(0, 9), st.booleans()),
    max_size=8,
    unique_by=lambda one: one.key,
).map(tuple)
manifests = st.builds(
    lambda app, **keys: manifest.from_mapping(
        {**({"app": app} if app else {"command": "true"}), **keys}, "test"
    ),
    st.sampled_from(("", *WORDS)),
    workflow=st.sampled_from(("", *WORDS)),
    tags=st.lists(words, unique=True),
    requires=st.lists(words, unique=True),
)


@settings(deadline=None)
@given(some_limits, manifests)
def test_a_task_falls_under_the_limits_that_its_manifest_names(
    those: tuple[Limit, ...], asked: Manifest
) -> None:
    told = {("workflow", asked.workflow), ("app", asked.app)}
    told |= {("tag", tag) for tag in asked.tags} | {("feature", one) for one in asked.requires}
    found = applying(those, asked)
    assert found == tuple(one for one in those if (one.kind, one.name) in told)


@settings(deadline=None)
@given(some_limits, manifests)
def test_a_lane_tells_no_limit_too_many_and_says_when_it_does_not_tell_all(
    those: tuple[Limit, ...], asked: Manifest
) -> None:
    lane = wanted_shape(asked)
    told = of_shape(those, lane)
    assert set(told) <= set(applying(those, asked))
    if not needs_manifest(those, lane):
        assert told == applying(those, asked)


def test_tags_and_apps_and_hashed_names_need_the_manifest() -> None:
    plain = wanted_shape(manifest.from_mapping({"command": "x", "requires": ["a"]}, "test"))
    hashed = wanted_shape(manifest.from_mapping({"command": "x", "requires": ["a.b"]}, "test"))
    by_lane = (limit(1, "feature", "a"), limit(1, "workflow", "w"))
    assert not needs_manifest(by_lane)
    assert not needs_manifest(by_lane, plain)
    assert needs_manifest(by_lane, hashed)
    assert not needs_manifest(by_lane[1:], hashed)
    assert needs_manifest((limit(1),)) and needs_manifest((limit(1, "app"),))


def test_no_two_limits_share_a_folder() -> None:
    those = [
        layout.limit_name(kind, name, node)
        for kind in config.LIMITED
        for name in ("a", "a-b", "tag-a", "a.1")
        for node in ("", "n1", "n1.site")
    ]
    assert len(set(those)) == len(those)
    tree = Tree("/s")
    for name in those:
        token = os.path.basename(tree.tokens("L", name, "17"))
        assert layout.parse_token(token) == (name, "17")


# -- taking and giving ---------------------------------------------------------------------------


def test_as_many_tasks_start_as_the_limit_says_over_all_owners(tree: Tree) -> None:
    allow(tree, io=3)
    one, other = new_tokens(tree), new_tokens(tree)
    assert one.take(one.limits) and other.take(other.limits)
    assert many_taken(one, limit(3)) == 1
    assert many_taken(other, limit(3)) == 0
    assert one.held == Counter({IO: 2}) and other.held == Counter({IO: 1})
    one.give(one.limits)
    one.rest()
    assert not other.take(other.limits)  # it has not looked again since
    other.rest()
    assert other.may(other.limits) and other.take(other.limits)
    for tokens, count in ((one, 1), (other, 2)):
        for _ in range(count):
            tokens.give(tokens.limits)
        tokens.rest()
        assert tokens.held == Counter()
    assert_whole(tree, 3)


def test_a_limit_of_none_lets_none_start(tree: Tree) -> None:
    allow(tree, io=0)
    tokens = new_tokens(tree)
    assert tokens.may(tokens.limits)
    assert many_taken(tokens, *tokens.limits) == 0
    assert not tokens.may(tokens.limits)


def test_a_task_under_no_limit_needs_no_token(tree: Tree) -> None:
    tokens = new_tokens(tree)
    assert tokens.may(()) and tokens.take(())
    tokens.give(())
    tokens.rest()
    assert not files.exists(tree.limit(""))
    assert not files.exists(tree.tokens(tokens.owner.name))


def test_where_one_token_is_missing_the_others_are_free_for_others_at_once(tree: Tree) -> None:
    allow(tree, io=5, licence=1)
    both = config.load(tree.root).limits
    one, other = new_tokens(tree), new_tokens(tree)
    assert one.take(both)
    assert not other.take(both)
    assert other.held == Counter()
    assert free(tree) >= {1, 2, 3, 4, 5} - {int(t.rpartition(".")[2]) for t in out(tree)}
    assert len(free(tree)) == 4
    assert not other.may(both) and other.may(both[:1])
    assert many_taken(other, both[0]) == 4


def test_a_disk_that_fails_in_the_middle_leaves_no_token_with_us(tree: Tree) -> None:
    allow(tree, io=2, licence=2)
    tokens = new_tokens(tree)
    assert tokens.take(tokens.limits)
    tokens.give(tokens.limits)
    tokens.rest()
    with crashing.failing("rename", errno.EIO, number=2, times=3), pytest.raises(OSError):
        tokens.take(tokens.limits)
    assert tokens.held == Counter()
    tokens.rest()
    assert_whole(tree, 2)
    assert_whole(tree, 2, "tag-licence")


def test_an_answer_lost_after_the_move_counts_as_taken(tree: Tree) -> None:
    allow(tree, io=1)
    tokens = new_tokens(tree)
    assert tokens.take(tokens.limits)
    tokens.give(tokens.limits)
    tokens.rest()
    for error in (errno.ENOENT, errno.EIO):
        with crashing.failing("rename", error, when="after"):
            assert tokens.take(tokens.limits)
        assert not tokens.take(tokens.limits)
        tokens.give(tokens.limits)
        tokens.rest()
    assert_whole(tree, 1)


def test_per_node_counts_on_each_node(tree: Tree) -> None:
    Path(tree.settings).write_text('format = 1\n[limits]\n"tag:io per node" = 2\n')
    one, other = new_tokens(tree), new_tokens(tree)
    assert many_taken(one, *one.limits) + many_taken(other, *other.limits) == 2
    assert other.take(other.limits, ["far1", "far2"])
    assert not other.take(other.limits, ["far2", one.node])
    assert len(free(tree, f"{IO}@far2")) == 1
    assert other.take(other.limits, ["far2"])
    assert not one.take(one.limits, ["far2"])
    assert other.held == Counter({f"{IO}@far1": 1, f"{IO}@far2": 2})
    for tokens in (one, other):
        tokens.owner.end()
    for node in (one.node, "far1", "far2"):
        assert_whole(tree, 2, f"{IO}@{node}")


def test_between_two_rests_a_task_s_tokens_serve_the_next_without_a_move(tree: Tree) -> None:
    allow(tree, io=9)
    tokens, calls = new_tokens(tree), Counter[str]()
    assert tokens.take(tokens.limits)
    files.watch(lambda when, operation, arguments: calls.update([operation]))
    for _ in range(50):
        tokens.give(tokens.limits)
        assert tokens.take(tokens.limits)
    assert not calls
    tokens.rest()
    tokens.give(tokens.limits)  # nobody knows who has waited: back it goes
    assert dict(calls) == {"rename": 2}
    assert tokens.take(tokens.limits)
    files.watch(None)
    assert calls["rename"] == 2 + 2  # each is seen before and after


def test_a_full_limit_is_asked_once_between_two_rests(tree: Tree) -> None:
    allow(tree, io=1)
    one, other, calls = new_tokens(tree), new_tokens(tree), Counter[str]()
    assert one.take(one.limits) and not other.take(other.limits)
    other.rest()
    files.watch(lambda when, operation, arguments: calls.update([operation]))
    assert many_taken(other, limit(1), tries=100) == 0
    assert set(calls) == {"mkdir", "list"} and calls["list"] == 2  # seen before and after


def test_an_owner_that_ends_leaves_every_token_free(tree: Tree) -> None:
    allow(tree, io=4)
    for keep in (True, False):
        tokens = new_tokens(tree)
        assert many_taken(tokens, limit(4), tries=3) == 3
        tokens.owner.end(keep=keep)
        assert_whole(tree, 4)


# -- another count -------------------------------------------------------------------------------


def test_a_raised_limit_adds_tokens_and_a_lowered_one_leaves_the_rest_unused(tree: Tree) -> None:
    allow(tree, io=4)
    first = new_tokens(tree)
    assert many_taken(first, limit(4)) == 4
    allow(tree, io=2)
    second = new_tokens(tree)
    assert many_taken(second, limit(2)) == 0
    for left in (3, 2, 1, 0):
        first.give((limit(4),))
        first.rest()
        second.rest()
        many_taken(second, limit(2))
        assert second.held[IO] <= 2 and first.held[IO] == left
    assert second.held[IO] == 2 and free(tree) == {3, 4}
    allow(tree, io=6)
    third = new_tokens(tree)
    assert many_taken(third, limit(6)) == 4
    for tokens in (second, third):
        tokens.owner.end()
    assert_whole(tree, 6)


def test_a_count_lowered_and_raised_again_while_all_run_doubles_no_token(tree: Tree) -> None:
    allow(tree, io=4)
    first = new_tokens(tree)
    assert many_taken(first, limit(4)) == 4
    for count in (1, 3, 2, 4):
        allow(tree, io=count)
        assert many_taken(new_tokens(tree), limit(count)) == 0
    allow(tree, io=5)
    assert many_taken(new_tokens(tree), limit(5)) == 1


def test_a_running_owner_obeys_a_change_of_spool_toml_soon(tree: Tree) -> None:
    allow(tree, io=1)
    now = [0.0]
    tokens = Tokens(start_owner(tree), clock=lambda: now[0])
    assert many_taken(tokens, limit(1)) == 1
    allow(tree, io=3)
    tokens.rest()
    assert many_taken(tokens, limit(1)) == 0
    now[0] += limits.REREAD_S
    tokens.rest()
    assert tokens.limits == (limit(3),)
    assert many_taken(tokens, limit(1)) == 2  # whatever count the caller still knew
    Path(tree.settings).write_text("format = 1\n[limits\n")
    now[0] += limits.REREAD_S
    tokens.rest()
    assert tokens.limits == (limit(3),)


def test_a_short_task_s_token_above_a_lowered_count_is_not_used_again(tree: Tree) -> None:
    allow(tree, io=2)
    tokens = new_tokens(tree)
    assert many_taken(tokens, limit(2)) == 2
    tokens.limits = (limit(1),)
    tokens.rest()
    assert not tokens.take(tokens.limits)
    tokens.give(tokens.limits)
    tokens.give(tokens.limits)
    assert 2 in free(tree)
    assert many_taken(tokens, limit(1)) == 1
    assert files.names(tree.tokens(tokens.owner.name)) == [f"{IO}.1"]


def test_the_second_to_grow_a_limit_leaves_it_to_the_first(tree: Tree) -> None:
    allow(tree, io=1)
    one = new_tokens(tree)
    assert one.take(one.limits)
    size, aside = tree.limit(IO, SIZE), tree.folder("aside")
    files.rename_file(size, aside)  # as if another had it
    allow(tree, io=3)
    other = new_tokens(tree)
    assert many_taken(other, limit(3)) == 0
    files.rename_file(aside, size)
    other.rest()
    assert many_taken(other, limit(3)) == 2


@pytest.mark.parametrize("operation", ["create", "fsync", "rename", "mkdir"])
def test_a_full_disk_while_tokens_are_made_is_no_lasting_harm(tree: Tree, operation: str) -> None:
    allow(tree, io=3)
    tokens = new_tokens(tree)
    made: list[str] = []
    for number in range(1, 12):
        with suppress(DiskFull), crashing.failing(operation, errno.ENOSPC, number=number):
            many_taken(tokens, limit(3))
            made.append(operation)
        for _ in range(tokens.held[IO]):
            tokens.give(tokens.limits)
        tokens.rest()
    assert made
    assert_whole(tree, 3)
    assert files.names(tree.tmp()) == []


@pytest.mark.parametrize("operation", ["create", "fsync", "rename"])
def test_a_full_disk_while_a_limit_grows_is_no_lasting_harm(tree: Tree, operation: str) -> None:
    allow(tree, io=1)
    tokens = new_tokens(tree)
    for number in range(1, 9):
        allow(tree, io=1 + 4 * number)
        tokens.limits = config.load(tree.root).limits
        with suppress(DiskFull), crashing.failing(operation, errno.ENOSPC, number=number):
            tokens.take(tokens.limits)
        for _ in range(tokens.held[IO]):
            tokens.give(tokens.limits)
        tokens.rest()
        assert many_taken(tokens, *tokens.limits) <= 1 + 4 * number
        for _ in range(tokens.held[IO]):
            tokens.give(tokens.limits)
        tokens.rest()
    tokens.owner.end()
    new = new_tokens(tree)
    assert many_taken(new, *new.limits, tries=50) == 33
    new.owner.end()
    assert_whole(tree, 33)


# -- killed --------------------------------------------------------------------------------------


def test_a_killed_launcher_s_tokens_are_free_once_it_is_taken_over(tree: Tree) -> None:
    allow(tree, io=3)

    def holds(tell: Tell) -> None:
        tokens = new_tokens(tree)
        tell(many_taken(tokens, limit(3), tries=2))
        time.sleep(300)

    child = Child(holds)
    assert child.line() == 2
    child.kill()
    assert child.wait().killed
    mine = new_tokens(tree, "verb")  # a living launcher might leave the dead one to another
    assert many_taken(mine, limit(3)) == 1
    crashing.taken_over(tree)
    mine.rest()
    assert many_taken(mine, limit(3)) == 2
    mine.owner.end()
    assert_whole(tree, 3)


def whole_life(tree: Tree) -> None:
    """Make, take, give, grow, shrink and grow again, and end."""
    allow(tree, io=2)
    tokens = new_tokens(tree)
    for count in (2, 4, 1, 5):
        allow(tree, io=count)
        tokens.limits = config.load(tree.root).limits
        taken = many_taken(tokens, *tokens.limits, tries=3)
        for _ in range(taken):
            tokens.give(tokens.limits)
        tokens.rest()
    assert tokens.take(tokens.limits)
    tokens.owner.end()


def test_killed_at_any_call_an_owner_loses_and_doubles_no_token(tmp_path: Path) -> None:
    trees: list[Tree] = []

    def prepare() -> crashing.Scenario:
        tree = make_tree(tmp_path / f"s{len(trees)}")
        trees.append(tree)
        return lambda tell: whole_life(tree)

    for point, ended in killed_at_each_call(prepare):
        tree = trees[-1]
        crashing.taken_over(tree)
        made = len(free(tree))
        assert made in (0, 2, 4, 5) and (ended.killed or made == 5), point
        assert out(tree) == [], point
        if made:
            assert_whole(tree, made, where=point)
        allow(tree, io=6)
        mine = new_tokens(tree)
        assert many_taken(mine, limit(6)) == 6, point
        mine.owner.end()
        assert_whole(tree, 6, where=point)
        crashing.findings(tree, repair=True)
        assert files.names(tree.tmp()) == [], point
    assert len(trees) > 100


def test_a_taker_killed_while_it_brings_tokens_back_is_followed_by_another(
    tmp_path: Path,
) -> None:
    trees: list[Tree] = []

    def prepare() -> crashing.Scenario:
        tree = make_tree(tmp_path / f"s{len(trees)}")
        trees.append(tree)
        allow(tree, io=3)

        def dies(tell: Tell) -> None:
            tokens = new_tokens(tree)
            many_taken(tokens, limit(3), tries=2)
            name = tokens.owner.name
            files.rename_file(tree.limit(IO, SIZE), tree.tokens(name, IO, SIZE))
            for half_made in (4, 5):  # killed while it made these
                files.write_new(tree.tokens(name, IO, str(half_made)), b"")
            files.write_new(tree.tokens(name, IO, f"{SIZE}.77.tmp"), b"5")

        in_child(dies)
        return lambda tell: crashing.taken_over(tree)

    for point, _ in killed_at_each_call(prepare):
        crashing.taken_over(trees[-1])
        assert_whole(trees[-1], 3, where=point)
        assert files.names(trees[-1].state(State.RUNNING)) == [], point


def test_an_owner_that_was_only_thought_dead_can_neither_take_nor_make(
    tree: Tree, owner: Owner
) -> None:
    allow(tree, io=3, other=1)
    zombie = new_tokens(tree)
    assert many_taken(zombie, limit(3), tries=2) == 2
    zombie.owner.write_record(ended="2026-01-01T00:00:00Z")
    kill_nobody(tree, owner, zombie.owner.name)
    assert free(tree) == {1, 2, 3}
    assert not zombie.take((limit(3),))
    with pytest.raises(LeaseLost):
        zombie.take((limit(1, name="other"),))
    zombie.rest()
    zombie.give((limit(3),))
    zombie.rest()
    assert_whole(tree, 3)


def kill_nobody(tree: Tree, owner: Owner, dead: str) -> None:
    """What a taker does, where the zombie is this very process."""
    group = layout.claims_group(dead, owner.name)
    files.rename_file(tree.group(State.RUNNING, dead), tree.group(State.RUNNING, group))
    take_over(owner, group, trusted_users())


def test_an_owner_thought_dead_while_it_grows_a_limit_doubles_nothing(tree: Tree) -> None:
    """Its tokens are brought back before each of its calls in turn; then it goes on."""
    for number in range(1, 40):
        name = f"n{number}"
        allow(tree, **{name: 1})
        tokens = new_tokens(tree)
        wanted = (limit(1, name=name),)
        assert tokens.take(wanted)
        tokens.give(wanted)
        tokens.rest()
        allow(tree, **{name: 4})
        tokens.limits = config.load(tree.root).limits
        files.watch(interrupted_at(number, lambda tokens=tokens: taken_away(tokens.owner)))
        with suppress(LeaseLost, FileNotFoundError):
            tokens.take(wanted)
        files.watch(None)
        taken_away(tokens.owner)
        other = new_tokens(tree)
        assert many_taken(other, limit(4, name=name)) == 4
        other.owner.end()
        assert_whole(tree, 4, f"tag-{name}", str(number))


def taken_away(owner: Owner) -> None:
    """The two moves of a taker that matter here."""
    with suppress(FileNotFoundError):
        files.rename_file(owner.claims, f"{owner.claims}~x")
    bring_back(owner.tree, owner.name)


def interrupted_at(number: int, what: Callable[[], None]) -> files.Watcher:
    """A watcher that does something before the n-th call."""
    left = [number]

    def watch(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "before":
            left[0] -= 1
            if left[0] == 0:
                what()

    return watch


def test_bringing_back_twice_or_from_nobody_is_no_fault(tree: Tree) -> None:
    allow(tree, io=2)
    tokens = new_tokens(tree)
    assert tokens.take(tokens.limits)
    for _ in range(3):
        bring_back(tree, tokens.owner.name)
        bring_back(tree, "nobody")
    assert_whole(tree, 2)


def test_a_limit_that_a_person_removed_is_made_anew_and_whole(tree: Tree) -> None:
    allow(tree, io=3)
    one, other = new_tokens(tree), new_tokens(tree)
    for tokens in (one, other, one):
        assert tokens.take(tokens.limits)
        tokens.rest()
    files.remove_tree(tree.limit(IO))
    other.owner.end(keep=True)
    assert out(tree) == files.names(tree.tokens(one.owner.name))  # it will be made with the rest
    many_taken(one, limit(3))  # which may first have to find out
    one.rest()
    many_taken(one, limit(3))
    assert 3 <= one.held[IO] <= 3 + 2  # those that were out when it was removed come on top
    one.owner.end()
    assert_whole(tree, 3)


# -- lost ----------------------------------------------------------------------------------------


def test_a_token_that_is_nowhere_is_found_out_and_made_again(tree: Tree) -> None:
    allow(tree, io=4)
    tokens = new_tokens(tree)
    assert tokens.take(tokens.limits)
    assert lost(tree) == []
    gone = sorted(free(tree))[:2]
    for number in gone:
        files.unlink(tree.limit(IO, str(number)))
    assert lost(tree) == restore(tree) == [f"{IO}.{number}" for number in gone]
    tokens.owner.end()
    assert_whole(tree, 4)


@pytest.mark.parametrize("damage", [b"", b"x\n", None])
def test_a_size_that_is_gone_or_damaged_is_found_out_and_made_again(
    tree: Tree, damage: bytes | None
) -> None:
    allow(tree, io=4)
    tokens = new_tokens(tree)
    assert many_taken(tokens, limit(4)) == 4
    if damage is None:
        files.unlink(tree.limit(IO, SIZE))
    else:
        files.replace(tree.limit(IO, SIZE), damage)
    allow(tree, io=5)
    assert many_taken(new_tokens(tree), limit(5)) == 0  # what was made cannot be told: no more is
    assert lost(tree) == restore(tree) == [f"{IO}.{SIZE}"]
    assert many_taken(new_tokens(tree), limit(5)) == 1
    assert lost(tree) == []


def test_a_spool_without_limits_has_lost_nothing(tree: Tree) -> None:
    assert lost(tree) == restore(tree) == []
    assert not files.exists(tree.folder(layout.LIMITS))


# -- races ---------------------------------------------------------------------------------------


def race(work: crashing.Scenario, *others: crashing.Scenario) -> list[list[Any]]:
    """Eight processes, and others, at once; what each told."""
    children = [Child(one) for one in [*others, *[work] * RACERS]]
    return [child.wait().told for child in children]


def test_eight_processes_racing_for_three_tokens_never_have_four(tree: Tree) -> None:
    allow(tree, io=3)
    slots = multiprocessing.get_context("fork").Semaphore(3)
    total = multiprocessing.get_context("fork").Value("i", 0)
    deadline = time.monotonic() + 20

    def races(tell: Tell) -> None:
        tokens, chance = new_tokens(tree), random.Random(os.getpid())
        while total.value < 4000 and time.monotonic() < deadline:
            if tokens.take(tokens.limits):
                assert slots.acquire(block=False), "one task too many"
                with total.get_lock():
                    total.value += 1
                slots.release()
                tokens.give(tokens.limits)
            if chance.random() < 0.3:
                tokens.rest()
        tokens.owner.end()
        tell("done")

    assert race(races) == [["done"]] * RACERS
    assert total.value >= 4000
    assert_whole(tree, 3)


def test_a_count_that_changes_while_eight_race_is_never_passed(tree: Tree) -> None:
    """The semaphore knows the highest count there is; each process its own, from time to time."""
    allow(tree, io=6)
    slots = multiprocessing.get_context("fork").Semaphore(6)
    stop = multiprocessing.get_context("fork").Event()

    def races(tell: Tell) -> None:
        tokens, chance = new_tokens(tree), random.Random(os.getpid())
        while not stop.is_set():
            tokens.limits = (limit(chance.randint(1, 6)),)
            number = many_taken(tokens, limit(6), tries=chance.randint(1, 3))
            for _ in range(number):
                assert slots.acquire(block=False), "one task too many"
            for _ in range(number):
                slots.release()
                tokens.give(tokens.limits)
            tokens.rest()
        tokens.owner.end()
        tell("done")

    def waits(tell: Tell) -> None:
        time.sleep(1.5)
        stop.set()

    assert race(races, waits)[1:] == [["done"]] * RACERS
    made = int(files.read(tree.limit(IO, SIZE)) or 0)
    assert_whole(tree, made)


def test_killed_ones_among_the_racers_take_no_token_with_them(tree: Tree) -> None:
    allow(tree, io=4)

    def races(tell: Tell) -> None:
        tokens = new_tokens(tree)
        tell("begun")
        while True:
            if tokens.take(tokens.limits):
                tokens.give(tokens.limits)
            tokens.rest()

    def takes_over(tell: Tell) -> None:
        for _ in range(20):
            crashing.taken_over(tree)

    for _ in range(4):
        racers = [Child(races) for _ in range(4)]
        for child in racers:
            assert child.line() == "begun"
        for child in racers:
            child.kill()
        takers = [Child(takes_over) for _ in range(2)]
        for child in [*racers, *takers]:
            child.wait()
    eventually(lambda: crashing.taken_over(tree) or files.names(tree.state(State.RUNNING)) == [])
    assert_whole(tree, 4)


def test_of_eight_that_make_a_limit_at_once_one_does(tree: Tree) -> None:
    allow(tree, **{f"n{number}": 3 for number in range(20)})

    def makes(tell: Tell) -> None:
        tokens = new_tokens(tree)
        tell([one.name for one in tokens.limits if tokens.take((one,))])
        time.sleep(0.5)  # all hold what they have until each has tried
        tokens.owner.end()

    started = Counter(name for told in race(makes) for name in told[0])
    assert started == Counter({f"n{number}": 3 for number in range(20)})
    for number in range(20):
        assert_whole(tree, 3, f"tag-n{number}")
    assert files.names(tree.tmp()) == []
