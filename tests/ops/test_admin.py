"""`actorhub.admin.v1` and `grpc.health.v1`."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actorhub import Cluster
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from tests.ops.conftest import Port, Ports
from tests.support.shop import Gate, Order, Orders

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def _health(port: Port, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(port.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status  # type: ignore[no-any-return]


async def _place(cluster: Cluster, *names: str) -> None:
    for name in names:
        await cluster.client(Orders)(name).process(Order("tea", 1))


async def test_shards_are_joined_with_their_owners_numbers(ports: Ports) -> None:
    """Both runners tell the same: owner, incarnation, epoch, and what is resident and queued."""
    first, second = await ports.open_two()
    await _place(first.cluster, "ada", "bob")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(12):
            tasks.create_task(first.cluster.client(Gate)("g").sleep(0.5))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while True:
                replies = [await port.admin.ListShards(pb.ListShardsRequest()) for port in (first, second)]
                if sum(shard.queued_messages for shard in replies[0].shards) == 2:
                    break
        assert len(replies[0].shards) == 300
        assert sum(shard.resident_entities for shard in replies[0].shards) == 3
        assert [shard.shard for shard in replies[0].shards] == [shard.shard for shard in replies[1].shards]
        busy = str(first.cluster.shard_of(Gate, "g"))
        owner = first if first.cluster.is_local(Gate, "g") else second
        one = await second.admin.GetShard(pb.GetShardRequest(shard=busy))
        assert owner.cluster.runner is not None
        assert (one.runner, one.incarnation) == (owner.address, owner.cluster.runner.incarnation)
        assert (one.state, one.queued_messages) == (pb.SHARD_STATE_OWNED, 2)
        assert one.epoch >= 1
        assert one.resident_entities >= 1


async def test_pages_cover_every_shard_and_entity_once(ports: Ports) -> None:
    """Small pages put together are what one large page says, whoever is asked."""
    first, second = await ports.open_two()
    names = [f"customer {number}" for number in range(20)]
    await _place(first.cluster, *names)
    shards: list[str] = []
    token = ""
    while True:
        reply = await second.admin.ListShards(pb.ListShardsRequest(page_size=70, page_token=token))
        shards += [shard.shard for shard in reply.shards]
        if not (token := reply.next_page_token):
            break
    assert shards == [f"default:{number}" for number in range(300)]
    found: list[str] = []
    while True:
        page = await first.admin.ListEntities(pb.ListEntitiesRequest(page_size=7, page_token=token))
        found += [entity.entity_id for entity in page.entities]
        if not (token := page.next_page_token):
            break
    assert found == sorted(names)
    shard = str(first.cluster.shard_of(Orders, names[0]))
    within = await first.admin.ListEntities(pb.ListEntitiesRequest(entity_type="orders", shard=shard))
    assert names[0] in [entity.entity_id for entity in within.entities]
    assert {entity.shard for entity in within.entities} == {shard}


async def test_an_entity_is_shown_by_its_owner_or_from_the_store(ports: Ports) -> None:
    """A resident one with what it does, another with its stored version, both with shard and owner."""
    first, second = await ports.open_two()
    await _place(first.cluster, "ada")
    for port in (first, second):
        ada = await port.admin.GetEntity(pb.GetEntityRequest(entity_type="orders", entity_id="ada"))
        assert (ada.activity, ada.state_version) == (pb.ACTIVITY_IDLE, 1)
        assert ada.state_bytes > 0
        bob = await port.admin.GetEntity(pb.GetEntityRequest(entity_type="orders", entity_id="bob"))
        assert (bob.activity, bob.state_version) == (pb.ACTIVITY_NOT_RESIDENT, 0)
        assert bob.shard == str(first.cluster.shard_of(Orders, "bob"))
        assert bob.runner == (first if first.cluster.is_local(Orders, "bob") else second).address


async def test_wrong_questions_are_answered_with_a_status_that_says_why(ports: Ports) -> None:
    """Malformed arguments are INVALID_ARGUMENT, unknown things NOT_FOUND."""
    admin = (await ports.open()).admin
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    questions = (
        (admin.GetShard(pb.GetShardRequest(shard="42")), invalid, "write group:number"),
        (admin.GetShard(pb.GetShardRequest(shard="default:300")), missing, "groups have 300 shards"),
        (admin.GetShard(pb.GetShardRequest(shard="other:1")), missing, "no shard other:1"),
        (admin.ListShards(pb.ListShardsRequest(page_token="x")), invalid, "write group:number"),
        (admin.ListEntities(pb.ListEntitiesRequest(page_token="x")), invalid, "page_token"),
        (admin.GetEntity(pb.GetEntityRequest(entity_type="order", entity_id="a")), missing, "it knows gate, orders"),
        (admin.GetEntity(pb.GetEntityRequest(entity_type="orders")), invalid, "must not be empty"),
    )
    for question, status, text in questions:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await question
        assert refused.value.code() is status
        assert text in (refused.value.details() or "")


async def test_health_follows_the_runner_from_start_to_hand_over(ports: Ports) -> None:
    """SERVING while it serves, NOT_SERVING as soon as it leaves, and a watcher is told."""
    port = await ports.open()
    assert await _health(port) == SERVING
    assert await _health(port, "actorhub.client.v1.Gateway") == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await _health(port, "nonsense")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    said = await port.admin.Health(pb.HealthRequest())
    assert (said.serving, said.shards_owned, said.live_runners, said.runner) == (True, 300, 1, port.address)
    async with grpc.aio.insecure_channel(port.address) as channel, asyncio.TaskGroup() as tasks:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        tasks.create_task(port.cluster.client(Gate)("g").sleep(1.0))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while not (await port.admin.ListEntities(pb.ListEntitiesRequest())).entities:
                await asyncio.sleep(0.01)
        tasks.create_task(ports.stack.aclose())
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
