"""answer - what `spool why` says of one task: reasons and advice, for a person and for a program.

Owns   the form of both.
Never  finds out anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spool.queue.claim import printable
from spool.queue.tasks import Spot


class Reason(msgspec.Struct, frozen=True):
    """One reason: `what` in a word, the sentence, and its facts by name."""

    what: str
    text: str
    facts: dict[str, Any] = {}


class Answer(msgspec.Struct):
    """One task, or one array, whose parts are chunks that stand alike.

    more are keys beside the others; lines, in a person's answer, follow the reasons; title is its
    first line, where that is not the task and its place.
    """

    id: str
    state: str
    group: str
    path: str = ""
    reasons: list[Reason] = msgspec.field(default_factory=list)
    advice: list[str] = msgspec.field(default_factory=list)
    more: dict[str, Any] = msgspec.field(default_factory=dict)
    lines: list[str] = msgspec.field(default_factory=list)
    parts: list[Answer] = msgspec.field(default_factory=list)
    title: str = ""

    @classmethod
    def of(cls, spot: Spot, path: str) -> Answer:
        """The answer about a task that lies there, with nothing said yet."""
        return cls(printable(spot.id), str(spot.state), printable(spot.group), printable(path))

    def because(self, what: str, text: str, **facts: Any) -> None:
        """Add a reason."""
        self.reasons.append(Reason(what, printable(text), facts))

    def advise(self, text: str) -> None:
        """Add what a person can do about it, once."""
        if text not in self.advice:
            self.advice.append(text)

    def has(self, what: str) -> bool:
        """Whether such a reason was given."""
        return any(reason.what == what for reason in self.reasons)

    def as_json(self) -> dict[str, Any]:
        """One object for a program."""
        reasons = [{"what": one.what, "text": one.text, **one.facts} for one in self.reasons]
        plain = {"id": self.id, "state": self.state, "group": self.group, "path": self.path}
        parts = {"parts": [part.as_json() for part in self.parts]} if self.parts else {}
        return {**plain, "reasons": reasons, "advice": self.advice, **self.more, **parts}

    @property
    def where(self) -> str:
        """STATE/GROUP, or the state alone at the door."""
        return f"{self.state}/{self.group}" if self.group else self.state

    def as_text(self) -> list[str]:
        """The same as lines for a person."""
        lines = [f"  {reason.text}" for reason in self.reasons]
        lines += [f"  {line}" for part in self.parts for line in part.as_text()]
        lines += [f"  | {line}" for line in self.lines]
        lines += [f"  -> {text}" for text in self.advice]
        return [self.title or f"{self.id}: {self.where}", *lines]


def listed(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
