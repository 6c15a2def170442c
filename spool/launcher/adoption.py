"""adoption - children claimed where they wait, as soon as their last parent has ended here.

By way of READY a task is moved, listed, claimed and read once more. Where the launcher that ended
its parent has room and nothing else goes before it, it is claimed out of WAITING/PARENT at once.

Owns   that claim, and the move to where the child belongs if it is not to be run here.
Never  takes what this launcher would not take from READY, or takes it before what goes first.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from spool.launcher import clock
from spool.queue import claim, files, layout
from spool.queue import shape as shapes
from spool.queue.layout import State
from spool.queue.parents import Lookup
from spool.queue.place import Place
from spool.queue.shape import Shape

if TYPE_CHECKING:
    from spool.launcher.loop import Launcher


MOST, FEW = 128, 16
"""Children kept by us. Only few are where a hand lacks work, or other launchers are about."""
LOOK_S = 1.0  # between two looks for those


class Adoption:
    """What one launcher adopts; `taken` are claimed children to be started."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.taken: deque[tuple[str, Shape]] = deque()
        self.look_at = 0.0

    def may(self) -> bool:
        """Whether another child could be run here at once, or soon."""
        launcher = self.launcher
        if launcher.draining or launcher.hands.lending or launcher.ranks or launcher.field.crew:
            return False
        if launcher.gate.looks or clock.now() < launcher.paused_until:
            return False
        held = len(launcher.claimed) + len(self.taken)
        if launcher.book.free > held:
            return True
        if not launcher.wishes.hand_of and clock.now() >= self.look_at:
            self._look_around()
        return launcher.picker.may_adopt(held, FEW if launcher.hands.board.lacking else MOST)

    def _look_around(self) -> None:
        """Tell our hands, too, whether other launchers are about, here or on other nodes."""
        self.look_at = clock.now() + LOOK_S
        owner, hands = self.launcher.owner, self.launcher.hands
        ours = layout.parse_owner(owner.name)
        assert ours is not None
        mine = {(ours.host, ours.boot, pid) for pid in (ours.pid, *hands.lent)}
        found = map(layout.parse_owner, files.names(owner.tree.state(State.RUNNING)))
        if any(one and one.kind == "launcher" and one[1:4] not in mine for one in found):
            hands.board.meet()

    def take(self, path: str, name: str, kin: Lookup) -> Place | None:
        """Claim the child that lies at `path`; where it is now, None if it still lies there."""
        owner = self.launcher.owner
        if not self.may() or layout.parse_id(name) is None:
            return None
        try:
            if not files.move(path, owner.claim_path(name)):
                return None
        except (PermissionError, FileExistsError):
            return None
        held = Place(State.RUNNING, owner.name)
        task = claim.read_claim(owner, name, self.launcher.trusted)
        if task is None:
            return held  # rejected, or unreadable for now
        place = claim.place_of(owner.tree, task, clock.epoch(), "", kin)
        if place.line is not None:
            return claim.settle(owner, task)
        if place.state is State.READY and self._is_next(place.group):
            self.launcher.picker.claimer.claimed += 1
            self.launcher.crew.read[name] = task
            self.taken.append((name, shapes.parse(place.group)[0]))
            return held
        claim.hand_on(owner, name, place)
        return place

    def _is_next(self, lane: str) -> bool:
        """Whether this launcher takes tasks of a lane, and knows of none that go before."""
        picker = self.launcher.picker
        wanted = shapes.parse(lane)[0]
        if picker.book.kept_for is not None or picker.why_not(wanted, clock.now()):
            return False
        first = next((row[0] for row in picker.claimer.rows.values()), None)
        return first is None or shapes.order(lane) <= shapes.order(first)

    def start(self) -> None:
        """Start what was taken, or hold it until there is room."""
        while self.taken:
            self.launcher.receive(*self.taken.popleft())
