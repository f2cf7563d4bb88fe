"""How a method with `@cron` is called: its schedule decides whether the instant is run, and notes what became of it."""

import functools
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from actorhub.core.errors import ActorhubError, EntityError, HandlerFailed, MailboxFull
from actorhub.engine.model.durable_message import DurableMessage, Place, RunEvents
from actorhub.engine.model.records import DEAD, running
from actorhub.engine.runs.scheduler import RunMoved
from actorhub.engine.runs.services import services
from actorhub.engine.singletons.cron_schedule import CronSchedule
from actorhub.storage.message_ports import NotPending
from actorhub.storage.ports import Fenced

Method = Callable[..., Coroutine[Any, Any, Any]]


def cron_function(method: Method) -> Method:
    """Return what runs instead of the method; a skipped instant returns `None`."""

    @functools.wraps(method)
    async def run(instance: object, at: datetime) -> Any:
        message = running.get()
        assert isinstance(message, DurableMessage)
        return await services.get().run_scheduled(message, functools.partial(method, instance, at))

    return run


class CountedRuns:
    """Stands between the message of a schedule and whoever settles it, and counts how its runs end.

    A run that was cut short, or whose commit was refused, is not counted: the message runs again.

    Args:
        events: Who settles the message.
        schedule: Where it is counted.
        instant: Which one it is; `None`: the method is run by hand.
        counted: Told that there is something to write.
    """

    def __init__(
        self, events: RunEvents, schedule: CronSchedule, instant: float | None, counted: Callable[[], None]
    ) -> None:
        self._events = events
        self._schedule = schedule
        self._instant = instant
        self._counted = counted

    def on_run_committed(self, message: DurableMessage, body: bytes) -> None:
        """Count a run that is committed."""
        self._schedule.succeeded(self._instant)
        self._counted()
        self._events.on_run_committed(message, body)

    def on_run_failed(self, message: DurableMessage, error: ActorhubError) -> None:
        """Count a run that failed."""
        if not _was_lost(message, error):
            self._schedule.failed(self._instant, _text(error), for_good=_is_last(message, error))
            self._counted()
        self._events.on_run_failed(message, error)

    def on_run_not_started(self, message: DurableMessage) -> None:
        """Nothing ran, so there is nothing to count."""
        self._events.on_run_not_started(message)


def _was_lost(message: DurableMessage, error: ActorhubError) -> bool:
    """Whether the end of the run is not the message's: somebody else has it, or it runs again as if it had not run."""
    if message.place is Place.GONE or isinstance(error, RunMoved | Fenced | NotPending):
        return True
    if not message.is_counted:
        return isinstance(error, MailboxFull)
    return message.cell is not None and message.cell.phase == DEAD


def _is_last(message: DurableMessage, error: ActorhubError) -> bool:
    retry = message.spec.retry
    if isinstance(error, EntityError) and not isinstance(error, retry.on):
        return True
    return message.attempts + (not message.is_counted) >= retry.attempts


def _text(error: ActorhubError) -> str:
    if isinstance(error, HandlerFailed):
        return f"{error.type}: {error.message}"
    return f"{type(error).__name__}: {error}"
