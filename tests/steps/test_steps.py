"""Steps: run once per message and name, stored with what they told, whatever becomes of the run."""

import asyncio

import pytest

from actorhub import (
    Cluster,
    DuplicateKey,
    HandlerFailed,
    MalformedMessage,
    PersistenceError,
    current,
)
from actorhub.core.codec import encode
from actorhub.storage.checkpoint_ports import Checkpoint, CheckpointWrite, Scope
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster
from tests.steps.entities import (
    Clerk,
    Declined,
    doing,
    hub,
    note,
    noted,
    owner,
    saved,
    take_by_force,
    tell_note,
)
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


async def test_a_retry_finds_the_results_of_steps(anywhere: Cluster) -> None:
    """Each function runs once, although the handler crashes after each of them."""

    async def work(clerk: Clerk) -> list[int]:
        first = await current().step("first", note, "first")
        if gates["a"].log == ["run 1"]:
            raise RuntimeError("after the first step")
        second = await current().step("second", note, "second")
        if len(gates["a"].log) == 2:
            raise RuntimeError("after the second step")
        clerk.state.append(f"{first} {second}")
        return [first, second]

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == [1, 1]
    assert await anywhere.client(Clerk)("a").notes() == ["1 1"]
    assert len(gates["a"].log) == 3
    assert await anywhere.client(Clerk)("a").work() == [2, 2], "another message has its own steps"


async def test_what_a_step_tells_by_the_handlers_context_goes_with_the_step(anywhere: Cluster) -> None:
    """It makes no difference that `current()` was called before the step: its tell is committed or lost with it."""

    async def work(_: Clerk) -> None:
        here = current()

        async def tell(text: str) -> None:
            await here.tell(here.client(Clerk)("b").note(text))
            if text == "never":
                raise ValueError("on purpose")

        await here.step("first", tell, "told")
        await failure(here.step("second", tell, "never"))
        note("runs")
        if gates["runs"].entered == 1:
            raise RuntimeError("after the step")

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    assert gates["runs"].entered == 2
    assert await noted(anywhere, 1) == ["told"]


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_the_next_owner_finds_the_results_of_steps(memory: MemoryCluster, end: str) -> None:
    """A run that is cut short between two steps goes on after the first one, elsewhere."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()

    async def work(_: Clerk) -> list[int]:
        first = await current().step("first", note, "first")
        await gates["between"].pass_through()
        return [first, await current().step("second", note, "second")]

    doing["a"] = work
    asked = soon(client.client(Clerk)("a").work())
    await gates["between"].came()
    ending = soon(getattr(memory, end)(owner(memory, client)))
    if end == "kill":
        await gates["between"].came(2)
    gates["between"].open()
    async with asyncio.timeout(10):
        assert await asked == [1, 1]
    await ending


@pytest.mark.parametrize("boundary", ["in the first", "after it", "in the second", "at the end"])
async def test_killed_at_any_boundary_each_step_s_tell_leaves_once(memory: MemoryCluster, boundary: str) -> None:
    """A function whose runner died runs again; what it told is told with its result alone."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()

    async def stop_at(place: str) -> None:
        if place == boundary:
            await gates["boundary"].pass_through()

    async def step(place: str, to: str) -> str:
        text = await tell_note(to, "told")
        await stop_at(place)
        return text

    async def work(_: Clerk) -> str:
        await current().step("one", step, "in the first", "one")
        await stop_at("after it")
        await current().step("two", step, "in the second", "two")
        await stop_at("at the end")
        return "done"

    doing["a"] = work
    asked = soon(client.client(Clerk)("a").work())
    await gates["boundary"].came()
    await memory.kill(owner(memory, client))
    await gates["boundary"].came(2)
    gates["boundary"].open()
    async with asyncio.timeout(10):
        assert await asked == "done"
    assert await noted(client, 1, "one") == ["told"]
    assert await noted(client, 1, "two") == ["told"]


async def test_steps_of_other_names_run_at_once(anywhere: Cluster) -> None:
    """Each is stored, and tells, by itself: one that fails takes nothing of its neighbours with it."""

    async def failing(to: str) -> str:
        await tell_note(to, "never")
        raise LookupError(to)

    async def work(_: Clerk) -> list[str]:
        steps = [
            current().step(f"{n}", failing if n == 2 else tell_note, f"n{n}", *([] if n == 2 else ["told"]))
            for n in range(5)
        ]
        found = await outcomes(*steps)
        return [str(one) for one in found]

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == ["told", "told", "n2", "told", "told"]
    for number in (0, 1, 3, 4):
        assert await noted(anywhere, 1, f"n{number}") == ["told"]
    assert await noted(anywhere, 0, "n2") == []


