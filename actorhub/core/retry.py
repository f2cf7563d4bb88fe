"""How often, and how long apart, a durable message is run again after its handler crashed."""

import math
from datetime import timedelta
from typing import Final

import msgspec

from actorhub.core.errors import EntityError


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of a durable message: how many, how far apart, and after which domain errors.

    A handler that raises an exception which is no `EntityError`, one that exceeds its timeout, and one whose runner
    dies are run again; an `EntityError` is a reply, and only those in `on` are run again.

    Args:
        attempts: Runs at most, the first included; then the message becomes a dead letter.
        initial: Pause after the first failed run.
        maximum: Longest pause.
        multiplier: What each further pause is longer by. Every pause is spread between half of itself and the whole.
        on: Domain errors that are retried, too. The last one is the reply, and the message becomes a dead letter.

    Raises:
        ValueError: a value makes no sense; says which.
    """

    attempts: int = 5
    initial: timedelta = timedelta(milliseconds=100)
    maximum: timedelta = timedelta(seconds=30)
    multiplier: float = 2.0
    on: tuple[type[EntityError], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 1000:
            raise ValueError(f"attempts={self.attempts} must be from 1 to 1000")
        if self.initial < timedelta(0) or self.maximum < self.initial:
            raise ValueError(f"initial={self.initial} must not be negative, nor more than maximum={self.maximum}")
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier={self.multiplier} must be a number of at least 1")

    def pause(self, failed: int, chance: float) -> float:
        """Return the seconds to wait after the `failed`-th failed run; `chance` in [0, 1) spreads them."""
        initial, longest = self.initial.total_seconds(), self.maximum.total_seconds()
        try:
            grown = initial and initial * self.multiplier ** (failed - 1)
        except OverflowError:
            grown = longest
        return min(longest, grown) * (0.5 + chance / 2)


DEFAULT_RETRY: Final = Retry()
"""What a durable handler does that says nothing else."""
