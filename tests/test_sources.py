"""What a person gives `spool submit` for many tasks becomes manifests, line by line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import subprocess
import sys
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import csv_source, sources
from spool.csv_source import from_csv
from spool.errors import ManifestError, SpoolError
from spool.queue import layout, manifest
from spool.queue.manifest import Manifest
from spool.sources import Rejected, count_each, from_each, from_jsonl, from_lines

ECHO = {"command": ["echo", "{}"]}


def values(ranges):
    return [item.command[-1] for item in from_each(ranges, ECHO)]


def of_lines(content, template):
    return list(from_lines(io.BytesIO(content), "f", template))


def of_jsonl(content, template=None):
    return list(from_jsonl(io.BytesIO(content), "f", template or {}))


def of_csv(content, template, **options):
    return list(from_csv(io.BytesIO(content), "f", template, **options))


def rejected(items):
    return [(item.where, item.reason) for item in items if isinstance(item, Rejected)]


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ("5", ["5"]),
        ("1-3", ["1", "2", "3"]),
        ("1-9:4", ["1", "5", "9"]),
        ("1-8:4", ["1", "5"]),
        ("1,5,7-9", ["1", "5", "7", "8", "9"]),
        (" 1 , 3 ", ["1", "3"]),
        ("3,1,3", ["3", "1", "3"]),
        ("-2-1", ["-2", "-1", "0", "1"]),
        ("-3--1", ["-3", "-2", "-1"]),
        ("0", ["0"]),
    ],
)
def test_ranges_are_read(ranges, expected):
    assert values(ranges) == expected
    assert count_each(ranges) == len(expected)


@pytest.mark.parametrize(
    ("ranges", "first", "last"),
    [
        ("007-100", "007", "100"),
        ("8-010", "008", "010"),
        ("00", "00", "00"),
        ("098-101", "098", "101"),
    ],
)
def test_a_range_keeps_its_zero_padding(ranges, first, last):
    found = values(ranges)
    assert (found[0], found[-1]) == (first, last)


@pytest.mark.parametrize(
    "ranges",
    ["", " ", ",", "1,,2", "a", "a,b,c", "1-", "1:2", "1-9:0", "1-9:-2", "9-1", "1..9", "1-2-3",
     "1 2", "1.5", "٣", "0x10", "1_000", "9" * 5000],
)  # fmt: skip
def test_nonsense_ranges_are_refused_with_an_example(ranges):
    for use in (count_each, lambda text: from_each(text, ECHO)):
        with pytest.raises(ManifestError, match="1-500"):
            use(ranges)


def test_too_many_values_are_refused_before_the_first():
    assert count_each("1-100000000") == 100_000_000
    for ranges in ("0-100000000", "1-99999999,1-2", "1-999999999999999999"):
        with pytest.raises(ManifestError, match="100000000"):
            from_each(ranges, ECHO)


def test_a_hundred_million_values_begin_at_once():
    started = time.monotonic()
    first = next(from_each("1-100000000", ECHO))
    assert first.command == ["echo", "1"]
    assert time.monotonic() - started < 1


@given(st.lists(st.integers(-(10**17), 10**17), min_size=1, max_size=30))
def test_any_numbers_printed_as_ranges_are_read_back(numbers):
    assert values(",".join(map(str, numbers))) == [str(number) for number in numbers]


@given(st.integers(-500, 500), st.integers(0, 300), st.integers(1, 50))
def test_any_range_is_that_of_python(first, length, step):
    expected = [str(number) for number in range(first, first + length + 1, step)]
    assert values(f"{first}-{first + length}:{step}") == expected


# -- where the value goes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ({"command": ["a", "{}"]}, {"command": ["a", "7"]}),
        ({"command": ("a", "{}")}, {"command": ["a", "7"]}),
        ({"command": ["a", "--n={}", "{}{}"]}, {"command": ["a", "--n=7", "77"]}),
        ({"command": ["run-{}.sh"]}, {"command": ["run-7.sh"]}),
        ({"command": "sim {} > {}.log"}, {"command": "sim 7 > 7.log"}),
        ({"app": "relax", "args": ["-n", "{}", "x"]}, {"args": ["-n", "7", "x"]}),
        ({"command": ["a"], "environment": {"SEED": "{}"}}, {"command": ["a"]}),
        ({"command": ["a"], "environment": {"SEED": "{}"}}, {"environment": {"SEED": "7"}}),
        ({"command": "sim", "environment": {"SEED": "{}"}}, {"command": "sim"}),
        ({"command": ["a"], "name": "run-{}"}, {"command": ["a"], "name": "run-7"}),
        ({"command": ["a"], "inputs": ["in/{}.xyz"]}, {"inputs": ["in/7.xyz"]}),
        ({"command": ["a"], "inputs": ["in/{}.xyz"]}, {"command": ["a"]}),
        (
            {"command": ["a"], "inputs": [{"path": "{}.xyz", "size": 3}]},
            {"inputs": [manifest.Input(path="7.xyz", size=3)]},
        ),
    ],
)
def test_the_value_goes_where_the_braces_are_and_nowhere_else(template, expected):
    (item,) = from_each("7", template)
    assert {key: getattr(item, key) for key in expected} == expected


@pytest.mark.parametrize(
    "word",
    [
        "{print $1}",
        "${HOME}",
        "{a,b}",
        "{foo}",
        "{{x}}",
        "}{",
        '{"a": {"b": 1}}',
        "{ }",
        "%s",
        "{0}",
    ],
)
def test_other_braces_are_left_alone(word):
    (item,) = from_each("7", {"command": ["awk", word, "{}"]})
    assert item.command == ["awk", word, "7"]
    (item,) = from_each("7", {"command": f"awk '{word}' {{}}"})
    assert item.command == f"awk '{word}' 7"


def test_a_value_that_holds_braces_is_not_replaced_again():
    (item,) = of_lines(b"{}{}\n", {"command": ["a", "{}", "x{}"]})
    assert item.command == ["a", "{}{}", "x{}{}"]


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ({"command": "sim --fast"}, "'sim --fast'"),
        ({"command": ["hostname"]}, "'hostname'.*--name 'hostname-{}'"),
        ({"command": ("sim", "{ }")}, "'sim { }'"),
        ({"command": ["sim"], "name": "n", "environment": {"A": "1"}}, "'sim'.*--name 'n-{}'"),
        ({"app": "relax", "args": ["-n"]}, "'app relax -n'"),
        ({"app": "relax"}, "'app relax'"),
        ({"command": ["a"], "data": {"x": "{}"}}, "'a'"),
    ],
)
def test_a_template_without_a_place_for_the_value_is_refused(template, shown):
    for use in (lambda t: from_each("1-3", t), lambda t: from_lines([], "f", t)):
        with pytest.raises(ManifestError, match=rf"^template: {shown}") as refused:
            use(template)
        assert "put {} where the value belongs" in str(refused.value)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ({"comand": ["a"]}, "comand"),
        ({"command": ["a"], "nodes": 0}, "nodes"),
        ({"command": 5}, "command"),
        ({"command": ["a"], "name": "no name!"}, "name"),
        ({"command": ["a"], "name": "no name {}"}, "name"),
        ({"command": ["a"], "name": 5}, "name"),
        ({"command": ["a"], "inputs": ["../{}"]}, "inputs"),
        ({"command": ["a"], "environment": {"A=B": "{}"}}, "environment"),
        ({"command": ["a"], "environment": 3}, "environment"),
        ({"app": "relax", "args": "-n"}, "args"),
        ({"command": ["a"], "after": "x"}, "after"),
    ],
)
def test_a_template_that_is_wrong_as_a_whole_is_refused_once(template, named):
    uses = [
        lambda: from_each("1-100000000", template),
        lambda: from_lines([], "f", template),
        lambda: from_jsonl([], "f", template),
        lambda: from_csv([b"x\n"], "f", template),
    ]
    for use in uses if "{}" not in str(template) else uses[:2]:
        with pytest.raises(ManifestError, match=f"^template: .*{named}"):
            use()


def test_a_template_without_a_program_is_refused():
    for use in (lambda: from_each("1", {"nodes": 2}), lambda: from_csv([b"x\n"], "f", {})):
        with pytest.raises(ManifestError, match="needs 'command'"):
            use()


def test_the_template_stays_as_it_was():
    template = {"command": ["a"], "environment": {"X": "{}"}, "data": {"k": 1}, "name": "n"}
    before = json.dumps(template)
    list(from_each("1-3", template))
    of_lines(b"x\ny\n", template)
    of_jsonl(b'{"data": {"l": 2}, "environment": {"Y": "1"}}\n', template)
    of_csv(b"c,environment\n1,Y=2\n", template)
    assert json.dumps(template) == before


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "value", "name"),
    [
        ({"command": ["/usr/bin/sim", "{}"]}, "7", "sim-7"),
        ({"command": "./sim.sh {}"}, "7", "sim.sh-7"),
        ({"app": "relax", "args": ["{}"]}, "7", "relax-7"),
        ({"command": ["a", "{}"], "name": "scan"}, "7", "scan-7"),
        ({"command": ["a"], "name": "x{}y"}, "7", "x7y"),
        ({"command": ["./run-{}.sh"]}, "7", "run-7.sh"),
        ({"command": ["{}/bin/run"]}, "v2", "run-v2"),
        ({"command": ["a", "{}"]}, "in/x.1/water.xyz", "a-water"),
        ({"command": ["a", "{}"]}, "in/water.tar.gz", "a-water.tar"),
        ({"command": ["a", "{}"]}, "in/folder/", "a-folder"),
        ({"command": ["a", "{}"]}, "in/.hidden", "a-.hidden"),
        ({"command": ["a", "{}"]}, "water.xyz", "a-water.xyz"),
        ({"command": ["a"], "name": "{}"}, "in/water.xyz", "water"),
        ({"command": ["{}"]}, "bin/sim.py", "sim"),
        ({"command": ["a", "{}"]}, "two words & more", "a-two-words-more"),
        ({"command": ["a", "{}"]}, "-3", "a--3"),
        ({"command": ["a"], "name": "{}"}, "???", "task"),
        ({"command": ["ü", "{}"]}, "1", "task-1"),
    ],
)
def test_a_name_tells_which_task_is_which(template, value, name):
    (item,) = of_lines(value.encode(), template)
    assert item.name == name


@given(
    st.text(min_size=1, max_size=200),
    st.sampled_from(["n", "n" * 40, "n" * 80, "{}", "a{}b{}", "n" * 70 + "{}"]),
)
def test_every_value_makes_a_task_with_a_name_that_fits(value, name):
    template = {"command": ["a", "{}"], "name": name}
    for item in of_lines(value.encode(), template) if value.isprintable() else ():
        assert layout.is_name(item.name)


def test_a_long_name_leaves_room_for_the_value():
    (item,) = from_each("12345", {"command": ["a", "{}"], "name": "n" * 80})
    assert item.name == "n" * 74 + "-12345"
    (item,) = of_lines(b"v" * 200, {"command": ["a", "{}"], "name": "n" * 10})
    assert item.name == "n" * 10 + "-" + "v" * 69


# -- lines ---------------------------------------------------------------------------------------


def test_each_line_is_a_value_as_it_stands():
    content = b"\xef\xbb\xbfa b\n\n# c\r\n  d  \n'e\"\nlast"
    items = of_lines(content, {"command": ["cat", "{}"]})
    assert [item.command[1] for item in items] == ["a b", "# c", "  d  ", "'e\"", "last"]


def test_lines_are_commands_when_the_template_has_none():
    content = b"#!/bin/sh\nsim --x 1 | tee {}\n\n  # two\n/opt/sim2 'a b' # why\n"
    items = of_lines(content, {"cores_per_rank": 2, "environment": {"LINE": "{}"}})
    assert [item.command for item in items] == ["sim --x 1 | tee {}", "/opt/sim2 'a b' # why"]
    assert [item.name for item in items] == ["sim-2", "sim2-5"]
    assert [item.environment["LINE"] for item in items] == ["2", "5"]
    assert {item.cores_per_rank for item in items} == {2}


def test_commands_are_named_after_the_template_and_their_line():
    assert [item.name for item in of_lines(b"a\nb\n", {"name": "scan"})] == ["scan-1", "scan-2"]
    assert [item.name for item in of_lines(b"a\nb\n", {"name": "l{}x"})] == ["l1x", "l2x"]
    assert [item.name for item in of_lines(b"{} x\n", {"command": ()})] == ["task-1"]


@pytest.mark.parametrize("template", [{"args": ["x"]}, {"nodez": 1}, {"name": "no name"}])
def test_a_wrong_template_for_commands_is_refused_once(template):
    with pytest.raises(ManifestError, match="^template: "):
        from_lines([], "f", template)


@pytest.mark.parametrize("template", [{}, {"command": ["cat", "{}"]}])
def test_odd_lines_are_rejected_and_the_stream_goes_on(template):
    lines = [b"good\n", b"a\0b\n", b"caf\xe9\n", b"x" * (sources.LONGEST_LINE + 1), b"good\n"]
    items = list(from_lines(lines, "runs.txt", template))
    assert [isinstance(item, Manifest) for item in items] == [True, False, False, False, True]
    assert rejected(items) == [
        ("runs.txt:2", "holds a NUL character, none may"),
        ("runs.txt:3", "is not UTF-8 text (byte 0xe9 at column 4)"),
        ("runs.txt:4", sources.TOO_LONG),
    ]


def test_a_word_longer_than_a_manifest_allows_is_rejected():
    ((where, reason),) = rejected(of_lines(b"x" * 70_000, ECHO))
    assert where == "f:1"
    assert reason.startswith("key 'command': ")
    assert len(reason) < 300


def test_a_line_of_exotic_blanks_is_no_command():
    ((where, reason),) = rejected(of_lines("\u3000\n".encode(), {}))
    assert (where, "names no program" in reason) == ("f:1", True)


@given(st.binary(max_size=300), st.sampled_from([{}, ECHO, {"command": "cat {}"}]))
def test_any_bytes_give_items_that_can_be_written(content, template):
    for item in of_lines(content, template):
        if isinstance(item, Manifest):
            assert manifest.parse(manifest.encode(item), "f") == item


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=40)))
def test_any_text_lines_are_read_back(texts):
    content = "".join(f"{text}\n" for text in ["first", *texts]).encode()
    kept = [text for text in texts if text.encode().strip()]
    assert [item.command[1] for item in of_lines(content, ECHO)] == ["first", *kept]


# -- JSON lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [{}, {"nodes": 3, "tags": ["t"]}])
def test_a_json_line_is_laid_over_the_template(template):
    content = (
        b'\xef\xbb\xbf{"command": ["a"], "tags": ["u"]}\n\n  \n{"app": "relax", "name": "x"}\r\n'
    )
    first, second = of_jsonl(content, template)
    assert (first.command, first.tags, first.name) == (["a"], ["u"], "")
    assert (second.app, second.tags, second.name) == ("relax", template.get("tags", []), "x")
    assert first.nodes == second.nodes == template.get("nodes", 1)


def test_environment_and_data_are_merged_and_the_line_wins():
    template = {
        "command": ["a"],
        "environment": {"A": "1", "B": "1"},
        "data": {"x": {"y": 1}, "z": 1},
    }
    (item,) = of_jsonl(b'{"environment": {"B": "2", "C": "2"}, "data": {"x": {"w": 2}}}', template)
    assert item.environment == {"A": "1", "B": "2", "C": "2"}
    assert item.data == {"x": {"w": 2}, "z": 1}


def test_braces_in_json_lines_are_text():
    (item,) = of_jsonl(b'{"command": ["a", "{}", "{x}"]}', {"description": "{x}"})
    assert (item.command, item.description) == (["a", "{}", "{x}"], "{x}")


@pytest.mark.parametrize("template", [{}, {"nodes": 1}])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON: "),
        (b"\0", "is "),
        (b"[1]", "must be a JSON object, got list"),
        (b"null", "must be a JSON object, got NoneType"),
        (b'{"command": ["a"], "nodez": 1}', "unknown key 'nodez'; did you mean 'nodes'?"),
        (b'{"command": ["a"], "nodes": "x"}', "key 'nodes': expected int, got str, got 'x'"),
        (b'{"command": ["a"], "mpi": {}}', "key 'mpi' is not supported yet"),
        (b'{"name": "x"}', "needs 'command'"),
        (b'{"command": ["caf\xe9"]}', "is not JSON: "),
        (b'{"command": ["\\ud800"]}', "is not JSON: "),
        (b'{"command": ["a"], "data": ' + b"[" * 100_000, "is "),
        (b'{"command": ["a"], "environment": null}', "key 'environment': "),
        (b'"' + b"x" * sources.LONGEST_LINE + b'"', "is longer than 1048576 bytes"),
    ],
)
def test_a_wrong_json_line_is_rejected_and_the_stream_goes_on(template, line, reason):
    good = b'{"command": ["a"]}'
    items = list(from_jsonl([good + b"\n", line + b"\n", good], "runs.jsonl", template))
    assert [type(item) for item in items] == [Manifest, Rejected, Manifest]
    assert items[1].where == "runs.jsonl:2"
    assert items[1].reason.startswith(reason)


@given(st.binary(max_size=200), st.sampled_from([{}, {"nodes": 2}]))
def test_any_bytes_as_json_lines_are_survived(content, template):
    assert all(isinstance(item, (Manifest, Rejected)) for item in of_jsonl(content, template))


# -- tables --------------------------------------------------------------------------------------


def test_columns_set_keys_and_the_others_are_kept():
    content = b"id,name,cores_per_rank,memory,time_limit,hold,tags,kT\n9,w1,4,8G,10m,yes,a b,0.5\n"
    (item,) = of_csv(
        content, {"command": ["sim", "--t={kT}", "{cores_per_rank}"], "data": {"d": 1}}
    )
    assert item.command == ["sim", "--t=0.5", "4"]
    assert (item.name, item.cores_per_rank, item.memory, item.hold) == ("w1", 4, "8G", True)
    assert (item.time_limit_s, item.tags) == (600, ["a", "b"])
    assert item.data == {"d": 1, "id": "9", "kT": "0.5"}
    assert item.id == ""


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("nodes", "4", 4),
        ("nodes", " 4 ", 4),
        ("nodes", "4.0", 4),
        ("priority", "-5", -5),
        ("priority", "+5", 5),
        ("time_limit", "90", 90),
        ("time_limit", "1.5", "1.5"),
        ("time_limit", "1:30:00", "1:30:00"),
        ("memory", "1.5T", "1.5T"),
        ("tags", "a, b  c", ["a", "b", "c"]),
        ("requires", "ib,big", ["ib", "big"]),
        ("inputs", "a.xyz in/b.xyz", ["a.xyz", "in/b.xyz"]),
        ("fresh", "FALSE", False),
        ("fresh", "1", True),
        ("output", "apart", "apart"),
        ("environment", "A=1 'B=two words' C=", {"A": "1", "B": "two words", "C": ""}),
        ("begin", "2026-11-22T20:30", "2026-11-22T20:30"),
        ("description", "a {x} b", "a {x} b"),
        ("nodes", "", 1),
        ("nodes", " ", 1),
    ],
)
def test_a_cell_is_read_as_its_key_wants_it(column, cell, expected):
    (item,) = of_csv(f'x,{column}\n1,"{cell}"\n'.encode(), ECHO)
    assert getattr(item, column) == expected


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("nodes", "many", "key 'nodes': expected int, got str, got 'many'"),
        ("nodes", "1.5", "key 'nodes': "),
        ("nodes", "0", "key 'nodes': "),
        ("hold", "maybe", "key 'hold': expected bool"),
        ("memory", "lots", "key 'memory': "),
        ("name", "no name", "key 'name': "),
        ("environment", "A", "key 'environment': expected NAME=VALUE words, got 'A'"),
        ("environment", "A='1", "key 'environment': no closing quotation"),
        ("app", "relax", "'command' stands alone"),
    ],
)
def test_a_cell_its_key_cannot_take_is_rejected(column, cell, reason):
    wrong, right = of_csv(f"x,{column}\n1,{cell}\n2,\n".encode(), ECHO)
    assert isinstance(right, Manifest)
    assert wrong.where == "f:2"
    assert wrong.reason.startswith(reason)


def test_every_kind_of_key_is_known():
    kinds = csv_source._kinds()
    types = {field.name: field.type for field in msgspec.structs.fields(Manifest)}
    assert types.keys() - kinds.keys() == set(csv_source._NO_COLUMNS)
    assert {key for key, kind in kinds.items() if kind is bool} == {"hold", "fresh"}
    lists = {"tags", "args", "requires", "inputs", "after", "stage_in", "imports"}
    assert {key for key, kind in kinds.items() if kind is list} == lists


def test_a_table_may_bring_command_app_and_args():
    first, second = of_csv(b"command,app,args\n\"a; b {app}\",,\n,relax,-n '1 2'\n", {"nodes": 2})
    assert (first.command, first.nodes) == ("a; b {app}", 2)
    assert (second.app, second.args) == ("relax", ["-n", "1 2"])
    ((_, reason),) = rejected(of_csv(b"command,app\n,\nls,\n", {}))
    assert reason == "has empty cells only"


def test_a_row_s_command_wins_over_the_template_s():
    first, second = of_csv(b"command,x\nls -l,1\n,2\n", {"command": ["sim", "{x}"]})
    assert (first.command, second.command) == ("ls -l", ["sim", "2"])


def test_columns_stand_in_command_args_name_environment_and_inputs():
    template = {"app": "relax", "args": ["{a}", "{a}{b c}"], "name": "n-{f}",
                "environment": {"X": "<{a}>"}, "inputs": ["{f}"]}  # fmt: skip
    (item,) = of_csv(b"a,b c,f\n1,2,in/w 1.xyz\n", template)
    assert (item.args, item.name) == (["1", "12"], "n-w-1")
    assert (item.environment, item.inputs) == ({"X": "<1>"}, ["in/w 1.xyz"])


def test_a_cell_that_looks_like_a_place_is_only_text():
    (item,) = of_csv(b"a,b\n{b},{0}%s\n", {"command": ["x", "{a}", "{b}"]})
    assert item.command == ["x", "{b}", "{0}%s"]


@pytest.mark.parametrize(
    "word", ["{print $1}", "${a}", "${HOME}", "{}", "{ x }", "{1,2}", "{{}}", "{0}"]
)
def test_braces_that_cannot_be_a_column_are_left_alone(word):
    (item,) = of_csv(b"a\n5\n", {"command": ["x", word, word + "{a}"]})
    assert item.command == ["x", word, word + "5"]


@pytest.mark.parametrize(
    "template",
    [
        {"command": ["x", "{foo}"]},
        {"command": "x {foo}"},
        {"app": "x", "args": ["{a}{foo}"]},
        {"command": ["x"], "name": "{foo}"},
        {"command": ["x"], "environment": {"A": "{foo}"}},
        {"command": ["x"], "inputs": ["{foo}"]},
    ],
)
def test_a_place_that_names_no_column_is_refused_with_the_columns(template):
    with pytest.raises(ManifestError, match=r"\{foo\} names no column; the columns are a, b"):
        from_csv([b"a,b\n"], "f", template)


def test_empty_cells_are_not_given():
    (item,) = of_csv(b"a,b,nodes\n,x,\n", {"command": ["e", "[{a}]"], "nodes": 3})
    assert (item.command, item.nodes, item.data) == (["e", "[]"], 3, {"b": "x"})


def test_quoted_cells_may_hold_anything_and_lines_are_counted():
    content = b'\xef\xbb\xbf"a", b\r\n\r\n"x, ""y""\r\nz",1\r\nragged\r\n2,3\r\n'
    items = of_csv(content, {"command": ["e", "{a}"]})
    assert items[0].data == {"a": 'x, "y"\r\nz', "b": "1"}
    assert rejected(items) == [("f:5", "has 1 cells, the header has 2")]
    assert items[2].data == {"a": "2", "b": "3"}


def test_unnamed_columns_are_ignored():
    (item,) = of_csv(b",a,,\n0,5,,\n", {"command": ["e", "{a}"]})
    assert (item.command, item.data) == (["e", "5"], {"a": "5"})


def test_tabs_separate_a_tsv():
    (item,) = of_csv(b"a\tb\n1,5\t2\n", {"command": ["e", "{a}"]}, delimiter="\t")
    assert item.data == {"a": "1,5", "b": "2"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "f:1: expected a header row"),
        (b"\n\n", "f:1: expected a header row"),
        (b",,\n1,2,3\n", "f:1: expected a header row"),
        (b"\na,b,a\n", "f:2: two columns are named 'a'"),
        (b"a, a\n", "f:1: two columns are named 'a'"),
        (b"a,mpi\n", "f:1: column 'mpi' is a key that this version does not support yet"),
        (b"\xff\xfea\0\n", "f:1: the header is not UTF-8 text"),
        (b"a\0,b\n", "f:1: the header holds a NUL"),
        (b'"a\n', "f:1: the header is malformed"),
        (b"a" * (sources.LONGEST_LINE + 1), "f:1: the header is longer"),
    ],
)
def test_a_wrong_header_is_refused_at_once(content, reason):
    with pytest.raises(ManifestError, match=f"^{reason}"):
        from_csv(io.BytesIO(content), "f", ECHO)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,2,3", "has 3 cells, the header has 2"),
        (b",", "has empty cells only"),
        (b"caf\xe9,2", "is not UTF-8 text (byte 0xe9 at column 4)"),
        (b'"caf\xe9\n",2', "is not UTF-8 text (byte 0xe9 at column 5)"),
        (b"a\0b,2", "holds a NUL character, none may"),
        (b'"a"b,2', "is malformed: "),
        (b"a\rb,2", "is malformed: new-line character seen in unquoted field"),
        (b"x" * 200_000 + b",2", "is malformed: field larger than field limit"),
        (b",".join([b"x"] * 600_000), "is longer than 1048576 bytes"),
    ],
)
def test_a_wrong_row_is_rejected_and_the_stream_goes_on(row, reason):
    items = of_csv(b"a,b\n1,2\n" + row + b"\n3,4\n", ECHO)
    assert [type(item) for item in items] == [Manifest, Rejected, Manifest]
    assert items[1].where == "f:3"
    assert items[1].reason.startswith(reason)


def test_a_quote_that_is_never_closed_is_rejected():
    items = of_csv(b'a,b\n1,2\n"3,4\n5,6\n', ECHO)
    assert rejected(items) == [("f:3", "is malformed: unexpected end of data")]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.data(), st.integers(1, 4), st.sampled_from([",", "\t"]))
def test_any_table_that_python_writes_is_read_back(data, width, delimiter):
    rows = data.draw(st.lists(st.lists(CELL, min_size=width, max_size=width), max_size=8))
    columns = [f"c {number}" for number in range(width)]
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows([columns, *rows])
    template = {"command": ["e", *(f"<{{{column}}}>" for column in columns)]}
    items = of_csv(written.getvalue().encode(), template, delimiter=delimiter)
    assert len(items) == len(rows)
    for item, row in zip(items, rows, strict=True):
        if not any(row):
            assert item.reason == "has empty cells only"
            continue
        assert item.command == ["e", *(f"<{cell}>" for cell in row)]
        assert item.data == {key: cell for key, cell in zip(columns, row, strict=True) if cell}


@given(st.binary(max_size=200))
def test_any_bytes_as_a_table_are_survived(content):
    try:
        items = of_csv(b"a,nodes\n" + content, {"command": ["e", "{a}"], "name": "n{a}"})
    except ManifestError:
        return
    assert all(isinstance(item, (Manifest, Rejected)) for item in items)


# -- files ---------------------------------------------------------------------------------------

JSON_LINE = b'{"command": ["a"]}\n'
FORMS = [
    ("r.jsonl", None, JSON_LINE), ("r.NDJSON", None, JSON_LINE), ("r.json", None, JSON_LINE),
    ("r.csv", None, b"command,x\na,1\n"), ("r.tsv", None, b"command\tx\na\t1\n"),
    ("r.tsv", "csv", b"command\tx\na\t1\n"), ("r.txt", "tsv", b"command\tx\na\t1\n"),
    ("r.txt", None, b"a\n"), ("r", None, b"a\n"), ("r.csv", "lines", b"a\n"),
    ("r", "jsonl", JSON_LINE), ("r.json", "csv", b"command,x\na,1\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "content"), FORMS)
def test_a_file_is_read_by_its_form_else_its_suffix(tmp_path, name, form, content):
    (tmp_path / name).write_bytes(content)
    with sources.open_source(str(tmp_path / name), form, {}) as source:
        assert source.size == len(content)
        (item,) = source.items
        assert item.command in ("a", ["a"])
        assert source.position() == source.size


@pytest.mark.parametrize(
    ("form", "content"), [(None, b"a b\n"), ("jsonl", JSON_LINE), ("csv", b"command\nls\n")]
)
def test_a_dash_is_standard_input(monkeypatch, form, content):
    stdin = io.TextIOWrapper(io.BytesIO(content + b"\0"))
    monkeypatch.setattr(sys, "stdin", stdin)
    with sources.open_source("-", form, {}) as source:
        first, second = source.items
        assert source.size == 0
        assert source.position() == len(content) + 1
    assert isinstance(first, Manifest)
    assert second.where.startswith("stdin:")
    assert not stdin.closed


def test_the_position_follows_the_reading(tmp_path):
    path = tmp_path / "r.txt"
    path.write_bytes(b"aaaa\n" * 10)
    with sources.open_source(str(path), None, {}) as source:
        seen = [source.position() for _ in source.items]
    assert seen == list(range(5, 55, 5))


def test_a_huge_line_in_a_file_is_skipped_in_little_memory(tmp_path):
    path = tmp_path / "r.txt"
    path.write_bytes(b"a\n" + b"x" * (20 * sources.LONGEST_LINE) + b"\nb\n" + b"y" * 3_000_000)
    tracemalloc.start()
    with sources.open_source(str(path), None, {}) as source:
        items = list(source.items)
        assert source.position() == source.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.command for item in items[::2]] == ["a", "b"]
    assert rejected(items) == [(f"{path}:{line}", sources.TOO_LONG) for line in (2, 4)]
    assert peak < 8 * sources.LONGEST_LINE


def test_a_line_of_just_the_allowed_length_is_read_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    line = b'{"command": ["a"]' + b" " * (sources.LONGEST_LINE - 19) + b"}\n"
    assert len(line) == sources.LONGEST_LINE
    path.write_bytes(line + b" " + line + line)
    with sources.open_source(str(path), None, {}) as source:
        assert [type(item) for item in source.items] == [Manifest, Rejected, Manifest]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "No such file"),
        (".", "Is a directory"),
        ("a\0b", "null"),
        ("x" * 300, "too long"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_with_the_reason(tmp_path, name, reason):
    with pytest.raises(SpoolError, match=f"cannot be read: .*{reason}"):
        sources.open_source(f"{tmp_path}/{name}", None, {})


def test_an_unknown_form_is_refused(tmp_path):
    with pytest.raises(SpoolError, match="unknown form 'xml'; expected jsonl, csv, tsv, lines"):
        sources.open_source(str(tmp_path / "r"), "xml", {})


def test_a_file_with_a_wrong_header_is_closed_again(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"a,a\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ManifestError, match="r.csv:1: two columns"):
        sources.open_source(str(tmp_path / "r.csv"), None, ECHO)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_source_left_early_is_closed(tmp_path):
    (tmp_path / "r").write_bytes(b"a\n" * 100)
    before = len(os.listdir("/proc/self/fd"))
    with sources.open_source(str(tmp_path / "r"), None, {}) as source:
        next(source.items)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_is_read_as_it_comes(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"a\n")
    with sources.open_source(f"/dev/fd/{reader}", None, {}) as source:
        assert source.size == 0
        assert next(source.items).command == "a"
        os.write(writer, b"b\n")
        assert next(source.items).command == "b"
        os.close(writer)
        assert list(source.items) == []
    os.close(reader)


def test_sources_are_streamed_not_collected():
    endless = (b'{"command": ["a"]}\n' for _ in itertools.count())
    assert next(from_jsonl(endless, "f", {})).command == ["a"]
    endless = (b"a,b\n" for _ in itertools.count())
    assert next(from_csv(endless, "f", {"command": ["{a}"]})).command == ["a"]
    endless = (b"a\n" for _ in itertools.count())
    assert next(from_lines(endless, "f", {})).command == "a"


def test_reading_sources_imports_no_csv_until_a_table_comes():
    program = "import sys, spool.sources; print([m for m in ('csv', 'shlex') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


# -- directives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", []),
        (b"#!/bin/sh\necho\n", []),
        (
            b"#!/bin/sh\n#SPOOL --cores 4 --time-limit 10m\necho\n",
            ["--cores", "4", "--time-limit", "10m"],
        ),
        (b"#!/bin/sh\n\n# why\n#SPOOL --a\r\n   # more\n#SPOOL\t--b 1\n", ["--a", "--b", "1"]),
        (b"#SPOOL --name 'two words' \"x\" # note\n", ["--name", "two words", "x"]),
        (b"#!/bin/sh\necho\n#SPOOL --late\n", []),
        (b"#!/bin/sh\n  #SPOOL --in\n", ["--in"]),
        (b"#SPOOLING --a\n# SPOOL --b\n##SPOOL --c\n#spool --d\n#SPOOL\n", []),
        (b"#!/bin/sh\n# caf\xe9\n#SPOOL --a\n", ["--a"]),
        ("#SPOOL --name é\n".encode(), ["--name", "é"]),
        (b"#!x\n#SPOOL --a\n#\0\n", []),
        (b"\x7fELF\0\0#SPOOL --a\n", []),
        (b"#SPOOL --a", ["--a"]),
        (b"#" + b"x" * 1_000_000 + b"\n#SPOOL --a\n", ["--a"]),
    ],
)
def test_the_directives_of_a_script_are_in_its_leading_comments(tmp_path, content, words):
    (tmp_path / "job.sh").write_bytes(content)
    assert sources.directives(str(tmp_path / "job.sh")) == words


@pytest.mark.parametrize("line", [b"#SPOOL --name 'x", b"#SPOOL --name caf\xe9", b"#SPOOL x\\"])
def test_a_malformed_directive_is_said_with_its_line(tmp_path, line):
    path = tmp_path / "job.sh"
    path.write_bytes(b"#!/bin/sh\n" + line + b"\n")
    if line.endswith(b"\\"):
        path.write_bytes(b"#!/bin/sh\n" + line)
    with pytest.raises(ManifestError, match=f"^{path}:2: #SPOOL line: "):
        sources.directives(str(path))


def test_what_is_no_regular_file_has_no_directives(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", ".", "pipe", "a\0b"):
        assert sources.directives(f"{tmp_path}/{name}") == []
