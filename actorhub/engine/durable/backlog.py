"""Bringing in what waits in the store: entity by entity, in turns, never more than fits."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.cron import parse_fire_time_key
from actorhub.core.errors import PersistenceError
from actorhub.engine.model.cell import ACTIVE, Cell, HostedShard, HostedType
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.runs.scheduler import Lease
from actorhub.engine.supervision import set_or_time
from actorhub.storage.message_ports import MessageStore, PendingMessage

_log: Final = logging.getLogger("actorhub.backlog")

MOST_LOADED: Final = 4096
"""Messages from the store that are in memory at a time."""
PER_ENTITY: Final = 32
"""Messages of one entity that one look brings in."""
_SHARDS_AT_ONCE: Final = 512
_ENTITIES_AT_ONCE: Final = 1024
_FEWEST_ENTITIES: Final = 16
_BLOCKED: Final = 0.25
"""Seconds after which to try again when every resident entity was busy and nothing ended meanwhile."""
_RETRY: Final = 0.5
"""Seconds until the next look after a failed one."""
_START: Final = ("", "")


class _Pass:
    """One walk over the entities of a shard."""

    __slots__ = ("again", "cursor")

    def __init__(self) -> None:
        self.cursor: tuple[str, str] = _START
        """Type and id of the last entity that was seen to; one that found no place is the next."""
        self.again = False
        """Something came since the walk began, perhaps behind the cursor."""


class Backlog:
    """Loads messages for shards and entities that are behind. All state is in `_passes`, `_entities` and `loaded`.

    A shard that is *behind* is walked over in rounds, in the order of its entities, until one round left nothing in the
    store. An entity that is behind is asked for again when what was brought in of it is done.

    What is behind stays so until a look proves the contrary. A message that was left in the store while the look was
    under way may be missing in the answer, and nothing that comes later may overtake it.
    """

    def __init__(
        self,
        *,
        types: Mapping[str, HostedType],
        shards: Mapping[ShardId, HostedShard],
        store: MessageStore,
        clock: Clock,
        lease: Lease,
        load: Callable[[PendingMessage, HostedShard], DurableMessage | None],
        seat: Callable[[DurableMessage], bool],
    ) -> None:
        self._types = types
        self._shards = shards
        self._store = store
        self._clock = clock
        self._lease = lease
        self._load = load
        self._seat = seat
        self._passes: dict[ShardId, _Pass] = {}
        self._entities: dict[Cell, None] = {}
        """Entities that are behind and have nothing left in memory."""
        self._asked: dict[tuple[ShardId, str, str], None] = {}
        """Entities without a place that somebody waits for: they come before the walks, however long those are."""
        self._wake = asyncio.Event()
        self._not_before = 0.0
        """Monotonic seconds."""
        self._wished: set[ShardId] = set()
        """Shards for which something was left in the store since the present look began."""
        self._spilling: dict[ShardId, set[tuple[str, str]]] = {}
        """Entities of which something is on its way into the store only; valid until the next look's answer."""
        self._unknown: set[tuple[str, str]] = set()
        """Types and handlers of which was said that this process does not know them."""
        self._batch = _ENTITIES_AT_ONCE
        """Entities that the next look asks for: fewer after one that found no place for all."""
        self._is_blocked = False
        self.loaded = 0
        """Messages that came from the store and are not settled."""
        self.looks = 0

    def wish(self, shard: HostedShard) -> None:
        """Note that something of the shard waits in the store, which is (or will be) committed by now."""
        shard.is_behind = True
        self._wished.add(shard.id)
        self.look(shard)

    def ask_for(self, shard: HostedShard, entity: tuple[str, str]) -> None:
        """Note that somebody waits for a message of the entity, which is left in the store."""
        cell = self._cell(entity)
        if cell is None or cell.durable <= 0:
            self._asked[shard.id, *entity] = None
        self.wish(shard)

    def look(self, shard: HostedShard) -> None:
        """Walk over the shard once: perhaps something waits in the store that this process was not told of."""
        walk = self._passes.get(shard.id)
        if walk is None:
            self._passes[shard.id] = _Pass()
        else:
            walk.again = True
        self._wake.set()

    def forget(self, shard: HostedShard) -> None:
        """The shard is not this process's any more."""
        self._passes.pop(shard.id, None)
        for key in [key for key in self._asked if key[0] == shard.id]:
            del self._asked[key]
        for cell in [cell for cell in self._entities if cell.shard is shard]:
            del self._entities[cell]

    def unloaded(self, message: DurableMessage) -> None:
        """A message that this brought in is settled, or left memory."""
        message.is_loaded = False
        self.loaded -= 1
        self.place_freed()

    def drained(self, cell: Cell) -> None:
        """An entity that is behind has no durable message in memory any more."""
        self._entities[cell] = None
        self._wake.set()

    def left(self, cell: Cell) -> None:
        """An entity left memory; what it has in the store is its shard's to find."""
        self._entities.pop(cell, None)
        if cell.is_behind and self._shards.get(cell.shard.id) is cell.shard:
            self.wish(cell.shard)
        else:
            self.place_freed()

    def place_freed(self) -> None:
        """Something left memory that held up others: a message that was brought in, or an entity."""
        if self._has_work:
            self._wake.set()

    @property
    def _has_work(self) -> bool:
        return bool(self._passes or self._entities or self._asked)

    async def run(self) -> None:
        """Load whatever is behind, for ever."""
        while True:
            self._wake.clear()
            await set_or_time(self._wake, await self._step())

    async def _step(self) -> float | None:
        """Look into the store once; return the seconds until the next step; `None`: when somebody wakes it."""
        if not self._has_work or self.loaded > MOST_LOADED * 3 // 4:
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
        return 0.0 if self._has_work else None

    async def _bring_asked(self) -> None:
        """Bring in what somebody waits for, whoever else is in line."""
        asked = list(self._asked)[: max(1, self._room() // PER_ENTITY)]
        if not asked:
            return
        self._begin_look()
        rows = await self._store.load_entities(asked, PER_ENTITY)
        self._spilling.clear()
        found = _by_entity(rows)
        for key in asked:
            shard, entity = self._shards.get(key[0]), key[1:]
            if shard is not None and not await self._bring(shard, entity, found.get(entity, ()), PER_ENTITY):
                self._is_blocked = True
                return
            self._asked.pop(key, None)

    async def _bring_entities(self) -> None:
        """Ask again for entities that are done with what was brought in."""
        done = [cell for cell in self._entities if cell.durable <= 0 and self._is_live(cell)]
        cells = done[: max(1, self._room() // PER_ENTITY)]
        self._entities = dict.fromkeys(done[len(cells) :])
        if not cells:
            return
        self._begin_look()
        try:
            rows = await self._store.load_entities([(cell.shard.id, *_entity(cell)) for cell in cells], PER_ENTITY)
        except PersistenceError:
            self._entities.update(dict.fromkeys(cells))
            raise
        self._spilling.clear()
        found = _by_entity(rows)
        for cell in cells:
            if self._is_live(cell):
                await self._bring(cell.shard, _entity(cell), found.get(_entity(cell), ()), PER_ENTITY)
                if cell.is_behind and cell.durable <= 0:
                    self._entities[cell] = None

    async def _bring_shards(self) -> None:
        """Go on with the walks over shards."""
        walks: dict[ShardId, _Pass] = {}
        for shard_id, walk in list(self._passes.items())[:_SHARDS_AT_ONCE]:
            if (shard := self._shards.get(shard_id)) is not None and not shard.draining:
                walks[shard_id] = walk
            else:
                del self._passes[shard_id]
        if not walks:
            return
        self._begin_look()
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
        self, shard_id: ShardId, walk: _Pass, rows: Sequence[PendingMessage], per_entity: int, *, is_full: bool
    ) -> bool:
        """Bring in what was found of a shard; `False` if it stands still before an entity that found no place."""
        began_at = walk.cursor
        for entity, group in _by_entity(rows).items():
            shard = self._shards.get(shard_id)
            if shard is None or self._passes.get(shard_id) is not walk:
                return True
            if (is_full and self._cell(entity) is None) or not await self._bring(shard, entity, group, per_entity):
                if walk.cursor != began_at:
                    # Who got places goes last next time.
                    self._passes[shard_id] = self._passes.pop(shard_id)
                return False
            walk.cursor = entity
        return True

    def _walked(self, shard_id: ShardId, walk: _Pass) -> None:
        """A walk came to its end: the shard is not behind any more, or needs another one."""
        if self._passes.get(shard_id) is not walk:
            return
        del self._passes[shard_id]
        shard = self._shards[shard_id]
        if walk.again or self._spilling_of(shard):
            self._passes[shard_id] = _Pass()
        elif shard.is_behind:
            shard.is_behind = False
            for cell in shard.cells:
                if cell.durable <= 0 and cell not in self._entities:
                    cell.is_behind = False

    async def _bring(
        self, shard: HostedShard, entity: tuple[str, str], rows: Sequence[PendingMessage], limit: int
    ) -> bool:
        """Seat the messages of one entity, oldest first; `False` if there is no place for the entity."""
        cell = self._cell(entity)
        if cell is not None and cell.is_behind and cell.durable > 0:
            return True
        is_all = len(rows) < limit
        known = [row for row in rows if self.handler_of(row) is not None]
        if not (known or is_all):
            # What only another release can run must not hide what is behind it.
            rows = await self._store.load_entities([(shard.id, *entity)], MOST_LOADED)
            self._spilling.clear()
            is_all = len(rows) < MOST_LOADED
            known = [row for row in rows if self.handler_of(row) is not None]
        if self._shards.get(shard.id) is not shard:
            return True
        brought = 0
        for row in known[:limit]:
            message = self._load(row, shard)
            if message is None:
                continue
            if not self._seat(message):
                shard.host.delivery.leave_in_store(message)
                return self._found_no_room(entity)
            message.is_loaded = True
            self.loaded += 1
            brought += 1
        cell = self._cell(entity)
        if cell is not None and (cell.is_behind or brought):
            cell.is_behind = not is_all or len(known) > limit or self._may_have_missed(shard, entity)
        return True

    def _found_no_room(self, entity: tuple[str, str]) -> bool:
        """Return `False` if the entity cannot be made resident; else its mailbox is full, perhaps of volatile calls."""
        cell = self._cell(entity)
        if cell is None:
            return False
        if cell.durable <= 0:
            self._entities[cell] = None
            self._is_blocked = True
        return True

    def _begin_look(self) -> None:
        self.looks += 1
        self._wished.clear()

    def _may_have_missed(self, shard: HostedShard, entity: tuple[str, str]) -> bool:
        """Whether a message of the entity is on its way into the store, or came there after the present look began."""
        return shard.id in self._wished or entity in self._spilling_of(shard)

    def _spilling_of(self, shard: HostedShard) -> set[tuple[str, str]]:
        found = self._spilling.get(shard.id)
        if found is None:
            found = self._spilling[shard.id] = {
                (message.spec.entity_type, message.entity_id)
                for message in shard.messages.values()
                if message.is_set_aside
            }
        return found

    def handler_of(self, row: PendingMessage) -> HandlerSpec | None:
        """Return the handler that a message is for; `None`: this release has none such, so the message waits.

        A handler that is not durable any more could not settle it, and an instant's message is for a schedule.
        """
        hosted = self._types.get(row.entity_type)
        spec = None if hosted is None else hosted.spec.handlers.get(row.handler)
        if spec is not None and spec.durable and not _is_unscheduled(spec, row):
            return spec
        if (row.entity_type, row.handler) not in self._unknown:
            self._unknown.add((row.entity_type, row.handler))
            _log.warning("messages for %s.%s wait: this release does not have it", row.entity_type, row.handler)
        return None

    def _cell(self, entity: tuple[str, str]) -> Cell | None:
        hosted = self._types.get(entity[0])
        return None if hosted is None else hosted.cells.get(entity[1])

    def _room(self) -> int:
        return MOST_LOADED - self.loaded

    def _is_live(self, cell: Cell) -> bool:
        return cell.phase <= ACTIVE and self._shards.get(cell.shard.id) is cell.shard


def _entity(cell: Cell) -> tuple[str, str]:
    return cell.hosted.spec.name, cell.entity_id


def _is_unscheduled(spec: HandlerSpec, row: PendingMessage) -> bool:
    """Whether the message is an instant's, and the handler has no schedule any more."""
    return spec.singleton and not spec.crons and row.key is not None and parse_fire_time_key(row.key) is not None


def _by_entity(rows: Iterable[PendingMessage]) -> Mapping[tuple[str, str], Sequence[PendingMessage]]:
    found: dict[tuple[str, str], list[PendingMessage]] = {}
    for row in rows:
        found.setdefault((row.entity_type, row.entity_id), []).append(row)
    return found
