"""Steps on Postgres: SQL, tells and result are one commit, once, whatever becomes of the run and of its runner."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from actorhub import Cluster, HandlerFailed, MessageTooLarge, PersistenceError, current
from actorhub.testing import until
from tests.steps.entities import Anything, Boss, Clerk, Declined, doing, hub, note, noted, tell_note
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import runner_of

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


@pytest.fixture
async def sql(postgres_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the test's own to a database with a table of the user's own, in which nothing is unique."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("create table ledger (entry text)")
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def runner(url: str, *, grace: timedelta = timedelta(0)) -> AsyncGenerator[Cluster]:
    """A runner that cuts short what runs when it leaves."""
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=4, grace=grace) as cluster:
        yield cluster


async def entries(sql: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    """Return what the steps wrote."""
    return [row[0] for row in await sql.fetch("select entry from ledger order by 1")]


async def left(sql: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    """Return the names of all steps, and a dot for each completion, that the store has."""
    names = await sql.fetch("select name from actorhub.checkpoint union all select '.' from actorhub.completion")
    return sorted(row[0] for row in names)


async def write(entry: str) -> str:
    """A step's function: SQL and a tell."""
    async with current().transaction() as connection:
        await connection.execute("insert into ledger values ($1)", entry)
    return await tell_note("b", entry)


