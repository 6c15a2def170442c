"""field - where a launcher works: its nodes, and how it reaches those that are not its own.

Owns   what each node offers: what its machine has, what was granted, what a person said, what is
       reserved for the system. Which hosts share a machine, and so its cores.
Never  starts anything.
Fails  SpoolError: a choice of nodes that names none.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from spool.config import Settings
from spool.errors import SpoolError
from spool.launcher import hosts, mpirun
from spool.launcher.allocation import Allocation
from spool.launcher.crew import Crew
from spool.launcher.leftovers import Leftovers
from spool.launcher.nodes import Node, this_node
from spool.launcher.picker import Wishes
from spool.launcher.run import Starter
from spool.queue import owner as owners
from spool.queue.owner import Owner

if TYPE_CHECKING:  # mpi4py starts MPI when it is imported, so only a launcher with ranks does
    from spool.launcher.ranks import Ranks


class Size(NamedTuple):
    """What a person says that each node has; None: what is found there."""

    cores: int | None = None
    gpus: int | None = None
    memory_mb: int | None = None


@dataclass(frozen=True)
class Field:
    """The nodes of one launcher, its own first.

    system is the batch system's name, "" for none; mark tells the launcher's guard which processes
    are of its own node, where several share a process table; record is added to launcher.json;
    crew makes another crew than the ordinary one: a simulated one. allocated are all nodes of our
    allocation, by their names.
    """

    nodes: Sequence[Node]
    ranks: Ranks | None = None
    system: str = ""
    mark: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    crew: Callable[[Owner], Any] | None = None
    allocated: Sequence[str] = ()

    def told(self) -> dict[str, Any]:
        """What launcher.json says of it."""
        return {
            "cores": sum(len(node.cpus) for node in self.nodes),
            "gpus": list(self.nodes[0].gpus),
            "memory_mb": sum(node.memory_mb for node in self.nodes),
            "nodes": len(self.nodes),
            "each": _each(self.nodes),
            **self.record,
        }

    def no_mpi(self, settings: Settings) -> str:
        """Why no task of several ranks can run here, "" if they can."""
        try:
            found = self.crew or mpirun_of(self, settings)
        except SpoolError as fault:
            return f"need several ranks, and {fault}"
        return "" if found else "need several ranks, and there is no mpirun here"

    def new_crew(
        self,
        owner: Owner,
        settings: Settings,
        wishes: Wishes,
        trusted: frozenset[int],
        log: Callable[[str], None],
    ) -> Any:
        """The crew of the launcher's own node, which starts all mpiruns too."""
        if self.crew:
            return self.crew(owner)
        starter = Starter(
            owner,
            pin=wishes.pin and not any(node.shared for node in self.nodes),
            hide_gpus=bool(self.nodes[0].gpus),
            hosts=[node.name for node in self.nodes],
            mpirun=lambda: mpirun_of(self, settings),
        )
        return Crew(owner, starter, trusted, log, self.mark)

    def leftovers(self, owner: Owner, children: set[int], log: Callable[[str], None]) -> Leftovers:
        """Who kills what is left on nodes where nothing of ours runs; children are the crew's."""
        return Leftovers(self.system, self.allocated, owner.settings.lease_dead_s, children, log)


def _each(nodes: Sequence[Node]) -> list[list[int]]:
    """[how many, cores, GPUs, megabytes] of nodes that are alike, in order."""
    kinds = Counter((len(node.cpus), len(node.gpus), node.memory_mb) for node in nodes)
    return [[count, *kind] for kind, count in kinds.items()]


def own_node(size: Size, settings: Settings, granted: Allocation) -> Node:
    """This machine: what a person says, else what was granted of what there is; less the reserve.

    A grant of more cores than there are is not believed.
    """
    here = this_node(*size)
    place = _number(granted.nodes, os.uname().nodename)
    if size.cores is None and 0 <= place < len(granted.cores):
        here = replace(here, cpus=here.cpus[: granted.cores[place]])
    if size.gpus is None and granted.gpus is not None:
        here = replace(here, gpus=here.gpus[: granted.gpus])
    if size.memory_mb is None and granted.memory_mb:
        here = replace(here, memory_mb=min(here.memory_mb, granted.memory_mb))
    name = granted.nodes[place] if place >= 0 else ""
    return replace(_less_reserve(here, settings), name=name)


def _less_reserve(node: Node, settings: Settings) -> Node:
    """A node without what the settings leave to the system: its first cores and last GPUs."""
    cores = min(settings.launcher_reserve_cores, len(node.cpus) - 1)
    gpus = max(0, len(node.gpus) - settings.launcher_reserve_gpus)
    memory_mb = max(0, node.memory_mb - settings.launcher_reserve_memory_mb)
    return Node(node.cpus[cores:], node.gpus[:gpus], memory_mb, node.name)


