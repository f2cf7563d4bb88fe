"""Declarations of every form that works; both checkers accept all of it and infer these types."""

import dataclasses
import functools
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, assert_type

from actorhub import (
    Breaker,
    Client,
    Cluster,
    Entity,
    EntityError,
    Hub,
    Retry,
    SettingKeywords,
    Singleton,
    cron,
    current,
    handler,
)
from tests.typing.shop import Ledger, Nightly, OrderPlaced, Orders, OutOfStock, Receipt

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def logged(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(function)
    async def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        return await function(*args, **kwargs)

    return inner


def watched(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    return function


class TooLate(EntityError):
    at: datetime
    lines: list[str] = dataclasses.field(default_factory=list[str])
    note: str | None = None


class Later(TooLate):
    by: timedelta = timedelta(0)


class Tagged:
    def __init_subclass__(cls, *, tag: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)


class Countable:
    async def size(self) -> int:
        return 1


class Shop(Tagged, Countable, Entity[Ledger], tag="shop", name="right_shop", mailbox_capacity=10):
    LIMIT = 3
    NAMES: tuple[str, ...] = ("a", "b")
    _cache: dict[str, int]

    def __init__(self, prices: dict[str, int] | None = None) -> None:
        self._prices = prices or {}
        self._cache = {}

    @logged
    @handler(durable=True, retry=Retry(on=(TooLate, OutOfStock)), retention=timedelta(days=1), timeout=None)
    async def sell(self, sku: str, /, count: int = 1, *, gift: bool = False) -> Receipt:
        raise Later(at=datetime.now().astimezone(), by=timedelta(days=1), lines=[sku])

    @handler(readonly=True)
    @watched
    async def look(self, sku: str | None = None) -> dict[str, int]:
        return self._prices | self._private(sku)

    @handler()
    async def items(self) -> AsyncIterable[int]:
        yield 1

    @handler(timeout=timedelta(seconds=1))
    async def more(self) -> AsyncGenerator[int, None]:
        yield 1

    async def on_deactivate(self) -> None:
        await super().on_deactivate()
        await self.save()

    def _private(self, sku: str | None) -> dict[str, int]:
        return {sku: self.state.placed} if sku else {}


class Branch(Shop, name="right_branch"):
    async def sell(self, sku: str, /, count: int = 1, *, gift: bool = False, city: str = "") -> Receipt:
        return await super().sell(sku, count, gift=gift)


class Box(Entity[T], Generic[T]):
    async def put(self, item: T) -> T:
        await self.save(item)
        return self.state


class Receipts(Box[dict[str, Receipt]], max_idle=timedelta(seconds=5), shard_key=lambda box_id: box_id[:2]):
    pass


class Keeper(Singleton, name="right_keeper"):
    @cron("0 3 * * *", breaker=Breaker(failures=1), retry=Retry(attempts=1))
    @handler(timeout=timedelta(minutes=1))
    async def sweep(self, fire_time: datetime) -> int:
        return fire_time.day

    @cron("*/5 * * * *", from_previous=True, jitter=timedelta(seconds=3), breaker=None, overlap="allow")
    @logged
    async def check(self, at: datetime) -> None:
        pass


class Better(Keeper, name="right_better"):
    async def sweep(self, fire_time: datetime) -> int:
        return 1


def make_shop() -> Shop:
    return Shop()


class Maker:
    def shop(self) -> Shop:
        return Shop()


def declare(maker: Maker) -> Hub:
    hub = Hub()
    hub.register(Shop)
    hub.register(Shop, make_shop)
    hub.register(Shop, maker.shop)
    hub.register(Shop, functools.partial(Shop, {"tea": 1}))
    hub.register(Shop, Branch)
    hub.register(Branch, lambda: Branch({"tea": 1}))
    hub.register(Receipts, None)
    hub.register(Better)
    return hub


async def call(cluster: Cluster, boxes: Client[Receipts]) -> None:
    shop = cluster.client(Branch)("a")
    assert_type(await shop.sell("tea", 2, gift=True, city="x"), Receipt)
    assert_type(await shop.look(), dict[str, int])
    assert_type(await shop.size(), int)
    async for item in shop.items():
        assert_type(item, int)
    async for item in shop.more():
        assert_type(item, int)
    assert_type(await boxes("a").put({"a": Receipt(1, 2)}), dict[str, Receipt])
    sell: Callable[[str], Awaitable[Receipt]] = shop.sell
    assert_type(await sell("tea"), Receipt)
    assert_type(await cluster.singleton(Better).sweep(datetime.now().astimezone()), int)
    assert_type(await cluster.tell(sell("tea"), key="a", delay=timedelta(0)), int)
    assert_type(await current().step("sell", shop.sell, "tea", gift=True), Receipt)
    assert_type(await current().deferred("many", list[Receipt]).wait(), list[Receipt])
    watch: Callable[[int], AsyncIterator[Receipt]] = cluster.client(Orders)("a").watch
    assert_type([receipt async for receipt in watch(0)], list[Receipt])
    assert_type(await cluster.client(Orders)("a").pay(OrderPlaced("o", "tea", 1), gift=False), Receipt)
    assert_type(await cluster.singleton(Nightly).status(), Ledger)


async def join(hub: Hub, **more: Unpack[SettingKeywords]) -> None:
    async with hub.connect(gateway=["127.0.0.1:7700", "127.0.0.1:7701"], token=os.environ.get("TOKEN")) as cluster:
        assert_type(cluster, Cluster)
    async with hub.runner(database_url=os.environ["DATABASE"], grace=timedelta(seconds=1), retention="1h", weight=2):
        pass
    async with hub.runner(tls_cert=Path("a"), tls_key="b", tls_ca="c", groups=("a", "b"), http=None, grace=1.5):
        pass
    common: SettingKeywords = {"namespace": "shop", "log_level": "debug", "workers": 3, "insecure": True}
    async with hub.runner(**common), hub.connect(**more):
        pass
