"""verbs - a person's verbs on tasks: cancel, hold, release, retry, modify, rm."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from spool.commands import shared
from spool.errors import NoSuchTask, SpoolError
from spool.queue import control, select
from spool.queue.control import Act, Outcome
from spool.queue.layout import FINAL, State, Tree
from spool.queue.select import Selection
from spool.queue.tasks import Spot

OF_ELEMENTS = ("cancel", "retry")
reason_option = click.option("--reason", default="", help="Why; kept in the task's history.")
all_option = click.option("--all", "everything", is_flag=True, help="Mean every task.")
change_options = (
    click.option("--priority", type=int, help="Higher runs first; -999 to 999."),
    click.option("--time-limit", type=shared.Duration(), help="Stop it after so long."),
    click.option("--time-estimate", type=shared.Duration(), help="How long it is thought to run."),
    click.option("--memory", type=shared.Memory(), help="Memory it needs, such as 8G."),
    click.option("--cores", "cores_per_rank", type=int, help="Cores it needs."),
    click.option("--per-node", type=int, help="At most so many such tasks on one node."),
    click.option("--gpus", type=int, help="GPUs it needs."),
    click.option("--nodes", type=int, help="Nodes it needs."),
    click.option("--requires", multiple=True, help="A feature its node must have."),
    click.option("--max-attempts", type=int, help="Tries before it counts as failed."),
    click.option("--max-lost", type=int, help="Launcher deaths before it counts as failed."),
    click.option("--backoff", type=shared.Duration(), help="Wait before the second try."),
    click.option("--begin", type=shared.Begin(), help="Not before: now+10m, a date (UTC)."),
    click.option("--signal", metavar="SIG[@GRACE]", help="How to stop it; TERM@10s."),
    click.option("--after", multiple=True, metavar="ID", help="Wait for that task too."),
)


def changeable(command: Any) -> Any:
    """The options that change a manifest's keys."""
    for option in reversed(change_options):
        command = option(command)
    return command


def changes_in(tree: Tree, keys: dict[str, Any]) -> dict[str, Any]:
    """What was changed, as manifest keys; words that mean parents as ids."""
    from spool import units

    given = {key: value for key, value in keys.items() if value not in (None, ())}
    if "after" in given:
        given["after"] = [
            spot.id for spot in select.find(tree, Selection(words=given["after"], strict=True))
        ]
    if "begin" in given:
        given["begin"] = units.stamp(given["begin"])
    if "@" in given.get("signal", ""):
        given["signal"], _, given["grace"] = given["signal"].partition("@")
    return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}


def act_on(
    ctx: click.Context,
    act: Act,
    chosen: Selection,
    states: tuple[State, ...],
    *,
    everything: bool,
    as_json: bool,
    **words: Any,
) -> None:
    """Do a verb to what is chosen; say what became of each; exit 1 if one was refused."""
    verb = ctx.info_name or ""
    if chosen.everything and not everything:
        raise click.UsageError(f"say which tasks (ids, --state, --workflow, ...), or {verb} --all")
    if verb not in OF_ELEMENTS and (word := _with_elements(chosen)):
        raise click.UsageError(
            f"{word}: {verb} takes whole tasks, arrays and chunks; elements can be retried and"
            f" cancelled. As a glob over ids: '{word}.*'"
        )
    tree, settings = shared.tree_of(ctx)
    named = bool(chosen.words) and not any(map(_is_wide, chosen.words))
    anew = act is control.retry
    found = _chunks_that_can(select.find(tree, chosen), anew, chosen, states)
    spots = _spots(found, states, named=named or bool(chosen.states))
    if any("[" in word for word in chosen.words):
        words["elements"] = lambda task_id: select.elements(chosen.words, task_id)
    met: set[str] = set()
    with control.verb(tree, settings, verb, **words) as by:
        outcomes = shared.counted(_noted(control.each(act, by, _once(spots, met)), met), "tasks")
        _report(outcomes, verb, as_json=as_json)


