"""This machine as a batch system: real processes, and their ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import eventually

from spool.queue import processes
from spool.service import local_tree
from spool.service.local import Local
from spool.service.local_tree import LocalTree
from spool.service.system import Declined, Order
from spool.service.terms import NodeShape

FAR = f"{int((time.time() - 5000) * 1e6):016d}-0000"


@pytest.fixture
def local(tmp_path):
    one = Local(str(tmp_path / "jobs"), nodes=2, grace_s=1.0)
    yield one
    one.cancel(list(one.jobs("", ())))
    eventually(lambda: states(one) <= {"ended"}, "nothing is left behind")


def order(nodes=1, walltime_s=60.0, name="spool-test-1", **more):
    return Order(name=name, queue="", nodes=nodes, walltime_s=walltime_s, **more)


def submit(local, tmp_path, text, **more):
    script = tmp_path / f"script-{os.urandom(4).hex()}"
    script.write_text(f"#!/bin/sh\n{text}\n")
    return local.submit(str(script), order(**more))


def states(local):
    return {job.state for job in local.jobs("", ()).values()}


def ends(local, id_, outcome):
    eventually(lambda: local.jobs("", ())[id_].state == "ended", f"{id_} ends")
    assert local.jobs("", ())[id_].outcome == outcome
    return local.jobs("", ())[id_]


def runs(local, id_):
    eventually(lambda: local.jobs("", ())[id_].state == "running", f"{id_} runs")


def minder(tmp_path, id_):
    """The process that runs a job."""
    (name,) = (one.name for one in (tmp_path / "jobs/running").glob(f"{id_}@*"))
    return int(name.split("@")[3])


def test_a_job_runs_where_it_was_submitted_and_writes_its_output(local, tmp_path):
    output = tmp_path / "out put"
    id_ = submit(local, tmp_path, "pwd; echo wrong >&2", output=str(output))
    job = ends(local, id_, "completed")
    assert output.read_text() == f"{os.getcwd()}\nwrong\n"
    assert (job.name, job.nodes, job.queue) == ("spool-test-1", 1, "local")
    assert job.used_s is not None and job.used_s < 20


def test_an_exit_code_is_a_failure_and_is_kept(local, tmp_path):
    id_ = submit(local, tmp_path, "exit 3")
    ends(local, id_, "failed")
    record = json.loads((tmp_path / f"jobs/ended/{id_}@failed").read_text())
    assert record["code"] == 3


def test_a_script_that_cannot_be_run_fails_and_says_so(local, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/nowhere/sh\n")
    ends(local, local.submit(str(script), order()), "failed")
    assert "No such file" in (tmp_path / "jobs/trouble").read_text()


def test_what_does_not_fit_waits_and_starts_by_itself_in_order(local, tmp_path):
    log = tmp_path / "log"
    gate = tmp_path / "gate"
    first = submit(local, tmp_path, f"while ! test -e {gate}; do sleep 0.05; done", nodes=2)
    runs(local, first)
    later = [submit(local, tmp_path, f"echo {number} >>{log}", nodes=2) for number in range(3)]
    told = local.jobs("spool-test", ())
    assert [told[id_].state for id_ in later] == ["queued"] * 3
    assert told[later[0]].why.startswith("Resources")
    assert local.windows("") == ()
    gate.touch()
    eventually(lambda: log.exists() and log.read_text() == "0\n1\n2\n", "nobody asked for them")
    ends(local, later[-1], "completed")


def test_two_jobs_of_one_node_run_side_by_side_and_a_wide_one_is_not_overtaken(local, tmp_path):
    one, two = (submit(local, tmp_path, "sleep 60") for _ in range(2))
    runs(local, one)
    runs(local, two)
    local.cancel([one])
    ends(local, one, "cancelled")
    assert local.windows("")[0].nodes == 1
    wide = submit(local, tmp_path, "sleep 60", nodes=2)
    small = submit(local, tmp_path, "sleep 60")
    told = local.jobs("", ())
    assert (told[wide].state, told[small].state) == ("queued", "queued")


def test_who_looks_often_starts_no_crowd_for_one_queued_job(local, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(LocalTree, "_start", lambda tree, id_: started.append(id_))
    id_ = submit(local, tmp_path, "true")
    for _ in range(20):
        assert local.jobs("", ())[id_].state == "queued"
    assert started == [id_]
    monkeypatch.setattr(local_tree, "START_S", 0.0)  # that one seems to have come to nothing
    local.jobs("", ())
    assert started == [id_, id_]


def test_the_walltime_ends_a_job_with_what_it_started_elsewhere(local, tmp_path):
    stubborn = "trap '' TERM; setsid sh -c 'trap \"\" TERM; exec sleep 61' & sleep 61"
    id_ = submit(local, tmp_path, stubborn, walltime_s=1.0)
    runs(local, id_)
    mark = f"SPOOL_LOCAL_JOB={id_}"
    eventually(lambda: len(processes.carrying([mark])) >= 3, "all have started")
    assert 0 < local.jobs("", ())[id_].left_s <= 1
    job = ends(local, id_, "timeout")
    assert 2 <= job.used_s < 10
    assert not processes.carrying([mark])


def test_a_launcher_has_the_grace_though_its_shell_goes_at_once(local, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(print('drained')))\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    output = tmp_path / "output"
    id_ = submit(local, tmp_path, f"{sys.executable} {slow}", output=str(output))
    eventually(lambda: output.exists() and "up" in output.read_text(), "it is up")
    local.cancel([id_, "no-such-job"])
    ends(local, id_, "cancelled")
    assert output.read_text() == "up\ndrained\n"


def test_a_queued_job_is_cancelled_at_once(local, tmp_path):
    runs(local, submit(local, tmp_path, "sleep 60", nodes=2))
    id_ = submit(local, tmp_path, "sleep 60")
    local.cancel([id_])
    assert local.jobs("", [id_])[id_].outcome == "cancelled"


def test_a_job_whose_minder_is_killed_has_failed_and_nothing_of_it_lives(local, tmp_path):
    id_ = submit(local, tmp_path, "setsid sleep 61 & sleep 61", nodes=2)
    runs(local, id_)
    mark = f"SPOOL_LOCAL_JOB={id_}"
    eventually(lambda: len(processes.carrying([mark])) >= 3, "all have started")
    following = submit(local, tmp_path, "true", nodes=2)
    os.kill(minder(tmp_path, id_), signal.SIGKILL)
    ends(local, id_, "failed")
    assert not processes.carrying([mark])
    ends(local, following, "completed")


def test_jobs_outlive_the_process_that_submitted_them(local, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nsleep 60\n")
    program = (
        "import os, signal\nfrom spool.service.local import Local\n"
        "from spool.service.system import Order\n"
        f"local = Local({str(tmp_path / 'jobs')!r}, nodes=2, grace_s=1.0)\n"
        "order = Order(name='spool-a', queue='', nodes=1, walltime_s=60)\n"
        f"local.submit({str(script)!r}, order)\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], start_new_session=True, check=False)
    (id_,) = local.jobs("spool-a", ())
    runs(local, id_)


def test_two_submitters_at_once_start_each_job_once_and_use_no_node_twice(tmp_path):
    log = tmp_path / "log"
    places = [Local(str(tmp_path / "jobs"), nodes=2, grace_s=1.0) for _ in range(3)]
    text = f"echo start $SPOOL_LOCAL_JOB >>{log}; sleep 0.1; echo end >>{log}"

    def some(place):
        ids = [submit(place, tmp_path, text) for _ in range(2)]
        place.jobs("", ())
        return ids

    with ThreadPoolExecutor(3) as pool:
        ids = {id_ for found in pool.map(some, places) for id_ in found}
    assert len(ids) == 6
    eventually(lambda: states(places[0]) == {"ended"}, "all have run")
    lines = log.read_text().splitlines()
    started = [line.split()[1] for line in lines if line.startswith("start")]
    assert sorted(started) == sorted(ids)
    at_once, most = 0, 0
    for line in lines:
        at_once += 1 if line.startswith("start") else -1
        most = max(most, at_once)
    assert most <= 2
    assert {job.outcome for job in places[0].jobs("", ()).values()} == {"completed"}


def test_an_order_that_never_fits_is_declined_with_its_cause(local, tmp_path):
    for wrong, cause in (
        ({"nodes": 3}, "limit"),
        ({"nodes": 0}, "limit"),
        ({"walltime_s": 0.0}, "limit"),
    ):
        with pytest.raises(Declined) as caught:
            submit(local, tmp_path, "true", **wrong)
        assert caught.value.cause == cause
    with pytest.raises(Declined, match="no such file"):
        local.dry_run(str(tmp_path / "nothing"), order())
    with pytest.raises(Declined, match="no queue 'gpu'"):
        local.submit(__file__, Order(name="a", queue="gpu", nodes=1, walltime_s=1))


def test_only_those_asked_for_are_told(local, tmp_path):
    mine = submit(local, tmp_path, "true", name="spool-a-1")
    other = submit(local, tmp_path, "true", name="spool-b-1")
    assert set(local.jobs("spool-a", ())) == {mine}
    assert set(local.jobs("spool-a", [other, "no-such-job"])) == {mine, other}


def test_it_tells_what_this_machine_is(tmp_path):
    local = Local(str(tmp_path), nodes=4, node=NodeShape(8, 1, 1000))
    (one,) = local.partitions()
    assert (one.nodes, one.max_nodes, one.node.cores, one.default) == (4, 4, 8, True)
    assert Local(str(tmp_path)).partitions()[0].node.cores == len(os.sched_getaffinity(0))
    assert [window.nodes for window in local.windows("")] == [4]


def far(tmp_path, host="elsewhere", began=0.0):
    """A job of another process table."""
    folder = tmp_path / "jobs/running"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"name": "spool-far-1", "nodes": 1, "walltime_s": 60, "script": "s", "folder": "/"}
    name = folder / f"{FAR}@{host}@0badb007@1@1"
    name.write_text(json.dumps({**record, "began": began}))
    return name


def test_a_job_on_another_host_runs_until_its_time_is_surely_over(local, tmp_path):
    far(tmp_path, began=time.time())
    assert local.jobs("spool-far", ())[FAR].state == "running"
    far(tmp_path, began=time.time() - 1000)
    assert local.jobs("spool-far", ())[FAR].outcome == "node-fail"


def test_after_a_reboot_nothing_from_before_it_runs(local, tmp_path):
    far(tmp_path, host=os.uname().nodename, began=1000.0)
    assert local.jobs("spool-far", ())[FAR].outcome == "node-fail"


def test_a_job_inherits_no_mark_by_which_others_would_kill_it(local, tmp_path, monkeypatch):
    for name in ("SPOOL_LAUNCHER", "SPOOL_TASK", "SPOOL_LOCAL_JOB"):
        monkeypatch.setenv(name, "another")
    output = tmp_path / "output"
    ends(local, submit(local, tmp_path, "env", output=str(output)), "completed")
    assert "=another" not in Path(output).read_text()
