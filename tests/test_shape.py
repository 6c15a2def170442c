"""Lanes: a shape prints as a short folder name, and any lane reads back as the shape it came of."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import manifests

from spool import units
from spool.queue import layout, manifest, shape
from spool.queue.manifest import Manifest
from spool.queue.shape import Shape

SHARD = "26112215-4k"
relaxed = settings(deadline=None, max_examples=60)
any_text = st.text(st.characters(codec="utf-8") | st.characters(categories=["Cs"]), max_size=60)


def lane_of(**keys: object) -> str:
    """The lane of a task with these manifest keys."""
    return shape.lane(manifest.wanted_shape(Manifest(command=["x"], **keys)), SHARD)  # type: ignore[arg-type]


# -- there and back ------------------------------------------------------------------------------


@relaxed
@given(manifests, any_text)
def test_every_lane_reads_back_and_is_short(wanted: Manifest, source: str) -> None:
    made = manifest.wanted_shape(wanted, source)
    lane = shape.lane(made, SHARD)
    assert shape.parse(lane) == (made, SHARD)
    assert len(lane.encode()) <= shape.SHAPE_LONGEST + len(f"@{SHARD}")
    assert not set(lane) & set("/~\0\n ") - {"~"}


@relaxed
@given(manifests, st.sampled_from(shape.STAGES))
def test_a_stage_stands_first_and_reads_back(wanted: Manifest, stage: str) -> None:
    made = msgspec.structs.replace(manifest.wanted_shape(wanted), stage=stage)
    lane = shape.lane(made, SHARD)
    assert shape.parse(lane)[0] == made
    assert stage == "run" or lane.startswith(f"{stage}.")


@relaxed
@given(manifests)
def test_a_shape_asks_for_no_less_than_its_manifest(wanted: Manifest) -> None:
    made = manifest.wanted_shape(wanted)
    assert made.time_s >= int(units.duration(wanted.time_estimate or wanted.time_limit))
    assert made.memory_mb >= units.memory(wanted.memory)
    features = shape.features_of(made.features)
    assert features is None or features == set(wanted.requires)


@pytest.mark.parametrize(
    ("keys", "lane"),
    [
        ({}, "c1"),
        ({"cores_per_rank": 64, "nodes": 4, "time_limit": "25m"}, "n4.c64.t30m"),
        ({"priority": 5, "gpus": 1, "memory": "7G", "workflow": "xpcs"}, "p5.c1.g1.m8G.w-xpcs"),
        ({"priority": -3}, "p-3.c1"),
        ({"ranks_per_node": 8}, "r8.c1"),
        ({"memory": 1}, "c1.m64M"),
        ({"memory": "1100M"}, "c1.m1536M"),
        ({"time_estimate": 1, "time_limit": "1h"}, "c1.t5s"),
        ({"time_limit": "3650d"}, "c1.t3650d"),
        ({"requires": ["ssd", "avx2"]}, "c1.f-avx2+ssd"),
        ({"workflow": "v1.2"}, "c1.w~" + shape._hash("v1.2")),
        ({"workflow": "w" * 33}, "c1.w~" + shape._hash("w" * 33)),
        ({"requires": ["a.b"]}, "c1.f~" + shape._hash("a.b")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lane_names_what_is_not_the_default(keys: dict[str, object], lane: str) -> None:
    assert lane_of(**keys) == f"{lane}@{SHARD}"


def test_the_order_of_features_makes_no_new_lane() -> None:
    assert lane_of(requires=["a", "b"]) == lane_of(requires=["b", "a"])


def test_names_that_would_make_a_lane_too_long_are_hashed_one_by_one() -> None:
    long = Shape(
        priority=-999, nodes=1000, ranks=1000, cores=1000, gpus=1000, memory_mb=6144,
        time_s=86_400, features="-" + "f" * 32, workflow="-" + "w" * 32, source="-" + "s" * 32,
    )  # fmt: skip
    short = shape.bounded(long)
    assert short.features[:1] == "~"
    assert len(shape.print_shape(short)) <= shape.SHAPE_LONGEST
    assert shape.bounded(short) == short


# -- what is no lane -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "group",
    [
        "",
        "c1",
        "@",
        f"@{SHARD}",
        "c1@",
        "c1@26112215",
        f"c1@{SHARD}@x",
        f"c0@{SHARD}",
        f"c-1@{SHARD}",
        f"c1.n0@{SHARD}",
        f"c1.r0@{SHARD}",
        f"c1.g-1@{SHARD}",
        f"c1.n-4@{SHARD}",
        f"n4@{SHARD}",
        f"g1@{SHARD}",
        f"c1.@{SHARD}",
        f"c1..g1@{SHARD}",
        f"c1.m@{SHARD}",
        f"c1.mG@{SHARD}",
        f"c1.m1h@{SHARD}",
        f"c1.t5000d@{SHARD}",
        f"c1.tM@{SHARD}",
        f"c1.w@{SHARD}",
        f"c1.w-@{SHARD}",
        f"c1.wx@{SHARD}",
        f"c1.x-y@{SHARD}",
        f"c١@{SHARD}",
        f"c{'9' * 100}@{SHARD}",
        f"prepare@{SHARD}",
        f"run.c1@{SHARD}",
        f"held@{SHARD}",
        "lost+found",
        ".nfs000012",
    ],
    ids=ascii,
)
def test_what_is_no_lane_is_refused(group: str) -> None:
    with pytest.raises(ValueError, match=r"lane|expected"):
        shape.parse(group)


@relaxed
@given(st.text(max_size=30) | st.text("pnrcgmtfws0123456789-~.+dhGM", max_size=30))
def test_any_group_is_a_lane_that_asks_for_something_or_a_value_error(text: str) -> None:
    try:
        made, shard = shape.parse(f"{text}@{SHARD}")
    except ValueError:
        return
    assert shard == SHARD
    assert min(made.nodes, made.ranks, made.cores) >= 1
    assert min(made.gpus, made.memory_mb, made.time_s) >= 0
    assert shape.parse(shape.lane(made, shard))[0] == made


# -- ladders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        (-1, 0),
        (0, 0),
        (0.1, 5),
        (6, 15),
        (31, 60),
        (60, 60),
        (61, 120),
        (5000, 5400),
        (14 * 86_400, 14 * 86_400),
        (14 * 86_400 + 1, 3 * 604_800),
        (units.LONGEST - 1, units.LONGEST),
        (1e308, units.LONGEST),
        (float("inf"), units.LONGEST),
    ],
)
def test_times_round_up_to_the_ladder(seconds: float, step: int) -> None:
    assert shape.round_time(seconds) == step


@pytest.mark.parametrize(
    ("megabytes", "step"),
    [(-1, 0), (0, 0), (1, 64), (512, 512), (513, 1024), (1025, 1536), (2**20, 2**20)]
    + [(7 * 2**20, 7 * 2**20), (7 * 2**20 + 1, 8 * 2**20)],
)
def test_memory_rounds_up_to_the_ladder(megabytes: int, step: int) -> None:
    assert shape.round_memory(megabytes) == step


def test_the_ladders_climb() -> None:
    assert list(shape.TIME_LADDER) == sorted(set(shape.TIME_LADDER))
    assert list(shape.MEMORY_LADDER) == sorted(set(shape.MEMORY_LADDER))


# -- the order of service ------------------------------------------------------------------------


def test_priority_comes_first_then_the_oldest_hour_then_the_longest() -> None:
    lanes = [
        "p5.c1@26112216-00",
        "p1.c1.t1d@26112215-00",
        "c1.t2h@26112214-zz",
        "c1.t1h@26112214-00",
        "c1@26112214-00",
        "c64.t1d@26112215-00",
        "p-1.c1@26010100-00",
    ]
    for turn in range(len(lanes)):
        assert sorted(lanes[turn:] + lanes[:turn], key=shape.order) == lanes


def test_of_lanes_of_one_hour_the_widest_comes_first_and_gpus_do_not_matter() -> None:
    assert shape.order("c8@26112214-00") == shape.order("r2.c4.g1@26112214-zz")
    assert shape.order("n2.c8@26112214-00") < shape.order("c8.t1d@26112214-00")


# -- tokens --------------------------------------------------------------------------------------


@relaxed
@given(any_text)
def test_a_name_s_token_is_one_word_of_a_lane(name: str) -> None:
    token = shape.name_token(name)
    assert token == "" if not name else token[0] in "-~"
    assert "." not in token and "@" not in token and len(token) <= 33


def test_a_hashed_feature_list_is_one_nobody_can_claim_to_have() -> None:
    assert shape.features_of(shape.feature_token(("a.b",))) is None
    assert shape.features_of(shape.feature_token(("b", "a"))) == {"a", "b"}
    assert shape.features_of(shape.feature_token(())) == frozenset()


def test_only_several_ranks_need_an_mpirun() -> None:
    assert not Shape(cores=64).mpi
    assert Shape(nodes=2).mpi and Shape(ranks=2).mpi


def test_a_lane_s_shard_is_the_id_s() -> None:
    task_id = layout.new_id("x", SHARD)
    assert shape.parse(lane_of())[1] == layout.shard_of(task_id)
