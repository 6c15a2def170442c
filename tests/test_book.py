"""The book of many nodes: nothing is given twice, the first fit is found, nobody is starved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.launcher.book import Book, Grants
from spool.launcher.nodes import Grant, Node, Room, needs
from spool.queue.shape import Shape

relaxed = settings(deadline=None)
Move = tuple[str, object]
Allows = Callable[[int], bool] | None


def node(cores: int, gpus: int = 0, memory_mb: int = 0) -> Node:
    return Node(tuple(range(cores)), tuple(map(str, range(gpus))), memory_mb)


cpus = st.integers(1, 12).map(lambda count: tuple(range(count)))
machines = st.builds(
    Node,
    cpus=cpus | st.lists(st.integers(0, 5), min_size=1, max_size=8).map(sorted).map(tuple),
    gpus=st.integers(0, 4).map(lambda count: tuple(map(str, range(count)))),
    memory_mb=st.sampled_from([0, 64, 600, 2048]),
)
fields = st.lists(machines, min_size=1, max_size=9)
shapes = st.builds(
    Shape,
    nodes=st.sampled_from([1, 1, 1, 2, 3]),
    ranks=st.integers(1, 2),
    cores=st.sampled_from([1, 1, 2, 3, 5]),
    per_node=st.sampled_from([0, 0, 0, 1, 2, 3, 20]),
    gpus=st.sampled_from([0, 0, 0, 1, 2]),
    memory_mb=st.sampled_from([0, 0, 64, 512]),
)
permits = st.none() | st.sets(st.integers(0, 8)).map(lambda some: some.__contains__)
numbers = st.integers(0, 50)
takes = st.tuples(st.just("take"), shapes, permits)
gives = st.tuples(st.just("give"), numbers)
keeps = st.tuples(st.just("keep"), st.none() | shapes)
plans = st.tuples(st.just("plan"), st.lists(shapes, min_size=1, max_size=5))
closes = st.tuples(st.just("close"), numbers)
moves = st.one_of(takes, takes, takes, gives, gives, keeps, plans, closes)
histories = st.lists(moves, max_size=40)


class Ledger:
    """A book, and apart from it what is out."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.book = Book(nodes)
        self.out: list[Grants] = []
        self.closed: set[int] = set()

    def make(self, move: Move) -> None:
        getattr(self, move[0])(*move[1:])

    def take(self, shape: Shape, allows: Allows = None) -> Grants | None:
        """What is given must be what was asked for, on nodes that may be used."""
        grants = self.book.take(shape, allows)
        if grants is None:
            return None
        numbers = [grant.node for grant in grants]
        assert numbers == sorted(set(numbers)) and len(numbers) == shape.nodes
        assert not self.closed.intersection(numbers)
        assert allows is None or all(map(allows, numbers))
        for grant in grants:
            assert len(grant.cpus) == needs(shape, self.book.nodes[grant.node])
            assert len(grant.gpus) == shape.gpus
            assert grant.memory_mb == shape.memory_mb
        self.out.append(grants)
        return grants

    def give(self, number: int) -> None:
        if self.out:
            self.book.give(self.out.pop(number % len(self.out)))

    def keep(self, shape: Shape | None) -> None:
        self.book.keep(shape)

    def plan(self, wanted: Sequence[Shape]) -> None:
        """What is done to a copy leaves the book alone."""
        before = picture(self.book)
        twin = self.book.copy()
        assert picture(twin) == before
        for shape in wanted:
            if grants := twin.take(shape):
                twin.give(grants[:1])
            twin.keep(shape)
        assert picture(self.book) == before

    def close(self, number: int) -> None:
        number %= len(self.book.nodes)
        self.book.close(number)
        self.closed.add(number)

    def check(self) -> None:
        """Every core, GPU and megabyte is free or out, once."""
        book = self.book
        given = {number: [] for number in range(len(book.nodes))}
        for grants in self.out:
            for grant in grants:
                given[grant.node].append(grant)
        for number, room in enumerate(book.rooms):
            if number in self.closed:
                assert (room.cpus, room.gpus, room.memory_mb) == ([], [], 0)
            else:
                assert whole(room, given[number]) == whole(Room(room.node), [])
                assert room.memory_mb >= 0
                shares = [Fraction(1, one.per_node) for one in given[number] if one.per_node]
                assert room.shared == sum(shares) <= 1
        assert book.free == sum(len(room.cpus) for room in book.rooms)
        left = (grant for grants in self.out for grant in grants if grant.node not in self.closed)
        assert book.idle == (not any(left))


