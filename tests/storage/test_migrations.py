"""The schema is the sum of its migrations, and applying them is safe at any time."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from actorhub.conformance.messages import message
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, runner
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import migrate, migration_sql, schema
from actorhub.storage.postgres.grants import grants_sql
from actorhub.storage.postgres.queries import queries
from actorhub.storage.postgres.schema import migrations, missing
from tests.storage.conftest import PostgresWorld
from tests.support.postgres_server import PostgresServer

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
from pg_proc
where pronamespace = current_schema()::regnamespace
union all
select relname || ' ' || array_to_string(reloptions, ',') from pg_class
where relnamespace = current_schema()::regnamespace and reloptions is not null
order by line
"""


async def _catalog(sql: "asyncpg.Connection[asyncpg.Record]") -> Sequence[str]:
    namespace = await sql.fetchval("select current_schema()")
    return [row["line"].replace(namespace, "NAMESPACE") for row in await sql.fetch(_CATALOG)]


async def test_the_printed_script_makes_the_schema_that_migrate_makes(postgres_world: PostgresWorld) -> None:
    """Both ways end in the same tables, constraints, indexes and functions, and know the same migrations."""
    assert await migrate(postgres_world.url, "blue") == len(migrations())
    sql = await postgres_world.sql("green")
    await sql.execute(migration_sql("green"))
    made, printed = await _catalog(await postgres_world.sql("blue")), await _catalog(sql)
    assert made == printed
    assert any("entity_state.version bigint NO" in line for line in made)
    assert await migrate(postgres_world.url, "green") == 0


async def test_migrating_again_changes_nothing(postgres_world: PostgresWorld) -> None:
    """The second time finds nothing to do."""
    assert await migrate(postgres_world.url, "actorhub") == len(migrations())
    before = await _catalog(await postgres_world.sql())
    assert await migrate(postgres_world.url, "actorhub") == 0
    assert await _catalog(await postgres_world.sql()) == before


async def test_processes_that_migrate_at_once_share_the_work(postgres_world: PostgresWorld) -> None:
    """Of many at once one applies the migrations and all succeed."""
    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(migrate(postgres_world.url, "actorhub")) for _ in range(6)]
    assert sorted(run.result() for run in runs) == [0, 0, 0, 0, 0, len(migrations())]


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


async def test_a_user_without_rights_needs_none_once_migrated(
    postgres_world: PostgresWorld, postgres_server: PostgresServer
) -> None:
    """A user who may not change the schema starts on a migrated one, and is told what to do on another."""
    sql = await postgres_world.sql()
    role = f"r{await sql.fetchval('select current_database()')}"
    await sql.execute(f'create role "{role}" login')
    try:
        url = postgres_world.url.replace("//postgres@", f"//{role}@")
        with pytest.raises(ConfigurationError, match="--print-sql"):
            await migrate(url, "actorhub")
        await migrate(postgres_world.url, "actorhub")
        await sql.execute(f'grant usage on schema actorhub to "{role}"')
        await sql.execute(f'grant all on all tables in schema actorhub to "{role}"')
        assert await migrate(url, "actorhub") == 0
    finally:
        await sql.execute(f'drop owned by "{role}"; drop role "{role}"')


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
    assert await migrate(postgres_world.url, "actorhub") == len(migrations())
    assert await sql.fetchval("select actorhub.total()") == 7


def test_no_function_is_made_twice() -> None:
    """Whoever reads a function need not look for a later one that replaces it."""
    made = re.findall(r"create (?:or replace )?function (\w+)", "".join(step.sql for step in migrations()))
    assert len(made) == len(set(made)) > 20


def test_the_files_of_a_migration_are_one_text_in_order() -> None:
    """The baseline begins with the first file of its folder and ends with the last."""
    baseline = migrations()[0]
    folder = Path(schema.__file__).parent / "migrations" / f"{baseline.number:04}_{baseline.name}"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]
    assert len(texts) > 1
    assert baseline.sql == "\n".join(texts)


def test_migrations_are_numbered_from_one_without_gaps() -> None:
    """Their order is their number."""
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))
    assert missing([]) == list(migrations())


def test_every_query_is_used_and_described() -> None:
    """No statement lies around: each name in queries.sql appears in the code and has a description."""
    import actorhub.storage.postgres as package

    folder = Path(package.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    assert [name for name in queries() if f'"{name}"' not in code] == []
    text = (folder / "queries.sql").read_text(encoding="utf-8")
    assert len(re.findall(r"^-- name: [a-z_]+\n-- [A-Z]", text, re.MULTILINE)) == len(queries())


_EVERYTHING = "select, insert, update, delete"


@pytest.fixture
async def app(postgres_world: PostgresWorld) -> AsyncIterator[str]:
    """The name of a role that owns nothing."""
    sql = await postgres_world.sql()
    name = f"app{(await sql.fetchval('select current_database()'))[1:]}"
    yield name
    await sql.execute(f'drop owned by "{name}"; drop role "{name}"')


async def test_the_printed_script_grants_a_role_what_it_needs(postgres_world: PostgresWorld, app: str) -> None:
    """The role is made; it runs on the schema that its owner made, commits, and may not change the schema."""
    sql = await postgres_world.sql("public")
    for _ in range(2):
        await sql.execute(grants_sql("public", [app]))
    await sql.execute(migration_sql("actorhub", [app]))
    postgres_world.url = postgres_world.url.replace("postgres@", f"{app}@")
    storage = await postgres_world.storage()
    assert len(await storage.take(SHARDS, runner("a"))) == len(SHARDS)
    await storage.commit_state(commit("ada", 1), "a")
    await storage.messages.deposit(message(1))


@pytest.mark.parametrize(
    ("revoked", "named"),
    [
        (
            "all on schema actorhub from {role}; revoke all on all tables in schema actorhub from {role}",
            "grant usage on schema actorhub to {role}; grant "
            + _EVERYTHING
            + " on all tables in schema actorhub to {role}",
        ),
        ("update, delete on actorhub.shard from {role}", "grant update, delete on actorhub.shard to {role}"),
        ("select on actorhub.migration from {role}", "grant select on actorhub.migration to {role}"),
        (
            "execute on function actorhub.pin_functions from public, {role}",
            "grant execute on all functions in schema actorhub to {role}",
        ),
    ],
)
async def test_missing_grants_are_named_as_the_statements_to_run(
    postgres_world: PostgresWorld, app: str, revoked: str, named: str
) -> None:
    """Exactly what is missing, and after running that, the role starts."""
    sql = await postgres_world.sql()
    await sql.execute(migration_sql("actorhub", [app]))
    await sql.execute(f"revoke {revoked.format(role=app)}")
    postgres_world.url = postgres_world.url.replace("postgres@", f"{app}@")
    with pytest.raises(ConfigurationError) as caught:
        await postgres_world.storage()
    statements = str(caught.value).partition("let its owner run: ")[2]
    assert statements == named.format(role=app)
    await sql.execute(statements)
    await postgres_world.storage()
