"""spool service, queue and submit-launch as a person runs them, on this machine, with launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_SYNC, eventually, make_tree, run_spool, where
from crashing import findings, history_of, one

from spool.queue import allocations, files, layout, processes
from spool.queue.allocations import RUNNING
from spool.queue.layout import Tree

SETTINGS = f"""{NO_SYNC}
[service]
system = "local"
interval = "0.5s"
idle_timeout = "0.2s"
padding = "10s"
patience = "0s"
settle = "1h"
[queues.local]
nodes = "1-1"
cores = 2
time = "30s-10m"
"""
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _nothing_runs_on(tree: Tree) -> Iterator[None]:
    yield
    for name in allocations.names(tree):
        if any(one.asked.name == name for one in allocations.live(tree)):
            run_spool(tree.root, "queue", "cancel", name)
    for name in files.names(tree.folder("launchers")):
        processes.kill_marked(name)


def lines(said: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert said.returncode == 0, said.stderr
    return [json.loads(line) for line in said.stdout.splitlines()]


def live(tree: Tree) -> list[allocations.Allocation]:
    return list(allocations.live(tree))


def once(command: Command) -> list[dict[str, Any]]:
    return lines(command("service", "--once", "--json"))


# -- what ran, and what the books say ------------------------------------------------------------


def test_the_books_agree_with_what_ran(tree: Tree, command: Command) -> None:
    good = [one(tree, ["sleep", "0.5"], time_estimate="5s") for _ in range(4)]
    bad = one(tree, ["sh", "-c", "sleep 0.5; exit 3"], time_estimate="5s")
    words = [sys.executable, "-m", "spool.cli", "--spool", tree.root, "service"]
    service = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        done = lambda: all(where(tree, task).startswith("FINISHED") for task in good)  # noqa: E731
        eventually(done, "all ran", 60)
        second = command("service", "--once")
        assert second.returncode == 1 and "has its service already: service." in second.stderr
        found = command("check", "--repair")
        assert (found.returncode, found.stdout) == (0, "nothing is wrong\n")
        assert command("status").returncode == 0 and command("report").returncode == 0
        eventually(lambda: not live(tree), "its allocation ends", 60)
    finally:
        service.send_signal(signal.SIGTERM)
        said = service.communicate(timeout=60)[0]
    assert service.returncode == 0, said
    assert where(tree, bad).startswith("FAILED/exit-3")
    (line,) = allocations.ledger(tree)
    assert (line.outcome, line.tasks, line.failed, line.nodes) == ("completed", 4, 1, 1)
    assert 2.0 <= line.busy_core_s <= 4.0 and 0.5 <= line.wasted_core_s <= 1.0
    assert line.charged_node_s == line.ran_s and line.granted_core_s == pytest.approx(
        2 * line.ran_s, abs=0.2
    )
    assert line.busy_core_s + line.wasted_core_s <= line.granted_core_s
    (row,) = lines(command("queue", "--all", "--json"))
    assert (row["tasks"], row["failed"], row["state"]) == (4, 1, "completed")
    assert row["utilisation"] == pytest.approx(line.utilisation)
    assert line.name in command("queue").stdout
    assert f"asked: {line.name}, 1 node" in said and "completed, 4 tasks" in said
    told = [event["what"] for event in journal(tree)]
    assert set(told) == {"decision"} and len(told) < 15
    assert findings(tree) == []


def journal(tree: Tree) -> list[dict[str, Any]]:
    raw = files.read(tree.journal(layout.SERVICE_JOURNAL)) or b""
    return [json.loads(line) for line in raw.splitlines()]


def test_a_cancelled_allocation_gives_its_tasks_back_and_a_queued_one_never_runs(
    tree: Tree, command: Command
) -> None:
    task = one(tree, ["sleep", "600"], time_estimate="1m", grace="1s")
    (decided,) = once(command)
    (name,) = (asked["name"] for asked in decided["asked"])
    eventually(lambda: where(tree, task).startswith("RUNNING"), "it runs", 60)
    by_hand = command("submit-launch", "-t", "1m", check=True).stdout.strip()
    assert by_hand != name
    once(command)
    rows = {row["name"]: row for row in lines(command("queue", "--json"))}
    assert rows[name]["state"] == RUNNING and rows[by_hand]["state"] == "queued"
    assert command("queue", "cancel", by_hand, name).stdout.split() == [by_hand, name]
    eventually(lambda: where(tree, task).startswith("READY"), "it is given back", 60)
    assert [event["what"] for event in history_of(tree, task)] == ["start", "interrupted"]
    assert run_spool(tree.root, "hold", task).returncode == 0

    def over() -> bool:
        once(command)
        return not live(tree)

    eventually(over, "both are over", 60)
    told = {line.name: line for line in allocations.ledger(tree)}
    assert {line.outcome for line in told.values()} == {"cancelled"}
    assert all("asked by hand" in line.why for line in told.values())
    assert told[by_hand].ran_s == 0 and allocations.launchers(tree, by_hand) == []
    again = command("queue", "cancel", name)
    assert again.returncode == 1 and "is over already" in again.stderr
    unknown = command("queue", "cancel", "sp-aaaa-bbbbb")
    assert unknown.returncode == 1 and "there is no allocation" in unknown.stderr


def test_a_launcher_that_cannot_start_is_seen_and_left_alone(tree: Tree, command: Command) -> None:
    settings = SETTINGS.replace("[service]", '[service]\nsetup = ["echo no such module; exit 1"]')
    files.replace(tree.settings, f"format = 1\n{settings}".encode())
    one(tree, time_estimate="10s")
    first = command("service", "--once", "--quiet")
    assert (first.stdout, first.returncode) == ("", 0)
    eventually(lambda: "no such module" in command("service", "--once", "--quiet").stdout)
    said = command("service", "--dry-run").stdout
    assert "is left alone for" in said and "died at start" in said and "no such module" in said
    for _ in range(3):
        assert command("service", "--once", "--quiet").stdout == ""
    assert len(allocations.names(tree)) == 1
    assert [line.outcome for line in allocations.ledger(tree)] == ["failed"]


# -- by hand -------------------------------------------------------------------------------------


def test_a_launch_by_hand_prints_its_script_or_its_name(tree: Tree, command: Command) -> None:
    options = ("-t", "2m", "--mode", "serial", "--tag", "a b", "--workflow", "w")
    dry = command("submit-launch", "--dry-run", *options)
    assert dry.returncode == 0 and dry.stdout.startswith("#!/bin/sh\n")
    assert "--mode serial --workflow w --tag 'a b'" in dry.stdout
    assert allocations.names(tree) == []
    around = {**os.environ, "SPOOL_ALLOCATION": "sp-aaaa-bbbbb", "SPOOL_LAUNCHER": "outer"}
    (told,) = lines(command("submit-launch", "--json", *options, env=around))
    assert told["asked"]["by_hand"] and told["asked"]["selects"] == "serial, workflow w, tag a b"
    name = told["asked"]["name"]
    eventually(lambda: allocations.launchers(tree, name), "its launcher signs in", 60)
    assert allocations.names(tree) == [name], "and nowhere else"
    eventually(lambda: once(command) and not live(tree), "it leaves by itself", 60)
    (line,) = allocations.ledger(tree)
    assert (line.outcome, line.tasks) == ("completed", 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-N", "5"), "plays only 1"),
        (("-q", "nowhere"), "no queue 'nowhere'"),
        (("-t", "0s"), "walltime"),
        (("-N", "0"), "Invalid value"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    tree: Tree, command: Command, words: tuple[str, ...], says: str
) -> None:
    said = command("submit-launch", *words)
    assert said.returncode != 0 and says in said.stderr
    assert live(tree) == []


def test_the_budget_holds_for_what_is_asked_by_hand(tree: Tree, command: Command) -> None:
    Path(tree.settings).write_text(
        f"format = 1\n{SETTINGS}".replace("[service]", "[service]\nbudget = 1")
    )
    said = command("submit-launch", "-t", "2h")
    assert said.returncode == 1 and "the budget has 1.0 node-hours of 1.0" in said.stderr
    assert live(tree) == []


def test_an_allocation_asked_of_another_host_is_cancelled_there(
    tree: Tree, command: Command
) -> None:
    asked = allocations.Asked(
        name=allocations.new_name(tree), system="local", host="elsewhere", queue="local",
        nodes=1, walltime_s=60.0, time="",
    )  # fmt: skip
    allocations.make(tree, asked, "#!/bin/sh\n")
    said = command("queue", "cancel", asked.name)
    assert said.returncode == 1 and "local elsewhere: cancel it there" in said.stderr
    files.remove_tree(tree.allocation(asked.name))


# -- words of the service ------------------------------------------------------------------------


def test_a_check_tells_of_each_queue(tree: Tree, command: Command) -> None:
    said = command("service", "--check")
    assert said.returncode == 0 and said.stdout.startswith("ok  local: ")
    text = SETTINGS + '[queues.debug]\nnodes = "1-1"\n'
    files.replace(tree.settings, f"format = 1\n{text}".encode())
    said = command("service", "--check", "--json")
    told = {each["queue"]: each for each in map(json.loads, said.stdout.splitlines())}
    assert said.returncode == 6
    assert told["local"]["ok"] and not told["debug"]["ok"]
    assert "there is no such queue; there are local" in told["debug"]["said"]


def test_the_template_is_printed_edited_and_used(tree: Tree, command: Command) -> None:
    usual = command("service", "--template")
    assert usual.returncode == 0 and "{{launcher}}" in usual.stdout
    edited = usual.stdout.replace("exec ", "echo from my template {{nodes}}\nexec ")
    files.replace(f"{tree.root}/my.template", edited.encode())
    text = SETTINGS.replace("[service]", '[service]\ntemplate = "my.template"')
    files.replace(tree.settings, f"format = 1\n{text}".encode())
    assert command("service", "--template").stdout == edited
    assert "echo from my template 1\n" in command("submit-launch", "--dry-run").stdout
    files.replace(f"{tree.root}/my.template", b"#!/bin/sh\n{{head}} {{name}} {{lancher}}\n")
    for words in (("--check",), ("--once",), ("--dry-run",)):
        said = command("service", *words)
        assert said.returncode == 1 and "unknown place {{lancher}}" in said.stderr


def test_wrong_settings_and_options_are_said_with_their_names(tree: Tree, command: Command) -> None:
    assert command("service", "--interval", "0s").returncode == 2
    text = SETTINGS.replace("[service]", "[service]\nbudget = true")
    files.replace(tree.settings, f"format = 1\n{text}".encode())
    said = command("service", "--once")
    assert said.returncode == 1 and "service.budget" in said.stderr
    assert files.names(tree.folder("launchers")) == []


def test_a_spool_in_a_folder_with_blanks_and_quotes_is_served(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / 'it\'s a "spool" $HOME', SETTINGS)
    task = one(tree, time_estimate="5s")
    assert run_spool(tree.root, "service", "--once").returncode == 0
    eventually(lambda: where(tree, task).startswith("FINISHED"), "it ran", 60)

    def over() -> bool:
        return run_spool(tree.root, "service", "--once").returncode == 0 and not live(tree)

    eventually(over, "it is over", 60)
    (line,) = allocations.ledger(tree)
    assert (line.outcome, line.tasks) == ("completed", 1)
