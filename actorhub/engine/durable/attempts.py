"""Runs of durable messages before they start: each is counted in the store first, or else it does not start."""

from functools import partial
from typing import TYPE_CHECKING, Final

from actorhub.core.errors import HandlerFailed
from actorhub.engine.durable.settlement import store_error
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.message import DONE
from actorhub.engine.runs.scheduler import Turns
from actorhub.storage.message_ports import MessageStore, Readiness, RunStart

if TYPE_CHECKING:
    from asyncio import Future

    from actorhub.engine.durable.intake import Delivery

_EARLY: Final = 0.001
"""Seconds to wait longer, doubled each time, when the store says that a message is not due yet."""
_LONGEST_EARLY: Final = 1.024


class Starts:
    """Counts a run while its message holds its entity's turn."""

    def __init__(self, *, delivery: "Delivery", store: MessageStore, turns: Turns, incarnation: str) -> None:
        self._delivery = delivery
        self._store = store
        self._turns = turns
        self._incarnation = incarnation
        self.redelivered = 0
        """Runs that were not a message's first."""

    def may_run(self, message: DurableMessage) -> bool:
        """Whether the message, which has its entity's turn, may run now; else the turn is kept, or given back, here."""
        if message.is_counted:
            self.redelivered += message.attempts > 1
            return True
        if message.is_dropped:
            message.phase = DONE
            self._turns.ended(message)
            return False
        message.is_starting = True
        if not message.is_storing:
            self.start(message)
        return False

    def start(self, message: DurableMessage) -> None:
        """Count the run that has its turn; or bury a message whose runs, each cut short, are used up."""
        limit = message.spec.retry.attempts
        if message.attempts >= limit:
            message.is_starting = False
            message.phase = DONE
            self._turns.ended(message)
            self._delivery.settlement.fail(
                message,
                HandlerFailed(
                    "RunnerLost",
                    f"{message.what}({message.entity_id}): {message.attempts} runs ended with their runners",
                ),
            )
            return
        start = RunStart(message.message_id, message.hosted.id, message.hosted.epoch, message.attempts + 1)
        self._store.start_run(start, self._incarnation).add_done_callback(
            partial(self._started, message), context=self._turns.context
        )

    def _started(self, message: DurableMessage, outcome: "Future[Readiness]") -> None:
        error = store_error(outcome)
        if message.is_dropped or not message.is_starting:
            return
        if error is not None:
            self._delivery.set_aside(message)
            return
        match outcome.result():
            case Readiness.RUN:
                message.attempts += 1
                self.counted(message)
            case Readiness.GONE:
                self._delivery.settlement.gone(message)
            case Readiness.EARLY:
                self._too_early(message)
            case Readiness.FENCED:
                message.hosted.host.mistrusted(message.hosted.id)

    def _too_early(self, message: DurableMessage) -> None:
        """The store's clock is behind what was thought of it: a little, or it stepped back."""
        message.early += 1
        pause = min(_EARLY * 2**message.early, _LONGEST_EARLY)
        if pause == _LONGEST_EARLY:
            self._delivery.schedule.server.distrust()
            self._delivery.schedule.look()
        self._delivery.run_later(message, max(message.due, self._delivery.schedule.server.now()) + pause)

    def counted(self, message: DurableMessage) -> None:
        """Let the message, whose run is counted now, go on with its turn."""
        message.is_starting = False
        message.is_counted = True
        self._turns.resume(message)
