"""submit - send tasks: one, one from a script, or very many."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from spool import units
from spool.commands import shared
from spool.commands.staging import stage_keys, stage_options, values
from spool.errors import ManifestError, SpoolError
from spool.queue import layout, manifest, submit
from spool.queue.layout import Tree
from spool.queue.manifest import Manifest
from spool.queue.submit import Fill

PATH = click.Path()  # for the shell's completion; what is wrong with one is told elsewhere


@click.command("submit", context_settings={"allow_interspersed_args": False})
@click.argument("command", metavar="[--] [COMMAND]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--shell", help="A line for sh, in place of COMMAND.")
@click.option("--app", help="An application defined with `spool app`; COMMAND is its arguments.")
@click.option("--name", help="Name of the task; {} stands for the value of --each.")
@click.option("--workflow", help="The workflow it belongs to.")
@click.option("--tag", "tags", multiple=True, help="A tag; may be given again.")
@click.option("--description", help="A line for people.")
@click.option(
    "--from",
    "source",
    metavar="FILE",
    type=PATH,
    help="Many: JSONL, CSV, lines; - is stdin.",
)
@click.option("--format", "form", type=click.Choice(["jsonl", "csv", "lines"]), help="Of --from.")
@click.option("--each", metavar="1-500", help="One task for each number, put where {} is.")
@click.option("--each-line", metavar="FILE", type=PATH, help="One task a line, put where {} is.")
@click.option(
    "--workflow-file", metavar="FILE", type=PATH, help="Parameters times steps; see README."
)
@click.option("--set", "chosen", multiple=True, metavar="NAME=A,B", help="Its parameters.")
@click.option("--dry-run", is_flag=True, help="Print what it would make.")
@click.option("--all-or-nothing", is_flag=True, help="Submit nothing if a line is rejected.")
@click.option("--dir", "folder", metavar="DIR", type=PATH, help="Copy its contents into the task.")
@click.option("--move", is_flag=True, help="Move them, with --dir.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set in its environment.")
@click.option("--priority", type=int, help="Higher runs first; -999 to 999.")
@click.option("--nodes", type=int, help="Nodes it needs.")
@click.option("--ranks-per-node", type=int, help="MPI ranks on each node.")
@click.option("--cores", "cores_per_rank", type=int, help="Cores it needs (each rank).")
@click.option("--per-node", type=int, help="At most so many of these on one node.")
@click.option("--gpus", type=int, help="GPUs it needs (each node).")
@click.option("--memory", type=shared.Memory(), help="Memory it needs, such as 8G.")
@click.option("--requires", multiple=True, help="A feature its node must have.")
@click.option("--time-estimate", type=shared.Duration(), help="How long it is thought to run.")
@click.option("--time-limit", type=shared.Duration(), help="Stop it after so long.")
@click.option(
    "--after", multiple=True, metavar="ID", help="Not before that task has finished; repeatable."
)
@click.option(
    "--on-parent-failure",
    type=click.Choice(["wait", "fail", "run"]),
    help="What to do when one of them fails; wait (for its retry).",
)
@click.option("--replaces", metavar="ID", help="Take that task's place for all that wait for it.")
@click.option("--key", help="Submitted again with the same key, it is the same task.")
@click.option("--begin", type=shared.Begin(), help="Not before: now+10m, 2026-11-22T20:30 (UTC).")
@click.option("--hold", is_flag=True, help="Keep it back until `spool release`.")
@click.option("--signal", metavar="SIG[@GRACE]", help="How to stop it; TERM@10s.")
@click.option("--max-attempts", type=int, help="Tries before it counts as failed; 1.")
@click.option("--max-lost", type=int, help="Launcher deaths before it counts as failed; 5.")
@click.option("--backoff", type=shared.Duration(), help="Wait before the second try, then double.")
@click.option("--output", type=click.Choice(["together", "apart", "none"]), help="stdout, stderr.")
@stage_options
@click.option("--fresh", is_flag=True, help="Move an earlier attempt's files aside first.")
@click.option("--array", metavar="0-99999|a,b,c", help="One array: elements in few directories.")
@click.option("--array-from", metavar="FILE", type=PATH, help="An element a row or line.")
@click.option("--chunk", type=click.IntRange(1), help="Elements of an array in one directory.")
@shared.as_json
@click.pass_context
def submit_command(ctx: click.Context, /, **keys: Any) -> None:
    """Send tasks; the id of each is printed alone on standard output, once it is safe on disk.

    \b
      spool submit -- ./simulate --seed 7
      spool submit --cores 8 --time-limit 2h --memory 16G -- ./solve mesh.h5
      spool submit --each 1-500 -- ./simulate --seed {}
      spool submit --each-line files.txt --name fit-{} -- ./fit /data/{}.h5
      spool submit --each 1-20 --name roll-{} -- ./roll-dice
      spool submit --from runs.csv -- ./simulate --t {temperature}
      spool submit --from tasks.jsonl
      spool submit run.sh 7            a script with lines: #SPOOL --cores 4
      spool submit --dir inputs/ -- ./solve mesh.h5
      spool submit --workflow-file g2.toml --set molecule=H2O,CH4 --dry-run
      spool submit --array 0-99999 -- ./simulate --seed {}
      spool submit --array-from runs.csv --chunk 100 -- ./simulate --t {temperature}
      spool submit --after prepare.26112215-00-ebmfqudxpa -- ./reduce

    {} stands in COMMAND, --name, --key or --env; a value that has no place is refused.
    """
    keys = _with_directives(ctx, keys)
    tree, _ = shared.tree_of(ctx)
    bulk = {key: keys.pop(key) for key in ("source", "form", "each", "each_line")}
    array = {key: keys.pop(key) for key in ("array", "array_from", "chunk")}
    if keys["workflow_file"] and any(array.values()):
        raise click.UsageError("an array is submitted alone; --workflow-file says what to submit")
    if keys["workflow_file"]:
        _nothing_else(ctx, keys)
    if _workflow_file(tree, keys):
        return
    move = keys["move"]
    folder = keys["folder"]
    fill = _filler(keys)
    if fill is None and not keys["app"]:
        keys["command"] = _found_here(keys["command"])
    if bulk["form"] and not (bulk["source"] or array["array_from"]):
        raise click.UsageError("--format goes with --from or --array-from")
    as_json, whole = keys.pop("as_json"), keys.pop("all_or_nothing")
    template = _template(keys)
    if any(array.values()):
        if keys.get("replaces"):
            raise click.UsageError("--replaces gives one task's place to one other, no array")
        if move or any(bulk[key] for key in bulk if key != "form"):
            raise click.UsageError("an array is submitted alone; --each, --from make tasks")
        _outside(tree, folder)
        template = _with_kin(tree, template)
        _submit_array(tree, array, bulk["form"], template, fill, as_json=as_json)
        return
    if any(bulk.values()):
        if keys.get("replaces"):
            raise click.UsageError("--replaces gives one task's place to one other")
        if move:
            raise click.UsageError("--move gives a directory to one task; for many, leave it out")
        _outside(tree, folder)
        _submit_many(tree, bulk, template, fill, as_json=as_json, whole=whole)
        return
    wanted = manifest.from_mapping(_with_kin(tree, template), "submit")
    _outside(tree, folder)
    if wanted.replaces:
        from spool.queue import control

        control.check_place(tree, wanted.replaces)
    task_id = submit.submit(tree, wanted, fill)
    _print_ids([task_id], as_json=as_json)
    if wanted.replaces:
        control.take_place(*shared.tree_of(ctx), wanted.replaces, task_id)


def _outside(tree: Tree, folder: str | None) -> None:
    """Raises SpoolError for a directory of inputs that holds the spool."""
    if folder:
        inputs, root = os.path.realpath(folder), os.path.realpath(tree.root)
        if os.path.commonpath((inputs, root)) == inputs:
            raise SpoolError(f"{folder}: holds the spool itself; --dir takes a smaller directory")


def _found_here(command: tuple[str, ...]) -> tuple[str, ...]:
    """A program named relative to here, by its full path: it will run in the task's directory.

    One that is named without a folder is looked for on PATH first.
    """
    first = command[0] if command else ""
    if os.path.isabs(first) or not os.path.isfile(first):
        return command
    if "/" not in first and (shutil.which(first) or not os.access(first, os.X_OK)):
        return command
    return (os.path.abspath(first), *command[1:])


def _template(keys: dict[str, Any]) -> dict[str, Any]:
    """What the options say, as manifest keys."""
    staged, params = stage_keys(keys), keys.pop("param")
    made = {key: v for key, v in keys.items() if v is not False and v not in (None, (), "")}
    made.update(staged)
    if params:
        made["parameters"] = values(params)
    command = list(made.pop("command", ()))
    if "shell" in made:
        if command:
            raise click.UsageError("--shell and COMMAND exclude each other")
        made["command"] = made.pop("shell")
    elif command:
        made["args" if "app" in made else "command"] = command
    if "env" in made:
        from spool.commands.admin import environment

        made["environment"] = environment(made.pop("env"))
    if "begin" in made:
        made["begin"] = units.stamp(made["begin"])
    if "@" in made.get("signal", ""):
        made["signal"], _, made["grace"] = made["signal"].partition("@")
    return {key: list(v) if isinstance(v, tuple) else v for key, v in made.items()}


def _with_kin(tree: Tree, template: dict[str, Any]) -> dict[str, Any]:
    """The same, with ids for the words that mean parents; a word may mean several tasks."""
    from spool.queue.select import Selection, find, one

    if words := template.get("after"):
        found = find(tree, Selection(words=tuple(words), strict=True))
        template = {**template, "after": [spot.id for spot in found]}
    if word := template.get("replaces"):
        template = {**template, "replaces": one(tree, word).id}
    return template


def _workflow_file(tree: Tree, keys: dict[str, Any]) -> bool:
    """Submit a workflow file, all of it or nothing, or print it; whether one was given."""
    path, chosen, dry = (keys.pop(key) for key in ("workflow_file", "chosen", "dry_run"))
    if not path:
        if chosen or dry:
            raise click.UsageError("--set and --dry-run go with --workflow-file")
        return False
    if keys["command"] or keys["shell"] or keys["app"]:
        raise click.UsageError("--workflow-file says what to run; leave the command out")
    from spool import workflow

    tasks = workflow.read(path, _parameters(chosen))
    if dry:
        _print_plan(tree, tasks, as_json=keys["as_json"])
    else:
        _submit_all(tree, ((f"task {one.name}", one) for one in tasks), keys["as_json"])
    return True


def _nothing_else(ctx: click.Context, keys: dict[str, Any]) -> None:
    """Refuse what a workflow file would not heed. Raises click.UsageError."""
    heeded = ("workflow_file", "chosen", "dry_run", "all_or_nothing", "as_json")
    told_apart = ("command", "shell", "app")
    for option in ctx.command.params:
        name = option.name or ""
        if name not in (*heeded, *told_apart) and keys.get(name) not in (None, False, (), ""):
            raise click.UsageError(
                f"{option.opts[0]} has no effect on --workflow-file;"
                " write it into the file, for all steps under [defaults]"
            )


def _parameters(chosen: tuple[str, ...]) -> dict[str, list[str]]:
    found = {}
    for word in chosen:
        name, mark, values = word.partition("=")
        if not mark or not values:
            raise click.UsageError(f"--set: expected NAME=VALUE,VALUE, got {word!r}")
        found[name] = values.split(",")
    return found


def _print_plan(tree: Tree, tasks: Iterable[Manifest], *, as_json: bool) -> None:
    """What would be made: a line a task, or its manifest. Raises ManifestError: it would not be."""
    from spool.queue import parents
    from spool.queue.family import Family

    def built(wanted: Manifest) -> str:
        for parent in wanted.after:
            if layout.parse_id(parent) and not parents.is_known(tree, parent):
                raise ManifestError(f"key 'after': there is no task {parent!r}. Run: spool ls")
        return wanted.name

    family, rejected = Family(built), 0
    for one in tasks:
        rejected += _say_rejected(family.add(one, f"task {one.name}"))
        if as_json:
            shared.print_json(manifest.as_mapping(one))
            continue
        words = one.command if isinstance(one.command, str) else " ".join(one.command or one.args)
        typed = " ".join(line.strip() for line in words.strip().splitlines())
        waits = f"  after {' '.join(one.after)}" if one.after else ""
        click.echo(f"{one.name}{waits}  {typed}")
    if rejected + _say_rejected(family.left()):
        raise ManifestError("nothing would be submitted")


def _submit_all(tree: Tree, tasks: Iterable[tuple[str, Manifest]], as_json: bool) -> None:
    """Submit tasks that name one another, all or none. Raises ManifestError."""
    from spool.queue.family import Family

    def shown(ids: list[str]) -> None:
        _print_ids(ids, as_json=as_json)

    with submit.Submitter(tree, shown, hold_back=True) as submitter:
        family = Family(submitter.add)
        rejected = 0
        for where, wanted in tasks:
            rejected += _say_rejected(family.add(wanted, where))
        if rejected + _say_rejected(family.left()):
            raise ManifestError("nothing was submitted")
        submitter.finish()


def _print_ids(ids: list[str], *, as_json: bool) -> None:
    if as_json:
        for task_id in ids:
            shared.print_json({"id": task_id})
    else:
        sys.stdout.write("\n".join(ids) + "\n")
    sys.stdout.flush()


# -- scripts and folders -------------------------------------------------------------------------


def _with_directives(ctx: click.Context, keys: dict[str, Any]) -> dict[str, Any]:
    """If COMMAND is a script with #SPOOL lines, take its options where none was given."""
    command = keys["command"]
    if not command or keys["shell"] or keys["app"] or not os.path.isfile(command[0]):
        return keys
    from spool.sources import directives

    words = directives(command[0])
    keys["script"] = command[0] if words else None
    if not words:
        return keys
    inner = submit_command.make_context("submit", [*words, "--", command[0]], parent=ctx.parent)
    if inner.params["command"] != (command[0],):
        wrong = inner.params["command"][0]
        raise ManifestError(f"{command[0]}: #SPOOL lines hold options only, got {wrong!r}")
    for key, value in inner.params.items():
        if key != "command" and ctx.get_parameter_source(key) is not _TYPED:
            keys[key] = value
    return keys


