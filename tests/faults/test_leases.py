"""Runners that reach Postgres through a pooler in transaction mode alone, and hold their shards by leases."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from actorhub.storage.postgres.local_server import StopMode
from tests.faults.cluster.processes import ClusterProcesses, RunnerProcess, cluster_processes
from tests.faults.owners.clients import Writers
from tests.faults.owners.history import History, read_events, violations
from tests.faults.owners.test_former_owners import taken_over, waits, written
from tests.faults.registers.test_random_faults import run_faults
from tests.support.pgbouncer import MISSING, PROGRAM, PgBouncer, running
from tests.support.postgres_server import PostgresServer

_PROGRAM = "tests.faults.owners.program"
_FROZEN = 5.0
"""Seconds within which a frozen runner's shards have others."""


@pytest.fixture
def pooler(own_postgres: PostgresServer) -> Iterator[PgBouncer]:
    """The only way of the runners to Postgres."""
    if PROGRAM is None:
        pytest.skip(MISSING)
    with running(
        own_postgres.url, "transaction", default_pool_size=30, max_client_conn=400, server_login_retry=1
    ) as made:
        yield made


@pytest.fixture
async def places(own_postgres: PostgresServer, pooler: PgBouncer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for two runners that own numbers, which are read all the time."""
    async with cluster_processes(own_postgres, tmp_path, 2, program=_PROGRAM) as cluster:
        cluster.url = pooler.url
        for runner in cluster.runners:
            runner.environment["ACTORHUB_LOCKS"] = "lease"
        yield cluster


def wrong(places: ClusterProcesses, writers: Writers) -> list[str]:
    """Return the broken promises. Of leaders that are killed or frozen nobody can say when they ceased to lead."""
    found = violations(History(read_events(places.events()), writers.acknowledged))
    return [text for text in found if text.startswith("k")]


async def restarted(places: ClusterProcesses, runner: RunnerProcess) -> None:
    """Start a runner again, and wait until it has its share."""
    await places.start(runner)
    await places.balanced()


async def test_a_killed_runner_is_known_dead_at_once(places: ClusterProcesses) -> None:
    """Its session goes on at the server, so its peer ends it, and takes over without waiting for its lease."""
    await places.start()
    await places.balanced()
    async with written(places) as writers:
        for number in range(4):
            victim = places.runners[number % 2]
            victim.kill()
            took = await taken_over(places, victim, writers, time.monotonic())
            print(f"takeover after SIGKILL: {took:.3f} s")
            assert took < 1.0
            await restarted(places, victim)
    assert waits(places) == []
    assert wrong(places, writers) == []


async def test_a_frozen_runner_loses_its_shards_when_its_lease_is_over(places: ClusterProcesses) -> None:
    """Its peer takes over; when it thaws it fences itself, and has its share again."""
    await places.start()
    await places.balanced()
    async with written(places) as writers:
        for victim in places.runners:
            await asyncio.sleep(random.random())
            victim.freeze()
            took = await taken_over(places, victim, writers, time.monotonic())
            print(f"takeover after SIGSTOP: {took:.3f} s")
            assert took < _FROZEN
            victim.thaw()
            await places.balanced()
    assert wrong(places, writers) == []


async def test_a_runner_that_leaves_is_missed_by_nobody(places: ClusterProcesses) -> None:
    """Its shards move within its grace time, and it ends with 0."""
    await places.start()
    await places.balanced()
    async with written(places) as writers:
        leaving = places.runners[0]
        leaving.terminate()
        began = time.monotonic()
        assert await leaving.gone() == 0
        assert await writers.all_again(began) < 3
        await restarted(places, leaving)
    assert violations(History(read_events(places.events()), writers.acknowledged)) == []


async def test_nothing_is_lost_when_the_pooler_or_postgres_restarts(
    places: ClusterProcesses, pooler: PgBouncer
) -> None:
    """Every lease session ends with the way to Postgres, or its era, and begins again."""
    await places.start()
    await places.balanced()
    async with written(places) as writers:
        restarts: list[StopMode | None] = [None, "fast", "immediate"]
        for how in restarts:
            if how is None:
                pooler.stop()
                await asyncio.sleep(1.0)
                pooler.start()
            else:
                await places.postgres.restart(how)
            took = await writers.all_again(time.monotonic())
            print(f"all served {took:.2f} s after a restart of {how or 'the pooler'}")
            assert took < 8
            await places.balanced()
    assert wrong(places, writers) == []


async def test_a_runner_that_would_hold_shards_in_another_way_is_refused(places: ClusterProcesses) -> None:
    """It says which value differs and what to do, the others go on, and when they have ended it may start."""
    one, other = places.runners
    await places.start(one)
    other.environment.clear()
    postgres = places.postgres.url
    other.spawn(postgres)
    assert await other.gone() == 1
    assert 'locks is "lease"' in other.log
    assert "--locks lease" in other.log
    assert (await one.statistics())["sessions_opened"] == 1
    one.kill()
    other.spawn(postgres)
    await other.ready()
    await places.balanced()


async def test_random_faults_break_no_promise_with_leases(processes: ClusterProcesses) -> None:
    """The faults of `tests/faults/registers`, some of them."""
    for runner in processes.runners:
        runner.environment["ACTORHUB_LOCKS"] = "lease"
    await run_faults(processes, random.randrange(1, 1_000_000), 8, longest=2.5)
