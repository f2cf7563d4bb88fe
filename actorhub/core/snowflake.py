"""64-bit ids that grow with time: milliseconds since 2025 (41 bits), machine (10 bits), sequence (12 bits).

The layout follows Twitter's Snowflake (2010). Unlike there, the time part is a logical clock: when the wall clock steps
back, ids keep growing.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Self

import msgspec

from actorhub.core.errors import ConfigurationError

EPOCH: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""Time zero of all snowflakes."""

MACHINES: Final = 1 << 10
"""Number of machine ids: they range from 0 to `MACHINES - 1`."""

_SEQUENCE_BITS: Final = 12
_MACHINE_SHIFT: Final = _SEQUENCE_BITS
_TIME_SHIFT: Final = 22
_SEQUENCE_MASK: Final = (1 << _SEQUENCE_BITS) - 1
_LIMIT: Final = 1 << 63
"""Ids stay below this, so that they fit a signed 64-bit column. It is reached in the year 2094."""

_EPOCH_SECONDS: Final = EPOCH.timestamp()
_HALF_MICROSECOND: Final = 0.0005
"""In milliseconds. A float of seconds can lie up to 0.24 µs below the millisecond that it stands for."""


class SnowflakeParts(msgspec.Struct, frozen=True):
    """The parts of a snowflake."""

    timestamp: datetime
    """When it was made: aware, UTC, whole milliseconds. Later than that if the generator ran ahead of the clock."""
    machine: int
    """0 to 1023: the process that made it."""
    sequence: int
    """0 to 4095: its number within the machine and the millisecond."""


class Snowflake(int):
    """A 64-bit id. It is an `int`, and compares and is stored like one."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: int | str) -> Self:
        """Return `value` as a snowflake.

        Raises:
            ConfigurationError: `value` is not a whole number from 0 to 2**63 - 1.
        """
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < _LIMIT):
            raise ConfigurationError(f"{text[:40]!r} is not a snowflake id: use a whole number from 0 to {_LIMIT - 1}")
        return cls(int(text))

    def parts(self) -> SnowflakeParts:
        """Return the time, machine and sequence of this id."""
        return SnowflakeParts(
            timestamp=EPOCH + timedelta(milliseconds=self >> _TIME_SHIFT),
            machine=(self >> _MACHINE_SHIFT) & (MACHINES - 1),
            sequence=self & _SEQUENCE_MASK,
        )


class SnowflakeGenerator:
    """Makes strictly increasing snowflakes for one machine id.

    If the wall clock steps back, or more than 4096 ids are requested within a millisecond, the time part runs ahead of
    the wall clock until the wall clock catches up. The generator never waits. It is not thread-safe.

    Args:
        machine: 0 to 1023. No other live generator may use the same one.
        now: Returns the time, in seconds since the Unix epoch.

    Raises:
        ConfigurationError: `machine` is out of range, or the clock is not between 2025 and 2094.
    """

    __slots__ = ("_machine_bits", "_ticks", "_time", "machine")

    def __init__(self, machine: int, now: Callable[[], float]) -> None:
        if not 0 <= machine < MACHINES:
            raise ConfigurationError(f"machine id {machine} is out of range: use 0 to {MACHINES - 1}")
        self.machine = machine
        self._machine_bits = machine << _MACHINE_SHIFT
        self._time = now
        began = now()
        # One tick is one (millisecond, sequence) pair, so that adding one to the last sequence carries over.
        self._ticks = (int((began - _EPOCH_SECONDS) * 1000 + _HALF_MICROSECOND) << _SEQUENCE_BITS) - 1
        if began < _EPOCH_SECONDS or self._ticks >= _LIMIT >> 10:
            raise ConfigurationError(
                f"the system clock is {began:.0f} s after 1970, outside the years 2025 to 2094: set it"
            )

    def next_id(self) -> Snowflake:
        """Return an id that is greater than every id this generator has returned."""
        ticks = int((self._time() - _EPOCH_SECONDS) * 1000 + _HALF_MICROSECOND) << _SEQUENCE_BITS
        if ticks <= self._ticks:
            ticks = self._ticks + 1
        self._ticks = ticks
        return Snowflake(ticks >> _SEQUENCE_BITS << _TIME_SHIFT | self._machine_bits | ticks & _SEQUENCE_MASK)
