"""The hash of what arguments mean: equal for equal ones, in whatever objects, processes and releases."""

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from actorhub.core.codec import Codec
from actorhub.core.meaning import meaning_hash
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
from tests.core.test_meaning import Any, Codec, meaning_hash
codec = Codec(tuple[Any, ...], "arguments")
names = {"ada", "grace", "barbara", "hedy", "joan"}
print(meaning_hash(codec.decode(codec.encode_in_order((names, {"of": {1, 2, 2**40, 2**50}}))), ()))
"""


def test_sets_for_which_no_type_is_declared_mean_the_same_in_every_process() -> None:
    """They come back as lists, and Python's hash seed does not say in which order."""
    hashes = printed_with_each_seed(_PROGRAM)
    assert len(hashes) == 1


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
