"""Additions: changes of the schema that the release before may ignore."""

import asyncio

import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import migrate, migration_sql
from actorhub.storage.postgres.schema import additions
from tests.storage.conftest import PostgresWorld


async def test_a_schema_of_the_release_before_gets_the_additions(postgres_world: PostgresWorld) -> None:
    """Each is applied once, and the table that the release before looks at stays as it was."""
    await postgres_world.without_additions()
    sql = await postgres_world.sql()
    before = await sql.fetch("select * from migration")
    assert await migrate(postgres_world.url, "actorhub") == len(additions())
    assert await migrate(postgres_world.url, "actorhub") == 0
    assert await sql.fetch("select * from migration") == before
    rows = await sql.fetch("select number, name, checksum from addition order by number")
    assert [tuple(row) for row in rows] == [(step.number, step.name, step.checksum) for step in additions()]


async def test_processes_that_add_at_once_share_the_work(postgres_world: PostgresWorld) -> None:
    """Of many at once one applies the additions and all succeed, the printed script among them."""
    await postgres_world.without_additions()
    sql = await postgres_world.sql("public")
    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(migrate(postgres_world.url, "actorhub")) for _ in range(5)]
        tasks.create_task(sql.execute(migration_sql("actorhub")))
    assert sorted({run.result() for run in runs} - {0}) in ([], [len(additions())])
    assert await sql.fetchval("select count(*) from actorhub.addition") == len(additions())


async def test_what_a_newer_release_added_is_ignored(postgres_world: PostgresWorld) -> None:
    """The release can be put back: it starts, and leaves what it does not know as it is."""
    await migrate(postgres_world.url, "actorhub")
    sql = await postgres_world.sql()
    await sql.execute("insert into addition (number, name, checksum) values (2, 'future', 'x'), (999, 'later', 'x')")
    await postgres_world.storage()
    await sql.execute(migration_sql("actorhub"))
    assert await sql.fetchval("select count(*) from addition") == len(additions()) + 2


async def test_a_changed_addition_is_refused(postgres_world: PostgresWorld) -> None:
    """A checksum that differs from the one applied ends the start."""
    await migrate(postgres_world.url, "actorhub")
    await (await postgres_world.sql()).execute("update addition set checksum = 'x' where number = 1")
    with pytest.raises(ConfigurationError, match=r"addition 1 \(members\) was applied with another text"):
        await postgres_world.storage()


async def test_a_failed_addition_leaves_nothing(postgres_world: PostgresWorld) -> None:
    """All or none: what is in the way of one fails all, and the release before goes on with its schema."""
    await postgres_world.without_additions()
    sql = await postgres_world.sql()
    await sql.execute("create function grant_to_members(variadic names text[]) returns void language sql as ''")
    with pytest.raises(Exception, match="grant_to_members"):
        await migrate(postgres_world.url, "actorhub")
    assert await sql.fetchval("select to_regclass('addition')") is None
