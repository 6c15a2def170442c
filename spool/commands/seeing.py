"""seeing - commands that only look: ls, status, show, history, log, path, wait."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from spool import units
from spool.commands import arrays, shared
from spool.errors import NoSuchTask, SpoolError
from spool.queue import allocations, files, history, layout, select, tasks
from spool.queue.allocations import Allocation
from spool.queue.layout import FINAL, State, Tree
from spool.queue.tasks import Spot, Task

TAIL_BYTES, TAIL_LINES = 65536, 10
FAILED_EXIT, TIMED_OUT_EXIT = 3, 5
task_argument = click.argument("word", metavar="TASK", shell_complete=shared.complete_ids)


@click.command("ls")
@shared.selection_options
@click.option("--elements", "deep", is_flag=True, help="The elements of arrays, a line each.")
@shared.as_json
@click.pass_context
def ls_command(ctx: click.Context, /, as_json: bool, deep: bool, **keys: Any) -> None:
    """List tasks: state, group, id; an array in one line, with counts of its elements.

    \b
      spool ls                        everything
      spool ls 'scan-*' --state FAILED
      spool ls --workflow g2 --since 2h --json
      spool ls 'fit.26112215-4k-k3f9x2q7bd[3-9]'    elements of an array
      spool ls --elements --state FAILED            elements that failed
    """
    from spool.report import tables

    tree, _ = shared.tree_of(ctx)
    chosen = shared.selection(keys)
    found = False
    if deep or any(select.split(select.plain_word(word))[1] for word in chosen.words):
        found = arrays.show_elements(tree, chosen, js=as_json)
        chosen_spots: Iterable[Spot] = ()
    else:
        chosen_spots = select.find(tree, chosen)
    by_array = arrays.Lines(tree, chosen.words)
    for spot in chosen_spots:
        found = True
        if by_array.takes(spot):
            continue
        if as_json:
            path = shared.printable(spot.path(tree))
            shared.print_json({**shared.shown(spot)._asdict(), "path": path})
        else:
            click.echo(tables.listing(shared.shown(spot)))
    by_array.show(as_json=as_json)
    if chosen.words and not found:
        raise NoSuchTask(f"no task matches {' '.join(chosen.words)!r}. Run: spool ls")


@click.command("status")
@shared.as_json
@click.pass_context
def status_command(ctx: click.Context, /, as_json: bool) -> None:
    """Count tasks by state and group; show who runs them and what waits longest."""
    from spool.queue import census
    from spool.report import tables

    tree, _ = shared.tree_of(ctx)
    counted = census.take(tree)
    if not as_json:
        click.echo(tables.status(counted))
        if live := list(allocations.live(tree)):
            click.echo(f"\n{_allocations(live)}. See: spool queue")
        return
    shared.print_json(
        {
            "root": tree.root,
            "states": {state: counted.count(state) for state in State},
            "groups": {state: dict(groups) for state, groups in counted.groups.items()},
            "oldest_ready": counted.oldest_ready,
            "launchers": counted.launchers,
            "allocations": [
                {"name": one.asked.name, "state": one.standing.state, "nodes": one.asked.nodes}
                for one in allocations.live(tree)
            ],
        }
    )


def _allocations(live: list[Allocation]) -> str:
    """How many of them are where, in words."""
    states = Counter(one.standing.state for one in live)
    nodes = sum(one.asked.nodes for one in live)
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"allocations: {words}, of {units.count(nodes, 'node')}"


def read(tree: Tree, spot: Spot) -> tuple[Spot, Task]:
    """A task's place and contents, following it while it moves. Raises NoSuchTask."""
    for _ in range(20):
        try:
            return spot, tasks.load(spot.path(tree), spot.id)
        except FileNotFoundError:
            found = tasks.find(tree, spot.id)
            if found is None:
                break
            spot = found
    raise NoSuchTask(f"task {spot.id} is gone. Run: spool ls")


@click.command("show")
@task_argument
@shared.as_json
@click.pass_context
def show_command(ctx: click.Context, word: str, as_json: bool) -> None:
    """Show one task: what it asks for, what became of it and why, the end of its output."""
    tree, _ = shared.tree_of(ctx)
    if (element := arrays.one(tree, word)) is not None:
        arrays.show_one(tree, *element, as_json=as_json)
        return
    if arrays.show_array(tree, word, as_json=as_json):
        return
    spot = select.one(tree, word)
    try:
        spot, found = read(tree, spot)
    except (SpoolError, OSError) as fault:
        _show_damaged(tree, spot, fault, as_json=as_json)
        return
    if as_json:
        _show_json(tree, spot, found)
        return
    from spool.report import tables

    path = spot.path(tree)
    tail = b"\n".join(_tail(f"{path}/{layout.OUTPUT}")).decode(errors="replace")
    why = _why(tree, spot, found)
    click.echo(tables.task(shared.shown(spot), found, shared.printable(path), why, tail))


