"""The promises of `actorhub.storage.ports`, as tests that every storage must pass.

Subclass `OwnershipSuite` and `StateSuite` in a test module and give it a fixture `world` that makes the storages of one
test.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol

import msgspec
import pytest

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.storage.ports import (
    ClusterValues,
    Fenced,
    LockSession,
    SessionLost,
    StateCommit,
    Storage,
    StoredState,
    VersionConflict,
)
from actorhub.storage.statistics import StorageStatistics

PATIENCE_SECONDS = 10.0
"""How long a test waits for something that must happen."""

SHARDS = [ShardId("default", number) for number in range(5)]


class MeasuredStorage(Storage, Protocol):
    """A storage that counts."""

    def statistics(self) -> StorageStatistics:
        """Return the counts so far."""
        ...


class StorageWorld(Protocol):
    """Makes the storages of one test, all on one empty store, and closes them after it."""

    async def storage(self) -> MeasuredStorage:
        """Return an open storage, as another process would have it."""
        ...


def runner(incarnation: str, *, address: str = "127.0.0.1:7000", weight: float = 1.0) -> RunnerInfo:
    """Return a runner's info."""
    return RunnerInfo(
        runner=RunnerAddress(address, incarnation), weight=weight, groups=("default",), entity_types=("orders",)
    )


def with_slot(info: RunnerInfo, slot: int) -> RunnerInfo:
    """Return `info` as the store tells of it."""
    return msgspec.structs.replace(info, slot=slot)


def commit(
    entity_id: str, version: int, *, epoch: int = 1, shard: ShardId = SHARDS[0], data: bytes | None = None
) -> StateCommit:
    """Return a commit of an order."""
    return StateCommit(shard, epoch, "orders", entity_id, version, b"v%d" % version if data is None else data)


