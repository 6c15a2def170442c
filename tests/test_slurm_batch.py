"""Slurm as the service asks it: the real one, and what other versions of it have said."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import slurm_cluster
from conftest import eventually
from fake_commands import fake

from spool.service.slurm import Slurm, staircase
from spool.service.system import Declined, Order, Unreachable
from spool.service.terms import NodeShape, Window

slurm = slurm_cluster.slurm


@pytest.fixture
def batch(slurm, monkeypatch):
    """The adapter, in the environment of the private Slurm; no job outlives its test."""
    for name, text in slurm.environment.items():
        monkeypatch.setenv(name, text)
    monkeypatch.chdir(slurm.folder / "jobs")
    yield Slurm()
    slurm.run("scancel", "-u", str(os.getuid()))


def order(name="spool-test-1", queue="", nodes=1, walltime_s=120.0, **more):
    return Order(name=name, queue=queue, nodes=nodes, walltime_s=walltime_s, **more)


def script(tmp_path, batch, wanted, text="sleep 60"):
    path = tmp_path / f"script-{os.urandom(4).hex()}"
    path.write_text("\n".join(["#!/bin/sh", *batch.head(wanted), text, ""]))
    return str(path)


def submit(tmp_path, batch, wanted, text="sleep 60"):
    return batch.submit(script(tmp_path, batch, wanted, text), wanted)


def declined(tmp_path, batch, wanted):
    path = script(tmp_path, batch, wanted)
    for call in (batch.submit, batch.dry_run):
        with pytest.raises(Declined) as caught:
            call(path, wanted)
    return caught.value


# -- the real one --------------------------------------------------------------------------------


@pytest.mark.system
def test_a_job_is_followed_from_its_submission_to_its_end(batch, tmp_path):
    output = tmp_path / "out put 100%j"
    wanted = order(nodes=2, walltime_s=90, output=str(output))
    id_ = submit(tmp_path, batch, wanted, "echo $SLURM_JOB_NUM_NODES; sleep 1")
    eventually(lambda: batch.jobs("spool-test", ())[id_].state == "running", "it runs")
    job = batch.jobs("spool-test", ())[id_]
    assert (job.name, job.queue, job.nodes) == ("spool-test-1", "batch", 2)
    assert 100 < job.left_s <= 120  # Slurm counts in whole minutes
    assert job.hosts.startswith("node[")
    eventually(lambda: batch.jobs("", [id_])[id_].state == "ended", "it ends")
    job = batch.jobs("", [id_])[id_]
    assert job.outcome == "completed"
    assert job.used_s >= 1
    assert output.read_text() == "2\n"


@pytest.mark.system
def test_fifty_jobs_are_told_at_once_and_cancelled_at_once(batch, tmp_path, monkeypatch):
    wanted = order(name="spool-fifty", directives=("--hold",))
    path = script(tmp_path, batch, wanted)
    ids = [batch.submit(path, wanted) for _ in range(50)]
    log = counted(tmp_path, monkeypatch, "squeue", "scancel", "sacct")
    told = batch.jobs("spool-fifty", ())
    assert set(told) == set(ids)
    assert {job.why.partition(":")[0] for job in told.values()} == {"JobHeldUser"}
    batch.cancel([*ids, "999999"])
    eventually(
        lambda: {job.outcome for job in batch.jobs("spool-fifty", ids).values()} == {"cancelled"},
        "all are cancelled",
    )
    assert log.read_text().split()[:2] == ["squeue", "scancel"]
    assert "sacct" not in log.read_text()


def counted(tmp_path, monkeypatch, *names):
    """A log of each use of some commands, which still do their work."""
    log = tmp_path / "log"
    for name in names:
        real = next(
            Path(one, name) for one in os.environ["PATH"].split(":") if Path(one, name).exists()
        )
        fake(tmp_path, monkeypatch, name, f'echo {name} >>{log}; exec {real} "$@"')
    return log


@pytest.mark.system
def test_a_job_is_adopted_by_its_name_and_an_unknown_one_is_missing(batch, tmp_path):
    id_ = submit(tmp_path, batch, order(name="spool-abc-7"), "true")
    other = submit(tmp_path, batch, order(name="spool-abd-1"), "true")
    assert set(batch.jobs("spool-abc-", ["999999", "nonsense"])) == {id_}
    assert set(batch.jobs("spool-abc-", [other])) == {id_, other}


@pytest.mark.system
def test_variables_that_would_hide_or_change_jobs_are_kept_away(batch, tmp_path, monkeypatch):
    foreign = {
        "SQUEUE_PARTITION": "short",
        "SQUEUE_STATES": "RUNNING",
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_JOB_NAME": "another",
        "SBATCH_WAIT": "1",
        "SLURM_MEM_PER_CPU": "7",
        "SPOOL_LAUNCHER": "another",
    }
    for name, text in foreign.items():
        monkeypatch.setenv(name, text)
    output = tmp_path / "output"
    id_ = submit(tmp_path, batch, order(output=str(output)), "env")
    assert batch.jobs("spool-test", ())[id_].queue == "batch"
    eventually(lambda: batch.jobs("", [id_])[id_].state == "ended", "it ends")
    said = output.read_text().splitlines()
    assert not {"SPOOL_LAUNCHER=another", "SLURM_MEM_PER_CPU=7", "LC_ALL=C"} & set(said)


@pytest.mark.system
@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"queue": "nowhere"}, "partition"),
        ({"queue": "short", "walltime_s": 600.0}, "limit"),
        ({"queue": "short", "nodes": 2, "walltime_s": 50.0}, "limit"),
        ({"nodes": 9}, "limit"),
        ({"directives": ("--constraint=warp",)}, "limit"),
        ({"node": NodeShape(64, 8, 0)}, "limit"),
        ({"directives": ("--no-such-option",)}, "script"),
        ({"directives": ("--nodelist=node99",)}, "limit"),
        ({"directives": ("--reservation=r1",)}, "partition"),
        ({"directives": ("--mem=lots",)}, "script"),
    ],
)
def test_a_wrong_order_is_declined_with_its_cause(batch, tmp_path, wrong, cause):
    refusal = declined(tmp_path, batch, order(**wrong))
    assert (refusal.cause, "\n" in str(refusal)) == (cause, False), str(refusal)


@pytest.mark.system
def test_a_script_that_is_none_is_declined(batch, tmp_path):
    (tmp_path / "script").write_text("echo no interpreter\n")
    for path in (tmp_path / "script", tmp_path / "nothing"):
        with pytest.raises(Declined) as caught:
            batch.submit(str(path), order())
        assert caught.value.cause == "script"


@pytest.mark.system
def test_it_says_why_a_job_waits_and_what_is_idle(batch, tmp_path):
    eventually(lambda: batch.windows("batch") == (Window(4, 3600.0),), "all nodes are idle")
    assert batch.windows("") == batch.windows("batch")
    assert batch.windows("short") == (Window(1, 60.0),)
    assert batch.windows("nowhere") is None
    three = submit(tmp_path, batch, order(nodes=3, walltime_s=600))
    eventually(lambda: batch.jobs("", [three])[three].state == "running", "three nodes are used")
    assert batch.windows("batch") == (Window(1, 3600.0),)
    wide = submit(tmp_path, batch, order(nodes=4))
    later = submit(tmp_path, batch, order(nodes=4, directives=("--begin=now+1hour",)))
    following = submit(tmp_path, batch, order(nodes=4))

    def reasons():
        told = batch.jobs("spool-test", ())
        return [told[id_].why.partition(":")[0] for id_ in (wide, following, later)]

    eventually(lambda: reasons() == ["Resources", "Priority", "BeginTime"], "the reasons are told")

    def planned():
        found = batch.windows("batch")
        return len(found) == 1 and found[0].nodes == 1 and 500 < found[0].seconds <= 660

    eventually(planned, "the idle node is kept for the wide job, and free until that starts")


@pytest.mark.system
def test_a_reservation_ends_the_window(batch, slurm):
    eventually(lambda: batch.windows("batch") == (Window(4, 3600.0),), "all nodes are idle")
    slurm.run(
        *("scontrol", "create", "reservation", "reservationname=m", "starttime=now+20minutes"),
        *("duration=60", "nodes=node1,node2", "flags=maint", "users=root"),
    )
    try:
        first, second = batch.windows("batch")
    finally:
        slurm.run("scontrol", "delete", "reservationname=m")
    assert first == Window(2, 3600.0)
    assert second.nodes == 4
    assert 1100 < second.seconds <= 1200


@pytest.mark.system
def test_it_tells_its_partitions(batch):
    told = {one.name: one for one in batch.partitions()}
    node = NodeShape(64, 0, 64000)
    assert (told["batch"].default, told["batch"].nodes, told["batch"].node) == (True, 4, node)
    assert (told["batch"].max_s, told["batch"].max_nodes) == (3600.0, None)
    assert (told["short"].default, told["short"].max_s, told["short"].max_nodes) == (False, 60.0, 1)


@pytest.mark.system
def test_a_dry_run_takes_nothing(batch, tmp_path):
    wanted = order(name="spool-dry", nodes=2)
    assert "to start at" in batch.dry_run(script(tmp_path, batch, wanted), wanted)
    assert batch.jobs("spool-dry", ()) == {}


@pytest.mark.system
def test_a_controller_that_hangs_or_is_down_says_neither_yes_nor_no(
    batch, slurm, tmp_path, monkeypatch
):
    id_ = submit(tmp_path, batch, order(name="spool-kept", walltime_s=300))
    eventually(lambda: batch.jobs("", [id_])[id_].state == "running", "it runs")
    path = script(tmp_path, batch, order(name="spool-late"))
    calls = [
        lambda: batch.jobs("spool-kept", [id_]),
        lambda: batch.submit(path, order()),
        lambda: batch.cancel(["1"]),
        lambda: batch.windows("batch"),
    ]
    control = int((slurm.folder / "run/slurmctld.pid").read_text())
    os.kill(control, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2 * len(calls)) as pool:
            hung = [pool.submit(fault, call) for call in calls]
            eventually(lambda: len(children("s(batch|queue|cancel|info)")) == 4, "they are asked")
            monkeypatch.setenv("SLURM_CONF", nobody_listens(slurm, tmp_path))
            down = [pool.submit(fault, call) for call in calls]
            assert all("timed out" in one.result() for one in hung)
            assert all("Unable to contact" in one.result() for one in down)
    finally:
        os.kill(control, signal.SIGCONT)
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    assert batch.jobs("", [id_])[id_].state == "running"
    # What was asked in vain may happen yet: then the job is found by its name.
    eventually(lambda: batch.jobs("spool-late", ()), "the submission was heard")


def fault(call):
    with pytest.raises(Unreachable) as caught:
        call()
    return str(caught.value)


def children(pattern):
    """The running children of this process whose program's name matches."""
    ours = (one for one in psutil.Process().children() if re.fullmatch(pattern, one.name()))
    return list(ours)


