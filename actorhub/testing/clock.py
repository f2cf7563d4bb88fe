"""A clock for tests whose wall time is stepped at will."""

from datetime import UTC, datetime, timedelta

from actorhub.core.clock import SystemClock


class SteppedClock:
    """A clock whose wall time a test sets and steps, as somebody sets the clock of a machine; from there it goes on.

    Monotonic time, and with it leases, heartbeats and time-outs, goes on as ever: a step is not a pause. Give it to
    `MemoryCluster`: it is the store's clock then, by which messages are due and schedules run, and that of every
    runner. Runners learn the store's time from its answers. After a step, have them look at once instead of within half
    a minute; a step back is believed once a message turns out to be early, which may take two seconds.

    Example:
        clock = SteppedClock(datetime(2026, 3, 28, 23, tzinfo=UTC))
        async with MemoryCluster(hub, clock=clock) as memory:
            runner = await memory.start_runner()
            clock.step(timedelta(hours=1))
            await runner.poll_storage()
    """

    def __init__(self, start: datetime | None = None) -> None:
        """Begin at `start`; default is the system's time.

        Raises:
            ValueError: `start` has no time zone.
        """
        system = SystemClock()
        self._wall = system.time
        self._ahead = 0.0
        """Seconds between the system's wall time and this clock's."""
        self.monotonic = system.monotonic
        self.token = system.token
        self.random = system.random
        if start is not None:
            self.set(start)

    def time(self) -> float:
        """Return wall time in seconds since the Unix epoch."""
        return self._wall() + self._ahead

    def now(self) -> datetime:
        """Return wall time, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def step(self, by: timedelta) -> None:
        """Put the clock forward, or back where `by` is negative."""
        self._ahead += by.total_seconds()

    def set(self, to: datetime) -> None:
        """Set the clock to an aware time.

        Raises:
            ValueError: `to` has no time zone.
        """
        if to.tzinfo is None:
            raise ValueError(f"{to} has no time zone: write datetime(..., tzinfo=UTC)")
        self._ahead += to.timestamp() - self.time()
