"""Durable messages on Postgres: the handler's own SQL commits with its run; who has the database needs no runner."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from actorhub import (
    Cluster,
    Entity,
    EntityError,
    EntityNotAssigned,
    HandlerFailed,
    Hub,
    MessageCancelled,
    Retry,
    current,
    handler,
)
from actorhub.cluster import part_of
from actorhub.engine.routing import router
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.postgres_server import PostgresServer


class Unpaid(EntityError):
    number: int


class Shop(Entity[int]):
    @handler(durable=True, retry=Retry(attempts=3, initial=timedelta(milliseconds=10)))
    async def book(self, number: int, fail: str = "") -> int:
        self.state += 1
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values ($1)", number)
        await current().tell(current().client(Shop)("audit").count())
        if fail == "crash once" and current().attempt == 1:
            raise RuntimeError("after the insert")
        if fail == "crash":
            raise RuntimeError("after the insert")
        if fail == "refuse":
            raise Unpaid(number=number)
        return self.state

    async def book_now(self, number: int, fail: bool = False) -> int:
        self.state += 1
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values ($1)", number)
        if fail:
            raise RuntimeError("after the insert")
        return self.state

    @handler(durable=True)
    async def book_and_hold(self, number: int, in_step: bool) -> None:
        if in_step:
            await current().step("book", self._book_and_hold, number)
        else:
            await self._book_and_hold(number)

    async def _book_and_hold(self, number: int) -> None:
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values ($1)", number)
            await gates[current().entity_id].pass_through()

    @handler(durable=True)
    async def book_twice(self, number: int) -> int:
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values ($1)", number)
        try:
            async with current().transaction() as sql:
                await sql.execute("insert into invoice values ($1)", number + 1)
                raise LookupError("only this block is undone")
        except LookupError:
            self.state += 1
        async with current().transaction() as sql:
            return int(await sql.fetchval("select count(*) from invoice"))

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=10)))
    async def broken_sql(self) -> None:
        self.state += 1
        async with current().transaction() as sql:
            await sql.execute("insert into no_such_table values (1)")

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=10)))
    async def book_late(self, number: int) -> int:
        self.state += 1
        async with current().transaction() as sql:
            await sql.execute("insert into booked values ($1)", number)
        return self.state

    @handler(readonly=True)
    async def book_reading(self) -> None:
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values (1)")

    @handler(durable=True)
    async def hold(self, number: int) -> int:
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values ($1)", number)
        await gates[current().entity_id].pass_through()
        self.state += 1
        return self.state

    @handler(durable=True)
    async def count(self) -> int:
        self.state += 1
        return self.state

    async def read(self) -> int:
        return self.state


hub = Hub()
hub.register(Shop)


@pytest.fixture
async def url(postgres_url: str) -> str:
    """A database with the user's own table."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("create table invoice (number int primary key)")
    await connection.close()
    return postgres_url


async def invoices(url: str) -> list[int]:
    """Return what the handlers wrote."""
    connection = await asyncpg.connect(url)
    try:
        return [row["number"] for row in await connection.fetch("select number from invoice order by 1")]
    finally:
        await connection.close()


@pytest.fixture
async def shop(url: str) -> AsyncIterator[Cluster]:
    """A runner."""
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16) as cluster:
        yield cluster


async def test_sql_state_tells_and_reply_commit_together(url: str, shop: Cluster) -> None:
    """A run that ends well leaves all of them, a failing one none; a repeated one leaves them once."""
    client = shop.client(Shop)
    assert await client("a").book(1) == 1
    assert await client("a").book(2, "crash once") == 2
    assert isinstance(await failure(client("a").book(3, "crash")), HandlerFailed)
    assert isinstance(await failure(client("a").book(4, "refuse")), Unpaid)
    assert await client("a").read() == 2
    assert await invoices(url) == [1, 2]
    async with asyncio.timeout(5):
        while await client("audit").read() < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert await client("audit").read() == 2


async def test_volatile_handlers_have_transactions(url: str, shop: Cluster) -> None:
    """Their SQL commits with their state, or not at all."""
    client = shop.client(Shop)("a")
    assert await client.book_now(1) == 1
    assert isinstance(await failure(client.book_now(2, fail=True)), HandlerFailed)
    assert isinstance(await failure(client.book_now(1)), HandlerFailed)
    assert await client.read() == 1
    assert await invoices(url) == [1]


async def test_a_failing_block_is_undone_alone(url: str, shop: Cluster) -> None:
    """Blocks are savepoints of one transaction."""
    assert await shop.client(Shop)("a").book_twice(1) == 1
    assert await invoices(url) == [1]


async def test_sql_errors_fail_the_run(url: str, shop: Cluster) -> None:
    """The statement's error is the run's; neighbours go on, and connections come back."""
    client = shop.client(Shop)
    for number in range(6):
        error = await failure(client(f"e{number}").broken_sql())
        assert isinstance(error, HandlerFailed)
        assert "no_such_table" in str(error)
    assert await client("e0").book(1) == 1
    error = await failure(client("e0").book_reading())
    assert "readonly" in str(error)
    assert await invoices(url) == [1]


