"""The source of time and randomness, so that tests and simulations can control both."""

import random
import secrets
from time import monotonic, time
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Provides wall time, monotonic time and randomness."""

    def time(self) -> float:
        """Return wall time in seconds since the Unix epoch. It may step back."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never steps back. Values compare within this process only."""
        ...

    def random(self) -> float:
        """Return a number in [0, 1), for jitter."""
        ...

    def token(self) -> str:
        """Return 16 random hexadecimal digits, unpredictable and unique for practical purposes."""
        ...


class SystemClock:
    """The operating system's clocks and random source."""

    def __init__(self) -> None:
        self.time = time
        self.monotonic = monotonic
        self.random = random.Random(secrets.randbits(64)).random  # noqa: S311 - jitter, no secrets

    def token(self) -> str:
        """Return 16 hexadecimal digits from the operating system's random source."""
        return secrets.token_hex(8)
