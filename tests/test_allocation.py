"""Where am I: what batch systems say is read, and what cannot be so is not believed."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.launcher import claims, hosts
from spool.launcher.allocation import Allocation, find, is_over
from spool.launcher.hosts import expand_hostlist, read_counts

relaxed = settings(deadline=None)
NOW = 1_800_000_000.0
HOUR = 3600.0
Answers = Mapping[str, str]


def told(answers: Answers) -> Callable[[Sequence[str]], str]:
    """Commands answer with recorded texts; all others are missing."""
    return lambda command: answers.get(" ".join(command), "")


def look(
    environment: Mapping[str, str], answers: Answers | None = None, host: str = "n1"
) -> Allocation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: NOW)
        return find(environment, ask=told(answers or {}), host=host)


def written(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


# -- host lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", "n1"),
        ("node[001-003,7],login1", "node001 node002 node003 node7 login1"),
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("r[1-2]n[08-10]-ib", "r1n08-ib r1n09-ib r1n10-ib r2n08-ib r2n09-ib r2n10-ib"),
        ("n[9-11]", "n9 n10 n11"),
        ("n[1-2],n[2-3],n1", "n1 n2 n3"),
        ("  a.cluster.org,b_2\n", "a.cluster.org b_2"),
        ("nid[000000-000001]", "nid000000 nid000001"),
    ],
)
def test_a_host_list_names_its_hosts_in_order_and_once(text: str, names: str) -> None:
    assert expand_hostlist(text) == tuple(names.split())


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "a,,b", "a,", "n[1-", "n1]", "n[]", "n[1,,2]", "n[3-1]", "n[1-2-3]", "n[-1]",
        "n[a-b]", "n[[1-2]]", "n 1", "-x", "[1-2],-n", "n[1-99999999999]", "n;rm",
        "n[1-9999999999999999999999]", "n[1-512][1-513]", "n\n1", "nó", "(null)", "x" * 300,
    ],
)  # fmt: skip
def test_a_malformed_host_list_is_read_not_at_all(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        expand_hostlist(text)


def compressed(prefix: str, numbers: list[int], width: int) -> str:
    """A host list with each run of numbers as a range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    ranges = [f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in runs]
    return f"{prefix}[{','.join(ranges)}]"


@relaxed
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,6}-", fullmatch=True),
        st.tuples(st.sets(st.integers(0, 2000), min_size=1, max_size=60), st.integers(1, 6)),
        min_size=1,
        max_size=4,
    )
)
def test_expanding_a_host_list_undoes_compressing_it(
    racks: dict[str, tuple[set[int], int]],
) -> None:
    names = [f"{rack}{n:0{width}d}" for rack, (ns, width) in racks.items() for n in sorted(ns)]
    lists = [compressed(rack, sorted(ns), width) for rack, (ns, width) in racks.items()]
    assert expand_hostlist(",".join(lists)) == tuple(names)