def _number(names: Sequence[str], host: str) -> int:
    """Where a host stands among an allocation's nodes, by its short name; -1 if it does not."""
    wanted = hosts.short(host)
    return next((n for n, name in enumerate(names) if hosts.short(name) == wanted), -1)


def alone(node: Node, granted: Allocation) -> Field:
    """This machine alone."""
    record = _record(granted)
    return Field([node], system=granted.system, record=record, allocated=granted.nodes)


def reached_by_mpirun(node: Node, granted: Allocation, names: Sequence[str]) -> Field:
    """Nodes on which nothing of ours runs but what an mpirun starts: all like this one."""
    cores = dict(zip(granted.nodes, granted.cores, strict=False))
    nodes = [
        replace(node, name=name, cpus=node.cpus[: cores.get(name, len(node.cpus))])
        for name in names
    ]
    record = _record(granted)
    if granted.nodes:  # else this machine plays them all, and is guarded
        record["unguarded"] = True
    return Field(nodes, system=granted.system, record=record, allocated=granted.nodes)


def _record(granted: Allocation) -> dict[str, Any]:
    if not granted.system:
        return {}
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
    return {"allocation": {"system": granted.system, "job": granted.job, "cluster": cluster}}


def over_ranks(own: Node, size: Size, granted: Allocation) -> Field:
    """The nodes of the ranks that were started with this one, which is their leader."""
    from spool.launcher import post as posts
    from spool.launcher import ranks

    here, post = owners.here(), posts.post_office()
    met = ranks.gather(post)
    told = [(here.host, here.boot, own), *((one.host, one.boot, one.node) for one in met)]
    nodes = shared_out(told) if size.cores is None else [node for _, _, node in told]
    nodes = [_named(node, host, granted) for node, (host, _, _) in zip(nodes, told, strict=True)]
    boots = Counter(boot for _, boot, _ in told)
    marked = max(boots.values()) > 1
    record = {**_record(granted), "boots": sorted(boots)}
    with_ranks = ranks.Ranks(post, nodes, marked)
    mark = "0" if marked else ""
    return Field(nodes, with_ranks, granted.system, mark, record, allocated=granted.nodes)


def _named(node: Node, host: str, granted: Allocation) -> Node:
    place = _number(granted.nodes, host)
    return replace(node, name=granted.nodes[place] if place >= 0 else node.name or host)


def shared_out(told: Sequence[tuple[str, str, Node]]) -> list[Node]:
    """The nodes of ranks, by host and boot: those on one machine get a part of it each."""
    places: dict[tuple[str, str], list[int]] = {}
    for number, (host, boot, _) in enumerate(told):
        places.setdefault((host, boot), []).append(number)
    nodes = [node for _, _, node in told]
    for sharing in places.values():
        cpus = [cpu for number in sharing for cpu in nodes[number].cpus]
        for part, number in enumerate(sharing):
            whole = nodes[number]
            nodes[number] = _part(whole, part, len(sharing))
            if len(set(cpus)) == len(cpus):  # each was given cores of its own already
                nodes[number] = replace(nodes[number], cpus=whole.cpus)
    return nodes


def _part(node: Node, part: int, count: int) -> Node:
    """One of `count` parts of a node; a core that is not enough for all is shared."""
    if count == 1:
        return node
    cpus = node.cpus[part * len(node.cpus) // count : (part + 1) * len(node.cpus) // count]
    gpus = node.gpus[part * len(node.gpus) // count : (part + 1) * len(node.gpus) // count]
    lone = (node.cpus[part % len(node.cpus)],)
    return replace(node, cpus=cpus or lone, gpus=gpus, memory_mb=node.memory_mb // count)


def chosen(names: Sequence[str], choice: str) -> list[str]:
    """The nodes that `--nodes` means: how many, from which to which, or their names.

    Raises SpoolError.
    """
    if not choice:
        return list(names)
    if found := re.fullmatch(r"(\d+)(?:-(\d+))?", choice):
        first, last = (int(found[1]), int(found[2])) if found[2] else (1, int(found[1]))
        if not 1 <= first <= last <= len(names):
            raise SpoolError(f"--nodes {choice}: this allocation has {len(names)} nodes")
        return list(names[first - 1 : last])
    try:
        wanted = hosts.expand_hostlist(choice)
    except ValueError as fault:
        raise SpoolError(f"--nodes {choice}: {fault}") from None
    if missing := [name for name in wanted if _number(names, name) < 0]:
        listed = ", ".join(names[:8])
        raise SpoolError(f"--nodes: {missing[0]} is not in this allocation, which has {listed}")
    return [names[_number(names, name)] for name in wanted]


def mpirun_of(place: Field, settings: Settings) -> mpirun.Flavour | None:
    """The mpirun that starts tasks of several ranks here; looked for when first needed."""
    return _found(settings.launcher_mpirun, place.system)


@lru_cache
def _found(setting: str, system: str) -> mpirun.Flavour | None:
    return mpirun.find(setting, os.environ, system)
