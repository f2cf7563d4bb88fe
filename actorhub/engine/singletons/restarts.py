"""When a singleton's `run` starts again after it failed."""

from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock


class Restarts:
    """The pauses before one singleton's `run`, as long as this process lives.

    A failure may cost the leader its shard, which this runner then acquires again. If each leadership began with short
    pauses, a `run` that fails at once would never stop spinning, and would take its shard's other entities along.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self.not_before = 0.0
        """Monotonic seconds."""

    def on_failed(self, lasted: float, backoff: Backoff) -> float:
        """Return the pause after a run of `lasted` seconds. After one that was long enough it is short."""
        self._failures = 1 if lasted > backoff.maximum else self._failures + 1
        pause = backoff.delay(self._failures, self._clock.random())
        self.not_before = self._clock.monotonic() + pause
        return pause

    def on_returned(self) -> None:
        """Forget the failures: `run` did what it was to do."""
        self._failures = 0
