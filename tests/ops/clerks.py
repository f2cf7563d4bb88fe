"""The hub of the tests about singletons, schedules and deferred values: `tests.ops.clerks:hub`."""

import asyncio
from datetime import datetime

import msgspec

from actorhub import Entity, Hub, Retry, Singleton, cron, current, handler

ONCE = Retry(attempts=1)


class Ticks(msgspec.Struct):
    at: list[datetime] = []


class Clerk(Singleton[Ticks], name="clerk"):
    """Ticks once or twice a year, and whenever somebody makes it, until it is spoilt."""

    def __init__(self) -> None:
        self._spoilt = False

    @cron("0 0 1 1 *", timezone="Europe/Berlin", retry=ONCE)
    @cron("0 12 1 7 *", retry=ONCE)
    async def tick(self, at: datetime) -> int:
        if self._spoilt:
            raise KeyError("spring")
        self.state.at.append(at)
        return len(self.state.at)

    async def ticks(self) -> list[datetime]:
        return self.state.at

    async def spoil(self) -> None:
        self._spoilt = True


class Requests(Entity, name="requests", concurrency=10):
    """Wait for somebody's approval, then until they are told to finish."""

    def __init__(self) -> None:
        self._token = ""
        self._finished = asyncio.Event()

    @handler(durable=True)
    async def approved(self) -> object:
        deferred = current().deferred("approval", object)
        self._token = deferred.token
        try:
            return await deferred.wait()
        finally:
            # As long as the run has not ended, its deferred value keeps the outcome.
            await self._finished.wait()

    async def finish(self) -> None:
        self._finished.set()

    async def token(self) -> str:
        return self._token


hub = Hub()
hub.register(Clerk)
hub.register(Requests)
