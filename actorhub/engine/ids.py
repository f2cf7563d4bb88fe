"""The ids that this process makes: snowflakes that contain the machine id that is leased to it."""

from datetime import timedelta
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.snowflake import Snowflake, SnowflakeGenerator

MACHINE_LEASE: Final = timedelta(seconds=60)
"""For how long a machine id is leased. Runners renew their own lease and those of their clients."""
RENEW_MACHINE: Final = 15.0
"""Seconds between renewals."""


class ProcessIds:
    """Makes ids for as long as the lease of this process's machine id lasts.

    Two processes with one machine id could make the same id. So no id is made once the lease may have run out, because
    the store may have leased the machine id to somebody else by then.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._generator: SnowflakeGenerator | None = None
        self.machine = -1
        """The machine id; -1 before one has been leased."""
        self.leased_until = 0.0
        """Until when the machine id is certainly ours, in monotonic seconds."""

    def leased(self, machine: int, until: float) -> None:
        """Use `machine` from now on, until that time in monotonic seconds."""
        self.machine = machine
        self.leased_until = until

    def extended(self, until: float) -> None:
        """Take note that the lease has been renewed until that time in monotonic seconds."""
        self.leased_until = until

    def snowflake(self) -> Snowflake:
        """Return a new id: unique in the cluster, strictly increasing within this process.

        Raises:
            PersistenceError: This process has no machine id, or could not renew its lease of one.
            ConfigurationError: The clock is outside the years that ids can name.
        """
        # Made when the first id is: a process whose clock is not set yet can do everything that needs no ids.
        if self._generator is None or self._generator.machine != self.machine:
            if self.machine < 0:
                raise PersistenceError("no machine id has been leased to this process yet")
            self._generator = SnowflakeGenerator(self.machine, self._clock)
        if self.leased_until < self._clock.monotonic():
            raise PersistenceError(
                "the lease of this process's machine id ran out, because the store could not be reached"
            )
        return self._generator.next_id()

    def new_id(self) -> int:
        """Return a new id as a number. Raises what `snowflake` raises."""
        return int(self.snowflake())
