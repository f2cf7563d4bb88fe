"""A store that does not answer does not hold up the end of a leader that was lost."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from actorhub import Cluster, Hub, Retry, Singleton, cron, current, handler
from actorhub.cluster import part_of
from actorhub.engine.runner import Runner
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.storage.memory.singletons import MemorySingletons
from actorhub.storage.memory.storage import MemoryStorage
from actorhub.testing import MemoryCluster, until
from tests.support.gates import soon

SOON = 0.5
"""Seconds. Handlers of a leader that was lost get ten times as long to end."""
hub = Hub()


class Busy(Singleton[int]):
    """Asks the store for everything that a singleton can ask for."""

    async def on_become_leader(self) -> None:
        told.append("become")

    async def on_lose_leadership(self) -> None:
        told.append("lose")

    async def run(self) -> None:
        for number in range(1_000_000):
            await current().step(f"step {number}", _nothing)
            await self.save(self.state + 1)
            await asyncio.sleep(0.01)

    @cron("* * * * * *")
    async def tick(self, at: datetime) -> None:
        """Come every second."""
        self.state += 1

    async def change(self) -> None:
        """Commit the state alone."""
        self.state += 1

    @handler(durable=True)
    async def add(self) -> None:
        """Commit."""
        self.state += 1

    @handler(durable=True)
    async def add_in_steps(self) -> None:
        """Commit with checkpoints."""
        self.state += await current().step("one", _one)

    @handler(durable=True, retry=Retry(attempts=3, initial=timedelta(milliseconds=10)))
    async def fail(self) -> None:
        """Fail, and be tried again."""
        raise RuntimeError

    @handler(durable=True)
    async def refuse(self, number: int) -> None:
        """End with an error of its own."""
        raise ValueError

    @handler(durable=True)
    async def hang(self) -> None:
        """Wait until it is cancelled."""
        await asyncio.Event().wait()


async def _nothing() -> None:
    pass


async def _one() -> int:
    return 1


hub.register(Busy)
told: list[str] = []

Use = Callable[[Cluster], Any]


async def _tell(cluster: Cluster, name: str) -> None:
    await cluster.tell(getattr(cluster.singleton(Busy), name)())


async def _cancel(cluster: Cluster) -> None:
    message = await cluster.tell(cluster.singleton(Busy).hang())
    await asyncio.sleep(0.05)
    await cluster.cancel(message)


async def _later(cluster: Cluster) -> None:
    await cluster.tell(cluster.singleton(Busy).add(), delay=timedelta(milliseconds=30))


USES: dict[str, tuple[type, str, Use]] = {
    "an insert": (MemoryMessages, "store", lambda cluster: _tell(cluster, "add")),
    "the count of a run": (MemoryMessages, "start_run", _later),
    "a commit": (MemoryMessages, "commit_run", lambda cluster: _tell(cluster, "add")),
    "a commit with steps": (MemoryMessages, "commit_with_checkpoints", lambda cluster: _tell(cluster, "add_in_steps")),
    "a failure": (MemoryMessages, "fail_run", lambda cluster: _tell(cluster, "fail")),
    "a cancellation": (MemoryMessages, "cancel", _cancel),
    "a heartbeat": (MemorySingletons, "record", lambda cluster: _tell(cluster, "add")),
    "a fire time": (MemorySingletons, "keep_schedule", lambda cluster: _tell(cluster, "add")),
    "a volatile commit": (MemoryStorage, "commit_state", lambda cluster: _tell(cluster, "change")),
}


@pytest.mark.parametrize("what", USES)
async def test_a_leader_that_waits_for_the_store_is_told_that_it_lost(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its hook runs at once, before another runner that waits for no more than the lease can lead."""
    told.clear()
    owner, method, use = USES[what]
    asked: list[asyncio.Future[Any]] = []

    def unanswered(*_: Any, **__: Any) -> "asyncio.Future[Any]":
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    async with MemoryCluster(hub) as memory:
        cluster = await memory.start_runner()
        runner = part_of(cluster)
        assert isinstance(runner, Runner)
        await until(lambda: told == ["become"], "it leads")
        with monkeypatch.context() as patched:
            patched.setattr(owner, method, unanswered)
            used = soon(use(cluster))
            await until(lambda: bool(asked), f"{what} is asked for")
            runner.ownership.let_everything_go("it is tested")
            await until(lambda: "lose" in told, "the leader is told", deadline=SOON)
        used.cancel()
        for answer in asked:
            answer.cancel()
