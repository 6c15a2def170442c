"""report - how tasks ended and how well the cores were used, as text, JSON or a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from spool import units
from spool.commands import shared
from spool.errors import SpoolError
from spool.queue import journal
from spool.queue.layout import Tree

if TYPE_CHECKING:
    from spool.report.ends import Wanted
    from spool.report.series import Row, Series, Spread, Totals

BAR_WIDTH = 20
MOST_LINES = 24
MOST_ROWS = 40
ROW_HEADERS = ("finished", "failed", "interrupted", "core-hours", "granted", "in use")


class Step(shared.Duration):
    """A duration longer than none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as given, once it is sound."""
        text = super().convert(value, param, ctx)
        if not units.duration(text):
            self.fail("expected a step longer than 0s", param, ctx)
        return text


@click.command("report")
@click.option("--since", type=shared.Moment(), help="Only what was since: 2d (ago), or a date.")
@click.option("--until", type=shared.Moment(), help="Only what was before: 2h (ago), or a date.")
@click.option("--workflow", default="", help="Only tasks of this workflow (a name or a glob).")
@click.option("--by", type=click.Choice(["owner", "workflow"]), help="A line for each, too.")
@click.option("--picture", metavar="FILE", help="Draw to a .png or .svg (needs matplotlib).")
@click.option("--step", type=Step(), help="Seconds, or a duration such as 1m, that a bin covers.")
@click.option("--json", "as_json", is_flag=True, help="Totals and series as one JSON object.")
@click.pass_context
def report_command(ctx: click.Context, /, picture: str | None, as_json: bool, **keys: Any) -> None:
    """Tell throughput, use of cores and waiting times, from the launchers' journals.

    A task counts each time an attempt of it ends; one that was cancelled or whose launcher ended
    counts as interrupted. Cores count as granted while a launcher ran.

    \b
      spool report                          all there is
      spool report --since 2d --by workflow
      spool report --picture report.png     three panels; .svg works too
    """
    tree, _ = shared.tree_of(ctx)
    if picture is not None:
        from spool.report.picture import check

        check(picture)
    wanted = _wanted(keys)
    told, bins = _read(tree, wanted, keys["step"])
    if picture is not None:
        _draw(tree, picture, told, bins, wanted.workflow)
    if as_json:
        shared.print_json({"totals": told, "series": bins})
    elif bins is None:
        click.echo(_nothing(wanted))
    else:
        click.echo("\n\n".join(_parts(told, bins, keys["by"])))


def _wanted(keys: dict[str, Any]) -> Wanted:
    from spool.report.ends import Wanted

    since, until = keys["since"], keys["until"]
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since must be earlier than --until")
    return Wanted(
        since=-math.inf if since is None else since,
        until=math.inf if until is None else until,
        workflow=keys["workflow"],
    )


def _read(tree: Tree, wanted: Wanted, step: str | None) -> tuple[Totals, Series | None]:
    """Two passes over the journals: the totals tell the span that the bins must cover."""
    from spool.report import series

    told = series.totals(shared.counted(journal.read(tree), "events"), wanted)
    if not told.ends:
        return told, None
    step_s = units.duration(step) if step else None
    return told, series.series(journal.read(tree), told.span, wanted, step_s=step_s)


def _nothing(wanted: Wanted) -> str:
    if wanted.workflow or wanted.since > -math.inf or wanted.until < math.inf:
        return "No task of that workflow and time has ended. Run: spool report"
    return "No task has ended yet. Run: spool launcher"


def _draw(tree: Tree, path: str, told: Totals, bins: Series | None, workflow: str) -> None:
    from spool.report import picture

    if bins is None:
        raise SpoolError("there is nothing to draw yet: no task has ended. Run: spool launcher")
    title = f"workflow {workflow[:60]}" if workflow else tree.root.rpartition("/")[2]
    picture.draw(path, told, bins, title)
    click.echo(f"drew {path}", err=True)


# -- as text -------------------------------------------------------------------------------------


def _parts(told: Totals, bins: Series, by: str | None) -> Iterator[str]:
    """The parts of the report, to be parted by empty lines."""
    from spool.report import series, tables

    yield tables.table(_totals(told))
    rows = told.owners if by == "owner" else told.workflows
    if by:
        yield tables.table(map(_row, rows[:MOST_ROWS]), (by, *ROW_HEADERS))
    if by and len(rows) > MOST_ROWS:
        yield f"and {len(rows) - MOST_ROWS:,} more, all of them with --json"
    headers = ("from (UTC)", "finished", "failed", "interrupted", "cores", "of", "in use")
    yield tables.table(_bins(series.coarser(bins, MOST_LINES)), headers)


def _totals(told: Totals) -> Iterator[tuple[str, str]]:
    from spool.report.series import told_hours, told_number, told_time

    first, last = (units.stamp(moment)[:16].replace("T", " ") for moment in told.span)
    yield "time", f"{first} to {last} UTC, {told_time(told.last - told.first)}"
    states = "  ".join(f"{state or '?'} {count:,}" for state, count in told.states.items())
    yield "ends", f"{told.ends:,}  ({states})"
    yield "throughput", f"{told_number(told.finished_per_hour)} finished an hour"
    granted = f", {told.utilisation:.1%} of {told_hours(told.granted_core_s)} granted"
    known = granted if told.granted_core_s else ""
    lost = f"; {told_hours(told.lost_core_s)} of them lost" if told.lost_core_s else ""
    yield "core-hours", f"{told_hours(told.used_core_s)} used{known}{lost}"
    if told.used_gpu_s:
        yield "gpu-hours", f"{told_hours(told.used_gpu_s)} used"
    yield "waited", _spread(told.waiting)
    yield "ran", _spread(told.running)


def _spread(times: Spread) -> str:
    from spool.report.series import told_time

    if not times.count:
        return "unknown"
    marks = (("half", times.p50_s), ("90%", times.p90_s), ("99%", times.p99_s))
    within = "  ".join(f"{name} {told_time(time_s)}" for name, time_s in marks)
    return f"{within}  longest {told_time(times.max_s)}"


def _row(row: Row) -> Sequence[object]:
    from spool.report.series import told_hours

    granted, share = "-", "-"
    if row.utilisation is not None and row.granted_core_s:
        granted, share = told_hours(row.granted_core_s), f"{row.utilisation:.1%}"
    used = told_hours(row.used_core_s)
    return row.name or "(none)", row.finished, row.failed, row.interrupted, used, granted, share


def _bins(bins: Series) -> Iterator[Sequence[object]]:
    shown = 16 if bins.step_s % 60 == 0 else 19
    for number, start in enumerate(bins.edges()[:-1]):
        share = bins.utilisation(number)
        yield (
            units.stamp(start)[:shown].replace("T", " "),
            bins.finished[number],
            bins.failed[number],
            bins.interrupted[number],
            round(bins.busy_cores[number], 1),
            round(bins.granted_cores[number], 1),
            f"{bar(share)} {share:4.0%}",
        )


def bar(share: float) -> str:
    """A share of 0 to 1, as a bar; what is more than nothing shows."""
    full = max(round(share * BAR_WIDTH), 1 if share > 0 else 0)
    return "#" * full + "." * (BAR_WIDTH - full)
