"""slurm - Slurm: sbatch, squeue, sacct, scancel, sinfo and scontrol.

Owns   Slurm's words for states, reasons and refusals, and the directives of its job scripts.
Never  asks Slurm to start a job again: it would keep its id, and whoever waits for the batch
       system's word that the job is over, so as to take its tasks, would wait in vain.
Fails  Declined, Unreachable.

A job's name may be of any length; its `|` and line ends would be trouble, and stand in none of
ours. squeue forgets a job MinJobAge after its end; then sacct is asked, where there is accounting.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence

from spool.service.system import (
    UNBOUNDED_S,
    Answer,
    Job,
    Order,
    Partition,
    Unreachable,
    ask,
    clock,
    judged,
    judged_cancel,
    meant,
    portions,
    printed_id,
    shown_line,
    usable,
)
from spool.service.terms import NodeShape, Window
from spool.units import duration

_FOREIGN = (
    r"(SQUEUE|SACCT|SINFO|SCANCEL|SCONTROL)_.*|SLURM_(TIME_FORMAT|BITSTR_LEN)"
    # of the job that we may run in ourselves
    r"|SLURM_(JOB|MEM|CPU|NTASKS|NPROCS|NNODES|NODE|TASK|STEP|TRES|GPU|GTIDS|LOCALID|PROCID|SUBMIT)"
    r".*|SLURM_EXPORT_ENV"
)
"""Variables that would hide jobs from us, or end up in another job."""
_OVERRULING = "ARRAY_INX|EXCLUSIVE|JOB_NAME|NO_REQUEUE|OUTPUT|PARTITION|REQUEUE|TIMELIMIT|WAIT"
"""Of SBATCH_*, those that are stronger than what the script says."""

_DOWN = (
    r"socket timed out|unable to contact slurm|connection (failure|refused|timed out|reset)"
    r"|in standby mode|zero bytes were transmitted|temporarily unable|unexpected message received"
    r"|could not establish a configuration|authentication (credential|agent|error)|munge"
    r"|invalid authentication credential|resource temporarily unavailable|job update not available"
)
_UNKNOWN = r"invalid job id|already completing or completed|job/step already"
_CAUSES = (
    ("quota", r"(QOS|Assoc)\w*(Submit|Jobs)\w*"),
    ("account", r"(QOS|Assoc)Grp\w*(Minutes|Mins)\w*|Grp\w*RawUsage"),
    ("limit", r"(QOS|Assoc)(Max|Min|Grp)\w+"),
    ("quota", r"job submit limit|pending job limit|too many jobs"),
    ("account", r"invalid (account|qos|wckey)|not permitted to use this partition|denied"),
    ("partition", r"partition name|no partition|partition (in|not|config)|invalid cluster"),
    ("partition", r"requested reservation|specified clusters"),
    ("limit", r"time ?limit|node count|node configuration|cpu count|memory spec|more processors"),
    ("limit", r"feature spec|generic resource|node name|nodes? not|burst buffer|task count"),
    (
        "script",
        r"batch script|script|unrecognized option|unknown option|invalid option|line breaks",
    ),
    ("script", r"invalid \S+ (spec|argument|value)|unable to open file|usage:|try \"sbatch"),
)

_QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_ENDING = {"COMPLETING", "STAGE_OUT"}
_OUTCOMES = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "OUT_OF_MEMORY": "failed",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "NODE_FAIL": "node-fail",
    "BOOT_FAIL": "node-fail",
    "PREEMPTED": "preempted",
}
MEANINGS = {
    "Priority": "jobs of a higher priority come first",
    "Resources": "it is next, and waits for nodes",
    "Dependency": "it waits for another job",
    "JobHeldUser": "its owner holds it; scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "BeginTime": "its earliest start has not come",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Nodes required for job are DOWN": "nodes that it needs are down, drained or reserved",
    "Reservation": "it waits for its reservation",
    "PartitionTimeLimit": "its walltime is over the partition's limit: it never starts",
    "PartitionNodeLimit": "its nodes are over the partition's limit: it never starts",
    "Partition(Down|Inactive)": "the partition takes no jobs now",
    "BadConstraints": "no node has what it asks for: it never starts",
    "Invalid(Account|QOS)": "its account or QOS is not valid any more",
    "AssocGrpCPUMinutes|AssocGrp\\w*(Minutes|Mins)": "the account has no hours left",
    "QOSGrp\\w*Minutes": "the QOS has no hours left",
    "QOSMax(Jobs|Submit)": "so many jobs of one user run already as the QOS allows",
    "QOSMax\\w*(Node|CPU|Cpu|GRES|Mem|TRES)": "it would pass what the QOS allows to one user",
    "QOSMaxWall": "its walltime is over the QOS's limit: it never starts",
    "QOS": "a limit of its QOS",
    "Assoc": "a limit of its account",
    "Licenses": "it waits for a licence",
    "launch failed": "it could not be started and is held",
}
_FIELDS = "%i|%T|%D|%L|%M|%P|%R|%N|%j"  # the name last: others' may hold anything
_ACCOUNT_FIELDS = "JobIDRaw,State,NNodes,ElapsedRaw,Partition,NodeList,JobName"


class Slurm:
    """Slurm through its commands."""

    name = "slurm"

    def __init__(self) -> None:
        self._accounts = True  # whether sacct can be asked

    # -- submission ------------------------------------------------------------------------------

    def head(self, order: Order) -> list[str]:
        """Whole nodes, with all their memory; the user's own lines last, for the last counts."""
        lines = [
            f"--job-name={order.name}",
            f"--nodes={order.nodes}",
            "--exclusive",
            "--mem=0",
            f"--time={clock(order.walltime_s)}",
            "--no-requeue",
        ]
        lines += [f"--partition={order.queue}"] if order.queue else []
        lines += [f"--account={order.account}"] if order.account else []
        lines += [f"--gres=gpu:{order.node.gpus}"] if order.node.gpus else []
        lines += [f'--output="{order.output.replace("%", "%%")}"'] if order.output else []
        return [f"#SBATCH {line}" for line in (*lines, *order.directives)]

    def submit(self, script: str, order: Order) -> str:
        """The job's id. After Unreachable the job may be there: look for its name."""
        answer = self._sbatch(order, script)
        judged(answer, _CAUSES, _DOWN)
        return printed_id(answer.out, r"^(\d+)(?:;\S*)?\s*$", "sbatch")

    def dry_run(self, script: str, order: Order) -> str | None:
        """When it would start, and where."""
        answer = self._sbatch(order, "--test-only", script)
        judged(answer, _CAUSES, _DOWN)
        return answer.word().removeprefix("sbatch: ")

    def _sbatch(self, order: Order, *words: str) -> Answer:
        overruling = f"{_OVERRULING}|ACCOUNT" if order.account else _OVERRULING
        foreign = f"{_FOREIGN}|SBATCH_({overruling})"
        return ask(("sbatch", "--parsable", *words), without=foreign, more={})

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL after the site's KillWait."""
        for some in portions(ids):
            judged_cancel(_ask("scancel", *some), _UNKNOWN, _DOWN, marked="error")

    # -- jobs ------------------------------------------------------------------------------------

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """All of this user's jobs are asked for, as squeue knows no prefix and --json no choice."""
        mine = ("-h", "-a", "-t", "all", "-u", str(os.getuid()))
        wanted = set(known)
        found = {
            job.id: job
            for job in _read_squeue(usable(_ask("squeue", *mine, "-o", _FIELDS)))
            if job.id in wanted or job.name.startswith(names)
        }
        gone = sorted(wanted - found.keys())
        return {**(self._accounted(gone) if gone and self._accounts else {}), **found}

    def _accounted(self, ids: list[str]) -> dict[str, Job]:
        """The outcomes of jobs that squeue has forgotten; {} where the accounting cannot tell."""
        found: dict[str, Job] = {}
        for some in portions([one for one in ids if one.isdecimal()]):
            words = ("-X", "-n", "-P", "-j", ",".join(some), "-o", _ACCOUNT_FIELDS)
            try:
                answer = _ask("sacct", *words)
            except Unreachable:
                return found
            if "disabled" in answer.err:
                self._accounts = False
            found.update((job.id, job) for job in _read_sacct(answer.out) if job.id in some)
        return found

    # -- the machine -----------------------------------------------------------------------------

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """Idle nodes until the partition's limit, a reservation, or the start of a planned job.

        Nodes that are kept for a job of higher priority are free until the first planned start.
        A reservation is taken to need idle nodes, which may be too careful.
        """
        partition = queue or self._default()
        lines = _asked("sinfo", "-h", "-p", partition, "-o", "%D|%T|%l")
        rows = [line.split("|") for line in lines]
        rows = [row for row in rows if len(row) == 3 and row[0].isdecimal()]
        if not rows:
            return None
        idle = sum(int(row[0]) for row in rows if re.fullmatch(r"idle[~#]?", row[1]))
        planned = sum(int(row[0]) for row in rows if re.fullmatch(r"planned[~#]?|idle-", row[1]))
        limit_s = _seconds(rows[0][2]) or UNBOUNDED_S
        found = list(staircase(idle, limit_s, self._reserved(partition) if idle else []))
        start_s = self._next_start(partition) if planned else None
        if start_s:
            found.append(Window(idle + planned, min(start_s, limit_s)))
        return tuple(sorted(found, key=lambda window: window.nodes))

    def _default(self) -> str:
        return next((one.name for one in self.partitions() if one.default), "")

    def _reserved(self, partition: str) -> list[tuple[float, int]]:
        """(seconds until it starts, nodes) of the reservations to come that may touch it."""
        now = time.time()
        lines = _asked("scontrol", "show", "reservation", "-o", epoch=True)
        read = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
        return [
            (float(one["StartTime"]) - now, int(one.get("NodeCnt", "0") or 0))
            for one in read
            if one.get("StartTime", "").isdecimal() and float(one["StartTime"]) > now
            if one.get("PartitionName", "(null)") in ("(null)", partition)
        ]

    def _next_start(self, partition: str) -> float | None:
        """Seconds until the first pending job is planned to start, as far as we may see them."""
        lines = _asked("squeue", "-h", "-t", "PD", "-p", partition, "-o", "%S", epoch=True)
        starts = [float(line) - time.time() for line in lines if line.isdecimal()]
        return max(0.0, min(starts)) if starts else None

    def partitions(self) -> list[Partition]:
        """Those that are up; where nodes differ, what the least of them has."""
        found: dict[str, Partition] = {}
        for line in _asked("sinfo", "-h", "-o", "%P|%a|%D|%c|%m|%G|%l|%s"):
            cells = line.split("|")
            if len(cells) == 8 and cells[1] == "up" and (one := _partition(cells)):
                found[one.name] = _both(found[one.name], one) if one.name in found else one
        return list(found.values())


