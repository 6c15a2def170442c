"""lookout - what launchers and the service look for: arrivals, moments that come, dead owners.

Owns   how often each is looked for.
Never  is called by a loop that starts tasks: hashing a large input may take its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from spool.queue import advance, files, takeover
from spool.queue.admit import Door
from spool.queue.owner import Owner

WATCH_EVERY_S, SWEEP_EVERY_S = 2.0, 60.0
DOOR_S = 2.0  # beyond the quiet that an arrival needs: so long is one waited for
Over = Callable[[str, str], bool | None]


class Lookout:
    """Looks around once for each call of `look`.

    looked says that it did so at least once; undecided that some silent owner may be dead or not.
    over is a batch system's word on an allocation; clear is Leftovers', for owners of our own;
    everyone: look at all owners, not up to the next living launcher only. one_shot: as Observer's.
    """

    def __init__(
        self,
        owner: Owner,
        trusted: frozenset[int],
        log: Callable[[str], None],
        over: Over | None = None,
        clear: Callable[[str], bool] | None = None,
        *,
        everyone: bool = False,
        one_shot: bool = False,
    ) -> None:
        self.owner, self.trusted, self.log = owner, trusted, log
        self.door = Door(owner, trusted)
        self.observer = takeover.Observer(
            owner, over=over, clear=clear, everyone=everyone, one_shot=one_shot
        )
        self.looked = self.undecided = False
        self._watched_at = self._swept_at = 0.0
        self.sweep = advance.Sweep(owner)

    def look(self) -> None:
        """Admit, release and take over what is due. Raises LeaseLost; DiskFull, OSError: later."""
        now, tree = time.monotonic(), self.owner.tree
        self.door.look()
        if advance.due_groups(tree, time.time()):
            advance.release_due(self.owner)
        if now - self._watched_at >= WATCH_EVERY_S:
            self._watched_at = now
            self._watch_others()
        if now - self._swept_at >= SWEEP_EVERY_S:
            self._swept_at = now
            self.sweep.step()
            for path in advance.empty_groups(tree, all_parents=False):
                files.remove_folder(path)
        self.looked = True

    def _watch_others(self) -> None:
        dead, self.undecided = self.observer.look()
        for group in dead:
            moved = takeover.take_over(self.owner, group, self.trusted)
            if moved:  # what cannot be touched is met again at each look
                self.log(f"took over {moved} tasks of {group}, whose owner is dead")

    @property
    def settled(self) -> bool:
        """Whether nothing that was seen is still to be decided."""
        return self.looked and not self.undecided and not self.door.holding
