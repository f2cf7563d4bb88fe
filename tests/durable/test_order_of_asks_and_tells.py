"""What one process asks and tells an entity, durably and mixed, runs in the order of its sending.

While a shard has no owner, tells are stored for the next one; asks wait for it. `FAULT_SEED` repeats what a generated
test draws.
"""

import asyncio
import itertools
import os
import random
from asyncio import Future
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, TypeAlias

import pytest

from actorhub import Cluster, Entity, Hub, Retry, handler
from actorhub.core.address import ShardId
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.storage.message_ports import NewMessage, PendingMessage, Stored
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, read
from tests.support.gates import closed_gates, gates, soon

__all__ = ["closed_gates"]

SEED: Final = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
BOOKS: Final = ("book 0", "book 1", "book 2")

Fault: TypeAlias = Callable[[MemoryCluster, random.Random], Awaitable[None]]


class Book(Entity[list[str]]):
    """A log of which no message is given up, however many of its runners are killed."""

    @handler(durable=True, retry=Retry(attempts=1000, initial=timedelta(milliseconds=10)))
    async def add(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    async def read(self) -> list[str]:
        return self.state


hub = Hub()
hub.register(Book)
hub.register(Log)


async def bystander(memory: MemoryCluster) -> Cluster:
    """Start a runner that owns no shard of the books: it outlives their owners, and can store messages for them."""
    return await memory.start_runner(groups=("bystanders",))


def owners(memory: MemoryCluster) -> list[Cluster]:
    """Return the runners that may own shards of the books: all but the first."""
    return memory.runners[1:]


async def all_owners_are_killed(memory: MemoryCluster, chance: random.Random) -> None:
    """For about as long as tells wait before they are stored, there is no owner."""
    for runner in owners(memory):
        await memory.kill(runner)
    await asyncio.sleep(chance.uniform(0.2, 0.5))
    await memory.start_runner()


async def an_owner_is_killed(memory: MemoryCluster, chance: random.Random) -> None:
    """The other one takes its shards over, and a new one comes."""
    await memory.kill(chance.choice(owners(memory)))
    await asyncio.sleep(chance.uniform(0.0, 0.3))
    await memory.start_runner()


async def an_owner_is_replaced(memory: MemoryCluster, chance: random.Random) -> None:
    """Shards are handed over."""
    await memory.start_runner()
    await memory.stop(chance.choice(owners(memory)))


async def a_slow_owner_is_replaced(memory: MemoryCluster, chance: random.Random) -> None:
    """What is on its way to it comes back late, long after the next owner is known."""
    await memory.start_runner()
    slow = chance.choice(owners(memory))
    names = [memory.name_of(one) for one in (*memory.runners, *memory.clients) if one is not slow]
    for name in names:
        for source, target in ((name, memory.name_of(slow)), (memory.name_of(slow), name)):
            memory.network.delay(source, target, seconds=chance.choice((0, 0.01, 0.05)))
    await memory.stop(slow)


FAULTS: Final = (all_owners_are_killed, an_owner_is_killed, an_owner_is_replaced, a_slow_owner_is_replaced)


class Numbers:
    """One process's numbered messages to one book, and which of them had a due time."""

    def __init__(self, cluster: Cluster, book: str, chance: random.Random) -> None:
        self.cluster = cluster
        self.book = book
        self.chance = chance
        self.count = 0
        self.due: set[str] = set()
        self.kinds: dict[str, str] = {}

    async def send_until(self, is_over: asyncio.Event) -> None:
        """Send on, whatever becomes of what was sent: each task sends before it waits, so they are sent in order."""
        async with asyncio.TaskGroup() as tasks:
            while not is_over.is_set():
                for _ in range(self.chance.randrange(1, 6)):
                    tasks.create_task(self._send())
                await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def _send(self) -> None:
        text = str(self.count)
        self.count += 1
        call = self.cluster.client(Book).options(timeout=timedelta(seconds=30))(self.book).add(text)
        kind = self.kinds[text] = self.chance.choice(("ask", "tell", "tell", "due"))
        if kind == "ask":
            await call
        elif kind == "tell":
            await self.cluster.tell(call)
        else:
            self.due.add(text)
            await self.cluster.tell(call, delay=timedelta(milliseconds=self.chance.randrange(1, 100)))

    async def check(self) -> None:
        """Each came once, and those without a due time in order."""
        await self.cluster.poll_storage()
        came: list[str] = []
        async with asyncio.timeout(30):
            while len(came) < self.count:
                came = await self.cluster.client(Book)(self.book).read()
                await asyncio.sleep(0.01)
        assert sorted(came, key=int) == [str(number) for number in range(self.count)], f"FAULT_SEED={SEED}"
        in_order = [int(text) for text in came if text not in self.due]
        late = [(one, self.kinds[str(one)], other) for one, other in itertools.pairwise(in_order) if one > other]
        assert not late, f"FAULT_SEED={SEED}"


@asynccontextmanager
async def numbers_are_sent(cluster: Cluster, chance: random.Random) -> AsyncIterator[None]:
    """Send to all books during the block; check what came, after it."""
    numbers = [Numbers(cluster, book, chance) for book in BOOKS]
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for each in numbers:
            tasks.create_task(each.send_until(is_over))
        yield
        is_over.set()
    for each in numbers:
        await each.check()


@pytest.mark.parametrize("sender", ["client", "runner"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_asks_and_tells_of_one_process_stay_in_order(memory: MemoryCluster, fault: Fault, sender: str) -> None:
    """Through many faults of one kind; a client has a runner store its tells, a runner stores them by itself."""
    chance = random.Random(SEED)
    runner = await bystander(memory)
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    async with numbers_are_sent(client if sender == "client" else runner, chance):
        for _ in range(5):
            await asyncio.sleep(chance.uniform(0.02, 0.2))
            await fault(memory, chance)


async def test_an_ask_whose_repetition_is_being_stored_is_not_overtaken(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ask and tell are stored, and their runner is killed; the next one is asked again just before it reads them."""
    await bystander(memory)
    victim = await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    log = client.client(Log)("a")
    await client.tell(log.hold())
    await gates["a"].came()
    asked, told = soon(log.add("asked")), soon(client.tell(log.add("told")))
    await told
    store, load_backlog = MemoryMessages.store, MemoryMessages.load_backlog
    is_repeated, may_answer = asyncio.Event(), asyncio.Event()

    def store_slowly(self: MemoryMessages, message: NewMessage, incarnation: str) -> "Future[Stored]":
        if not message.repeated:
            return store(self, message, incarnation)
        is_repeated.set()

        async def stored_later() -> Stored:
            await may_answer.wait()
            return await store(self, message, incarnation)

        return soon(stored_later())

    async def load_later(
        self: MemoryMessages, places: Mapping[ShardId, tuple[str, str]], entities: int, per_entity: int
    ) -> tuple[Sequence[PendingMessage], frozenset[ShardId]]:
        await is_repeated.wait()
        return await load_backlog(self, places, entities, per_entity)

    monkeypatch.setattr(MemoryMessages, "store", store_slowly)
    monkeypatch.setattr(MemoryMessages, "load_backlog", load_later)
    await memory.kill(victim)
    gates["a"].open()
    await memory.start_runner()
    await until(lambda: memory.stored("log", "a") is not None, "the run of what was held")
    may_answer.set()
    assert await read(client, "a", 3) == ["held", "asked", "told"]
    assert await asked == 2
