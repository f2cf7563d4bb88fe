"""Tests that users may write; both checkers accept all of it and infer these types."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import assert_type

from actorhub import Cluster
from actorhub.testing import (
    MemoryCluster,
    MemoryFactory,
    SteppedClock,
    Told,
    give_state,
    state_of,
    told_by,
    unhosted,
    until,
)
from tests.typing.shop import Audit, Ledger, Nightly, OrderPlaced, Orders, Receipt, hub


async def test_with_the_memory_fixture(actorhub_memory: MemoryFactory) -> None:
    clock = SteppedClock(datetime(2026, 11, 27, tzinfo=UTC))
    assert_type(actorhub_memory(hub), AbstractAsyncContextManager[MemoryCluster])
    async with actorhub_memory(hub, clock=clock) as memory:
        assert_type(memory, MemoryCluster)
        assert_type(memory.cluster, Cluster)
        assert_type(await memory.cluster.client(Orders)("ada").count(), int)
        clock.step(timedelta(hours=1))
        await memory.cluster.poll_storage()


async def test_with_a_cluster_of_its_own() -> None:
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        assert_type(runner, Cluster)
        assert_type(await memory.client(), Cluster)
        await memory.settled()
        await memory.kill(runner)
        await until(lambda: memory.runners == [])


async def test_states(memory: MemoryCluster) -> None:
    await give_state(memory, Orders, "ada", Ledger(placed=3))
    assert_type(await state_of(memory, Orders, "ada"), Ledger)
    await give_state(memory, Nightly, "nightly", Ledger(placed=3))
    assert_type(await state_of(memory, Nightly, "nightly"), Ledger)


async def test_handlers_alone() -> None:
    orders = unhosted(Orders({"tea": 350}), state=Ledger(placed=3), entity_id="ada")
    assert_type(orders, Orders)
    assert_type(await orders.process(OrderPlaced("o-1", "tea", 2), gift=True), Receipt)
    assert_type(orders.state, Ledger)
    orders.state = Ledger()
    assert_type(orders.watch(0), AsyncIterator[Receipt])
    assert_type(told_by(orders), list[Told])
    assert told_by(orders) == [Told("audit", "all", "note", ("tea",))]
    assert_type(unhosted(Audit()), Audit)
    assert_type(unhosted(Nightly(3)), Nightly)


async def test_on_a_real_postgres(actorhub_database: str) -> None:
    async with hub.runner(database_url=actorhub_database, listen="127.0.0.1:0") as cluster:
        assert_type(await cluster.client(Orders)("ada").count(), int)
