"""What steps return: typed by the annotation of their function, the first time as every other time."""

from __future__ import annotations

import enum
import functools
import inspect
import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import msgspec
import pytest

from actorhub import Cluster, MalformedMessage, current
from tests.steps.entities import AT, Anything, Clerk, Receipt, doing, hub
from tests.support.gates import gates

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["hub"]

T = TypeVar("T")
R = TypeVar("R")
Function = Callable[..., Any]


class Colour(enum.IntEnum):
    RED = 1


@dataclass
class Point:
    x: int
    y: int


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


async def twice(runner: Cluster, function: Function, *args: Any) -> list[Any]:
    """Return what a step returns when its function runs, and in the next run."""
    found: list[Any] = []

    async def work(_: Clerk) -> None:
        found.append(await current().step("the step", function, *args))
        if len(found) == 1:
            raise RuntimeError("once more")

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    return found


async def failed(runner: Cluster, function: Function, *args: Any) -> Exception:
    """Return what a step raises."""
    found: list[Exception] = []

    async def work(_: Clerk) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the test looks at it
            await current().step("the step", function, *args)
        found.append(caught.value)

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    return found[0]


def receipt() -> Receipt:
    return Receipt(7, AT)


async def receipts() -> list[Receipt]:
    return [Receipt(7, AT)]


def pair() -> tuple[int, Receipt]:
    return 1, Receipt(7, AT)


def moment() -> datetime:
    return AT


def day() -> date:
    return AT.date()


def span() -> timedelta:
    return timedelta(seconds=1.5)


def numbers() -> set[int]:
    return {1, 2}


def point() -> Point:
    return Point(1, 2)


def colour() -> Colour:
    return Colour.RED


def nothing() -> None:
    return None


def maybe() -> Receipt | None:
    return None


def by_number() -> dict[int, Receipt]:
    return {7: Receipt(7, AT)}


def identity() -> UUID:
    return UUID(int=7)


@pytest.mark.parametrize(
    "function",
    [receipt, receipts, pair, moment, day, span, numbers, point, colour, nothing, maybe, by_number, identity],
    ids=operator.attrgetter("__name__"),
)
async def test_a_result_has_the_type_of_its_annotation(runner: Cluster, function: Function) -> None:
    """The same value of the same type, whether the function ran or its result was stored."""
    made: object = function()
    expected = await made if inspect.iscoroutine(made) else made
    first, second = await twice(runner, function)
    assert first == second == expected
    assert type(first) is type(second) is type(expected)


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1.5, float("inf"), "text", b"bytes", [1, [2, None]], {"a": [1], "b": {}}, {1: "one"}, -(2**63)],
    ids=repr,
)
async def test_without_annotation_plain_values_come_back(runner: Cluster, value: object) -> None:
    """What msgpack itself knows, in lists and dicts."""
    first, second = await twice(runner, lambda: value)
    assert first == second == value
    assert type(first) is type(second) is type(value)


async def test_a_number_that_is_none_comes_back(runner: Cluster) -> None:
    """Also without annotation, although it equals nothing."""
    first, second = await twice(runner, lambda: [float("nan")])
    assert first[0] != first[0]
    assert second[0] != second[0]


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        Receipt(7, AT),
        [Receipt(7, AT)],
        {"at": AT},
        AT,
        {1, 2},
        Colour.RED,
        Point(1, 2),
        bytearray(b"a"),
        object(),
    ],
    ids=lambda value: "object()" if type(value) is object else repr(value),
)
@pytest.mark.parametrize("annotation", ["none", "Any"])
async def test_without_annotation_other_types_are_refused(runner: Cluster, value: object, annotation: str) -> None:
    """TypeError that says to annotate: a later run would get something else than the first one."""

    def function() -> Anything:
        return value

    error = await failed(runner, function if annotation == "Any" else lambda: value)
    assert isinstance(error, TypeError)
    assert "annotate" in str(error)


async def test_a_result_of_another_type_than_annotated_is_refused(runner: Cluster) -> None:
    """MalformedMessage that names step and function."""

    def liar() -> int:
        return cast("int", "text")

    error = await failed(runner, liar)
    assert isinstance(error, MalformedMessage)
    assert "liar" in str(error)
    assert "Expected `int`" in str(error)


async def test_a_stored_result_that_no_longer_fits_says_what_to_do(runner: Cluster) -> None:
    """A release that changed the type of a step in use must give it another name."""

    def older() -> str:
        return "text"

    def newer() -> int:
        return 1

    async def work(_: Clerk) -> str:
        await current().step("the step", older)
        with pytest.raises(MalformedMessage, match=r"'the step' no longer fits.*another name") as caught:
            await current().step("the step", newer)
        return str(caught.value)

    doing["a"] = work
    assert "Expected `int`, got `str`" in await runner.client(Clerk)("a").work()


def add(number: int, *, more: int = 1) -> Receipt:
    """A function with arguments."""
    return Receipt(number + more, AT)


