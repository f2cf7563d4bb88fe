"""A task of the program cancels those of actorhub, as shutdown helpers do: the process gives up at once and says so."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest

from actorhub import ActorhubError, Cluster, Entity, Hub, current
from actorhub.core.clock import SystemClock
from actorhub.core.errors import NotConnected, ShuttingDown
from actorhub.testing import MemoryCluster
from actorhub.testing.cluster import until
from tests.support.gates import failure, outcomes

hub = Hub()

SAID = "a task of the program cancelled actorhub's own tasks"
victims: set[asyncio.Task[Any]] = set()
"""What the handler cancels."""


@hub.register
class Worker(Entity[int]):
    """Cancels tasks that are not its own."""

    async def cancel_all(self) -> None:
        """Cancel what there is to cancel."""
        cancel_all()

    async def where(self) -> str:
        """Return the address of its runner."""
        return current().runner.address


def cancel_all() -> None:
    """Cancel the chosen tasks, except the one that runs."""
    for task in victims:
        if task is not asyncio.current_task():
            task.cancel()


def choose(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Have `cancel_all` cancel these.

    Those of a gRPC server are spared: its C core goes on writing to the memory of a cancelled one, and this process has
    other tests to run. `tests/cli/test_serve.py` cancels them too.
    """
    victims.clear()
    victims.update(task for task in tasks if "AioServer" not in repr(task))


def others() -> set[asyncio.Task[Any]]:
    """Return all tasks but the test's."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def critical(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the critical lines of the log."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]


async def test_a_runner_whose_tasks_are_cancelled_hands_over_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """It says so once, is not healthy, refuses calls at once, and another runner has its shards within seconds."""
    clock = SystemClock()
    async with MemoryCluster(hub) as memory:
        first = await memory.start_runner()
        choose(others())
        second = await memory.start_runner()
        client = await memory.client()
        await memory.settled()
        assert first.runner is not None
        assert second.runner is not None
        here = next(f"{n}" for n in range(100) if first.is_local(Worker, f"{n}"))
        async with asyncio.timeout(2):
            _ = await outcomes(first.client(Worker)(here).cancel_all())
        began = clock.monotonic()
        worker = client.client(Worker).options(timeout=timedelta(seconds=10))
        assert await worker(here).where() == second.runner.address
        await until(lambda: len(memory.owners()) == 16 and all(o == [second] for o in memory.owners().values()))
        assert clock.monotonic() - began < 5
        (health,) = await first.health()
        assert not health.serving
        assert SAID in health.reason
        assert first.is_shutting_down
        error = await failure(first.client(Worker)(here).where())
        assert isinstance(error, NotConnected)
        assert SAID in str(error)
        assert len(critical(caplog)) == 1
        assert SAID in critical(caplog)[0]
        began = clock.monotonic()
        await memory.stop(first)
        assert clock.monotonic() - began < 1


async def test_a_cluster_whose_tasks_are_cancelled_is_left_at_once() -> None:
    """With every task but the test's cancelled, runner and client fail calls at once, and the block ends."""
    clock = SystemClock()
    async with MemoryCluster(hub) as memory:
        runner, client = await memory.start_runner(), await memory.client()
        choose(others())
        cancel_all()
        await until(lambda: runner.is_shutting_down and client.is_shutting_down)
        for cluster in (runner, client):
            assert isinstance(await failure(cluster.client(Worker)("a").where()), NotConnected)
        began = clock.monotonic()
    assert clock.monotonic() - began < 1


async def test_the_block_of_a_runner_ends_with_an_error(postgres_url: str) -> None:
    """It is cancelled as by a task group and raises why, and its shards and its row are free again."""
    settings: dict[str, Any] = {"database_url": postgres_url, "listen": "127.0.0.1:0", "shards_per_group": 16}
    clock = SystemClock()
    began = 0.0

    async def program() -> None:
        nonlocal began
        async with hub.runner(**settings) as cluster:
            choose(others())
            try:
                await cluster.client(Worker)("a").cancel_all()
                await asyncio.Event().wait()
            finally:
                assert isinstance(await failure(cluster.client(Worker)("a").where()), NotConnected)
                began = clock.monotonic()

    with pytest.raises(ShuttingDown, match=SAID):
        await program()
    assert clock.monotonic() - began < 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    async with hub.runner(**settings) as cluster:
        assert (await cluster.health())[0].live_runners == 1
        assert await cluster.client(Worker)("a").where()


