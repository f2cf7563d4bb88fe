"""What a release adds with a default changes no meaning, however the default is written."""

import dataclasses
import datetime as dt
import enum
import functools
import random
import uuid
from collections.abc import Callable
from dataclasses import make_dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple, cast

import msgspec
import pytest

from actorhub.core.factories import is_constant
from actorhub.core.meaning import meaning_hash


class Colour(enum.Enum):
    """Which."""

    RED = "red"


class Rate(enum.IntEnum):
    """How much."""

    NONE = 0


class Money(msgspec.Struct, frozen=True):
    """How much of what."""

    amount: float = 0
    currency: str = "EUR"


class Basket(msgspec.Struct):
    """What is bought."""

    colours: list[Colour] = msgspec.field(default_factory=lambda: [Colour.RED])
    total: Money = Money(1)


class Prompt(msgspec.Struct):
    """What is paid today."""

    day: dt.date = msgspec.field(default_factory=dt.date.today)


@dataclasses.dataclass
class Parcel:
    """What is sent."""

    basket: Basket = dataclasses.field(default_factory=Basket)
    grams: float = 0


@dataclasses.dataclass
class Numbered:
    """A class with code of its own."""

    number: int = 0

    def __post_init__(self) -> None:
        """Number it."""
        self.number = random.randrange(2)


WRITTEN: Final[list[tuple[Any, Any]]] = [
    (float, 0),
    (float, 0.0),
    (float, -3),
    (float, Rate.NONE),
    (float | None, 7),
    (int | float, 7),
    (Decimal, 0),
    (Decimal, "1.50"),
    (Decimal, 1.5),
    (Colour, "red"),
    (Colour, Colour.RED),
    (str, Colour.RED),
    (int, Rate.NONE),
    (Rate, 0),
    (tuple[float, ...], (0, 1)),
    (tuple[float, str], (0, "a")),
    (frozenset[float], frozenset({0, 1, -7, 300})),
    (frozenset[str], ("a", "b")),
    (tuple[frozenset[float], ...], (frozenset({3, 4}),)),
    (dt.datetime, "2030-01-01T00:00:00Z"),
    (dt.datetime, dt.datetime(2030, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
    (dt.timedelta, dt.timedelta(seconds=1)),
    (uuid.UUID, "00000000-0000-0000-0000-000000000000"),
    (Money, Money(3)),
    (Money | None, None),
    (Any, Money(3)),
]
"""Types, and defaults which the one who writes the class may give for them."""
MADE: Final[list[tuple[Any, Callable[[], Any]]]] = [
    (list[float], lambda: [0, 1.0]),
    (list[float], list[float]),
    (dict[str, float], lambda: {"b": 2, "a": 1}),
    (set[float], lambda: {1, 2, 300}),
    (set[str], set),
    (Decimal, lambda: Decimal(0)),
    (list[Colour], lambda: [Colour.RED]),
    (Money, Money),
    (Money, lambda: Money(2, "USD")),
    (Basket, Basket),
    (Parcel, Parcel),
    (list[Parcel], lambda: [Parcel(grams=5)]),
]


def struct(field: tuple[Any, Any] | None, **config: bool | str) -> type[Any]:
    """Return a struct, with one field more if it is given by type and default."""
    more = [] if field is None else [("added", *field)]
    options: dict[str, Any] = config
    return msgspec.defstruct("Order", [("sku", str), *more], **options)


def frozen(field: tuple[Any, Any] | None) -> type[Any]:
    """Return a dataclass."""
    more = [] if field is None else [("added", *field)]
    return make_dataclass("Order", [("sku", str), *more])


def tupled(field: tuple[Any, Any] | None) -> type[Any]:
    """Return a named tuple."""
    more = [] if field is None else [("added", field[0])]
    kind: Any = NamedTuple("kind", [("sku", str), *more])  # type: ignore[misc]
    if field is not None:
        kind._field_defaults = {"added": field[1]}
        kind.__new__.__defaults__ = (field[1],)
    return cast("type[Any]", kind)


KINDS: Final[dict[str, Callable[[Any], type[Any]]]] = {
    "struct": struct,
    "omits": functools.partial(struct, omit_defaults=True),
    "tagged": functools.partial(struct, tag="o", array_like=True),
    "dataclass": frozen,
    "named tuple": tupled,
}
PLACES: Final[dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "itself": (lambda kind: kind, lambda order: order),
    "list": (list.__class_getitem__, lambda order: [order]),
    "dict": (
        lambda kind: dict.__class_getitem__((str, tuple.__class_getitem__((kind, ...)))),
        lambda order: {"a": (order,)},
    ),
}


def meanings(before: type[Any], after: type[Any], place: str) -> set[bytes]:
    """Return what orders mean in both releases: of the later one left out, given as written, and given as decoded."""
    type_of, put = PLACES[place]

    def sent(kind: type[Any], order: object) -> object:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(put(order)), type=type_of(kind))

    left_out = after("a")
    config = getattr(after, "__struct_config__", None)
    plain: object = {"sku": "a", "added": left_out.added}
    if issubclass(after, tuple):
        plain = ["a", left_out.added]
    elif config is not None and config.array_like:
        plain = ["o", "a", left_out.added]
    given = msgspec.msgpack.decode(msgspec.msgpack.encode(plain), type=after)
    values = [sent(before, before("a")), sent(after, left_out), sent(after, given), put(given), put(left_out)]
    return {meaning_hash((value,), ()) for value in values}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_a_release_adds_with_a_default_means_nothing(kind: str, place: str) -> None:
    """Whether or not the default is written as the type says: it is left out, or given, or comes back from a store."""
    make = KINDS[kind]
    for type_, default in WRITTEN:
        assert len(meanings(make(None), make((type_, default)), place)) == 1, (type_, default)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["struct", "omits", "tagged", "dataclass"])