def nobody_listens(slurm, tmp_path):
    """A configuration whose controller is down."""
    text = Path(slurm.environment["SLURM_CONF"]).read_text()
    conf = tmp_path / "slurm.conf"
    conf.write_text(re.sub("(?m)^SlurmctldPort=.*", "SlurmctldPort=1", text))
    return str(conf)


# -- what others have said -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Invalid account or account/partition combination specified", "account"),
        ("Invalid qos specification", "account"),
        ("User's group not permitted to use this partition", "account"),
        ("Access/permission denied", "account"),
        ("Invalid partition name specified", "partition"),
        ("Required partition not available (inactive or drain)", "partition"),
        ("No partition specified or system default partition", "partition"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "limit"),
        ("Node count specification invalid", "limit"),
        ("Requested node configuration is not available", "limit"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         "quota"),
        ("QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates"
         " accounting/QOS policy (job submit limit, user's size and/or time limits)", "quota"),
        ("AssocMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates"
         " accounting/QOS policy (job submit limit, user's size and/or time limits)", "limit"),
        ("AssocGrpCPUMinutesLimit\nsbatch: error: Batch job submission failed: Job violates"
         " accounting/QOS policy (job submit limit, user's size and/or time limits)", "account"),
        ("something that nobody has met", "other"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_cause(tmp_path, monkeypatch, said, cause):
    text = f'cat >&2 <<"X"\nsbatch: error: {said}\nX\nexit 1'
    fake(tmp_path, monkeypatch, "sbatch", text)
    with pytest.raises(Declined) as caught:
        Slurm().submit("/dev/null", order())
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller"
        " (connect failure)",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "sbatch: error: slurm_persist_conn_open_without_init: failed to open persistent"
        " connection to host: Connection refused",
        "sbatch: fatal: Could not establish a configuration source",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "sbatch: error: If munged is up, restart with --num-threads=10\n"
        "sbatch: error: Munge encode failed: Failed to access socket",
    ],
)
def test_an_unreachable_controller_is_no_refusal(tmp_path, monkeypatch, said):
    fake(tmp_path, monkeypatch, "sbatch", f'cat >&2 <<"X"\n{said}\nX\nexit 1')
    with pytest.raises(Unreachable):
        Slurm().submit("/dev/null", order())


