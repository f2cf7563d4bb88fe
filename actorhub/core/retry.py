"""Retry policies: how many times a durable message is run, and how long the pauses between runs are."""

import math
from datetime import timedelta
from typing import Final

import msgspec

from actorhub.core.backoff import Backoff
from actorhub.core.errors import EntityError, MessageTooLarge
from actorhub.core.option_types import check_duration, check_record
from actorhub.core.texts import is_of


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a durable message is run again after a failed run, and how often.

    A message is run again if its handler raises an exception other than an `EntityError`, exceeds its timeout, or loses
    its runner. An `EntityError` is a reply and ends the message, unless its class is in `on`. After `MessageTooLarge`,
    of a result or a state for example, the message is a dead letter at once: no further run would end otherwise.

    Args:
        attempts: The most runs, including the first. After the last one the message becomes a dead letter.
        initial: Pause after the first failed run.
        maximum: The longest pause.
        multiplier: Each pause is this many times as long as the one before, up to `maximum`. Jitter then shortens it by
            up to one half.
        on: Domain errors after which the message is run again, too. If the last run ends with one, callers get that
            error, and the message becomes a dead letter.

    Raises:
        TypeError: A value is of another type. The text names it.
        ValueError: A value is out of range. The text names it.
    """

    attempts: int = 5
    initial: timedelta = timedelta(milliseconds=100)
    maximum: timedelta = timedelta(seconds=30)
    multiplier: float = 2.0
    on: tuple[type[EntityError], ...] = ()

    def __post_init__(self) -> None:
        check_record("Retry", self)
        if not 1 <= self.attempts <= 1000:
            raise ValueError(f"Retry: attempts={self.attempts} must be from 1 to 1000")
        if self.initial < timedelta(0) or self.maximum < self.initial:
            raise ValueError(
                f"Retry: initial={self.initial} must not be negative, nor more than maximum={self.maximum}"
            )
        check_duration("Retry: maximum", self.maximum, zero=True)
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"Retry: multiplier={self.multiplier} must be a number of at least 1")

    def allows(self, attempts: int, error: BaseException | None = None) -> bool:
        """Return whether the message may run again after so many attempts, the last of which ended with `error`.

        What is too large once is too large in every run.
        """
        return attempts < self.attempts and not (error is not None and is_of(error, MessageTooLarge))

    def is_final(self, error: BaseException) -> bool:
        """Return whether a domain error is the message's reply: another run would not change it."""
        return is_of(error, EntityError) and not issubclass(type(error), self.on)

    def pause(self, failed: int, chance: float) -> float:
        """Return the seconds to wait after failed run number `failed`. `chance`, in [0, 1), is the jitter."""
        backoff = Backoff(self.initial.total_seconds(), self.maximum.total_seconds(), self.multiplier)
        return backoff.delay(failed, chance)


DEFAULT_RETRY: Final = Retry()
"""The policy of a durable handler that sets no `retry`."""
