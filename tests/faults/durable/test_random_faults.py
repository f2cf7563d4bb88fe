"""Durable messages under random faults; what senders and handlers saw is judged against what is stored.

`FAULT_SEED` repeats a run, `FAULT_COUNT` and `FAULT_RUNS` bound the long one.
"""

import os
import random
import time
from collections import Counter

import pytest

from tests.faults.cluster.faults import explained_faults
from tests.faults.cluster.processes import ClusterProcesses, until
from tests.faults.durable.checks import durable_violations, explained_violations
from tests.faults.durable.clients import DurableClients, durable_clients
from tests.faults.durable.faults import DURABLE_KINDS
from tests.faults.durable.history import Book
from tests.faults.durable.hub import hub
from tests.faults.durable.records import read_book, settled

COUNT = int(os.environ.get("FAULT_COUNT", "100"))
RUNS = int(os.environ.get("FAULT_RUNS", "10"))
FIRST_SEED = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
RECOVERY_SECONDS = 20.0


async def run_faults(processes: ClusterProcesses, seed: int, count: int, longest: float) -> None:
    await processes.start()
    async with explained_faults(processes, seed, longest, DURABLE_KINDS) as faults:
        async with hub.connect(gateway=processes.gateways) as cluster:
            async with durable_clients(DurableClients(cluster, 10, random.Random(seed)), senders=8) as clients:
                await served(clients, 0.0)
                for _ in range(count):
                    print(f"{time.monotonic():.2f} {(await faults.inject()).text}")
                await faults.mend()
                await served(clients, time.monotonic())
            await settled(processes, RECOVERY_SECONDS)
            await clients.all_replies()
        book = await read_book(processes, clients.sent)
        print(f"seed {seed}: {told(book)}")
        found = durable_violations(book)
        assert found == [], explained_violations(found, book)


async def served(clients: DurableClients, since: float) -> None:
    """Wait until every entity answered an ask that began after `since`."""
    await until(lambda: not clients.unserved(since), "every entity answers again", RECOVERY_SECONDS)


def told(book: Book) -> str:
    """Say what a run was like."""
    outcomes = Counter((call.kind, call.outcome) for call in book.sent)
    return f"{dict(outcomes)}, {len(book.runs)} runs, rows {dict(Counter(row.state for row in book.rows))}"


async def test_durable_messages_survive_forty_quick_faults(durable_processes: ClusterProcesses) -> None:
    """Forty faults that come fast and on top of each other break no promise to any sender."""
    await run_faults(durable_processes, FIRST_SEED, 42, longest=0.6)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", range(RUNS))
async def test_durable_messages_survive_long_faults(durable_processes: ClusterProcesses, run: int) -> None:
    """A hundred faults of up to six seconds break no promise to any sender."""
    await run_faults(durable_processes, FIRST_SEED + run, COUNT, longest=6.0)
