"""How long to wait before the next attempt."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed loop rests: `initial` seconds, doubling up to `maximum`, each time 50 to 100 % of that."""

    initial: float = 0.05
    maximum: float = 5.0

    def delay(self, failures: int, chance: float) -> float:
        """Return seconds to wait after `failures` (≥ 1) in a row; `chance` in [0, 1) is the jitter."""
        return min(self.maximum, self.initial * 2.0 ** min(failures - 1, 60)) * (0.5 + 0.5 * chance)