@pytest.mark.parametrize(
    ("printed", "id_"),
    [("123", "123"), ("123;cluster2", "123"), ("Welcome to Theta!\n123", "123")],
)
def test_the_id_is_found_in_what_a_site_s_wrapper_prints(tmp_path, monkeypatch, printed, id_):
    fake(tmp_path, monkeypatch, "sbatch", f'cat <<"X"\n{printed}\nX')
    assert Slurm().submit("/dev/null", order()) == id_


def test_a_submission_that_prints_nonsense_may_have_happened(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "sbatch", "echo Submitted, perhaps")
    with pytest.raises(Unreachable, match="Submitted, perhaps"):
        Slurm().submit("/dev/null", order())


SQUEUE = """\
1|PENDING|4|30:00|0:00|batch|(ReqNodeNotAvail, UnavailableNodes:nid[1-2])||spool-a-1
2|PENDING|2|1-00:00:00|0:00|a,b|(QOSMaxJobsPerUserLimit)||spool-a-2
3|RUNNING|2|1-01:02:03|5:06|batch|nid[01-02]|nid[01-02]|spool-a-3
4|COMPLETING|1|INVALID|5:06|batch|nid03|nid03|spool-a-4
5|NODE_FAIL|1|0:00|12|batch|(NodeDown)||spool-a-5
6|PREEMPTED|1|0:00|1:12|batch|nid04|nid04|spool-a-6
7|OUT_OF_MEMORY|1|0:00|1:12|batch|(OutOfMemory)|nid04|spool-a-7
8|TIMEOUT|1|0:00|1:12|batch|(TimeLimit)|nid04|spool-a-8
9|WARPED|1|UNLIMITED|1:12|batch|nid04|nid04|spool-a-9
10_[1-5]|PENDING|1|1:00|0:00|batch|(Priority)||an|array
half a li
11|RUNNING|1|NOT_SET|0:01|batch|nid09|nid09|spool-b-1
"""


