"""Runs of methods with `@cron`: their schedule decides whether a fire time runs, and counts how the run ended."""

import functools
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from actorhub.core.errors import ActorhubError, HandlerFailed, MailboxFull
from actorhub.core.texts import summary_of
from actorhub.engine.model.durable_message import DurableMessage, Place, RunEvents
from actorhub.engine.model.records import DEAD
from actorhub.engine.model.run import running
from actorhub.engine.runs.scheduler import RunMoved
from actorhub.engine.runs.services import services
from actorhub.engine.singletons.cron_schedule import CronSchedule
from actorhub.storage.message_ports import NotPending
from actorhub.storage.ports import Fenced

Method = Callable[..., Coroutine[Any, Any, Any]]


def cron_function(method: Method) -> Method:
    """Return the function that runs in place of a method with `@cron`. For a skipped fire time it returns `None`."""

    @functools.wraps(method)
    async def run(instance: object, at: datetime) -> Any:
        here = running.get()
        assert here is not None
        return await services.get().run_scheduled(here, functools.partial(method, instance, at))

    return run


class CountedRuns:
    """Stands between the message of a fire time and its settlement, and counts how its runs end.

    A run that was cut short, or whose commit was refused, is not counted, because the message runs again.

    Args:
        events: Settles the message.
        schedule: Counts the runs.
        fire_time: Of the message; `None` if a person runs the method.
        on_counted: Told that the row of the schedule has changed.
    """

    def __init__(
        self, events: RunEvents, schedule: CronSchedule, fire_time: float | None, on_counted: Callable[[], None]
    ) -> None:
        self._events = events
        self._schedule = schedule
        self._fire_time = fire_time
        self._on_counted = on_counted

    def on_run_committed(self, message: DurableMessage, body: bytes) -> None:
        """Count a run that was committed."""
        self._schedule.on_succeeded(self._fire_time)
        self._on_counted()
        self._events.on_run_committed(message, body)

    def on_run_failed(self, message: DurableMessage, error: ActorhubError) -> None:
        """Count a run that failed."""
        if not _was_lost(message, error):
            self._schedule.on_failed(self._fire_time, _text(error), for_good=_is_last(message, error))
            self._on_counted()
        self._events.on_run_failed(message, error)

    def on_run_not_started(self, message: DurableMessage) -> None:
        """Count nothing, because nothing ran."""
        self._events.on_run_not_started(message)


def _was_lost(message: DurableMessage, error: ActorhubError) -> bool:
    """Whether the message's outcome is open: another runner has it now, or it runs again as if this run never was."""
    if message.place is Place.GONE or isinstance(error, RunMoved | Fenced | NotPending):
        return True
    if not message.is_counted:
        return isinstance(error, MailboxFull)
    return message.cell is not None and message.cell.phase == DEAD


def _is_last(message: DurableMessage, error: ActorhubError) -> bool:
    retry, attempts = message.spec.retry, message.attempts + (not message.is_counted)
    return message.is_cancelled or retry.is_final(error) or not retry.allows(attempts, error)


def _text(error: ActorhubError) -> str:
    if isinstance(error, HandlerFailed):
        return f"{error.type}: {error.message}"
    return summary_of(error)
