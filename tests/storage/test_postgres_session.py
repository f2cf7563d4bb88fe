"""The lock session is lost once, for good, in bounded time."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import msgspec
import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, lock_session, locked, runner, with_slot
from actorhub.core.address import shard_lock_key
from actorhub.core.clock import SystemClock
from actorhub.core.errors import PersistenceError
from actorhub.storage.ports import SessionLost
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.queries import queries
from actorhub.storage.postgres.session import PostgresLockSession
from tests.storage.conftest import PostgresWorld
from tests.support.postgres_server import PostgresServer

_KEYS = "select (classid::bigint << 32) | objid::bigint from pg_locks where locktype = 'advisory'"


async def _session(storage: PostgresStorage) -> PostgresLockSession:
    session = await storage.open_lock_session("a")
    assert isinstance(session, PostgresLockSession)
    return session


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def test_locks_are_on_the_server_under_their_keys_and_gone_after_unlock(postgres_world: PostgresWorld) -> None:
    """What Postgres shows is exactly what the session holds."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    async with lock_session(storage, "a") as session:
        await session.try_lock(SHARDS)
        await session.try_lock(SHARDS)
        held = {row[0] for row in await sql.fetch(_KEYS)}
        assert held == {shard_lock_key("actorhub", shard) for shard in SHARDS}
        await session.unlock(SHARDS[:3])
        held = {row[0] for row in await sql.fetch(_KEYS)}
        assert held == {shard_lock_key("actorhub", shard) for shard in SHARDS[3:]}


async def test_the_server_ends_a_silent_session(postgres_world: PostgresWorld) -> None:
    """A holder that says nothing loses its locks after four seconds, one that heartbeats keeps its session."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    async with lock_session(storage, "a") as silent, lock_session(peer, "b") as alive:
        await silent.try_lock(SHARDS)
        started = time.monotonic()
        await locked(alive, SHARDS)
        assert 3 < time.monotonic() - started < 6
        await _until(lambda: silent.lost)
        assert not alive.lost
        with pytest.raises(SessionLost):
            await silent.heartbeat(runner("a"))


async def test_a_session_ended_on_the_server_is_seen_as_lost(postgres_world: PostgresWorld) -> None:
    """Without any operation, lost turns true."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    session = await _session(storage)
    await sql.execute("select pg_terminate_backend($1)", session.pid)
    await _until(lambda: session.lost)
    with pytest.raises(SessionLost):
        await session.try_lock(SHARDS)
    await session.aclose()


async def test_an_operation_on_a_wedged_server_process_is_given_up(postgres_world: PostgresWorld) -> None:
    """A server process that does not answer costs two seconds; what waited for its turn fails as well."""
    storage = await postgres_world.storage()
    session = await _session(storage)
    os.kill(session.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(_loses(session.heartbeat(runner("a"))))
        assert time.monotonic() - started < 3
        assert session.lost
        await session.aclose()
        assert time.monotonic() - started < 3
    finally:
        os.kill(session.pid, signal.SIGCONT)


async def test_closing_a_wedged_session_is_bounded(postgres_world: PostgresWorld) -> None:
    """Ending a session whose server process hangs takes seconds and raises nothing."""
    storage = await postgres_world.storage()
    session = await _session(storage)
    os.kill(session.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(4):
            await session.aclose()
    finally:
        os.kill(session.pid, signal.SIGCONT)


async def test_a_cancelled_operation_loses_the_session_and_its_locks(postgres_world: PostgresWorld) -> None:
    """Nobody knows what a cancelled operation locked, so everything is let go."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    session = await _session(storage)
    await session.try_lock(SHARDS)
    os.kill(session.pid, signal.SIGSTOP)
    async with asyncio.TaskGroup() as tasks:
        operation = tasks.create_task(session.unlock(SHARDS))
        await asyncio.sleep(0)
        operation.cancel()
    os.kill(session.pid, signal.SIGCONT)
    assert session.lost
    async with lock_session(peer, "b") as other:
        await locked(other, SHARDS)


async def test_a_restart_of_the_server_loses_the_session_only(own_postgres: PostgresServer) -> None:
    """Storages go on after a restart, lock sessions do not, and a new one gets the locks."""
    storage = PostgresStorage(own_postgres.url, clock=SystemClock())
    await storage.open()
    session = await storage.open_lock_session("a")
    await session.try_lock(SHARDS)
    await own_postgres.stop("immediate")
    await _until(lambda: session.lost)
    with pytest.raises(PersistenceError):
        await storage.open_lock_session("b")
    await own_postgres.start()
    async with lock_session(storage, "b") as fresh:
        await locked(fresh, SHARDS)
        assert session.lost
    await storage.aclose()


async def test_the_broken_row_of_another_runner_is_skipped(
    postgres_world: PostgresWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Nonsense in a row costs a warning, neither the heartbeat nor the healthy rows."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    async with lock_session(storage, "a") as session:
        for incarnation, change in (("broken", "groups = array[null]::text[]"), ("mad", "weight = 'nan'")):
            await session.heartbeat(runner(incarnation))
            await sql.execute(f"update runner set {change} where incarnation = $1", incarnation)
        assert [live.info for live in await session.heartbeat(runner("a"))] == [with_slot(runner("a"), 0)]
    assert [live.info for live in await storage.runners()] == [with_slot(runner("a"), 0)]
    assert "broken" in caplog.text


async def test_a_thousand_locks_take_two_round_trips_worth_of_time(postgres_world: PostgresWorld) -> None:
    """Locks are taken and freed in one statement each, for more shards than a select has columns."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    many = [type(SHARDS[0])("default", number) for number in range(2000)]
    async with lock_session(storage, "a") as one, lock_session(peer, "b") as two:
        assert await one.try_lock(many) == many
        assert await two.try_lock(many) == []
        await one.unlock(many)
        assert await two.try_lock(many) == many


async def _loses(operation: object) -> None:
    with pytest.raises(SessionLost):
        await operation  # type: ignore[misc]


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_a_heartbeat_visits_no_more_rows_in_a_large_cluster(postgres_url: str, plans: str) -> None:
    """What it costs the server is the same at 3 registered runners and at 300."""
    storage = PostgresStorage(postgres_url, clock=SystemClock())
    await storage.open()
    await storage.aclose()
    visited: dict[int, float] = {}
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"set search_path to actorhub, pg_catalog; set plan_cache_mode = {plans}")
    for count in (3, 300):
        await connection.execute(
            "insert into runner (incarnation, address, weight, groups, entity_types, draining, version, slot, "
            "backend_pid) select 'r' || n, 'h:' || n, 1, '{default}', '{orders}', false, '', n, 1 "
            f"from generate_series(1, {count}) as n on conflict do nothing"
        )
        await connection.execute("vacuum analyze runner")
        own = ("r2", "h:2", 1.0, ["default"], ["orders"], False, "")
        explained = await connection.fetchval(
            f"explain (analyze, format json) {queries()['heartbeat']}", *own, "r2", 16, ["r1"], None
        )
        visited[count] = _visited(msgspec.json.decode(explained)[0]["Plan"])
    await connection.close()
    assert visited[300] <= visited[3] + 2 * 16


def _visited(plan: dict[str, Any]) -> float:
    """Return how many rows the scans of a plan have looked at."""
    here = 0.0
    if plan["Node Type"].endswith("Scan"):
        here = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return here + sum(map(_visited, plan.get("Plans", ())))
