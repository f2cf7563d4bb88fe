"""Steps: run once per message and name, stored with what they told, whatever becomes of the run."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from actorhub import (
    CallCycle,
    Cluster,
    DuplicateKey,
    EntityError,
    HandlerFailed,
    MalformedMessage,
    MessageTooLarge,
    NotConnected,
    PersistenceError,
    current,
)
from actorhub.engine import checkpoints
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster, until
from tests.entities.gates import failure, gates, outcomes, soon
from tests.entities.step_entities import (
    Clerk,
    Declined,
    Opener,
    doing,
    host_of,
    hub,
    note,
    owner,
    saved,
    take_by_force,
    tell_note,
)

__all__ = ["hub"]

WHERE = "durable handler"


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


async def notes(cluster: Cluster, entity_id: str, count: int) -> list[str]:
    """Return a clerk's notes once there are so many, and a moment later, when one too many would be there, too."""
    found: list[str] = []
    async with asyncio.timeout(10):
        while len(found := await cluster.client(Clerk)(entity_id).notes()) < count:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)
    return await cluster.client(Clerk)(entity_id).notes()


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
    assert await notes(client, "one", 1) == ["told"]
    assert await notes(client, "two", 1) == ["told"]


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
    assert "'at once' runs already" in found[1]
    assert found[2:] == [2, 2]


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
    assert await anywhere.client(Clerk)("a").work() == ["told", "told", "'n2'", "told", "told"]
    for number in (0, 1, 3, 4):
        assert await notes(anywhere, f"n{number}", 1) == ["told"]
    assert await notes(anywhere, "n2", 0) == []


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
    assert await notes(cluster, "b", 1) == ["try 2"]


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
    assert await notes(runner, "b", 0) == []


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
    assert await notes(runner, "b", 1) == ["one"]


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

    async def attempt(_: object) -> None:
        for checkpoint in ("step", "deferred", "sleep"):
            with pytest.raises(RuntimeError) as caught:
                if checkpoint == "step":
                    await current().step("a", note)
                elif checkpoint == "deferred":
                    current().deferred("a", int)
                else:
                    await current().sleep(timedelta(0))
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


@pytest.mark.parametrize("name", ["", "a\tb", "n" * 1025, 7])
async def test_a_name_must_be_one(runner: Cluster, name: Any) -> None:
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
    """Taken over by force while the function runs: PersistenceError there, and nothing of it is stored or sent."""
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
            errors.extend([await failure(current().step("two", function, "two"))])
            raise

    doing["a"] = work
    told = await client.tell(client.client(Clerk)("a").work())
    await gates["function"].came()
    take_by_force(memory, client)
    gates["function"].open()
    async with asyncio.timeout(20):
        reply = await client.reply(told)
    assert [type(error).__name__ for error in errors] == ["Fenced", "Fenced"]
    assert all(isinstance(error, PersistenceError) for error in errors)
    assert gates["function"].entered == 2, "the second step of a dead activation does not even run"
    assert reply != "epoch 1"
    assert await notes(client, "b", 1) == [reply]


async def test_progress_begins_the_attempts_anew(cluster: Cluster) -> None:
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


@pytest.mark.parametrize("ticks", range(12))
async def test_a_step_that_is_cancelled_is_stored_whole_or_not_at_all(
    memory: MemoryCluster, runner: Cluster, ticks: int
) -> None:
    """Whenever the cancellation comes: its tell is sent if it is stored, and only then it is not run again."""

    async def work(_: Clerk) -> int:
        step = soon_here(current().step("one", tell_note, "b", f"run {len(gates['a'].log)}"))
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

    def soon_here(step: Any) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(step)

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    (was_stored,) = gates["stored"].log
    assert await notes(runner, "b", 1) == ["run 1" if was_stored == "True" else "run 1 again"]


async def test_a_timeout_while_a_result_is_stored_is_a_failed_run_that_made_progress(runner: Cluster) -> None:
    """The step is not run again; the tell that it was stored with leaves once, at once."""

    async def function() -> int:
        await tell_note("b", "told")
        asyncio.get_running_loop().call_soon(cut_short)
        return note()

    def cut_short() -> None:
        host = host_of(runner)
        (message,) = [m for shard in host.shards.values() for m in shard.messages.values() if m.spec.name == "work"]
        host.turns.abandon(message, MalformedMessage("cut short", possibly_executed=True))

    async def work(_: Clerk) -> int:
        return await current().step("one", function)

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == 1
    assert len(gates["a"].log) == 2
    assert await notes(runner, "b", 1) == ["told"]


async def test_a_handler_that_leaves_a_step_behind_fails(runner: Cluster) -> None:
    """Its run does not count, and says which steps it forgot to await; they store nothing for the next one."""
    stray: list[asyncio.Task[Any]] = []

    async def slowly(text: str) -> str:
        await tell_note("b", text)
        await gates["slow"].pass_through()
        return text

    async def work(_: Clerk) -> str:
        if not stray:
            stray.append(asyncio.get_running_loop().create_task(current().step("one", slowly, "stray")))
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
    assert await notes(runner, "b", 1) == ["awaited"]
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

        left.append(asyncio.get_running_loop().create_task(later()))
        return 1

    async def work(_: Clerk) -> str:
        await current().step("one", leaves_a_task)
        gates["later"].open()
        (error,) = await outcomes(left[0])
        return str(error)

    doing["a"] = work
    assert "run is over" in await runner.client(Clerk)("a").work()
    assert await notes(runner, "b", 0) == []


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


async def test_an_error_of_a_step_is_the_handler_s(cluster: Cluster) -> None:
    """An EntityError that a step raises is the reply, if the handler does not catch it."""

    def decline() -> None:
        raise Declined(why="in a step")

    async def work(_: Clerk) -> None:
        await current().step("one", decline)

    doing["a"] = work
    error = await failure(cluster.client(Clerk)("a").work())
    assert isinstance(error, EntityError)
    assert error == Declined(why="in a step") or str(error) == str(Declined(why="in a step"))
    assert gates["a"].log == ["run 1"]
