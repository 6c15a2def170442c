"""Room on a node: what is given is never given twice, and comes back as it was."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.launcher import nodes
from spool.launcher.nodes import Grant, Node, Room
from spool.queue.shape import Shape

relaxed = settings(deadline=None)
machines = st.builds(
    Node,
    cpus=st.sets(st.integers(0, 255), min_size=1, max_size=32).map(
        lambda cpus: tuple(sorted(cpus))
    ),
    gpus=st.integers(0, 12).map(lambda count: tuple(map(str, range(count)))),
    memory_mb=st.integers(0, 4096),
)
shapes = st.builds(
    Shape,
    cores=st.integers(1, 8),
    ranks=st.integers(1, 2),
    gpus=st.integers(0, 3),
    memory_mb=st.sampled_from([0, 64, 512, 1024]),
)


def held(room: Room, grants: list[Grant]) -> tuple[Counter[int], Counter[str], int]:
    """All cores, GPUs and memory there are: the free ones and those given away."""
    cpus = Counter([*room.cpus, *(cpu for grant in grants for cpu in grant.cpus)])
    gpus = Counter([*room.gpus, *(gpu for grant in grants for gpu in grant.gpus)])
    return cpus, gpus, room.memory_mb + sum(grant.memory_mb for grant in grants)


def take(room: Room, shape: Shape) -> Grant | None:
    return room.grant(shape) if room.count(shape) else None


def is_idle(room: Room) -> bool:
    return len(room.cpus) == len(room.node.cpus)


@relaxed
@given(machines, st.lists(shapes | st.integers(0, 9), max_size=40))
def test_taking_and_giving_neither_makes_nor_loses_room(
    node: Node, moves: list[Shape | int]
) -> None:
    """A shape is taken, a number gives one of the grants back."""
    room, grants = Room(node), list[Grant]()
    whole = (Counter(node.cpus), Counter(node.gpus), node.memory_mb)
    for move in moves:
        if isinstance(move, int):
            if grants:
                room.give(grants.pop(move % len(grants)))
        elif (grant := take(room, move)) is not None:
            assert len(set(grant.cpus)) == move.cores * move.ranks
            assert len(set(grant.gpus)) == move.gpus
            assert grant.memory_mb == move.memory_mb
            grants.append(grant)
        assert held(room, grants) == whole
        assert room.memory_mb >= 0
        assert is_idle(room) == (not grants)
    for grant in grants:
        room.give(grant)
    assert (tuple(room.cpus), tuple(room.gpus)) == (node.cpus, node.gpus)


@relaxed
@given(machines, shapes)
def test_as_many_fit_as_were_counted(node: Node, shape: Shape) -> None:
    room, counted = Room(node), Room(node).count(shape)
    for _ in range(counted):
        assert take(room, shape) is not None
    assert take(room, shape) is None
    assert nodes.fits_ever(node, shape) == (counted > 0)


def test_what_does_not_fit_takes_nothing() -> None:
    room = Room(Node((0, 1), ("0",), 1024))
    for shape in (Shape(cores=3), Shape(gpus=2), Shape(memory_mb=2048), Shape(ranks=2, cores=2)):
        assert take(room, shape) is None
        assert room.count(shape) == 0
    assert (room.cpus, room.gpus, room.memory_mb) == ([0, 1], ["0"], 1024)


def test_the_lowest_free_cores_and_gpus_are_given_first() -> None:
    room = Room(Node(tuple(range(8)), tuple(map(str, range(12)))))
    first, second = take(room, Shape(cores=2, gpus=3)), take(room, Shape(cores=1, gpus=8))
    assert first == Grant((0, 1), ("0", "1", "2"), 0)
    assert second is not None and first is not None
    room.give(second)
    room.give(first)
    assert room.gpus == [str(number) for number in range(12)]
    assert take(room, Shape(cores=2, gpus=3)) == first


def test_planning_on_a_copy_leaves_the_room_alone() -> None:
    room = Room(Node((0, 1), ("0",), 1024))
    twin = room.copy()
    take(twin, Shape(cores=2, gpus=1, memory_mb=1024))
    assert (room.cpus, room.gpus, room.memory_mb) == ([0, 1], ["0"], 1024)
    assert is_idle(room) and not is_idle(twin)


def test_a_task_of_several_nodes_fits_no_single_one() -> None:
    assert not nodes.fits_ever(Node((0, 1)), Shape(nodes=2))
    assert nodes.fits_ever(Node((0, 1)), Shape(cores=2))


def test_cores_offered_twice_are_shared() -> None:
    assert Node((0, 0, 1)).shared
    assert not Node((0, 1)).shared


# -- this machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "devices", "gpus"),
    [
        ({}, [], ()),
        ({}, ["nvidia10", "nvidia2", "nvidia0"], ("0", "2", "10")),
        ({}, ["nvidiactl", "nvidia-uvm", "nvidia0p1", "xnvidia1", "sda"], ()),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["nvidia0", "nvidia1"], ("1", "0")),
        ({"CUDA_VISIBLE_DEVICES": "1, 0"}, [], ("1", "0")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2a,MIG-1"}, [], ("GPU-8f2a", "MIG-1")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["nvidia0"], ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ["nvidia0"], ()),
        ({"ROCR_VISIBLE_DEVICES": "3"}, [], ("3",)),
        ({"HIP_VISIBLE_DEVICES": "4,5"}, ["nvidia0"], ("4", "5")),
        ({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "4"}, [], ("0",)),
    ],
)
def test_the_gpus_are_those_the_batch_system_names_else_the_devices(
    environment: dict[str, str], devices: list[str], gpus: tuple[str, ...]
) -> None:
    assert nodes.visible_gpus(environment, devices) == gpus


def test_this_node_is_what_this_process_may_use() -> None:
    node = nodes.this_node()
    assert set(node.cpus) == os.sched_getaffinity(0)
    assert not node.shared
    assert node.memory_mb > 0


def test_launchers_that_take_a_part_each_do_not_all_take_the_first_cores() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two cores")
    found = {nodes.this_node(cores=1).cpus for _ in range(200)}
    assert found == {(cpu,) for cpu in allowed}


def test_a_person_may_overrule_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    node = nodes.this_node(cores=100, gpus=3, memory_mb=7)
    assert len(node.cpus) == 100 and node.shared
    assert set(node.cpus) <= os.sched_getaffinity(0)
    assert node.gpus == ("GPU-a", "GPU-b", "2")
    assert node.memory_mb == 7
    assert nodes.this_node(gpus=1).gpus == ("GPU-a",)
    assert nodes.this_node(gpus=0).gpus == ()
