"""The Postgres store keeps the promises about checkpoints, singletons and schedules."""

import asyncio

import pytest

from actorhub.conformance.checkpoints import (
    CheckpointWriteSuite,
    CompletionSuite,
    attempts_of,
    closing,
    noted,
    outcome,
    owned,
    scope,
    steps,
)
from actorhub.conformance.messages import FAR, changed, message, run, stored
from actorhub.conformance.singletons import (
    ADDRESS,
    BUSY,
    LeaderSuite,
    ScheduleSuite,
    abandoned,
    leadership,
    led,
    only,
    schedule,
    with_everything,
)
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, runner, take_over
from actorhub.core.errors import PersistenceError
from actorhub.storage.checkpoint_ports import BODY, Saved
from actorhub.storage.message_ports import MessageState
from actorhub.storage.ports import Fenced, StoredState, VersionConflict
from actorhub.storage.singleton_ports import Execution
from tests.storage.conftest import PostgresWorld
from tests.storage.waits import held, until_blocked


@pytest.fixture
def world(postgres_world: PostgresWorld) -> PostgresWorld:
    """The suite's world is an empty database."""
    return postgres_world


class TestPostgresCheckpoints(CheckpointWriteSuite):
    """Checkpoints in Postgres."""


class TestPostgresCompletions(CompletionSuite):
    """Deferred values in Postgres."""


class TestPostgresLeaders(LeaderSuite):
    """Leaders in Postgres."""


class TestPostgresSchedules(ScheduleSuite):
    """Schedules in Postgres."""


async def test_namespaces_do_not_see_each_other(world: PostgresWorld) -> None:
    """The same names in two namespaces of one database are two of everything."""
    blue, green = [await world.storage(namespace=name) for name in ("blue", "green")]
    for storage, data in ((blue, b"blue"), (green, b"green")):
        await storage.take(SHARDS, runner("a"))
        await storage.singletons.lead(leadership("orders", "ada"), data.decode(), None)
        await storage.singletons.keep_schedule(leadership("orders", "ada"), schedule(data.decode(), "orders"))
        await storage.messages.commit_with_checkpoints(noted(steps({"fetch": data}), 1), "a")
        assert await storage.checkpoints.complete(outcome("t", data))
    await green.messages.commit_with_checkpoints(noted(closing(), 2), "a")
    assert await blue.checkpoints.load(scope()) == Saved(checkpoints={"fetch": b"blue"})
    assert await green.checkpoints.load(scope()) == Saved(generation=1)
    assert await blue.checkpoints.complete(outcome("t", b"blue"))
    assert await blue.secret() != await green.secret()
    for storage, name in ((blue, "blue"), (green, "green")):
        assert (await only(storage.singletons)).leader == name
        assert [row.name for row in (await storage.singletons.schedules())[0]] == [name]


async def test_checkpoints_and_the_users_sql_are_committed_together(world: PostgresWorld) -> None:
    """A handler's transaction writes its checkpoints too, and a refused one leaves neither."""
    storage, sql = await owned(world), await world.sql("public")
    messages = (await world.storage()).messages
    await sql.execute("create table invoice (id text)")
    await stored(messages, [changed(message(1), attempts=3)])
    for name, made, error in (
        ("i-1", noted(steps({"fetch": b"1"}, 1)), None),
        ("i-2", noted(steps({"parse": b"2"}, 1), epoch=2), Fenced),
        ("i-3", noted(steps({"parse": b"2"}, 1), 7), VersionConflict),
        ("i-4", changed(run(message(1), 1), checkpoints=closing(1)), None),
    ):
        transaction = await messages.begin()
        await transaction.connection.execute("insert into invoice values ($1)", name)
        if error is None:
            await transaction.commit(made, "a")
        else:
            with pytest.raises(error):
                await transaction.commit(made, "a")
        if name != "i-4":
            assert await storage.checkpoints.load(scope(1)) == Saved(checkpoints={"fetch": b"1"})
            assert await attempts_of(messages, 1) == 0
    assert [row[0] for row in await sql.fetch("select id from invoice order by id")] == ["i-1", "i-4"]
    assert await storage.checkpoints.load(scope(1)) == Saved()
    settled = await messages.find(1)
    assert settled is not None
    assert settled.state is MessageState.DONE


