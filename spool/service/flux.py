"""flux - Flux: flux batch, flux jobs, flux cancel and flux queue.

Owns   Flux's words for states, reasons and refusals, and the directives of its job scripts.
Fails  Declined, Unreachable.

A job is a Flux instance of its own, in which the script runs once. Flux never runs a job again by
itself. Ids are printed in base 58 with a leading letter beyond ASCII or, without such a locale, an
f; we use the f. Needs flux-core 0.44 or newer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spool.service.system import (
    Answer,
    Job,
    Order,
    Partition,
    Unreachable,
    ask,
    judged,
    judged_cancel,
    meant,
    portions,
    printed_id,
    shown_line,
    usable,
)
from spool.service.terms import Window
from spool.units import duration

_FOREIGN = "FLUX_(JOB|TASK|PMI|PROXY|KVS|ENCLOSING|JOBS_FORMAT|QUEUE_LIST).*"
_DOWN = (
    r"unable to connect|broker socket|connection (refused|reset|timed out)|no route to host"
    r"|lost connection|timed out|service not (found|matching)|function not implemented"
    r"|errno (38|104|110|111|113)\b|host is down"
)
_UNKNOWN = r"unknown job|inactive|no such job|not found|invalid jobid"
_CAUSES = (
    ("quota", r"max(imum)? (number of )?(active|running|submitted|jobs)|jobs? limit"),
    ("account", r"bank|association|account|project|permission|not authori[sz]ed|guest"),
    ("limit", r"limit|duration|unsatisfiable|exceeds|too many|requires at least"),
    ("partition", r"queue|submission is disabled|not accepting"),
    ("script", r"script|directive|usage:|unrecognized|invalid|must be specified|no such file"),
)
_QUEUED = {"NEW", "DEPEND", "PRIORITY", "SCHED", "PENDING"}
_OUTCOMES = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELED": "cancelled",
    "TIMEOUT": "timeout",
}
MEANINGS = {
    "insufficient resources": "it waits for nodes",
    "unsatisfiable": "no nodes have what it asks for: it never starts",
}
_MOST = "10000"  # jobs listed; 1000 by default
_FIELDS = (
    "{id.f58}|{status}|{nnodes}|{t_remaining}|{runtime}|{queue}|{nodelist}|{exception.type}"
    "|{annotations.sched.reason_pending}|{name}"
)
_QUEUE_FIELDS = "{queuem}|{limits.timelimit}|{limits.max.nnodes}|{submission}"


class Flux:
    """Flux through its commands."""

    name = "flux"

    def head(self, order: Order) -> list[str]:
        """Whole nodes."""
        lines = [
            f"--job-name={order.name}",
            f"--nodes={order.nodes}",
            "--exclusive",
            f"--time-limit={order.walltime_s:.0f}s",
        ]
        lines += [f"--queue={order.queue}"] if order.queue else []
        lines += [f"--bank={order.account}"] if order.account else []
        lines += [f'--output="{order.output}"'] if order.output else []
        return [f"#flux: {line}" for line in (*lines, *order.directives)]

    def submit(self, script: str, order: Order) -> str:
        """The job's id."""
        answer = ask(("flux", "batch", script), without=_FOREIGN, more={})
        judged(answer, _CAUSES, _DOWN)
        return _ascii(printed_id(answer.out, r"^([ƒf][1-9A-Za-z]+|\d+)\s*$", "flux batch"))

    def dry_run(self, script: str, order: Order) -> str | None:
        """Whether Flux can read the directives; limits are looked at by a submission only."""
        answer = ask(("flux", "batch", "--dry-run", script), without=_FOREIGN)
        judged(answer, _CAUSES, _DOWN)
        return "Flux can read its directives; limits are looked at when it is submitted"

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL after the instance's kill-timeout."""
        for some in portions(ids):
            judged_cancel(_ask("cancel", *some), _UNKNOWN, _DOWN)

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """All of this user's jobs: those that ended last are listed as long as Flux keeps them."""
        text = usable(_ask("jobs", "-a", "-n", "-c", _MOST, "-o", _FIELDS))
        ours = {_ascii(id_): id_ for id_ in known}
        return {
            ours.get(job.id, job.id): job
            for job in _read(text)
            if job.id in ours or job.name.startswith(names)
        }

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """Unknown: Flux lists nodes with a free core as free, and keeps some for who waits."""
        return None

    def partitions(self) -> list[Partition]:
        """The queues; an instance without any has one without a name."""
        lines = usable(_ask("queue", "list", "-n", "-o", _QUEUE_FIELDS)).splitlines()
        rows = [row for line in lines if len(row := line.split("|")) == 4]
        return [_partition(*row) for row in rows if row[3].strip() != "disabled"]


def _ask(*words: str) -> Answer:
    return ask(("flux", *words), without=_FOREIGN)


def _ascii(id_: str) -> str:
    return id_.replace("ƒ", "f", 1)


def _read(text: str) -> Iterator[Job]:
    """Raises Unreachable where no line can be read."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [row for line in lines if len(row := line.split("|", 9)) == 10 and row[1].isupper()]
    if lines and not rows:
        raise Unreachable(f"flux jobs printed no job, but {shown_line(text)}")
    return map(_job, rows)


def _job(row: list[str]) -> Job:
    id_, status, nodes, left, used, queue, hosts, exception, reason, name = row
    queued, ended = status in _QUEUED, status in _OUTCOMES
    state = "queued" if queued else "ended" if ended else "running"
    return Job(
        id=_ascii(id_.strip()),
        name=name,
        state="ending" if status == "CLEANUP" else state,
        queue=queue,
        nodes=int(nodes) if nodes.isdecimal() else 0,
        left_s=None if queued or ended else _seconds(left),
        why=(meant(reason, MEANINGS) or status) if queued else "",
        outcome=_outcome(status, exception) if ended else "",
        used_s=None if queued else _seconds(used),
        hosts=hosts,
    )


def _outcome(status: str, exception: str) -> str:
    return "node-fail" if exception == "node-failure" else _OUTCOMES[status]


def _partition(name: str, limit: str, most: str, _: str) -> Partition:
    return Partition(
        name=name.strip().rstrip("*"),
        default=name.strip().endswith("*") or not name.strip(),
        max_s=_seconds(limit) or None,  # 0 is no limit
        max_nodes=int(most) if most.strip().isdecimal() else None,
    )


def _seconds(text: str) -> float | None:
    """Seconds, or Flux's durations such as 1.5h; None for inf and nothing."""
    try:
        return duration(text.strip())
    except ValueError:
        return None
