"""Callers of two releases of a program that differ in where they have an entity type: each call gets its answer."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from actorhub import Cluster
from actorhub.cluster import part_of
from actorhub.core.address import ShardId
from actorhub.core.envelope import TELL
from actorhub.engine.model.durable_message import new_row
from actorhub.engine.model.records import Message
from actorhub.testing import MemoryCluster, until
from tests.deploys.accounts import BEFORE, GROUP, IDS, Caller, judged, led, memory, settled
from tests.support.gates import gates, soon
from tests.support.parts import client_of, host_of, runner_of

__all__ = ["memory"]


async def test_callers_of_the_release_before_are_answered_while_runners_of_the_next_come_and_go() -> None:
    """A shard that a runner loses, where it has the entity, is not the one to which such a caller sends its calls."""
    async with MemoryCluster(GROUP[1]) as memory:
        await memory.start_runner(hub=GROUP[1])
        client, stop = await memory.client(hub=BEFORE[1]), asyncio.Event()
        callers = [Caller(client, BEFORE, f"caller {number}") for number in range(8)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for caller in callers:
                tasks.create_task(caller.run(stop))
            for _ in range(8):
                coming = await memory.start_runner(hub=GROUP[1])
                await memory.settled()
                await memory.stop(coming)
            stop.set()
        await settled(memory, client)
        await judged(client, BEFORE, callers, in_order=False)


@pytest.mark.parametrize("is_alone", [True, False], ids=["one runner", "beside one without the type"])
async def test_callers_of_a_group_that_nobody_hosts_any_longer_are_answered(is_alone: bool) -> None:
    """The release after theirs, or before it, has the type in another group, and passes on what they call."""
    async with MemoryCluster(BEFORE[1]) as memory:
        for has_type in [True] if is_alone else [False, True, False]:
            hub = BEFORE[1] if has_type else led(shard_group="other")[1]
            await memory.start_runner(hub=hub, groups=None if has_type else ("other",))
        await memory.settled()
        client = await memory.client(hub=GROUP[1])
        caller = Caller(client, GROUP, "caller")
        async with asyncio.timeout(5):
            await caller.round()
            await caller.round()
        accounts: Any = client.client(GROUP[0])
        told = await client.tell(accounts(IDS[0]).add("last"), key="k")
        assert await client.reply(told, timeout=timedelta(seconds=5)) == 7
        caller.acknowledged[IDS[0]].append("last")
        await judged(client, GROUP, [caller])


async def deposited(runner: Cluster, shard: ShardId, entity_id: str, op: str) -> Message:
    """Store a message for whoever owns the shard; return it."""
    told = Message(host_of(runner).types["account"].spec.handlers["add"], entity_id, TELL)
    told.body, told.message_id, told.shard_id = msgspec.msgpack.encode([op]), part_of(runner).node.ids.new_id(), shard
    store = runner_of(runner).node.store
    assert store is not None
    await store.deposit(new_row(told, shard))
    return told


@pytest.mark.parametrize("is_active", [True, False], ids=["the entity is active", "the entity is not in memory"])
async def test_who_waits_where_a_message_was_stored_is_told_where_it_runs(
    memory: MemoryCluster, is_active: bool
) -> None:
    """One runner owns both shards, and moves the message from one to the other while somebody waits for it."""
    new = await memory.start_runner(hub=GROUP[1])
    await memory.settled()
    client = await memory.client(hub=BEFORE[1])
    accounts: Any = client.client(BEFORE[0])
    for entity_id in IDS:
        if is_active:
            await accounts(entity_id).put("put")
        told = await deposited(new, client.shard_of(BEFORE[0], entity_id), entity_id, "told")
        assert await client.reply(told.message_id, timeout=timedelta(seconds=5)) == 1 + is_active


async def test_a_wake_is_for_the_shard_that_it_names(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its receiver has the entity in another shard, and owns both; no runner scans the store by itself here."""
    monkeypatch.setattr("actorhub.engine.runner._POLL", 3600.0)
    new = await memory.start_runner(hub=GROUP[1])
    await memory.settled()
    client = await memory.client(hub=BEFORE[1])
    accounts: Any = client.client(BEFORE[0])
    for entity_id in IDS:
        await accounts(entity_id).put("put")
        told = await deposited(new, client.shard_of(BEFORE[0], entity_id), entity_id, "told")
        assert told.shard_id is not None
        client_of(client).node.router.deposits.wake(told, told.shard_id)
    await settled(memory, new)
    assert [await accounts(entity_id).done() for entity_id in IDS] == [["put", "told"]] * len(IDS)


async def test_an_owner_of_a_home_that_is_not_known_is_looked_up(memory: MemoryCluster) -> None:
    """Its announcement may have been missed, and no call waits for it that would have the owners read."""
    old = await memory.start_runner(hub=BEFORE[1])
    await Caller(old, BEFORE, "old").round()
    new = await memory.start_runner(hub=GROUP[1])
    await memory.settled()
    for shard in runner_of(new).node.table.of_runner(runner_of(old).info.runner):
        runner_of(new).node.table.forget(shard, runner_of(old).info.runner)
    async with asyncio.timeout(5):
        await Caller(new, GROUP, "new").round()


async def test_a_call_that_was_passed_on_is_waited_for_when_its_shard_changes_hands(memory: MemoryCluster) -> None:
    """The runner to which it was sent lost the shard, and is alive: the reply comes through it, whenever it does."""
    for _ in range(2):
        await memory.start_runner(hub=GROUP[1])
    await memory.settled()
    client = await memory.client(hub=BEFORE[1])
    accounts: Any = client.client(BEFORE[0])
    sent_to = {entity_id: memory.owner_of(client.shard_of(BEFORE[0], entity_id)) for entity_id in IDS}
    calls = [soon(accounts(entity_id).wait(entity_id)) for entity_id in IDS]
    for entity_id in IDS:
        await gates[entity_id].came()
    third = await memory.start_runner(hub=GROUP[1])

    def is_moved(entity_id: str) -> bool:
        return memory.owner_of(client.shard_of(BEFORE[0], entity_id)) not in (None, sent_to[entity_id])

    await until(lambda: any(map(is_moved, IDS)), "a shard has another owner")
    await asyncio.sleep(2.5)
    for entity_id in IDS:
        gates[entity_id].open()
    assert [await call for call in calls] == IDS
    del third
