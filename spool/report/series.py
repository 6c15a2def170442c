"""series - journal events to numbers: throughput, cores in use, waiting times.

Owns   totals and bins, the choice of a step.
Never  touches the disk or the clock, nor keeps an event: a pass holds bins, a row for each owner
       and workflow, and two numbers for each end.
Fails  SpoolError: a step so small that the bins would be too many.

Events come journal by journal, in no order of time; what one says is read in `ends`.
The fields of `Totals` and `Series` are the keys of `spool report --json`; moments are seconds since
the epoch.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spool import units
from spool.errors import SpoolError
from spool.report.ends import EVERYTHING, End, Event, Grants, Outcome, Span, Wanted, end_of

STEPS_S = (
    1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800,
)  # fmt: skip
MOST_BINS = 200
MOST_ASKED = 10_000
MOST_ROWS = 10_000
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Spread:
    """How a time is spread over ends; percentiles_s are all 101 of them, from least to most."""

    count: int = 0
    mean_s: float = 0.0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0
    percentiles_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One owner or workflow. A workflow is granted nothing: its utilisation is None."""

    name: str
    finished: int
    failed: int
    interrupted: int
    used_core_s: float
    used_gpu_s: float
    granted_core_s: float
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """All ends in one. states counts attempts by where they led: READY and WAITING mean again.

    first and last bound what is told. Lost cores are used ones too: those of attempts whose
    launcher or node died. Granted cores are those of all owners, whatever workflow is asked for. A
    hand's tasks stand in the row of the launcher that lent it its cores.
    """

    first: float
    last: float
    ends: int
    states: Mapping[str, int]
    finished: int
    failed: int
    interrupted: int
    finished_per_hour: float
    used_core_s: float
    used_gpu_s: float
    granted_core_s: float
    utilisation: float
    waiting: Spread
    running: Spread
    owners: tuple[Row, ...]
    workflows: tuple[Row, ...]
    lost_core_s: float = 0.0

    @property
    def span(self) -> Span:
        """From the first moment to the last."""
        return self.first, self.last


@dataclass(frozen=True, slots=True)
class Series:
    """Bins of step_s seconds from start on: counts of ends, and mean cores in each."""

    start: float
    step_s: float
    finished: tuple[int, ...]
    failed: tuple[int, ...]
    interrupted: tuple[int, ...]
    busy_cores: tuple[float, ...]
    granted_cores: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.finished)

    def edges(self) -> list[float]:
        """Where the bins begin, and where the last one ends."""
        return [self.start + number * self.step_s for number in range(len(self) + 1)]

    def utilisation(self, number: int) -> float:
        """The share of the granted cores that was in use in one bin, 0 to 1."""
        return share(self.busy_cores[number], self.granted_cores[number])


def share(used: float, granted: float) -> float:
    """Their ratio, 0 to 1; 0 where nothing was granted."""
    return min(1.0, used / granted) if granted > 0 else 0.0


# -- totals --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """Counts in the making."""

    counts: Counter[Outcome] = field(default_factory=Counter)
    core_s: float = 0.0
    gpu_s: float = 0.0
    granted_core_s: float = 0.0

    def add(self, other: _Tally) -> None:
        self.counts.update(other.counts)
        self.core_s += other.core_s
        self.gpu_s += other.gpu_s
        self.granted_core_s += other.granted_core_s

    def row(self, name: str, *, granted: bool) -> Row:
        finished, failed, interrupted = (self.counts[outcome] for outcome in Outcome)
        used = share(self.core_s, self.granted_core_s) if granted else None
        return Row(
            name, finished, failed, interrupted, self.core_s, self.gpu_s, self.granted_core_s, used
        )


class _Tallies(dict[str, _Tally]):
    """A tally for each name; past MOST_ROWS names, one for all others."""

    def of(self, name: str) -> _Tally:
        if name not in self and len(self) >= MOST_ROWS:
            name = OTHERS
        return self.get(name) or self.setdefault(name, _Tally())

    def rows(self, *, granted: bool) -> tuple[Row, ...]:
        """Those that used most first."""
        found = [tally.row(name, granted=granted) for name, tally in self.items()]
        return tuple(sorted(found, key=lambda row: (-row.used_core_s, row.name)))


