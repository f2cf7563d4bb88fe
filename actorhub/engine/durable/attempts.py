"""Runs of durable messages before they start: each is counted in the store first, or else it does not start."""

from asyncio import Future
from functools import partial
from typing import Final

from actorhub.core.backoff import Backoff
from actorhub.core.errors import HandlerFailed
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.durable_message import DurableMessage, Place
from actorhub.engine.model.records import DONE
from actorhub.engine.runs.store_answers import store_error
from actorhub.storage.message_ports import Readiness, RunStart

_EARLY: Final = Backoff(initial=0.002, maximum=1.024)
"""How much longer to wait when the store says that a message is not due yet."""


class Attempts:
    """Counts a run while its message holds its entity's turn."""

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
        """Return whether the message, which has its turn, runs now; else the turn is kept, or given back, here."""
        if message.is_counted:
            message.place = Place.RUNNING
            self.redelivered += message.attempts > 1
            return True
        if message.place is not Place.MAILBOX:
            # It left its entity when its turn had come and no carrier had looked at it yet.
            message.phase = DONE
            self._scheduler.ended(message)
            return False
        message.place = Place.STARTING
        if message.is_stored:
            self.start(message)
        return False

    def start(self, message: DurableMessage) -> None:
        """Count the run that has its turn; or bury a message whose runs, each cut short, are used up."""
        limit = message.spec.retry.attempts
        if message.attempts >= limit:
            message.place = Place.RUNNING
            message.phase = DONE
            self._scheduler.ended(message)
            self._settlement.fail(
                message,
                HandlerFailed(
                    "RunnerLost",
                    f"{message.what}({message.entity_id}): {message.attempts} runs ended with their runners",
                ),
            )
            return
        start = RunStart(message.message_id, message.shard.id, message.shard.epoch, message.attempts + 1)
        self._store.start_run(start, self._incarnation).add_done_callback(
            partial(self._started, message), context=self._scheduler.context
        )

    def _started(self, message: DurableMessage, outcome: "Future[Readiness]") -> None:
        error = store_error(outcome)
        if message.place is not Place.STARTING:
            return
        if error is not None:
            self._memory.spill(message)
            return
        match outcome.result():
            case Readiness.RUN:
                message.attempts += 1
                self.counted(message)
            case Readiness.GONE:
                self._settlement.gone(message)
            case Readiness.EARLY:
                self._too_early(message)
            case Readiness.FENCED:
                self._mistrust(message.shard.id)

    def _too_early(self, message: DurableMessage) -> None:
        """The store's clock is behind what was thought of it: a little, or it stepped back."""
        message.early += 1
        pause = _EARLY.longest(message.early)
        if pause == _EARLY.maximum:
            self._server.distrust()
            self._schedule.poll_soon()
        self._memory.schedule(message, max(message.due, self._server.now()) + pause)

    def counted(self, message: DurableMessage) -> None:
        """Let the message, whose run is counted now, go on with its turn."""
        message.place = Place.MAILBOX
        message.is_counted = True
        self._scheduler.start(message)
