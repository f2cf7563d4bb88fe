"""Our errors can be copied and pickled like any exception, and keep what they say."""

import copy
import importlib
import inspect
import pickle  # on purpose: this is what process pools do
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from typing import Any

import msgspec
import pytest

import actorhub
from actorhub import ActorhubError, CallCycle, CallTimeout, EntityError, HandlerFailed, MailboxFull, SingletonError


class Shelf(msgspec.Struct):
    left: int


class OutOfStock(EntityError):
    sku: str
    shelf: Shelf
    tags: list[str] = []  # noqa: RUF012 - each error has its own

    def __post_init__(self) -> None:
        self.place = f"shelf of {self.sku}"


class OutOfEverything(OutOfStock):
    since: timedelta = timedelta(days=1)

    def __str__(self) -> str:
        return "nothing left"


_ARGUMENTS: dict[str, Any] = {
    "message": "no luck",
    "retry_after": timedelta(seconds=7),
    "path": ("a/1", "b/2"),
    "type": "shop.Odd",
    "traceback": "line 1\nline 2",
    "reason": "state_load_failed",
    "sku": "tea",
    "shelf": Shelf(3),
    "tags": ["a"],
    "since": timedelta(hours=2),
}


def _pickled(protocol: int, error: ActorhubError) -> ActorhubError:
    copied: ActorhubError = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - its own data, on purpose
    return copied


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": partial(_pickled, protocol) for protocol in range(6)},
}


def _classes(cls: type[ActorhubError] = ActorhubError) -> Iterator[type[ActorhubError]]:
    for found in cls.__subclasses__():
        if found.__module__.startswith("actorhub.") or found in (OutOfStock, OutOfEverything):
            yield found
        yield from _classes(found)


def _every_class() -> list[type[ActorhubError]]:
    for module in pkgutil.walk_packages(actorhub.__path__, "actorhub."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [ActorhubError, *(cls for cls in dict.fromkeys(_classes()) if cls is not EntityError)]


def _made(cls: type[ActorhubError]) -> ActorhubError:
    names = [name for name in inspect.signature(cls).parameters if name != "possibly_executed"]
    error = cls(**{name: _ARGUMENTS[name] for name in names})
    error.possibly_executed = not cls.possibly_executed
    error.add_note("seen by ada")
    error.__cause__ = ValueError(lambda: "a function, which cannot be pickled")
    return error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", _every_class(), ids=lambda cls: cls.__name__)
def test_a_copy_of_an_error_says_what_the_error_says(cls: type[ActorhubError], way: str) -> None:
    """Class, text, attributes, notes and `possibly_executed` are kept; causes are left behind, as Python does."""
    error = _made(cls)
    other = WAYS[way](error)
    assert type(other) is cls
    assert other is not error
    assert (str(other), repr(other), other.args) == (str(error), repr(error), error.args)
    assert vars(other) == vars(error)
    assert other.possibly_executed is not cls.possibly_executed
    assert other.__notes__ == ["seen by ada"]


def test_a_deep_copy_shares_nothing_with_the_error() -> None:
    """A plain one shares the values of the fields, as for any object."""
    error = OutOfStock(sku="tea", shelf=Shelf(3))
    deep, shallow = copy.deepcopy(error), copy.copy(error)
    error.shelf.left = 0
    error.tags.append("gone")
    assert (deep.shelf, deep.tags) == (Shelf(3), [])
    assert shallow.shelf is error.shelf


def fail(number: int) -> None:
    raise _raised()[number]


def _raised() -> list[ActorhubError]:
    return [
        OutOfEverything(sku="tea", shelf=Shelf(3), since=timedelta(hours=1)),
        HandlerFailed("ValueError", "boom", "...", possibly_executed=False),
        CallCycle(("a/1", "b/2"), possibly_executed=True),
        SingletonError("state_load_failed", "no database"),
        MailboxFull(retry_after=timedelta(seconds=3)),
        CallTimeout("late", possibly_executed=True),
    ]


def test_errors_leave_a_process_pool_as_they_were_raised() -> None:
    """`concurrent.futures` pickles them on their way."""
    expected = _raised()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for number, error in enumerate(expected):
            raised = pool.submit(fail, number).exception(timeout=60)
            assert type(raised) is type(error)
            assert vars(raised) == vars(error)
            assert str(raised) == str(error)


def test_a_call_that_timed_out_is_a_timeout_error() -> None:
    """Code that knows nothing of actorhub can catch it."""
    with pytest.raises(TimeoutError, match="late") as caught:
        raise CallTimeout("late", possibly_executed=True)
    assert caught.value.args == ("late",)
    assert caught.value.errno is None