def test_the_states_of_several_versions_are_understood(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "squeue", f'cat <<"X"\n{SQUEUE}X')
    told = Slurm().jobs("spool-a", ["11"])
    assert [(job.state, job.outcome) for job in told.values()] == [
        ("queued", ""), ("queued", ""), ("running", ""), ("ending", ""), ("ended", "node-fail"),
        ("ended", "preempted"), ("ended", "failed"), ("ended", "timeout"), ("running", ""),
        ("running", ""),
    ]  # fmt: skip
    assert "down, drained or reserved" in told["1"].why
    assert told["2"].why.startswith("QOSMaxJobsPerUserLimit: so many jobs")
    assert (told["3"].left_s, told["3"].used_s) == (90123.0, 306.0)
    assert (told["4"].left_s, told["9"].left_s, told["11"].left_s) == (None, None, None)


@pytest.mark.parametrize(
    "printed", ["Kernel panic", "slurm is resting\nreally", "<html>|x|</html>"]
)
def test_nonsense_is_not_an_empty_queue(tmp_path, monkeypatch, printed):
    fake(tmp_path, monkeypatch, "squeue", f'cat <<"X"\n{printed}\nX')
    with pytest.raises(Unreachable):
        Slurm().jobs("spool-a", ["11"])


def test_a_command_that_is_missing_or_broken_is_unreachable(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="squeue cannot be run: No such file"):
        Slurm().jobs("spool-a", ())
    (tmp_path / "squeue").mkdir()
    with pytest.raises(Unreachable):
        Slurm().jobs("spool-a", ())