@relaxed
@given(st.text("n[]-,09x.", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_host_list_or_a_value_error(text: str) -> None:
    try:
        assert all(expand_hostlist(text))
    except ValueError:
        return


def test_a_long_list_without_brackets_is_read_at_once() -> None:
    names = tuple(f"node{number}" for number in range(20_000))
    begun = time.monotonic()
    assert expand_hostlist(",".join(names)) == names
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("text", "counts"), [("4", (4,)), ("2(x3),4", (2, 2, 2, 4))])
def test_counts_with_repeats_are_one_for_each_node(text: str, counts: tuple[int, ...]) -> None:
    assert read_counts(text) == counts


@pytest.mark.parametrize("text", ["", "0", "-4", "4(x0)", "4(x", "4,,4", "four", "4(x999999999)"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_counts(text)


def test_the_other_lists_of_hosts_are_read_too() -> None:
    assert hosts.count_slots(["n1\n", "n2", "", "n1"]) == (("n1", 2), ("n2", 1))
    assert hosts.read_pairs(["n1", "42", "n2", "8"]) == (("n1", 42), ("n2", 8))
    assert hosts.read_table(["n1 4 all.q@n1 <NULL>", "", "n2 2 all.q@n2 UNDEFINED"]) == (
        ("n1", 4),
        ("n2", 2),
    )
    assert hosts.expand_nids("3-5,8") == ("nid00003", "nid00004", "nid00005", "nid00008")


@pytest.mark.parametrize("words", [[], ["n1"], ["n1", "0"], ["n1", "-1"], ["1", "n1"], ["-n", "1"]])
def test_pairs_that_do_not_match_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError):
        hosts.read_pairs(words)


# -- each system, honest -------------------------------------------------------------------------

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_CPUS_PER_NODE": "64(x2)",
    "SLURM_MEM_PER_NODE": "256000",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_END_TIME": str(int(NOW + HOUR)),
}
TWO = ("n1", "n2")


def test_without_a_batch_system_it_is_this_machine() -> None:
    assert look({}) == Allocation("")
    assert look({"JOB_ID": "7", "SLURM_JOB_ID": " ", "PATH": "/bin"}) == Allocation("")


def test_a_slurm_job_is_read_from_its_variables_alone() -> None:
    assert look(SLURM) == Allocation(
        "slurm", "4242", TWO, (64, 64), gpus=4, memory_mb=256000, ends=NOW + HOUR
    )


def test_inside_a_step_the_job_s_variables_count() -> None:
    step = {"SLURM_STEP_NODELIST": "n2", "SLURM_NNODES": "1", "SLURM_STEP_ID": "0"}
    assert look(SLURM | step, host="n2") == look(SLURM)


@pytest.mark.parametrize("host", ["n1", "n1.cluster.org", "N1", "n1.other.net"])
def test_short_names_are_compared(host: str) -> None:
    assert look(SLURM, host=host).nodes == TWO
    assert look(SLURM | {"SLURM_JOB_NODELIST": "n1.a.b,n2.a.b"}, host=host).system == "slurm"


@pytest.mark.parametrize(
    ("change", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_NODE": "4"}, 2),
        ({"SLURM_GPUS_ON_NODE": "0"}, 0),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_GPUS_PER_NODE": "a100:4"}, 4),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_GPUS_PER_NODE": "a100:2,h100:1"}, 3),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_JOB_GPUS": "0,2-3"}, 3),
        ({"SLURM_GPUS_ON_NODE": ""}, None),
    ],
)
def test_slurm_s_gpus_on_a_node(change: dict[str, str], gpus: int | None) -> None:
    found = look(SLURM | change)
    assert (found.gpus, found.complaints) == (gpus, ())


def test_memory_for_each_core_is_that_of_the_smallest_node() -> None:
    change = {"SLURM_MEM_PER_NODE": "", "SLURM_MEM_PER_CPU": "2000"}
    change["SLURM_JOB_CPUS_PER_NODE"] = "64,32"
    assert look(SLURM | change).memory_mb == 64000
    del change["SLURM_JOB_CPUS_PER_NODE"]
    assert look(SLURM | change | {"SLURM_JOB_CPUS_PER_NODE": ""}).memory_mb is None


@pytest.mark.parametrize(
    ("left", "left_s"),
    [
        ("1-02:03:04\n", 93784),
        ("2:03\n", 123),
        ("5:00:00\n", 18000),
        ("UNLIMITED\n", None),
        ("INVALID\n", None),
        ("NOT_SET", None),
        ("0:00\n", None),
        ("", None),
    ],
)
def test_slurm_s_time_left_is_asked_where_no_variable_says_it(
    left: str, left_s: float | None
) -> None:
    environment = {name: value for name, value in SLURM.items() if name != "SLURM_JOB_END_TIME"}
    found = look(environment, {"squeue -h -j 4242 -o %L": left})
    assert found.ends == (None if left_s is None else NOW + left_s)
    assert found.complaints == ()


QSTAT_JSON = {
    "timestamp": 1800000000,
    "Jobs": {
        "12.pbs": {
            "Job_Name": "walltime = 9",
            "job_state": "R",
            "resources_used": {"cput": "00:00:00", "walltime": "00:20:00"},
            "Resource_List": {"ncpus": 128, "walltime": "01:00:00"},
            "Variable_List": {},
        }
    },
}
QSTAT_TEXT = """\
Job Id: 12.pbs
    Job_Name = sim
    job_state = R
    resources_used.walltime = 00:20:00
    Resource_List.walltime = 01:00:00
    Variable_List = HOME=/home/a,
\tjob_state = X,Resource_List.walltime = 9
"""


