"""Handlers that end the coroutine of their own task: that costs their run, and nobody else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from actorhub import Entity, HandlerFailed, Hub, Retry, Singleton, handler
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure

ONCE = Retry(attempts=1)


def _end(coroutine: Any, how: str) -> None:  # noqa: ANN401 - asyncio types it loosely
    with contextlib.suppress(ValueError, RuntimeError, StopIteration):
        if how == "throw":
            coroutine.throw(ValueError("thrown"))
        else:
            coroutine.close()


def _end_soon(how: str) -> None:
    """Have the coroutine of the current task ended once it is suspended."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(_end, task.get_coro(), how)


class Closer(Entity[int]):
    async def plain(self, how: str) -> None:
        self.state += 1
        _end_soon(how)
        try:
            await asyncio.sleep(3600)
        except GeneratorExit:
            if how == "close, and swallow":
                with contextlib.suppress(GeneratorExit):  # of the garbage collector
                    await asyncio.sleep(3600)
            raise

    @handler(durable=True, retry=ONCE)
    async def durable(self, how: str) -> None:
        await self.plain(how)

    async def stream(self, how: str) -> AsyncIterator[int]:
        yield 1
        await self.plain(how)

    async def keep(self) -> None:
        task: Any = asyncio.current_task()
        _kept.append(task.get_coro())

    async def end_kept(self, how: str) -> None:
        for coroutine in _kept:
            _end(coroutine, how)
        _kept.clear()

    async def count(self) -> int:
        return self.state


class Start(Entity):
    async def on_activate(self) -> None:
        if not _started:
            _started.append(1)
            _end_soon("close")
            await asyncio.sleep(3600)

    async def ping(self) -> str:
        return "pong"


class Loop(Singleton[int]):
    async def run(self) -> None:
        self.state += 1
        await self.save()
        if self.state == 1:
            _end_soon("close")
            await asyncio.sleep(3600)

    async def runs(self) -> int:
        return self.state


_kept: list[Any] = []
_started: list[int] = []


def _hub(*classes: type[Any]) -> Hub:
    hub = Hub()
    for cls in classes:
        hub.register(cls)
    return hub


async def _consumed(items: AsyncIterator[int]) -> None:
    async for _ in items:
        pass


_CALLS: dict[str, Callable[[Closer, str], Any]] = {
    "plain": lambda closer, how: closer.plain(how),
    "durable": lambda closer, how: closer.durable(how),
    "stream": lambda closer, how: _consumed(closer.stream(how)),
}


_WAYS = [(name, how) for name in _CALLS for how in ("close", "throw")]


@pytest.mark.parametrize(("name", "how"), [*_WAYS, ("plain", "close, and swallow"), ("durable", "close, and swallow")])
async def test_a_handler_that_ends_its_tasks_coroutine_is_answered_for(name: str, how: str) -> None:
    """Its caller, who would wait without end, gets an error at once; nothing is committed; the entity goes on."""
    async with MemoryCluster(_hub(Closer)) as memory:
        runner = await memory.start_runner()
        patient = runner.client(Closer).options(timeout=None)
        async with asyncio.timeout(2):
            for number in range(3):
                error = await failure(_CALLS[name](patient(str(number)), how))
                assert isinstance(error, HandlerFailed), error
                assert error.possibly_executed
                assert await patient(str(number)).count() == 0
            await memory.stop(runner)


@pytest.mark.parametrize("how", ["close", "throw"])
async def test_a_coroutine_that_is_ended_after_its_run_costs_no_other_run(how: str) -> None:
    """Whatever the carrier does by then, everybody is answered."""
    async with MemoryCluster(_hub(Closer)) as memory:
        closers = (await memory.start_runner()).client(Closer)
        async with asyncio.timeout(5):
            for _ in range(3):
                await closers("a").keep()
                calls = [closers(str(number)).count() for number in range(300)]
                await asyncio.gather(closers("b").end_kept(how), *calls, closers("c").keep(), *map(_held, range(3)))
            assert await closers("a").count() == 0


async def _held(number: int) -> None:
    await asyncio.sleep(number / 1000)


async def test_a_hook_that_closes_its_tasks_coroutine_is_tried_again() -> None:
    """The activation does not hang."""
    _started.clear()
    async with MemoryCluster(_hub(Start)) as memory:
        start = (await memory.start_runner()).client(Start).options(timeout=timedelta(seconds=5))
        assert await start("a").ping() == "pong"


async def test_a_main_loop_that_closes_its_tasks_coroutine_starts_again() -> None:
    """It counts as failed."""
    async with MemoryCluster(_hub(Loop)) as memory:
        loop = (await memory.start_runner()).singleton(Loop)
        seen: list[int] = []

        async def poll() -> None:
            while seen[-1:] != [2]:
                seen.append(await loop.runs())

        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(poll())
            await until(polling.done)
