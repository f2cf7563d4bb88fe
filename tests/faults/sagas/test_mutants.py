"""The saga notices what would make it pay twice: defects of the product, on a cluster in memory."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from actorhub.testing import MemoryCluster
from tests.faults import mutants
from tests.faults.sagas.hub import hub, payments
from tests.faults.sagas.orders import Orders
from tests.faults.sagas.payments import payment_service

DEFECTS = ("what a step asks has no key", "a run that is repeated asks with other keys", "keys are ignored")


async def orders_whose_runner_is_killed(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Kill a runner while many orders wait for their payments; return what is wrong afterwards."""
    with payment_service() as service:
        monkeypatch.setitem(payments, "url", service.url)
        async with MemoryCluster(hub) as memory:
            for _ in range(3):
                await memory.start_runner()
            await memory.settled()
            orders = Orders(await memory.client(), service, seed=1, patience=timedelta(seconds=20))
            await orders.place(40)
            async with asyncio.timeout(10):
                while not service.charges():
                    await asyncio.sleep(0.005)
            await memory.kill(memory.runners[0])
            return await orders.violations()


async def test_the_product_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a defect, each order is charged once."""
    assert await orders_whose_runner_is_killed(monkeypatch) == []


@pytest.mark.parametrize("name", DEFECTS)
async def test_each_defect_charges_somebody_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a defect in the product, an order that was asked for before the kill is charged again after it."""
    mutants.apply(name, monkeypatch.setattr)
    found = await orders_whose_runner_is_killed(monkeypatch)
    assert any("charged 2 times" in text for text in found), found
