"""Lock sessions that are rows keep the promises of those that Postgres has, also through the real PgBouncer."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta

import pytest

from actorhub.conformance.slots import SliceSuite, SlotSuite
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, OwnershipSuite, lock_session, locked, runner
from actorhub.conformance.takeovers import TakeoverSuite
from actorhub.core.clock import SystemClock
from actorhub.core.config.settings import Locks
from actorhub.core.errors import ConfigurationError
from actorhub.storage.ports import LockSession, SessionLost
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.dedicated import application_name
from actorhub.storage.postgres.leases import SILENCE_LIMIT
from tests.faults import mutants
from tests.storage.conftest import PostgresWorld
from tests.support.leases import VALUES, agree_on_leases
from tests.support.pgbouncer import MISSING, PROGRAM, pgbouncer

_LONG = timedelta(seconds=10)
_TRY = (
    "select lock_shards(token, array_fill('default'::text, '{5}'), '{0,1,2,3,4}', $1) "
    "from lock_session where incarnation = 'b'"
)
"""Has the session of b try all locks."""


class LeaseWorld(PostgresWorld):
    """Storages of a cluster that has agreed on leases."""

    def __init__(self, url: str, way: str) -> None:
        super().__init__(url)
        self._way = way

    def _new(self, namespace: str, *, fence: bool, max_connections: int) -> PostgresStorage:
        return PostgresStorage(
            self._way,
            namespace=namespace,
            clock=SystemClock(),
            fence=fence,
            max_connections=max_connections,
            locks="lease",
        )

    async def storage(
        self, *, namespace: str = "actorhub", fence: bool = True, max_connections: int = 10
    ) -> PostgresStorage:
        made = await super().storage(namespace=namespace, fence=fence, max_connections=max_connections)
        sql = await self.sql(namespace)
        await sql.execute("insert into cluster_value values ('locks', $1) on conflict do nothing", '"lease"')
        return made

    async def move_beat(self, incarnation: str, by: timedelta) -> None:
        """Have a session be heard of that much later than it was, or earlier if `by` is negative."""
        sql = await self.sql()
        await sql.execute(
            "update lock_session set renewed_at = renewed_at + $2 where incarnation = $1", incarnation, by
        )


@pytest.fixture(params=["direct", "pooled"])
def way(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[str]:
    """The URL of the database, directly and through a pooler in transaction mode."""
    if request.param == "direct":
        yield postgres_url
    elif PROGRAM is None:
        pytest.skip(MISSING)
    else:
        with pgbouncer(postgres_url, "transaction", default_pool_size=40, max_client_conn=400) as url:
            yield url


@pytest.fixture
async def world(postgres_url: str, way: str) -> AsyncIterator[LeaseWorld]:
    """The suites' world."""
    made = LeaseWorld(postgres_url, way)
    yield made
    await made.aclose()


class TestLeaseOwnership(OwnershipSuite):
    """Ownership with leases."""


class TestLeaseSlots(SlotSuite, SliceSuite):
    """Slots with leases."""


class TestLeaseTakeovers(TakeoverSuite):
    """Takeovers with leases."""


async def _given_away_is_lost(world: LeaseWorld) -> None:
    storage, peer = await world.storage(), await world.storage()
    async with lock_session(storage, "a") as silent, lock_session(peer, "b") as alive:
        await silent.heartbeat(runner("a"))
        await silent.try_lock(SHARDS)
        await world.move_beat("a", -_LONG)
        assert await alive.try_lock(SHARDS) == SHARDS
        with pytest.raises(SessionLost, match="another runner has ended it"):
            await silent.heartbeat(runner("a"))
        assert silent.lost
        assert await alive.try_lock(SHARDS) == SHARDS


