"""The service's decisions with a batch system that answers as it is told, and its files."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import make_tree
from crashing import failing, findings, many, one, start_owner
from scripted import Scripted

from spool.queue import allocations, files, layout
from spool.queue.allocations import ENDED, NEVER
from spool.queue.layout import Tree
from spool.queue.takeover import Observer
from spool.service import deciding, memory, policy, post, troubles
from spool.service.deciding import Decider, Report
from spool.service.requests import request_end
from spool.service.system import Declined, Unreachable
from spool.service.terms import Window
from spool.service.tracking import MISSED_LOOKS

SETTINGS = """
[service]
padding = "1m"
patience = "0s"
settle = "0s"
[queues.batch]
nodes = "1-8"
time = "1h"
cores = 4
max_queued = 3
"""


@pytest.fixture
def system() -> Scripted:
    return Scripted()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock, set by hand: now[0]."""
    moment = [time.time()]
    monkeypatch.setattr(time, "time", lambda: moment[0])
    return moment


class Steps:
    """Decisions of one-shots: each remembers only what lies in files."""

    def __init__(self, tree: Tree, system: Scripted, now: list[float]) -> None:
        self.tree, self.system, self.now = tree, system, now
        self.may: Callable[[], bool] = lambda: True
        self.loud: list[str] = []

    def __call__(self, after_s: float = 60.0, *, dry: bool = False) -> Report:
        self.now[0] += after_s
        wanted = policy.load(self.tree.root)
        report = Decider(self.tree, wanted, self.system, lambda: self.may(), dry=dry).step()
        self.loud += report.loud
        return report


@pytest.fixture
def step(tree: Tree, system: Scripted, now: list[float]) -> Steps:
    return Steps(tree, system, now)


def events(tree: Tree) -> list[dict[str, Any]]:
    raw = files.read(tree.journal(layout.SERVICE_JOURNAL)) or b""
    return [msgspec.json.decode(line) for line in raw.splitlines()]


def outcomes(tree: Tree) -> list[str]:
    return [line.outcome for line in allocations.ledger(tree)]


def dies(tree: Tree, system: Scripted, said: str = "", **how: Any) -> None:
    """All jobs that are not over end, having printed something."""
    for id_, job in list(system.table.items()):
        if job.state != "ended":
            if said:
                files.append(tree.allocation(job.name, "output"), said.encode())
            told = {"state": "ended", "outcome": "failed", "used_s": 1.0, **how}
            system.change(id_, **told)


def worked(tree: Tree, name: str, *ends: dict[str, Any]) -> None:
    """A launcher signed in there, and these attempts ended."""
    launcher = start_owner(tree, allocation_name=name, cores=8)
    allocations.sign_in(tree, launcher.record, launcher.name)
    lines = b"".join(msgspec.json.encode({"what": "exit", **end}) + b"\n" for end in ends)
    if lines:
        files.append(tree.journal(launcher.name), lines)
    launcher.end(keep=True)


def settle(tree: Tree, lasts: str) -> None:
    settings = SETTINGS.replace('settle = "0s"', f'settle = "{lasts}"')
    Path(tree.root, layout.SETTINGS).write_text(f"format = 1{settings}")


def nothing_waits(tree: Tree) -> None:
    files.remove_tree(f"{tree.root}/READY")
    files.make_folder(f"{tree.root}/READY")


# -- asking --------------------------------------------------------------------------------------


def test_what_waits_is_asked_for_once(tree: Tree, system: Scripted, step: Steps) -> None:
    many(tree, 16, time_estimate="10m")
    report = step()
    assert [one["job"] for one in report.asked] == ["1"]
    for _ in range(5):
        assert step().asked == []
    assert len(system.orders) == 1


