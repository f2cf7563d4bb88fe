"""The hash of what arguments mean: equal for equal ones, in whatever objects, processes and releases."""

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from actorhub.core.codec import Codec
from actorhub.core.meaning import in_order, meaning_hash
from tests.support.hash_seeds import printed_with_each_seed


class Line(msgspec.Struct):
    """A line, in the release before."""

    sku: str
    price: float = 0.0


class Longer(msgspec.Struct, tag="Line"):
    """A line with more fields."""

    note: str = ""
    sku: str = ""
    price: float = 0.0
    tags: set[str] = msgspec.field(default_factory=set)
    parts: list["Line"] = []
    extra: int | msgspec.UnsetType = msgspec.UNSET
    total: float | None = None


class Shorter(msgspec.Struct, tag="Line"):
    """The same with fewer."""

    sku: str
    price: float = 0.0


@dataclass
class Paid:
    """A dataclass, in the release before."""

    cents: int


@dataclass
class PaidLater:
    """The same with more fields."""

    currency: str = "EUR"
    lines: list[int] = field(default_factory=list)
    cents: int = 0


class Point(NamedTuple):
    """Where."""

    x: int
    y: int = 0


class Before(NamedTuple):
    """The same, in the release before."""

    x: int


class Colour(enum.Enum):
    """Which."""

    RED = "red"


class Held(msgspec.Struct, frozen=True, tag="held", rename="camel"):
    """Holds what nothing is known of."""

    its_name: str
    of: Any = None


@dataclass
class Kept:
    """The same."""

    of: Any
    note: str = ""


class Marked(msgspec.Struct, array_like=True, tag=7):
    """The same, encoded without names."""

    of: Any
    note: str = ""


class NamedHeld(NamedTuple):
    """The same."""

    of: Any


EQUAL: Final[dict[str, tuple[Any, Any, Any]]] = {
    "an int in a float's place": (tuple[float], (1,), (1.0,)),
    "within structs": (tuple[list[Line]], ([Line("a", 1)],), ([Line("a", 1.0)],)),
    "within dicts": (tuple[dict[str, float]], ({"a": 1, "b": 2},), ({"b": 2.0, "a": 1.0},)),
    "a tuple in a list's place": (tuple[list[int]], ((1, 2),), ([1, 2],)),
    "a set": (tuple[set[str]], ({*"abcdef"},), ({*"fedcba"},)),
    "sets in a set": (
        tuple[set[frozenset[str]]],
        ({frozenset("ab"), frozenset("c")},),
        ({frozenset("c"), frozenset("ba")},),
    ),
    "an enum": (tuple[Colour], (Colour.RED,), ("red",)),
    "a decimal": (tuple[Decimal], (Decimal("1.50"),), ("1.50",)),
}
DIFFERENT: Final[dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]] = {
    "true and one": ((True,), (1,)),
    "one and its text": ((1,), ("1",)),
    "a text and its bytes": (("a",), (b"a",)),
    "none and nothing": ((None,), ()),
    "a dict and its items": (({"a": 1},), ([("a", 1)],)),
    "a list and a set": (([1],), ({1},)),
    "a field and another": ((Longer(note="a"),), (Longer(sku="a"),)),
    "a field and the default of another": ((Line("a", 1.0),), (Line("a"),)),
    "a field that is set and not": ((Longer(extra=0),), (Longer(),)),
    "a tag and another": ((Shorter("a"),), (Line("a"),)),
    "one argument and two": (([1, 2],), (1, 2)),
    "times": ((datetime(2030, 1, 1, tzinfo=UTC),), (datetime(2030, 1, 2, tzinfo=UTC),)),
}


@pytest.mark.parametrize("name", EQUAL)
def test_arguments_that_mean_the_same_have_one_hash(name: str) -> None:
    """Once they are of the declared types."""
    declared, one, other = EQUAL[name]
    codec: Codec[tuple[Any, ...]] = Codec(declared, "arguments")
    hashes = {meaning_hash(codec.decode(codec.encode(value)), ()) for value in (one, other)}
    assert len(hashes) == 1


