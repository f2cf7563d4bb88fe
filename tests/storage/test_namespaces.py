"""Namespaces whose names are words of SQL."""

import pytest

from actorhub.conformance.messages import changed, keyed, message, results, run, stored
from actorhub.conformance.singletons import leadership, only
from actorhub.conformance.storage import SHARDS, commit, lock_session, runner
from actorhub.storage.checkpoint_ports import Checkpoint, CheckpointWrite, Saved, Scope
from actorhub.storage.message_ports import MessageState, Readiness, RunStart, Verdict
from actorhub.storage.ports import StoredState
from actorhub.storage.postgres import PostgresStorage, migrate, migration_sql
from tests.storage.conftest import PostgresWorld

pytestmark = pytest.mark.parametrize("namespace", ["user", "order", "table"])


async def _run_a_few(storage: PostgresStorage) -> None:
    """Store, start and commit messages: in a batch, with a step, and in a handler's transaction."""
    messages = storage.messages
    made = [message(1), keyed(message(2, "bob"), "k"), message(3, "eve")]
    assert {answer.verdict for answer in await stored(messages, made)} == {Verdict.NEW}
    starts = [messages.start_run(RunStart(each.message_id, each.shard, 1, 1), "a") for each in made]
    assert await results(starts) == [Readiness.RUN] * 3
    await results([messages.commit_run(changed(run(made[0], 1), outbox=(message(4, "told"),)), "a")])
    step = CheckpointWrite(scope=Scope("orders", "bob", 2), stored=(Checkpoint("fetch", b"page"),))
    progress = changed(run(made[1]), message_id=0, reply=None, checkpoints=step)
    await messages.commit_with_checkpoints(progress, "a")
    transaction = await messages.begin()
    assert await transaction.connection.fetchval("select current_schema()") == "public"
    await transaction.commit(run(made[2]), "a")


async def test_durable_messages_live_in_a_namespace_of_any_name(postgres_world: PostgresWorld, namespace: str) -> None:
    """Tables, functions and connections find each other in a schema whose name has to be quoted."""
    storage = await postgres_world.storage(namespace=namespace)
    async with lock_session(storage, "a") as session:
        await session.heartbeat(runner("a"))
        assert await session.try_lock(SHARDS) == SHARDS
    await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("zoe", 1), "a")
    assert await storage.load_state("orders", "zoe") is not None
    await _run_a_few(storage)
    assert await storage.load_state("orders", "ada") == StoredState(1, b"v1")
    assert await storage.checkpoints.load(Scope("orders", "bob", 2)) == Saved(checkpoints={"fetch": b"page"})
    rows = [await storage.messages.find(number) for number in range(1, 5)]
    assert [row.state for row in rows if row is not None] == [
        MessageState.DONE, MessageState.PENDING, MessageState.DONE, MessageState.PENDING,
    ]  # fmt: skip
    await storage.singletons.lead(leadership(), "h:1", None)
    assert (await only(storage.singletons)).leader == "h:1"
    await storage.key_values.put("key", b"value", None)
    assert await storage.key_values.count("", None) == 1
    sql = await postgres_world.sql("public")
    assert await sql.fetchval(f'select count(*) from "{namespace}".messages') == 4


async def test_the_printed_script_is_valid_for_any_name(postgres_world: PostgresWorld, namespace: str) -> None:
    """It makes the schema, and migrating afterwards finds nothing left to do."""
    sql = await postgres_world.sql("public")
    await sql.execute(migration_sql(namespace))
    assert await sql.fetchval("select count(*) from pg_namespace where nspname = $1", namespace) == 1
    assert await migrate(postgres_world.url, namespace) == 0
    storage = await postgres_world.storage(namespace=namespace)
    await storage.take(SHARDS, runner("a"))
    await _run_a_few(storage)
