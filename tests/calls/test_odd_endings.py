"""Handlers that end in every odd way: their callers are answered, and their entities go on."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from random import Random
from typing import Any, Final, NoReturn
from weakref import WeakSet

import msgspec
import pytest

from actorhub import (
    ActorhubError,
    CallTimeout,
    Cluster,
    Entity,
    EntityError,
    Hub,
    Retry,
    current,
    handler,
)
from actorhub.core.texts import LONGEST_TEXT, text_of
from actorhub.testing import MemoryCluster
from tests.support.gates import failure

_MEGABYTES: Final = 6 * 1024 * 1024


class _NoText(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class _NoRepr(Exception):
    def __repr__(self) -> str:
        raise ValueError("nothing to show")


class Odd(EntityError):
    """A domain error with a field of any kind."""

    what: Any


class Untold(EntityError):
    """A domain error without a text."""

    what: int = 0

    def __str__(self) -> str:
        raise ValueError("no text")


class Unread(EntityError):
    """A domain error that can be raised once."""

    made = 0

    def __post_init__(self) -> None:
        type(self).made += 1
        if self.made > 1:
            raise LookupError("only once")


class _Closed(Exception):
    """Lets nobody read it."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise LookupError(name)


class ClosedError(EntityError):
    """A domain error that lets nobody read it."""

    what: int = 0


# Refused in the class statement, but a class can be changed afterwards.
ClosedError.__getattribute__ = _Closed.__getattribute__  # type: ignore[method-assign,assignment] # pyright: ignore[reportAttributeAccessIssue]


def _posing_as(cls: type) -> type[Exception]:
    """Return a class whose errors say that they are of another one."""
    return type("Posing", (Exception,), {"__class__": property(lambda _: cls)})


def _caused_by(cause: BaseException) -> BaseException:
    error = ValueError("caused")
    error.__cause__ = cause
    return error


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def _endless() -> None:
    _endless()


WAYS: Final[dict[str, Callable[[], BaseException]]] = {
    "a generator's exit": GeneratorExit,
    "an interrupt": KeyboardInterrupt,
    "an exit": lambda: SystemExit(3),
    "a cancellation": asyncio.CancelledError,
    "the end of an iteration": lambda: StopIteration(1),
    "the end of an async iteration": StopAsyncIteration,
    "no text": _NoText,
    "no repr": _NoRepr,
    "no attributes": _Closed,
    "a domain error without attributes": ClosedError,
    "a group without attributes": lambda: ExceptionGroup("g", [_Closed()]),
    "a group of several without attributes": lambda: BaseExceptionGroup("g", [_Closed(), SystemExit()]),
    "a cause without attributes": lambda: _caused_by(_Closed()),
    "a domain error by its word": _posing_as(EntityError),
    "an error of ours by its word": _posing_as(CallTimeout),
    "a cancellation by its word": _posing_as(asyncio.CancelledError),
    "a group by its word": _posing_as(ExceptionGroup),
    "an exit by its word": _posing_as(SystemExit),
    "half of a surrogate pair": lambda: ValueError("a\ud800b"),
    "a class whose name is half of a pair": lambda: type("E\ud800", (Exception,), {})("x"),
    "a class without a module": lambda: type("E", (Exception,), {"__module__": 7})("x"),
    "a null character": lambda: ValueError("a\0b"),
    "megabytes": lambda: ValueError("x" * _MEGABYTES),
    "a group": lambda: BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError("a\ud800")]),
    "a domain error that cannot be encoded": lambda: Odd(what=object()),
    "a domain error of megabytes": lambda: Odd(what="x" * _MEGABYTES),
    "a deep domain error": lambda: Odd(what=_nested(10_000)),
    "a domain error with half of a pair": lambda: Odd(what="\ud800"),
    "a domain error without a text": Untold,
    "a domain error of one use": Unread,
    "an error of ours with half of a pair": lambda: ActorhubError("\ud800"),
    "an error of ours of megabytes": lambda: ActorhubError("x" * _MEGABYTES),
}
"""What a handler may raise."""


