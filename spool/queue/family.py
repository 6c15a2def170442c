"""family - many tasks at once, some of them parents of others by name.

Owns   the meaning of a name in `after` within one bulk submission; the order in which its tasks
       are built: parents before their children.
Never  holds more than the names and ids of what was built, and the tasks that still wait for one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator

import msgspec

from spool.errors import ManifestError
from spool.queue import layout
from spool.queue.manifest import Manifest

Build = Callable[[Manifest], str]
Rejected = tuple[str, str]
"""Where a task stood, and why it cannot be submitted."""


class Family:
    """Tasks of one submission, in any order; `build(manifest)` gives a task its id.

    `add` each; then `left` tells which ones could not be built.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self.ids: dict[str, str] = {}
        self._waiting: dict[str, list[tuple[str, Manifest]]] = defaultdict(list)
        self._twice: set[str] = set()

    def add(self, wanted: Manifest, where: str) -> list[Rejected]:
        """Build a task, and those that waited for its name; or keep it until its parents are built.

        Returns what could not be built, and why.
        """
        rejected: list[Rejected] = []
        ready = deque([(where, wanted)])
        while ready:
            where, wanted = ready.popleft()
            try:
                if (missing := self._missing(wanted)) is not None:
                    self._waiting[missing].append((where, wanted))
                    continue
                task_id = self.build(self._resolved(wanted))
            except ManifestError as fault:
                rejected.append((where, str(fault)))
                continue
            if wanted.name:
                self._name(wanted.name, task_id)
                ready.extend(self._waiting.pop(wanted.name, ()))
        return rejected

    def _missing(self, wanted: Manifest) -> str | None:
        """The first parent's name that nothing built so far bears."""
        names = (word for word in wanted.after if layout.parse_id(word) is None)
        return next((name for name in names if name not in self.ids), None)

    def _resolved(self, wanted: Manifest) -> Manifest:
        if not wanted.after:
            return wanted
        if twice := self._twice.intersection(wanted.after):
            name = min(twice)
            raise ManifestError(f"key 'after': several tasks here are named {name!r}; name one so")
        after = [self.ids.get(word, word) for word in wanted.after]
        made = msgspec.structs.replace(wanted, after=after)
        made.__dict__.update(wanted.__dict__)  # what was said, for its app
        return made

    def _name(self, name: str, task_id: str) -> None:
        if name in self.ids:
            self._twice.add(name)
        self.ids[name] = task_id

    def left(self) -> Iterator[Rejected]:
        """What still waits for a name: unknown, or part of a cycle, which is told."""
        parent_of = {one.name: name for name, some in self._waiting.items() for _, one in some}
        for name, some in self._waiting.items():
            for where, _ in some:
                yield where, self._why(name, parent_of)

    def _why(self, name: str, parent_of: dict[str, str]) -> str:
        path = [name]
        while path[-1] in parent_of:
            step = parent_of[path[-1]]
            if step in path:
                cycle = [*path[path.index(step) :], step]
                return f"key 'after': waits for itself: {' after '.join(cycle)}"
            path.append(step)
        end = path[-1]
        through = f" (through {' and '.join(path[:-1][:3])})" if len(path) > 1 else ""
        return f"key 'after': there is no task {end!r}{through}. Run: spool ls"
