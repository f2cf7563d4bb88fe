"""What a run leaves behind may still change the state. That is nobody's change, so nobody commits it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from actorhub import Cluster, Entity, Hub, handler
from actorhub.testing import MemoryCluster, state_of
from tests.support.gates import gates, outcomes, soon

LATE = "late"


class Book(Entity[list[str]]):
    """Leaves something behind that changes its state once the gate is open."""

    async def gather(self) -> None:
        """Fail while a sibling of what fails goes on."""
        await asyncio.gather(self._change_late(), self._fail())

    async def leave_a_task(self) -> None:
        _ = soon(self._change_late())

    async def leave_the_state_to_a_task(self) -> None:
        _ = soon(self._change(self.state))

    @handler(timeout=timedelta(milliseconds=20))
    async def leave_a_thread(self) -> None:
        done = threading.Event()
        _ = soon(self._release(done))
        await asyncio.to_thread(self._change_in_thread, done)

    async def leave_a_generator(self) -> None:
        async for _ in self._generate():
            break

    async def do_nothing(self) -> int:
        return 5

    @handler(readonly=True)
    async def read(self) -> list[str]:
        return self.state

    @handler(durable=True)
    async def add(self, mark: str) -> list[str]:
        self.state.append(mark)
        return self.state

    async def on_deactivate(self) -> None:
        pass

    async def _change_late(self) -> None:
        await gates["late"].pass_through()
        self.state.append(LATE)

    async def _change(self, state: list[str]) -> None:
        await gates["late"].pass_through()
        state.append(LATE)

    async def _fail(self) -> None:
        raise ValueError("on purpose")

    async def _release(self, done: threading.Event) -> None:
        await gates["late"].pass_through()
        done.set()

    def _change_in_thread(self, done: threading.Event) -> None:
        done.wait(10)
        self.state.append(LATE)
        gates["in the thread"].enter()

    async def _generate(self) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await gates["late"].pass_through()
            self.state.append(LATE)


hub = Hub()
hub.register(Book)

WAYS = ["gather", "leave_a_task", "leave_the_state_to_a_task", "leave_a_thread", "leave_a_generator"]


async def _changed_late(runner: Cluster, way: str) -> None:
    """Have a run leave something behind, and that change the state."""
    book = runner.client(Book)("a")
    await outcomes(getattr(book, way)())
    gates["late"].open()
    if way == "leave_a_thread":
        await gates["in the thread"].came()
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("then", ["do_nothing", "read"])
async def test_the_next_run_does_not_take_it_for_its_own(
    memory: MemoryCluster, runner: Cluster, caplog: pytest.LogCaptureFixture, way: str, then: str
) -> None:
    """Neither is it committed, nor is a handler to blame that changes nothing; the log says what is wrong."""
    book = runner.client(Book)("a")
    assert await book.add("first") == ["first"]
    await _changed_late(runner, way)
    assert await getattr(book, then)() in (5, ["first"])
    assert await book.add("second") == ["first", "second"]
    assert await state_of(memory, Book, "a") == ["first", "second"]
    assert "book/a: something that outlived its run changed the state" in caplog.text


@pytest.mark.parametrize("way", WAYS)
async def test_nor_does_the_last_hook(memory: MemoryCluster, runner: Cluster, way: str) -> None:
    """The entity leaves memory as its last run left it."""
    assert await runner.client(Book)("a").add("first") == ["first"]
    await _changed_late(runner, way)
    await memory.stop(runner)
    assert await state_of(memory, Book, "a") == ["first"]