def _with_elements(chosen: Selection) -> str:
    """The first word that names elements."""
    words = (word for word in chosen.words if select.split(select.plain_word(word))[1] is not None)
    return next(words, "")


def _is_wide(word: str) -> bool:
    """Whether a word is a glob; the brackets of elements make it none."""
    return any(mark in word for mark in "*?[") and select.split(select.plain_word(word))[1] is None


def _spots(found: Iterable[Spot], states: tuple[State, ...], *, named: bool) -> Iterable[Spot]:
    """What was named is tried, and refused with a reason; a wide choice means what can be."""
    return found if named else (spot for spot in found if spot.state in states)


def _chunks_that_can(
    found: Iterable[Spot], anew: bool, chosen: Selection, states: tuple[State, ...]
) -> Iterator[Spot]:
    """Of an array's chunks, where neither they nor elements were named, those that can be meant.

    To run `anew` those that have finished are not.
    """
    exact = set(map(select.plain_word, chosen.words))
    for spot in found:
        by_itself = "@" not in spot.id or spot.id in exact
        can = spot.state in states and not (anew and spot.state is State.FINISHED)
        if by_itself or can or select.elements(chosen.words, spot.id) is not None:
            yield spot


def _once(found: Iterable[Spot], met: set[str]) -> Iterator[Spot]:
    """Each task once: what a verb has moved on may be met again where it lies now."""
    for spot in found:
        if spot.id not in met:
            met.add(spot.id)
            yield spot


def _noted(outcomes: Iterable[Outcome], met: set[str]) -> Iterator[Outcome]:
    """Note the id under which each lies now: an arrival gets one when it is cancelled."""
    for outcome in outcomes:
        if outcome.spot:
            met.add(outcome.spot.id)
        yield outcome


def _report(outcomes: Iterable[Outcome], verb: str, *, as_json: bool) -> None:
    done = refused = 0
    for outcome in outcomes:
        done, refused = done + (outcome.spot is not None), refused + (outcome.spot is None)
        there = outcome.spot if verb != "rm" else None
        place = f"{there.state}/{there.group}" if there else ""
        if as_json:
            task_id, refused_why = map(shared.printable, (outcome.id, outcome.refused))
            shared.print_json({"id": task_id, "now": place, "refused": refused_why})
        elif outcome.spot:
            click.echo(f"{place}/{outcome.spot.id}" if place else outcome.spot.id)
        elif outcome.refused:
            click.echo(f"Error: {shared.printable(outcome.refused)}", err=True)
    if not done and not refused:
        raise NoSuchTask(f"no task to {verb} matches. Run: spool ls")
    if not as_json and sys.stderr.isatty():
        click.echo(f"{verb}: {done:,} done, {refused:,} refused", err=True)
    if refused:
        raise click.exceptions.Exit(SpoolError.exit_code)


@click.command("cancel")
@shared.selection_options
@reason_option
@all_option
@click.option("--timeout", type=shared.Duration(), default="30s", help="Wait so long for owners.")
@click.option("-r", "--recursive", is_flag=True, help="With all that waits for them.")
@shared.as_json
@click.pass_context
def cancel_command(ctx: click.Context, /, **keys: Any) -> None:
    """Take tasks out of the queue, or stop them where they run.

    \b
      spool cancel hi-1.26112215-00-k3f9x2q7bd
      spool cancel 'scan-*' --reason "wrong beam"
      spool cancel --workflow old --state READY
      spool cancel -r prepare         and its children, and theirs
    """
    from spool import units

    chosen = shared.selection(keys)
    wait_s = units.duration(keys.pop("timeout"))
    states = (*control.TAKES["cancel"], State.RUNNING)
    if keys.pop("recursive"):
        chosen = _with_descendants(shared.tree_of(ctx)[0], chosen)
    act_on(ctx, control.cancel, chosen, states, wait_s=wait_s, **keys)