_TYPED = click.core.ParameterSource.COMMANDLINE


def _filler(keys: dict[str, Any]) -> Fill | None:
    """What goes into the task's directory beside the manifest."""
    script, folder, move = keys.pop("script", None), keys.pop("folder"), keys.pop("move")
    if script:
        name = layout.as_name(os.path.basename(script))
        keys["command"] = _script_words(script, name) + keys["command"][1:]
        keys["name"] = keys["name"] or name
        return submit.file_filler(os.path.abspath(script), name)
    if not folder:
        if move:
            raise click.UsageError("--move goes with --dir")
        return None
    if not os.path.isdir(folder):
        raise SpoolError(f"{folder}: is no directory; --dir takes one")
    return submit.folder_filler(os.path.abspath(folder), move=move)


def _script_words(script: str, name: str) -> tuple[str, ...]:
    with open(script, "rb") as file:
        runs_itself = file.read(2) == b"#!"  # its copy is made executable
    return (f"./{name}",) if runs_itself else ("/bin/sh", f"./{name}")


# -- arrays --------------------------------------------------------------------------------------


def _submit_array(
    tree: Tree,
    asked: dict[str, Any],
    form: str | None,
    template: dict[str, Any],
    fill: Fill | None,
    *,
    as_json: bool,
) -> None:
    from spool import array_source
    from spool.queue.submit_array import submit_array

    if bool(asked["array"]) == bool(asked["array_from"]):
        raise click.UsageError("say which elements, by --array or by --array-from")
    if asked["array"]:
        found = array_source.from_text(asked["array"])
    else:
        found = array_source.from_file(asked["array_from"], form)
    array_source.check_places(template, found)
    wanted = manifest.from_mapping({**template, "array": found.array}, "submit")
    chunk = asked["chunk"] or 0
    ids = submit_array(tree, wanted, found.values, chunk=chunk, fill=fill)
    assert wanted.elements is not None
    array_id, size = layout.array_of(ids[0]), wanted.elements.size
    if as_json:
        shared.print_json({"id": array_id, "elements": size, "chunks": len(ids)})
        return
    _print_ids([array_id], as_json=False)
    made = f"{units.count(size, 'element')} in {units.count(len(ids), 'chunk')}"
    click.echo(f"submitted {made}", err=True)


