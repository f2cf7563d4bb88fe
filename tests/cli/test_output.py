"""How commands print values that Python has no words for."""

import pytest

from actorhub.cli.output import iso_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (253_402_318_799.0, "9999-12-31T23:59:59.000Z"),
        (float("inf"), "9999-12-31T23:59:59.000Z"),
        (float("-inf"), "0001-01-01T00:00:00.000Z"),
        (-1e15, "0001-01-01T00:00:00.000Z"),
    ],
)
def test_any_time_that_a_database_can_hold_is_printed(seconds: float, text: str) -> None:
    """A time beyond those of Python is the nearest one, not the end of a list that has others, too."""
    assert iso_time(seconds) == text
