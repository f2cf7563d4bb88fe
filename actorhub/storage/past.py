"""What a process remembers of the eras that it was in, and what of that is gone."""

from collections.abc import Callable, Sequence
from typing import Final

from actorhub.storage.ports import Era, EraChange

_KEPT: Final = 100
"""Eras that a process remembers."""


class Past:
    """The eras that this process was in, the present one last, and who wants to hear of the next."""

    def __init__(self) -> None:
        self.present = Era("", "")
        """Nameless before the first one."""
        self._tokens: list[str] = []
        self._listeners: list[Callable[[EraChange], None]] = []

    @property
    def tokens(self) -> Sequence[str]:
        """Of the eras since which nothing was lost."""
        return self._tokens

    def listen(self, listener: Callable[[EraChange], None]) -> None:
        """Have `listener` called whenever another era was entered."""
        self._listeners.append(listener)

    def enter(self, era: Era, *, parted_at: int, acknowledged: int) -> EraChange:
        """Be in that era from now on, and tell everybody; return what they are told.

        Args:
            era: The present one.
            parted_at: How far the log had come where the store's past and this process's part; 0: it is not known.
            acknowledged: How far the log had come before the last write that this process saw acknowledged; 0: none.
        """
        before, self.present = self.present, era
        change = EraChange(era, _lost(before, era, parted_at, acknowledged))
        if change.lost:
            self._tokens.clear()
        self._tokens = [*self._tokens[1 - _KEPT :], era.token]
        if before.token:
            for listener in self._listeners:
                listener(change)
        return change


def _lost(before: Era, now: Era, parted_at: int, acknowledged: int) -> str:
    # The record of a commit comes after the position that was read in it, so at an equal position it is gone.
    if not acknowledged or acknowledged < parted_at:
        return ""
    if before.cluster != now.cluster:
        return "the database is a copy that was adopted: what was acknowledged after the copy was made is not in it"
    if not parted_at:
        return "the database is older than all that this process knows of it: what was acknowledged since is gone"
    return (
        f"the database came back without what was committed last: its log reached {parted_at:#x} when its server "
        f"started, and this process had seen commits after {acknowledged:#x} acknowledged"
    )
