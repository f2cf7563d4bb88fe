"""Random types as a program declares them, each with values that fit it and one that does not."""

import dataclasses
import enum
import itertools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar
from uuid import UUID

import msgspec
from hypothesis import strategies as st

T = TypeVar("T")
U = TypeVar("U")


class Kind(msgspec.Struct):
    """A type, values that fit it, and one that does not."""

    type: Any
    values: st.SearchStrategy[Any]
    nonsense: Any
    is_hashable: bool = True


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Page(msgspec.Struct, Generic[T]):
    entries: list[T]
    more: "Page[T] | None" = None


@dataclass
class Pair(Generic[T, U]):
    left: T
    right: dict[str, U]


class Named(NamedTuple, Generic[T]):
    at: int
    what: T


class Parts(TypedDict, Generic[T], total=False):
    one: T
    other: list[T]


class Tree(msgspec.Struct, frozen=True):
    name: str = ""
    children: tuple["Tree", ...] = ()


class Branch(msgspec.Struct, tag=True, frozen=True):
    left: "Branch | Leaf"
    right: "Branch | Leaf"


class Leaf(msgspec.Struct, tag=True, frozen=True):
    number: int


@dataclass(frozen=True)
class Even:
    """Has a friend of another type, which has one of this type."""

    odd: "Odd | None" = None


@dataclass(frozen=True)
class Odd:
    even: Even | None = None


Count = NewType("Count", int)
Positive = Annotated[int, msgspec.Meta(ge=1)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=5)]

_trees = st.recursive(
    st.builds(Tree, st.text(max_size=3)),
    lambda inner: st.builds(Tree, st.text(max_size=3), st.lists(inner, max_size=2).map(tuple)),
    max_leaves=4,
)
_branches = st.recursive(
    st.builds(Leaf, st.integers(-9, 9)), lambda inner: st.builds(Branch, inner, inner), max_leaves=4
)
_ODDS = (None, Odd(), Odd(Even()), Odd(Even(Odd())))

LEAVES: tuple[Kind, ...] = (
    Kind(int, st.integers(-(2**63), 2**64 - 1), "x"),
    Kind(bool, st.booleans(), "x"),
    Kind(float, st.floats(allow_nan=False, allow_infinity=False), "x"),
    Kind(str, st.text(), 5),
    Kind(bytes, st.binary(), 5),
    Kind(datetime, st.datetimes(timezones=st.just(UTC)), 5.5),
    Kind(datetime, st.datetimes(), "x"),
    Kind(date, st.dates(), 5),
    Kind(time, st.times(), 5),
    Kind(timedelta, st.timedeltas(), "x"),
    Kind(Decimal, st.decimals(allow_nan=False, allow_infinity=False), []),
    Kind(UUID, st.uuids(), "x"),
    Kind(None, st.none(), 5),
    Kind(Colour, st.sampled_from(Colour), "green"),
    Kind(Size, st.sampled_from(Size), 3),
    Kind(Literal["a", 1, None], st.sampled_from(["a", 1, None]), "b"),  # noqa: PYI061 - written so on purpose
    Kind(Count, st.integers(0, 9), "x"),
    Kind(Positive, st.integers(1, 9), 0),
    Kind(Word, st.text(min_size=1, max_size=5), "longer than five"),
    Kind(int | str, st.integers(0, 9) | st.text(), 1.5),
    Kind(Tree, _trees, 5),
    Kind(Branch | Leaf, _branches, {"type": "Twig"}),
    Kind(Even, st.sampled_from(_ODDS).map(Even), 5),
)
_numbers = itertools.count()


def _containers(kind: Kind) -> st.SearchStrategy[Kind]:
    it: Any = kind.type
    values, wrong, few = kind.values, kind.nonsense, 2
    found = [
        Kind(list[it], st.lists(values, max_size=few), [wrong], is_hashable=False),
        Kind(Sequence[it], st.lists(values, max_size=few), [wrong], is_hashable=False),
        Kind(tuple[it, ...], st.lists(values, max_size=few).map(tuple), [wrong], kind.is_hashable),
        Kind(tuple[it, int], st.tuples(values, st.integers(0, 9)), [wrong, 1], kind.is_hashable),
        Kind(dict[str, it], st.dictionaries(st.text(max_size=3), values, max_size=few), {"a": wrong}, False),
        Kind(Mapping[int, it], st.dictionaries(st.integers(0, 9), values, max_size=few), {1: wrong}, False),
        Kind(Page[it], st.builds(Page, st.lists(values, max_size=few)), {"entries": [wrong]}, False),
        Kind(Pair[it, int], st.builds(Pair, values, st.just({"a": 1})), {"left": wrong, "right": {}}, False),
        Kind(Named[it], st.builds(Named, st.integers(0, 9), values), [1, wrong], kind.is_hashable),
        Kind(Parts[it], st.fixed_dictionaries({}, optional={"one": values}), {"one": wrong}, False),
        Kind(Optional[it], st.none() | values, wrong, kind.is_hashable),  # noqa: UP045 - `None | None` raises
        *_classes(kind),
    ]
    if kind.is_hashable:
        found += [
            Kind(set[it], st.sets(values, max_size=few), [wrong], is_hashable=False),
            Kind(frozenset[it], st.frozensets(values, max_size=few), [wrong]),
            Kind(AbstractSet[it], st.sets(values, max_size=few), [wrong], is_hashable=False),
        ]
    return st.sampled_from(found)


def _classes(kind: Kind) -> list[Kind]:
    """Return classes of all kinds with a field of a type."""
    number = next(_numbers)
    struct = msgspec.defstruct(f"Struct{number}", [("it", kind.type), ("also", int, 1)], kw_only=bool(number % 2))
    array = msgspec.defstruct(f"Array{number}", [("it", kind.type), ("n", int, 1)], array_like=True, frozen=True)
    data = dataclasses.make_dataclass(f"Data{number}", [("it", kind.type), ("also", int, 1)])
    typed = TypedDict(f"Typed{number}", {"it": kind.type, "also": int})  # type: ignore[misc] # noqa: UP013 - its name is made
    return [
        Kind(struct, st.builds(struct, it=kind.values, also=st.integers(0, 9)), {"it": kind.nonsense}, False),
        Kind(array, st.builds(array, kind.values), [kind.nonsense], kind.is_hashable),
        Kind(data, st.builds(data, kind.values), {"it": kind.nonsense}, is_hashable=False),
        Kind(typed, st.fixed_dictionaries({"it": kind.values, "also": st.just(2)}), {"it": kind.nonsense}, False),
    ]


def nested(leaves: Sequence[Kind] = LEAVES) -> st.SearchStrategy[Kind]:
    """Return random types: the leaves, and whatever contains them, up to three levels deep."""
    level = st.sampled_from(leaves)
    for _ in range(3):
        level = st.one_of(st.sampled_from(leaves), level.flatmap(_containers))
    return level


def is_same(value: object, other: object) -> bool:
    """Whether two values have equal types and are equal, at any depth."""
    if type(value) is not type(other):
        return False
    if isinstance(value, list | tuple):
        assert isinstance(other, list | tuple)
        return len(value) == len(other) and all(map(is_same, value, other))
    if isinstance(value, dict):
        assert isinstance(other, dict)
        return value.keys() == other.keys() and all(is_same(value[key], other[key]) for key in value)
    if isinstance(value, msgspec.Struct):
        return all(is_same(getattr(value, name), getattr(other, name)) for name in value.__struct_fields__)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return all(is_same(getattr(value, name), getattr(other, name)) for name in names)
    return bool(value == other)
