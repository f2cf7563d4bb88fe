"""Messages that wait in the store: in order, in turns, in bounded memory, and without looking when nothing waits."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import Cluster, Entity, Hub, handler
from actorhub.core.config import Settings
from actorhub.engine.durable.delivery import DeliveryStatistics
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, Narrow, Sender, hub
from tests.support.gates import gates, outcomes, soon
from tests.support.granted_time import granted_time
from tests.support.parts import host_of

__all__ = ["hub"]


def delivery(runner: Cluster) -> DeliveryStatistics:
    """Return a runner's counts."""
    return host_of(runner).delivery.statistics()


def waiting(memory: MemoryCluster) -> int:
    """Return how many messages are not settled."""
    states = frozenset({MessageState.PENDING, MessageState.SCHEDULED})
    return len(memory.store.messages.messages(MessageFilter(states=states, limit=100_000)))


def small(max_resident: int) -> MemoryCluster:
    """Return a cluster with room for few entities."""
    return MemoryCluster(
        hub, settings=Settings(shards_per_group=16, grace=timedelta(seconds=2), max_resident=max_resident)
    )


async def test_a_full_mailbox_leaves_messages_in_the_store_in_order(memory: MemoryCluster, cluster: Cluster) -> None:
    """Fifty tells to a mailbox of two are all accepted, and run in the order in which they were told."""
    narrow = cluster.client(Narrow)("n")
    await cluster.tell(narrow.hold())
    await gates["n"].came()
    for number in range(50):
        await cluster.tell(narrow.put(number))
    assert delivery(memory.runners[0]).in_memory <= 4
    gates["n"].open()
    await until(lambda: not waiting(memory))
    assert await narrow.read() == list(range(50))


async def test_tells_while_a_spilled_mailbox_drains_keep_their_order(memory: MemoryCluster, cluster: Cluster) -> None:
    """Messages told while the store is being drained do not overtake those that wait there."""
    narrow = cluster.client(Narrow)("n")
    await cluster.tell(narrow.hold())
    await gates["n"].came()
    for number in range(200):
        await cluster.tell(narrow.put(number))
        if number == 20:
            gates["n"].open()
    await until(lambda: not waiting(memory))
    assert await narrow.read() == list(range(200))


async def test_what_a_handler_tells_spills_in_order(memory: MemoryCluster, cluster: Cluster) -> None:
    """Messages from outboxes, too, wait in the store when the mailbox is full."""
    narrow = cluster.client(Narrow)("n")
    await cluster.tell(narrow.hold())
    await gates["n"].came()
    sender = cluster.client(Sender)("s")
    for number in range(20):
        await sender.send_number("n", number)
    gates["n"].open()
    await until(lambda: not waiting(memory))
    assert await narrow.read() == list(range(20))


async def test_a_blocked_mailbox_is_not_polled_for(memory: MemoryCluster, cluster: Cluster) -> None:
    """While nothing can be brought in, the store is not asked again and again."""
    narrow = cluster.client(Narrow)("n")
    await cluster.tell(narrow.hold())
    await gates["n"].came()
    for number in range(20):
        await cluster.tell(narrow.put(number))
    await asyncio.sleep(0.1)
    before = delivery(memory.runners[0]).scans
    await asyncio.sleep(0.6)
    assert delivery(memory.runners[0]).scans - before <= 4
    gates["n"].open()
    await until(lambda: not waiting(memory))


async def test_many_ids_run_in_few_places() -> None:
    """Messages for 400 ids and room for 20: all run, each id's in order, and memory stays bounded."""
    async with small(20) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        log = client.client(Log)
        most = 0
        telling = soon(outcomes(*(client.tell(log(f"e{number % 400}").add(str(number))) for number in range(1200))))
        async with asyncio.timeout(30):
            while not telling.done() or waiting(memory):
                most = max(most, host_of(runner).residents.count)
                await asyncio.sleep(0.001)
        assert most <= 40
        await until(lambda: delivery(runner).in_memory == 0)
        for number in range(0, 400, 37):
            assert await log(f"e{number}").read() == [str(number + 400 * n) for n in range(3)]


async def test_resident_entities_are_served_during_a_backlog() -> None:
    """Volatile calls of an entity that is in use are answered at once while others wait for places."""
    async with small(50) as memory:
        await memory.start_runner()
        client = await memory.client()
        log = client.client(Log)
        assert await log("busy").add_now("first") == 1
        telling = soon(outcomes(*(client.tell(log(f"e{number}").add("x")) for number in range(2000))))
        slowest = 0.0
        served = 0
        while not telling.done() or waiting(memory):
            began = granted_time()
            async with asyncio.timeout(5):
                await log("busy").add_now("next")
            slowest = max(slowest, granted_time() - began)
            served += 1
            await asyncio.sleep(0)
        assert served > 3
        assert slowest < 1.0
        assert all(isinstance(found, int) for found in await telling)


async def test_an_ask_does_not_wait_for_the_backlog() -> None:
    """A durable ask of an entity without a place is answered while thousands of messages wait before it."""
    async with small(50) as memory:
        await memory.start_runner()
        client = await memory.client()
        log = client.client(Log)
        told = await outcomes(*(client.tell(log(f"e{number % 1000}").add("x")) for number in range(6000)))
        assert all(isinstance(found, int) for found in told)
        left = waiting(memory)
        assert left > 1000
        async with asyncio.timeout(10):
            assert await log("zz asked").add("now") == 1
        assert waiting(memory) > left // 2
        await until(lambda: not waiting(memory), deadline=30)