# -- many ----------------------------------------------------------------------------------------


def _submit_many(
    tree: Tree,
    bulk: dict[str, Any],
    template: dict[str, Any],
    fill: Fill | None,
    *,
    as_json: bool,
    whole: bool,
) -> None:
    from spool.queue.family import Family
    from spool.sources import Rejected

    def shown(ids: list[str]) -> None:
        _print_ids(ids, as_json=as_json)

    if "{" not in template.get("key", "{"):
        raise click.UsageError("--key means one task; for many put {} into it, or {column}")
    rejected = 0
    template = _with_kin(tree, template)
    with submit.Submitter(tree, shown, hold_back=whole) as submitter:
        family = Family(lambda wanted: submitter.add(wanted, fill))
        for number, item in enumerate(_progress(*_items(bulk, template)), 1):
            if template.get("key") and getattr(item, "key", "") == template["key"]:
                raise click.UsageError(
                    "--key means one task, and nothing is put into it here; give each line of the"
                    " file a key of its own"
                )
            if isinstance(item, Rejected):
                rejected += _say_rejected([(item.where, item.reason)])
            else:
                rejected += _say_rejected(family.add(item, f"task {number}"))
        rejected += _say_rejected(family.left())
        if not (whole and rejected):
            submitter.finish()
    count = 0 if whole and rejected else submitter.count
    click.echo(
        f"submitted {units.count(count, 'task')}"
        + f", {submitter.known:,} were there by their keys" * bool(submitter.known)
        + f", rejected {rejected:,}" * bool(rejected),
        err=True,
    )
    if rejected:
        raise click.exceptions.Exit(SpoolError.exit_code)