_PROGRAM: Final = """
from tests.core.test_meaning import *
codec = Codec(tuple[Any, ...], "arguments")
names = {"ada", "grace", "barbara", "hedy", "joan"}
mixed = {1, "one", None, 2.5, b"x", -7, (1, "a"), Colour.RED, Decimal("1.5")}
sets = {frozenset(pair) for pair in zip(sorted(names), sorted(names)[1:])}
structs = {Held(name, frozenset(names)) for name in names}
values = (
    names, {"of": {1, 2, 2**40, 2**50}}, {1: names, "b": mixed}, sets, [structs], (Held("a", sets), {"k": Kept(mixed)}),
    {frozenset(names): 1, (1, frozenset(names)): 2, 3: 4}, NamedHeld(names), [1, 2], 1.5,
)
for value in (*values, values):
    print(meaning_hash(codec.decode(codec.encode(in_order((value,)))), ()))
"""


def test_sets_for_which_no_type_is_declared_mean_the_same_in_every_process() -> None:
    """They come back as lists, and Python's hash seed does not say in which order, whatever is in them or around."""
    hashes = printed_with_each_seed(_PROGRAM)
    assert len(hashes) == 1


def test_what_is_in_order_is_encoded_alike() -> None:
    """Sets of one element have one order only: what is decoded is the same."""
    names = {"ada"}
    for declared, value in (
        (Held, Held("a", frozenset(names))),
        (Kept, Kept([{1}], note="n")),
        (dict[str, Marked], {"a": Marked(names), "b": Marked(set())}),
        (NamedHeld, NamedHeld(names)),
        (dict[tuple[int, frozenset[str]], int], {(1, frozenset(names)): 2}),
        (dict[Held, int], {Held("a", frozenset(names)): 2}),
    ):
        codec: Codec[Any] = Codec(declared, "a value")
        assert meaning_hash((codec.decode(codec.encode(in_order(value))),), ()) == meaning_hash(
            (codec.decode(codec.encode(value)),), ()
        )


def test_numbers_that_are_equal_mean_the_same_where_either_kind_may_stand() -> None:
    """The state that a run hands on was loaded in the next one: its int became the float that its type says."""
    for number in (0, 3, -7, 2**40, -(2**63)):
        assert meaning_hash((number, {number: [number]}), ()) == meaning_hash(
            (float(number), {float(number): (float(number),)}), ()
        )
    numbers = [1.5, 1, True, "1", float("nan"), float("inf"), 2.0**70, -(2.0**70), 2**63 - 1]
    assert len({meaning_hash((number,), ()) for number in numbers}) == len(numbers)
    one, other = ({-1, 3, 200, "a"}, {-1.0, 3.0, 200.0, "a"})
    codec: Codec[Any] = Codec(Any, "a value")
    assert len({meaning_hash((codec.decode(codec.encode(in_order(value))),), ()) for value in (one, other)}) == 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_arguments_have_different_hashes(name: str) -> None:
    """However alike they look."""
    one, other = DIFFERENT[name]
    assert meaning_hash(one, ()) != meaning_hash(other, ())


def test_what_a_later_release_adds_with_a_default_changes_nothing() -> None:
    """Parameters and fields, as long as nobody gives them another value."""
    assert meaning_hash((Shorter("a", 1.0),), ()) == meaning_hash((Longer(sku="a", price=1.0),), ())
    assert meaning_hash((Paid(5),), ()) == meaning_hash((PaidLater(cents=5),), ())
    assert meaning_hash((1,), ()) == meaning_hash((1, "", []), ("", []))
    assert meaning_hash((Point(1),), ()) == meaning_hash((Before(1),), ())
    assert meaning_hash((1,), ()) != meaning_hash((1, "", [2]), ("", []))
    assert meaning_hash((1, ""), ()) != meaning_hash((1, "", [2]), ("", []))
    assert meaning_hash((Shorter("a"),), ()) != meaning_hash((Longer(sku="a", total=0.0),), ())


def test_a_meaning_is_the_same_in_every_release() -> None:
    """It is part of the keys of stored messages."""
    arguments = (1, 1.5, "é", b"x", None, Longer(sku="a", tags={"b", "a"}), {"k": [Colour.RED]}, Point(1, 2))
    assert meaning_hash(arguments, ()).hex() == "4a984b7e82ce5bc49ec6447ecdfe9314"
