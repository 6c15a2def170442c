"""allocation - where am I: the allocation this process runs in, and whether one is over.

A batch system says it in variables, node files and commands. Each of them may be missing, stale
(a shell that outlived its job, a variable sent along to another host) or malformed: what
contradicts the evidence is left out, with a sentence for the person who started us.

Owns   every reading of SLURM_*, PBS_*, LSB_*, COBALT_*, FLUX_* and Grid Engine's variables.
Never  changes anything; runs commands only through `ask`, each for ten seconds at most.
Fails  never: what cannot be read is unknown, and stands in `complaints`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from spool.launcher import hosts
from spool.launcher.claims import Ask, Claims, ask_system, job_id, lines, node_file
from spool.launcher.hosts import Slots
from spool.queue import allocations
from spool.units import duration, shown

_SYSTEMS = {
    "slurm": ("srun", ("SLURM_JOB_ID", "SLURM_JOBID")),
    "pbs": ("pbsdsh", ("PBS_JOBID",)),
    "lsf": ("jsrun or blaunch", ("LSB_JOBID",)),
    "cobalt": ("aprun", ("COBALT_JOBID",)),
    "flux": ("flux run", ("FLUX_JOB_ID", "FLUX_URI")),
    "sge": ("qrsh -inherit", ("JOB_ID",)),
}
"""Batch systems, first come first believed: what starts a program on a node, and their signs."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a batch system has granted; the empty one is this machine alone."""

    system: str  # "slurm" "pbs" "lsf" "cobalt" "flux" "sge", or "" for this machine alone
    job: str = ""  # the batch system's id, "" for none
    nodes: tuple[str, ...] = ()  # host names in order, each once; () is this machine
    cores: tuple[int, ...] = ()  # granted on each node; () is unknown
    gpus: int | None = None  # on each node; None is unknown
    memory_mb: int | None = None  # on each node; None is unknown
    ends: float | None = None  # when the batch system ends it, since the epoch; None is unknown
    complaints: tuple[str, ...] = ()  # a sentence for each variable that lies or cannot be read


def find(
    environment: Mapping[str, str], *, ask: Ask = ask_system, host: str | None = None
) -> Allocation:
    """The allocation this process runs in, as far as the evidence bears it out."""
    here = os.uname().nodename if host is None else host
    complaints: list[str] = []
    for system in _named(environment):
        claims = Claims(environment, ask)
        found = _READERS[system](claims)
        believed = _borne_out(claims, found, here)
        complaints += claims.complaints
        if believed:
            return replace(found, complaints=tuple(complaints))
    return Allocation("", complaints=tuple(complaints))


def named() -> dict[str, str]:
    """What a record says of the allocation that the service asked for, if we run in one."""
    name = os.environ.get(allocations.VARIABLE, "")
    return {"allocation_name": name} if allocations.is_name(name) else {}


def _named(environment: Mapping[str, str]) -> list[str]:
    """The batch systems that the environment names, the most trusted first."""
    named = [system for system in _SYSTEMS if _sign(environment, system)]
    if "slurm" in named and "flux" in named:  # then Flux was started inside the Slurm job
        named.remove("flux")
        named.insert(0, "flux")
    return named


def _sign(environment: Mapping[str, str], system: str) -> str:
    """The variable by which the environment names a batch system, "" if it does not."""
    if system == "sge" and not environment.get("SGE_ROOT", "").strip():
        return ""  # JOB_ID alone may be anybody's
    names = (name for name in _SYSTEMS[system][1] if environment.get(name, "").strip())
    return next(names, "")


def _borne_out(claims: Claims, found: Allocation, host: str) -> bool:
    """Whether this may be where we are; if not, the sentence why is added.

    A false id is worse than none: others ask whether it is over, and would take our tasks.
    """
    if not found.job and found.system != "flux":
        return False  # the complaint about the id says so
    why = ""
    if found.nodes and hosts.short(host) not in map(hosts.short, found.nodes):
        inside = f"start the launcher on one of them, for example with {_SYSTEMS[found.system][0]}"
        why = f"this host {host} is not among its nodes {shown(','.join(found.nodes))}; {inside}"
    elif claims.complaints or not found.nodes:
        over = is_over(found.system, found.job, claims.ask)
        lost = not found.nodes and found.system in ("slurm", "pbs", "flux") and over is None
        why = "that job is over" if over else "nothing shows that it has this host" if lost else ""
    if why:
        claims.doubt(_sign(claims.environment, found.system), f"{why}; this machine alone is used")
    return not why


def _names(slots: Slots) -> tuple[str, ...]:
    return tuple(name for name, _ in slots)


def _counts(slots: Slots) -> tuple[int, ...]:
    return tuple(count for _, count in slots)


# -- Slurm ---------------------------------------------------------------------------------------