def test_a_field_that_a_release_adds_with_a_constant_factory_means_nothing(kind: str, place: str) -> None:
    """A class, or a function that makes the same always."""
    make = KINDS[kind]
    field: Any = dataclasses.field if kind == "dataclass" else msgspec.field
    for type_, factory in MADE:
        after = make((type_, field(default_factory=factory)))
        assert len(meanings(make(None), after, place)) == 1, (type_, factory)


def test_a_field_with_another_value_means_something() -> None:
    """However near it is to its default."""
    order = struct((float, 0))
    values = [0, 0.5, -1, 1, True, None, "0"]
    assert len({meaning_hash((order("a", value),), ()) for value in values}) == len(values)


def test_a_default_that_is_not_of_its_type_is_what_it_is() -> None:
    """It can only be left out, by a class that omits it: a value of the type is never it."""
    order = struct((int, "none"), omit_defaults=True)
    assert meaning_hash((order("a"),), ()) == meaning_hash((struct(None)("a"),), ())
    assert meaning_hash((order("a", 0),), ()) != meaning_hash((order("a"),), ())


def test_a_factory_whose_product_changes_is_no_default() -> None:
    """What was made yesterday means today what it meant then: the process of today has seen another product."""
    made: list[int] = [1]
    order = struct((int, msgspec.field(default_factory=lambda: made[0])))
    before = meaning_hash((order("a"),), ())
    made[0] = 2
    other = struct((int, msgspec.field(default_factory=lambda: made[0])))
    assert meaning_hash((other("a", 1),), ()) == before


def test_a_factory_that_raises_makes_no_default() -> None:
    """Whoever gives the field a value is compared by that."""
    order = struct((int, msgspec.field(default_factory=lambda: int("no number"))))
    assert meaning_hash((order("a", 1),), ()) != meaning_hash((order("a", 2),), ())


@pytest.mark.parametrize(
    "factory",
    [
        dt.date.today,
        uuid.uuid4,
        lambda: dt.datetime.now(dt.UTC),
        lambda: random.randrange(2),
        lambda: id(1),
        lambda: open("a"),  # noqa: PTH123, SIM115
        Prompt,
        lambda: [Prompt()],
        lambda: list(WRITTEN),
        Numbered,
        functools.partial(Money, 1),
    ],
)
def test_what_may_make_something_else_each_time_is_no_constant(factory: Callable[[], object]) -> None:
    """Nobody can tell from one product of it what another process makes."""
    assert not is_constant(factory)
