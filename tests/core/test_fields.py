"""The fields of classes, as every encoding of them needs them."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from actorhub.core.fields import Field, fields_of

if TYPE_CHECKING:
    from collections import deque as unknown

NONE = msgspec.NODEFAULT


class _Nothing:
    """Named as the mark of attrs."""


class Factory:
    """Named as that of attrs."""

    def __init__(self, factory: object, *, takes_self: bool = False) -> None:
        self.factory = factory
        self.takes_self = takes_self


def test_fields_of_a_struct() -> None:
    """Names, encoded names and defaults, also if annotations name what is not there, and after a keyword field."""

    class Struct(msgspec.Struct, kw_only=True, rename="camel"):
        some: "unknown[int]"
        of_two: int = 1
        last_one: int
        made: list[int] = msgspec.field(default_factory=list)

    assert fields_of(Struct) == (
        Field("some", "some", NONE, NONE),
        Field("of_two", "ofTwo", 1, NONE),
        Field("last_one", "lastOne", NONE, NONE),
        Field("made", "made", NONE, list),
    )


def test_fields_of_a_dataclass() -> None:
    """The same of a dataclass."""

    @dataclass
    class Data:
        some: int
        two: int = 1
        made: list[int] = field(default_factory=list)

    assert fields_of(Data) == (
        Field("some", "some", NONE, NONE),
        Field("two", "two", 1, NONE),
        Field("made", "made", NONE, list),
    )


def test_fields_of_an_attrs_class() -> None:
    """The same of an attrs class; the default that is made of other fields is not known."""
    defaults = [_Nothing(), 1, Factory(list), Factory(str, takes_self=True)]

    class Attrs:
        __attrs_attrs__ = tuple(SimpleNamespace(name=f"f{at}", default=each) for at, each in enumerate(defaults))

    assert fields_of(Attrs) == (
        Field("f0", "f0", NONE, NONE),
        Field("f1", "f1", 1, NONE),
        Field("f2", "f2", NONE, list),
        Field("f3", "f3", NONE, NONE),
    )


@pytest.mark.parametrize("kind", [int, dict, list, object])
def test_classes_without_fields(kind: type[Any]) -> None:
    """Other classes have none."""
    assert fields_of(kind) is None
