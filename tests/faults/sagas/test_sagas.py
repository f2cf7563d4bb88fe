"""Orders whose runners are killed at random moments: each is charged once, and so is all else that they ask for.

`FAULT_SEED` repeats a run's choices, `SAGA_KILLS` bounds the long one.
"""

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.sagas.hub import hub
from tests.faults.sagas.orders import Orders
from tests.faults.sagas.payments import PaymentService, payment_service
from tests.support.processes import ActorhubProcess, Processes

KILLS = int(os.environ.get("SAGA_KILLS", "50"))
SEED = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
_REFERENCE = "tests.faults.sagas.hub:hub"


@pytest.fixture
def service() -> Iterator[PaymentService]:
    """A payment service of this test alone."""
    with payment_service() as service:
        yield service


@pytest.fixture
def processes(tmp_path: Path, postgres_url: str, service: PaymentService) -> Iterator[Processes]:
    """Runners on an empty database that charge at the service."""
    with Processes(tmp_path, ACTORHUB_DATABASE_URL=postgres_url, SAGA_PAYMENTS=service.url) as processes:
        yield processes


async def kill_at_random(
    processes: Processes, runners: list[ActorhubProcess], kills: int, chance: random.Random
) -> None:
    """Kill one runner after the other, and have a new one come in the place of each."""
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0, 0.6))
        victim = runners.pop(chance.randrange(len(runners)))
        await victim.kill()
        runners.append(await processes.serve(reference=_REFERENCE))


async def survives(processes: Processes, service: PaymentService, kills: int) -> None:
    """Place orders while runners are killed; nothing may have happened twice, or not at all."""
    chance = random.Random(SEED)
    async with asyncio.TaskGroup() as tasks:
        starting = [tasks.create_task(processes.serve(reference=_REFERENCE)) for _ in range(3)]
    runners = [task.result() for task in starting]
    async with hub.connect(database_url=processes.env["ACTORHUB_DATABASE_URL"]) as client:
        orders = Orders(client, service, SEED)
        await orders.place(10)
        async with asyncio.TaskGroup() as tasks:
            enough = asyncio.Event()
            tasks.create_task(orders.keep_placing(0.03, enough))
            await kill_at_random(processes, runners, kills, chance)
            enough.set()
        found = await orders.violations()
    print(f"seed {SEED}: {len(orders.placed)} orders, {kills} kills")
    assert found == [], f"seed {SEED}: {found[:30]}"


async def test_orders_are_charged_once_through_a_few_kills(processes: Processes, service: PaymentService) -> None:
    """Whatever moment a kill hits: a step, a charge, an undo or the commit."""
    await survives(processes, service, 3)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_orders_are_charged_once_through_fifty_kills(processes: Processes, service: PaymentService) -> None:
    """The same for as long as it takes to kill fifty runners."""
    await survives(processes, service, KILLS)
