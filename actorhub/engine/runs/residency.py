"""Which entities stay in memory: idle ones leave after `max_idle`, and the cap evicts the least recently used."""

import asyncio
from collections.abc import Mapping
from typing import Final

from actorhub.core.clock import Clock
from actorhub.engine.model.cell import ACTIVE, Cell, HostedType
from actorhub.engine.runs.activation import Activations

_LONGEST_PAUSE: Final = 0.25
_SHORTEST_PAUSE: Final = 0.01
_CANDIDATES: Final = 8
_LOOKS: Final = 256


class Residency:
    """Looks at cells in the order of their last look.

    A message only stamps its cell; a cell found used since its last look gets a second chance at the end of the line
    (the CLOCK algorithm), so recency costs nothing per message. An entity leaves between 1 and 1.5 times `max_idle`.
    """

    def __init__(self, types: Mapping[str, HostedType], activations: Activations, clock: Clock) -> None:
        self._types = types
        self._activations = activations
        self._clock = clock

    async def run(self) -> None:
        """Passivate idle entities for ever."""
        while True:
            shortest = min((t.spec.max_idle.total_seconds() for t in self._types.values()), default=1.0)
            pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, shortest / 4))
            await asyncio.sleep(pause)
            for hosted in self._types.values():
                self._sweep(hosted, pause)

    def make_room(self) -> bool:
        """Passivate the least recently used idle entity among the next in line; `False` if all looked at are busy."""
        found: list[Cell] = []
        for hosted in self._types.values():
            for _ in range(min(len(hosted.cells), _LOOKS)):
                cell = _next_in_line(hosted)
                if _may_leave(cell):
                    found.append(cell)
                    if len(found) % _CANDIDATES == 0:
                        break
        if not found:
            return False
        self._activations.close(min(found, key=lambda cell: cell.last_used))
        return True

    def _sweep(self, hosted: HostedType, pause: float) -> None:
        max_idle = hosted.spec.max_idle.total_seconds()
        looks = int(len(hosted.cells) * min(1.0, 2 * pause / max(max_idle, pause))) + 1
        unused_since = self._clock.monotonic() - max_idle
        for _ in range(min(looks, len(hosted.cells))):
            cell = _next_in_line(hosted)
            if cell.last_used <= unused_since and _may_leave(cell):
                self._activations.close(cell)


def _next_in_line(hosted: HostedType) -> Cell:
    entity_id = next(iter(hosted.cells))
    hosted.cells.move_to_end(entity_id)
    return hosted.cells[entity_id]


def _may_leave(cell: Cell) -> bool:
    return cell.phase == ACTIVE and cell.is_idle and not cell.kept and cell.hosted.spec.singleton_id is None