def _with_descendants(tree: Tree, chosen: Selection) -> Selection:
    """The unfinished tasks that are meant, and those that wait for any that is meant."""
    from spool.queue import kinship

    if named := next((word for word in chosen.words if select.split(word)[1] is not None), ""):
        raise click.UsageError(f"nothing waits for single elements: cancel {named!r} without -r")
    roots = list(select.find(tree, chosen))
    below = kinship.descendants(tree, [spot.id for spot in roots])
    # The deepest first: a parent's end must not start what is to be cancelled too.
    some = [spot.id for spot in (*reversed(below), *roots) if spot.state not in FINAL]
    if not some:
        raise NoSuchTask("no task to cancel matches, nor one that waits for it. Run: spool ls")
    return Selection(words=tuple(dict.fromkeys(some)))


@click.command("hold")
@shared.selection_options
@reason_option
@all_option
@shared.as_json
@click.pass_context
def hold_command(ctx: click.Context, /, **keys: Any) -> None:
    """Keep queued tasks back until they are released.

    \b
      spool hold --workflow scan
    """
    chosen = shared.selection(keys)
    act_on(ctx, control.hold, chosen, control.TAKES["hold"], **keys)


@click.command("release")
@shared.selection_options
@reason_option
@all_option
@shared.as_json
@click.pass_context
def release_command(ctx: click.Context, /, **keys: Any) -> None:
    """Let held tasks go on; a task that waits for a moment goes on at once.

    \b
      spool release --workflow scan
    """
    chosen = shared.selection(keys)
    act_on(ctx, control.release, chosen, control.TAKES["release"], **keys)


@click.command("retry")
@shared.selection_options
@click.option("--close", is_flag=True, help="Only what follows the run: postprocess, stage out.")
@changeable
@reason_option
@all_option
@shared.as_json
@click.pass_context
def retry_command(ctx: click.Context, /, **keys: Any) -> None:
    """Queue finished, failed or cancelled tasks again; they find their earlier files.

    \b
      spool retry --state FAILED
      spool retry g2-C6H6 --time-limit 10m
    """
    chosen, close = shared.selection(keys), keys.pop("close")
    plain = {key: keys.pop(key) for key in ("everything", "as_json", "reason")}
    changes = changes_in(shared.tree_of(ctx)[0], keys)
    if close and changes:
        raise click.UsageError("--close runs nothing again, so nothing can be changed with it")
    act = control.close_again if close else control.retry
    act_on(ctx, act, chosen, control.TAKES["retry"], changes=changes, **plain)


@click.command("modify")
@shared.selection_options
@changeable
@reason_option
@all_option
@shared.as_json
@click.pass_context
def modify_command(ctx: click.Context, /, **keys: Any) -> None:
    """Change what tasks ask for; a running task's time limit changes at once.

    \b
      spool modify --workflow scan --priority 5
      spool modify hi-1 --time-limit 2h
    """
    chosen = shared.selection(keys)
    plain = {key: keys.pop(key) for key in ("everything", "as_json", "reason")}
    changes = changes_in(shared.tree_of(ctx)[0], keys)
    if not changes:
        raise click.UsageError("say what to change, such as --priority 5 or --time-limit 2h")
    states = (State.WAITING, State.READY, State.RUNNING)
    act_on(ctx, control.modify, chosen, states, changes=changes, **plain)


@click.command("rm")
@shared.selection_options
@all_option
@shared.as_json
@click.pass_context
def rm_command(ctx: click.Context, /, **keys: Any) -> None:
    """Delete finished, failed or cancelled tasks with all their files.

    \b
      spool rm --state CANCELLED
      spool rm --state FINISHED --workflow test
    """
    chosen = shared.selection(keys)
    act_on(ctx, control.remove, chosen, control.TAKES["rm"], **keys)
