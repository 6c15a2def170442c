"""sge - Grid Engine (Sun, Son of, Univa, Altair): qsub, qstat, qacct, qdel and qconf.

Owns   Grid Engine's words for states, reasons and refusals, and the directives of its scripts.
Never  has it run a job again (`-r n`): it would keep its id and never be over.
Fails  Declined, Unreachable.

Grid Engine knows no nodes, only slots of a parallel environment that the site has made up. The
directive `-pe NAME`, without a number, gets the slots of the order's nodes; without one an order
has one slot of one node. Name an environment that fills nodes, and cores in the queue's policy.
A job's name starts with a letter and holds none of /:@\\*? and no white space.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from spool.service.system import (
    Answer,
    Declined,
    Job,
    Order,
    Partition,
    Unreachable,
    ask,
    clock,
    judged,
    portions,
    printed_id,
    shown_line,
    usable,
)
from spool.service.terms import Window
from spool.units import duration

_FOREIGN = "JOB_(ID|NAME|SCRIPT)|PE|PE_HOSTFILE|NSLOTS|NHOSTS|NQUEUES|QUEUE|REQUEST|SGE_(TASK|O_).*"
_DOWN = (
    r"commlib error|unable to (contact|send message to) qmaster|connection refused|timed? ?out"
    r"|unable to initialize environment|can't connect|cannot connect|qmaster .*(down|not)"
    r"|communication error|unable to run job: error: got"
)
_UNKNOWN = r"does not exist|already in deletion|denied: job|registered the job"
_CAUSES = (
    ("quota", r"jobs are allowed|job limit|max_u?_?jobs|maxujobs|too many jobs"),
    ("account", r"project|permission|access|not allowed|no submit host|department"),
    ("limit", r"no suitable queues|exceed|limit|out of range|unknown resource"),
    ("partition", r"queue|parallel environment|pe "),
    ("script", r"script|unknown option|usage:|invalid|error"),
)
_ACCOUNTING_LIMIT_S = 20.0
_DAYS = "2"


class Sge:
    """Grid Engine through its commands."""

    name = "sge"

    def head(self, order: Order) -> list[str]:
        """Slots for the nodes' cores, where the user has named a parallel environment."""
        slots = order.nodes * (order.node.cores or 1)
        lines = [f"-N {order.name}", f"-l h_rt={clock(order.walltime_s)}", "-r n", "-S /bin/sh"]
        lines += [f"-q {order.queue}"] if order.queue else []
        lines += [f"-P {order.account}"] if order.account else []
        lines += ["-j y", f"-o {order.output}"] if order.output else []
        lines += [
            f"{one} {slots}" if re.fullmatch(r"-pe\s+\S+", one) else one for one in order.directives
        ]
        return [f"#$ {line}" for line in lines]

    def submit(self, script: str, order: Order) -> str:
        """The job's id."""
        return printed_id(self._qsub(script, order), r"^(\d+)\s*$", "qsub")

    def dry_run(self, script: str, order: Order) -> str | None:
        """Whether queues suit it, were they empty."""
        said = " ".join(self._qsub(script, order, "-w", "v").split())
        if "no suitable" in said:  # with exit code 0 in some versions
            raise Declined("limit", said)
        return said

    def _qsub(self, script: str, order: Order, *words: str) -> str:
        if order.nodes > 1 and not any(one.startswith("-pe") for one in order.directives):
            want = "the directive -pe NAME, of an environment that fills nodes"
            raise Declined("script", f"{order.nodes} nodes of Grid Engine need {want}")
        answer = ask(("qsub", "-terse", *words, script), without=_FOREIGN, more={})
        judged(answer, _CAUSES, _DOWN)
        return answer.out

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGKILL, after the queue's notify time where the job asked for that."""
        for some in portions(ids):
            answer = _ask("qdel", ",".join(some))
            said = f"{answer.err}\n{answer.out}"
            if re.search(_DOWN, said, re.IGNORECASE):
                raise Unreachable(answer.word())
            if answer.code and not re.search(_UNKNOWN, said, re.IGNORECASE):
                raise Declined("other", answer.word())

    def jobs(self, names: str, known: Sequence[str]) -> dict[str, Job]:
        """This user's jobs by qstat; known ones that are there no more by the accounting."""
        user = pwd.getpwuid(os.getuid()).pw_name
        wanted = set(known)
        found = {
            job.id: job
            for job in _read_qstat(usable(_ask("qstat", "-u", user, "-xml")))
            if job.id in wanted or job.name.startswith(names)
        }
        gone = wanted - found.keys()
        return {**(self._accounted(user, gone) if gone else {}), **found}

    def _accounted(self, user: str, ids: set[str]) -> dict[str, Job]:
        """From a file that may be large: where that takes too long the outcome is unknown."""
        try:
            answer = ask(("qacct", "-o", user, "-d", _DAYS, "-j"), limit_s=_ACCOUNTING_LIMIT_S)
        except Unreachable:
            return {}
        return {job.id: job for job in _read_qacct(answer.out) if job.id in ids}

    def windows(self, queue: str) -> tuple[Window, ...] | None:
        """Unknown: it counts slots, not nodes."""
        return None

    def partitions(self) -> list[Partition]:
        """The queues' names."""
        return [Partition(name=name) for name in usable(_ask("qconf", "-sql")).split()]


