"""Stages and policies as pure rules: which stage comes next, and what follows each kind of end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_history import ended, hostile_events, lost, plausible_events, start, told
from test_place import ID, NOW, RETRIED, SHARD

from spool import units
from spool.errors import ManifestError
from spool.queue import history, layout, manifest, shape, stages
from spool.queue.history import Story
from spool.queue.layout import State
from spool.queue.manifest import Manifest
from spool.queue.place import Place, next_place

relaxed = settings(deadline=None, max_examples=100)
TIMEOUT = {"signal": 15, "timeout": True}
STAGING = {"what": "staging", "stage": "prepare", "time": "2026-11-22T21:00:00.000Z"}
CLOSING = {**STAGING, "stage": "close"}
BROKE = {"what": "broke", "stage": "prepare", "reason": "x"}
CLOSED, PREPARED = {"what": "closed"}, {"what": "prepared", "attempt": 1}
PRE, POST, ASK = {"preprocess": "a"}, {"postprocess": "b"}, {"on_error": "c", "on_timeout": "d"}
OUT = {"stage_out": [{"source": "*", "target": "/x"}]}


def decided(verdict: str, **more: Any) -> dict[str, Any]:
    return {"what": "decided", "verdict": verdict, **more}


def sound(**keys: Any) -> Manifest:
    return manifest.from_mapping({"command": ["x"], **keys}, "test")


def in_force(story: Story, **keys: Any) -> Manifest:
    return manifest.changed(sound(**keys), story.changes, "test", manifest.LAID)


def place(story: Story, **keys: Any) -> Place:
    return next_place(ID, in_force(story, **keys), story, {}, NOW)


RUN, PREPARE, CLOSE = f"READY/c1@{SHARD}", f"READY/prepare.c1@{SHARD}", f"READY/close.c1@{SHARD}"
FINISHED = f"FINISHED/{SHARD}"
LOSS = {"what": "lost", "stage": "prepare"}
CUT = {"what": "interrupted", "stage": "prepare"}
OK, BAD = [start(), ended()], [start(), ended(1, code=3)]
LATE = [start(), ended(1, **TIMEOUT)]
CANCELLED = {"what": "cancelled"}
PUT_OFF = {"what": "queued", "stage": "prepare", "until": "2026-11-22T21:30:10.000Z"}
HELD = {"what": "held"}

SITUATIONS: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("a fresh task with a hook", [], PRE, PREPARE),
    ("with data to bring in", [], {"stage_in": ["/a"]}, PREPARE),
    ("with only a postprocess", [], POST, RUN),
    ("held before it is prepared", [HELD], PRE, f"WAITING/held@{SHARD}"),
    ("being prepared", [STAGING], PRE, PREPARE),
    ("its stager died", [STAGING, LOSS], PRE, PREPARE),
    ("too often", [STAGING, LOSS] * 6, PRE, f"FAILED/prepare@{SHARD}"),
    ("a loss told twice counts once", [STAGING, LOSS, LOSS], {**PRE, "max_lost": 1}, PREPARE),
    ("its stager was stopped", [STAGING, CUT], PRE, PREPARE),
    ("stopped too often", [STAGING, CUT] * 11, PRE, f"FAILED/interrupted@{SHARD}"),
    ("put off", [STAGING, PUT_OFF], PRE, "WAITING/until@2611222131"),
    ("prepared", [STAGING, PREPARED], PRE, RUN),
    ("prepare failed", [STAGING, BROKE], PRE, f"FAILED/prepare@{SHARD}"),
    ("prepare failed, then retried", [STAGING, BROKE, RETRIED], PRE, PREPARE),
    ("cancelled while it was prepared", [STAGING, CANCELLED], PRE, f"CANCELLED/{SHARD}"),
    ("prepared and lost: not again", [PREPARED, start(), lost()], PRE, RUN),
    ("with fresh it is", [PREPARED, start(), lost()], {**PRE, "fresh": True}, PREPARE),
    ("a person's retry prepares anew", [PREPARED, *BAD, RETRIED], PRE, PREPARE),
    ("another try does not", [PREPARED, *BAD], {**PRE, "max_attempts": 2}, RUN),
    ("but with fresh", [PREPARED, *BAD], {**PRE, "max_attempts": 2, "fresh": True}, PREPARE),
    ("succeeded, to be closed", OK, POST, CLOSE),
    ("succeeded, to be brought out", OK, OUT, CLOSE),
    ("failed: nothing to close", BAD, {**POST, **OUT}, f"FAILED/exit-3@{SHARD}"),
    ("closed", [*OK, CLOSING, CLOSED], POST, FINISHED),
    ("closing failed", [*OK, CLOSING, BROKE], POST, f"FAILED/close@{SHARD}"),
    ("closing lost", [*OK, CLOSING, LOSS], POST, CLOSE),
    ("closing lost too often", [*OK, *[CLOSING, LOSS] * 6], POST, f"FAILED/close@{SHARD}"),
    ("cancelled while it closed", [*OK, CLOSING, CANCELLED], POST, f"CANCELLED/{SHARD}"),
    ("closed, then cancelled", [*OK, CLOSED, CANCELLED], POST, FINISHED),
    ("held while to be closed", [*OK, HELD], POST, f"WAITING/held@{SHARD}"),
    ("to be closed once more", [*OK, CLOSING, BROKE, {**RETRIED, "stage": "close"}], POST, CLOSE),
    ("run once more", [*OK, CLOSING, BROKE, RETRIED], POST, RUN),
    ("an error with a handler", BAD, ASK, CLOSE),
    ("a timeout with a handler", LATE, ASK, CLOSE),
    ("a timeout, a handler for errors", LATE, {"on_error": "c"}, f"FAILED/timeout@{SHARD}"),
    ("tries come first", BAD, {**ASK, "max_attempts": 2}, RUN),
    ("cancelled: nobody is asked", [*BAD, CANCELLED], ASK, f"FAILED/exit-3@{SHARD}"),
    ("the handler's stager died too often", [*BAD, *[CLOSING, LOSS] * 6], ASK,
     f"FAILED/exit-3@{SHARD}"),
    ("the handler says fail", [*BAD, decided("fail")], ASK, f"FAILED/exit-3@{SHARD}"),
    ("retry", [*BAD, decided("retry")], ASK, RUN),
    ("retry with more", [*BAD, decided("retry", set={"cores_per_rank": "*4"})], ASK,
     f"READY/c4@{SHARD}"),
    ("retry with nonsense", [*BAD, decided("retry", set={"nodes": "x"})], ASK,
     f"FAILED/exit-3@{SHARD}"),
    ("retry too often", [*BAD, decided("retry")], {**ASK, "max_handled": 0},
     f"FAILED/exit-3@{SHARD}"),
    ("finish", [*BAD, decided("finish")], ASK, FINISHED),
    ("finish, then bring out", [*BAD, decided("finish")], {**ASK, **OUT}, CLOSE),
    ("finish, brought out", [*BAD, decided("finish"), CLOSED], {**ASK, **OUT}, FINISHED),
    ("rescue", [*BAD, decided("rescue", id="r")], ASK, f"FAILED/replaced@{SHARD}"),
    ("a decision about nothing", [decided("finish")], ASK, RUN),
    ("a policy for this code", BAD, {"retry": {"exit-3": {"attempts": 2}}}, RUN),
    ("for another", BAD, {"retry": {"exit-4": {"attempts": 2}}}, f"FAILED/exit-3@{SHARD}"),
    ("for any error", BAD, {"retry": {"error": {"attempts": 2}}}, RUN),
    ("for anything", LATE, {"retry": {"*": {"attempts": 2}}}, RUN),
    ("no timeout is an error", LATE, {"retry": {"error": {"attempts": 2}}},
     f"FAILED/timeout@{SHARD}"),
    ("used up", [*BAD, {"what": "queued"}, start(2), ended(2, code=3)],
     {"retry": {"exit-3": {"attempts": 2}}, "max_attempts": 9}, f"FAILED/exit-3@{SHARD}"),
    ("another cause counts apart", [*LATE, {"what": "queued"}, start(2), ended(2, code=3)],
     {"retry": {"exit-3": {"attempts": 2}, "timeout": {"attempts": 2}}}, RUN),
    ("with more memory", BAD, {"retry": {"error": {"attempts": 2, "set": {"memory": "*2"}}},
     "memory": "3G"}, f"READY/c1.m6G@{SHARD}"),
    ("later", [start(), ended(1, code=3, time="2026-11-22T21:10:00.000Z")],
     {"retry": {"error": {"attempts": 2, "backoff": 90}}}, "WAITING/until@2611222112"),
    ("lost, with more memory", [start(), lost()],
     {"retry": {"lost": {"attempts": 2, "set": {"memory": "+1G"}}}, "memory": "1G"},
     f"READY/c1.m2G@{SHARD}"),
    ("lost too often for its policy", [start(1), lost(1), start(2), lost(2)],
     {"retry": {"lost": {"attempts": 2}}}, f"FAILED/lost@{SHARD}"),
    ("* is not for losses", [start(), lost()], {"retry": {"*": {"attempts": 1}}}, RUN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "keys", "belongs"),
    [situation[1:] for situation in SITUATIONS],
    ids=[situation[0] for situation in SITUATIONS],
)
def test_a_task_belongs(events: list[dict[str, Any]], keys: dict[str, Any], belongs: str) -> None:
    story = told(*events)
    found = place(story, **keys)
    assert f"{found.state}/{found.group}" == belongs
    if found.line is not None:  # once its line is written the answer is the same
        history.tell(story, found.line)
        assert place(story, **keys) == found._replace(line=None)


def test_a_person_s_retry_counts_every_cause_anew() -> None:
    keys = {"retry": {"exit-3": {"attempts": 2}, "lost": {"attempts": 2}}}
    story = told(*BAD, {"what": "queued"}, start(2), ended(2, code=3))
    assert place(story, **keys).state is State.FAILED
    history.tell(story, RETRIED)
    history.tell(story, start(3))
    history.tell(story, ended(3, code=3))
    assert place(story, **keys).state is State.READY


def test_a_retry_line_tells_the_values_not_the_arithmetic() -> None:
    found = place(told(*BAD), memory="3G", retry={"*": {"attempts": 2, "set": {"memory": "*1.5"}}})
    assert found.line == {
        "what": "queued", "stage": "run", "reason": "retry", "set": {"memory": 4608},
    }  # fmt: skip


# -- whatever happens ----------------------------------------------------------------------------

ends = st.sampled_from([{"code": 3}, {"code": 137}, {"signal": 9}, TIMEOUT, "lost"])
rules = st.dictionaries(
    st.sampled_from(["exit-3", "exit-137", "signal-9", "timeout", "lost", "error", "*"]),
    st.fixed_dictionaries(
        {
            "attempts": st.integers(1, 4),
            "set": st.sampled_from(
                [{}, {"memory": "*2"}, {"cores_per_rank": "*999"}, {"time_limit": "+1h"}]
            ),
        }
    ),
)


@relaxed
@given(rules, st.integers(1, 4), st.integers(0, 3), st.lists(ends, min_size=40, max_size=40))
def test_retries_are_bounded_and_each_ends_in_a_lane_that_holds_what_it_asks_for(
    retry: dict[str, Any], most: int, lost_most: int, causes: list[Any]
) -> None:
    keys = {"retry": retry, "max_attempts": most, "max_lost": lost_most, "memory": "1G"}
    story = Story()
    for attempt, how in enumerate(causes, 1):
        found = place(story, **keys)
        if found.line:
            history.tell(story, found.line)
        if found.state is State.FAILED:
            break
        lane = shape.parse(found.group)[0]
        assert lane == manifest.wanted_shape(in_force(story, **keys))
        history.tell(story, start(attempt))
        history.tell(story, lost(attempt) if how == "lost" else ended(attempt, **how))
    bound = most + sum(rule["attempts"] for rule in retry.values()) + lost_most + 1
    assert attempt <= bound + 1
    assert found.state is State.FAILED


stage_events = st.sampled_from(
    [STAGING, CLOSING, PREPARED, CLOSED, BROKE, LOSS, CUT, PUT_OFF, {**RETRIED, "stage": "close"},
     *(decided(word, set={"memory": "*2"}, id="x") for word in stages.VERDICTS),
     {"what": "decided", "verdict": []}, {"what": "decided", "verdict": "retry", "set": 7},
     {"what": "prepared", "attempt": "x"}, {"what": "queued", "stage": [], "set": {}}]
)  # fmt: skip
stories = st.lists(plausible_events | hostile_events | stage_events, max_size=14)
staged = st.fixed_dictionaries(
    {},
    optional={
        "preprocess": st.just("a"), "postprocess": st.just("b"), "on_error": st.just("c"),
        "on_timeout": st.just("d"), "fresh": st.booleans(), "max_handled": st.integers(0, 2),
        "retry": rules, "max_attempts": st.integers(1, 3),
    },
)  # fmt: skip


@relaxed
@given(stories.map(lambda events: told(*events)), staged)
def test_every_story_has_one_place(story: Story, keys: dict[str, Any]) -> None:
    wanted = sound(**keys)
    found = next_place(ID, wanted, story, {}, NOW)
    assert found == next_place(ID, wanted, story, {}, NOW)
    assert found.group and not set(found.group) & set("/\0\n")
    if found.state is State.READY:
        stage = shape.parse(found.group)[0].stage
        assert stage != "close" or story.exit is not None
        assert stage == "close" or story.exit is None or found.line is not None
        assert stage != "run" or story.prepared or "preprocess" not in keys


@relaxed
@given(stories.map(lambda events: told(*events)), staged)
def test_a_person_s_retry_always_leads_back_to_the_queue(
    story: Story, keys: dict[str, Any]
) -> None:
    history.tell(story, RETRIED)
    assert next_place(ID, sound(**keys), story, {}, NOW).state in (State.READY, State.WAITING)


@relaxed
@given(
    st.sampled_from(sorted(stages._PLAIN)),
    st.sampled_from(["*0", "*0.001", "*1", "*2", "*999.999", "+0", "+1", "+99999999"]),
    st.integers(1, 1_000_000),
)
def test_a_worked_out_amount_is_always_allowed(key: str, change: str, now: int) -> None:
    now = min(now, 999) if key == "priority" else now
    wanted = sound(**{key: now})
    try:
        values = stages.changed(wanted, {key: change}, "test")
    except ManifestError as fault:
        assert "duration" in str(fault) and change == "+99999999" and units.LONGEST < 10**9
        return
    assert manifest.changed(wanted, values, "test") is not None


def test_a_lane_of_a_stage_can_be_read_back() -> None:
    found = place(Story(), preprocess="a", memory="3G", workflow="w", cores_per_rank=4)
    assert found.group == f"prepare.c4.m3G.w-w@{SHARD}"
    assert shape.parse(found.group)[0].stage == "prepare"
    assert layout.group_label(found.group) == "prepare.c4.m3G.w-w"
