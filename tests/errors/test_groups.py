"""Errors that tasks of a handler raise: a group of one counts as the error in it, wherever it comes from."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from actorhub import Entity, EntityError, HandlerFailed, Hub, MailboxFull, Retry, current, handler
from actorhub.core.texts import LONGEST_TEXT, only_error_in, text_of
from actorhub.testing import MemoryCluster, unhosted
from tests.support.gates import failure


class Refused(EntityError):
    number: int


class Busy(EntityError):
    pass


class VeryBusy(Busy):
    pass


def _deep(error: Exception, depth: int) -> Exception:
    for _ in range(depth):
        error = ExceptionGroup("a level", [error])
    return error


_RAISED: dict[str, Callable[[], list[Exception]]] = {
    "one": lambda: [Refused(number=1)],
    "two": lambda: [Refused(number=1), ValueError("no luck")],
    "ours": lambda: [MailboxFull("full", retry_after=timedelta(seconds=3))],
    "another": lambda: [ValueError("no luck")],
    "deep": lambda: [_deep(Refused(number=1), 500)],
    "busy": lambda: [VeryBusy()],
}
_runs: list[str] = []


async def _raise(error: Exception) -> None:
    raise error


async def in_tasks(what: str) -> None:
    """Raise what is asked for, each error in a task of its own, all of them in a task of a group."""
    _runs.append(what)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_within(what))
            await asyncio.sleep(60)
    finally:
        _runs.append("over")


async def _within(what: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        for error in _RAISED[what]():
            tasks.create_task(_raise(error))


_TWICE = Retry(attempts=2, initial=timedelta(milliseconds=1), on=(Busy,))


class Grouped(Entity[int]):
    async def plain(self, what: str) -> None:
        self.state += 1
        await in_tasks(what)

    @handler(durable=True, retry=_TWICE)
    async def durable(self, what: str) -> None:
        self.state += 1
        await in_tasks(what)

    @handler(durable=True, retry=_TWICE)
    async def step(self, what: str) -> None:
        await current().step("step", in_tasks, what)

    async def stream(self, what: str) -> AsyncIterator[int]:
        yield 1
        await in_tasks(what)

    async def count(self) -> int:
        return self.state


class BadStart(Entity):
    async def on_activate(self) -> None:
        await in_tasks("ours")

    async def ping(self) -> None:
        pass


hub = Hub()
hub.register(Grouped)
hub.register(BadStart)


async def _asked(grouped: Grouped, name: str, what: str) -> BaseException:
    if name != "stream":
        return await failure(getattr(grouped, name)(what))

    async def consumed() -> None:
        async for _ in grouped.stream(what):
            pass

    return await failure(consumed())


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", ["plain", "durable", "step", "stream"])
async def test_a_group_of_one_error_arrives_as_that_error(name: str, *, remote: bool) -> None:
    """At any nesting; several errors are a `HandlerFailed` that names them all; nothing is committed."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        grouped = (await memory.client() if remote else runner).client(Grouped)("a")
        for what in ("one", "deep"):
            error = await _asked(grouped, name, what)
            assert isinstance(error, Refused)
            assert error.number == 1
        several = await _asked(grouped, name, "two")
        assert isinstance(several, HandlerFailed)
        assert several.type == "ExceptionGroup"
        assert "number=1" in several.message
        assert "ValueError: no luck" in several.message
        other = await _asked(grouped, name, "another")
        assert isinstance(other, HandlerFailed)
        assert (other.type, other.message) == ("ValueError", "no luck")
        assert "in_tasks" in other.traceback, "the frames of the handler are part of the traceback"
        assert await grouped.count() == 0


@pytest.mark.parametrize("name", ["plain", "stream"])
async def test_one_of_our_errors_in_a_group_is_passed_on(name: str) -> None:
    """It keeps its attributes, and says that the handler ran."""
    async with MemoryCluster(hub) as memory:
        grouped = (await memory.start_runner()).client(Grouped)("a")
        error = await _asked(grouped, name, "ours")
        assert isinstance(error, MailboxFull)
        assert error.retry_after == timedelta(seconds=3)
        assert error.possibly_executed


@pytest.mark.parametrize("name", ["durable", "step"])
async def test_a_retry_on_an_error_counts_its_subclasses_in_groups(name: str) -> None:
    """The message runs as often as its policy allows; a domain error that is not named ends it."""
    async with MemoryCluster(hub) as memory:
        grouped = (await memory.start_runner()).client(Grouped)("a")
        _runs.clear()
        assert isinstance(await _asked(grouped, name, "busy"), VeryBusy)
        assert _runs.count("busy") == 2
        assert isinstance(await _asked(grouped, name, "one"), Refused)
        assert _runs.count("one") == 1


async def test_a_hook_that_fails_in_a_group_fails_with_its_error() -> None:
    """Callers get the error that the group consists of, as not executed."""
    async with MemoryCluster(hub) as memory:
        error = await failure((await memory.start_runner()).client(BadStart)("a").ping())
        assert isinstance(error, MailboxFull)
        assert not error.possibly_executed


async def test_an_unhosted_handler_raises_what_a_caller_would_get() -> None:
    """Tests without a cluster see the domain error, not the group."""
    grouped = unhosted(Grouped())
    with pytest.raises(Refused):
        await grouped.plain("one")
    with pytest.raises(ExceptionGroup):
        await grouped.plain("two")


def test_the_text_of_a_group_names_its_errors_and_has_an_end() -> None:
    """However deep and however large the group is."""
    deep: BaseException = _deep(KeyError("k"), 50_000)
    assert isinstance(only_error_in(deep), KeyError)
    wide = ExceptionGroup("many", [_deep(ValueError("x" * 1000), 3) for _ in range(5000)])
    assert only_error_in(wide) is wide
    assert text_of(wide).startswith("many (5000 sub-exceptions): ValueError: xxx")
    assert len(text_of(wide)) < 2 * LONGEST_TEXT


class Hopeless(Entity[str]):
    @handler(durable=True)
    async def returns(self) -> bytes:
        _runs.append("run")
        return bytes(5 << 20)

    @handler(durable=True)
    async def keeps(self) -> None:
        _runs.append("run")
        self.state = "x" * (5 << 20)

    @handler(durable=True)
    async def tells(self) -> None:
        _runs.append("run")
        await current().tell(current().client(Hopeless)("b").takes(bytes(5 << 20)))

    async def takes(self, data: bytes) -> None:
        pass


@pytest.mark.parametrize("name", ["returns", "keeps", "tells"])
async def test_what_is_too_large_is_not_tried_again(name: str) -> None:
    """A result, a state or an argument that exceeds the limit would exceed it in every run."""
    own = Hub()
    own.register(Hopeless)
    _runs.clear()
    async with MemoryCluster(own) as memory:
        hopeless: Any = (await memory.start_runner()).client(Hopeless)("a")
        error = await failure(getattr(hopeless, name)())
        assert isinstance(error, HandlerFailed)
        assert error.type == "MessageTooLarge"
        assert _runs == ["run"]