async def test_the_block_of_a_client_ends_with_an_error(postgres_url: str) -> None:
    """A call that is under way fails instead of hanging, and the block raises why; the runner goes on."""
    async with hub.runner(database_url=postgres_url, listen="127.0.0.1:0", shards_per_group=16) as runner:
        before = others()
        assert runner.runner is not None
        address = runner.runner.address

        async def program() -> None:
            async with hub.connect(gateway=address) as client:
                choose(others() - before)
                cancel_all()
                await client.client(Worker)("a").where()
                await asyncio.Event().wait()

        async with asyncio.timeout(5):
            with pytest.raises(ShuttingDown, match=SAID):
                await program()
        assert await runner.client(Worker)("a").where()


async def test_a_block_in_which_its_own_task_is_cancelled_raises_that(postgres_url: str) -> None:
    """Where the block's task is cancelled with all others, the cancellation is what leaves the block, soon."""

    async def program() -> None:
        async with hub.runner(database_url=postgres_url, listen="127.0.0.1:0", shards_per_group=16) as cluster:
            await cluster.client(Worker)("a").where()
            choose(asyncio.all_tasks() - {test})
            asyncio.get_running_loop().call_soon(cancel_all)
            await asyncio.Event().wait()

    test = asyncio.current_task()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(program())
    assert task.cancelled()


def kind_of(task: asyncio.Task[Any]) -> str:
    """Return the name of actorhub's function that a task runs; empty for tasks of others."""
    coro = task.get_coro()
    return coro.__qualname__ if inspect.iscoroutine(coro) and "/actorhub/" in coro.cr_code.co_filename else ""


async def test_a_process_gives_up_or_goes_on_whichever_of_its_tasks_are_cancelled(postgres_url: str) -> None:
    """One kind after the other, in a runner and its client: then all calls are answered, or the process has ended."""
    settings: dict[str, Any] = {"database_url": postgres_url, "listen": "127.0.0.1:0", "shards_per_group": 16}
    left, done = {"?"}, {""}

    async def cancel_some(runner: Cluster, client: Cluster, before: set[asyncio.Task[Any]]) -> None:
        """Cancel kind after kind as long as both go on."""
        while not (runner.is_shutting_down or client.is_shutting_down):
            worker = client.client(Worker).options(timeout=timedelta(seconds=2))
            await until_answered(worker, runner, client)
            choose(others() - before)
            left.clear()
            left.update({kind_of(task) for task in victims} - done)
            if not left:
                return
            kind = min(left)
            done.add(kind)
            victims.difference_update([task for task in victims if kind_of(task) != kind])
            cancel_all()
            await asyncio.sleep(0.05)

    while left:
        before = others()
        with contextlib.suppress(ShuttingDown):
            async with hub.runner(**settings) as runner:
                assert runner.runner is not None
                async with hub.connect(gateway=runner.runner.address) as client:
                    await cancel_some(runner, client, before)
    assert {"GrpcLink._write_all", "GrpcLink._read_all"} <= done


async def until_answered(worker: Any, runner: Cluster, client: Cluster) -> None:  # noqa: ANN401 - a client of it
    """Wait until calls of every entity are answered, or one of the two has given up."""

    async def answered(number: int) -> None:
        while not (runner.is_shutting_down or client.is_shutting_down):
            with contextlib.suppress(ActorhubError):
                await worker(f"{number}").where()
                return
            await asyncio.sleep(0.05)

    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(answered(number))


async def test_a_runner_that_leaves_and_whose_tasks_are_cancelled_is_soon_gone() -> None:
    """A hand-over that waits for a handler does not use up its grace time for tasks that are dead."""
    clock = SystemClock()
    memory = MemoryCluster(hub)
    runner = await memory.start_runner()
    _ = await memory.start_runner()
    choose(others())
    began = clock.monotonic()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(memory.stop(runner))
        asyncio.get_running_loop().call_soon(cancel_all)
    assert clock.monotonic() - began < 1
    await memory.stop(memory.runners[0])
