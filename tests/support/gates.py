"""Where a test holds a handler: handlers and test run in one event loop, so an id leads both to the same gate."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from types import CoroutineType
from typing import TypeVar

import pytest

from actorhub.core.clock import SystemClock
from actorhub.engine.supervision import Supervisor

T = TypeVar("T")


class Gate:
    """Counts who came in, and lets them on when it is opened."""

    def __init__(self) -> None:
        self.entered = 0
        self.inside = 0
        self.most_inside = 0
        self.left: list[str] = []
        self.log: list[str] = []
        self._came = asyncio.Event()
        self._open = asyncio.Event()

    async def pass_through(self, how: str = "passed") -> None:
        """Wait inside until the gate is open; note how it was left."""
        self.enter()
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.left.append("cancelled")
            raise
        else:
            self.left.append(how)
        finally:
            self.inside -= 1

    def enter(self) -> None:
        """Count one more who came, without holding it."""
        self.entered += 1
        self._came.set()

    @property
    def is_open(self) -> bool:
        """Whether it was opened."""
        return self._open.is_set()

    async def came(self, count: int = 1) -> None:
        """Wait until so many came in, now or before."""
        async with asyncio.timeout(5):
            while self.entered < count:
                self._came.clear()
                await self._came.wait()

    def open(self) -> None:
        """Let on who is inside and who comes later."""
        self._open.set()


gates: defaultdict[str, Gate] = defaultdict(Gate)
"""By entity id; empty at the start of each test."""


background: list[Supervisor] = []
"""Owns what a test starts and does not wait for at once; ended after each test."""


@pytest.fixture(autouse=True)
async def closed_gates() -> AsyncIterator[None]:
    """Forget the gates of the test before, and end the tasks that this one leaves: in each folder that imports it."""
    gates.clear()
    background.append(Supervisor(SystemClock()))
    yield
    await background.pop().aclose(1.0)


def soon(call: Awaitable[T]) -> "asyncio.Task[T]":
    """Start awaiting `call` in a task of its own."""

    async def run() -> T:
        return await call

    return background[-1].spawn(run(), "test")


def waits_in(task: "asyncio.Task[T]", function: Callable[..., object]) -> bool:
    """Whether the task has come to an await of `function`, and waits there."""
    step: object = task.get_coro()
    while isinstance(step, CoroutineType):
        if step.cr_code is function.__code__:
            return step.cr_await is not None
        step = step.cr_await
    return False


async def outcomes(*calls: Awaitable[object]) -> list[object]:
    """Await all of `calls` at once; return results and exceptions in their order."""
    found: list[object] = [None] * len(calls)

    async def one(number: int, call: Awaitable[object]) -> None:
        try:
            found[number] = await call
        except Exception as error:  # noqa: BLE001 - user code: the test looks at it
            found[number] = error

    async with asyncio.TaskGroup() as tasks:
        for number, call in enumerate(calls):
            tasks.create_task(one(number, call))
    return found


async def all_items(items: AsyncIterator[T]) -> list[T]:
    """Consume a stream to its end."""
    return [item async for item in items]


async def failure(call: Awaitable[object]) -> Exception:
    """Return what `call` fails with."""
    (found,) = await outcomes(call)
    assert isinstance(found, Exception), f"it did not fail but returned {found!r}"
    return found