def _ask(*command: str) -> Answer:
    return ask(command, without=_FOREIGN)


# -- what they print -----------------------------------------------------------------------------


def _read_qstat(text: str) -> Iterator[Job]:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise Unreachable(f"qstat printed no XML, but {shown_line(text)}") from None
    for one in root.iter("job_list"):
        said = {part.tag: (part.text or "").strip() for part in one}
        if id_ := said.get("JB_job_number", ""):
            yield _job(id_, said)


def _job(id_: str, said: dict[str, str]) -> Job:
    """States are letters: w waits, h is held, E an error; r, t and s have their slots."""
    word = said.get("state", "")
    queue, _, host = said.get("queue_name", "").partition("@")
    queued = "w" in word and "r" not in word
    return Job(
        id=id_,
        name=said.get("JB_name", ""),
        state="queued" if queued else "ending" if "d" in word else "running",
        queue=queue,
        nodes=1 if host else 0,
        why=_why(word) if queued else "",
        hosts=host,
    )


def _why(word: str) -> str:
    if "E" in word:
        return f"{word}: it could not be started; qmod -cj lets it try again"
    if "h" in word:
        return f"{word}: it is held, or waits for another job"
    return f"{word}: it waits for slots"


def _read_qacct(text: str) -> Iterator[Job]:
    for block in re.split(r"^=+$", text, flags=re.MULTILINE):
        said = dict(re.findall(r"^(\w+) +(.*?) *$", block, re.MULTILINE))
        if id_ := said.get("jobnumber", ""):
            used_s = _seconds(said.get("ru_wallclock", ""))
            yield Job(
                id=id_,
                name=said.get("jobname", ""),
                state="ended",
                queue=said.get("qname", ""),
                outcome=_outcome(said, used_s),
                used_s=used_s,
                hosts=said.get("hostname", ""),
            )


def _outcome(said: dict[str, str], used_s: float | None) -> str:
    """failed is 0, or a code with words: 37 its limit, 100 killed while it ran."""
    code = said.get("failed", "").split(" ")[0]
    if code == "0":
        return "completed" if said.get("exit_status", "").split(" ")[0] == "0" else "failed"
    limit = re.search(r"h_rt=([\d:]+)", said.get("category", ""))
    limit_s = _seconds(limit[1]) if limit else None
    if code == "37" or (code == "100" and limit_s and used_s and used_s >= limit_s):
        return "timeout"
    deleted = said.get("deleted_by", "NONE") != "NONE"
    return "cancelled" if deleted or code == "100" else "failed" if code else ""


def _seconds(text: str) -> float | None:
    """3601, 3601.5s or 01:00:01."""
    try:
        return duration(text.strip())
    except ValueError:
        return None
