"""What was stored for whoever owns a shard next is known to that owner before its sender's next message runs."""

import asyncio

import pytest

from actorhub import Cluster, Hub
from actorhub.cluster import part_of
from actorhub.core.envelope import TELL
from actorhub.engine.durable.deposits import Deposits, Wake
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.records import Message
from actorhub.engine.runner import Runner
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, read
from tests.durable.test_order_of_asks_and_tells import bystander
from tests.support.parts import host_of

hub = Hub()
hub.register(Log)


@pytest.fixture
async def client(memory: MemoryCluster) -> Cluster:
    """A client of a runner that owns no logs, but can store what is for them."""
    await bystander(memory)
    return await memory.client()


def deposits_of(cluster: Cluster) -> Deposits:
    """Return what stores the messages of a process for which there is no owner."""
    return part_of(cluster).node.router.deposits


async def test_what_is_sent_next_is_held_back_until_the_owner_is_awake(memory: MemoryCluster, client: Cluster) -> None:
    """That the message is stored is not enough: the next owner may have read the store before."""
    runner = await memory.start_runner()
    await memory.settled()
    await memory.kill(runner)
    log = client.client(Log)("log")
    await client.tell(log.add("first"))
    assert deposits_of(client).under_way == {client.shard_of(Log, "log"): 1}
    await client.tell(log.add("second"))
    await memory.start_runner()
    await until(lambda: not deposits_of(client).under_way)
    await client.tell(log.add("third"))
    assert await read(client, "log", 3) == ["first", "second", "third"]


@pytest.mark.parametrize("is_deposit", [True, False], ids=["a wake", "a message that its sender's commit stored"])
async def test_a_runner_whose_lease_ran_out_is_not_taken_for_the_owner(
    memory: MemoryCluster, client: Cluster, monkeypatch: pytest.MonkeyPatch, is_deposit: bool
) -> None:
    """If it answered, the next owner would not hear of what was stored after it had read the store."""
    runner = await memory.start_runner()
    await memory.settled()
    spec = host_of(runner).types["log"].spec.handlers["add"]
    told = Message(spec, "log", TELL)
    told.message_id = part_of(client).node.ids.new_id()
    is_over = asyncio.Event()
    wake = Wake(told, is_over.set)
    assert wake.delivery is not None
    wake.delivery.is_deposit = is_deposit
    owner = part_of(runner)
    assert isinstance(owner, Runner)
    lease, is_fresh = host_of(runner).lease, Lease.is_fresh
    with monkeypatch.context() as patched:
        patched.setattr(Lease, "is_fresh", lambda self: self is not lease and is_fresh(self))
        part_of(client).node.router.route(wake)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await is_over.wait()
        owner.ownership.let_everything_go("its lease ran out")
    async with asyncio.timeout(10):
        await is_over.wait()
