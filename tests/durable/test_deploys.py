"""Deploys: a run that takes longer than the grace time of a hand-over goes on elsewhere, and costs no attempt."""

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest

from actorhub import Cluster, Entity, HandlerFailed, Hub, Retry, current, handler
from actorhub.cluster import part_of
from actorhub.core.config import Settings
from actorhub.core.errors import PersistenceError
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster, until
from tests.faults import mutants
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

    @handler(durable=True, retry=Retry(attempts=1))
    async def waits(self) -> int:
        gates["waits"].log.append(current().incarnation)
        word = current().deferred("word", int)
        gates["waits"].left.append(word.token)
        gates["waits"].enter()
        await word.wait()
        return current().attempt

    @handler(durable=True, retry=Retry(attempts=1))
    async def asks(self, waiting: str) -> int:
        gates["asks"].log.append(current().incarnation)
        attempt = await current().client(Job)(waiting).waits()
        return max(attempt, current().attempt)


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


async def test_a_runner_that_leaves_does_not_run_again_what_it_cut_short() -> None:
    """It is handed over once, although a run that has not ended waits for it here."""
    async with MemoryCluster(hub, settings=SHORT) as memory:
        await memory.start_runner()
        client = await memory.client()
        told = await client.tell(client.client(Job)("a").asks("b"))
        await gates["waits"].came()
        for number in range(2, 5):
            await memory.start_runner()
            await memory.stop(memory.runners[0])
            await gates["waits"].came(number)
        runs = gates["waits"].log
        assert all(one != other for one, other in pairwise(runs)), runs
        await client.complete(gates["waits"].left[-1], 1)
        assert await client.reply(told) == 1


async def count_after_a_late_answer(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the attempts of a message whose run is being counted when the grace time of its hand-over ends."""
    held: list[MemoryMessages] = []

    def hold(messages: MemoryMessages) -> None:
        held.append(messages)

    async with MemoryCluster(hub, settings=SHORT) as memory:
        runner, client = await memory.start_runner(), await memory.client()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryMessages, "flush", hold)
            asking = soon(client.client(Job)("a").work())
            await until(lambda: bool(held), "a call on its way into the store")
            draining = soon(host_of(runner).drain(client.shard_of(Job, "a"), 0.0))
            for _ in range(20):
                await asyncio.sleep(0)
        held[0].flush()
        await draining
        asking.cancel()
        (row,) = memory.store.messages._rows.values()
        return row.attempts


async def test_a_run_that_is_counted_when_the_grace_time_ends_costs_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-over waits for the store's answer, for then it knows what to take back; without that it would not."""
    assert await count_after_a_late_answer(monkeypatch) == 0
    mutants.apply("counts under way are not awaited", monkeypatch.setattr)
    assert await count_after_a_late_answer(monkeypatch) == 1


async def test_the_only_runner_leaves_and_a_run_that_asks_costs_no_attempt() -> None:
    """Nobody is left whom it could ask: it is run again by whoever comes next, and is not a failure."""
    told = 0
    async with MemoryCluster(hub, settings=SHORT) as memory:
        for number in range(1, 4):
            runner, client = await memory.start_runner(), await memory.client()
            if number == 1:
                told = await client.tell(client.client(Job)("a").asks("b"))
            await gates["waits"].came(number)
            await memory.stop(client)
            await memory.stop(runner)
        await memory.start_runner()
        client = await memory.client()
        await gates["waits"].came(4)
        await client.complete(gates["waits"].left[-1], 1)
        assert await client.reply(told) == 1


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
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hand-over ends in its time, and the log says what it cost."""

    # Only for this: a heartbeat that failed meanwhile would end the ownership, and with it the drain.
    async def away(*_: object) -> None:
        raise PersistenceError("the store is away")

    async with MemoryCluster(hub, settings=SHORT) as memory:
        client, told = await started(memory)
        runner = owner_of(memory, client)
        host, shard = host_of(runner), client.shard_of(Job, "a")
        with monkeypatch.context() as patch:
            patch.setattr(MemoryMessages, "uncount_runs", away)
            async with asyncio.timeout(5):
                await host.drain(shard, 0.05)
        assert "cost an attempt each" in caplog.text
        row = memory.store.messages.find(told)
        assert row is not None
        assert (row.state, row.attempts) == (MessageState.PENDING, 1)
        assert part_of(runner) is not None
        gates["work"].open()