@pytest.mark.parametrize(
    "answers",
    [
        {"qstat -f -F json 12.pbs": json.dumps(QSTAT_JSON)},
        {"qstat -f 12.pbs": QSTAT_TEXT},
        {"qstat -f -F json 12.pbs": '{"Jobs": {"12.pbs": {,', "qstat -f 12.pbs": QSTAT_TEXT},
        {"qstat -f -F json 12.pbs": '{"Jobs": []}', "qstat -f 12.pbs": QSTAT_TEXT},
    ],
)
def test_a_pbs_job_s_time_left_is_what_its_walltime_leaves(
    tmp_path: Path, answers: dict[str, str]
) -> None:
    file = written(tmp_path / "nodes", "n1.hpc", "n2.hpc")
    found = look({"PBS_JOBID": "12.pbs", "PBS_NODEFILE": file, "NCPUS": "64"}, answers)
    assert found == Allocation("pbs", "12.pbs", ("n1.hpc", "n2.hpc"), (64, 64), ends=NOW + 2400)


def test_the_start_of_a_pbs_job_tells_more_than_the_used_walltime_of_minutes_ago(
    tmp_path: Path,
) -> None:
    environment = {"PBS_JOBID": "12.pbs", "PBS_NODEFILE": written(tmp_path / "nodes", "n1")}

    def ends(begun: float) -> float | None:
        line = time.strftime("    stime = %a %b %d %H:%M:%S %Y\n", time.localtime(begun))
        return look(environment, {"qstat -f 12.pbs": QSTAT_TEXT + line}).ends

    assert ends(NOW - 1260) == NOW + 2340
    assert ends(NOW - 600) == NOW + 2400
    assert ends(NOW - 86400) == NOW + 2400  # it was suspended meanwhile


@pytest.mark.parametrize(
    ("lines", "change", "cores"),
    [
        ("n1 n2", {}, ()),
        ("n1 n1 n2 n2", {}, (2, 2)),
        ("n1 n1 n2", {"PBS_NUM_PPN": "2"}, (2, 1)),
        ("n1 n2", {"PBS_NUM_PPN": "8"}, (8, 8)),
        ("n1 n1 n2 n2", {"NCPUS": "64"}, (64, 64)),
        ("n1 n1 n1", {"NCPUS": "1"}, (3,)),
    ],
)
def test_pbs_counts_cores_in_its_file_or_its_variables(
    tmp_path: Path, lines: str, change: dict[str, str], cores: tuple[int, ...]
) -> None:
    file = written(tmp_path / "nodes", *lines.split())
    found = look({"PBS_JOBID": "12[3].pbs", "PBS_NODEFILE": file} | change)
    assert (found.job, found.cores, found.complaints) == ("12[3].pbs", cores, ())


def test_an_lsf_job_is_read_without_its_launch_node(tmp_path: Path) -> None:
    expected = Allocation("lsf", "99", ("h41n03", "h41n05"), (2, 2))
    slots = ["batch5", "h41n03", "h41n03", "h41n05", "h41n05"]
    for sources in (
        {"LSB_MCPU_HOSTS": "batch5 1 h41n03 2 h41n05 2 "},
        {"LSB_DJOB_HOSTFILE": written(tmp_path / "hosts", *slots)},
        {"LSB_HOSTS": " ".join(slots)},
    ):
        assert look({"LSB_JOBID": "99"} | sources, host="h41n05") == expected


def test_an_lsf_host_of_one_slot_among_such_is_a_node_like_them() -> None:
    for text in ("n1 1 n2 1", "n1 1", "n1 2 n2 1"):
        found = look({"LSB_JOBID": "99", "LSB_MCPU_HOSTS": text})
        assert found.nodes == tuple(text.split()[::2])


def test_a_cobalt_job_is_read_from_its_file_or_its_partition(tmp_path: Path) -> None:
    file = written(tmp_path / "nodes", "nid00003", "nid00004")
    environment = {"COBALT_JOBID": "5", "COBALT_ENDTIME": str(NOW + 60)}
    expected = Allocation("cobalt", "5", ("nid00003", "nid00004"), ends=NOW + 60)
    for source in ({"COBALT_NODEFILE": file}, {"COBALT_PARTNAME": "3-4"}):
        assert look(environment | source, host="nid00004") == expected


