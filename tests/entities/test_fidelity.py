"""What is committed is what was meant: results fit their type, and states come back as they are."""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub import Entity, HandlerFailed, Hub, MalformedMessage, Retry, handler
from actorhub.core.codec import Codec
from actorhub.core.fidelity import first_difference
from actorhub.testing import MemoryCluster, state_of, until
from tests.support.gates import failure


class Note(msgspec.Struct):
    text: str = ""


class Signed(Note):
    by: str = ""


class Colour(enum.StrEnum):
    RED = "red"


@dataclass(eq=False)
class Incomparable:
    number: float = 0.0
    more: Any = None


class Page(msgspec.Struct):
    runs: int = 0
    note: Note = msgspec.field(default_factory=Note)
    anything: dict[str, Any] = {}
    words: set[str] = set()
    share: float = 0.0
    colour: str = ""
    at: datetime | None = None
    odd: Incomparable = msgspec.field(default_factory=Incomparable)
    numbers: list[int] = []


class Book(Entity[Page]):
    async def forgets_its_return(self) -> int:  # type: ignore[return]
        self.state.runs += 1

    @handler(durable=True, retry=Retry(attempts=3, initial=timedelta(milliseconds=1)))
    async def forgets_it_for_good(self) -> int:  # type: ignore[return]
        self.state.runs += 1
        _runs.append(1)

    async def set(self, what: str) -> int:
        self.state.runs += 1
        _CHANGES[what](self.state)
        return self.state.runs


_runs: list[int] = []


def _change(name: str, value: object) -> Callable[[Page], None]:
    return lambda page: setattr(page, name, value)


_CHANGES: dict[str, Callable[[Page], None]] = {
    "note is a Signed and would come back as a Note": _change("note", Signed("a", "b")),
    r"anything\['price'\] is a Decimal and would come back as a str": _change("anything", {"price": Decimal("1.5")}),
    r"anything\['a'\]\[0\]\['b'\] is a tuple and would come back as a list": _change(
        "anything", {"a": [{"b": (1, 2)}]}
    ),
    "odd.more is a date and would come back as a str": _change("odd", Incomparable(more=date(2026, 1, 1))),
    "odd.more is a UUID and would come back as a str": _change("odd", Incomparable(more=UUID(int=1))),
    "numbers is a tuple and would come back as a list": _change("numbers", (1, 2)),
    "words": _change("words", {f"word {number}" for number in range(50)}),
    "not a number": _change("share", math.nan),
    "an incomparable value": _change("odd", Incomparable(math.nan, {"a": [1, None]})),
    "an int in a float": _change("share", 2),
    "an enum in a str": _change("colour", Colour.RED),
    "a time": _change("at", datetime(2026, 1, 1, tzinfo=UTC)),
}
_FAITHFUL = [what for what in _CHANGES if " would come back " not in what]


def _hub() -> Hub:
    hub = Hub()
    hub.register(Book)
    return hub


async def test_a_result_that_does_not_fit_fails_the_run_before_its_commit() -> None:
    """The caller learns it, the state is as it was, and a durable message runs again until it is a dead letter."""
    _runs.clear()
    async with MemoryCluster(_hub()) as memory:
        book = (await memory.start_runner()).client(Book)("a")
        assert isinstance(await failure(book.forgets_its_return()), HandlerFailed)
        assert isinstance(await failure(book.forgets_it_for_good()), HandlerFailed)
        await until(lambda: len(_runs) == 3)
        assert await book.set("a time") == 1


@pytest.mark.parametrize("what", [what for what in _CHANGES if what not in _FAITHFUL])
async def test_a_state_that_would_come_back_as_something_else_is_not_committed(what: str) -> None:
    """The error names the field; the state is as it was."""
    async with MemoryCluster(_hub()) as memory:
        book = (await memory.start_runner()).client(Book)("a")
        assert await book.set("a time") == 1
        with pytest.raises(MalformedMessage, match=what) as caught:
            await book.set(what)
        assert caught.value.possibly_executed
        assert await book.set("a time") == 2
        assert (await state_of(memory, Book, "a")).note == Note()


@pytest.mark.parametrize("what", _FAITHFUL)
async def test_a_state_that_comes_back_equal_is_committed(what: str) -> None:
    """Whatever `==` calls equal is; so are NaN, and classes without `==` whose fields are equal."""
    async with MemoryCluster(_hub()) as memory:
        book = (await memory.start_runner()).client(Book)("a")
        assert await book.set(what) == 1
        assert (await state_of(memory, Book, "a")).runs == 1


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
    | st.decimals() | st.dates() | st.datetimes() | st.uuids() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    | st.builds(Incomparable, st.floats(), inner),
    max_leaves=6,
)  # fmt: skip


@given(_VALUES)
def test_the_difference_is_found_wherever_it_is(value: object) -> None:
    """An untyped value has a difference exactly if what msgpack makes of it has another type or value somewhere."""
    back = Codec[Any](Any, "it").decode(msgspec.msgpack.encode(value))
    assert (first_difference(value, back) is None) == _is_same(value, back)


def _is_same(value: object, back: object) -> bool:
    if type(value) is not type(back):
        return False
    if isinstance(value, list):
        assert isinstance(back, list)
        return len(value) == len(back) and all(map(_is_same, value, back))
    if isinstance(value, dict):
        assert isinstance(back, dict)
        return value.keys() == back.keys() and all(_is_same(value[key], back[key]) for key in value)
    return bool(value == back or value != value)  # noqa: PLR0124 - NaN
