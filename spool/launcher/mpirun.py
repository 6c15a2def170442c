"""mpirun - one mpirun per task: which one, and its words.

Owns   the flavours of mpirun, their options and variables, and how a rank finds its place.
Never  starts a task; `ask_version` alone runs a program, to be told what it is.
Fails  SpoolError: a setting that names no mpirun there is, or a template with a wrong placeholder.

Ranks stand in block order: rank r is on seat r // ranks_per_node. Seats must stand in the order in
which the batch system lists the job's nodes: srun starts ranks in that order whatever its list
says, and hydra and Intel MPI, which start through srun, then also mistake one node for another.

Every flavour is told to bind nothing. Instead a few lines of sh before the program find the rank,
its cores and its GPUs, move to the cores where the kernel allows it, and become the program. Only
jsrun is left to bind: it chooses nodes, cores and GPUs itself, so that a seat is only a size there.
aprun wants node numbers as hosts, and ALPS gives a node to one aprun at a time.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from spool.errors import SpoolError

ASK_LIMIT_S = 10.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MISLEADING = (
    "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_EXACT",
    "SLURM_EXCLUSIVE", "SLURM_HINT", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_SOCKET",
    "SLURM_GPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_GPU_BIND", "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_GPU", "SLURM_THREADS_PER_CORE", "SLURM_PROCID",
)  # fmt: skip
"""Leave these out of a task's environment: what the job was asked for, which srun takes for a
wish of the task, and the launcher's own rank. Empty values will not do, srun refuses them."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What a task got on one node; host is the batch system's name for it, "" this machine."""

    host: str
    cpus: tuple[int, ...]
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flavour:
    """One mpirun: what it is, where, and the words it always gets.

    system is the batch system whose job we are in, where that is known.
    """

    name: str
    program: str
    version: str = ""
    template: str = ""
    extra: tuple[str, ...] = ()
    system: str = ""


# -- which one -----------------------------------------------------------------------------------

_JOBS = {
    "slurm": ("SLURM_JOB_ID", "srun"),
    "lsf": ("LSB_JOBID", "jsrun"),
    "cobalt": ("COBALT_JOBID", "aprun"),
}
"""Of each batch system: the variable that says we are in its job, and its own starter."""
_OWN_NAMES = ("srun", "jsrun", "aprun")  # what they are, their file's name says
_ASKED = ("mpiexec", "mpirun")
_SIGNS = (
    ("intel", re.compile(r"Intel\(R\) MPI Library.*?Version +([\w.]+)")),
    ("hydra", re.compile(r"HYDRA build details:(?:\s+Version: +(\S+))?")),
    ("openmpi", re.compile(r"(?:Open MPI|OpenRTE|PRRTE)\)? *v?([\d.]*)")),
    ("aprun", re.compile(r"aprun(?: \(ALPS\))? *([\d.]*)")),
    ("pals", re.compile(r"PALS\)? *(?:version +)?([\d.]*)")),
    ("pals", re.compile(r"^mpiexec version +([\d.]+)", re.MULTILINE)),
    ("srun", re.compile(r"^slurm(?:-wlm)? +([\d.]+)", re.MULTILINE)),
)
NAMES = ("hydra", "intel", "openmpi", "pals", *_OWN_NAMES)


def ask_version(program: str) -> str:
    """All that `program --version` says; "" if it fails or takes too long."""
    try:
        told = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ASK_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.decode(errors="replace")


def recognise(told: str) -> tuple[str, str]:
    """The flavour and the version that the answer to --version tells of; ("", "") if unknown."""
    for name, sign in _SIGNS:
        if found := sign.search(told):
            return name, found[1] or ""
    return "", ""


def find(
    setting: str,
    environment: Mapping[str, str],
    system: str,
    ask: Callable[[str], str] = ask_version,
) -> Flavour | None:
    """The mpirun that a setting means; None if "auto" finds none. Raises SpoolError.

    A setting is "auto", a flavour's name or a program, with extra words, or a template. system
    is the batch system's name, "" to tell it from the environment.
    """
    given = _split(setting)
    job = next((s for s in _JOBS if _JOBS[s][0] in environment and system in ("", s)), "")
    if any("{" in word for word in given):
        _check_template(setting, given)
        return Flavour("template", given[0], template=setting, system=job)
    first, extra = given[0], tuple(given[1:])
    path = environment.get("PATH", os.defpath)
    own = _JOBS[job][1] if job else ""
    if first == "auto" and own and (program := shutil.which(own, path=path)):
        return Flavour(own, program, extra=extra, system=job)
    if first == "auto" or (first in NAMES and first not in _OWN_NAMES):
        wanted = "" if first == "auto" else first
        name, program, version = _search(wanted, path, ask)
        if not name and wanted:
            raise SpoolError(f"mpi: no mpiexec or mpirun on PATH is {wanted}. Give its path")
    else:
        name, program, version = _named(first, path, ask)
    return Flavour(name, program, version, extra=extra, system=job) if name else None


def _split(setting: str) -> list[str]:
    try:
        given = shlex.split(setting)
    except ValueError as fault:
        raise SpoolError(f"mpi: {setting!r}: {fault}") from None
    if not given:
        raise SpoolError('mpi: the setting is empty. Write "auto" to look for an mpirun')
    return given


def _search(wanted: str, path: str, ask: Callable[[str], str]) -> tuple[str, str, str]:
    """Name, program and version of the first known one on PATH, else in Python's own folder."""
    for where in (path, os.path.dirname(sys.executable)):
        for word in _ASKED:
            program = shutil.which(word, path=where)
            name, version = recognise(ask(program)) if program else ("", "")
            if program and name and wanted in ("", name):
                return name, program, version
    return "", "", ""


