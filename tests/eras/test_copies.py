"""A copy of the database is another cluster: it never reaches the original's runners."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from actorhub import Cluster, ConfigurationError, EntityNotAssigned, RunnerUnavailable
from actorhub.engine.runner import Runner
from actorhub.testing import until
from tests.eras.books import Book, enter_all, hub, read_all, running
from tests.support.dumps import dump, restore
from tests.support.parts import client_of, runner_of
from tests.support.postgres_server import PostgresServer, PostgresTemplate
from tests.support.processes import Processes
from tests.support.standby import BaseBackup, Snapshot, promote, url_of

_SHORT = timedelta(seconds=3)


@pytest.fixture
async def original(own_postgres: PostgresServer) -> AsyncIterator[Cluster]:
    """A runner with entries, on a database named production."""
    await own_postgres.sql("create database production")
    async with running(url_of(own_postgres, database="production")) as runner:
        await enter_all(runner)
        yield runner


def _serves(runner: Runner) -> bool:
    return runner.health().serving


async def _adopt(url: str, directory: Path) -> str:
    with Processes(directory) as processes:
        done = await processes.run("migrate", "--adopt", "--database", url)
    assert done.code == 0, done.err
    return done.out


async def _reaches_nobody(url: str) -> None:
    """Check that a client of the database is served by no runner."""
    async with hub.connect(database_url=url) as client:
        assert not client_of(client).node.peers.runners()
        with pytest.raises((EntityNotAssigned, RunnerUnavailable)):
            await client.client(Book).options(timeout=_SHORT)("b0").enter()
        assert not client_of(client).node.peers.runners()


@pytest.mark.parametrize("place", ["same server", "another server"])
async def test_a_restored_dump_is_used_by_nobody_before_it_is_adopted_and_is_a_cluster_of_its_own_then(
    original: Cluster, own_postgres: PostgresServer, postgres_template: PostgresTemplate, tmp_path: Path, place: str
) -> None:
    """Runner and client say what it is and what to do; afterwards its runners serve it, and the original's never do."""
    other = own_postgres if place == "same server" else PostgresServer(postgres_template)
    try:
        await other.sql("create database staging")
        await restore(await dump(own_postgres, "production"), other, "staging")
        url = url_of(other, database="staging")
        for entering in (hub.connect(database_url=url), running(url)):
            with pytest.raises(ConfigurationError, match=r"is a copy of .* 0 pending messages .* migrate --adopt"):
                async with entering:
                    pass
        assert "is a cluster of its own now" in await _adopt(url, tmp_path)
        assert "is not a copy, so nothing was changed" in await _adopt(url, tmp_path)
        await _reaches_nobody(url)
        async with running(url) as runner:
            assert await enter_all(runner) == dict.fromkeys(await read_all(original), 2)
            assert len(runner_of(runner).known_runners) == 1
        assert set((await read_all(original)).values()) == {1}
        assert "is not a copy" in await _adopt(url_of(own_postgres, database="production"), tmp_path)
        assert not runner_of(original).health().lost
    finally:
        if other is not own_postgres:
            other.close()


@pytest.mark.parametrize("kind", ["snapshot", "base backup", "promoted standby"])
async def test_a_client_of_copied_files_is_not_served_by_the_original(own_postgres: PostgresServer, kind: str) -> None:
    """They name the original's runners, and everything that the server says of itself may be the same."""
    async with running(own_postgres.url) as runner:
        entered = await enter_all(runner)
        if kind == "snapshot":
            await own_postgres.stop("immediate")
            copy = PostgresServer(Snapshot(own_postgres.data))
            await own_postgres.start()
        else:
            copy = PostgresServer(BaseBackup(own_postgres, is_standby=kind == "promoted standby"))
        try:
            if kind == "promoted standby":
                await promote(copy)
            assert await read_all(runner) == entered
            await _reaches_nobody(copy.url)
            async with running(copy.url) as own:
                assert await enter_all(own) == dict.fromkeys(entered, 2)
            assert await read_all(runner) == entered
            assert not runner_of(runner).health().lost
        finally:
            copy.close()


async def test_runners_whose_database_was_replaced_by_a_restored_dump_wait_for_its_adoption(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """They say so in their health, touch nothing, and answer soon after it was adopted."""
    await own_postgres.sql("create database production")
    url = url_of(own_postgres, database="production")
    async with running(url) as first, running(url) as second:
        kept = await enter_all(first)
        file = await dump(own_postgres, "production")
        await enter_all(second)
        await own_postgres.sql("drop database production with (force)")
        await own_postgres.sql("create database production")
        await restore(file, own_postgres, "production")
        for runner in map(runner_of, (first, second)):
            while "migrate --adopt" not in runner.health().reason:
                await asyncio.sleep(0.05)
        await _adopt(url, tmp_path)
        for cluster in (first, second):
            assert await read_all(cluster) == kept
        assert await enter_all(second) == dict.fromkeys(kept, 2)
        for runner in map(runner_of, (first, second)):
            await until(partial(_serves, runner))
            assert "copy that was adopted" in runner.health().lost


async def test_runners_notice_that_their_schema_was_restored_under_a_server_that_runs_on(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """No connection ends by itself: the next heartbeat finds another era."""
    url = own_postgres.url
    async with running(url) as first, running(url) as second:
        kept = await enter_all(first)
        file = await dump(own_postgres, "postgres")
        await enter_all(second)
        await own_postgres.sql("drop schema actorhub cascade")
        await restore(file, own_postgres, "postgres")
        await _adopt(url, tmp_path)
        for runner in map(runner_of, (first, second)):
            while not runner.health().lost:
                await asyncio.sleep(0.05)
        for cluster in (first, second):
            assert await read_all(cluster) == kept
        assert await enter_all(second) == dict.fromkeys(kept, 2)