def _show_json(tree: Tree, spot: Spot, found: Task) -> None:
    from spool.queue.manifest import as_mapping

    shared.print_json(
        {
            **shared.shown(spot)._asdict(),
            "path": shared.printable(spot.path(tree)),
            "why": _why(tree, spot, found),
            "manifest": as_mapping(found.manifest),
            "history": history.events(found.told),
        }
    )


def _why(tree: Tree, spot: Spot, found: Task) -> str:
    """How a task came to lie where it lies; `spool why` says more."""
    from spool.queue.why.ended import sentence

    if spot.state is not State.WAITING or layout.parse_id(spot.group) is None:
        return sentence(found)
    from spool.queue import kinship
    from spool.queue.parents import Lookup

    if culprit := kinship.blocked_groups(tree).get(spot.group):
        ended = str(Lookup(tree)[culprit].state).lower()
        what = "was cancelled" if ended == "cancelled" else ended
        return f"blocked: {culprit} {what}. To go on: spool retry {culprit}"
    at = tasks.find(tree, spot.group)
    return f"waits for {spot.group}{f', which lies in {at.state}' if at else ''}"


def _show_damaged(tree: Tree, spot: Spot, fault: Exception, *, as_json: bool) -> None:
    """A task that cannot be read still says why: its reason, or what is wrong with it."""
    path = spot.path(tree)
    story = history.fold(files.read(f"{path}/{layout.HISTORY}"))
    why = shared.printable(str((story.stopped or {}).get("reason") or fault))
    path, spot = shared.printable(path), shared.shown(spot)
    if as_json:
        shared.print_json({**spot._asdict(), "path": path, "why": why})
        return
    for key, value in (("task", spot.id), ("state", f"{spot.state}/{spot.group}"), ("why", why)):
        click.echo(f"{key:<9}  {value}")
    click.echo(f"directory  {path}")


def _tail(path: str, lines: int = TAIL_LINES) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            return file.read(TAIL_BYTES).splitlines()[-lines:] if lines else []
    except OSError:
        return []


@click.command("history")
@task_argument
@shared.as_json
@click.pass_context
def history_command(ctx: click.Context, word: str, as_json: bool) -> None:
    """Tell what happened to one task, oldest first."""
    tree, _ = shared.tree_of(ctx)
    arrays.refuse_many(tree, word)
    spot = select.one(tree, word)
    lines = _events(tree, spot)
    if as_json:
        for event in lines:
            shared.print_json(event)
        return
    from spool.report import tables

    click.echo(tables.events(lines))


def _events(tree: Tree, spot: Spot) -> list[dict[str, Any]]:
    """The events of a task; its submission, which its manifest tells, stands first."""
    try:
        _, found = read(tree, spot)
    except SpoolError:
        return history.events(files.read(f"{spot.path(tree)}/{layout.HISTORY}") or b"")
    first = []
    if submitted := found.manifest.submitted:
        told = {"time": submitted.time, "what": "submitted", "by": submitted.by}
        first.append({**told, "host": submitted.host})
    return first + history.events(found.told)


@click.command("log")
@task_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("-n", "--lines", type=click.IntRange(0), help="Only the last N lines.")
@click.option("--errors", is_flag=True, help="Standard error, where it is kept apart.")
@click.pass_context
def log_command(
    ctx: click.Context, word: str, follow: bool, lines: int | None, errors: bool
) -> None:
    """Print what a task wrote.

    \b
      spool log hi-1            all of it
      spool log -f hi-1         as it comes
      spool log 'ARRAY-ID[17]'  of one element of an array
    """
    tree, _ = shared.tree_of(ctx)
    if arrays.print_log(tree, word, follow=follow, lines=lines, errors=errors):
        return
    arrays.refuse_whole(tree, word)
    spot = select.one(tree, word)
    name = layout.ERRORS if errors else layout.OUTPUT
    there = f"{spot.path(tree)}/{name}"
    if files.exists(there) and not files.is_plain(there):
        raise SpoolError(f"{there}: its program put something else than a file there")
    if lines is not None and not follow:
        for line in _tail(f"{spot.path(tree)}/{name}", lines):
            click.echo(line)
        return
    if not _print_log(tree, spot, name, follow=follow):
        ended = (now_at := tasks.find(tree, spot.id)) is not None and now_at.state in FINAL
        click.echo(f"task {spot.id} has written no {name}{'' if ended else ' yet'}", err=True)


