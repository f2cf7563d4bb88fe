"""Domain errors: what a class of them may look like, and that what is accepted reaches the caller as it was raised."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import InitVar, dataclass, field
from datetime import datetime, timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, Self, TypedDict, TypeVar

import msgspec
import pytest

from actorhub import Entity, EntityError, HandlerFailed, Hub, Retry, handler
from actorhub.core.codec import decode_error, encode_error
from actorhub.core.errors import field_names
from actorhub.ops.failures import failure_of
from actorhub.testing import MemoryCluster
from tests.support.gates import failure

if TYPE_CHECKING:
    from decimal import Decimal  # noqa: TC004 - that it is missing is the point

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")


class Refused(EntityError):
    """Its types are defined further down."""

    at: datetime
    parts: tuple[Part, ...] = ()
    more: More | None = None


class Part(msgspec.Struct):
    name: str = ""


@dataclass
class More:
    part: Part


class Point(NamedTuple):
    x: int
    y: int


class Shape(TypedDict, total=False):
    point: Point


class Missing(EntityError, Generic[K]):
    key: K


class MissingPart(Missing[Part]):
    where: Shape


class Pair(EntityError, Generic[T, U]):
    left: T
    right: dict[str, U]


class Swapped(Pair[U, T], Generic[T, U]):
    middle: T


class PartInt(Swapped[Part, int]):
    pass


class Limit(EntityError):
    """Everything that is not a plain field."""

    LEVELS: ClassVar[int] = 3
    limit: Final[int]
    message: str = "too much"
    tags: list[str] = []  # noqa: RUF012 - each error has its own
    words: dict[str, set[int]] = {"a": {1}}  # noqa: RUF012 - as above
    seen: list[int] = field(default_factory=lambda: [1])
    counted: int = field(init=False, default=7)

    def __post_init__(self) -> None:
        self.limit_text = f"limit {self.limit}"
        self.message += "!"

    @property
    def twice(self) -> int:
        return 2 * self.limit

    def __str__(self) -> str:
        return f"{self.message} ({self.limit})"


class Nothing(EntityError):
    pass


def _errors() -> list[EntityError]:
    changed = Limit(limit=2, tags=["x"])
    changed.counted = 9
    changed.message = "changed"
    return [
        Refused(at=datetime.fromisoformat("2026-01-01T00:00Z"), parts=(Part("a"),), more=More(Part("b"))),
        MissingPart(key=Part("k"), where={"point": Point(1, 2)}),
        PartInt(left=1, right={"a": Part("r")}, middle=Part("m")),
        Limit(limit=3),
        changed,
        Nothing(),
    ]


class Raiser(Entity):
    async def fail(self, number: int) -> None:
        raise _errors()[number]

    @handler(durable=True, retry=Retry(attempts=1))
    async def fail_for_good(self, number: int) -> None:
        raise _errors()[number]

    async def stream(self, number: int) -> AsyncIterator[int]:
        yield 1
        raise _errors()[number]

    async def with_text(self) -> None:
        raise Nothing("no luck")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


hub = Hub()
hub.register(Raiser)


@pytest.mark.parametrize("remote", [False, True])
async def test_an_error_reaches_its_caller_as_it_was_raised(*, remote: bool) -> None:
    """Over a link, from the store and out of a stream, with attributes that it makes of its fields."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        raiser = (await memory.client() if remote else runner).client(Raiser)("a")
        for number, error in enumerate(_errors()):

            async def consumed(number: int = number) -> None:
                async for _ in raiser.stream(number):
                    pass

            for arrived in (
                await failure(raiser.fail(number)),
                await failure(raiser.fail_for_good(number)),
                await failure(consumed()),
            ):
                assert type(arrived) is type(error)
                assert isinstance(arrived, EntityError)
                expected = {name: getattr(error, name) for name in field_names(type(error))} | vars(error)
                assert vars(arrived) == expected | {"possibly_executed": True}
                assert str(arrived) == str(error)
                assert msgspec.json.decode(failure_of(arrived).fields_json or "{}").keys() <= expected.keys()


def test_mutable_defaults_are_not_shared() -> None:
    """Each error has its own, as the fields of a struct."""
    one, other = Limit(limit=1), Limit(limit=2)
    one.tags.append("mine")
    one.words["a"].add(2)
    assert (other.tags, other.words) == ([], {"a": {1}})


async def test_an_error_with_a_text_says_how_it_is_raised() -> None:
    """The text would be lost, so the call of the class is refused; the caller gets the hint."""
    with pytest.raises(
        TypeError, match=r"Nothing has no fields: raise Nothing\(\), or annotate one, such as `reason: s"
    ):
        raise Nothing("no luck")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    with pytest.raises(
        TypeError, match=r"PartInt takes keywords: raise PartInt\(left=\.\.\., right=\.\.\., middle=\.\.\.\)"
    ):
        raise PartInt("no luck")  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="EntityError is for subclasses: declare"):
        raise EntityError("no luck")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    async with MemoryCluster(hub) as memory:
        error = await failure((await memory.start_runner()).client(Raiser)("a").with_text())
        assert isinstance(error, HandlerFailed)
        assert "raise Nothing()" in error.message


