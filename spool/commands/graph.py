"""graph - who waits for whom: tree."""

from __future__ import annotations

from typing import Any

import click

from spool.commands import shared
from spool.errors import NoSuchTask
from spool.queue import kinship, select
from spool.queue.layout import State, Tree


@click.command("tree")
@shared.selection_options
@shared.as_json
@click.pass_context
def tree_command(ctx: click.Context, /, as_json: bool, **keys: Any) -> None:
    """Draw who waits for whom: parents first, what waits for them below.

    \b
      spool tree                   all tasks that have parents or children
      spool tree --workflow g2
      spool tree --json            a line a task, with `after`
    """
    tree, _ = shared.tree_of(ctx)
    chosen = shared.selection(keys)
    nodes = _nodes(tree, chosen)
    if chosen.words and not nodes:
        raise NoSuchTask(f"no task matches {' '.join(chosen.words)!r}. Run: spool ls")
    if chosen.everything:
        nodes = _with_kin(nodes)
    if as_json:
        for node in nodes.values():
            shared.print_json({**shared.shown(node.spot)._asdict(), "after": node.after})
        return
    from spool.report import graph

    for line in graph.draw(nodes):
        click.echo(line)


def _nodes(tree: Tree, chosen: select.Selection) -> dict[str, kinship.Node]:
    every = kinship.nodes(tree, tuple(state for state in State if state is not State.CREATED))
    found = {node.spot.id: node for node in every}
    if chosen.everything:
        return dict(sorted(found.items(), key=lambda entry: entry[0].rpartition(".")[2]))
    wanted = [spot.id for spot in select.find(tree, chosen)]
    return {task_id: found[task_id] for task_id in wanted if task_id in found}


def _with_kin(nodes: dict[str, kinship.Node]) -> dict[str, kinship.Node]:
    """Those that wait for another, or are waited for."""
    parents = {parent for node in nodes.values() for parent in node.after}
    return {one: node for one, node in nodes.items() if node.after or one in parents}