def _slurm(claims: Claims) -> Allocation:
    job = claims.job("SLURM_JOB_ID", "SLURM_JOBID")
    nodes = _slurm_nodes(claims, job)
    cores = claims.read("SLURM_JOB_CPUS_PER_NODE", hosts.read_counts) or ()
    if nodes and cores and len(cores) != len(nodes):
        why = f"that counts {len(cores)} nodes, but there are {len(nodes)}; the cores are unknown"
        claims.doubt("SLURM_JOB_CPUS_PER_NODE", why)
    if len(cores) != len(nodes):
        cores = ()
    memory_mb = _slurm_memory_mb(claims, cores)
    ends = _slurm_ends(claims, job)
    return Allocation("slurm", job, nodes, cores, _slurm_gpus(claims), memory_mb, ends)


def _slurm_nodes(claims: Claims, job: str) -> tuple[str, ...]:
    names = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next(
        (list_ for name in names if (list_ := claims.read(name, hosts.expand_hostlist))), ()
    )
    if not nodes and job:
        if not claims.text(names[0]):
            claims.doubt(names[0], "the nodes are asked of squeue")
        nodes = _expanded(claims.ask(("squeue", "-h", "-j", job, "-o", "%N")))
    count = claims.read("SLURM_JOB_NUM_NODES", hosts.positive)
    if nodes and count and count != len(nodes):
        claims.doubt("SLURM_JOB_NUM_NODES", f"but {len(nodes)} nodes are listed, which are used")
    return nodes


def _expanded(answer: str) -> tuple[str, ...]:
    """A command's host list; () if it gave none."""
    try:
        return hosts.expand_hostlist(answer)
    except ValueError:
        return ()


def _slurm_memory_mb(claims: Claims, cores: tuple[int, ...]) -> int | None:
    if memory_mb := claims.read("SLURM_MEM_PER_NODE", hosts.positive):
        return memory_mb
    each_mb = claims.read("SLURM_MEM_PER_CPU", hosts.positive)
    return each_mb * min(cores) if each_mb and cores else None


def _slurm_gpus(claims: Claims) -> int | None:
    readers = {
        "SLURM_GPUS_ON_NODE": _gpu_counts,
        "SLURM_GPUS_PER_NODE": _gpu_counts,
        "SLURM_JOB_GPUS": _gpu_list,
    }
    read = (claims.read(name, reader) for name, reader in readers.items())
    return next((count for count in read if count is not None), None)


