"""picture - totals and bins as a PNG or SVG: throughput, cores in use, waiting times.

Owns   the only use of matplotlib, an optional extra; each function that needs it imports it.
Never  opens a window or leaves a global setting changed; the same numbers make the same SVG.
Fails  SpoolError: matplotlib is missing, the suffix is none of ours, or there is nothing to draw.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from spool import units
from spool.errors import SpoolError
from spool.queue.claim import printable
from spool.report.series import Series, Spread, Totals, told_hours, told_number, told_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
SIZE_INCHES = (10.0, 9.0)
PNG_DOTS_PER_INCH = 144
# the palette of Okabe and Ito, which colour-blind readers can tell apart
BLUE, SKY, GREEN, RED, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00"
INK, FAINT = "#333333", "#DDDDDD"
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
MANY = 100  # ends, from which on a curve shows no steps
SHORTEST_S = 0.001  # stamps are of milliseconds, and a logarithmic axis knows no zero
TICKS_S = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 86400, 864000, 8640000, 86400000)
TICK_NAMES = (
    "1 ms", "10 ms", "0.1 s", "1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "1 d", "10 d",
    "100 d", "1000 d",
)  # fmt: skip
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "spool",
    "text.parse_math": False,
}


def check(path: str) -> None:
    """Raise SpoolError if no picture can be drawn to path; asked before the work, not after."""
    if not path.lower().endswith(SUFFIXES):
        raise SpoolError(f"{path}: a picture is a .png or an .svg. Say --picture report.png")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise SpoolError("matplotlib is not installed. Run: pip install 'spool[report]'") from None


def draw(path: str, told: Totals, bins: Series, title: str = "") -> None:
    """Write the picture to path, as PNG or SVG by its suffix. Raises SpoolError, OSError."""
    check(path)
    if not told.ends:
        raise SpoolError("there is nothing to draw yet: no task has ended. Run: spool launcher")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        engine = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, hspace=0.05)
        figure = Figure(figsize=SIZE_INCHES, layout=engine)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(3, 1, height_ratios=(3, 3, 2.6))
        above = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=above)
        edges = _moments(bins)
        _throughput(above, edges, bins, told)
        _cores(below, edges, bins, told)
        _clock(above, below, edges)
        _waiting(figure.add_subplot(grid[2]), told)
        figure.align_ylabels()
        figure.suptitle(_title(told, title), x=0.012, ha="left", fontsize=13, weight="bold")
        kind = path.lower()[-3:]
        empty = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(path, format=kind, dpi=PNG_DOTS_PER_INCH, metadata=empty)


def _title(told: Totals, title: str) -> str:
    first, last = (units.stamp(moment)[:16].replace("T", " ") for moment in told.span)
    if first[:10] == last[:10]:
        last = last[11:]
    plain = printable(title).encode("ascii", "backslashreplace").decode()  # as our font has it
    return f"{plain}  ·  {first} – {last} UTC" if plain else f"{first} – {last} UTC"


def _moments(bins: Series) -> list[float]:
    """The bins' edges as matplotlib counts time."""
    from matplotlib.dates import date2num

    return [float(date2num(datetime.fromtimestamp(edge, UTC))) for edge in bins.edges()]


# -- panels --------------------------------------------------------------------------------------


def _throughput(axes: Axes, edges: list[float], bins: Series, told: Totals) -> None:
    """Ends by outcome, stacked; by the hour where there is less than one a minute."""
    kinds = (
        (bins.finished, BLUE, f"{told.finished:,} finished"),
        (bins.failed, RED, f"{told.failed:,} failed"),
        (bins.interrupted, YELLOW, f"{told.interrupted:,} interrupted"),
    )
    peak = max(map(sum, zip(*(counts for counts, _, _ in kinds), strict=True)))
    unit, unit_s = ("minute", 60) if peak * 60 >= bins.step_s else ("hour", 3600)
    floor = [0.0] * len(bins)
    for counts, colour, label in kinds:
        if not any(counts):
            continue
        top = [low + count * unit_s / bins.step_s for low, count in zip(floor, counts, strict=True)]
        axes.stairs(top, edges, baseline=floor, fill=True, color=colour, label=label)
        floor = top
    axes.set_ylim(0, max(floor) * 1.08)
    axes.set_title(f"Throughput: {told_number(told.finished_per_hour)} tasks finished an hour")
    axes.set_ylabel(f"ends a {unit}")
    _legend(axes)


