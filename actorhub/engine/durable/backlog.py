"""What waits in the store to be brought in: shards and entities that have a backlog."""

import asyncio
from collections.abc import Mapping
from typing import Final

from actorhub.core.address import ShardId
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import Cell, HostedShard, HostedType

_START: Final = ("", "")


class Walk:
    """One walk over the entities of a shard, by a cursor on (type, id).

    The cursor cannot be a message's id. Ids are given before commits, so a smaller one may become visible later, behind
    the cursor. The entities' own messages are read from the first each time; those in memory are known by their ids.
    """

    __slots__ = ("again", "cursor")

    def __init__(self) -> None:
        self.cursor: tuple[str, str] = _START
        """Type and id of the last entity that was dealt with. One that found no place comes next."""
        self.again = False
        """Something came since the walk began, perhaps before the cursor: another walk must follow."""


class Backlog:
    """Remembers what has a backlog; `loader.Loader` works it off.

    State is in the attributes below, and in `has_backlog` of shards and cells. What has a backlog keeps it until a scan
    of the store proves that nothing is left. A message that was left in the store while that scan was under way may be
    missing from the answer; nothing that comes later may overtake it. So whoever leaves one marks the shard (`mark`),
    and a scan that began before the mark proves nothing.
    """

    def __init__(self, *, types: Mapping[str, HostedType], shards: Mapping[ShardId, HostedShard]) -> None:
        self._types = types
        self._shards = shards
        self.walks: dict[ShardId, Walk] = {}
        self.entities: dict[Cell, None] = {}
        """Entities that have a backlog, and none of it in memory any longer."""
        self.awaited: dict[tuple[ShardId, str, str], None] = {}
        """Entities with a message that a caller waits for: they come before the walks, however long those take."""
        self.marked: set[ShardId] = set()
        """Shards for which something was left in the store since the latest scan began."""
        self.loaded: set[DurableMessage] = set()
        """Messages in memory that the loader brought in."""
        self.wake = asyncio.Event()
        """Wakes the loader."""

    @property
    def has_work(self) -> bool:
        """Whether there may be something to bring in."""
        return bool(self.walks or self.entities or self.awaited)

    def mark(self, shard: HostedShard) -> None:
        """Remember that something of the shard waits in the store; a scan that begins now will see it."""
        # In one step with whatever led to it, so that nothing new is admitted in between, and no scan that is under way
        # ends the backlog.
        shard.has_backlog = True
        self.marked.add(shard.id)
        self.scan(shard)

    def mark_awaited(self, shard: HostedShard, entity: tuple[str, str]) -> None:
        """Remember that something of the entity waits in the store, and a caller for it."""
        # With messages in memory it is asked for anyway, when those are done; unless it closes then.
        cell = self.cell_of(entity)
        if cell is None or cell.durable_count <= 0 or shard.draining:
            self.awaited[shard.id, *entity] = None
        self.mark(shard)

    def scan(self, shard: HostedShard) -> None:
        """Have the shard walked over once, in case this process was not told of something in the store."""
        walk = self.walks.get(shard.id)
        if walk is None:
            self.walks[shard.id] = Walk()
        else:
            # The cursor may have passed what this is about. To start over now would keep a long walk from ever ending.
            walk.again = True
        self.wake.set()

    def forget(self, shard: HostedShard) -> None:
        """Forget a shard that this process no longer owns."""
        self.walks.pop(shard.id, None)
        for key in [key for key in self.awaited if key[0] == shard.id]:
            del self.awaited[key]
        for cell in [cell for cell in self.entities if cell.shard is shard]:
            del self.entities[cell]

    def on_unloaded(self, message: DurableMessage) -> None:
        """A message left memory. If the loader brought it in, there is room for another one."""
        if message in self.loaded:
            self.loaded.discard(message)
            self.on_place_freed()

    def on_entity_drained(self, cell: Cell) -> None:
        """An entity that has a backlog no longer has durable messages in memory."""
        self.entities[cell] = None
        self.wake.set()

    def on_entity_left(self, cell: Cell) -> None:
        """An entity left memory. If it has a backlog, a walk over its shard must find that from now on."""
        # With the cell goes the knowledge that the entity has a backlog; the shard's takes its place. Not if the shard
        # was lost, or lost and acquired again.
        self.entities.pop(cell, None)
        if cell.has_backlog and self._shards.get(cell.shard.id) is cell.shard:
            self.mark(cell.shard)
        else:
            self.on_place_freed()

    def on_place_freed(self) -> None:
        """There is room in memory: for an entity, or for a message."""
        if self.has_work:
            self.wake.set()

    def cell_of(self, entity: tuple[str, str]) -> Cell | None:
        """Return the entity's cell; `None` if it is not resident."""
        hosted = self._types.get(entity[0])
        return None if hosted is None else hosted.cells.get(entity[1])
