"""admin - the spool itself: init, app, check, doctor, schema."""

from __future__ import annotations

import sys
from typing import Any

import click

from spool.commands import shared
from spool.commands.staging import declared, stage_keys, stage_options
from spool.errors import ManifestError, NoSuchTask
from spool.queue import apps, files, layout, manifest

FOUND_EXIT = 6


@click.command("init")
@click.argument("folder", required=False)
@click.pass_context
def init_command(ctx: click.Context, folder: str | None) -> None:
    """Make a spool in FOLDER (default: $SPOOL or here), after trying what its disk can do."""
    from spool.queue import init

    tree = init.create(folder or ctx.find_root().obj or ".")
    click.echo(tree.root)
    click.echo("Next: spool submit -- COMMAND, then: spool launcher", err=True)


@click.command("app")
@click.argument("name", required=False)
@click.argument("command", nargs=-1)
@click.option("--shell", help='A line for sh in place of a command; arguments come as "$@".')
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set in the task's environment.")
@click.option("--description", default="", help="A line for people.")
@click.option("--file", metavar="FILE", help="The definition as JSON; options are laid over it.")
@click.option("--nodes", type=int, help="Nodes its tasks need, unless they say otherwise.")
@click.option("--ranks-per-node", type=int, help="MPI ranks on each node.")
@click.option("--cores", "cores_per_rank", type=int, help="Cores (each rank).")
@click.option("--gpus", type=int, help="GPUs (each node).")
@click.option("--memory", type=shared.Memory(), help="Memory, such as 8G.")
@click.option("--requires", multiple=True, help="A feature its nodes must have.")
@click.option("--time-limit", type=shared.Duration(), help="Stop a task after so long.")
@click.option("--time-estimate", type=shared.Duration(), help="How long one is thought to run.")
@click.option("--max-attempts", type=int, help="Tries before a task counts as failed.")
@stage_options
@click.option("--rm", "remove", is_flag=True, help="Remove the definition.")
@shared.as_json
@click.pass_context
def app_command(
    ctx: click.Context,
    /,
    name: str | None,
    command: tuple[str, ...],
    shell: str | None,
    file: str | None,
    remove: bool,
    as_json: bool,
    **keys: Any,
) -> None:
    """Define an application that tasks name; without a command, show what is defined.

    \b
      spool app dock --env OMP_PLACES=cores -- /opt/dock/bin/dock --quiet
      spool submit --app dock -- ligand7.mol2
      spool app heat --cores 4 --setup env.sh --param t:float=300 -- ./heat -T {t}
      spool submit --app heat --param t=350
      spool app                         all of them
      spool app dock --rm
    """
    tree, _ = shared.tree_of(ctx)
    if name and not layout.is_name(name):
        raise ManifestError(f"{name!r} is no name; allowed are letters, digits and . _ + -")
    if name and remove:
        if not files.unlink(tree.app(name)):
            raise NoSuchTask(f"there is no app {name!r}. Run: spool app")
    elif name and (command or shell or file):
        app = _from_file(file) if file else {}
        if command or shell:
            app["command"] = shell or list(command)
        _define(tree, name, _laid_over(app, keys))
    else:
        _show_apps(tree, name, as_json=as_json)


def environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE words as a mapping."""
    for pair in pairs:
        if "=" not in pair[1:]:
            raise click.BadParameter(f"{pair!r}: expected NAME=VALUE", param_hint="--env")
    return dict(pair.split("=", 1) for pair in pairs)


def _from_file(file: str) -> dict[str, Any]:
    import msgspec

    try:
        with open(file, "rb") as opened:
            found = msgspec.json.decode(opened.read())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as fault:
        raise ManifestError(f"{file}: {fault}") from None
    if not isinstance(found, dict):
        raise ManifestError(f"{file}: must be a JSON object, got {type(found).__name__}")
    return found


def _laid_over(app: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """An app with what the options say."""
    made = {**app, **stage_keys(keys)}
    more: dict[str, Any] = {
        "environment": environment(keys.pop("env")),
        "parameters": declared(keys.pop("param")),
    }
    if description := keys.pop("description"):
        made["description"] = description
    more["defaults"] = {key: value for key, value in keys.items() if value not in (None, ())}
    for key, value in more.items():
        if value or key in app:
            made[key] = {**app.get(key, {}), **value}
    return made


def _define(tree: layout.Tree, name: str, app: dict[str, Any]) -> None:
    import msgspec

    raw = msgspec.json.format(msgspec.json.encode(app), indent=1) + b"\n"
    apps.read(name, raw)
    files.replace(tree.app(name), raw, sync=True)


def _show_apps(tree: layout.Tree, name: str | None, *, as_json: bool) -> None:
    import msgspec

    found = [file[:-5] for file in files.names(tree.folder("apps")) if file.endswith(".json")]
    chosen = [name] if name else sorted(filter(layout.is_name, found))
    for one in chosen:
        app = apps.read(tree.app(one), files.read(tree.app(one)))
        words = app.command if isinstance(app.command, str) else " ".join(app.command)
        if as_json:
            plain = msgspec.to_builtins(app)
            shared.print_json({"name": one, **plain, "environment": app.environment})
        else:
            click.echo(f"{one:<16} {words}" + (f"    # {app.description}" * bool(app.description)))
            if name:
                _show_rest(msgspec.to_builtins(app))


def _show_rest(app: dict[str, Any]) -> None:
    """What else an app says, a line a key; its parameters as they were declared."""
    for key, value in app.items():
        if key in ("command", "description") or not value:
            continue
        if key == "parameters":
            value = [_declaration(*one) for one in value.items()]
        parts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            parts = [f"{inner}={_plain(told)}" for inner, told in value.items()]
        click.echo(f"  {key:<14} {', '.join(map(_plain, parts))}")


def _declaration(name: str, one: dict[str, Any]) -> str:
    kind = f":{one['type']}" if "type" in one else ""
    return f"{name}{kind}" + (f"={one['default']}" if one.get("default") is not None else "")


def _plain(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


@click.command("check")
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@click.option("--deep", is_flag=True, help="Open finished tasks too.")
@shared.as_json
@click.pass_context
def check_command(ctx: click.Context, repair: bool, deep: bool, as_json: bool) -> None:
    """Find, explain and (with --repair) mend what a crash or a hand left inconsistent.

    Never touches the tasks of a live owner. Exit 6 if something is left to do.
    """
    from spool.queue import check

    tree, settings = shared.tree_of(ctx)
    findings = []
    for finding in check.check(tree, settings, repair=repair, deep=deep):
        findings.append(finding)
        where, what, mend = map(shared.printable, finding[:3])
        if as_json:
            told = {"where": where, "what": what, "mend": mend, "repaired": finding.repaired}
            shared.print_json(told)
            continue
        verb = "repaired" if finding.repaired else "to mend"
        click.echo(f"{where}: {what} ({verb}: {mend})")
    if findings and not check.repaired_all(findings):
        if not repair and not as_json:
            click.echo("Run: spool check --repair", err=True)
        raise click.exceptions.Exit(FOUND_EXIT)
    if not findings and not as_json:
        click.echo("nothing is wrong")


@click.command("doctor")
@click.option("--no-mpi", is_flag=True, help="Start no ranks, and nothing on other nodes.")
@shared.as_json
@click.pass_context
def doctor_command(ctx: click.Context, /, no_mpi: bool, as_json: bool) -> None:
    """Is this file system fit for a spool, and how fast? What can run here, and does MPI work?

    Exit 6 if something fails; a warning is no failure.
    """
    from itertools import chain

    from spool.launcher import survey
    from spool.queue import doctor

    tree, settings = shared.tree_of(ctx)
    place = survey.examine(settings, start=not no_mpi, say=_under_way)
    bad = False
    for finding in chain(doctor.examine(tree), place):
        bad = bad or finding.verdict == "fail"
        _under_way("")
        if as_json:
            told = {"check": finding.check, "verdict": finding.verdict, "says": finding.says}
            shared.print_json(told)
        else:
            click.echo(f"{finding.verdict:<5} {finding.check:<22} {finding.says}")
        sys.stdout.flush()
    if bad:
        raise click.exceptions.Exit(FOUND_EXIT)


def _under_way(what: str) -> None:
    """On a terminal, what takes a moment; the next line overwrites it, "" wipes it."""
    if shared.is_terminal():
        sys.stderr.write(f"\r{what[:79]:<79}\r")
        sys.stderr.flush()


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of manifest.json."""
    import json

    click.echo(json.dumps(manifest.schema(), indent=2))
