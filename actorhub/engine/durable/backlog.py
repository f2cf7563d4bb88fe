"""What waits in the store and is to be brought in: shards and entities that have a backlog."""

import asyncio
from collections.abc import Mapping
from typing import Final

from actorhub.core.address import ShardId
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import Cell, HostedShard, HostedType

_START: Final = ("", "")


class Walk:
    """One walk over the entities of a shard."""

    __slots__ = ("again", "cursor")

    def __init__(self) -> None:
        self.cursor: tuple[str, str] = _START
        """Type and id of the last entity that was seen to; one that found no place is the next."""
        self.again = False
        """Something came since the walk began, perhaps behind the cursor."""


class Backlog:
    """Notes what has a backlog; `loader.Loader` works it off. All state is in `walks`, `entities`, `asked`, `loaded`.

    What has a backlog keeps it until a scan proves the contrary. A message that was left in the store while the scan
    was under way may be missing in the answer, and nothing that comes later may overtake it.
    """

    def __init__(self, *, types: Mapping[str, HostedType], shards: Mapping[ShardId, HostedShard]) -> None:
        self._types = types
        self._shards = shards
        self.walks: dict[ShardId, Walk] = {}
        self.entities: dict[Cell, None] = {}
        """Entities that have a backlog and nothing left in memory."""
        self.asked: dict[tuple[ShardId, str, str], None] = {}
        """Entities without a place that somebody waits for: they come before the walks, however long those are."""
        self.marked: set[ShardId] = set()
        """Shards for which something was left in the store since the present scan began."""
        self.loaded: set[DurableMessage] = set()
        """Messages that came from the store and are not settled."""
        self.wake = asyncio.Event()
        """Wakes the loader."""

    @property
    def has_work(self) -> bool:
        """Whether there is something to bring in."""
        return bool(self.walks or self.entities or self.asked)

    def mark(self, shard: HostedShard) -> None:
        """Note that something of the shard waits in the store, which is (or will be) committed by now.

        The note comes first and the scan after it: a scan that began earlier does not end the backlog.
        """
        shard.has_backlog = True
        self.marked.add(shard.id)
        self.scan(shard)

    def ask_for(self, shard: HostedShard, entity: tuple[str, str]) -> None:
        """Note that somebody waits for a message of the entity, which is left in the store."""
        cell = self.cell_of(entity)
        if cell is None or cell.durable_count <= 0:
            self.asked[shard.id, *entity] = None
        self.mark(shard)

    def scan(self, shard: HostedShard) -> None:
        """Walk over the shard once: perhaps something waits in the store that this process was not told of."""
        walk = self.walks.get(shard.id)
        if walk is None:
            self.walks[shard.id] = Walk()
        else:
            walk.again = True
        self.wake.set()

    def forget(self, shard: HostedShard) -> None:
        """The shard is no longer this process's."""
        self.walks.pop(shard.id, None)
        for key in [key for key in self.asked if key[0] == shard.id]:
            del self.asked[key]
        for cell in [cell for cell in self.entities if cell.shard is shard]:
            del self.entities[cell]

    def unloaded(self, message: DurableMessage) -> None:
        """A message left memory; where the loader brought it in, there is room for another one."""
        if message in self.loaded:
            self.loaded.discard(message)
            self.place_freed()

    def drained(self, cell: Cell) -> None:
        """An entity that has a backlog no longer has a durable message in memory."""
        self.entities[cell] = None
        self.wake.set()

    def left(self, cell: Cell) -> None:
        """An entity left memory; what it has in the store is its shard's to find."""
        self.entities.pop(cell, None)
        if cell.has_backlog and self._shards.get(cell.shard.id) is cell.shard:
            self.mark(cell.shard)
        else:
            self.place_freed()

    def place_freed(self) -> None:
        """Something left memory that held up others: a message that was brought in, or an entity."""
        if self.has_work:
            self.wake.set()

    def cell_of(self, entity: tuple[str, str]) -> Cell | None:
        """Return the entity's cell, if it is resident."""
        hosted = self._types.get(entity[0])
        return None if hosted is None else hosted.cells.get(entity[1])