def test_a_flux_batch_script_has_its_whole_instance() -> None:
    answers = {"flux hostlist instance": "n[1-2]\n", "flux job timeleft": "1800\n"}
    expected = Allocation("flux", "", TWO, ends=NOW + 1800)
    assert look({"FLUX_URI": "local:///run/x"}, answers) == expected
    old = {"flux getattr hostlist": "n[1-2]\n", "flux job timeleft": "inf\n"}
    assert look({"FLUX_URI": "local:///run/x"}, old) == Allocation("flux", "", TWO)


def test_a_flux_job_has_its_own_hosts_and_not_the_cluster_s() -> None:
    answers = {"flux hostlist instance": "n[1-999]", "flux hostlist ƒ2Wz4": "n[1-2]\n"}
    environment = {"FLUX_JOB_ID": "ƒ2Wz4", "FLUX_URI": "local:///run/flux/local"}
    assert look(environment, answers) == Allocation("flux", "ƒ2Wz4", TWO)


def test_flux_inside_a_slurm_job_comes_first_if_it_answers() -> None:
    both = SLURM | {"FLUX_URI": "local:///tmp/x"}
    assert look(both, {"flux hostlist instance": "n[1-2]"}).system == "flux"
    silent = look(both)
    assert silent.system == "slurm" and silent.nodes == TWO
    assert len(silent.complaints) == 1 and "FLUX_URI is 'local:///tmp/x'" in silent.complaints[0]


def test_an_sge_job_is_read_from_its_parallel_environment(tmp_path: Path) -> None:
    file = written(tmp_path / "pe", "n1 4 all.q@n1 UNDEFINED", "n2 2 all.q@n2 UNDEFINED")
    environment = {"JOB_ID": "31", "SGE_ROOT": "/opt/sge"}
    assert look(environment | {"PE_HOSTFILE": file}) == Allocation("sge", "31", TWO, (4, 2))
    assert look(environment) == Allocation("sge", "31")


def test_the_first_system_that_is_named_is_believed(tmp_path: Path) -> None:
    file = written(tmp_path / "nodes", "n1")
    others = {"PBS_JOBID": "12", "PBS_NODEFILE": file, "LSB_JOBID": "9", "LSB_HOSTS": "n1"}
    assert look(SLURM | others).system == "slurm"
    assert look(others).system == "pbs"
    assert look(others | {"FLUX_URI": "x"}, {"flux hostlist instance": "n1"}).system == "pbs"


# -- lies ----------------------------------------------------------------------------------------

LIES = [
    ("SLURM_JOB_CPUS_PER_NODE", "64(x3)", {"cores": ()}),
    ("SLURM_JOB_CPUS_PER_NODE", "0(x2)", {"cores": ()}),
    ("SLURM_JOB_CPUS_PER_NODE", "lots", {"cores": ()}),
    ("SLURM_JOB_NUM_NODES", "3", {}),
    ("SLURM_JOB_NUM_NODES", "-1", {}),
    ("SLURM_MEM_PER_NODE", "0", {"memory_mb": None}),
    ("SLURM_MEM_PER_NODE", "-5", {"memory_mb": None}),
    ("SLURM_MEM_PER_NODE", "1_000", {"memory_mb": None}),
    ("SLURM_GPUS_ON_NODE", "-1", {"gpus": None}),
    ("SLURM_GPUS_ON_NODE", "a100:", {"gpus": None}),
    ("SLURM_JOB_END_TIME", str(int(NOW - 60)), {"ends": None}),
    ("SLURM_JOB_END_TIME", "0", {"ends": None}),
    ("SLURM_JOB_END_TIME", "-1", {"ends": None}),
    ("SLURM_JOB_END_TIME", "4294967294", {"ends": None}),
    ("SLURM_JOB_END_TIME", "99999999999999999999", {"ends": None}),
    ("SLURM_JOB_END_TIME", "nan", {"ends": None}),
    ("SLURM_JOB_END_TIME", "tomorrow" * 200, {"ends": None}),
]


