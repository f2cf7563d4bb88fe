"""Commits and loads outlive lost connections."""

import asyncio
import time

import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, outcomes, runner
from actorhub.core.clock import SystemClock
from actorhub.core.errors import PersistenceError
from actorhub.storage.ports import StateCommit, Storage, StoredState
from actorhub.storage.postgres import PostgresStorage
from tests.storage.conftest import PostgresWorld
from tests.support.postgres_server import PostgresServer


async def _write(storage: Storage, entity_id: str, versions: int) -> None:
    for version in range(1, versions + 1):
        await storage.commit_state(commit(entity_id, version), "a")


async def test_commits_go_on_while_their_connections_are_ended(postgres_world: PostgresWorld) -> None:
    """Every commit succeeds exactly once, although the server ends its connection again and again."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    async with asyncio.timeout(6 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(_write(storage, f"e{number}", 300)) for number in range(8)]
        while storage.statistics().reconnects < 5 and not all(writer.done() for writer in writers):
            await sql.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'actorhub work' and datname = current_database()"
            )
            await asyncio.sleep(0.05)
    assert storage.statistics().reconnects >= 1
    rows = await sql.fetch("select entity_id, version from entity_state")
    assert {row["entity_id"]: row["version"] for row in rows} == {f"e{number}": 300 for number in range(8)}


async def test_commits_and_loads_wait_out_a_crash_of_the_server(own_postgres: PostgresServer) -> None:
    """What is queued while the server recovers is done once it is back; nothing acknowledged is lost."""
    storage = PostgresStorage(own_postgres.url, clock=SystemClock())
    await storage.open()
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    await own_postgres.stop("immediate")
    queued = [storage.commit_state(commit("ada", 2), "a"), storage.commit_state(commit("eve", 1), "a")]
    load = storage.load_state("orders", "ada")
    await own_postgres.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        for future in queued:
            await future
        assert await load in (StoredState(1, b"v1"), StoredState(2, b"v2"))
        assert await storage.load_state("orders", "eve") == StoredState(1, b"v1")
    await storage.aclose()


@pytest.mark.slow
async def test_a_long_outage_fails_what_waits(own_postgres: PostgresServer) -> None:
    """After about ten seconds commits fail with PersistenceError, and later ones soon."""
    storage = PostgresStorage(own_postgres.url, clock=SystemClock())
    await storage.open()
    await storage.take(SHARDS, runner("a"))
    await own_postgres.stop()
    started = time.monotonic()
    [failure] = [await _failure(storage, commit("ada", 1), 30)]
    assert type(failure) is PersistenceError
    assert 8 < time.monotonic() - started < 16
    started = time.monotonic()
    assert type(await _failure(storage, commit("ada", 1), 5)) is PersistenceError
    started = time.monotonic()
    await storage.aclose()
    assert time.monotonic() - started < 5


async def test_closing_during_an_outage_is_bounded(own_postgres: PostgresServer) -> None:
    """What waits fails, and closing takes seconds."""
    storage = PostgresStorage(own_postgres.url, clock=SystemClock())
    await storage.open()
    await storage.take(SHARDS, runner("a"))
    await own_postgres.stop()
    waiting = storage.commit_state(commit("ada", 1), "a")
    async with asyncio.timeout(5):
        await storage.aclose()
    assert isinstance(waiting.exception(), PersistenceError)


async def test_a_row_that_postgres_cannot_store_fails_alone(postgres_world: PostgresWorld) -> None:
    """Of a large group with two impossible ids, those two fail."""
    storage = await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    made = [commit(f"e{number}", 1) for number in range(100)]
    made[3], made[60] = commit("nul\0", 1), commit("\ud800", 1)
    results = await outcomes(storage, made, "a")
    assert [number for number, result in enumerate(results) if result is not None] == [3, 60]
    assert storage.statistics().failed == 2


async def test_loads_of_large_states_are_split_by_bytes(postgres_world: PostgresWorld) -> None:
    """Twelve states of three megabytes arrive in several answers, each of bounded size."""
    storage = await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    data = bytes(3 << 20)
    made = [commit(f"e{number}", 1, data=data) for number in range(12)]
    assert await outcomes(storage, made, "a") == [None] * 12
    loads = [storage.load_state("orders", each.entity_id) for each in made]
    async with asyncio.timeout(3 * PATIENCE_SECONDS):
        for load in loads:
            assert await load == StoredState(1, data)
    counts = storage.statistics()
    assert (counts.loads, counts.load_batches, counts.waiting) == (12, 4, 0)


async def test_statements_prepared_on_an_empty_table_use_its_index_later(postgres_world: PostgresWorld) -> None:
    """With 100,000 rows that came after the first statement, no commit or load reads the whole table."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    await storage.load_state("orders", "ada")
    await sql.execute("vacuum analyze entity_state")
    await sql.execute(
        "insert into entity_state (version, epoch, updated_at, shard_number, shard_group, entity_type, entity_id, data)"
        " select 1, 1, now(), 0, 'default', 'orders', 'e' || n, 'x' from generate_series(1, 100000) as n"
    )
    await sql.execute("select pg_stat_reset()")
    for first in range(1, 600, 100):
        made = [commit(f"e{number}", 2) for number in range(first, first + 100)]
        assert await outcomes(storage, made, "a") == [None] * 100
        loads = [storage.load_state("orders", each.entity_id) for each in made]
        assert {await load for load in loads} == {StoredState(2, b"v2")}
    await storage.aclose()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await sql.fetchval("select idx_scan from pg_stat_user_tables where relname = 'entity_state'"):
            await asyncio.sleep(0.05)
    assert await sql.fetchval("select seq_scan from pg_stat_user_tables where relname = 'entity_state'") == 0


async def _failure(storage: Storage, made: StateCommit, patience: float) -> BaseException | None:
    future = storage.commit_state(made, "a")
    await asyncio.wait([future], timeout=patience)
    return future.exception()
