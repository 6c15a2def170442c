"""spool report: what a person sees of the journals, as text, JSON and a picture."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from conftest import make_tree, run_spool

from spool import units
from spool.api import Spool
from spool.commands.report import MOST_LINES, bar
from spool.errors import SpoolError
from spool.queue.journal import Journal
from spool.queue.layout import Tree
from spool.report import picture, series

Ran = subprocess.CompletedProcess[str]
Command = Callable[..., Ran]
PNG = b"\x89PNG\r\n\x1a\n"
SVG = "{http://www.w3.org/2000/svg}svg"
ERROR, WRONG_USAGE = 1, 2
T0 = 1_795_600_800.0  # 2026-11-25T10:00:00Z


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The root of a spool in which a launcher has run four tasks: one failed."""
    tree = make_tree(tmp_path_factory.mktemp("ran") / "spool", '[door]\nquiet = "0.2s"\n')
    spool = Spool(tree.root)
    for workflow in ("g2", "g2", "relax"):
        spool.submit(["sleep", "0.2"], workflow=workflow)
    spool.submit(["false"])
    launched = run_spool(tree.root, "launcher", "--idle-timeout", "0", "--quiet")
    assert launched.returncode == 0, launched
    return tree.root


@pytest.fixture
def look(ran: str) -> Command:
    """look() runs `spool report` on the spool in which a launcher has run."""
    return lambda *words, **options: run_spool(ran, "report", *words, **options)


def told(found: Ran) -> dict[str, Any]:
    """The one JSON object that was printed."""
    assert (found.returncode, found.stderr) == (0, ""), found
    (line,) = found.stdout.splitlines()
    whole: dict[str, Any] = json.loads(line)
    return whole


def events(hours: int = 6) -> list[dict[str, Any]]:
    """A launcher of 8 cores that ends a task every minute for some hours, every ninth badly."""
    owner = {"owner": "launcher.n.0.1.a", "cores": 8}
    made: list[dict[str, Any]] = [{"time": units.stamp(T0), "what": "opened", **owner}]
    for number in range(1, hours * 60):
        end = T0 + 60 * number
        made.append(
            {
                "time": units.stamp(end),
                "what": "interrupted" if number % 50 == 0 else "exit",
                "id": f"t.26112510-00-{number:010}",
                "attempt": 1,
                "started": units.stamp(end - 50),
                "submitted": units.stamp(T0 - 60),
                "elapsed_s": 50.0,
                "state": "FAILED" if number % 9 == 0 else "FINISHED",
                "workflow": "g2" if number % 2 else "",
                "owner": owner["owner"],
                "cores": 6,
            }
        )
    return [*made, {"time": units.stamp(T0 + hours * 3600), "what": "closed", **owner}]


def numbers(hours: int = 6) -> tuple[series.Totals, series.Series]:
    found = series.totals(events(hours))
    return found, series.series(events(hours), found.span)


def keep(tree: Tree, lines: list[dict[str, Any]]) -> None:
    journal = Journal(tree, "launcher.n.0.1.a")
    for line in lines:
        journal.note(line)
    journal.write()


# -- text and JSON -------------------------------------------------------------------------------


def test_a_real_run_is_told_as_text(look: Command) -> None:
    found = look("--by", "workflow")
    assert (found.returncode, found.stderr) == (0, "")
    assert "ends        4  (FAILED 1  FINISHED 3)" in found.stdout
    rows = [line.split()[:4] for line in found.stdout.splitlines()]
    assert ["g2", "2", "0", "0"] in rows
    assert ["relax", "1", "0", "0"] in rows
    assert ["(none)", "0", "1", "0"] in rows


def test_core_hours_of_lost_attempts_are_told_as_used_and_lost(
    tree: Tree, command: Command
) -> None:
    lost = {"what": "lost", "state": "READY", "id": "x", "cores": 8, "owner": "o"}
    keep(tree, [*events(), {"time": units.stamp(T0 + 7200), **lost, "started": units.stamp(T0)}])
    found = command("report")
    assert "; 16 of them lost" in found.stdout


def test_a_real_run_is_told_as_json(look: Command) -> None:
    whole = told(look("--json", "--step", "1s"))
    totals, bins = whole["totals"], whole["series"]
    assert totals["states"] == {"FAILED": 1, "FINISHED": 3}
    assert totals["waiting"]["count"] == totals["running"]["count"] == 4
    assert 0.6 <= totals["used_core_s"] <= totals["granted_core_s"]
    assert 0 < totals["utilisation"] <= 1
    (owner,) = totals["owners"]
    assert owner["name"].startswith("launcher.") and owner["finished"] == 3
    assert bins["step_s"] == 1 and sum(bins["finished"]) == 3 and sum(bins["failed"]) == 1
    assert sum(bins["busy_cores"]) == pytest.approx(totals["used_core_s"], abs=1e-3)


def test_the_keys_of_the_json_are_these(look: Command) -> None:
    whole = told(look("--json"))
    assert list(whole) == ["totals", "series"]
    assert list(whole["totals"]) == [
        "first", "last", "ends", "states", "finished", "failed", "interrupted",
        "finished_per_hour", "used_core_s", "used_gpu_s", "granted_core_s", "utilisation",
        "waiting", "running", "owners", "workflows", "lost_core_s",
    ]  # fmt: skip
    assert list(whole["totals"]["waiting"]) == [
        "count", "mean_s", "p50_s", "p90_s", "p99_s", "max_s", "percentiles_s",
    ]  # fmt: skip
    assert list(whole["totals"]["owners"][0]) == [
        "name", "finished", "failed", "interrupted", "used_core_s", "used_gpu_s",
        "granted_core_s", "utilisation",
    ]  # fmt: skip
    assert list(whole["series"]) == [
        "start", "step_s", "finished", "failed", "interrupted", "busy_cores", "granted_cores",
    ]  # fmt: skip