def _named(word: str, path: str, ask: Callable[[str], str]) -> tuple[str, str, str]:
    """Name, program and version of the program that a setting names."""
    program = shutil.which(word, path=path)
    if program is None:
        raise SpoolError(
            f"mpi: there is no program {word}. Allowed are auto, {', '.join(NAMES)}, a program, "
            "or a template with {command}"
        )
    if (own := os.path.basename(program)) in _OWN_NAMES:
        return own, program, ""
    name, version = recognise(ask(program))
    if not name:
        raise SpoolError(
            f"mpi: {program} --version names no mpirun that spool knows. "
            "Write a template with {command} instead"
        )
    return name, program, version


# -- its words -----------------------------------------------------------------------------------


def words(
    flavour: Flavour,
    seats: Sequence[Seat],
    ranks_per_node: int,
    cores_per_rank: int,
    command: list[str],
    *,
    pin: bool,
    forwarded: Iterable[str],
) -> list[str]:
    """The command that runs `command` on all seats. forwarded: variables made for this task."""
    bound = command
    if flavour.name != "jsrun" and _bind(seats, pin=pin):
        bound = ["/bin/sh", "-c", _PROLOGUE, "spool-bind", *command]
    if flavour.name == "template":
        return _fill(flavour.template, seats, ranks_per_node, cores_per_rank, bound)
    options = _OPTIONS[flavour.name](flavour, seats, ranks_per_node)
    if flavour.name == "openmpi":
        names = (name for name in forwarded if not _MPIRUN_S_OWN.match(name))
        options += [word for name in names for word in ("-x", name)]
    if flavour.name == "jsrun":
        binding = f"packed:{cores_per_rank}" if pin else "none"
        options += ["-c", str(ranks_per_node * cores_per_rank), "-b", binding]
    return [flavour.program, *flavour.extra, *options, *bound]


_MPIRUN_S_OWN = re.compile(r"(OMPI|PRTE|PMIX|SLURM)_")  # it passes on itself what ranks need


def _hydra(flavour: Flavour, seats: Sequence[Seat], ranks_per_node: int) -> list[str]:
    """MPICH and Intel MPI. A lone seat here is forked: cheaper, and no srun can block it.

    Without a host list they would take all nodes of a batch job, and Intel MPI with one, ssh.
    """
    launcher: list[str] = []
    if not {"-launcher", "-bootstrap"} & set(flavour.extra):
        if len(seats) == 1 and _is_here(seats[0].host):
            launcher = ["-launcher", "fork"]
        elif flavour.name == "intel" and flavour.system == "slurm":
            launcher = ["-launcher", "slurm"]
    size = ["-ppn", str(ranks_per_node), "-n", str(len(seats) * ranks_per_node)]
    return [*launcher, "-hosts", _hosts(seats), *size]


def _openmpi(flavour: Flavour, seats: Sequence[Seat], ranks_per_node: int) -> list[str]:
    hosts = _hosts(seats, f":{ranks_per_node}")
    return ["--host", hosts, "--map-by", f"ppr:{ranks_per_node}:node", "--bind-to", "none"]


def _srun(flavour: Flavour, seats: Sequence[Seat], ranks_per_node: int) -> list[str]:
    """A step beside all others of the job, even those whose cores it shares.

    No -c, which implies --exact. --mem=0 is all memory the job has, and counts against no step.
    --export undoes an `sbatch --export=NONE`.
    """
    where = [f"--nodelist={_hosts(seats)}"] if seats[0].host else []
    return [
        "--overlap",
        f"--nodes={len(seats)}",
        *where,
        f"--ntasks={len(seats) * ranks_per_node}",
        f"--ntasks-per-node={ranks_per_node}",
        "--distribution=block",
        "--cpu-bind=none",
        "--mem=0",
        "--export=ALL",
        "--kill-on-bad-exit=1",
    ]


