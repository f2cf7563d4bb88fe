"""Counts each run of a durable message in the store before it starts; a run that is not counted does not start.

Afterwards would be too late: a message that kills its runner would do so again and again, at each new owner. So would
one that kills it by having its entity activated; its run is counted before the activation, beside the load of the
state. That is for the message that brings the entity: those behind it are not to blame, and have their turns. Where it
costs nothing the count comes with another statement: the first run's with the insert (`durable.intake`), the next
message's with the commit of the run before it (`runs.commits.next_to_count`).
"""

import asyncio
from asyncio import Future
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from actorhub.core.backoff import Backoff
from actorhub.core.errors import HandlerFailed, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.durable_message import DurableMessage, Place, next_start_of, start_of
from actorhub.engine.model.records import COMMITTING, DONE, QUEUED, RUNNING, Cell, HostedShard
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import Readiness, RunStart

_log: Final = get_logger("actorhub.attempts")

_CUT: Final = (QUEUED, RUNNING, COMMITTING)
"""Phases of messages whose run is counted, and has not ended."""
_LIMIT: Final = 2.0
"""Seconds for giving attempts back, beyond the grace time: only a store that is slow then takes so long."""
_EARLY: Final = Backoff(initial=0.002, maximum=1.024)
"""How much longer to wait when the store says that a message is not due yet."""


