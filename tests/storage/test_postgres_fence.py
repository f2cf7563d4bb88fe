"""No commit of a former owner is accepted, however late it comes."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, runner, take_over
from actorhub.core.address import ShardId, fence_lock_key, lock_key, shard_lock_key
from actorhub.storage.ports import Fenced, StoredState
from tests.storage.conftest import PostgresWorld

_WAITING = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
_BLOCKED_ROWS = "select count(*) from pg_locks where locktype in ('transactionid', 'tuple') and not granted"


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.01)


async def _count(connection: "asyncpg.Connection[asyncpg.Record]", query: str) -> bool:
    return bool(await connection.fetchval(query))


def test_lock_keys_are_frozen() -> None:
    """Runners of different releases exclude each other: these numbers never change."""
    assert shard_lock_key("actorhub", ShardId("default", 0)) == 905343151779143436
    assert shard_lock_key("actorhub", ShardId("default", 299)) == 7043201679365266645
    assert shard_lock_key("other", ShardId("default", 0)) == -3268638372047606196
    assert shard_lock_key("actorhub", ShardId("eu", 0)) == -1599248011377683032
    assert fence_lock_key("actorhub", "0123456789abcdef") == 8281326858101420459
    assert lock_key("actorhub", "shard/default:0") == shard_lock_key("actorhub", ShardId("default", 0))


async def test_taking_waits_for_a_commit_in_flight(postgres_world: PostgresWorld) -> None:
    """A commit that was checked before the take is written before the take returns, never after."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    blocker, observer = await postgres_world.sql(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    held = blocker.transaction()
    await held.start()
    await blocker.execute("select from entity_state where entity_id = 'ada' for update")
    late = storage.commit_state(commit("ada", 2), "a")
    await _until(lambda: _count(observer, _BLOCKED_ROWS))
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        take = tasks.create_task(take_over(peer, SHARDS[:1], runner("b")))
        await _until(lambda: _count(observer, _WAITING))
        assert not take.done()
        await held.rollback()
    await late
    assert await peer.load_state("orders", "ada") == StoredState(2, b"v2")
    with pytest.raises(Fenced):
        await storage.commit_state(commit("ada", 3), "a")


async def test_without_the_fence_a_late_commit_would_be_accepted(postgres_world: PostgresWorld) -> None:
    """The same race with the fence off breaks the promise, so the test above can fail."""
    storage, peer = await postgres_world.storage(fence=False), await postgres_world.storage(fence=False)
    blocker, observer = await postgres_world.sql(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    held = blocker.transaction()
    await held.start()
    await blocker.execute("select from entity_state where entity_id = 'ada' for update")
    late = storage.commit_state(commit("ada", 2), "a")
    await _until(lambda: _count(observer, _BLOCKED_ROWS))
    assert await take_over(peer, SHARDS[:1], runner("b")) == {SHARDS[0]: 2}
    assert await peer.load_state("orders", "ada") == StoredState(1, b"v1")
    await held.rollback()
    await late
    assert await peer.load_state("orders", "ada") == StoredState(2, b"v2")


async def test_releasing_waits_for_own_commits(postgres_world: PostgresWorld) -> None:
    """The next owner, who fences nobody after a release, finds everything that was accepted."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    blocker, observer = await postgres_world.sql(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    held = blocker.transaction()
    await held.start()
    await blocker.execute("select from entity_state where entity_id = 'ada' for update")
    late = storage.commit_state(commit("ada", 2), "a")
    await _until(lambda: _count(observer, _BLOCKED_ROWS))
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        release = tasks.create_task(storage.release({SHARDS[0]: 1}, "a"))
        await _until(lambda: _count(observer, _WAITING))
        assert not release.done()
        await held.rollback()
    await late
    assert await take_over(peer, SHARDS[:1], runner("b")) == {SHARDS[0]: 2}
    assert await peer.load_state("orders", "ada") == StoredState(2, b"v2")


async def test_a_former_owner_stuck_in_a_transaction_is_ended(postgres_world: PostgresWorld) -> None:
    """A zombie that holds its fence forever costs a take a moment, and its own connection; nobody else's is ended."""
    peer = await postgres_world.storage()
    zombie, busy = await postgres_world.sql(), await postgres_world.sql()
    await peer.take(SHARDS[:2], runner("a"))
    await peer.take(SHARDS[2:], runner("c"))
    for owner, connection in (("a", zombie), ("c", busy)):
        await connection.execute("begin")
        await connection.execute("select pg_advisory_xact_lock_shared($1)", fence_lock_key("actorhub", owner))
    async with asyncio.timeout(PATIENCE_SECONDS):
        taken = await peer.take(SHARDS, runner("b"), dict.fromkeys(SHARDS[:2], 1))
    assert taken == dict.fromkeys(SHARDS[:2], 2)
    await _until(lambda: _closed(zombie))
    await busy.execute("commit")


async def test_two_runners_that_take_the_same_shards_do_not_deadlock(postgres_world: PostgresWorld) -> None:
    """Takes and releases of overlapping shards in any order all end, and every take has its own epoch."""
    storages = [await postgres_world.storage() for _ in range(3)]
    epochs: list[int] = []

    async def take_often(number: int) -> None:
        storage, shards = storages[number], SHARDS if number % 2 else SHARDS[::-1]
        for _ in range(10):
            while not (taken := await storage.take(shards, runner("abc"[number]))):
                pass  # Another one has them.
            epochs.append(taken[SHARDS[0]])
            await storage.release(taken, "abc"[number])

    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(take_often(number))
    assert sorted(epochs) == list(range(1, 31))


async def _closed(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return connection.is_closed()
