"""Handlers without a cluster: state, save, tells and steps work as in one, and what cannot work says so."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from actorhub import (
    Current,
    Entity,
    EntityError,
    Hub,
    MalformedMessage,
    NotConnected,
    Singleton,
    cron,
    current,
    handler,
)
from actorhub.testing import MemoryCluster, Told, state_of, told_by, unhosted
from actorhub.testing.unhosted_current import UnhostedCurrent

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


class Placed(msgspec.Struct, frozen=True):
    order_id: str

    def primary_key(self) -> str:
        return self.order_id


class OutOfStock(EntityError):
    sku: str


class Ledger(msgspec.Struct):
    placed: int = 0
    notes: list[str] = []


class Other(msgspec.Struct):
    placed: int = 0
    notes: list[str] = []


class Audit(Entity):
    async def note(self, text: str, count: int = 1) -> int:
        return count

    @handler(durable=True)
    async def keep(self, placed: Placed) -> None: ...

    async def watch(self) -> AsyncIterator[int]:
        yield 1

    async def whose(self) -> str:
        return f"{current().entity_type}/{current().entity_id}"


class Orders(Entity[Ledger]):
    def __init__(self, stock: dict[str, int]) -> None:
        self._stock = stock

    async def on_activate(self) -> None:
        self.state.notes.append(f"hello {current().entity_id}")

    async def count(self) -> int:
        return self.state.placed

    async def place(self, sku: str, *, gift: bool = False) -> int:
        self.state.placed += 1
        await current().tell(current().client(Audit)("all").note(sku))
        if not self._stock.get(sku):
            raise OutOfStock(sku=sku)
        return self.state.placed

    async def place_all(self, *, saved: bool) -> None:
        for sku in sorted(self._stock):
            await self.place(sku)
            if saved:
                await self.save()

    async def replace(self, placed: int) -> None:
        await self.save(Ledger(placed=placed))
        raise OutOfStock(sku="everything")

    async def spoil(self) -> None:
        self.state.placed = "many"  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]

    async def history(self, start: int) -> AsyncIterator[int]:
        for number in range(start, 3):
            self.state.placed += 1
            await current().tell(current().client(Audit)(current().entity_id).note(f"{number}"))
            yield number
        raise OutOfStock(sku="history")

    @handler(durable=True)
    async def pay(self, cents: int) -> int:
        async def priced() -> int:
            return cents + 1

        return await current().step("price", priced) + await current().step("fee", len, "fee")


class Nightly(Singleton[Ledger]):
    async def on_become_leader(self) -> None:
        self.state.placed = 1

    async def run(self) -> None:
        self.state.placed += 1
        await self.save()
        self.state.placed += 1

    @cron("@daily")
    async def roll_up(self, at: datetime) -> int:
        self.state.placed += at.year
        return self.state.placed


def orders(**stock: int) -> Orders:
    """Return an order that nobody hosts."""
    return unhosted(Orders(stock), entity_id="ada")


async def test_a_handler_works_on_the_state_that_it_was_given() -> None:
    """The state is a copy, the initial one where none is given, and can be looked at and set in between."""
    given = Ledger(placed=2)
    ada = unhosted(Orders({"tea": 3}), state=given)
    assert await ada.place("tea") == 3
    assert (given.placed, ada.state.placed) == (2, 3)
    ada.state = Ledger(placed=40)
    assert await ada.place("tea", gift=True) == 41
    assert await orders().count() == 0


async def test_a_handler_that_raises_leaves_state_and_tells_as_they_were() -> None:
    """As in a cluster, the error is all that is left of its run."""
    ada = orders(tea=1)
    assert await ada.place("tea") == 1
    with pytest.raises(OutOfStock, match="coffee"):
        await ada.place("coffee")
    assert ada.state == Ledger(placed=1)
    assert told_by(ada) == [Told("audit", "all", "note", ("tea", 1))]


@pytest.mark.parametrize(("saved", "kept"), [(False, 0), (True, 1)])
async def test_an_error_takes_the_state_back_to_the_last_save(saved: bool, kept: int) -> None:
    """What a handler calls of its own class is part of its own run: nothing that was told leaves."""
    ada = orders(jam=1, tea=0)
    with pytest.raises(OutOfStock, match="tea"):
        await ada.place_all(saved=saved)
    assert ada.state.placed == kept
    assert told_by(ada) == []


async def test_a_state_given_to_save_is_kept() -> None:
    """It replaces the state first."""
    ada = orders()
    with pytest.raises(OutOfStock):
        await ada.replace(7)
    assert ada.state == Ledger(placed=7)


async def test_a_state_that_does_not_fit_its_type_fails_the_handler() -> None:
    """It is found out where a commit would find it, and taken back; so is one that is given."""
    ada = orders()
    with pytest.raises(MalformedMessage, match=r"orders: state: Expected `int`, got `str`"):
        await ada.spoil()
    assert ada.state == Ledger()
    with pytest.raises(MalformedMessage, match="orders: state"):
        unhosted(Orders({}), state=Audit)
    with pytest.raises(TypeError, match="Audit keeps no state"):
        unhosted(Audit(), state=Ledger())
    with pytest.raises(MalformedMessage, match="is a Other and would come back as a Ledger"):
        unhosted(Orders({}), state=Other())


async def test_hooks_are_run_by_the_test() -> None:
    """They know the entity, and what they change stays."""
    ada = orders()
    await ada.on_activate()
    await ada.on_deactivate()
    assert ada.state.notes == ["hello ada"]


async def test_each_item_of_a_stream_ends_a_run() -> None:
    """What was changed and told before an item stays, though the stream fails later; arguments are passed on."""
    ada = orders()
    items: list[int] = []

    async def take() -> None:
        async for item in ada.history(1):
            items.append(item)
            assert ada.state.placed == len(items)

    with pytest.raises(OutOfStock, match="history"):
        await take()
    assert items == [1, 2]
    assert ada.state.placed == 2
    assert told_by(ada) == [Told("audit", "ada", "note", ("1", 1)), Told("audit", "ada", "note", ("2", 1))]
    with pytest.raises(NotConnected):
        current()


async def test_a_step_calls_its_function() -> None:
    """Plain and async functions alike, with their arguments."""
    assert await orders().pay(5) == 9


async def test_tells_are_recorded_with_their_keys_and_times() -> None:
    """Keys come from where they come from in a cluster: the tell, the client, the argument's own."""

    class Teller(Entity):
        async def tell(self) -> list[int]:
            audit = current().client(Audit)
            return [
                await current().tell(audit("a").note("plain", count=3)),
                await current().tell(audit("a").keep(Placed("o-1")), delay=timedelta(hours=1)),
                await current().tell(audit.options(key="k")("a").keep(Placed("o-1")), deliver_at=NOON),
                await current().tell(audit.options(key="k")("a").keep(Placed("o-1")), key="own"),
                await current().tell(audit.active().note("all")),
                await current().tell(current().singleton(Nightly).roll_up(NOON)),
            ]

    teller = unhosted(Teller())
    assert await teller.tell() == [1, 2, 3, 4, 5, 6]
    assert told_by(teller) == [
        Told("audit", "a", "note", ("plain", 3)),
        Told("audit", "a", "keep", (Placed("o-1"),), key="o-1", delay=timedelta(hours=1)),
        Told("audit", "a", "keep", (Placed("o-1"),), key="k", deliver_at=NOON),
        Told("audit", "a", "keep", (Placed("o-1"),), key="own"),
        Told("audit", "", "note", ("all", 1)),
        Told("nightly", "nightly", "roll_up", (NOON,)),
    ]


