"""Callers of two releases with one key: what means the same is one message, although its encoding differs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import msgspec
import pytest

from actorhub import Cluster, DuplicateKey, Entity, HandlerFailed, Hub, Retry, current, handler
from actorhub.testing import MemoryCluster
from tests.support.gates import Gate, failure, gates, soon
from tests.support.postgres_server import PostgresServer

ONCE = Retry(attempts=1)
Call: TypeAlias = Callable[[str, str], Awaitable[int]]
"""By key and entity id."""


class OldItem(msgspec.Struct, frozen=True):
    sku: str
    cents: int = 100


class NewItem(msgspec.Struct, frozen=True):
    sku: str
    cents: int = 100
    note: str = ""
    tags: list[str] = []


class OldParcel(msgspec.Struct, frozen=True):
    to: str
    express: bool = False
    grams: float = 1.0


class NewParcel(msgspec.Struct, frozen=True, omit_defaults=True):
    to: str
    express: bool = False
    grams: float = 1
    fee: float = 0


class OldTill(Entity[list[str]], name="till"):
    """The earlier release, of which there are only callers."""

    @handler(durable=True)
    async def pay(self, cents: int) -> int:
        return cents

    @handler(durable=True)
    async def buy(self, item: OldItem, others: dict[int, OldItem]) -> int:
        return item.cents + len(others)

    @handler(durable=True)
    async def weigh(self, grams: float) -> int:
        return int(grams)

    @handler(durable=True)
    async def ship(self, parcel: OldParcel, price: float) -> int:
        return int(price)


class NewTill(Entity[list[str]], name="till"):
    """The later release: what is new has a default."""

    @handler(durable=True, retry=ONCE)
    async def pay(self, cents: int, note: str = "", rate: float = 1.0) -> int:
        return await self._note(f"{cents}{note}{rate}")

    @handler(durable=True, retry=ONCE)
    async def buy(self, item: NewItem, others: dict[int, NewItem]) -> int:
        return await self._note(f"{item}{others}")

    @handler(durable=True, retry=ONCE)
    async def weigh(self, grams: float) -> int:
        return await self._note(f"{grams}")

    @handler(durable=True, retry=ONCE)
    async def ship(self, parcel: NewParcel, price: float) -> int:
        return await self._note(f"{parcel}{price}")

    @handler(readonly=True)
    async def seen(self) -> list[str]:
        return self.state

    async def _note(self, text: str) -> int:
        await gates[current().entity_id].pass_through()
        if current().entity_id.startswith("broken"):
            raise RuntimeError(text)
        self.state.append(text)
        return len(self.state)


class Boss(Entity[int], name="boss"):
    """Tells a till with the key of somebody else's message."""

    @handler(durable=True, retry=ONCE)
    async def tell(self, note: str, *, in_step: bool = False) -> int:
        if in_step:
            await current().step("tell", self._tell, note)
        else:
            await self._tell(note)
        return 7

    @handler(durable=True, retry=ONCE)
    async def tell_twice(self) -> int:
        till = current().client(NewTill)("t")
        await current().tell(till.weigh(1), key="k")
        await current().tell(till.weigh(1.0), key="k")
        return 7

    @handler(durable=True, retry=ONCE)
    async def tell_with_sql(self, note: str) -> int:
        async with current().transaction() as sql:
            await sql.execute("insert into invoice values ($1)", note)
        await self._tell(note)
        return 7

    async def _tell(self, note: str) -> None:
        await current().tell(current().client(NewTill)("t").pay(100, note), key="k")


def hub_of(*entities: type[Entity[Any]]) -> Hub:
    hub = Hub()
    for entity in entities:
        hub.register(entity)
    return hub


def address_of(host: Cluster) -> str:
    """Return where a runner listens."""
    assert host.runner is not None
    return host.runner.address


old_hub, new_hub = hub_of(OldTill), hub_of(NewTill, Boss)