async def test_a_step_that_raises_is_run_again(memory: MemoryCluster, cluster: Cluster) -> None:
    """In the same run as in a later one; what it told before it raised is not sent."""

    async def fails_twice() -> int:
        await tell_note("b", f"try {len(gates['b'].log)}")
        gates["b"].log.append("try")
        if len(gates["b"].log) < 3:
            raise LookupError("not yet")
        return len(gates["b"].log)

    async def work(_: Clerk) -> int:
        try:
            return await current().step("fails", fails_twice)
        except LookupError:
            assert saved(memory, current().message_id).checkpoints == {}
            return await current().step("fails", fails_twice)

    doing["a"] = work
    assert await cluster.client(Clerk)("a").work() == 3
    assert gates["a"].log == ["run 1", "run 2"]
    assert await noted(cluster, 1) == ["try 2"]


async def test_a_step_s_key_counts_for_the_step(runner: Cluster) -> None:
    """A told key that had another payload fails the step, not what the handler does besides."""

    async def tell_with_key(text: str) -> None:
        await current().tell(current().client(Clerk)("b").note(text), key="k")

    async def work(_: Clerk) -> str:
        await current().step("one", tell_with_key, "one")
        await current().step("again", tell_with_key, "one")
        with pytest.raises(DuplicateKey):
            await current().step("two", tell_with_key, "two")
        return "done"

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == "done"
    assert await noted(runner, 1) == ["one"]


@pytest.mark.parametrize("end", ["value", "refused", "dead", "cancelled"])
async def test_steps_are_forgotten_when_their_message_is_settled(
    memory: MemoryCluster, cluster: Cluster, end: str
) -> None:
    """With its value at once, after an error or a cancellation by the clean-up; those of a dead letter are kept."""

    async def work(_: Clerk) -> str:
        await current().step("one", note)
        current().deferred("unused", int)
        if end == "value":
            return "done"
        if end == "refused":
            raise Declined(why="no")
        raise RuntimeError("crashed")

    doing["a"] = work
    told = await cluster.tell(cluster.client(Clerk)("a").work())
    await outcomes(cluster.reply(told))
    if end == "cancelled":
        assert await cluster.cancel(told)
    row = memory.store.messages.find(told)
    assert row is not None
    kept = list(saved(memory, told).checkpoints)
    assert kept == ([] if end == "value" else ["one"])
    assert memory.store.checkpoints.remove_orphans(-1.0, 100, memory.store.messages.is_kept) == (
        0 if end in ("value", "dead") else 1
    )
    assert list(saved(memory, told).checkpoints) == (["one"] if end == "dead" else [])


async def test_a_dead_letter_goes_on_at_the_step_that_failed(memory: MemoryCluster, cluster: Cluster) -> None:
    """Once it is reset the steps before are not run again."""

    async def broken() -> int:
        if not gates["repaired"].entered:
            raise LookupError("broken")
        return note("second")

    async def work(_: Clerk) -> list[int]:
        return [await current().step("first", note, "first"), await current().step("second", broken)]

    doing["a"] = work
    told = await cluster.tell(cluster.client(Clerk)("a").work())
    assert isinstance(await failure(cluster.reply(told)), HandlerFailed)
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.state == MessageState.DEAD
    note("repaired")
    assert await cluster.reset(told)
    assert await cluster.reply(told) == [1, 1]
    assert saved(memory, told).checkpoints == {}