async def test_a_singleton_s_hooks_run_and_schedules_are_called_like_handlers() -> None:
    """Its id is its name, `run` saves, and a method with a schedule takes its fire time."""
    nightly = unhosted(Nightly())
    await nightly.on_become_leader()
    await nightly.run()
    assert nightly.state.placed == 3
    assert await nightly.roll_up(NOON) == 2029


async def test_current_knows_the_entity_and_nothing_of_a_caller() -> None:
    """What a run in a cluster would know of its message is what it is where nobody sent one."""
    seen: list[Current] = []

    class Curious(Entity, name="curious", shard_group="eu"):
        async def look(self) -> None:
            seen.append(current())
            current().keep_alive()

    await unhosted(Curious(), entity_id="ada").look()
    (here,) = seen
    assert (here.entity_type, here.entity_id, here.shard_id.group) == ("curious", "ada", "eu")
    assert (here.epoch, here.attempt, here.message_id, here.is_leader) == (1, 1, 0, True)
    assert (here.key, here.deadline, here.trace, here.headers, here.chain) == (None, None, None, {}, ())
    assert here.incarnation == here.runner.incarnation
    with pytest.raises(NotConnected):
        current()


async def transaction() -> None:
    async with current().transaction():
        pass


async def deferred() -> None:
    await current().deferred("approval", bool).wait()


async def sleep() -> None:
    await current().sleep(timedelta(seconds=1))


async def spawn() -> None:
    await current().spawn(asyncio.sleep(0))


async def key_value() -> None:
    await current().kv.get("k")


async def ask() -> None:
    await current().client(Audit)("all").note("tea")


