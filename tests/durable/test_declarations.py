"""Declaring durable handlers and naming keys: what may be said, and what a wrong one is told."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest

from actorhub import Cluster, Entity, EntityError, Hub, MalformedMessage, Retry, handler
from actorhub._call import Call
from actorhub.core.retry import DEFAULT_RETRY
from actorhub.engine.model.spec import HandlerSpec

FEW = Retry(attempts=3, initial=timedelta(seconds=1))


class Ledger(msgspec.Struct):
    placed: int = 0


class OutOfStock(EntityError):
    sku: str


class Orders(Entity[Ledger]):
    @handler(durable=True)
    async def place(self, sku: str, number: int = 1) -> int:
        return number

    @handler(durable=True, retry=FEW, retention=timedelta(hours=1), timeout=timedelta(seconds=5))
    async def ship(self, sku: str) -> None:
        pass

    @handler(durable=True, retention=timedelta(minutes=1))
    async def watch(self, since: int) -> AsyncIterator[int]:
        yield since

    async def count(self) -> int:
        return self.state.placed


hub = Hub()
hub.register(Orders)


def _declare(**options: Any) -> type[Entity]:
    class Wrong(Entity):
        @handler(**options)
        async def place(self, sku: str) -> None:
            pass

    return Wrong


def _durable(cls: type[Entity[Any]], name: str) -> HandlerSpec:
    spec = cls.__declaration__.spec.handlers[name]
    assert spec.durable
    return spec


def _key(orders: Orders) -> str | None:
    call = cast("Call", orders.place("tea"))
    call.close()
    return call.target.key


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retry": Retry()}, r"retry=\.\.\. is for durable handlers: add durable=True, or remove retry"),
        (
            {"retention": timedelta(days=1)},
            r"retention=\.\.\. is for durable handlers: add durable=True, or remove retention",
        ),
        (
            {"durable": True, "readonly": True},
            r"a durable handler commits its reply, so it cannot be readonly: remove durable or readonly",
        ),
        (
            {"durable": True, "reentrant": True},
            r"a durable handler has a commit of its own, so .* within another handler: remove durable or reentrant",
        ),
        ({"durable": True, "retention": timedelta(0)}, r"retention=0:00:00 must be more than zero, and at most 36500"),
        ({"durable": True, "retention": timedelta(seconds=-1)}, r"retention=-1 day, 23:59:59 must be more than zero"),
        ({"durable": True, "retention": timedelta.max}, r"retention=.* must be more than zero, and at most 36500 days"),
        ({"durable": True, "timeout": timedelta(0)}, r"timeout=0:00:00 must be more than zero"),
    ],
)
def test_options_that_exclude_each_other_are_refused_at_class_definition(options: dict[str, Any], text: str) -> None:
    """The class statement itself fails, and names the handler, the option and the remedy."""
    with pytest.raises(TypeError, match=rf"Wrong\.place: {text}"):
        _declare(**options)


def test_a_handler_is_volatile_unless_it_says_otherwise() -> None:
    """Nothing is stored for a handler that did not ask for it."""
    assert not Orders.__declaration__.spec.handlers["count"].durable


def test_a_durable_handler_has_defaults_for_all_the_rest() -> None:
    """`durable=True` alone means the default retry and the cluster's retention."""
    spec = _durable(Orders, "place")
    assert (spec.retry, spec.retention, spec.timeout) == (DEFAULT_RETRY, None, None)
    assert spec.defaults == (1,)


def test_the_engine_learns_what_the_handler_said() -> None:
    """Retry as it is, times in seconds."""
    spec = _durable(Orders, "ship")
    assert (spec.retry, spec.retention, spec.timeout) == (FEW, 3600.0, 5.0)


def test_a_stream_may_be_durable() -> None:
    """An async generator takes the same options."""
    spec = _durable(Orders, "watch")
    assert spec.stream
    assert spec.retention == 60.0


def test_durable_handlers_may_run_interleaved_without_state() -> None:
    """Where there is no state to roll back, concurrency is not a hindrance."""

    class Mailer(Entity, concurrency=8):
        @handler(durable=True)
        async def send(self, to: str) -> None:
            pass

    assert _durable(Mailer, "send").entity_type == "mailer"
    assert Mailer.__declaration__.spec.concurrency == 8


def test_durability_is_inherited_also_by_a_method_that_overrides_without_a_decorator() -> None:
    """A message that was stored yesterday is stored tomorrow, unless the override's own decorator says otherwise."""

    class Kept(Orders, name="kept"):
        async def ship(self, sku: str) -> None:
            pass

    class Keeping(Kept, name="keeping"):
        async def ship(self, sku: str) -> None:
            pass

    class Loose(Orders, name="loose"):
        @handler()
        async def ship(self, sku: str) -> None:
            pass

    class Lost(Loose, name="lost"):
        async def ship(self, sku: str) -> None:
            pass

    for cls in (Kept, Keeping):
        spec = _durable(cls, "ship")
        assert (spec.retry, spec.retention, spec.timeout) == (FEW, 3600.0, 5.0)
        assert spec.function is vars(cls)["ship"]
    assert not any(loose.__declaration__.spec.handlers["ship"].durable for loose in (Loose, Lost))
    assert _durable(Loose, "place").defaults == (1,)


def test_a_retry_may_name_domain_errors() -> None:
    """The errors to run again after arrive at the engine as classes."""

    class Patient(Entity):
        @handler(durable=True, retry=Retry(on=(OutOfStock,)))
        async def place(self, sku: str) -> None:
            raise OutOfStock(sku=sku)

    assert _durable(Patient, "place").retry.on == (OutOfStock,)


def test_a_durable_decorator_returns_the_very_function() -> None:
    """The class keeps what its author wrote."""

    async def place(self: object, sku: str) -> str:
        return sku

    mark: Callable[[Any], Any] = handler(durable=True, retry=FEW, retention=timedelta(days=2))
    assert mark(place) is place


async def test_a_clients_key_goes_with_its_calls_until_it_is_taken_off(cluster: Cluster) -> None:
    """`options` makes another client; what it does not name stays as it was."""
    orders = cluster.client(Orders)
    keyed = orders.options(key="o-1")
    patient = keyed.options(timeout=timedelta(minutes=1))
    clients = (orders, keyed, patient, patient.options(key=None), keyed.options(key="o-2"))
    assert [_key(client("ada")) for client in clients] == [None, "o-1", "o-1", None, "o-2"]


@pytest.mark.parametrize("key", ["", "o\n1", "x" * 1025, 7])
async def test_a_client_refuses_a_key_that_cannot_be_stored(runner: Cluster, key: str) -> None:
    """The mistake shows where the key is given, before there is a call."""
    with pytest.raises(MalformedMessage, match=r"^key "):
        runner.client(Orders).options(key=key)
