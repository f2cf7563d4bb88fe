"""Where steps work and where not, what they may not do, and what is said then."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from actorhub import (
    CallCycle,
    Cluster,
    HandlerFailed,
    MalformedMessage,
    MessageTooLarge,
    NotConnected,
    current,
)
from actorhub.engine.runs import checkpoints
from actorhub.testing import until
from tests.steps.entities import (
    Clerk,
    Opener,
    doing,
    hub,
    note,
    noted,
    tell_note,
)
from tests.support.gates import failure, gates, outcomes, soon

__all__ = ["hub"]

WHERE = "durable handler"


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


async def test_one_name_is_one_step(runner: Cluster) -> None:
    """A second step of the name returns the result of the first; at the same time it is an error."""

    async def slowly() -> int:
        await asyncio.sleep(0.01)
        return note()

    async def work(_: Clerk) -> list[object]:
        both = await outcomes(current().step("at once", slowly), current().step("at once", slowly))
        return [*map(str, both), await current().step("a", note), await current().step("a", note)]

    doing["a"] = work
    found = await runner.client(Clerk)("a").work()
    assert found[0] == "1"
    assert "'at once' is already running" in found[1]
    assert found[2:] == [2, 2]


async def test_a_result_has_its_limit(runner: Cluster) -> None:
    """As large as a message may be: MessageTooLarge otherwise, and what the step told is not sent."""

    async def too_large() -> bytes:
        await tell_note("b", "never")
        return bytes(5 * 1024 * 1024)

    async def work(_: Clerk) -> int:
        with pytest.raises(MessageTooLarge, match="result of step 'large'"):
            await current().step("large", too_large)
        return len(await current().step("large", bytes, 4_000_000))

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == 4_000_000
    assert await noted(runner, 0) == []


async def test_a_step_holds_no_checkpoints_of_its_own(runner: Cluster) -> None:
    """Steps, waits and sleeps in a step, and save(), say that they belong outside; so do those of a kept context."""
    said: list[str] = []

    async def work(clerk: Clerk) -> list[str]:
        outside = current()
        approval = outside.deferred("approval", bool)

        async def inside() -> int:
            for attempt in (
                lambda: current().step("inner", note),
                lambda: outside.step("inner", note),
                lambda: current().sleep(timedelta(0)),
                lambda: outside.sleep(timedelta(0)),
                approval.wait,
                clerk.save,
            ):
                with pytest.raises(RuntimeError) as caught:
                    await attempt()
                said.append(str(caught.value))
            with pytest.raises(RuntimeError) as caught:
                current().deferred("inner", int)
            said.append(str(caught.value))
            return 1

        await outside.step("outer", inside)
        return said

    doing["a"] = work
    texts = await runner.client(Clerk)("a").work()
    assert len(texts) == 7
    assert all("a step cannot" in text for text in texts)


@pytest.mark.parametrize("how", ["work_now", "look", "stream", "durable_stream", "hook"])
async def test_elsewhere_an_error_says_where_steps_work(runner: Cluster, how: str) -> None:
    """In volatile and readonly handlers, streams and hooks: for steps, deferred values and sleeps."""

    async def defer() -> None:
        current().deferred("a", int)

    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "step": lambda: current().step("a", note),
        "deferred": defer,
        "sleep": lambda: current().sleep(timedelta(0)),
    }

    async def attempt(_: object) -> None:
        for attempted in attempts.values():
            with pytest.raises(RuntimeError) as caught:
                await attempted()
            gates["said"].log.append(str(caught.value))

    doing["a"] = attempt
    clerk = runner.client(Clerk)("a")
    if how == "hook":
        await runner.client(Opener)("a").ping()
    elif how.endswith("stream"):
        assert [item async for item in getattr(clerk, how)()] == [1]
    else:
        await getattr(clerk, how)()
    assert len(gates["said"].log) == 3
    assert all(WHERE in text and "run()" in text for text in gates["said"].log)
    assert gates["a"].entered == 0


async def test_outside_of_handlers_there_are_no_steps() -> None:
    """As for everything of current()."""
    with pytest.raises(NotConnected):
        await current().step("a", note)


@pytest.mark.parametrize("name", ["", "a\tb", "n" * 1025, cast("str", 7)])
async def test_a_name_must_be_one(runner: Cluster, name: str) -> None:
    """Not empty, of at most 1,024 bytes, without control characters."""

    async def work(_: Clerk) -> str:
        for attempt in (lambda: current().step(name, note), lambda: current().sleep(timedelta(0), name=name)):
            with pytest.raises(MalformedMessage, match="name of a step"):
                await attempt()
        with pytest.raises(MalformedMessage, match="name of a step"):
            current().deferred(name, int)
        return "refused"

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == "refused"


async def test_a_run_has_a_number_of_steps_at_most(runner: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more says what to do instead."""
    monkeypatch.setattr(checkpoints, "MOST_STEPS", 3)

    async def work(_: Clerk) -> int:
        for number in range(3):
            await current().step(f"{number}", note)
        with pytest.raises(RuntimeError, match="3 steps are the limit"):
            await current().step("one more", note)
        return await current().step("2", note)

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == 3


async def test_a_handler_that_leaves_a_step_behind_fails(runner: Cluster) -> None:
    """Its run does not count, and says which steps it forgot to await; they store nothing for the next one."""
    stray: list[asyncio.Task[Any]] = []

    async def slowly(text: str) -> str:
        await tell_note("b", text)
        await gates["slow"].pass_through()
        return text

    async def work(_: Clerk) -> str:
        if not stray:
            stray.append(soon(current().step("one", slowly, "stray")))
            await gates["slow"].came()
            return "too early"
        gates["slow"].open()
        (error,) = await outcomes(stray[0])
        assert "its run is over" in str(error)
        return await current().step("one", slowly, "awaited")

    doing["a"] = work
    clerk = runner.client(Clerk)("a")
    assert await clerk.work() == "awaited"
    assert len(gates["a"].log) == 2
    assert await noted(runner, 1) == ["awaited"]
    stray.clear()
    gates["slow"] = type(gates["slow"])()
    doing["a"] = work
    error = soon(failure(clerk.work()))
    await until(lambda: len(gates["a"].log) == 4)
    gates["slow"].open()
    assert not isinstance(await failure(error), HandlerFailed)


async def test_what_outlives_a_step_tells_nothing_with_it(runner: Cluster) -> None:
    """A task that a step left behind is told that the step is over."""
    left: list[asyncio.Task[Any]] = []

    async def leaves_a_task() -> int:
        async def later() -> None:
            await gates["later"].pass_through()
            await tell_note("b", "too late")

        left.append(soon(later()))
        return 1

    async def work(_: Clerk) -> str:
        await current().step("one", leaves_a_task)
        gates["later"].open()
        (error,) = await outcomes(left[0])
        return str(error)

    doing["a"] = work
    assert "run is over" in await runner.client(Clerk)("a").work()
    assert await noted(runner, 0) == []


async def test_a_call_in_a_step_belongs_to_the_chain(runner: Cluster) -> None:
    """A call that comes back to the waiting entity is a cycle there, too, not a deadlock."""

    async def call_back(_: Clerk) -> None:
        await current().client(Clerk)("a").notes()

    async def work(_: Clerk) -> str:
        error = await failure(current().step("ask", current().client(Clerk)("b").work_now))
        assert isinstance(error, CallCycle)
        return error.path[-1]

    doing["a"], doing["b"] = work, call_back
    assert await runner.client(Clerk)("a").work() == "clerk/a"
