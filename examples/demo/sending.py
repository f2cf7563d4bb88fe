"""What all drivers do: count the work that is done, and repeat calls that fail while the cluster is in trouble."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Final, TypeVar

from actorhub import CallTimeout, EntityNotAssigned, MailboxFull, PersistenceError, RunnerUnavailable, ShuttingDown

T = TypeVar("T")
U = TypeVar("U")

PASSING: Final = (CallTimeout, EntityNotAssigned, MailboxFull, PersistenceError, RunnerUnavailable, ShuttingDown)
"""Errors of a cluster in trouble, after which a call is repeated. All other errors are defects and end the run."""
PATIENCE: Final = 60.0
"""Seconds during which one call is repeated."""
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25


class Sender:
    """Sends calls, and repeats each of them until its outcome is known.

    Args:
        in_flight: How many calls may be in flight at once.
    """

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.done = 0
        """How much work is known to be done."""
        self.retries: Counter[str] = Counter()
        """Numbers of repeated calls, by error."""
        self._marks: list[tuple[int, asyncio.Event]] = []

    async def reached(self, count: int) -> None:
        """Return when `count` units of work are done."""
        event = asyncio.Event()
        self._marks.append((count, event))
        self.advance(0)
        await event.wait()

    def advance(self, count: int) -> None:
        """Count `count` more units of work as done."""
        self.done += count
        for mark in self._marks[:]:
            wanted, event = mark
            if self.done >= wanted:
                event.set()
                self._marks.remove(mark)

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds, or fails with an error that a repetition does not cure.

        The call can be executed more than once, so its handler must recognise a repetition, or it must have a key.
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
        """Call `act` with every item, and start the calls in order.

        Raises:
            ExceptionGroup: A call failed for good.
        """
        left = iter(items)

        async def work() -> None:
            for item in left:
                await act(item)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.in_flight):
                group.create_task(work())

    async def results(self, calls: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, T]:
        """Return the results of all calls, by name."""
        found: dict[str, T] = {}

        async def ask(name: str) -> None:
            found[name] = await self.until_done(calls[name])

        await self.each(calls, ask)
        return found
