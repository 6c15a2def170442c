"""The elements of an array by number: their text forms, sets of them, the cut, ids of chunks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool import array_source
from spool.errors import ManifestError, NoSuchTask
from spool.launcher.book import Book
from spool.launcher.nodes import Node
from spool.queue import array, layout, manifest, select, shape
from spool.queue.array import Numbers, Some
from spool.queue.shape import Shape

relaxed = settings(deadline=None)
ID = "fit.26112215-4k-k3f9x2q7bd"
sets = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=6).map(
    lambda pairs: Some(range(first, first + more + 1) for first, more in pairs)
)
ranges = st.builds(
    lambda first, count, step: Numbers(first, first + count * step, step),
    st.integers(0, 50), st.integers(0, 300), st.integers(1, 7),
)  # fmt: skip


# -- numbers -------------------------------------------------------------------------------------


@relaxed
@given(ranges)
def test_a_range_reads_back_and_counts_its_elements(numbers: Numbers) -> None:
    assert array.parse(str(numbers)) == numbers
    assert numbers.size == len(numbers.every())
    assert [n for n in range(400) if n in numbers] == [n for n in numbers.every() if n < 400]


@relaxed
@given(ranges, st.integers(1, 40))
def test_chunks_hold_every_element_once_and_name_what_they_hold(
    numbers: Numbers, size: int
) -> None:
    parts = list(array.cut(numbers, size))
    assert [n for part in parts for n in part.every()] == list(numbers.every())
    assert all(numbers.of_chunk(part.chunk) == part for part in parts)
    assert {part.size for part in parts[:-1]} <= {size}


@pytest.mark.parametrize(
    "text", ["", "5", "a-b", "9-0", "0-9:0", "-1-5", "0-1000000000", "0-9;", "values 3", " 0-9"]
)
def test_what_is_no_range_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="range of numbers such as"):
        array.parse(text)


def test_the_last_element_is_one_that_the_step_meets() -> None:
    assert array.parse("0-10:4") == Numbers(0, 8, 4)
    assert str(array.parse("007-100")) == "007-100"
    assert array.parse("values 0-4").values


@pytest.mark.parametrize("chunk", ["1-3", "0-9", "4-2", "x", "0-5"])
def test_a_chunk_that_is_no_part_is_refused(chunk: str) -> None:
    with pytest.raises(ValueError):
        array.parse("0-8:2").of_chunk(chunk)


# -- some of them --------------------------------------------------------------------------------


@relaxed
@given(sets, sets, ranges)
def test_sets_of_elements_behave_as_sets(a: Some, b: Some, numbers: Numbers) -> None:
    def members(some: Some) -> set[int]:
        return {n for n in range(100) if n in some}

    assert array.parse_some(str(a)) == a
    assert members(a | b) == members(a) | members(b)
    assert members(a - b) == members(a) - members(b)
    assert list(a.among(numbers)) == [n for n in numbers.every() if n in a]
    assert members(a.within(numbers)) == {
        n for n in members(a) if numbers.first <= n <= numbers.last
    }
    assert bool(a) == bool(members(a))


@pytest.mark.parametrize("text", ["x", "1-", "9-3", "1,,2", "1;2", "-3", "1" * 10])
def test_what_names_no_elements_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="numbers and ranges"):
        array.parse_some(text)


# -- the cut -------------------------------------------------------------------------------------


@relaxed
@given(st.integers(1, 10**9), st.floats(0, 1e6))
def test_the_cut_makes_few_chunks_and_none_empty(count: int, element_s: float) -> None:
    size = array.chunk_size(count, element_s)
    assert size >= 1
    assert -(-count // size) <= array.MOST_CHUNKS


def test_long_elements_lie_in_small_chunks_and_short_ones_in_large() -> None:
    assert array.chunk_size(100_000) == 1563
    assert array.chunk_size(100_000, 60.0) == 10
    assert array.chunk_size(10, 0.0) == 10
    assert array.chunk_size(64, 3600.0) == 1
    assert array.chunk_size(1000, 0.001) == 125


# -- ids -----------------------------------------------------------------------------------------


def test_a_chunk_s_id_is_taken_apart() -> None:
    parts = layout.parse_id(f"{ID}@0-999999999")
    assert parts is not None and (parts.name, parts.chunk) == ("fit", "0-999999999")
    assert layout.shard_of(f"{ID}@17-17") == "26112215-4k"
    assert layout.array_of(f"{ID}@17-17") == layout.array_of(ID) == ID
    longest = f"{'n' * 80}.26112215-4k-k3f9x2q7bd@999999998-999999999"
    assert layout.parse_id(longest) is not None


@pytest.mark.parametrize(
    "tail", ["@", "@1", "@01-2", "@1-2@3-4", "@-1-2", "@1-2x", "@1000000000-2"]
)
def test_what_is_no_chunk_s_id_is_no_id(tail: str) -> None:
    assert layout.parse_id(ID + tail) is None


@pytest.mark.parametrize("task_id", [ID, f"{ID}@0-9"])
@pytest.mark.parametrize("source", ["", "beamline", "0-9"])
def test_the_name_of_an_arrival_tells_id_and_source(task_id: str, source: str) -> None:
    held = layout.arriving(task_id, source)
    assert layout.parse_arriving(held) == (task_id, source)
    assert layout.parse_id(held) is None


def test_a_chunk_s_id_is_no_group_with_a_shard() -> None:
    assert layout.group_label(f"{ID}@0-9") == f"{ID}@0-9"  # WAITING under that chunk
    with pytest.raises(ValueError):
        shape.parse(f"{ID}@0-9")


# -- words ---------------------------------------------------------------------------------------


def test_a_word_may_name_elements() -> None:
    assert select.split(f"{ID}[17]") == (ID, array.parse_some("17"))
    assert select.split(f"{ID}[3-9,12]") == (ID, array.parse_some("3-9,12"))
    assert select.split("scan-*[12]") == ("scan-*[12]", None)  # a glob
    assert select.split(ID) == (ID, None)
    with pytest.raises(NoSuchTask, match="backwards"):
        select.split(f"{ID}[9-3]")


def test_the_elements_that_words_mean_of_a_chunk() -> None:
    chunk = f"{ID}@0-9"
    assert select.elements((f"{ID}[3]", f"{ID}[5-6]"), chunk) == array.parse_some("3,5-6")
    assert select.elements((f"{ID}[3]", ID), chunk) is None
    assert select.elements((f"{ID}[3]", "other"), chunk) == array.parse_some("3")
    assert select.elements(("fit[3]",), chunk) == array.parse_some("3")


# -- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"), [("nodes", 2), ("ranks_per_node", 4), ("per_node", 2), ("fresh", True)]
)
def test_only_elements_on_one_node_by_themselves_make_an_array(key: str, value: object) -> None:
    asked = {"command": ["x"], "array": "0-9", key: value}
    with pytest.raises(ManifestError, match=f"key '{key}'.*not possible for the elements"):
        manifest.from_mapping(asked, "m")


def test_a_chunk_s_lane_tells_how_many_elements_it_holds() -> None:
    wanted = manifest.from_mapping({"command": ["x"], "array": "0-99", "chunk": "0-9"}, "m")
    made = manifest.wanted_shape(wanted)
    assert shape.print_shape(made) == "c1.e10"
    assert shape.read("c1.e10") == made
    whole = manifest.from_mapping({"command": ["x"], "array": "0-99999"}, "m")
    assert manifest.wanted_shape(whole).elements == shape.MOST_ELEMENTS


# -- room ----------------------------------------------------------------------------------------


def widths(cores: int, shape: Shape, waiting: list[int], **node: object) -> list[int]:
    book = Book([Node(tuple(range(cores)), **node)])  # type: ignore[arg-type]
    found = []
    for others in waiting:
        grants = book.take(shape)
        assert grants is not None
        wide = book.widen(grants, shape, others)
        found.append(len(wide[0].cpus))
        assert book.free == cores - sum(found)
        assert len(set(wide[0].cpus)) == len(wide[0].cpus)
    return found


def test_a_chunk_alone_gets_the_node_and_many_get_a_core_each() -> None:
    chunk = Shape(elements=100)
    assert widths(8, chunk, [0]) == [8]
    assert widths(4, chunk, [3, 2, 1, 0]) == [1, 1, 1, 1]
    assert widths(4, chunk, [1, 0]) == [2, 2]
    assert widths(8, Shape(elements=3), [0]) == [3]
    assert widths(8, Shape(elements=9, cores=3), [0]) == [6]


def test_no_more_is_given_than_memory_allows_and_none_where_gpus_are_needed() -> None:
    assert widths(8, Shape(elements=9, memory_mb=100), [0], memory_mb=350) == [3]
    assert widths(8, Shape(elements=9, gpus=1), [0], gpus=("0", "1")) == [1]


def test_what_a_wide_chunk_had_comes_back_whole() -> None:
    book = Book([Node((0, 1, 2, 3), memory_mb=400)])
    chunk = Shape(elements=9, memory_mb=100)
    grants = book.take(chunk)
    assert grants is not None
    book.give(book.widen(grants, chunk, 0))
    assert book.idle and book.rooms[0].memory_mb == 400


# -- what people say -----------------------------------------------------------------------------


def test_a_range_or_a_list() -> None:
    assert array_source.from_text("0-9").array == "0-9"
    assert array_source.from_text("5").array == "5-5"
    assert array_source.from_text("007-100").array == "007-100"
    listed = array_source.from_text("a,b c,,d")
    assert (listed.array, listed.values) == ("values 0-3", b'"a"\n"b c"\n""\n"d"\n')
    assert array_source.from_text("a,").array == "values 0-0"


@pytest.mark.parametrize("text", ["", "abc", "1,5,7-9", "9-1", "1-2-3", "0-9:0"])
def test_what_is_neither_is_refused_with_both_forms(text: str) -> None:
    with pytest.raises(ManifestError, match="range"):
        array_source.from_text(text)


def test_rows_of_a_table_lines_and_objects(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.csv").write_text('t,s\n1.5,x\n2,"y,z"\n')
    found = array_source.from_file(str(tmp_path / "a.csv"))
    assert found.array == "values 0-1" and found.columns == ("t", "s")
    assert found.values == b'{"t":"1.5","s":"x"}\n{"t":"2","s":"y,z"}\n'
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n[1,\t2]\n"x"\n')
    found = array_source.from_file(str(tmp_path / "a.jsonl"))
    assert found.values == b'{"a":1}\n[1,2]\n"x"\n' and found.columns == ("a",)
    (tmp_path / "a.txt").write_text("one\n\ntwo words\n")
    assert array_source.from_file(str(tmp_path / "a.txt")).values == b'"one"\n"two words"\n'


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "t,s\n1\n", "a.csv:2: has 1 cells, the header has 2"),
        ("a.csv", "", "expected a header row"),
        ("a.csv", "t\n", "holds no value"),
        ("a.jsonl", "{\n", "a.jsonl:1: is not JSON"),
        ("a.txt", "ok\n\0\n", "a.txt:2: holds a NUL"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, name: str, text: str, says: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=says):
        array_source.from_file(str(tmp_path / name))


def test_a_place_that_no_column_fills_is_refused() -> None:
    rows = array_source.from_values([{"t": 1}], "here")
    array_source.check_places({"command": ["x", "{t}", "${HOME}", "{ own }"]}, rows)
    with pytest.raises(ManifestError, match="names no column; the columns are t"):
        array_source.check_places({"command": ["x", "{typo}"]}, rows)
