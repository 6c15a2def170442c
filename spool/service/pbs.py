"""pbs - OpenPBS, PBS Pro and Torque: qsub, qselect, qstat, qdel and pbsnodes.

Owns   PBS's words for states, reasons and refusals, and the directives of its job scripts.
Never  has PBS run a job again (`-r n`): it would keep its id and never be over.
Fails  Declined, Unreachable.

PBS's JSON is malformed where a job's variables hold what it does not escape; then its text is read.
A job's name may have 15 characters in Torque and old PBS, 236 in newer; the first must be a letter.
Jobs are looked for by qselect, which knows no prefix, and by their ids: of those that have ended
only the known ones are told, as the history may hold weeks of them.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

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
    portions,
    printed_id,
    shown_line,
    usable,
)
from spool.service.terms import NodeShape, Window
from spool.units import duration, memory

_FOREIGN = "PBS_(JOB|NODE|O_|TASK|QUEUE|ENV|MOM|ARRAY).*|NCPUS"
_DOWN = (
    r"cannot connect to server|connection (refused|timed out|reset)|no route to host"
    r"|communication failure|end of file|batch protocol error|premature end|trqauthd"
    r"|server (is )?shutting down|invalid credential|munge|pbs_iff|no default server|timeout"
    r"|system error|cannot resolve"
)
_UNKNOWN = r"unknown job|job has finished|finished, use -x|invalid state for job"
_NO_HISTORY = "not configured to maintain job history"
_CAUSES = (
    ("quota", r"would exceed|maximum number of jobs|per-user limit|max_queued|too many jobs"),
    ("account", r"account|project|allocation|unauthorized|not authorized|access.* denied|bad uid"),
    ("account", r"permission|group"),
    (
        "limit",
        r"resource limit|limits?\b|walltime|insufficient|feasible|never run|too (large|long)",
    ),
    ("partition", r"unknown queue|queue|destination"),
    ("limit", r"unknown resource|illegal attribute or resource|request rejected"),
    ("script", r"script|directive|usage:|illegal|invalid option|cannot open"),
)
_STATES = {
    **dict.fromkeys("QHWTM", "queued"),
    **dict.fromkeys("RSUB", "running"),
    "E": "ending",
    **dict.fromkeys("FCX", "ended"),
}
_KILLED_FOR_WALLTIME = "-29"
_FREE_STATES = {"free"}
_LOST = {"-4", "-5", "-6", "-11", "-12"}  # the node failed or was initialised


class Pbs:
    """OpenPBS and PBS Pro; Torque is the subclass below."""

    name = "pbs"

    def __init__(self) -> None:
        self._history = True  # whether -x can be asked for

    # -- submission ------------------------------------------------------------------------------

    def head(self, order: Order) -> list[str]:
        """Whole hosts, each once."""
        lines = [f"-N {order.name}", *self._size(order), f"-l walltime={clock(order.walltime_s)}"]
        lines += [f"-q {order.queue}"] if order.queue else []
        lines += [f"-A {order.account}"] if order.account else []
        lines += ["-j oe", f"-o {order.output}"] if order.output else []
        return [f"#PBS {line}" for line in (*lines, "-r n", *order.directives)]

    def _size(self, order: Order) -> list[str]:
        chunk = f"{order.nodes}"
        chunk += f":ncpus={order.node.cores}" if order.node.cores else ""
        chunk += f":ngpus={order.node.gpus}" if order.node.gpus else ""
        return [f"-l select={chunk}", "-l place=scatter:exclhost"]

    def submit(self, script: str, order: Order) -> str:
        """The job's id. After Unreachable the job may be there: look for its name."""
        answer = ask(("qsub", script), without=_FOREIGN, more={})
        judged(answer, _CAUSES, _DOWN)
        return printed_id(answer.out, r"^(\d+(?:\.\S+)?)\s*$", "qsub")

    def dry_run(self, script: str, order: Order) -> str | None:
        """PBS has none."""
        return None

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL after the server's kill_delay."""
        for some in portions(ids):
            judged_cancel(_ask("qdel", *some), _UNKNOWN, _DOWN)

    # -- jobs ------------------------------------------------------------------------------------

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """One qselect for this user's jobs, and one qstat for them and the known ones."""
        listed = usable(_ask("qselect", "-u", pwd.getpwuid(os.getuid()).pw_name)).split()
        ours = {_number(one): one for one in known}
        ids = {**{_number(one): one for one in listed if one[:1].isdecimal()}, **ours}
        found = {}
        for some in portions(list(ids.values())):
            for id_, said in self._status(some).items():
                if "job_state" not in said:  # {"Error": "Unknown Job Id"}
                    continue
                id_ = ours.get(_number(id_), id_)
                job = _job(id_, said)
                if _number(id_) in ours or job.name.startswith(names):
                    found[id_] = job
        return found

    def _status(self, ids: list[str]) -> dict[str, dict[str, str]]:
        """Each job's attributes, those of Resource_List and the like with a dot."""
        said = self._json(self._qstat("-F", "json", *ids))
        return _read_text(self._qstat(*ids)) if said is None else said

    def _qstat(self, *words: str) -> str:
        answer = _ask("qstat", *(("-x",) if self._history else ()), "-f", *words)
        if self._history and _NO_HISTORY in answer.err:
            self._history = False
            return self._qstat(*words)
        if re.search(_DOWN, answer.err, re.IGNORECASE):  # some jobs may have been told before that
            raise Unreachable(answer.word())
        return usable(answer, _UNKNOWN)

    def _json(self, text: str) -> dict[str, dict[str, str]] | None:
        """None where it is malformed."""
        read = _loaded(text)
        if read is None:
            return None
        jobs = read.get("Jobs", {})
        return {id_: flat(one) for id_, one in jobs.items() if isinstance(one, dict)}

    # -- the machine -----------------------------------------------------------------------------

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """The free hosts, where nobody waits in that queue.

        PBS does not tell for which waiting job it keeps nodes free: then nothing is known.
        """
        queues = self._queues()
        said = queues.get(queue or self._default(queues), {})
        waiting = re.search(r"Queued:(\d+)", said.get("state_count", ""))
        if waiting is None or int(waiting[1]):
            return None
        nodes = [one for one in self._nodes().values() if _serves(one, queue)]
        free = sum(one.get("state") in _FREE_STATES and _is_idle(one) for one in nodes)
        limit_s = _seconds(said.get("resources_max.walltime", "")) or UNBOUNDED_S
        return (Window(free, limit_s),) if free else ()

    def partitions(self) -> list[Partition]:
        """The queues that take jobs from users; a node without a queue of its own serves all."""
        nodes, queues = self._nodes(), self._queues()
        default = self._default(queues)
        return [
            _partition(name, said, [one for one in nodes.values() if _serves(one, name)], default)
            for name, said in queues.items()
            if said.get("enabled", "True") == said.get("started", "True") == "True"
            and said.get("from_route_only", "False") != "True"
        ]

    def _default(self, queues: Mapping[str, object]) -> str:
        """The queue of an order that names none."""
        if len(queues) == 1:
            return next(iter(queues))
        text = usable(_ask("qstat", "-B", "-f"))
        found = re.search(r"^\s*default_queue = (\S+)", text, re.MULTILINE)
        return found[1] if found else ""

    def _queues(self) -> dict[str, dict[str, str]]:
        return _told(usable(_ask("qstat", "-Q", "-f", "-F", "json")), "Queue", "qstat")

    def _nodes(self) -> dict[str, dict[str, str]]:
        return _told(usable(_ask("pbsnodes", "-a", "-F", "json")), "nodes", "pbsnodes")


