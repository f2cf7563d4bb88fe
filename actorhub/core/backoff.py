"""How long to wait before the next attempt, after failures in a row."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that grow: `initial` seconds, each `multiplier` times the one before, `maximum` at most."""

    initial: float = 0.05
    maximum: float = 5.0
    multiplier: float = 2.0

    def longest(self, failures: int) -> float:
        """Return the seconds to wait after `failures` (≥ 1) in a row, without jitter."""
        try:
            return min(self.maximum, self.initial * self.multiplier ** (failures - 1))
        except OverflowError:
            return self.maximum if self.initial else 0.0

    def delay(self, failures: int, chance: float) -> float:
        """Return the seconds to wait after `failures` (≥ 1) in a row: 50 to 100 % of `longest`.

        `chance`, in [0, 1), is the jitter: those who failed together do not come back together.
        """
        return self.longest(failures) * (0.5 + 0.5 * chance)
