"""Cancellations at random moments, beside commits, retries, hand-overs, killed runners and each other."""

import asyncio
import random
from datetime import timedelta

import pytest

from actorhub import (
    ActorhubError,
    Cluster,
    Entity,
    HandlerFailed,
    Hub,
    MessageCancelled,
    Retry,
    current,
    handler,
)
from actorhub.core.clock import SystemClock
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster, until
from tests.support.parts import host_of

PARTS = ("pause", "step", "sleep", "deferred", "save", "ask", "fail", "stubborn")
heard: dict[int, list[str]] = {}
"""By message: how its runs were told to end, while it was being cancelled."""


class Till(Entity[list[int]]):
    """Keeps what was committed, in order."""

    @handler(
        durable=True, retry=Retry(attempts=3, initial=timedelta(milliseconds=5)), cancel_grace=timedelta(seconds=0.2)
    )
    async def work(self, content: int, parts: list[str]) -> int:
        self.state.append(content)
        await current().tell(current().client(Echo)(current().entity_id).note(content))
        try:
            for number, part in enumerate(parts):
                await self._do(part, number)
        except asyncio.CancelledError:
            if current().is_cancelled:
                heard.setdefault(content, []).append(current().incarnation)
            if "stubborn" not in parts:
                raise
        return content

    async def contents(self) -> list[int]:
        return self.state

    async def _do(self, part: str, number: int) -> None:
        match part:
            case "pause":
                await asyncio.sleep(0.002)
            case "step":
                await current().step(f"{number}", asyncio.sleep, 0.002)
            case "sleep":
                await current().sleep(timedelta(milliseconds=5))
            case "deferred":
                value = current().deferred(f"{number}", int)
                async with asyncio.timeout(0.03):
                    await value.wait()
            case "save":
                await asyncio.sleep(0)
            case "ask":
                await current().client(Echo)("asked").note(-1)
            case "fail":
                if current().attempt == 1:
                    raise ValueError("on purpose")
            case _:
                await asyncio.sleep(0.005)


class Echo(Entity[list[int]]):
    """Keeps what tills told."""

    @handler(durable=True)
    async def note(self, content: int) -> None:
        self.state.append(content)

    async def contents(self) -> list[int]:
        return self.state


hub = Hub()
hub.register(Till)
hub.register(Echo)


class Callers:
    """Tell, ask and cancel at random; write down what was said."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.told: dict[int, int] = {}
        """The message of each content."""
        self.said: dict[int, set[str]] = {}
        """How each content's callers were answered."""
        self.cancelled: set[int] = set()
        self.entities: dict[int, str] = {}

    async def run(self, number: int) -> None:
        """Send messages, cancel most of them, and wait for what becomes of them."""
        for turn in range(6):
            content, entity_id = 100 * number + turn + 1, self.chance.choice(("a", "b", "c"))
            self.entities[content] = entity_id
            parts = self.chance.choices(PARTS, k=self.chance.randrange(4))
            call = self.cluster.client(Till)(entity_id).work(content, parts)
            delay = timedelta(milliseconds=self.chance.choice((0, 0, 5)))
            try:
                self.told[content] = await self.cluster.tell(call, delay=delay or None)
            except ActorhubError:
                continue  # its runner left; whether it is stored, the store says
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._wait(content))
                for _ in range(self.chance.choice((0, 1, 1, 2))):
                    tasks.create_task(self._cancel(content, self.chance.random() * 0.03))

    async def _cancel(self, content: int, after: float) -> None:
        await asyncio.sleep(after)
        try:
            if await self.cluster.cancel(self.told[content], terminate=self.chance.random() < 0.3):
                self.cancelled.add(content)
        except ActorhubError:
            return  # not decided in time, or the store failed: the reply says how it ended

    async def _wait(self, content: int) -> None:
        try:
            assert await self.cluster.reply(self.told[content], timeout=timedelta(seconds=20)) == content
            said = "done"
        except MessageCancelled:
            said = "cancelled"
        except HandlerFailed:
            said = "dead"
        self.said.setdefault(content, set()).add(said)


async def _disturb(memory: MemoryCluster, chance: random.Random) -> None:
    """Kill or stop runners, and start others."""
    while True:
        await asyncio.sleep(chance.uniform(0.02, 0.1))
        await getattr(memory, chance.choice(("kill", "stop")))(chance.choice(memory.runners))
        await memory.start_runner()


@pytest.mark.parametrize("is_disturbed", [False, True], ids=["calm", "disturbed"])
@pytest.mark.parametrize("seed", range(5))
async def test_every_message_ends_once_whatever_is_cancelled_when(seed: int, is_disturbed: bool) -> None:
    """What callers hear, what is stored and what the state has agree; of a cancelled message nothing is left."""
    heard.clear()
    async with MemoryCluster(hub) as memory:
        for _ in range(3):
            await memory.start_runner()
        await memory.settled()
        callers = Callers(await memory.client(), seed)
        supervisor = Supervisor(SystemClock())
        if is_disturbed:
            _ = supervisor.spawn(_disturb(memory, random.Random(seed)), "disturb")
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(callers.run(number))
        await supervisor.aclose(5.0)
        await memory.settled()
        await _agrees(memory, callers)


async def _agrees(memory: MemoryCluster, callers: Callers) -> None:
    client = callers.cluster
    states: list[int] = []
    echoes: list[int] = []
    for entity_id in ("a", "b", "c"):
        states += await client.client(Till)(entity_id).contents()
    ends: dict[int, MessageState] = {}
    for content, message_id in callers.told.items():
        row = memory.store.messages.find(message_id)
        assert row is not None
        ends[content] = row.state
    done = sorted(content for content, end in ends.items() if end is MessageState.DONE)
    assert sorted(content for content in states if content in ends) == done
    assert all({end.value} == callers.said[content] for content, end in ends.items()), (ends, callers.said)
    assert all(ends[content] is MessageState.CANCELLED for content in callers.cancelled)
    assert all(len(runs) == len(set(runs)) for runs in heard.values()), "a run heard of its cancellation twice"

    async def told() -> list[int]:
        return [content for entity in ("a", "b", "c") for content in await client.client(Echo)(entity).contents()]

    async with asyncio.timeout(20):
        while sorted(echoes := await told()) != sorted(states):
            assert set(echoes) <= set(states)
            await asyncio.sleep(0.05)
    hosts = [host_of(runner) for runner in memory.runners]
    await until(lambda: all(cell.is_idle for host in hosts for cell in host.cells()), "idle hosts", deadline=5)