class Torque(Pbs):
    """Torque: no JSON, no history, no selection by chunks."""

    name = "torque"

    def __init__(self) -> None:
        super().__init__()
        self._history = False

    def _size(self, order: Order) -> list[str]:
        size = f"-l nodes={order.nodes}"
        size += f":ppn={order.node.cores}" if order.node.cores else ""
        size += f":gpus={order.node.gpus}" if order.node.gpus else ""
        return [size, "-n"]

    def _status(self, ids: list[str]) -> dict[str, dict[str, str]]:
        return _read_text(self._qstat(*ids))

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """Its scheduler (Maui, Moab) would know."""
        return None

    def partitions(self) -> list[Partition]:
        """As `qstat -Q -f` tells them."""
        queues = _read_text(usable(_ask("qstat", "-Q", "-f")), "Queue")
        default = self._default(queues)
        return [_partition(name, said, [], default) for name, said in queues.items()]


def _ask(*command: str) -> Answer:
    return ask(command, without="PBS_DPREFIX|PBS_QSTAT_.*")


# -- what they print -----------------------------------------------------------------------------


def _loaded(text: str) -> dict[str, Any] | None:
    try:
        read = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return {} if not text.strip() else None
    return read if isinstance(read, dict) else None


def _told(text: str, key: str, command: str) -> dict[str, dict[str, str]]:
    read = _loaded(text)
    if read is None or not isinstance(read.get(key), dict):
        raise Unreachable(f"{command} printed no JSON with {key}, but {shown_line(text)}")
    return {name: flat(one) for name, one in read[key].items() if isinstance(one, dict)}


def flat(said: dict[str, Any]) -> dict[str, str]:
    """One level of names: Resource_List.walltime."""
    found: dict[str, str] = {}
    for key, value in said.items():
        inner = value.items() if isinstance(value, dict) else ()
        found.update({f"{key}.{name}": str(part) for name, part in inner} or {key: str(value)})
    return found


