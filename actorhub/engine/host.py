"""The owned shards of this process, their resident entities, and the way in for messages.

The host makes its parts bottom-up, from those that need no other to those that need all of them. What a lower part
tells a higher one comes in at the host's own methods.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.errors import ActorhubError
from actorhub.core.logger import get_logger
from actorhub.engine.durable.delivery import Delivery
from actorhub.engine.durable.homes import Homes, OtherRunners
from actorhub.engine.durable.owner import Owner
from actorhub.engine.model.records import (
    ACTIVE,
    CLOSING,
    DEAD,
    DONE,
    NEW,
    PASSIVATING,
    SENT,
    Cell,
    HostedShard,
    HostedType,
    Message,
)
from actorhub.engine.runs.activation import Activations
from actorhub.engine.runs.carriers import Carriers
from actorhub.engine.runs.draining import Draining, unfinished
from actorhub.engine.runs.drains import Drains
from actorhub.engine.runs.newcomers import Newcomers
from actorhub.engine.runs.parts import RunParts
from actorhub.engine.runs.residency import Residency, Residents
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.services import RunServices, services
from actorhub.engine.singletons.registry import SingletonLeaders
from actorhub.engine.singletons.services import LeaderServices
from actorhub.engine.surroundings import HostStatistics, Surroundings
from actorhub.storage.singleton_ports import Leadership

_log: Final = get_logger("actorhub.host")

_TOLD_POLL: Final = 0.005
"""Seconds between checks of whether everything that was told has arrived, while a shard is handed over."""


class Host:
    """Owns the cells.

    A cell exists only in a shard that was granted, and that neither a revocation nor a drain has ended since.
    """

    def __init__(self, around: Surroundings) -> None:
        self.types = around.types
        self.shards: dict[ShardId, HostedShard] = {}
        self.lease = around.lease
        self._clock = around.clock
        self._reroute = around.reroute
        self._route = around.route
        self._mistrust = around.mistrust
        self.new_id = around.new_id
        self.server = around.server
        self.draining = Draining(around.types)
        self.newcomers = Newcomers()
        self.scheduler = self._make_scheduler(around)
        self._runs = RunParts(
            storage=around.storage,
            supervisor=around.supervisor,
            incarnation=around.incarnation,
            sharding=around.sharding,
            limits=around.limits,
            scheduler=self.scheduler,
            rebuilder=self,
            take_back=self._take_back,
        )
        self.completion = self._runs.completion
        self.deferrals = self._runs.deferrals
        self.lookout = self._runs.lookout
        self.singletons = self._make_singletons(around)
        self.activations = Activations(
            scheduler=self.scheduler,
            hooks=self._runs.hooks,
            background=self._runs.background,
            leaders=self.singletons,
            storage=around.storage,
            supervisor=around.supervisor,
            events=self,
            max_message_bytes=around.limits.max_message_bytes,
        )
        self.residency = Residency(around.types, self.activations, around.clock)
        self.residents = Residents(
            most=around.limits.max_resident,
            activations=self.activations,
            residency=self.residency,
            scheduler=self.scheduler,
            newcomers=self.newcomers,
            background=self._runs.background,
        )
        self._drains = self._make_drains(around)
        owner = self._make_owner(around)
        self.delivery = Delivery(owner, self.residents)
        self.homes = self._make_homes(around, owner)
        self.carriers = Carriers(
            loop=asyncio.get_running_loop(),
            clock=around.clock,
            lease=around.lease,
            scheduler=self.scheduler,
            completion=self.completion,
            streams=self._runs.streams,
            gate=self.delivery.attempts,
            take_back=self._take_back,
        )
        self.scheduler.context.run(services.set, self._make_services())

    def _make_scheduler(self, around: Surroundings) -> Scheduler:
        return Scheduler(
            draining=self.draining,
            carry=self._carry,
            expect_end=self._expect_end,
            freeze=self._freeze,
            passivate_if_idle=self._passivate_if_idle,
            route=around.route,
            newcomers=self.newcomers,
            on_idle=self._on_idle,
        )

    def _make_services(self) -> RunServices:
        return RunServices(
            saving=self._runs.saving,
            checkpoints=self._runs.checkpoints,
            waits=self._runs.waits,
            deferrals=self.deferrals,
            background=self._runs.background,
            save_main_loop=self.singletons.save,
            run_scheduled=self.singletons.run_scheduled,
            loop=asyncio.get_running_loop(),
        )

    def _make_drains(self, around: Surroundings) -> Drains:
        return Drains(
            types=around.types,
            shards=self.shards,
            clock=around.clock,
            scheduler=self.scheduler,
            activations=self.activations,
            residents=self.residents,
            events=self,
        )

    def _make_singletons(self, around: Surroundings) -> SingletonLeaders:
        leader_services = LeaderServices(
            address=around.address,
            incarnation=around.incarnation,
            shards=self.shards,
            store=around.storage.singletons,
            checkpoints=self._runs.checkpoints,
            messages=around.storage.messages,
            server=self.server,
            clock=around.clock,
            supervisor=around.supervisor,
            scheduler=self.scheduler,
            hooks=self._runs.hooks,
            open=self._open_singleton,
            led_elsewhere=self._led_elsewhere,
            accept=self.take_durable,
            mistrust=around.mistrust,
            new_id=around.new_id,
        )
        return SingletonLeaders(
            leader_services,
            types=around.types.values(),
            sharding=around.sharding,
            completion=self.completion,
            saving=self._runs.saving,
        )

    def _make_owner(self, around: Surroundings) -> Owner:
        return Owner(
            incarnation=around.incarnation,
            types=around.types,
            shards=self.shards,
            lease=around.lease,
            limits=around.limits,
            storage=around.storage,
            store=around.storage.messages,
            server=self.server,
            clock=around.clock,
            scheduler=self.scheduler,
            supervisor=around.supervisor,
            hosted_elsewhere=around.hosted_elsewhere,
            open_draining=self._drains.open,
            reroute=around.reroute,
            forward=self._forward,
            mistrust=around.mistrust,
        )

    def _make_homes(self, around: Surroundings, owner: Owner) -> Homes:
        return Homes(
            owner,
            OtherRunners(around.hosted_groups, around.ask_home, around.new_id, around.wake),
            sharding=around.sharding,
            activations=self.activations,
            delivery=self.delivery,
            discard=self.discard,
            forget=self._forget,
        )

    def submit(self, message: Message, shard: HostedShard) -> None:
        """Queue `message` for its entity, which is activated first if it is not resident."""
        hosted_type = self.types[message.spec.entity_type]
        cell = hosted_type.cells.get(message.entity_id)
        if cell is not None:
            self.scheduler.enqueue(cell, message)
        elif not shard.draining:
            self.residents.submit(message, hosted_type, shard)
        elif not self.draining.admits(message, shard):
            shard.hold(message)
        elif self.residents.ensure_room(hosted_type):
            shard.hold(message)
            self._drains.open(shard, message.entity)
        else:
            self.residents.refuse(message)

    def take_durable(self, message: Message, shard: HostedShard) -> None:
        """Take in a call of a durable handler, or a request about a durable message, for an owned shard."""
        self.delivery.accept(message, shard)

    def poll(self) -> None:
        """Scan the store for messages and changes of schedules that this process was not told of."""
        self.singletons.poll()
        self.delivery.poll()

    def on_granted(self, shards: Mapping[ShardId, int]) -> None:
        """Start to host shards, at these epochs.

        `take` has waited for every commit of the former owners, so the store shows everything that was acknowledged.
        The shards are marked as having a backlog before any cell of them can exist. So a message that arrives now is
        stored behind the ones that were left over, and does not overtake them.
        """
        hosted = [HostedShard(shard, epoch, self.lease) for shard, epoch in shards.items()]
        self.on_new_senders()
        self.shards.update((shard.id, shard) for shard in hosted)
        self.delivery.on_granted(hosted)
        self.singletons.on_granted(hosted)

    def on_new_senders(self) -> None:
        """Have what is stored come before what arrives from now on: senders have moved, or their runner is gone.

        The runner that had them may have committed what they told and not have told this one of it: it was frozen or
        cut off, it died, or the answer to the commit was lost, and its shards with it. What the same senders tell at
        their next owner comes later, and must not run first (invariant G). So whoever takes a shard announces that to
        everybody before anything of it runs, on the links that what it tells will take.
        """
        self.delivery.let_stored_go_first()

    def on_revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Stop everything in `shards`: cancel what runs, and send what has not started to its next owner.

        The cells are dead before their runs are cancelled. A run that catches its cancellation goes on, but a dead cell
        commits nothing, and its replies are not sent.
        """
        for shard_id in shards:
            shard = self.shards.pop(shard_id, None)
            if shard is not None:
                self._kill(shard)
        self.scheduler.cancel_dead(reason)

    async def drain(self, shard_id: ShardId, grace: float) -> None:
        """Let the runs of a shard finish for at most `grace` seconds, and passivate all its entities.

        The shard is released after this, so the order is that of what the next owner may see:

        1. No run starts but those that running handlers wait for (`Draining`). Other messages that arrive are held for
           the next owner.
        2. Runs that could last for days are cut short: singletons' `run`, and durable waits. They cost no grace time.
        3. Everybody whom the shard's entities have told something knows of it. Otherwise, what the entities tell from
           their next runner could overtake it.
        4. The leaders of singletons have written that they left.
        5. What is left over is cancelled.
        """
        shard = self.shards.get(shard_id)
        if shard is None:
            return
        self._drains.begin(shard)
        self.hasten(shard_id, grace)
        is_first = True
        # What runs after the entities, such as `on_lose_leadership`, may call some of them.
        while is_first or (shard.cells and self._clock.monotonic() < shard.drain_until):
            is_first = False
            await self._drains.until_empty(shard)
            await self._until_told(shard)
            await self.singletons.handed_over(shard, shard.drain_until - self._clock.monotonic())
        await self.delivery.attempts.give_back(shard)
        # In the meantime the shard may have been revoked, and even granted again as another `HostedShard`.
        if self.shards.get(shard_id) is shard:
            if shard.cells:
                _log.warning(
                    "shard %s: %d entities did not finish within %.1f s: %s",
                    *(shard_id, len(shard.cells), self._clock.monotonic() - shard.draining_since),
                    unfinished(shard, self.scheduler.suspended),
                )
            del self.shards[shard_id]
            self._kill(shard)
            self.scheduler.cancel_dead("the shard moved and the handler did not finish within the grace time")

    def hasten(self, shard_id: ShardId, grace: float) -> None:
        """Have a drain that is under way end within `grace` seconds, if it would take longer."""
        if (shard := self.shards.get(shard_id)) is not None:
            shard.drain_until = min(shard.drain_until, self._clock.monotonic() + grace)

    async def finish(self, grace: float) -> None:
        """Let everything finish that runs here, for at most `grace` seconds: there is no next owner of any shard."""
        await self._drains.finish(grace)

    def on_drain_began(self, shard: HostedShard) -> None:
        """End the shard's singletons, and have what running handlers wait for come in from the store."""
        self.singletons.stop(shard)
        for message in self.newcomers.take_of(shard):
            self.submit(message, shard)
        self.delivery.on_draining(shard)

    def take_durable_in(self, message: Message, shard: HostedShard) -> None:
        """Take a durable message that was held and comes in now."""
        self.delivery.intake.take(message, shard)

    def abandon(self, cell: Cell) -> None:
        """End an activation in which a run goes on that was cut short. None of it will be committed."""
        self.singletons.abandon(cell)
        self.discard(cell)

    async def _until_told(self, shard: HostedShard) -> None:
        """Wait until the receivers of the shard's durable tells know of them.

        Tells whose receiver has no owner are not waited for: the next owner finds them in the store.
        """
        while any(told.phase == SENT for told in shard.told) and self._clock.monotonic() < shard.drain_until:  # noqa: ASYNC110 - once per move
            await asyncio.sleep(_TOLD_POLL)

    def cells(self) -> Iterator[Cell]:
        """Iterate over all resident entities."""
        for shard in self.shards.values():
            yield from shard.cells

    def statistics(self) -> HostStatistics:
        """Return the counters as they are now. Takes time proportional to the number of owned shards."""
        return HostStatistics(
            shards=len(self.shards),
            resident=self.residents.count,
            queued=sum(shard.queued for shard in self.shards.values()) + self.newcomers.count,
            started=self.carriers.started,
            activated=self.activations.activated,
            passivated=self.activations.passivated,
            failed_activations=self.activations.failed,
            results=self.completion.statistics(),
        )

    def _carry(self) -> None:
        self.carriers.spawn()

    def _expect_end(self, message: Message) -> None:
        self.carriers.expect_end(message)

    def _freeze(self, message: Message) -> None:
        self.carriers.freeze(message)

    def count_first(self, cell: Cell) -> "asyncio.Future[None] | None":
        """Have the run of the first message in a mailbox counted."""
        return self.delivery.attempts.count_first(cell)

    def _passivate_if_idle(self, cell: Cell) -> None:
        self.activations.passivate_if_idle(cell)

    def _on_idle(self, cell: Cell) -> None:
        self.residents.on_idle(cell)

    async def _led_elsewhere(self, leadership: Leadership) -> ShardId | None:
        return await self.homes.led_elsewhere(leadership)

    def _open_singleton(self, hosted_type: HostedType, shard: HostedShard) -> Cell:
        """Return the singleton's activation, and begin to make one if there is none. It is not subject to the cap."""
        return self.residents.open(hosted_type, shard, str(hosted_type.spec.singleton_id))

    def on_gone(self, cell: Cell) -> None:
        """Forget a cell without an instance. What is left in its mailbox gets a new activation, here or elsewhere."""
        shard, left = cell.shard, self._forget(cell)
        if shard.draining:
            self._on_gone_from(shard, cell, left)
        elif self.shards.get(shard.id) is shard:
            if left:
                # They were accepted, so they do not ask for a place: they have the one that was just left.
                self.residents.open(cell.hosted_type, shard, cell.entity_id)
            for message in left:
                self.submit(message, shard)
        else:
            for message in left:
                self._take_back(message)

    def _forget(self, cell: Cell) -> list[Message]:
        """Forget a cell without an instance; return what is left in its mailbox and has not started."""
        # The cell is forgotten before its messages are placed again, so that they make a new one.
        self.residents.forget(cell)
        # A stream that waits for its next step has begun, so it does not begin again: its task ends it.
        unstarted = (message for message in cell.take_queue() if message.producer is None)
        left = [message for message in unstarted if not message.on_not_started()]
        self.delivery.backlog.on_entity_left(cell)
        if cell.is_singleton:
            self.singletons.on_gone(cell)
        return left

    def _forward(self, message: Message, home: ShardId) -> None:
        if message.delivery is not None:
            message.delivery = msgspec.structs.replace(message.delivery, is_repeated=True)
        message.phase = NEW
        message.cell = None
        message.hops += 1
        message.shard_id = home
        self._route(message)

    def _on_gone_from(self, shard: HostedShard, cell: Cell, left: Sequence[Message]) -> None:
        """Hold what a cell of a shard that drains has left, and end the drain with the last cell."""
        for message in left:
            shard.hold(message)
        if any(self.draining.admits(message, shard) for message in left):
            self._drains.open(shard, cell.entity)
        for singleton in self.singletons.residents:
            self.activations.passivate_if_idle(singleton)  # It may have stayed for what is gone now.
        if not shard.cells and shard.emptied is not None and not shard.emptied.done():
            shard.emptied.set_result(None)

    def _kill(self, shard: HostedShard) -> None:
        shard.is_lost = True
        # All cells are dead before the first message is sent on: it could come back to a cell of this very shard.
        self.delivery.on_revoked(shard)
        self.singletons.on_lost(shard)
        self.scheduler.reading.on_lost(shard)
        held = [message for messages in shard.held.values() for message in messages]
        shard.held.clear()
        held += self.newcomers.take_of(shard)
        for cell in list(shard.cells):
            cell.phase = DEAD
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
        """Route a message that did not start once more, unless its caller has been told that it failed.

        A stream that has a producer did start, so its consumer must learn of the loss.
        """
        if message.producer is None and message.phase != DONE and not message.on_not_started():
            message.phase = NEW
            message.cell = None
            message.is_nested = False
            self._reroute(message)

    def discard(self, cell: Cell) -> None:
        """End an activation at once; the next message makes a new one from what is stored."""
        cell = self.scheduler.reading.entity_of(cell) or cell
        if cell.phase in (ACTIVE, CLOSING, PASSIVATING):
            cell.phase = DEAD
            for producer in cell.streams or ():
                producer.stop()
            self.on_gone(cell)

    def distrust(self, cell: Cell, error: ActorhubError) -> None:
        """End an activation whose commit the store refused, and have the ownership of its shard checked.

        The instance holds state that is not what the store has, so it is not used again. The next message makes a new
        one, from the stored state.
        """
        _log.warning("%s: commit refused: %s", cell.address, error)
        self.discard(cell)
        if self.shards.get(cell.shard.id) is cell.shard:
            # A refusal of what a former activation tried to commit says nothing about the shard if that was lost, or
            # acquired again, in the meantime.
            self._mistrust(cell.shard.id)