async def add_later(number: int, more: int = 1) -> Receipt:
    """The same, async."""
    return Receipt(number + more, AT)


def promise(number: int) -> Awaitable[Receipt]:
    """The same, plain, but to be awaited."""
    return add_later(number)


def logged(function: Callable[..., R]) -> Callable[..., R]:
    """A decorator as people write them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        gates["logged"].log.append(function.__name__)
        return function(*args, **kwargs)

    return call


@logged
def decorated(number: int) -> Receipt:
    """Behind a decorator."""
    return Receipt(number + 1, AT)


def unresolvable_parameter(number: int, _: Decimal | None = None) -> Receipt:
    """Has a parameter whose type only the type checker imports."""
    return Receipt(number + 1, AT)


class Till:
    """Methods of every kind."""

    size: int = 0

    def method(self, number: int) -> Receipt:
        return add(number)

    async def async_method(self, number: int) -> Receipt:
        return add(number)

    @classmethod
    def class_method(cls, number: int) -> Receipt:
        return add(number)

    @staticmethod
    def static_method(number: int) -> Receipt:
        return add(number)


class Callback:
    """A callable object, with annotations of its own."""

    size: int = 0

    def __call__(self, number: int) -> Receipt:
        return add(number)


class AsyncCallback:
    """An async one."""

    async def __call__(self, number: int) -> Receipt:
        return add(number)


@pytest.mark.parametrize(
    "function",
    [
        add,
        add_later,
        promise,
        functools.partial(add, more=1),
        functools.partial(functools.partial(add_later, more=1)),
        Till().method,
        Till().async_method,
        Till.class_method,
        Till.static_method,
        functools.partial(Till().method),
        Callback(),
        AsyncCallback(),
        decorated,
        functools.lru_cache(decorated),
        unresolvable_parameter,
    ],
    ids=lambda function: getattr(function, "__qualname__", type(function).__name__),
)
async def test_everything_that_can_be_called_is_a_step(runner: Cluster, function: Function) -> None:
    """The annotation of what is called in the end counts."""
    assert await twice(runner, function, 1) == [Receipt(2, AT)] * 2


async def test_a_class_is_a_step(runner: Cluster) -> None:
    """It returns an instance of itself; so do builtins."""
    assert await twice(runner, Receipt, 2, AT) == [Receipt(2, AT)] * 2
    doing.clear()
    assert await twice(runner, len, "abc") == [3, 3]


async def test_a_call_of_an_entity_is_a_step(runner: Cluster) -> None:
    """It is asked once, and the result is of the type that its handler declares."""
    assert await twice(runner, runner.client(Clerk)("b").write, 2) == [Receipt(2, AT)] * 2
    assert await runner.client(Clerk)("b").notes() == ["receipt 2"]


async def test_local_functions_may_name_local_types(runner: Cluster) -> None:
    """With postponed annotations, if they use the type, too; else the error says what to do."""

    class Local(msgspec.Struct):
        number: int

    class Unused(msgspec.Struct):
        number: int

    def local() -> Local:
        return Local(1)

    def untold() -> Unused:
        raise AssertionError

    assert await twice(runner, local) == [Local(1)] * 2
    doing.clear()
    error = await failed(runner, untold)
    assert isinstance(error, TypeError)
    assert "'Unused' is not defined: define the type of the result in the module" in str(error)


async def test_a_generic_result_is_one_without_annotation(runner: Cluster) -> None:
    """A type variable says nothing."""

    def same(value: T) -> T:
        return value

    assert await twice(runner, same, [1]) == [[1], [1]]
    doing.clear()
    assert "annotate" in str(await failed(runner, same, (1, 2)))


async def test_a_type_that_cannot_be_stored_is_refused_before_the_function_runs(runner: Cluster) -> None:
    """TypeError that names the step's function."""

    def opens() -> Till:
        raise AssertionError

    error = await failed(runner, opens)
    assert isinstance(error, TypeError)
    assert "opens" in str(error)
    assert "cannot be sent or stored" in str(error)


@pytest.mark.parametrize("depth", [1_100, 100_000])
async def test_a_result_that_is_nested_too_deeply_is_refused_with_its_step(runner: Cluster, depth: int) -> None:
    """The text says which, and nothing is stored."""

    def nest() -> object:
        value: object = 1
        for _ in range(depth):
            value = [value]
        return value

    error = await failed(runner, nest)
    assert isinstance(error, MalformedMessage)
    assert "result of step 'the step' is nested too deeply" in error.message


async def test_the_handler_gets_a_copy(runner: Cluster) -> None:
    """What it changes in a result changes neither the function's own object nor what is stored."""
    mine = [1]

    async def work(_: Clerk) -> list[int]:
        (await current().step("the step", lambda: mine)).append(2)
        return await current().step("the step", lambda: mine)

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == [1]
    assert mine == [1]
