"""Runs the generator of a stream: step by step, each within its time."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from actorhub.core.errors import ActorhubError, CallTimeout
from actorhub.core.logger import get_logger
from actorhub.core.texts import is_of
from actorhub.engine.model.records import Message
from actorhub.engine.runs.driving import run_in
from actorhub.engine.runs.stuck import STUCK_AFTER, log_stuck

_log: Final = get_logger("actorhub.streams")

CLOSE_LIMIT: Final = 5.0
"""Seconds that a generator's clean-up may take, if the handler's timeout is not less."""


class StreamSteps:
    """The steps of one generator: the time inside of it, from when it goes on to the next `yield`.

    A step whose time is over is cancelled. One that still goes on `STUCK_AFTER` seconds later is abandoned: `on_stuck`
    is called with the error, and if the step ends after all it raises that error, as every late step does.
    """

    def __init__(
        self,
        generator: AsyncGenerator[Any, None],
        context: Context,
        message: Message,
        on_stuck: Callable[[ActorhubError], None],
    ) -> None:
        self._generator = generator
        self._context = context
        self._what = message.what
        self._entity_id = message.entity_id
        self._limit = message.spec.timeout
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._late: CallTimeout | None = None
        self._is_running = False
        self.is_at_yield = False
        """The generator is suspended between two steps, so it has a clean-up to do."""

    async def advance(self) -> Any:
        """Run the next step and return its item.

        Raises:
            StopAsyncIteration: The generator returned.
            CallTimeout: The step took too long.
            CancelledError: The step was cut short, even if it swallowed that.
        """
        self.is_at_yield = False
        return await self._run(self._generator.__anext__(), self._limit, "a step")

    async def close(self) -> None:
        """Run the clean-up of a generator that is suspended at a `yield`.

        Raises:
            CallTimeout: It took too long.
            CancelledError: It was cut short, even if it swallowed that.
        """
        limit = CLOSE_LIMIT if self._limit is None else min(self._limit, CLOSE_LIMIT)
        try:
            await self._run(self._generator.aclose(), limit, "the clean-up")
        finally:
            self.is_at_yield = False

    def expect_end(self, error: ActorhubError) -> None:
        """Abandon the present step, which was cancelled for that reason, if it goes on. Clean-ups have a limit."""
        if self._is_running and self._late is None and not self.is_at_yield:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(STUCK_AFTER, self._abandon, error)

    async def _run(self, step: Coroutine[Any, Any, Any], limit: float | None, what: str) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._late = None
        if limit is not None:
            text = f"{self._what}: {what} of the stream took longer than {limit:g} s"
            late = CallTimeout(text, possibly_executed=True)
            self._timer = self._loop.call_later(limit, self._on_late, late, task)
        self._is_running = True
        try:
            item = await run_in(self._context, step)
        except BaseException as exc:
            if not is_of(exc, GeneratorExit):
                self._check_time(exc)
            if is_of(exc, StopAsyncIteration) and task.cancelling():
                raise asyncio.CancelledError from exc
            raise
        finally:
            self._is_running = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self.is_at_yield = True
        # As with any handler, what it did although it was cancelled does not count.
        self._check_time(None)
        if task.cancelling():
            raise asyncio.CancelledError
        return item

    def _check_time(self, cause: BaseException | None) -> None:
        if self._late is not None:
            raise self._late from cause

    def _on_late(self, error: CallTimeout, task: "asyncio.Task[Any]") -> None:
        self._late = error
        self._timer = self._loop.call_later(STUCK_AFTER, self._abandon, error)
        if not task.cancelling():
            task.cancel()

    def _abandon(self, error: ActorhubError) -> None:
        log_stuck(_log, self._what, self._entity_id, self._generator)
        self._on_stuck(error)