def _read_text(text: str, kind: str = "Job Id") -> dict[str, dict[str, str]]:
    """The same from `qstat -f`, whose long lines go on after a tab."""
    found: dict[str, dict[str, str]] = {}
    said: dict[str, str] = {}
    for line in re.sub(r"\n\t", "", text).splitlines():
        if head := re.match(rf"{kind}: (\S+)", line):
            said = found[head[1]] = {}
        elif pair := re.match(r"\s+([\w.]+) = (.*)", line):
            said[pair[1]] = pair[2].strip()
    if text.strip() and not found:
        raise Unreachable(f"qstat printed no job, but {shown_line(text)}")
    return found


def _number(id_: str) -> str:
    """1234 of 1234.server.domain, which is not always told in the same length."""
    return id_.partition(".")[0]


def _job(id_: str, said: Mapping[str, str]) -> Job:
    state = _STATES.get(said.get("job_state", ""), "running")
    limit_s = _seconds(said.get("Resource_List.walltime", ""))
    used_s = _used(said) if state != "queued" else None
    nodes = said.get("Resource_List.nodect", "")
    live = state in ("running", "ending")
    return Job(
        id=id_,
        name=said.get("Job_Name", ""),
        state=state,
        queue=said.get("queue", ""),
        nodes=int(nodes) if nodes.isdecimal() else 0,
        left_s=max(0.0, limit_s - (used_s or 0.0)) if live and limit_s else None,
        why=_why(said) if state == "queued" else "",
        outcome=_outcome(said, used_s, limit_s) if state == "ended" else "",
        used_s=used_s,
        hosts=_hosts(said.get("exec_host", "")),
    )


def _used(said: Mapping[str, str]) -> float | None:
    """What the node reported, minutes ago; for a running job the time since its start if longer."""
    used_s = _seconds(said.get("resources_used.walltime", ""))
    if said.get("job_state") not in ("R", "E"):
        return used_s
    try:
        started = time.mktime(time.strptime(said.get("stime") or said.get("start_time", "")))
    except (ValueError, OverflowError):
        return used_s
    return max(used_s or 0.0, time.time() - started)


def _why(said: Mapping[str, str]) -> str:
    held = {"u": "its owner holds it", "o": "an operator holds it", "s": "the system holds it"}
    holds = [held[one] for one in said.get("Hold_Types", "") if one in held]
    comment = said.get("comment", "").strip()
    return "; ".join([*holds, *([comment] if comment else [])])


def _outcome(said: Mapping[str, str], used_s: float | None, limit_s: float | None) -> str:
    """Exit codes below 0 are PBS's own, those from 256 a signal's: the walltime or qdel."""
    code = said.get("Exit_status", said.get("exit_status", ""))
    comment = said.get("comment", "")
    if code == _KILLED_FOR_WALLTIME or "exceeded resource walltime" in comment:
        return "timeout"
    if code in _LOST:
        return "node-fail"
    if "preempt" in comment.lower():
        return "preempted"
    if not code:  # it never ran
        return "cancelled" if said.get("substate") == "91" or "deleted" in comment else ""
    if code.isdecimal() and int(code) >= 256:
        over = used_s is not None and limit_s is not None and used_s >= limit_s
        return "timeout" if over else "cancelled"
    return "completed" if code == "0" else "failed"


def _hosts(text: str) -> str:
    """Of nid1/0*64+nid2/0*64, or Torque's nid1/0-63+nid2/0-63."""
    names = (part.partition("/")[0] for part in text.split("+") if part)
    return ",".join(dict.fromkeys(names))


def _seconds(text: str) -> float | None:
    try:
        return duration(text.strip())
    except ValueError:
        return None


# -- nodes and queues ----------------------------------------------------------------------------


def _serves(node: Mapping[str, str], queue: str) -> bool:
    """Whether a node is for a queue: it may name one, or a list of them (a site's Qlist)."""
    named = node.get("queue") or node.get("resources_available.Qlist", "")
    return not named or queue in named.split(",")


def _is_idle(node: Mapping[str, str]) -> bool:
    busy = node.get("resources_assigned.ncpus", "0") not in ("0", "")
    return not busy and "resv" not in node and "jobs" not in node


def _partition(
    name: str, said: Mapping[str, str], nodes: list[dict[str, str]], default: str
) -> Partition:
    up = [one for one in nodes if not re.search("down|offline|unknown", one.get("state", ""))]
    most = said.get("resources_max.nodect", "")
    return Partition(
        name=name,
        default=name == default,
        nodes=len(up),
        node=NodeShape(
            _least(up, "resources_available.ncpus"),
            _least(up, "resources_available.ngpus"),
            min((_megabytes(one.get("resources_available.mem", "")) for one in up), default=0),
        ),
        max_s=_seconds(said.get("resources_max.walltime", "")),
        max_nodes=int(most) if most.isdecimal() else None,
    )


def _least(nodes: list[dict[str, str]], key: str) -> int:
    counts = (one.get(key, "") for one in nodes)
    return min((int(count) if count.isdecimal() else 0 for count in counts), default=0)


def _megabytes(text: str) -> int:
    try:
        return memory(text.strip())
    except ValueError:
        return 0