SACCT = """\
21|COMPLETED|2|3601|batch|nid[01-02]|spool-a-1
22|CANCELLED by 1000|1|0|batch|None assigned|spool-a-2
23|TIMEOUT|1|60|batch|nid01|spool-a-3
24|RUNNING|1|9999999|batch|nid01|spool-a-4
25|NODE_FAIL|1|9|batch|nid01|spool-a-5
"""


def test_the_accounting_tells_of_what_squeue_has_forgotten_but_not_that_it_runs(
    tmp_path, monkeypatch
):
    fake(tmp_path, monkeypatch, "squeue", ":")
    fake(tmp_path, monkeypatch, "sacct", f'echo "$*" >{tmp_path}/asked; cat <<"X"\n{SACCT}X')
    told = Slurm().jobs("spool-a", [str(number) for number in range(20, 26)])
    assert {id_: (job.outcome, job.used_s) for id_, job in told.items()} == {
        "21": ("completed", 3601.0),
        "22": ("cancelled", 0.0),
        "23": ("timeout", 60.0),
        "25": ("node-fail", 9.0),
    }
    assert "-j 20,21,22,23,24,25" in (tmp_path / "asked").read_text()


def test_without_accounting_sacct_is_asked_once(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "squeue", ":")
    disabled = "Slurm accounting storage is disabled"
    fake(tmp_path, monkeypatch, "sacct", f"echo x >>{tmp_path}/asked; echo {disabled} >&2; exit 1")
    batch = Slurm()
    assert batch.jobs("spool-a", ["21"]) == batch.jobs("spool-a", ["22"]) == {}
    assert (tmp_path / "asked").read_text() == "x\n"


SINFO = """\
gpu*|up|10|64|515000+|gpu:a100:4(S:0-1),nvme:1|2-00:00:00|1-8
gpu*|up|2|32+|256000|gpu:v100:2,gpu:mps:0|2-00:00:00|1-8
cpu|up|100|128|257000|(null)|infinite|1-infinite
old|down|4|16|64000|(null)|1:00:00|1-infinite
login|up|1|8|64000|(null)|30:00|1
"""


def test_a_partition_of_unlike_nodes_has_what_the_least_has(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "sinfo", f'cat <<"X"\n{SINFO}X')
    gpu, cpu, login = Slurm().partitions()
    assert (gpu.name, gpu.default, gpu.nodes, gpu.max_nodes) == ("gpu", True, 12, 8)
    assert gpu.node == NodeShape(32, 2, 256000)
    assert (cpu.max_s, cpu.max_nodes, cpu.node.gpus) == (None, None, 0)
    assert (login.max_s, login.max_nodes) == (1800.0, 1)


def test_idle_nodes_become_fewer_with_each_reservation():
    taken = [(7200.0, 3), (600.0, 2), (90000.0, 9)]
    assert list(staircase(10, 86400.0, taken)) == [
        Window(10, 600.0), Window(8, 7200.0), Window(5, 86400.0),
    ]  # fmt: skip
    assert list(staircase(2, 86400.0, [(600.0, 5)])) == [Window(2, 600.0)]
    assert list(staircase(0, 86400.0, [])) == []


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path, monkeypatch):
    from spool.service.system import ask

    fake(tmp_path, monkeypatch, "squeue", f"sleep 60 & echo $! >{tmp_path}/child; wait")
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="no answer within 0.5 s"):
        ask(["squeue"], limit_s=0.5)
    assert time.monotonic() - begun < 5
    child = (tmp_path / "child").read_text().strip()
    eventually(lambda: not alive(child), "the child is killed too")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False