async def locked(session: LockSession, shards: Sequence[ShardId]) -> None:
    """Return once `session` holds `shards`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(await session.try_lock(shards)) < len(shards):  # noqa: ASYNC110 - no event tells of a freed lock
            await asyncio.sleep(0.01)


async def take_over(storage: Storage, shards: Sequence[ShardId], info: RunnerInfo) -> Mapping[ShardId, int]:
    """Take `shards` from whoever owns them, as a runner does that knows their owners gone."""
    return await storage.take(shards, info, {row.shard: row.epoch for row in await storage.shards()})


async def outcomes(storage: Storage, commits: Sequence[StateCommit], incarnation: str) -> list[BaseException | None]:
    """Return what became of each of `commits`, made at once."""
    futures = [storage.commit_state(each, incarnation) for each in commits]
    await asyncio.wait(futures, timeout=PATIENCE_SECONDS)
    return [future.exception() for future in futures]


@asynccontextmanager
async def lock_session(storage: Storage, incarnation: str) -> AsyncGenerator[LockSession]:
    """Open a lock session for the body."""
    session = await storage.open_lock_session(incarnation)
    try:
        yield session
    finally:
        await session.aclose()


class OwnershipSuite:
    """Membership, locks and shard owners."""

    async def test_a_shard_lock_has_one_holder(self, world: StorageWorld) -> None:
        """A second session gets none of the locks that the first holds, and all others."""
        first, second = await world.storage(), await world.storage()
        async with lock_session(first, "a") as one, lock_session(second, "b") as two:
            assert await one.try_lock(SHARDS[:3]) == SHARDS[:3]
            assert await two.try_lock(SHARDS) == SHARDS[3:]

    async def test_a_lock_that_is_asked_for_twice_is_freed_by_one_unlock(self, world: StorageWorld) -> None:
        """Locks do not add up: not in one call, not over several."""
        storage = await world.storage()
        async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
            assert await one.try_lock([SHARDS[0], SHARDS[0]]) == [SHARDS[0]]
            assert await one.try_lock([SHARDS[0]]) == [SHARDS[0]]
            await one.unlock([SHARDS[0], SHARDS[0], SHARDS[1]])
            assert await two.try_lock([SHARDS[0]]) == [SHARDS[0]]
            assert await one.try_lock([SHARDS[0]]) == []

    async def test_nothing_to_lock_and_nothing_to_unlock_are_fine(self, world: StorageWorld) -> None:
        """Empty requests mean nothing, never everything."""
        storage = await world.storage()
        async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
            assert await one.try_lock([]) == []
            assert await one.try_lock(SHARDS) == SHARDS
            await one.unlock([])
            assert await two.try_lock(SHARDS) == []
            assert await storage.take([], runner("a")) == {}
            await storage.release({}, "a")

    async def test_closing_a_session_frees_its_locks(self, world: StorageWorld) -> None:
        """When aclose returns, another session gets the locks; closing again does nothing."""
        storage = await world.storage()
        async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
            await one.try_lock(SHARDS)
            await one.aclose()
            assert await two.try_lock(SHARDS) == SHARDS
            await one.aclose()
            assert one.lost

    async def test_a_closed_session_raises_session_lost(self, world: StorageWorld) -> None:
        """Every operation on a session that is gone says so, empty ones included."""
        storage = await world.storage()
        session = await storage.open_lock_session("a")
        await session.aclose()
        for operation in (
            session.heartbeat(runner("a")),
            session.try_lock(SHARDS),
            session.try_lock([]),
            session.unlock(SHARDS),
        ):
            with pytest.raises(SessionLost):
                await operation

    async def test_terminating_a_session_frees_its_locks_and_loses_it(self, world: StorageWorld) -> None:
        """A peer ends a stale incarnation's session; others of the store go on."""
        storage, peer = await world.storage(), await world.storage()
        async with lock_session(storage, "a") as one, lock_session(peer, "b") as two:
            await one.try_lock(SHARDS)
            assert await peer.terminate_sessions("a") == 1
            assert await two.try_lock(SHARDS) == SHARDS
            with pytest.raises(SessionLost):
                await one.heartbeat(runner("a"))
            assert one.lost
            assert not two.lost
            assert await peer.terminate_sessions("a") == 0

    async def test_operations_of_one_session_wait_for_each_other(self, world: StorageWorld) -> None:
        """Heartbeats, locks and unlocks that are started at once all succeed."""
        storage = await world.storage()
        async with lock_session(storage, "a") as session:
            async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
                for shard in SHARDS:
                    tasks.create_task(_lock_and_unlock(session, shard))
                    tasks.create_task(_heartbeat(session))
            assert not session.lost

    async def test_a_heartbeat_registers_the_runner(self, world: StorageWorld) -> None:
        """Every storage sees the runner, its capabilities and that it was heard of just now."""
        storage, peer = await world.storage(), await world.storage()
        async with lock_session(storage, "a") as one, lock_session(peer, "b") as two:
            [alone] = await one.heartbeat(runner("a", weight=2.5))
            assert alone.info == with_slot(runner("a", weight=2.5), 0)
            both = await two.heartbeat(runner("b"))
            assert {live.info.runner.incarnation for live in both} == {"a", "b"}
            assert all(0 <= live.silent_for < PATIENCE_SECONDS for live in await storage.runners())

    async def test_a_heartbeat_tells_the_store_s_time(self, world: StorageWorld) -> None:
        """Each row says when it was read, later at each heartbeat, and never before a runner had started."""
        storage = await world.storage()
        async with lock_session(storage, "a") as session:
            [before] = await session.heartbeat(runner("a"))
            await asyncio.sleep(0.002)
            [after] = await session.heartbeat(runner("a"))
            [read] = await storage.runners()
        assert before.started_at <= before.read_at < after.read_at <= read.read_at
        assert after.read_at - before.read_at < PATIENCE_SECONDS

    async def test_a_heartbeat_changes_what_the_runner_says_of_itself(self, world: StorageWorld) -> None:
        """Draining and weight follow the latest heartbeat; the start of the runner stays."""
        storage = await world.storage()
        async with lock_session(storage, "a") as session:
            [before] = await session.heartbeat(runner("a"))
            changed = RunnerInfo(runner=runner("a").runner, draining=True, weight=0.5, groups=("default", "eu"))
            [after] = await session.heartbeat(changed)
            assert after.info == with_slot(changed, 0)
            assert after.started_at == before.started_at

    async def test_a_deleted_runner_registers_again(self, world: StorageWorld) -> None:
        """A heartbeat brings back a row that somebody deleted."""
        storage = await world.storage()
        async with lock_session(storage, "a") as session:
            await session.heartbeat(runner("a"))
            await storage.remove_runner("a")
            await storage.remove_runner("a")
            assert await storage.runners() == []
            [live] = await session.heartbeat(runner("a"))
            assert live.info == with_slot(runner("a"), 0)

    async def test_a_restart_at_the_same_address_is_another_runner(self, world: StorageWorld) -> None:
        """Two incarnations at one address have a row each."""
        storage = await world.storage()
        async with lock_session(storage, "a") as one, lock_session(storage, "b") as two:
            await one.heartbeat(runner("a", weight=1))
            found = await two.heartbeat(runner("b", weight=3))
            assert {(live.info.runner.incarnation, live.info.weight) for live in found} == {("a", 1), ("b", 3)}

    async def test_each_take_raises_the_epoch_by_one(self, world: StorageWorld) -> None:
        """Epochs start at one and grow by one per take, whoever takes, after a release as well."""
        storage = await world.storage()
        assert await storage.take(SHARDS, runner("a")) == dict.fromkeys(SHARDS, 1)
        assert await take_over(storage, SHARDS[:2], runner("b")) == dict.fromkeys(SHARDS[:2], 2)
        assert await storage.take([SHARDS[0], SHARDS[0]], runner("b")) == {SHARDS[0]: 3}
        await storage.release({SHARDS[0]: 3}, "b")
        assert await storage.take([SHARDS[0], SHARDS[4]], runner("a")) == {SHARDS[0]: 4, SHARDS[4]: 2}

    async def test_shards_names_the_owners(self, world: StorageWorld) -> None:
        """Rows carry epoch and owner, in order; nobody owns a released shard, and its epoch stays."""
        storage, peer = await world.storage(), await world.storage()
        assert await peer.shards() == []
        await storage.take(SHARDS[:2], runner("a"))
        await storage.release({SHARDS[1]: 1}, "a")
        first, second = await peer.shards()
        assert first.shard == SHARDS[0]
        assert first.owner is not None
        assert (first.owner.runner, first.owner.epoch, first.epoch) == (runner("a").runner, 1, 1)
        assert (second.shard, second.epoch, second.owner) == (SHARDS[1], 1, None)

    async def test_a_late_release_changes_nothing(self, world: StorageWorld) -> None:
        """Neither another incarnation nor an older epoch takes a shard from its owner."""
        storage = await world.storage()
        await storage.take(SHARDS[:1], runner("a"))
        await take_over(storage, SHARDS[:1], runner("b"))
        for epochs, incarnation in (({SHARDS[0]: 1}, "a"), ({SHARDS[0]: 2}, "a"), ({SHARDS[0]: 1}, "b")):
            await storage.release(epochs, incarnation)
            [row] = await storage.shards()
            assert row.owner is not None
            assert row.owner.runner.incarnation == "b"

    async def test_ten_thousand_shards_are_taken_at_once(self, world: StorageWorld) -> None:
        """No limit of columns or parameters stands in the way."""
        storage = await world.storage()
        many = [ShardId("default", number) for number in range(10_000)]
        assert await storage.take(many, runner("a")) == dict.fromkeys(many, 1)
        await storage.release(dict.fromkeys(many, 1), "a")
        assert len(await storage.shards()) == len(many)

    async def test_runners_that_disagree_are_told_which_value_differs(self, world: StorageWorld) -> None:
        """The first values stay; a runner with others gets both sides and the name."""
        first, second = await world.storage(), await world.storage()
        assert await first.cluster_values() is None
        values = ClusterValues(shards_per_group=300, hash_version="h1")
        await first.agree(values)
        await second.agree(values)
        with pytest.raises(ConfigurationError, match=r"shards_per_group is 300, this runner has 100"):
            await second.agree(ClusterValues(shards_per_group=100, hash_version="h1"))
        with pytest.raises(ConfigurationError, match=r"hash_version is 'h1', this runner has 'h2'"):
            await second.agree(ClusterValues(shards_per_group=300, hash_version="h2"))
        assert await second.cluster_values() == values

    async def test_machine_ids_are_unique_and_renewed(self, world: StorageWorld) -> None:
        """Holders that lease at once get different ids, and keep theirs when they renew."""
        first, second = await world.storage(), await world.storage()
        leased = await _lease(first, 20, "x") | await _lease(second, 20, "y")
        assert len(set(leased.values())) == 40
        assert await _lease(second, 20, "x") | await _lease(first, 20, "y") == leased

    async def test_an_expired_machine_id_is_used_again_when_none_is_fresh(self, world: StorageWorld) -> None:
        """The 1025th holder is refused while all leases live, and gets the one that expired or was given back."""
        storage = await world.storage()
        expired = await storage.lease_machine_id("expired", timedelta(0))
        leased = await _lease(storage, 1023, "x")
        assert len({expired, *leased.values()}) == 1024
        assert await storage.lease_machine_id("heir", timedelta(minutes=1)) == expired
        with pytest.raises(PersistenceError, match="1024"):
            await storage.lease_machine_id("late", timedelta(minutes=1))
        await storage.release_machine_id("x7")
        await storage.release_machine_id("x7")
        assert await storage.lease_machine_id("late", timedelta(minutes=1)) == leased["x7"]