async def ask_for_items() -> None:
    async for _ in current().client(Audit)("all").watch():
        pass


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (
            transaction,
            r"needing: current\(\).transaction\(\) needs a cluster, and nobody hosts .*: test it with a runner on",
        ),
        (deferred, r"needing: current\(\).deferred\(\) needs a cluster, .*: test it with MemoryCluster"),
        (sleep, r"current\(\).sleep\(\) needs a cluster"),
        (spawn, r"current\(\).spawn\(\) needs a cluster"),
        (key_value, r"current\(\).kv needs a cluster"),
        (ask, r"audit.note was asked, and nobody hosts it: tell it, or test with MemoryCluster"),
        (ask_for_items, r"audit.watch was asked"),
    ],
)
async def test_what_needs_a_cluster_says_so(work: Callable[[], Awaitable[None]], text: str) -> None:
    """The error names what was wanted, and where it can be tested."""

    class Needing(Entity):
        async def need(self) -> None:
            await work()

    with pytest.raises(RuntimeError, match=text):
        await unhosted(Needing()).need()


async def test_entities_of_one_test_do_not_mix() -> None:
    """A handler that calls another unhosted instance gets its own context back."""
    audit = unhosted(Audit(), entity_id="inner")

    class Outer(Entity):
        async def both(self) -> list[str]:
            return [await audit.whose(), f"{current().entity_type}/{current().entity_id}"]

    assert await unhosted(Outer(), entity_id="outer").both() == ["audit/inner", "outer/outer"]


async def test_mistakes_with_unhosted_instances_are_named() -> None:
    """Calls that nobody could tell, saves outside of handlers, and instances that are not unhosted."""

    class Wrong(Entity):
        async def tell(self) -> None:
            await current().tell(asyncio.get_running_loop().create_future())

        async def misspell(self) -> None:
            current().client(Audit)("all").nte("x")  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]

        async def forget(self) -> None:
            await current().client(Audit)("all").note()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]

        async def name_nobody(self) -> None:
            current().client(Audit)("")

        async def keep(self) -> None:
            await self.save()

    wrong = unhosted(Wrong())
    with pytest.raises(TypeError, match="tell takes a call"):
        await wrong.tell()
    with pytest.raises(AttributeError, match="audit has no handler 'nte': did you mean note"):
        await wrong.misspell()
    with pytest.raises(TypeError, match="missing a required argument: 'text'"):
        await wrong.forget()
    with pytest.raises(MalformedMessage, match="must not be empty"):
        await wrong.name_nobody()
    with pytest.raises(RuntimeError, match=r"save\(\) works in the handlers of an Entity with state"):
        await wrong.keep()
    with pytest.raises(RuntimeError, match=r"save\(\) works in handlers"):
        await orders().save()
    with pytest.raises(TypeError, match="this Audit is not unhosted"):
        told_by(Audit())
    with pytest.raises(MalformedMessage, match="must not be empty"):
        unhosted(Audit(), entity_id="")


async def test_wrong_values_are_refused_as_a_cluster_refuses_them() -> None:
    """Times, headers and keys of what an unhosted handler tells."""
    five: Any = 5

    class Wrong(Entity):
        async def act(self, place: str) -> None:
            audit = current().client(Audit)
            match place:
                case "delay":
                    await current().tell(audit("a").keep(Placed("o-1")), delay=five)
                case "deliver_at":
                    await current().tell(audit("a").keep(Placed("o-1")), deliver_at=five)
                case "key":
                    await current().tell(audit("a").keep(Placed("o-1")), key=five)
                case "timeout":
                    audit.options(timeout=five)
                case _:
                    audit.options(headers=five)

    wrong = unhosted(Wrong())
    for place in ("delay", "deliver_at", "timeout"):
        with pytest.raises(TypeError, match=f"{place}=5 must be"):
            await wrong.act(place)
    for place in ("key", "headers"):
        with pytest.raises(MalformedMessage, match=f"{place} must be"):
            await wrong.act(place)
    assert told_by(wrong) == []


async def test_an_unhosted_instance_changes_nothing_for_hosted_ones() -> None:
    """The class is as it was: a cluster hosts it in the same test."""
    hub = Hub()
    hub.register(Orders, lambda: Orders({"tea": 1}))
    hub.register(Audit)
    await orders(tea=1).place("tea")
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        assert await runner.client(Orders)("ada").place("tea") == 1
        assert await runner.client(Audit)("all").whose() == "audit/all"
        assert (await state_of(memory, Orders, "ada")).notes == ["hello ada"]


def test_every_member_of_current_is_there() -> None:
    """Whoever adds one says what it is without a cluster."""
    members = {name for name in vars(Current) if not name.startswith("_")}
    assert members <= vars(UnhostedCurrent).keys()
    assert inspect.signature(UnhostedCurrent.tell).parameters == inspect.signature(Current.tell).parameters
