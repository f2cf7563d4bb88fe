"""Roles that do not own the schema: what they need, who grants it, and what is said where it is missing."""

from collections.abc import AsyncIterator

import pytest

from actorhub.conformance.messages import message
from actorhub.conformance.storage import SHARDS, commit, runner
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import migrate, migration_sql
from actorhub.storage.postgres.grants import grants_sql
from tests.storage.conftest import PostgresWorld

_EVERYTHING = "select, insert, update, delete"
_OPEN_TO_ALL = """
select p.proname from pg_proc as p
where p.pronamespace = 'actorhub'::regnamespace and exists (
    select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a where a.grantee = 0
)
"""


@pytest.fixture
async def app(postgres_world: PostgresWorld) -> AsyncIterator[str]:
    """The name of a role that owns nothing and may log in."""
    sql = await postgres_world.sql()
    name = f"app{(await sql.fetchval('select current_database()'))[1:]}"
    await sql.execute(f'create role "{name}" login')
    yield name
    await sql.execute(f'drop owned by "{name}"; drop role "{name}"')


def _as(world: PostgresWorld, role: str) -> str:
    return world.url.replace("postgres@", f"{role}@")


async def _as_the_release_before(world: PostgresWorld, role: str) -> None:
    """Make the schema without additions, and grant the role what it needed then: the tables."""
    await world.without_additions()
    sql = await world.sql()
    await sql.execute(f'grant usage on schema actorhub to "{role}"')
    await sql.execute(f'grant {_EVERYTHING} on all tables in schema actorhub to "{role}"')


async def _runs(world: PostgresWorld) -> None:
    """Open a storage, take shards, commit a state and store a message."""
    storage = await world.storage()
    assert len(await storage.take(SHARDS, runner("a"))) == len(SHARDS)
    await storage.commit_state(commit("ada", 1), "a")
    await storage.messages.deposit(message(1))


async def test_a_user_without_rights_needs_none_once_migrated(postgres_world: PostgresWorld, app: str) -> None:
    """A user who may not change the schema starts on a migrated one, and is told what to do on another."""
    with pytest.raises(ConfigurationError, match="--print-sql"):
        await migrate(_as(postgres_world, app), "actorhub")
    await migrate(postgres_world.url, "actorhub")
    await (await postgres_world.sql("public")).execute(grants_sql("actorhub", [app]))
    assert await migrate(_as(postgres_world, app), "actorhub") == 0


async def test_the_printed_script_grants_a_role_what_it_needs(postgres_world: PostgresWorld, app: str) -> None:
    """The role is made; it runs on the schema that its owner made, commits, and may not change the schema."""
    sql = await postgres_world.sql("public")
    await sql.execute(f'drop role "{app}"')
    for _ in range(2):
        await sql.execute(migration_sql("actorhub", [app]))
    postgres_world.url = _as(postgres_world, app)
    await _runs(postgres_world)


async def test_the_printed_script_brings_a_schema_of_the_release_before_up_to_date(
    postgres_world: PostgresWorld, app: str
) -> None:
    """A role that may not do so itself is told to have it run, and then starts."""
    sql = await postgres_world.sql()
    await _as_the_release_before(postgres_world, app)
    with pytest.raises(ConfigurationError, match=r"may not change schema actorhub: .* actorhub migrate --print-sql"):
        await migrate(_as(postgres_world, app), "actorhub")
    await sql.execute(migration_sql("actorhub", [app]))
    postgres_world.url = _as(postgres_world, app)
    await _runs(postgres_world)


async def test_a_role_that_has_the_tables_keeps_the_functions(postgres_world: PostgresWorld, app: str) -> None:
    """Once functions are no longer everybody's, and of new tables it gets what it has of the others."""
    await _as_the_release_before(postgres_world, app)
    await migrate(postgres_world.url, "actorhub")
    sql = await postgres_world.sql()
    await sql.execute("create table ledger (); select grant_to_members('ledger')")
    assert await sql.fetchval(f"select has_table_privilege($1, 'ledger', '{_EVERYTHING}')", app)
    postgres_world.url = _as(postgres_world, app)
    await _runs(postgres_world)


async def test_a_role_that_may_write_to_every_table_keeps_the_functions(
    postgres_world: PostgresWorld, app: str
) -> None:
    """A member of pg_write_all_data has no grants of its own, and could call what everybody could."""
    sql = await postgres_world.sql()
    await sql.execute(f'grant pg_read_all_data, pg_write_all_data to "{app}"')
    await migrate(postgres_world.url, "actorhub")
    postgres_world.url = _as(postgres_world, app)
    await _runs(postgres_world)


async def test_nobody_else_may_call_a_function(postgres_world: PostgresWorld) -> None:
    """No function of the schema is executable by PUBLIC, whichever release made it."""
    await migrate(postgres_world.url, "actorhub")
    sql = await postgres_world.sql()
    assert await sql.fetch(_OPEN_TO_ALL) == []
    assert await sql.fetchval("select count(*) from pg_proc where pronamespace = 'actorhub'::regnamespace") > 30


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
            "all on actorhub.addition, actorhub.migration from {role}",
            "grant select on actorhub.addition, actorhub.migration to {role}",
        ),
        (
            "execute on function actorhub.grant_to_members from {role}",
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
    postgres_world.url = _as(postgres_world, app)
    with pytest.raises(ConfigurationError) as caught:
        await postgres_world.storage()
    statements = str(caught.value).partition("let its owner run: ")[2]
    assert statements == named.format(role=app)
    await sql.execute(statements)
    await postgres_world.storage()
