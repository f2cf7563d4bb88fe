"""The time on the store's clock, as far as this process knows it."""

from collections import deque
from typing import Final

from actorhub.core.clock import Clock

_SAMPLES: Final = 8
_SAMPLE_AGE: Final = 120.0


class ServerClock:
    """The time that it is at least on the store's clock: late by a travel time, and not early.

    An answer that carries the store's time proves that it was at least that late when the answer arrived. Of the latest
    answers, the one that travelled fastest counts.
    """

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._wall = clock.time
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._offset: float | None = None

    def observe_time(self, now: float) -> None:
        """Take the store's time, in seconds since the Unix epoch, from an answer that just arrived."""
        arrived = self._monotonic()
        self._samples.append((arrived, now - arrived))
        self._offset = max(offset for at, offset in self._samples if at >= arrived - _SAMPLE_AGE)

    def distrust(self) -> None:
        """Forget the samples: the store's clock stepped back."""
        self._samples.clear()

    def now(self) -> float:
        """Return seconds since the Unix epoch; by this process's own clock before the first answer."""
        return self._wall() if self._offset is None else self._monotonic() + self._offset
