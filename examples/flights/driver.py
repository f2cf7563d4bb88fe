"""Sends the records: many at a time, those of one entity in order, and each one until it is known to be applied."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import monotonic
from typing import Final

from actorhub import Cluster
from examples.demo.sending import Sender
from examples.flights.entities import Aircraft, AircraftLog, Airport, AirportBook, Flight, Noted

_READ_AHEAD: Final = 2
"""Records read ahead for each call in flight, so that one busy airport does not leave the others idle."""
_MOST_RECORDS: Final = 64
"""Records in one call."""


class Line:
    """The records of one entity that are waiting to be sent, in order.

    Each entity has one call in flight at a time. The call carries all records that arrived during the call before. So
    the order survives retries, and an airport that gets a twentieth of all flights does not delay the others.
    """

    __slots__ = ("busy", "record", "runner", "sent", "waiting")

    def __init__(self, record: Callable[[int, list[Flight]], Awaitable[Noted]]) -> None:
        self.record = record
        self.waiting: deque[Flight] = deque()
        self.sent = 0
        """How many records were sent, which is the number of the last one."""
        self.busy = False
        self.runner = ""
        """Address of the runner that answered last."""


class Loss:
    """Measures what the callers of the entities of a lost runner notice."""

    def __init__(self, runner: str, lines: Iterable[Line], first_answer: Callable[[float], None]) -> None:
        self._runner = runner
        self._at = monotonic()
        self._silent = set(lines)
        self._first_answer = first_answer
        self.entities = len(self._silent)
        """How many of the entities that were called so far lived on the runner."""
        self.first: float | None = None
        """Seconds from the loss to the first answer of one of them from another runner."""
        self.longest = 0.0
        """The longest time in seconds, counted from the loss, that the first call to one of them took."""

    def answered(self, line: Line, begun: float) -> None:
        """Record the answer to a call that was first sent at `begun`."""
        if line.runner == self._runner or line not in self._silent:
            return
        self._silent.remove(line)
        now = monotonic()
        self.longest = max(self.longest, now - max(begun, self._at))
        if self.first is None:
            self.first = now - self._at
            self._first_answer(self.first)


class Driver(Sender):
    """A client with at most `in_flight` calls at a time.

    Args:
        cluster: The cluster to call.
        in_flight: How many calls may be in flight at once.
    """

    def __init__(self, cluster: Cluster, in_flight: int) -> None:
        super().__init__(in_flight)
        self.calls = 0
        """Calls that succeeded."""
        self.repeated = 0
        """Records that were sent again and had already been applied."""
        self.by_runner: Counter[str] = Counter()
        """Records by the address of the runner that applied them."""
        self._aircraft = cluster.client(Aircraft)
        self._airports = cluster.client(Airport)
        self._aircraft_lines: dict[str, Line] = {}
        self._airport_lines: dict[str, Line] = {}
        self._ready: asyncio.Queue[Line] = asyncio.Queue()
        self._room = asyncio.Semaphore(in_flight * _READ_AHEAD)
        self._loss: Loss | None = None

    async def run(self, flights: Iterable[Flight]) -> None:
        """Send each flight to its aircraft and to its destination. Return when all of them are applied.

        Raises:
            ExceptionGroup: A call failed for good.
        """
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work()) for _ in range(self.in_flight)]
            for flight in flights:
                if flight.tail is not None:
                    await self._take_up(self._aircraft_line(flight.tail), flight)
                await self._take_up(self._airport_line(flight.destination), flight)
            await self._ready.join()
            for worker in workers:
                worker.cancel()

    def homes(self) -> Counter[str]:
        """Return for each runner, by address, how many entities answered from it last."""
        return Counter(line.runner for line in self._lines() if line.runner)

    def lost(self, runner: str, first_answer: Callable[[float], None]) -> Loss:
        """Record that the runner at this address was lost just now, and measure what follows.

        Args:
            runner: Its address.
            first_answer: Called with the seconds until one of its entities answers from another runner.
        """
        self._loss = Loss(runner, (line for line in self._lines() if line.runner == runner), first_answer)
        return self._loss

    async def aircraft(self) -> dict[str, AircraftLog]:
        """Return the log of every aircraft that was called."""
        return await self.results({tail: self._aircraft(tail).log for tail in self._aircraft_lines})

    async def airports(self) -> dict[str, AirportBook]:
        """Return the book of every airport that was called."""
        return await self.results({code: self._airports(code).book for code in self._airport_lines})

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
        noted = await self.until_done(lambda: line.record(first, flights))
        line.runner = noted.runner
        if self._loss is not None:
            self._loss.answered(line, begun)
        self.calls += 1
        self.by_runner[noted.runner] += len(flights)
        self.repeated += noted.repeated
        for _ in flights:
            self._room.release()
        self.advance(len(flights))
