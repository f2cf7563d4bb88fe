"""Hooks that cancel their task, or do not end when they are cancelled: their entity goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from actorhub import Entity, HandlerFailed, Hub, Singleton, handler
from actorhub.testing import MemoryCluster, state_of, until
from tests.support.gates import failure
from tests.support.parts import host_of


def _task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def _cancel_and_wait() -> None:
    _task().cancel()
    await asyncio.sleep(0)


async def _cancel_and_raise() -> None:
    _task().cancel()
    raise ValueError("raised")


async def _cancel_and_return() -> None:
    _task().cancel()


async def _have_a_child_cancel() -> None:
    own = _task()

    async def child() -> None:
        own.cancel()
        await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


async def _raise_cancelled() -> None:
    raise asyncio.CancelledError


async def _exit() -> None:
    await asyncio.sleep(0)
    raise SystemExit(3)


_WAYS: dict[str, Callable[[], Awaitable[None]]] = {
    "cancels its task and waits": _cancel_and_wait,
    "cancels its task and raises": _cancel_and_raise,
    "cancels its task and returns": _cancel_and_return,
    "is cancelled by its child": _have_a_child_cancel,
    "raises CancelledError": _raise_cancelled,
    "exits": _exit,
}
_way: dict[str, str] = {}
"""What each hook does at the moment, by its name."""


async def _act(hook: str) -> None:
    if hook in _way:
        await _WAYS[_way[hook]]()


class Waker(Entity[int], max_idle=timedelta(milliseconds=20)):
    async def on_activate(self) -> None:
        await _act("on_activate")

    async def on_deactivate(self) -> None:
        self.state += 100
        await _act("on_deactivate")

    async def add(self) -> int:
        self.state += 1
        return self.state

    @handler(durable=True)
    async def add_for_good(self) -> int:
        return await self.add()


class Guard(Singleton[int]):
    async def on_become_leader(self) -> None:
        await _act("on_become_leader")

    async def on_lose_leadership(self) -> None:
        await _act("on_lose_leadership")

    async def add(self) -> int:
        self.state += 1
        return self.state


class Eager(Entity[list[str]]):
    """Changes its state when it is activated."""

    async def on_activate(self) -> None:
        self.state.append("activated")
        await _act("on_activate")

    async def read(self) -> list[str]:
        return self.state


class Loser(Singleton[list[str]]):
    """Has two last hooks."""

    async def add(self, mark: str) -> None:
        self.state.append(mark)

    async def on_lose_leadership(self) -> None:
        self.state.append("half done")
        await _act("on_lose_leadership")

    async def on_deactivate(self) -> None:
        pass


class Maker(Entity[int]):
    """Has a constructor that looks for the task it runs in."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        if "constructor" in _way and self._task is not None:
            self._task.cancel()

    async def has_task(self) -> bool:
        await asyncio.sleep(0)
        return self._task is not None


class Simple(Entity):
    """Is made at once, in whatever task its first caller is."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()

    async def has_task(self) -> bool:
        return self._task is not None


hub = Hub()
hub.register(Waker)
hub.register(Guard)
hub.register(Maker)
hub.register(Simple)
hub.register(Eager)
hub.register(Loser)


@pytest.fixture(autouse=True)
def harmless() -> None:
    _way.clear()


@pytest.mark.parametrize("way", [way for way in _WAYS if way != "cancels its task and returns"])
async def test_an_activation_that_is_cancelled_from_inside_fails(memory: MemoryCluster, way: str) -> None:
    """The caller learns that nothing ran, durable messages wait for a better time, and the next activation serves."""
    runner = await memory.start_runner()
    _way["on_activate"] = way
    async with asyncio.timeout(5):
        error = await failure(runner.client(Waker)("a").add())
    assert isinstance(error, HandlerFailed)
    assert not error.possibly_executed
    asking = runner.client(Waker)("b").add_for_good()
    _way.clear()
    assert await asking == 1
    assert await runner.client(Waker)("a").add() == 1


async def test_an_activation_that_failed_commits_nothing(memory: MemoryCluster) -> None:
    """Not even if its hook cancels its own task in the last moment, so that it returns, and the commit would run."""
    runner = await memory.start_runner()
    _way["on_activate"] = "cancels its task and returns"
    assert isinstance(await failure(runner.client(Eager)("a").read()), HandlerFailed)
    assert await state_of(memory, Eager, "a") == []
    _way.clear()
    assert await runner.client(Eager)("a").read() == ["activated"]


@pytest.mark.parametrize("way", _WAYS)
async def test_the_next_hook_does_not_commit_what_a_failed_one_did(memory: MemoryCluster, way: str) -> None:
    """`on_lose_leadership` fails halfway, and `on_deactivate` commits its own changes only."""
    runner = await memory.start_runner()
    await runner.singleton(Loser).add("kept")
    _way["on_lose_leadership"] = way
    await memory.stop(runner)
    assert await state_of(memory, Loser, "loser") == ["kept"]


@pytest.mark.parametrize("way", _WAYS)
async def test_an_entity_leaves_memory_whatever_its_last_hook_does(memory: MemoryCluster, way: str) -> None:
    """It can be called again, and what a failed hook changed is not kept."""
    runner = await memory.start_runner()
    waker = runner.client(Waker)("a")
    _way["on_deactivate"] = way
    assert await waker.add() == 1
    async with asyncio.timeout(5):
        await until(lambda: "waker/a" not in [cell.address for cell in host_of(runner).cells()])
        assert await waker.add() in (2, 102)


@pytest.mark.parametrize("way", [way for way in _WAYS if way != "cancels its task and returns"])
async def test_a_leader_is_made_again_when_its_hook_fails(memory: MemoryCluster, way: str) -> None:
    """It leads once the hook lets it."""
    _way["on_become_leader"] = way
    runner = await memory.start_runner()
    error = await failure(runner.singleton(Guard).add())
    assert isinstance(error, HandlerFailed)
    _way.clear()
    assert await runner.singleton(Guard).add() == 1


@pytest.mark.parametrize("way", _WAYS)
async def test_leadership_moves_on_whatever_the_last_hook_does(memory: MemoryCluster, way: str) -> None:
    """The next leader finds what the former one committed."""
    first = await memory.start_runner()
    assert await first.singleton(Guard).add() == 1
    _way["on_lose_leadership"] = way
    second = await memory.start_runner()
    async with asyncio.timeout(5):
        await memory.stop(first)
        assert await second.singleton(Guard).add() == 2


async def test_a_constructor_runs_in_no_task(memory: MemoryCluster) -> None:
    """It could only be somebody else's: the engine's, or that of the handler that called."""
    runner = await memory.start_runner()
    _way["constructor"] = "cancels its task"
    assert not await runner.client(Maker)("a").has_task()
    assert not await runner.client(Simple)("a").has_task()
    assert await state_of(memory, Maker, "a") == 0


class Clinger(Entity[int], max_idle=timedelta(milliseconds=20)):
    """Has a last hook that swallows every cancellation for a while."""

    async def on_deactivate(self) -> None:
        for _ in range(300):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)

    async def add(self) -> int:
        self.state += 1
        return self.state


async def test_a_runner_leaves_in_time_although_a_hook_clings_to_it() -> None:
    """The hook is cancelled when the grace time is over, and not waited for."""
    own = Hub()
    own.register(Clinger)
    async with MemoryCluster(own) as memory:
        runner = await memory.start_runner()
        assert await runner.client(Clinger)("a").add() == 1
        async with asyncio.timeout(5):
            await memory.stop(runner)
