"""The clean-up of a stream whose consumer leaves is a step of its own: with the entity's turn, and with a commit."""

import asyncio
from contextlib import suppress

import pytest

from actorhub import Cluster, RunnerUnavailable, current
from actorhub.testing import MemoryCluster, until
from tests.calls.acting import (
    Actor,
    Crowd,
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
from tests.support.gates import failure, gates, soon

__all__ = ["hub", "new_acts"]


async def test_a_clean_up_waits_for_a_handler_in_the_middle_of_a_change(cluster: Cluster, runner: Cluster) -> None:
    """It sees all of what another handler changed, or nothing."""
    acts.update({"clean up": note_state("cleaned up"), "hold": hold})
    actor = cluster.client(Actor)("a")
    stream = await begun(actor.items())
    holding = soon(actor.do("hold"))
    await gates["hold"].came()
    await leave(stream)
    following = soon(actor.look())
    await asyncio.sleep(0.02)
    assert seen["cleaned up"] == []
    gates["hold"].open()
    await holding
    marks = ["item 0", "first half", "second half"]
    assert await following == [*marks, "cleaned up"]
    assert seen["cleaned up"] == [marks]


async def test_what_a_clean_up_changes_and_tells_is_committed(memory: MemoryCluster, cluster: Cluster) -> None:
    """It is in the store, and no later handler is blamed for it."""

    async def clean_up(me: Actor) -> None:
        me.state.append("cleaned up")
        await tell("bye")

    acts["clean up"] = clean_up
    actor = cluster.client(Actor)("a")
    await leave(await begun(actor.items()))
    await heard(cluster, ["bye"])
    stored = memory.stored("actor", "a")
    assert stored is not None
    assert b"cleaned up" in stored.data
    assert (await actor.look())[-1] == "cleaned up"


async def test_a_save_in_a_clean_up_commits_nothing_of_another_handler(
    memory: MemoryCluster, cluster: Cluster, runner: Cluster
) -> None:
    """It comes after the handler that is in the middle of a change, and stays when the clean-up raises later."""

    async def clean_up(me: Actor) -> None:
        me.state.append("saved")
        await me.save()
        me.state.append("not saved")
        raise ValueError("no luck")

    async def fail(me: Actor) -> None:
        await hold(me)
        raise ValueError("no luck")

    acts.update({"clean up": clean_up, "hold": fail})
    actor = cluster.client(Actor)("a")
    stream = await begun(actor.items())
    holding = soon(failure(actor.do("hold")))
    await gates["hold"].came()
    await leave(stream)
    await asyncio.sleep(0.02)
    stored = memory.stored("actor", "a")
    assert stored is not None
    assert b"first half" not in stored.data
    gates["hold"].open()
    await holding
    await until_idle(runner)
    assert await actor.look() == ["item 0", "saved"]


async def test_a_clean_up_in_a_moving_entity_is_committed_before_it_moves(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A runner that leaves waits for the handler that runs, then for the clean-up; its consumer hears of it at once."""
    acts.update({"clean up": note_state("cleaned up"), "hold": hold})
    actor = client.client(Actor)("a")
    stream = await begun(actor.items())
    holding = soon(actor.do("hold"))
    await gates["hold"].came()
    stopping = soon(memory.stop(runner))
    with pytest.raises(RunnerUnavailable):
        await rest(stream)
    assert seen["cleaned up"] == []
    await memory.start_runner()
    gates["hold"].open()
    await holding
    await stopping
    marks = ["item 0", "first half", "second half"]
    assert seen["cleaned up"] == [marks]
    assert await actor.look() == [*marks, "cleaned up"]


async def test_the_clean_up_of_a_readonly_stream_runs_beside_readonly_handlers(
    cluster: Cluster, runner: Cluster
) -> None:
    """It needs a shared turn only, and gives it back."""

    async def wait(me: Actor) -> None:
        await gates["hold"].pass_through()

    async def clean_up(me: Actor) -> None:
        seen["clean-ups"].append("ended")

    acts.update({"wait": wait, "clean up": clean_up})
    actor = cluster.client(Actor)("a")
    stream = await begun(actor.looks())
    looking = soon(actor.look("wait"))
    await gates["hold"].came()
    await leave(stream)
    await until(lambda: seen["clean-ups"] == ["ended"])
    gates["hold"].open()
    assert await looking == []
    await until_idle(runner)


async def test_where_handlers_run_beside_each_other_a_clean_up_takes_the_first_free_place(
    cluster: Cluster, runner: Cluster
) -> None:
    """One long handler does not keep it, or anybody behind it, waiting."""

    async def wait(me: object) -> None:
        await gates[current().headers["gate"]].pass_through()

    acts["hold"] = wait
    crowd = cluster.client(Crowd)
    stream = await begun(crowd("c").items())
    first, second = (soon(crowd.options(headers={"gate": gate})("c").hold()) for gate in ("first", "second"))
    await gates["first"].came()
    await gates["second"].came()
    await leave(stream)
    await until(lambda: bool(cells(runner)[0].returning))
    gates["third"].open()
    third = soon(crowd.options(headers={"gate": "third"})("c").hold())
    gates["second"].open()
    await second
    await third
    assert seen["crowd"] == ["closed"]
    gates["first"].open()
    await first


async def test_a_reentrant_stream_is_closed_after_the_handler_that_consumed_it(
    cluster: Cluster, runner: Cluster
) -> None:
    """Its clean-up does not see the half-done state of that handler, and is not undone with it."""

    async def consume(me: Actor) -> None:
        me.state.append("first half")
        async for _ in current().client(Actor)(current().entity_id).inner():
            break
        await gates["hold"].pass_through()
        raise ValueError("no luck")

    acts.update({"consume": consume, "clean up": note_state("cleaned up")})
    actor = cluster.client(Actor)("a")
    call = soon(failure(actor.do("consume")))
    await gates["hold"].came()
    await asyncio.sleep(0.02)
    assert seen["cleaned up"] == []
    gates["hold"].open()
    await call
    await until_idle(runner)
    assert await actor.look() == ["cleaned up"]


async def test_the_handler_around_a_step_ends_after_it(memory: MemoryCluster, runner: Cluster) -> None:
    """Although it does not wait for the step itself: what that changes is part of its commit."""

    async def consume(me: Actor) -> None:
        seen["taking"].append(soon(anext(current().client(Actor)(current().entity_id).inner())))
        await gates["hold"].came()

    acts.update({"consume": consume, "inner step": hold})
    actor = runner.client(Actor)("a")
    doing = soon(actor.do("consume"))
    await gates["hold"].came()
    assert not doing.done()
    gates["hold"].open()
    await doing
    stored = memory.stored("actor", "a")
    assert stored is not None
    assert b"second half" in stored.data


async def test_a_consumer_whose_link_breaks_leaves_a_stream_that_is_cleaned_up(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """What the clean-up did is committed."""
    acts["clean up"] = mark("cleaned up")
    stream = await begun(client.client(Actor)("a").items())
    memory.cut(client, runner)
    await until_idle(runner)
    assert (await runner.client(Actor)("a").look())[-1] == "cleaned up"
    with pytest.raises(RunnerUnavailable):
        await rest(stream)


async def test_a_stream_that_never_waits_lets_the_clean_up_of_another_have_its_turn(
    cluster: Cluster, runner: Cluster
) -> None:
    """It gives its turn back when a clean-up wants it."""

    async def clean_up(me: Actor) -> None:
        seen["clean-ups"].append(len(seen["steps"]))

    async def step(me: Actor) -> None:
        seen["steps"].append("step")
        me.state.clear()
        await asyncio.sleep(0)

    actor = cluster.client(Actor)("a")
    first = await begun(actor.items())
    acts.update({"step": step, "clean up": clean_up})
    second = actor.items(200)
    assert await anext(second) == 0
    await leave(first)
    assert await rest(second) == 199
    assert isinstance(seen["clean-ups"][0], int)
    assert seen["clean-ups"][0] < 199


async def test_a_task_group_in_a_clean_up_works_as_anywhere_else(cluster: Cluster, runner: Cluster) -> None:
    """The cancellation that ended the stream is over when its clean-up begins."""

    async def fail() -> None:
        raise ValueError("no luck")

    async def clean_up(me: Actor) -> None:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                await asyncio.Event().wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        me.state.append("cleaned up")

    acts["clean up"] = clean_up
    actor = cluster.client(Actor)("a")
    await leave(await begun(actor.items()))
    await until_idle(runner)
    assert await actor.look() == ["item 0", "cleaned up"]


async def test_a_task_of_a_generator_cannot_save_between_two_steps(cluster: Cluster) -> None:
    """Others have the turn then, perhaps in the middle of a change."""

    async def step(me: Actor) -> None:
        async def save() -> None:
            await gates["save"].pass_through()
            await me.save()

        if not seen["saving"]:
            seen["saving"].append(soon(save()))

    acts.update({"step": step, "hold": hold})
    actor = cluster.client(Actor)("a")
    stream = await begun(actor.items())
    holding = soon(actor.do("hold"))
    await gates["hold"].came()
    gates["save"].open()
    (saving,) = seen["saving"]
    assert isinstance(saving, asyncio.Task)
    assert isinstance(await failure(saving), RuntimeError)
    gates["hold"].open()
    await holding
    await leave(stream)


async def test_a_clean_up_that_ends_while_its_entity_is_wanted_elsewhere_holds_nobody_up(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A killed runner's streams are forgotten, also those that wait for a turn to clean up."""
    acts.update({"clean up": mark("cleaned up"), "hold": hold})
    actor = client.client(Actor)("a")
    stream = await begun(actor.items())
    holding = soon(failure(actor.do("hold")))
    await gates["hold"].came()
    await leave(stream)
    await until(lambda: bool(cells(runner)[0].returning))
    await memory.kill(runner)
    await holding
    await memory.start_runner()
    assert await actor.look() == ["item 0"]


async def test_what_a_step_told_is_sent_although_its_consumer_leaves_during_the_commit(
    memory: MemoryCluster, runner: Cluster
) -> None:
    """The state is committed, so what belongs to it is not lost."""
    stream = runner.client(Actor)("a").items()

    async def step(me: Actor) -> None:
        await tell("hello")
        # It leaves after this step, and before the store answers.
        seen["leaving"].append(soon(leave(stream)))

    acts["step"] = step
    taking = soon(anext(stream))
    await until(lambda: bool(seen["leaving"]))
    await until_idle(runner)
    assert await runner.client(Actor)("a").look() == ["item 0"]
    await heard(runner, ["hello"])
    assert not taking.done()
