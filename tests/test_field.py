"""Where a launcher works: what its node offers, who has which part, which nodes are meant."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.config import Settings
from spool.errors import SpoolError
from spool.launcher import field, nodes
from spool.launcher.allocation import Allocation
from spool.launcher.field import Size, chosen, own_node, reached_by_mpirun, shared_out
from spool.launcher.nodes import Node

relaxed = settings(deadline=None)
HOST = os.uname().nodename
ALONE = Allocation("")
SIZE = Size(cores=6, gpus=4, memory_mb=10_000)
ALLOCATED = tuple(f"n{number:03}" for number in range(1, 9))


def granted(nodes: tuple[str, ...] = (HOST,), **more: object) -> Allocation:
    return Allocation("slurm", "17", nodes, **more)  # type: ignore[arg-type]


def reserve(cores: int = 0, gpus: int = 0, memory_mb: int = 0) -> Settings:
    return Settings(
        launcher_reserve_cores=cores,
        launcher_reserve_gpus=gpus,
        launcher_reserve_memory_mb=memory_mb,
    )


@pytest.fixture(autouse=True)
def _four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")


# -- one's own node ------------------------------------------------------------------------------


def test_without_an_allocation_all_that_is_there_is_offered() -> None:
    own = own_node(Size(), Settings(), ALONE)
    assert own == nodes.this_node()
    assert own.gpus == ("0", "1", "2", "3")
    assert own.name == ""


def test_a_person_s_word_counts_for_more_than_the_grant_s() -> None:
    own = own_node(SIZE, Settings(), granted(cores=(1,), memory_mb=100))
    assert (len(own.cpus), len(own.gpus), own.memory_mb) == (6, 4, 10_000)
    assert own.name == HOST


def test_of_what_is_there_what_was_granted_is_offered() -> None:
    own = own_node(Size(), Settings(), granted(cores=(1,), memory_mb=100))
    assert own.cpus == nodes.this_node().cpus[:1]
    assert own.memory_mb == 100


def test_a_grant_of_more_than_there_is_is_not_believed() -> None:
    here = nodes.this_node()
    own = own_node(Size(), Settings(), granted(cores=(100_000,), memory_mb=2**40))
    assert (own.cpus, own.memory_mb) == (here.cpus, here.memory_mb)


@pytest.mark.parametrize("more", [{}, {"cores": ()}, {"memory_mb": None}])
def test_where_the_grant_says_nothing_what_is_there_counts(more: dict[str, object]) -> None:
    here, own = nodes.this_node(), own_node(Size(), Settings(), granted(**more))
    assert (own.cpus, own.gpus, own.memory_mb) == (here.cpus, here.gpus, here.memory_mb)


@pytest.mark.parametrize("name", [HOST, f"{HOST.partition('.')[0]}.cluster.example", HOST.upper()])
def test_one_s_own_grant_is_found_by_the_short_name(name: str) -> None:
    own = own_node(Size(), Settings(), granted(("other", name, "third"), cores=(9, 1, 9)))
    assert (len(own.cpus), own.name) == (1, name)


def test_the_grants_of_other_nodes_are_not_ours() -> None:
    own = own_node(Size(), Settings(), granted(("other", "third"), cores=(1, 1)))
    assert own == nodes.this_node()


def test_no_more_gpus_than_were_granted_are_offered() -> None:
    assert len(own_node(Size(), Settings(), granted(gpus=1)).gpus) == 1


@pytest.mark.parametrize(
    ("left", "cores", "gpus", "memory_mb"),
    [
        (reserve(), 6, 4, 10_000),
        (reserve(cores=2), 4, 4, 10_000),
        (reserve(gpus=1), 6, 3, 10_000),
        (reserve(memory_mb=4000), 6, 4, 6000),
        (reserve(5, 4, 10_000), 1, 0, 0),
        (reserve(1000, 1000, 10**9), 1, 0, 0),
    ],
)
def test_what_is_reserved_is_not_offered_but_one_core_is(
    left: Settings, cores: int, gpus: int, memory_mb: int
) -> None:
    own = own_node(SIZE, left, ALONE)
    assert (len(own.cpus), len(own.gpus), own.memory_mb) == (cores, gpus, memory_mb)


def test_the_first_cores_and_the_last_gpus_are_reserved() -> None:
    whole = own_node(Size(cores=len(os.sched_getaffinity(0)) * 3), Settings(), ALONE)
    own = own_node(Size(cores=len(whole.cpus)), reserve(2, 1), granted())
    assert own.cpus == whole.cpus[2:]
    assert own.gpus == ("0", "1", "2")
    assert own.name == HOST


def test_the_reserve_is_taken_from_what_was_granted() -> None:
    own = own_node(Size(cores=6), reserve(memory_mb=60), granted(memory_mb=100))
    assert own.memory_mb == 40


def test_a_launcher_alone_records_its_allocation() -> None:
    own = own_node(SIZE, Settings(), granted())
    told = field.alone(own, granted()).told()
    assert told == {
        "cores": 6,
        "gpus": ["0", "1", "2", "3"],
        "memory_mb": 10_000,
        "nodes": 1,
        "each": [[1, 6, 4, 10_000]],
        "allocation": {"system": "slurm", "job": "17", "cluster": ""},
    }
    assert "allocation" not in field.alone(own, ALONE).told()


# -- several ranks -------------------------------------------------------------------------------

machines = st.builds(
    Node,
    cpus=st.integers(1, 20).map(lambda count: tuple(range(count))),
    gpus=st.integers(0, 6).map(lambda count: tuple(map(str, range(count)))),
    memory_mb=st.integers(0, 100_000),
)
hosts = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.sampled_from("12")), machines, min_size=1
)


@st.composite
def ranks(draw: st.DrawFn) -> list[tuple[str, str, Node]]:
    """What ranks tell of themselves: those of one host and boot see the same node."""
    seen = draw(hosts)
    order = draw(st.lists(st.sampled_from(sorted(seen)), min_size=1, max_size=24))
    return [(host, boot, seen[host, boot]) for host, boot in order]


@relaxed
@given(ranks())
def test_ranks_on_one_machine_get_parts_of_it_that_cover_it_and_meet_nowhere(
    told: list[tuple[str, str, Node]],
) -> None:
    parts = shared_out(told)
    assert len(parts) == len(told)
    for machine in {(host, boot) for host, boot, _ in told}:
        (whole,) = {node for host, boot, node in told if (host, boot) == machine}
        ours = [
            part for part, (*place, _) in zip(parts, told, strict=True) if tuple(place) == machine
        ]
        cpus = Counter(cpu for part in ours for cpu in part.cpus)
        gpus = Counter(gpu for part in ours for gpu in part.gpus)
        assert gpus == Counter(whole.gpus)
        assert set(cpus) == set(whole.cpus)
        if len(ours) <= len(whole.cpus):
            assert cpus == Counter(whole.cpus)
            sizes = [len(part.cpus) for part in ours]
            assert max(sizes) - min(sizes) <= 1
        else:  # a core that is not enough for all is shared
            assert [len(part.cpus) for part in ours] == [1] * len(ours)
        assert whole.memory_mb - len(ours) < sum(part.memory_mb for part in ours)
        assert sum(part.memory_mb for part in ours) <= whole.memory_mb
        assert all(part.name == whole.name for part in ours)


def test_a_rank_alone_on_its_machine_has_all_of_it() -> None:
    told = [(host, boot, Node((0, 1), ("0",), 7)) for host, boot in (("a", "1"), ("b", "1"))]
    assert shared_out(told) == [node for _, _, node in told]


def test_two_machines_of_one_name_are_told_apart_by_their_boots() -> None:
    whole = Node((0, 1), ("0", "1"), 10)
    assert shared_out([("a", "1", whole), ("a", "2", whole)]) == [whole, whole]
    first, second = shared_out([("a", "1", whole), ("a", "1", whole)])
    assert (first.cpus, first.gpus, first.memory_mb) == ((0,), ("0",), 5)
    assert (second.cpus, second.gpus, second.memory_mb) == ((1,), ("1",), 5)


# -- which nodes are meant -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ("", ALLOCATED),
        ("4", ALLOCATED[:4]),
        ("8", ALLOCATED),
        ("2-3", ("n002", "n003")),
        ("5-5", ("n005",)),
        ("1-8", ALLOCATED),
        ("n003", ("n003",)),
        ("n003,n001", ("n003", "n001")),
        ("n[002-004,7]", ("n002", "n003", "n004", "n7")),
        ("n[002-004]", ("n002", "n003", "n004")),
        ("N005.cluster.example", ("n005",)),
    ],
)
def test_nodes_are_chosen_by_number_range_or_name(choice: str, meant: tuple[str, ...]) -> None:
    assert chosen((*ALLOCATED[:6], "n7", ALLOCATED[7]), choice) == [
        "n7" if name == "n007" else name for name in meant
    ]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("0", "this allocation has 8 nodes"),
        ("9", "this allocation has 8 nodes"),
        ("0-2", "this allocation has 8 nodes"),
        ("3-2", "this allocation has 8 nodes"),
        ("7-9", "this allocation has 8 nodes"),
        ("n009", "n009 is not in this allocation, which has n001, n002, "),
        ("n001,elsewhere", "elsewhere is not in this allocation"),
        ("n[001-010]", "n009 is not in this allocation"),
        ("n[", "expected a host list"),
        ("-3", "expected host names"),
        ("a b", "expected a host list"),
    ],
)
def test_a_choice_that_names_no_node_is_refused_with_what_there_is(choice: str, says: str) -> None:
    with pytest.raises(SpoolError) as refused:
        chosen(ALLOCATED, choice)
    assert "--nodes" in str(refused.value) and says in str(refused.value)


def test_nodes_are_named_as_the_allocation_names_them() -> None:
    names = ("n1.cluster.example", "n2.cluster.example")
    assert chosen(names, "n2") == ["n2.cluster.example"]


@relaxed
@given(st.integers(1, 30), st.text(max_size=12) | st.from_regex(r"[0-9]{1,2}-?[0-9]{0,2}"))
def test_any_choice_means_nodes_that_are_there_or_is_refused(count: int, choice: str) -> None:
    names = [f"n{number}" for number in range(1, count + 1)]
    try:
        found = chosen(names, choice)
    except SpoolError:
        return
    assert found and set(found) <= set(names)
    assert len(set(found)) == len(found)


# -- nodes that only an mpirun reaches -----------------------------------------------------------


def test_nodes_reached_by_mpirun_are_like_our_own_but_for_their_names() -> None:
    own = own_node(SIZE, Settings(), granted(ALLOCATED))
    place = reached_by_mpirun(own, granted(ALLOCATED), ALLOCATED[2:5])
    assert [node.name for node in place.nodes] == list(ALLOCATED[2:5])
    assert {(node.cpus, node.gpus, node.memory_mb) for node in place.nodes} == {
        (own.cpus, own.gpus, own.memory_mb)
    }
    assert place.ranks is None and place.system == "slurm"
    assert place.told()["nodes"] == 3 and place.told()["cores"] == 18
    assert place.told()["unguarded"] is True and place.allocated == ALLOCATED


def test_a_node_with_fewer_granted_cores_offers_no_more() -> None:
    own = Node(tuple(range(6)), name="n001")
    place = reached_by_mpirun(own, granted(ALLOCATED[:3], cores=(6, 4, 64)), ALLOCATED[:3])
    assert [len(node.cpus) for node in place.nodes] == [6, 4, 6]
    assert [node.cpus[0] for node in place.nodes] == [0, 0, 0]
