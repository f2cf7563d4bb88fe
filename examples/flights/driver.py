"""Sends the records: many at a time, those of one entity in order, and each until it is known to be applied."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import monotonic
from typing import Final, TypeVar

from actorhub import (
    CallTimeout,
    Cluster,
    EntityNotAssigned,
    MailboxFull,
    PersistenceError,
    RunnerUnavailable,
    ShuttingDown,
)
from examples.flights.entities import Aircraft, AircraftLog, Airport, AirportBook, Flight, Noted

T = TypeVar("T")

PASSING: Final = (CallTimeout, EntityNotAssigned, MailboxFull, PersistenceError, RunnerUnavailable, ShuttingDown)
"""Errors of a cluster in trouble, worth another try. All others are defects: they end the run."""
PATIENCE: Final = 60.0
"""Seconds for which one call is tried."""
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25
_READ_AHEAD: Final = 2
"""Records taken up for each call in flight, so that one busy airport does not leave the others idle."""


_MOST_RECORDS: Final = 64
"""Records in one call."""


class Line:
    """The records of one entity that wait to be sent, in order.

    One call of an entity is under way at a time, with all that came up during the one before: so order is kept across
    retries, and an airport that a twentieth of all flights go to does not hold the others up.
    """

    __slots__ = ("busy", "record", "runner", "sent", "waiting")

    def __init__(self, record: Callable[[int, list[Flight]], Awaitable[Noted]]) -> None:
        self.record = record
        self.waiting: deque[Flight] = deque()
        self.sent = 0
        """How many records were sent: the number of the last one."""
        self.busy = False
        self.runner = ""
        """Address of the runner that answered last."""


class Loss:
    """What the loss of a runner means to the callers of its entities."""

    def __init__(self, runner: str, lines: Iterable[Line], first_answer: Callable[[float], None]) -> None:
        self._runner = runner
        self._at = monotonic()
        self._silent = set(lines)
        self._first_answer = first_answer
        self.entities = len(self._silent)
        """How many lived there, of those called so far."""
        self.first: float | None = None
        """Seconds from the loss to the first answer of one of them from another runner."""
        self.longest = 0.0
        """The longest time in seconds, from the loss on, that a first call to one of them took."""

    def answered(self, line: Line, begun: float) -> None:
        """Take note of the answer to a call that was first sent at `begun`."""
        if line.runner == self._runner or line not in self._silent:
            return
        self._silent.remove(line)
        now = monotonic()
        self.longest = max(self.longest, now - max(begun, self._at))
        if self.first is None:
            self.first = now - self._at
            self._first_answer(self.first)


class Driver:
    """A client with at most `in_flight` calls under way.

    Args:
        cluster: Where to send.
        in_flight: How many calls may be under way at once.
    """

    def __init__(self, cluster: Cluster, in_flight: int) -> None:
        self.done = 0
        """Records that are known to be applied."""
        self.calls = 0
        """Calls that succeeded."""
        self.retries: Counter[str] = Counter()
        """Calls that were sent again, by error."""
        self.repeated = 0
        """Records that were sent again and turned out to have been applied before."""
        self.by_runner: Counter[str] = Counter()
        """Records by the address of the runner that applied them."""
        self._in_flight = in_flight
        self._aircraft = cluster.client(Aircraft)
        self._airports = cluster.client(Airport)
        self._aircraft_lines: dict[str, Line] = {}
        self._airport_lines: dict[str, Line] = {}
        self._ready: asyncio.Queue[Line] = asyncio.Queue()
        self._room = asyncio.Semaphore(in_flight * _READ_AHEAD)
        self._marks: list[tuple[int, asyncio.Event]] = []
        self._loss: Loss | None = None

    async def run(self, flights: Iterable[Flight]) -> None:
        """Send each flight to its aircraft and to its destination; return when all of them are applied.

        Raises:
            ExceptionGroup: a call failed for good.
        """
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work()) for _ in range(self._in_flight)]
            for flight in flights:
                if flight.tail is not None:
                    await self._take_up(self._aircraft_line(flight.tail), flight)
                await self._take_up(self._airport_line(flight.destination), flight)
            await self._ready.join()
            for worker in workers:
                worker.cancel()

    async def reached(self, records: int) -> None:
        """Return when that many records are applied."""
        event = asyncio.Event()
        self._marks.append((records, event))
        self._announce()
        await event.wait()

    def homes(self) -> Counter[str]:
        """Return how many entities answered last from which runner, by its address."""
        return Counter(line.runner for line in self._lines() if line.runner)

    def lost(self, runner: str, first_answer: Callable[[float], None]) -> Loss:
        """Note that the runner at that address was lost just now, and measure what follows.

        Args:
            runner: Its address.
            first_answer: Told the seconds from now to the first answer of one of its entities from another runner.
        """
        self._loss = Loss(runner, (line for line in self._lines() if line.runner == runner), first_answer)
        return self._loss

    async def aircraft(self) -> dict[str, AircraftLog]:
        """Return what every aircraft that was called holds."""
        return await self._read({tail: self._aircraft(tail).log for tail in self._aircraft_lines})

    async def airports(self) -> dict[str, AirportBook]:
        """Return what every airport that was called holds."""
        return await self._read({code: self._airports(code).book for code in self._airport_lines})

    def _lines(self) -> Iterator[Line]:
        yield from self._aircraft_lines.values()
        yield from self._airport_lines.values()

    def _aircraft_line(self, tail: str) -> Line:
        line = self._aircraft_lines.get(tail)
        if line is None:
            line = self._aircraft_lines[tail] = Line(self._aircraft(tail).record)
        return line

    def _airport_line(self, code: str) -> Line:
        line = self._airport_lines.get(code)
        if line is None:
            line = self._airport_lines[code] = Line(self._airports(code).record)
        return line

    async def _take_up(self, line: Line, flight: Flight) -> None:
        await self._room.acquire()
        line.waiting.append(flight)
        if not line.busy:
            line.busy = True
            self._ready.put_nowait(line)

    async def _work(self) -> None:
        while True:
            line = await self._ready.get()
            while line.waiting:
                await self._send(line)
            line.busy = False
            self._ready.task_done()

    async def _send(self, line: Line) -> None:
        flights = [line.waiting.popleft() for _ in range(min(len(line.waiting), _MOST_RECORDS))]
        first = line.sent + 1
        line.sent += len(flights)
        begun = monotonic()
        noted = await self._until_done(lambda: line.record(first, flights))
        line.runner = noted.runner
        if self._loss is not None:
            self._loss.answered(line, begun)
        self.calls += 1
        self.by_runner[noted.runner] += len(flights)
        self.repeated += noted.repeated
        self.done += len(flights)
        for _ in flights:
            self._room.release()
        self._announce()

    def _announce(self) -> None:
        for mark in self._marks[:]:
            records, event = mark
            if self.done >= records:
                event.set()
                self._marks.remove(mark)

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds; that it may have been executed is what the record's number is for."""
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

    async def _read(self, calls: dict[str, Callable[[], Awaitable[T]]]) -> dict[str, T]:
        found: dict[str, T] = {}
        left = iter(calls.items())

        async def read() -> None:
            for name, call in left:
                found[name] = await self._until_done(call)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._in_flight, len(calls))):
                group.create_task(read())
        return found
