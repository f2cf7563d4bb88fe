"""What is wrong with the server or the URL is said at start, with the remedy."""

import asyncio
import logging
import time

import asyncpg
import pytest

from actorhub.conformance.storage import SHARDS, commit, lock_session, runner
from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.storage.postgres import PostgresStorage, migrate
from actorhub.storage.postgres.connection import Database
from actorhub.storage.postgres.dedicated import application_name
from actorhub.storage.postgres.errors import Cause, cause, refused_connection
from actorhub.storage.postgres.server import ServerFacts, check_lock_table, check_server
from actorhub.storage.postgres.session import SessionProbe, pooler_symptom
from tests.storage.conftest import PostgresWorld
from tests.storage.pooler import transaction_pooler
from tests.support.postgres_server import PostgresServer

GOOD = ServerFacts(
    version="16.1",
    version_number=160001,
    fsync=True,
    synchronous_commit="on",
    full_page_writes=True,
    encoding="UTF8",
    standby=False,
    lock_slots=6400,
)


async def _refusal(url: str) -> str:
    started = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        await PostgresStorage(url, clock=SystemClock()).open()
    assert time.monotonic() - started < 10
    return str(caught.value)


async def test_an_unreachable_server_is_named_without_the_password() -> None:
    """Host, port and database are named, the password is not."""
    text = await _refusal("postgresql://ada:sesame@127.0.0.1:1/shop")
    assert "127.0.0.1:1/shop" in text
    assert "sesame" not in text
    assert "check that the server runs" in text


async def test_a_server_that_never_answers_is_given_up(unused_tcp_port: int) -> None:
    """A port that accepts and stays silent costs seconds, not minutes."""
    done = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", unused_tcp_port)
    text = await _refusal(f"postgresql://ada:sesame@127.0.0.1:{unused_tcp_port}/shop?sslmode=disable")
    assert "no answer in time" in text
    assert "sesame" not in text
    done.set()
    server.close()


async def test_a_missing_database_and_a_missing_socket_are_named(postgres_server: PostgresServer) -> None:
    """Each gets its own remedy."""
    text = await _refusal(postgres_server.url.replace("/postgres?", "/nowhere?"))
    assert "nowhere" in text
    assert "create the database" in text
    assert "/nonexistent" in await _refusal("postgresql://postgres@/postgres?host=/nonexistent")


@pytest.mark.parametrize(
    "url", ["", "mysql://ada:sesame@h/d", "postgresql://ada:sesame@[::1/d", "postgresql://h:port/d"]
)
async def test_an_unreadable_url_is_refused(url: str) -> None:
    """What is not a Postgres URL is called so, and the password stays secret."""
    assert "sesame" not in await _refusal(url)


@pytest.mark.parametrize("namespace", ["", "Shop", "a-b", "x" * 32, "pg_shop", "information_schema", 'a"; drop'])
def test_a_namespace_that_is_no_identifier_is_refused(namespace: str) -> None:
    """Nothing but a plain name reaches SQL."""
    with pytest.raises(ConfigurationError, match="namespace"):
        PostgresStorage("postgresql://h/d", namespace=namespace, clock=SystemClock())


def test_a_wrong_password_is_explained() -> None:
    """The remedy names user, password and pg_hba.conf."""
    text = str(refused_connection(asyncpg.InvalidPasswordError("password authentication failed"), "h/d"))
    assert "h/d" in text
    assert "check user and password" in text


def test_a_place_never_shows_who_connects() -> None:
    """User and password are left out, whatever the URL looks like."""
    for url, place in (
        ("postgresql://ada:sesame@db.example:5433/shop?sslmode=require", "db.example:5433/shop"),
        ("postgresql://ada@/shop?host=/run/pg", "/run/pg/shop"),
        ("postgresql://ada:sesame@[::1/d", "(unreadable URL)"),
        ("postgresql://ada:ses@me@h/d", "(unreadable URL)"),
    ):
        assert Database(url, "actorhub").place == place
    assert "sesame" not in repr(PostgresStorage("postgresql://ada:sesame@h/d", clock=SystemClock()))


