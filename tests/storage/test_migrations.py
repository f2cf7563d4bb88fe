"""The schema is the sum of its migrations, and applying them is safe at any time."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import migrate, migration_sql, schema
from actorhub.storage.postgres.queries import queries
from actorhub.storage.postgres.schema import additions, migrations, missing_migrations
from tests.storage.conftest import PostgresWorld

_CATALOG = """
select table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable as line
from information_schema.columns where table_schema = current_schema()
union all
select conrelid::regclass || ' ' || pg_get_constraintdef(oid) from pg_constraint
where connamespace = current_schema()::regnamespace and contype <> 'n'
union all
select indexdef from pg_indexes where schemaname = current_schema()
union all
select proname || '(' || pg_get_function_arguments(oid) || ') ' || md5(prosrc) || coalesce(proconfig::text, '')
    || proacl::text
from pg_proc
where pronamespace = current_schema()::regnamespace
union all
select relname || ' ' || array_to_string(reloptions, ',') from pg_class
where relnamespace = current_schema()::regnamespace and reloptions is not null
order by line
"""


STEPS = len(migrations()) + len(additions())


async def _catalog(sql: "asyncpg.Connection[asyncpg.Record]") -> Sequence[str]:
    namespace = await sql.fetchval("select current_schema()")
    return [row["line"].replace(namespace, "NAMESPACE") for row in await sql.fetch(_CATALOG)]


async def test_the_printed_script_makes_the_schema_that_migrate_makes(postgres_world: PostgresWorld) -> None:
    """Both ways end in the same tables, constraints, indexes and functions, and know the same migrations."""
    assert await migrate(postgres_world.url, "blue") == STEPS
    sql = await postgres_world.sql("green")
    await sql.execute(migration_sql("green"))
    made, printed = await _catalog(await postgres_world.sql("blue")), await _catalog(sql)
    assert made == printed
    assert any("entity_state.version bigint NO" in line for line in made)
    assert await migrate(postgres_world.url, "green") == 0


async def test_migrating_again_changes_nothing(postgres_world: PostgresWorld) -> None:
    """The second time finds nothing to do."""
    assert await migrate(postgres_world.url, "actorhub") == STEPS
    before = await _catalog(await postgres_world.sql())
    assert await migrate(postgres_world.url, "actorhub") == 0
    assert await _catalog(await postgres_world.sql()) == before


async def test_processes_that_migrate_at_once_share_the_work(postgres_world: PostgresWorld) -> None:
    """Of many at once one applies the migrations and all succeed."""
    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(migrate(postgres_world.url, "actorhub")) for _ in range(6)]
    assert sorted(run.result() for run in runs) == [0, 0, 0, 0, 0, STEPS]


async def test_a_schema_of_a_newer_release_is_refused(postgres_world: PostgresWorld) -> None:
    """The error names the migration and says to install the newer release."""
    await migrate(postgres_world.url, "actorhub")
    sql = await postgres_world.sql()
    await sql.execute("insert into migration (number, name, checksum) values (999, 'future', 'x')")
    with pytest.raises(ConfigurationError, match=r"999 \(future\).*install the newer release"):
        await postgres_world.storage()


async def test_a_changed_migration_is_refused(postgres_world: PostgresWorld) -> None:
    """A checksum that differs from the one applied ends the start."""
    await migrate(postgres_world.url, "actorhub")
    await (await postgres_world.sql()).execute("update migration set checksum = 'x' where number = 1")
    with pytest.raises(ConfigurationError, match=r"migration 1 .* was applied with another text"):
        await postgres_world.storage()


async def test_a_failed_migration_leaves_nothing(postgres_world: PostgresWorld) -> None:
    """All or none: a table in the way fails the whole and names it."""
    sql = await postgres_world.sql()
    await sql.execute("create schema actorhub; create table actorhub.shard ()")
    with pytest.raises(Exception, match="shard"):
        await migrate(postgres_world.url, "actorhub")
    assert [row[0] for row in await sql.fetch("select tablename from pg_tables where schemaname = 'actorhub'")] == [
        "shard"
    ]


async def test_each_function_finds_its_own_schema(postgres_world: PostgresWorld) -> None:
    """Whatever the caller's search path; and a function that plans once is confined to look-ups by index."""
    await migrate(postgres_world.url, "actorhub")
    rows = await (await postgres_world.sql()).fetch(
        "select proname, proconfig from pg_proc where pronamespace = 'actorhub'::regnamespace "
        "and prolang = (select oid from pg_language where lanname = 'plpgsql')"
    )
    assert len(rows) > 20
    settings = {row["proname"]: set(row["proconfig"] or ()) for row in rows}
    assert [name for name, found in settings.items() if "search_path=actorhub" not in found] == []
    once = {name for name, found in settings.items() if "plan_cache_mode=force_generic_plan" in found}
    assert {"store_messages", "start_runs", "commit_runs", "fail_runs", "write_checkpoints"} <= once
    forbidden = {f"enable_{kind}=off" for kind in ("seqscan", "bitmapscan", "hashjoin", "mergejoin")}
    assert [name for name in settings if (forbidden <= settings[name]) != (name in once)] == []


async def test_functions_of_others_in_the_schema_stay_as_they_are(postgres_world: PostgresWorld) -> None:
    """A schema that somebody else uses, too, such as public: what is there is not ours to change."""
    sql = await postgres_world.sql("public")
    await sql.execute(
        "create schema actorhub; create table public.price as select 7 as amount; create function actorhub.total() "
        "returns bigint language plpgsql as $$ begin return (select sum(amount) from price); end $$"
    )
    assert await migrate(postgres_world.url, "actorhub") == STEPS
    assert await sql.fetchval("select actorhub.total()") == 7


_MENDED = {"commit_states", "commit_one_by_one", "commit_verdicts"}
"""Of the baseline's functions those that an addition replaces: with them the release before did something wrong."""


def test_no_function_is_made_twice() -> None:
    """Whoever reads a function need not look for a later one that replaces it."""
    text = "".join(step.sql for step in (*migrations(), *additions()))
    made = re.findall(r"create (?:or replace )?function (\w+)", text)
    assert {name for name in made if made.count(name) > 1} == _MENDED
    assert len(set(made)) > 20


def test_the_files_of_a_migration_are_one_text_in_order() -> None:
    """The baseline begins with the first file of its folder and ends with the last."""
    baseline = migrations()[0]
    folder = Path(schema.__file__).parent / "migrations" / f"{baseline.number:04}_{baseline.name}"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]
    assert len(texts) > 1
    assert baseline.sql == "\n".join(texts)


def test_steps_are_numbered_from_one_without_gaps() -> None:
    """Their order is their number."""
    for steps in (migrations(), additions()):
        assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert missing_migrations([]) == migrations()


def test_every_query_is_used_and_described() -> None:
    """No statement lies around: each name in queries.sql appears in the code and has a description."""
    import actorhub.storage.postgres as package

    folder = Path(package.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    assert [name for name in queries() if f'"{name}"' not in code] == []
    text = (folder / "queries.sql").read_text(encoding="utf-8")
    assert len(re.findall(r"^-- name: [a-z_]+\n-- [A-Z]", text, re.MULTILINE)) == len(queries())
