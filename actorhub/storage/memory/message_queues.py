"""In which order a memory store's pending messages are found."""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator

from actorhub.core.address import ShardId
from actorhub.storage.memory.message_rows import Row
from actorhub.storage.memory.state_table import EntityKey


class MessageQueues:
    """Pending messages by shard: those due at once by entity, those with a due time by that."""

    def __init__(self) -> None:
        self._lines: dict[ShardId, dict[EntityKey, dict[int, Row]]] = defaultdict(dict)
        self._scheduled: dict[ShardId, dict[int, Row]] = defaultdict(dict)

    def add(self, row: Row) -> None:
        """Put a pending row where its due time says."""
        if row.due:
            self._scheduled[row.message.shard][row.id] = row
        else:
            self._lines[row.message.shard].setdefault(row.entity, {})[row.id] = row

    def discard(self, row: Row) -> None:
        """Take a row out again; its due time must be the one with which it was added."""
        shard = row.message.shard
        if row.due:
            self._scheduled[shard].pop(row.id, None)
        elif (line := self._lines[shard].get(row.entity)) is not None:
            line.pop(row.id, None)
            if not line:
                del self._lines[shard][row.entity]

    def next_entities(self, shard: ShardId, after: EntityKey, count: int) -> list[EntityKey]:
        """Return the next `count` entities after `after` that have messages due at once, in order."""
        return heapq.nsmallest(count, (entity for entity in self._lines[shard] if entity > after))

    def line(self, shard: ShardId, entity: EntityKey, count: int) -> Iterator[Row]:
        """Return an entity's first `count` messages due at once, by id."""
        line = self._lines[shard].get(entity, {})
        return (line[message_id] for message_id in heapq.nsmallest(count, line))

    def of_entity(self, shard: ShardId, entity: EntityKey) -> list[Row]:
        """Return all pending messages of an entity in a shard."""
        later = (row for row in self._scheduled[shard].values() if row.entity == entity)
        return [*self._lines[shard].get(entity, {}).values(), *later]

    def outside(self, types: Collection[str], groups: Collection[str]) -> Iterator[tuple[ShardId, str, str]]:
        """Yield the entities of `types` with pending messages in shards of other groups, in no order."""
        for shard in {*self._lines, *self._scheduled}:
            if shard.group not in groups:
                entities = {*self._lines[shard], *(row.entity for row in self._scheduled[shard].values())}
                yield from ((shard, *entity) for entity in entities if entity[0] in types)

    def scheduled(self, shards: set[ShardId], until: float, count: int) -> list[Row]:
        """Return the first `count` messages of `shards` by due time, due before `until`."""
        found = (row for shard in shards for row in self._scheduled[shard].values() if row.due < until)
        return heapq.nsmallest(count, found, key=lambda row: (row.due, row.id))
