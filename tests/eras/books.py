"""The hub of these tests."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec

from actorhub import ActorhubError, Cluster, Entity, Hub, handler
from actorhub.core.clock import SystemClock

SOON = 15.0
"""Seconds within which everything answers again."""
IDS = [f"b{number}" for number in range(30)]
_clock = SystemClock()


entering = asyncio.Event()
may_enter = asyncio.Event()


class Balance(msgspec.Struct):
    entries: int = 0


class Book(Entity[Balance], name="book"):
    """An account book: what is acknowledged is an entry in it."""

    @handler(durable=True)
    async def enter(self) -> int:
        """Make an entry; return how many there are."""
        self.state.entries += 1
        return self.state.entries

    @handler(durable=True)
    async def enter_late(self) -> int:
        """Make an entry, once the test lets it go on."""
        entering.set()
        await may_enter.wait()
        return await self.enter()

    @handler(readonly=True)
    async def entries(self) -> int:
        """Return how many entries there are."""
        return self.state.entries


hub = Hub()
hub.register(Book)


@asynccontextmanager
async def running(url: str) -> AsyncGenerator[Cluster]:
    """A runner of the hub."""
    async with hub.runner(
        database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=timedelta(seconds=2)
    ) as runner:
        yield runner


async def enter_all(cluster: Cluster) -> dict[str, int]:
    """Make an entry in each book; return what was acknowledged. What was certainly not done is tried again."""
    books = cluster.client(Book)
    return await _all(lambda name: books(name).enter(), lambda error: not error.possibly_executed)


async def read_all(cluster: Cluster) -> dict[str, int]:
    """Return what the books say; each is asked until it answers."""
    books = cluster.client(Book).options(timeout=timedelta(seconds=SOON))
    return await _all(lambda name: books(name).entries(), lambda _: True)


async def _all(ask: Callable[[str], Awaitable[int]], may_repeat: Callable[[ActorhubError], bool]) -> dict[str, int]:
    until = _clock.monotonic() + SOON

    async def answer(name: str) -> int:
        problem: ActorhubError | None = None
        while _clock.monotonic() < until:
            try:
                return await ask(name)
            except ActorhubError as error:
                problem = error
                if not may_repeat(error):
                    raise
                await asyncio.sleep(0.05)
        raise AssertionError(f"{name} did not answer within {SOON} s: {problem!r}")

    began = _clock.monotonic()
    async with asyncio.TaskGroup() as tasks:
        answers = {name: tasks.create_task(answer(name)) for name in IDS}
    print(f"all books answered after {_clock.monotonic() - began:.2f} s")
    return {name: task.result() for name, task in answers.items()}
