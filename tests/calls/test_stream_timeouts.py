"""The timeout of a stream's handler: it bounds each step, from when the generator goes on to its next `yield`."""

import asyncio
import logging
from contextlib import suppress

import pytest

from actorhub import CallTimeout, Cluster
from actorhub.engine.runs.stuck import log_stuck
from actorhub.testing import until
from tests.calls.acting import Actor, acts, cells, heard, hub, new_acts, note_state, seen, tell, until_idle
from tests.support.gates import failure, gates, soon

__all__ = ["hub", "new_acts"]


async def slow(me: Actor) -> None:
    """Do something, and never come to an end."""
    me.state.append("step")
    await tell("step")
    await gates["slow"].pass_through()


async def test_a_step_that_takes_too_long_is_cancelled_and_taken_back(cluster: Cluster, runner: Cluster) -> None:
    """Its consumer gets a timeout, after the items that came before; the entity goes on."""
    actor = cluster.client(Actor)("a")
    stream = actor.limited()
    assert await anext(stream) == 0
    acts["step"] = slow
    with pytest.raises(CallTimeout, match=r"actor\.limited: a step of the stream took longer than 0\.06 s") as caught:
        assert [item async for item in stream] == list(range(1, 1000))
    assert caught.value.possibly_executed
    await until_idle(runner)
    assert gates["slow"].left == ["cancelled"]
    assert await actor.look() == ["item 0"]
    await heard(cluster, [])


async def test_the_time_of_a_slow_consumer_does_not_count(cluster: Cluster, runner: Cluster) -> None:
    """Nor does the time in which another handler has the turn."""

    async def hold(me: Actor) -> None:
        await gates["hold"].pass_through()

    acts["hold"] = hold
    actor = cluster.client(Actor)("a")
    stream = actor.limited()
    assert await anext(stream) == 0
    await asyncio.sleep(0.1)
    holding = soon(actor.do("hold"))
    await gates["hold"].came()
    items = soon(_count(stream))
    await asyncio.sleep(0.1)
    gates["hold"].open()
    await holding
    assert await items == 999


async def _count(stream: object) -> int:
    return len([item async for item in stream])  # type: ignore[attr-defined]


async def test_a_late_step_that_goes_on_to_a_yield_is_taken_back_and_cleaned_up(
    cluster: Cluster, runner: Cluster
) -> None:
    """The item of a step that swallowed its cancellation does not arrive."""

    async def swallow(me: Actor) -> None:
        me.state.append("step")
        with suppress(asyncio.CancelledError):
            await gates["slow"].pass_through()

    acts.update({"step": swallow, "clean up": note_state("cleaned up")})
    actor = cluster.client(Actor)("a")
    assert isinstance(await failure(anext(actor.limited())), CallTimeout)
    await until_idle(runner)
    assert seen["cleaned up"] == [[]]
    assert await actor.look() == ["cleaned up"]


async def test_a_step_that_does_not_end_is_abandoned(
    cluster: Cluster, runner: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its consumer gets the timeout, a new activation serves the entity, and the log says where the step is stuck."""

    async def resist(me: Actor) -> None:
        me.state.append("step")
        while not gates["slow"].log:
            with suppress(asyncio.CancelledError):
                await gates["slow"].pass_through()
        try:
            await me.save()
        finally:
            seen["saved"].append("tried")

    acts["step"] = resist
    actor = cluster.client(Actor)("a")
    taking = soon(failure(anext(actor.limited())))
    await gates["slow"].came()
    waiting = soon(actor.look())
    try:
        async with asyncio.timeout(10):
            assert isinstance(await taking, CallTimeout)
            assert await waiting == []
    finally:
        gates["slow"].log.append("enough")
        gates["slow"].open()
    (record,) = [record for record in caplog.records if "abandoned" in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert "actor.limited(a)" in record.getMessage()
    assert "in resist" in record.getMessage()
    assert "in pass_through" in record.getMessage()
    await until(lambda: seen["saved"] == ["tried"])
    await until_idle(runner)
    assert [cell.load for cell in cells(runner)] == [0]
    assert await actor.look() == []


async def test_the_stack_of_what_is_stuck_goes_to_its_innermost_frame(caplog: pytest.LogCaptureFixture) -> None:
    """It can be found by its task, or by its coroutine or generator."""

    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    task = soon(outer())
    await asyncio.sleep(0)
    for stuck in (task, task.get_coro(), None):
        log_stuck(logging.getLogger("tests"), "actor.do", "a", stuck)
    found = [record.getMessage() for record in caplog.records]
    assert all("actor.do(a)" in text for text in found)
    assert ["in outer" in text and "in inner" in text and "in wait" in text for text in found] == [True, True, False]
    task.cancel()