def test_unfit_servers_are_refused() -> None:
    """An old version, a standby and another encoding each end the start."""
    check_server(GOOD, "h/d")
    for changes, text in (
        ({"version": "13.9", "version_number": 130009}, "13.9.*14 or newer"),
        ({"standby": True}, "standby.*primary"),
        ({"encoding": "SQL_ASCII"}, "SQL_ASCII.*UTF8"),
    ):
        facts = ServerFacts(**{name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | changes)
        with pytest.raises(ConfigurationError, match=text):
            check_server(facts, "h/d")


async def test_a_server_that_may_forget_commits_is_warned_about(
    postgres_world: PostgresWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A database with synchronous_commit=off serves, with a warning that names the setting."""
    sql = await postgres_world.sql()
    with caplog.at_level(logging.WARNING):
        await postgres_world.storage()
    assert "synchronous_commit" not in caplog.text
    name = await sql.fetchval("select current_database()")
    await sql.execute(f'alter database "{name}" set synchronous_commit = off')
    with caplog.at_level(logging.WARNING):
        await postgres_world.storage()
    assert "synchronous_commit=off" in caplog.text


def test_a_lock_table_that_is_too_small_is_refused() -> None:
    """More shards than locks end the start with the setting to raise."""
    check_lock_table(GOOD, 5000, "h/d")
    with pytest.raises(ConfigurationError, match=r"max_locks_per_transaction at least 2-fold"):
        check_lock_table(GOOD, 10_000, "h/d")


async def test_two_namespaces_do_not_see_each_other(postgres_world: PostgresWorld) -> None:
    """Locks, owners and states of one schema mean nothing to another in the same database."""
    one, two = await postgres_world.storage(namespace="one"), await postgres_world.storage(namespace="two")
    async with lock_session(one, "a") as first, lock_session(two, "b") as second:
        assert await first.try_lock(SHARDS) == SHARDS
        assert await second.try_lock(SHARDS) == SHARDS
        await one.take(SHARDS, runner("a"))
        await one.commit_state(commit("ada", 1), "a")
        assert await two.shards() == []
        assert await two.load_state("orders", "ada") is None


async def test_a_pooler_under_the_lock_session_is_refused(postgres_url: str) -> None:
    """Through a pooler in transaction mode no lock session opens, and the error says what to do."""
    direct = PostgresStorage(postgres_url, clock=SystemClock())
    await direct.open()
    async with transaction_pooler(postgres_url) as url:
        pooled = PostgresStorage(url, clock=SystemClock())
        await pooled.open()
        with pytest.raises(ConfigurationError, match="--lock-database"):
            await pooled.open_lock_session("a")
        await pooled.aclose()
    await direct.aclose()


async def test_a_schema_is_made_through_a_pooler_in_transaction_mode(postgres_url: str) -> None:
    """A migration is one transaction, which no pooler divides."""
    async with transaction_pooler(postgres_url) as url:
        assert await migrate(url, "pooled") > 0
        assert await migrate(url, "pooled") == 0


def test_every_symptom_of_a_pooler_is_recognised() -> None:
    """Changing processes, lost settings and vanished locks are each named."""
    name = application_name("a")
    good = SessionProbe(1, name, 4000, True)
    assert pooler_symptom(good, good, name) is None
    for second, text in (
        (SessionProbe(2, name, 4000, True), "two server processes"),
        (SessionProbe(1, "pooler", 4000, True), "application_name"),
        (SessionProbe(1, name, 0, True), "idle_session_timeout"),
        (SessionProbe(1, name, 4000, False), "advisory lock"),
    ):
        assert text in (pooler_symptom(good, second, name) or "")


def test_errors_are_sorted_by_what_can_be_done() -> None:
    """Lost connections are repeated, bad rows are isolated, the rest fails."""
    assert cause(OSError()) is Cause.TRANSIENT
    assert cause(TimeoutError()) is Cause.TRANSIENT
    assert cause(asyncpg.InterfaceError("connection is closed")) is Cause.TRANSIENT
    assert cause(asyncpg.AdminShutdownError("bye")) is Cause.TRANSIENT
    assert cause(asyncpg.DeadlockDetectedError("circle")) is Cause.TRANSIENT
    assert cause(asyncpg.CharacterNotInRepertoireError("NUL")) is Cause.DATA
    assert cause(asyncpg.ProgramLimitExceededError("large")) is Cause.DATA
    assert cause(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate")) is Cause.DATA
    assert cause(asyncpg.InsufficientPrivilegeError("no")) is Cause.PERMANENT


async def test_open_after_a_failed_open_works(own_postgres: PostgresServer) -> None:
    """The storage of a server that was down opens once it is up."""
    await own_postgres.stop()
    storage = PostgresStorage(own_postgres.url, clock=SystemClock())
    with pytest.raises(ConfigurationError):
        await storage.open()
    with pytest.raises(PersistenceError):
        await storage.shards()
    await own_postgres.start()
    await storage.open()
    assert await storage.shards() == []
    await storage.aclose()