class Callers(NamedTuple):
    """A caller of each release, on a cluster of the later one."""

    old: Cluster
    new: Cluster

    def calls(self, *, tell: bool) -> dict[str, Mapping[str, Call]]:
        """Return calls that mean the same in both releases, and one that does not, by what differs."""
        old, new = OldItem("tea"), NewItem("tea")

        def of(caller: Cluster, entity: type[Any], name: str, *arguments: object) -> Call:
            def call(key: str, entity_id: str) -> Awaitable[int]:
                made = getattr(caller.client(entity).options(key=key)(entity_id), name)(*arguments)
                return caller.tell(made) if tell else made

            return call

        return {
            "parameter": {
                "old": of(self.old, OldTill, "pay", 100),
                "new": of(self.new, NewTill, "pay", 100),
                "int": of(self.new, NewTill, "pay", 100, "", 1),
                "other": of(self.new, NewTill, "pay", 100, "gift"),
                "wrong": of(self.old, OldTill, "pay", 101),
            },
            "field": {
                "old": of(self.old, OldTill, "buy", old, {7: old, 2: OldItem("salt", 3)}),
                "new": of(self.new, NewTill, "buy", new, {2: NewItem("salt", 3), 7: new}),
                "other": of(self.new, NewTill, "buy", NewItem("tea", note="gift"), {2: NewItem("salt", 3), 7: new}),
                "wrong": of(self.old, OldTill, "buy", old, {7: old}),
            },
            "float": {
                "old": of(self.old, OldTill, "weigh", 1),
                "new": of(self.new, NewTill, "weigh", 1.0),
                "other": of(self.new, NewTill, "weigh", 1.5),
                "wrong": of(self.old, OldTill, "weigh", 2),
            },
            "omitted": {
                "old": of(self.old, OldTill, "ship", OldParcel("Rome"), 5.0),
                "new": of(self.new, NewTill, "ship", NewParcel("Rome"), 5.0),
                "given": of(self.new, NewTill, "ship", NewParcel("Rome", False, 1.0, 0.0), 5.0),
                "other": of(self.new, NewTill, "ship", NewParcel("Rome", fee=1.0), 5.0),
                "wrong": of(self.old, OldTill, "ship", OldParcel("Rome", express=True), 5.0),
            },
        }


@pytest.fixture(params=["memory", "postgres"])
async def callers(request: pytest.FixtureRequest) -> AsyncIterator[Callers]:
    """Both callers on a cluster in memory, and on a real Postgres and gRPC."""
    if request.param == "memory":
        async with MemoryCluster(new_hub) as made:
            await made.start_runner()
            yield Callers(await made.client(hub=old_hub), await made.client())
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = await server.create_database()
    async with AsyncExitStack() as stack:
        grace = timedelta(seconds=2)
        host = await stack.enter_async_context(
            new_hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=grace)
        )
        yield Callers(await stack.enter_async_context(old_hub.connect(gateway=address_of(host))), host)
    await server.drop_database(url)


@pytest.mark.parametrize("tell", [False, True], ids=["ask", "tell"])
async def test_a_key_that_is_done_gives_its_reply_to_callers_of_both_releases(callers: Callers, tell: bool) -> None:
    """Whichever was first, and though the arguments of the first are no longer kept; other ones are refused."""
    for what, calls in callers.calls(tell=tell).items():
        names = [name for name in calls if name not in {"other", "wrong"}]
        for first in names:
            entity_id, key = f"{what}-{first}", f"k-{first}"
            gates[entity_id].open()
            one = await calls[first](key, entity_id)
            if tell:
                assert await callers.new.reply(one) == 1
            assert [await calls[name](key, entity_id) for name in names] == [one] * len(names)
            for name in ("other", "wrong"):
                assert isinstance(await failure(calls[name](key, entity_id)), DuplicateKey)
            assert len(await callers.new.client(NewTill)(entity_id).seen()) == 1


async def test_a_key_that_is_under_way_is_waited_for_by_callers_of_both_releases(callers: Callers) -> None:
    """They get the reply of its one run, and the id of its message; other arguments are refused meanwhile."""
    for (what, asks), tells in zip(callers.calls(tell=False).items(), callers.calls(tell=True).values(), strict=True):
        for first, second in (("old", "new"), ("new", "old")):
            gate = gates[entity_id := f"{what}-{first}"] = Gate()
            told = await tells[first]("k", entity_id)
            await gate.came()
            assert await tells[second]("k", entity_id) == told
            waiting = soon(asks[second]("k", entity_id))
            for name in ("other", "wrong"):
                error = await failure(asks[name]("k", entity_id))
                assert isinstance(error, DuplicateKey)
                assert not error.possibly_executed
            gate.open()
            assert await waiting == 1
            assert len(await callers.new.client(NewTill)(entity_id).seen()) == 1


