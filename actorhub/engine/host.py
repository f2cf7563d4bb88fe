"""What this process hosts: owned shards, their resident entities, and the way in for messages.

Made bottom-up, from what needs nobody to what needs all the others; what a lower part tells upwards comes in at the
host's own methods.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, MailboxFull
from actorhub.engine.durable.delivery import Delivery
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import ACTIVE, CLOSING, DEAD, DONE, NEW, SENT, Cell, HostedShard, HostedType, Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.runs.activation import Activations
from actorhub.engine.runs.carriers import Carriers
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.runs.commits import Commits
from actorhub.engine.runs.completion import Completion, CompletionStatistics
from actorhub.engine.runs.deferred import Deferrals
from actorhub.engine.runs.hooks import Hooks
from actorhub.engine.runs.residency import Residency, Residents
from actorhub.engine.runs.saving import Saving
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.services import RunServices, services
from actorhub.engine.runs.streams import Streams
from actorhub.engine.runs.waits import DurableWaits
from actorhub.engine.singletons.leader import LeaderServices
from actorhub.engine.singletons.registry import Singletons
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage

_log: Final = logging.getLogger("actorhub.host")

_TELLING_LOOK: Final = 0.005
"""Seconds between looks at whether what was told has arrived, while a shard is handed over."""


class HostStatistics(msgspec.Struct, frozen=True):
    """What is hosted now, and counts since the start of this process."""

    shards: int
    resident: int
    queued: int
    started: int
    activated: int
    passivated: int
    failed_activations: int
    results: CompletionStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a host needs of its runner."""

    address: str
    incarnation: str
    types: Mapping[str, HostedType]
    limits: Limits
    sharding: Sharding
    storage: Storage
    clock: Clock
    lease: Lease
    supervisor: Supervisor
    route: Callable[[Message], None]
    """Sends on its way what a handler told."""
    reroute: Callable[[Message], None]
    """Takes a message that did not start here and whose shard is, or will be, somebody else's."""
    mistrust: Callable[[ShardId], None]
    """Told of a shard for which the store refused a commit: ownership must be checked."""
    new_id: Callable[[], int]
    """Returns the id of a new message."""


