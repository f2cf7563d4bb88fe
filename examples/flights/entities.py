"""What the runners host: one `Aircraft` per tail number and one `Airport` per destination.

When a runner is lost, its callers cannot know whether their last records were applied, so they send them again. The
entities offer two ways to apply each record once, however often it arrives:

- `record` takes records in volatile calls. They are numbered per entity, and the state has the number of the last one.
- `note` takes one record in a durable message, whose key is the row of the record. The cluster does the rest.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from actorhub import Entity, EntityError, Hub, current, handler

PROMPT_MINUTES: Final = 15
"""An arrival is on time if it is less than this late, as the U.S. Department of Transportation defines it."""


class Flight(msgspec.Struct, frozen=True):
    """One scheduled departure as it was reported. A value is `None` if the event did not happen."""

    tail: str | None
    """Tail number of the aircraft. It is not known for some of the cancelled flights."""
    carrier: str
    origin: str
    destination: str
    miles: int
    departure_delay: int | None
    """In minutes, negative if early, like all delays. `None`: cancelled."""
    arrival_delay: int | None
    """`None`: cancelled, or landed at another airport."""
    air_minutes: int | None
    """`None`: cancelled, or landed at another airport."""
    row: int = 0
    """Number of the record in the data, from 1."""

    def primary_key(self) -> str:
        return str(self.row)


class Noted(msgspec.Struct, frozen=True):
    """An entity's answer to records."""

    runner: str
    """Address of the runner that answered."""
    repeated: int
    """How many of the records had been applied before and changed nothing now."""


class RecordMissing(EntityError):
    """Records arrived before an earlier one, which was lost or sent out of order."""

    expected: int
    received: int


class AircraftLog(msgspec.Struct):
    """What one aircraft did. Minutes, miles and delays are sums over the legs that it flew."""

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
    """Tail number of that arrival."""


def new_of(flights: Sequence[Flight], first: int, applied: int) -> Sequence[Flight]:
    """Return the records after `applied`, of the records `first`, `first + 1` and so on.

    Raises:
        RecordMissing: There are records between `applied` and `first`.
    """
    if first > applied + 1:
        raise RecordMissing(expected=applied + 1, received=first)
    return flights[applied + 1 - first :]


class Aircraft(Entity[AircraftLog], name="aircraft"):
    """One aircraft, by its tail number."""

    async def record(self, first: int, flights: list[Flight]) -> Noted:
        """Apply the aircraft's records, numbered from `first`. Those that were applied before change nothing."""
        return Noted(current().runner.address, apply_legs(self.state, first, flights))

    @handler(durable=True)
    async def note(self, flight: Flight) -> None:
        """Apply a record. Records can come in any order, and each row is applied once."""
        self.state.applied += 1
        add_leg(self.state, flight)

    @handler(readonly=True)
    async def log(self) -> AircraftLog:
        """Return the state."""
        return self.state


class Airport(Entity[AirportBook], name="airport"):
    """One destination, by its IATA code."""

    async def record(self, first: int, flights: list[Flight]) -> Noted:
        """Apply the airport's records, numbered from `first`. Those that were applied before change nothing."""
        return Noted(current().runner.address, apply_arrivals(self.state, first, flights))

    @handler(durable=True)
    async def note(self, flight: Flight) -> None:
        """Apply a record. Records can come in any order, and each row is applied once."""
        self.state.applied += 1
        add_arrival(self.state, flight)

    @handler(readonly=True)
    async def book(self) -> AirportBook:
        """Return the state."""
        return self.state


def apply_legs(log: AircraftLog, first: int, flights: Sequence[Flight]) -> int:
    """Apply records, numbered from `first`, to `log`. Return how many of them had been applied before.

    Raises:
        RecordMissing: The record before `first` is missing.
    """
    new = new_of(flights, first, log.applied)
    for flight in new:
        add_leg(log, flight)
    log.applied += len(new)
    return len(flights) - len(new)


def add_leg(log: AircraftLog, flight: Flight) -> None:
    """Add a flight to the log of its aircraft."""
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
    """Apply records, numbered from `first`, to `book`. Return how many of them had been applied before.

    Raises:
        RecordMissing: The record before `first` is missing.
    """
    new = new_of(flights, first, book.applied)
    for flight in new:
        add_arrival(book, flight)
    book.applied += len(new)
    return len(flights) - len(new)


def add_arrival(book: AirportBook, flight: Flight) -> None:
    """Add a flight to the book of its destination."""
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