async def _one_of_two_gets_a_lock(world: LeaseWorld) -> None:
    storages = [await world.storage() for _ in range(3)]
    dead, *living = [await storage.open_lock_session(name) for storage, name in zip(storages, "abc", strict=True)]
    for number in range(10):
        if number % 2:
            await dead.aclose()
            dead = await storages[0].open_lock_session("a")
            await locked(dead, SHARDS)
            await world.move_beat("a", -_LONG)
        async with asyncio.TaskGroup() as tasks:
            tries = [tasks.create_task(session.try_lock(SHARDS)) for session in living]
        got = [shard for each in tries for shard in each.result()]
        assert len(got) == len(set(got))
        held = [shard for session in living for shard in await session.try_lock(SHARDS)]
        assert sorted(held) == SHARDS
        for session in living:
            await session.unlock(SHARDS)
    for session in (dead, *living):
        await session.aclose()


async def _a_try_under_way_is_respected(world: LeaseWorld) -> None:
    storage, sql = await world.storage(), await world.sql()
    async with lock_session(storage, "b"), lock_session(storage, "c") as other:
        await other.try_lock(SHARDS)
        await other.unlock(SHARDS)
        async with asyncio.TaskGroup() as tasks, sql.transaction():
            got = await sql.fetch(_TRY, SILENCE_LIMIT)
            trying = tasks.create_task(other.try_lock(SHARDS))
            await asyncio.wait([trying], timeout=0.3)
        assert (len(got), trying.result()) == (len(SHARDS), [])


async def test_a_silent_session_that_gave_a_lock_away_never_renews(world: LeaseWorld) -> None:
    """It is ended in the step that gives its locks to another."""
    await _given_away_is_lost(world)


async def test_of_two_that_try_at_once_one_gets_each_lock(world: LeaseWorld) -> None:
    """Free locks, and those of a silent session; none is left over."""
    await _one_of_two_gets_a_lock(world)


async def test_who_tries_what_another_is_just_getting_gets_nothing(world: LeaseWorld) -> None:
    """Whether the other one's try has ended or not."""
    await _a_try_under_way_is_respected(world)


