"""Every option of every declaration, found by introspection: values of all wrong kinds are refused at once, by name."""

import inspect
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec
import pytest

from actorhub import (
    Breaker,
    Client,
    Cluster,
    ConfigurationError,
    Entity,
    EntityError,
    Hub,
    MalformedMessage,
    Retry,
    Singleton,
    cron,
    handler,
)
from actorhub.core.clock import Clock, SystemClock
from actorhub.core.config import HostPort, SettingKeywords, Settings
from actorhub.testing import MemoryCluster, unhosted


class Stocked(EntityError):
    """A domain error."""


class Plain(Entity):
    """An entity."""


class Kept(Singleton[int]):
    """A singleton."""


class Odd:
    """Nobody's option."""

    def __repr__(self) -> str:
        raise ValueError("it cannot be shown")


VALUES: Final[Mapping[str, Any]] = {
    "None": None,
    "a whole number": 5,
    "zero": 0,
    "a fraction": 2.5,
    "not a number": float("nan"),
    "True": True,
    "text": "of no use \n",
    "empty text": "",
    "bytes": b"5",
    "a list": [1],
    "a mapping": {"a": 1},
    "a tuple": (5,),
    "a set": {"a"},
    "a class": Odd,
    "an error's class": Stocked,
    "another error's class": ValueError,
    "the class of a retry": Retry,
    "an instance": Odd(),
    "an entity": Plain(),
    "a retry": Retry(),
    "a breaker": Breaker(),
    "settings": Settings(),
    "a negative duration": timedelta(seconds=-1),
    "an endless duration": timedelta.max,
    "a naive time": datetime(2026, 1, 1),  # noqa: DTZ001
    "a function of two": lambda a, b: (a, b),
    "a module": types,
}
ERRORS: Final = (TypeError, ValueError, ConfigurationError, MalformedMessage)

_FITTING: Final[Mapping[Any, tuple[str, ...]]] = {
    bool: ("True",),
    int: ("a whole number", "zero"),
    float: ("a whole number", "a fraction", "zero", "not a number"),
    str: ("text", "empty text"),
    timedelta: ("a negative duration", "an endless duration"),
    types.NoneType: ("None",),
    Retry: ("a retry",),
    Breaker: ("a breaker",),
    Settings: ("settings",),
    Path: (),
    HostPort: (),
    Hub: (),
    Clock: (),
    Entity: ("an entity",),
}
"""Which of the values are of a type. Of those, some are out of range, which is what the other tests are about."""


class Api(NamedTuple):
    """One way to declare something."""

    takes: Any
    """What has the options in its signature."""
    call: Callable[..., object]
    """Uses some of them; others have right values."""
    skipped: tuple[str, ...] = ()
    """Parameters that are not options."""


def _decorate(decorator: Callable[..., Any]) -> object:
    async def tick(self: object, at: datetime) -> None: ...

    return decorator(tick)


def _of_class(base: type) -> Callable[..., object]:
    return lambda **options: types.new_class("Wrong", (base,), options)


def _register(**options: Any) -> None:
    Hub().register(**{"entity": Plain, **options})


HUB: Final = Hub()
for registered in (Plain, Kept):
    HUB.register(registered)

DECLARATIONS: Final[Mapping[str, Api]] = {
    "@handler": Api(handler, lambda **options: _decorate(handler(**options)), ("_misplaced",)),
    "@cron": Api(cron, lambda **options: _decorate(cron(**{"expression": "@daily", **options}))),
    "class Entity": Api(Entity.__init_subclass__, _of_class(Entity), ("unknown",)),
    "class Singleton": Api(Singleton.__init_subclass__, _of_class(Singleton), ("unknown",)),
    "Retry": Api(Retry, Retry),
    "Breaker": Api(Breaker, Breaker),
    "Settings": Api(Settings, Settings),
    "hub.register": Api(Hub.register, _register, ("self", "entity")),
    "MemoryCluster": Api(MemoryCluster, lambda **options: MemoryCluster(**{"hub": HUB, **options})),
    "unhosted": Api(unhosted, lambda **options: unhosted(Plain(), **options), ("instance",)),
}
CALLS: Final[Mapping[str, Api]] = {
    "client.options": Api(Client.options, lambda memory, **options: memory.client(Plain).options(**options), ("self",)),
    "cluster.singleton": Api(
        Cluster.singleton, lambda memory, **options: memory.singleton(Kept, **options), ("self", "singleton")
    ),
}


def _is_named(option: str, text: str | None) -> bool:
    return text is not None and option.rstrip("s").replace("_", " ") in text.replace("_", " ")


def _hints(takes: Any) -> dict[str, Any]:  # noqa: ANN401
    made = getattr(takes, "__func__", takes)
    return typing.get_type_hints(made.__init__ if made is MemoryCluster else made)