async def test_a_rolled_back_transaction_leaves_no_checkpoints(world: PostgresWorld) -> None:
    """Neither does one whose commit the database refuses for the user's own constraint."""
    storage, sql = await owned(world), await world.sql("public")
    messages = (await world.storage()).messages
    await sql.execute("create table invoice (id text unique deferrable initially deferred)")
    await sql.execute("insert into invoice values ('i-1')")
    transaction = await messages.begin()
    await transaction.connection.execute("insert into invoice values ('i-1')")
    with pytest.raises(PersistenceError, match="duplicate key"):
        await transaction.commit(noted(closing(), 1), "a")
    assert await storage.checkpoints.load(scope()) == Saved()
    assert await storage.load_state("orders", "ada") is None


async def test_a_lost_connection_leaves_the_outcome_open(world: PostgresWorld) -> None:
    """The error says so; the same commit again is done or found done, once."""
    storage = await owned(world)
    made = noted(closing(), 1)
    async with held(world, "select from singleton for update") as observer:
        commit = asyncio.Task(storage.messages.commit_with_checkpoints(made, "a"))
        await until_blocked(observer)
        await observer.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'actorhub work'"
        )
        with pytest.raises(PersistenceError) as caught:
            await commit
    assert caught.value.possibly_executed
    assert await storage.checkpoints.load(scope()) == Saved()
    for _ in range(2):
        await storage.messages.commit_with_checkpoints(made, "a")
    assert await storage.checkpoints.load(scope()) == Saved(generation=1)


async def test_a_commit_that_met_another_one_is_repeated(world: PostgresWorld) -> None:
    """What the database calls a serialization failure is not an outcome: the second look tells the conflict."""
    storage, other = await owned(world), await world.sql()
    observer = await world.sql()
    transaction = other.transaction()
    await transaction.start()
    await other.execute(
        "insert into entity_state (version, epoch, updated_at, shard_number, shard_group, entity_type, entity_id, data)"
        " values (1, 1, now(), 0, 'default', 'orders', 'ada', 'other')"
    )
    commit = asyncio.Task(storage.messages.commit_with_checkpoints(noted(closing(), 1), "a"))
    await until_blocked(observer)
    await transaction.commit()
    with pytest.raises(VersionConflict):
        await commit
    assert await storage.load_state("orders", "ada") == StoredState(1, b"other")
    assert await storage.checkpoints.load(scope()) == Saved()


@pytest.mark.parametrize("kind", ["record", "commit"])
async def test_a_takeover_waits_for_the_leaders_write_under_way(world: PostgresWorld, kind: str) -> None:
    """A write that began before it counts, and none after it: of a leader and of its run alike."""
    storage, peer = await owned(world), await world.storage()

    async def write() -> None:
        if kind == "record":
            await storage.singletons.record(leadership("orders", "ada"), BUSY, heartbeat=True)
        else:
            await storage.messages.commit_with_checkpoints(noted(closing()), "a")

    async with held(world, "select from singleton for update") as observer:
        writing = asyncio.Task(write())
        await until_blocked(observer)
        taking = asyncio.Task(take_over(peer, SHARDS[:1], runner("b")))
        await until_blocked(observer, 2)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await writing
        await taking
    written = (await only(peer.singletons), await peer.checkpoints.load(scope()))
    assert (written[0].execution == BUSY, written[1].generation == 1) == (kind == "record", kind == "commit")
    with pytest.raises(Fenced):
        await write()
    assert (await only(peer.singletons), await peer.checkpoints.load(scope())) == written


