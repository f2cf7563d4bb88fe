"""The durable entity that the benchmarks call, and what its handlers note in their process."""

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


class CheckpointWrite:
    """What ran in this process; and a gate before which told messages wait."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.told = 0
        self.late: list[float] = []
        """Seconds between the time at which a message was due and the start of its handler."""
        self._wanted = 0
        self._there = asyncio.Event()

    def tell(self) -> None:
        """Note that a told message ran."""
        self.told += 1
        if self.told == self._wanted:
            self._there.set()

    def remind(self, due: float) -> None:
        """Note that a message runs that was due then."""
        self.late.append(time.time() - due)
        if len(self.late) == self._wanted:
            self._there.set()

    async def until(self, count: int, seconds: float, *, timed: bool = False) -> bool:
        """Wait until so many have run, those with a time or the others; `False` if they did not within `seconds`."""
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


notes = CheckpointWrite()


class Durable(Entity, name="durable", max_idle=timedelta(hours=1)):
    """Keeps nothing; every message is stored."""

    @handler(durable=True)
    async def echo(self, payload: Payload) -> Payload:
        return payload

    @handler(durable=True)
    async def take(self, payload: Payload) -> None:
        if not notes.gate.is_set():
            await notes.gate.wait()
        notes.tell()

    @handler(durable=True)
    async def remind(self, due: float) -> None:
        notes.remind(due)

    @handler(durable=True)
    async def tick(self, due: float, left: int) -> None:
        notes.remind(due)
        if left > 1:
            after = current().client(Durable)(current().entity_id).tick(due + 1.0, left - 1)
            await current().tell(after, deliver_at=moment(due + 1.0))


hub.register(Durable)


def moment(seconds: float) -> datetime:
    """Return a time that is given in seconds since the Unix epoch."""
    return datetime.fromtimestamp(seconds, UTC)


def patient(cluster: Cluster) -> Client[Durable]:
    """Return a client whose asks outlast every sample."""
    return cluster.client(Durable).options(timeout=LONGEST_WAIT)


def statistics() -> dict[str, float]:
    """Return what a process that serves tells of itself."""
    return {"told": notes.told, "rss_bytes": resident_bytes(), "time": time.perf_counter()}


def lateness(late: Sequence[float]) -> dict[str, float]:
    """Return percentiles in milliseconds, and how many were early."""
    ordered = sorted(late)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99}
    found = {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 1)
        for name, share in shares.items()
    }
    return {**found, "max_ms": round(ordered[-1] * 1e3, 1), "early": sum(one < 0 for one in ordered)}
