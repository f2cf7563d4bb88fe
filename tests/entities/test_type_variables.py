"""Type variables in the handlers and states of generic bases: what a subclass sets is what arrives."""

import sys
import textwrap
from abc import ABC
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import msgspec
import pytest
from typing_extensions import TypeVar as TypeVarWithDefault
from typing_extensions import TypeVarTuple

from actorhub import Entity, Hub, MalformedMessage, Singleton, handler
from actorhub.entity import Declared
from actorhub.testing import MemoryCluster

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K", bound=msgspec.Struct)
C = TypeVar("C", int, str)
D = TypeVarWithDefault("D", default=int)
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class Item(msgspec.Struct):
    n: int = 0


class Page(msgspec.Struct, Generic[T]):
    entries: list[T] = []
    next: "Page[T] | None" = None


class Pair(msgspec.Struct, Generic[T, U]):
    left: T
    right: U


class Box(Entity, Generic[T]):
    async def put(self, item: T) -> T:
        return item

    async def kind(self, item: T) -> str:
        return type(item).__name__

    async def many(self, items: dict[str, list[T]], page: Page[T] | None = None) -> Page[T]:
        return page or Page(items["a"])

    async def watch(self, item: T) -> AsyncIterator[T]:
        yield item


class ItemBox(Box[Item]):
    pass


class Deeper(Box[Page[T]], Generic[T]):
    pass


class PageBox(Deeper[Item]):
    pass


class Mixed(Generic[T, U]):
    """A mixin, which by itself is not an entity."""

    async def swap(self, left: T, right: U) -> Pair[U, T]:
        return Pair(right, left)


class Both(Mixed[U, T], Box[T], Generic[T, U]):
    """Its variables are those of its bases under other names, and in another order."""


class IntItem(Both[int, Item]):
    pass


class Kept(Entity[Page[T]], Generic[T]):
    async def add(self, item: T) -> int:
        self.state.entries.append(item)
        return len(self.state.entries)

    @handler(readonly=True)
    async def entries(self) -> list[T]:
        return self.state.entries


class Items(Kept[Item]):
    pass


class Repository(Entity[T], ABC, Generic[T]):
    async def replace(self, state: T) -> None:
        self.state = state

    async def get(self) -> T:
        return self.state


class ItemRepository(Repository["Item"]):
    pass


class Bound(Entity, Generic[K, C]):
    async def both(self, key: K, choice: C) -> tuple[K, C]:
        return key, choice


class BoundItem(Bound[Item, str]):
    pass


class Defaults(Entity, Generic[T, D]):
    async def both(self, one: T, other: D) -> tuple[T, D]:
        return one, other


class OneDefault(Defaults[Item]):  # type: ignore[type-arg,unused-ignore]
    pass


class Watches(Protocol[T]):
    async def last(self, of: T) -> T: ...


class Watcher(Singleton[Page[T]], Generic[T]):
    async def last(self, of: T) -> T:
        self.state.entries.append(of)
        return self.state.entries[-1]


class ItemWatcher(Watcher[Item], Watches[Item]):
    pass


_EVERY: tuple[type[Declared[Any]], ...] = (
    ItemBox, PageBox, IntItem, Items, ItemRepository, BoundItem, OneDefault, ItemWatcher,
)  # fmt: skip


def _hub(*classes: type[Declared[Any]]) -> Hub:
    hub = Hub()
    for cls in classes:
        hub.register(cls)
    return hub


async def test_arguments_results_items_and_states_of_a_generic_base_are_of_the_type_that_its_subclass_sets() -> None:
    """Through any depth of inheritance, mixins, renamed, re-ordered, bound, constrained and default type variables."""
    async with MemoryCluster(_hub(*_EVERY)) as memory:
        await memory.start_runner()
        await memory.settled()
        client = await memory.client()
        box = client.client(ItemBox)("1")
        assert await box.put(Item(1)) == Item(1)
        assert await box.kind(Item(1)) == "Item"
        assert await box.many({"a": [Item(2)]}) == Page([Item(2)])
        assert await box.many({}, Page([Item(1)], Page([Item(3)]))) == Page([Item(1)], Page([Item(3)]))
        assert [item async for item in box.watch(Item(4))] == [Item(4)]
        assert await client.client(PageBox)("1").put(Page([Item(1)])) == Page([Item(1)])
        both = client.client(IntItem)("1")
        assert await both.put(3) == 3
        assert await both.swap(Item(1), 2) == Pair(2, Item(1))
        items = client.client(Items)("1")
        assert await items.add(Item(7)) == 1
        assert await items.entries() == [Item(7)]
        repository = client.client(ItemRepository)("1")
        assert await repository.get() == Item()
        await repository.replace(Item(4))
        assert await repository.get() == Item(4)
        assert await client.client(BoundItem)("1").both(Item(1), "a") == (Item(1), "a")
        assert await client.client(OneDefault)("1").both(Item(1), 2) == (Item(1), 2)
        assert await client.singleton(ItemWatcher).last(Item(2)) == Item(2)


