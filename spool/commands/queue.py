"""queue - allocations by hand: what there is and was, a request of one's own, an end."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from spool.commands import shared
from spool.errors import SpoolError

SHOWN = 20


@click.group("queue", invoke_without_command=True)
@click.option("--all", "everything", is_flag=True, help="Those that are over, too: all of them.")
@shared.as_json
@click.pass_context
def queue_command(ctx: click.Context, everything: bool, as_json: bool) -> None:
    """List allocations: state, nodes, time left, tasks done, utilisation, and why they wait.

    \b
      spool queue
      spool queue --all --json
      spool queue cancel sp-3fk2-x7k9q
    """
    if ctx.invoked_subcommand:
        return
    from spool.report import tables
    from spool.service import policy, viewing
    from spool.service.loop import system_of

    tree, _ = shared.tree_of(ctx)
    wanted = policy.load(tree.root)
    most = None if everything else SHOWN
    found = viewing.look(tree, system_of(tree, wanted), time.time(), most)
    rows = found.live + found.over
    if as_json:
        for row in rows:
            shared.print_json(msgspec.to_builtins(row))
        return
    for word in found.words:
        click.echo(word, err=True)
    click.echo(tables.allocations([msgspec.to_builtins(row) for row in rows]))
    if found.more:
        click.echo(f"and {found.more:,} more that are over: spool queue --all")


@queue_command.command("cancel")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_context
def cancel_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Ask for the end of allocations; their tasks go back to READY."""
    from spool.queue import allocations
    from spool.service import policy, requests, tracking
    from spool.service.loop import system_of
    from spool.service.system import Unreachable

    tree, _ = shared.tree_of(ctx)
    closed = {line.name for line in allocations.ledger(tree)}
    ours = []
    for name in names:
        one = allocations.read(tree, name) if allocations.is_name(name) else None
        if one is None:
            raise SpoolError(f"there is no allocation {name!r}. Run: spool queue")
        if name in closed:
            raise SpoolError(f"{name} is over already. Run: spool queue --all")
        ours.append(one)
    system = system_of(tree, policy.load(tree.root))
    for one in ours:
        if not requests.tells_of(system, one):
            where = f"{one.asked.system} {one.asked.host}".strip()
            raise SpoolError(f"{one.asked.name} was asked of {where}: cancel it there")
    for one in ours:
        requests.request_end(tree, one.asked.name, "asked by hand")
    try:
        jobs = tracking.jobs_of(tree, system, ours)
    except Unreachable as fault:
        raise Unreachable(f"{fault}. What you want is noted: the service will see to it") from None
    if known := [job.id for one in ours if (job := tracking.found(one, jobs))]:
        system.cancel(known)
    for one in ours:
        click.echo(one.asked.name)
        if tracking.found(one, jobs) is None:
            click.echo(f"spool: {system.name} does not know it yet; the service ends it", err=True)


@click.command("submit-launch")
@click.option("-N", "--nodes", type=click.IntRange(1, 10**6), default=1, help="Nodes; 1.")
@click.option("-t", "--time", "walltime", type=shared.Duration(), help="Walltime, such as 10m.")
@click.option("-q", "--queue", "queue", default=None, help="Queue or partition.")
@click.option("-A", "--account", default="", help="Who is charged; default: spool.toml.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "serial", "mpi"]),
    default="auto",
    help="Which tasks: those of one rank, of several, or both (default).",
)
@click.option("--workflow", default="", help="Only tasks of this workflow.")
@click.option("--tag", "tags", multiple=True, help="Only tasks with this tag.")
@click.option("--idle-timeout", help="The launcher leaves after so long without work, or 'never'.")
@click.option("--dry-run", is_flag=True, help="Print the job script; submit nothing.")
@shared.as_json
@click.pass_context
def submit_launch_command(ctx: click.Context, /, as_json: bool, dry_run: bool, **said: Any) -> None:
    """Ask the batch system for one allocation with a launcher in it; its name is printed.

    The service counts it among its own, but never cancels what was asked for by hand. The budget
    of spool.toml holds for it too.

    \b
      spool submit-launch -N 2 -t 10m -q debug -A Project --mode serial
    """
    from spool import units
    from spool.service import policy, situation
    from spool.service.loop import system_of
    from spool.service.requests import Requests

    tree, _ = shared.tree_of(ctx)
    wanted = policy.load(tree.root)
    system = system_of(tree, wanted)
    queue = policy.chosen(policy.completed(wanted.policy, system.partitions()), said["queue"])
    walltime_s = units.duration(said["walltime"]) if said["walltime"] else max(queue.min_s, 3600.0)
    options, selects = _selection(said)
    asked, order, text = Requests(tree, system, wanted).prepared(
        queue,
        said["nodes"],
        walltime_s,
        "asked by hand",
        account=said["account"],
        options=options,
        selects=selects,
        by_hand=True,
    )
    if dry_run:
        click.echo(text, nl=False)
        return
    if dear := situation.too_dear(tree, wanted.policy, queue, asked.nodes, walltime_s):
        raise SpoolError(f"{dear}. See service.budget in {tree.settings}")
    one = Requests(tree, system, wanted).ask(asked, order, text)
    if as_json:
        shared.print_json(msgspec.to_builtins(one))
        return
    click.echo(asked.name)
    if not one.standing.job:
        click.echo(f"spool: {one.standing.why}; spool queue will tell", err=True)


def _selection(said: dict[str, Any]) -> tuple[list[str], str]:
    """The launcher's options, and in words which tasks it takes."""
    options, words = [], []
    if said["mode"] != "auto":
        options += ["--mode", said["mode"]]
        words.append(said["mode"])
    if said["workflow"]:
        options += ["--workflow", said["workflow"]]
        words.append(f"workflow {said['workflow']}")
    for tag in said["tags"]:
        options += ["--tag", tag]
        words.append(f"tag {tag}")
    if said["idle_timeout"]:
        options += ["--idle-timeout", said["idle_timeout"]]
    return options, ", ".join(words)
