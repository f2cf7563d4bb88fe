"""Waits that outlive the run that waits: sleeps, and values that somebody else will provide."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from actorhub.core.errors import PersistenceError
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.records import Cell, Message
from actorhub.engine.runs.checkpoints import Checkpoints, Step, check_alive, check_name, restart_count
from actorhub.engine.runs.saving import Saving, StepRun
from actorhub.engine.runs.scheduler import Scheduler, run_moved
from actorhub.storage.checkpoint_ports import CheckpointWrite
from actorhub.storage.message_ports import MessageStore

_log: Final = logging.getLogger("actorhub.checkpoints")

_LONGEST_NAP: Final = 600.0
"""Seconds after which a long sleep looks at the store's clock again: this process's own drifts."""
_RETRY: Final = 1.0
"""Seconds until a sleep looks again after the store failed."""
_SLEEP: Final = "sleep\t"
"""Begins the names of sleeps; those of steps hold no control characters."""


class DurableWaits:
    """Lets runs wait; being cut short meanwhile is not an attempt that failed."""

    def __init__(
        self, *, checkpoints: Checkpoints, saving: Saving, scheduler: Scheduler, messages: MessageStore
    ) -> None:
        self._checkpoints = checkpoints
        self._saving = saving
        self._scheduler = scheduler
        self._messages = messages

    @asynccontextmanager
    async def waiting(self, message: Message, cell: Cell, progress: Progress) -> AsyncGenerator[None, None]:
        """Wait in the block for something that outlives this run.

        Once the block ends by itself the attempts count anew; a run that fails in it, for example at its timeout,
        counts.
        """
        check_alive(message, cell, progress)
        if isinstance(message, DurableMessage) and not progress.is_uncounted:
            write = CheckpointWrite(scope=progress.scope)
            cancelled = await self._saving.commit_step(StepRun(message, cell), cell, write)
            progress.is_uncounted = True
            if cancelled:
                raise asyncio.CancelledError
        if message.abandoned_for is not None:
            raise asyncio.CancelledError  # its handler swallowed the first one, and there is no second
        progress.waits += 1
        try:
            if cell.shard.draining:
                self._scheduler.abandon(message, run_moved(message))
            yield
        finally:
            progress.waits -= 1
        restart_count(message)

    async def sleep(self, message: Message, cell: Cell, seconds: float, name: str | None) -> None:
        """Return so many seconds, by the store's clock, after the first run of the message came here."""
        progress = await self._checkpoints.progress_of(message)
        if name is None:
            progress.sleeps += 1
            name = f"{progress.sleeps}"
        else:
            name = f"\t{check_name(name)}"
        now = await self._store_time()
        step = Step(f"{_SLEEP}{name}", lambda: now + seconds)
        due: float = await self._checkpoints.run_step(message, cell, step)
        if due <= now:
            return
        async with self.waiting(message, cell, progress):
            nap = due - now
            while nap > 0:
                await asyncio.sleep(min(nap, _LONGEST_NAP))
                try:
                    nap = due - await self._store_time()
                except PersistenceError as error:
                    _log.warning("%s: cannot see whether its sleep is over: %s", message.address, error)
                    nap = _RETRY

    async def _store_time(self) -> float:
        """Return seconds since the Unix epoch by the store's clock, read after this was called."""
        _, now = await self._messages.load_scheduled((), 0.0, 0)
        return now
