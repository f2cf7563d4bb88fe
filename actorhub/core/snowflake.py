"""64-bit ids that grow with time: milliseconds since 2025 (41 bits), machine (10 bits), sequence (12 bits).

After Twitter's Snowflake (2010), with a logical clock: the time part never follows a wall clock backwards.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, Self

import msgspec

from actorhub.core.clock import Clock
from actorhub.core.errors import ConfigurationError

EPOCH: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""Time zero of all snowflakes."""

MACHINES: Final = 1 << 10
"""How many machine ids there are: 0 to `MACHINES - 1`."""

_SEQUENCE_BITS: Final = 12
_MACHINE_SHIFT: Final = _SEQUENCE_BITS
_TIME_SHIFT: Final = 22
_SEQUENCE_MASK: Final = (1 << _SEQUENCE_BITS) - 1
_LIMIT: Final = 1 << 63
"""Ids stay below it, so that they fit a signed 64-bit column; reached in the year 2094."""

_EPOCH_SECONDS: Final = EPOCH.timestamp()
_HALF_MICROSECOND: Final = 0.0005
"""In milliseconds. A float of seconds lies up to 0.24 µs below the millisecond that it stands for."""


class SnowflakeParts(msgspec.Struct, frozen=True):
    """What a snowflake is made of."""

    timestamp: datetime
    """Aware, UTC, whole milliseconds: the wall time at which it was made, or shortly after if ids were borrowed."""
    machine: int
    """0 to 1023: the process that made it."""
    sequence: int
    """0 to 4095: its number within machine and millisecond."""


class Snowflake(int):
    """A 64-bit id; it is an `int`, and compares and stores like one."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: int | str) -> Self:
        """Return `value` as a snowflake.

        Raises:
            ConfigurationError: It is not a whole number from 0 to 2**63 - 1.
        """
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < _LIMIT):
            raise ConfigurationError(f"{text[:40]!r} is not a snowflake id: use a whole number from 0 to {_LIMIT - 1}")
        return cls(int(text))

    def parts(self) -> SnowflakeParts:
        """Return time, machine and sequence of this id."""
        return SnowflakeParts(
            timestamp=EPOCH + timedelta(milliseconds=self >> _TIME_SHIFT),
            machine=(self >> _MACHINE_SHIFT) & (MACHINES - 1),
            sequence=self & _SEQUENCE_MASK,
        )


class SnowflakeGenerator:
    """Makes strictly increasing snowflakes for one machine id.

    When the wall clock steps back, or more than 4096 ids are asked for within a millisecond, the time part runs ahead
    of the wall clock until that has caught up. Not thread-safe; it never waits.

    Args:
        machine: 0 to 1023; no other live generator may use it.
        clock: Where wall time comes from.

    Raises:
        ConfigurationError: `machine` is out of range, or the clock is not between 2025 and 2094.
    """

    __slots__ = ("_machine_bits", "_ticks", "_time", "machine")

    def __init__(self, machine: int, clock: Clock) -> None:
        if not 0 <= machine < MACHINES:
            raise ConfigurationError(f"machine id {machine} is out of range: allowed is 0 to {MACHINES - 1}")
        self.machine = machine
        self._machine_bits = machine << _MACHINE_SHIFT
        self._time = clock.time
        now = self._time()
        # One tick is one (millisecond, sequence) pair, so that plain addition carries a full millisecond over.
        self._ticks = (int((now - _EPOCH_SECONDS) * 1000 + _HALF_MICROSECOND) << _SEQUENCE_BITS) - 1
        if now < _EPOCH_SECONDS or self._ticks >= _LIMIT >> 10:
            raise ConfigurationError(
                f"the clock, {now:.0f} s after 1970, is outside 2025 to 2094: set the system clock"
            )

    def next_id(self) -> Snowflake:
        """Return an id greater than all that this generator returned before."""
        ticks = int((self._time() - _EPOCH_SECONDS) * 1000 + _HALF_MICROSECOND) << _SEQUENCE_BITS
        if ticks <= self._ticks:
            ticks = self._ticks + 1
        self._ticks = ticks
        return Snowflake(ticks >> _SEQUENCE_BITS << _TIME_SHIFT | self._machine_bits | ticks & _SEQUENCE_MASK)
