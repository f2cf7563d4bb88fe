"""Deploys: a run that takes longer than the grace time of a hand-over goes on elsewhere, and costs no attempt."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import Cluster, Entity, HandlerFailed, Hub, Retry, current, handler
from actorhub.cluster import part_of
from actorhub.core.config import Settings
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, soon
from tests.support.parts import host_of


class Job(Entity[int]):
    """Takes long."""

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=10)))
    async def work(self) -> int:
        gates["work"].log.append(f"run {current().attempt}")
        await gates["work"].pass_through()
        self.state += 1
        return current().attempt

    @handler(durable=True, retry=Retry(attempts=1))
    async def once(self) -> int:
        gates["once"].log.append(f"run {current().attempt}")
        return current().attempt


hub = Hub()
hub.register(Job)
SHORT = Settings(shards_per_group=16, grace=timedelta(seconds=1))


async def started(memory: MemoryCluster) -> tuple[Cluster, int]:
    """Start two runners; return a client, and a message that runs."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    told = await client.tell(client.client(Job)("a").work())
    await gates["work"].came()
    return client, told


def owner_of(memory: MemoryCluster, client: Cluster) -> Cluster:
    """Return the runner that owns the job."""
    found = memory.owner_of(client.shard_of(Job, "a"))
    assert found is not None
    return found


async def test_a_graceful_restart_costs_a_run_no_attempt() -> None:
    """However many there are: each run is the message's first, and the last one ends."""
    async with MemoryCluster(hub, settings=SHORT) as memory:
        client, told = await started(memory)
        for number in range(2, 6):
            await memory.stop(owner_of(memory, client))
            await gates["work"].came(number)
            await memory.start_runner()
        gates["work"].open()
        assert await client.reply(told) == 1
        assert gates["work"].log == ["run 1"] * 5
        assert await client.client(Job)("a").work() == 1


async def test_a_killed_runner_costs_a_run_its_attempt() -> None:
    """So that a message that kills its runners comes to an end."""
    async with MemoryCluster(hub, settings=SHORT) as memory:
        client, told = await started(memory)
        for _ in range(2):
            await memory.kill(owner_of(memory, client))
            await memory.start_runner()
        error = await failure(client.reply(told))
        assert isinstance(error, HandlerFailed)
        assert error.type == "RunnerLost"
        assert gates["work"].log == ["run 1", "run 2"]


async def test_a_run_that_was_counted_and_did_not_start_costs_no_attempt() -> None:
    """It stood first in a mailbox when the hand-over began: the commit before it had counted its run."""
    async with MemoryCluster(hub, settings=SHORT) as memory:
        client, told = await started(memory)
        host = host_of(owner_of(memory, client))
        behind = soon(client.client(Job)("a").once())
        await until(lambda: host.delivery.statistics().in_memory == 2)
        (message,) = (each for each in host.delivery.memory if each.spec.name == "once")
        assert message.shard is not None
        started_as = message.message_id
        row = memory.store.messages.find(started_as)
        assert row is not None
        # As if the commit of the run before it had just counted it.
        memory.store.messages._rows[started_as].attempts = message.attempts = 1
        message.is_counted = True
        await memory.stop(owner_of(memory, client))
        gates["work"].open()
        assert await client.reply(told) == 1
        async with asyncio.timeout(5):
            assert await behind == 1


async def test_a_store_that_is_away_costs_an_attempt_and_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The hand-over ends in its time, and the log says what it cost."""
    async with MemoryCluster(hub, settings=SHORT) as memory:
        client, told = await started(memory)
        runner = owner_of(memory, client)
        host, shard = host_of(runner), client.shard_of(Job, "a")
        draining = soon(host.drain(shard, 0.05))
        memory.store.available = False
        async with asyncio.timeout(2):
            await draining
        memory.store.available = True
        assert "cost an attempt each" in caplog.text
        row = memory.store.messages.find(told)
        assert row is not None
        assert (row.state, row.attempts) == (MessageState.PENDING, 1)
        assert part_of(runner) is not None
        gates["work"].open()
