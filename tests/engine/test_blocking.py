"""A handler that blocks the event loop is named while it does."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from actorhub import Entity, Hub
from actorhub.testing import MemoryCluster


def crunch(seconds: float) -> None:
    """Compute without ever letting go."""
    time.sleep(seconds)  # On purpose: this is the standstill.


class Greedy(Entity):
    """Computes without ever letting go."""

    async def compute(self, seconds: float) -> None:
        crunch(seconds)

    async def compute_later(self, seconds: float) -> None:
        await asyncio.sleep(0)
        crunch(seconds)


class Slow(Entity):
    """Computes in its hook."""

    async def on_activate(self) -> None:
        """Compute without ever letting go."""
        crunch(2.2)

    async def ping(self) -> None:
        pass


hub = Hub()
hub.register(Greedy)
hub.register(Slow)


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    """A cluster in memory."""
    async with MemoryCluster(hub) as made:
        yield made


async def test_a_handler_that_blocks_the_loop_is_named(memory: MemoryCluster, caplog: pytest.LogCaptureFixture) -> None:
    """While it blocks, a warning names it and shows its stack, once."""
    runner = await memory.start_runner()
    with caplog.at_level(logging.WARNING, "actorhub.blocking"):
        await runner.client(Greedy)("one").compute(2.2)
    [warning] = [record.getMessage() for record in caplog.records if record.name == "actorhub.blocking"]
    assert "by Greedy.compute" in warning
    assert "time.sleep(seconds)" in warning


async def test_a_handler_that_blocks_the_loop_after_it_has_waited_is_named(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler's later steps are driven by other code than its first one; the warning names the handler even so."""
    runner = await memory.start_runner()
    with caplog.at_level(logging.WARNING, "actorhub.blocking"):
        await runner.client(Greedy)("one").compute_later(2.2)
    [warning] = [record.getMessage() for record in caplog.records if record.name == "actorhub.blocking"]
    assert "by Greedy.compute_later" in warning


async def test_a_hook_that_blocks_the_loop_is_named(memory: MemoryCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Hooks are user code, too: the warning names the hook, not what it calls."""
    runner = await memory.start_runner()
    with caplog.at_level(logging.WARNING, "actorhub.blocking"):
        await runner.client(Slow)("one").ping()
    [warning] = [record.getMessage() for record in caplog.records if record.name == "actorhub.blocking"]
    assert "by Slow.on_activate" in warning


async def test_a_handler_that_is_busy_for_a_moment_is_not_accused(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a second of computing is not a standstill."""
    runner = await memory.start_runner()
    with caplog.at_level(logging.WARNING, "actorhub.blocking"):
        await runner.client(Greedy)("one").compute(0.5)
    assert [record for record in caplog.records if record.name == "actorhub.blocking"] == []
