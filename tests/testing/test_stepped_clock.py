"""The clock whose wall time tests can step."""

from datetime import UTC, datetime, timedelta

import pytest

from actorhub.testing import SteppedClock

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def test_it_shows_the_time_that_it_was_set_to_and_goes_on() -> None:
    """Wall time starts at the given time, and jumps each time that it is set."""
    clock = SteppedClock(NOON)
    first = clock.now()
    assert NOON <= first < NOON + timedelta(seconds=5)
    assert clock.time() >= first.timestamp()
    clock.set(NOON - timedelta(days=400))
    assert timedelta(0) <= clock.now() - (NOON - timedelta(days=400)) < timedelta(seconds=5)


@pytest.mark.parametrize("by", [timedelta(hours=1), timedelta(hours=-1), timedelta(days=7)])
def test_a_step_moves_wall_time_alone(by: timedelta) -> None:
    """Monotonic time is not affected by steps."""
    clock = SteppedClock(NOON)
    before, wall = clock.monotonic(), clock.now()
    clock.step(by)
    assert by <= clock.now() - wall < by + timedelta(seconds=5)
    assert 0 <= clock.monotonic() - before < 5


def test_a_time_without_a_zone_is_refused() -> None:
    """A naive time would mean another moment on each machine."""
    with pytest.raises(ValueError, match="has no time zone"):
        SteppedClock(NOON.replace(tzinfo=None))


def test_without_a_start_it_shows_the_system_s_time() -> None:
    """Two clocks agree until one of them is stepped."""
    assert abs(SteppedClock().time() - SteppedClock().time()) < 5