def _pals(flavour: Flavour, seats: Sequence[Seat], ranks_per_node: int) -> list[str]:
    where = ["--hosts", _hosts(seats)] if seats[0].host else []
    size = ["--ppn", str(ranks_per_node), "-n", str(len(seats) * ranks_per_node)]
    return [*where, *size, "--cpu-bind", "none", "--envall"]


def _aprun(flavour: Flavour, seats: Sequence[Seat], ranks_per_node: int) -> list[str]:
    where = ["-L", _hosts(seats)] if seats[0].host else []
    size = ["-n", str(len(seats) * ranks_per_node), "-N", str(ranks_per_node)]
    return [*size, *where, "-cc", "none"]


def _jsrun(flavour: Flavour, seats: Sequence[Seat], ranks_per_node: int) -> list[str]:
    """One resource set on each node; on which nodes, jsrun decides."""
    gpus = max(len(seat.gpus) for seat in seats)
    sets = ["-n", str(len(seats)), "-r", "1", "-a", str(ranks_per_node), "-g", str(gpus)]
    return [*sets, "-d", "packed"]


_OPTIONS: dict[str, Callable[[Flavour, Sequence[Seat], int], list[str]]] = {
    "hydra": _hydra,
    "intel": _hydra,
    "openmpi": _openmpi,
    "srun": _srun,
    "pals": _pals,
    "aprun": _aprun,
    "jsrun": _jsrun,
}


def _hosts(seats: Sequence[Seat], after: str = "") -> str:
    return ",".join(f"{seat.host or 'localhost'}{after}" for seat in seats)


def _is_here(host: str) -> bool:
    own = os.uname().nodename
    return host in ("", "localhost", own) or host.split(".")[0] == own.split(".")[0]


# -- templates -----------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS = (
    "command", "hosts", "host_list_n", "nodes", "ranks", "ranks_per_node", "cores_per_rank",
    "gpus_per_node",
)  # fmt: skip


def _check_template(template: str, given: list[str]) -> None:
    """Raises SpoolError: a placeholder that is unknown, or {command} not a word by itself."""
    for name in _PLACEHOLDER.findall(" ".join(given)):
        if name not in PLACEHOLDERS:
            allowed = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise SpoolError(f"mpi: {template!r}: unknown {{{name}}}. Allowed are {allowed}")
    if [word for word in given if "{command}" in word] != ["{command}"]:
        raise SpoolError(f"mpi: {template!r}: {{command}} must stand once, as a word by itself")


def _fill(
    template: str,
    seats: Sequence[Seat],
    ranks_per_node: int,
    cores_per_rank: int,
    command: list[str],
) -> list[str]:
    """The template's words; split before anything is put in, so that a value stays one word."""
    values = {
        "hosts": _hosts(seats),
        "host_list_n": _hosts(seats, f":{ranks_per_node}"),
        "nodes": str(len(seats)),
        "ranks": str(len(seats) * ranks_per_node),
        "ranks_per_node": str(ranks_per_node),
        "cores_per_rank": str(cores_per_rank),
        "gpus_per_node": str(max(len(seat.gpus) for seat in seats)),
    }
    made: list[str] = []
    for word in shlex.split(template):
        if word == "{command}":
            made += command
        else:
            made.append(_PLACEHOLDER.sub(lambda found: values[found[1]], word))
    return made


_REFUSED = re.compile(
    rb"^srun: (?:error|fatal): (Unable to (?:create step|confirm allocation|contact)[^\n]*"
    rb"|[^\n]*(?:Socket timed out|Unable to contact slurm controller)[^\n]*)\s*\Z",
    re.MULTILINE,
)


def refused(said: bytes) -> str:
    """Why the batch system let no rank begin, by all that was said; "" if one may have.

    A controller that has just been restarted refuses steps for a moment: the task did not fail. Had
    a rank begun, or an srun of its own been refused, there would be words that are not srun's.
    """
    found = _REFUSED.search(said)
    if found is None or any(line[:6] != b"srun: " for line in said.splitlines() if line.strip()):
        return ""
    return found[1].decode(errors="replace").strip()


# -- its environment -----------------------------------------------------------------------------

