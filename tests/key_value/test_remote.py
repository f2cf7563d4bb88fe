"""The key-value store of programs without a database: runners are lost, leave, and cannot be asked."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import msgspec
import pytest

from actorhub import (
    CallTimeout,
    Cluster,
    Hub,
    MailboxFull,
    MalformedMessage,
    MessageTooLarge,
    NotConnected,
    PersistenceError,
    RunnerUnavailable,
)
from actorhub.cluster import part_of
from actorhub.core.clock import SystemClock
from actorhub.core.config import SettingKeywords
from actorhub.core.envelope import KEY_VALUE
from actorhub.core.key_value import MAX_VALUE_BYTES
from actorhub.engine.anycast.ask import ask_any
from actorhub.engine.model.spec import operation_spec
from actorhub.storage.key_value_ports import KeyValues
from actorhub.testing import MemoryCluster
from actorhub.testing.cluster import until
from tests.support.gates import failure, outcomes, soon, waits_in
from tests.support.parts import client_of

hub = Hub()


class JumpingClock(SystemClock):
    """A clock whose monotonic time a test lets jump."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped = 0.0
        monotonic = self.monotonic
        self.monotonic = lambda: monotonic() + self.jumped


@pytest.fixture
def clock() -> JumpingClock:
    """The cluster's clock."""
    return JumpingClock()


@pytest.fixture
async def memory(clock: JumpingClock) -> AsyncIterator[MemoryCluster]:
    """A cluster in memory that hosts no entity."""
    async with MemoryCluster(hub, clock=clock) as made:
        yield made


def store(client: Cluster) -> KeyValues:
    return client_of(client).key_values


def pending(client: Cluster) -> int:
    return sum(len(peer.pending) for peer in part_of(client).node.peers.runners())


async def linked(memory: MemoryCluster, runners: int) -> Cluster:
    """Return a client that is linked to so many new runners."""
    for _ in range(runners):
        await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    return client


async def test_a_program_that_declares_nothing_has_the_store(memory: MemoryCluster) -> None:
    """Neither runners nor clients need an entity for it."""
    client = await linked(memory, 2)
    for number in range(4):
        await client.kv.set(str(number), number)
    assert await memory.runners[0].kv.size() == 4
    assert await memory.runners[1].kv.get("3") == 3


async def test_a_read_is_repeated_when_its_runner_is_lost(memory: MemoryCluster) -> None:
    """The caller sees a delay."""
    client = await linked(memory, 2)
    await client.kv.set("a", 1)
    for runner in memory.runners:
        memory.network.hold(memory.name_of(runner), memory.name_of(client))
    reads = [soon(client.kv.get("a")) for _ in range(4)]
    await until(lambda: pending(client) == 4)
    lost, left = memory.runners
    await memory.kill(lost)
    memory.network.release(memory.name_of(left), memory.name_of(client))
    async with asyncio.timeout(5):
        assert [await read for read in reads] == [1] * 4


@pytest.mark.parametrize("what", ["set", "modify", "delete", "clear"])
async def test_a_write_that_left_is_not_repeated(memory: MemoryCluster, what: str) -> None:
    """When its runner is lost the error says that it may have happened, which it did."""
    client = await linked(memory, 1)
    (runner,) = memory.runners
    await client.kv.set("a", 1)
    kv = client.kv.typed(int)
    if what == "modify":
        # Its read is answered, its swap is not.
        writing = soon(failure(kv.modify("a", lambda _: held(memory, runner, client))))
    else:
        held(memory, runner, client)
        calls = {"set": lambda: kv.set("a", 2), "delete": lambda: kv.delete("a"), "clear": kv.clear}
        writing = soon(failure(calls[what]()))
    before = msgspec.msgpack.encode(1)
    await until(lambda: (stored := memory.store.key_values.get("a")) is None or stored.data != before, "the write")
    await memory.kill(runner)
    error = await writing
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed


