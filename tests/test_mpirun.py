"""Which mpirun a setting means, its exact words, and a rank that finds its cores and GPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.errors import SpoolError
from spool.launcher import mpirun
from spool.launcher.mpirun import Flavour, Seat

relaxed = settings(deadline=None, max_examples=60)
HERE = os.path.dirname(sys.executable)
HYDRA = shutil.which("mpiexec.hydra", path=HERE)
needs_mpich = pytest.mark.skipif(
    HYDRA is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and the mpich wheel: pip install mpi4py mpich",
)
TWO = (Seat("n1", (0, 1, 2, 3), ()), Seat("n2", (0, 1, 2, 3), ()))
ALONE = (Seat("", (0, 1, 2, 3), ()),)


def words(
    flavour: Flavour,
    seats: tuple[Seat, ...] = TWO,
    *,
    pin: bool = False,
    forwarded: tuple[str, ...] = (),
) -> list[str]:
    """The words of a task with two ranks on each seat and two cores for each rank."""
    return mpirun.words(flavour, seats, 2, 2, ["./a", "b c"], pin=pin, forwarded=forwarded)


def variables(flavour: Flavour, seats: tuple[Seat, ...] = TWO, *, pin: bool = True):
    return mpirun.environment(seats, 2, 2, pin=pin, flavour=flavour)


# -- words ---------------------------------------------------------------------------------------

SRUN = "--distribution=block --cpu-bind=none --mem=0 --export=ALL --kill-on-bad-exit=1"


@pytest.mark.parametrize(
    ("flavour", "seats", "line"),
    [
        (Flavour("hydra", "mpiexec"), TWO, "mpiexec -hosts n1,n2 -ppn 2 -n 4"),
        (
            Flavour("hydra", "mpiexec"),
            ALONE,
            "mpiexec -launcher fork -hosts localhost -ppn 2 -n 2",
        ),
        (
            Flavour("hydra", "mpiexec"),
            (Seat("elsewhere", (0, 1, 2, 3), ()),),
            "mpiexec -hosts elsewhere -ppn 2 -n 2",
        ),
        (
            Flavour("hydra", "mpiexec", extra=("-launcher", "ssh")),
            ALONE,
            "mpiexec -launcher ssh -hosts localhost -ppn 2 -n 2",
        ),
        (Flavour("intel", "mpiexec"), TWO, "mpiexec -hosts n1,n2 -ppn 2 -n 4"),
        (
            Flavour("intel", "mpiexec", system="slurm"),
            TWO,
            "mpiexec -launcher slurm -hosts n1,n2 -ppn 2 -n 4",
        ),
        (
            Flavour("intel", "mpiexec", system="slurm"),
            ALONE,
            "mpiexec -launcher fork -hosts localhost -ppn 2 -n 2",
        ),
        (
            Flavour("intel", "mpiexec", extra=("-bootstrap", "ssh"), system="slurm"),
            TWO,
            "mpiexec -bootstrap ssh -hosts n1,n2 -ppn 2 -n 4",
        ),
        (
            Flavour("openmpi", "/o/mpirun"),
            TWO,
            "/o/mpirun --host n1:2,n2:2 --map-by ppr:2:node --bind-to none",
        ),
        (
            Flavour("openmpi", "/o/mpirun"),
            ALONE,
            "/o/mpirun --host localhost:2 --map-by ppr:2:node --bind-to none",
        ),
        (
            Flavour("srun", "/s/srun", extra=("--mpi=pmix",)),
            TWO,
            "/s/srun --mpi=pmix --overlap --nodes=2 --nodelist=n1,n2 --ntasks=4 "
            f"--ntasks-per-node=2 {SRUN}",
        ),
        (
            Flavour("srun", "srun"),
            ALONE,
            f"srun --overlap --nodes=1 --ntasks=2 --ntasks-per-node=2 {SRUN}",
        ),
        (
            Flavour("pals", "mpiexec"),
            TWO,
            "mpiexec --hosts n1,n2 --ppn 2 -n 4 --cpu-bind none --envall",
        ),
        (Flavour("pals", "mpiexec"), ALONE, "mpiexec --ppn 2 -n 2 --cpu-bind none --envall"),
        (Flavour("aprun", "aprun"), TWO, "aprun -n 4 -N 2 -L n1,n2 -cc none"),
        (Flavour("aprun", "aprun"), ALONE, "aprun -n 2 -N 2 -cc none"),
        (Flavour("jsrun", "jsrun"), TWO, "jsrun -n 2 -r 1 -a 2 -g 0 -d packed -c 4 -b none"),
    ],
)
def test_each_flavour_has_its_words(flavour: Flavour, seats: tuple[Seat, ...], line: str) -> None:
    assert words(flavour, seats) == [*line.split(), "./a", "b c"]


def test_a_host_that_is_this_machine_is_forked_on() -> None:
    own = os.uname().nodename
    for host in (own, own.split(".")[0] + ".some.where"):
        made = words(Flavour("hydra", "mpiexec"), (Seat(host, (0, 1, 2, 3), ()),))
        assert made[:5] == ["mpiexec", "-launcher", "fork", "-hosts", host]


def test_only_open_mpi_is_told_what_to_forward() -> None:
    names = ("SPOOL_TASK", "PRTE_ALLOW_RUN_AS_ROOT", "SLURM_OVERLAP", "A")
    made = words(Flavour("openmpi", "mpirun"), forwarded=names)
    assert made[-6:] == ["-x", "SPOOL_TASK", "-x", "A", "./a", "b c"]
    for name in ("hydra", "intel", "srun", "pals", "aprun", "jsrun"):
        assert "SPOOL_TASK" not in words(Flavour(name, "x"), forwarded=("SPOOL_TASK",))


@pytest.mark.parametrize("name", [name for name in mpirun.NAMES if name != "jsrun"])
def test_a_pinned_command_goes_through_the_shell(name: str) -> None:
    made = words(Flavour(name, "x"), pin=True)
    start = made.index("/bin/sh")
    assert made[:start] == words(Flavour(name, "x"))[:-2]
    assert (made[start + 1], *made[start + 3 :]) == ("-c", "spool-bind", "./a", "b c")


def test_jsrun_binds_for_itself() -> None:
    seats = (Seat("n1", (0, 1, 2, 3), ("0", "1")),)
    made = words(Flavour("jsrun", "jsrun"), seats, pin=True)
    line = "jsrun -n 1 -r 1 -a 2 -g 2 -d packed -c 4 -b packed:2"
    assert made == [*line.split(), "./a", "b c"]
    assert "SPOOL_BIND" not in variables(Flavour("jsrun", "jsrun"), seats)


# -- templates -----------------------------------------------------------------------------------


def template(text: str) -> Flavour:
    found = mpirun.find(text, {}, "")
    assert found is not None
    assert found.name == "template"
    return found


def test_a_template_is_filled_in() -> None:
    text = (
        "run -H {hosts} -l {host_list_n} -k={nodes} -n {ranks} -p {ranks_per_node} "
        "-c {cores_per_rank} -g {gpus_per_node} {command} 'end of it'"
    )
    line = "run -H n1,n2 -l n1:2,n2:2 -k=2 -n 4 -p 2 -c 2 -g 0"
    assert words(template(text)) == [*line.split(), "./a", "b c", "end of it"]


def test_a_value_of_a_template_stays_one_word() -> None:
    seats = (Seat("odd name", (0, 1, 2, 3), ()),)
    assert words(template("run {hosts} {command}"), seats) == ["run", "odd name", "./a", "b c"]


def test_a_template_pins_as_the_others_do() -> None:
    made = words(template("run {command} -z"), pin=True)
    assert made[:3] == ["run", "/bin/sh", "-c"]
    assert made[-4:] == ["spool-bind", "./a", "b c", "-z"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("run -n {rank} {command}", r"unknown \{rank\}.*Allowed are \{command\}, \{hosts\}, "),
        ("run {} {command}", r"unknown \{\}"),
        ("run -n {ranks}", r"\{command\} must stand once, as a word by itself"),
        ("run -c={command}", r"\{command\} must stand once"),
        ("run {command} {command}", r"\{command\} must stand once"),
        ("run '{command}", "No closing quotation"),
        ("", "the setting is empty"),
    ],
)
def test_a_wrong_template_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SpoolError, match=reason):
        mpirun.find(text, {}, "")


# -- which one -----------------------------------------------------------------------------------

MPICH = "HYDRA build details:\n    Version:                                 5.0.2\n    CC:   cc\n"
INTEL = (
    "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)\n"
    "Copyright 2003-2026, Intel Corporation.\n"
)
OPENMPI = "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
PALS = "mpiexec version 1.2.12 revision 3b4e5c build date Jun  9 2023\n"


@pytest.mark.parametrize(
    ("told", "name", "version"),
    [
        (MPICH, "hydra", "5.0.2"),
        ("HYDRA build details:\n", "hydra", ""),
        (INTEL, "intel", "2021.18.1"),
        (OPENMPI, "openmpi", "5.0.11"),
        ("mpiexec (OpenRTE) 4.1.4\n", "openmpi", "4.1.4"),
        ("prterun (PRRTE) 3.0.12\n", "openmpi", "3.0.12"),
        (PALS, "pals", "1.2.12"),
        ("mpiexec (PALS) version 1.3.2\n", "pals", "1.3.2"),
        ("aprun (ALPS) 6.6.59\n", "aprun", "6.6.59"),
        ("slurm-wlm 22.05.8\n", "srun", "22.05.8"),
        ("mpirun from somewhere\n", "", ""),
        ("", "", ""),
    ],
)
def test_a_program_is_recognised_by_what_it_says(told: str, name: str, version: str) -> None:
    assert mpirun.recognise(told) == (name, version)


@pytest.fixture
def programs(tmp_path: Path) -> Callable[..., Mapping[str, str]]:
    """A PATH on which there are the named programs and nothing else."""

    def make(*names: str) -> Mapping[str, str]:
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        return {"PATH": str(tmp_path)}

    return make


def answers(**told: str) -> Callable[[str], str]:
    """What programs of these names say; others, those of this environment too, say nothing."""
    return lambda program: told.get(os.path.basename(program), "")


@pytest.mark.parametrize(
    ("system", "variable", "name"),
    [
        ("slurm", "SLURM_JOB_ID", "srun"),
        ("", "SLURM_JOB_ID", "srun"),
        ("lsf", "LSB_JOBID", "jsrun"),
        ("cobalt", "COBALT_JOBID", "aprun"),
    ],
)
def test_in_a_job_the_batch_system_s_own_starter_is_taken(
    programs: Callable[..., dict[str, str]], system: str, variable: str, name: str
) -> None:
    path = programs("srun", "jsrun", "aprun", "mpiexec")
    found = mpirun.find("auto", {**path, variable: "7"}, system, answers(mpiexec=MPICH))
    assert found is not None
    assert (found.name, found.program) == (name, f"{path['PATH']}/{name}")
    outside = mpirun.find("auto", path, system, answers(mpiexec=MPICH))
    assert outside is not None
    assert (outside.name, outside.system) == ("hydra", "")


def test_in_a_job_without_its_starter_an_mpiexec_is_taken(
    programs: Callable[..., dict[str, str]],
) -> None:
    place = {**programs("mpiexec"), "SLURM_JOB_ID": "7"}
    found = mpirun.find("auto -v", place, "slurm", answers(mpiexec=INTEL))
    program = f"{place['PATH']}/mpiexec"
    assert found == Flavour("intel", program, "2021.18.1", extra=("-v",), system="slurm")


def test_mpirun_is_asked_where_mpiexec_is_unknown(
    programs: Callable[..., dict[str, str]],
) -> None:
    path = programs("mpiexec", "mpirun")
    found = mpirun.find("auto", path, "", answers(mpiexec="what?", mpirun=OPENMPI))
    assert found == Flavour("openmpi", f"{path['PATH']}/mpirun", "5.0.11")


def test_the_mpiexec_beside_python_is_found_without_a_path(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(program: str) -> str:
        asked.append(program)
        return ""

    assert mpirun.find("auto", {"PATH": str(tmp_path)}, "", ask) is None
    beside = [name for name in ("mpiexec", "mpirun") if shutil.which(name, path=HERE)]
    assert asked == [f"{HERE}/{name}" for name in beside]


def test_a_name_finds_the_program_of_that_flavour(
    programs: Callable[..., dict[str, str]],
) -> None:
    path = programs("mpiexec", "mpirun")
    told = answers(mpiexec=OPENMPI, mpirun=MPICH)
    found = mpirun.find("hydra -verbose", path, "", told)
    assert found == Flavour("hydra", f"{path['PATH']}/mpirun", "5.0.2", extra=("-verbose",))
    with pytest.raises(SpoolError, match="no mpiexec or mpirun on PATH is intel"):
        mpirun.find("intel", path, "", told)


def test_a_program_may_have_words_of_its_own(programs: Callable[..., dict[str, str]]) -> None:
    path = programs("srun", "mympi")
    found = mpirun.find("srun --mpi=pmix 'a b'", path, "", answers())
    assert found == Flavour("srun", f"{path['PATH']}/srun", extra=("--mpi=pmix", "a b"))
    found = mpirun.find(f"{path['PATH']}/mympi -q", path, "", answers(mympi=PALS))
    assert found == Flavour("pals", f"{path['PATH']}/mympi", "1.2.12", extra=("-q",))
    with pytest.raises(SpoolError, match="mympi --version names no mpirun"):
        mpirun.find("mympi", path, "", answers())
    with pytest.raises(SpoolError, match="there is no program nompi. Allowed are auto, hydra, "):
        mpirun.find("nompi", path, "", answers())


def test_a_program_that_fails_or_is_missing_says_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "mpiexec"
    broken.write_text("#!/bin/sh\necho 'mpiexec (Open MPI) 5.0.11'\n")
    broken.chmod(0o755)
    assert mpirun.recognise(mpirun.ask_version(str(broken))) == ("openmpi", "5.0.11")
    broken.write_text("#!/bin/sh\necho 'mpiexec (Open MPI) 5.0.11'; exit 1\n")
    assert mpirun.ask_version(str(broken)) == ""
    assert mpirun.ask_version(str(tmp_path / "none")) == ""


# -- the environment -----------------------------------------------------------------------------


def test_a_task_knows_its_nodes_ranks_and_threads() -> None:
    made = variables(Flavour("srun", "srun", system="slurm"))
    assert made == {
        **dict.fromkeys(mpirun.THREADS, "2"),
        "SPOOL_NODES": "n1,n2",
        "SPOOL_RANKS": "4",
        "SPOOL_RANKS_PER_NODE": "2",
        "SPOOL_CORES_PER_RANK": "2",
        "SPOOL_BIND": "2x0-3:",
    }


@pytest.mark.parametrize(
    ("flavour", "expected"),
    [
        (Flavour("hydra", ""), {}),
        (
            Flavour("hydra", "", system="slurm"),
            {"SLURM_OVERLAP": "1", "SLURM_CPU_BIND": "none"},
        ),
        (Flavour("intel", ""), {"I_MPI_PIN": "0", "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "0"}),
        (
            Flavour("openmpi", "", system="slurm"),
            {
                "SLURM_OVERLAP": "1",
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "PRTE_ALLOW_RUN_AS_ROOT": "1",
                "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_rmaps_base_oversubscribe": "1",
                "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            },
        ),
        (Flavour("pals", "", system=""), {}),
    ],
)
def test_a_flavour_adds_what_it_needs(flavour: Flavour, expected: dict[str, str]) -> None:
    made = variables(flavour, pin=False)
    common = variables(Flavour("srun", ""), pin=False)
    assert {name: made[name] for name in made.keys() - common.keys()} == expected


@pytest.mark.parametrize(
    ("seats", "pin", "bind"),
    [
        (TWO, False, None),
        ((Seat("", (), ("0", "1")),), False, "1x:0,1"),
        ((Seat("a", (0, 1, 2, 8), ("g",)), Seat("b", (7, 6, 5), ())), True, "1x0-2,8:g 1x7,6,5:"),
        (tuple(Seat(f"n{n}", tuple(range(128)), ()) for n in range(9000)), True, "9000x0-127:"),
    ],
)
def test_what_seats_have_is_said_shortly(
    seats: tuple[Seat, ...], pin: bool, bind: str | None
) -> None:
    assert variables(Flavour("hydra", ""), seats, pin=pin).get("SPOOL_BIND") == bind


# -- a rank's place ------------------------------------------------------------------------------

RANK_VARIABLES = [
    "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PALS_RANKID", "ALPS_APP_PE",
    "MPI_RANK",
]  # fmt: skip
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH whose taskset moves nothing, but writes the cores into a file named by the pid."""
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "taskset").write_text('#!/bin/sh\n[ "$1" = -cp ] && echo "$2" >"${0%/*}/$3"\n')
    (folder / "taskset").chmod(0o755)
    return folder


