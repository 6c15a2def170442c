"""systems - which batch system there is, and its adapter.

Owns   the names of the batch systems, and how each is recognised by the commands there are.
Fails  SpoolError: a name that is none. A controller that is down is no matter here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from spool.errors import SpoolError
from spool.service.flux import Flux
from spool.service.local import Local
from spool.service.lsf import Lsf
from spool.service.pbs import Pbs, Torque
from spool.service.sge import Sge
from spool.service.slurm import Slurm
from spool.service.system import BatchSystem, Unreachable, ask
from spool.service.terms import NodeShape

_ADAPTERS: dict[str, Callable[[], BatchSystem]] = {
    "slurm": Slurm,
    "flux": Flux,
    "pbs": Pbs,
    "torque": Torque,
    "lsf": Lsf,
    "sge": Sge,
}
NAMES = ("auto", *_ADAPTERS, "local")
VERSION_LIMIT_S = 5.0


def find(
    name: str = "auto", *, folder: str, nodes: int = 1, node: NodeShape | None = None
) -> BatchSystem:
    """The adapter of that name. folder, nodes and node are for `local` alone."""
    chosen = present() if name == "auto" else name
    if chosen == "local":
        return Local(folder, nodes=nodes, node=node)
    if chosen not in _ADAPTERS:
        raise SpoolError(f"no batch system {name!r}; one of: {', '.join(NAMES)}")
    return _ADAPTERS[chosen]()


def present() -> str:
    """The batch system whose commands are here; "local" if there are none.

    Slurm comes before Flux, which may be a person's own instance in a Slurm job, and before PBS,
    whose commands Slurm has as wrappers.
    """
    if _has("sbatch"):
        return "slurm"
    if _has("flux"):
        return "flux"
    if _has("qsub"):
        return _kind_of_qsub()
    return "lsf" if _has("bsub") else "local"


def _kind_of_qsub() -> str:
    """Grid Engine, PBS and Torque all have qsub and qstat."""
    if _has("qconf") or (os.environ.get("SGE_ROOT") and not _has("pbsnodes")):
        return "sge"
    try:
        answer = ask(("qstat", "--version"), limit_s=VERSION_LIMIT_S)
    except Unreachable:
        return "pbs"
    said = answer.out + answer.err
    # Torque prints "Version: 6.1.2" and a commit; PBS "pbs_version = 2022.1.1".
    return "torque" if "pbs_version" not in said and "ersion: " in said else "pbs"


def _has(command: str) -> bool:
    return shutil.which(command) is not None
