"""The durable entity that the benchmarks call, and the records that its handlers keep in their process."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from actorhub import Entity, current, handler
from actorhub.client import Client
from actorhub.cluster import Cluster
from benchmarks._harness import resident_bytes
from benchmarks._workload import Payload, hub

LONGEST_WAIT = timedelta(minutes=5)


class RunLog:
    """What ran in this process, and a gate at which told messages wait."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.told = 0
        self.late: list[float] = []
        """Seconds from the due time of each message to the start of its handler."""
        self._wanted = 0
        self._there = asyncio.Event()

    def tell(self) -> None:
        """Record that a told message ran."""
        self.told += 1
        if self.told == self._wanted:
            self._there.set()

    def remind(self, due: float) -> None:
        """Record that a message with this due time runs."""
        self.late.append(time.time() - due)
        if len(self.late) == self._wanted:
            self._there.set()

    async def until(self, count: int, seconds: float, *, timed: bool = False) -> bool:
        """Wait until this many messages have run, with or without a due time. `False`: not within `seconds`."""
        self._wanted = count
        self._there.clear()
        if (len(self.late) if timed else self.told) >= count:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._there.wait()
        except TimeoutError:
            return False
        return True


run_log = RunLog()


class Durable(Entity, name="durable", max_idle=timedelta(hours=1)):
    """An entity without state, whose messages are all stored."""

    @handler(durable=True)
    async def echo(self, payload: Payload) -> Payload:
        return payload

    @handler(durable=True)
    async def take(self, payload: Payload) -> None:
        if not run_log.gate.is_set():
            await run_log.gate.wait()
        run_log.tell()

    @handler(durable=True)
    async def remind(self, due: float) -> None:
        run_log.remind(due)

    @handler(durable=True)
    async def tick(self, due: float, left: int) -> None:
        run_log.remind(due)
        if left > 1:
            after = current().client(Durable)(current().entity_id).tick(due + 1.0, left - 1)
            await current().tell(after, deliver_at=moment(due + 1.0))


hub.register(Durable)


def moment(seconds: float) -> datetime:
    """Return a datetime from seconds since the Unix epoch."""
    return datetime.fromtimestamp(seconds, UTC)


def patient(cluster: Cluster) -> Client[Durable]:
    """Return a client whose timeout is longer than every sample."""
    return cluster.client(Durable).options(timeout=LONGEST_WAIT)


def statistics() -> dict[str, float]:
    """Return what a serving process reports about itself."""
    return {"told": run_log.told, "rss_bytes": resident_bytes(), "time": time.perf_counter()}


def lateness(late: Sequence[float]) -> dict[str, float]:
    """Return percentiles in milliseconds, and the number of early messages."""
    ordered = sorted(late)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99}
    found = {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 1)
        for name, share in shares.items()
    }
    return {**found, "max_ms": round(ordered[-1] * 1e3, 1), "early": sum(one < 0 for one in ordered)}
