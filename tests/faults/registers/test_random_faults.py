"""Clients, runners and Postgres under random faults; what clients saw is checked against what is stored.

`FAULT_SEED` repeats a run, `FAULT_COUNT` and `FAULT_RUNS` bound the long one.
"""

import os
import random
import time

import pytest

from tests.faults.cluster.faults import Faults, explained_faults
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.registers.clients import RecordedClients, explained, recorded_clients
from tests.faults.registers.history import violations
from tests.faults.registers.hub import hub

KEYS = 12
OVERLAP = 0.25
RECOVERY_SECONDS = 20.0
COUNT = int(os.environ.get("FAULT_COUNT", "40"))
RUNS = int(os.environ.get("FAULT_RUNS", "5"))
FIRST_SEED = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)


async def run_faults(processes: ClusterProcesses, seed: int, count: int, longest: float) -> None:
    await processes.start()
    async with explained_faults(processes, seed, longest) as faults:
        async with (
            hub.connect(gateway=processes.gateways) as cluster,
            recorded_clients(cluster, KEYS, random.Random(seed)) as clients,
        ):
            await clients.all_served(0.0, RECOVERY_SECONDS)
            for _ in range(count):
                await inject(faults, clients)
            await faults.mend()
            await clients.all_served(time.monotonic(), RECOVERY_SECONDS)
        stored = await processes.stored()
        found = violations(clients.history, stored, processes.starts())
        print(f"seed {seed}: {dict(clients.history.counts())}")
        assert found == [], explained(found)


async def inject(faults: Faults, clients: RecordedClients) -> None:
    """Inject a fault, sometimes on top of the one before; once mended, every key is served again soon."""
    fault = await faults.inject()
    if faults.chance.random() < OVERLAP:
        print(f"{fault.text}: not mended")
        return
    mended = time.monotonic()
    await faults.mend()
    took = await clients.all_served(time.monotonic(), RECOVERY_SECONDS)
    stall = clients.history.stall(fault.at)
    print(
        f"{fault.text}: mended at {mended - fault.at:.2f} s, all served {took:.2f} s later, longest stall {stall:.2f} s"
    )


async def test_nothing_acknowledged_is_lost_under_random_faults(processes: ClusterProcesses) -> None:
    """A dozen short faults of different kinds in a row break no promise."""
    await run_faults(processes, FIRST_SEED, 12, longest=2.5)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", range(RUNS))
async def test_nothing_acknowledged_is_lost_under_long_faults(processes: ClusterProcesses, run: int) -> None:
    """Many faults of up to eight seconds break no promise."""
    await run_faults(processes, FIRST_SEED + run, COUNT, longest=8.0)
