"""cli - the command line: which command lives where, and how errors leave.

Owns   the list of commands, exit codes at the door. Each command stands in spool/commands/.
Never  imports a command that was not asked for: `spool submit` must start fast.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from spool.errors import SpoolError

COMMANDS = {
    "init": "admin",
    "app": "admin",
    "submit": "submit",
    "ls": "seeing",
    "status": "seeing",
    "show": "seeing",
    "why": "why",
    "history": "seeing",
    "log": "seeing",
    "tree": "graph",
    "path": "seeing",
    "wait": "seeing",
    "report": "report",
    "cancel": "verbs",
    "hold": "verbs",
    "release": "verbs",
    "retry": "verbs",
    "modify": "verbs",
    "rm": "verbs",
    "launcher": "launcher",
    "service": "service",
    "queue": "queue",
    "submit-launch": "queue",
    "check": "admin",
    "doctor": "admin",
    "schema": "admin",
}


class Lazy(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if (home := COMMANDS.get(cmd_name)) is None:
            return None
        module = importlib.import_module(f"spool.commands.{home}")
        found: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """With a hint where a name is nearly right."""
        if args and args[0] not in COMMANDS and args[0][:1] != "-":
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " Run: spool --help"
            ctx.fail(f"there is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from spool import __version__

        click.echo(f"spool {__version__}")
        ctx.exit()


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--spool",
    "root",
    metavar="FOLDER",
    envvar="SPOOL",
    help="The spool to use; else $SPOOL, else the nearest one upward from here.",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version)
@click.pass_context
def cli(ctx: click.Context, root: str | None) -> None:
    """Run large ensembles of programs. No database, no server: a task is a directory, its state
    is the folder it lies in.

    \b
      spool init                       make a spool here
      spool submit -- ./simulate 7     send a task; its id is printed
      spool launcher                   run tasks on this machine until none is left
      spool status                     see how far things are

    Exit codes: 0 done; 1 an error; 2 wrong usage; 3 wait: a task failed or was cancelled;
    4 lease lost; 5 wait: time was up; 6 check or doctor found something.

    Completion: eval "$(_SPOOL_COMPLETE=bash_source spool)" (or zsh_source, fish_source).
    """
    ctx.obj = root


def main() -> None:
    """The entry point."""
    try:
        code = _run()
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as fault:
        click.echo(f"Error: {fault.filename or 'output'}: {fault.strerror or fault}", err=True)
        code = 1
    sys.stderr.flush()
    if "mpi4py" in sys.modules:  # MPI takes its leave at exit, or mpiexec calls it a crash
        sys.exit(code)
    # Taking the interpreter apart would cost a lone submission a seventh of its time.
    os._exit(code)


def _run() -> int:
    """Run the command; its exit code."""
    try:
        code = cli.main(prog_name="spool", standalone_mode=False)
    except click.ClickException as fault:
        fault.show()
        return fault.exit_code
    except SpoolError as fault:
        click.echo(f"Error: {fault}", err=True)
        return fault.exit_code
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