def placed(
    seats: tuple[Seat, ...], ranks_per_node: int, cores: int, fakes: Path
) -> list[tuple[str, dict[str, str]]]:
    """Where each rank moves to, "" for nowhere, and the environment of its program then."""
    flavour = template("{command}")
    command = ["cat", "/proc/self/environ"]
    made = mpirun.words(flavour, seats, ranks_per_node, cores, command, pin=True, forwarded=())
    base = mpirun.environment(seats, ranks_per_node, cores, pin=True, flavour=flavour)
    base["PATH"] = f"{fakes}:/usr/bin:/bin"
    found = []
    for rank in range(len(seats) * ranks_per_node):
        name = RANK_VARIABLES[rank % len(RANK_VARIABLES)]
        program = subprocess.Popen(made, env={**base, name: str(rank)}, stdout=subprocess.PIPE)
        output, _ = program.communicate(timeout=60)
        assert program.returncode == 0
        moved = fakes / str(program.pid)
        seen = dict(one.split("=", 1) for one in output.decode().rstrip("\0").split("\0"))
        found.append((moved.read_text().strip() if moved.exists() else "", seen))
        moved.unlink(missing_ok=True)
    return found


def spelled(text: str) -> list[int]:
    """The numbers that a taskset list means."""
    ends = [part.split("-") for part in text.split(",") if part]
    return [cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)]