@pytest.mark.parametrize("way", ["direct"], indirect=True)
@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        ("a lease that was given away can be renewed", _given_away_is_lost),
        ("two get one lock row", _a_try_under_way_is_respected),
    ],
)
async def test_broken_leases_are_noticed(
    world: LeaseWorld, mutant: str, check: Callable[[LeaseWorld], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that defect in the schema, the tests above fail."""
    mutants.apply(mutant, monkeypatch.setattr)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check(world)


async def test_a_session_is_silent_when_its_lease_is_over_and_not_before(world: LeaseWorld) -> None:
    """A holder that says nothing loses its locks then, to one that heartbeats and keeps its own."""
    storage, peer = await world.storage(), await world.storage()
    async with lock_session(storage, "a") as silent, lock_session(peer, "b") as alive:
        await silent.try_lock(SHARDS)
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await alive.try_lock(SHARDS):
                await alive.heartbeat(runner("b"))
        took = time.monotonic() - began
        assert SILENCE_LIMIT.total_seconds() - 0.1 < took < SILENCE_LIMIT.total_seconds() + 1
        with pytest.raises(SessionLost):
            await silent.unlock(SHARDS)


async def test_every_operation_of_an_ended_session_loses_it(world: LeaseWorld) -> None:
    """Also those that would change nothing."""
    storage = await world.storage()
    operations: list[Callable[[LockSession], Awaitable[object]]] = [
        lambda session: session.heartbeat(runner("a")),
        lambda session: session.try_lock([]),
        lambda session: session.unlock([]),
    ]
    for operation in operations:
        session = await storage.open_lock_session("a")
        assert await storage.terminate_sessions("a") == 1
        with pytest.raises(SessionLost):
            await operation(session)
        assert session.lost
        await session.aclose()


async def test_a_new_session_ends_the_former_ones_of_its_incarnation(world: LeaseWorld) -> None:
    """Their locks are free, and they are lost."""
    storage = await world.storage()
    former = await storage.open_lock_session("a")
    await former.try_lock(SHARDS)
    async with lock_session(storage, "a"), lock_session(storage, "b") as peer:
        assert await peer.try_lock(SHARDS) == SHARDS
        with pytest.raises(SessionLost):
            await former.heartbeat(runner("a"))
    await former.aclose()


async def test_a_session_that_is_just_being_renewed_is_kept(world: LeaseWorld) -> None:
    """Who tries its locks meanwhile does not get them, and does not wait either."""
    storage, sql = await world.storage(), await world.sql()
    async with lock_session(storage, "a") as late, lock_session(storage, "b") as peer:
        await late.try_lock(SHARDS)
        await world.move_beat("a", -_LONG)
        async with sql.transaction():
            await sql.fetchval("select keep_session(token) from lock_session where incarnation = 'a'")
            began = time.monotonic()
            assert await peer.try_lock(SHARDS) == []
            assert time.monotonic() - began < 0.5
        await late.heartbeat(runner("a"))
        assert await peer.try_lock(SHARDS) == []


async def test_a_transaction_that_somebody_left_open_loses_nobody_a_session(world: LeaseWorld) -> None:
    """Whoever stands still while it tries locks holds up neither those who have them nor those who try others."""
    storage, sql = await world.storage(), await world.sql()
    async with lock_session(storage, "a") as one, lock_session(storage, "b"), lock_session(storage, "c") as other:
        await one.try_lock(SHARDS)
        await one.unlock(SHARDS[2:])
        await other.try_lock(SHARDS[2:3])
        async with sql.transaction():
            await sql.fetch(_TRY, SILENCE_LIMIT)
            began = time.monotonic()
            await one.unlock(SHARDS[:2])
            assert await other.try_lock(SHARDS) == SHARDS[:3]
            assert time.monotonic() - began < 0.5


async def test_a_server_whose_clock_is_set_back_keeps_no_dead_session(world: LeaseWorld) -> None:
    """A session that was heard of in the future is as silent as one that was heard of long ago."""
    storage = await world.storage()
    async with lock_session(storage, "a") as dead, lock_session(storage, "b") as alive:
        await dead.try_lock(SHARDS)
        await world.move_beat("a", _LONG)
        assert await alive.try_lock(SHARDS) == SHARDS


async def test_what_nobody_wants_of_a_dead_runner_is_removed(world: LeaseWorld) -> None:
    """Sessions of runners that died before they had a lock do not pile up."""
    storage, sql = await world.storage(), await world.sql()
    for name in ("a", "b"):
        (await storage.open_lock_session(name))._connection.terminate()
        await world.move_beat(name, timedelta(minutes=-2))
    async with lock_session(storage, "c"):
        assert [row[0] for row in await sql.fetch("select incarnation from lock_session")] == ["c"]


async def test_closing_a_session_waits_for_the_operation_under_way(world: LeaseWorld) -> None:
    """Else its locks would stay until it is found silent."""
    storage = await world.storage()
    session = await storage.open_lock_session("a")
    await session.try_lock(SHARDS)
    async with asyncio.TaskGroup() as tasks:
        beat = tasks.create_task(_loses_a_heartbeat(session))
        await asyncio.sleep(0)
        await session.aclose()
    assert beat.done()
    async with lock_session(storage, "b") as other:
        assert await other.try_lock(SHARDS) == SHARDS


async def _loses_a_heartbeat(session: LockSession) -> None:
    with pytest.raises(SessionLost):
        await session.heartbeat(runner("a"))


async def test_a_lost_connection_loses_the_session(postgres_url: str) -> None:
    """It is never made again: the runner would not know what others did meanwhile."""
    world = LeaseWorld(postgres_url, postgres_url)
    storage, sql = await world.storage(), await world.sql()
    session = await storage.open_lock_session("a")
    ended = "select count(pg_terminate_backend(pid, 1000)) from pg_stat_activity where application_name = $1"
    assert await sql.fetchval(ended, application_name("a")) == 1
    with pytest.raises(SessionLost):
        await session.heartbeat(runner("a"))
    assert session.lost
    await session.aclose()
    await world.aclose()


async def _storage(url: str, locks: Locks) -> PostgresStorage:
    storage = PostgresStorage(url, clock=SystemClock(), locks=locks)
    await storage.open()
    return storage


@pytest.mark.parametrize(("agreed", "other"), [("session", "lease"), ("lease", "session")])
async def test_runners_of_both_kinds_are_never_in_one_cluster(postgres_url: str, agreed: Locks, other: Locks) -> None:
    """One that would disagrees is told both values and what to do; one that does not ask registers nevertheless not."""
    here, there = await _storage(postgres_url, agreed), await _storage(postgres_url, other)
    await here.agree(VALUES)
    refused = f'locks is "{agreed}" in .* this runner has "{other}".*--locks {agreed}'
    async with lock_session(here, "a") as session, asyncio.TaskGroup() as tasks:
        await session.heartbeat(runner("a"))
        beating = tasks.create_task(_beat_on(session))
        with pytest.raises(ConfigurationError, match=refused):
            await there.agree(VALUES)
        await here.agree(VALUES)
        async with lock_session(there, "b") as stranger:
            with pytest.raises(SessionLost, match=f"start it with --locks {agreed}"):
                await stranger.heartbeat(runner("b"))
        assert [live.info.runner.incarnation for live in await here.runners()] == ["a"]
        beating.cancel()
    await _close(here, there)


async def test_the_kind_of_locks_may_change_while_no_runner_is_alive(postgres_url: str) -> None:
    """Those that were killed just now are waited for, and one that thaws later is not let in."""
    former, later = await _storage(postgres_url, "lease"), await _storage(postgres_url, "session")
    await former.agree(VALUES)
    async with lock_session(former, "a") as frozen:
        await frozen.heartbeat(runner("a"))
        began = time.monotonic()
        await later.agree(VALUES)
        assert 2.5 < time.monotonic() - began < 4
        async with lock_session(later, "b") as session:
            await session.heartbeat(runner("b"))
        with pytest.raises(SessionLost):
            await frozen.heartbeat(runner("a"))
    await _close(former, later)


async def test_a_cluster_without_a_stored_kind_holds_its_shards_by_sessions(postgres_url: str) -> None:
    """As those of the release before do, whose runners may be alive."""
    storage, other = await _storage(postgres_url, "session"), await _storage(postgres_url, "lease")
    async with lock_session(storage, "a") as session, lock_session(other, "b") as stranger:
        await session.heartbeat(runner("a"))
        with pytest.raises(SessionLost, match="--locks session"):
            await stranger.heartbeat(runner("b"))
    await _close(storage, other)


async def test_leases_need_no_room_in_the_lock_table(postgres_url: str) -> None:
    """A cluster may have more shards than the server has locks."""
    many = type(VALUES)(shards_per_group=1_000_000, hash_version="h1")
    sessions, leases = await _storage(postgres_url, "session"), await _storage(postgres_url, "lease")
    with pytest.raises(ConfigurationError, match="max_locks_per_transaction"):
        await sessions.agree(many)
    await leases.agree(many)
    await _close(sessions, leases)


async def test_a_cluster_agrees_once(postgres_url: str) -> None:
    """Agreeing again on the same changes nothing, and ends no session."""
    await agree_on_leases(postgres_url)
    storage = await _storage(postgres_url, "lease")
    async with lock_session(storage, "a") as session:
        await storage.agree(VALUES)
        await session.heartbeat(runner("a"))
    await _close(storage)


async def _beat_on(session: LockSession) -> None:
    while True:
        await session.heartbeat(runner("a"))
        await asyncio.sleep(0.2)


async def _close(*storages: PostgresStorage) -> None:
    for storage in storages:
        await storage.aclose()