def whole(room: Room, grants: Sequence[Grant]) -> tuple[Counter[int], Counter[str], int]:
    """What is free, and what is out."""
    cpus = Counter([*room.cpus, *(cpu for grant in grants for cpu in grant.cpus)])
    gpus = Counter([*room.gpus, *(gpu for grant in grants for gpu in grant.gpus)])
    return cpus, gpus, room.memory_mb + sum(grant.memory_mb for grant in grants)


def picture(book: Book) -> list[object]:
    """All that a book says."""
    rooms = [(tuple(r.cpus), tuple(r.gpus), r.memory_mb, r.kept) for r in book.rooms]
    return [rooms, book.free, book.idle, book.kept_for]


def lived(nodes: Sequence[Node], history: Sequence[Move]) -> Ledger:
    """A ledger after a history."""
    ledger = Ledger(nodes)
    for move in history:
        ledger.make(move)
    return ledger


# -- given and given back ------------------------------------------------------------------------


@relaxed
@given(fields, histories)
def test_no_core_gpu_or_megabyte_is_ever_given_twice(
    nodes: list[Node], history: list[Move]
) -> None:
    ledger = Ledger(nodes)
    for move in history:
        ledger.make(move)
        ledger.check()
    while ledger.out:
        ledger.give(-1)
    ledger.check()
    for number, room in enumerate(ledger.book.rooms):
        if number not in ledger.closed:
            assert (tuple(room.cpus), tuple(room.gpus)) == (room.node.cpus, room.node.gpus)
            assert room.memory_mb == room.node.memory_mb


@relaxed
@given(fields, histories, shapes, st.integers(1, 20), permits)
def test_as_many_can_be_taken_as_were_counted(
    nodes: list[Node], history: list[Move], shape: Shape, most: int, allows: Allows
) -> None:
    ledger = lived(nodes, history)
    counted = ledger.book.count(shape, most, allows)
    taken = 0
    while taken < most and ledger.take(shape, allows):
        taken += 1
    # Of several nodes one is counted at most: each gets an mpirun of its own.
    assert counted == (taken if shape.nodes == 1 else min(taken, 1))


@relaxed
@given(fields, st.sets(st.integers(0, 8)), shapes)
def test_what_fits_ever_fits_the_empty_book(
    nodes: list[Node], closed: set[int], shape: Shape
) -> None:
    book = Book(nodes)
    assert book.fits_ever(shape) == (book.copy().take(shape) is not None)
    for number in closed:
        if number < len(nodes):
            book.close(number)
    assert book.fits_ever(shape) == (book.take(shape) is not None)


def test_what_fits_ever_does_not_hang_on_what_runs() -> None:
    book = Book([node(4), node(4)])
    assert book.take(Shape(nodes=2, cores=4))
    assert book.fits_ever(Shape(nodes=2, cores=4))
    assert not book.fits_ever(Shape(cores=5)) and not book.fits_ever(Shape(nodes=3))


def test_very_cores_are_lent_and_come_back() -> None:
    book = Book([node(4, memory_mb=1000)])
    lent = book.lend((1, 2), 600)
    assert not book.idle and book.free == 2
    assert book.take(Shape(cores=2, memory_mb=401)) is None
    assert book.take(Shape(cores=2)) == (Grant((0, 3), (), 0),)
    book.give(lent)
    assert book.take(Shape(cores=2, memory_mb=1000)) == (Grant((1, 2), (), 1000),)


