"""A task's story: what its lines add up to, however they were torn, repeated or tampered with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool import units
from spool.queue import history
from spool.queue.history import Story

WORDS = (
    "arrived", "start", "exit", "queued", "interrupted", "lost", "held", "released", "cancelled",
    "rejected", "vanished", "change", "no such event",
)  # fmt: skip
relaxed = settings(deadline=None)

hostile = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(["now", "", "2026-11-22T21:10:00.000Z", "9999-12-31", "2026-02-31", "../x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=3,
)
KEYS = (
    "time", "attempt", "owner", "code", "signal", "timeout", "cancelled", "error", "stage",
    "reason", "until", "elapsed_s", "source", "as", "set", "by",
)  # fmt: skip
hostile_events = st.builds(
    lambda what, rest: {**rest, "what": what},
    st.sampled_from(WORDS),
    st.dictionaries(st.sampled_from(KEYS), hostile, max_size=6),
)
plausible_events = st.sampled_from(
    [
        {"what": "start", "attempt": 1},
        {"what": "start", "attempt": 2},
        {"what": "exit", "attempt": 1, "code": 0},
        {"what": "exit", "attempt": 1, "code": 1},
        {"what": "exit", "attempt": 2, "signal": 9},
        {"what": "exit", "attempt": 2, "code": 1, "timeout": True},
        {"what": "lost", "attempt": 1},
        {"what": "interrupted", "attempt": 1, "elapsed_s": 100},
        {"what": "queued", "stage": "run", "reason": "retry by a person"},
        {"what": "queued", "stage": "run", "until": "2026-11-22T21:10:00.000Z"},
        {"what": "held"},
        {"what": "released", "until": "now"},
        {"what": "cancelled"},
        {"what": "rejected", "reason": "x", "as": "rejected"},
        {"what": "change", "set": {"priority": 5}},
    ]
)


def told(*events: dict[str, Any]) -> Story:
    """The story of these events."""
    return history.fold(b"".join(history.encode(event) for event in events))


def start(attempt: int = 1) -> dict[str, Any]:
    return {"what": "start", "attempt": attempt}


def ended(attempt: int = 1, **how: Any) -> dict[str, Any]:
    return {"what": "exit", "attempt": attempt, **(how or {"code": 0})}


def lost(attempt: int = 1) -> dict[str, Any]:
    return {"what": "lost", "attempt": attempt}


QUEUED = {"what": "queued", "stage": "run"}
RETRIED = {**QUEUED, "reason": "retry by a person"}


# -- lines ---------------------------------------------------------------------------------------


def test_no_history_is_an_empty_story() -> None:
    assert history.fold(None) == history.fold(b"") == Story()


def test_a_line_carries_what_happened_and_when() -> None:
    event = json.loads(history.line("held", by="me"))
    assert event["what"] == "held" and event["by"] == "me"
    assert units.read_stamp(event["time"]) > 0
    assert history.line("held").endswith(b"}\n")


def test_a_name_that_is_not_utf_8_is_written_escaped() -> None:
    assert json.loads(history.line("arrived", source="b\udcff", inode=7))["source"] == "b\\xff"
    assert json.loads(history.encode({"what": "x", "called": "b\udcff"}))["called"] == "b\\xff"


@pytest.mark.parametrize(
    "torn",
    [
        b'{"what": "exit", "attempt": 1, "co',
        b"\0\0\0\0",
        b"\xff\xfe",
        b"not json",
        b"[]",
        b"7",
        b"{}",
        b'{"what": 7}',
        b'{"what": null}',
        b'{"attempt": 1}',
        b"[" * 100_000,
    ],
    ids=lambda torn: ascii(torn)[:20],
)
def test_a_torn_line_is_counted_and_passed_over(torn: bytes) -> None:
    raw = history.encode(start()) + torn + b"\n" + history.encode(ended())
    story = history.fold(raw)
    assert (story.lines, story.damaged) == (2, 1)
    assert story.exit is not None
    assert [event["what"] for event in history.events(raw)] == ["start", "exit"]


def test_a_line_torn_at_the_end_of_the_file_is_counted() -> None:
    raw = history.encode(start()) + history.encode(ended())[:-9]
    story = history.fold(raw)
    assert (story.lines, story.damaged) == (1, 1)
    assert story.exit is None and story.started is not None


def test_blank_lines_are_no_damage() -> None:
    assert history.fold(b"\n\n" + history.encode(start()) + b"  \n").damaged == 0


@relaxed
@given(st.lists(plausible_events | hostile_events, max_size=8), st.integers(0, 400))
def test_a_history_cut_anywhere_loses_at_most_its_last_line(events: list[Any], cut: int) -> None:
    raw = b"".join(map(history.encode, events))[:cut]
    story = history.fold(raw)
    assert story.damaged <= 1
    assert story.lines == len(history.events(raw))


# -- attempts and their ends ---------------------------------------------------------------------


def test_a_start_without_an_end_is_a_running_attempt() -> None:
    story = told(start())
    assert story.attempt == 1 and story.started is not None and story.exit is None


def test_an_exit_counts_for_the_attempt_of_the_last_start() -> None:
    story = told(start(), ended(1, code=3))
    assert story.exit is not None and story.exit["code"] == 3
    assert story.started is None and story.failures == 1


def test_an_exit_of_an_earlier_attempt_counts_nothing() -> None:
    story = told(start(1), lost(1), QUEUED, start(2), ended(1, code=0))
    assert story.exit is None and story.started is not None and story.attempt == 2


def test_an_exit_without_a_start_counts_nothing() -> None:
    assert told(ended(1)).exit is None
    assert told(ended(0)).exit is None


def test_a_second_exit_of_one_attempt_counts_nothing() -> None:
    story = told(start(), ended(1, code=0), ended(1, code=1))
    assert story.exit is not None and story.exit["code"] == 0 and story.failures == 0


def test_an_exit_counts_until_the_task_is_queued_to_run_again() -> None:
    assert told(start(), ended(), QUEUED).exit is None
    assert told(start(), ended(), {**QUEUED, "stage": "close"}).exit is not None


def test_a_new_start_forgets_the_exit_before_it() -> None:
    story = told(start(), ended(1, code=1), start(2))
    assert story.exit is None and story.failures == 1


def test_attempts_grow_even_where_a_start_says_otherwise() -> None:
    assert told(start(1), start(1)).attempt == 2
    assert told(start(5), start(2)).attempt == 6
    assert told({"what": "start"}).attempt == 1


@pytest.mark.parametrize(
    ("event", "success"),
    [
        ({"code": 0}, True),
        ({"code": 1}, False),
        ({"signal": 9}, False),
        ({"code": 0, "timeout": True}, False),
        ({"code": 0, "error": "cannot start"}, False),
        ({}, False),
        ({"code": "0"}, False),
    ],
)
def test_only_code_0_in_time_is_success(event: dict[str, Any], success: bool) -> None:
    assert history.succeeded(event) is success


# -- cut short -----------------------------------------------------------------------------------


def test_a_loss_told_twice_counts_once() -> None:
    story = told(start(), lost(), lost())
    assert story.losses == 1 and story.started is None


def test_a_loss_and_an_interruption_of_one_attempt_count_once() -> None:
    story = told(start(), {"what": "interrupted", "attempt": 1}, lost())
    assert (story.losses, story.interruptions) == (0, 1)


def test_a_late_loss_of_an_attempt_that_ended_counts_nothing() -> None:
    story = told(start(), ended(), lost())
    assert story.losses == 0 and story.exit is not None


def test_a_late_loss_of_an_earlier_attempt_counts_nothing() -> None:
    story = told(start(1), lost(1), QUEUED, start(2), lost(1))
    assert story.losses == 1 and story.started is not None


def test_each_attempt_can_be_lost_once() -> None:
    assert told(start(1), lost(1), start(2), lost(2)).losses == 2


@pytest.mark.parametrize(
    ("elapsed", "had"),
    [
        (100, 100),
        (0.5, 0.5),
        (-5, 0),
        ("x", 0),
        (None, 0),
        (1e308, units.LONGEST),
        (2**70, units.LONGEST),
    ],
)
def test_an_interrupted_try_keeps_the_time_it_had(elapsed: object, had: float) -> None:
    story = told(start(), {"what": "interrupted", "attempt": 1, "elapsed_s": elapsed})
    assert story.had_s == had


# -- a person's words ----------------------------------------------------------------------------


def test_a_retry_by_a_person_counts_anew() -> None:
    story = told(
        start(), ended(1, code=1), lost(), {"what": "held"}, {"what": "cancelled"}, RETRIED
    )
    assert (story.failures, story.losses, story.interruptions) == (0, 0, 0)
    assert story.cancelled is None and story.exit is None and story.held is False
    assert story.attempt == 1


def test_a_retry_by_the_launcher_keeps_the_count() -> None:
    story = told(start(), ended(1, code=1), {**QUEUED, "reason": "retry"})
    assert story.failures == 1 and story.held is None


def test_the_last_word_on_holding_counts() -> None:
    assert told().held is None
    assert told({"what": "held"}).held is True
    assert told({"what": "held"}, {"what": "released"}).held is False
    assert told({"what": "released"}, {"what": "held"}).held is True


def test_a_release_may_end_a_wait() -> None:
    queued = {**QUEUED, "until": "2026-11-22T21:10:00.000Z"}
    assert told(queued).until == "2026-11-22T21:10:00.000Z"
    assert told(queued, {"what": "released", "until": "now"}).until == "now"
    assert told(queued, {"what": "held"}, {"what": "released"}).until == "2026-11-22T21:10:00.000Z"


def test_changes_add_up_and_a_new_begin_ends_an_older_wait() -> None:
    story = told(
        {**QUEUED, "until": "2026-11-22T21:10:00.000Z"},
        {"what": "change", "set": {"priority": 1, "memory": 5}},
        {"what": "change", "set": {"priority": 2}},
        {"what": "change", "set": "nonsense"},
        {"what": "change"},
    )
    assert story.changes == {"priority": 2, "memory": 5}
    assert story.until == "2026-11-22T21:10:00.000Z"
    later = told({**QUEUED, "until": "x"}, {"what": "change", "set": {"begin": "2027-01-01"}})
    assert later.until == ""


def test_what_was_stopped_may_be_started_again() -> None:
    stopped = {"what": "vanished", "reason": "gone"}
    assert told(start(), ended(), stopped).stopped == stopped
    assert told(start(), ended(), stopped).exit is None
    assert told(stopped, QUEUED).stopped is None
    assert told(stopped, start()).stopped is None


def test_an_unknown_event_is_a_line_that_changes_nothing() -> None:
    story = told({"what": "sneezed"})
    assert story == Story(lines=1)


# -- anything at all -----------------------------------------------------------------------------


@relaxed
@given(st.lists(plausible_events | hostile_events, max_size=12))
def test_no_sequence_of_events_is_too_strange(events: list[dict[str, Any]]) -> None:
    story = told(*events)
    assert story.lines == len(events)
    starts = sum(event["what"] == "start" for event in events)
    assert story.attempt >= starts
    assert story.losses + story.interruptions <= starts
    assert story.started is None or story.exit is None
    assert 0 <= story.had_s <= units.LONGEST


@relaxed
@given(st.binary(max_size=300))
def test_no_bytes_are_too_strange(raw: bytes) -> None:
    story = history.fold(raw)
    assert story.lines == len(history.events(raw))


@relaxed
@given(st.lists(plausible_events | hostile_events, max_size=8))
def test_telling_one_by_one_is_folding(events: list[dict[str, Any]]) -> None:
    one_by_one = Story()
    for event in events:
        history.tell(one_by_one, json.loads(history.encode(event)))
    folded = told(*events)
    one_by_one.lines = folded.lines
    assert one_by_one == folded
