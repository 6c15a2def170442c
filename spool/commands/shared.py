"""shared - what several commands have in common: finding the spool, the selection, JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click
import msgspec

from spool import config, units
from spool.config import Settings
from spool.errors import NotASpool
from spool.queue.layout import State, Tree
from spool.queue.tasks import Spot

if TYPE_CHECKING:
    Text: TypeAlias = click.ParamType[str]
    Number: TypeAlias = click.ParamType[float]
else:  # a plain class in click before 8.4
    Text = Number = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def tree_of(ctx: click.Context) -> tuple[Tree, Settings]:
    """The spool this command is about. Raises NotASpool."""
    top = ctx.find_root()
    root = config.find_root(top.obj or top.params.get("root"))
    return Tree(root), config.load(root)


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def printable(text: str) -> str:
    """A name fit for a terminal and for JSON, whatever bytes somebody dropped into CREATED."""
    from spool.queue.claim import printable

    return text if text.isascii() and text.isprintable() else printable(text)


def shown(spot: Spot) -> Spot:
    """A task's place with names fit to print."""
    return Spot(spot.state, printable(spot.group), printable(spot.id))


class Duration(Text):
    """A duration in seconds, or as text."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as given, once it is sound."""
        try:
            units.duration(value)
        except ValueError as fault:
            self.fail(str(fault), param, ctx)
        return str(value)


class Moment(Number):
    """A moment, seconds since the epoch."""

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Epoch seconds."""
        if isinstance(value, float):
            return value
        try:
            return units.moment(value, time.time())
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


class Begin(Moment):
    """A moment to come: a bare duration counts from now."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Epoch seconds."""
        text = value.strip() if isinstance(value, str) else ""
        if text.replace(":", "").isdigit():
            self.fail(f"say now+{text}, or a date such as 2026-11-22T20:30 (UTC)", param, ctx)
        try:
            return time.time() + units.duration(text)
        except ValueError:
            return super().convert(value, param, ctx)


class Memory(Text):
    """A memory size."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as given, once it is sound."""
        try:
            units.memory(value)
        except ValueError as fault:
            self.fail(str(fault), param, ctx)
        return str(value)


def complete_ids(ctx: click.Context, param: click.Parameter, begun: str) -> list[Any]:
    """Ids that begin so, at most 50, as click's completion items."""
    from click.shell_completion import CompletionItem

    from spool.queue import select

    try:
        tree, _ = tree_of(ctx)
    except NotASpool:
        return []
    found: list[Any] = []
    for spot in select.find(tree, select.Selection(words=(f"{begun}*",))):
        if not spot.id.isprintable():
            continue  # no shell could take it back
        found.append(CompletionItem(spot.id, help=str(spot.state)))
        if len(found) >= 50:
            break
    return found


def selection_options(command: F) -> F:
    """The one selection grammar, as arguments and options of a command."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


_SELECTION: tuple[Callable[[F], F], ...] = (
    click.argument("words", metavar="[TASK]...", nargs=-1, shell_complete=complete_ids),
    click.option(
        "--state",
        multiple=True,
        type=click.Choice([str(state) for state in State], case_sensitive=False),
        help="Only tasks in this state; may be given again.",
    ),
    click.option("--workflow", default="", help="Only tasks of this workflow (a name or a glob)."),
    click.option("--name", default="", help="Only tasks of this name (a name or a glob)."),
    click.option("--tag", multiple=True, help="Only tasks with this tag (or glob); repeatable."),
    click.option(
        "--since",
        type=Moment(),
        default=0.0,
        help="Only those submitted since: 2h (ago), or a date.",
    ),
)


def selection(keys: dict[str, Any]) -> Any:
    """Take the selection's values out of a command's keyword arguments."""
    from spool.queue.select import Selection

    return Selection(
        words=tuple(keys.pop("words")),
        states=tuple(State(one.upper()) for one in keys.pop("state")),
        workflow=keys.pop("workflow"),
        name=keys.pop("name"),
        tags=tuple(keys.pop("tag")),
        since=keys.pop("since"),
        strict=True,
    )


def is_terminal() -> bool:
    """Whether a person watches standard error."""
    return sys.stderr.isatty()


def counted(items: Iterator[Any], label: str) -> Iterator[Any]:
    """Pass items on, with a count on a terminal once it takes over a second."""
    begun = shown = time.monotonic()
    count = 0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if is_terminal() and now - begun > 1 and now - shown > 0.2:
            shown = now
            sys.stderr.write(f"\r{count:,} {label}")
    if shown != begun:
        sys.stderr.write(f"\r{count:,} {label}\n")
