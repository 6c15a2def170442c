"""lsf - IBM Spectrum LSF: bsub, bjobs, bkill and bqueues.

Owns   LSF's words for states, reasons and refusals, and the directives of its job scripts.
Never  has LSF run a job again (`-rn`): it would keep its id and never be over.
Fails  Declined, Unreachable. bsub waits for a busy or dead LSF for ever: that is a time-out.

A job's name may have 4,094 characters. LSF counts slots, so a queue's cores have to be known to get
all of a node; where a site's LSF counts nodes, the directive `-nnodes` without a number says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

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

_FOREIGN = (
    "BSUB_.*|LSB_(BJOBS|BQUEUES|JOB|JOBID|BATCH|HOSTS|MCPU|DJOB|INTERACTIVE|SUB|EXIT|TRAPS).*"
)
_DOWN = (
    r"cannot connect to lsf|lsf is down|please wait|daemon not responding|connection refused"
    r"|timed out|lim is down|mbatchd|failed in an lsf library call|server host is down"
    r"|communication|licen[cs]e"
)
_NONE = r"is not found|no (\w+ )?jobs? found|no matching job|already finished"
_CAUSES = (
    ("quota", r"job limit|job slot limit|pending job threshold|threshold|too many jobs|maxjobs"),
    (
        "account",
        r"project|account|user group|cannot use the queue|permission|not authori[sz]ed|esub",
    ),
    ("partition", r"no such queue|queue is (closed|inactive)|queue has been closed"),
    ("limit", r"runlimit|hard limit|limit|too many (processors|tasks|hosts)|too few|unlimited run"),
    ("limit", r"no (host|candidate)|cannot be satisfied|bad resource requirement|resource"),
    ("partition", r"queue"),
    ("script", r"illegal option|bad |usage:|empty job|syntax"),
)
_QUEUED = {"PEND", "PSUSP", "WAIT", "FWD_PEND"}
_OUTCOMES = {"DONE": "completed", "EXIT": "failed", "ZOMBI": "node-fail"}
_ENDS = (
    ("timeout", r"TERM_(RUNLIMIT|DEADLINE|WINDOW)"),
    ("preempted", r"TERM_PREEMPT"),
    ("cancelled", r"TERM_(OWNER|FORCE_OWNER|ADMIN|FORCE_ADMIN|BUCKET_KILL|REMOVE_HUNG_JOB)"),
    ("node-fail", r"unreach|host|TERM_(REQUEUE|SLURM|RMS)"),
)
MEANINGS = {
    r"New job is waiting": "it has just been submitted",
    r"Job slot limit": "a limit on the slots in use",
    r"The (user|queue|host).* job.* limit": "a limit on the jobs or slots of one user",
    r"User has reached": "a limit on the jobs or slots of one user",
    r"Not enough (job )?(slots|processors|hosts)": "it waits for nodes",
    r"Individual host-based": "it waits for nodes",
    r"Job dependency": "it waits for another job",
    r"The job was suspended by (its owner|the user)": "its owner holds it; bresume lets it go",
    r"Job's requirements? .*not": "no host has what it asks for",
}
_FIELDS = "jobid stat job_name queue exec_host time_left run_time exit_reason pend_reason"


class Lsf:
    """LSF through its commands."""

    name = "lsf"

    def head(self, order: Order) -> list[str]:
        """Whole hosts."""
        by_nodes = "-nnodes" in order.directives
        slots = order.node.cores or 1
        lines = [f"-J {order.name}", f"-W {math.ceil(order.walltime_s / 60)}", "-rn"]
        if by_nodes:
            lines += [f"-nnodes {order.nodes}"]
        else:
            lines += [f"-n {order.nodes * slots}", f'-R "span[ptile={slots}]"', "-x"]
        lines += [f'-gpu "num={order.node.gpus}"'] if order.node.gpus and not by_nodes else []
        lines += [f"-q {order.queue}"] if order.queue else []
        lines += [f"-P {order.account}"] if order.account else []
        lines += [f'-o "{order.output}"'] if order.output else []
        lines += [one for one in order.directives if one != "-nnodes"]
        return [f"#BSUB {line}" for line in lines]

    def submit(self, script: str, order: Order) -> str:
        """The job's id; the script is read from standard input, or its directives are not."""
        answer = ask(("bsub",), without=_FOREIGN, more={}, stdin=script)
        judged(answer, _CAUSES, _DOWN)
        return printed_id(answer.out, r"Job <(\d+)> is submitted", "bsub")

    def dry_run(self, script: str, order: Order) -> str | None:
        """LSF has none (bsub -C is the limit of core files)."""
        return None

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGINT, SIGTERM, and SIGKILL after JOB_TERMINATE_INTERVAL."""
        for some in portions(ids):
            judged_cancel(_ask("bkill", *some), _NONE, _DOWN)

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """By the prefix of the name; then those that it left out by their ids.

        Ended jobs are told for CLEAN_PERIOD, an hour by default.
        """
        found = self._told("-a", "-J", f"{names}*")
        missing = [id_ for id_ in known if id_ not in found]
        for some in portions(missing):
            found.update(self._told("-a", *some))
        return found

    def _told(self, *words: str) -> dict[str, Job]:
        records = _records(_ask("bjobs", "-json", "-o", _FIELDS, *words), "bjobs")
        return {one["JOBID"]: _job(one) for one in records if one.get("STAT") and one.get("JOBID")}

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """Unknown: an idle host may be kept for a job that waits, which LSF does not tell."""
        return None

    def partitions(self) -> list[Partition]:
        """The queues' names: their limits are told for people only."""
        records = _records(_ask("bqueues", "-json", "-o", "queue_name status"), "bqueues")
        opened = (one for one in records if one.get("STATUS", "").startswith("Open"))
        return [Partition(name=one["QUEUE_NAME"]) for one in opened if one.get("QUEUE_NAME")]