async def test_removing_what_is_abandoned_waits_for_nobody(world: PostgresWorld) -> None:
    """A row that a leader is just writing is passed over, so that the two cannot wait for each other."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    await with_everything(storage, "short", 0.0)
    for table in ("singleton", "entity_state"):
        async with held(world, f"select from {table} for update"), asyncio.timeout(1):
            assert await storage.singletons.remove_abandoned() == 0
    assert await abandoned(storage.singletons) == 1


async def test_setting_attempts_back_touches_no_index(world: PostgresWorld) -> None:
    """Of a message that is due the row is updated in its page."""
    storage, sql = await owned(world), await world.sql()
    await stored(storage.messages, [changed(message(1), attempts=1)])
    async with sql.transaction():
        await sql.fetchval(
            "select write_checkpoints('orders', 'ada', 1, array['fetch'], array[''::bytea], false, null, null)"
        )
        updated = "select pg_stat_get_xact_tuples_{}updated('message'::regclass)"
        assert [await sql.fetchval(updated.format(kind)) for kind in ("", "hot_")] == [1, 1]


async def test_texts_that_postgres_cannot_store_are_stored_as_far_as_it_can(world: PostgresWorld) -> None:
    """Zero bytes, lone surrogates and endless texts fail no heartbeat."""
    storage = await led(world)
    odd = "a\0b\ud800" + "x" * 10_000
    await storage.singletons.record(leadership(), Execution(last_error=odd, state_error=odd), heartbeat=True)
    row = await storage.singletons.keep_schedule(leadership(), changed(schedule(), last_error=odd, last_skip=odd))
    execution = (await only(storage.singletons)).execution
    for text in (execution.last_error, execution.state_error, row.last_error, row.last_skip):
        assert text.startswith("a\ufffdb?x")
        assert len(text) == 2046


async def test_views_show_singletons_and_their_schedules(world: PostgresWorld) -> None:
    """Each line says who leads and how it is, with times and durations as such."""
    storage, sql = await world.storage(), await world.sql()
    await storage.take(SHARDS, runner("a"))
    await with_everything(storage, "coordinator", FAR)
    await storage.singletons.keep_schedule(leadership(), schedule())
    [row] = await sql.fetch("select * from singletons")
    assert (row["singleton"], row["leader"], row["shard"], row["epoch"]) == ("coordinator", ADDRESS, "default:0", 1)
    assert (row["executions"], row["last_error"], row["body"]) == (7, BUSY.last_error, "running")
    assert (row["state_version"], row["state_bytes"], row["checkpoints"]) == (1, 5, 1)
    assert row["last_duration"].total_seconds() == pytest.approx(1 / 3, abs=1e-5)
    assert row["last_execution_at"].timestamp() == pytest.approx(BUSY.last_execution_at)
    assert row["silent_for"].total_seconds() >= 0
    assert row["state_ttl"].total_seconds() == FAR
    found = await sql.fetch("select * from crons")
    assert [each["name"] for each in found] == ["one", "sweep", "two"]
    assert found[1]["next_at"].timestamp() == schedule().next_at
    assert (found[1]["expression"], found[1]["paused"], found[1]["runs"]) == ("*/5 * * * *", False, 5)


@pytest.mark.parametrize("relation", ["checkpoint", "completion", "singleton", "cron_schedule", "singletons", "crons"])
async def test_tables_and_views_say_what_they_are(world: PostgresWorld, relation: str) -> None:
    """Each has a comment for whoever looks with psql."""
    await world.storage()
    sql = await world.sql()
    assert await sql.fetchval("select obj_description($1::regclass)", relation)


async def test_a_fresh_body_without_a_leader_has_no_generation(world: PostgresWorld) -> None:
    """Generations belong to singletons that somebody led: closing another one forgets its steps, no more."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"1"})), "a")
    await storage.messages.commit_with_checkpoints(noted(closing()), "a")
    assert await storage.checkpoints.load(scope(BODY)) == Saved()
