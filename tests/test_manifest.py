"""What a task asks for: read and written without loss, refused with file, key and value."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool import units
from spool.errors import ManifestError
from spool.queue import manifest
from spool.queue.manifest import Manifest

WHERE = "/s/CREATED/x/manifest.json"
HUGE = "1" + "0" * 5000
relaxed = settings(deadline=None)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", fullmatch=True)
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
durations = (
    st.integers(0, units.LONGEST)
    | st.floats(0, units.LONGEST)
    | st.integers(0, units.LONGEST).map(units.print_duration)
)
sizes = st.integers(0, 2**40) | st.integers(0, 2**40).map(units.print_memory)
counts = st.integers(1, 1_000_000)
amounts = st.integers(0, 1_000_000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "inf" not in repr(value))
manifests = st.builds(
    Manifest,
    command=st.lists(plain, min_size=1, max_size=3).map(lambda words: ["run", *words]),
    name=st.just("") | names,
    workflow=st.just("") | names,
    tags=st.lists(names, max_size=3),
    description=plain,
    environment=st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), plain, max_size=3),
    nodes=counts,
    ranks_per_node=counts,
    cores_per_rank=counts,
    per_node=amounts,
    gpus=amounts,
    memory=sizes,
    requires=st.lists(names, max_size=4),
    time_estimate=durations,
    time_limit=durations,
    priority=st.integers(-999, 999),
    hold=st.booleans(),
    max_attempts=counts,
    backoff=durations,
    max_lost=amounts,
    max_interrupted=amounts,
    begin=st.just("") | st.floats(0, 253_402_300_799).map(units.stamp),
    output=st.sampled_from(["together", "apart", "none"]),
    fresh=st.booleans(),
    data=st.dictionaries(plain, json_values, max_size=3),
)


def refusal(raw: str | bytes) -> str:
    """What is said about a manifest that must be refused."""
    with pytest.raises(ManifestError) as caught:
        manifest.parse(raw.encode() if isinstance(raw, str) else raw, WHERE)
    return str(caught.value)


def with_key(key: str, value: str) -> str:
    """A manifest that is sound but for one key, written as JSON text."""
    command = "" if key in ("command", "app") else '"command": ["true"], '
    return f'{{{command}"{key}": {value}}}'


# -- every key -----------------------------------------------------------------------------------

NAME = "letters, digits and . _ + -"
WRONG: list[tuple[str, str, str]] = [
    # key, value as JSON, what the message says is allowed
    ("id", "5", "expected str"),
    ("name", "7", "expected str"),
    ("name", '"two words"', NAME),
    ("name", '"-rf"', NAME),
    ("name", '"a/b"', NAME),
    ("name", '"' + "n" * 81 + '"', NAME),
    ("array", '"9-0"', "expected a range of numbers"),
    ("array", '"a,b"', "expected a range of numbers"),
    ("array", "9", "expected str"),
    ("chunk", '"0-9"', "goes with 'array'"),
    ("skip", '"3-x"', "expected numbers and ranges"),
    ("skip", '"3"', "goes with 'array'"),
    ("workflow", '"../x"', NAME),
    ("workflow", '"g@2"', NAME),
    ("tags", '"one"', "expected array"),
    ("tags", '["a b"]', NAME),
    ("tags", "[1]", "expected str"),
    ("description", "[]", "expected str"),
    ("command", "7", "expected str | array"),
    ("command", "{}", "expected str | array"),
    ("command", "[7]", "expected str"),
    ("command", "[]", "a list of words"),
    ("command", '""', "a list of words"),
    ("command", '["  "]', "a list of words"),
    ("command", '["a\\u0000b"]', "none may"),
    ("command", '"a\\u0000b"', "none may"),
    ("app", '"no such name"', NAME),
    ("app", "1", "expected str"),
    ("environment", "[]", "expected object"),
    ("environment", '{"A": 1}', "expected str"),
    ("environment", '{"A=B": "1"}', "a name holds no '='"),
    ("environment", '{"": "1"}', "a name holds no '='"),
    ("environment", '{"A": "\\u0000"}', "nor value a NUL"),
    ("nodes", "0", ">= 1"),
    ("nodes", "1000001", "<= 1000000"),
    ("nodes", "1" + "0" * 30, "<= 1000000"),
    ("nodes", '"1"', "expected int"),
    ("nodes", "1.5", "expected int"),
    ("nodes", "true", "expected int"),
    ("nodes", "null", "expected int"),
    ("nodes", HUGE, "spool schema"),
    ("ranks_per_node", "-1", ">= 1"),
    ("cores_per_rank", "0", ">= 1"),
    ("per_node", "-1", ">= 0"),
    ("after", '["a b"]', "no task id"),
    ("after", '"x"', "expected array"),
    ("on_parent_failure", '"hope"', "hope"),
    ("replaces", '"x"', "no task id"),
    ("key", "1", "expected str"),
    ("gpus", "-1", ">= 0"),
    ("memory", '"much"', units.MEMORY_FORM),
    ("memory", "-1", units.MEMORY_FORM),
    ("memory", "1" + "0" * 30, units.MEMORY_FORM),
    ("memory", "1.5", "expected int | str"),
    ("memory", HUGE, "spool schema"),
    ("requires", '["a,b"]', NAME),
    ("requires", "{}", "expected array"),
    ("time_estimate", '"soon"', units.DURATION_FORM),
    ("time_estimate", "-5", units.DURATION_FORM),
    ("time_limit", "1e300", units.DURATION_FORM),
    ("time_limit", "1e400", "spool schema"),
    ("time_limit", "null", "expected int | float | str"),
    ("grace", '"-1s"', units.DURATION_FORM),
    ("backoff", "[1]", "expected int | float | str"),
    ("backoff", '"11y"', units.DURATION_FORM),
    ("signal", '"BANG"', "a signal such as TERM, INT or USR1"),
    ("signal", '"99"', "a signal such as TERM, INT or USR1"),
    ("signal", '"²"', "a signal such as TERM, INT or USR1"),
    ("signal", '"' + "9" * 5000 + '"', "a signal such as TERM, INT or USR1"),
    ("signal", "15", "expected str"),
    ("priority", "1000", "<= 999"),
    ("priority", "-1000", ">= -999"),
    ("priority", "1.0", "expected int"),
    ("begin", '"tomorrow"', "a moment such as 2026-11-22T20:30:05Z"),
    ("begin", '"2026-02-31"', "a moment such as 2026-11-22T20:30:05Z"),
    ("begin", "0", "expected str"),
    ("hold", "1", "expected bool"),
    ("hold", '"yes"', "expected bool"),
    ("max_attempts", "0", ">= 1"),
    ("max_lost", "-1", ">= 0"),
    ("max_interrupted", "1" + "0" * 19, "<= 1000000"),
    ("inputs", '"a"', "expected array"),
    ("inputs", '["/etc/passwd"]', "a relative path inside"),
    ("inputs", '["../other"]', "a relative path inside"),
    ("inputs", '["a//b"]', "a relative path inside"),
    ("inputs", '[""]', "a relative path inside"),
    ("inputs", '["a\\u0000b"]', "a relative path inside"),
    ("inputs", '[{"path": "a", "sha256": "abc"}]', "64 hexadecimal digits"),
    ("inputs", '[{"path": "a", "size": -2}]', ">= -1"),
    ("inputs", '[{"path": "a", "sise": 2}]', "unknown field sise"),
    ("inputs", '[{"size": 2}]', "must be a relative path"),
    ("output", '"both"', "expected together, apart, none"),
    ("output", "7", "expected str"),
    ("fresh", "0", "expected bool"),
    ("data", "[]", "expected object"),
    ("data", '{"a": ' + "[" * 101 + "]" * 101 + "}", "nested more than 100 deep"),
    ("submitted", '{"time": 1}', "expected str"),
    ("submitted", "7", "expected object"),
    ("parameters", '{"a": [1]}', "expected bool | int | float | str"),
    ("setup", '"a\\u0000"', "NUL"),
    ("container", "7", "expected str | object | null"),
    ("max_handled", "-1", ">= 0"),
    ("retry", '{"oops": {}}', "expected exit-N, signal-N, timeout, lost"),
    ("retry", '{"timeout": {"attempts": 0}}', ">= 1"),
    ("retry", '{"timeout": {"backoff": "soon"}}', "a duration such as"),
    ("retry", '{"timeout": {"set": {"command": "x"}}}', "cannot be changed"),
    ("retry", '{"timeout": {"set": {"memory": "*two"}}}', "a factor such as *2"),
    ("retry", '{"timeout": {"set": {"memory": "*1000"}}}', "at most *999"),
    ("retry", '{"timeout": {"set": {"workflow": "*2"}}}', "no amount"),
    ("retry", '{"timeout": {"set": {"nodes": "x"}}}', "expected int"),
    ("stage_in", '["data.h5"]', "an absolute path, HOST:PATH or a URL"),
    ("stage_in", '[{"source": "/a", "target": "../b"}]', "inside the task's directory"),
    ("stage_in", '[{"source": "/a", "target": "/b"}]', "inside the task's directory"),
    ("stage_in", '[{"source": "/a", "target": "manifest.json"}]', "the task's own file"),
    ("stage_in", '[{"source": "/a", "sha256": "beef"}]', "64 hexadecimal digits"),
    ("stage_in", '[{"source": "/a", "deadline": "soon"}]', "a duration such as"),
    ("stage_in", '[{"source": "/a\\nb"}]', "line break"),
    ("stage_out", '[{"source": "*.h5"}]', "needs a 'source' and a 'target'"),
    ("stage_out", '[{"source": "/etc/x", "target": "/y"}]', "inside the task's directory"),
    ("preprocess", "[]", "names no program"),
    ("postprocess", '""', "names no program"),
    ("on_error", '["a\\u0000"]', "none may"),
    ("on_timeout", "{}", "expected str | array | null"),
    ("hook_limit", '"soon"', "a duration such as"),
]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    WRONG,
    ids=[f"{key}={ascii(value)[1:24]}" for key, value, _ in WRONG],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key: str, value: str, allowed: str) -> None:
    said = refusal(with_key(key, value))
    assert said.startswith(f"{WHERE}: ")
    assert f"key {key!r}" in said
    assert allowed in said
    assert len(said) < 500


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("nodes", "0", "got 0"),
        ("memory", '"much"', "'much'"),
        ("signal", '"BANG"', "'BANG'"),
        ("output", '"both"', "'both'"),
        ("name", '"a/b"', "'a/b'"),
        ("time_limit", '"soon"', "'soon'"),
        ("begin", '"tomorrow"', "'tomorrow'"),
        ("tags", '["a b"]', "'a b'"),
    ],
)
def test_a_wrong_value_is_shown(key: str, value: str, shown: str) -> None:
    assert shown in refusal(with_key(key, value))


@pytest.mark.parametrize(
    "key", ["name", "app", "command", "signal", "begin", "memory", "grace", "zzz"]
)
def test_a_message_stays_short_however_long_the_value(key: str) -> None:
    said = refusal(with_key(key, json.dumps(" " * 60_000)))
    assert len(said) < 500
    assert len(refusal(with_key("z" * 60_000, "1"))) < 500


def test_every_key_is_refused_somewhere_in_the_table() -> None:
    assert {key for key, _, _ in WRONG} | {"args", "python", "imports"} == set(
        Manifest.__struct_fields__
    )


def test_args_stand_only_beside_an_app() -> None:
    assert "'args' belong to an 'app'" in refusal('{"command": ["x"], "args": ["y"]}')
    assert "'command' stands alone" in refusal('{"command": ["x"], "app": "y"}')
    assert "key 'args'" in refusal('{"app": "y", "args": ["a\\u0000"]}')
    assert "key 'args'" in refusal('{"app": "y", "args": "a"}')


def test_python_stands_alone_and_is_a_full_path() -> None:
    assert manifest.parse(b'{"python": "/usr/bin/python3", "imports": ["numpy"]}', "here").python
    for wrong in ('"python"', '"/a", "command": ["x"]', '"/a", "app": "x"'):
        assert "stands alone" in refusal(f'{{"python": {wrong}}}')
    assert "stands alone" in refusal('{"imports": ["numpy"]}')
    assert "in one process" in refusal('{"python": "/a", "nodes": 2}')
    assert "NUL" in refusal('{"python": "/a", "imports": ["a\\u0000"]}')


# -- the file as a whole -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\0" * 4096, "is empty"),
        (b"{", "is not JSON"),
        (b'{"command": ["x"]', "is not JSON"),
        (b'{"command": ["x"]} tail', "is not JSON"),
        (b"command: x", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"command": ["\xff"]}', "is not JSON"),
        (b'{"command": ["\\ud800"]}', "is not JSON"),
        (b'\xef\xbb\xbf{"command": ["x"]}', "is not JSON"),
        (b'{"command": ["x"], "time_limit": NaN}', "is not JSON"),
        (b'{"command": ["x"], "time_limit": Infinity}', "is not JSON"),
        (b"[]", "must be a JSON object, got list"),
        (b"7", "must be a JSON object, got int"),
        (b'"x"', "must be a JSON object, got str"),
        (b"null", "must be a JSON object, got NoneType"),
        (b"{}", "needs 'command'"),
        (b'{"name": "x"}', "needs 'command'"),
        (b'{"command": null}', "needs 'command'"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"data": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deeply"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_file_that_is_no_manifest_is_refused(raw: bytes, says: str) -> None:
    said = refusal(raw)
    assert said.startswith(f"{WHERE}: ")
    assert says in said


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("comand", "command"),
        ("time_limt", "time_limit"),
        ("tag", "tags"),
        ("core_per_rank", "cores_per_rank"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, near: str) -> None:
    said = refusal(f'{{"command": ["x"], "{key}": 1}}')
    assert f"unknown key {key!r}; did you mean {near!r}?" in said


def test_a_key_like_no_other_sends_to_the_schema() -> None:
    assert "unknown key 'zzz'. Run: spool schema" in refusal('{"command": ["x"], "zzz": 1}')


@pytest.mark.parametrize("key", sorted(manifest.PLANNED))
def test_a_planned_key_is_refused_by_its_name(key: str) -> None:
    said = refusal(f'{{"command": ["x"], "{key}": 1}}')
    assert said == f"{WHERE}: key {key!r} is not supported yet by this version"


@relaxed
@given(st.binary(max_size=200) | plain.map(str.encode))
def test_any_bytes_are_a_manifest_or_a_manifest_error(raw: bytes) -> None:
    try:
        manifest.parse(raw, WHERE)
    except ManifestError as fault:
        assert str(fault).startswith(f"{WHERE}: ")


@relaxed
@given(
    st.dictionaries(st.sampled_from(Manifest.__struct_fields__) | plain, json_values, max_size=5)
)
def test_any_json_object_is_a_manifest_or_a_manifest_error(loose: dict[str, Any]) -> None:
    raw = msgspec.json.encode({"command": ["true"], **loose})
    try:
        made = manifest.parse(raw, WHERE)
    except ManifestError as fault:
        assert str(fault).startswith(f"{WHERE}: ")
    else:
        manifest.wanted_shape(made)
        assert manifest.parse(manifest.encode(made), WHERE) == made


# -- from Python ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"command": ["echo", "\udcff"]}, "is not UTF-8"),
        ({"command": ["echo", "\ud800"]}, "is not UTF-8"),
        ({"command": ["x"], "nodes": 10**5000}, "key 'nodes': expected int <= 1000000"),
        ({"command": ["x"], "memory": 10**5000}, units.MEMORY_FORM),
        ({"command": ["x"], "time_limit": float("nan")}, units.DURATION_FORM),
        ({"command": ["x"], "time_limit": 10**5000}, units.DURATION_FORM),
        ({"command": ["x"], "environment": {1: "a"}}, "environment"),
        ({"command": ["x"], 1: 2}, "unknown key 1"),
        ({"command": ["x"], "mpi": {}}, "not supported yet"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_python_values_are_refused_like_a_file_s(mapping: dict[str, Any], says: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(says)):
        manifest.from_mapping(mapping, "submit")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", {"a": object()}),
        ("data", {"a": 10**5000}),
        ("environment", {"A": "\udcff"}),
        ("description", "\udcff"),
    ],
    ids=["object", "number", "environment", "description"],
)
def test_what_json_cannot_hold_is_refused_when_it_is_written(key: str, value: object) -> None:
    made = manifest.from_mapping({"command": ["x"], key: value}, "submit")
    with pytest.raises(ManifestError, match=f"key '{key}': only what JSON can hold"):
        manifest.encode(made)


# -- round trips ---------------------------------------------------------------------------------


@relaxed
@given(manifests)
def test_a_manifest_reads_back_as_it_was_written(wanted: Manifest) -> None:
    raw = manifest.encode(wanted)
    assert manifest.parse(raw, WHERE) == wanted
    assert manifest.from_mapping(manifest.as_mapping(wanted), WHERE) == wanted
    assert raw.endswith(b"}\n")


def test_a_written_manifest_leaves_defaults_out_and_gives_each_key_a_line() -> None:
    wanted = manifest.from_mapping({"command": ["x"], "nodes": 1, "priority": 5}, WHERE)
    assert manifest.encode(wanted) == b'{\n "command": [\n  "x"\n ],\n "priority": 5\n}\n'


def test_an_input_may_be_a_path_alone() -> None:
    wanted = manifest.parse(b'{"command": "x", "inputs": ["a/b", {"path": "c", "size": 3}]}', WHERE)
    assert [(one.path, one.size) for one in wanted.input_list] == [("a/b", -1), ("c", 3)]


@pytest.mark.parametrize(
    ("estimate", "limit", "thought"), [(0, 0, 0), (60, "1h", 60), (0, "1h", 3600), ("2m", 0, 120)]
)
def test_the_estimate_falls_back_to_the_limit(estimate: Any, limit: Any, thought: float) -> None:
    wanted = Manifest(command="x", time_estimate=estimate, time_limit=limit)
    assert wanted.estimate_s == thought
    assert wanted.time_limit_s == units.duration(limit)


@pytest.mark.parametrize(
    ("name", "number"), [("TERM", 15), ("sigint", 2), ("SIGUSR1", 10), ("9", 9)]
)
def test_a_signal_has_many_spellings(name: str, number: int) -> None:
    assert manifest.signal_number(name) == number


# -- the schema and changes ----------------------------------------------------------------------


def test_the_schema_is_json_and_describes_every_key() -> None:
    schema = json.loads(json.dumps(manifest.schema()))
    described = schema["$defs"]["Manifest"]
    assert schema["$ref"] == "#/$defs/Manifest"
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(described["properties"]) == set(Manifest.__struct_fields__)
    assert described["additionalProperties"] is False
    assert described["properties"]["nodes"] == {
        "type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 1,
    }  # fmt: skip


def test_a_change_is_laid_over_a_manifest() -> None:
    wanted = Manifest(command=["x"], name="n", priority=1)
    after = manifest.changed(wanted, {"priority": 5, "time_limit": "1h"}, "task n")
    assert (after.priority, after.time_limit_s, after.name) == (5, 3600, "n")
    assert manifest.changed(wanted, {}, "task n") is wanted


@pytest.mark.parametrize(
    "key", sorted({*Manifest.__struct_fields__, "zzz"} - set(manifest.CHANGEABLE))
)
def test_what_is_not_changeable_is_refused_with_what_is(key: str) -> None:
    with pytest.raises(
        ManifestError, match=f"task n: '{key}' cannot be changed; allowed are"
    ) as said:
        manifest.changed(Manifest(command=["x"]), {key: "x"}, "task n")
    assert all(name in str(said.value) for name in manifest.CHANGEABLE)


@pytest.mark.parametrize("key", manifest.CHANGEABLE)
def test_a_change_to_nonsense_is_refused(key: str) -> None:
    nonsense = ["no such thing!"] if key == "requires" else "no such thing!"
    with pytest.raises(ManifestError, match=f"^task n: key '{key}': "):
        manifest.changed(Manifest(command=["x"]), {key: nonsense}, "task n")
