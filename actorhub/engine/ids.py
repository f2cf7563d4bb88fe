"""Ids that this process makes: snowflakes, under the machine id that is leased to it."""

from datetime import timedelta
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.snowflake import Snowflake, SnowflakeGenerator

MACHINE_LEASE: Final = timedelta(seconds=60)
"""How long a machine id is leased for; runners renew their own and their clients'."""
RENEW_MACHINE: Final = 15.0
"""Seconds between renewals."""


class ProcessIds:
    """Makes ids while the lease of this process's machine id lasts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._generator: SnowflakeGenerator | None = None
        self.machine = -1
        """The machine id; -1 before one was leased."""
        self.leased_until = 0.0
        """Monotonic seconds until which the machine id is surely ours."""

    def leased(self, machine: int, until: float) -> None:
        """Use `machine` from now on, until that moment in monotonic seconds."""
        if self._generator is None or machine != self.machine:
            self._generator = SnowflakeGenerator(machine, self._clock)
        self.machine = machine
        self.leased_until = until

    def extended(self, until: float) -> None:
        """Somebody renewed the lease."""
        self.leased_until = until

    def snowflake(self) -> Snowflake:
        """Return a new id: unique in the cluster, strictly increasing within this process.

        Raises:
            PersistenceError: this process has no machine id, or could not renew its lease of it.
        """
        if self._generator is None:
            raise PersistenceError("no machine id was leased to this process yet")
        if self.leased_until < self._clock.monotonic():
            raise PersistenceError("the lease of this process's machine id ran out: the store cannot be reached")
        return self._generator.next_id()

    def new_id(self) -> int:
        """Return a new id as a number; it fails as `snowflake` does."""
        return int(self.snowflake())