async def test_a_dead_letter_answers_callers_of_both_releases(callers: Callers) -> None:
    """They get its error, and nothing runs again."""
    for what, calls in callers.calls(tell=False).items():
        for first, second in (("old", "new"), ("new", "old")):
            gates[entity_id := f"broken-{what}-{first}"].open()
            for name in (first, second, second):
                assert isinstance(await failure(calls[name]("k", entity_id)), HandlerFailed)
            assert isinstance(await failure(calls["other"]("k", entity_id)), DuplicateKey)
            assert gates[entity_id].entered == 1


@pytest.mark.parametrize("in_step", [False, True], ids=["run", "step"])
async def test_what_a_run_tells_is_the_message_that_a_caller_of_the_release_before_sent(
    callers: Callers, in_step: bool
) -> None:
    """The run is committed, the till is paid once; a run that tells something else with the key fails."""
    gates["t"].open()
    paid = await callers.old.tell(callers.old.client(OldTill)("t").pay(100), key="k")
    assert await callers.new.client(Boss)("b").tell("", in_step=in_step) == 7
    assert "another payload" in str(await failure(callers.new.client(Boss)("b").tell("gift", in_step=in_step)))
    assert await callers.new.reply(paid) == 1
    assert await callers.new.client(NewTill)("t").seen() == ["1001.0"]


async def test_a_run_may_tell_the_same_twice(callers: Callers) -> None:
    """An int and a float of one value, with one key, in one run are one message."""
    gates["t"].open()
    assert await callers.new.client(Boss)("b").tell_twice() == 7
    till = callers.new.client(NewTill)("t")
    async with asyncio.timeout(10):
        while not await till.seen():
            await asyncio.sleep(0.01)
    assert await till.pay(5) == 2


async def test_a_run_keeps_its_sql_when_its_key_means_the_same(postgres_url: str) -> None:
    """The handler's SQL is committed with what it tells, once; with other arguments all of it is undone."""
    gates["t"].open()
    async with (
        new_hub.runner(database_url=postgres_url, listen="127.0.0.1:0", shards_per_group=16) as host,
        old_hub.connect(gateway=address_of(host)) as old,
    ):
        sql = await asyncpg.connect(postgres_url)
        await sql.execute("create table invoice (note text)")
        paid = await old.tell(old.client(OldTill)("t").pay(100), key="k")
        assert await host.client(Boss)("b").tell_with_sql("") == 7
        assert "another payload" in str(await failure(host.client(Boss)("b").tell_with_sql("gift")))
        assert [row["note"] for row in await sql.fetch("select note from invoice")] == [""]
        assert await old.reply(paid) == 1
        assert await host.client(NewTill)("t").seen() == ["1001.0"]
        await sql.close()


async def test_a_deposit_is_the_message_that_a_caller_of_the_release_before_deposited(postgres_url: str) -> None:
    """Without a runner, whoever stores the tell compares; a runner that comes later runs one."""
    gates["t"].open()
    async with new_hub.runner(database_url=postgres_url, listen="127.0.0.1:0", shards_per_group=16):
        pass  # the cluster knows its shards, and has no runner
    async with old_hub.connect(database_url=postgres_url) as old, new_hub.connect(database_url=postgres_url) as new:
        told = await old.tell(old.client(OldTill)("t").pay(100), key="k")
        assert await new.tell(new.client(NewTill)("t").pay(100), key="k") == told
        other = new.tell(new.client(NewTill)("t").pay(100, "gift"), key="k")
        assert isinstance(await failure(other), DuplicateKey)
    async with new_hub.runner(database_url=postgres_url, listen="127.0.0.1:0", shards_per_group=16) as host:
        assert await host.reply(told) == 1
        assert await host.client(NewTill)("t").seen() == ["1001.0"]
