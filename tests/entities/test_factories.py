"""Factories: what does not make a new instance of the registered class is refused, at the latest where it is used."""

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, cast

import pytest

from actorhub import ConfigurationError, Entity, Hub, Retry, handler
from actorhub.testing import MemoryCluster
from tests.support.gates import outcomes

REMEDY: Final = re.escape("hub.register(Plain, lambda: Plain(...))")


class Counter(Entity[int]):
    """Adds up."""

    async def add(self, amount: int) -> int:
        self.state += amount
        await asyncio.sleep(0)
        return self.state


class Plain(Entity):
    """Has neither state nor hooks, so it is made at once."""

    async def kind(self) -> str:
        return type(self).__name__

    @handler(durable=True, retry=Retry(attempts=1))
    async def work(self) -> str:
        return type(self).__name__


class Special(Plain, name="special"):
    """A factory of its base may make it."""


class Stranger:
    """Is not an entity."""


async def make_later() -> Plain:
    """Make it when somebody waits for it."""
    return Plain()


def make_lazily() -> Iterator[Plain]:
    """Make it when somebody iterates."""
    yield Plain()


async def make_both() -> AsyncIterator[Plain]:
    """Make it when somebody iterates and waits."""
    yield Plain()


class Maker:
    """Is called like a function."""

    async def __call__(self) -> Plain:
        return Plain()


@pytest.mark.parametrize("factory", [make_later, make_lazily, make_both, functools.partial(make_later), Maker()])
def test_a_factory_that_is_not_a_plain_function_is_refused(factory: Callable[[], Any]) -> None:
    """A coroutine or a generator instead of an instance is seen before anything is called."""
    hub = Hub()
    with pytest.raises(TypeError, match=rf"Plain must return a new Plain.*{REMEDY}"):
        hub.register(Plain, factory)
    hub.register(Plain, Plain)


@pytest.mark.parametrize("factory", [Stranger, Counter, Plain(), 7, lambda plain: plain])
def test_a_factory_that_cannot_make_the_class_is_refused(factory: object) -> None:
    """Another class, a thing that cannot be called, and a function that needs arguments."""
    with pytest.raises(TypeError, match=rf"Plain.*{REMEDY}"):
        Hub().register(Plain, cast("Callable[[], Plain]", factory))


async def calls_of(hub: Hub, entity: type[Any], handler: str, *args: object) -> list[object]:
    """Return what three ids answer, here and over a link."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        near, far = runner.client(entity), client.client(entity)
        return await outcomes(
            *(getattr(where(name), handler)(*args) for where, name in [(near, "a"), (far, "b"), (near, "c")])
        )


async def test_one_instance_is_not_shared_by_several_ids() -> None:
    """The first id has it; the others are told at once what to do, and no states are mixed."""
    shared = Counter()
    hub = Hub()
    hub.register(Counter, lambda: shared)
    async with asyncio.timeout(5):
        found = await calls_of(hub, Counter, "add", 1)
    errors = [one for one in found if isinstance(one, Exception)]
    assert [one for one in found if one not in errors] == [1]
    assert [type(error) for error in errors] == [ConfigurationError] * 2
    for error in errors:
        assert re.search(r"counter/\w: .*the same Counter twice.*must return a new Counter", str(error))
        assert not cast("ConfigurationError", error).possibly_executed


@pytest.mark.parametrize(
    ("make", "got"), [(make_later, "a coroutine"), (Stranger, "a Stranger"), (lambda: None, "a NoneType")]
)
@pytest.mark.parametrize("handler", ["kind", "work"])
async def test_what_is_not_of_the_class_is_not_used(make: Callable[[], Any], got: str, handler: str) -> None:
    """What a lambda hides until it is called, the caller is told."""
    hub = Hub()
    hub.register(Plain, lambda: cast("Plain", make()))
    async with asyncio.timeout(20):
        found = await calls_of(hub, Plain, handler)
    assert len(found) == 3
    for error in found:
        assert "ConfigurationError" in (type(error).__name__, getattr(error, "type", ""))
        assert f"returned {got}: it must return a new Plain" in str(error)


async def test_a_subclass_may_stand_for_the_class() -> None:
    """As tests do, with one that behaves otherwise."""
    hub = Hub()
    hub.register(Plain, Special)
    assert await calls_of(hub, Plain, "kind") == ["Special"] * 3