class StateSuite:
    """Entity state: versions, fences, groups."""

    async def test_state_is_loaded_as_it_was_committed(self, world: StorageWorld) -> None:
        """Another process sees the latest version; an entity without state has none."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS, runner("a"))
        assert await peer.load_state("orders", "ada") is None
        await storage.commit_state(commit("ada", 1, data=b""), "a")
        assert await peer.load_state("orders", "ada") == StoredState(1, b"")
        await storage.commit_state(commit("ada", 2, data=bytes(range(256)) * 5000), "a")
        assert await peer.load_state("orders", "ada") == StoredState(2, bytes(range(256)) * 5000)
        assert await peer.load_state("other", "ada") is None

    @pytest.mark.parametrize("entity_id", ["日本 語", "🦊" * 60, "a'b\"c\\d%", "e\u0301", "\u00e9", " ", "A", "a"])
    async def test_any_text_is_an_entity_id(self, world: StorageWorld, entity_id: str) -> None:
        """Ids are compared as they are: no folding, trimming or normalisation."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        alike = ["e\u0301", "\u00e9", "A", "a", " ", "  ", "a ", entity_id]
        ids = list(dict.fromkeys(alike))
        results = await outcomes(storage, [commit(each, 1, data=each.encode()) for each in ids], "a")
        assert results == [None] * len(ids)
        assert await storage.load_state("orders", entity_id) == StoredState(1, entity_id.encode())

    async def test_a_former_owner_is_fenced(self, world: StorageWorld) -> None:
        """After another took the shard, the old epoch and the old incarnation are refused and nothing changes."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS, runner("a"))
        await storage.commit_state(commit("ada", 1), "a")
        await take_over(peer, SHARDS[:1], runner("b"))
        for stale, incarnation in (
            (commit("ada", 2, epoch=1), "a"),
            (commit("ada", 2, epoch=2), "a"),
            (commit("ada", 2, epoch=1), "b"),
            (commit("ada", 2, epoch=3), "b"),
            (commit("new", 1, epoch=1), "a"),
        ):
            with pytest.raises(Fenced):
                await storage.commit_state(stale, incarnation)
        assert await peer.load_state("orders", "ada") == StoredState(1, b"v1")
        assert await peer.load_state("orders", "new") is None
        await peer.commit_state(commit("ada", 2, epoch=2), "b")
        assert storage.statistics().refused == 5

    async def test_nobody_commits_to_a_shard_without_owner(self, world: StorageWorld) -> None:
        """Before the first take, and after a release, commits are fenced."""
        storage = await world.storage()
        with pytest.raises(Fenced):
            await storage.commit_state(commit("ada", 1, epoch=0), "a")
        await storage.take(SHARDS, runner("a"))
        await storage.release({SHARDS[0]: 1}, "a")
        with pytest.raises(Fenced):
            await storage.commit_state(commit("ada", 1), "a")

    async def test_versions_are_contiguous(self, world: StorageWorld) -> None:
        """A version that is not the next one is refused and nothing changes."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        with pytest.raises(VersionConflict):
            await storage.commit_state(commit("ada", 2), "a")
        await storage.commit_state(commit("ada", 1), "a")
        for version in (1, 3, 0):
            with pytest.raises(VersionConflict):
                await storage.commit_state(commit("ada", version, data=b"other"), "a")
        assert await storage.load_state("orders", "ada") == StoredState(1, b"v1")

    async def test_a_repeated_commit_is_harmless(self, world: StorageWorld) -> None:
        """The same commit again succeeds and changes nothing, also after the shard was lost."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        for version in (1, 1, 2, 2, 2):
            await storage.commit_state(commit("ada", version), "a")
        await take_over(storage, SHARDS, runner("b"))
        await storage.commit_state(commit("ada", 2), "a")
        assert await storage.load_state("orders", "ada") == StoredState(2, b"v2")
        with pytest.raises(Fenced):
            await storage.commit_state(commit("ada", 2, data=b"other"), "a")

    async def test_a_refused_commit_does_not_fail_its_neighbours(self, world: StorageWorld) -> None:
        """Of commits made at once, each gets its own outcome."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        await storage.commit_state(commit("old", 1), "a")
        await take_over(storage, SHARDS[1:2], runner("b"))
        made = [
            commit("ada", 1),
            commit("stale", 1, shard=SHARDS[1]),
            commit("old", 2),
            commit("gap", 2),
            commit("eve", 1, shard=SHARDS[2]),
            commit("old2", 1, epoch=9),
        ]
        results = await outcomes(storage, made, "a")
        assert [type(result) for result in results] == [
            type(None), Fenced, type(None), VersionConflict, type(None), Fenced
        ]  # fmt: skip
        stored = [await storage.load_state("orders", each.entity_id) for each in made]
        assert [state and state.version for state in stored] == [1, None, 2, None, 1, None]

    async def test_a_commit_that_cannot_be_encoded_does_not_fail_its_neighbours(self, world: StorageWorld) -> None:
        """A lone surrogate in an id costs nobody else anything, whatever becomes of it."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        made = [commit(f"e{number}", 1) for number in range(20)]
        made[7] = commit("\ud800", 1)
        results = await outcomes(storage, made, "a")
        assert [result for number, result in enumerate(results) if number != 7] == [None] * 19
        assert results[7] is None or isinstance(results[7], PersistenceError)

    async def test_commits_of_one_entity_made_at_once_keep_their_order(self, world: StorageWorld) -> None:
        """A chain of versions queued in one go is written in order."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        results = await outcomes(storage, [commit("ada", version) for version in range(1, 6)], "a")
        assert results == [None] * 5
        assert await storage.load_state("orders", "ada") == StoredState(5, b"v5")

    async def test_commits_of_two_incarnations_do_not_mix(self, world: StorageWorld) -> None:
        """One process may commit for several incarnations at once."""
        storage = await world.storage()
        await storage.take(SHARDS[:1], runner("a"))
        await storage.take(SHARDS[1:2], runner("b"))
        futures = [
            storage.commit_state(commit(f"e{number}", 1, shard=SHARDS[number % 2]), "ab"[number % 2])
            for number in range(10)
        ]
        async with asyncio.timeout(PATIENCE_SECONDS):
            for future in futures:
                await future
        with pytest.raises(Fenced):
            await storage.commit_state(commit("e0", 2, shard=SHARDS[0]), "b")

    async def test_concurrent_commits_and_loads_share_round_trips(self, world: StorageWorld) -> None:
        """Far fewer groups than requests; the counts say so."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        assert await outcomes(storage, [commit(f"e{number}", 1) for number in range(300)], "a") == [None] * 300
        loads = [storage.load_state("orders", f"e{number}") for number in range(300)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [await load for load in loads] == [StoredState(1, b"v1")] * 300
        counts = storage.statistics()
        assert (counts.commits, counts.loads, counts.refused, counts.waiting) == (300, 300, 0, 0)
        assert counts.commit_batches <= 3
        assert counts.load_batches <= 3

    async def test_a_cancelled_request_harms_no_other(self, world: StorageWorld) -> None:
        """Cancelled futures drop their own results alone."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        futures = [storage.commit_state(commit(f"e{number}", 1), "a") for number in range(6)]
        loads = [storage.load_state("orders", "nobody") for _ in range(6)]
        for future in (futures[0], futures[3], loads[2]):
            future.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            for number in (1, 2, 4, 5):
                await futures[number]
            for number in (0, 1, 3, 4, 5):
                assert await loads[number] is None

    async def test_a_closed_storage_refuses(self, world: StorageWorld) -> None:
        """What was queued before the end is done or failed, and everything after it fails."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        queued = storage.commit_state(commit("ada", 1), "a")
        await storage.aclose()
        assert queued.done()
        assert queued.exception() is None
        for request in (storage.commit_state(commit("eve", 1), "a"), storage.load_state("orders", "ada")):
            with pytest.raises(PersistenceError):
                await request
        with pytest.raises(PersistenceError):
            await storage.runners()
        await storage.aclose()


async def _lock_and_unlock(session: LockSession, shard: ShardId) -> None:
    await locked(session, [shard])
    await session.unlock([shard])


async def _heartbeat(session: LockSession) -> None:
    await session.heartbeat(runner("a"))


async def _lease(storage: Storage, count: int, prefix: str) -> dict[str, int]:
    holders = [f"{prefix}{number}" for number in range(count)]
    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        leases = [tasks.create_task(storage.lease_machine_id(holder, timedelta(minutes=1))) for holder in holders]
    return {holder: lease.result() for holder, lease in zip(holders, leases, strict=True)}