def held(memory: MemoryCluster, runner: Cluster, client: Cluster) -> int:
    """Let nothing from the runner reach the client; return 2."""
    memory.network.hold(memory.name_of(runner), memory.name_of(client))
    return 2


async def test_a_write_that_never_left_goes_to_another_runner(memory: MemoryCluster) -> None:
    """The link broke while it was queued, so nobody has seen it."""
    client = await linked(memory, 2)
    for number in range(2):
        writing = soon(client.kv.modify("n", lambda n: (n or 0) + 1))
        writes = [soon(client.kv.set(f"{number}.{each}", each)) for each in range(4)]
        await asyncio.sleep(0)
        memory.cut(memory.runners[number], client)
        async with asyncio.timeout(5):
            await writing
            for each in writes:
                await each
        memory.heal(memory.runners[number], client)
        await memory.settled()
    assert await client.kv.size() == 9


async def test_runners_that_leave_are_not_noticed(memory: MemoryCluster) -> None:
    """Writes and reads go on without an error while every runner is replaced, also over a network that takes time."""
    client = await linked(memory, 2)
    done = asyncio.Event()

    async def count(key: str) -> int:
        made = 0
        while not done.is_set():
            made += 1
            assert await client.kv.typed(int).modify(key, lambda n: (n or 0) + 1) == made
        return made

    def slow_down(runner: Cluster) -> None:
        here, there = memory.name_of(client), memory.name_of(runner)
        memory.network.delay(here, there, seconds=0.01)
        memory.network.delay(there, here, seconds=0.01)

    for runner in memory.runners:
        slow_down(runner)
    counting = [soon(count(str(number))) for number in range(8)]
    for _ in range(5):
        new = await memory.start_runner()
        await until(partial(part_of(client).node.peers.linked.__contains__, part_of(new).node.incarnation))
        slow_down(new)
        await memory.stop(memory.runners[0])
    done.set()
    for number, each in enumerate(counting):
        assert await each == await client.kv.get(str(number))


async def test_a_runner_that_may_own_nothing_serves(memory: MemoryCluster, clock: JumpingClock) -> None:
    """What it says of the store does not depend on its ownership of shards."""
    client = await linked(memory, 1)
    (runner,) = memory.runners
    memory.store.freeze_sessions(part_of(runner).node.incarnation)
    clock.jumped += 3
    inbound = part_of(runner).node.inbound
    assert inbound is not None
    assert not inbound.may_reply()
    await client.kv.set("a", 1)
    assert await client.kv.get("a") == 1


async def test_an_operation_waits_for_a_runner(memory: MemoryCluster, clock: JumpingClock) -> None:
    """While none is linked it waits, for 30 s at most, and nothing has happened when it gives up."""
    client = await linked(memory, 1)
    await memory.kill(memory.runners[0])
    await until(lambda: not part_of(client).node.peers.runners())
    patient = soon(client.kv.set("a", 1))
    await until(partial(waits_in, patient, ask_any))
    clock.jumped += 29
    await memory.start_runner()
    async with asyncio.timeout(5):
        await patient
    await memory.kill(memory.runners[0])
    await until(lambda: not part_of(client).node.peers.runners())
    waiting = soon(client.kv.set("b", 1))
    await until(partial(waits_in, waiting, ask_any))
    clock.jumped += 31
    async with asyncio.timeout(5):
        error = await failure(waiting)
    assert isinstance(error, CallTimeout)
    assert not error.possibly_executed
    assert memory.store.key_values.get("b") is None


async def test_an_operation_without_an_answer_times_out(memory: MemoryCluster, clock: JumpingClock) -> None:
    """The error says that it may have happened."""
    client = await linked(memory, 1)
    held(memory, memory.runners[0], client)
    writing = soon(failure(client.kv.set("a", 1)))
    await until(lambda: memory.store.key_values.get("a") is not None)
    clock.jumped += 31
    async with asyncio.timeout(5):
        error = await writing
    assert isinstance(error, CallTimeout)
    assert error.possibly_executed
    assert pending(client) == 0


