"""survey: what doctor says of a machine as a place to run tasks is so, and nothing hangs it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import slurm_cluster
from conftest import eventually, make_tree, run_spool

from spool.config import Settings, with_leases
from spool.launcher import mpirun, starting, survey
from spool.launcher.allocation import Allocation
from spool.launcher.mpirun import Flavour
from spool.launcher.nodes import Node
from spool.launcher.survey import Ran

slurm = slurm_cluster.slurm

OWN = os.path.dirname(sys.executable)
HYDRA = """#!/bin/sh
if [ "$1" = --version ]; then echo HYDRA build details:; exit; fi
"""
PLACE = {"allocation", "mpi tasks", "mpi4py"}


def no_mpi():
    """Why ranks cannot be started; "" if they can."""
    if shutil.which("mpiexec", path=OWN) is None:
        return "needs an mpiexec beside Python (the Python package mpich)"
    try:
        metadata.version("mpi4py")
    except metadata.PackageNotFoundError:
        return "needs the Python package mpi4py"
    return ""


needs_mpi = pytest.mark.skipif(bool(no_mpi()), reason=no_mpi())


@pytest.fixture(autouse=True)
def _no_job_around_us(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PBS_", "LSB_", "COBALT_", "FLUX_", "JOB_ID")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{OWN}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def own_mpiexec(tmp_path, monkeypatch):
    """own_mpiexec(script) is the first mpiexec on PATH from now on; it says that it is hydra.
    beside: it seems to have come with mpi4py, and the one that has is gone."""

    def make(script, told=HYDRA, beside=False):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "mpiexec"
        program.write_text(told + script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(starting, "OWN", str(folder) if beside else OWN)
        return str(program)

    return make


@pytest.fixture
def own_mpi4py(tmp_path, monkeypatch):
    """own_mpi4py(source) is what Python imports as mpi4py from now on."""

    def make(source):
        folder = tmp_path / "python"
        folder.mkdir()
        (folder / "mpi4py.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return make


def surveyed(settings=None, **options):
    """(verdict, sentence) of each finding, by its check."""
    found = {}
    for finding in survey.examine(settings or Settings(), **options):
        assert finding.says.isprintable(), finding
        found.setdefault(finding.check, []).append((finding.verdict, finding.says))
    return found


# -- this machine --------------------------------------------------------------------------------


@needs_mpi
def test_here_ranks_start_and_see_each_other(tree):
    ran = run_spool(tree.root, "doctor", "--json")
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (ran.returncode, ran.stderr) == (0, "")
    assert all(list(line) == ["check", "verdict", "says"] for line in lines)
    told = {line["check"]: line for line in lines}
    assert PLACE | {"mpi start", "ranks", "file system", "tools"} <= set(told)
    assert not {"leases", "per node"} & set(told)
    assert (told["mpi start"]["verdict"], told["mpi4py"]["verdict"]) == ("ok", "ok")
    ways = [line for line in lines if line["check"] == "ranks"]
    assert (ways[0]["verdict"], ways[0]["says"].endswith("see each other; chosen")) == ("ok", True)
    assert [line["verdict"] for line in ways].count("ok") == 1


def test_the_checks_of_the_place_follow_those_of_the_disk_and_can_start_nothing(tree):
    ran = run_spool(tree.root, "doctor", "--no-mpi")
    checks = [line[6:28].strip() for line in ran.stdout.splitlines()]
    assert ran.returncode == 0
    assert checks[-4:] == ["tools", "allocation", "mpi tasks", "mpi4py"]


def test_on_a_terminal_what_takes_a_moment_is_shown_and_wiped(tree):
    ours, theirs = pty.openpty()
    try:
        ran = run_spool_to(tree.root, theirs)
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert ran.returncode == 0
    assert "\rloading mpi4py " in shown
    assert shown.endswith(f"\r{'':79}\r")
    assert "loading" not in ran.stdout


def run_spool_to(root, terminal):
    """`spool doctor` with standard error on a terminal."""
    words = [sys.executable, "-m", "spool.cli", "--spool", root, "doctor", "--no-mpi"]
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=60)


def test_a_wrong_setting_fails(tmp_path):
    tree = make_tree(tmp_path / "spool", '[launcher]\nmpirun = "nosuchrun"\n')
    ran = run_spool(tree.root, "doctor")
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("fail")]
    assert ran.returncode == 6
    assert line.split()[1:3] == ["mpi", "tasks"]
    assert "there is no program nosuchrun. Allowed are auto, " in line
    assert "mpi start" not in ran.stdout


def test_a_job_that_is_not_ours_is_told(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "elsewhere[1-2]")
    monkeypatch.setenv("SLURM_CONF", os.devnull)
    (first, *others) = surveyed(start=False)["allocation"]
    assert (first[0], first[1].startswith("none (this machine alone: ")) == ("note", True)
    assert others
    assert {verdict for verdict, _ in others} == {"warn"}
    assert "is not among its nodes" in others[-1][1]


# -- broken programs -----------------------------------------------------------------------------


@needs_mpi
def test_an_mpiexec_that_fails_is_a_warning_and_python_s_own_starts_ranks(own_mpiexec):
    program = own_mpiexec("echo first >&2; echo no proxy here >&2; echo ----- >&2; exit 7\n")
    said = []
    found = surveyed(say=said.append)
    assert found["mpi tasks"] == [("ok", f"each is started by hydra, {program}")]
    ((verdict, why),) = found["mpi start"]
    assert (verdict, why.partition(";")[0]) == (
        "warn",
        "2 ranks could not be started: no proxy here",
    )
    good = found["ranks"][0]
    assert (good[0], good[1].endswith("2 ranks see each other; chosen")) == ("ok", True)
    assert good[1].startswith(OWN)
    assert f"starting 2 ranks with {program}" in said


@needs_mpi
def test_where_none_came_with_python_the_reason_is_told(own_mpiexec):
    program = own_mpiexec("echo no proxy here >&2; exit 7\n", beside=True)
    verdict, says = surveyed()["ranks"][0]
    assert (verdict, says.startswith(f"{program} (hydra): does not work: ")) == ("note", True)


@needs_mpi
def test_where_the_one_beside_python_is_broken_the_next_one_is_tried(own_mpiexec, monkeypatch):
    path = os.environ["PATH"]
    program = own_mpiexec("echo no proxy here >&2; exit 7\n", beside=True)
    monkeypatch.setenv("PATH", path)  # where the one that works comes first
    said = []
    broken, good = surveyed(say=said.append)["ranks"][:2]
    assert broken[1].startswith(f"{program} (hydra): does not work: ")
    assert (broken[0], good[0]) == ("note", "ok")
    assert good[1].endswith("2 ranks see each other; chosen")
    assert f"starting 2 ranks with {program} (hydra)" in said


@needs_mpi
def test_an_mpiexec_of_another_mpi_starts_singletons(own_mpiexec):
    own_mpiexec('while [ "$1" != -n ]; do shift; done; shift 2; "$@" & "$@"; wait\n', beside=True)
    found = surveyed()
    assert "none finds its number" in found["mpi start"][0][1]
    assert found["ranks"][0][0] == "note"
    assert "2 singletons: this mpiexec belongs to another MPI" in found["ranks"][0][1]


def test_an_mpiexec_that_hangs_is_killed_with_what_it_started(
    own_mpiexec, own_mpi4py, tmp_path, monkeypatch
):
    own_mpi4py("raise ModuleNotFoundError(\"No module named 'mpi4py'\")")
    monkeypatch.setattr(survey, "LIMIT_S", 1.0)
    own_mpiexec(f"sleep 600 & echo $! > {tmp_path}/child\necho waiting >&2; wait\n")
    ((verdict, why),) = surveyed()["mpi start"]
    assert (verdict, why.partition(";")[0]) == (
        "warn",
        "2 ranks did not end within 1 s (waiting)",
    )
    child = (tmp_path / "child").read_text().strip()
    eventually(lambda: not lives(child), "the child is killed")


def lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_file_that_is_no_program_is_passed_over_or_fails_where_it_was_asked_for(own_mpiexec):
    program = own_mpiexec("\0", told="")
    assert program not in surveyed(start=False)["mpi tasks"][0][1]
    found = surveyed(Settings(launcher_mpirun=program))
    assert found["mpi tasks"][0][0] == "fail"
    assert "names no mpirun that spool knows" in found["mpi tasks"][0][1]
    assert "mpi start" not in found


def test_a_template_is_tried_too():
    loop = "sh -c 'for PMI_RANK in 0 1; do export PMI_RANK; \"$@\"; done' {hosts} {command}"
    found = surveyed(Settings(launcher_mpirun=loop))
    assert found["mpi tasks"][0][1].startswith("each is started by the template sh -c")
    assert found["mpi start"][0][0] == "ok"


@pytest.mark.parametrize(
    ("source", "verdict", "said"),
    [
        ("raise ModuleNotFoundError(\"No module named 'mpi4py'\")", "note", "not installed"),
        ("raise RuntimeError('cannot load MPI library')", "warn", "cannot load MPI library"),
    ],
)
def test_without_a_working_mpi4py_no_ranks_are_tried(own_mpi4py, source, verdict, said):
    own_mpi4py(source)
    found = surveyed()
    assert (found["mpi4py"][0][0], said in found["mpi4py"][0][1]) == (verdict, True)
    assert "--per-node" in found["mpi4py"][0][1]
    assert "ranks" not in found


# -- a real allocation ---------------------------------------------------------------------------


@pytest.mark.system
@needs_mpi
def test_in_a_job_of_two_nodes_all_of_it_is_looked_at(slurm, tree):
    program = f"{sys.executable} -m spool.cli --spool {tree.root} doctor --json"
    job = slurm.sbatch(program, "-N2", "-c", "64", "-t", "5")
    slurm.wait(job)
    told = [json.loads(line) for line in slurm.output(job).splitlines()]
    found = {line["check"]: line for line in reversed(told)}
    place = ("allocation", "mpi tasks", "mpi start", "mpi4py", "ranks", "per node", "leases")
    assert {check: found[check]["verdict"] for check in place} == dict.fromkeys(place, "ok")
    assert found["allocation"]["says"].startswith(f"slurm job {job}: 2 nodes, 64 cores each, 4m")
    assert found["mpi tasks"]["says"].startswith("each is started by srun")
    assert found["ranks"]["says"].startswith(f"{OWN}/mpiexec")
    assert found["per node"]["says"] == "a command ran on 1 other node"


# -- what the facts mean -------------------------------------------------------------------------

NODE = Node((0, 1, 2), ("0", "1"), 12_345)


@pytest.mark.parametrize(
    ("granted", "verdict", "said"),
    [
        (
            Allocation(""),
            "note",
            "none (this machine alone: 3 cores, 12,345 MB, GPUs 0, 1)",
        ),
        (
            Allocation("slurm", "7", ("a", "b"), (64, 64), ends=1000 + 12_000.0),
            "ok",
            "slurm job 7: 2 nodes, 64 cores each, 3h20m left; this one: 3 cores",
        ),
        (
            Allocation("pbs", "7.x", ("a", "b", "c"), (4, 8, 6)),
            "ok",
            "pbs job 7.x: 3 nodes, 4 to 8 cores each, its end is not known; this one: ",
        ),
        (
            Allocation("sge", "7", (), (), ends=1000.0),
            "warn",
            "sge job 7: 1 node, cores not told, its time is up; ",
        ),
        (
            Allocation("flux", "", ("a",), (1,), ends=1001.0),
            "ok",
            "flux: 1 node, 1 core, 1s left; ",
        ),
    ],
)
def test_an_allocation_is_told(granted, verdict, said):
    answer = survey.of_allocation(granted, NODE, 1000.0)
    assert (answer[0], answer[1][: len(said)]) == (verdict, said)


@pytest.mark.parametrize(
    ("flavour", "verdict", "said"),
    [
        (None, "note", "pip install mpich"),
        (Flavour("hydra", "/m/mpiexec", "4.2"), "ok", "by hydra 4.2, /m/mpiexec"),
        (Flavour("srun", "/usr/bin/srun"), "ok", "by srun, /usr/bin/srun"),
        (
            Flavour("openmpi", "/m/mpirun", "5.0", extra=("--mca", "btl", "self")),
            "ok",
            "with --mca btl self",
        ),
        (Flavour("template", "run", template="run {command}"), "ok", "template run {command}"),
    ],
)
def test_an_mpirun_is_named(flavour, verdict, said):
    answer = survey.of_flavour(flavour)
    assert (answer[0], said in answer[1]) == (verdict, True)


def ranks(*numbers):
    return "".join(f"{survey.MARK}{number}\n" for number in numbers)


@pytest.mark.parametrize(
    ("ran", "verdict", "said"),
    [
        (Ran(0, ranks(1, 0), took_s=0.0123), "ok", "2 ranks started and ended in 12 ms"),
        (Ran(0, f"a banner\n[1] {ranks(1)}[0] {ranks(0)}"), "ok", "2 ranks"),
        (Ran(0, ranks(0, 0)), "warn", "2 ranks ran, but they are numbered 0, 0 and not 0, 1"),
        (Ran(0, ranks(0, 1, 2)), "warn", "3 ranks ran, but"),
        (Ran(0, ranks("", "")), "warn", "none finds its number"),
        (Ran(0, ranks(0)), "warn", "of 2 ranks 1 ran"),
        (Ran(1, ranks(0, 1), "a\nno slots\n\n---\n"), "warn", "could not be started: no slots;"),
        (Ran(-9, ""), "warn", "exit code -9"),
        (Ran(None, ranks(0, 1)), "warn", "did not end within 30 s; set launcher.mpirun"),
        (Ran(None, "", "no route\n"), "warn", "did not end within 30 s (no route);"),
        (Ran(1, "", "\x1b[31mred\n"), "warn", ": [31mred;"),
    ],
)
def test_two_ranks_must_run_and_know_which_they_are(ran, verdict, said):
    answer = survey.of_start(ran)
    assert (answer[0], said in answer[1], answer[1].isprintable()) == (verdict, True, True)


@pytest.mark.parametrize(
    ("ran", "verdict", "said"),
    [
        (Ran(0, "4.1.2\nMPICH Version:      5.0\nMore\n"), "ok", "4.1.2 with MPICH Version: 5.0"),
        (Ran(0, "4.1.2\nOpen MPI v5.0.1, package\0\n"), "ok", "4.1.2 with Open MPI v5.0.1, pack"),
        (Ran(1, "", "a\nModuleNotFoundError: No module named 'mpi4py'\n"), "note", "not installed"),
        (Ran(1, "", "ImportError: libmpi.so.12: cannot open\n"), "warn", "libmpi.so.12"),
        (Ran(None), "warn", "did not end"),
    ],
)
def test_mpi4py_is_told_with_its_library(ran, verdict, said):
    answer = survey.of_mpi4py(ran)
    assert (answer[0], said in answer[1], answer[1].isprintable()) == (verdict, True, True)


@pytest.mark.parametrize(
    ("seen", "chosen", "verdict", "said"),
    [
        ("2", False, "ok", "2 ranks see each other; chosen"),
        ("2", True, "note", "2 ranks see each other as well"),
        ("1", False, "note", "2 singletons: this mpirun belongs to another MPI than mpi4py"),
        ("3", False, "note", "does not work: ranks see 3 of 2"),
        ("hung for 60 s", True, "note", "does not work: hung for 60 s"),
    ],
)
def test_ways_to_start_ranks_are_told_by_what_ranks_saw(seen, chosen, verdict, said):
    name = "/m/bin/mpirun (openmpi)"
    assert survey.of_way(name, seen, chosen=chosen) == (verdict, f"{name}: {said}")


def test_no_way_to_start_ranks_matters_where_there_are_several_nodes():
    assert survey.of_no_way(several=True)[0] == "warn"
    assert survey.of_no_way(several=False)[0] == "note"


@pytest.mark.parametrize(
    ("codes", "verdict", "said"),
    [
        ({"b": 0, "c": 0}, "ok", "a command ran on 2 other nodes"),
        ({"b": 0, "c": 255}, "warn", "no answer from 1 of 2 other nodes: c; "),
        (
            {f"n{number}": 1 for number in range(11)},
            "warn",
            "no answer from 11 of 11 other nodes: n0, n1, n2, n3, n4, n5, n6, n7 and 3 more; ",
        ),
    ],
)
def test_nodes_that_do_not_answer_are_named(codes, verdict, said):
    answer = survey.of_answers(codes)
    assert (answer[0], answer[1][: len(said)]) == (verdict, said)


def test_leases_are_told_with_their_reason():
    plain = Settings()
    longer = with_leases(plain, 1800, 3600)
    assert (
        "beat for 30m kills its own tasks, one silent for 1h" in survey.of_leases(plain, longer)[1]
    )
    assert survey.of_leases(longer, longer)[1].endswith("(as spool.toml says)")


def test_a_rank_is_asked_for_its_number_as_in_the_lines_before_a_task_s_program():
    assert "".join(f"${{{name}-" for name in survey.RANKS) in mpirun._PROLOGUE
