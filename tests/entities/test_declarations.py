"""Declaring entities: what a class may look like, and what a wrong one is told."""

import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Annotated, Generic, NewType, TypedDict, TypeVar

import msgspec
import pytest

from actorhub import ConfigurationError, Entity, EntityError, Hub, handler

S = TypeVar("S")
Count = NewType("Count", int)


class Ledger(msgspec.Struct):
    placed: int = 0


class NeedsArguments(msgspec.Struct):
    placed: int


def _sync_method() -> None:
    class Wrong(Entity):
        def count(self) -> int:
            return 1


def _public_attribute() -> None:
    class Wrong(Entity):
        total = 0


def _annotated_attribute() -> None:
    class Wrong(Entity):
        total: int


def _public_property() -> None:
    class Wrong(Entity):
        @property
        def total(self) -> int:
            return 1


def _static_method() -> None:
    class Wrong(Entity):
        @staticmethod
        async def total() -> int:
            return 1


def _nested_class() -> None:
    class Wrong(Entity):
        class Meta:
            pass


def _without_self() -> None:
    class Wrong(Entity):
        async def count() -> int:  # type: ignore[misc]
            return 1


def _star_arguments() -> None:
    class Wrong(Entity):
        async def add(self, *numbers: int) -> int:
            return sum(numbers)


def _star_keywords() -> None:
    class Wrong(Entity):
        async def add(self, **numbers: int) -> int:
            return sum(numbers.values())


def _unannotated_parameter() -> None:
    class Wrong(Entity):
        async def add(self, number) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
            return 1


