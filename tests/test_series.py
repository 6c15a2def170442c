"""Journal events to numbers: what counts, what is passed over, and that no core-second is lost."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from spool import units
from spool.errors import SpoolError
from spool.report import ends, series
from spool.report.ends import Outcome, Wanted
from spool.report.series import MOST_BINS, STEPS_S, Series, Totals

T0 = 1_795_600_800  # 2026-11-25T10:00:00Z, a whole hour


def ended(end_s: float, run_s: float = 10.0, **keys: Any) -> dict[str, Any]:
    """An exit line of a task that ended end_s after T0, on one core of launcher a."""
    return {
        "time": units.stamp(T0 + end_s),
        "what": "exit",
        "id": "t.26112510-00-aaaaaaaaaa",
        "attempt": 1,
        "owner": "a",
        "elapsed_s": run_s,
        "state": "FINISHED",
        "started": units.stamp(T0 + end_s - run_s),
        "submitted": units.stamp(T0),
        "cores": 1,
        "gpus": 0,
        "workflow": "",
        **keys,
    }


def opened(at_s: float = 0.0, cores: int = 1, **keys: Any) -> dict[str, Any]:
    return {"time": units.stamp(T0 + at_s), "what": "opened", "owner": "a", "cores": cores, **keys}


def closed(at_s: float, **keys: Any) -> dict[str, Any]:
    return {**opened(at_s, **keys), "what": "closed"}


def binned(events: list[dict[str, Any]], wanted: Wanted = ends.EVERYTHING, **keys: Any) -> Series:
    return series.series(events, series.totals(events, wanted).span, wanted, **keys)


# -- ends ----------------------------------------------------------------------------------------


def test_an_end_tells_when_it_ran_how_long_and_on_what() -> None:
    (end,) = ends.ends([opened(), ended(30, 10, cores=4, gpus=2, workflow="g2"), closed(31)])
    assert (end.time, end.started) == (T0 + 30, T0 + 20)
    assert (end.wait_s, end.run_s) == (20, 10)
    assert (end.cores, end.gpus, end.workflow, end.owner) == (4, 2, "g2", "a")
    assert (end.state, end.outcome) == ("FINISHED", Outcome.FINISHED)


@pytest.mark.parametrize(
    ("what", "state", "outcome"),
    [
        ("exit", "FINISHED", Outcome.FINISHED),
        ("exit", "FAILED", Outcome.FAILED),
        ("exit", "READY", Outcome.FAILED),
        ("exit", "WAITING", Outcome.FAILED),
        ("exit", "CANCELLED", Outcome.INTERRUPTED),
        ("interrupted", "READY", Outcome.INTERRUPTED),
        ("interrupted", "FAILED", Outcome.INTERRUPTED),
        ("lost", "READY", Outcome.INTERRUPTED),
    ],
)
def test_an_outcome_is_what_the_attempt_came_to(what: str, state: str, outcome: Outcome) -> None:
    (end,) = ends.ends([ended(30, what=what, state=state)])
    assert end.outcome is outcome


@pytest.mark.parametrize(
    "change",
    [
        {"time": None}, {"time": "yesterday"}, {"time": 17}, {"time": "2026-11-25T10:00:00.٣x"},
        {"time": "2026-13-25T10:00:00.000Z"}, {"id": None}, {"id": 7}, {"what": "start"},
        {"what": ["exit"]}, {"what": None},
    ],
)  # fmt: skip
def test_a_line_without_id_or_time_is_no_end(change: dict[str, Any]) -> None:
    assert list(ends.ends([{**ended(30), **change}])) == []


@pytest.mark.parametrize(
    ("change", "field", "taken"),
    [
        ({"cores": "four"}, "cores", 0),
        ({"cores": -1}, "cores", 0),
        ({"cores": True}, "cores", 0),
        ({"cores": float("nan")}, "cores", 0),
        ({"cores": 1e300}, "cores", 0),
        ({"workflow": {"a": 1}}, "workflow", ""),
        ({"owner": None}, "owner", ""),
        ({"elapsed_s": float("inf")}, "run_s", 10),
        ({"elapsed_s": "long"}, "run_s", 10),
        ({"submitted": ""}, "wait_s", None),
        ({"attempt": 2}, "wait_s", None),
        ({"submitted": units.stamp(T0 + 99)}, "wait_s", 0),
        ({"started": "?"}, "started", T0 + 20),
        ({"started": units.stamp(T0 + 99)}, "started", T0 + 20),
        ({"started": None, "elapsed_s": None}, "started", T0 + 30),
    ],
)
def test_what_else_is_malformed_is_taken_as_nothing(
    change: dict[str, Any], field: str, taken: object
) -> None:
    (end,) = ends.ends([{**ended(30), **change}])
    assert getattr(end, field) == taken


def test_a_moment_is_read_as_units_reads_it() -> None:
    for text in ("2026-11-25T10:00:00.123Z", "2026-11-25T10:00:00Z", "2026-11-25", "1970-01-01"):
        assert ends.moment(text) == units.read_stamp(text)


# -- totals --------------------------------------------------------------------------------------


def test_no_events_make_totals_of_nothing() -> None:
    told = series.totals([])
    assert (told.ends, told.utilisation, told.span) == (0, 0, (0, 0))
    assert told.waiting == series.Spread() and told.owners == ()


def test_totals_of_one_launcher() -> None:
    events = [
        opened(0, cores=2),
        ended(10, 10),
        ended(30, 20, state="FAILED", workflow="g2"),
        ended(100, 50, what="interrupted", state="READY", gpus=1),
        closed(100, cores=2),
    ]
    told = series.totals(events)
    assert told.span == (T0, T0 + 100)
    assert (told.ends, told.finished, told.failed, told.interrupted) == (3, 1, 1, 1)
    assert told.states == {"FAILED": 1, "FINISHED": 1, "READY": 1}
    assert (told.used_core_s, told.used_gpu_s, told.granted_core_s) == (80, 50, 200)
    assert told.utilisation == pytest.approx(0.4)
    assert told.finished_per_hour == pytest.approx(36)
    assert [row.name for row in told.workflows] == ["", "g2"]
    assert [(row.name, row.utilisation) for row in told.owners] == [("a", pytest.approx(0.4))]


def test_a_launcher_that_never_closed_counts_until_its_last_event() -> None:
    told = series.totals([opened(0), ended(10), ended(40)])
    assert told.granted_core_s == pytest.approx(40)


def test_a_lost_opening_is_told_by_the_closing() -> None:
    told = series.totals([ended(10), closed(40, started=units.stamp(T0))])
    assert told.granted_core_s == pytest.approx(40)


def test_journals_in_any_order_of_time_come_to_the_same() -> None:
    events = [
        opened(0),
        ended(10),
        ended(20),
        closed(30),
        opened(5, owner="b"),
        closed(9, owner="b"),
    ]
    told = series.totals(events)
    mixed = random.Random(1).sample(events, len(events))
    assert series.totals(mixed) == told
    assert binned(mixed) == binned(events)


def test_lent_cores_count_once_and_a_hand_s_tasks_count_with_its_lender() -> None:
    place = {"host": "n1", "boot": "b0"}
    events = [
        opened(0, cores=4, pid=7, **place),
        closed(100, cores=4, pid=7, **place),
        opened(10, cores=2, pid=8, owner="h", hand_of=7, **place),
        ended(60, 50, owner="h", cores=2),
        closed(90, cores=2, pid=8, owner="h", hand_of=7, **place),
    ]
    told = series.totals(events)
    assert told.granted_core_s == pytest.approx(400)
    (row,) = told.owners
    assert (row.name, row.finished, row.used_core_s, row.utilisation) == ("a", 1, 100, 0.25)
    assert max(binned(events).granted_cores) == 4


def test_a_hand_whose_lender_is_unknown_keeps_its_row() -> None:
    told = series.totals([opened(0, cores=2, owner="h", hand_of=7, pid=8), ended(10, owner="h")])
    assert [(row.name, row.granted_core_s) for row in told.owners] == [("h", 0)]


def test_since_and_until_cut_ends_and_cores() -> None:
    events = [opened(0), ended(10, 10), ended(30, 20), ended(50, 20), closed(60)]
    told = series.totals(events, Wanted(since=T0 + 20, until=T0 + 40))
    assert told.span == (T0 + 20, T0 + 40)
    assert told.ends == 1
    assert (told.used_core_s, told.granted_core_s) == (20, 20)


def test_since_long_ago_adds_no_empty_time() -> None:
    told = series.totals([ended(10), ended(20)], Wanted(since=T0 - 10**8, until=T0 + 10**8))
    assert told.span == (T0, T0 + 20)


def test_a_workflow_is_measured_within_its_own_time() -> None:
    events = [opened(0, 2), ended(40, 20, workflow="g2"), ended(90), closed(100)]
    told = series.totals(events, Wanted(workflow="g*"))
    assert (told.ends, told.span) == (1, (T0 + 20, T0 + 40))
    assert told.utilisation == pytest.approx(0.5)


def test_past_so_many_workflows_the_others_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MOST_ROWS", 3)
    told = series.totals([ended(10, workflow=f"w{number}") for number in range(10)])
    assert {row.name: row.finished for row in told.workflows} == {
        "w0": 1, "w1": 1, "w2": 1, "(others)": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("times_s", "half", "most"), [([5], 5, 5), ([1, 2], 1, 2), ([3, 1, 2], 2, 3), ([0] * 9, 0, 0)]
)
def test_quantiles_are_times_that_did_occur(times_s: list[float], half: int, most: int) -> None:
    told = series.spread(times_s)
    assert (told.p50_s, told.max_s, told.count) == (half, most, len(times_s))
    assert len(told.percentiles_s) == 101
    assert told.percentiles_s[0] == min(times_s) and told.percentiles_s[-1] == most


# -- bins ----------------------------------------------------------------------------------------


def test_bins_by_hand() -> None:
    events = [opened(0, 2), ended(15, 10), ended(20, 20, state="FAILED"), closed(25)]
    found = binned(events, step_s=10.0)
    assert (found.start, found.step_s, len(found)) == (T0, 10, 3)
    assert found.finished == (0, 1, 0) and found.failed == (0, 0, 1)
    assert found.busy_cores == pytest.approx((1.5, 1.5, 0))
    assert found.granted_cores == pytest.approx((2, 2, 1))
    assert found.utilisation(0) == pytest.approx(0.75)


@pytest.mark.parametrize("length_s", [0, 0.4, 1, 199, 200, 201, 3600, 86400, 1e6, 3e8, 4e9])
def test_a_step_makes_at_most_200_bins_and_the_one_before_makes_more(length_s: float) -> None:
    step_s = series.step_for((T0 + 0.5, T0 + 0.5 + length_s))
    assert math.ceil(length_s / step_s) + 1 <= MOST_BINS + 1
    if step_s in STEPS_S[1:]:
        assert length_s / STEPS_S[STEPS_S.index(step_s) - 1] > MOST_BINS - 2


def test_a_step_far_too_small_is_refused_with_one_that_fits() -> None:
    events = [ended(10), ended(86400)]
    with pytest.raises(SpoolError, match=r"a step of 1s makes .* Say --step 10s or more"):
        binned(events, step_s=1.0)
    assert len(binned(events, step_s=10.0)) == 8640


def test_events_written_after_the_first_pass_are_left_out() -> None:
    events = [opened(0), ended(10)]
    span = series.totals(events).span
    found = series.series([*events, ended(500)], span)
    assert sum(found.finished) == 1 and sum(found.busy_cores) * found.step_s == pytest.approx(10)


# -- properties ----------------------------------------------------------------------------------

lines = some.builds(
    ended,
    some.floats(0, 5000).map(lambda seconds: round(seconds, 3)),
    some.floats(0, 3000).map(lambda seconds: round(seconds, 3)),
    cores=some.integers(0, 64),
    owner=some.sampled_from("abc"),
    workflow=some.sampled_from(["", "g2", "relax"]),
    what=some.sampled_from(ends.ENDS),
    state=some.sampled_from(["FINISHED", "FAILED", "READY", "CANCELLED"]),
)
bounds = some.one_of(some.none(), some.integers(-100, 5100))
nonsense = some.recursive(
    some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), some.text()),
    lambda inner: some.lists(inner, max_size=3),
    max_leaves=4,
)


def wanted_of(since_s: int | None, until_s: int | None) -> Wanted:
    return Wanted(
        since=-math.inf if since_s is None else T0 + since_s,
        until=math.inf if until_s is None else T0 + until_s,
    )


def clipped_core_s(events: list[dict[str, Any]], wanted: Wanted) -> float:
    return sum(
        end.cores * max(0.0, min(end.time, wanted.until) - max(end.started, wanted.since))
        for end in ends.ends(events)
    )


@given(some.lists(lines, max_size=30), bounds, bounds, some.sampled_from([None, 1.0, 7.0, 600.0]))
def test_no_core_second_is_lost_and_counts_add_up(
    events: list[dict[str, Any]], since_s: int | None, until_s: int | None, step_s: float | None
) -> None:
    wanted = wanted_of(since_s, until_s)
    told = series.totals(events, wanted)
    found = series.series(events, told.span, wanted, step_s=step_s)
    used = clipped_core_s(events, wanted)
    assert told.used_core_s == pytest.approx(used, abs=1e-3)
    assert sum(found.busy_cores) * found.step_s == pytest.approx(used, abs=1e-3)
    counts = (sum(found.finished), sum(found.failed), sum(found.interrupted))
    assert counts == (told.finished, told.failed, told.interrupted)
    assert sum(counts) == told.ends == sum(told.states.values())
    for rows in (told.owners, told.workflows):
        assert sum(row.finished + row.failed + row.interrupted for row in rows) == told.ends
        assert sum(row.used_core_s for row in rows) == pytest.approx(used, abs=1e-3)
    assert step_s or len(found) <= MOST_BINS


@given(some.lists(lines, min_size=1, max_size=30), some.integers(2, 50))
def test_coarser_bins_hold_the_same(events: list[dict[str, Any]], most: int) -> None:
    fine = binned(events, step_s=7.0) if most % 2 else binned(events)
    rough = series.coarser(fine, most)
    assert len(rough) <= most
    assert rough.start <= fine.start
    assert sum(rough.finished) == sum(fine.finished)
    assert sum(rough.busy_cores) * rough.step_s == pytest.approx(
        sum(fine.busy_cores) * fine.step_s, abs=1e-3
    )


@some.composite
def busy_launcher(draw: some.DrawFn) -> list[dict[str, Any]]:
    """A launcher whose cores each run one task after the other while it is open."""
    cores, open_s = draw(some.integers(1, 4)), draw(some.integers(10, 4000))
    events = [opened(0, cores)]
    for _ in range(cores):
        at = 0.0
        for gap_s, run_s in draw(some.lists(some.tuples(*2 * [some.integers(0, 900)]), max_size=8)):
            at += gap_s + run_s
            if at <= open_s:
                events.append(ended(at, run_s))
    return [*events, closed(open_s, cores=cores)] if draw(some.booleans()) else events


@given(busy_launcher())
def test_utilisation_is_true_where_tasks_lie_inside_grants(events: list[dict[str, Any]]) -> None:
    told = series.totals(events)
    assert told.used_core_s <= told.granted_core_s + 1e-3
    assert 0 <= told.utilisation <= 1
    found = series.series(events, told.span)
    for used, granted in zip(found.busy_cores, found.granted_cores, strict=True):
        assert used <= granted + 1e-3


@given(
    some.lists(lines, max_size=5),
    some.lists(some.dictionaries(some.sampled_from(sorted(ended(0))), nonsense), max_size=5),
    some.lists(
        some.builds(
            lambda line, key, value: {**line, key: value},
            some.sampled_from([ended(9), opened(), closed(9)]),
            some.sampled_from(["cores", "owner", "hand_of", "pid", "host", "started", "what"]),
            nonsense,
        ),
        max_size=5,
    ),
)
def test_nonsense_never_fails(
    good: list[dict[str, Any]], bad: list[dict[str, Any]], bent: list[dict[str, Any]]
) -> None:
    told: Totals = series.totals([*bad, *good, *bent])
    assert told.ends >= len(good)
    assert len(series.series([*bent, *good, *bad], told.span)) <= MOST_BINS


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.012, "12ms"), (3.44, "3.4s"), (42.2, "42s"), (125, "2m5s"), (12000, "3h20m")],
)
def test_times_are_told_as_one_says_them(seconds: float, shown: str) -> None:
    assert series.told_time(seconds) == shown


@pytest.mark.parametrize(("number", "shown"), [(0, "0"), (0.01467, "0.0147"), (3062.7, "3,063")])
def test_numbers_are_told_to_three_digits(number: float, shown: str) -> None:
    assert series.told_number(number) == shown
