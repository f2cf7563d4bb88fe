"""What still comes in while a shard drains: what running handlers wait for. The rest is held for the next owner.

A drain waits for the runs of its shard. If one of them waits for an entity of the same shard, which is that of every
entity with the same id, both would wait until the grace time is over. So a call whose chain leads to an entity of a
draining shard comes in at once. Other calls of running handlers may be waited for as well, by way of somebody's
mailbox, but if all of them always came in, a popular entity would never come to rest. They come in every other while.
"""

from collections.abc import Iterable, Mapping
from math import log2
from typing import Final

from actorhub.engine.model.records import (
    ACTIVATING,
    CLOSING,
    LENDS,
    PASSIVATING,
    Cell,
    HostedShard,
    HostedType,
    Message,
)
from actorhub.engine.model.run import Run

_FIRST_WHILE: Final = 0.1
"""Seconds for which a drain lets only those in that it certainly waits for. Most drains are over by then."""
_MOST_NAMED: Final = 10
"""Runs that one line of the log names."""


class Draining:
    """Decides which messages come in although their shard drains."""

    def __init__(self, types: Mapping[str, HostedType]) -> None:
        self._types = types
        self.is_alone = False
        """Nobody takes over what this process lets go of: its entities are needed until nothing runs here."""

    def admits(self, message: Message, shard: HostedShard) -> bool:
        """Whether the message comes in now, if its shard drains: some running handler waits for it."""
        if shard.is_ending or (message.spec.singleton and self._cell(*message.entity) is None):
            return False  # A leader makes no further activation.
        return any(
            chain and (shard.admits_all or any(self._is_draining(link) for link in chain)) for chain in message.chains
        )

    def is_awaited(self, cell: Cell) -> bool:
        """Whether something in the mailbox of a cell that closes comes in."""
        shard = cell.shard
        return shard.draining and any(self.admits(message, shard) for message in cell.queue or ())

    def is_needed(self, cell: Cell) -> bool:
        """Whether a singleton stays, because something else runs that may call it; nothing would bring it back here.

        Not for the whole grace time: its last hooks are to run before its shard is cut off.
        """
        if not cell.shard.draining or cell.shard.is_late:
            return False
        others = self._residents() if self.is_alone else cell.shard.cells
        return any(other is not cell and not (other.is_singleton and other.is_idle) for other in others)

    def _is_draining(self, link: str) -> bool:
        entity_type, _, entity_id = link.removeprefix(LENDS).partition("/")
        cell = self._cell(entity_type, entity_id)
        return cell is not None and cell.shard.draining

    def _cell(self, entity_type: str, entity_id: str) -> Cell | None:
        hosted_type = self._types.get(entity_type)
        return None if hosted_type is None else hosted_type.cells.get(entity_id)

    def _residents(self) -> Iterable[Cell]:
        return (cell for hosted_type in self._types.values() for cell in hosted_type.cells.values())


def admits_all(elapsed: float) -> bool:
    """Whether a drain lets every call of a running handler in, `elapsed` seconds after its start.

    It does so every other while, each twice as long as the one before, so that who has callers all the time comes to
    rest in between.
    """
    return int(log2(elapsed / _FIRST_WHILE + 1)) % 2 == 1


def unfinished(shard: HostedShard, suspended: Iterable[Run]) -> str:
    """Name what has not ended in a shard that drains, by type, id and handler."""
    runs: dict[Cell, list[str]] = {}
    for run in suspended:
        if run.cell.shard is shard:
            runs.setdefault(run.cell, []).append(f"{run.what}({run.message.entity_id})")
    names: list[str] = []
    for cell in shard.cells:
        names += runs.get(cell) or [f"{cell.address} ({_state(cell)})"]
    names.sort()
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _state(cell: Cell) -> str:
    if cell.phase == ACTIVATING:
        return "it is being activated"
    if cell.phase == PASSIVATING:
        return "its on_deactivate or on_lose_leadership runs"
    if cell.streams:
        return "a stream of it is being ended"
    return "it is about to start a run, or commits one" if cell.phase == CLOSING else "it is over"
