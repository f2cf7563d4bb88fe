"""Moves of entities between shards, on Postgres: what they wait for, and who does not wait for them."""

import asyncio

from actorhub.conformance.moved_entities import home_of
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, runner
from actorhub.storage.ports import Storage
from tests.storage.conftest import PostgresWorld
from tests.storage.waits import held, until_blocked

ADA = ("orders", "ada")
_HOME_IS_LOCKED = f"select from shard where shard_group = 'default' and number = {SHARDS[0].number} for update"
_MOVING = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and query like '%move_entity%'"


async def move(storage: Storage) -> int:
    """Move an order out of the first shard."""
    return await storage.move_entity(ADA, source=SHARDS[0], source_owner="a", target=SHARDS[1], incarnation="a")


async def test_no_release_waits_for_moves(postgres_world: PostgresWorld) -> None:
    """Whatever moves are under way or waiting, a runner that leaves lets go of its other shards at once."""
    storage = await postgres_world.storage()
    epochs = await storage.take(SHARDS[:3], runner("a"))
    async with asyncio.TaskGroup() as tasks, held(postgres_world, _HOME_IS_LOCKED) as observer:
        moves = [tasks.create_task(move(storage)) for _ in range(3)]
        await until_blocked(observer)
        await storage.release({SHARDS[2]: epochs[SHARDS[2]]}, "a")
        assert [each.done() for each in moves] == [False] * 3


async def test_a_move_that_was_given_up_does_not_happen_later(postgres_world: PostgresWorld) -> None:
    """The server may still be at it: it comes to an end there, and nothing is moved."""
    storage = await postgres_world.storage()
    await storage.take(SHARDS[:2], runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    async with held(postgres_world, _HOME_IS_LOCKED) as observer:
        async with asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(move(storage))
            await until_blocked(observer)
            moving.cancel()
        assert moving.cancelled()
        assert await observer.fetchval(_MOVING) == 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await observer.fetchval(_MOVING):
            await asyncio.sleep(0.01)
    assert await home_of(storage) == (1, SHARDS[0])


async def test_a_move_whose_end_is_late_is_undone(postgres_world: PostgresWorld) -> None:
    """Its transaction waits a second at most: for locks, and for the process that is to commit it."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS[:2], runner("a"))
    await storage.commit_state(commit("ada", 1), "a")
    names = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
    seen = ", ".join(f"current_setting('{name}')" for name in names)
    await sql.execute(
        "create table seen (limits text[]); create function note() returns trigger language plpgsql as $$ begin "
        f"insert into actorhub.seen select array[{seen}]; return new; end $$; "
        "create trigger noted before update on entity_state for each row execute function note()"
    )
    await move(storage)
    assert await sql.fetchval("select limits from seen") == ["1s", "1s", "4s"]
