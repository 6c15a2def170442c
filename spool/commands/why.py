"""why - why a task is where it is and what it waits for: why.

Owns   which part of the house explains what: the tree itself, launchers, the service.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from spool import units
from spool.commands import shared
from spool.errors import ManifestError, NoSuchTask, SpoolError
from spool.queue import layout, parents, select, tasks
from spool.queue import shape as shapes
from spool.queue.array import Some
from spool.queue.layout import FINAL, State, Tree
from spool.queue.select import Selection
from spool.queue.tasks import Spot, Task
from spool.queue.why import arriving, ended, ready, running, waiting
from spool.queue.why.answer import Answer
from spool.queue.why.scene import Scene

MOST = 1_000  # tasks that one word may mean
FOLLOWS, SHOWN = 20, 20


@click.command("why")
@click.argument(
    "words", metavar="TASK...", nargs=-1, required=True, shell_complete=shared.complete_ids
)
@shared.as_json
@click.pass_context
def why_command(ctx: click.Context, words: tuple[str, ...], as_json: bool) -> None:
    """Explain why tasks are where they are, what they wait for, and what to do about it.

    It asks the same rules as launchers and the service do, and changes nothing.

    \b
      spool why hi-1
      spool why 'scan-*' --json
      spool why 'fit.26112215-4k-k3f9x2q7bd[3-9]'    elements of an array
    """
    tree, settings = shared.tree_of(ctx)
    teller = Teller(Scene(tree, settings, time.time()))
    first = True
    for answer in teller.answers(words):
        if as_json:
            shared.print_json(answer.as_json())
            continue
        click.echo("" if first else "\n", nl=False)
        click.echo("\n".join(answer.as_text()))
        first = False


class Teller:
    """Explains tasks of one spool, as it is at one moment."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.tree = scene, scene.tree
        self._outlook: Any = None

    @property
    def outlook(self) -> Any:
        """What the service would do; looked up once."""
        if self._outlook is None:
            from spool.service.outlook import Outlook

            self._outlook = Outlook(self.scene)
        return self._outlook

    # -- which tasks -----------------------------------------------------------------------------

    def answers(self, words: tuple[str, ...]) -> Iterator[Answer]:
        """An answer for each task, and one for each array. Raises NoSuchTask."""
        from spool.commands import arrays

        for word in words:
            chunks: dict[str, list[Spot]] = {}
            for spot in self._meant(word):
                if arrays.is_chunk(spot.id) and spot.id != select.plain_word(word):
                    chunks.setdefault(layout.array_of(spot.id), []).append(spot)
                else:
                    yield self.of_task(spot)
            for array_id, found in chunks.items():
                yield self._of_array(array_id, found, word)

    def _meant(self, word: str) -> list[Spot]:
        """The tasks that a word means. Raises NoSuchTask: none, and what became of it."""
        found = []
        for spot in select.find(self.tree, Selection(words=(word,))):
            found.append(spot)
            if len(found) > MOST:
                raise SpoolError(f"{word!r} means more than {MOST:,} tasks; name fewer")
        return found or [self._not_in_a_state(word)]

    def _not_in_a_state(self, word: str) -> Spot:
        """An arrival that is being admitted. Raises NoSuchTask."""
        base, _ = select.split(select.plain_word(word))
        if layout.parse_id(base) is None:
            raise NoSuchTask(f"no task matches {word!r}. Run: spool ls")
        if (spot := arriving.held(self.tree, base)) is not None:
            return spot
        if (state := parents.removed_as(self.tree, base)) is not None:
            raise NoSuchTask(f"task {base} was removed; it was {state}")
        raise NoSuchTask(f"there is no task {base} in {self.tree.root}. Run: spool ls")

    # -- one task --------------------------------------------------------------------------------

    def of_task(self, spot: Spot) -> Answer:
        """Explain one task, following it while it moves. Raises NoSuchTask."""
        for _ in range(FOLLOWS):
            try:
                return self._explained(spot)
            except FileNotFoundError:
                if (found := tasks.find(self.tree, spot.id)) is None:
                    break
                spot = found
        raise NoSuchTask(f"task {shared.printable(spot.id)} is gone. Run: spool ls")

    def _explained(self, spot: Spot) -> Answer:
        """The same, where it lies there. Raises FileNotFoundError: not any more."""
        answer = Answer.of(spot, spot.path(self.tree))
        if spot.state is State.CREATED:
            arriving.explain(self.scene, spot, answer)
            return answer
        if spot.id.endswith(layout.ARRIVING):
            arriving.explain_held(self.scene, spot, answer)
            return answer
        try:
            task = tasks.load(spot.path(self.tree), spot.id)
        except FileNotFoundError:
            raise
        except (OSError, ManifestError) as fault:
            ended.explain_damaged(self.scene, spot, fault, answer)
            return answer
        self._by_state(spot, task, answer)
        return answer

    def _by_state(self, spot: Spot, task: Task, answer: Answer) -> None:
        if spot.state is State.WAITING:
            waiting.explain(self.scene, spot, task, answer)
        elif spot.state is State.RUNNING:
            running.explain(self.scene, spot, task, answer)
        elif spot.state in FINAL:
            ended.explain(self.scene, spot, task, answer)
        else:
            self._ready(spot, task, answer)

    def _ready(self, spot: Spot, task: Task, answer: Answer) -> None:
        """Who would take it, and what stands in the way."""
        from spool.launcher import prospects
        from spool.service import outlook

        try:
            shape, _ = shapes.parse(spot.group)
        except ValueError:
            answer.because("stray", f"READY/{spot.group} is no lane: no launcher looks there")
            answer.advise("run: spool check")
            return
        found = ready.backlog(self.tree, spot.group)
        ready.tell_tries(self.scene, task, answer)
        if shape.stage != "run":
            service = self.outlook.stages_here
            prospects.explain_stage(self.scene, task, shape, found, answer, service=service)
            return
        answer.because("asks", f"it needs {ready.asks_for(shape)}", shape=shapes.print_shape(shape))
        limited = ready.tell_limits(self.scene, task, answer)
        served = prospects.explain(self.scene, task, shape, found, answer)
        if not self.scene.living("launcher"):
            answer.because("no-launcher", "no launcher is at work")
        outlook.explain(
            self.outlook, shape, found.same, found.oldest, answer, served=served or limited
        )

    # -- arrays ----------------------------------------------------------------------------------

    def _of_array(self, array_id: str, chunks: list[Spot], word: str) -> Answer:
        """An array, or some of its elements: counts, and why for chunks that stand alike."""
        from spool.commands import arrays

        states = Counter(str(spot.state) for spot in chunks)
        whole = next(iter(states)) if len(states) == 1 else "SEVERAL"
        answer = Answer(array_id, whole, "", more={"array": True, "chunks": states})
        _, some = select.split(select.plain_word(word))
        if some is None:
            counts = arrays.summary(self.tree, array_id, chunks)["elements"]
            answer.title = f"{array_id}: an array of {units.count(len(chunks), 'chunk')}"
            answer.because("elements", f"its elements: {arrays.in_words(counts)}", **counts)
        else:
            answer.title = f"{array_id}[{some}]: elements of an array"
            _tell_elements(self.tree, chunks, some, answer)
        answer.parts = [self._part(alike) for alike in _alike(chunks)]
        return answer

    def _part(self, alike: list[Spot]) -> Answer:
        """Chunks that stand alike, explained by the first of them."""
        one = self.of_task(alike[0])
        count, first = units.count(len(alike), "chunk"), f", such as {one.id}"
        one.title = f"{count} in {one.where}{first}"
        one.more |= {"count": len(alike), "ids": [spot.id for spot in alike[:SHOWN]]}
        if one.state == State.FINISHED:
            one.reasons, one.advice, one.lines = [], [], []
        return one