async def test_nonsense_for_a_type_variable_is_refused_before_the_handler_runs() -> None:
    """The error says that nothing ran."""
    async with MemoryCluster(_hub(*_EVERY)) as memory:
        client = await memory.start_runner()
        wrong: Any = "nonsense"
        for call in (
            client.client(ItemBox)("1").put(wrong),
            client.client(PageBox)("1").put(Page([wrong])),
            client.client(IntItem)("1").swap(wrong, 1),
            client.client(ItemRepository)("1").replace(wrong),
            client.client(BoundItem)("1").both(Item(), 5),  # type: ignore[arg-type]
            client.client(OneDefault)("1").both(Item(), wrong),
        ):
            with pytest.raises(MalformedMessage) as caught:
                await call
            assert not caught.value.possibly_executed


def test_a_generic_class_is_registered_by_its_subclasses() -> None:
    """By itself it has no types; the error says what to register instead."""
    with pytest.raises(TypeError, match=r"Box.*: Box is generic: register a subclass .*`class SomeBox\(Box\[int\]\)`"):
        Hub().register(Box)
    with pytest.raises(TypeError, match="Kept: state: Kept is generic"):
        Hub().register(Kept)


def test_a_subclass_that_leaves_a_variable_unset_is_refused_at_definition() -> None:
    """The error says which variable of which class, and what to write."""
    with pytest.raises(TypeError, match=r"Plain\.\w+: T of Box is not set: derive from Box\[\.\.\.\]"):

        class Plain(Box):  # type: ignore[type-arg]
            pass


def test_a_type_variable_of_a_method_alone_is_refused() -> None:
    """Nobody says what arrives, so it would arrive as dicts."""
    with pytest.raises(TypeError, match=r"Wrong\.echo: T is a type variable of this method alone"):

        class Wrong(Entity):
            async def echo(self, item: T) -> T:
                return item


def test_variables_that_stand_for_several_types_are_refused() -> None:
    """A `TypeVarTuple` and a `ParamSpec` have no one type; the error says what to use."""
    with pytest.raises(TypeError, match=r"Wrong: .*Ts.* stands for more than one type: use a TypeVar for each"):

        class Wrong(Entity, Generic[*Ts]):
            pass

    with pytest.raises(TypeError, match=r"Other: .*P.* stands for more than one type"):

        class Other(Entity, Generic[P]):
            pass


def test_one_base_with_two_different_arguments_is_refused() -> None:
    """Neither could win: the handlers of one of them would get values of the other's type."""

    class First(Entity[int]):
        pass

    class Second(Entity[Item]):
        pass

    class Stateless(Entity):
        pass

    with pytest.raises(TypeError, match=r"Wrong: it inherits Entity twice, of int and of .*Item: keep one"):

        class Wrong(First, Second):
            pass

    class Right(Stateless, First):
        pass

    assert Right.__declaration__.spec.initial_state() == 0


def test_a_generic_struct_without_arguments_is_refused() -> None:
    """Its fields would arrive as whatever is in the data."""
    with pytest.raises(TypeError, match=r"pages\.put: arguments: Page is generic: write Page\[\.\.\.\]"):

        class Pages(Entity):
            async def put(self, page: Page) -> None:  # type: ignore[type-arg]
                pass

    class Fine(Entity):
        async def put(self, page: Page[Any]) -> None:
            pass


_PEP_695 = """
{future}
import msgspec
from actorhub import Entity

class Item(msgspec.Struct):
    n: int = 0

type Several[T] = list[T]

class Page[T](msgspec.Struct):
    entries: list[T] = []

class Box[T](Entity):
    async def put(self, item: T, more: Several[T], page: Page[T]) -> Page[T]:
        assert isinstance(item, Item) and isinstance(page.entries[0], Item) and isinstance(more[0], Item)
        return page

class ItemBox(Box[Item]):
    pass

class Kept[T: msgspec.Struct](Entity[Page[T]]):
    async def add(self, item: T) -> list[T]:
        self.state.entries.append(item)
        return self.state.entries

class Items(Kept["Item"]):
    pass

def local():
    class Local(msgspec.Struct):
        n: int = 0

    class LocalBox[T](Box[T]):
        async def other(self, item: T, local: Local, later: "Later") -> tuple[T, Local, Later]:
            return item, local, later

    class LocalItemBox(LocalBox[Item]):
        pass

    class Later(msgspec.Struct):
        n: int = 0

    return LocalItemBox, Local, Later
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is that of Python 3.12")
@pytest.mark.parametrize("future", ["", "from __future__ import annotations"])
async def test_type_parameters_in_brackets_work_like_type_variables(
    future: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes, aliases and local classes with the syntax of PEP 695, with evaluated and postponed annotations."""
    code: Any = ModuleType("syntax_of_pep_695")
    monkeypatch.setitem(sys.modules, code.__name__, code)
    text = textwrap.dedent(_PEP_695.format(future=future))
    if not future:
        text = text.replace("-> tuple[T, Local, Later]", '-> "tuple[T, Local, Later]"')
    exec(text, vars(code))  # noqa: S102 - Python 3.11 cannot parse it
    local_box, local_type, later_type = code.local()
    item = code.Item(3)
    async with MemoryCluster(_hub(code.ItemBox, code.Items, local_box)) as memory:
        client = await memory.start_runner()
        page = code.Page([item])
        assert await client.client(code.ItemBox)("1").put(item, [item], page) == page
        assert await client.client(code.Items)("1").add(item) == [item]
        other = await client.client(local_box)("1").other(item, local_type(1), later_type(2))
        assert other == (item, local_type(1), later_type(2))
