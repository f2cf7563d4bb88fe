"""Brings in what waits in the store: entity by entity, in rounds, and never more than fits."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.durable.backlog import Backlog, Walk
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.loading import Loading
from actorhub.engine.durable.owner import Owner
from actorhub.engine.model.durable_message import Place
from actorhub.engine.model.records import ACTIVE, SENT, Cell, HostedShard
from actorhub.engine.supervision import set_or_time
from actorhub.storage.message_ports import PendingMessage
from actorhub.storage.ports import Fenced

_log: Final = get_logger("actorhub.backlog")

MOST_LOADED: Final = 4096
"""Messages that the loader brought in and that are in memory at a time, at most."""
PER_ENTITY: Final = 32
"""Messages of one entity that one scan brings in, at most."""
_SHARDS_AT_ONCE: Final = 512
_ENTITIES_AT_ONCE: Final = 1024
_FEWEST_ENTITIES: Final = 16
_BLOCKED: Final = 0.25
"""Seconds until the next try when something found no place. What frees a place wakes the loader before."""
_RETRY: Final = 0.5
"""Seconds until the next scan after a failed one."""


class Loader:
    """Loads messages of shards and entities that have a backlog.

    A shard with a backlog is walked over, in the order of its entities, a few messages of each, until one whole walk
    left nothing in the store. An entity with a backlog is asked for again when what was brought in of it is done.

    Each scan is an await, and anything may happen before its answer. Three things must not go wrong then:

    - The shard was lost, or lost and acquired again. Walks and cells belong to one ownership, which is checked after
      each await. A row that is out of date does no harm: the store counts no run of what is no longer pending.
    - Something was left in the store after the scan read it. `Backlog.marked` has its shard, so the backlog goes on.
    - An insert that will be left in the store (`Place.SPILLING`) was not committed when the scan read. It is found in
      memory when the answer comes, so the backlog goes on. So it does while the store is asked to cancel a message.
    """

    def __init__(self, owner: Owner, *, backlog: Backlog, memory: InMemory, loading: Loading) -> None:
        self._backlog = backlog
        self._memory = memory
        self._loading = loading
        self._shards = owner.shards
        self._store = owner.store
        self._storage = owner.storage
        self._incarnation = owner.incarnation
        self._clock = owner.clock
        self._lease = owner.lease
        self._draining = owner.scheduler.draining
        self._open = owner.open_draining
        self._not_before = 0.0
        """Monotonic seconds."""
        self._held_back: dict[ShardId, set[tuple[str, str]]] = {}
        """Entities with messages held back in the store; found when needed after an answer, cleared at the next."""
        self._batch = _ENTITIES_AT_ONCE
        """Entities that the next scan asks for; fewer after a scan that found no place for all."""
        self._is_blocked = False
        """Something found no place in the present step."""
        self.scans = 0
        """Reads of the store so far."""

    async def run(self) -> None:
        """Load what has a backlog, until cancelled."""
        while True:
            self._backlog.wake.clear()
            await set_or_time(self._backlog.wake, await self._step())

    async def _step(self) -> float | None:
        """Scan the store for each kind of backlog; return the seconds until the next step, `None`: until woken."""
        if not self._backlog.has_work or len(self._backlog.loaded) > MOST_LOADED * 3 // 4:
            return None
        now = self._clock.monotonic()
        if now >= self._lease.fresh_until:
            return _RETRY  # Nothing would start anyway.
        if now < self._not_before:
            return self._not_before - now
        self._is_blocked = False
        try:
            await self._bring_awaited()
            await self._bring_entities()
            await self._bring_shards()
        except PersistenceError as error:
            _log.warning("cannot load waiting messages, will try again: %s", error)
            self._not_before = self._clock.monotonic() + _RETRY
            return _RETRY
        if self._is_blocked:
            return _BLOCKED
        return 0.0 if self._backlog.has_work else None

    async def _bring_awaited(self) -> None:
        """Bring in what callers wait for, ahead of the walks."""
        awaited = list(self._backlog.awaited)[: max(1, self._room() // PER_ENTITY)]
        if not awaited:
            return
        self._begin_scan()
        rows = await self._store.load_entities(awaited, PER_ENTITY)
        self._held_back.clear()
        found = _by_entity(rows)
        for key in awaited:
            shard, entity = self._shards.get(key[0]), key[1:]
            if shard is not None and entity in self._memory.table(shard).moved:
                del self._backlog.awaited[key]
                continue
            if shard is not None and shard.draining and not self._open_draining(shard, entity):
                self._is_blocked = True
                continue
            if shard is not None and not await self._bring(shard, entity, found.get(entity, ()), PER_ENTITY):
                self._is_blocked = True
                return
            self._backlog.awaited.pop(key, None)

    def _open_draining(self, shard: HostedShard, entity: tuple[str, str]) -> bool:
        """Make an entity of a shard that drains resident if a running handler waits for it; `False`: not now."""
        cell = self._backlog.cell_of(entity)
        if cell is not None and cell.has_backlog and cell.durable_count > 0:
            return False  # What it has in memory comes first. It closes after that, and makes room for itself.
        waiting = self._memory.table(shard).waiting.values()
        callers = (caller for group in waiting for caller in group if caller.phase == SENT)
        if not any(caller.entity == entity and self._draining.admits(caller, shard) for caller in callers):
            return False
        self._open(shard, entity)
        return True

    async def _bring_entities(self) -> None:
        """Ask for more of entities that are done with what was brought in."""
        done = [cell for cell in self._backlog.entities if cell.durable_count <= 0 and self._is_live(cell)]
        cells = done[: max(1, self._room() // PER_ENTITY)]
        # Before the await: an entity that is drained meanwhile enters the new dictionary.
        self._backlog.entities = dict.fromkeys(done[len(cells) :])
        if not cells:
            return
        self._begin_scan()
        left = dict.fromkeys(cells)
        try:
            rows = await self._store.load_entities([(cell.shard.id, *cell.entity) for cell in cells], PER_ENTITY)
            self._held_back.clear()
            found = _by_entity(rows)
            for cell in cells:
                if self._is_live(cell):
                    await self._bring(cell.shard, cell.entity, found.get(cell.entity, ()), PER_ENTITY)
                    if cell.has_backlog and cell.durable_count <= 0:
                        self._backlog.entities[cell] = None
                del left[cell]
        except PersistenceError:
            self._backlog.entities.update(left)
            raise

    async def _bring_shards(self) -> None:
        """Go on with the walks over shards."""
        # A shard that drains is left to its next owner.
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
        self._held_back.clear()
        found: dict[ShardId, list[PendingMessage]] = {}
        for row in rows:
            found.setdefault(row.shard, []).append(row)
        is_full = False
        for shard_id, walk in walks.items():
            if not await self._advance(shard_id, walk, found.get(shard_id, ()), per_entity, is_full=is_full):
                is_full = self._is_blocked = True
            elif shard_id in exhausted:
                self._on_walk_ended(shard_id, walk)
        self._batch = max(_FEWEST_ENTITIES, self._batch // 2) if is_full else min(_ENTITIES_AT_ONCE, self._batch * 2)

    async def _advance(
        self, shard_id: ShardId, walk: Walk, rows: Sequence[PendingMessage], per_entity: int, *, is_full: bool
    ) -> bool:
        """Bring in what was found of a shard; `False` if it stopped at an entity that found no place."""
        began_at = walk.cursor
        for entity, group in _by_entity(rows).items():
            shard = self._shards.get(shard_id)
            if shard is None or self._backlog.walks.get(shard_id) is not walk:
                return True
            if (is_full and self._backlog.cell_of(entity) is None) or not await self._bring(
                shard, entity, group, per_entity
            ):
                if walk.cursor != began_at:
                    # This shard got places, so it comes last next time: all shards get some, in turn.
                    self._backlog.walks[shard_id] = self._backlog.walks.pop(shard_id)
                return False
            walk.cursor = entity
        return True

    def _on_walk_ended(self, shard_id: ShardId, walk: Walk) -> None:
        """A walk reached the end: the shard no longer has a backlog, or needs another walk."""
        if self._backlog.walks.get(shard_id) is not walk:
            return
        del self._backlog.walks[shard_id]
        shard = self._shards[shard_id]
        if walk.again or self._held_back_in(shard):
            self._backlog.walks[shard_id] = Walk()
        elif shard.has_backlog:
            shard.has_backlog = False
            # A resident entity with messages in memory decides by itself, when those are done; so does one that is to
            # be asked for. Of the others the walk has seen everything.
            for cell in shard.cells:
                if cell.durable_count <= 0 and cell not in self._backlog.entities:
                    cell.has_backlog = False

    async def _bring(
        self, shard: HostedShard, entity: tuple[str, str], rows: Sequence[PendingMessage], limit: int
    ) -> bool:
        """Admit the messages of one entity, oldest first; `False` if there is no place for the entity."""
        # What was brought in of it before is not done. More of it might come in out of order; it is asked for when it
        # is done.
        cell = self._backlog.cell_of(entity)
        if cell is not None and cell.shard is not shard:
            await self._reunite(shard, cell)
            return True
        if cell is not None and cell.has_backlog and cell.durable_count > 0:
            return True
        # Fewer rows than asked for: there are no more.
        is_all = len(rows) < limit
        known = [row for row in rows if self._loading.handler_of(row) is not None]
        if not (known or is_all):
            # All of these are for handlers that only another release has. They must not hide what is behind them.
            rows = await self._store.load_entities([(shard.id, *entity)], MOST_LOADED)
            self._held_back.clear()
            is_all = len(rows) < MOST_LOADED
            known = [row for row in rows if self._loading.handler_of(row) is not None]
        if self._shards.get(shard.id) is not shard:
            return True
        brought = self._admit(known[:limit], shard)
        if brought is None:
            return self._on_no_room(entity)
        cell = self._backlog.cell_of(entity)
        if cell is not None and (cell.has_backlog or brought):
            cell.has_backlog = not is_all or len(known) > limit or self._may_have_missed(shard, entity)
        return True

    def _admit(self, rows: Sequence[PendingMessage], shard: HostedShard) -> int | None:
        """Admit messages of one entity; return how many, or `None` if there was no place for all of them."""
        brought = 0
        for row in rows:
            if self._memory.is_held_back(row.message_id, shard):
                # It was sent to this process again and its insert is under way, or it is being cancelled. What is
                # behind it waits, too, and the answer wakes the loader.
                self._is_blocked = True
                break
            message = self._loading.load(row, shard)
            if message is None:
                continue
            if not self._memory.admit(message, from_store=True):
                # What was admitted before it stays; this one, and those after it, are read again.
                self._memory.leave_in_store(message)
                return None
            # It may have left memory again at once.
            if message.place is not Place.GONE:
                self._backlog.loaded.add(message)
            brought += 1
        return brought

    async def _reunite(self, shard: HostedShard, cell: Cell) -> None:
        """Move messages of an entity to the shard in which it is activated, which is this runner's, too."""
        cell.has_backlog = True
        with contextlib.suppress(Fenced):
            await self._storage.move_entity(
                cell.entity,
                source=shard.id,
                source_owner=self._incarnation,
                target=cell.shard.id,
                incarnation=self._incarnation,
            )
        if self._shards.get(cell.shard.id) is cell.shard:
            self._backlog.mark_awaited(cell.shard, cell.entity)
        # The entity is not activated there, so no run of it is counted there.
        _ = self._memory.let_go_of(shard, cell.entity, cell.shard.id)

    def _on_no_room(self, entity: tuple[str, str]) -> bool:
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
        """Whether the store may have a message of the entity that the latest scan did not see."""
        return shard.id in self._backlog.marked or entity in self._held_back_in(shard)

    def _held_back_in(self, shard: HostedShard) -> set[tuple[str, str]]:
        found = self._held_back.get(shard.id)
        if found is None:
            found = self._held_back[shard.id] = self._memory.held_back(shard)
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
