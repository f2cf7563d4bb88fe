"""Older data is put under a server that runners use."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.eras.books import enter_all, hub, read_all, running
from tests.support.parts import runner_of
from tests.support.postgres_server import PostgresServer
from tests.support.standby import Snapshot


@pytest.fixture
def files(own_postgres: PostgresServer) -> Path:
    """Where a copy of the server's files may be."""
    return own_postgres.directory / "copy"


async def _put_back(server: PostgresServer, files: Path) -> None:
    """Have the server run on those files instead of its own, at the same address."""
    await server.stop("fast")
    await asyncio.to_thread(shutil.rmtree, server.data)
    await asyncio.to_thread(Snapshot(files).copy, server.data)
    await server.start()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_everything_answers_after_older_files_were_put_back(
    own_postgres: PostgresServer, files: Path, mode: str
) -> None:
    """Runners, a client of the database and one of a runner go on with what the files have, and say what is gone."""
    url = own_postgres.url
    async with running(url) as first:
        kept = await enter_all(first)
        await own_postgres.stop("fast" if mode == "fast" else "immediate")
        await asyncio.to_thread(Snapshot(own_postgres.data).copy, files)
        await own_postgres.start()
        assert await read_all(first) == kept
        async with running(url) as second, hub.connect(database_url=url) as client:
            assert second.runner is not None
            async with hub.connect(gateway=second.runner.address) as remote:
                assert await enter_all(client) == dict.fromkeys(kept, 2)
                assert await enter_all(remote) == dict.fromkeys(kept, 3)
                await _put_back(own_postgres, files)
                for cluster in (first, second, client, remote):
                    assert await read_all(cluster) == kept
                for number, cluster in enumerate((first, second, client, remote), 2):
                    assert await enter_all(cluster) == dict.fromkeys(kept, number)
                assert all(runner_of(runner).health().lost for runner in (first, second))
                assert [runner_of(runner).eras.losses for runner in (first, second)] == [1, 1]


async def test_a_restart_that_loses_nothing_is_reported_as_nothing(own_postgres: PostgresServer) -> None:
    """A crash of the server costs a takeover; all that was acknowledged is there."""
    async with running(own_postgres.url) as first, running(own_postgres.url) as second:
        for number, mode in enumerate(("fast", "immediate", "immediate"), 1):
            entered = await enter_all(first)
            await own_postgres.restart("fast" if mode == "fast" else "immediate")
            assert entered == dict.fromkeys(entered, number)
            for cluster in (first, second):
                assert await read_all(cluster) == entered
        assert [runner_of(runner).eras.losses for runner in (first, second)] == [0, 0]
