"""Clean-ups of streams that fail, do not end, or come when nothing can be committed: none of them leaves anything."""

import asyncio
from contextlib import suppress

import pytest

from actorhub import ActorhubError, Cluster, HandlerFailed, MalformedMessage
from actorhub.cluster import part_of
from actorhub.engine.runner import Runner
from actorhub.testing import MemoryCluster, until
from tests.calls.acting import (
    Actor,
    acts,
    begun,
    cells,
    heard,
    hold,
    hub,
    leave,
    mark,
    new_acts,
    note_state,
    rest,
    seen,
    tell,
    until_idle,
)
from tests.support.gates import all_items, failure, gates, soon

__all__ = ["hub", "new_acts"]


async def test_a_clean_up_that_raises_is_taken_back(
    cluster: Cluster, runner: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its changes nor its tells are left, the entity goes on, and the log says what was raised."""

    async def clean_up(me: Actor) -> None:
        me.state.append("cleaned up")
        await tell("bye")
        raise ValueError("no luck")

    acts["clean up"] = clean_up
    actor = cluster.client(Actor)("a")
    await leave(await begun(actor.items()))
    await until_idle(runner)
    assert await actor.look() == ["item 0"]
    await heard(cluster, [])
    (record,) = [record for record in caplog.records if "clean-up" in record.getMessage()]
    assert "actor.items(a)" in record.getMessage()
    assert "no luck" in str(record.exc_info)


async def test_a_step_that_is_cut_short_is_taken_back_with_its_clean_up(cluster: Cluster, runner: Cluster) -> None:
    """What the step and the clean-up changed cannot be told apart, so none of it is left, and nothing is sent."""

    async def clean_up(me: Actor) -> None:
        me.state.append("cleaned up")
        await tell("bye")

    acts.update({"step": hold, "clean up": clean_up})
    actor = cluster.client(Actor)("a")
    taking = soon(begun(actor.items()))
    await gates["hold"].came()
    taking.cancel()
    await until_idle(runner)
    assert gates["hold"].left == ["cancelled"]
    assert await actor.look() == []
    await heard(cluster, [])


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_step_that_swallows_its_cancellation_is_taken_back_and_the_stream_ends(
    cluster: Cluster, runner: Cluster, goes_on: bool
) -> None:
    """No producer is left behind, whether the generator goes on to its next item or returns."""

    async def swallow(me: Actor) -> None:
        me.state.append("step")
        with suppress(asyncio.CancelledError):
            await gates["hold"].pass_through()
        if not goes_on:
            seen["returns"].append(True)

    acts.update({"step": swallow, "clean up": mark("cleaned up")})
    actor = cluster.client(Actor)("a")
    taking = soon(begun(actor.items()))
    await gates["hold"].came()
    taking.cancel()
    await until_idle(runner)
    # A generator that is at a `yield` is closed in a step of its own.
    assert await actor.look() == (["cleaned up"] if goes_on else [])


@pytest.mark.parametrize("then", ["returns", "goes on"])
async def test_a_stream_that_cancels_its_own_task_has_failed(
    cluster: Cluster, runner: Cluster, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    """Its consumer is not told that the runner is leaving, and the log names the handler."""

    async def step(me: Actor) -> None:
        me.state.append("step")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if then == "goes on":
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    acts["step"] = step
    actor = cluster.client(Actor)("a")
    items = actor.items()
    error = await failure(all_items(items))
    assert isinstance(error, HandlerFailed)
    assert error.type == "asyncio.exceptions.CancelledError"
    assert "actor.items(a) failed" in caplog.text
    await until_idle(runner)
    assert "step" not in await actor.look()


async def test_a_clean_up_after_the_shard_was_lost_commits_nothing(memory: MemoryCluster, client: Cluster) -> None:
    """It runs, so that it can close what it opened, but `save()` raises."""

    async def clean_up(me: Actor) -> None:
        seen["clean-ups"].append("began")
        me.state.append("cleaned up")
        try:
            await me.save()
        except Exception as error:
            seen["saves"].append(type(error))
            raise

    acts["clean up"] = clean_up
    actor = client.client(Actor)("a")
    stream = await begun(actor.items())
    assert memory.runners[0].runner is not None
    memory.store.take([client.shard_of(Actor, "a")], memory.runners[0].runner)
    acts["change"] = mark("changed")
    assert isinstance(await failure(actor.do("change")), ActorhubError)
    with pytest.raises(ActorhubError):
        await rest(stream)
    await until(lambda: seen["saves"] != [])
    assert seen["clean-ups"] == ["began"]
    assert seen["saves"] == [RuntimeError]
    async with asyncio.timeout(10):
        assert "cleaned up" not in await actor.look()


async def test_a_clean_up_in_a_dead_activation_waits_for_no_handler(runner: Cluster) -> None:
    """A handler that resists its cancellation keeps the turn of an activation that is over, but nobody else."""

    async def resist(me: Actor) -> None:
        while not gates["hold"].log:
            with suppress(asyncio.CancelledError):
                await gates["hold"].pass_through()

    async def clean_up(me: Actor) -> None:
        await gates["clean up"].pass_through()

    acts.update({"clean up": clean_up, "hold": resist})
    actor = runner.client(Actor)("a")
    stream = await begun(actor.items())
    holding = soon(failure(actor.do("hold")))
    await gates["hold"].came()
    await leave(stream)
    await until(lambda: bool(cells(runner)[0].returning))
    part = part_of(runner)
    assert isinstance(part, Runner)
    part.host.discard(cells(runner)[0])
    try:
        await gates["clean up"].came()
        assert await actor.look() == ["item 0"]
    finally:
        gates["clean up"].open()
        gates["hold"].log.append("enough")
        gates["hold"].open()
    await holding


async def test_a_readonly_stream_cannot_change_the_state_in_its_clean_up(
    cluster: Cluster, runner: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The change is taken back and logged, and the next readonly handler is not blamed."""
    acts["clean up"] = mark("cleaned up")
    actor = cluster.client(Actor)("a")
    await leave(await begun(actor.looks()))
    await until_idle(runner)
    assert await actor.look() == []
    assert any("is readonly and changed the state" in str(record.exc_info) for record in caplog.records)


async def test_a_clean_up_that_takes_too_long_is_cut_short_and_taken_back(cluster: Cluster, runner: Cluster) -> None:
    """It may take as long as any step, and the entity goes on."""

    async def clean_up(me: Actor) -> None:
        me.state.append("cleaned up")
        await gates["clean up"].pass_through()

    acts["clean up"] = clean_up
    actor = cluster.client(Actor)("a")
    await leave(await begun(actor.limited()))
    await gates["clean up"].came()
    assert await actor.look() == ["item 0"]
    assert gates["clean up"].left == ["cancelled"]


async def test_a_clean_up_that_does_not_end_is_abandoned(
    cluster: Cluster, runner: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A new activation serves the entity, and the log says where the old one is stuck."""

    async def clean_up(me: Actor) -> None:
        me.state.append("cleaned up")
        while not gates["clean up"].log:
            with suppress(asyncio.CancelledError):
                await gates["clean up"].pass_through()

    acts["clean up"] = clean_up
    actor = cluster.client(Actor)("a")
    try:
        await leave(await begun(actor.limited()))
        await gates["clean up"].came()
        async with asyncio.timeout(10):
            assert await actor.look() == ["item 0"]
    finally:
        gates["clean up"].log.append("enough")
        gates["clean up"].open()
    (record,) = [record for record in caplog.records if "abandoned" in record.getMessage()]
    assert "actor.limited(a)" in record.getMessage()
    assert "in pass_through" in record.getMessage()
    await until_idle(runner)
    assert await actor.look() == ["item 0"]


async def test_a_clean_up_that_yields_is_taken_back(
    cluster: Cluster, runner: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """An async generator that is closed must not yield; the log has Python's error."""
    actor = cluster.client(Actor)("a")
    await leave(await begun(actor.stubborn()))
    await until_idle(runner)
    assert await actor.look() == []
    assert any("ignored GeneratorExit" in str(record.exc_info) for record in caplog.records)


async def test_after_an_item_that_cannot_be_sent_the_clean_up_is_committed(cluster: Cluster, runner: Cluster) -> None:
    """The step that made the item is taken back before it."""
    actor = cluster.client(Actor)("a")
    acts["clean up"] = note_state("cleaned up")
    assert isinstance(await failure(anext(actor.unencodable())), MalformedMessage)
    await until_idle(runner)
    assert seen["cleaned up"] == [[]]
    assert await actor.look() == ["cleaned up"]
