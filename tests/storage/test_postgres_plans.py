"""What statements read where the planner knows little, or much is dead: index entries are counted, not time."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg
import pytest

from actorhub.conformance.messages import message, results, run, stored
from actorhub.conformance.storage import PATIENCE_SECONDS, runner
from actorhub.core.address import ShardId
from actorhub.storage.message_ports import RunStart
from actorhub.storage.postgres import PostgresStorage
from tests.storage.conftest import PostgresWorld

Work: TypeAlias = Callable[[PostgresStorage], Awaitable[None]]

_SHARDS = [ShardId("default", number) for number in range(300)]
_ENTITIES = 40
_ALL_OF_ONE = """
set plan_cache_mode = force_generic_plan;
prepare of_group (text) as select from shard where shard_group = $1;
prepare of_type (text) as select from entity_state where entity_type = $1;
"""
_MANY = """
insert into message (message_id, attempts, shard_number, shard_group, entity_type, entity_id, handler, body)
select n, 1, n % 40, 'default', 'orders', 'e' || n % 40, 'place', 'x' from generate_series(1, 50000) as n;
delete from message;
"""
_LATER = """
insert into reply (
    message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group, entity_type,
    entity_id, handler, body
)
select n, 1, now(), now(), now() + interval '1 day', 1, 0, 0, 'default', 'orders', 'e', 'place', 'x'
from generate_series(5001, 10000) as n;
insert into key_value (key, expires_at, data)
select n, now() + interval '1 day', 'x' from generate_series(1, 5000) as n;
analyze;
"""
_COMMITS = """
do $$
begin
    for number in 2..601 loop
        update entity_state set version = number;
    end loop;
end
$$
"""
_NO_AUTOVACUUM = "".join(
    f"alter table {table} set (autovacuum_enabled = off);"
    for table in ("shard", "entity_state", "message", "reply", "key_value")
)


@dataclass
class Tables:
    """The tables of a namespace that nobody vacuums or analyzes in the background."""

    world: PostgresWorld
    sql: "asyncpg.Connection[asyncpg.Record]"
    owner: PostgresStorage
    """Owns three hundred shards, at epoch 1."""

    async def reads_of(self, work: Work) -> Mapping[str, int]:
        """Return how many entries of each index `work` read, the dead ones included."""
        await self._let_others_go()
        await self.sql.execute("select pg_stat_reset()")
        storage = await self.world.storage()
        await work(storage)
        await storage.aclose()
        await self._let_others_go()
        rows = await self.sql.fetch("select indexrelname, idx_tup_read from pg_stat_user_indexes")
        return {row["indexrelname"]: row["idx_tup_read"] for row in rows}

    async def _let_others_go(self) -> None:
        # A session adds its counts when it ends, before it leaves this view.
        await self.owner.aclose()
        ours = "datname = current_database() and application_name like 'actorhub%'"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.sql.fetchval(f"select count(*) from pg_stat_activity where {ours}"):
                await asyncio.sleep(0.02)


@pytest.fixture
async def tables(postgres_world: PostgresWorld) -> Tables:
    """The tables of a new namespace."""
    owner, sql = await postgres_world.storage(), await postgres_world.sql()
    await sql.execute(_NO_AUTOVACUUM)
    await owner.take(_SHARDS, runner("a"))
    return Tables(postgres_world, sql, owner)


async def _settle(storage: PostgresStorage, first: int, *, version: int = 0) -> None:
    """Store, start and commit a message of each entity, each in a shard of its own."""
    messages = storage.messages
    made = [message(first + number, f"e{number}", shard=_SHARDS[number]) for number in range(_ENTITIES)]
    await stored(messages, made)
    await results([messages.start_run(RunStart(each.message_id, each.shard, 1, 1), "a") for each in made])
    await results([messages.commit_run(run(each, version), "a") for each in made])


async def _hold_snapshot(world: PostgresWorld) -> None:
    """Begin what others do: a report, or a dump, that sees the database as it is now."""
    sql = await world.sql()
    await sql.execute("begin isolation level repeatable read")
    await sql.execute("select 1")


async def test_the_planner_knows_a_new_database(tables: Tables) -> None:
    """Before anything was analyzed, it does not take a shard group, or an entity type, for a few rows to be read."""
    await _settle(tables.owner, 1000, version=1)
    await tables.sql.execute(_ALL_OF_ONE)
    for name, rows in (("of_group", len(_SHARDS)), ("of_type", _ENTITIES)):
        [plan] = json.loads(await tables.sql.fetchval(f"explain (format json) execute {name} ('x')"))
        assert plan["Plan"]["Plan Rows"] >= rows / 2


async def test_settled_messages_that_an_old_snapshot_keeps_are_not_read_with_each_entity(tables: Tables) -> None:
    """With 50,000 dead messages, an entity's messages cost its own dead ones, and a walk over its shard those twice."""
    await _hold_snapshot(tables.world)
    await tables.sql.execute(_MANY)
    await tables.sql.execute("vacuum analyze message")

    async def work(storage: PostgresStorage) -> None:
        await _settle(storage, 1_000_000)
        pending = [message(2_000_000 + n, f"e{n}", shard=_SHARDS[n]) for n in range(_ENTITIES)]
        await stored(storage.messages, pending)
        found = await storage.messages.load_entities([(each.shard, "orders", each.entity_id) for each in pending], 8)
        assert [row.message_id for row in found] == [each.message_id for each in pending]
        walked, done = await storage.messages.load_backlog(dict.fromkeys(_SHARDS, ("", "")), 8, 8)
        assert [row.message_id for row in walked] == [each.message_id for each in pending]
        assert done == frozenset(_SHARDS)
        due, _ = await storage.messages.load_scheduled(_SHARDS, time.time() + 3600.0, 1000)
        assert due == []

    read = await tables.reads_of(work)
    assert read["message_pkey"] <= _ENTITIES * 10
    assert read["message_in_line"] <= (50_000 + _ENTITIES * 4) * 3


async def test_what_is_not_over_yet_is_not_read_to_remove_what_is(tables: Tables) -> None:
    """Replies and values whose time is to come are not read, however many there are."""
    await _settle(tables.owner, 1000)
    await tables.sql.execute(_LATER)

    async def work(storage: PostgresStorage) -> None:
        for _ in range(10):
            assert await storage.messages.remove_expired(1000) == 0
            assert await storage.key_values.remove_expired(1000) == 0

    read = await tables.reads_of(work)
    assert read["reply_by_expiry"] + read["key_value_by_expiry"] <= 20
