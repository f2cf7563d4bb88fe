"""A handler's own SQL and what its run leaves behind are committed together or not at all."""

import asyncio
from typing import Any

import asyncpg
import pytest

from actorhub.conformance.messages import FAR, backlog, changed, keyed, message, results, run, stored
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, runner, take_over
from actorhub.core.errors import DuplicateKey, PersistenceError
from actorhub.storage.message_ports import MessageState, NotPending, RolledBack, RunStart
from actorhub.storage.ports import Fenced, StoredState, VersionConflict
from actorhub.storage.postgres import PostgresStorage
from tests.storage.conftest import PostgresWorld
from tests.storage.waits import held, until_blocked

MOST = 6
"""Transactions of handlers at a time, with the default number of connections."""


class Shop:
    """A storage that owns its shards as `a` and has stored message 1, and the user's own table."""

    def __init__(self, storage: PostgresStorage, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.storage = storage
        self.messages = storage.messages
        self.sql = sql

    async def invoices(self) -> list[str]:
        """Return what the user's table holds."""
        return [row[0] for row in await self.sql.fetch("select id from public.invoice order by id")]

    async def state_of_message(self) -> MessageState:
        """Return where message 1 stands."""
        row = await self.messages.find(1)
        assert row is not None
        return row.state


@pytest.fixture
async def shop(postgres_world: PostgresWorld) -> Shop:
    """The user's table is outside the namespace."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql("public")
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(1)])
    await sql.execute("create table invoice (id text unique deferrable initially deferred)")
    return Shop(storage, sql)


async def test_sql_state_outbox_and_reply_are_committed_together(shop: Shop) -> None:
    """The search path is the role's own, and nothing is seen before the commit."""
    made = await shop.messages.begin()
    assert await made.connection.fetchval("select current_schema()") == "public"
    async with made.block():
        await made.connection.execute("insert into invoice values ($1)", "i-1")
    assert await shop.invoices() == []
    await made.commit(changed(run(message(1), 1), outbox=(message(2, "told"),)), "a")
    assert await shop.invoices() == ["i-1"]
    assert await shop.storage.load_state("orders", "ada") == StoredState(1, b"v1")
    assert await shop.state_of_message() is MessageState.DONE
    assert await backlog(shop.messages) == [2]


async def test_a_block_that_raises_is_a_savepoint(shop: Shop) -> None:
    """What was done in it is gone, what was done before and after it counts."""
    made = await shop.messages.begin()
    async with made.block():
        await made.connection.execute("insert into invoice values ('before')")

    async def fail() -> None:
        async with made.block():
            await made.connection.execute("insert into invoice values ('undone')")
            await made.connection.execute("select 1 / 0")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await fail()
    async with made.block():
        await made.connection.execute("insert into invoice values ('after')")
    await made.commit(run(message(1)), "a")
    assert await shop.invoices() == ["after", "before"]


async def test_rolling_back_undoes_everything(shop: Shop) -> None:
    """It can be done twice, and after it the connection is useless to who still holds it."""
    made = await shop.messages.begin()
    connection = made.connection
    await connection.execute("insert into invoice values ('undone')")
    await made.roll_back()
    await made.roll_back()
    assert await shop.invoices() == []
    assert await shop.state_of_message() is MessageState.PENDING
    with pytest.raises(asyncpg.InterfaceError):
        await connection.execute("insert into invoice values ('late')")
    with pytest.raises(PersistenceError):
        await made.commit(run(message(1)), "a")


async def test_a_refused_run_takes_the_users_sql_with_it(shop: Shop) -> None:
    """Epoch, owner, version, message and keys are checked as without a transaction, and nothing is left."""
    await stored(shop.messages, [keyed(message(9, "told"), "k")])
    other = keyed(message(8, "told"), "k", b"other")
    refused = [
        (changed(run(message(1), 1), epoch=2), "a", Fenced),
        (run(message(1), 1), "b", Fenced),
        (run(message(1), 5), "a", VersionConflict),
        (run(message(7), 1), "a", NotPending),
        (changed(run(message(1), 1), outbox=(other,)), "a", DuplicateKey),
        (changed(run(message(1), 1), outbox=(keyed(message(6), "j"), keyed(message(5), "j", b"x"))), "a", DuplicateKey),
    ]
    for made, incarnation, error in refused:
        transaction = await shop.messages.begin()
        await transaction.connection.execute("insert into invoice values ('undone')")
        with pytest.raises(error):
            await transaction.commit(made, incarnation)
        await transaction.roll_back()
    assert await shop.invoices() == []
    assert await shop.storage.load_state("orders", "ada") is None
    assert await backlog(shop.messages) == [1, 9]


async def test_a_constraint_that_fails_at_the_commit_undoes_the_run(shop: Shop) -> None:
    """A deferred constraint of the user's is known to have undone all, and the message is still pending."""
    await shop.sql.execute("insert into invoice values ('i-1')")
    made = await shop.messages.begin()
    await made.connection.execute("insert into invoice values ('i-1')")
    with pytest.raises(RolledBack, match="duplicate key"):
        await made.commit(run(message(1), 1), "a")
    assert await shop.state_of_message() is MessageState.PENDING
    assert await shop.storage.load_state("orders", "ada") is None


async def test_a_transaction_counts_the_next_run(shop: Shop) -> None:
    """It says whether it did; one that is not due is not counted."""
    await stored(shop.messages, [message(3), changed(message(4), delay=FAR)])
    for settled, then, counted in ((1, 3, True), (3, 4, False)):
        made = await shop.messages.begin()
        next_start = RunStart(then, SHARDS[0], 1, 1)
        assert await made.commit(changed(run(message(settled)), next_start=next_start), "a") is counted
    rows = [await shop.messages.find(number) for number in (3, 4)]
    assert [row and (row.state, row.attempts) for row in rows] == [(MessageState.DONE, 1), (MessageState.SCHEDULED, 0)]


async def test_an_error_of_the_users_sql_that_was_swallowed_fails_the_commit(shop: Shop) -> None:
    """Outside of a block it has ended the transaction: the run is not written alone."""
    made = await shop.messages.begin()
    with pytest.raises(asyncpg.DivisionByZeroError):
        await made.connection.execute("select 1 / 0")
    with pytest.raises(PersistenceError):
        await made.commit(run(message(1)), "a")
    assert await shop.state_of_message() is MessageState.PENDING


@pytest.mark.parametrize("statement", ["commit", "rollback", "set transaction isolation level serializable"])
async def test_a_transaction_that_is_no_longer_ours_is_refused(shop: Shop, statement: str) -> None:
    """Neither one that the handler's SQL ended nor one in which the fence would prove nothing writes the run."""
    made = await shop.messages.begin()
    await made.connection.execute(statement)
    with pytest.raises(PersistenceError):
        await made.commit(run(message(1), 1), "a")
    assert await shop.state_of_message() is MessageState.PENDING
    assert await shop.storage.load_state("orders", "ada") is None


async def test_a_zombie_cannot_commit_its_sql(shop: Shop, postgres_world: PostgresWorld) -> None:
    """An owner that lost its shard in the middle of a transaction does not hold up the new one, and leaves nothing."""
    peer = await postgres_world.storage()
    made = await shop.messages.begin()
    await made.connection.execute("insert into invoice values ('undone')")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await take_over(peer, SHARDS, runner("b"))
    with pytest.raises(Fenced):
        await made.commit(run(message(1), 1), "a")
    assert await shop.invoices() == []
    assert await backlog(peer.messages) == [1]


async def test_a_lost_connection_fails_the_commit(shop: Shop) -> None:
    """The next transaction gets a new one."""
    made = await shop.messages.begin()
    await made.connection.execute("insert into invoice values ('undone')")
    await shop.sql.execute("select pg_terminate_backend($1)", await made.connection.fetchval("select pg_backend_pid()"))
    with pytest.raises(PersistenceError) as caught:
        await made.commit(run(message(1)), "a")
    assert caught.value.possibly_executed
    again = await shop.messages.begin()
    await again.connection.execute("insert into invoice values ('i-1')")
    await again.commit(run(message(1)), "a")
    assert await shop.invoices() == ["i-1"]


async def test_a_cancelled_commit_is_undone_or_done(shop: Shop, postgres_world: PostgresWorld) -> None:
    """A run that is cancelled while it waits for a lock leaves nothing, and lets go of the connection."""
    made = await shop.messages.begin()
    await made.connection.execute("insert into invoice values ('undone')")
    async with held(postgres_world, "select from message for update") as observer:
        commit = asyncio.Task(made.commit(run(message(1), 1), "a"))
        await until_blocked(observer)
        commit.cancel()
        await asyncio.wait([commit], timeout=PATIENCE_SECONDS)
        assert commit.cancelled()
    assert await shop.invoices() == []
    assert await shop.messages.cancel(1, SHARDS[0], 1, incarnation="a", retention=FAR) == 0


async def test_more_transactions_than_connections_wait_for_their_turn(shop: Shop) -> None:
    """One more than there are connections begins when another ends, and none of that one's session is left."""
    made = [await shop.messages.begin() for _ in range(MOST)]
    await made[0].connection.execute("set statement_timeout = 1234")
    waiting = asyncio.Task(shop.messages.begin())
    await asyncio.wait([waiting], timeout=0.1)
    assert not waiting.done()
    await made[0].roll_back()
    async with asyncio.timeout(PATIENCE_SECONDS):
        begun = await waiting
    assert await begun.connection.fetchval("show statement_timeout") == "10s"
    for each in [begun, *made]:
        await each.roll_back()


@pytest.mark.slow
async def test_waiting_for_a_connection_is_bounded(shop: Shop) -> None:
    """After seconds it fails and says what is busy."""
    made = [await shop.messages.begin() for _ in range(MOST)]
    with pytest.raises(PersistenceError, match=f"all {MOST} connections"):
        await shop.messages.begin()
    for each in made:
        await each.roll_back()


async def test_transactions_and_grouped_runs_share_entities(shop: Shop) -> None:
    """Versions stay contiguous when an entity commits now this way, now that."""
    made = [message(number, "eve") for number in range(10, 30)]
    await stored(shop.messages, made)
    for version, each in enumerate(made, 1):
        if version % 2:
            transaction: Any = await shop.messages.begin()
            await transaction.connection.execute("insert into invoice values ($1)", str(version))
            await transaction.commit(run(each, version), "a")
        else:
            await results([shop.messages.commit_run(run(each, version), "a")])
    assert await shop.storage.load_state("orders", "eve") == StoredState(20, b"v20")
    assert len(await shop.invoices()) == 10


async def test_closing_ends_open_transactions(shop: Shop) -> None:
    """What is under way fails, and nothing new begins."""
    made = await shop.messages.begin()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await shop.storage.aclose()
    with pytest.raises(PersistenceError):
        await made.commit(run(message(1)), "a")
    with pytest.raises(PersistenceError):
        await shop.messages.begin()