async def test_a_cancelled_caller_leaves_nothing_behind(memory: MemoryCluster) -> None:
    """Neither its own process nor the runner waits for anything."""
    client = await linked(memory, 1)
    (runner,) = memory.runners
    held(memory, runner, client)
    reading = soon(client.kv.get("a"))
    await until(lambda: pending(client) == 1)
    reading.cancel()
    await until(lambda: pending(client) == 0)
    memory.network.release(memory.name_of(runner), memory.name_of(client))
    await until(lambda: not any(peer.serving for peer in part_of(runner).node.peers.linked.values()))
    assert await client.kv.get("a") is None


async def test_errors_of_the_store_reach_the_client(memory: MemoryCluster) -> None:
    """As they are for a runner."""
    client = await linked(memory, 1)
    memory.store.available = False
    error = await failure(client.kv.set("a", 1))
    memory.store.available = True
    assert isinstance(error, PersistenceError)
    assert not error.possibly_executed


async def test_a_runner_checks_what_it_is_asked(memory: MemoryCluster) -> None:
    """Keys, sizes and garbage of other programs are refused before they reach the store."""
    remote = store(await linked(memory, 1))
    for bad in ("", "zero\x00", "k" * 1025):
        for call in (remote.get(bad), remote.put(bad, b"v", None), remote.swap(bad, None, b"v", None)):
            assert isinstance(await failure(call), MalformedMessage)
    assert isinstance(await failure(remote.count("zero\x00", None)), MalformedMessage)
    large = b"x" * (MAX_VALUE_BYTES + 1)
    for call in (remote.put("a", large, None), remote.swap("a", None, large, None), remote.put("a", 3 * large, None)):
        assert isinstance(await failure(call), MessageTooLarge)
    assert await remote.count("", None) == 0


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91\x63", b"\x92\x00\x01", b"\x95\x02\xa1k\xc0\xc0\xc0\xc0"])
async def test_garbage_is_no_operation(memory: MemoryCluster, body: bytes) -> None:
    """It is answered with MalformedMessage, and the next operation is served."""
    client = await linked(memory, 1)
    request = ask_any(part_of(client).node, operation_spec("key-value store", "garbage"), KEY_VALUE, body)
    assert isinstance(await failure(request), MalformedMessage)
    assert await client.kv.get("a") is None


async def test_operations_under_way_are_bounded(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner refuses what one client asks for beyond its limit, and goes on with the rest."""
    client = await linked(memory, 1)
    monkeypatch.setattr("actorhub.engine.routing.inbound.MAX_IN_FLIGHT", 5)
    found = await outcomes(*(client.kv.get(str(number)) for number in range(20)))
    assert found.count(None) == 5
    assert sum(isinstance(error, MailboxFull) for error in found) == 15
    assert await client.kv.get("a") is None


async def test_a_closed_client_is_not_connected(memory: MemoryCluster) -> None:
    """It says so at once."""
    client = await linked(memory, 1)
    kv = client.kv
    await memory.stop(client)
    assert isinstance(await failure(kv.get("a")), NotConnected)


async def test_real_runners_serve_a_client_without_a_database(postgres_url: str) -> None:
    """Over gRPC and Postgres, with the time that a value has left, from a program that declares nothing."""
    settings: SettingKeywords = {"database_url": postgres_url, "listen": "127.0.0.1:0", "shards_per_group": 4}
    async with hub.runner(**settings) as first, hub.runner(**settings) as second:
        async with hub.connect(gateway=first.runner.address) as client:  # type: ignore[union-attr]
            numbers = client.kv.prefix("n:").typed(int)
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                for cluster in (client, first, second):
                    for _ in range(20):
                        tasks.create_task(cluster.kv.modify("n:1", lambda n: (n or 0) + 1, ttl=timedelta(hours=1)))
            assert await numbers.get("1") == 60
            left = await numbers.ttl("1")
            assert left is not None
            assert timedelta(minutes=59) < left <= timedelta(hours=1)
        async with hub.connect(database_url=postgres_url) as client:
            assert await client.kv.prefix("n:").clear() == 1
