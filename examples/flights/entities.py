"""What the runners host: one `Aircraft` per tail number and one `Airport` per destination.

A caller that loses a runner cannot know whether what it sent last was applied, so it sends it again. There are two ways
to apply each record once, however often it arrives:

- `record` takes records by volatile calls. They are numbered by entity, and the state holds the last number.
- `note` takes one record by a durable message, whose key is the row of the record. The cluster does the rest.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from actorhub import Entity, EntityError, Hub, current, handler

PROMPT_MINUTES: Final = 15
"""An arrival is on time when it is less than this late, as the U.S. Department of Transportation counts."""


class Flight(msgspec.Struct, frozen=True):
    """One scheduled departure as it was reported; what did not happen is `None`."""

    tail: str | None
    """Tail number of the aircraft; not known for some of the cancelled flights."""
    carrier: str
    origin: str
    destination: str
    miles: int
    departure_delay: int | None
    """Minutes, negative when early, like all delays; `None`: cancelled."""
    arrival_delay: int | None
    """`None`: cancelled, or landed elsewhere."""
    air_minutes: int | None
    """`None`: cancelled, or landed elsewhere."""
    row: int = 0
    """Number of the record in the data, from 1."""

    def primary_key(self) -> str:
        return str(self.row)


class Noted(msgspec.Struct, frozen=True):
    """An entity's answer to records."""

    runner: str
    """Address of the runner that answered."""
    repeated: int
    """How many of the records had been applied before, and changed nothing now."""


class RecordMissing(EntityError):
    """Records arrived before the one that precedes them: it was lost, or they were sent out of order."""

    expected: int
    received: int


class AircraftLog(msgspec.Struct):
    """What one aircraft did; minutes, miles and delays are sums over the legs that it flew."""

    applied: int = 0
    """How many records were applied."""
    legs: int = 0
    cancelled: int = 0
    diverted: int = 0
    miles: int = 0
    air_minutes: int = 0
    departure_delay: int = 0
    arrival_delay: int = 0
    on_time: int = 0
    carriers: dict[str, int] = {}
    """Legs by carrier."""
    last_row: int = 0
    """The highest row of a leg."""
    last_route: str = ""
    """Origin and destination of that leg."""


class AirportBook(msgspec.Struct):
    """What arrived at one airport."""

    applied: int = 0
    arrivals: int = 0
    cancelled: int = 0
    diverted: int = 0
    delay: int = 0
    """Sum over the arrivals."""
    worst_delay: int | None = None
    on_time: int = 0
    carriers: dict[str, int] = {}
    """Arrivals by carrier."""
    origins: dict[str, int] = {}
    """Arrivals by origin."""
    last_row: int = 0
    """The highest row of an arrival."""
    last_tail: str = ""
    """Of that arrival."""


def new_of(flights: Sequence[Flight], first: int, applied: int) -> Sequence[Flight]:
    """Return those of the records `first`, `first + 1`, ... that come after record `applied`.

    Raises:
        RecordMissing: there are records between `applied` and `first`.
    """
    if first > applied + 1:
        raise RecordMissing(expected=applied + 1, received=first)
    return flights[applied + 1 - first :]


class Aircraft(Entity[AircraftLog], name="aircraft"):
    """One aircraft, by its tail number."""

    async def record(self, first: int, flights: list[Flight]) -> Noted:
        """Apply the aircraft's records `first`, `first + 1`, ...; those that were applied before change nothing."""
        return Noted(current().runner.address, apply_legs(self.state, first, flights))

    @handler(durable=True)
    async def note(self, flight: Flight) -> None:
        """Apply a record, once for each row, in any order."""
        self.state.applied += 1
        add_leg(self.state, flight)

    @handler(readonly=True)
    async def log(self) -> AircraftLog:
        """Return all that is known."""
        return self.state


class Airport(Entity[AirportBook], name="airport"):
    """One destination, by its IATA code."""

    async def record(self, first: int, flights: list[Flight]) -> Noted:
        """Apply the airport's records `first`, `first + 1`, ...; those that were applied before change nothing."""
        return Noted(current().runner.address, apply_arrivals(self.state, first, flights))

    @handler(durable=True)
    async def note(self, flight: Flight) -> None:
        """Apply a record, once for each row, in any order."""
        self.state.applied += 1
        add_arrival(self.state, flight)

    @handler(readonly=True)
    async def book(self) -> AirportBook:
        """Return all that is known."""
        return self.state


def apply_legs(log: AircraftLog, first: int, flights: Sequence[Flight]) -> int:
    """Apply records `first`, `first + 1`, ... to `log`; return how many of them had been applied before.

    Raises:
        RecordMissing: the one before `first` is missing.
    """
    new = new_of(flights, first, log.applied)
    for flight in new:
        add_leg(log, flight)
    log.applied += len(new)
    return len(flights) - len(new)


def add_leg(log: AircraftLog, flight: Flight) -> None:
    """Count a flight in its aircraft's log."""
    if flight.departure_delay is None:
        log.cancelled += 1
    elif flight.arrival_delay is None or flight.air_minutes is None:
        log.diverted += 1
    else:
        log.legs += 1
        log.miles += flight.miles
        log.air_minutes += flight.air_minutes
        log.departure_delay += flight.departure_delay
        log.arrival_delay += flight.arrival_delay
        log.on_time += flight.arrival_delay < PROMPT_MINUTES
        log.carriers[flight.carrier] = log.carriers.get(flight.carrier, 0) + 1
        if flight.row >= log.last_row:
            log.last_row, log.last_route = flight.row, f"{flight.origin}-{flight.destination}"


def apply_arrivals(book: AirportBook, first: int, flights: Sequence[Flight]) -> int:
    """Apply records `first`, `first + 1`, ... to `book`; return how many of them had been applied before.

    Raises:
        RecordMissing: the one before `first` is missing.
    """
    new = new_of(flights, first, book.applied)
    for flight in new:
        add_arrival(book, flight)
    book.applied += len(new)
    return len(flights) - len(new)


def add_arrival(book: AirportBook, flight: Flight) -> None:
    """Count a flight in its destination's book."""
    delay = flight.arrival_delay
    if flight.departure_delay is None:
        book.cancelled += 1
    elif delay is None:
        book.diverted += 1
    else:
        book.arrivals += 1
        book.delay += delay
        book.worst_delay = delay if book.worst_delay is None else max(book.worst_delay, delay)
        book.on_time += delay < PROMPT_MINUTES
        book.carriers[flight.carrier] = book.carriers.get(flight.carrier, 0) + 1
        book.origins[flight.origin] = book.origins.get(flight.origin, 0) + 1
        if flight.row >= book.last_row:
            book.last_row, book.last_tail = flight.row, flight.tail or ""


hub = Hub()
hub.register(Aircraft)
hub.register(Airport)