async def test_no_place_is_not_polled_for() -> None:
    """While every resident entity is busy, the store is looked into a few times a second, not more."""
    async with small(10) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        log = client.client(Log)
        held = soon(outcomes(*(log(f"h{number}").hold() for number in range(20))))
        await until(lambda: sum(gates[f"h{n}"].entered for n in range(20)) >= 5)
        for number in range(20):
            await client.tell(log(f"e{number}").add("x"))
        await asyncio.sleep(0.1)
        before = delivery(runner).scans
        await asyncio.sleep(1)
        assert delivery(runner).scans - before <= 12
        assert delivery(runner).in_memory <= 10
        for number in range(20):
            gates[f"h{number}"].open()
        assert await held == [1] * 20
        await until(lambda: not waiting(memory))


async def test_a_backlog_of_many_ids_is_taken_over_in_bounded_memory() -> None:
    """Three thousand messages that a runner left to ids of all kinds are worked off by the next one."""
    async with small(50) as memory:
        first = await memory.start_runner()
        client = await memory.client()
        log = client.client(Log)
        held = soon(outcomes(*(log(f"h{number}").hold() for number in range(100))))
        await until(lambda: sum(gates[f"h{n}"].entered for n in range(100)) >= 25)
        for number in range(3000):
            await client.tell(log(f"e{number % 1000}").add(str(number)))
        await memory.kill(first)
        for number in range(100):
            gates[f"h{number}"].open()
        second = await memory.start_runner()
        most = 0
        async with asyncio.timeout(60):
            while waiting(memory):
                most = max(most, delivery(second).in_memory)
                await asyncio.sleep(0.005)
        assert most <= 4500
        assert await held == [1] * 100
        assert await log("e7").read() == ["7", "1007", "2007"]


async def test_an_idle_cluster_does_not_look(memory: MemoryCluster, runner: Cluster, client: Cluster) -> None:
    """Without work there is no polling loop: in one and a half seconds there is at most one look."""
    log = client.client(Log)("a")
    assert await log.add("one") == 1
    await asyncio.sleep(0.05)
    before = delivery(runner).scans
    await asyncio.sleep(1.5)
    assert delivery(runner).scans - before <= 1


async def test_ordinary_calls_cause_no_looks(memory: MemoryCluster, runner: Cluster, client: Cluster) -> None:
    """A message whose owner is told of it needs no read."""
    log = client.client(Log)
    await log("a").add("one")
    await asyncio.sleep(0.05)
    before = delivery(runner).scans
    for number in range(200):
        await log(f"e{number % 20}").add("x")
        await client.tell(log(f"e{number % 20}").add("x"))
    await client.client(Sender)("s").send("a", "x")
    await until(lambda: not waiting(memory))
    assert delivery(runner).scans - before <= 2


async def test_poll_storage_finds_what_nobody_told_of(memory: MemoryCluster, client: Cluster) -> None:
    """A message that was stored behind the owner's back runs at once after it."""
    log = client.client(Log)("a")
    told = await client.tell(log.add("template"), delay=timedelta(hours=1))
    memory.store.messages.retry([told])
    await client.poll_storage()
    async with asyncio.timeout(3):
        assert await client.reply(told) == 1


class Newer(Entity[list[str]], name="log"):
    """The next release of the log, with a handler that the present one does not know."""

    @handler(durable=True)
    async def add(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(durable=True)
    async def brand_new(self) -> str:
        return "new"


newer = Hub()
newer.register(Newer)


async def test_messages_of_another_release_wait_and_block_nobody(memory: MemoryCluster) -> None:
    """A runner that does not know the handler goes on with the neighbours; one that does runs it."""
    old = await memory.start_runner()
    caller = await memory.client(hub=newer)
    log = caller.client(Newer)("a")
    await memory.kill(old)
    new = await memory.start_runner(hub=newer)
    held = [await caller.tell(log.brand_new(), delay=timedelta(hours=1)) for _ in range(40)]
    behind = await caller.tell(log.add("behind"), delay=timedelta(hours=1))
    await memory.kill(new)
    memory.store.messages.retry([*held, behind])
    old = await memory.start_runner()
    await until(lambda: waiting(memory) == 40)
    assert await caller.reply(behind) == 1
    await memory.kill(old)
    await memory.start_runner(hub=newer)
    async with asyncio.timeout(10):
        assert await outcomes(*(caller.reply(message_id) for message_id in held)) == ["new"] * 40


@pytest.mark.parametrize("end", ["nothing", "kill", "stop", "join"])
async def test_each_sender_s_order_holds_under_pressure(end: str) -> None:
    """Full mailboxes, few places, runners that come and go: every message runs once, in its sender's order."""
    async with small(8) as memory:
        for _ in range(3):
            await memory.start_runner()
        await memory.settled()
        clients = [await memory.client() for _ in range(3)]

        async def send(number: int, cluster: Cluster) -> None:
            narrow = cluster.client(Narrow)
            for n in range(150):
                await cluster.tell(narrow(f"n{n % 30}").put_slowly(number * 1000 + n))

        async with asyncio.timeout(60):
            sending = [soon(send(number, clients[number % 3])) for number in range(12)]
            await until(lambda: waiting(memory) > 20)
            if end in ("kill", "stop"):
                await getattr(memory, end)(memory.runners[0])
            elif end == "join":
                await memory.start_runner()
            for task in sending:
                await task
            await until(lambda: not waiting(memory), deadline=40)
        for number in range(30):
            found = await clients[0].client(Narrow)(f"n{number}").read()
            for sender in range(12):
                expected = [sender * 1000 + n for n in range(number, 150, 30)]
                assert [value for value in found if value // 1000 == sender] == expected
        for runner in memory.runners:
            await until(lambda runner=runner: delivery(runner).in_memory == 0)  # type: ignore[misc]
            assert host_of(runner).delivery.memory.entities == 0
