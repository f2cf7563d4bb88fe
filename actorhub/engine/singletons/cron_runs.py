"""How a method with `@cron` is called: its schedule decides whether the fire_time is run, and notes what became of it."""

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
    """Return what runs instead of the method; a skipped fire_time returns `None`."""

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
        fire_time: Which one it is; `None`: the method is run by hand.
        on_counted: Told that there is something to write.
    """

    def __init__(
        self, events: RunEvents, schedule: CronSchedule, fire_time: float | None, on_counted: Callable[[], None]
    ) -> None:
        self._events = events
        self._schedule = schedule
        self._fire_time = fire_time
        self._on_counted = on_counted

    def run_committed(self, message: DurableMessage, body: bytes) -> None:
        """Count a run that is committed."""
        self._schedule.on_succeeded(self._fire_time)
        self._on_counted()
        self._events.run_committed(message, body)

    def run_failed(self, message: DurableMessage, error: ActorhubError) -> None:
        """Count a run that failed."""
        if not _was_lost(message, error):
            self._schedule.on_failed(self._fire_time, _text(error), for_good=_is_last(message, error))
            self._on_counted()
        self._events.run_failed(message, error)

    def run_taken_back(self, message: DurableMessage) -> None:
        """Nothing ran, so there is nothing to count."""
        self._events.run_taken_back(message)


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
