"""entry - from what a person asked for to a launcher: alone, with ranks, one on each node, or none.

Owns   the choice between them, and what the processes that are started in turn are told.
Fails  SpoolError: a choice that cannot be had here. LeaseLost.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spool import config
from spool.config import Settings
from spool.errors import LeaseLost, SpoolError
from spool.launcher import allocation, clock, field, starting
from spool.launcher.allocation import Allocation
from spool.launcher.field import Field, Size
from spool.launcher.loop import SIGNALS, Launcher
from spool.launcher.picker import Wishes
from spool.queue import select
from spool.queue.layout import State, Tree
from spool.queue.select import Selection

if TYPE_CHECKING:
    from spool.launcher.stager import Stager

FENCE_IN_ALLOCATION_S, DEAD_IN_ALLOCATION_S = 1800.0, 3600.0
LOOKED_AT = 10_000
LOST_LEASE = 4
ENDED_WITHOUT_SOME = 5
MOST_PLAYED = 64
ONLY_SIMULATED = (
    "{}: --simulate would file tasks as FINISHED that never ran. Make a spool of its own for that,"
    " and write simulate = true under [launcher] in its spool.toml"
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asked for. ends is when the time of those who started us is up.

    parent is the token of who started us as one of several, "" for nobody; patient that an idle
    timeout was given, so that a launcher waits for what is not there yet; as_json that the last
    word is JSON.
    """

    size: Size
    wishes: Wishes
    nodes: str = ""
    per_node: bool = False
    ends: float | None = None
    simulate: str = ""
    parent: str = ""
    patient: bool = False
    quiet: bool = False
    as_json: bool = False


def launch(tree: Tree, settings: Settings, wanted: Wanted, show: Any, say: Say) -> Launcher | int:
    """Run it: the launcher that ran here, else the exit code of those that were started."""
    if wanted.wishes.hand_of:
        node = field.own_node(wanted.size, config.Settings(), Allocation(""))
        return _run(tree, settings, Field([node]), wanted, show)
    if wanted.simulate:
        from spool.launcher import simulate

        if not settings.launcher_simulate:
            raise SpoolError(ONLY_SIMULATED.format(tree.root))
        try:
            return _run(tree, settings, simulate.field_of(wanted.simulate), wanted, show)
        finally:
            clock.reset()
    granted = allocation.find(os.environ)
    for complaint in granted.complaints if not wanted.parent else ():
        say(complaint)
    settings, wanted = patient_leases(settings, granted), _with_end(wanted, granted)
    claimed = starting.ranks_claimed(os.environ)
    if claimed > 1 and not wanted.per_node:
        return _as_rank(tree, settings, wanted, granted, claimed, show, say)
    if not wanted.parent and not wanted.patient and (why := nothing_selected(tree, wanted.wishes)):
        raise SpoolError(why)
    names = _names(granted, wanted.nodes)
    if claimed > 1:  # --per-node, and srun or mpiexec has started us on each already
        names = [os.uname().nodename]
    far = len(names) == 1 and bool(starting.on_node(granted.system, names[0]))
    if far or (len(names) > 1 and wanted.per_node):
        words = [*_program(tree), *options(wanted), "--parent", "each"]
        return starting.one_on_each(granted.system, names, words, say)
    lone = wanted.wishes.mode == "mpi"  # no ranks: all that other nodes run is an mpirun's
    if len(names) > 1 and not (lone and wanted.parent):
        minder = starting.Minder(tree, granted.system, names, say, lone=lone)
        return minder.run(options(wanted) + ["--json"] * wanted.as_json, wanted.ends)
    own = field.own_node(wanted.size, settings, granted)
    if len(names) > 1:
        return _run(tree, settings, field.reached_by_mpirun(own, granted, names), wanted, show)
    return _run(tree, settings, field.alone(own, granted), wanted, show)


def stage(tree: Tree, settings: Settings, wanted: Wanted) -> Stager:
    """Run a stager here."""
    from spool.launcher.stager import Stager

    wishes = wanted.wishes
    if not wishes.hand_of and not wanted.patient and (why := nothing_selected(tree, wishes)):
        raise SpoolError(why)
    one = Stager(tree, patient_leases(settings, allocation.find(os.environ)), wishes)
    one.run()
    return one


def _names(granted: Allocation, choice: str) -> list[str]:
    """The hosts to work on; where there is no batch system, a number of nodes on this machine."""
    if not granted.nodes and choice.isdecimal():
        if not 1 <= int(choice) <= MOST_PLAYED:
            raise SpoolError(f"--nodes {choice}: one machine can play 1 to {MOST_PLAYED} nodes")
        return [""] * int(choice)
    if not granted.nodes and choice:
        raise SpoolError(f"--nodes {choice}: there is no allocation here; a number plays nodes")
    return field.chosen(granted.nodes or ("",), choice)