def _raise(way: str) -> NoReturn:
    error = WAYS[way]()
    raise error


class Sum(msgspec.Struct):
    """Counts what was committed."""

    count: int = 0
    last: str = ""


class Oddity(Entity[Sum]):
    """Ends in the way that it is asked for."""

    async def plain(self, way: str, wait: bool) -> str:
        if wait:
            await asyncio.sleep(0)
        self.state.count += 1
        if way in WAYS:
            _raise(way)
        if way == "recursion":
            _endless()
        if way == "a state with half of a pair":
            self.state.last = "\ud800"
        if way == "no state":
            del self.state
        if way == "an exit of the interpreter":
            sys.exit(3)
        return "\ud800" if way == "a result with half of a pair" else "ended"

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def durable(self, way: str, wait: bool) -> str:
        return await self.plain(way, wait)

    async def stream(self, way: str, wait: bool) -> AsyncIterator[str]:
        yield await self.plain(way, wait)

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def durable_stream(self, way: str, wait: bool) -> AsyncIterator[str]:
        yield await self.plain(way, wait)

    @handler(readonly=True)
    async def count(self) -> int:
        return self.state.count


class OddStart(Entity[Sum]):
    """Does not start, in the way that its id names."""

    async def on_activate(self) -> None:
        if current().entity_id.startswith("waiting hook: "):
            await asyncio.sleep(0)
        _raise(current().entity_id.partition(": ")[2])

    async def count(self) -> int:
        return self.state.count


class OddlyMade(Entity[Sum]):
    """Cannot be made."""

    async def count(self) -> int:
        return self.state.count


hub = Hub()
hub.register(Oddity)
hub.register(OddStart)

OTHER_WAYS: Final = (
    "recursion",
    "a state with half of a pair",
    "no state",
    "an exit of the interpreter",
    "a result with half of a pair",
)


def _entity(cluster: Cluster, name: str, way: str, *, wait: bool) -> Oddity:
    return cluster.client(Oddity).options(timeout=timedelta(seconds=5))(f"{name} {way} {wait}")


async def _asked(cluster: Cluster, name: str, way: str, *, wait: bool) -> ActorhubError:
    error = await _failure(cluster, name, way, wait=wait)
    assert isinstance(error, ActorhubError), (way, error)
    return error


async def _failure(cluster: Cluster, name: str, way: str, *, wait: bool) -> Exception:
    call = getattr(_entity(cluster, name, way, wait=wait), name)
    if "stream" not in name:
        return await failure(call(way, wait))

    async def consumed() -> None:
        async for _ in call(way, wait):
            pass

    return await failure(consumed())


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", ["plain", "durable", "stream", "durable_stream"])
async def test_whatever_a_handler_raises_its_caller_is_answered_and_its_entity_goes_on(
    name: str, *, remote: bool
) -> None:
    """The error says that the handler may have run; nothing is committed; and the runner leaves at once."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        cluster = await memory.client() if remote else runner
        for way in (*WAYS, *OTHER_WAYS):
            for wait in (False, True):
                Unread.made = 0
                error = await _asked(cluster, name, way, wait=wait)
                assert error.possibly_executed, (way, error)
                assert len(text_of(error)) < 2 * LONGEST_TEXT, way
                if not isinstance(error, EntityError):
                    str(error).encode()
                assert await _entity(cluster, name, way, wait=wait).count() == 0, way
        async with asyncio.timeout(2):
            await memory.stop(runner)


@pytest.mark.parametrize("where", ["hook", "waiting hook"])
async def test_whatever_on_activate_raises_callers_are_answered(where: str) -> None:
    """None of their handlers ran; the runner goes on, and leaves at once."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = (await memory.client()).client(OddStart).options(timeout=timedelta(seconds=20))
        errors = await asyncio.gather(*(failure(client(f"{where}: {way}").count()) for way in WAYS))
        for way, error in zip(WAYS, errors, strict=True):
            assert isinstance(error, ActorhubError), way
            assert not isinstance(error, CallTimeout), way
            assert not error.possibly_executed, (way, error)
            assert len(text_of(error)) < 2 * LONGEST_TEXT, way
        async with asyncio.timeout(2):
            await memory.stop(runner)


