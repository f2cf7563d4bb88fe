"""Which entities stay in memory: idle ones leave after `max_idle`, and a cap evicts the least recently used."""

import asyncio
from collections.abc import Mapping
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.errors import MailboxFull
from actorhub.engine.model.records import ACTIVE, Cell, HostedShard, HostedType, Message
from actorhub.engine.runs.activation import Activations
from actorhub.engine.runs.background import BackgroundTasks
from actorhub.engine.runs.newcomers import Newcomers
from actorhub.engine.runs.scheduler import Scheduler

_LONGEST_PAUSE: Final = 0.25
_SHORTEST_PAUSE: Final = 0.01
_CANDIDATES: Final = 8
_MOST_VISITED: Final = 256


class Residency:
    """Visits cells in turn: a cell that was visited goes to the end of the line.

    A message only stamps its cell, so recency costs nothing else per message. A cell that turns out to be used gets a
    second chance at the end of the line (the CLOCK algorithm). An entity leaves after between 1 and 1.5 times
    `max_idle`.
    """

    def __init__(self, types: Mapping[str, HostedType], activations: Activations, clock: Clock) -> None:
        self._types = types
        self._activations = activations
        self._clock = clock

    async def run(self) -> None:
        """Passivate idle entities, until cancelled."""
        while True:
            shortest = min((t.spec.max_idle.total_seconds() for t in self._types.values()), default=1.0)
            pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, shortest / 4))
            await asyncio.sleep(pause)
            for hosted in self._types.values():
                self._sweep(hosted, pause)

    def make_room(self) -> bool:
        """Passivate the least recently used idle entity among the next in line; `False` if none of those is idle."""
        found: list[Cell] = []
        for hosted in self._types.values():
            for _ in range(min(len(hosted.cells), _MOST_VISITED)):
                cell = _next_in_line(hosted)
                if _may_leave(cell):
                    found.append(cell)
                    if len(found) % _CANDIDATES == 0:
                        break
        if not found:
            return False
        self._activations.close(min(found, key=lambda cell: cell.last_used))
        return True

    def _sweep(self, hosted: HostedType, pause: float) -> None:
        max_idle = hosted.spec.max_idle.total_seconds()
        visits = int(len(hosted.cells) * min(1.0, 2 * pause / max(max_idle, pause))) + 1
        unused_since = self._clock.monotonic() - max_idle
        for _ in range(min(visits, len(hosted.cells))):
            cell = _next_in_line(hosted)
            if cell.last_used <= unused_since and _may_leave(cell):
                self._activations.close(cell)