def _say_rejected(rejected: Iterable[tuple[str, str]]) -> int:
    """Tell why tasks are not submitted; how many."""
    count = 0
    for where, reason in rejected:
        click.echo(f"{where}: {reason}", err=True)
        count += 1
    return count


def _items(bulk: dict[str, Any], template: dict[str, Any]) -> tuple[Iterator[Any], Any, int]:
    """The items, how far they are (a function, or None to count them), and how far they go."""
    from spool import sources

    given = [key for key in ("source", "each", "each_line") if bulk[key]]
    if len(given) > 1:
        raise click.UsageError("--from, --each and --each-line exclude each other")
    if bulk["each"]:
        items = sources.from_each(bulk["each"], template)
        return items, None, sources.count_each(bulk["each"])
    form = "lines" if bulk["each_line"] else bulk["form"]
    found = sources.open_source(bulk["each_line"] or bulk["source"], form, template)
    return found.items, found.position, found.size


def _progress(items: Iterator[Any], position: Any, length: int) -> Iterator[Any]:
    """Pass items on, with a progress bar on a terminal."""
    if not shared.is_terminal() or not length:
        yield from items
        return
    with click.progressbar(length=length, label="submitting", file=sys.stderr) as bar:
        at = 0
        for count, item in enumerate(items, 1):
            yield item
            if count % 1000 == 0:
                now_at = position() if position else count
                bar.update(now_at - at)
                at = now_at
        bar.update(length - at)
