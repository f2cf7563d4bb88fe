"""What every driver does: count what is done, and repeat what a cluster in trouble could not do."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Final, TypeVar

from actorhub import CallTimeout, EntityNotAssigned, MailboxFull, PersistenceError, RunnerUnavailable, ShuttingDown

T = TypeVar("T")
U = TypeVar("U")

PASSING: Final = (CallTimeout, EntityNotAssigned, MailboxFull, PersistenceError, RunnerUnavailable, ShuttingDown)
"""Errors of a cluster in trouble, worth another try. All others are defects: they end the run."""
PATIENCE: Final = 60.0
"""Seconds for which one call is tried."""
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25


class Sender:
    """Sends calls, each until its outcome is known.

    Args:
        in_flight: How many may be under way at once.
    """

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.done = 0
        """What is known to be done."""
        self.retries: Counter[str] = Counter()
        """Calls that were sent again, by error."""
        self._marks: list[tuple[int, asyncio.Event]] = []

    async def reached(self, count: int) -> None:
        """Return when that much is done."""
        event = asyncio.Event()
        self._marks.append((count, event))
        self.advance(0)
        await event.wait()

    def advance(self, count: int) -> None:
        """Note that `count` more are done."""
        self.done += count
        for mark in self._marks[:]:
            wanted, event = mark
            if self.done >= wanted:
                event.set()
                self._marks.remove(mark)

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds, or fails with what another try cannot help.

        It may be executed more than once: its handler must tell, or its key does.
        """
        deadline = monotonic() + PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                return await call()
            except PASSING as error:
                if monotonic() > deadline:
                    raise
                outcome = "outcome unknown" if error.possibly_executed else "not executed"
                self.retries[f"{type(error).__name__}, {outcome}"] += 1
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def each(self, items: Iterable[U], act: Callable[[U], Awaitable[None]]) -> None:
        """Do `act` with every item, begun in their order.

        Raises:
            ExceptionGroup: one failed for good.
        """
        left = iter(items)

        async def work() -> None:
            for item in left:
                await act(item)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.in_flight):
                group.create_task(work())

    async def results(self, calls: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, T]:
        """Return what every call returns, by its name."""
        found: dict[str, T] = {}

        async def ask(name: str) -> None:
            found[name] = await self.until_done(calls[name])

        await self.each(calls, ask)
        return found
