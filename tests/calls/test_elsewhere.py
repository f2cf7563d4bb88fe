"""Calls from another event loop, thread or process than the connection's: refused before anything is sent."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest

from actorhub import ActorhubError, Cluster, Entity, Hub, NotConnected, current, handler
from actorhub.testing import MemoryCluster
from tests.support.gates import failure

ran: list[str] = []
in_thread: dict[str, Callable[["Desk"], Awaitable[Any]]] = {}


class Desk(Entity[int]):
    async def add(self, count: int) -> int:
        ran.append("add")
        self.state += count
        return self.state

    async def items(self) -> AsyncIterator[int]:
        ran.append("items")
        for number in range(1000):
            yield number

    @handler(durable=True)
    async def keep(self, count: int) -> int:
        ran.append("keep")
        return count

    @handler(durable=True)
    async def does_in_a_thread(self, what: str) -> list[str]:
        error = await asyncio.to_thread(_refused, in_thread[what](self))
        return [type(error).__name__, str(error), *map(str, [error.possibly_executed])]

    @handler(durable=True)
    async def says_in_a_thread(self) -> str:
        return await asyncio.to_thread(lambda: current().entity_id)


hub = Hub()
hub.register(Desk)


async def _first_item(cluster: Cluster) -> object:
    async for item in cluster.client(Desk)("a").items():
        return item
    return None


async def _snowflake(cluster: Cluster) -> object:
    return cluster.snowflake()


CALLS: dict[str, Callable[[Cluster], Awaitable[Any]]] = {
    "ask": lambda cluster: cluster.client(Desk)("a").add(1),
    "durable ask": lambda cluster: cluster.client(Desk)("a").keep(1),
    "stream": _first_item,
    "tell": lambda cluster: cluster.tell(cluster.client(Desk)("a").add(1)),
    "durable tell": lambda cluster: cluster.tell(cluster.client(Desk)("a").keep(1), key="k"),
    "broadcast": lambda cluster: cluster.tell(cluster.client(Desk).active().add(1)),
    "reply": lambda cluster: cluster.reply(1),
    "cancel": lambda cluster: cluster.cancel(1),
    "retry": lambda cluster: cluster.retry(1),
    "poll_storage": lambda cluster: cluster.poll_storage(),
    "complete": lambda cluster: cluster.complete("token", 1),
    "fail": lambda cluster: cluster.fail("token", "text"),
    "health": lambda cluster: cluster.health(),
    "snowflake": _snowflake,
    "kv.get": lambda cluster: cluster.kv.get("a"),
    "kv.set": lambda cluster: cluster.kv.set("a", 1),
    "kv.typed.size": lambda cluster: cluster.kv.prefix("a").typed(int).size(),
    "kv.modify": lambda cluster: cluster.kv.modify("a", lambda _: 1),
}


def _refused(work: Awaitable[Any]) -> ActorhubError:
    """Return the error of what a thread, with an event loop of its own, does."""

    async def outcome() -> ActorhubError:
        error = await failure(work)
        assert isinstance(error, ActorhubError), repr(error)
        return error

    return asyncio.run(outcome())


def _check(error: BaseException) -> None:
    assert isinstance(error, NotConnected), repr(error)
    assert not error.possibly_executed
    assert "run_coroutine_threadsafe" in str(error)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    """Forget the runs of the test before."""
    ran.clear()


@pytest.mark.parametrize("name", CALLS)
async def test_another_thread_is_refused_before_anything_is_sent(cluster: Cluster, name: str) -> None:
    """Each operation raises a typed error at once, nothing runs, and the entity goes on."""
    await cluster.client(Desk)("a").add(0)
    ran.clear()
    _check(await asyncio.to_thread(lambda: _refused(CALLS[name](cluster))))
    assert ran == []
    async with asyncio.timeout(5):
        assert await cluster.client(Desk)("a").add(1) == 1
        assert await _first_item(cluster) == 0


@pytest.mark.parametrize("name", CALLS)
def test_another_event_loop_of_the_same_thread_is_refused(name: str) -> None:
    """So is a loop that runs while that of the connection does not, as with fixtures of another scope."""
    with asyncio.Runner() as own, asyncio.Runner() as other:
        stack = AsyncExitStack()

        async def connected() -> Cluster:
            memory = await stack.enter_async_context(MemoryCluster(hub))
            return await memory.start_runner()

        cluster = own.run(connected())
        _check(other.run(failure(CALLS[name](cluster))))
        assert ran == []
        assert own.run(_asked(cluster)) == 1
        own.run(stack.aclose())


async def test_a_thread_without_an_event_loop_is_refused(runner: Cluster) -> None:
    """A call that something else than asyncio drives raises the same error."""

    def drive() -> BaseException:
        with pytest.raises(NotConnected) as raised:
            runner.client(Desk)("a").add(1).send(None)
        return raised.value

    _check(await asyncio.to_thread(drive))
    assert ran == []


async def test_a_thread_hands_its_call_to_the_loop_of_the_connection(cluster: Cluster) -> None:
    """What the error advises works: of calls, tells and whatever else is awaited."""
    loop = asyncio.get_running_loop()

    def work() -> list[object]:
        desk = cluster.client(Desk)("a")
        asked = asyncio.run_coroutine_threadsafe(desk.add(2), loop)
        told = asyncio.run_coroutine_threadsafe(cluster.tell(desk.add(1)), loop)
        return [asked.result(5), told.result(5) > 0]

    assert await asyncio.to_thread(work) == [2, True]
    assert await cluster.client(Desk)("a").add(0) == 3


async def test_a_stream_that_another_thread_goes_on_with_is_refused(cluster: Cluster) -> None:
    """It cannot be begun in one loop and consumed, or closed, in another; its consumer goes on."""
    stream = cast("AsyncGenerator[int, None]", cluster.client(Desk)("a").items())
    assert [await anext(stream) for _ in range(3)] == [0, 1, 2]

    async def rest() -> None:
        async for _ in stream:
            pass

    _check(await asyncio.to_thread(lambda: _refused(rest())))
    _check(await asyncio.to_thread(lambda: _refused(stream.aclose())))
    async with asyncio.timeout(5):
        assert (await anext(stream)) > 2
        await stream.aclose()
        assert await cluster.client(Desk)("a").add(1) == 1


async def _deferred(_: Desk) -> object:
    return current().deferred("value", int)


async def _in_transaction(_: Desk) -> None:
    async with current().transaction():
        pass


RUNS: dict[str, Callable[[Desk], Awaitable[Any]]] = {
    "save": lambda desk: desk.save(),
    "tell": lambda _: current().tell(current().client(Desk)("b").add(1)),
    "ask": lambda _: current().client(Desk)("b").add(1),
    "step": lambda _: current().step("a step", lambda: 1),
    "sleep": lambda _: current().sleep(timedelta(seconds=1)),
    "deferred": _deferred,
    "transaction": _in_transaction,
    "kv": lambda _: current().kv.set("a", 1),
}


@pytest.mark.parametrize("name", RUNS)
async def test_what_a_handler_does_in_a_thread_is_refused(runner: Cluster, name: str) -> None:
    """A part of a handler that runs in a thread gets a clear error from whatever needs the event loop."""
    in_thread[name] = RUNS[name]
    async with asyncio.timeout(5):
        kind, text, possibly_executed = await runner.client(Desk)("a").does_in_a_thread(name)
        assert (kind, possibly_executed) == ("NotConnected", "False")
        assert "run_coroutine_threadsafe" in text
        assert await runner.client(Desk)("b").add(1) == 1
    assert ran == ["add"]


async def test_a_handlers_thread_may_look_at_what_runs(runner: Cluster) -> None:
    """What `current()` knows can be read in a thread, for logs and the like."""
    assert await runner.client(Desk)("a").says_in_a_thread() == "a"


async def _asked(cluster: Cluster) -> int:
    async with asyncio.timeout(5):
        return await cluster.client(Desk)("a").add(1)


@pytest.mark.parametrize("how", ["the coroutine goes on", "a loop of its own"])
async def test_a_forked_process_is_refused_at_once(how: str) -> None:
    """A child that was forked after a call gets an error instead of waiting for a connection that it has not."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.calls.forking", how, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        out, _ = await program.communicate()
    assert program.returncode == 0
    said = msgspec.json.decode(out, type=dict[str, list[str]])
    assert set(said) == set(CALLS)
    assert {tuple(found[:2]) for found in said.values()} == {("NotConnected", "False")}, said
    assert all("fork" in found[2] for found in said.values()), said
