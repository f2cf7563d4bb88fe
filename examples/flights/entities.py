"""What the runners host: one `Aircraft` per tail number and one `Airport` per destination.

A caller that loses a runner cannot know whether its last record was applied, so it sends it again. Both entities
therefore number what they apply: record n of an entity is applied once, however often it arrives.
"""

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


class Noted(msgspec.Struct, frozen=True):
    """An entity's answer to a record."""

    runner: str
    """Address of the runner that answered."""
    repeated: bool
    """The record had been applied before; nothing changed."""


class RecordMissing(EntityError):
    """A record arrived before the one that precedes it: an earlier one was lost, or they were sent out of order."""

    expected: int
    received: int


class AircraftLog(msgspec.Struct):
    """What one aircraft did; minutes, miles and delays are sums over the legs that it flew."""

    applied: int = 0
    """Number of the last record that was applied; they count from 1 without gaps."""
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
    last_route: str = ""
    """Origin and destination of the last leg: tells whether the records were applied in order."""


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
    last_tail: str = ""


def is_next(applied: int, number: int) -> bool:
    """Return whether record `number` is the one to apply; `False` if it was applied already.

    Raises:
        RecordMissing: records between the two never arrived.
    """
    if number > applied + 1:
        raise RecordMissing(expected=applied + 1, received=number)
    return number == applied + 1


class Aircraft(Entity[AircraftLog], name="aircraft"):
    """One aircraft, by its tail number."""

    async def record(self, number: int, flight: Flight) -> Noted:
        """Apply the aircraft's record `number`, once."""
        log = self.state
        fresh = is_next(log.applied, number)
        if fresh:
            log.applied = number
            add_leg(log, flight)
        return Noted(current().runner.address, repeated=not fresh)

    @handler(readonly=True)
    async def log(self) -> AircraftLog:
        """Return all that is known."""
        return self.state


class Airport(Entity[AirportBook], name="airport"):
    """One destination, by its IATA code."""

    async def record(self, number: int, flight: Flight) -> Noted:
        """Apply the airport's record `number`, once."""
        book = self.state
        fresh = is_next(book.applied, number)
        if fresh:
            book.applied = number
            add_arrival(book, flight)
        return Noted(current().runner.address, repeated=not fresh)

    @handler(readonly=True)
    async def book(self) -> AirportBook:
        """Return all that is known."""
        return self.state


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
        log.last_route = f"{flight.origin}-{flight.destination}"


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
        book.last_tail = flight.tail or ""


hub = Hub()
hub.register(Aircraft)
hub.register(Airport)
