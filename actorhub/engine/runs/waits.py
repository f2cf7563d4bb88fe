"""Durable waits, which outlive the run that waits: sleeps, and values that somebody else will provide."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.tokens import Deferral
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.progress import Progress, Wait
from actorhub.engine.model.run import Run
from actorhub.engine.runs.checkpoints import Checkpoints, Step, check_alive, check_name, restart_count
from actorhub.engine.runs.lookout import Lookout
from actorhub.engine.runs.saving import Saving, StepRun
from actorhub.engine.runs.scheduler import Scheduler, run_moved
from actorhub.storage.checkpoint_ports import CheckpointWrite

_SLEEP: Final = "sleep\t"
"""Begins the names of sleeps. Names of steps have no control characters, so they never clash."""


class DurableWaits:
    """Lets runs wait. Being cut short meanwhile does not count as a failed attempt."""

    def __init__(
        self, *, checkpoints: Checkpoints, saving: Saving, scheduler: Scheduler, lookout: Lookout, clock: Clock
    ) -> None:
        self._checkpoints = checkpoints
        self._saving = saving
        self._scheduler = scheduler
        self._lookout = lookout
        self._monotonic = clock.monotonic

    @asynccontextmanager
    async def waiting(
        self, run: Run, progress: Progress, *, name: str, until: float | None, deferral: Deferral | None = None
    ) -> AsyncGenerator[None, None]:
        """Wait in the block for something that outlives this run.

        When the block ends by itself, the count of attempts restarts. A run that fails in it, for example at its
        timeout, counts as an attempt.

        Args:
            run: The run that waits.
            progress: Its checkpoints.
            name: Of the wait, for people.
            until: When it is over, in seconds since the Unix epoch by the store's clock; `None`: it has no limit.
            deferral: What it waits for; `None`: it sleeps.
        """
        check_alive(run)
        # Waiting for days means one run per deploy. So that those do not use up the attempts, the first wait of a run
        # sets the stored count back; a message that kills its runner between two steps still runs out of attempts.
        if isinstance(run.message, DurableMessage) and not progress.is_uncounted:
            write = CheckpointWrite(scope=progress.scope)
            cancelled = await self._saving.commit_step(StepRun.within(run), write)
            progress.is_uncounted = True
            if cancelled:
                raise asyncio.CancelledError
        message = run.message
        if message.abandoned_for is not None and not (isinstance(message, DurableMessage) and message.is_cancelled):
            # The handler swallowed the first one, and a second one will not come. One whose message was cancelled may
            # wait in its clean-up.
            raise asyncio.CancelledError
        wait = Wait(name, self._monotonic(), until, deferral)
        progress.waits.append(wait)
        try:
            # A hand-over cuts short the runs that are in a wait when it begins. This one got here later.
            if run.cell.shard.draining:
                self._scheduler.abandon(run.message, run_moved(run.message))
            self._scheduler.start_reads(run.cell)
            yield
        finally:
            progress.waits.remove(wait)
        restart_count(run)

    async def sleep(self, run: Run, seconds: float, name: str | None) -> None:
        """Return `seconds` after the first run of the message got here, by the store's clock."""
        progress = await self._checkpoints.progress_of(run)
        if name is None:
            progress.sleeps += 1
            name = shown = f"{progress.sleeps}"
        else:
            shown = check_name(name)
            name = f"\t{shown}"
        due = await self.end_of(run, f"{_SLEEP}{name}", seconds)
        if not await self._lookout.is_past(due):
            async with self.waiting(run, progress, name=shown, until=due):
                await self._lookout.alarm(due)

    async def end_of(self, run: Run, name: str, seconds: float) -> float:
        """Return when a wait ends that lasts for `seconds` from the first run of the message that got here.

        Seconds since the Unix epoch, by the store's clock. A step under that name stores it, so that every later run
        waits until the same moment.
        """

        async def end() -> float:
            return await self._lookout.store_time() + seconds

        due: float = await self._checkpoints.run_step(run, Step(name, end))
        return due