def _ask(*command: str, epoch: bool = False) -> Answer:
    more = {"LC_ALL": "C", **({"SLURM_TIME_FORMAT": "%s"} if epoch else {})}
    return ask(command, without=_FOREIGN, more=more)


def _asked(*command: str, epoch: bool = False) -> list[str]:
    """A query's lines; raises Unreachable where it fails."""
    return usable(_ask(*command, epoch=epoch)).splitlines()


def staircase(idle: int, limit_s: float, taken: Sequence[tuple[float, int]]) -> Iterator[Window]:
    """Idle nodes become fewer with each (seconds from now, nodes) that takes some of them."""
    for start_s, nodes in sorted(taken):
        if start_s >= limit_s or idle <= 0:
            break
        if nodes > 0:
            yield Window(idle, start_s)
            idle -= nodes
    if idle > 0:
        yield Window(idle, limit_s)


# -- what they print -----------------------------------------------------------------------------


def _read_squeue(text: str) -> Iterator[Job]:
    """Raises Unreachable where no line can be read."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [cells for line in lines if (cells := line.split("|", 8)) and _is_row(cells)]
    if lines and not rows:
        raise Unreachable(f"squeue printed no job, but {shown_line(text)}")
    return map(_job, rows)


def _is_row(cells: list[str]) -> bool:
    return len(cells) == 9 and cells[0][:1].isdecimal() and cells[1].replace("_", "").isalpha()


def _job(cells: list[str]) -> Job:
    id_, word, nodes, left, used, queue, reason, hosts, name = cells
    state, outcome = _state(word)
    queued = state == "queued"
    return Job(
        id=id_,
        name=name,
        state=state,
        queue=queue,
        nodes=int(nodes) if nodes.isdecimal() else 0,
        left_s=None if queued or state == "ended" else _seconds(left),
        why=meant(reason, MEANINGS) if queued and reason != "None" else "",
        outcome=outcome,
        used_s=None if queued else _seconds(used),
        hosts=hosts,
    )


def _state(word: str) -> tuple[str, str]:
    """(state, outcome); a word that is new to us is no end, and holds its nodes."""
    if word in _OUTCOMES:
        return "ended", _OUTCOMES[word]
    return ("queued" if word in _QUEUED else "ending" if word in _ENDING else "running"), ""


def _read_sacct(text: str) -> Iterator[Job]:
    """Those that are over: a RUNNING may stay there for ever, where the end was not recorded."""
    for line in text.splitlines():
        cells = line.split("|", 6)
        words = cells[1].split() if len(cells) == 7 else []  # CANCELLED by 1000
        if not words or words[0] not in _OUTCOMES:
            continue
        id_, _, nodes, used, queue, hosts, name = cells
        yield Job(
            id=id_,
            name=name,
            state="ended",
            queue=queue,
            nodes=int(nodes) if nodes.isdecimal() else 0,
            outcome=_OUTCOMES[words[0]],
            used_s=float(used) if used.isdecimal() else None,
            hosts="" if hosts == "None assigned" else hosts,
        )


def _seconds(text: str) -> float | None:
    """Slurm's times; None for UNLIMITED, INVALID, NOT_SET, infinite and n/a."""
    try:
        return duration(text.strip())
    except ValueError:
        return None


def _partition(cells: list[str]) -> Partition | None:
    name, _, nodes, cores, memory, gres, limit, size = cells
    if not nodes.isdecimal():
        return None
    most = size.rpartition("-")[2]
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        nodes=int(nodes),
        node=NodeShape(_least(cores), _gpus(gres), _least(memory)),
        max_s=_seconds(limit),
        max_nodes=int(most) if most.isdecimal() else None,
    )


def _least(text: str) -> int:
    """64+ is 64 at least."""
    plain = text.rstrip("+")
    return int(plain) if plain.isdecimal() else 0


def _gpus(gres: str) -> int:
    """gpu:a100:4(S:0-1),nvme:1 are four."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", re.sub(r"\([^)]*\)", "", gres))
    return sum(map(int, counts))


def _both(one: Partition, other: Partition) -> Partition:
    """Two kinds of nodes of one partition."""
    least = NodeShape(
        min(one.node.cores, other.node.cores),
        min(one.node.gpus, other.node.gpus),
        min(one.node.memory_mb, other.node.memory_mb),
    )
    return Partition(
        name=one.name,
        default=one.default,
        nodes=one.nodes + other.nodes,
        node=least,
        max_s=one.max_s,
        max_nodes=one.max_nodes,
    )
