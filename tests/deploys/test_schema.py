"""The schema of two releases: what this one adds, the one before may ignore."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.deploys.releases import Cluster, Release, leave
from tests.support.processes import ActorhubProcess, Processes

_GRANTS = """
create role "{role}" login;
grant usage on schema actorhub to "{role}";
grant select, insert, update, delete on all tables in schema actorhub to "{role}";
"""
HUB = "tests.ops.durable_shop:hub"


@pytest.fixture
async def role(postgres_url: str) -> AsyncIterator[str]:
    """The name of a role that is not there yet."""
    database = await asyncpg.connect(postgres_url)
    name = f"app_{await database.fetchval('select current_database()')}"
    yield name
    await database.execute(f'drop owned by "{name}"; drop role "{name}"')
    await database.close()


async def test_the_release_before_goes_on_and_comes_back_over_a_schema_with_additions(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path, role: str
) -> None:
    """Its runners do not own the schema; they run while additions come, start again afterwards, and nothing is lost."""
    before, now = releases
    as_role = postgres_url.replace("postgres@", f"{role}@")
    with Processes(tmp_path) as processes:
        cluster, booked = Cluster(processes, as_role), 0

        async def books(runner: ActorhubProcess) -> None:
            nonlocal booked
            booked += 1
            booking = f'{{"amount": 1, "text": "{booked}"}}'
            assert await cluster.command(runner, "call", "accounts", "ada", "book", booking) == booked

        await cluster.migrate(before, postgres_url)
        database = await asyncpg.connect(postgres_url)
        await database.execute(_GRANTS.format(role=role))
        old = await cluster.start(before, HUB)
        await books(old)
        await cluster.migrate(now, postgres_url)
        await books(old)
        for release in (before, now):
            for runner in (await cluster.start(release, HUB), old):
                await books(runner)
        await cluster.migrate(before, postgres_url)
        await cluster.migrate(now, postgres_url)
        await books(old)
        assert await database.fetchval("select count(*) from actorhub.migration") == 1
        await leave(old)
        await database.close()


async def test_the_release_before_gets_no_shard_of_a_cluster_with_leases(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path
) -> None:
    """Its locks would not see them: its start fails and says why, and nothing moves."""
    before, now = releases
    with Processes(tmp_path) as processes:
        processes.env["ACTORHUB_LOCKS"] = "lease"
        cluster = Cluster(processes, postgres_url)
        await cluster.migrate(now, postgres_url)
        runner = await cluster.start(now, HUB)
        shards = await cluster.command(runner, "shards")
        del processes.env["ACTORHUB_LOCKS"]
        processes.are_fresh = True
        flags = ("--listen", "127.0.0.1:0", "--database", postgres_url)
        refused = processes.start("serve", HUB, *flags, **before.env)
        assert await refused.ended() == 1
        assert "start it with --locks lease" in refused.err
        assert await cluster.command(runner, "shards") == shards
        await leave(runner)