def _unannotated_result() -> None:
    class Wrong(Entity):
        async def add(self, number: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
            return number


def _unsupported_parameter() -> None:
    class Wrong(Entity):
        async def add(self, number: Callable[[], int]) -> int:
            return number()


def _unsupported_result() -> None:
    class Wrong(Entity):
        async def add(self) -> type[int]:
            return int


def _wrong_stream_annotation() -> None:
    class Wrong(Entity):
        async def watch(self) -> int:  # type: ignore[misc]
            yield 1


def _sync_hook() -> None:
    class Wrong(Entity):
        def on_activate(self) -> None:  # type: ignore[override]
            pass


def _reserved_state() -> None:
    class Wrong(Entity[Ledger]):
        async def state(self) -> int:  # type: ignore[override]
            return 1


def _state_without_defaults() -> None:
    class Wrong(Entity[NeedsArguments]):
        pass


class Filled(TypedDict):
    placed: int


class Mistyped(msgspec.Struct):
    placed: int = "none"  # type: ignore[assignment]


def _state_of_required_keys() -> None:
    class Wrong(Entity[Filled]):
        pass


def _state_with_a_wrong_default() -> None:
    class Wrong(Entity[Mistyped]):
        pass


def _unsupported_state() -> None:
    class Wrong(Entity[Callable[[], int]]):
        pass


def _concurrency_with_state() -> None:
    class Wrong(Entity[Ledger], concurrency=2):
        pass


def _state_that_raises() -> None:
    class Refusing(msgspec.Struct):
        def __post_init__(self) -> None:
            raise ValueError("no")

    class Wrong(Entity[Refusing]):
        pass


def _zero_capacity() -> None:
    class Wrong(Entity, mailbox_capacity=0):
        pass


def _zero_concurrency() -> None:
    class Wrong(Entity, concurrency=0):
        pass


def _zero_idle() -> None:
    class Wrong(Entity, max_idle=timedelta(0)):
        pass


def _wrong_name() -> None:
    class Wrong(Entity, name="two words"):
        pass


def _wrong_group() -> None:
    class Wrong(Entity, shard_group="Big-Group"):
        pass


def _zero_timeout() -> None:
    class Wrong(Entity):
        @handler(timeout=timedelta(0))
        async def count(self) -> int:
            return 1


def _private_handler() -> None:
    class Wrong(Entity):
        @handler(readonly=True)
        async def _count(self) -> int:
            return 1


def _error_field_of_the_base() -> None:
    class Wrong(EntityError):
        possibly_executed: bool


def _private_error_field() -> None:
    class Wrong(EntityError):
        _left: int


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (_sync_method, r"Wrong\.count is not async: write `async def count\(\.\.\.\)`, or rename it to _count"),
        (
            _public_attribute,
            r"Wrong\.total: public names .* write `async def total\(self, \.\.\.\)`, or rename it",
        ),
        (
            _annotated_attribute,
            r"Wrong\.total: callers cannot reach public attributes .* rename it to _total, or keep it in the state",
        ),
        (_public_property, r"Wrong\.total: public names of an entity are handlers"),
        (_static_method, r"Wrong\.total: public names of an entity are handlers"),
        (_nested_class, r"Wrong\.Meta: public names of an entity are handlers"),
        (_without_self, r"Wrong\.count: its first parameter must be self"),
        (_star_arguments, r"Wrong\.add: \*numbers cannot be sent over the wire: name each parameter"),
        (_star_keywords, r"Wrong\.add: \*numbers cannot be sent over the wire"),
        (_unannotated_parameter, r"Wrong\.add: annotate number, for example `number: str`"),
        (_unannotated_result, r"Wrong\.add: annotate the result, for example `-> None`"),
        (_unsupported_parameter, r"wrong\.add: arguments: .*use types that msgspec can encode"),
        (_unsupported_result, r"wrong\.add: result: .*use types that msgspec can encode"),
        (_wrong_stream_annotation, r"wrong\.watch is a stream: annotate it `-> AsyncIterator\[Item\]`"),
        (_sync_hook, r"Wrong\.on_activate must be `async def on_activate\(self\) -> None`"),
        (_reserved_state, r"Wrong\.state: this name belongs to Entity: choose another"),
        (_state_without_defaults, r"Wrong: a new entity starts with NeedsArguments\(\).*give every field .* a default"),
        (_state_of_required_keys, r"Wrong: a new entity starts with Filled\(\), which is not a valid state .*`placed`"),
        (_state_with_a_wrong_default, r"Wrong: a new entity starts with Mistyped\(\), which is not .*other defaults"),
        (_state_that_raises, r"Wrong: a new entity starts with Refusing\(\), which fails \(ValueError: no\)"),
        (_unsupported_state, r"wrong: state: .*use types that msgspec can encode"),
        (_concurrency_with_state, r"Wrong: concurrency=2 needs an Entity without state"),
        (_zero_capacity, r"Wrong: mailbox_capacity=0 must be at least 1"),
        (_zero_concurrency, r"Wrong: concurrency=0 must be at least 1"),
        (_zero_idle, r"Wrong: max_idle=0:00:00 must be more than zero"),
        (_wrong_name, r"Wrong: name='two words' must be a letter, then"),
        (_wrong_group, r"Wrong: shard_group='Big-Group' must match"),
        (_zero_timeout, r"Wrong\.count: timeout=0:00:00 must be more than zero"),
        (_private_handler, r"Wrong\._count: @handler on a private method"),
        (_error_field_of_the_base, r"Wrong\.possibly_executed: a field of an EntityError cannot have this name"),
        (_private_error_field, r"Wrong\._left: a field of an EntityError cannot have this name"),
    ],
)
def test_a_wrong_declaration_is_told_what_to_write_instead(declare: Callable[[], None], text: str) -> None:
    """The class statement itself fails, and names the class, the member and the remedy."""
    with pytest.raises(TypeError, match=text):
        declare()


def test_names_default_to_snake_case() -> None:
    """The entity type of a class is its name in snake case unless the class says otherwise."""

    class HTTPOrderBook(Entity):
        pass

    class Other(Entity, name="orders.v2"):
        pass

    assert HTTPOrderBook.__declaration__.spec.name == "http_order_book"
    assert Other.__declaration__.spec.name == "orders.v2"


