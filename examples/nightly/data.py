"""The records by day, and the same roll-up with pandas."""

from collections.abc import Iterator
from datetime import date
from typing import Final, TypeAlias

import msgspec
import pandas as pd

from examples.flights.data import flights_of, load
from examples.nightly.entities import PROMPT_MINUTES, Totals

FlightRow: TypeAlias = tuple[int, date, str, bool, int | None]
"""Number, day, destination, whether the flight departed, delay at arrival."""
MOST_DAYS: Final = 365


class DayBook(msgspec.Struct, frozen=True):
    """One day at one airport, as in the table `rollup`."""

    flights: int
    cancelled: int
    arrived: int
    delayed: int
    mean_delay: float | None


def load_days(count: int) -> pd.DataFrame:
    """Return the records of the first `count` days of 2013, with a column `date`."""
    frame = load()
    frame = frame.assign(date=pd.to_datetime(frame[["year", "month", "day"]]).dt.date)
    return frame[frame["date"].isin(sorted(frame["date"].unique())[:count])]


def rows_of(frame: pd.DataFrame) -> Iterator[FlightRow]:
    """Yield the records as rows of the table `flight`."""
    for day, flight in zip(frame["date"].tolist(), flights_of(frame), strict=True):
        yield flight.row, day, flight.destination, flight.departure_delay is not None, flight.arrival_delay


def expected_days(frame: pd.DataFrame) -> dict[str, DayBook]:
    """Return the expected rows of `rollup`, by day and airport."""
    marked = _marked(frame)
    found = marked.groupby(["date", "dest"]).agg(
        flights=("dest", "size"),
        cancelled=("cancelled", "sum"),
        arrived=("arr_delay", "count"),
        delayed=("delayed", "sum"),
        mean=("arr_delay", "mean"),
    )
    return {
        f"{row['date']} {row['dest']}": DayBook(
            flights=int(row["flights"]),
            cancelled=int(row["cancelled"]),
            arrived=int(row["arrived"]),
            delayed=int(row["delayed"]),
            mean_delay=float(row["mean"]) if row["arrived"] else None,
        )
        for row in found.reset_index().to_dict("records")
    }


def expected_totals(frame: pd.DataFrame) -> dict[str, Totals]:
    """Return the expected totals of each airport."""
    found = (
        _marked(frame)
        .groupby("dest")
        .agg(
            days=("date", "nunique"),
            flights=("dest", "size"),
            cancelled=("cancelled", "sum"),
            arrived=("arr_delay", "count"),
            delayed=("delayed", "sum"),
            minutes=("arr_delay", "sum"),
        )
    )
    return {
        str(airport): Totals(**{str(name): int(value) for name, value in row.items()})
        for airport, row in found.iterrows()
    }


def _marked(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(cancelled=frame["dep_time"].isna(), delayed=frame["arr_delay"] >= PROMPT_MINUTES)