def _tell_elements(tree: Tree, chunks: list[Spot], some: Some, answer: Answer) -> None:
    """What became of these elements, and of each of the first that is not done."""
    from spool.commands import arrays
    from spool.queue import elements

    counts = dict.fromkeys(elements.STATES, 0)
    told: list[tuple[elements.Element, str]] = []
    for spot in chunks:
        _, table = elements.load(tree, spot)
        for element in table.each(some):
            counts[element.state] += 1
            if element.state != elements.DONE and len(told) < SHOWN:
                told.append((element, arrays.how(element)))
    answer.because("elements", f"they are: {arrays.in_words(counts)}", **counts)
    for element, how in told:
        text = f"  {element.number} is {element.state}{f': {how}' if how else ''}"
        facts = {"element": element.number, "state": element.state, "how": how}
        answer.because("element", text, **facts)
    if failed := [str(one.number) for one, _ in told if one.state == elements.FAILED]:
        answer.advise(f"spool log '{answer.id}[{failed[0]}]'")
        answer.advise(f"spool retry '{answer.id}[{','.join(failed)}]'")


def _alike(chunks: list[Spot]) -> Iterator[list[Spot]]:
    """Chunks that are in one state and, their shards left out, in one group."""
    groups: dict[tuple[State, str], list[Spot]] = {}
    for spot in chunks:
        label = "" if spot.state in (State.FINISHED, State.CANCELLED) else spot.group
        groups.setdefault((spot.state, layout.group_label(label)), []).append(spot)
    yield from groups.values()