class Residents:
    """The cells in memory: makes them, within the cap, and forgets them."""

    def __init__(
        self,
        *,
        most: int,
        activations: Activations,
        residency: Residency,
        scheduler: Scheduler,
        newcomers: Newcomers,
        background: BackgroundTasks,
    ) -> None:
        self._most = most
        self._activations = activations
        self._residency = residency
        self._scheduler = scheduler
        self._newcomers = newcomers
        self._background = background
        self._loop = asyncio.get_running_loop()
        self._idle: list[Cell] = []
        """Cells that became idle since newcomers were given places."""
        self._is_placing = False
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0
        """Cells in memory, including those on their way out until their `on_deactivate` is done."""

    def submit(self, message: Message, hosted_type: HostedType, shard: HostedShard) -> None:
        """Take in a message of an entity that is not resident: now, or once there is a place; or fail it."""
        is_singleton = hosted_type.spec.singleton_id is not None
        # Who comes later does not get a place before those that wait for one.
        if is_singleton or (not self._newcomers.entities and self.ensure_room(hosted_type)):
            self._scheduler.enqueue(self.add(hosted_type, shard, message.entity_id, message), message)
            return
        if message.waits_for_room and self._newcomers.add(message, hosted_type, shard):
            self._look_later()
            return
        self.refuse(message)

    def refuse(self, message: Message) -> None:
        """Fail a message for whose entity there is no place."""
        waiting = f", and {self._newcomers.count} calls wait for places" if self._newcomers.count else ""
        error = MailboxFull(
            f"{message.address}: no room in memory: {self.count} entities are resident, and all of them are busy or "
            f"leaving{waiting}"
        )
        self._scheduler.fail_unstarted(message, error)

    def on_idle(self, cell: Cell) -> None:
        """A cell became idle while newcomers wait: it may have to leave for one of them."""
        self._idle.append(cell)
        self._place_soon()

    def ensure_room(self, hosted_type: HostedType) -> bool:
        """Return whether another entity of the type may become resident; an idle one is told to leave if need be.

        A singleton always has a place.
        """
        if hosted_type.spec.singleton_id is not None or self.count < self._most:
            return True
        # An entity that leaves counts until its on_deactivate is done, but the new one need not wait for that. So there
        # may be more cells than the cap, at most twice as many, so that slow hooks do not let memory grow without
        # bound.
        return self.count < 2 * self._most and self._residency.make_room()

    def add(self, hosted_type: HostedType, shard: HostedShard, entity_id: str, cause: Message | None) -> Cell:
        """Return a new cell of an entity that is not resident, and begin its activation, which `cause` needs."""
        cell = Cell(hosted_type, shard, entity_id)
        hosted_type.cells[entity_id] = cell
        shard.cells.add(cell)
        self.count += 1
        self._activations.begin(cell, cause)
        # Whatever made the entity resident, those that waited for that come first (invariant G).
        for message in self._newcomers.take(hosted_type, entity_id):
            self._scheduler.enqueue(cell, message)
        return cell

    def open(self, hosted_type: HostedType, shard: HostedShard, entity_id: str) -> Cell:
        """Return the entity's cell, made now if there is none."""
        cell = hosted_type.cells.get(entity_id)
        return self.add(hosted_type, shard, entity_id, cause=None) if cell is None else cell

    def forget(self, cell: Cell) -> None:
        """Forget a cell that has no instance; harmless for one that was forgotten before."""
        _unlist(cell)
        self._background.cancel(cell)
        if cell in cell.shard.cells:
            cell.shard.cells.discard(cell)
            self._count_out()

    def kill(self, cell: Cell) -> None:
        """Forget a cell of a lost shard, whatever runs in it; the caller clears the shard's own set."""
        _unlist(cell)
        self._background.cancel(cell)
        self._count_out()
        for producer in cell.streams or ():
            producer.stop()

    def _count_out(self) -> None:
        self.count -= 1
        if self._newcomers.entities:
            self._place_soon()

    def _place_soon(self) -> None:
        # Not at once: whoever ended the turn, or the activation, is still in the middle of that.
        if not self._is_placing:
            self._is_placing = True
            self._loop.call_soon(self._place, context=self._scheduler.context)

    def _place(self) -> None:
        """Give newcomers the places that are free, or that idle entities can leave to them."""
        self._is_placing = False
        idle, self._idle = self._idle, []
        while (newcomer := self._newcomers.first()) is not None:
            if self.count >= self._most and not self._close_one(idle):
                return
            self.add(newcomer.hosted_type, newcomer.shard, newcomer.entity_id, newcomer.messages[0])

    def _close_one(self, idle: list[Cell]) -> bool:
        while idle and self.count < 2 * self._most:
            cell = idle.pop()
            if _may_leave(cell):
                self._activations.close(cell)
                return True
        return False

    def _look_later(self) -> None:
        """Look for idle entities every now and then: not everything that makes one idle ends a turn."""
        if self._timer is None and self._newcomers.entities:
            self._timer = self._loop.call_later(_LONGEST_PAUSE, self._look, context=self._scheduler.context)

    def _look(self) -> None:
        self._timer = None
        while (newcomer := self._newcomers.first()) is not None and self.ensure_room(newcomer.hosted_type):
            self.add(newcomer.hosted_type, newcomer.shard, newcomer.entity_id, newcomer.messages[0])
        self._look_later()


def _unlist(cell: Cell) -> None:
    if cell.hosted_type.cells.get(cell.entity_id) is cell:
        del cell.hosted_type.cells[cell.entity_id]


def _next_in_line(hosted: HostedType) -> Cell:
    entity_id = next(iter(hosted.cells))
    hosted.cells.move_to_end(entity_id)
    return hosted.cells[entity_id]


def _may_leave(cell: Cell) -> bool:
    return cell.phase == ACTIVE and cell.is_idle and not cell.kept and not cell.is_singleton
