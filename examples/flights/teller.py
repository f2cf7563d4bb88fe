"""Tells the records as durable messages, in any order, as fast as they can be stored, some of them twice."""

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias

from actorhub import Cluster
from examples.demo.sending import Sender
from examples.flights.entities import Aircraft, AircraftLog, Airport, AirportBook, Flight

Note: TypeAlias = Callable[[Flight], Coroutine[Any, Any, None]]

_COPIED: Final = 1 / 12
"""Share of the records that are told again."""
_LATER: Final = 2_000
"""The greatest number of records between a record and its copy."""


class _Told(NamedTuple):
    note: Note
    flight: Flight
    copy: bool


class Teller(Sender):
    """A client that tells each record to its aircraft and to its destination, with the record's row as the key.

    Args:
        cluster: The cluster to call.
        in_flight: How many tells may be in flight at once.
    """

    def __init__(self, cluster: Cluster, in_flight: int) -> None:
        super().__init__(in_flight)
        self.copies = 0
        """How many records were told again on purpose."""
        self._cluster = cluster
        self._aircraft = cluster.client(Aircraft)
        self._airports = cluster.client(Airport)

    async def run(self, flights: Iterable[Flight]) -> None:
        """Tell all records. Return when every record is stored, as a message to each of its entities.

        Raises:
            ExceptionGroup: A record could not be stored.
        """
        await self.each(self._with_copies(flights), self._tell)

    async def aircraft(self, tails: Iterable[str]) -> dict[str, AircraftLog]:
        """Return the logs of these aircraft."""
        return await self.results({tail: self._aircraft(tail).log for tail in tails})

    async def airports(self, codes: Iterable[str]) -> dict[str, AirportBook]:
        """Return the books of these airports."""
        return await self.results({code: self._airports(code).book for code in codes})

    async def _tell(self, told: _Told) -> None:
        await self.until_done(lambda: self._cluster.tell(told.note(told.flight)))
        if told.copy:
            self.copies += 1
        else:
            self.advance(1)

    def _with_copies(self, flights: Iterable[Flight]) -> Iterator[_Told]:
        """Yield every record, and of some records a copy, soon after the record or much later."""
        random = Random(1)
        later: deque[_Told] = deque()
        for flight in flights:
            for note in self._notes(flight):
                yield _Told(note, flight, copy=False)
                if random.random() < _COPIED:
                    later.append(_Told(note, flight, copy=True))
            while later and (len(later) > _LATER * _COPIED or random.random() < _COPIED):
                yield later.popleft()
        yield from later

    def _notes(self, flight: Flight) -> Iterator[Note]:
        if flight.tail is not None:
            yield self._aircraft(flight.tail).note
        yield self._airports(flight.destination).note
