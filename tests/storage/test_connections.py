"""A process takes few connections, all of its statements share them, and each of them is served."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from actorhub.conformance.checkpoints import noted, steps
from actorhub.conformance.messages import changed, message, run, stored
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, lock_session, runner
from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.storage.message_ports import RunStart
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.connections import IDLE_LIMIT
from tests.storage.conftest import PostgresWorld
from tests.storage.lossy_link import LossyLink
from tests.storage.waits import held, until_blocked

_OURS = "select count(*) from pg_stat_activity where datname = current_database() and application_name ~ '^actorhub '"


class Watch:
    """The most connections that a database had at once."""

    def __init__(self) -> None:
        self.most = 0


@asynccontextmanager
async def watched(world: PostgresWorld) -> AsyncGenerator[Watch]:
    """Count the connections of storages again and again during the body."""
    sql, watch = await world.sql(), Watch()
    ended = asyncio.Event()

    async def count() -> None:
        while not ended.is_set():
            watch.most = max(watch.most, await sql.fetchval(_OURS))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(count())
        try:
            yield watch
        finally:
            ended.set()


async def _handler(storage: PostgresStorage) -> None:
    made = await storage.messages.begin()
    await made.connection.execute("select pg_sleep(0.002)")
    await made.roll_back()


async def _work(storage: PostgresStorage) -> None:
    await storage.shards()
    await _handler(storage)


@pytest.mark.parametrize("most", [4, 5, 10])
async def test_no_more_connections_than_allowed_whatever_is_asked_at_once(
    postgres_world: PostgresWorld, most: int
) -> None:
    """States, messages, values, steps, lists and handlers' transactions at once are all served, within the limit."""
    storage = await postgres_world.storage(max_connections=most)
    values = storage.key_values
    async with lock_session(storage, "a"), watched(postgres_world) as watch:
        await storage.take(SHARDS, runner("a"))
        await stored(storage.messages, [message(number, f"m{number}") for number in range(1, 41)])
        async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for number in range(1, 41):
                tasks.create_task(_handler(storage))
                tasks.create_task(values.put(f"v{number}", b"1", None))
                tasks.create_task(values.count("v", None))
                tasks.create_task(storage.messages.find(number))
                tasks.create_task(storage.shards())
                step = noted(steps({"fetch": b"1"}, number, entity_id=f"m{number}"))
                tasks.create_task(storage.messages.commit_with_checkpoints(step, "a"))
            for number in range(300):
                await storage.commit_state(commit(f"e{number}", 1), "a")
    assert watch.most <= most


async def test_the_first_request_of_each_kind_takes_one_round_trip(postgres_url: str) -> None:
    """What a runner needs first is prepared before it is ready, so that a Postgres far away costs little."""
    async with LossyLink(postgres_url).served() as link:
        storage = PostgresStorage(link.url, clock=SystemClock())
        await storage.open()
        await storage.take(SHARDS, runner("a"))
        messages = storage.messages
        before = link.requests
        await messages.store(message(1), "a")
        await messages.start_run(RunStart(1, SHARDS[0], 1, 1), "a")
        await messages.commit_run(changed(run(message(1), 1)), "a")
        await messages.deposit(message(2))
        await storage.load_state("orders", "ada")
        await storage.commit_state(commit("ada", 2), "a")
        assert link.requests - before == 6
        await storage.aclose()


async def test_a_storage_at_rest_keeps_few_connections(postgres_world: PostgresWorld) -> None:
    """Three for statements, which makes four with the lock session, and one in a client."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    assert await sql.fetchval(_OURS) == 3
    async with lock_session(storage, "a"):
        assert await sql.fetchval(_OURS) == 4
    client = PostgresStorage(postgres_world.url, clock=SystemClock(), client=True)
    await client.open()
    assert await sql.fetchval(_OURS) == 4
    await client.aclose()


@pytest.mark.slow
async def test_connections_of_a_busy_time_are_ended_after_it(postgres_world: PostgresWorld) -> None:
    """Those of statements, and those of handlers."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    async with watched(postgres_world) as watch, asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(_handler(storage))
            tasks.create_task(storage.key_values.put(f"v{number}", b"1", None))
            tasks.create_task(storage.shards())
    assert watch.most > 3
    async with asyncio.timeout(IDLE_LIMIT + PATIENCE_SECONDS):
        while await sql.fetchval(_OURS) > 3:
            await asyncio.sleep(0.1)


async def test_handlers_that_sit_in_transactions_stop_no_statement(postgres_world: PostgresWorld) -> None:
    """All of them wait for a commit, a step and a value of others while they have every connection they can get."""
    storage = await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(number) for number in range(1, 7)])
    inside = asyncio.Barrier(6)

    async def handler(number: int) -> None:
        made = await storage.messages.begin()
        await inside.wait()
        await storage.commit_state(commit(f"other{number}", 1), "a")
        await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"1"}, number)), "a")
        await storage.key_values.put(f"v{number}", b"1", None)
        assert await storage.key_values.count("v", None) >= 1
        await made.roll_back()

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(1, 7):
            tasks.create_task(handler(number))


