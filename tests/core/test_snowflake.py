"""Snowflake ids: their layout, their order, and their properties when the clock misbehaves."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError
from actorhub.core.snowflake import EPOCH, MACHINES, Snowflake, SnowflakeGenerator, SnowflakeParts


class SettableClock(SystemClock):
    """A clock whose wall time the test sets."""

    def __init__(self, now: datetime) -> None:
        super().__init__()
        self.now = now
        self.time = self._read

    def _read(self) -> float:
        return self.now.timestamp()


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_an_id_holds_milliseconds_machine_and_sequence() -> None:
    """The bit layout is a stored format: milliseconds since 2025 << 22 | machine << 12 | sequence."""
    clock = SettableClock(NOON + timedelta(milliseconds=7))
    generator = SnowflakeGenerator(5, clock.time)
    first, second = generator.next_id(), generator.next_id()
    milliseconds = (NOON - EPOCH) // timedelta(milliseconds=1) + 7
    assert first == milliseconds << 22 | 5 << 12
    assert second == first + 1
    assert second.parts() == SnowflakeParts(NOON + timedelta(milliseconds=7), 5, 1)
    assert second.parts().timestamp.tzinfo is UTC


def test_a_known_id_keeps_its_meaning() -> None:
    """Stored ids must have the same meaning in every later release."""
    assert Snowflake.parse("154009633791033345").parts() == SnowflakeParts(
        datetime(2026, 3, 1, 23, 39, 18, 56000, tzinfo=UTC), 420, 1
    )


@given(steps=st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=50), burst=st.integers(1, 300))
def test_ids_strictly_increase_whatever_the_wall_clock_does(steps: list[int], burst: int) -> None:
    """A clock that steps back and forth never makes a generator repeat or lower an id."""
    clock = SettableClock(NOON)
    generator = SnowflakeGenerator(1023, clock.time)
    last = -1
    for step in steps:
        clock.now = NOON + timedelta(milliseconds=step)
        for _ in range(burst):
            made = generator.next_id()
            assert made > last
            assert made.parts().machine == 1023
            last = made


def test_a_full_millisecond_borrows_from_the_next_while_the_clock_is_behind() -> None:
    """After 4096 ids in one millisecond the time part advances, and a clock that stepped back changes nothing."""
    clock = SettableClock(NOON)
    generator = SnowflakeGenerator(3, clock.time)
    made = [generator.next_id() for _ in range(4096)]
    clock.now = NOON - timedelta(hours=1)
    made += [generator.next_id() for _ in range(5000)]
    assert len(set(made)) == len(made)
    assert made == sorted(made)
    assert made[4095].parts() == SnowflakeParts(NOON, 3, 4095)
    assert made[4096].parts() == SnowflakeParts(NOON + timedelta(milliseconds=1), 3, 0)
    assert made[-1].parts().timestamp == NOON + timedelta(milliseconds=2)


def test_the_time_part_follows_the_clock_again_once_that_has_caught_up() -> None:
    """The time part of ids stops running ahead once the wall clock has caught up."""
    clock = SettableClock(NOON)
    generator = SnowflakeGenerator(0, clock.time)
    for _ in range(10_000):
        generator.next_id()
    clock.now = NOON + timedelta(seconds=1)
    assert generator.next_id().parts() == SnowflakeParts(NOON + timedelta(seconds=1), 0, 0)


def test_two_machines_never_make_the_same_id() -> None:
    """Ids with equal times and sequences differ by machine."""
    clock = SettableClock(NOON)
    one, other = SnowflakeGenerator(0, clock.time), SnowflakeGenerator(1, clock.time)
    assert {one.next_id() for _ in range(5000)}.isdisjoint({other.next_id() for _ in range(5000)})


@pytest.mark.parametrize("machine", [-1, MACHINES, 1 << 40])
def test_a_machine_id_out_of_range_is_refused(machine: int) -> None:
    """A machine id must fit its ten bits."""
    with pytest.raises(ConfigurationError, match="use 0 to 1023"):
        SnowflakeGenerator(machine, SettableClock(NOON).time)


@pytest.mark.parametrize("now", [datetime(1970, 1, 2, tzinfo=UTC), datetime(2095, 1, 1, tzinfo=UTC)])
def test_a_clock_outside_the_range_of_ids_is_refused(now: datetime) -> None:
    """A machine that boots without a clock must not make ids from 1970."""
    with pytest.raises(ConfigurationError, match="outside the years 2025 to 2094"):
        SnowflakeGenerator(0, SettableClock(now).time)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "9223372036854775808", "1" * 5000, "١"])
def test_what_is_no_snowflake_is_refused(text: str) -> None:
    """Only whole numbers from 0 to 2**63 - 1 are ids."""
    with pytest.raises(ConfigurationError, match="is not a snowflake id"):
        Snowflake.parse(text)


def test_a_snowflake_is_an_int() -> None:
    """A snowflake is stored and compared like a number."""
    made = Snowflake.parse(9223372036854775807)
    assert made == 2**63 - 1
    assert str(made) == "9223372036854775807"
    assert made.parts().machine == 1023