_IN_SLURM = {"SLURM_OVERLAP": "1"}  # or their own srun waits for cores that our step holds
_UNBOUND = {"SLURM_CPU_BIND": "none"}  # or their srun takes over how our step was bound
_VARIABLES: dict[str, dict[str, str]] = {
    "hydra": {},
    "intel": {"I_MPI_PIN": "0", "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "0"},
    "openmpi": {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",  # until 4
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # since 5
    },
}


def environment(
    seats: Sequence[Seat],
    ranks_per_node: int,
    cores_per_rank: int,
    *,
    pin: bool,
    flavour: Flavour,
) -> dict[str, str]:
    """The variables to add; of those inherited, leave out MISLEADING."""
    made = dict.fromkeys(THREADS, str(cores_per_rank))
    made["SPOOL_NODES"] = _hosts(seats)
    made["SPOOL_RANKS"] = str(len(seats) * ranks_per_node)
    made["SPOOL_RANKS_PER_NODE"] = str(ranks_per_node)
    made["SPOOL_CORES_PER_RANK"] = str(cores_per_rank)
    if flavour.name != "jsrun" and (bind := _bind(seats, pin=pin)):
        made["SPOOL_BIND"] = bind
    made |= _VARIABLES.get(flavour.name, {})
    if flavour.system == "slurm" and flavour.name != "srun":
        made |= _IN_SLURM
        if flavour.name != "openmpi":  # which says so itself
            made |= _UNBOUND
    return made


# -- a rank's place ------------------------------------------------------------------------------

# Builtins only, but for taskset. Names with an underscore: one that the environment had already
# would reach the program changed. The shell moves itself, so that a refusal costs nothing.
_PROLOGUE = (
    "_rank=${OMPI_COMM_WORLD_RANK-${PMI_RANK-${PMIX_RANK-${PALS_RANKID-${ALPS_APP_PE-"
    "${MV2_COMM_WORLD_RANK-${MPI_RANKID-${MPI_RANK-${SLURM_PROCID-}}}}}}}}};"
    '[ -n "$_rank" ]||exec "$@";'
    "set -f;_size=$SPOOL_RANKS_PER_NODE;_local=$((_rank%_size));_seat=$((_rank/_size));"
    "_some= _entry=;for _entry in $SPOOL_BIND;do _some=${_entry%%x*};"
    "[ $_seat -ge $_some ]||break;_seat=$((_seat-_some));done;"
    "_entry=${_entry#*x};_cpus=${_entry%%:*};_gpus=${_entry#*:};IFS=,;"
    "_take=$SPOOL_CORES_PER_RANK;_skip=$((_local*_take));_list=;"
    "for _range in $_cpus;do _from=${_range%-*};_to=${_range#*-};_some=$((_to-_from+1));"
    "if [ $_skip -ge $_some ];then _skip=$((_skip-_some));continue;fi;"
    "_from=$((_from+_skip));_some=$((_some-_skip));_skip=0;"
    "if [ $_some -gt $_take ];then _some=$_take;_to=$((_from+_take-1));fi;"
    "_list=$_list,$_from-$_to;_take=$((_take-_some));[ $_take -gt 0 ]||break;done;"
    "_see(){ if [ $# -ge $_size ];then _some=$(($#/_size));shift $((_local*_some));_gpus=;"
    "while [ $_some -gt 0 ];do _gpus=$_gpus,$1;shift;_some=$((_some-1));done;_gpus=${_gpus#,};"
    "else shift $((_local%$#));_gpus=$1;fi;"
    "export CUDA_VISIBLE_DEVICES=$_gpus ROCR_VISIBLE_DEVICES=$_gpus ZE_AFFINITY_MASK=$_gpus;};"
    '[ -z "$_gpus" ]||_see $_gpus;'
    '[ -z "$_list" ]||taskset -cp "${_list#,}" $$ >/dev/null 2>&1;'
    'exec "$@"'
)


def _bind(seats: Sequence[Seat], *, pin: bool) -> str:
    """What each seat has, in their order, as the prologue reads it; "" if nothing is to be bound.

    "2x0-3,8:0,1 1x4-7:": two seats with cores 0 to 3 and 8 and GPUs 0 and 1, then one with four
    cores. An entry's size does not grow with its ranks, since a string may have 128 KiB at most.
    """
    if not pin and not any(seat.gpus for seat in seats):
        return ""
    places = ((_ranges(seat.cpus) if pin else "", ",".join(seat.gpus)) for seat in seats)
    runs = ((place, sum(1 for _ in run)) for place, run in groupby(places))
    return " ".join(f"{count}x{cpus}:{gpus}" for (cpus, gpus), count in runs)


def _ranges(cpus: Sequence[int]) -> str:
    """Numbers as taskset reads them, in their order: 0-3,8."""
    if not cpus:
        return ""
    cuts = [0, *(n + 1 for n, (a, b) in enumerate(pairwise(cpus)) if b != a + 1), len(cpus)]
    runs = ((cpus[start], cpus[end - 1]) for start, end in pairwise(cuts))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
