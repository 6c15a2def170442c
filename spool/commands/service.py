"""service - the command that asks the batch system for allocations, sized to the backlog."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from spool.commands import shared
from spool.errors import SpoolError

FOUND_EXIT = 6


@click.command("service")
@click.option("--once", is_flag=True, help="Look, decide and ask once, then end: for cron.")
@click.option("--dry-run", is_flag=True, help="Decide once, say it, ask nothing.")
@click.option(
    "--interval",
    type=shared.Duration(),
    help="How often to decide; default: spool.toml, 60s.",
)
@click.option("--check", is_flag=True, help="Check the policy with the batch system, then end.")
@click.option("--template", is_flag=True, help="Print the job script's template, then end.")
@click.option("--quiet", is_flag=True, help="Say only what goes wrong.")
@shared.as_json
@click.pass_context
def service_command(
    ctx: click.Context,
    once: bool,
    dry_run: bool,
    interval: str | None,
    check: bool,
    template: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Look after the spool: ask the batch system for the allocations that READY tasks need, follow
    them, cancel what nothing needs any more; admit arrivals, take over from the dead, start
    stagers.

    What may be asked for stands in spool.toml: [service] and [queues.NAME]. Each decision is a line
    in journal/service.jsonl and on the screen, with its reasons. One service is at work per spool;
    others say whose it is and leave. Without a batch system this machine is one.

    \b
      spool service                    until Ctrl-C; allocations go on without it
      spool service --once             from cron or scrontab
      spool service --dry-run          what would be asked now, and why
      spool service --check            does the batch system take such requests?
    """
    tree, settings = shared.tree_of(ctx)
    from spool.service import policy, script

    often = {} if interval is None else {"interval_s": _seconds(interval)}

    def load() -> Any:
        return msgspec.structs.replace(policy.load(tree.root), **often)

    if template:
        click.echo(script.template(tree, load().template), nl=False)
    elif check:
        _check(ctx, tree, load(), as_json=as_json)
    elif dry_run:
        _dry_run(tree, load(), as_json=as_json)
    else:
        from spool.service.loop import Service

        screen = _Screen(as_json=as_json, quiet=quiet)
        Service(tree, settings, load, screen.show, screen.say).run(once=once)


def _seconds(text: str) -> float:
    from spool import units

    if (seconds := units.duration(text)) <= 0:
        raise click.BadParameter("must be more than 0", param_hint="--interval")
    return seconds


class _Screen:
    """Says of each decision what the last did not say."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.last: tuple[str, ...] = ()

    def show(self, report: Any, *, dry: bool = False) -> None:
        """A decision: what was done, and of its reasons those that are new."""
        from spool import units
        from spool.service import deciding

        if self.as_json:
            shared.print_json({"time": units.now_stamp(), **msgspec.to_builtins(report)})
            return
        fresh = tuple(one for one in report.why if deciding.gist([one])[0] not in self.last)
        self.last = deciding.gist(report.why)
        told = msgspec.structs.replace(report, why=fresh)
        for line in deciding.warnings(report) if self.quiet else deciding.sentences(told, dry=dry):
            click.echo(f"{units.now_stamp()[:19]}Z {shared.printable(line)}")

    def say(self, text: str) -> None:
        """A word on something else."""
        click.echo(f"spool: {text}", err=True)


def _dry_run(tree: Any, wanted: Any, *, as_json: bool) -> None:
    """Decide once, change nothing."""
    from spool.service.deciding import Decider
    from spool.service.loop import system_of

    decider = Decider(tree, wanted, system_of(tree, wanted), lambda: False, dry=True)
    _Screen(as_json=as_json, quiet=False).show(decider.step(), dry=True)


def _check(ctx: click.Context, tree: Any, wanted: Any, *, as_json: bool) -> None:
    """Say of each queue whether the batch system would take a request; exit 6 if one is refused."""
    from spool.service import checking
    from spool.service.loop import system_of

    system = system_of(tree, wanted)
    found = list(checking.queues(tree, wanted, system))
    for one in found:
        if as_json:
            shared.print_json(msgspec.to_builtins(one))
        else:
            click.echo(f"{'ok' if one.ok else 'REFUSED'}  {one.queue or 'default'}: {one.said}")
    if not found:
        raise SpoolError(
            f"{system.name} tells of no queue, and {tree.settings} has no [queues.NAME]: add one"
        )
    if not all(one.ok for one in found):
        ctx.exit(FOUND_EXIT)