async def test_statements_that_take_long_leave_room_for_others(postgres_world: PostgresWorld) -> None:
    """While lists and counts hang on a lock, and handlers sit in their transactions, states are committed."""
    storage = await postgres_world.storage(max_connections=4)
    await storage.take(SHARDS, runner("a"))
    made = await storage.messages.begin()
    async with asyncio.TaskGroup() as tasks:
        async with held(postgres_world, "lock table key_value in access exclusive mode") as observer:
            tasks.create_task(storage.key_values.count("v", None))
            await until_blocked(observer)
            tasks.create_task(storage.messages.find(1))
            async with asyncio.timeout(1.5):
                await storage.commit_state(commit("ada", 1), "a")
        await made.roll_back()


async def test_a_transaction_gets_a_connection_from_busy_statements(postgres_world: PostgresWorld) -> None:
    """Statements that have taken every connection give way, one by one."""
    storage = await postgres_world.storage()
    ended = asyncio.Event()

    async def write(number: int) -> None:
        while not ended.is_set():
            await storage.key_values.put(f"{number}", b"1", None)
            await storage.shards()

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(write(number))
        try:
            begun = [await storage.messages.begin() for _ in range(6)]
        finally:
            ended.set()
        for made in begun:
            await made.roll_back()


async def test_whoever_stops_waiting_for_a_connection_takes_none(postgres_world: PostgresWorld) -> None:
    """Cancelled requests leave every connection to others."""
    storage = await postgres_world.storage(max_connections=4)
    for _ in range(20):
        waiting = [asyncio.Task(_work(storage)) for _ in range(6)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await storage.shards()
        await _handler(storage)
        await storage.key_values.count("v", None)


@pytest.fixture
async def app(postgres_world: PostgresWorld) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A role `app` that owns its database, seen by somebody else."""
    sql = await postgres_world.sql()
    name = await sql.fetchval("select current_database()")
    await sql.execute(f'create role app login; grant all on database "{name}" to app')
    postgres_world.url = postgres_world.url.replace("postgres@", "app@")
    yield sql
    await sql.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'app'")
    await sql.execute("drop owned by app cascade; drop role app")
    await sql.execute(f'alter database "{name}" connection limit -1')


async def test_a_limit_below_what_is_needed_is_told_at_the_start(
    postgres_world: PostgresWorld, app: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """The error names the limit that is met, and what to do."""
    await app.execute("alter role app connection limit 2")
    with pytest.raises(ConfigurationError) as caught:
        await postgres_world.storage()
    for text in ('role "app"', "needed: 3 connections", "alter role", "--max-connections"):
        assert text in str(caught.value)
    await app.execute("alter role app connection limit -1")
    name = await app.fetchval("select current_database()")
    await app.execute(f'alter database "{name}" connection limit 3')
    with pytest.raises(ConfigurationError, match="alter database"):
        await postgres_world.storage()


@pytest.mark.parametrize("limit", [4, 5])
async def test_a_full_server_is_lived_with(
    postgres_world: PostgresWorld,
    app: "asyncpg.Connection[asyncpg.Record]",
    caplog: pytest.LogCaptureFixture,
    limit: int,
) -> None:
    """A role that may have fewer connections than the process would take serves everything with those, and says so."""
    await app.execute(f"alter role app connection limit {limit}")
    storage = await postgres_world.storage()
    with caplog.at_level(logging.WARNING):
        async with lock_session(storage, "a"), asyncio.timeout(3 * PATIENCE_SECONDS):
            await storage.take(SHARDS, runner("a"))
            async with asyncio.TaskGroup() as tasks:
                for number in range(20):
                    tasks.create_task(_handler(storage))
                    tasks.create_task(storage.key_values.put(f"v{number}", b"1", None))
                    tasks.create_task(storage.key_values.count("v", None))
                    tasks.create_task(storage.shards())
    assert "raise the limit of this role" in caplog.text


async def test_a_lock_session_finds_room_on_a_full_server(
    postgres_world: PostgresWorld, app: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """A runner that lost its session is not kept out by its own idle connections."""
    storage = await postgres_world.storage()
    await app.execute("alter role app connection limit 3")
    with pytest.raises(PersistenceError, match="too many connections"):
        await storage.open_lock_session("a")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await app.fetchval(_OURS) > 2:
            await asyncio.sleep(0.01)
    async with lock_session(storage, "a"):
        await storage.shards()


def test_fewer_connections_than_a_runner_needs_are_refused(postgres_url: str) -> None:
    """The error says how many it needs."""
    with pytest.raises(ConfigurationError, match="4 are needed"):
        PostgresStorage(postgres_url, clock=SystemClock(), max_connections=3)