async def test_a_step_is_committed_once_although_its_handler_fails(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """SQL, tells and result stay; what the failing handler wrote itself does not; in the end nothing is left over."""

    async def work(clerk: Clerk) -> str:
        found = await current().step("one", write, "one")
        clerk.state.append("worked")
        async with current().transaction() as connection:
            await connection.execute("insert into ledger values ('handler')")
        if len(gates["a"].log) < 3:
            raise RuntimeError("crashed")
        return found + await current().step("two", str, "two")

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        assert await cluster.client(Clerk)("a").work() == "onetwo"
        assert await entries(sql) == ["handler", "one"]
        assert await noted(cluster, 1) == ["one"]
        assert await cluster.client(Clerk)("a").notes() == ["worked"]
        assert gates["b"].entered == 1
        assert await left(sql) == []


async def test_a_step_that_raises_leaves_nothing(postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Neither SQL nor tell, however it fails; its connection comes back; a run that succeeds leaves all, once."""

    async def fails(how: str) -> Anything:
        await write(how)
        if how == "raises":
            raise LookupError(how)
        if how == "broken sql":
            async with current().transaction() as connection:
                await connection.execute("insert into nowhere values (1)")
        return bytes(5 * 1024 * 1024)

    async def unannotated(how: str) -> Anything:
        await write(how)
        return 1, 2

    async def too_large(how: str) -> bytes:
        return bytes(await fails(how))

    async def work(_: Clerk) -> str:
        for _round in range(4):
            assert isinstance(await failure(current().step("one", fails, "raises")), LookupError)
            assert isinstance(await failure(current().step("one", fails, "broken sql")), asyncpg.PostgresError)
            assert isinstance(await failure(current().step("one", unannotated, "tuple")), TypeError)
            assert isinstance(await failure(current().step("one", too_large, "too large")), MessageTooLarge)
        return await current().step("one", write, "one")

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        assert await cluster.client(Clerk)("a").work() == "one"
        assert await entries(sql) == ["one"]
        assert await noted(cluster, 1) == ["one"]


@pytest.mark.parametrize("boundary", ["before the sql", "after the sql", "after the step", "at the end"])
async def test_cut_short_at_any_boundary_each_step_is_committed_once(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]", boundary: str
) -> None:
    """The next runner goes on from what is stored."""

    async def stop_at(place: str) -> None:
        if place == boundary:
            await gates["boundary"].pass_through()

    async def step(entry: str) -> str:
        await stop_at("before the sql")
        found = await write(entry)
        await stop_at("after the sql")
        return found

    async def work(_: Clerk) -> str:
        first = await current().step("one", step, "one")
        await stop_at("after the step")
        second = await current().step("two", write, "two")
        await stop_at("at the end")
        return first + second

    doing["a"] = work
    async with runner(postgres_url) as first:
        told = await first.tell(first.client(Clerk)("a").work())
        await gates["boundary"].came()
    gates["boundary"].open()
    async with runner(postgres_url) as second, asyncio.timeout(15):
        assert await second.reply(told) == "onetwo"
        assert await entries(sql) == ["one", "two"]
        assert await noted(second, 2) == ["one", "two"]


@asynccontextmanager
async def held(url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    """Hold up whoever stores a checkpoint."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("lock table actorhub.checkpoint in share row exclusive mode")
            yield connection
    finally:
        await connection.close()


_BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


async def until_blocked(sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Return once somebody is held up."""
    async with asyncio.timeout(10):
        while not await sql.fetchval(_BLOCKED):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("what", ["sql and a tell", "a tell"])
@pytest.mark.parametrize("lost", ["the runner", "the connection"])
async def test_a_commit_whose_outcome_is_unknown_counts_once(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]", what: str, lost: str
) -> None:
    """Lost while the result is stored: the next run finds it, or leaves all of it itself."""

    async def work(_: Clerk) -> str:
        return await current().step("one", write if what == "sql and a tell" else tell_note_to_b, "one")

    async def tell_note_to_b(text: str) -> str:
        return await tell_note("b", text)

    async def lose_the_connection() -> None:
        await sql.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'"
            " and datname = current_database()"
        )

    doing["a"] = work
    async with runner(postgres_url) as first:
        while not await sql.fetchval("select generation from actorhub.singleton"):
            await asyncio.sleep(0.01)
        async with held(postgres_url):
            told = await first.tell(first.client(Clerk)("a").work())
            await until_blocked(sql)
            if lost == "the connection":
                await lose_the_connection()
                await until(lambda: gates["b"].entered == 2)
                await until_blocked(sql)
        if lost == "the connection":
            assert await first.reply(told) == "one"
    async with runner(postgres_url) as second, asyncio.timeout(15):
        assert await second.reply(told) == "one"
        assert await entries(sql) == (["one"] if what == "sql and a tell" else [])
        assert await noted(second, 1) == ["one"]


async def test_a_former_owner_s_step_is_refused_with_its_sql(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Taken over while the function runs: PersistenceError, and none of it is committed; then it runs again."""
    errors: list[Exception] = []

    async def slowly(entry: str) -> str:
        found = await write(entry)
        await gates["slow"].pass_through()
        return found

    async def work(_: Clerk) -> str:
        try:
            return await current().step("one", slowly, f"epoch {current().epoch}")
        except PersistenceError as error:
            errors.append(error)
            raise

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        asked = soon(cluster.client(Clerk)("a").work())
        await gates["slow"].came()
        await sql.execute("update actorhub.shard set epoch = epoch + 1, owner_incarnation = 'somebody else'")
        gates["slow"].open()
        async with asyncio.timeout(20):
            found = await asked
        assert len(errors) == 1
        assert found != "epoch 1"
        assert await entries(sql) == [found]
        assert await noted(cluster, 1) == [found]


async def test_steps_at_once_have_transactions_of_their_own(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """One that fails takes nothing of its neighbours with it; more of them than connections wait for each other."""

    async def fails(entry: str) -> str:
        await write(entry)
        raise LookupError(entry)

    async def work(_: Clerk) -> list[str]:
        steps = [current().step(f"{n}", fails if n % 5 == 4 else write, f"{n:02}") for n in range(20)]
        return [str(one) for one in await outcomes(*steps)]

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        assert len(await cluster.client(Clerk)("a").work()) == 20
        kept = [f"{n:02}" for n in range(20) if n % 5 != 4]
        assert await entries(sql) == kept
        assert sorted(await noted(cluster, 16)) == kept


async def test_a_step_s_sql_does_not_go_with_an_open_transaction(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Handlers that hold one connection and wait for another would wait for each other: the error says so."""

    async def work(_: Clerk) -> str:
        async with current().transaction() as connection:
            await connection.execute("insert into ledger values ('handler')")
        return str(await failure(current().step("one", write, "one")))

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        assert "has a transaction already" in await cluster.client(Clerk)("a").work()
        assert await entries(sql) == ["handler"]


@pytest.mark.parametrize("end", ["value", "refused", "dead"])
async def test_steps_are_forgotten_with_their_message(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]", end: str
) -> None:
    """At once with its value, completions later; those of a dead letter are kept, and found when it is reset."""

    async def work(_: Clerk) -> int:
        value = current().deferred("value", int)
        gates["a"].left.append(value.token)
        await current().step("one", write, "one")
        found = await value.wait()
        if end == "refused":
            raise Declined(why="no")
        if end == "dead" and not gates["well"].entered:
            raise RuntimeError("crashed")
        return found

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        told = await cluster.tell(cluster.client(Clerk)("a").work())
        await until(lambda: len(gates["a"].left) == 1)
        assert await cluster.complete(gates["a"].left[0], 7)
        (reply,) = await outcomes(cluster.reply(told))
        if end == "value":
            assert reply == 7
            assert await left(sql) == ["."]
            assert not await cluster.complete(gates["a"].left[0], 8), "too late"
            return
        assert isinstance(reply, Declined if end == "refused" else HandlerFailed)
        assert await left(sql) == [".", "one"]
        storage = runner_of(cluster).storage
        assert await storage.checkpoints.remove_orphans(-1.0, 10) == (2 if end == "refused" else 0)
        if end == "dead":
            note("well")
            assert await cluster.reset(told)
            assert await cluster.reply(told) == 7
        assert await entries(sql) == ["one"]
        assert await left(sql) == (["."] if end == "dead" else [])


@pytest.mark.parametrize("boundary", ["in the step", "after the step", "after save"])
async def test_a_singleton_goes_on_at_each_boundary(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]", boundary: str
) -> None:
    """save() begins the next generation with the state that it commits: each round is written once."""

    async def stop_at(place: str) -> None:
        if place == boundary:
            await gates["boundary"].pass_through()

    async def fetch(number: int) -> str:
        found = await write(f"round {number}")
        await stop_at("in the step")
        return found

    async def run(boss: Boss) -> None:
        while len(boss.state) < 2:
            text = await current().step("fetch", fetch, len(boss.state))
            await stop_at("after the step")
            await boss.save([*boss.state, text])
            await stop_at("after save")

    doing["boss"] = run
    rounds = ["round 0", "round 1"]
    async with runner(postgres_url):
        await gates["boundary"].came()
    gates["boundary"].open()
    async with runner(postgres_url) as cluster, asyncio.timeout(15):
        while await cluster.singleton(Boss).states() != rounds:
            await asyncio.sleep(0.01)
        assert await entries(sql) == rounds
        assert await noted(cluster, 2) == rounds
        while await sql.fetchval("select generation from actorhub.singleton where singleton = 'boss'") != 3:
            await asyncio.sleep(0.01)
        assert await left(sql) == []


async def test_a_client_without_a_database_completes(
    postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Through its gateway; one with the database needs no runner at all."""

    async def work(_: Clerk) -> list[int]:
        values = [current().deferred(f"{number}", int) for number in range(2)]
        gates["a"].left.extend(value.token for value in values)
        return [await value.wait() for value in values]

    doing["a"] = work
    async with runner(postgres_url) as cluster:
        assert cluster.runner is not None
        async with hub.connect(gateway=cluster.runner.address) as client:
            told = await client.tell(client.client(Clerk)("a").work())
            await until(lambda: len(gates["a"].left) == 2)
            assert await client.complete(gates["a"].left[0], 1)
    async with hub.connect(database_url=postgres_url) as client:
        assert await client.complete(gates["a"].left[1], 2)
        assert not await client.complete(gates["a"].left[0], 2)
        async with runner(postgres_url), asyncio.timeout(15):
            assert await client.reply(told) == [1, 2]
    assert await left(sql) == [".", "."]


async def test_a_thousand_waits_at_once(postgres_url: str, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    """They begin, survive a restart of their runner, and end."""
    ids = [f"e{number}" for number in range(1000)]

    async def work(_: Clerk) -> str:
        value = current().deferred("value", str)
        gates[current().entity_id].left.append(value.token)
        return await value.wait()

    for entity_id in ids:
        doing[entity_id] = work
    async with runner(postgres_url, grace=timedelta(seconds=10)) as cluster:
        told = list(await asyncio.gather(*(cluster.tell(cluster.client(Clerk)(one).work()) for one in ids)))
        await until(lambda: all(len(gates[one].left) == 1 for one in ids), deadline=30)
    async with runner(postgres_url) as cluster:
        await until(lambda: all(len(gates[one].left) == 2 for one in ids), deadline=30)
        found = await asyncio.gather(*(cluster.complete(gates[one].left[0], one) for one in ids))
        assert all(found)
        async with asyncio.timeout(30):
            assert await asyncio.gather(*(cluster.reply(message_id) for message_id in told)) == ids
    assert await left(sql) == ["."] * 1000