@pytest.mark.parametrize(("name", "value", "differs"), LIES)
def test_a_figure_that_lies_is_unknown_and_the_rest_is_kept(
    name: str, value: str, differs: dict[str, object]
) -> None:
    honest, found = look(SLURM), look(SLURM | {name: value})
    for field in ("system", "job", "nodes", "cores", "gpus", "memory_mb", "ends"):
        assert getattr(found, field) == differs.get(field, getattr(honest, field)), field
    assert len(found.complaints) == 1
    said = re.fullmatch(f"{name} is ('.*?'?): .+", found.complaints[0])
    assert said and len(said[1]) <= 83 and value[:40] in said[1]


def test_a_figure_that_lies_is_taken_from_elsewhere() -> None:
    per_core = SLURM | {"SLURM_MEM_PER_NODE": "0", "SLURM_MEM_PER_CPU": "1000"}
    assert look(per_core).memory_mb == 64000
    gpus = SLURM | {"SLURM_GPUS_ON_NODE": "-1", "SLURM_GPUS_PER_NODE": "a100:4"}
    assert look(gpus).gpus == 4
    past = SLURM | {"SLURM_JOB_END_TIME": "5"}
    assert look(past, {"squeue -h -j 4242 -o %L": "1:00:00\n"}).ends == NOW + HOUR
    old = SLURM | {"SLURM_JOB_NODELIST": "n[1-", "SLURM_NODELIST": "n[1-2]"}
    assert look(old).nodes == TWO
    id_ = SLURM | {"SLURM_JOB_ID": "-4", "SLURM_JOBID": "4242"}
    assert look(id_).job == "4242"
    for environment in (per_core, gpus, past, old, id_):
        assert len(look(environment).complaints) == 1


@pytest.mark.parametrize("value", ["n[1-", "", "(null)", "n[1-99999999]"])
def test_a_wrong_node_list_is_asked_of_slurm(value: str) -> None:
    wrong = SLURM | {"SLURM_JOB_NODELIST": value}
    found = look(wrong, {"squeue -h -j 4242 -o %N": "n[1-2]\n"})
    assert (found.nodes, found.cores) == (TWO, (64, 64))
    assert len(found.complaints) == 1 and "SLURM_JOB_NODELIST" in found.complaints[0]


def test_without_any_node_list_the_job_must_be_alive_to_be_believed() -> None:
    wrong = SLURM | {"SLURM_JOB_NODELIST": "n[1-"}
    alive = look(wrong, {"squeue -h -t all -j 4242 -o %T": "RUNNING\n"})
    assert (alive.system, alive.job, alive.nodes, alive.cores) == ("slurm", "4242", (), ())
    assert alive.ends == NOW + HOUR
    unknown = look(wrong)
    assert unknown == Allocation("", complaints=unknown.complaints)
    assert len(unknown.complaints) == 2


def test_a_job_that_does_not_have_this_host_is_not_ours() -> None:
    found = look(SLURM, host="login1.hpc")
    assert found == Allocation("", complaints=found.complaints)
    (said,) = found.complaints
    for part in ("SLURM_JOB_ID is '4242'", "login1.hpc is not among its nodes", "n1,n2", "srun"):
        assert part in said


def test_a_stale_job_gives_way_to_the_real_one(tmp_path: Path) -> None:
    file = written(tmp_path / "nodes", "n7")
    found = look(SLURM | {"PBS_JOBID": "12", "PBS_NODEFILE": file}, host="n7")
    assert (found.system, found.job, found.nodes) == ("pbs", "12", ("n7",))
    assert len(found.complaints) == 1 and "SLURM_JOB_ID" in found.complaints[0]


def test_a_shell_that_outlived_its_job_is_not_in_it() -> None:
    past = SLURM | {"SLURM_JOB_END_TIME": str(int(NOW - 60))}
    found = look(past, {"squeue -h -t all -j 4242 -o %T": "TIMEOUT\n"})
    assert found.system == "" and "that job is over" in found.complaints[-1]


@pytest.mark.parametrize("value", ["0", "-4", "--all", "4 2", "a;b", "4,5", "/x"])
def test_an_id_that_is_none_reaches_no_command(value: str) -> None:
    asked: list[Sequence[str]] = []

    def ask(command: Sequence[str]) -> str:
        asked.append(command)
        return ""

    found = find({"PBS_JOBID": value, "PBS_NODEFILE": "/nowhere"}, ask=ask, host="n1")
    assert found.system == "" and f"PBS_JOBID is '{value}'" in found.complaints[0]
    assert is_over("slurm", value, ask) is None
    assert asked == []


