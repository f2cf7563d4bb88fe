"""Random declarations: what is accepted arrives equal, and everything else is refused before a handler runs."""

import collections
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actorhub import Entity, EntityError, Hub, MalformedMessage, Retry, handler
from actorhub.core.errors import field_names
from actorhub.ops.failures import failure_of
from actorhub.testing import MemoryCluster
from tests.support.gates import failure
from tests.support.generated_types import Kind, Page, is_same, nested

_seen: list[Any] = []
_errors: list[type[EntityError]] = []
QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def _declared(kind: Kind) -> type[Entity[Any]]:
    """Return an entity whose arguments, results, items, state and errors contain a type."""
    it: Any = kind.type
    state: Any = msgspec.defstruct("State", [("it", it | None if it is not None else it, None), ("runs", int, 0)])
    error = type("Refused", (EntityError,), {"__annotations__": {"it": it, "more": list[it]}, "__module__": __name__})
    _errors[:] = [error]

    class Declared(Entity[state]):
        async def take(self, it: it, *, more: list[it]) -> it:
            _seen.extend([it, more])
            return it

        @handler(durable=True, retry=Retry(attempts=1))
        async def keep(self, it: it) -> list[it]:
            _seen.append(it)
            self.state.it = it
            return [it]

        async def kept(self) -> state:
            return self.state

        async def watch(self, it: it) -> AsyncIterator[it]:
            yield it

        @handler(durable=True, retry=Retry(attempts=1))
        async def fail(self, it: it) -> None:
            raise error(it=it, more=[it, it])

    return Declared


@QUICK
@given(st.data())
async def test_what_is_accepted_arrives_equal_and_nonsense_does_not_run(data: st.DataObject) -> None:
    """As argument, result, item, state and field of an error, with the types that it had."""
    kind = data.draw(nested())
    value, other = data.draw(kind.values), data.draw(kind.values)
    hub = Hub()
    declared = _declared(kind)
    hub.register(declared)
    async with MemoryCluster(hub) as memory:
        await memory.start_runner()
        await memory.settled()
        entity: Any = (await memory.client()).client(declared)("a")
        _seen.clear()
        assert is_same(await entity.take(value, more=[value, other]), value)
        assert is_same(_seen, [value, [value, other]])
        assert is_same(await entity.keep(other), [other])
        assert is_same((await entity.kept()).it, other)
        assert is_same([item async for item in entity.watch(value)], [value])
        error = await failure(entity.fail(value))
        assert type(error) is _errors[0]
        assert field_names(type(error)) == ("it", "more")
        assert is_same([cast("Any", error).it, cast("Any", error).more], [value, [value, value]])
        assert msgspec.json.decode(failure_of(error).fields_json).keys() == {"it", "more"}
        _seen.clear()
        for call in (entity.take(kind.nonsense, more=[]), entity.keep(kind.nonsense)):
            refused = await failure(call)
            assert isinstance(refused, MalformedMessage)
            assert not refused.possibly_executed
        assert _seen == []


@settings(max_examples=100)
@given(st.data())
def test_what_other_languages_send_as_json_arrives_equal(data: st.DataObject) -> None:
    """The gateway takes arguments by name, and returns results."""
    kind = data.draw(nested())
    value = data.draw(kind.values)
    spec = _declared(kind).__declaration__.spec.handlers["take"]
    arguments = spec.named.decode_json(spec.named.encode_json(spec.named.decode_json(_json(it=value, more=[value]))))
    assert is_same([arguments.it, arguments.more], [value, [value]])
    assert is_same(spec.result.decode_json(spec.result.encode_json(value)), value)


def _json(**arguments: object) -> bytes:
    return msgspec.json.encode(arguments)


class Mutable(msgspec.Struct):
    number: int = 0


_REFUSED: dict[str, Any] = {
    "Callable cannot be sent": Callable[[], int],
    "complex cannot be sent": complex,
    "deque cannot be sent": collections.deque[int],
    "type cannot be sent": type[int],
    "ValueError cannot be sent": ValueError,
    r"Page is generic: write Page\[": Page,
    "values of list cannot be in a set": set[list[int]],
    "values of set cannot be in a set": frozenset[tuple[set[int], ...]],
    "values of Mutable cannot be in a set": set[Mutable],
    "values of Mutable cannot be in a set, nor": dict[Mutable, int],
    "more than one": Mutable | dict[str, int],
}


@pytest.mark.parametrize("text", _REFUSED)
@settings(max_examples=10)
@given(data=st.data())
def test_what_cannot_be_sent_is_refused_at_definition_wherever_it_is(text: str, data: st.DataObject) -> None:
    """The class statement fails, and names the type."""
    refused = Kind(_REFUSED[text], st.nothing(), None, is_hashable=False)
    kind = data.draw(nested([refused]))
    with pytest.raises(TypeError, match=text):

        class Wrong(Entity):
            async def take(self, it: kind.type) -> None:  # type: ignore[name-defined]
                pass
