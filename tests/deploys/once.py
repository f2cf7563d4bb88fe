"""Handlers that take long in many ways, and have one attempt each."""

import asyncio
import os
import time
from datetime import timedelta
from typing import Final

from actorhub import CallTimeout, Entity, Hub, Retry, current, handler
from tests.faults import mutants

ONCE: Final = Retry(attempts=1)
WAYS: Final = ("pauses", "blocks", "steps", "sleeps", "waits", "asks_one", "asks_many", "asks_beside")


class Slow(Entity[int]):
    """Takes long to be activated."""

    async def on_activate(self) -> None:
        await asyncio.sleep(0.05)

    @handler(durable=True, retry=ONCE)
    async def add(self) -> int:
        self.state += 1
        return current().attempt


class Job(Entity[int]):
    """Takes long in many ways; each returns the attempt that ended."""

    @handler(durable=True, retry=ONCE)
    async def pauses(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.state += 1
        return current().attempt

    @handler(durable=True, retry=ONCE)
    async def blocks(self, seconds: float) -> int:
        await asyncio.to_thread(time.sleep, seconds)
        return current().attempt

    @handler(durable=True, retry=ONCE)
    async def steps(self, seconds: float) -> int:
        for number in range(3):
            await current().step(f"{number}", asyncio.sleep, seconds / 3)
        return current().attempt

    @handler(durable=True, retry=ONCE)
    async def sleeps(self, seconds: float) -> int:
        await current().sleep(timedelta(seconds=seconds))
        await asyncio.sleep(seconds / 2)
        return current().attempt

    @handler(durable=True, retry=ONCE)
    async def waits(self, seconds: float) -> int:
        try:
            await current().deferred("never", int).wait(timeout=timedelta(seconds=seconds))
        except CallTimeout:
            self.state += 1
        return current().attempt

    @handler(durable=True, retry=ONCE)
    async def asks_one(self, seconds: float) -> int:
        return await current().client(Job)(f"{current().entity_id}-one").waits(seconds)

    @handler(durable=True, retry=ONCE)
    async def asks_many(self, seconds: float) -> int:
        for number in range(12):
            await current().client(Job)(f"{current().entity_id}-{number % 4}").pauses(seconds / 12)
            if number % 3 == 0:
                await current().client(Slow)(f"{current().entity_id}-{number}").add()
        return current().attempt

    @handler(durable=True, retry=ONCE)
    async def asks_beside(self, seconds: float) -> int:
        attempt = await current().client(Slow)(current().entity_id).add()
        await asyncio.sleep(seconds)
        return max(attempt, current().attempt)


hub = Hub()
hub.register(Slow)
hub.register(Job)

mutants.apply(os.environ.get("ONCE_MUTANT", ""))
