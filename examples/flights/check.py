"""The same sums computed with pandas, and how the entities differ from them."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec
import pandas as pd

from examples.flights.entities import PROMPT_MINUTES, AircraftLog, AirportBook

T = TypeVar("T", bound=msgspec.Struct)

_Sums = dict[str, dict[str, int]]
"""By column name and entity id."""


def expected_aircraft(frame: pd.DataFrame) -> dict[str, AircraftLog]:
    """Return what the log of each aircraft must contain after all records of `frame`."""
    known = frame[frame["tailnum"].notna()]
    flown = _flown(known)
    ends = flown.groupby("tailnum")[["origin", "dest"]].last()
    routes = dict(zip(ends.index, ends["origin"] + "-" + ends["dest"], strict=True))
    rows = _last_rows(frame, "tailnum")
    carriers = _counts(flown, "tailnum", "carrier")
    sums = _sums(
        known,
        "tailnum",
        miles="distance",
        air_minutes="air_time",
        departure_delay="dep_delay",
        arrival_delay="arr_delay",
    )
    return {
        tail: AircraftLog(
            applied=applied,
            legs=sums["flown"].get(tail, 0),
            cancelled=sums["cancelled"].get(tail, 0),
            diverted=sums["diverted"].get(tail, 0),
            miles=sums["miles"].get(tail, 0),
            air_minutes=sums["air_minutes"].get(tail, 0),
            departure_delay=sums["departure_delay"].get(tail, 0),
            arrival_delay=sums["arrival_delay"].get(tail, 0),
            on_time=sums["on_time"].get(tail, 0),
            carriers=carriers.get(tail, {}),
            last_row=rows.get(tail, 0),
            last_route=routes.get(tail, ""),
        )
        for tail, applied in sums["records"].items()
    }


def expected_airports(frame: pd.DataFrame) -> dict[str, AirportBook]:
    """Return what the book of each destination must contain after all records of `frame`."""
    flown = _flown(frame)
    worst = flown.groupby("dest")["arr_delay"].max()
    tails = flown.groupby("dest")["tailnum"].last().to_dict()
    rows = _last_rows(frame, "dest")
    carriers = _counts(flown, "dest", "carrier")
    origins = _counts(flown, "dest", "origin")
    sums = _sums(frame, "dest", delay="arr_delay")
    return {
        airport: AirportBook(
            applied=applied,
            arrivals=sums["flown"].get(airport, 0),
            cancelled=sums["cancelled"].get(airport, 0),
            diverted=sums["diverted"].get(airport, 0),
            delay=sums["delay"].get(airport, 0),
            worst_delay=int(worst[airport]) if airport in worst.index else None,
            on_time=sums["on_time"].get(airport, 0),
            carriers=carriers.get(airport, {}),
            origins=origins.get(airport, {}),
            last_row=rows.get(airport, 0),
            last_tail=tails.get(airport, ""),
        )
        for airport, applied in sums["records"].items()
    }


def differences(expected: Mapping[str, T], found: Mapping[str, T]) -> list[str]:
    """Return a line for each field of each entity that differs, and for each entity that only one side has."""
    lines: list[str] = []
    for name in sorted(expected.keys() | found.keys()):
        left, right = expected.get(name), found.get(name)
        if left is None or right is None:
            lines.append(f"{name}: only {'the cluster' if left is None else 'pandas'} has it")
        elif left != right:
            lines += [
                f"{name}.{field}: pandas {getattr(left, field)!r}, cluster {getattr(right, field)!r}"
                for field in left.__struct_fields__
                if getattr(left, field) != getattr(right, field)
            ]
    return lines


def _flown(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["arr_delay"].notna()]


def _last_rows(frame: pd.DataFrame, by: str) -> dict[str, int]:
    """Return for each entity the number of the last row that was flown, counted from 1."""
    rows = pd.Series(range(1, len(frame) + 1), index=frame.index)[frame["arr_delay"].notna()]
    return {str(key): int(row) for key, row in rows.groupby(frame[by]).last().items()}


def _sums(frame: pd.DataFrame, by: str, **columns: str) -> _Sums:
    """Return the numbers of records, of flown, cancelled and diverted ones, and sums over the flown, by entity."""
    flown = _flown(frame)
    cancelled = frame[frame["dep_time"].isna()]
    diverted = frame[frame["dep_time"].notna() & frame["arr_delay"].isna()]
    sizes = {
        "records": frame,
        "flown": flown,
        "cancelled": cancelled,
        "diverted": diverted,
        "on_time": flown[flown["arr_delay"] < PROMPT_MINUTES],
    }
    found = {
        name: {str(key): int(size) for key, size in part.groupby(by).size().items()} for name, part in sizes.items()
    }
    for name, column in columns.items():
        # Floats hold whole numbers exactly far beyond these sums.
        found[name] = {str(key): int(value) for key, value in flown.groupby(by)[column].sum().items()}
    return found


def _counts(flown: pd.DataFrame, by: str, column: str) -> _Sums:
    found: _Sums = {}
    for key, values in flown.groupby(by)[column]:
        found[str(key)] = {str(value): int(count) for value, count in values.value_counts().items()}
    return found
