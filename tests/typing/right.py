"""Everything that users may write; both checkers accept all of it and infer these types."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import assert_type

from actorhub import (
    Client,
    Cluster,
    Deferred,
    EntityError,
    KeyValue,
    MailboxFull,
    ShardId,
    Snowflake,
    current,
)
from tests.typing.shop import Audit, Ledger, Nightly, OrderPlaced, Orders, OutOfStock, Receipt, hub

EVENT = OrderPlaced("o-1", "tea", 2)


async def call(cluster: Cluster) -> None:
    orders = cluster.client(Orders)
    assert_type(orders, Client[Orders])
    assert_type(orders("ada"), Orders)
    assert_type(await orders("ada").process(EVENT), Receipt)
    assert_type(await orders("ada").process(EVENT, 7, gift=True), Receipt)
    assert_type(await orders("ada").count(), int)
    assert_type(await orders("ada").ledger(since=3), Ledger)
    async for receipt in orders("ada").watch(0):
        assert_type(receipt, Receipt)
    hurried = orders.options(timeout=timedelta(seconds=2), on_full="wait", headers={"tenant": "acme"})
    assert_type(hurried, Client[Orders])
    assert_type(await hurried.options(timeout=None)("ada").count(), int)


async def tell(cluster: Cluster) -> None:
    orders = cluster.client(Orders)
    assert_type(await cluster.tell(orders("ada").process(EVENT)), int)
    assert_type(await cluster.tell(orders.active().count()), int)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(orders("ada").count())
    assert_type(task.result(), int)


async def store(cluster: Cluster) -> None:
    orders = cluster.client(Orders)
    assert_type(await orders("ada").pay(EVENT), Receipt)
    assert_type(await orders("ada").pay(EVENT, 7, gift=True), Receipt)
    async for receipt in orders("ada").history(since=0):
        assert_type(receipt, Receipt)
    assert_type(orders.options(key="o-1"), Client[Orders])
    assert_type(await orders.options(key="o-1").options(key=None)("ada").pay(EVENT), Receipt)
    assert_type(await cluster.tell(orders("ada").pay(EVENT), deliver_at=datetime.now(UTC), key="o-1"), int)
    assert_type(await cluster.tell(orders("ada").pay(EVENT), delay=timedelta(hours=1), key=None), int)
    assert_type(await current().tell(orders("ada").pay(EVENT), deliver_at=datetime.now(UTC), key="o-1"), int)
    assert_type(await current().tell(orders("ada").pay(EVENT), delay=timedelta(hours=1)), int)


async def fail(cluster: Cluster) -> None:
    try:
        await cluster.client(Orders)("ada").process(EVENT)
    except OutOfStock as error:
        assert_type(error.sku, str)
        assert_type(error.left, int)
        assert_type(error.possibly_executed, bool)
    except MailboxFull as error:
        assert_type(error.retry_after, timedelta)
    known: EntityError = OutOfStock(left=1, sku="tea", note="soon")
    raise known


async def keep(cluster: Cluster) -> None:
    receipts = cluster.kv.prefix("receipt:").typed(Receipt)
    assert_type(receipts, KeyValue[Receipt])
    assert_type(await receipts.get("o-1"), Receipt | None)
    assert_type(await receipts.get("o-1", "none"), Receipt | str)
    assert_type(await receipts.get("o-1", Receipt(0, 0)), Receipt)
    await receipts.set("o-1", Receipt(1, 700), ttl=timedelta(days=1))
    assert_type(await current().kv.typed(int).modify("count", lambda count: (count or 0) + 1), int | None)
    assert_type(await receipts.prefix("2027:").delete("o-1"), bool)
    assert_type(await receipts.ttl("o-1"), timedelta | None)
    assert_type(await receipts.size(), int)
    await cluster.kv.set("anything", {"a": [1, None]})


async def price(sku: str, cents: int = 3) -> Receipt:
    return Receipt(len(sku), cents)


def total(*cents: int) -> int:
    return sum(cents)


async def lead(cluster: Cluster) -> None:
    nightly = cluster.singleton(Nightly)
    assert_type(nightly, Nightly)
    assert_type(await nightly.status(), Ledger)
    assert_type(await nightly.add(3, twice=True), int)
    assert_type(await nightly.roll_up(datetime.now(UTC)), Receipt)
    assert_type(await cluster.singleton(Nightly, timeout=None, key="k").status(), Ledger)
    assert_type(await cluster.singleton(Nightly, timeout=timedelta(seconds=2)).add(1), int)
    assert_type(await cluster.tell(nightly.add(3)), int)
    assert_type(current().singleton(Nightly), Nightly)
    assert_type([health.serving for health in await cluster.health()], list[bool])
    assert_type((await cluster.health())[0].singletons[0].heartbeat_at, float | None)
    assert_type(cluster.shard_of(Nightly, "nightly"), ShardId)


async def steps(cluster: Cluster) -> None:
    here = current()
    assert_type(await here.step("price", price, "tea"), Receipt)
    assert_type(await here.step("price again", price, "tea", cents=4), Receipt)
    assert_type(await here.step("total", total, 1, 2, 3), int)
    assert_type(await here.step("status", here.singleton(Nightly).status), Ledger)
    approval = here.deferred("approval", Receipt)
    assert_type(approval, Deferred[Receipt])
    assert_type(approval.token, str)
    assert_type(await approval.wait(), Receipt)
    await here.sleep(timedelta(hours=1))
    await here.sleep(timedelta(hours=1), name="rest")
    assert_type(await cluster.complete(approval.token, Receipt(1, 2)), bool)
    assert_type(await cluster.fail(approval.token, "no"), bool)
    assert_type(await cluster.fail(approval.token, OutOfStock(sku="tea", left=0)), bool)


async def know(cluster: Cluster) -> None:
    assert_type(cluster.shard_of(Orders, "ada"), ShardId)
    assert_type(cluster.is_local(Orders, "ada"), bool)
    assert_type(cluster.is_shutting_down, bool)
    assert_type(cluster.snowflake(), Snowflake)
    assert_type(current().entity_id, str)
    assert_type(current().epoch, int)
    assert_type(current().client(Audit), Client[Audit])


async def join() -> None:
    async with hub.connect(gateway="127.0.0.1:7700") as cluster:
        assert_type(cluster, Cluster)
    async with hub.runner(listen="127.0.0.1:0") as cluster:
        assert_type(cluster, Cluster)