async def test_concurrent_transactions_all_commit(url: str, shop: Cluster) -> None:
    """More of them than there are connections wait for each other."""
    client = shop.client(Shop)
    async with asyncio.timeout(30):
        found = await outcomes(*(client(f"e{number}").book(number) for number in range(60)))
    assert found == [1] * 60
    assert await invoices(url) == list(range(60))


async def test_a_repeated_transaction_leaves_one_row(url: str) -> None:
    """A handler that is cut off with its runner leaves nothing; the next run leaves it once."""
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=timedelta(0)) as first:
        told = await first.tell(first.client(Shop)("a").hold(1))
        await gates["a"].came()
    assert await invoices(url) == []
    gates["a"].open()
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16) as second:
        async with asyncio.timeout(15):
            assert await second.reply(told) == 1
    assert await invoices(url) == [1]


async def test_a_program_with_the_database_tells_without_any_runner(url: str) -> None:
    """Tells are stored, in order, keyed and for later; asks wait to their deadline; a runner then finds all."""
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16):
        pass
    async with hub.connect(database_url=url) as client:
        shop = client.client(Shop)
        told = [await client.tell(shop("a").book(number)) for number in range(5)]
        keyed = [await client.tell(shop("b").count(), key="k") for _ in range(3)]
        later = await client.tell(shop("c").count(), delay=timedelta(seconds=1))
        never = await client.tell(shop("d").count(), delay=timedelta(hours=1))
        assert len(set(keyed)) == 1
        assert await client.cancel(never)
        assert not await client.cancel(never)
        error = await failure(shop.options(timeout=timedelta(seconds=0.3))("a").count())
        assert isinstance(error, EntityNotAssigned)
        waiting = soon(outcomes(*(client.reply(message_id) for message_id in (*told, keyed[0], later))))
        async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16):
            async with asyncio.timeout(15):
                assert await waiting == [1, 2, 3, 4, 5, 1, 1]
            assert await shop("d").read() == 0


async def test_tells_without_any_runner_take_no_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tells than may wait for owners are accepted while nobody owns anything, and all of them run."""
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16):
        pass
    async with hub.connect(database_url=url) as client:
        shop = client.client(Shop)
        told: list[int] = []
        with monkeypatch.context() as small:
            small.setattr(router, "MAX_PARKED", 40)
            for _ in range(6):
                told += await asyncio.gather(*(client.tell(shop(f"e{number}").count()) for number in range(20)))
        assert part_of(client).node.router.statistics().parked <= 16
        async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16), asyncio.timeout(15):
            assert sorted(await asyncio.gather(*map(client.reply, told))) == [n for n in range(1, 7) for _ in range(20)]


async def test_messages_survive_a_restart_of_the_database(own_postgres: PostgresServer) -> None:
    """What was acknowledged before the crash runs after it, once."""
    url = await own_postgres.create_database()
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16) as runner:
        shop = runner.client(Shop)
        await shop("a").count()
        told = [await runner.tell(shop(f"e{n}").count(), delay=timedelta(seconds=1)) for n in range(20)]
        told += [await runner.tell(shop("a").count()) for _ in range(20)]
        await own_postgres.restart("immediate")
        async with asyncio.timeout(40):
            replies = []
            for message_id in told:
                while True:
                    (reply,) = await outcomes(runner.reply(message_id))
                    if isinstance(reply, int):
                        replies.append(reply)
                        break
                    await asyncio.sleep(0.1)
        assert replies == [1] * 20 + list(range(2, 22))


async def test_a_commit_that_the_database_refuses_is_a_failed_run(shop: Cluster, url: str) -> None:
    """A constraint that is checked at the commit fails the run with its own error, and the state stays as it was."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("create table booked (number int unique deferrable initially deferred)")
    finally:
        await connection.close()
    books = shop.client(Shop)
    assert await books("a").book_late(1) == 1
    error = await failure(books("a").book_late(1))
    assert isinstance(error, HandlerFailed)
    assert "duplicate key value" in str(error)
    assert "RolledBack" in error.traceback
    assert await books("a").read() == 1
    assert await books("a").book_late(2) == 2


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("in_step", [False, True], ids=["handler", "step"])
async def test_the_sql_of_a_cancelled_run_is_undone(url: str, shop: Cluster, in_step: bool, terminate: bool) -> None:
    """Its connection is free again, however often that happens."""
    for number in range(10):
        told = await shop.tell(shop.client(Shop)("a").book_and_hold(number, in_step))
        await gates["a"].came(number + 1)
        async with asyncio.timeout(5):
            assert await shop.cancel(told, terminate=terminate)
            assert isinstance(await failure(shop.reply(told)), MessageCancelled)
    assert await invoices(url) == []
    assert await shop.client(Shop)("a").book(1) == 1
    assert await invoices(url) == [1]