def patient_leases(settings: Settings, granted: Allocation) -> Settings:
    """Inside an allocation a lease is kept for longer, where nothing else was set.

    A file server may stall for minutes, and the batch system's word comes sooner anyway.
    """
    plain = Settings()
    same = settings.lease_fence_s == plain.lease_fence_s
    if not granted.system or not same or settings.lease_dead_s != plain.lease_dead_s:
        return settings
    return config.with_leases(settings, FENCE_IN_ALLOCATION_S, DEAD_IN_ALLOCATION_S)


def _with_end(wanted: Wanted, granted: Allocation) -> Wanted:
    """The end of the allocation is the end of its launchers' time, if that is not sooner."""
    ends = [when for when in (wanted.ends, granted.ends) if when is not None]
    if wanted.wishes.time_limit_s and wanted.ends is None:
        ends.append(time.time() + wanted.wishes.time_limit_s)
    if not ends:
        return wanted
    left = max(1.0, min(ends) - time.time())
    wishes = replace(wanted.wishes, time_limit_s=left)
    return replace(wanted, ends=min(ends), wishes=wishes)


def nothing_selected(tree: Tree, wishes: Wishes) -> str:
    """Why a launcher with this selection would find nothing at all; "" if it would."""
    if not wishes.workflow and not wishes.tags:
        return ""
    states = (State.READY, State.WAITING, State.RUNNING)
    wanted = Selection(
        states=states, workflow=_exact(wishes.workflow), tags=tuple(map(_exact, wishes.tags))
    )
    everything = Selection(states=states)
    for number, spot in enumerate(select.find(tree, everything)):
        if number >= LOOKED_AT or select.matches(tree, spot, wanted, ()):
            return ""
    words = [f"workflow {wishes.workflow}"] if wishes.workflow else []
    words += [f"tag {tag}" for tag in wishes.tags]
    return (
        f"no task of {' and '.join(words)} is READY, WAITING or RUNNING, so nothing was started."
        " To wait for some: --idle-timeout 10m"
    )


def _exact(name: str) -> str:
    """A name as a glob that means just it."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _run(tree: Tree, settings: Settings, place: Field, wanted: Wanted, show: Any) -> Launcher:
    if wanted.parent:
        place.record["started_by"] = wanted.parent
    wishes = wanted.wishes
    if wanted.ends is not None:  # the ranks may have taken their time to meet
        wishes = replace(wishes, time_limit_s=max(1.0, wanted.ends - time.time()))
    one = Launcher(tree, settings, place, wishes, show)
    one.run()
    return one


def _as_rank(
    tree: Tree,
    settings: Settings,
    wanted: Wanted,
    granted: Allocation,
    claimed: int,
    show: Any,
    say: Say,
) -> Launcher | int:
    """One of several processes that mpiexec or srun started together."""
    # MPI makes threads: a signal that they did not block would end us at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    from spool.launcher import post as posts
    from spool.launcher.rank import Rank

    post = posts.meet(claimed)
    own = field.own_node(wanted.size, settings, granted)
    try:
        one: Launcher | int = 0
        if post.rank:
            Rank(post, tree, settings, own, config.trusted_users()).run()
        else:
            place = field.over_ranks(own, wanted.size, granted)
            one = _run(tree, settings, place, wanted, show)
        if post.rank == 0 and place.ranks and place.ranks.dead:
            post.abort(ENDED_WITHOUT_SOME)  # MPI would wait for the dead for ever
        post.finish()
        return one
    except (SpoolError, OSError) as fault:
        say(f"rank {post.rank}: {fault}")
        sys.stderr.flush()
        post.abort(LOST_LEASE if isinstance(fault, LeaseLost) else 1)
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        post.abort(1)
        raise


def _program(tree: Tree) -> list[str]:
    # -P, since our working directory is a task's, from which nothing may be imported.
    return [sys.executable, "-P", "-m", "spool.cli", "--spool", tree.root, "launcher"]


def options(wanted: Wanted) -> list[str]:
    """The options that tell another process the same wishes."""
    wishes, size = wanted.wishes, wanted.size
    words = ["--mode", wishes.mode, "--idle-timeout", _idle(wishes.idle_s)]
    words += ["--cores-per-node", str(size.cores)] if size.cores is not None else []
    words += ["--gpus-per-node", str(size.gpus)] if size.gpus is not None else []
    words += ["--memory", f"{size.memory_mb}M"] if size.memory_mb is not None else []
    words += ["--ends", f"{wanted.ends:.0f}"] if wanted.ends is not None else []
    words += ["--workflow", wishes.workflow] if wishes.workflow else []
    words += ["--quiet"] if wanted.quiet else []
    words += [] if wishes.pin else ["--no-pin"]
    return words + _each("--tag", wishes.tags) + _each("--requires", sorted(wishes.features))


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _idle(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:g}"
