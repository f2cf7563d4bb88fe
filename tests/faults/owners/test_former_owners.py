"""A runner takes over from one that may not know that it lost its shards, in real processes."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actorhub.storage.ports import LEASE
from tests.faults.cluster.processes import LOCK, ClusterProcesses, RunnerProcess, cluster_processes
from tests.faults.owners.clients import Writers
from tests.faults.owners.history import History, read_events, violations
from tests.faults.owners.hub import KEYS, hub
from tests.support.postgres_server import PostgresServer

_BEFORE = 1.0
"""Seconds of load before a fault."""
_END = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1"
_END_LEASE = "delete from actorhub.lock_session where incarnation = $1"
MUTANTS = ["a free lock is taken at once", "whoever cannot be asked counts as dead"]


@pytest.fixture
async def places(own_postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners whose numbers are read all the time."""
    async with cluster_processes(own_postgres, tmp_path, program="tests.faults.owners.program") as cluster:
        yield cluster


@asynccontextmanager
async def written(places: ClusterProcesses) -> AsyncGenerator[Writers, None]:
    """Write all numbers during the body."""
    async with hub.connect(gateway=places.gateways) as cluster, asyncio.TaskGroup() as tasks:
        writers = Writers(cluster)
        adding = [tasks.create_task(writers.add(key)) for key in KEYS]
        await writers.all_again(time.monotonic())
        await asyncio.sleep(_BEFORE)
        yield writers
        for task in adding:
            task.cancel()


def waits(places: ClusterProcesses) -> list[str]:
    """Return what the runners logged of leases that they waited out."""
    return [line for runner in places.runners for line in runner.log.splitlines() if "is over: it does not" in line]


async def leader_of(places: ClusterProcesses) -> RunnerProcess:
    """Return where the singleton is led."""
    [row] = await places.fetch("select shard from actorhub.singletons where singleton = 'leader'")
    leader = await places.owner(row["shard"])
    assert leader is not None
    return leader


async def taken_over(places: ClusterProcesses, victim: RunnerProcess, writers: Writers, since: float) -> float:
    """Wait until others own all that a runner had, and until every number has grown; return after how long they did."""
    async with asyncio.timeout(20):
        while await places.fetch("select from actorhub.shards where incarnation = $1", victim.incarnation):
            await asyncio.sleep(0.02)
    took = time.monotonic() - since
    await writers.all_again(since)
    return took


async def a_session_that_ends_unheard(places: ClusterProcesses) -> tuple[History, float]:
    """The server ends a leader's lock session, which does not hear of it, while its links to its peers break."""
    await places.start()
    await places.balanced()
    async with written(places) as writers:
        victim = await leader_of(places)
        # Ended in the same moment as it is cut off: sooner or later it would ask, and learn of it.
        async with places.connection() as connection:
            victim.store.black_hole(LOCK)
            assert await connection.fetch(_END, f"actorhub lock {victim.incarnation}")
            await connection.execute(_END_LEASE, victim.incarnation)
        for other in places.runners:
            if other is not victim:
                places.cut(victim, other)
        took = await taken_over(places, victim, writers, time.monotonic())
        await asyncio.sleep(LEASE.total_seconds())
        assert (await victim.statistics())["sessions_lost"] + (await victim.statistics())["self_fenced"] >= 1
        places.heal()
        await places.balanced()
        await writers.all_again(time.monotonic())
    return History(read_events(places.events()), writers.acknowledged), took


async def test_an_owner_that_does_not_know_its_session_ended_is_waited_out(places: ClusterProcesses) -> None:
    """No read is stale, no entity lives twice, no leader begins before the one before it has ceased."""
    history, took = await a_session_that_ends_unheard(places)
    print(f"takeover from an owner that cannot be asked: {took:.2f} s")
    assert violations(history) == []
    assert took < 2 * LEASE.total_seconds()


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_a_runner_that_does_not_wait_is_found_out(mutant: str, places: ClusterProcesses) -> None:
    """With that defect in the product, numbers are read that had been overwritten."""
    for runner in places.runners:
        runner.environment["OWNERS_MUTANT"] = mutant
    history, _ = await a_session_that_ends_unheard(places)
    found = violations(history)
    assert any("stale reads" in text for text in found), f"{found}\n{places.report()}"
    assert any("acted at epoch" in text for text in found)


async def test_a_killed_owner_is_known_dead_at_once(places: ClusterProcesses) -> None:
    """Its address refuses connections, so its lease is not waited out."""
    await places.start()
    await places.balanced()
    async with written(places) as writers:
        victim = places.runners[1]
        victim.kill()
        took = await taken_over(places, victim, writers, time.monotonic())
        print(f"takeover after SIGKILL: {took:.2f} s")
    assert waits(places) == []
    assert not [text for text in violations(History(read_events(places.events()), writers.acknowledged)) if "k" in text]


async def test_a_cluster_that_was_killed_waits_for_no_lease_when_it_is_back(places: ClusterProcesses) -> None:
    """Each new process listens where its predecessor did, also while it starts."""
    await places.start()
    await places.balanced()
    for runner in places.runners:
        runner.kill()
    await places.start()
    assert waits(places) == []