# -- first fit -----------------------------------------------------------------------------------


def linear(book: Book, shape: Shape, allows: Allows) -> list[int] | None:
    """The nodes of the first fit, found by looking at each."""
    ours = shape == book.kept_for
    fitting = [room.number for room in book.rooms if room.count(shape, ours=ours)]
    allowed = [number for number in fitting if allows is None or allows(number)]
    return allowed[: shape.nodes] if len(allowed) >= shape.nodes else None


@relaxed
@given(fields, histories, st.lists(st.tuples(shapes, permits), min_size=1, max_size=8))
def test_the_tree_finds_what_a_look_at_each_node_finds(
    nodes: list[Node], history: list[Move], wanted: list[tuple[Shape, Allows]]
) -> None:
    ledger = lived(nodes, history)
    for shape, allows in wanted:
        expected = linear(ledger.book, shape, allows)
        grants = ledger.take(shape, allows)
        assert (grants and [grant.node for grant in grants]) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 31, 1000])
def test_nodes_are_filled_from_the_first_to_the_last(count: int) -> None:
    book = Book([node(2)] * count)
    order = [book.take(Shape()) for _ in range(2 * count)]
    assert [grants[0].node for grants in order if grants] == [n // 2 for n in range(2 * count)]
    assert book.take(Shape()) is None and book.free == 0
    book.give((Grant((1,), (), 0, count - 1),))
    assert book.take(Shape()) == (Grant((1,), (), 0, count - 1),)


def first_fit(nodes: Sequence[Node], wanted: Sequence[Shape]) -> list[list[int] | None]:
    """Where each task goes: a plain first fit, of counts alone."""
    free = [[len(one.cpus), len(one.gpus), one.memory_mb, Fraction(1)] for one in nodes]
    placed: list[list[int] | None] = []
    for shape in wanted:
        needed = [
            (needs(shape, one), shape.gpus, shape.memory_mb, share_of(shape)) for one in nodes
        ]
        fitting = [
            number
            for number, have in enumerate(free)
            if all(one >= need for one, need in zip(have, needed[number], strict=True))
        ][: shape.nodes]
        if len(fitting) < shape.nodes:
            placed.append(None)
            continue
        for number in fitting:
            both = zip(free[number], needed[number], strict=True)
            free[number] = [one - need for one, need in both]
        placed.append(fitting)
    return placed


def share_of(shape: Shape) -> Fraction:
    return Fraction(1, shape.per_node) if shape.per_node else Fraction(0)


def size(shape: Shape) -> tuple[int, int, int]:
    return shape.nodes * shape.cores * shape.ranks, shape.gpus, shape.memory_mb


@relaxed
@given(fields, st.lists(shapes, max_size=40))
def test_the_largest_first_are_packed_as_well_as_a_plain_first_fit_packs_them(
    nodes: list[Node], wanted: list[Shape]
) -> None:
    wanted.sort(key=size, reverse=True)
    ledger = Ledger(nodes)
    ours = [grants and [one.node for one in grants] for grants in map(ledger.take, wanted)]
    plain = first_fit(nodes, wanted)
    assert sum(map(bool, ours)) >= sum(map(bool, plain))
    assert {n for some in ours for n in some or ()} <= {n for some in plain for n in some or ()}
    assert ours == plain


@pytest.mark.parametrize(
    ("cores", "shape"),
    [
        (64, Shape(nodes=2, ranks=32, cores=2)),
        (64, Shape(nodes=2, ranks=64, cores=1)),
        (64, Shape(nodes=2, ranks=16, cores=4)),
        (128, Shape(nodes=1, ranks=2, cores=64)),
        (128, Shape(nodes=2, ranks=2, cores=64)),
    ],
)
def test_the_ranks_of_a_task_have_each_core_of_its_nodes_once(cores: int, shape: Shape) -> None:
    book = Book([node(cores)] * shape.nodes)
    grants = book.take(shape)
    assert grants is not None
    assert [grant.node for grant in grants] == list(range(shape.nodes))
    for grant in grants:
        ranks = [
            grant.cpus[rank * shape.cores : (rank + 1) * shape.cores] for rank in range(shape.ranks)
        ]
        assert {len(rank) for rank in ranks} == {shape.cores}
        assert [cpu for rank in ranks for cpu in rank] == list(range(cores))
    assert book.free == 0 and book.take(Shape()) is None
    book.give(grants)
    assert book.idle and book.take(shape) == grants


def test_two_tasks_share_a_node_only_where_both_fit() -> None:
    book = Book([node(8, gpus=2), node(8)])
    wide = book.take(Shape(nodes=2, cores=6))
    small = book.take(Shape(cores=2, gpus=2))
    assert wide is not None and small is not None
    assert [grant.cpus for grant in wide] == [tuple(range(6))] * 2
    assert small == (Grant((6, 7), ("0", "1"), 0, 0),)
    assert book.take(Shape(cores=3)) is None
    assert book.take(Shape(cores=2)) == (Grant((6, 7), (), 0, 1),)


@pytest.mark.parametrize(
    ("cores", "shape", "count", "each"),
    [
        (64, Shape(per_node=1), 1, 64),
        (64, Shape(per_node=4), 4, 16),
        (10, Shape(per_node=4), 4, 2),
        (64, Shape(per_node=4, cores=20), 3, 20),
        (2, Shape(per_node=64), 2, 1),
        (64, Shape(per_node=2, ranks=4), 2, 32),
    ],
)
def test_tasks_that_say_how_many_of_them_share_a_node_share_it_evenly(
    cores: int, shape: Shape, count: int, each: int
) -> None:
    book = Book([node(cores)] * 2)
    assert book.count(shape, 100) == 2 * count
    taken = [book.take(shape) for _ in range(2 * count)]
    assert [len(grants[0].cpus) for grants in taken if grants] == [each] * (2 * count)
    assert book.take(shape) is None
    if taken[0] is not None:
        book.give(taken[0])
    assert book.take(shape) == taken[0]


def test_a_node_shared_in_parts_takes_others_where_cores_are_left() -> None:
    book = Book([node(10)])
    taken = [book.take(shape) for shape in (Shape(per_node=2), Shape(per_node=4))]
    assert [len(grants[0].cpus) for grants in taken if grants] == [5, 2]
    assert book.take(Shape(per_node=2)) is None  # three quarters are given
    assert book.take(Shape(cores=3)) is not None


# -- room kept for the large ---------------------------------------------------------------------

steps = st.lists(takes | gives | st.just(("old",)), max_size=60)


def kept_rooms(book: Book) -> dict[int, Room]:
    return {room.number: room for room in book.rooms if room.kept}


def assert_left_alone(book: Book, grants: Grants, kept: Shape) -> None:
    """What these grants left on nodes where room is kept."""
    for grant in grants:
        room = book.rooms[grant.node]
        if room.kept is None:
            continue
        assert len(room.cpus) >= needs(kept, room.node)
        assert not grant.gpus or len(room.gpus) >= kept.gpus
        assert not grant.memory_mb or room.memory_mb >= kept.memory_mb


@relaxed
@given(fields, st.lists(takes, max_size=30), shapes, steps, st.none() | numbers)
def test_no_stream_of_others_starves_what_room_is_kept_for(
    nodes: list[Node], before: list[Move], large: Shape, stream: list[Move], gone: int | None
) -> None:
    """Others come and go for ever; those that ran at first end one by one, at some time."""
    ledger = lived(nodes, before)
    book = ledger.book
    old, ledger.out = ledger.out, []
    book.keep(large)
    if gone is not None:
        ledger.close(gone)
    if not book.fits_ever(large):
        assert book.kept_for is None and kept_rooms(book) == {}
        return
    assert len(kept_rooms(book)) == large.nodes
    for move in stream:
        if move[0] == "old":
            if old:
                book.give(old.pop())
        elif move[0] == "give":
            ledger.make(move)
        elif move[1] != large and (grants := ledger.take(*move[1:])):
            assert_left_alone(book, grants, large)
    while old:
        book.give(old.pop())
    assert book.count(large, 1) == 1
    assert ledger.take(large)
    assert book.kept_for is None and kept_rooms(book) == {}
    ledger.check()


def test_a_whole_node_is_kept_from_small_tasks_that_never_end() -> None:
    book = Book([node(4), node(4)])
    running = [book.take(Shape()) for _ in range(8)]
    wide = Shape(cores=4)
    book.keep(wide)
    for _ in range(3):  # each core of the second node gets free and is taken anew at once
        for number in range(4, 8):
            book.give(running[number] or ())
            running[number] = book.take(Shape())
            assert running[number] is not None
    for number in range(4):  # those of the first get free for good
        assert book.take(wide) is None
        book.give(running[number] or ())
        assert book.take(Shape()) is None
    assert book.take(wide) == (Grant((0, 1, 2, 3), (), 0, 0),)


def test_kept_room_is_used_by_what_ends_before_it_is_complete() -> None:
    book = Book([node(4)])
    long, short = book.take(Shape()), book.take(Shape())
    assert long and short
    book.keep(Shape(cores=3))
    assert book.frees_in([(long[0], 500.0), (short[0], 20.0)]) == 20.0
    assert book.take(Shape(time_s=15)) is None  # nobody has said yet how long the others last
    book.kept_s = 20.0
    assert book.count(Shape(time_s=15), 9) == 2
    assert book.take(Shape(time_s=30)) is None and book.take(Shape()) is None
    assert book.take(Shape(time_s=15, elements=64)) is None  # that is the time of one element
    assert book.take(Shape(time_s=15)) and book.copy().take(Shape(time_s=15))
    book.give(short)
    assert book.frees_in([(long[0], 480.0)]) == 0.0  # what came later was to be gone by then


def test_room_of_several_nodes_is_complete_with_the_last_of_them() -> None:
    book = Book([node(2, gpus=1, memory_mb=100), node(2), node(2)])
    first, second = book.take(Shape(gpus=1, memory_mb=60)), book.take(Shape(cores=2))
    assert first and second and book.take(Shape(cores=2))
    wide = Shape(nodes=2, cores=2)
    book.keep(wide)
    assert kept_rooms(book).keys() == {0, 1}
    assert book.frees_in([(first[0], 9.0), (second[0], 5.0)]) == 9.0
    assert book.frees_in([(second[0], 5.0)]) == 5.0
    assert Book([node(1)]).frees_in([]) == 0.0


def test_room_is_kept_where_the_least_is_lacking() -> None:
    book = Book([node(4), node(4, gpus=1), node(4), node(2)])
    for wanted in (Shape(cores=3), Shape(cores=4, gpus=1), Shape(cores=1), Shape(cores=2)):
        assert book.take(wanted)
    book.keep(Shape(nodes=2, cores=3))
    assert [room.number for room in book.rooms if room.kept] == [0, 2]


def test_what_room_is_kept_for_may_run_elsewhere_and_then_nothing_is_kept() -> None:
    book = Book([node(4), node(4)])
    first, second = book.take(Shape(cores=3)), book.take(Shape(cores=4))
    wide = Shape(cores=4)
    book.keep(wide)
    assert kept_rooms(book).keys() == {0}
    assert first and second
    book.give(second)
    assert book.count(wide, 9) == 1
    assert book.take(wide) == second
    assert book.kept_for is None
    assert book.take(Shape()) == (Grant((3,), (), 0, 0),)


def test_the_gpus_of_a_node_are_kept_and_its_other_cores_are_not() -> None:
    book = Book([node(4, gpus=2, memory_mb=1000)])
    running = book.take(Shape(gpus=1))
    book.keep(Shape(gpus=2, memory_mb=600))
    assert book.take(Shape(gpus=1)) is None
    assert book.take(Shape(memory_mb=401)) is None
    assert book.take(Shape(memory_mb=400)) == (Grant((1,), (), 400),)
    assert book.take(Shape(cores=2)) is None  # a core is kept too
    assert running
    book.give(running)
    assert book.take(Shape(gpus=2, memory_mb=600))


def test_keeping_room_for_another_frees_what_was_kept() -> None:
    book = Book([node(4), node(4)])
    book.keep(Shape(nodes=2, cores=4))
    assert book.take(Shape()) is None
    book.keep(Shape(cores=4))
    assert book.take(Shape(cores=2)) == (Grant((0, 1), (), 0, 1),)
    book.keep(None)
    assert book.take(Shape()) == (Grant((0,), (), 0, 0),)


def test_what_can_never_run_is_kept_no_room() -> None:
    book = Book([node(4), node(4)])
    book.keep(Shape(nodes=3))
    assert book.kept_for is None and book.take(Shape(nodes=2, cores=4))


def test_a_node_that_may_not_be_used_is_not_used_although_it_is_kept() -> None:
    book = Book([node(2), node(2)])
    book.keep(Shape(cores=2))
    assert book.take(Shape(cores=2), lambda number: number != 0) == (Grant((0, 1), (), 0, 1),)
    book.keep(Shape(cores=2))
    assert book.count(Shape(cores=2), 5, lambda number: False) == 0
    assert book.take(Shape(cores=2), lambda number: False) is None


# -- nodes that are gone -------------------------------------------------------------------------


def test_nothing_is_given_on_a_closed_node_and_what_comes_back_there_vanishes() -> None:
    book = Book([node(4), node(4)])
    both, small = book.take(Shape(nodes=2, cores=2)), book.take(Shape())
    assert both and small and small[0].node == 0
    book.close(0)
    book.close(0)
    assert book.free == 2 and not book.idle
    book.give(small)
    book.give(both)
    assert book.free == 4 and book.idle
    assert book.take(Shape(), lambda number: number == 0) is None
    assert [book.take(Shape())[0].node for _ in range(4)] == [1] * 4  # type: ignore[index]
    assert book.take(Shape()) is None
    assert not book.fits_ever(Shape(nodes=2)) and book.fits_ever(Shape(cores=4))


def test_room_that_was_kept_on_a_node_that_is_gone_is_kept_on_another() -> None:
    book = Book([node(4), node(4), node(2)])
    running = book.take(Shape(nodes=2, cores=1))
    wide = Shape(cores=4)
    book.keep(wide)
    assert kept_rooms(book).keys() == {0}
    book.close(0)
    assert kept_rooms(book).keys() == {1}
    assert book.take(Shape()) == (Grant((0,), (), 0, 2),)
    assert running
    book.give(running)
    assert book.take(wide) == (Grant((0, 1, 2, 3), (), 0, 1),)


def test_room_is_kept_for_nobody_once_too_few_nodes_are_left() -> None:
    book = Book([node(4), node(4)])
    book.keep(Shape(nodes=2, cores=4))
    book.close(1)
    assert book.kept_for is None
    assert book.take(Shape(cores=4)) == (Grant((0, 1, 2, 3), (), 0, 0),)


def test_a_node_closed_in_the_book_is_not_closed_in_an_older_copy() -> None:
    book = Book([node(1), node(1)])
    twin = book.copy()
    book.close(0)
    grants = twin.take(Shape())
    assert grants == (Grant((0,), (), 0, 0),)
    twin.give(grants)
    assert twin.idle
