"""Asking and telling: arguments, results and errors, in the entities' own process and over real links."""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

from actorhub import (
    ActorhubError,
    Cluster,
    ConfigurationError,
    Entity,
    EntityError,
    HandlerFailed,
    Hub,
    MalformedMessage,
    MessageTooLarge,
    NotConnected,
    UnknownEntityType,
    UnknownHandler,
    current,
)
from actorhub.cluster import part_of
from actorhub.core.codec import decode_error, encode_error
from actorhub.engine.routing.peers import Peer
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, outcomes, soon


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


class Receipt(msgspec.Struct, frozen=True):
    number: int
    lines: list[Line]


class Ledger(msgspec.Struct):
    placed: int = 0
    cents: int = 0


class OutOfStock(EntityError):
    sku: str
    left: int
    since: datetime | None = None
    lines: tuple[Line, ...] = ()


class Fragile(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise KeyError("below zero")


class Orders(Entity[Ledger]):
    async def place(self, line: Line, cents: int = 5, *, note: str = "") -> Receipt:
        self.state.placed += 1
        self.state.cents += cents
        return Receipt(self.state.placed, [line])

    async def read(self) -> Ledger:
        return self.state

    async def refuse(self, sku: str) -> None:
        self.state.placed += 100
        raise OutOfStock(sku=sku, left=3, since=datetime(2026, 1, 2, tzinfo=UTC), lines=(Line("tea", 1),))

    async def crash(self, text: str) -> None:
        self.state.placed += 100
        raise ValueError(text)

    async def echo(self, body: bytes) -> bytes:
        return body

    async def size(self, body: bytes) -> int:
        return len(body)

    async def grow(self, size: int) -> bytes:
        return b"x" * size

    async def keywords(self, a: int, /, b: int, *, c: int, d: int = 4) -> list[int]:
        return [a, b, c, d]

    async def nothing(self) -> None:
        pass

    async def lie(self) -> int:
        return "not a number"  # type: ignore[return-value]

    async def unencodable(self) -> object:
        return object()

    async def half_encodable(self) -> dict[str, str]:
        return {"fine": "x", "surrogate": "\ud800"}

    async def fragile(self, thing: Fragile) -> int:
        return thing.value

    async def raise_unencodable(self) -> None:
        raise OutOfStock(sku="tea", left=object())  # type: ignore[arg-type]

    async def ask_other(self, other: str, sku: str) -> None:
        await current().client(Orders)(other).refuse(sku)


class Unregistered(Entity):
    async def count(self) -> int:
        return 1


hub = Hub()
hub.register(Orders)


async def test_arguments_and_results_keep_their_types(anywhere: Cluster) -> None:
    """Structs, defaults and keyword-only parameters arrive as they were given."""
    orders = anywhere.client(Orders)
    assert await orders("ada").place(Line("tea", 2)) == Receipt(1, [Line("tea", 2)])
    assert await orders("ada").place(Line("tea", 2), 7, note="x") == Receipt(2, [Line("tea", 2)])
    assert await orders("ada").read() == Ledger(2, 12)
    assert await orders("bob").read() == Ledger()
    assert await orders("ada").keywords(1, b=2, c=3) == [1, 2, 3, 4]
    assert await orders("ada").nothing() is None  # type: ignore[func-returns-value]


async def test_a_domain_error_arrives_with_its_fields(anywhere: Cluster) -> None:
    """The caller catches the class that the handler raised; the state is as before."""
    with pytest.raises(OutOfStock) as caught:
        await anywhere.client(Orders)("ada").refuse("tea")
    error = caught.value
    assert (error.sku, error.left, error.since) == ("tea", 3, datetime(2026, 1, 2, tzinfo=UTC))
    assert error.lines == (Line("tea", 1),)
    assert error.possibly_executed
    assert await anywhere.client(Orders)("ada").read() == Ledger()


async def test_a_domain_error_passes_through_the_entities_between(cluster: Cluster) -> None:
    """An error that a handler does not catch reaches its own caller unchanged."""
    with pytest.raises(OutOfStock, match="sku='coffee'"):
        await cluster.client(Orders)("ada").ask_other("bob", "coffee")


async def test_any_other_exception_arrives_as_a_named_failure(anywhere: Cluster) -> None:
    """HandlerFailed names class, text and place; the state is as before."""
    with pytest.raises(HandlerFailed, match="ValueError: oh no") as caught:
        await anywhere.client(Orders)("ada").crash("oh no")
    assert caught.value.type == "ValueError"
    assert "raise ValueError(text)" in caught.value.traceback
    assert caught.value.possibly_executed
    assert await anywhere.client(Orders)("ada").read() == Ledger()


async def test_arguments_of_a_wrong_type_never_reach_the_handler(anywhere: Cluster) -> None:
    """MalformedMessage names the parameter, or the field inside of it; no handler ran."""
    orders = anywhere.client(Orders)("ada")
    wrong: Any = "two"
    error = await failure(orders.place(Line("tea", wrong)))
    assert isinstance(error, MalformedMessage)
    assert "line.quantity" in str(error)
    assert not error.possibly_executed
    error = await failure(orders.place(wrong))
    assert "`line`" in str(error)
    error = await failure(orders.place(Line("tea", 1), wrong))
    assert "`cents`" in str(error)
    error = await failure(orders.place(object()))  # type: ignore[arg-type]
    assert isinstance(error, MalformedMessage)
    assert await orders.read() == Ledger()


async def test_a_type_that_fails_in_its_own_way_while_it_is_decoded_is_malformed(cluster: Cluster) -> None:
    """Whatever a parameter's __post_init__ raises, the message fails typed and the entity goes on."""
    orders = cluster.client(Orders)("ada")
    thing = Fragile(1)
    thing.value = -1
    error = await failure(orders.fragile(thing))
    assert isinstance(error, MalformedMessage)
    assert "KeyError: 'below zero'" in str(error)
    assert await orders.fragile(Fragile(3)) == 3


async def test_wrong_calls_fail_where_they_are_written(client: Cluster) -> None:
    """Too many, missing and unknown arguments are a TypeError of the call itself, and nothing is sent."""
    orders: Any = client.client(Orders)("ada")
    for method, args, kwargs in (
        (orders.place, (), {}),
        (orders.place, (Line("tea", 1), 2, "note"), {}),
        (orders.place, (Line("tea", 1),), {"colour": "red"}),
        (orders.keywords, (), {"a": 1, "b": 2, "c": 3}),
    ):
        with pytest.raises(TypeError, match=r"place\(\)|keywords\(\)"):
            method(*args, **kwargs)
    with pytest.raises(AttributeError):
        orders.plaice()


async def test_a_result_of_another_type_is_the_handlers_failure(anywhere: Cluster) -> None:
    """The caller learns that the handler returned something other than it declares."""
    with pytest.raises(HandlerFailed, match=r"something other than it declares.*orders\.lie: result"):
        await anywhere.client(Orders)("ada").lie()


async def test_a_result_that_cannot_be_encoded_fails_alone(anywhere: Cluster) -> None:
    """Neighbours in the same mailbox and on the same link get their replies."""
    orders = anywhere.client(Orders)("ada")
    found = await outcomes(
        orders.read(), orders.unencodable(), orders.half_encodable(), orders.raise_unencodable(), orders.read()
    )
    assert found[0] == found[4] == Ledger()
    assert all(isinstance(error, ActorhubError) and error.possibly_executed for error in found[1:4])
    assert isinstance(found[1], MalformedMessage)
    assert "orders.unencodable: result" in str(found[1])


async def test_messages_over_the_limit_are_refused(anywhere: Cluster) -> None:
    """Too large arguments never run, too large results fail typed, and what is just small enough passes."""
    orders = anywhere.client(Orders)("ada")
    limit = part_of(anywhere).node.limits.max_message_bytes
    error = await failure(orders.size(b"x" * (limit + 1)))
    assert isinstance(error, MessageTooLarge)
    assert not error.possibly_executed
    assert f"the limit is {limit}" in str(error)
    error = await failure(orders.grow(limit + 1))
    assert isinstance(error, MessageTooLarge)
    assert error.possibly_executed
    assert len(await orders.echo(b"x" * (limit - 10))) == limit - 10


@pytest.mark.parametrize("wrong", ["", "x" * 256, "ä" * 128, "a\nb", "a\x00", "\ud800", 7, None, b"ada"])
async def test_ids_that_cannot_be_are_refused_at_once(client: Cluster, wrong: str) -> None:
    """An id that is empty, too long, not text, or holds control characters makes no proxy."""
    with pytest.raises(MalformedMessage, match="entity id"):
        client.client(Orders)(wrong)


async def test_nothing_is_local_to_a_client(memory: MemoryCluster) -> None:
    """It owns no shards, so there is nothing to compute from the id."""
    await memory.start_runner()
    assert not (await memory.client()).is_local(Orders, "")


@pytest.mark.parametrize("right", ["x" * 255, "ä" * 127, "a b", "日本", "a/b#c?d", "😀"])
async def test_ids_may_hold_any_printable_text(anywhere_once: Cluster, right: str) -> None:
    """Up to 255 bytes of text without control characters are an id."""
    assert await anywhere_once.client(Orders)(right).read() == Ledger()


@pytest.fixture
async def anywhere_once(client: Cluster) -> Cluster:
    return client


async def test_the_configured_id_limit_holds_for_short_ids_too() -> None:
    """A limit below the default is applied by callers."""
    small = MemoryCluster(hub)
    small.settings = msgspec.structs.replace(small.settings, max_entity_id_bytes=5)
    async with small as memory:
        runner = await memory.start_runner()
        assert await runner.client(Orders)("12345").read() == Ledger()
        with pytest.raises(MalformedMessage, match="the limit is 5"):
            runner.client(Orders)("123456")


async def test_a_class_that_was_not_registered_has_no_client(client: Cluster) -> None:
    """Asking for a client of another class says how to register it."""
    with pytest.raises(ConfigurationError, match=r"Unregistered is not registered: call hub\.register\(Unregistered\)"):
        client.client(Unregistered)


async def test_a_type_that_no_runner_hosts_fails_without_waiting(memory: MemoryCluster, client: Cluster) -> None:
    """The error names the types that there are."""
    wider = Hub()
    wider.register(Orders)
    wider.register(Unregistered)
    caller = await memory.client(hub=wider)
    async with asyncio.timeout(3):
        error = await failure(caller.client(Unregistered)("ada").count())
    assert isinstance(error, UnknownEntityType)
    assert "orders" in str(error)
    assert not error.possibly_executed


async def test_a_handler_that_the_runner_does_not_know_is_named(memory: MemoryCluster, runner: Cluster) -> None:
    """A newer client that calls a new handler on an older runner learns what the runner has."""

    class Newer(Orders, name="orders"):
        async def audit(self) -> int:
            return 1

    newer = Hub()
    newer.register(Newer)
    caller = await memory.client(hub=newer)
    error = await failure(caller.client(Newer)("ada").audit())
    assert isinstance(error, UnknownHandler)
    assert "orders has no handler 'audit': it has ask_other, crash" in str(error)
    assert not error.possibly_executed
    assert await caller.client(Newer)("ada").read() == Ledger()


async def test_an_older_caller_may_leave_out_new_parameters(memory: MemoryCluster, runner: Cluster) -> None:
    """Parameters with defaults can be added: calls from before get the default."""

    class Older(Entity[Ledger], name="orders"):
        async def place(self, line: Line) -> Receipt:
            raise AssertionError

    older = Hub()
    older.register(Older)
    caller = await memory.client(hub=older)
    assert await caller.client(Older)("ada").place(Line("tea", 1)) == Receipt(1, [Line("tea", 1)])
    assert (await runner.client(Orders)("ada").read()).cents == 5


async def test_a_call_that_is_dropped_warns(client: Cluster) -> None:
    """A call that is neither awaited nor told is a mistake, and its name is in the warning."""
    with pytest.warns(RuntimeWarning, match=r"call of orders\.read was never awaited or told"):
        client.client(Orders)("ada").read()  # type: ignore[unused-coroutine]


async def test_a_call_can_be_used_once(cluster: Cluster) -> None:
    """A second await is refused, and the handler ran once."""
    call = cluster.client(Orders)("ada").place(Line("tea", 1))
    await call
    with pytest.raises(RuntimeError, match="was used before: make a new one"):
        await call
    with pytest.raises(RuntimeError, match="was used before"):
        await cluster.tell(call)
    assert (await cluster.client(Orders)("ada").read()).placed == 1


async def test_a_call_is_a_coroutine_as_its_type_says(cluster: Cluster) -> None:
    """Task groups and tasks take calls directly; a task that is cancelled before its start sends nothing."""
    orders = cluster.client(Orders)("ada")
    async with asyncio.TaskGroup() as tasks:
        placed = [tasks.create_task(orders.place(Line("tea", number))) for number in range(3)]
    assert sorted(task.result().number for task in placed) == [1, 2, 3]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(orders.place(Line("tea", 1))).cancel()
    assert (await orders.read()).placed == 3
    unsent = orders.read()
    unsent.close()
    with pytest.raises(OutOfStock):
        await soon(orders.refuse("tea"))


async def test_a_call_after_the_end_of_the_connection_is_refused(memory: MemoryCluster, client: Cluster) -> None:
    """Clients that outlive their connection raise NotConnected; nothing was sent."""
    orders = client.client(Orders)
    await orders("ada").read()
    await memory.stop(client)
    error = await failure(orders("ada").read())
    assert isinstance(error, NotConnected)
    assert not error.possibly_executed
    with pytest.raises(NotConnected):
        await client.tell(orders("ada").nothing())
    with pytest.raises(NotConnected):
        current()


async def test_closing_the_connection_ends_the_calls_that_wait(memory: MemoryCluster, client: Cluster) -> None:
    """Whoever waits for a reply when the client closes learns that the outcome is unknown."""
    held = soon(failure(client.client(Held)("ada").hold()))
    await gates["ada"].came()
    await memory.stop(client)
    async with asyncio.timeout(3):
        error = await held
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed


def _nothing_in_flight(peers: Mapping[str, Peer]) -> bool:
    return not any(peer.pending or peer.serving for peer in peers.values())


class Held(Entity):
    async def hold(self) -> None:
        await gates[current().entity_id].pass_through()


hub.register(Held)


async def test_options_do_not_change_the_client_they_came_from(client: Cluster) -> None:
    """Each set of options is a client of its own; wrong ones are refused."""
    orders = client.client(Orders)
    assert orders.options(timeout=timedelta(seconds=1)) is not orders
    with pytest.raises(ValueError, match="must be more than zero, or None"):
        orders.options(timeout=timedelta(0))
    with pytest.raises(ValueError, match='must be "fail" or "wait"'):
        orders.options(on_full="drop")  # type: ignore[arg-type]
    assert await orders.options(timeout=None)("ada").read() == Ledger()
    assert repr(orders) == "<client of orders>"


async def test_a_domain_error_that_the_caller_does_not_know_is_still_named(
    memory: MemoryCluster, runner: Cluster
) -> None:
    """Without the class on the caller's side its name and text arrive as HandlerFailed."""

    class OnlyThere(EntityError):
        code: int

    body = encode_error(OnlyThere(code=7), 1000).replace(b"OnlyThere", b"OnlyWhere")
    error = decode_error(body)
    assert isinstance(error, HandlerFailed)
    assert "OnlyWhere" in error.type
    assert "code=7" in str(error)


async def test_a_runner_keeps_nothing_of_calls_that_are_over(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """After asks, failures and cancelled calls, no table of either side holds a message."""
    orders = client.client(Orders)
    await outcomes(*(orders(str(n)).place(Line("tea", n)) for n in range(50)), orders("a").crash("x"))
    task = soon(client.client(Held)("h").hold())
    await gates["h"].came()
    task.cancel()
    await until(lambda: gates["h"].left == ["cancelled"])
    for process in (runner, client):
        node = part_of(process).node
        peers = node.peers.linked
        await until(partial(_nothing_in_flight, peers))
        assert node.deadlines.size == 0
        assert node.router.statistics().parked == 0


async def test_what_only_the_entity_has_is_refused_on_a_proxy_with_what_to_do(cluster: Cluster) -> None:
    """The state, `save`, hooks and private names: a proxy is typed as the entity, but reaches its handlers only."""
    client = cluster.client(Orders)
    proxy: Any = client("a")
    texts = {
        "state": "orders.state: only the entity sees its state: write a handler that returns or changes what",
        "save": "orders.save: only the entity saves its state",
        "on_activate": "orders.on_activate: hooks are called by actorhub alone",
        "_private": "no attribute '_private'",
        "raed": "'proxy of orders' object has no attribute 'raed'",
    }
    for name, text in texts.items():
        with pytest.raises(AttributeError, match=re.escape(text)):
            getattr(proxy, name)
        assert not hasattr(proxy, name)
    with pytest.raises(AttributeError, match=r"orders\.state: only the entity sees its state"):
        proxy.state = 3
    with pytest.raises(AttributeError, match=r"read is a handler of one orders, .* write client\(id\)\.read\(\.\.\.\)"):
        _ = client.read  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"'client of orders' object has no attribute 'actve'"):
        _ = client.actve  # type: ignore[attr-defined]
