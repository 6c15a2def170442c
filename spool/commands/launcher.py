"""launcher - run tasks on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spool.commands import shared
from spool.queue.layout import FINAL, State

if TYPE_CHECKING:
    from spool.config import Settings
    from spool.launcher.entry import Wanted


@click.command("launcher")
@click.option("--nodes", default="", help="Which nodes: 4, 2-5, or their names; default: all.")
@click.option(
    "--cores", "--cores-per-node", type=click.IntRange(1, 100_000), help="Cores to fill on a node."
)
@click.option(
    "--gpus", "--gpus-per-node", type=click.IntRange(0, 1000), help="GPUs to fill on a node."
)
@click.option(
    "--memory", "--memory-per-node", type=shared.Memory(), help="Memory to fill on a node."
)
@click.option("--time-limit", type=shared.Duration(), help="Drain and leave before so long.")
@click.option(
    "--idle-timeout",
    metavar="DURATION",
    help="Leave after so long without work, or 'never'; default: spool.toml, 60s.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "serial", "mpi"]),
    default="auto",
    help="Which tasks: those of one rank, of several, or both (default).",
)
@click.option("--per-node", is_flag=True, help="A launcher of its own on each node, without MPI.")
@click.option("--stage", is_flag=True, help="Only what is around runs: transfers, hooks, handlers.")
@click.option("--workflow", default="", help="Only tasks of this workflow.")
@click.option("--tag", "tags", multiple=True, help="Only tasks with this tag.")
@click.option("--requires", "features", multiple=True, help="A feature these nodes have.")
@click.option("--pin/--no-pin", default=True, help="Bind each task to its own cores (default).")
@click.option(
    "--simulate",
    default="",
    metavar="nodes=N,cores=M",
    help="Claim, place, record and move, but run nothing: time is virtual.",
)
@click.option("--hand-of", type=int, default=0, hidden=True, help="The launcher that lends cores.")
@click.option("--parent", default="", hidden=True, help="Who started us on our node.")
@click.option("--ends", type=float, hidden=True, help="When our time is up, since 1970.")
@click.option("--quiet", is_flag=True, help="No live line, no summary.")
@shared.as_json
@click.pass_context
def launcher_command(
    ctx: click.Context, /, time_limit: str | None, quiet: bool, as_json: bool, **said: Any
) -> None:
    """Claim tasks and run them, as many at once as cores, GPUs and memory allow.

    In an allocation it takes all its nodes: it starts one MPI rank on each (srun or mpiexec), or
    with --per-node an independent launcher. Tasks of several ranks get an mpirun each. Without an
    allocation it takes this machine; --nodes 4 makes it four nodes, to try things out.

    Ctrl-C once: claim nothing more, let running tasks end. Twice, or SIGTERM: stop the tasks with
    their signal and give them back; that costs them no attempt.

    \b
      spool launcher
      spool launcher --cores 8 --idle-timeout 10m
      spool launcher --time-limit 2h --idle-timeout never
      spool launcher --nodes 2-4 --mode mpi
      spool launcher --stage --idle-timeout never      on a login node
    """
    from spool import units
    from spool.launcher import entry
    from spool.launcher.hands import end_with
    from spool.report.live import Line

    if said["hand_of"]:
        end_with(said["hand_of"])
    tree, settings = shared.tree_of(ctx)
    limit_s = units.duration(time_limit) if time_limit else 0.0
    wanted = _wanted({**said, "as_json": as_json}, limit_s, settings, quiet)
    if said["stage"]:
        _stage(ctx, tree, settings, wanted, as_json=as_json, quiet=quiet)
        return
    line = Line() if shared.is_terminal() and not quiet else None
    try:
        one = entry.launch(tree, settings, wanted, line, _say)
    finally:
        if line:
            line.close()
    if isinstance(one, int):
        ctx.exit(one)
    if as_json:
        shared.print_json({"owner": one.owner.name, **one.counts, **one.crew.measured})
    elif not quiet:
        click.echo(_summary(dict(one.counts), one.owner.name), err=True)
        for reason in one.picker.reasons():
            click.echo(reason, err=True)


def _stage(
    ctx: click.Context, tree: Any, settings: Settings, wanted: Wanted, *, as_json: bool, quiet: bool
) -> None:
    """Run a stager, and say what it did."""
    from spool.launcher import entry
    from spool.launcher.staging import NOTHING_DONE

    one = entry.stage(tree, settings, wanted)
    if as_json:
        shared.print_json({"owner": one.owner.name, **one.counts})
    elif not quiet:
        click.echo(_summary(dict(one.counts), one.owner.name), err=True)
    if wanted.wishes.hand_of and not one.counts:
        ctx.exit(NOTHING_DONE)


def _wanted(said: dict[str, Any], limit_s: float, settings: Settings, quiet: bool) -> Wanted:
    from spool import units
    from spool.launcher.entry import Wanted
    from spool.launcher.field import Size
    from spool.launcher.picker import Wishes

    memory = said["memory"]
    wishes = Wishes(
        time_limit_s=limit_s,
        idle_s=_idle(said["idle_timeout"], settings.launcher_idle_timeout_s),
        pin=said["pin"],
        workflow=said["workflow"],
        tags=said["tags"],
        features=frozenset(said["features"]),
        hand_of=said["hand_of"],
        mode=said["mode"],
    )
    size = Size(said["cores"], said["gpus"], units.memory(memory) if memory is not None else None)
    more = {
        name: said[name] for name in ("nodes", "per_node", "ends", "simulate", "parent", "as_json")
    }
    return Wanted(size, wishes, **more, patient=said["idle_timeout"] is not None, quiet=quiet)


def _say(text: str) -> None:
    click.echo(f"spool: {text}", err=True)


def _idle(text: str | None, default: float) -> float | None:
    from spool import units

    if text == "never":
        return None
    try:
        return default if text is None else units.duration(text)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint="--idle-timeout") from None


def _summary(counts: dict[str, int], owner: str) -> str:
    words = [f"{counts[state]:,} {state.lower()}" for state in FINAL if counts.get(state)]
    back = [state for state in State if state not in FINAL and counts.get(state)]
    words += [f"{counts[state]:,} times put back into {state}" for state in back]
    return f"{owner}: {', '.join(words) or 'nothing to do'}"
