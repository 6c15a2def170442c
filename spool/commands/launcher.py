"""launcher - run tasks on this machine."""

from __future__ import annotations

import click

from spool.commands import shared
from spool.queue.layout import State


@click.command("launcher")
@click.option("--cores", type=click.IntRange(1, 100_000), help="Cores to fill; default: all.")
@click.option("--gpus", type=click.IntRange(0, 1000), help="GPUs to fill; default: those visible.")
@click.option("--memory", type=shared.Memory(), help="Memory to fill; default: all.")
@click.option("--time-limit", type=shared.Duration(), help="Drain and leave before so long.")
@click.option(
    "--idle-timeout",
    metavar="DURATION",
    help="Leave after so long without work, or 'never'; default: spool.toml, 60s.",
)
@click.option("--workflow", default="", help="Only tasks of this workflow.")
@click.option("--requires", "features", multiple=True, help="A feature this machine has.")
@click.option("--pin/--no-pin", default=True, help="Bind each task to its own cores (default).")
@click.option("--hand-of", type=int, default=0, hidden=True, help="The launcher that lends cores.")
@click.option("--quiet", is_flag=True, help="No live line, no summary.")
@shared.as_json
@click.pass_context
def launcher_command(
    ctx: click.Context,
    cores: int | None,
    gpus: int | None,
    memory: str | None,
    time_limit: str | None,
    idle_timeout: str | None,
    workflow: str,
    features: tuple[str, ...],
    pin: bool,
    hand_of: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Claim tasks and run them, as many at once as cores, GPUs and memory allow.

    Ctrl-C once: claim nothing more, let running tasks end. Twice, or SIGTERM: stop the tasks with
    their signal and give them back; that costs them no attempt.

    \b
      spool launcher
      spool launcher --cores 8 --idle-timeout 10m
      spool launcher --time-limit 2h --idle-timeout never
    """
    from spool import units
    from spool.launcher import nodes
    from spool.launcher.hands import end_with
    from spool.launcher.loop import Launcher
    from spool.launcher.picker import Wishes
    from spool.report.live import Line

    if hand_of:
        end_with(hand_of)
    tree, settings = shared.tree_of(ctx)
    node = nodes.this_node(cores, gpus, units.memory(memory) if memory is not None else None)
    wishes = Wishes(
        time_limit_s=units.duration(time_limit) if time_limit else 0.0,
        idle_s=_idle(idle_timeout, settings.launcher_idle_timeout_s),
        pin=pin,
        workflow=workflow,
        features=frozenset(features),
        hand_of=hand_of,
    )
    line = Line() if shared.is_terminal() and not quiet else None
    one = Launcher(tree, settings, node, wishes, line)
    try:
        counts = one.run()
    finally:
        if line:
            line.close()
    if as_json:
        shared.print_json({"owner": one.owner.name, **counts})
    elif not quiet:
        click.echo(_summary(dict(counts), one.owner.name), err=True)
        for reason in one.picker.reasons():
            click.echo(reason, err=True)


def _idle(text: str | None, default: float) -> float | None:
    from spool import units

    if text == "never":
        return None
    try:
        return default if text is None else units.duration(text)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint="--idle-timeout") from None


def _summary(counts: dict[str, int], owner: str) -> str:
    words = [f"{counts[state]:,} {state.lower()}" for state in State if counts.get(state)]
    return f"{owner}: {', '.join(words) or 'nothing to do'}"
