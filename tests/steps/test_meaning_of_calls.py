"""What the calls of a handler mean: with and without a parameter that a release adds."""

from typing import Any

import msgspec
import pytest

from actorhub import Entity, MalformedMessage, handler
from actorhub.core.codec import Codec
from actorhub.engine.model.spec import HandlerSpec
from tests.core.test_meaning_of_defaults import MADE, WRITTEN


class Before(Entity[int]):
    """The release before."""

    @handler(durable=True)
    async def pay(self, cents: int) -> None:
        pass


def spec_of(cls: type[Entity[Any]]) -> HandlerSpec:
    """Return what the engine knows of `pay`."""
    return cls.__declaration__.spec.handlers["pay"]


def with_parameter(type_: object, default: object) -> HandlerSpec:
    """Return the handler of a release that adds a parameter."""

    async def pay(self: object, cents: int, added: object = None) -> None:
        pass

    pay.__annotations__["added"] = type_
    pay.__defaults__ = (default,)

    class After(Entity[int]):
        locals()["pay"] = handler(durable=True)(pay)

    return spec_of(After)


@pytest.mark.parametrize(
    ("type_", "default"), [*WRITTEN, *((type_, make()) for type_, make in MADE)], ids=lambda value: repr(value)[:30]
)
def test_a_parameter_that_a_release_adds_with_a_default_means_nothing(type_: object, default: object) -> None:
    """Left out, as it is written, and as it is once it was sent."""
    after = with_parameter(type_, default)
    decoded = Codec[object](type_, "a default").decode(msgspec.msgpack.encode(default))
    meanings = {after.meaning_of(after.bind(1)), after.meaning_of((1, default)), after.meaning_of((1, decoded))}
    assert meanings == {spec_of(Before).meaning_of((1,))}


def test_a_call_that_cannot_be_sent_has_no_meaning() -> None:
    """Nor has one with something in it that cannot be put in order."""
    after = with_parameter(Any, None)
    for wrong in (object(), {object()}, {(1, object()): 1}):
        with pytest.raises(MalformedMessage, match="arguments"):
            after.meaning_of((1, wrong))