def test_an_error_that_only_the_runner_has_is_readable() -> None:
    """The caller gets its name and its text."""
    body = encode_error(MissingPart(key=Part("k"), where={}), 1000).replace(b"MissingPart", b"MissingWhat")
    error = decode_error(body)
    assert isinstance(error, HandlerFailed)
    assert error.type == f"{__name__}.MissingWhat"
    assert error.message == "key=Part(name='k'), where={}"


def _own_init() -> None:
    class Wrong(EntityError):
        def __init__(self, sku: str) -> None:
            self.sku = sku


def _own_new() -> None:
    class Wrong(EntityError):
        def __new__(cls, sku: str) -> Self:
            raise NotImplementedError


def _function_field() -> None:
    class Wrong(EntityError):
        undo: Callable[[], int]


def _exception_field() -> None:
    class Wrong(EntityError):
        causes: list[ValueError]


def _init_variable() -> None:
    class Wrong(EntityError):
        left: int
        seed: InitVar[int]


def _wrong_default() -> None:
    class Wrong(EntityError):
        left: int = "none"  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]


def _unset_default() -> None:
    class Wrong(EntityError):
        left: int = msgspec.UNSET  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]


def _field_of_msgspec() -> None:
    class Wrong(EntityError):
        left: list[int] = msgspec.field(default_factory=list)


def _wrong_mutable_default() -> None:
    class Wrong(EntityError):
        left: list[int] = ["a"]  # type: ignore[list-item] # noqa: RUF012 # pyright: ignore[reportAssignmentType]


def _generic_struct() -> None:
    class Wrong(EntityError):
        page: Page  # type: ignore[type-arg]


class Page(msgspec.Struct, Generic[T]):
    entries: list[T]


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (
            _own_init,
            r"Wrong\.__init__: an EntityError is made from its fields, at its callers too: annotate the fields",
        ),
        (_own_new, r"Wrong\.__new__: an EntityError is made from its fields"),
        (_function_field, r"Wrong\.undo: .*Callable.* use types that msgspec can encode"),
        (_exception_field, r"Wrong\.causes: ValueError cannot be sent or stored: use types that msgspec can encode"),
        (_init_variable, r"Wrong\.seed: an InitVar does not reach the caller: make it a field"),
        (_wrong_default, r"Wrong\.left: its default 'none' does not fit: Expected `int`, got `str`"),
        (_unset_default, r"Wrong\.left: its default UNSET does not fit"),
        (_field_of_msgspec, r"Wrong\.left: its default .* does not fit"),
        (_wrong_mutable_default, r"Wrong\.left: its default \['a'\] does not fit: Expected `int`, got `str`"),
        (_generic_struct, r"Wrong\.page: Page is generic: write Page\[\.\.\.\]"),
    ],
)
def test_an_error_that_could_not_be_sent_is_refused_at_definition(declare: Callable[[], None], text: str) -> None:
    """The class statement fails, and says what to write instead."""
    with pytest.raises(TypeError, match=text):
        declare()


def test_a_generic_error_is_raised_by_its_subclasses() -> None:
    """By itself it does not know the types of its fields."""
    with pytest.raises(
        TypeError, match=r"Missing\.key: Missing is generic: raise a subclass .*SomeMissing\(Missing\[int"
    ):
        raise Missing(key=1)


_UNKNOWN_NAME = """
from __future__ import annotations
from typing import TYPE_CHECKING
from actorhub import Entity, EntityError
if TYPE_CHECKING:
    from decimal import Decimal

class Costly(EntityError):
    price: Decimal

class Shop(Entity):
    async def buy(self) -> int:
        raise Costly(price=1)
"""


def test_an_unknown_name_in_an_error_is_told_when_an_entity_of_its_module_is_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the error would be raised, and be unreadable for the caller."""
    module: Any = ModuleType("costly_shop")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(_UNKNOWN_NAME, vars(module))  # noqa: S102 - names of a module of its own
    unknown = r"Costly\.price: name 'Decimal' is not defined: define it, or import it outside of `if TYPE_CHECKING:`"
    with pytest.raises(TypeError, match=unknown):
        Hub().register(module.Shop)
    with pytest.raises(TypeError, match=unknown):
        raise module.Costly(price=1)


def test_an_unknown_name_in_a_local_error_is_told_when_it_is_raised() -> None:
    """The handler's failure says what is wrong, at the runner."""

    class Costly(EntityError):
        price: Decimal

    with pytest.raises(TypeError, match=r"Costly\.price: name 'Decimal' is not defined"):
        raise Costly(price=1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_names_of_the_function_around_an_error_may_be_defined_later() -> None:
    """They are looked up when the first one is made."""

    class Full(EntityError):
        box: Box

    @dataclass
    class Box:
        left: timedelta

    error = Full(box=Box(timedelta(1)))
    arrived = decode_error(encode_error(error, 1000))
    assert isinstance(arrived, Full)
    assert arrived.box == error.box