def test_constants_and_private_names_are_allowed() -> None:
    """UPPER_CASE names and names with an underscore are the class's own."""

    class Fine(Entity):
        LIMIT = 3
        DEFAULT: int = 4
        _cache: dict[str, int]

        def _compute(self) -> int:
            return self.LIMIT

        async def limit(self) -> int:
            return self._compute()

    assert list(Fine.__declaration__.spec.handlers) == ["limit"]


def test_handlers_are_inherited_and_overridden() -> None:
    """A subclass has its bases' handlers, mixins included, each once."""

    class Counts:
        async def count(self) -> int:
            return 1

    class First(Counts, Entity[Ledger]):
        async def place(self, n: int) -> int:
            return n

    class Second(First, name="second"):
        @handler(readonly=True)
        async def count(self) -> int:
            return 2

    spec = Second.__declaration__.spec
    assert sorted(spec.handlers) == ["count", "place"]
    assert spec.handlers["count"].readonly
    assert spec.state is not None


def test_a_generic_class_in_between_passes_the_state_on() -> None:
    """The state type is found through type variables, also when its class is not the direct base."""

    class Kept(Entity[S], Generic[S]):
        async def value(self) -> int:
            return 1

    class Pair(Kept[S]):
        pass

    class Book(Pair[Ledger]):
        pass

    class Bare(Kept[None]):
        pass

    assert Book.__declaration__.spec.state is not None
    assert Book.__declaration__.spec.initial_state() == Ledger()
    assert Bare.__declaration__.spec.state is None


def test_state_may_be_any_type_that_has_an_empty_value() -> None:
    """Structs, numbers, containers and optional types start from their empty value."""

    class Number(Entity[int]):
        pass

    class Names(Entity[dict[str, list[int]]]):
        pass

    class Maybe(Entity[Ledger | None]):
        pass

    class Counted(Entity[Annotated[Count, msgspec.Meta(ge=0)]]):
        pass

    starts = [cls.__declaration__.spec.initial_state() for cls in (Number, Names, Maybe, Counted)]
    assert starts == [0, {}, None, 0]


def test_a_class_cannot_be_registered_twice_under_one_name() -> None:
    """Two classes of one name are refused with both the name and the remedy."""

    class Orders(Entity):
        pass

    class Copy(Entity, name="orders"):
        pass

    hub = Hub()
    hub.register(Orders)
    with pytest.raises(ConfigurationError, match=r"two entity classes are called 'orders'.*class Copy\(Entity, name"):
        hub.register(Copy)


def test_a_constructor_with_arguments_needs_a_factory() -> None:
    """Registration fails where every activation would, and shows the factory to write."""

    class Priced(Entity):
        def __init__(self, prices: dict[str, int]) -> None:
            self._prices = prices

    hub = Hub()
    with pytest.raises(TypeError, match=re.escape("hub.register(Priced, lambda: Priced(...))")):
        hub.register(Priced)
    hub.register(Priced, lambda: Priced({}))


def test_an_unknown_name_in_an_annotation_fails_at_registration() -> None:
    """A forward reference that nobody resolves is a TypeError that says what to do."""

    class Vague(Entity):
        async def take(self, thing: "Undefined") -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

    with pytest.raises(TypeError, match=r"Vague\.take: name 'Undefined' is not defined: define it, or import"):
        Hub().register(Vague)


def test_handler_keeps_the_function_that_it_marks() -> None:
    """The decorator returns the very function."""

    async def count(self: object, at: int) -> int:
        return at

    assert handler(readonly=True, timeout=timedelta(seconds=1))(count) is count


def test_a_stream_is_recognised_by_its_yield() -> None:
    """An async generator is a stream, and its items' type is what its annotation says."""

    class Source(Entity):
        async def watch(self, since: int = 0) -> AsyncIterator[Ledger]:
            yield Ledger(since)

    spec = Source.__declaration__.spec.handlers["watch"]
    assert spec.stream
    assert spec.result.decode(msgspec.msgpack.encode(Ledger(3))) == Ledger(3)
