"""Empties shards that move, and those of a runner that leaves."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.logger import get_logger
from actorhub.engine.model.records import CLOSING, DONE, Cell, HostedShard, HostedType, Message
from actorhub.engine.runs.activation import Activations
from actorhub.engine.runs.draining import admits_all
from actorhub.engine.runs.residency import Residents
from actorhub.engine.runs.scheduler import RunMoved, Scheduler
from actorhub.engine.runs.stuck import STUCK_AFTER, log_stuck

_log: Final = get_logger("actorhub.host")

_TICK: Final = 0.1
"""Seconds between checks of what a drain waits for."""


class DrainEvents(Protocol):
    """What the parts above have to do with drains."""

    def on_drain_began(self, shard: HostedShard) -> None:
        """The shard drains from now on; its cells are about to close."""
        ...

    def take_durable_in(self, message: Message, shard: HostedShard) -> None:
        """Take a durable message that was held and comes in now."""
        ...

    def abandon(self, cell: Cell) -> None:
        """End an activation in which a run goes on that was cut short."""
        ...


class Drains:
    """Closes the entities of a shard, and sees to what holds them up until none is left."""

    def __init__(
        self,
        *,
        types: Mapping[str, HostedType],
        shards: Mapping[ShardId, HostedShard],
        clock: Clock,
        scheduler: Scheduler,
        activations: Activations,
        residents: Residents,
        events: DrainEvents,
    ) -> None:
        """Prepare; `shards` are those that are owned now."""
        self._types = types
        self._shards = shards
        self._clock = clock
        self._scheduler = scheduler
        self._draining = scheduler.draining
        self._activations = activations
        self._residents = residents
        self._events = events

    def begin(self, shard: HostedShard) -> None:
        """Close all entities of the shard, once."""
        if shard.draining:
            return
        shard.draining = True
        shard.draining_since = self._clock.monotonic()
        self._events.on_drain_began(shard)
        for cell in list(shard.cells):
            self._activations.close(cell)
        self._scheduler.cut_short(lambda cell: cell.shard is shard)

    async def until_empty(self, shard: HostedShard) -> None:
        """Return once the shard has no entities; at its `drain_until` in any case."""
        while await self._has_entities(shard, shard.drain_until):
            self._see_to(shard, shard.drain_until - shard.draining_since)

    async def finish(self, grace: float) -> None:
        """Let everything finish that runs here, for at most `grace` seconds, while all shards are still owned.

        For a runner that leaves and has no successor: what its handlers call would be served nowhere else.
        """
        self._draining.is_alone = True
        until = self._clock.monotonic() + grace
        for shard in self._shards.values():
            self.begin(shard)
        while busy := [shard for shard in self._shards.values() if shard.cells]:
            if not await self._has_entities(busy[0], until) and self._clock.monotonic() >= until:
                return
            for shard in busy:
                self._see_to(shard, grace)

    def open(self, shard: HostedShard, entity: tuple[str, str]) -> None:
        """Make an entity of a shard that drains resident; what is held of it comes in first, to keep the order."""
        cell = self._residents.open(self._types[entity[0]], shard, entity[1])
        for message in shard.held.pop(entity, ()):
            if message.phase == DONE:
                continue
            if message.delivery is None:
                self._scheduler.enqueue(cell, message)
            else:
                self._events.take_durable_in(message, shard)

    async def _has_entities(self, shard: HostedShard, until: float) -> bool:
        """Wait a little for the shard's last entity to leave; return whether there are some, and time is left."""
        left = until - self._clock.monotonic()
        if shard.cells and left > 0:
            if shard.emptied is None or shard.emptied.done():
                shard.emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait((shard.emptied,), timeout=min(left, _TICK))
            left = until - self._clock.monotonic()
        return bool(shard.cells) and left > 0

    def _see_to(self, shard: HostedShard, grace: float) -> None:
        elapsed = self._clock.monotonic() - shard.draining_since
        shard.is_late = elapsed > grace / 2
        # No longer in the second half of the grace time, so that what came in can end in it.
        shard.admits_all = admits_all(elapsed) and not shard.is_late
        if shard.admits_all:
            self._admit(shard)
        if shard.is_late:
            for cell in list(shard.cells):
                self._activations.passivate_if_idle(cell)  # A singleton may have stayed for others.
        if elapsed > STUCK_AFTER:
            self._drop_stuck(shard)

    def _admit(self, shard: HostedShard) -> None:
        """Let in what may come in by now."""
        for cell in list(shard.cells):
            if cell.phase == CLOSING:
                self._scheduler.pump(cell)
        for entity, held in list(shard.held.items()):
            if any(self._draining.admits(message, shard) for message in held):
                self.open(shard, entity)

    def _drop_stuck(self, shard: HostedShard) -> None:
        """Abandon runs that were cut short and go on nevertheless, where nothing else of their entity runs."""
        for run in list(self._scheduler.suspended):
            cell = run.cell
            if (
                cell.shard is shard
                and cell.phase == CLOSING
                and isinstance(run.message.abandoned_for, RunMoved)
                and abs(cell.load) + cell.nested == 1
                and not cell.streams
            ):
                interleaving = run.interleaving
                stuck = run.message.task if interleaving is None else interleaving.coroutine
                log_stuck(_log, run.what, run.message.entity_id, stuck)
                self._events.abandon(cell)
