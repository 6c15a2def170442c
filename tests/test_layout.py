"""Names in the tree: what we make we can read back, and what is not ours is told apart."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.queue import layout
from spool.queue.layout import State, Tree

HOUR = 3600
relaxed = settings(deadline=None)
hours = st.integers(1_700_000_000, layout.LATEST)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", fullmatch=True)


# -- ids -----------------------------------------------------------------------------------------


@relaxed
@given(names, hours, st.integers(0, 10**9))
def test_a_fresh_id_reads_back(name: str, when: int, counter: int) -> None:
    shard = layout.shard(when, counter)
    task_id = layout.new_id(name, shard)
    parts = layout.parse_id(task_id)
    assert parts is not None
    assert (parts.name, parts.shard, len(parts.random)) == (name, shard, 10)
    assert layout.shard_of(task_id) == shard
    assert len(task_id) <= layout.ID_LONGEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hi",
        "hi.26112215-4k",
        "hi.26112215-4k-short",
        "hi.26112215-4K-k3f9x2q7bd",
        "hi.2611221-4k-k3f9x2q7bd",
        ".26112215-4k-k3f9x2q7bd",
        "-hi.26112215-4k-k3f9x2q7bd",
        "hi@x.26112215-4k-k3f9x2q7bd",
        "hi~new.26112215-4k-k3f9x2q7bd",
        "hi.26112215-4k-k3f9x2q7bd~new",
        "hi.26112215-4k-k3f9x2q7bd\n",
        "../hi.26112215-4k-k3f9x2q7bd",
        "hi.٢٦١١٢٢١٥-4k-k3f9x2q7bd",
        "n" * 81 + ".26112215-4k-k3f9x2q7bd",
        "n" * 10_000 + ".26112215-4k-k3f9x2q7bd",
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_what_is_no_id_is_none_of_ours(text: str) -> None:
    assert layout.parse_id(text) is None
    with pytest.raises(ValueError, match="NAME.SHARD-RANDOM"):
        layout.shard_of(text)


def test_ten_thousand_tails_are_all_different() -> None:
    tails = layout.random_tails(10_000)
    assert len(set(tails)) == 10_000
    assert {len(tail) for tail in tails} == {10}
    assert set("".join(tails)) <= set(string.ascii_lowercase + string.digits)


@relaxed
@given(st.text())
def test_any_text_can_become_a_name(text: str) -> None:
    made = layout.as_name(text)
    assert layout.is_name(made)
    assert layout.parse_id(layout.new_id(made, "26112215-4k")) is not None


@relaxed
@given(names)
def test_a_name_stays_as_it_is(name: str) -> None:
    assert layout.as_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("run.sh", "run.sh"),
        ("my script.py", "my-script.py"),
        ("../../etc/passwd", "etc-passwd"),
        ("-rf", "rf"),
        ("...", "task"),
        ("", "task"),
        ("größe", "gr-e"),
        ("b\udcff", "b-"),
        ("n" * 200, "n" * 80),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_name_is_the_nearest_allowed_one(text: str, name: str) -> None:
    assert layout.as_name(text) == name


# -- shards and moments --------------------------------------------------------------------------


@relaxed
@given(hours, hours, st.integers(0, 5000))
def test_shards_sort_by_the_hour(one: int, other: int, counter: int) -> None:
    first, second = sorted((one, other))
    if second - first >= HOUR:
        assert layout.shard(first, counter)[:8] < layout.shard(second, counter)[:8]
    assert layout.is_shard(layout.shard(first, counter))


@relaxed
@given(hours, st.integers(0, 5000))
def test_a_shard_tells_its_hour(when: int, counter: int) -> None:
    assert layout.shard_hour(layout.shard(when, counter)) == when // HOUR * HOUR


def test_a_lone_task_goes_to_one_of_four_shards_an_hour() -> None:
    assert {layout.lone_shard(0)[-2:] for _ in range(200)} <= {"00", "01", "02", "03"}


def test_counters_of_a_shard_come_round() -> None:
    assert layout.shard(0, 0) == layout.shard(0, layout.COUNTERS) == "70010100-00"
    assert layout.shard(0, layout.COUNTERS - 1) == "70010100-zz"


@relaxed
@given(st.floats(1_700_000_000, 4_000_000_000))
def test_an_until_group_rounds_up_to_the_minute(moment: float) -> None:
    named = layout.until_moment(layout.until_group(moment))
    assert named is not None
    assert moment <= named < moment + 60
    assert named % 60 == 0


@pytest.mark.parametrize("year", [2068, 2069, 2099])
def test_a_moment_far_ahead_is_not_taken_for_one_in_the_last_century(year: int) -> None:
    moment = (year - 1970) * 365.2425 * 86_400
    named = layout.until_moment(layout.until_group(moment))
    assert named is not None
    assert time.gmtime(named).tm_year == time.gmtime(moment).tm_year


def test_what_waits_beyond_this_century_waits_to_its_end() -> None:
    group = layout.until_group(250_000_000_000)
    assert group == "until@9912312359"
    assert layout.until_moment(group) == layout.LATEST


@pytest.mark.parametrize(
    "group", ["", "until@", "until@26", "until@9913312359", "held@26112215-4k", "until@261122211٠"]
)
def test_other_groups_name_no_moment(group: str) -> None:
    assert layout.until_moment(group) is None


# -- groups and owners ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "label"),
    [
        ("c1@26112215-4k", "c1"),
        ("p5.g1.m8G.w-xpcs@26112215-4k", "p5.g1.m8G.w-xpcs"),
        (layout.held_group("26112215-4k"), "held"),
        (layout.failed_group("exit-1", "26112215-4k"), "exit-1"),
        ("until@2611222110", "until@2611222110"),
        ("launcher.h.0123abcd.7.abcdef", "launcher.h.0123abcd.7.abcdef"),
        ("launcher.h.0123abcd.7.abcdef~rm.h.0123abcd.8.abcdeg", "launcher.h.0123abcd.7.abcdef"),
        ("stray", "stray"),
        ("@", "@"),
    ],
)
def test_a_group_s_label_is_what_a_report_adds_up(group: str, label: str) -> None:
    assert layout.group_label(group) == label


@pytest.mark.parametrize(
    "host", ["node7", "n1.cluster.example.org", "a-b_c", "10.0.0.1", "n.0123abcd.1.abcdef"]
)
def test_an_owner_s_name_reads_back_whatever_dots_its_host_has(host: str) -> None:
    name = layout.owner_name("launcher", host, "0123abcd", 4711)
    parts = layout.parse_owner(name)
    assert parts is not None
    assert parts[:4] == ("launcher", host, "0123abcd", 4711)


@relaxed
@given(st.text(), st.integers(1, 2**22))
def test_any_host_makes_a_name_that_reads_back(host: str, pid: int) -> None:
    parts = layout.parse_owner(layout.owner_name("cancel", host, "0123abcd" * 4, pid))
    assert parts is not None
    assert (parts.kind, parts.pid, parts.boot) == ("cancel", pid, "0123abcd")
    assert not set(parts.host) & set("/~@\0")


@pytest.mark.parametrize("text", ["", "launcher", "a.b.c.d.e", "launcher.h.0123abcd.x.abcdef"])
def test_what_is_no_owner_is_none(text: str) -> None:
    assert layout.parse_owner(text) is None


def test_two_owners_of_one_process_have_two_names() -> None:
    made = {layout.owner_name("rm", "h", "0123abcd", 1) for _ in range(100)}
    assert len(made) == 100


def test_a_second_taker_keeps_the_first_owner_s_name() -> None:
    assert layout.claims_group("L", "T") == "L~T"
    assert layout.claims_group("L~T", "T2") == "L~T2"


# -- paths ---------------------------------------------------------------------------------------


def test_every_path_lies_under_the_root() -> None:
    tree = Tree("/s/../spool/")
    assert tree.root == "/spool"
    assert tree.settings == "/spool/spool.toml"
    assert tree.task(State.READY, "c1@26112215-4k", "x") == "/spool/READY/c1@26112215-4k/x"
    assert tree.task(State.CREATED, "", "x") == "/spool/CREATED/x"
    assert tree.task(State.CREATED, "@beam", "x") == "/spool/CREATED/@beam/x"
    assert tree.request("L", "cancel", "x") == "/spool/launchers/L/inbox/cancel.x"
    assert tree.journal("L") == "/spool/journal/L.jsonl"
    assert tree.app("dock") == "/spool/apps/dock.json"
    assert tree.tmp() == "/spool/tmp"
    seen = "hi.26112215-4k-k3f9x2q7bd"
    assert tree.seen(seen) == f"/spool/seen/26112215-4k/{seen}"


def test_every_state_is_a_folder_and_only_ends_are_final() -> None:
    assert set(State) <= set(layout.FOLDERS)
    assert set(layout.FINAL) == {State.FINISHED, State.FAILED, State.CANCELLED}
