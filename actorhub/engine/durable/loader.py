"""Bringing in what waits in the store: entity by entity, in turns, never more than fits."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.errors import PersistenceError
from actorhub.engine.durable.backlog import Backlog, Walk
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.loading import Loading
from actorhub.engine.durable.owner import Owner
from actorhub.engine.model.durable_message import Place
from actorhub.engine.model.records import ACTIVE, Cell, HostedShard
from actorhub.engine.supervision import set_or_time
from actorhub.storage.message_ports import PendingMessage

_log: Final = logging.getLogger("actorhub.backlog")

MOST_LOADED: Final = 4096
"""Messages from the store that are in memory at a time."""
PER_ENTITY: Final = 32
"""Messages of one entity that one scan brings in."""
_SHARDS_AT_ONCE: Final = 512
_ENTITIES_AT_ONCE: Final = 1024
_FEWEST_ENTITIES: Final = 16
_BLOCKED: Final = 0.25
"""Seconds after which to try again when every resident entity was busy and nothing ended meanwhile."""
_RETRY: Final = 0.5
"""Seconds until the next scan after a failed one."""


class Loader:
    """Loads messages for shards and entities that have a backlog.

    A shard with a backlog is walked over in rounds, in the order of its entities, until one round left nothing in the
    store. An entity with a backlog is asked for again when what was brought in of it is done.
    """

    def __init__(self, owner: Owner, *, backlog: Backlog, memory: InMemory, loading: Loading) -> None:
        self._backlog = backlog
        self._memory = memory
        self._loading = loading
        self._shards = owner.shards
        self._store = owner.store
        self._clock = owner.clock
        self._lease = owner.lease
        self._not_before = 0.0
        """Monotonic seconds."""
        self._spilling: dict[ShardId, set[tuple[str, str]]] = {}
        """Entities of which something is on its way into the store only; valid until the next scan's answer."""
        self._batch = _ENTITIES_AT_ONCE
        """Entities that the next scan asks for: fewer after one that found no place for all."""
        self._is_blocked = False
        self.scans = 0
        """Reads of the store so far."""

    async def run(self) -> None:
        """Load whatever has a backlog, until cancelled."""
        while True:
            self._backlog.wake.clear()
            await set_or_time(self._backlog.wake, await self._step())

    async def _step(self) -> float | None:
        """Scan the store once; return the seconds until the next step; `None`: when somebody wakes it."""
        if not self._backlog.has_work or len(self._backlog.loaded) > MOST_LOADED * 3 // 4:
            return None
        now = self._clock.monotonic()
        if now >= self._lease.fresh_until:
            return _RETRY
        if now < self._not_before:
            return self._not_before - now
        self._is_blocked = False
        try:
            await self._bring_asked()
            await self._bring_entities()
            await self._bring_shards()
        except PersistenceError as error:
            _log.warning("cannot load waiting messages, will try again: %s", error)
            self._not_before = self._clock.monotonic() + _RETRY
            return _RETRY
        if self._is_blocked:
            return _BLOCKED
        return 0.0 if self._backlog.has_work else None

    async def _bring_asked(self) -> None:
        """Bring in what somebody waits for, whoever else is in line."""
        asked = list(self._backlog.asked)[: max(1, self._room() // PER_ENTITY)]
        if not asked:
            return
        self._begin_scan()
        rows = await self._store.load_entities(asked, PER_ENTITY)
        self._spilling.clear()
        found = _by_entity(rows)
        for key in asked:
            shard, entity = self._shards.get(key[0]), key[1:]
            if shard is not None and not await self._bring(shard, entity, found.get(entity, ()), PER_ENTITY):
                self._is_blocked = True
                return
            self._backlog.asked.pop(key, None)

    async def _bring_entities(self) -> None:
        """Ask again for entities that are done with what was brought in."""
        done = [cell for cell in self._backlog.entities if cell.durable_count <= 0 and self._is_live(cell)]
        cells = done[: max(1, self._room() // PER_ENTITY)]
        self._backlog.entities = dict.fromkeys(done[len(cells) :])
        if not cells:
            return
        self._begin_scan()
        try:
            rows = await self._store.load_entities([(cell.shard.id, *cell.entity) for cell in cells], PER_ENTITY)
        except PersistenceError:
            self._backlog.entities.update(dict.fromkeys(cells))
            raise
        self._spilling.clear()
        found = _by_entity(rows)
        for cell in cells:
            if self._is_live(cell):
                await self._bring(cell.shard, cell.entity, found.get(cell.entity, ()), PER_ENTITY)
                if cell.has_backlog and cell.durable_count <= 0:
                    self._backlog.entities[cell] = None

    async def _bring_shards(self) -> None:
        """Go on with the walks over shards."""
        walks: dict[ShardId, Walk] = {}
        for shard_id, walk in list(self._backlog.walks.items())[:_SHARDS_AT_ONCE]:
            if (shard := self._shards.get(shard_id)) is not None and not shard.draining:
                walks[shard_id] = walk
            else:
                del self._backlog.walks[shard_id]
        if not walks:
            return
        self._begin_scan()
        entities = max(1, min(self._batch, self._room()) // len(walks))
        per_entity = max(1, min(PER_ENTITY, self._room() // (entities * len(walks))))
        cursors = {shard_id: walk.cursor for shard_id, walk in walks.items()}
        rows, exhausted = await self._store.load_backlog(cursors, entities, per_entity)
        self._spilling.clear()
        found: dict[ShardId, list[PendingMessage]] = {}
        for row in rows:
            found.setdefault(row.shard, []).append(row)
        is_full = False
        for shard_id, walk in walks.items():
            if not await self._advance(shard_id, walk, found.get(shard_id, ()), per_entity, is_full=is_full):
                is_full = self._is_blocked = True
            elif shard_id in exhausted:
                self._walked(shard_id, walk)
        self._batch = max(_FEWEST_ENTITIES, self._batch // 2) if is_full else min(_ENTITIES_AT_ONCE, self._batch * 2)

    async def _advance(
        self, shard_id: ShardId, walk: Walk, rows: Sequence[PendingMessage], per_entity: int, *, is_full: bool
    ) -> bool:
        """Bring in what was found of a shard; `False` if it stands still before an entity that found no place."""
        began_at = walk.cursor
        for entity, group in _by_entity(rows).items():
            shard = self._shards.get(shard_id)
            if shard is None or self._backlog.walks.get(shard_id) is not walk:
                return True
            if (is_full and self._backlog.cell_of(entity) is None) or not await self._bring(
                shard, entity, group, per_entity
            ):
                if walk.cursor != began_at:
                    # Who got places goes last next time.
                    self._backlog.walks[shard_id] = self._backlog.walks.pop(shard_id)
                return False
            walk.cursor = entity
        return True

    def _walked(self, shard_id: ShardId, walk: Walk) -> None:
        """A walk came to its end: the shard no longer has a backlog, or needs another walk."""
        if self._backlog.walks.get(shard_id) is not walk:
            return
        del self._backlog.walks[shard_id]
        shard = self._shards[shard_id]
        if walk.again or self._spilling_of(shard):
            self._backlog.walks[shard_id] = Walk()
        elif shard.has_backlog:
            shard.has_backlog = False
            for cell in shard.cells:
                if cell.durable_count <= 0 and cell not in self._backlog.entities:
                    cell.has_backlog = False

    async def _bring(
        self, shard: HostedShard, entity: tuple[str, str], rows: Sequence[PendingMessage], limit: int
    ) -> bool:
        """Admit the messages of one entity, oldest first; `False` if there is no place for the entity."""
        cell = self._backlog.cell_of(entity)
        if cell is not None and cell.has_backlog and cell.durable_count > 0:
            return True
        is_all = len(rows) < limit
        known = [row for row in rows if self._loading.handler_of(row) is not None]
        if not (known or is_all):
            # What only another release can run must not hide what is behind it.
            rows = await self._store.load_entities([(shard.id, *entity)], MOST_LOADED)
            self._spilling.clear()
            is_all = len(rows) < MOST_LOADED
            known = [row for row in rows if self._loading.handler_of(row) is not None]
        if self._shards.get(shard.id) is not shard:
            return True
        brought = 0
        for row in known[:limit]:
            message = self._loading.load(row, shard)
            if message is None:
                continue
            if not self._memory.admit(message, from_store=True):
                self._memory.leave_in_store(message)
                return self._found_no_room(entity)
            if message.place is not Place.GONE:
                self._backlog.loaded.add(message)
            brought += 1
        cell = self._backlog.cell_of(entity)
        if cell is not None and (cell.has_backlog or brought):
            cell.has_backlog = not is_all or len(known) > limit or self._may_have_missed(shard, entity)
        return True

    def _found_no_room(self, entity: tuple[str, str]) -> bool:
        """Return `False` if the entity cannot be made resident; else its mailbox is full, perhaps of volatile calls."""
        cell = self._backlog.cell_of(entity)
        if cell is None:
            return False
        if cell.durable_count <= 0:
            self._backlog.entities[cell] = None
            self._is_blocked = True
        return True

    def _begin_scan(self) -> None:
        self.scans += 1
        self._backlog.marked.clear()

    def _may_have_missed(self, shard: HostedShard, entity: tuple[str, str]) -> bool:
        """Whether a message of the entity is on its way into the store, or came there after the present scan began."""
        return shard.id in self._backlog.marked or entity in self._spilling_of(shard)

    def _spilling_of(self, shard: HostedShard) -> set[tuple[str, str]]:
        found = self._spilling.get(shard.id)
        if found is None:
            found = self._spilling[shard.id] = {
                message.entity
                for message in self._memory.table(shard).messages.values()
                if message.place is Place.SPILLING
            }
        return found

    def _room(self) -> int:
        return MOST_LOADED - len(self._backlog.loaded)

    def _is_live(self, cell: Cell) -> bool:
        return cell.phase <= ACTIVE and self._shards.get(cell.shard.id) is cell.shard


def _by_entity(rows: Iterable[PendingMessage]) -> Mapping[tuple[str, str], Sequence[PendingMessage]]:
    found: dict[tuple[str, str], list[PendingMessage]] = {}
    for row in rows:
        found.setdefault((row.entity_type, row.entity_id), []).append(row)
    return found