async def test_a_former_owner_stores_no_step(memory: MemoryCluster) -> None:
    """Taken over by force while the function runs: PersistenceError there, and none of it is stored or sent."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    errors: list[BaseException] = []

    async def function(text: str) -> str:
        await tell_note("b", text)
        await gates["function"].pass_through()
        return text

    async def work(_: Clerk) -> str:
        try:
            return await current().step("one", function, f"epoch {current().epoch}")
        except BaseException as error:
            errors.append(error)
            raise

    doing["a"] = work
    told = await client.tell(client.client(Clerk)("a").work())
    await gates["function"].came()
    take_by_force(memory, client)
    gates["function"].open()
    async with asyncio.timeout(20):
        reply = await client.reply(told)
    assert len(errors) == 1
    assert isinstance(errors[0], PersistenceError)
    assert reply != "epoch 1"
    assert await noted(client, 1) == [reply]


async def test_a_result_that_is_stored_already_counts(memory: MemoryCluster, runner: Cluster) -> None:
    """As after a commit that was written although it seemed lost: the run fails, and the next one finds it."""

    async def function() -> str:
        step = CheckpointWrite(
            scope=Scope("clerk", "a", current().message_id), stored=(Checkpoint("one", encode("stored", "result")),)
        )
        memory.store.checkpoints.write(step)
        return await tell_note("b", "never")

    async def work(_: Clerk) -> str:
        return await current().step("one", function)

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == "stored"
    assert gates["b"].entered == 1
    assert await noted(runner, 0) == []


async def test_progress_begins_the_attempts_again(cluster: Cluster) -> None:
    """A message of three attempts may crash seven times, if it stores a step in between."""

    async def work(_: Clerk) -> int:
        done = len(gates["a"].log)
        for number in range(done):
            await current().step(f"{number}", note)
        if done < 8:
            raise RuntimeError("crashed")
        return current().attempt

    doing["a"] = work
    assert await cluster.client(Clerk)("a").work() == 1
    assert gates["a"].entered == 8


async def test_a_message_without_progress_becomes_a_dead_letter(memory: MemoryCluster, cluster: Cluster) -> None:
    """A step that is found again is none: three runs from the last new one on."""

    async def work(_: Clerk) -> None:
        await current().step("one", note)
        if len(gates["a"].log) == 2:
            await current().step("two", note)
        raise RuntimeError("crashed")

    doing["a"] = work
    told = await cluster.tell(cluster.client(Clerk)("a").work())
    assert isinstance(await failure(cluster.reply(told)), HandlerFailed)
    assert gates["a"].log == ["run 1", "run 2", "run 2", "run 3"]
    row = memory.store.messages.find(told)
    assert row is not None
    assert [run.attempt for run in row.history] == [1, 1, 2, 3]


async def test_a_message_that_kills_its_runners_between_steps_is_buried(memory: MemoryCluster) -> None:
    """The run that stored the step does not count; after three more the message is a dead letter."""
    await memory.start_runner()
    client = await memory.client()

    async def work(_: Clerk) -> None:
        await current().step("one", note)
        await gates["deadly"].pass_through()

    doing["a"] = work
    told = await client.tell(client.client(Clerk)("a").work())
    for number in range(1, 5):
        await gates["deadly"].came(number)
        await memory.kill(memory.runners[0])
        await memory.start_runner()
    async with asyncio.timeout(10):
        error = await failure(client.reply(told))
    assert isinstance(error, HandlerFailed)
    assert error.type == "RunnerLost"
    assert gates["deadly"].entered == 4
    assert gates["a"].entered == 1


@pytest.mark.parametrize("ticks", range(1, 13))
async def test_a_step_that_is_cancelled_is_stored_whole_or_not_at_all(
    memory: MemoryCluster, runner: Cluster, ticks: int
) -> None:
    """Whenever the cancellation comes: its tell is sent if it is stored, and only then it is not run again."""

    async def work(_: Clerk) -> int:
        step = soon(current().step("one", tell_note, "b", f"run {len(gates['a'].log)}"))
        for _tick in range(ticks):
            await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])
        was_stored = "one" in saved(memory, current().message_id).checkpoints
        gates["stored"].log.append(str(was_stored))
        before = gates["b"].entered
        await current().step("one", tell_note, "b", f"run {len(gates['a'].log)} again")
        assert (gates["b"].entered == before) == was_stored
        return gates["b"].entered

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    (was_stored,) = gates["stored"].log
    assert await noted(runner, 1) == ["run 1" if was_stored == "True" else "run 1 again"]


async def test_a_timeout_while_a_result_is_stored_is_a_failed_run_that_made_progress(runner: Cluster) -> None:
    """The step is not run again; the tell that it was stored with leaves once, at once."""

    async def function() -> int:
        await tell_note("b", "told")
        asyncio.get_running_loop().call_soon(cut_short)
        return note()

    def cut_short() -> None:
        host = host_of(runner)
        (message,) = [m for m in host.delivery.memory if m.spec.name == "work"]
        host.scheduler.abandon(message, MalformedMessage("cut short", possibly_executed=True))

    async def work(_: Clerk) -> int:
        return await current().step("one", function)

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == 1
    assert len(gates["a"].log) == 2
    assert await noted(runner, 1) == ["told"]


async def test_an_error_of_a_step_is_the_handler_s(cluster: Cluster) -> None:
    """An EntityError that a step raises is the reply, if the handler does not catch it."""

    def decline() -> None:
        raise Declined(why="in a step")

    async def work(_: Clerk) -> None:
        await current().step("one", decline)

    doing["a"] = work
    error = await failure(cluster.client(Clerk)("a").work())
    assert isinstance(error, Declined)
    assert error.why == "in a step"
    assert gates["a"].log == ["run 1"]