def options_of(api: Api) -> dict[str, Any]:
    """Return the annotations of the options, by name."""
    hints = _hints(api.takes)
    return {name: hints[name] for name in inspect.signature(api.takes).parameters if name not in api.skipped}


def fitting(annotation: Any) -> set[str]:  # noqa: ANN401
    """Return which of the values an annotation allows."""
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(fitting, get_args(annotation)))
    if annotation is msgspec.UnsetType or origin is Literal:
        return set()
    if isinstance(annotation, typing.TypeVar) or annotation is object:
        return set(VALUES)
    if origin in (tuple, Mapping, type(Mapping[str, str])):
        return set()
    if get_origin(annotation) is get_origin(Callable[..., Any]):
        return {name for name, value in VALUES.items() if callable(value)}
    return set(_FITTING.get(origin or annotation, ()))


def wrong_options(apis: Mapping[str, Api]) -> Iterator[tuple[str, str, str]]:
    """Iterate over API, option, and the name of a value that cannot be right."""
    for where, api in apis.items():
        for option, annotation in options_of(api).items():
            for kind in VALUES.keys() - fitting(annotation):
                yield where, option, kind


def refusal(api: Api, option: str, value: object, *first: object) -> str | None:
    """Return the text of the error, or `None` if the value is accepted."""
    try:
        api.call(*first, **{option: value})
    except ERRORS as error:
        return str(error)
    return None


@pytest.mark.parametrize("where", DECLARATIONS)
def test_every_option_of_a_wrong_type_is_refused_where_it_is_written(where: str) -> None:
    """No wrong value is accepted, and each error names the option: also of options that are added later."""
    found = {
        (option, kind): refusal(DECLARATIONS[where], option, VALUES[kind])
        for api, option, kind in wrong_options(DECLARATIONS)
        if api == where
    }
    assert len(found) > 10
    assert {place: text for place, text in found.items() if not _is_named(place[0], text)} == {}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """A client of a cluster in memory."""
    async with MemoryCluster(HUB) as memory:
        await memory.start_runner()
        yield await memory.client()


async def test_every_option_of_a_client_of_a_wrong_type_is_refused_before_there_is_a_call(cluster: Cluster) -> None:
    """The same for `options` and `singleton`."""
    found = {
        (where, option, kind): refusal(CALLS[where], option, VALUES[kind], cluster)
        for where, option, kind in wrong_options(CALLS)
    }
    assert {option for _, option, _ in found} == {"timeout", "on_full", "headers", "key"}
    assert {place: text for place, text in found.items() if not _is_named(place[1], text)} == {}


async def test_every_option_of_a_runner_in_memory_is_checked() -> None:
    """Weight, groups and hub of a runner, and the hub of a client."""
    async with MemoryCluster(HUB) as memory:
        for method in (memory.start_runner, memory.client):
            for option, annotation in _hints(method).items():
                for kind in VALUES.keys() - fitting(annotation) if option != "return" else ():
                    with pytest.raises(ERRORS, match=option):
                        await method(**{option: VALUES[kind]})
        assert not memory.runners


@pytest.mark.parametrize("join", [HUB.connect, HUB.runner])
async def test_every_setting_of_a_wrong_type_is_refused_before_anything_starts(join: Callable[..., Any]) -> None:
    """Settings by keyword; text stands for other types there, so it is right or wrong by what it says."""
    for name, annotation in typing.get_type_hints(SettingKeywords).items():
        for kind in VALUES.keys() - fitting(annotation) - {"None"}:
            async with AsyncExitStack() as stack:
                with pytest.raises(ERRORS, match=name):
                    await stack.enter_async_context(join(**{name: VALUES[kind]}))


def test_right_values_of_every_option_are_accepted() -> None:
    """The checks do not refuse what they should not: whatever the annotation allows, at the edges, too."""
    for retry in (Retry(), Retry(attempts=1, on=(Stocked,)), Retry(multiplier=1, initial=timedelta(0))):
        _decorate(handler(durable=True, retry=retry, retention=timedelta(microseconds=1)))
        _decorate(cron("@daily", retry=retry, breaker=None, jitter=timedelta(0), overlap="allow"))
    _decorate(cron("0 0 * * *", breaker=Breaker(failures=1, cooldown=timedelta(days=36_500)), from_previous=True))
    _decorate(handler(retry=None, retention=None, timeout=timedelta(days=36_500), readonly=True))
    _of_class(Entity)(shard_key=None, max_idle=timedelta(days=36_500), name=None, mailbox_capacity=1)
    _of_class(Entity)(shard_key=str.lower, concurrency=1_000_000_000, name="a" * 100, shard_group="a1")
    _of_class(Singleton)(state_ttl=None)
    _register(factory=None)
    MemoryCluster(HUB, settings=None, clock=SystemClock())