class Host:
    """Owns the cells. A cell exists only in a shard that `granted` named and neither `revoked` nor `drain` ended."""

    def __init__(self, around: Surroundings) -> None:
        self.types = around.types
        self.has_durable = any(
            handler.durable for hosted in around.types.values() for handler in hosted.spec.handlers.values()
        )
        """Whether some type has a durable handler: nobody else pays for durable messages."""
        self.shards: dict[ShardId, HostedShard] = {}
        self.lease = around.lease
        self._clock = around.clock
        self._reroute = around.reroute
        self._mistrust = around.mistrust
        self.server = server = ServerClock(around.clock)
        limit = around.limits.max_message_bytes
        storage, supervisor = around.storage, around.supervisor

        self.scheduler = Scheduler(carry=self._carry, passivate_if_idle=self._passivate_if_idle, route=around.route)
        commits = Commits(
            storage=storage,
            supervisor=supervisor,
            incarnation=around.incarnation,
            sharding=around.sharding,
            retention=around.limits.retention,
        )
        self.completion = Completion(
            scheduler=self.scheduler, commits=commits, max_message_bytes=limit, distrust=self._distrust
        )
        saving = Saving(
            scheduler=self.scheduler, commits=commits, completion=self.completion, checkpoints=storage.checkpoints
        )
        checkpoints = Checkpoints(store=storage.checkpoints, saving=saving, max_message_bytes=limit)
        waits = DurableWaits(
            checkpoints=checkpoints, saving=saving, scheduler=self.scheduler, messages=storage.messages
        )
        self.deferrals = Deferrals(storage.checkpoints, waits)
        hooks = Hooks(scheduler=self.scheduler, completion=self.completion, saving=saving)
        self.singletons = Singletons(
            LeaderServices(
                address=around.address,
                incarnation=around.incarnation,
                shards=self.shards,
                store=storage.singletons,
                checkpoints=checkpoints,
                messages=storage.messages,
                server=server,
                clock=around.clock,
                supervisor=supervisor,
                scheduler=self.scheduler,
                hooks=hooks,
                open=self._open_singleton,
                accept=self.take_durable,
                mistrust=around.mistrust,
                new_id=around.new_id,
            ),
            types=around.types.values(),
            sharding=around.sharding,
            completion=self.completion,
            saving=saving,
        )
        self.activations = Activations(
            scheduler=self.scheduler,
            hooks=hooks,
            leaders=self.singletons,
            storage=storage,
            supervisor=supervisor,
            clock=around.clock,
            on_gone=self._on_gone,
        )
        self.residency = Residency(around.types, self.activations, around.clock)
        self.residents = Residents(
            most=around.limits.max_resident, activations=self.activations, residency=self.residency
        )
        owner = Owner(
            incarnation=around.incarnation,
            types=around.types,
            shards=self.shards,
            lease=around.lease,
            limits=around.limits,
            store=storage.messages,
            server=server,
            clock=around.clock,
            scheduler=self.scheduler,
            supervisor=supervisor,
            reroute=around.reroute,
            mistrust=around.mistrust,
        )
        self.delivery = Delivery(owner, self.residents)
        self.carriers = Carriers(
            loop=asyncio.get_running_loop(),
            clock=around.clock,
            lease=around.lease,
            scheduler=self.scheduler,
            completion=self.completion,
            streams=Streams(
                scheduler=self.scheduler,
                completion=self.completion,
                saving=saving,
                supervisor=supervisor,
                max_message_bytes=limit,
                take_back=self._take_back,
            ),
            gate=self.delivery.attempts,
            take_back=self._take_back,
        )
        self.scheduler.context.run(
            services.set,
            RunServices(
                saving=saving,
                checkpoints=checkpoints,
                waits=waits,
                deferrals=self.deferrals,
                save_main_loop=self.singletons.save,
                run_scheduled=self.singletons.run_scheduled,
            ),
        )

    def submit(self, message: Message, shard: HostedShard) -> None:
        """Queue `message` for its entity, activating it first if it is not resident."""
        hosted_type = self.types[message.spec.entity_type]
        cell = hosted_type.cells.get(message.entity_id)
        if cell is not None:
            self.scheduler.enqueue(cell, message)
        elif shard.draining:
            shard.held.append(message)
        elif not self.residents.ensure_room(hosted_type):
            message.phase = DONE
            message.on_failed(
                MailboxFull(
                    f"{message.address}: {self.residents.count} entities are resident, all busy or just leaving"
                )
            )
        else:
            self.scheduler.enqueue(self.residents.add(hosted_type, shard, message.entity_id), message)

    def take_durable(self, message: Message, shard: HostedShard) -> None:
        """Take a call of a durable handler, or a request about a durable message, of an owned shard."""
        self.delivery.accept(message, shard)

    def poll(self) -> None:
        """Scan the store for whatever this process was not told of."""
        self.singletons.poll()
        self.delivery.poll()

    def granted(self, shards: Mapping[ShardId, int]) -> None:
        """Start hosting `shards` (shard to epoch)."""
        hosted = [HostedShard(shard, epoch, self.lease) for shard, epoch in shards.items()]
        self.shards.update((shard.id, shard) for shard in hosted)
        if self.has_durable:
            self.delivery.on_granted(hosted)
        self.singletons.granted(hosted)

    def revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Stop everything of `shards` now; what runs is cancelled, what did not start goes to its next owner."""
        for shard_id in shards:
            shard = self.shards.pop(shard_id, None)
            if shard is not None:
                self._kill(shard)
        self.scheduler.cancel_dead(reason)

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
            self.scheduler.cut_short(shard)
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
            self.scheduler.cancel_dead("the shard moved and the handler did not finish within the grace time")

    async def _until_told(self, shard: HostedShard, until: float) -> None:
        """Wait until those whom the shard's entities told something know of it.

        What the entities tell from their next runner would overtake it otherwise. Who has no owner learns it from the
        store.
        """
        while any(told.phase == SENT for told in shard.told) and self._clock.monotonic() < until:  # noqa: ASYNC110 - once per move
            await asyncio.sleep(_TELLING_LOOK)

    def cells(self) -> Iterator[Cell]:
        """Iterate over everything resident."""
        for shard in self.shards.values():
            yield from shard.cells

    def statistics(self) -> HostStatistics:
        """Return counts; walks all owned shards."""
        return HostStatistics(
            shards=len(self.shards),
            resident=self.residents.count,
            queued=sum(shard.queued for shard in self.shards.values()),
            started=self.carriers.started,
            activated=self.activations.activated,
            passivated=self.activations.passivated,
            failed_activations=self.activations.failed,
            results=self.completion.statistics(),
        )

    def _carry(self) -> None:
        self.carriers.spawn()

    def _passivate_if_idle(self, cell: Cell) -> None:
        self.activations.passivate_if_idle(cell)

    def _open_singleton(self, hosted_type: HostedType, shard: HostedShard) -> Cell:
        """Return the singleton's activation, made now if there is none; it always has a place in memory."""
        return self.residents.open(hosted_type, shard, str(hosted_type.spec.singleton_id))

    def _on_gone(self, cell: Cell) -> None:
        """Forget a cell without an instance; messages that came meanwhile get a fresh activation, here or elsewhere."""
        shard = cell.shard
        self.residents.forget(cell)
        left = [message for message in cell.take_queue() if not message.on_not_started()]
        self.delivery.backlog.on_entity_left(cell)
        if cell.is_singleton:
            self.singletons.on_gone(cell)
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
        self.delivery.on_revoked(shard)
        self.singletons.over(shard)
        held, shard.held = shard.held, type(shard.held)()
        for cell in list(shard.cells):
            cell.phase = DEAD
            self.delivery.memory.on_cell_killed(cell)
            self.residents.kill(cell)
            if cell.is_singleton:
                self.singletons.on_gone(cell)
            held.extend(cell.take_queue())
        shard.cells.clear()
        if shard.emptied is not None and not shard.emptied.done():
            shard.emptied.set_result(None)
        for message in held:
            self._take_back(message)

    def _take_back(self, message: Message) -> None:
        """Send a message that did not start on its way again, unless its caller has been told that it failed."""
        if message.producer is None and message.phase != DONE and not message.on_not_started():
            message.phase = NEW
            message.cell = None
            message.is_nested = False
            self._reroute(message)

    def _distrust(self, cell: Cell, error: ActorhubError) -> None:
        """The store refused this cell's commit: build it anew, and have the shard's ownership checked."""
        _log.warning("%s: commit refused: %s", cell.address, error)
        if cell.phase in (ACTIVE, CLOSING):
            cell.phase = DEAD
            for task in cell.streams or ():
                # A stream whose own commit this was ends with that error.
                if task is not asyncio.current_task():
                    task.cancel()
            self._on_gone(cell)
        if self.shards.get(cell.shard.id) is cell.shard:
            # What a former activation still tries says nothing of a shard that was lost, or acquired anew, since.
            self._mistrust(cell.shard.id)
