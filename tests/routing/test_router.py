"""Routing: to the owner here or elsewhere, with hints, or waiting for one."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import ActorhubError, Cluster, Entity, EntityNotAssigned, Hub, MalformedMessage, ShuttingDown
from actorhub.cluster import part_of
from actorhub.core.address import RunnerAddress, ShardOwner
from actorhub.core.envelope import ASK, BROADCAST, STREAM, TELL, Chunk, Credit, Failure, NotOwner, Reply, Request
from actorhub.core.snowflake import Snowflake
from actorhub.engine.supervision import Supervisor
from actorhub.testing import MemoryCluster, until


class Plain(Entity[list[int]]):
    async def add(self, number: int) -> int:
        self.state.append(number)
        return len(self.state)

    async def all(self) -> list[int]:
        return self.state


class Tenants(Entity, shard_key=lambda entity_id: entity_id.split("/")[0]):
    async def touch(self) -> int:
        return 1


def _picky(entity_id: str) -> str:
    return f"{int(entity_id) % 7}"


class Picky(Entity, shard_key=_picky):
    async def touch(self) -> int:
        return 1


class Untyped(Entity, shard_key=lambda _: 7):  # type: ignore[arg-type,return-value]
    async def touch(self) -> int:
        return 1


hub = Hub()
for entity in (Plain, Tenants, Picky, Untyped):
    hub.register(entity)


async def _two(memory: MemoryCluster) -> tuple[Cluster, Cluster, Cluster]:
    one, two = await memory.start_runner(), await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    return one, two, client


async def test_ids_with_equal_keys_share_a_shard() -> None:
    """A shard_key brings related ids together, and caller and runner agree on where."""
    async with MemoryCluster(hub) as memory:
        _, _, client = await _two(memory)
        shards = {client.shard_of(Tenants, f"acme/{n}") for n in range(50)}
        assert len(shards) == 1
        assert await client.client(Tenants)("acme/1").touch() == 1


@pytest.mark.parametrize("side", ["here", "there"])
async def test_a_shard_key_that_fails_is_the_calls_failure_alone(side: str) -> None:
    """An id that the user's function cannot take is malformed; other calls on the same link go on."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        cluster = runner if side == "here" else await memory.client()
        with pytest.raises(MalformedMessage, match=r"picky/ada: its shard_key failed: ValueError"):
            await cluster.client(Picky)("ada").touch()
        with pytest.raises(MalformedMessage, match="untyped/a: its shard_key failed: TypeError"):
            await cluster.client(Untyped)("a").touch()
        assert await cluster.client(Picky)("12").touch() == 1
        assert part_of(cluster).node.deadlines.size == 0


async def test_a_wrong_hint_is_corrected_on_the_way() -> None:
    """A client that believes the wrong runner to be the owner reaches the right one in one more hop."""
    async with MemoryCluster(hub) as memory:
        one, two, client = await _two(memory)
        name = next(f"e{n}" for n in range(100) if two.is_local(Plain, f"e{n}"))
        shard = client.shard_of(Plain, name)
        assert one.runner is not None
        table = part_of(client).node.table
        owner = table.owner(shard)
        assert owner is not None
        table._owners[shard] = ShardOwner(shard, one.runner, owner.epoch)
        assert await client.client(Plain)(name).add(1) == 1
        assert part_of(client).node.router.statistics().not_owner == 1
        assert await client.client(Plain)(name).add(2) == 2
        assert part_of(client).node.router.statistics().not_owner == 1


async def test_calls_that_wait_for_an_owner_go_in_the_order_in_which_they_came() -> None:
    """Parked calls are released first in, first out."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        await client.client(Plain)("a").all()
        await memory.kill(runner)
        supervisor = Supervisor(memory.clock)

        async def add(number: int) -> int:
            return await client.client(Plain)("a").add(number)

        tasks = [supervisor.spawn(add(n), "add") for n in range(50)]
        await until(lambda: part_of(client).node.router.statistics().parked == 50)
        await memory.start_runner()
        assert [await task for task in tasks] == list(range(1, 51))
        assert await client.client(Plain)("a").all() == list(range(50))
        assert part_of(client).node.router.statistics().parked == 0


async def test_parked_calls_that_gave_up_are_forgotten() -> None:
    """Calls that timed out while nobody owned their shard take no room."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        await client.client(Plain)("a").all()
        await memory.kill(runner)
        hurried = client.client(Plain).options(timeout=timedelta(milliseconds=30))
        for _ in range(3):
            with pytest.raises(EntityNotAssigned):
                await hurried("a").add(1)
        await until(lambda: part_of(client).node.router.statistics().parked == 0)


async def test_leaving_fails_what_still_waits_as_not_executed() -> None:
    """A client that closes while calls wait for an owner ends them; none of them ran."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        await client.client(Plain)("a").all()
        await memory.kill(runner)
        supervisor = Supervisor(memory.clock)

        async def add() -> ActorhubError:
            with pytest.raises(ActorhubError) as caught:
                await client.client(Plain)("a").add(1)
            return caught.value

        waiting = supervisor.spawn(add(), "add")
        await until(lambda: part_of(client).node.router.statistics().parked == 1)
        await memory.stop(client)
        async with asyncio.timeout(3):
            error = await waiting
        assert isinstance(error, ShuttingDown)
        assert not error.possibly_executed


async def test_envelopes_that_make_no_sense_harm_nobody() -> None:
    """Replies to nothing, wrong kinds, negative credit and strange requests leave the link and its calls whole."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        assert await client.client(Plain)("a").add(1) == 1
        (peer,) = part_of(client).node.peers.runners()
        nobody = ShardOwner(runner.shard_of(Plain, "a"), RunnerAddress("nowhere:1", "f" * 16), 99)
        for envelope in (
            Reply(10**9, 1, b""),
            Failure(10**9, 1, b"\xff"),
            NotOwner(10**9, nobody),
            Chunk(10**9, 1, [b"x"]),
            Credit(10**9, -5),
            Request(10**6, STREAM, "plain", "a", "add", b"\x91\x01", 0, credit=-1),
            Request(10**6 + 1, 77, "plain", "a", "add", b"\x91\x01", 0),
            Request(10**6 + 2, TELL, "plain", "", "add", b"\x91\x01", 0),
            Request(10**6 + 3, ASK, "plain", "a\nb", "add", b"\x91\x01", -7),
            Request(10**6 + 4, BROADCAST, "plain", "", "add", b"garbage", 0),
            Request(10**6 + 5, ASK, "plain", "a", "__init__", b"", 0),
            Request(10**6 + 6, ASK, "plain", "a", "_missing", b"", 0),
        ):
            peer.link.send(envelope)
        assert isinstance(client.snowflake(), Snowflake)
        async with asyncio.timeout(3):
            assert (await client.client(Plain)("a").all())[0] == 1
        assert peer.link.is_open