class _Sum:
    """One pass over the events."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.grants = Grants()
        self.states: Counter[str] = Counter()
        self.whole, self.owners, self.workflows = _Tally(), _Tallies(), _Tallies()
        self.waits_s, self.runs_s = array("d"), array("d")
        self.lost_core_s = 0.0
        self.first, self.last = math.inf, -math.inf

    def see(self, event: Event) -> None:
        self.grants.see(event)
        if (end := end_of(event)) is None or not self.wanted.takes(end):
            return
        if not (part := self.wanted.clip(end.started, end.time)):
            return
        self._stretch(part)
        if end.lost:
            self.lost_core_s += end.cores * (part[1] - part[0])
        tallies = (self.whole, self.owners.of(end.owner), self.workflows.of(end.workflow))
        for tally in tallies:
            tally.core_s += end.cores * (part[1] - part[0])
            tally.gpu_s += end.gpus * (part[1] - part[0])
        if end.time < self.wanted.until:
            for tally in tallies:
                tally.counts[end.outcome] += 1
            self._count(end)

    def _stretch(self, part: Span) -> None:
        self.first, self.last = min(self.first, part[0]), max(self.last, part[1])

    def _count(self, end: End) -> None:
        self.states[end.state] += 1
        self.runs_s.append(end.run_s)
        if end.wait_s is not None:
            self.waits_s.append(end.wait_s)

    def grant(self) -> None:
        """Add what was granted, now that the bounds are known: of a workflow, its tasks' bounds."""
        spans = list(self.grants.spans())
        if not self.wanted.workflow:
            for _, begin, end, _ in spans:
                if part := self.wanted.clip(begin, end):
                    self._stretch(part)
        for owner, begin, end, cores in spans:
            core_s = cores * max(0.0, min(end, self.last) - max(begin, self.first))
            self.whole.granted_core_s += core_s
            if core_s or owner in self.owners:
                self.owners.of(owner).granted_core_s += core_s

    def join_hands(self) -> None:
        for hand, lender in self.grants.lenders().items():
            if hand in self.owners:
                self.owners.of(lender).add(self.owners.pop(hand))


def totals(events: Iterable[Event], wanted: Wanted = EVERYTHING) -> Totals:
    """Everything in one; ends is 0 where nothing wanted has ended."""
    gathered = _Sum(wanted)
    for event in events:
        gathered.see(event)
    gathered.grant()
    gathered.join_hands()
    whole = gathered.whole.row("", granted=True)
    if gathered.last < gathered.first:
        gathered.first = gathered.last = 0.0
    hours = (gathered.last - gathered.first) / 3600
    return Totals(
        first=gathered.first,
        last=gathered.last,
        ends=gathered.states.total(),
        states=dict(sorted(gathered.states.items())),
        finished=whole.finished,
        failed=whole.failed,
        interrupted=whole.interrupted,
        finished_per_hour=whole.finished / hours if hours else 0.0,
        used_core_s=whole.used_core_s,
        used_gpu_s=whole.used_gpu_s,
        granted_core_s=whole.granted_core_s,
        utilisation=whole.utilisation or 0.0,
        waiting=spread(gathered.waits_s),
        running=spread(gathered.runs_s),
        owners=gathered.owners.rows(granted=True),
        workflows=gathered.workflows.rows(granted=False),
        lost_core_s=gathered.lost_core_s,
    )


def spread(times_s: Iterable[float]) -> Spread:
    """Quantiles by nearest rank: each is a time that did occur. To the millisecond, as stamps."""
    ordered = sorted(times_s)
    if not ordered:
        return Spread()

    def quantile(part: float) -> float:
        return round(ordered[max(0, math.ceil(part * len(ordered)) - 1)], 3)

    return Spread(
        count=len(ordered),
        mean_s=round(math.fsum(ordered) / len(ordered), 3),
        p50_s=quantile(0.5),
        p90_s=quantile(0.9),
        p99_s=quantile(0.99),
        max_s=quantile(1.0),
        percentiles_s=tuple(quantile(number / 100) for number in range(101)),
    )


# -- bins ----------------------------------------------------------------------------------------


class _Area:
    """Cores times seconds by bin, added in constant time however many bins a stretch covers."""

    def __init__(self, count: int, step_s: float) -> None:
        self.step_s = step_s
        self.edge_core_s = [0.0] * count
        self.change = [0] * (count + 1)

    def add(self, begin_s: float, end_s: float, cores: int) -> None:
        """A stretch, in seconds from the first bin's start."""
        last = len(self.edge_core_s) - 1
        first_bin = min(max(0, int(begin_s / self.step_s)), last)
        last_bin = min(max(0, int(end_s / self.step_s)), last)
        if first_bin == last_bin:
            self.edge_core_s[first_bin] += cores * (end_s - begin_s)
            return
        self.edge_core_s[first_bin] += cores * ((first_bin + 1) * self.step_s - begin_s)
        self.edge_core_s[last_bin] += cores * (end_s - last_bin * self.step_s)
        self.change[first_bin + 1] += cores
        self.change[last_bin] -= cores

    def means(self) -> tuple[float, ...]:
        """Mean cores in each bin."""
        level, found = 0, []
        for core_s, change in zip(self.edge_core_s, self.change, strict=False):
            level += change
            found.append(core_s / self.step_s + level)
        return tuple(found)


