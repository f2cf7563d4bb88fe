"""The ids that this process makes: snowflakes that contain the machine id that is leased to it."""

import math
from collections.abc import Callable
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

    def __init__(self, clock: Clock, now: Callable[[], float] | None = None) -> None:
        """Prepare.

        Args:
            clock: Its monotonic time is what leases are given in.
            now: The time that goes into ids; by default the clock's. A runner's is the store's. Stored messages run in
                the order of their ids, and what an entity tells on one runner must come before what it tells on its
                next one, however far apart the clocks of the two machines are.
        """
        self._clock = clock
        self._now = now or clock.time
        self._generator: SnowflakeGenerator | None = None
        self.machine = -1
        """The machine id; -1 before one has been leased."""
        self.leased_until = 0.0
        """Until when the machine id is certainly ours, in monotonic seconds."""

    def leased(self, machine: int, until: float) -> None:
        """Use `machine` from now on, until that time in monotonic seconds."""
        self.machine = machine
        self.leased_until = until

    def revoke(self) -> None:
        """Make no more ids until a machine id is leased again: another process may have this one by now."""
        self.leased_until = -math.inf

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
            self._generator = SnowflakeGenerator(self.machine, self._now)
        if self.leased_until < self._clock.monotonic():
            raise PersistenceError(
                "the lease of this process's machine id ran out: no runner, or no store, could be reached to renew it"
            )
        return self._generator.next_id()

    def new_id(self) -> int:
        """Return a new id as a number. Raises what `snowflake` raises."""
        return int(self.snowflake())
