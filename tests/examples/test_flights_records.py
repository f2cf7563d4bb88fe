"""The flights example's entities and its check, without a cluster."""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.flights.check import differences, expected_aircraft, expected_airports
from examples.flights.data import flights_of, load
from examples.flights.entities import (
    AircraftLog,
    AirportBook,
    Flight,
    RecordMissing,
    apply_arrivals,
    apply_legs,
)

SOME = 20_000

flights = st.builds(
    Flight,
    tail=st.none() | st.sampled_from(["N1", "N2"]),
    carrier=st.sampled_from(["AA", "UA"]),
    origin=st.sampled_from(["EWR", "JFK", "LGA"]),
    destination=st.just("ORD"),
    miles=st.integers(80, 5000),
    departure_delay=st.none() | st.integers(-40, 1300),
    arrival_delay=st.none() | st.integers(-80, 1300),
    air_minutes=st.none() | st.integers(20, 700),
)


def sent_once(records: Sequence[Flight]) -> tuple[AircraftLog, AirportBook]:
    """What an aircraft and an airport hold after all records, one by one."""
    log, book = AircraftLog(), AirportBook()
    for number, flight in enumerate(records, 1):
        apply_legs(log, number, [flight])
        apply_arrivals(book, number, [flight])
    return log, book


@given(records=st.lists(flights, max_size=30), data=st.data())
def test_records_that_are_sent_again_change_nothing(records: list[Flight], data: st.DataObject) -> None:
    """However often and in whatever portions records arrive again, each is applied once, in order."""
    log, book = AircraftLog(), AirportBook()
    while log.applied < len(records):
        before = log.applied
        first = data.draw(st.integers(1, before + 1), label="first")
        last = data.draw(st.integers(first, len(records)), label="last")
        portion = records[first - 1 : last]
        repeated = min(before + 1 - first, len(portion))
        assert apply_legs(log, first, portion) == repeated
        assert apply_arrivals(book, first, portion) == repeated
    assert (log, book) == sent_once(records)


def test_a_gap_between_records_is_refused_and_changes_nothing() -> None:
    """A record that arrives before its predecessor fails with both numbers, so that nothing is lost unseen."""
    flight = Flight("N1", "UA", "EWR", "ORD", 719, 2, 11, 120)
    log = AircraftLog()
    apply_legs(log, 1, [flight])
    before = msgspec.structs.replace(log)
    with pytest.raises(RecordMissing) as caught:
        apply_legs(log, 3, [flight])
    assert (caught.value.expected, caught.value.received) == (2, 3)
    assert log == before


def test_cancelled_and_diverted_flights_count_but_add_nothing() -> None:
    """A flight that did not arrive is counted as what it was, and leaves the sums alone."""
    cancelled = Flight("N1", "UA", "EWR", "ORD", 719, None, None, None)
    diverted = Flight("N1", "UA", "EWR", "ORD", 719, 30, None, None)
    log, book = sent_once([cancelled, diverted, diverted])
    assert log == AircraftLog(applied=3, cancelled=1, diverted=2)
    assert book == AirportBook(applied=3, cancelled=1, diverted=2)


def test_the_data_is_the_year_that_the_documents_describe() -> None:
    """The counts that the example and its README name are those of the package."""
    frame = load()
    untold = frame[frame["tailnum"].isna()]
    assert (len(frame), frame["tailnum"].nunique(), frame["dest"].nunique()) == (336_776, 4_043, 105)
    assert (len(untold), int(untold["dep_time"].notna().sum())) == (2_512, 0)


def test_the_entities_and_pandas_agree_on_the_same_records() -> None:
    """Records applied one by one, in order, give what pandas computes by columns."""
    frame = load(SOME)
    by_tail, by_airport = defaultdict[str, list[Flight]](list), defaultdict[str, list[Flight]](list)
    for flight in flights_of(frame):
        by_airport[flight.destination].append(flight)
        if flight.tail is not None:
            by_tail[flight.tail].append(flight)
    logs = {tail: sent_once(legs)[0] for tail, legs in by_tail.items()}
    books = {code: sent_once(arrivals)[1] for code, arrivals in by_airport.items()}
    assert differences(expected_aircraft(frame), logs) == []
    assert differences(expected_airports(frame), books) == []


def test_the_check_finds_one_minute_too_many() -> None:
    """A planted difference is reported by entity, field and both values; an absent or extra entity by its side."""
    expected = expected_airports(load(SOME))
    found = {name: msgspec.structs.replace(book) for name, book in expected.items()}
    found["ORD"].delay += 1
    found["ZZZ"] = found.pop("LAX")
    delay = expected["ORD"].delay
    assert differences(expected, found) == [
        "LAX: only pandas has it",
        f"ORD.delay: pandas {delay}, cluster {delay + 1}",
        "ZZZ: only the cluster has it",
    ]