class _Bins:
    """The second pass: the bins between two moments."""

    def __init__(self, span: Span, wanted: Wanted, step_s: float) -> None:
        self.wanted, self.step_s = wanted, step_s
        self.first, self.last = span
        self.start, self.count = _grid(span, step_s)
        self.grants = Grants()
        self.busy, self.granted = _Area(self.count, step_s), _Area(self.count, step_s)
        self.counts = {outcome: [0] * self.count for outcome in Outcome}

    def see(self, event: Event) -> None:
        self.grants.see(event)
        if (end := end_of(event)) is None or not self.wanted.takes(end):
            return
        self._fill(self.busy, end.started, end.time, end.cores)
        if self.first <= end.time <= self.last and end.time < self.wanted.until:
            number = int((end.time - self.start) / self.step_s)
            self.counts[end.outcome][min(max(0, number), self.count - 1)] += 1

    def _fill(self, area: _Area, begin: float, end: float, cores: int) -> None:
        begin, end = max(begin, self.first), min(end, self.last)
        if begin < end:
            area.add(begin - self.start, end - self.start, cores)

    def series(self) -> Series:
        for _, begin, end, cores in self.grants.spans():
            self._fill(self.granted, begin, end, cores)
        return Series(
            start=self.start,
            step_s=self.step_s,
            finished=tuple(self.counts[Outcome.FINISHED]),
            failed=tuple(self.counts[Outcome.FAILED]),
            interrupted=tuple(self.counts[Outcome.INTERRUPTED]),
            busy_cores=self.busy.means(),
            granted_cores=self.granted.means(),
        )


def series(
    events: Iterable[Event],
    span: Span,
    wanted: Wanted = EVERYTHING,
    *,
    step_s: float | None = None,
) -> Series:
    """The bins of a span (that of `totals` of the same events); without step_s, at most 200.

    Raises SpoolError if step_s is too small for the span.
    """
    step_s = step_for(span) if step_s is None else step_s
    if _grid(span, step_s)[1] > MOST_ASKED:
        least = units.print_duration(step_for(span, MOST_ASKED))
        raise SpoolError(
            f"a step of {step_s:g}s makes more than {MOST_ASKED:,} bins. Say --step {least} or more"
        )
    bins = _Bins(span, wanted, step_s)
    for event in events:
        bins.see(event)
    return bins.series()


def step_for(span: Span, most: int = MOST_BINS) -> float:
    """The first step of the ladder that makes at most `most` bins."""
    for step_s in STEPS_S:
        if _grid(span, step_s)[1] <= most:
            return step_s
    return STEPS_S[-1] * math.ceil((span[1] - span[0]) / STEPS_S[-1] / (most - 1))


def _grid(span: Span, step_s: float) -> tuple[float, int]:
    """Where the first bin starts, a whole multiple of the step, and how many there are."""
    start = math.floor(span[0] / step_s) * step_s
    return start, max(1, math.ceil((span[1] - start) / step_s))


def coarser(fine: Series, most: int) -> Series:
    """The same in at most `most` bins: a step of the ladder where one is a multiple of theirs."""
    if len(fine) <= most:
        return fine
    span = (fine.start, fine.start + len(fine) * fine.step_s)
    fitting = (step for step in STEPS_S if step % fine.step_s == 0 and _grid(span, step)[1] <= most)
    step_s = next(fitting, fine.step_s * math.ceil(len(fine) / (most - 1)))
    start, _ = _grid(span, step_s)
    each, before = round(step_s / fine.step_s), round((fine.start - start) / fine.step_s)

    def parts(values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for at in range(-before, len(values), each):
            yield values[max(0, at) : at + each]

    return Series(
        start=start,
        step_s=step_s,
        finished=tuple(map(sum, parts(fine.finished))),
        failed=tuple(map(sum, parts(fine.failed))),
        interrupted=tuple(map(sum, parts(fine.interrupted))),
        busy_cores=tuple(sum(part) / each for part in parts(fine.busy_cores)),
        granted_cores=tuple(sum(part) / each for part in parts(fine.granted_cores)),
    )


# -- words ---------------------------------------------------------------------------------------


def told_time(seconds: float) -> str:
    """A time for a person, short ones included: 12ms, 3.4s, 2m5s, 3h20m."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if 0 < seconds < 10:
        return f"{seconds:.1f}s"
    return units.print_duration(seconds) if seconds < 3600 else units.print_age(seconds)


def told_number(number: float) -> str:
    """To three digits, but never fewer than its whole part has: 0.015, 9.27, 3,063."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def told_hours(core_s: float) -> str:
    """Core-seconds as core-hours."""
    return told_number(core_s / 3600)