def test_filters_narrow_what_is_told(look: Command) -> None:
    assert told(look("--json", "--workflow", "g*"))["totals"]["finished"] == 2
    assert told(look("--json", "--since", "1h"))["totals"]["ends"] == 4
    none = told(look("--json", "--until", "2026-01-01"))
    assert none["totals"]["ends"] == 0 and none["series"] is None


def test_a_long_story_is_told_in_few_lines(tree: Tree, command: Command) -> None:
    keep(tree, events())
    found = command("report", "--by", "owner", "--step", "1m")
    assert found.returncode == 0
    bins = [line for line in found.stdout.splitlines() if line.startswith("2026-11-25 1")]
    assert len(bins) == 12 <= MOST_LINES
    assert bins[1].split() == [
        "2026-11-25", "10:30", "26", "3", "1", "5", "8", bar(0.625), "62%",
    ]  # fmt: skip
    assert "core-hours  29.9 used, 62.3% of 48 granted" in found.stdout


def test_nothing_to_report_is_said_kindly(command: Command, look: Command) -> None:
    found = command("report")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "No task has ended yet. Run: spool launcher\n"
    assert told(command("report", "--json"))["series"] is None
    assert "No task of that workflow and time has ended" in look("--workflow", "zzz").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--step", "0"), "expected a step longer than 0s"),
        (("--step", "soon"), "expected a duration such as"),
        (("--since", "1h", "--until", "2h"), "--since must be earlier than --until"),
        (("--by", "moon"), "'owner', 'workflow'"),
    ],
)
def test_wrong_usage_says_what_is_allowed(look: Command, words: tuple[str, ...], says: str) -> None:
    found = look(*words)
    assert (found.returncode, found.stdout) == (WRONG_USAGE, "")
    assert says in found.stderr


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "." * 20), (0.001, "#" + "." * 19), (0.5, "#" * 10 + "." * 10)]
)
def test_a_bar_shows_whatever_is_more_than_nothing(share: float, shown: str) -> None:
    assert bar(share) == shown


# -- the picture ---------------------------------------------------------------------------------


def test_a_real_run_is_drawn(look: Command, tmp_path: Path) -> None:
    for name in ("a.png", "A.SVG"):
        found = look("--picture", str(tmp_path / name))
        assert found.returncode == 0, found
        assert "throughput" in found.stdout
        assert found.stderr == f"drew {tmp_path / name}\n"
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert ElementTree.parse(tmp_path / "A.SVG").getroot().tag == SVG


def test_json_and_a_picture_may_be_had_at_once(look: Command, tmp_path: Path) -> None:
    found = look("--json", "--picture", str(tmp_path / "a.svg"))
    assert json.loads(found.stdout)["totals"]["ends"] == 4
    assert (tmp_path / "a.svg").exists()


def test_the_same_numbers_make_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        picture.draw(str(tmp_path / name), *numbers(), "spool")
    for suffix in ("svg", "png"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    picture.draw(str(tmp_path / "a.svg"), *numbers(1))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("title", ["", "$x_1$ <&> \x07", "é\udcff一"])
def test_any_title_can_be_drawn(tmp_path: Path, title: str) -> None:
    picture.draw(str(tmp_path / "a.svg"), *numbers(1), title)
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag == SVG


@pytest.mark.parametrize("number", [1, 50])
@pytest.mark.parametrize("without", ["submitted", "started", "cores"])
def test_one_end_alone_can_be_drawn(tmp_path: Path, number: int, without: str) -> None:
    end = {**events()[number], "elapsed_s": 0, without: None}
    found = series.totals([end])
    picture.draw(str(tmp_path / "a.png"), found, series.series([end], found.span))
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_nothing_to_draw_is_an_error(command: Command, tmp_path: Path) -> None:
    found = command("report", "--picture", str(tmp_path / "a.png"))
    assert (found.returncode, found.stdout) == (ERROR, "")
    assert found.stderr.startswith("Error: there is nothing to draw yet")
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(SpoolError, match="nothing to draw"):
        picture.draw(str(tmp_path / "a.png"), series.totals([]), numbers()[1])


@pytest.mark.parametrize("name", ["a.pdf", "png", "a"])
def test_another_suffix_is_refused(look: Command, tmp_path: Path, name: str) -> None:
    found = look("--picture", name, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (ERROR, "")
    assert found.stderr.startswith(f"Error: {name}: a picture is a .png or an .svg.")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(look: Command, tmp_path: Path) -> None:
    found = look("--picture", str(tmp_path / "none" / "a.png"))
    assert found.returncode == ERROR
    assert found.stderr == f"Error: {tmp_path}/none/a.png: No such file or directory\n"


def test_a_missing_matplotlib_says_what_to_install(
    look: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    found = look("--picture", "a.png", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (ERROR, "")
    assert found.stderr == (
        "Error: matplotlib is not installed. Run: pip install 'spool[report]'\n"
    )
    assert look().returncode == 0
