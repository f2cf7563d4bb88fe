"""A role that may have few connections: a runner serves everything with them, or says what to do."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.faults.durable.clients import DurableClients
from tests.faults.durable.hub import hub
from tests.support.postgres_server import PostgresServer
from tests.support.processes import Processes

REFERENCE = "tests.faults.durable.hub:hub"
ROLE = "limited"
SOON = 15.0


@pytest.fixture
async def limited(postgres_url: str, postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database for a role that may do everything there, and may be limited."""
    sql = await asyncpg.connect(postgres_url)
    await sql.execute(f"create role {ROLE} login")
    await sql.execute(f'grant all on database "{await sql.fetchval("select current_database()")}" to {ROLE}')
    yield postgres_url.replace("postgres@", f"{ROLE}@")
    await sql.execute(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{ROLE}'")
    await sql.execute(f"drop owned by {ROLE} cascade; drop role {ROLE}")
    await sql.close()


async def _all_answer(address: str, prefix: str) -> float:
    """Ask many new entities at once; return the seconds until all had answered as they should."""
    began = time.monotonic()
    async with hub.connect(gateway=address) as cluster, asyncio.timeout(SOON):
        clients = DurableClients(cluster, 200, random.Random(1), prefix)
        async with asyncio.TaskGroup() as tasks:
            for entity in clients.entities:
                tasks.create_task(clients.ask(entity, clients.order("ann", entity), timeout=SOON))
        assert {(call.outcome, call.error) for call in clients.sent} == {("ok", "")}
        assert {call.replies[0].position for call in clients.sent} == {1}
    return time.monotonic() - began


def _says_what_to_do(text: str) -> bool:
    return all(part in text for part in (f'role "{ROLE}"', "alter role", "--max-connections"))


async def test_a_runner_for_which_there_are_too_few_says_what_to_do_and_does_not_start(
    limited: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """It is never ready, and its last line is the reason."""
    await postgres_server.sql(f"alter role {ROLE} connection limit 3")
    with Processes(tmp_path, ACTORHUB_DATABASE_URL=limited) as processes:
        runner = processes.start("serve", REFERENCE, "--listen", "127.0.0.1:0")
        assert await runner.ended() != 0
        assert "ready" not in runner.out
        assert _says_what_to_do(runner.err.splitlines()[-1]), runner.err


@pytest.mark.parametrize("limit", [4, 5])
async def test_a_runner_serves_with_what_its_role_may_have_and_the_next_one_says_what_to_do(
    limited: str, postgres_server: PostgresServer, tmp_path: Path, limit: int
) -> None:
    """Whatever is asked at once is answered, and a second runner, for which nothing is left, does not start."""
    await postgres_server.sql(f"alter role {ROLE} connection limit {limit}")
    with Processes(tmp_path, ACTORHUB_DATABASE_URL=limited) as processes:
        first = await processes.serve(reference=REFERENCE)
        print(f"{limit} connections: all answer after {await _all_answer(first.address, 'e'):.2f} s")
        second = processes.start("serve", REFERENCE, "--listen", "127.0.0.1:0")
        assert await second.ended() != 0
        assert _says_what_to_do(second.err), second.err
        print(f"still, after {await _all_answer(first.address, 'f'):.2f} s")