def _gpu_counts(text: str) -> int:
    """4, a100:4 and a100:2,h100:2 are all four; none is a count as well."""
    counts = [part.rpartition(":")[2] for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", count) for count in counts):
        raise ValueError("expected a number of GPUs, such as 4 or a100:4")
    return sum(map(int, counts))


def _gpu_list(text: str) -> int:
    """0,2-3 lists three."""
    try:
        return len(hosts.expand_hostlist(f"gpu[{text}]"))
    except ValueError:
        raise ValueError("expected the numbers of GPUs, such as 0,2-3") from None


def _slurm_ends(claims: Claims, job: str) -> float | None:
    if ends := claims.read("SLURM_JOB_END_TIME", claims.moment):
        return ends
    left = claims.ask(("squeue", "-h", "-j", job, "-o", "%L")).strip() if job else ""
    try:
        return claims.ahead(duration(left))
    except ValueError:  # UNLIMITED, NOT_SET, INVALID, or no answer
        return None


# -- PBS -----------------------------------------------------------------------------------------


def _pbs(claims: Claims) -> Allocation:
    job = claims.job("PBS_JOBID")
    slots = claims.slots(("PBS_NODEFILE", node_file))
    return Allocation(
        "pbs", job, _names(slots), _pbs_cores(claims, slots), ends=_pbs_ends(claims, job)
    )


def _pbs_cores(claims: Claims, slots: Slots) -> tuple[int, ...]:
    """Torque's file has a line for each core; OpenPBS's one for each MPI rank, of NCPUS cores."""
    counts = _counts(slots)
    per_node = claims.read("PBS_NUM_PPN", hosts.positive)
    if per_node and set(counts) == {1}:
        return (per_node,) * len(counts)
    if per_node and counts and per_node not in counts:
        claims.doubt("PBS_NUM_PPN", "PBS_NODEFILE lists other counts, which are used")
    least = 0 if per_node else claims.read("NCPUS", hosts.positive) or 0
    if not per_node and not least and set(counts) == {1}:
        return ()
    return tuple(max(count, least) for count in counts)


def _pbs_ends(claims: Claims, job: str) -> float | None:
    """From the walltime and what of it is used, or from the start where that ends earlier."""
    if not job:
        return None
    said = _json_lines(claims.ask(("qstat", "-f", "-F", "json", job)))
    said = said or _text_lines(claims.ask(("qstat", "-f", job)))
    try:
        limit_s = duration(said.get("Resource_List.walltime", ""))
        used_s = duration(said.get("resources_used.walltime", "0"))
    except ValueError:
        return None
    try:
        ends = claims.ahead(limit_s - used_s)
    except ValueError as error:
        claims.doubt("PBS_JOBID", f"qstat gives it no time: {error}")
        return None
    # The used walltime is some minutes old, as the node last reported it.
    started = _civil(said.get("stime") or said.get("start_time", ""))
    return min(ends, started + limit_s) if started + limit_s > claims.now else ends


def _civil(text: str) -> float:
    """The moment of Sun Nov 22 20:30:05 2026 on this machine's clock; 0 if there is none."""
    try:
        return time.mktime(time.strptime(text.strip()))
    except (ValueError, OverflowError):
        return 0.0


def _text_lines(text: str) -> dict[str, str]:
    """The attributes that `qstat -f` prints, one on each line."""
    return dict(re.findall(r"^\s*([\w.]+) = (.*?)\s*$", text, re.MULTILINE))


def _json_lines(text: str) -> dict[str, str]:
    """The same from OpenPBS's JSON; none if it is malformed, as it is with some variables."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    jobs = answer.get("Jobs") if isinstance(answer, dict) else None
    job = next(iter(jobs.values()), None) if isinstance(jobs, dict) else None
    lines: dict[str, str] = {}
    for key, value in job.items() if isinstance(job, dict) else ():
        inner = value.items() if isinstance(value, dict) else ()
        lines.update({f"{key}.{name}": str(part) for name, part in inner} or {key: str(value)})
    return lines


# -- the others ----------------------------------------------------------------------------------


def _lsf(claims: Claims) -> Allocation:
    job = claims.job("LSB_JOBID")
    slots = claims.slots(
        ("LSB_MCPU_HOSTS", lambda text: hosts.read_pairs(text.split())),
        ("LSB_DJOB_HOSTFILE", node_file),
        ("LSB_HOSTS", lambda text: hosts.count_slots(text.split())),
    )
    slots = hosts.without_launch_node(slots)
    return Allocation("lsf", job, _names(slots), _counts(slots))


def _cobalt(claims: Claims) -> Allocation:
    """Cobalt's file has a line for each node, whatever its cores."""
    job = claims.job("COBALT_JOBID")
    slots = claims.slots(
        ("COBALT_NODEFILE", node_file),
        ("COBALT_PARTNAME", lambda text: hosts.count_slots(hosts.expand_nids(text))),
    )
    ends = claims.read("COBALT_ENDTIME", claims.moment)
    return Allocation("cobalt", job, _names(slots), ends=ends)


def _flux(claims: Claims) -> Allocation:
    """FLUX_JOB_ID is a job of the instance, perhaps a whole cluster's; a batch script has none."""
    job = claims.job("FLUX_JOB_ID")
    nodes = _expanded(claims.ask(("flux", "hostlist", job or "instance")))
    if not nodes and not job:  # older than `flux hostlist`
        nodes = _expanded(claims.ask(("flux", "getattr", "hostlist")))
    left = claims.ask(("flux", "job", "timeleft")).strip() if nodes else ""
    try:
        ends = claims.ahead(float(left))
    except ValueError:  # "inf" for no limit, or no answer
        ends = None
    return Allocation("flux", job, nodes, ends=ends)


def _sge(claims: Claims) -> Allocation:
    """A job without a parallel environment has no file: it has this machine."""
    job = claims.job("JOB_ID")
    slots = claims.read("PE_HOSTFILE", lambda path: hosts.read_table(lines(path))) or ()
    return Allocation("sge", job, _names(slots), _counts(slots))


_READERS: dict[str, Callable[[Claims], Allocation]] = {
    "slurm": _slurm,
    "pbs": _pbs,
    "lsf": _lsf,
    "cobalt": _cobalt,
    "flux": _flux,
    "sge": _sge,
}


# -- the end -------------------------------------------------------------------------------------

_FINAL = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
_ALIVE = {
    "COMPLETING", "CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING",
    "RESV_DEL_HOLD", "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
}  # fmt: skip


def is_over(system: str, job: str, ask: Ask = ask_system) -> bool | None:
    """Whether an allocation has ended for good, by the batch system's word; None is unknown."""
    try:
        job = job_id(job)
    except ValueError:
        return None
    if system == "slurm":
        return _slurm_over(job, ask)
    return _pbs_over(job, ask) if system == "pbs" else None


def _slurm_over(job: str, ask: Ask) -> bool | None:
    """The controller forgets a job minutes after its end; then the accounting knows.

    The accounting's RUNNING is no word: it stays for ever where the end was not recorded.
    """
    states = set(ask(("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")).split())
    if states and states <= _FINAL:
        return True
    if states and states <= _ALIVE:
        return False
    printed = ask(("sacct", "-X", "-n", "-P", "-j", job, "-o", "State")).splitlines()
    recorded = {line.split()[0] for line in printed if line.strip()}  # CANCELLED by 1000
    return True if recorded and recorded <= _FINAL else None


def _pbs_over(job: str, ask: Ask) -> bool | None:
    """OpenPBS tells of ended jobs where it is asked with -x; Torque's -x is XML."""
    for command in (("qstat", "-x", "-f", job), ("qstat", "-f", job)):
        state = re.search(r"^\s*job_state = ([A-Z])\s*$", ask(command), re.MULTILINE)
        if state:
            return True if state[1] in "FC" else False if state[1] in "BEHQRSTUW" else None
    return None
