"""Where a task belongs: one table of situations, and what holds for every story there can be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_history import ended, hostile_events, lost, plausible_events, start, told
from test_manifest import manifests

from spool import units
from spool.queue import history, layout, shape
from spool.queue.history import Story
from spool.queue.layout import State
from spool.queue.manifest import Manifest
from spool.queue.place import Place, next_place

SHARD = "26112215-4k"
ID = f"hi.{SHARD}-k3f9x2q7bd"
NOW = 1_795_381_800.0  # 2026-11-22T21:10:00Z
relaxed = settings(deadline=None, max_examples=60)

PAST, SOON = "2026-11-22T21:00:00.000Z", "2026-11-22T21:30:10.000Z"
FAILED_ONCE = ended(1, code=3, time="2026-11-22T21:10:00.000Z")
QUEUED: dict[str, Any] = {"what": "queued", "stage": "run"}
RETRIED = {**QUEUED, "reason": "retry by a person"}
CANCELLED = {"what": "cancelled", "by": "me"}
INTERRUPTED = {"what": "interrupted", "attempt": 1, "elapsed_s": 5000}


def place(story: Story, **keys: Any) -> Place:
    """Where a task with these manifest keys and this story belongs."""
    return next_place(ID, Manifest(command=["x"], **keys), story, {}, NOW)


def lost_times(count: int) -> list[dict[str, Any]]:
    """A task whose launcher died `count` times."""
    return [event for n in range(1, count + 1) for event in (start(n), lost(n))]


# -- the table -----------------------------------------------------------------------------------

READY, FINISHED = f"READY/c1@{SHARD}", f"FINISHED/{SHARD}"
SITUATIONS: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("a fresh task", [], {}, READY),
    ("asks for much", [], {"gpus": 1, "priority": 5}, f"READY/p5.c1.g1@{SHARD}"),
    ("to be held", [], {"hold": True}, f"WAITING/held@{SHARD}"),
    ("held by a person", [{"what": "held"}], {}, f"WAITING/held@{SHARD}"),
    ("released", [{"what": "released"}], {"hold": True}, READY),
    ("not before", [], {"begin": SOON}, "WAITING/until@2611222131"),
    ("its time has come", [], {"begin": PAST}, READY),
    ("not waited for", [{"what": "released", "until": "now"}], {"begin": SOON}, READY),
    ("held and not before", [{"what": "held"}], {"begin": SOON}, f"WAITING/held@{SHARD}"),
    ("a time nobody can read", [{**QUEUED, "until": "soon"}], {}, READY),
    ("changed begin", [{**QUEUED, "until": PAST}, {"what": "change", "set": {"begin": SOON}}],
     {"begin": SOON}, "WAITING/until@2611222131"),
    ("from a door", [{"what": "arrived", "source": "beam"}], {}, f"READY/c1.s-beam@{SHARD}"),
    ("from a strange door", [{"what": "arrived", "source": "../x"}], {},
     f"READY/c1.s{shape.name_token('../x')}@{SHARD}"),
    ("finished", [start(), ended()], {}, FINISHED),
    ("finished on a retry", [start(1), ended(1, code=1), start(2), ended(2)], {}, FINISHED),
    ("finished, then lost", [start(), ended(), lost()], {}, FINISHED),
    ("finished, then cancelled", [start(), ended(), CANCELLED], {}, FINISHED),
    ("failed", [start(), ended(1, code=3)], {}, f"FAILED/exit-3@{SHARD}"),
    ("killed", [start(), ended(1, signal=9)], {}, f"FAILED/signal-9@{SHARD}"),
    ("too long", [start(), ended(1, signal=15, timeout=True)], {}, f"FAILED/timeout@{SHARD}"),
    ("no exit code", [start(), ended(1, error="?")], {}, f"FAILED/exit-unknown@{SHARD}"),
    ("a hostile signal", [start(), ended(1, signal="../../x")], {},
     f"FAILED/signal-..-..-x@{SHARD}"),
    ("a hostile code", [start(), ended(1, code="/etc")], {}, f"FAILED/exit--etc@{SHARD}"),
    ("failed and cancelled", [start(), FAILED_ONCE, CANCELLED], {"max_attempts": 2},
     f"FAILED/exit-3@{SHARD}"),
    ("stopped on request", [start(), ended(1, signal=15, cancelled=True), CANCELLED], {},
     f"CANCELLED/{SHARD}"),
    ("cancelled while it waited", [CANCELLED], {"hold": True}, f"CANCELLED/{SHARD}"),
    ("cancelled and lost too often", [*lost_times(6), CANCELLED], {}, f"CANCELLED/{SHARD}"),
    ("cancelled, then retried", [CANCELLED, RETRIED], {}, READY),
    ("lost", lost_times(5), {}, READY),
    ("lost too often", lost_times(6), {}, f"FAILED/lost@{SHARD}"),
    ("lost, and that is once too often", lost_times(1), {"max_lost": 0}, f"FAILED/lost@{SHARD}"),
    ("lost too often, then retried", [*lost_times(6), RETRIED], {}, READY),
    ("interrupted", [start(), INTERRUPTED], {}, f"READY/c1.t1h@{SHARD}"),
    ("interrupted early", [start(), {**INTERRUPTED, "elapsed_s": 5}], {"time_limit": "1h"},
     f"READY/c1.t1h@{SHARD}"),
    ("interrupted too often", [start(), INTERRUPTED], {"max_interrupted": 0},
     f"FAILED/interrupted@{SHARD}"),
    ("rejected", [{"what": "rejected"}], {}, f"FAILED/rejected@{SHARD}"),
    ("a duplicate", [{"what": "rejected", "as": "duplicate"}], {}, f"FAILED/duplicate@{SHARD}"),
    ("a hostile reason", [{"what": "rejected", "as": "a/../b"}], {}, f"FAILED/a-..-b@{SHARD}"),
    ("vanished", [start(), ended(), {"what": "vanished"}], {}, f"FAILED/vanished@{SHARD}"),
    ("vanished, then retried", [start(), ended(), {"what": "vanished"}, RETRIED], {},
     READY),
    ("rejected, then cancelled", [{"what": "rejected"}, CANCELLED], {}, f"FAILED/rejected@{SHARD}"),
    ("started, and nothing more is known", [start()], {}, READY),
    ("retried", [start(), FAILED_ONCE, RETRIED], {}, READY),
    ("may try again", [start(), FAILED_ONCE], {"max_attempts": 2}, READY),
    ("may try again later", [start(), FAILED_ONCE], {"max_attempts": 2, "backoff": 90},
     "WAITING/until@2611222112"),
    ("may try again, but is held", [start(), FAILED_ONCE, {"what": "held"}], {"max_attempts": 2},
     f"WAITING/held@{SHARD}"),
    ("an end without a time", [start(), ended(1, code=1)], {"max_attempts": 2, "backoff": 90},
     READY),
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "keys", "belongs"),
    [situation[1:] for situation in SITUATIONS],
    ids=[situation[0] for situation in SITUATIONS],
)
def test_a_task_belongs(events: list[dict[str, Any]], keys: dict[str, Any], belongs: str) -> None:
    found = place(told(*events), **keys)
    assert f"{found.state}/{found.group}" == belongs


# -- the line before the move --------------------------------------------------------------------


def test_only_a_retry_needs_a_line_of_its_own() -> None:
    for _, events, keys, _ in SITUATIONS:
        found = place(told(*events), **keys)
        exited = told(*events).exit is not None
        assert (found.line is not None) == (exited and found.state not in layout.FINAL)


def test_once_its_line_is_written_the_answer_is_the_same() -> None:
    for _, events, keys, _ in SITUATIONS:
        story = told(*events)
        first = place(story, **keys)
        if first.line is not None:
            history.tell(story, first.line)
        assert place(story, **keys) == first._replace(line=None)


@pytest.mark.parametrize(
    ("failures", "waits_s"), [(1, 600), (2, 1200), (3, 2400), (4, 3600), (50, 3600), (5000, 3600)]
)
def test_the_back_off_doubles_up_to_an_hour(failures: int, waits_s: float) -> None:
    story = told(start(), FAILED_ONCE)
    story.failures = failures
    found = place(story, max_attempts=1_000_000, backoff="10m")
    assert found.line == {
        "what": "queued", "stage": "run", "reason": "retry", "until": units.stamp(NOW + waits_s),
    }  # fmt: skip
    assert found.group == layout.until_group(NOW + waits_s)


def test_a_back_off_of_more_than_an_hour_stays_as_it_is() -> None:
    found = place(told(start(), FAILED_ONCE), max_attempts=2, backoff="1d")
    assert found.group == layout.until_group(NOW + 86_400)


# -- whatever the story --------------------------------------------------------------------------

stories = st.lists(plausible_events | hostile_events, max_size=12).map(lambda e: told(*e))


@relaxed
@given(stories, manifests)
def test_every_story_has_one_place_and_it_is_a_folder_of_two_levels(
    story: Story, wanted: Manifest
) -> None:
    before = copy.deepcopy(story)
    found = next_place(ID, wanted, story, {}, NOW)
    assert story == before
    assert found == next_place(ID, wanted, story, {}, NOW)
    assert found.state in (State.READY, State.WAITING, *layout.FINAL)
    assert found.group and found.group[0] != "." and not set(found.group) & set("/\0\n~") - {"~"}
    assert len(found.group.encode()) <= 200
    if found.state is State.READY:
        shape.parse(found.group)
    if found.state is State.FAILED:
        assert layout.group_label(found.group) != found.group
    if found.line is not None:
        assert story.exit is not None and found.line["what"] == "queued"


@relaxed
@given(stories, manifests, st.integers(1, 9))
def test_a_task_that_exits_with_success_is_finished_whatever_else(
    story: Story, wanted: Manifest, more: int
) -> None:
    attempt = story.attempt + more
    for event in (
        start(attempt),
        ended(attempt, code=0),
        CANCELLED,
        {"what": "held"},
        lost(attempt),
    ):
        history.tell(story, event)
    assert next_place(ID, wanted, story, {}, NOW) == (State.FINISHED, SHARD, None)


@relaxed
@given(stories, manifests)
def test_a_cancelled_task_without_an_end_is_cancelled(story: Story, wanted: Manifest) -> None:
    history.tell(story, CANCELLED)
    if story.exit is None and story.stopped is None:
        assert next_place(ID, wanted, story, {}, NOW) == (State.CANCELLED, SHARD, None)


@relaxed
@given(stories, manifests)
def test_a_person_s_retry_always_leads_back_to_the_queue(story: Story, wanted: Manifest) -> None:
    history.tell(story, RETRIED)
    assert next_place(ID, wanted, story, {}, NOW).state in (State.READY, State.WAITING)


@relaxed
@given(stories, manifests)
def test_a_held_task_never_lies_in_ready(story: Story, wanted: Manifest) -> None:
    history.tell(story, {"what": "held"})
    found = next_place(ID, wanted, story, {}, NOW)
    assert found.state is not State.READY
    assert found.state in layout.FINAL or found.group == f"held@{SHARD}"


@relaxed
@given(stories, manifests)
def test_what_waits_for_a_moment_moves_on_when_it_has_come(story: Story, wanted: Manifest) -> None:
    found = next_place(ID, wanted, story, {}, NOW)
    moment = layout.until_moment(found.group)
    if moment is None or moment >= layout.LATEST:
        return
    assert moment > NOW
    if found.line is not None:
        history.tell(story, found.line)
    assert next_place(ID, wanted, story, {}, moment).state is State.READY


@pytest.mark.parametrize("name", ["", "hi", "../x", "hi.26112215-4k"])
def test_what_bears_no_id_has_no_place(name: str) -> None:
    with pytest.raises(ValueError, match="not a task id"):
        next_place(name, Manifest(command=["x"]), Story(), {}, NOW)