def share(gpus: tuple[str, ...], local: int, ranks: int) -> str:
    """The GPUs of a node's rank: an equal share each, or one that several use in turn."""
    if not gpus:
        return ""
    if len(gpus) < ranks:
        return gpus[local % len(gpus)]
    count = len(gpus) // ranks
    return ",".join(gpus[local * count :][:count])


@st.composite
def placements(draw: st.DrawFn) -> tuple[tuple[Seat, ...], int, int]:
    ranks, cores = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    size = ranks * cores
    cpus = st.lists(st.integers(0, 40), min_size=size, max_size=size + 2, unique=True)
    gpus = st.integers(0, 6).map(lambda count: tuple(f"GPU-{n}" for n in range(count)))
    spread = st.one_of(cpus, cpus.map(sorted), st.integers(0, 9).map(lambda n: range(n, n + size)))
    kinds = draw(st.lists(st.tuples(spread.map(tuple), gpus), min_size=1, max_size=3))
    picked = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    return tuple(Seat(f"n{n}", *one) for n, one in enumerate(picked)), ranks, cores


@relaxed
@given(placements())
def test_each_rank_finds_its_cores_and_gpus(
    fakes: Path, placement: tuple[tuple[Seat, ...], int, int]
) -> None:
    seats, size, cores = placement
    for rank, (moved, seen) in enumerate(placed(seats, size, cores, fakes)):
        seat, local = seats[rank // size], rank % size
        assert spelled(moved) == list(seat.cpus[local * cores :][:cores])
        for name in VISIBLE:
            assert seen.get(name, "") == share(seat.gpus, local, size)


def run_alone(path: str, bind: str, command: list[str], **more: str) -> str:
    made = mpirun.words(
        Flavour("hydra", "x"), (Seat("", (0,), ()),), 1, 1, command, pin=True, forwarded=()
    )
    line = made[made.index("/bin/sh") :]
    place = {
        "PATH": path,
        "SPOOL_RANKS_PER_NODE": "1",
        "SPOOL_CORES_PER_RANK": "1",
        "SPOOL_BIND": bind,
        **more,
    }
    return subprocess.run(line, env=place, capture_output=True, text=True, check=True).stdout


def test_a_rank_runs_unpinned_where_its_cores_are_refused(tmp_path: Path) -> None:
    code = "import os, sys; print(sorted(os.sched_getaffinity(0)), sys.argv[1:])"
    command = [sys.executable, "-c", code, "a b", "*", ""]
    expected = f"{sorted(os.sched_getaffinity(0))} ['a b', '*', '']\n"
    assert run_alone("/usr/bin:/bin", "1x9999:", command, PMI_RANK="0") == expected
    assert run_alone(str(tmp_path), "1x0:", command, PMI_RANK="0") == expected  # no taskset
    assert run_alone("/usr/bin:/bin", "1x0:", command) == expected  # no rank
    assert run_alone("/usr/bin:/bin", "", command, PMI_RANK="0") == expected


def test_the_prologue_changes_nothing_else_in_the_environment(fakes: Path) -> None:
    seats = (Seat("", (0, 1), ("0",)),)
    ((_, seen),) = placed(seats, 1, 2, fakes)
    given = mpirun.environment(seats, 1, 2, pin=True, flavour=Flavour("template", ""))
    assert given.items() <= seen.items()
    extra = seen.keys() - given.keys() - {"PATH", "PMI_RANK", "PWD", "OLDPWD", "SHLVL", "_"}
    assert extra == set(VISIBLE)


# -- real MPI ------------------------------------------------------------------------------------

RANK = """
import json, os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SPOOL_NODES", "PMI_HOSTNAME")
told = [world.rank, world.size, sorted(os.sched_getaffinity(0)), *map(os.environ.get, names)]
everything = world.gather(told)
if world.rank == 0:
    sys.stdout.write(json.dumps(everything) + "\\n")
"""
FAILING = RANK + "sys.exit(3 if world.rank == 3 else 0)\n"


def started(
    script: str, seats: tuple[Seat, ...], ranks_per_node: int, *, pin: bool = True
) -> subprocess.Popen[str]:
    """A task that runs by the real mpiexec, on hosts that are all this machine."""
    flavour = mpirun.find(f"{HYDRA} -launcher fork", os.environ, "")
    assert flavour is not None
    assert flavour.name == "hydra"
    command = [sys.executable, "-c", script]
    made = mpirun.words(flavour, seats, ranks_per_node, 1, command, pin=pin, forwarded=())
    place = mpirun.environment(seats, ranks_per_node, 1, pin=pin, flavour=flavour)
    return subprocess.Popen(made, env={**os.environ, **place}, stdout=subprocess.PIPE, text=True)


def ended(task: subprocess.Popen[str]) -> list[list[object]]:
    output, _ = task.communicate(timeout=60)
    assert task.returncode == 0
    return json.loads(output)


def cores(count: int) -> list[int]:
    """So many cores that we may use, the same again where there are fewer."""
    allowed = sorted(os.sched_getaffinity(0))
    return [allowed[number % len(allowed)] for number in range(count)]


@needs_mpich
def test_four_ranks_on_two_hosts_know_their_place() -> None:
    a, b, c, d = cores(4)
    seats = (Seat("a", (a, b), ("0", "1")), Seat("b", (c, d), ("2", "3", "4")))
    assert ended(started(RANK, seats, 2)) == [
        [0, 4, [a], "0", "1", "a,b", "a"],
        [1, 4, [b], "1", "1", "a,b", "a"],
        [2, 4, [c], "2", "1", "a,b", "b"],
        [3, 4, [d], "3", "1", "a,b", "b"],
    ]


@needs_mpich
def test_two_tasks_at_once_have_cores_of_their_own() -> None:
    first, second = cores(2)
    tasks = [started(RANK, (Seat("", (core,), ()),), 1) for core in (first, second)]
    told = [ended(task)[0][:3] for task in tasks]
    assert told == [[0, 1, [first]], [0, 1, [second]]]


@needs_mpich
def test_a_task_that_is_not_pinned_may_use_all_cores() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    seats = (Seat("", (0, 0, 0), ()),)
    assert [told[:3] for told in ended(started(RANK, seats, 3, pin=False))] == [
        [rank, 3, allowed] for rank in range(3)
    ]


@needs_mpich
def test_one_failing_rank_is_a_failed_task() -> None:
    seats = (Seat("a", tuple(cores(2)), ()), Seat("b", tuple(cores(2)), ()))
    task = started(FAILING, seats, 2)
    task.communicate(timeout=60)
    assert task.returncode != 0


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"srun: error: Unable to create step for job 3: Memory required is not available\n",
         "Unable to create step for job 3: Memory required is not available"),
        (b"srun: cluster lacks binding\nsrun: error: Unable to confirm allocation for job 7: "
         b"Socket timed out on send/recv operation\n",
         "Unable to confirm allocation for job 7: Socket timed out on send/recv operation"),
        (b"srun: error: Unable to create step for job 3: Requested nodes are busy\nresult 7\n", ""),
        (b"srun: error: node1: task 0: Exited with exit code 1\n", ""),
        (b"step 1 of 3\nsrun: error: Unable to create step for job 3: Memory\n", ""),
        (b"I say: srun: error: Unable to create step for job 3\n", ""),
        (b"", ""),
    ],
)  # fmt: skip
def test_a_step_that_slurm_did_not_let_begin_is_told_by_the_last_line(
    said: bytes, why: str
) -> None:
    assert mpirun.refused(said) == why
