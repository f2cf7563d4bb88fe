"""The store keeps its promises behind the real PgBouncer, in both modes that can serve."""

import logging
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from actorhub.conformance.checkpoints import CheckpointWriteSuite
from actorhub.conformance.message_care import CareSuite, InspectionSuite
from actorhub.conformance.message_runs import CommitSuite, FailureSuite, StartSuite
from actorhub.conformance.messages import LoadSuite, StoreSuite, message, stored
from actorhub.conformance.storage import SHARDS, OwnershipSuite, StateSuite, lock_session, runner
from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import PostgresStorage
from tests.storage.conftest import PostgresWorld
from tests.support.pgbouncer import MISSING, PROGRAM, Mode, pgbouncer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)


class PooledWorld(PostgresWorld):
    """Storages that reach their database through a pooler."""

    def __init__(self, url: str, pooled: str, mode: Mode) -> None:
        super().__init__(url)
        self.pooled = pooled
        self.lock_url = url if mode == "transaction" else None

    def _new(self, namespace: str, *, fence: bool, max_connections: int) -> PostgresStorage:
        return PostgresStorage(
            self.pooled,
            namespace=namespace,
            clock=SystemClock(),
            fence=fence,
            max_connections=max_connections,
            lock_url=self.lock_url,
        )


@pytest.fixture(params=["session", "transaction"])
def mode(request: pytest.FixtureRequest) -> Mode:
    """Both modes."""
    found: Mode = request.param
    return found


@pytest.fixture
def pooled(postgres_url: str, mode: Mode) -> Iterator[str]:
    """The URL through the pooler."""
    with pgbouncer(postgres_url, mode, default_pool_size=60, max_client_conn=400) as url:
        yield url


@pytest.fixture
async def world(postgres_url: str, pooled: str, mode: Mode) -> AsyncIterator[PooledWorld]:
    """The suites' world."""
    made = PooledWorld(postgres_url, pooled, mode)
    yield made
    await made.aclose()


class TestPooledOwnership(OwnershipSuite):
    """Ownership."""


class TestPooledState(StateSuite):
    """States."""


class TestPooledStore(StoreSuite):
    """Storing messages."""


class TestPooledLoad(LoadSuite):
    """Loading messages."""


class TestPooledStart(StartSuite):
    """Starting runs."""


class TestPooledCommit(CommitSuite):
    """Committing runs."""


class TestPooledFailure(FailureSuite):
    """Failed runs."""


class TestPooledInspection(InspectionSuite):
    """Inspecting messages."""


class TestPooledCare(CareSuite):
    """Cancelling, retrying, purging."""


class TestPooledCheckpoints(CheckpointWriteSuite):
    """Steps."""


async def test_the_mode_is_found_and_told(
    pooled: str, postgres_url: str, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which mode it is; in transaction mode, what a runner needs besides."""
    caplog.set_level(logging.INFO)
    storage = PostgresStorage(pooled, clock=SystemClock(), lock_url=postgres_url)
    await storage.open()
    await storage.aclose()
    assert f"is reached through a pooler in {mode} mode" in caplog.text
    assert ("--lock-database" in caplog.text) == (mode == "transaction")


async def test_a_client_needs_no_lock_session_behind_a_pooler(pooled: str) -> None:
    """It stores messages and finds runners through either mode."""
    client = PostgresStorage(pooled, clock=SystemClock(), client=True)
    await client.open()
    await client.messages.deposit(message(1))
    assert await client.runners() == []
    await client.aclose()


async def test_a_handlers_transaction_has_its_roles_search_path_and_its_own_settings(world: PooledWorld) -> None:
    """What the store sets for itself is not seen by the user's SQL, and what the user sets is not seen by the next."""
    storage, sql = await world.storage(), await world.sql("public")
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(1)])
    await sql.execute("create table invoice (id text)")
    for number in range(3):
        made = await storage.messages.begin()
        assert await made.connection.fetchval("select current_schema()") == "public"
        assert await made.connection.fetchval("show statement_timeout") == "10s"
        await made.connection.execute("set local statement_timeout = 1234")
        await made.connection.execute("insert into invoice values ($1)", str(number))
        await made.roll_back()
    assert await sql.fetchval("select count(*) from invoice") == 0


@pytest.mark.parametrize("mode", ["transaction"])
async def test_what_a_storage_sets_does_not_leak_to_others_of_a_pool(world: PooledWorld, mode: Mode) -> None:
    """The server sessions that a pooler passes around are as they were made."""
    storage = await world.storage()
    async with lock_session(storage, "a"):
        await storage.take(SHARDS, runner("a"))
        await stored(storage.messages, [message(1)])
        sql = await world.sql_at(world.pooled)
        for _ in range(3):
            async with sql.transaction():
                assert await sql.fetchval("show search_path") == '"$user", public'
                assert await sql.fetchval("show statement_timeout") == "0"
                assert await sql.fetchval("select count(*) from pg_prepared_statements where from_sql = false") <= 1


@pytest.mark.parametrize("mode", ["transaction"])
async def test_a_runner_behind_transaction_mode_needs_another_way_to_its_locks(pooled: str, mode: Mode) -> None:
    """Without one, and with another pooled one, it is told so, and of both remedies."""
    storage = PostgresStorage(pooled, clock=SystemClock())
    await storage.open()
    with pytest.raises(ConfigurationError, match=r"\(--lock-database URL\), or start every runner with --locks lease"):
        await storage.open_lock_session("a")
    await storage.aclose()
    with pytest.raises(ConfigurationError, match=r"--lock-database leads to .* through a pooler"):
        await PostgresStorage(pooled, clock=SystemClock(), lock_url=pooled).open()


async def test_a_way_to_another_database_is_not_taken_for_locks(postgres_url: str) -> None:
    """Locks of one database say nothing about the shards of another."""
    other = urlsplit(postgres_url)._replace(path="/postgres").geturl()
    storage = PostgresStorage(postgres_url, clock=SystemClock(), lock_url=other)
    await storage.open()
    with pytest.raises(ConfigurationError, match="both must name one database"):
        await storage.open_lock_session("a")
    await storage.aclose()


async def test_a_pool_of_single_statements_is_refused(postgres_url: str) -> None:
    """It can commit nothing together, and the error names the modes that can."""
    with pgbouncer(postgres_url, "statement") as url, pytest.raises(ConfigurationError, match="to transaction or"):
        await PostgresStorage(url, clock=SystemClock()).open()
