"""Durations, memory sizes and moments: read, printed, and refused with the form that is allowed."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spool import units

NOW = 1_795_381_800.0  # 2026-11-22T21:10:00Z
HUGE = 10**5000  # more digits than Python is willing to print
relaxed = settings(deadline=None)


def brief(value: object) -> str:
    """A parameter as the name of its test shows it."""
    return "huge" if isinstance(value, int) and abs(value) > 10**40 else ascii(value)[:20]


# -- durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0),
        (90, 90),
        (0.5, 0.5),
        (0.1 + 0.2, 0.1 + 0.2),
        ("90", 90),
        ("0.25", 0.25),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        (" 1H\n", 3600),
        ("2:30", 150),
        ("1:30:00", 5400),
        ("1-02:00:00", 93_600),
        ("1-02:30", 95_400),
        ("3650d", units.LONGEST),
    ],
)
def test_a_duration_is_read(text: str | float, seconds: float) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "soon",
        "-5",
        -5,
        "1h30",
        "1 h",
        "h",
        "1h-30m",
        "1::2",
        "1:2:3:4",
        "nan",
        "inf",
        float("nan"),
        float("inf"),
        True,
        1e308,
        10**30,
        HUGE,
        "9" * 5000,
        "9" * 5000 + "s",
        "9" * 5000 + ":00",
        "3651d",
        "1h\0",
        "²",
    ],
    ids=brief,
)
def test_what_is_no_duration_is_refused_with_the_form(text: str | float) -> None:
    with pytest.raises(ValueError, match=re.escape(units.DURATION_FORM)) as caught:
        units.duration(text)
    assert len(str(caught.value)) < 300


def test_true_is_no_second_though_it_equals_one() -> None:
    assert units.duration(1) == 1
    with pytest.raises(ValueError, match="got True"):
        units.duration(True)


@relaxed
@given(st.integers(0, units.LONGEST))
def test_a_printed_duration_reads_back(seconds: int) -> None:
    printed = units.print_duration(seconds)
    assert units.duration(printed) == seconds
    assert " " not in printed


@relaxed
@given(st.floats(0, units.LONGEST))
def test_a_duration_that_python_computed_is_taken_as_it_is(seconds: float) -> None:
    assert units.duration(seconds) == seconds


@relaxed
@given(st.text(max_size=30) | st.integers() | st.floats())
def test_a_duration_is_read_or_refused_never_anything_else(text: str | float) -> None:
    try:
        seconds = units.duration(text)
    except ValueError as fault:
        assert units.DURATION_FORM in str(fault)
    else:
        assert 0 <= seconds <= units.LONGEST


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (5400, "1h30m"), (86_400, "1d"), (90_061, "1d1h1m1s")],
)
def test_a_duration_prints_without_empty_units(seconds: float, printed: str) -> None:
    assert units.print_duration(seconds) == printed


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [(-3, "0s"), (42.4, "42s"), (61, "1m"), (12_000, "3h20m"), (90_000, "1d1h"), (432_000, "5d")],
)
def test_an_age_has_at_most_two_units(seconds: float, printed: str) -> None:
    assert units.print_age(seconds) == printed


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "megabytes"),
    [
        (0, 0),
        (512, 512),
        ("512", 512),
        ("512M", 512),
        ("8G", 8192),
        ("8g", 8192),
        ("8 GB", 8192),
        ("8GiB", 8192),
        ("1.5T", 1_572_864),
        ("1K", 1),
        ("1025K", 2),
        (2**40, 2**40),
    ],
)
def test_a_memory_size_is_read(text: str | int, megabytes: int) -> None:
    assert units.memory(text) == megabytes


@pytest.mark.parametrize(
    "text",
    ["", "lots", "-1", -1, "8Q", "1.2.3G", "G", 10**30, HUGE, -HUGE, "9" * 5000, "2000000T", "nan"],
    ids=brief,
)
def test_what_is_no_memory_size_is_refused_with_the_form(text: str | int) -> None:
    with pytest.raises(ValueError, match=re.escape(units.MEMORY_FORM)) as caught:
        units.memory(text)
    assert len(str(caught.value)) < 300


@relaxed
@given(st.integers(0, 2**40))
def test_a_printed_memory_size_reads_back(megabytes: int) -> None:
    assert units.memory(units.print_memory(megabytes)) == megabytes


@relaxed
@given(st.text(max_size=30) | st.integers())
def test_a_memory_size_is_read_or_refused_never_anything_else(text: str | int) -> None:
    try:
        megabytes = units.memory(text)
    except ValueError as fault:
        assert units.MEMORY_FORM in str(fault)
    else:
        assert 0 <= megabytes <= 2**40


# -- moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("now+10m", NOW + 600),
        ("+10m", NOW + 600),
        ("now-2h", NOW - 7200),
        ("-2h", NOW - 7200),
        ("2h", NOW - 7200),
        ("2026-11-22", 1_795_305_600),
        ("2026-11-22T21:10", NOW),
        ("2026-11-22 21:10:00", NOW),
        ("2026-11-22T21:10:00.250Z", NOW + 0.25),
        ("2028-02-29", 1_835_395_200),
    ],
)
def test_a_moment_is_read(text: str, moment: float) -> None:
    assert units.moment(text, NOW) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "now+",
        "now+soon",
        "2026-13-01",
        "2026-02-31",
        "2027-02-29",
        "2026-00-10",
        "2026-11-22T25:00",
        "2026-11-22T21:61",
        "0000-01-01",
        "0001-01-01",
        "1969-12-31",
        "22.11.2026",
        "9" * 5000,
    ],
    ids=brief,
)
def test_what_is_no_moment_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(units.MOMENT_FORM)) as caught:
        units.moment(text, NOW)
    assert len(str(caught.value)) < 300


@relaxed
@given(st.floats(0, 253_402_300_799))
@example(0.9996)
@example(NOW + 0.123)
def test_a_stamp_reads_back_to_the_millisecond(seconds: float) -> None:
    assert abs(units.read_stamp(units.stamp(seconds)) - seconds) < 0.0011


@relaxed
@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_stamps_sort_as_their_moments_do(one: float, other: float) -> None:
    first, second = sorted((one, other))
    assert units.stamp(first) <= units.stamp(second)


@relaxed
@given(st.text(max_size=40))
def test_a_stamp_is_read_or_refused_never_anything_else(text: str) -> None:
    try:
        assert units.read_stamp(text) >= 0
    except ValueError as fault:
        assert "expected a moment such as 2026-11-22T20:30:05Z" in str(fault)


def test_the_stamp_of_now_is_now() -> None:
    before = time.time()
    assert before - 0.002 <= units.read_stamp(units.now_stamp()) <= time.time()