@pytest.mark.parametrize("way", ["an exit", "an interrupt", "a generator's exit", "a cancellation", "no text"])
async def test_whatever_a_constructor_raises_callers_are_answered(way: str) -> None:
    """None of their handlers ran; the runner goes on with other entities, and leaves at once."""

    def make() -> OddlyMade:
        _raise(way)

    own = Hub()
    own.register(OddlyMade, make)
    own.register(Oddity)
    async with MemoryCluster(own) as memory:
        runner = await memory.start_runner()
        error = await failure(runner.client(OddlyMade)("a").count())
        assert isinstance(error, ActorhubError)
        assert not error.possibly_executed
        assert await runner.client(Oddity)("a").count() == 0
        async with asyncio.timeout(2):
            await memory.stop(runner)


class Canceller(Entity[int]):
    """Cancels the task that its handler runs in."""

    async def cancel_itself(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return 1

    async def wait(self) -> int:
        await asyncio.sleep(0)
        return 2


async def test_a_handler_that_cancels_its_task_and_returns_harms_nobody() -> None:
    """Its result counts, and so do those of all that are asked at the same time, many of which wait for something."""
    own = Hub()
    own.register(Canceller)
    async with MemoryCluster(own) as memory:
        client = (await memory.start_runner()).client(Canceller).options(timeout=timedelta(seconds=5))
        asked = [client(f"e{number}").cancel_itself() for number in range(300)]
        waiting = [client(f"w{number}").wait() for number in range(300)]
        mixed = [call for pair in zip(asked, waiting, strict=True) for call in pair]
        assert await asyncio.gather(*mixed) == [1, 2] * 300
        assert await client("last").wait() == 2


_kept: Final[list[asyncio.Task[Any]]] = []
_kept_weakly: Final[WeakSet[asyncio.Task[Any]]] = WeakSet()


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


class Keeper(Entity[int]):
    """Keeps the tasks that its handlers ran in, and cancels them when their runs are over."""

    async def keep(self, rounds: int) -> int:
        task = _task()
        for _ in range(rounds):
            await asyncio.sleep(0)
        _kept.append(task)
        return rounds

    async def keep_weakly(self, rounds: int) -> int:
        for _ in range(rounds):
            await asyncio.sleep(0)
        _kept_weakly.add(_task())
        return rounds

    async def cancel_in_vain(self, rounds: int) -> int:
        for _ in range(rounds):
            await asyncio.sleep(0)
        _task().cancel()
        _task().uncancel()
        return rounds

    async def cancel_kept(self) -> int:
        for task in (*_kept, *_kept_weakly):
            task.cancel()
        return -1

    async def wait(self, rounds: int) -> int:
        for _ in range(rounds):
            await asyncio.sleep(0)
        return rounds


@pytest.mark.parametrize("seed", range(20))
async def test_a_kept_task_of_a_run_that_is_over_can_be_cancelled_at_any_time(seed: int) -> None:
    """Whatever else runs by then, ready or suspended, goes on: it never ran in that task."""
    random = Random(seed)
    own = Hub()
    own.register(Keeper)
    _kept.clear()
    async with MemoryCluster(own) as memory:
        client = (await memory.start_runner()).client(Keeper).options(timeout=timedelta(seconds=5))
        expected: list[int] = []
        calls: list[Coroutine[Any, Any, int]] = []
        for number in range(200):
            target, rounds = client(f"e{number}"), random.choice((0, 0, 1, 3))
            match random.randrange(5):
                case 3:
                    calls.append(target.keep_weakly(rounds))
                case 4:
                    calls.append(target.cancel_in_vain(rounds))
                case 0:
                    calls.append(target.keep(rounds))
                case 1:
                    calls.append(target.wait(rounds))
                case _:
                    calls.append(target.cancel_kept())
                    rounds = -1
            expected.append(rounds)
        assert await asyncio.gather(*calls) == expected
