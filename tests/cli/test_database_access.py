"""Real runners and clients on databases that are reached through poolers, or allow few connections."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.pgbouncer import MISSING, PROGRAM, Mode, pgbouncer
from tests.support.processes import Processes
from tests.support.shop import Order, Orders, hub

_with_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason=MISSING)


@_with_pgbouncer
@pytest.mark.parametrize(
    ("mode", "locks"),
    [("session", "session"), ("transaction", "session"), ("session", "lease"), ("transaction", "lease")],
)
async def test_runners_and_clients_work_behind_a_pooler(
    processes: Processes, postgres_url: str, mode: Mode, locks: str
) -> None:
    """A client finds its runner through the pool, calls are committed, and the next runner has what was committed."""
    with pgbouncer(postgres_url, mode, default_pool_size=40) as url:
        direct = postgres_url if mode == "transaction" else url
        way = ("--database", url, "--locks", locks, *(("--lock-database", direct) if locks == "session" else ()))
        first = await processes.serve(*way)
        assert f"through a pooler in {mode} mode" in first.err
        assert f"(--locks {locks})" in first.err
        async with hub.connect(database_url=url) as cluster:
            assert await cluster.client(Orders)("ada").count() == 0
        admin = ("--admin", first.address)
        called = await processes.run("call", "orders", "ada", "process", '{"sku":"tea","quantity":2}', *admin)
        assert called.json == {"number": 1, "total_cents": 700}
        assert await first.terminate() == 0
        again = await processes.serve(*way)
        assert (await processes.run("call", "orders", "ada", "count", "--admin", again.address)).json == 1
        assert await again.terminate() == 0


@pytest.fixture
async def app(postgres_url: str) -> AsyncIterator[tuple[str, "asyncpg.Connection[asyncpg.Record]"]]:
    """The URL of a role that may make its schema, and somebody who may change the role."""
    sql = await asyncpg.connect(postgres_url, timeout=10)
    database = await sql.fetchval("select current_database()")
    role = f"app{database[1:]}"
    await sql.execute(f'create role "{role}" login; grant all on database "{database}" to "{role}"')
    yield postgres_url.replace("postgres@", f"{role}@"), sql
    # A runner that lives still would connect again, and its statements meet those below.
    await sql.execute(f'alter role "{role}" nologin')
    await sql.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = $1", role)
    await sql.execute(f'drop owned by "{role}" cascade; drop role "{role}"')
    await sql.close()


async def test_a_runner_that_says_ready_works_with_few_connections(
    processes: Processes, app: tuple[str, "asyncpg.Connection[asyncpg.Record]"]
) -> None:
    """With a limit of 5 it serves many calls at once; with one of 3 it says which limit is met, and is never ready."""
    url, sql = app
    role = url.partition("//")[2].partition("@")[0]
    await sql.execute(f'alter role "{role}" connection limit 3')
    refused = await processes.run("serve", "tests.support.shop:hub", "--listen", "127.0.0.1:0", "--database", url)
    assert refused.code == 1
    assert "ready" not in refused.out
    assert f'too many connections for role "{role}"' in refused.err
    assert "alter role" in refused.err
    await sql.execute(f'alter role "{role}" connection limit 5')
    runner = await processes.serve("--database", url)
    async with hub.connect(gateway=[runner.address]) as cluster, asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        orders = cluster.client(Orders)
        counts = [tasks.create_task(_ordered(orders(f"o{number}"))) for number in range(40)]
    assert [count.result() for count in counts] == [1] * 40


async def _ordered(order: Orders) -> int:
    await order.process(Order("tea", 1))
    return await order.count()
