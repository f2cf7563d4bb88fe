"""Names in annotations that are defined later: a class can be defined before them, and works once they are known."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Union

import msgspec
import pytest

from actorhub import Entity, Hub
from actorhub.testing import MemoryCluster
from tests.entities import relatives

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal  # noqa: TC004 - that it is missing is the point

T = TypeVar("T")


class Tree(msgspec.Struct):
    leaves: list[Leaf] = []
    tree: Tree | None = None


class Trees(Entity[Tree]):
    async def add(self, tree: Tree, *, more: Later | None = None) -> Both:
        self.state.leaves += tree.leaves
        return Both(tree=self.state, later=more)


class Leaf(msgspec.Struct):
    name: str = ""
    parent: Tree | None = None


@dataclass
class Later:
    leaf: Leaf


class Both(TypedDict):
    tree: Tree
    later: Later | None


class Base(Entity, Generic[T]):
    async def put(self, item: T, other: AfterBase) -> T:
        return item


class Derived(Base["AfterBase"]):
    pass


class AfterBase(msgspec.Struct):
    n: int = 0


Json = Union[dict[str, "Json"], list["Json"], str, int, None]  # noqa: UP007 - a name in quotes has no `|`


def _hub(*classes: type[Entity[Any]]) -> Hub:
    hub = Hub()
    for cls in classes:
        hub.register(cls)
    return hub


async def test_structs_and_handlers_may_name_what_stands_further_down() -> None:
    """Structs that name each other, dataclasses, typed dicts, type arguments, in quotes or postponed."""
    async with MemoryCluster(_hub(Trees, Derived)) as memory:
        client = await memory.start_runner()
        tree = Tree([Leaf("a", Tree([Leaf("b")]))])
        assert await client.client(Trees)("1").add(tree, more=Later(Leaf("c"))) == {
            "tree": tree,
            "later": Later(Leaf("c")),
        }
        assert await client.client(Derived)("1").put(AfterBase(1), AfterBase(2)) == AfterBase(1)


async def test_a_class_in_a_function_may_name_what_stands_further_down_in_it() -> None:
    """The names of the function are looked up when the hub registers the class."""

    class Early(Entity):
        async def take(self, it: Late) -> Late:
            return it

    class Late(msgspec.Struct):
        n: int = 0

    async with MemoryCluster(_hub(Early)) as memory:
        assert await (await memory.start_runner()).client(Early)("1").take(Late(3)) == Late(3)


async def test_an_inherited_handler_means_the_names_of_its_own_module() -> None:
    """A class of the same name beside the subclass is another one."""

    class Nephew(relatives.Uncle):
        async def other(self, note: Note) -> str:
            return note.text

    async with MemoryCluster(_hub(Nephew)) as memory:
        nephew = (await memory.start_runner()).client(Nephew)("1")
        assert await nephew.put(relatives.Note(1)) == relatives.Note(1)
        assert await nephew.other(Note("a")) == "a"


class Note(msgspec.Struct):
    text: str = ""


def _in_a_handler() -> type[Entity[Any]]:
    class Wrong(Entity):
        async def take(self, at: datetime) -> None:
            pass

    return Wrong


class Priced(msgspec.Struct):
    price: Decimal


def _in_a_struct() -> type[Entity[Any]]:
    class Wrong(Entity):
        async def take(self, all_of: list[Priced | None]) -> None:
            pass

    return Wrong


def _in_a_state() -> type[Entity[Any]]:
    class Wrong(Entity[dict[str, Priced]]):
        pass

    return Wrong


def _in_a_type_argument() -> type[Entity[Any]]:
    class Wrong(Base["Decimal"]):
        pass

    return Wrong


def _in_a_local_struct() -> type[Entity[Any]]:
    class Root(msgspec.Struct):
        leaf: LocalLeaf | None = None

    class LocalLeaf(msgspec.Struct):
        n: int = 0

    class Wrong(Entity[Root]):
        pass

    return Wrong


def _in_a_module_that_is_being_imported() -> type[Entity[Any]]:
    class Wrong(Entity):
        async def take(self, it: sys.NotThereYet) -> None:  # type: ignore[name-defined]
            pass

    return Wrong


@pytest.mark.parametrize(
    ("define", "text"),
    [
        (_in_a_handler, r"Wrong\.take: name 'datetime' is not defined: define it, or import it outside of `if TYPE_"),
        (_in_a_struct, r"wrong\.take: arguments: Priced\.price: name 'Decimal' is not defined: define it, or import"),
        (_in_a_state, r"wrong: state: Priced\.price: name 'Decimal' is not defined: define it, or import it outside"),
        (_in_a_type_argument, r"Wrong: name 'Decimal' is not defined: define it, or import it outside"),
        (
            _in_a_local_struct,
            r"Root\.leaf: name 'LocalLeaf' is not defined: the class is local .* move both there",
        ),
        (_in_a_module_that_is_being_imported, r"Wrong\.take: module 'sys' has no attribute 'NotThereYet': define it"),
    ],
)
def test_an_unknown_name_is_a_type_error_at_registration(define: Callable[[], type[Entity[Any]]], text: str) -> None:
    """The class can be defined; `register` says which name is missing in which class, and what to do."""
    cls = define()
    with pytest.raises(TypeError, match=text):
        Hub().register(cls)


def test_an_alias_that_contains_itself_is_refused() -> None:
    """Only a struct can; the error says so."""
    with pytest.raises(TypeError, match=r"wrong\.take: arguments: .*an alias of a type cannot contain itself: use a s"):

        class Wrong(Entity):
            async def take(self, it: Json) -> None:
                pass


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is that of Python 3.12")
def test_a_type_statement_that_contains_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Msgspec would follow it without end."""
    code: Any = ModuleType("endless_alias")
    monkeypatch.setitem(sys.modules, code.__name__, code)
    text = "type Json = dict[str, Json] | None\nclass Wrong(Entity):\n    async def take(self, it: Json) -> None: ..."
    with pytest.raises(TypeError, match=r"wrong\.take: arguments: an alias of a type cannot contain itself: use a s"):
        exec("from actorhub import Entity\n" + text, vars(code))  # noqa: S102 - Python 3.11 cannot parse it


def test_self_in_a_struct_is_refused_with_a_remedy() -> None:
    """Msgspec does not know it; the class's own name does the same."""
    with pytest.raises(TypeError, match=r"wrong: state: .*Self' is not supported: write the name of the class instead"):

        class Wrong(Entity[Chain]):
            pass


class Chain(msgspec.Struct):
    next: typing.Self | None = None