def test_nothing_is_asked_where_the_post_is_another_s(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    step.may = lambda: False
    assert step().why[-1] == deciding.NOT_OURS
    assert system.orders == [] and allocations.names(tree) == []


def test_a_post_lost_between_record_and_submission_submits_nothing(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    answers = iter([True, False])
    step.may = lambda: next(answers)
    assert step().asked == []
    assert system.orders == [] and outcomes(tree) == [NEVER]
    step.may = lambda: True
    assert len(step().asked) == 1, "that was no trouble of the queue"


@pytest.mark.parametrize("happened", [True, False])
def test_a_submission_without_an_answer_is_never_repeated_blindly(
    tree: Tree, system: Scripted, step: Steps, happened: bool
) -> None:
    one(tree, time_estimate="10m")
    fault = Unreachable("sbatch gave no answer within 30 s")
    system.before, system.after = (None, fault) if happened else (fault, None)
    assert step().asked[0]["job"] == ""
    system.before = system.after = None
    asked = [step().asked for _ in range(MISSED_LOOKS)]
    assert sum(map(len, asked)) == (0 if happened else 1)
    assert len(system.orders) == 1
    assert outcomes(tree) == ([] if happened else [NEVER])


def test_no_answer_to_one_submission_ends_the_asking(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    for minutes in (10, 20, 30):
        many(tree, 60, time_estimate=f"{minutes}m", cores_per_rank=4)
    system.before = Unreachable("no answer")
    assert len(step().asked) == 1
    assert len(allocations.names(tree)) == 1


def test_submissions_that_hang_are_tried_less_and_less(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    system.before = Unreachable("sbatch gave no answer within 30 s")
    asked = sum(len(step().asked) for _ in range(240))  # four hours, a look a minute
    assert 5 <= asked <= 9 and asked == len(allocations.names(tree))
    assert "a submission was not answered, 3 times in a row" in " ".join(step.loud)
    assert len(step.loud) == asked


def test_a_late_job_that_was_given_up_is_cancelled(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    system.after, system.hidden = Unreachable("no answer"), True
    for _ in range(MISSED_LOOKS + 1):
        step()
    assert NEVER in outcomes(tree)
    system.after, system.hidden = None, False
    step()
    assert system.cancelled[:1] == ["1"]
    assert any("was given up and is there after all" in word for word in step.loud)


def test_a_full_disk_leaves_neither_job_nor_record(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    step(dry=True)
    files.make_folder(tree.allocation("nothing"))
    for number in (1, 2, 3):
        with failing("create", errno.ENOSPC, number=number, times=100), pytest.raises(OSError):
            try:
                step()
            except Exception as fault:
                raise OSError from fault
        assert system.orders == []
        assert allocations.names(tree) == []


def test_a_full_disk_after_the_submission_loses_no_job(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    taken = system.submit

    def submit(script: str, order: Any) -> str:
        files.watch(lambda when, call, _: _full() if call == "create" else None)
        return taken(script, order)

    system.submit = submit  # type: ignore[method-assign]
    with pytest.raises(Exception, match="No space"):
        step()
    files.watch(None)
    assert step().asked == []
    assert [one.standing.job for one in allocations.live(tree)] == ["1"]


def _full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# -- back-off ------------------------------------------------------------------------------------


def test_refusals_of_one_cause_rest_longer_each_time_and_are_shown(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    system.before = Declined("account", "Invalid account or account/partition combination")
    rests = []
    for _ in range(6):
        assert len(step(1.0).refused) == 1
        mark = memory.load(tree).marks["batch"]
        rests.append(mark.until - step.now[0])
        report = step(rests[-1] - 2.0)
        assert report.refused == [] and "Invalid account" in " ".join(report.why)
        step.now[0] += 1.0
    assert rests == [300, 900, 1800, 3600, 3600, 3600]
    assert "6 times in a row: Invalid account" in step.loud[-1]
    assert outcomes(tree) == ["refused"] * 6
    system.before = None
    assert len(step(3600).asked) == 1
    assert memory.load(tree).marks == {}


def test_a_refusal_of_one_queue_keeps_no_other_from_being_asked(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    text = SETTINGS + 'features = ["x"]\n[queues.wide]\nnodes = "4-8"\ntime = "1h"\ncores = 8\n'
    files.replace(tree.settings, b"format = 1\n" + text.encode())
    one(tree, time_estimate="10m", requires=["x"])
    one(tree, time_estimate="10m", cores_per_rank=8, nodes=4)
    taken = system.submit

    def submit(script: str, order: Any) -> str:
        if order.queue == "wide":
            raise Declined("partition", "invalid partition specified: wide")
        return taken(script, order)

    system.submit = submit  # type: ignore[method-assign]
    report = step()
    assert [one["queue"] for one in report.refused] == ["wide"]
    assert [one["queue"] for one in report.asked] == ["batch"]


def test_a_changed_spool_toml_ends_all_rests(tree: Tree, system: Scripted, step: Steps) -> None:
    one(tree, time_estimate="10m")
    system.before = Declined("account", "Invalid account")
    step()
    system.before = None
    assert step().asked == []
    text = (files.read(tree.settings) or b"") + b'account = "right"\n'
    files.replace(tree.settings, text)
    assert len(step().asked) == 1
    assert system.orders[-1].account == "right"


@pytest.mark.parametrize("used_s", [0.0, 1.0, 45.0, 3600.0])
def test_an_allocation_without_a_launcher_rests_its_queue_however_long_it_took(
    tree: Tree, system: Scripted, step: Steps, used_s: float
) -> None:
    one(tree, time_estimate="10m")
    step()
    outcome = "timeout" if used_s > 1000 else "failed"
    dies(tree, system, "ok\nmodule: command not found\n", used_s=used_s, outcome=outcome)
    report = step()
    assert report.asked == []
    assert "module: command not found" in step.loud[-1]
    assert "left alone for 1m: died at start" in step.loud[-1]


def test_what_dies_at_its_start_is_never_a_tight_loop(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    for _ in range(240):  # four hours, a look a minute
        step()
        dies(tree, system, "no python here\n")
    assert 5 <= len(system.orders) <= 9


def test_many_that_die_together_are_one_trouble(tree: Tree, system: Scripted, step: Steps) -> None:
    for hours in (10, 30, 45):
        many(tree, 100, time_estimate=f"{hours}m", cores_per_rank=4)
    step()
    assert len(system.orders) == 3
    dies(tree, system)
    step()
    assert memory.load(tree).marks["batch"].count == 1


def test_launchers_that_find_nothing_to_do_are_not_asked_for_again_and_again(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    for _ in range(240):
        for asked in step().asked:
            worked(tree, asked["name"])
        dies(tree, system, outcome="completed", used_s=60.0)
    assert 5 <= len(system.orders) <= 10
    assert "did nothing" in step.loud[0]


def test_one_allocation_that_came_too_late_is_no_trouble(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    worked(tree, step().asked[0]["name"])
    dies(tree, system, outcome="completed", used_s=60.0)
    (asked,) = step().asked
    worked(tree, asked["name"], {"state": "FINISHED", "cores": 1, "elapsed_s": 1.0})
    dies(tree, system, outcome="completed", used_s=60.0)
    step()
    assert memory.load(tree).marks == {} and step.loud == []


@pytest.mark.parametrize("outcome", ["timeout", "node-fail", ""])
def test_launchers_that_were_killed_before_they_told_of_a_task_are_no_trouble(
    tree: Tree, system: Scripted, step: Steps, outcome: str
) -> None:
    one(tree, time_estimate="10m")
    for _ in range(3):
        (asked,) = step().asked
        worked(tree, asked["name"])
        dies(tree, system, outcome=outcome, used_s=300.0)
    step()
    assert memory.load(tree).marks == {}


@pytest.mark.parametrize("outcome", ["preempted", "cancelled"])
def test_preemption_is_no_trouble(tree: Tree, system: Scripted, step: Steps, outcome: str) -> None:
    one(tree, time_estimate="10m")
    for _ in range(5):
        assert len(step().asked) == 1
        dies(tree, system, outcome=outcome)


def test_a_controller_that_is_down_is_said_once_and_nothing_is_counted_as_gone(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    step()
    system.down()
    for _ in range(9):
        report = step()
        assert report.why[0].startswith("nothing is decided: scripted gives no answer")
        assert report.asked == report.ended == []
    assert len(step.loud) == 1 and len(events(tree)) == 2
    system.up()
    report = step()
    assert report.asked == [] and report.live == {"queued": 1}
    assert memory.load(tree).marks == {}


@pytest.mark.parametrize("call", ["jobs", "partitions", "windows", "cancel"])
def test_nonsense_at_any_question_stops_no_service(
    tree: Tree, system: Scripted, step: Steps, call: str
) -> None:
    one(tree, time_estimate="10m")
    step()
    request_end(tree, allocations.names(tree)[0], "a test")
    system.faults[call] = Unreachable(f"{call} printed '<html>502'")
    step()
    system.up()
    step()
    step()
    assert system.cancelled == ["1"]


def test_a_clock_set_back_makes_no_rest_longer(tree: Tree, system: Scripted, step: Steps) -> None:
    one(tree, time_estimate="10m")
    system.before = Declined("quota", "QOSMaxSubmitJobPerUserLimit")
    step()
    system.before = None
    assert step(-86_400.0).asked == []
    assert len(step(61.0).asked) == 1


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_neither_asks_nor_cancels(
    tree: Tree, system: Scripted, step: Steps, jump: float
) -> None:
    many(tree, 16, time_estimate="10m")
    step()
    for after_s in (60.0, jump, 60.0, -jump, 60.0):
        report = step(after_s)
        assert report.asked == report.withdrawn == report.ended == []
    assert len(system.orders) == 1 and system.cancelled == []


def test_two_spools_on_one_batch_system_keep_their_jobs_apart(
    tmp_path: Any, tree: Tree, system: Scripted, step: Steps, now: list[float]
) -> None:
    other = make_tree(tmp_path / "other", SETTINGS)
    for each in (tree, other):
        many(each, 16, time_estimate="10m")
    theirs = Steps(other, system, now)
    system.after = Unreachable("no answer")
    step()
    theirs()
    system.after = None
    for _ in range(4):
        assert step().live == theirs().live == {"queued": 1}
    assert [one.standing.job for one in allocations.live(tree)] == ["1"]
    assert [one.standing.job for one in allocations.live(other)] == ["2"]
    nothing_waits(tree)
    for _ in range(3):
        step()
    assert system.cancelled == ["1"] and theirs().live == {"queued": 1}


# -- ends ----------------------------------------------------------------------------------------


def test_an_end_that_was_wanted_before_the_job_was_known_comes_once_it_is(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    system.after = Unreachable("no answer")
    name = step().asked[0]["name"]
    system.after, system.hidden = None, True
    request_end(tree, name, "a test")
    assert step().withdrawn and system.cancelled == []
    system.hidden = False
    step()
    assert system.cancelled == ["1"]
    step()
    assert allocations.ledger(tree)[0].outcome == "cancelled"


def test_what_was_asked_by_hand_is_ended_only_by_hand(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    settle(tree, "60s")
    one(tree, time_estimate="10m")
    name = step().asked[0]["name"]
    own = allocations.read(tree, name)
    assert own is not None
    by_hand = msgspec.structs.replace(own.asked, by_hand=True)
    files.replace(tree.allocation(name, "request.json"), msgspec.json.encode(by_hand))
    nothing_waits(tree)
    for _ in range(5):
        assert step(90_000.0).withdrawn == []
        assert memory.load(tree).doubted == {}  # it takes nobody's trust away
    request_end(tree, name, "enough")
    assert [one["name"] for one in step().withdrawn] == [name]


def test_what_nothing_needs_is_cancelled_and_never_runs(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    step()
    nothing_waits(tree)
    step()
    step()
    step()
    assert system.cancelled == ["1"] and outcomes(tree) == ["cancelled"]


def test_idle_nodes_that_gave_us_nothing_are_not_counted_on_for_a_while(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    """Nodes that are kept for another job look idle for a moment after each change."""
    settle(tree, "60s")
    many(tree, 1, time_estimate="30m", nodes=4, cores_per_rank=4)
    many(tree, 16, time_estimate="10m")
    assert [one["nodes"] for one in step().asked] == [4]
    system.idle = (Window(1, 7200.0),)
    (more,) = step().asked
    assert "idle now" in more["why"]
    system.idle = ()
    for _ in range(3):
        step()
    assert system.cancelled == [more["job"]]
    system.idle = (Window(1, 7200.0),)
    assert [step().asked for _ in range(5)] == [[]] * 5
    assert [bool(step().asked) for _ in range(6)].count(True) == 1  # they may be free by now


# -- what is said --------------------------------------------------------------------------------


def test_a_lane_that_fits_no_queue_is_said_loudly_once(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m", nodes=500)
    for _ in range(10):
        assert "no queue can ever serve it" in " ".join(step().why)
    assert len(step.loud) == 1 and len(events(tree)) == 1
    assert "n500" in step.loud[0] and "Change [queues] in spool.toml" in step.loud[0]
    one(tree, time_estimate="5h")
    step()
    assert len(step.loud) == 2 and len(events(tree)) == 2


def test_a_spent_budget_is_said_and_nothing_is_asked(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    text = SETTINGS.replace("[service]", '[service]\nbudget = "0.5 node-hours"')
    files.replace(tree.settings, b"format = 1\n" + text.encode())
    many(tree, 8, time_estimate="10m")
    asked = step().asked
    cost_s = sum(each["nodes"] * each["walltime_s"] for each in asked)
    assert 0 < cost_s <= 1800
    for each in asked:
        worked(tree, each["name"], {"state": "FINISHED", "cores": 1, "elapsed_s": 9.0})
    dies(tree, system, outcome="completed", used_s=cost_s / len(asked) - 1)
    for _ in range(5):
        report = step()
    assert "node-hours of 0.5 node-hours left" in " ".join(report.why)
    assert report.asked == [] and len(system.orders) == len(asked) and len(events(tree)) == 2


def test_ages_alone_are_no_news(tree: Tree, system: Scripted, step: Steps) -> None:
    one(tree, time_estimate="10m")
    system.before = Declined("quota", "QOSMaxSubmitJobPerUserLimit")
    whys = {step(1.0).why[-1] for _ in range(30)}
    assert len(whys) > 5 and len(events(tree)) == 2


def test_a_dry_run_changes_nothing(tree: Tree, system: Scripted, step: Steps) -> None:
    one(tree, time_estimate="10m")
    report = step(dry=True)
    assert [one["queue"] for one in report.asked] == ["batch"] and system.orders == []
    assert "would" not in " ".join(deciding.sentences(report, dry=True))
    assert files.names(tree.folder("allocations")) == []
    assert files.names(tree.folder("journal")) == []


def test_the_journal_of_decisions_is_rotated(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ROTATE_AT", 2_000)
    monkeypatch.setattr(memory, "KEPT", 3)
    for number in range(200):
        memory.note(tree, "decision", number=number)
    names = sorted(files.names(tree.folder("journal")))
    assert len(names) == 4 and names[0] == "service.jsonl"
    last = files.read(tree.journal(layout.SERVICE_JOURNAL)) or files.read(
        f"{tree.folder('journal')}/{names[-1]}"
    )
    assert b'"number":199' in (last or b"")


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\x00" * 100, b'{"marks": 3}', b"[" * 100_000, b'{"marks":{"batch":null}}'],
)
def test_a_damaged_memory_starts_anew(
    tree: Tree, system: Scripted, step: Steps, damage: bytes
) -> None:
    one(tree, time_estimate="10m")
    files.make_folder(tree.folder("allocations"))
    files.replace(tree.allocation(layout.SERVICE_MEMORY), damage)
    assert len(step().asked) == 1
    assert memory.load(tree).last != ()


def test_a_rest_without_end_in_a_damaged_memory_is_none(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    step(dry=True)
    wanted = policy.load(tree.root)
    mark = {"cause": "other", "said": "", "count": 1, "until": 1e300}
    told = {"marks": {"batch": mark}, "settings": policy.mark(tree.root, wanted.template)}
    files.make_folder(tree.folder("allocations"))
    files.replace(tree.allocation(layout.SERVICE_MEMORY), msgspec.json.encode(told))
    step()
    assert len(step(61.0).asked) == 1


# -- troubles, purely ----------------------------------------------------------------------------


def test_a_cause_that_changes_begins_anew() -> None:
    marks = troubles.marked({}, "q", "account", "no", 0.0)
    marks = troubles.marked(marks, "q", "account", "no", 400.0)
    assert marks["q"].count == 2
    marks = troubles.marked(marks, "q", "quota", "full", 2000.0)
    assert (marks["q"].count, marks["q"].until) == (1, 2060.0)
    assert troubles.standing(marks, 2060.0) == {}
    assert troubles.standing(marks, 2000.0)["q"].until_s == 60.0


# -- the script ----------------------------------------------------------------------------------


def test_a_root_with_blanks_and_quotes_is_written_so_that_sh_reads_it(
    tmp_path: Any, system: Scripted, now: list[float]
) -> None:
    import shlex
    import subprocess

    tree = make_tree(tmp_path / 'it\'s a "spool" $HOME `x` {{name}}', SETTINGS)
    one(tree, time_estimate="10m")
    report = Steps(tree, system, now)()
    path = tree.allocation(report.asked[0]["name"], "script")
    text = (files.read(path) or b"").decode()
    launcher = shlex.split(text.splitlines()[-1].removeprefix("exec "))
    assert launcher[launcher.index("--spool") + 1] == tree.root
    printed = text.replace(text.splitlines()[-1], 'printf %s "$SPOOL $SPOOL_ALLOCATION"')
    said = subprocess.run(["/bin/sh", "-c", printed], capture_output=True, text=True, check=True)
    assert said.stdout == f"{tree.root} {report.asked[0]['name']}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#!/bin/sh\n{{head}} {{name}}\n", "lacks {{launcher}}"),
        ("{{head}} {{name}} {{launcher}} {{nodez}}", "unknown place {{nodez}}"),
        (None, "service.template cannot be read"),
        (b"\xff\xfe", "service.template cannot be read"),
    ],
)
def test_a_template_that_is_no_good_is_refused_by_name(
    tree: Tree, system: Scripted, step: Steps, text: Any, says: str
) -> None:
    settings = SETTINGS.replace("[service]", '[service]\ntemplate = "job.template"')
    files.replace(tree.settings, b"format = 1\n" + settings.encode())
    if text is not None:
        raw = text if isinstance(text, bytes) else text.encode()
        files.replace(f"{tree.root}/job.template", raw)
    with pytest.raises(Exception, match=says.replace("{", r"\{")):
        step()
    assert system.orders == []


def test_directives_that_the_batch_system_rejects_are_shown_and_rest(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    text = SETTINGS.replace("[service]", '[service]\ndirectives = ["--nonsense=$(rm -rf /)"]')
    files.replace(tree.settings, b"format = 1\n" + text.encode())
    one(tree, time_estimate="10m")
    system.before = Declined("script", "unrecognized option '--nonsense'")
    report = step()
    script = files.read(tree.allocation(report.refused[0]["name"], "script")) or b""
    assert b"#SCRIPTED --nonsense=$(rm -rf /)\n" in script
    assert "unrecognized option" in step.loud[0]


# -- check ---------------------------------------------------------------------------------------


def test_check_finds_nothing_wrong_with_a_service_at_work(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    one(tree, time_estimate="10m")
    step()
    me = start_owner(tree, "service")
    assert post.take(me, Observer(me).verdict) == ""
    assert findings(tree, repair=True) == []
    assert post.is_ours(me)
    post.release(me)
    me.end()
    assert findings(tree) == []


def test_a_record_without_a_request_is_a_leftover(tree: Tree) -> None:
    name = allocations.new_name(tree)
    files.make_folder(tree.allocation(name))
    (found,) = findings(tree)
    assert "whoever began it died before anything was asked" in found.what
    assert findings(tree, repair=True)[0].repaired
    assert findings(tree) == []


def test_a_request_that_cannot_be_read_is_left_to_a_person(tree: Tree) -> None:
    name = allocations.new_name(tree)
    files.make_folder(tree.allocation(name))
    files.write_new(tree.allocation(name, "request.json"), b"{")
    (found,) = findings(tree, repair=True)
    assert "cannot be read" in found.what and not found.repaired
    assert allocations.names(tree) == [name]


def test_a_live_allocation_counts_for_those_who_restart(
    tree: Tree, system: Scripted, step: Steps
) -> None:
    many(tree, 16, time_estimate="10m")
    step()
    files.unlink(tree.allocation(layout.SERVICE_MEMORY))
    assert step().asked == []
    assert allocations.standing(tree, allocations.names(tree)[0]).state != ENDED
