"""The promises of `Storage.take` about shards that have an owner, as tests that every storage must pass."""

import asyncio

from actorhub.conformance.storage import SHARDS, StorageWorld, runner
from actorhub.core.address import ShardId


class TakeoverSuite:
    """Who may take a shard that was not released."""

    async def test_a_shard_that_has_an_owner_is_not_taken(self, world: StorageWorld) -> None:
        """Its row stays as it is, the owner at its epoch, and the free shards that were asked for with it are taken."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS[:2], runner("a"))
        await storage.release({SHARDS[1]: 1}, "a")
        assert await peer.take(SHARDS[:3], runner("b")) == {SHARDS[1]: 2, SHARDS[2]: 1}
        [first, *_] = await peer.shards()
        assert first.owner is not None
        assert (first.owner.runner, first.epoch) == (runner("a").runner, 1)

    async def test_a_shard_is_taken_from_an_owner_that_is_gone_at_that_epoch_alone(self, world: StorageWorld) -> None:
        """What the caller knows of one tenure says nothing about a later one, not even of the same owner."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS[:2], runner("a"))
        await storage.take(SHARDS[:1], runner("a"))
        assert await peer.take(SHARDS[:2], runner("b"), {SHARDS[0]: 1, SHARDS[1]: 1}) == {SHARDS[1]: 2}
        assert await peer.take(SHARDS[:2], runner("b"), {SHARDS[0]: 2}) == {SHARDS[0]: 3, SHARDS[1]: 3}

    async def test_an_owner_takes_its_own_shard_again(self, world: StorageWorld) -> None:
        """It knows best what it still does for it."""
        storage = await world.storage()
        await storage.take(SHARDS[:1], runner("a"))
        assert await storage.take(SHARDS[:1], runner("a")) == {SHARDS[0]: 2}

    async def test_of_two_that_take_at_once_one_gets_the_shard(self, world: StorageWorld) -> None:
        """Also a shard that nobody ever owned: a caller whose locks are gone robs nobody."""
        storage, peer = await world.storage(), await world.storage()
        claims: tuple[dict[ShardId, int], ...]
        for number in range(20):
            shard = ShardId("default", number)
            claims = ({}, {shard: 1})
            for gone in claims:
                async with asyncio.TaskGroup() as tasks:
                    one = tasks.create_task(storage.take([shard], runner("a"), gone))
                    other = tasks.create_task(peer.take([shard], runner("b"), gone))
                assert bool(one.result()) != bool(other.result())