def _cores(axes: Axes, edges: list[float], bins: Series, told: Totals) -> None:
    """The cores in use under the line of those that launchers had."""
    axes.stairs(bins.busy_cores, edges, fill=True, color=SKY, label="in use")
    axes.stairs(bins.granted_cores, edges, baseline=None, color=INK, lw=1.4, label="granted")
    axes.set_ylim(0, max(*bins.granted_cores, *bins.busy_cores, 1e-9) * 1.08)
    if told.granted_core_s:
        whole = told_hours(told.granted_core_s)
        axes.set_title(f"Cores: {told.utilisation:.1%} of {whole} granted core-hours in use")
    else:
        axes.set_title(f"Cores: {told_hours(told.used_core_s)} core-hours in use")
    axes.set_ylabel("cores")
    _legend(axes)


def _clock(above: Axes, below: Axes, edges: list[float]) -> None:
    """One time axis for both, in UTC, its labels under the lower one."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=UTC, minticks=4, maxticks=10)
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
    below.set_xlim(edges[0], edges[-1])
    below.set_xlabel("time (UTC)")
    above.tick_params(labelbottom=False)


def _waiting(axes: Axes, told: Totals) -> None:
    """Which share of the tasks waited, and which share ran, no longer than so long."""
    waiting = told.waiting
    axes.set_xscale("log")
    _curve(axes, told.running, GREEN, label="ran (start to end)", linestyle="--")
    _curve(axes, waiting, BLUE, label="waited (submission to start)", lw=2)
    for name, time_s, part in (
        ("50 %", waiting.p50_s, 0.5),
        ("90 %", waiting.p90_s, 0.9),
        ("99 %", waiting.p99_s, 0.99),
    ):
        if waiting.count:
            at = (max(time_s, SHORTEST_S), part)
            axes.plot(*at, "o", color=BLUE, ms=5)
            axes.annotate(
                f"{name} {told_time(time_s)}", at, xytext=(-8, 0), textcoords="offset points",
                ha="right", va="center", color=BLUE, fontsize=9, bbox=BEHIND,
            )  # fmt: skip
    _times(axes, (waiting, told.running))
    half = f": half the tasks started within {told_time(waiting.p50_s)}" if waiting.count else ""
    axes.set_title(f"Waiting time{half}")
    axes.set_ylim(0, 1.04)
    axes.set_yticks((0, 0.25, 0.5, 0.75, 1), ("0 %", "25 %", "50 %", "75 %", "100 %"))
    axes.set_ylabel("share of tasks")
    axes.set_xlabel("no longer than")
    _legend(axes)


def _curve(axes: Axes, spread: Spread, colour: str, **look: object) -> None:
    if spread.count:
        times_s = [max(time_s, SHORTEST_S) for time_s in spread.percentiles_s]
        parts = [number / (len(times_s) - 1) for number in range(len(times_s))]
        shape = "steps-post" if spread.count < MANY else "default"
        axes.plot(times_s, parts, color=colour, drawstyle=shape, **look)


def _times(axes: Axes, spreads: Sequence[Spread]) -> None:
    """A logarithmic axis whose ticks are times as one says them."""
    from matplotlib.ticker import NullLocator

    known = [spread.percentiles_s for spread in spreads if spread.count]
    least = max(SHORTEST_S, min(curve[0] for curve in known))
    most = max(SHORTEST_S, *(curve[-1] for curve in known))
    low = max((tick for tick in TICKS_S if tick <= least), default=TICKS_S[0])
    high = min((tick for tick in TICKS_S if tick > most), default=TICKS_S[-1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(TICKS_S, TICK_NAMES)
    axes.set_xlim(low * 0.9, high * 1.1)


def _legend(axes: Axes) -> None:
    """At the right end of the title's line, where it can hide nothing."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=len(handles), borderaxespad=0.2,
            handlelength=1.4, columnspacing=1.4, fontsize=9,
        )  # fmt: skip