def _print_log(tree: Tree, spot: Spot, name: str, *, follow: bool) -> bool:
    """Copy a log to standard output; the open file stays valid while the task moves."""
    while True:
        try:
            with open(f"{spot.path(tree)}/{name}", "rb") as file:
                _copy(tree, spot, file, follow=follow)
            return True
        except FileNotFoundError:
            found = tasks.find(tree, spot.id)
            if found == spot and (not follow or spot.state in FINAL):
                return False
            if found is None:
                return False
            spot = found
            time.sleep(0.1 if follow else 0)


def _copy(tree: Tree, spot: Spot, file: Any, *, follow: bool) -> None:
    while True:
        while part := file.read(1 << 16):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        if not follow:
            return
        now_at = tasks.find(tree, spot.id)
        if now_at is None or now_at.state in FINAL:
            sys.stdout.buffer.write(file.read())
            sys.stdout.buffer.flush()
            return
        time.sleep(0.2)


@click.command("path")
@shared.selection_options
@click.option("--file", default="", metavar="NAME", help="A file in each directory, in its place.")
@shared.as_json
@click.pass_context
def path_command(ctx: click.Context, /, file: str, as_json: bool, **keys: Any) -> None:
    """Print the directories of tasks, or one file in each.

    \b
      cd "$(spool path hi-1)"
      cat $(spool path --state FINISHED --workflow g2 --file energy.json)
    """
    tree, _ = shared.tree_of(ctx)
    chosen = shared.selection(keys)
    found = False
    for spot in select.find(tree, chosen):
        found = True
        path = f"{spot.path(tree)}/{file}" if file else spot.path(tree)
        if as_json:
            shared.print_json({"id": shared.printable(spot.id), "path": shared.printable(path)})
        else:
            click.echo(os.fsencode(path))
    if not found:
        raise NoSuchTask(f"no task matches {' '.join(chosen.words)!r}. Run: spool ls")


@click.command("wait")
@shared.selection_options
@click.option("--timeout", type=shared.Duration(), help="Give up after so long (exit 5).")
@shared.as_json
@click.pass_context
def wait_command(ctx: click.Context, /, timeout: str | None, as_json: bool, **keys: Any) -> None:
    """Wait until tasks have ended: exit 0 if all finished, 3 if one failed or was cancelled.

    Tasks whose parent failed or was cancelled are not waited for (exit 3).

    \b
      spool wait "$id"
      spool wait --workflow g2 --timeout 2h
    """
    from spool.queue import wait

    tree, _ = shared.tree_of(ctx)
    ids = [spot.id for spot in select.find(tree, shared.selection(keys))]
    late = layout.ARRIVING
    ids = [layout.parse_arriving(one)[0] if one.endswith(late) else one for one in ids]
    if not ids:
        raise NoSuchTask("no task matches. Run: spool ls")
    named = [task_id for task_id in ids if layout.parse_id(task_id)]
    if not named:
        name = shared.printable(ids[0])
        raise NoSuchTask(f"{name} in CREATED has no id to wait for before a launcher admits it")
    pending = wait.Pending(tree, named)
    if pending.look() and not _somebody_runs(tree):
        click.echo(
            "spool: nothing runs tasks here. Run: spool launcher, or spool service", err=True
        )
    limit = units.duration(timeout) if timeout is not None else None
    in_time = wait.wait(pending, limit, _show_pending if shared.is_terminal() else None)
    if shared.is_terminal():
        click.echo(err=True)
    _tell_ends(pending, as_json=as_json)
    if not in_time:
        raise click.exceptions.Exit(TIMED_OUT_EXIT)
    if pending.ends[State.FAILED] or pending.ends[State.CANCELLED] or pending.blocked:
        raise click.exceptions.Exit(FAILED_EXIT)


def _somebody_runs(tree: Tree) -> bool:
    """Whether any owner holds a folder in RUNNING, or an allocation is asked for."""
    return bool(tasks.groups(tree, State.RUNNING)) or any(allocations.live(tree))


def _show_pending(pending: Any) -> None:
    sys.stderr.write(f"\rwaiting for {len(pending):,} tasks   ")
    sys.stderr.flush()


def _tell_ends(pending: Any, *, as_json: bool) -> None:
    told = {str(state): pending.ends[state] for state in FINAL}
    if as_json:
        shared.print_json({**told, "pending": len(pending), "blocked": len(pending.blocked)})
        return
    words = [f"{count:,} {state.lower()}" for state, count in told.items() if count]
    if pending.blocked:
        words.append(f"{len(pending.blocked):,} blocked (they wait for one that failed)")
    if left := len(pending) - len(pending.blocked):
        words.append(f"{left:,} still not ended")
    click.echo(", ".join(words))