class Attempts:
    """Counts the run of a message that has its entity's turn, and keeps the turn meanwhile."""

    def __init__(self, owner: Owner, *, memory: InMemory, settlement: Settlement, schedule: Schedule) -> None:
        self._memory = memory
        self._settlement = settlement
        self._schedule = schedule
        self._server = owner.server
        self._store = owner.store
        self._scheduler = owner.scheduler
        self._incarnation = owner.incarnation
        self._mistrust = owner.mistrust
        self.redelivered = 0
        """Runs that were not a message's first."""

    def begin(self, message: DurableMessage) -> bool:
        """Return whether the message, which has its turn, runs now; else the turn is kept until it can, or ended."""
        if message.is_counted:
            message.place = Place.RUNNING
            assert message.cell is not None
            message.started_at = message.cell.last_used  # The carrier has just set it: no second look at the clock.
            self.redelivered += message.attempts > 1
            return True
        if message.place is not Place.MAILBOX:
            # It left its entity after it had got its turn and before a carrier got to it.
            message.phase = DONE
            self._scheduler.end_turn(message)
            return False
        message.place = Place.STARTING
        if message.is_stored:
            self.start(message)
        return False

    def count_first(self, cell: Cell) -> "Future[None] | None":
        """Have the run of what is first in the mailbox counted, before the entity is activated for it.

        Returns:
            What to wait for before asking again. `None` if there is nothing to wait for: the run is counted, the first
            message is not durable, or there is none.
        """
        while cell.queue is not None:
            first = cell.queue[0]
            if not isinstance(first, DurableMessage) or first.is_counted:
                return None
            if first.place is Place.MAILBOX:
                first.place = Place.STARTING
                if first.is_stored:
                    self.start(first)
            if first.phase == QUEUED:
                return first.next_change()
        return None

    async def give_back(self, shard: HostedShard) -> None:
        """Take back the counts of the runs that a hand-over is about to cut short, while the shard is still owned.

        Else each deploy would cost a message an attempt whose run takes longer than the grace time. What kills its
        process does not come here, so it still runs out of attempts. From now on nothing more comes in.
        """
        shard.is_ending = True
        given: set[RunStart] = set()
        cut: list[RunStart] = []
        try:
            async with asyncio.timeout(_LIMIT):
                # What has its turn already may be counted while others are taken back: until there is nothing new.
                await self._until_answered(shard)
                while cut := [start for start in self._cut(shard) if start not in given]:
                    await self._store.uncount_runs(cut, self._incarnation)
                    given.update(cut)
                    await self._until_answered(shard)
        except (PersistenceError, TimeoutError) as error:
            cut = cut or [start for start in self._cut(shard) if start not in given]
            text = "shard %s: %d runs that its hand-over cuts short cost an attempt each, since the store failed: %s"
            _log.warning(text, shard.id, len(cut), summary_of(error))

    def _cut(self, shard: HostedShard) -> Iterable[RunStart]:
        """Yield the runs that are counted and have not ended, or not even begun."""
        table = self._memory.table(shard)
        yield from table.spared.values()
        for message in table.messages.values():
            if message.is_counted and message.phase in _CUT and message.place in (Place.MAILBOX, Place.RUNNING):
                yield start_of(message)

    async def _until_answered(self, shard: HostedShard) -> None:
        """Wait until it is known which runs are counted: one that is counted later would cost an attempt."""
        while waiting := self._unanswered(shard):
            await asyncio.wait(waiting)

    def _unanswered(self, shard: HostedShard) -> "list[Future[Any]]":
        table = self._memory.table(shard)
        inserts = [each for each in table.messages.values() if each.attempts and not each.is_stored]
        return [*table.counting, *(each.next_change() for each in inserts)]

    def start(self, message: DurableMessage) -> None:
        """Count the run of a stored message; make a dead letter of one that has no attempts left."""
        # A run that fails is settled as such. That the count reached the limit without a last failure means that the
        # last run came to no end: it may have killed its runner.
        if not message.spec.retry.allows(message.attempts):
            message.place = Place.RUNNING
            self._take_turn_back(message)
            self._settlement.fail(
                message,
                HandlerFailed(
                    "RunnerLost",
                    f"{message.what}({message.entity_id}): given up after {message.attempts} attempts: the last one "
                    "came to no end, because its runner died or its commit was refused",
                ),
            )
            return
        table = self._memory.table(message.shard)
        table.spared.pop(message.message_id, None)  # This run has the same number.
        answer = self._store.start_run(next_start_of(message), self._incarnation)
        table.counting.add(answer)
        answer.add_done_callback(partial(self._on_start_answer, message), context=self._scheduler.context)

    def _on_start_answer(self, message: DurableMessage, outcome: "Future[Readiness]") -> None:
        self._memory.table(message.shard).counting.discard(outcome)
        error = store_error(outcome)
        if message.place is not Place.STARTING:
            # It left its entity meanwhile, and its turn with it. If the run was counted, that costs an attempt unless
            # the shard drains.
            return
        if error is not None:
            # Perhaps it is counted. The loader reads how many are.
            self._memory.spill(message)
            return
        match outcome.result():
            case Readiness.RUN:
                message.attempts += 1
                self.on_counted(message)
            case Readiness.GONE:
                self._settlement.on_settled_elsewhere(message)
            case Readiness.EARLY:
                self._on_early(message)
            case Readiness.FENCED:
                # It keeps its turn: nothing else of the entity may start, either, until it is known who owns the shard.
                self._mistrust(message.shard.id)

    def _on_early(self, message: DurableMessage) -> None:
        """Wait a little longer: the store's clock is behind what this process believed, or it stepped back."""
        message.early += 1
        pause = _EARLY.longest(message.early)
        if pause == _EARLY.maximum:
            self._server.distrust()
            self._schedule.poll_soon()
        self._memory.schedule(message, max(message.due, self._server.now()) + pause)

    def on_counted(self, message: DurableMessage) -> None:
        """The run of a message that waited for that is counted: start it, or have its entity activated for it."""
        message.place = Place.MAILBOX  # Through a carrier again, and so through its checks: time has passed.
        message.is_counted = True
        if message.phase == QUEUED:
            message.on_changed()
        else:
            self._scheduler.start(message)

    def _take_turn_back(self, message: DurableMessage) -> None:
        """End the wait of a message, in its mailbox or with its entity's turn."""
        if message.phase == QUEUED:
            self._scheduler.dequeue(message)
            message.phase = DONE
            message.on_changed()
        else:
            message.phase = DONE
            self._scheduler.end_turn(message)