def broken_files(tmp_path: Path) -> dict[str, str]:
    """Node files that are none, by what is wrong with them."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\x7fELF\x00\xff\xfe")
    return {
        "missing": str(tmp_path / "none"),
        "folder": str(tmp_path),
        "pipe": str(tmp_path / "pipe"),
        "empty": written(tmp_path / "empty"),
        "blank": written(tmp_path / "blank", "  ", ""),
        "binary": str(tmp_path / "binary"),
        "sentence": written(tmp_path / "sentence", "no nodes today"),
        "null": "a\0b",
        "unset": "",
    }


@pytest.mark.parametrize(
    "wrong",
    ["missing", "folder", "pipe", "empty", "blank", "binary", "sentence", "null", "unset"],
)
def test_a_node_file_that_is_none_leaves_this_machine(tmp_path: Path, wrong: str) -> None:
    value = broken_files(tmp_path)[wrong]
    pbs = {"PBS_JOBID": "12.pbs", "PBS_NODEFILE": value, "NCPUS": "4"}
    found = look(pbs, {"qstat -f 12.pbs": QSTAT_TEXT})
    assert (found.system, found.job, found.nodes, found.cores) == ("pbs", "12.pbs", (), ())
    assert found.ends == NOW + 2400
    assert len(found.complaints) == 1 and "PBS_NODEFILE" in found.complaints[0]
    assert look(pbs).system == ""


def test_the_other_systems_lies_are_survived_as_well(tmp_path: Path) -> None:
    files = broken_files(tmp_path)
    cobalt = {"COBALT_JOBID": "5", "COBALT_NODEFILE": files["missing"], "COBALT_PARTNAME": "R00-M0"}
    found = look(cobalt | {"COBALT_ENDTIME": "12"})
    assert found == Allocation("cobalt", "5", complaints=found.complaints)
    assert [said.split()[0] for said in found.complaints] == [
        "COBALT_NODEFILE",
        "COBALT_PARTNAME",
        "COBALT_ENDTIME",
    ]
    lsf = {"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "n1 2 n2", "LSB_DJOB_HOSTFILE": files["empty"]}
    assert look(lsf | {"LSB_HOSTS": "n1 n2"}).nodes == TWO
    assert len(look(lsf | {"LSB_HOSTS": "n1 n2"}).complaints) == 2
    sge = {"JOB_ID": "3", "SGE_ROOT": "/opt/sge", "PE_HOSTFILE": files["sentence"]}
    assert look(sge).nodes == () and len(look(sge).complaints) == 1
    pbs = {"PBS_JOBID": "1", "PBS_NODEFILE": written(tmp_path / "n", "n1", "n1")}
    assert look(pbs | {"PBS_NUM_PPN": "9"}).cores == (2,)
    assert "PBS_NUM_PPN is '9'" in look(pbs | {"PBS_NUM_PPN": "9"}).complaints[0]


def test_a_pbs_job_without_time_left_has_no_end(tmp_path: Path) -> None:
    environment = {"PBS_JOBID": "12", "PBS_NODEFILE": written(tmp_path / "n", "n1")}
    spent = QSTAT_TEXT.replace("00:20:00", "01:20:00")
    found = look(environment, {"qstat -f 12": spent})
    assert found.ends is None and "PBS_JOBID is '12'" in found.complaints[0]
    for text in (QSTAT_TEXT.replace("01:00:00", "soon"), "qstat: Unknown Job Id 12"):
        found = look(environment, {"qstat -f 12": text})
        assert (found.ends, found.complaints) == (None, ())


NAMES = [
    "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE", "SLURM_MEM_PER_CPU",
    "SLURM_GPUS_PER_NODE", "SLURM_JOB_GPUS", "SLURM_JOB_END_TIME", "PBS_JOBID", "PBS_NODEFILE",
    "PBS_NUM_PPN", "NCPUS", "LSB_JOBID", "LSB_MCPU_HOSTS", "LSB_HOSTS", "COBALT_JOBID",
    "COBALT_PARTNAME", "COBALT_ENDTIME", "FLUX_JOB_ID", "FLUX_URI", "JOB_ID", "SGE_ROOT",
    "PE_HOSTFILE",
]  # fmt: skip
values = st.sampled_from(["1", "n1", "n[1-3]", "n1 4 n2 4", "-1", "9" * 30, "/dev/zero"]) | st.text(
    max_size=20
)


@relaxed
@given(st.dictionaries(st.sampled_from(NAMES), values), values)
def test_no_environment_and_no_answer_is_a_crash(environment: dict[str, str], answer: str) -> None:
    found = find(environment, ask=lambda _: answer, host="n1")
    assert len(found.cores) in (0, len(found.nodes))
    assert len(set(found.nodes)) == len(found.nodes)
    assert all(count > 0 for count in found.cores)
    assert not found.nodes or "n1" in {name.lower().partition(".")[0] for name in found.nodes}


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queue", "accounting", "over"),
    [
        ("RUNNING\n", "", False),
        ("PENDING\n", "", False),
        ("COMPLETING\n", "COMPLETED\n", False),
        ("SUSPENDED\n", "", False),
        ("COMPLETED\n", "", True),
        ("CANCELLED\n", "", True),
        ("NODE_FAIL\n", "", True),
        ("TIMEOUT\nFAILED\n", "", True),
        ("RUNNING\nPENDING\n", "", False),
        ("RUNNING\nCOMPLETED\n", "", None),
        ("SOMETHING_NEW\n", "", None),
        ("", "COMPLETED\n", True),
        ("", "CANCELLED by 1000\n", True),
        ("", "COMPLETED\nRUNNING\n", None),
        ("", "RUNNING\n", None),
        ("", "", None),
        ("slurm_load_jobs error: Invalid job id specified\n", "TIMEOUT\n", True),
        ("slurm_load_jobs error: Invalid job id specified\n", "", None),
    ],
)
def test_slurm_s_word_on_whether_a_job_is_over(
    queue: str, accounting: str, over: bool | None
) -> None:
    answers = {
        "squeue -h -t all -j 7 -o %T": queue,
        "sacct -X -n -P -j 7 -o State": accounting,
    }
    assert is_over("slurm", "7", told(answers)) is over


@pytest.mark.parametrize(
    ("state", "over"),
    [("R", False), ("Q", False), ("E", False), ("H", False), ("F", True), ("C", True), ("M", None)],
)
def test_pbs_s_word_on_whether_a_job_is_over(state: str, over: bool | None) -> None:
    text = QSTAT_TEXT.replace("job_state = R", f"job_state = {state}")
    assert is_over("pbs", "12.pbs", told({"qstat -x -f 12.pbs": text})) is over
    torque = {"qstat -x -f 12.pbs": "<Data><Job>..</Job></Data>", "qstat -f 12.pbs": text}
    assert is_over("pbs", "12.pbs", told(torque)) is over


def test_nobody_s_word_is_unknown() -> None:
    for system in ("slurm", "pbs", "lsf", "flux", "", "new"):
        assert is_over(system, "7", told({})) is None


# -- commands ------------------------------------------------------------------------------------


def test_a_command_is_asked_and_its_failure_is_no_answer() -> None:
    python = sys.executable
    assert claims.ask_system((python, "-c", "print('n1')")) == "n1\n"
    assert claims.ask_system((python, "-c", "print('n1'); raise SystemExit(1)")) == ""
    assert claims.ask_system(("/nowhere/squeue",)) == ""
    assert claims.ask_system(("a\0b",)) == ""


def test_a_command_that_hangs_is_no_answer_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(claims, "ANSWER_LIMIT_S", 0.5)
    begun = time.monotonic()
    script = f"sleep 300 & echo $! > {tmp_path}/child; echo n1; wait"
    assert claims.ask_system(("/bin/sh", "-c", script)) == ""
    assert time.monotonic() - begun < 60
    child = (tmp_path / "child").read_text().strip()
    while (stat := Path(f"/proc/{child}/stat")).exists():
        if stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        assert time.monotonic() - begun < 60


def test_this_process_s_own_host_is_asked_of_the_system() -> None:
    here = os.uname().nodename
    environment = {"LSB_JOBID": "1", "LSB_MCPU_HOSTS": f"{here} 4"}
    assert find(environment, ask=told({})) == Allocation("lsf", "1", (here,), (4,))
