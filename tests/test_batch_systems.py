"""Batch systems that cannot run here, by what several versions of them have printed."""

from __future__ import annotations

import getpass
import os

import pytest
from fake_commands import RECORDED, fake, prints

from spool.errors import SpoolError
from spool.service import systems
from spool.service.flux import Flux
from spool.service.lsf import Lsf
from spool.service.pbs import Pbs, Torque
from spool.service.sge import Sge
from spool.service.slurm import Slurm
from spool.service.system import Declined, Order, Unreachable, ask, clock, meant
from spool.service.terms import NodeShape, Window

WHOLE = Order(
    name="spool-a-1",
    queue="debug",
    nodes=2,
    walltime_s=5400.5,
    account="Physics",
    node=NodeShape(64, 4, 0),
    output="/spool/allocations/a-1/output",
    directives=("-x site",),
)


@pytest.fixture(autouse=True)
def only_fakes(tmp_path, monkeypatch):
    """No batch system's command but those a test fakes."""
    for name in ("SGE_ROOT", "PBS_DEFAULT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cat", "echo"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:")


def ends(told):
    return {id_.partition(".")[0]: (job.state, job.outcome) for id_, job in told.items()}


# -- the directives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [
        (Slurm(), ["--nodes=2", "--exclusive", "--time=01:30:01", "--partition=debug",
                   "--account=Physics", "--gres=gpu:4", "--no-requeue", "-x site"]),
        (Pbs(), ["-l select=2:ncpus=64:ngpus=4", "-l place=scatter:exclhost", "-q debug",
                 "-l walltime=01:30:01", "-A Physics", "-r n", "-j oe", "-x site"]),
        (Torque(), ["-l nodes=2:ppn=64:gpus=4", "-n", "-l walltime=01:30:01", "-x site"]),
        (Lsf(), ["-n 128", '-R "span[ptile=64]"', "-x", "-W 91", "-q debug", "-P Physics", "-rn"]),
        (Flux(), ["--nodes=2", "--exclusive", "--time-limit=5400s", "--queue=debug",
                  "--bank=Physics"]),
        (Sge(), ["-l h_rt=01:30:01", "-q debug", "-P Physics", "-r n", "-S /bin/sh"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_a_script_s_head_says_all_that_was_ordered(batch, wanted):
    lines = batch.head(WHOLE)
    (prefix,) = {line.split(" ", 1)[0] for line in lines}
    said = [line.split(" ", 1)[1] for line in lines]
    assert prefix in ("#SBATCH", "#PBS", "#BSUB", "#flux:", "#$")
    assert [one for one in wanted if one not in said] == []
    assert [one for one in said if "spool-a-1" in one]
    assert [one for one in said if "/spool/allocations/a-1/output" in one]
    assert said[-1] == "-x site"


def test_a_site_that_counts_nodes_or_slots_is_told_so_by_a_directive_without_a_number():
    lines = Lsf().head(Order(name="a", queue="", nodes=3, walltime_s=60, directives=("-nnodes",)))
    assert "#BSUB -nnodes 3" in lines
    assert not [line for line in lines if "ptile" in line or line == "#BSUB -nnodes"]
    shape = NodeShape(16, 0, 0)
    order = Order(
        name="a", queue="", nodes=3, walltime_s=60, node=shape, directives=("-pe fill", "-V")
    )
    assert Sge().head(order)[-2:] == ["#$ -pe fill 48", "#$ -V"]


def test_grid_engine_without_an_environment_has_one_node():
    with pytest.raises(Declined, match="need the directive -pe NAME"):
        Sge().submit("/dev/null", Order(name="a", queue="", nodes=2, walltime_s=60))


# -- submission ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "command", "printed", "id_"),
    [
        (Pbs(), "qsub", "123.pbs-01.example.org", "123.pbs-01.example.org"),
        (Pbs(), "qsub", "Project hours left: 12\n123.pbs-01", "123.pbs-01"),
        (Torque(), "qsub", "123.torque.example.org", "123.torque.example.org"),
        (Lsf(), "bsub", "Job <123> is submitted to queue <batch>.", "123"),
        (Lsf(), "bsub", "Job <123> is submitted to default queue <normal>.", "123"),
        (Flux(), "flux", "f2SMRvVu3h", "f2SMRvVu3h"),
        (Flux(), "flux", "ƒ2SMRvVu3h", "f2SMRvVu3h"),
        (Sge(), "qsub", "123", "123"),
    ],
)
def test_a_submission_tells_the_job_s_id(tmp_path, monkeypatch, batch, command, printed, id_):
    prints(tmp_path, monkeypatch, command, out=f"cat <<'X'\n{printed}\nX")
    order = Order(name="a", queue="", nodes=1, walltime_s=60)
    assert batch.submit("/dev/null", order) == id_
    prints(tmp_path, monkeypatch, command, out="echo Thank you")
    with pytest.raises(Unreachable, match="Thank you"):
        batch.submit("/dev/null", order)


def test_lsf_reads_the_script_from_its_input(tmp_path, monkeypatch):
    script = tmp_path / "script"
    script.write_text("#BSUB -n 1\n")
    fake(tmp_path, monkeypatch, "bsub", f"cat >{tmp_path}/read; echo 'Job <1> is submitted to'")
    Lsf().submit(str(script), Order(name="a", queue="", nodes=1, walltime_s=60))
    assert (tmp_path / "read").read_text() == "#BSUB -n 1\n"


REFUSALS = [
    (Pbs(), "qsub", "qsub: Unknown queue", "partition"),
    (Pbs(), "qsub", "qsub: Queue is not enabled", "partition"),
    (Pbs(), "qsub", "qsub: Job violates queue and/or server resource limits", "limit"),
    (Pbs(), "qsub", "qsub: would exceed queue generic's per-user limit of jobs in 'Q' state",
     "quota"),
    (Pbs(), "qsub", "qsub: Maximum number of jobs already in queue", "quota"),
    (Pbs(), "qsub", "qsub: Request rejected.  Reason: No account specified", "account"),
    (Pbs(), "qsub", "qsub: Unauthorized Request", "account"),
    (Pbs(), "qsub", "qsub: Access to queue is denied", "account"),
    (Pbs(), "qsub", "qsub: Illegal attribute or resource value Resource_List.select", "limit"),
    (Pbs(), "qsub", "qsub: illegal -N value", "script"),
    (Torque(), "qsub", "qsub: submit error (Job exceeds queue resource limits MSG=cannot satisfy"
     " queue max walltime requirement)", "limit"),
    (Torque(), "qsub", "qsub: submit error (Unknown queue MSG=cannot locate queue)", "partition"),
    (Lsf(), "bsub", "nowhere: No such queue. Job not submitted.", "partition"),
    (Lsf(), "bsub", "RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", "limit"),
    (Lsf(), "bsub", "Too many processors requested. Job not submitted.", "limit"),
    (Lsf(), "bsub", "User cannot use the queue. Job not submitted.", "account"),
    (Lsf(), "bsub", "Request aborted by esub. Job not submitted.", "account"),
    (Lsf(), "bsub", "User's pending job threshold reached. Job not submitted.", "quota"),
    (Flux(), "flux", "flux-batch: ERROR: [Errno 22] Invalid queue 'nowhere' specified",
     "partition"),
    (Flux(), "flux", "flux-batch: ERROR: [Errno 22] requested duration exceeds policy limit of 1h",
     "limit"),
    (Flux(), "flux", "flux-batch: ERROR: [Errno 22] cannot find user/bank or user/default bank",
     "account"),
    (Flux(), "flux", "flux-batch: ERROR: [Errno 22] user has max active jobs", "quota"),
    (Flux(), "flux", "flux-batch: ERROR: Number of slots to allocate must be specified", "script"),
    (Sge(), "qsub", 'Unable to run job: Job was rejected because job requests unknown queue "no".',
     "partition"),
    (Sge(), "qsub", "Unable to run job: job rejected: only 5 jobs are allowed per user", "quota"),
    (Sge(), "qsub", 'Unable to run job: job rejected: the project "x" does not exist', "account"),
    (Sge(), "qsub", "Unable to run job: job rejected: the requested parallel environment \"x\" does"
     " not exist", "partition"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "command", "said", "cause"), REFUSALS)
def test_a_refusal_has_its_cause(tmp_path, monkeypatch, batch, command, said, cause):
    prints(tmp_path, monkeypatch, command, err=said, code=1)
    with pytest.raises(Declined) as caught:
        batch.submit("/dev/null", Order(name="a", queue="", nodes=1, walltime_s=60))
    assert (caught.value.cause, str(caught.value)) == (cause, " ".join(said.split()))


DOWN = [
    (Pbs(), "qsub", "Connection refused\nqsub: cannot connect to server pbs-01 (errno=111)"),
    (Pbs(), "qsub", "No route to host\nqsub: cannot connect to server pbs-01 (errno=15010)"),
    (Torque(), "qsub", "socket_connect error (VERIFY THAT trqauthd IS RUNNING)"),
    (Lsf(), "bsub", "Failed in an LSF library call: LIM is down; try later. Job not submitted."),
    (Lsf(), "bsub", "batch daemon not responding ... still trying"),
    (Flux(), "flux", "flux-batch: ERROR: Unable to connect to Flux: broker socket /run/flux/local"
     " was not found"),
    (Sge(), "qsub", "error: commlib error: got select error (Connection refused)\nUnable to run"
     ' job: unable to send message to qmaster using port 6444 on host "head".'),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "command", "said"), DOWN)
def test_a_server_that_is_down_is_no_refusal(tmp_path, monkeypatch, batch, command, said):
    for name in {command, "qstat", "qselect", "qdel", "bjobs", "bkill"}:
        prints(tmp_path, monkeypatch, name, err=said, code=1)
    calls = (
        lambda: batch.submit("/dev/null", Order(name="a", queue="", nodes=1, walltime_s=60)),
        lambda: batch.jobs("spool-a", ["1"]),
        lambda: batch.cancel(["1"]),
    )
    for call in calls:
        with pytest.raises(Unreachable):
            call()


def test_a_dry_run_is_one_or_there_is_none(tmp_path, monkeypatch):
    order = Order(name="a", queue="", nodes=1, walltime_s=60)
    assert Pbs().dry_run("/dev/null", order) is Lsf().dry_run("/dev/null", order) is None
    log = prints(tmp_path, monkeypatch, "flux", out="echo '{}'")
    assert "can read" in Flux().dry_run("/dev/null", order)
    assert log.read_text() == "batch --dry-run /dev/null\n"
    prints(tmp_path, monkeypatch, "qsub", out="echo 'verification: found suitable queue(s)'")
    assert "found suitable" in Sge().dry_run("/dev/null", order)
    prints(tmp_path, monkeypatch, "qsub", out="echo 'verification: no suitable queues'")
    with pytest.raises(Declined):
        Sge().dry_run("/dev/null", order)


# -- PBS -----------------------------------------------------------------------------------------


def test_pbs_tells_its_jobs_by_their_json(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "qselect", out="echo 101.pbs-01; echo 108.pbs-01")
    err = "qstat: Unknown Job Id 109.pbs-01"
    log = prints(tmp_path, monkeypatch, "qstat", "qstat-openpbs-2022.json", err=err, code=153)
    told = Pbs().jobs("spool-a", ["104.pbs-01.example.org", "109.pbs-01"])
    assert ends(told) == {
        "101": ("running", ""),
        "102": ("queued", ""),
        "103": ("queued", ""),
        "104": ("ended", "completed"),
        "105": ("ended", "timeout"),
        "106": ("ended", "cancelled"),
        "107": ("ended", "cancelled"),
    }
    assert log.read_text() == (
        "-x -f -F json 101.pbs-01 108.pbs-01 104.pbs-01.example.org 109.pbs-01\n"
    )
    running = told["101.pbs-01"]
    assert (running.nodes, running.hosts, running.queue) == (2, "x3001,x3002", "prod")
    assert (running.used_s, running.left_s) == (600.0, 3000.0)
    assert told["102.pbs-01"].why.startswith("Not Running: Insufficient amount of resource")
    assert told["103.pbs-01"].why == "its owner holds it"
    assert told["104.pbs-01.example.org"].used_s == 72.0  # under the id that the asker knows


def test_pbs_s_malformed_json_is_read_from_its_text(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "qselect", out="echo 201.pbs")
    fake(
        tmp_path,
        monkeypatch,
        "qstat",
        f'case "$*" in *json*) cat {RECORDED}/qstat-pbspro-19-malformed.json;;'
        f" *) cat {RECORDED}/qstat-pbspro-19.txt;; esac",
    )
    told = Pbs().jobs("spool-a", ())
    assert ends(told) == {"201": ("running", ""), "202": ("ended", "failed")}
    job = told["201.pbs"]
    assert (job.nodes, job.hosts, job.left_s) == (3, "nid00001,nid00002,nid00003", 1780.0)


def test_pbs_without_a_history_is_asked_without_it(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "qselect")
    refusal = "echo 'qstat: PBS is not configured to maintain job history' >&2; exit 35"
    fake(
        tmp_path,
        monkeypatch,
        "qstat",
        f'echo "$1" >>{tmp_path}/log; case "$1" in -x) {refusal};; *) echo "{{}}";; esac',
    )
    batch = Pbs()
    assert batch.jobs("spool-a", ["1.pbs"]) == batch.jobs("spool-a", ["1.pbs"]) == {}
    assert (tmp_path / "log").read_text().split() == ["-x", "-f", "-f"]


def test_torque_tells_its_jobs_by_their_text(tmp_path, monkeypatch):
    log = prints(tmp_path, monkeypatch, "qselect", out="echo 302.torque.example.org")
    err = "qstat: Unknown Job Id Error 303.torque.example.org"
    prints(tmp_path, monkeypatch, "qstat", "qstat-torque-6.txt", err=err, code=153)
    told = Torque().jobs("spool-a", ["301", "303"])
    assert ends(told) == {"301": ("ended", "timeout"), "302": ("queued", "")}
    assert told["301"].hosts == "n01,n02"
    assert log.read_text() == f"-u {getpass.getuser()}\n"


def test_pbs_tells_idle_nodes_only_where_nobody_waits(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "pbsnodes", "pbsnodes-openpbs.json")
    prints(tmp_path, monkeypatch, "qstat", "qstat-queues-openpbs.json")
    assert Pbs().windows("debug") == (Window(1, 3600.0),)
    assert Pbs().windows("prod") is None
    assert Pbs().windows("nowhere") is None


def test_pbs_tells_the_queues_that_take_jobs(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "pbsnodes", "pbsnodes-openpbs.json")
    fake(
        tmp_path,
        monkeypatch,
        "qstat",
        f'case "$1" in -B) echo "Server: pbs-01"; echo "    default_queue = debug";;'
        f" *) cat {RECORDED}/qstat-queues-openpbs.json;; esac",
    )
    prod, debug = Pbs().partitions()
    assert (prod.name, prod.default, prod.max_s, prod.max_nodes) == ("prod", False, 86400.0, None)
    assert (debug.name, debug.default, debug.max_s, debug.max_nodes) == ("debug", True, 3600.0, 2)
    assert (debug.nodes, debug.node) == (3, NodeShape(32, 4, 257653))


def test_cancelling_what_is_over_is_no_error(tmp_path, monkeypatch):
    over = {
        "qdel": (Pbs(), "qdel: Unknown Job Id 1.pbs\nqdel: Job has finished 2.pbs"),
        "bkill": (Lsf(), "Job <1>: No matching job found\nJob <2>: Job has already finished"),
        "flux": (
            Flux(),
            "flux-cancel: ERROR: f1: job is inactive\nflux-cancel: ERROR: unknown job",
        ),
    }
    for command, (batch, said) in over.items():
        prints(tmp_path, monkeypatch, command, err=said, code=1)
        batch.cancel(["1", "2"])
        prints(tmp_path, monkeypatch, command, err="Operation not permitted", code=1)
        with pytest.raises(Declined, match="not permitted"):
            batch.cancel(["1", "2"])
    prints(tmp_path, monkeypatch, "qdel", out="echo 'denied: job \"1\" does not exist'", code=1)
    Sge().cancel(["1", "2"])


# -- LSF -----------------------------------------------------------------------------------------


def test_lsf_tells_its_jobs_by_their_json(tmp_path, monkeypatch):
    log = prints(tmp_path, monkeypatch, "bjobs", "bjobs-lsf-10.json")
    told = Lsf().jobs("spool-a", ["401"])
    assert ends(told) == {
        "401": ("running", ""),
        "402": ("queued", ""),
        "403": ("queued", ""),
        "404": ("ended", "timeout"),
        "405": ("ended", "cancelled"),
        "406": ("ended", "failed"),
        "407": ("ended", "completed"),
        "408": ("running", ""),
    }
    assert (told["401"].left_s, told["401"].used_s) == (5400.0, 1800.0)
    assert told["401"].hosts.endswith("h49n16,h49n17")
    assert told["402"].why.endswith("it waits for nodes")
    assert told["406"].used_s == 5.0
    (asked,) = log.read_text().splitlines()
    assert asked.startswith("-json -o jobid stat job_name") and asked.endswith("-a -J spool-a*")


def test_a_job_that_lsf_does_not_know_is_missing(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "bjobs", "bjobs-lsf-unknown.json", code=255)
    assert Lsf().jobs("spool-a", ["499"]) == {}
    prints(tmp_path, monkeypatch, "bjobs", err="Job <spool-a*> is not found", code=255)
    assert Lsf().jobs("spool-a", ()) == {}


@pytest.mark.parametrize("printed", ["Segmentation fault", "{not JSON", '{"RECORDS":7}'])
def test_lsf_s_nonsense_is_not_an_empty_queue(tmp_path, monkeypatch, printed):
    prints(tmp_path, monkeypatch, "bjobs", out=f"echo '{printed}'")
    with pytest.raises(Unreachable):
        Lsf().jobs("spool-a", ())


# -- Flux ----------------------------------------------------------------------------------------


def test_flux_tells_its_jobs(tmp_path, monkeypatch):
    log = prints(tmp_path, monkeypatch, "flux", "flux-jobs.txt")
    told = Flux().jobs("spool-a", ["ƒ2SMRvVu3h"])
    assert [(id_[-1], job.state, job.outcome) for id_, job in told.items()] == [
        ("h", "running", ""),
        ("i", "running", ""),
        ("j", "queued", ""),
        ("k", "queued", ""),
        ("m", "ending", ""),
        ("n", "ended", "completed"),
        ("p", "ended", "cancelled"),
        ("q", "ended", "timeout"),
        ("r", "ended", "node-fail"),
        ("s", "ended", "failed"),
    ]
    assert "ƒ2SMRvVu3h" in told  # as the asker knows it
    job = told["f2SMRvVu3i"]
    assert (job.nodes, job.left_s, job.used_s) == (2, 3541.5, 58.4)
    assert told["f2SMRvVu3j"].why == "insufficient resources: it waits for nodes"
    assert told["f2SMRvVu3k"].why == "DEPEND"
    assert len(log.read_text().splitlines()) == 1
    prints(tmp_path, monkeypatch, "flux", out="echo no jobs for you")
    with pytest.raises(Unreachable):
        Flux().jobs("spool-a", ())


def test_flux_tells_its_queues(tmp_path, monkeypatch):
    lines = "batch*|8h|16|enabled\ndebug|1h|2|enabled\nold|0s|inf|disabled"
    prints(tmp_path, monkeypatch, "flux", out=f"cat <<'X'\n{lines}\nX")
    batch, debug = Flux().partitions()
    assert (batch.name, batch.default, batch.max_s, batch.max_nodes) == ("batch", True, 28800.0, 16)
    assert (debug.name, debug.default) == ("debug", False)


# -- Grid Engine ---------------------------------------------------------------------------------


def test_grid_engine_tells_its_jobs_and_its_accounting_those_that_are_over(tmp_path, monkeypatch):
    prints(tmp_path, monkeypatch, "qstat", "qstat-sge-8.xml")
    log = prints(tmp_path, monkeypatch, "qacct", "qacct-sge-8.txt")
    told = Sge().jobs("spool-a", ["505", "506", "507", "508", "509", "510"])
    assert ends(told) == {
        "501": ("running", ""),
        "502": ("ending", ""),
        "503": ("queued", ""),
        "504": ("queued", ""),
        "505": ("queued", ""),
        "506": ("ended", "completed"),
        "507": ("ended", "timeout"),
        "508": ("ended", "cancelled"),
        "509": ("ended", "failed"),
    }
    assert told["506"].used_s == 3601.0
    assert told["504"].why.startswith("Eqw: it could not be started")
    assert len(log.read_text().splitlines()) == 1
    assert set(Sge().jobs("spool-a", ["501"])) == {"501", "502", "503", "504"}
    assert len(log.read_text().splitlines()) == 1  # nothing was missing
    prints(tmp_path, monkeypatch, "qstat", out="echo broken")
    with pytest.raises(Unreachable):
        Sge().jobs("spool-a", ())


# -- which one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "version", "name"),
    [
        ((), "", "local"),
        (("sbatch", "qsub", "qstat", "flux"), "", "slurm"),
        (("flux", "qsub"), "", "flux"),
        (("bsub",), "", "lsf"),
        (("qsub", "qstat", "qconf"), "", "sge"),
        (("qsub", "qstat", "pbsnodes"), "pbs_version = 2022.1.1", "pbs"),
        (("qsub", "qstat", "pbsnodes"), "Version: 6.1.2\nCommit: 661e092552de43a", "torque"),
        (("qsub",), "", "pbs"),
    ],
)
def test_the_batch_system_is_known_by_its_commands(tmp_path, monkeypatch, commands, version, name):
    for command in commands:
        fake(tmp_path, monkeypatch, command, f"cat <<'X'\n{version}\nX")
    assert systems.present() == name
    assert systems.find(folder=str(tmp_path)).name == name
    assert systems.find(name, folder=str(tmp_path)).name == name


def test_a_name_that_is_none_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(SpoolError, match="no batch system 'cobalt'; one of: auto, slurm, flux"):
        systems.find("cobalt", folder=str(tmp_path))


# -- one command ---------------------------------------------------------------------------------


def test_a_command_cannot_read_our_input_and_answers_in_english(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "tell", 'cat; echo "$LC_ALL $SPOOL_TASK"; exit 3')
    monkeypatch.setenv("SPOOL_TASK", "another")
    answer = ask(["tell"])
    assert (answer.code, answer.out) == (3, "C \n")


def test_a_command_is_in_a_session_of_its_own(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "tell", "read -r line </proc/self/stat; echo $line")
    ours = os.getsid(0)
    assert int(ask(["tell"]).out.rpartition(")")[2].split()[3]) != ours


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.2, "00:01:00"), (3600, "01:00:00"), (360000, "100:00:00")]
)
def test_a_walltime_is_rounded_up_to_seconds(seconds, text):
    assert clock(seconds) == text


def test_a_reason_that_nobody_knows_is_told_as_it_is():
    assert meant("(SomethingNew)", {"Some": "new"}) == "SomethingNew: new"
    assert meant("(Other)", {"Some": "new"}) == "Other"