def _ask(*command: str) -> Answer:
    return ask(command, without=_FOREIGN)


def _records(answer: Answer, command: str) -> list[dict[str, str]]:
    """The records of its JSON, before which a busy LSF says that it be waited for."""
    text = usable(answer, _NONE)
    start = text.find("{")
    if start < 0:
        if answer.code or not text.strip():
            return []
        raise Unreachable(f"{command} printed no JSON, but {shown_line(text)}")
    try:
        read: Any = json.loads(text[start:], strict=False)
        return [dict(one) for one in read["RECORDS"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unreachable(f"{command} printed no JSON, but {shown_line(text)}") from None


def _job(said: dict[str, str]) -> Job:
    stat = said["STAT"]
    queued, ended = stat in _QUEUED, stat in _OUTCOMES
    hosts = list(dict.fromkeys(re.findall(r"(?:\d+\*)?([^:\s]+)", said.get("EXEC_HOST", ""))))
    return Job(
        id=said["JOBID"],
        name=said.get("JOB_NAME", ""),
        state="queued" if queued else "ended" if ended else "running",
        queue=said.get("QUEUE", ""),
        nodes=len(hosts),
        left_s=None if queued or ended else _left(said.get("TIME_LEFT", "")),
        why=meant(said.get("PEND_REASON", ""), MEANINGS) if queued else "",
        outcome=_outcome(stat, said.get("EXIT_REASON", "")) if ended else "",
        used_s=None if queued else _used(said.get("RUN_TIME", "")),
        hosts=",".join(hosts),
    )


def _outcome(stat: str, reason: str) -> str:
    if stat != "EXIT":
        return _OUTCOMES[stat]
    return next((end for end, sign in _ENDS if re.search(sign, reason, re.IGNORECASE)), "failed")


def _left(text: str) -> float | None:
    """Of 1:30 L, hours and minutes; E marks an estimate, X one that is over."""
    found = re.match(r"(\d+):(\d+)", text)
    return int(found[1]) * 3600.0 + int(found[2]) * 60 if found else None


def _used(text: str) -> float | None:
    """Of 16038 second(s), or 00:00:01 in older versions."""
    if found := re.match(r"(\d+) second", text):
        return float(found[1])
    try:
        return duration(text)
    except ValueError:
        return None
