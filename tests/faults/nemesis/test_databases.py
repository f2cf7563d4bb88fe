"""Databases that misbehave under everything at once: what is acknowledged is committed, and soon all answers again."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from actorhub.storage.ports import LEASE
from actorhub.storage.postgres.errors import FOREIGN_ERRORS
from benchmarks._disk import Disk, NoShim
from tests.faults.cluster.faults import KINDS, Faults, Injection
from tests.faults.cluster.processes import ClusterProcesses, cluster_processes
from tests.faults.nemesis.run import Outcome, Plan, run_nemesis
from tests.support.pgbouncer import MISSING, PROGRAM, Mode, running
from tests.support.postgres_server import PostgresServer, PostgresTemplate

_PROGRAM = "tests.faults.nemesis.program"
SOON = 15.0
"""Seconds after the end of a fault within which everything answers."""
HONEST = {"CallTimeout", "EntityNotAssigned", "PersistenceError", "RunnerUnavailable"}
"""What calls may fail with while there is no database."""


async def judged(processes: ClusterProcesses, kinds: Mapping[str, Injection], times: int = 1) -> Outcome:
    """Have these faults happen one after the other; everything is judged."""
    outcome = await run_nemesis(processes, Plan(1, times, kinds=kinds, patience=SOON))
    names = {error.removeprefix("reply: ").removeprefix("cancel: ").partition(": ")[0] for error in outcome.errors}
    print(f"recovered after {outcome.recoveries}; {dict(outcome.acknowledged)}; {names}")
    assert outcome.found == [], "\n".join(outcome.found)
    assert names <= HONEST | {"DuplicateKey"}
    return outcome


@pytest.fixture
def disk(open_directory: Path) -> Disk:
    """A disk that can be made slow or full."""
    try:
        return Disk(open_directory)
    except NoShim as reason:
        pytest.skip(str(reason))


@pytest.fixture
def postgres_on_disk(disk: Disk, postgres_template: PostgresTemplate) -> Iterator[PostgresServer]:
    """A real Postgres of this test alone on that disk."""
    with disk.preloaded():
        server = PostgresServer(postgres_template)
    yield server
    disk.mend()
    server.close()


@pytest.fixture
async def processes_on_disk(postgres_on_disk: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners on that Postgres."""
    async with cluster_processes(postgres_on_disk, tmp_path, program=_PROGRAM) as cluster:
        yield cluster


def frozen(seconds: float) -> Mapping[str, Injection]:
    """Postgres stands still for this long, and nobody believes its lease meanwhile."""

    async def freeze(faults: Faults) -> str:
        postgres = faults.processes.postgres
        postgres.freeze()
        try:
            began = time.monotonic()
            await asyncio.sleep(2 * LEASE.total_seconds())
            for runner in faults.processes.runners:
                said = await runner.statistics()
                assert said["owned"] == 0, f"{runner.name} believes its lease: {said}"
            await asyncio.sleep(seconds - (time.monotonic() - began))
        finally:
            postgres.thaw()
        return f"for {seconds:.0f} s"

    return {"freeze Postgres": freeze}


@pytest.mark.faults
async def test_a_postgres_that_stands_still_is_believed_by_nobody(nemesis_processes: ClusterProcesses) -> None:
    """For twelve seconds calls wait or fail honestly, then everything answers."""
    await judged(nemesis_processes, frozen(12.0))


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_a_postgres_that_stands_still_for_a_minute_is_lived_with(nemesis_processes: ClusterProcesses) -> None:
    """The same for a minute."""
    await judged(nemesis_processes, frozen(60.0))


@pytest.mark.faults
async def test_a_slow_disk_costs_time_and_no_lease(processes_on_disk: ClusterProcesses, disk: Disk) -> None:
    """While each flush takes up to a second, commits are slow, heartbeats are not, and no shard is taken over."""

    async def slow_down(faults: Faults) -> str:
        before = await _tenures(faults.processes)
        disk.slow(0.2, 1.0)
        began = time.monotonic()
        await faults.processes.fetch("create table public.slow ()")
        assert time.monotonic() - began > 0.2
        await asyncio.sleep(8.0)
        assert await _tenures(faults.processes) == before
        disk.mend()
        return "for 8 s"

    await judged(processes_on_disk, {"slow disk": slow_down})


async def _tenures(processes: ClusterProcesses) -> list[Any]:
    """Return who owns what since when, and how often runners fenced themselves."""
    await processes.balanced()
    rows = await processes.fetch("select shard, epoch, incarnation from actorhub.shards order by shard")
    told = [await runner.statistics() for runner in processes.runners]
    return [*rows, *((said["self_fenced"], said["sessions_opened"]) for said in told)]


def filled(disk: Disk, where: str, seconds: float) -> Mapping[str, Injection]:
    """No file whose path contains `where` can grow for this long; the operator then starts Postgres if it died."""

    async def fill(faults: Faults) -> str:
        postgres = faults.processes.postgres
        disk.fill(where)
        try:
            await postgres.sql("select pg_switch_wal()")  # the next segment of the log is a new file
        except FOREIGN_ERRORS as error:
            print(f"Postgres cannot write its log: {error!r}")
        await asyncio.sleep(seconds)
        disk.mend()
        lived = postgres.pid is not None
        await postgres.start()
        return f"{where} for {seconds:.0f} s; Postgres {'lived' if lived else 'died'}"

    return {"full disk": fill}


@pytest.mark.faults
async def test_a_disk_without_room_for_tables_fails_calls_which_say_so(
    processes_on_disk: ClusterProcesses, disk: Disk
) -> None:
    """Nothing acknowledged is lost, and once there is room everything answers."""
    outcome = await judged(processes_on_disk, filled(disk, "/base/", 14.0))
    assert any("PersistenceError" in text and "No space left on device" in text for text in outcome.errors)


@pytest.mark.faults
async def test_a_disk_without_room_for_the_log_stops_postgres_and_loses_nothing(
    processes_on_disk: ClusterProcesses, disk: Disk
) -> None:
    """It is started again when there is room, and no runner is."""
    await judged(processes_on_disk, filled(disk, "/", 4.0))


@pytest.mark.faults
@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
@pytest.mark.parametrize(
    ("mode", "locks"), [("session", "session"), ("transaction", "session"), ("transaction", "lease")]
)
async def test_a_pooler_that_is_killed_and_a_database_that_crashes_behind_it_lose_nothing(
    own_postgres: PostgresServer, tmp_path: Path, mode: Mode, locks: str
) -> None:
    """Runners behind it answer soon after it, or Postgres, is back."""
    settings = {"default_pool_size": 60, "max_client_conn": 400, "server_login_retry": 1}
    with running(own_postgres.url, mode, **settings) as pool:

        async def restart(faults: Faults) -> str:
            pool.stop()
            seconds = await faults.pause(1.0)
            pool.start()
            return f"for {seconds:.1f} s"

        async with cluster_processes(own_postgres, tmp_path, program=_PROGRAM, pooler=pool.port) as processes:
            for runner in processes.runners:
                runner.environment["ACTORHUB_LOCKS"] = locks
                if mode == "transaction" and locks == "session":
                    runner.environment["ACTORHUB_LOCK_DATABASE_URL"] = own_postgres.url
            kinds = {"restart the pooler": restart, "crash Postgres": KINDS["crash Postgres"]}
            await judged(processes, kinds, 4)
