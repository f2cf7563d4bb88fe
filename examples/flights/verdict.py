"""Compares the state of the entities with pandas, and shows the result on the screen."""

from collections.abc import Mapping
from typing import Final

import pandas as pd

from examples.demo.screen import Screen
from examples.flights.check import differences, expected_aircraft, expected_airports
from examples.flights.entities import AircraftLog, AirportBook

_SHOWN: Final = 20


def compare(
    screen: Screen, frame: pd.DataFrame, aircraft: Mapping[str, AircraftLog], airports: Mapping[str, AirportBook]
) -> bool:
    """Return whether all entities are equal to the sums of pandas, in every field. Show the differences."""
    screen.say("every entity was read back; computing the same with pandas")
    found = differences(expected_aircraft(frame), aircraft) + differences(expected_airports(frame), airports)
    if not found:
        screen.say(f"equal: {len(aircraft):,} aircraft and {len(airports)} airports, in every field", "bold green")
    for line in found[:_SHOWN]:
        screen.say(line, "red")
    if len(found) > _SHOWN:
        screen.say(f"and {len(found) - _SHOWN} more differences", "red")
    return not found
