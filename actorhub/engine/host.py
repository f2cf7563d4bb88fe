"""What this process hosts: owned shards, their resident entities, and the way in for messages."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.envelope import CANCEL_MESSAGE, RETRY_MESSAGE
from actorhub.core.errors import ActorhubError, MailboxFull
from actorhub.engine.durable.intake import Delivery
from actorhub.engine.durable.requests import MessageRequests
from actorhub.engine.model.cell import ACTIVE, CLOSING, DEAD, Cell, HostedShard, HostedType
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.message import DONE, NEW, SENT, Message
from actorhub.engine.runs.activation import Activations
from actorhub.engine.runs.commits import RunCommits
from actorhub.engine.runs.completion import Results, ResultStatistics
from actorhub.engine.runs.deferred import Deferrals
from actorhub.engine.runs.residency import Residency
from actorhub.engine.runs.scheduler import Lease, Turns
from actorhub.engine.runs.streams import Streams
from actorhub.engine.singletons.registry import Singletons
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage

_log: Final = logging.getLogger("actorhub.host")

_TELLING_LOOK: Final = 0.005
"""Seconds between looks at whether what was told has arrived, while a shard is handed over."""
_DURABLE_SHARE: Final = 75
"""Per cent of the places for residents that durable messages may take: a backlog leaves room for other calls."""


class HostStatistics(msgspec.Struct, frozen=True):
    """What is hosted now, and counts since the start of this process."""

    shards: int
    resident: int
    queued: int
    started: int
    activated: int
    passivated: int
    failed_activations: int
    results: ResultStatistics


class Host:
    """Owns the cells. A cell exists only in a shard that `granted` named and neither `revoked` nor `drain` ended."""

    def __init__(
        self,
        *,
        types: Mapping[str, HostedType],
        storage: Storage,
        clock: Clock,
        lease: Lease,
        supervisor: Supervisor,
        incarnation: str,
        limits: Limits,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.types = types
        self.has_durable = any(
            handler.durable for hosted in types.values() for handler in hosted.spec.handlers.values()
        )
        """Whether some type has a durable handler: nobody else pays for durable messages."""
        self.storage = storage
        self.limits = limits
        self._lease = lease
        self.shards: dict[ShardId, HostedShard] = {}
        self.resident = 0
        self._max_resident = limits.max_resident
        self.durable_entities = 0
        """How many residents have durable messages in memory."""
        self._max_durable = max(1, limits.max_resident * _DURABLE_SHARE // 100)
        self._clock = clock
        self.turns = Turns(loop, clock, lease)
        self.results = Results(self.turns, storage, incarnation, limits.max_message_bytes)
        self.results.streams = Streams(self.turns, self.results, supervisor, limits.max_message_bytes)
        self.results.distrust = self._distrust
        self.messages = storage.messages
        self.results.runs = self.runs = RunCommits(
            turns=self.turns,
            results=self.results,
            store=self.messages,
            supervisor=supervisor,
            incarnation=incarnation,
            retention=limits.retention,
        )
        self.results.delivery = self.delivery = Delivery(
            host=self,
            store=self.messages,
            clock=clock,
            lease=lease,
            supervisor=supervisor,
            incarnation=incarnation,
            retention=limits.retention,
        )
        self.requests = MessageRequests(
            delivery=self.delivery, store=self.messages, supervisor=supervisor, incarnation=incarnation
        )
        self.activations = Activations(
            turns=self.turns, results=self.results, storage=storage, supervisor=supervisor, clock=clock
        )
        self.activations.gone = self._gone
        self.deferrals = Deferrals(storage.checkpoints)
        self.singletons = Singletons(self, supervisor, clock, incarnation)
        self.address = ""
        """Of this runner."""
        self.residency = Residency(types, self.activations, clock)
        self.turns.outcomes = self.results
        self.turns.idle = self.activations.idle
        self.turns.not_owned = self._take_back
        self.reroute: Callable[[Message], None]
        """Takes a message that did not start here and whose shard is, or will be, somebody else's."""
        self.mistrusted: Callable[[ShardId], None]
        """Told of a shard for which the store refused a commit: ownership must be checked."""

    def submit(self, message: Message, shard: HostedShard) -> None:
        """Queue `message` for its entity, activating it first if it is not resident."""
        hosted = self.types[message.spec.entity_type]
        cell = hosted.cells.get(message.entity_id)
        if cell is not None:
            self.turns.enqueue(cell, message)
        elif shard.draining:
            shard.held.append(message)
        elif hosted.spec.singleton_id is None and self.resident >= self._max_resident and not self._make_room():
            message.phase = DONE
            message.failed(
                MailboxFull(f"{message.address}: {self.resident} entities are resident, all busy or just leaving")
            )
        else:
            self.turns.enqueue(self._new_cell(hosted, shard, message.entity_id), message)

    def take_durable(self, message: Message, shard: HostedShard) -> None:
        """Take a call of a durable handler, or a request about a durable message, of an owned shard."""
        if message.kind == CANCEL_MESSAGE:
            self.requests.cancel(message, shard)
        elif message.kind == RETRY_MESSAGE:
            self.requests.retry(message, shard)
        else:
            self.delivery.accept(message, shard)

    def seat(self, message: DurableMessage, shard: HostedShard, from_store: bool) -> bool:
        """Queue a durable message for its entity; `False` if it must wait in the store, behind others or for room."""
        hosted = self.types[message.spec.entity_type]
        cell = hosted.cells.get(message.entity_id)
        if cell is None:
            if shard.draining or (shard.is_behind and not from_store):
                return False
            if hosted.spec.singleton_id is None and (
                self.durable_entities >= self._max_durable
                or (self.resident >= self._max_resident and not self._make_room())
            ):
                return False
            cell = self._new_cell(hosted, shard, message.entity_id)
        elif (cell.is_behind and not from_store) or (
            cell.queue is not None and len(cell.queue) >= hosted.spec.mailbox_capacity
        ):
            cell.is_behind = True
            return False
        message.is_seated = True
        self.durable_entities += cell.durable == 0
        cell.durable += 1
        self.turns.enqueue(cell, message)
        return True

    def granted(self, shards: Mapping[ShardId, int]) -> None:
        """Start hosting `shards` (shard to epoch)."""
        hosted = [HostedShard(self, shard, epoch) for shard, epoch in shards.items()]
        self.shards.update((shard.id, shard) for shard in hosted)
        if self.has_durable:
            self.delivery.granted(hosted)
        self.singletons.granted(hosted)

    def open_singleton(self, hosted: HostedType, shard: HostedShard) -> Cell:
        """Return the singleton's activation, made now if there is none; it always has a place in memory."""
        entity_id = str(hosted.spec.singleton_id)
        cell = hosted.cells.get(entity_id)
        return self._new_cell(hosted, shard, entity_id) if cell is None else cell

    def revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Stop everything of `shards` now; what runs is cancelled, what did not start goes to its next owner."""
        for shard_id in shards:
            shard = self.shards.pop(shard_id, None)
            if shard is not None:
                self._kill(shard)
        self.turns.cancel_dead(reason)

    async def drain(self, shard_id: ShardId, grace: float) -> None:
        """Start nothing more in the shard, let what runs finish for at most `grace` seconds, passivate all."""
        shard = self.shards.get(shard_id)
        if shard is None:
            return
        shard.draining = True
        self.singletons.stop(shard)
        until = self._clock.monotonic() + grace
        if shard.cells:
            shard.emptied = asyncio.get_running_loop().create_future()
            for cell in list(shard.cells):
                self.activations.close(cell)
            self.turns.let_go(shard)
            try:
                async with asyncio.timeout(grace):
                    await shard.emptied
            except TimeoutError:
                _log.warning("shard %s: %d entities did not finish within %.1f s", shard_id, len(shard.cells), grace)
        await self._until_told(shard, until)
        await self.singletons.handed_over(shard, until - self._clock.monotonic())
        if self.shards.get(shard_id) is shard:
            del self.shards[shard_id]
            self._kill(shard)
            self.turns.cancel_dead("the shard moved and the handler did not finish within the grace time")

    async def _until_told(self, shard: HostedShard, until: float) -> None:
        """Wait until those whom the shard's entities told something know of it.

        What the entities tell from their next runner would overtake it otherwise. Who has no owner learns it from the
        store.
        """
        while any(told.phase == SENT for told in shard.told) and self._clock.monotonic() < until:  # noqa: ASYNC110 - once per move
            await asyncio.sleep(_TELLING_LOOK)

    def lease_is_fresh(self) -> bool:
        """Whether this process can prove its ownership right now."""
        return self._clock.monotonic() < self._lease.fresh_until

    def cells(self) -> Iterator[Cell]:
        """Iterate over everything resident."""
        for shard in self.shards.values():
            yield from shard.cells

    def statistics(self) -> HostStatistics:
        """Return counts; walks all owned shards."""
        return HostStatistics(
            shards=len(self.shards),
            resident=self.resident,
            queued=sum(shard.queued for shard in self.shards.values()),
            started=self.turns.started,
            activated=self.activations.activated,
            passivated=self.activations.passivated,
            failed_activations=self.activations.failed,
            results=self.results.statistics(),
        )

    def _make_room(self) -> bool:
        # Who leaves counts until its on_deactivate is done: as many again may be on their way out, not more.
        return self.resident < 2 * self._max_resident and self.residency.make_room()

    def _new_cell(self, hosted: HostedType, shard: HostedShard, entity_id: str) -> Cell:
        cell = Cell(hosted, shard, entity_id)
        hosted.cells[entity_id] = cell
        shard.cells.add(cell)
        self.resident += 1
        self.activations.begin(cell)
        return cell

    def _gone(self, cell: Cell) -> None:
        """Forget a cell without an instance; messages that came meanwhile get a fresh activation, here or elsewhere."""
        hosted, shard = cell.hosted, cell.shard
        if hosted.cells.get(cell.entity_id) is cell:
            del hosted.cells[cell.entity_id]
        if cell in shard.cells:
            shard.cells.discard(cell)
            self.resident -= 1
        left = [message for message in cell.take_queue() if not message.taken_back()]
        self.delivery.backlog.left(cell)
        if hosted.spec.singleton_id is not None:
            self.singletons.gone(cell)
        if shard.draining:
            shard.held.extend(left)
            if not shard.cells and shard.emptied is not None and not shard.emptied.done():
                shard.emptied.set_result(None)
        elif self.shards.get(shard.id) is shard:
            for message in left:
                self.submit(message, shard)
        else:
            for message in left:
                self._take_back(message)

    def _kill(self, shard: HostedShard) -> None:
        self.delivery.revoked(shard)
        self.singletons.over(shard)
        held, shard.held = shard.held, type(shard.held)()
        for cell in list(shard.cells):
            self._kill_cell(cell)
            held.extend(cell.take_queue())
        shard.cells.clear()
        if shard.emptied is not None and not shard.emptied.done():
            shard.emptied.set_result(None)
        for message in held:
            self._take_back(message)

    def _kill_cell(self, cell: Cell) -> None:
        cell.phase = DEAD
        self.durable_entities -= cell.durable > 0
        cell.durable = 0
        if cell.hosted.cells.get(cell.entity_id) is cell:
            del cell.hosted.cells[cell.entity_id]
        self.resident -= 1
        for task in cell.streams or ():
            task.cancel()
        if cell.hosted.spec.singleton_id is not None:
            self.singletons.gone(cell)

    def _take_back(self, message: Message) -> None:
        """Send a message that did not start on its way again, unless its caller has been told that it failed."""
        if message.producer is None and message.phase != DONE and not message.taken_back():
            message.phase = NEW
            message.cell = None
            message.is_nested = False
            self.reroute(message)

    def _distrust(self, cell: Cell, error: ActorhubError) -> None:
        """The store refused this cell's commit: build it anew, and have the shard's ownership checked."""
        _log.warning("%s: commit refused: %s", cell.address, error)
        if cell.phase in (ACTIVE, CLOSING):
            cell.phase = DEAD
            for task in cell.streams or ():
                # A stream whose own commit this was ends with that error.
                if task is not asyncio.current_task():
                    task.cancel()
            self._gone(cell)
        if self.shards.get(cell.shard.id) is cell.shard:
            # What a former activation still tries says nothing of a shard that was lost, or acquired anew, since.
            self.mistrusted(cell.shard.id)
