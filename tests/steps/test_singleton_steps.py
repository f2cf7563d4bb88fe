"""Steps and waits of a singleton's `run`: kept until `save()`, which makes them history in one commit."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from actorhub import Cluster, Hub, PersistenceError, Singleton, cron, current
from actorhub.core.errors import SingletonError
from actorhub.storage.message_ports import RunCommit
from actorhub.testing import MemoryCluster, until
from tests.steps.entities import (
    Boss,
    Clerk,
    body_saved,
    doing,
    hub,
    note,
    owner,
    take_by_force,
    tell_note,
)
from tests.support.gates import failure, gates, soon
from tests.support.parts import host_of, runner_of

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the singleton do."""
    doing.clear()


def trace(place: str) -> None:
    """Note that `run` got there."""
    gates["trace"].log.append(place)


async def two(memory: MemoryCluster) -> Cluster:
    """Start two runners and a client."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    return await memory.client()


async def leaves(memory: MemoryCluster, client: Cluster, how: str) -> None:
    """End the leader, and wait until a next one leads."""
    former = owner(memory, client, Boss, "boss")
    await getattr(memory, how)(former)
    await memory.start_runner()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("boundary", ["in the step", "after the step", "after save", "in the next"])
async def test_the_next_leader_goes_on_at_each_boundary(memory: MemoryCluster, boundary: str, how: str) -> None:
    """Its state and steps are those of the last commit: each step's tell leaves once, each round is saved once."""

    async def stop_at(place: str) -> None:
        if place == boundary and len(gates["trace"].log) == 0:
            trace(place)
            await asyncio.sleep(3600)

    async def fetch(number: int) -> int:
        await tell_note("b", f"fetched {number}")
        await stop_at("in the next" if number else "in the step")
        return number

    async def run(boss: Boss) -> None:
        while len(boss.state) < 3:
            number = await current().step("fetch", fetch, len(boss.state))
            assert number == len(boss.state)
            await stop_at("after the step")
            await boss.save([*boss.state, f"round {number}"])
            if len(boss.state) == 1:
                await stop_at("after save")

    doing["boss"] = run
    client = await two(memory)
    await until(lambda: gates["trace"].log == [boundary])
    await leaves(memory, client, how)
    rounds = [f"round {number}" for number in range(3)]
    async with asyncio.timeout(10):
        while await client.singleton(Boss).states() != rounds:
            await asyncio.sleep(0.01)
    await until(lambda: body_saved(memory).generation >= 4, "three rounds, and an end at each later leader")
    assert body_saved(memory).checkpoints == {}
    assert await client.client(Clerk)("b").notes() == [f"fetched {number}" for number in range(3)]


async def test_a_run_that_raises_finds_its_steps(memory: MemoryCluster, runner: Cluster) -> None:
    """Those since the last save; sleeps of it go on, too."""

    async def run(boss: Boss) -> None:
        await current().step("one", note)
        await current().sleep(timedelta(seconds=0.2))
        trace(str(asyncio.get_running_loop().time()))
        if len(gates["trace"].log) == 1:
            raise RuntimeError("crashed")
        await boss.save(["saved"])
        await current().step("one", note)
        trace("end")

    doing["boss"] = run
    await until(lambda: gates["trace"].log[2:] == ["end"])
    first, second = map(float, gates["trace"].log[:2])
    assert second - first < 0.2 + 0.15, "the backoff, and no second sleep"
    assert gates["a"].entered == 2


async def test_what_run_tells_in_a_step_is_sent_with_it(memory: MemoryCluster, runner: Cluster) -> None:
    """And not if the step raises; outside of steps it is sent at once."""

    async def failing() -> None:
        await tell_note("b", "never")
        raise LookupError("no")

    async def run(_: Boss) -> None:
        await failure(current().step("failing", failing))
        await current().step("one", tell_note, "b", "in a step")
        await current().tell(current().client(Clerk)("b").note("outside"))
        raise RuntimeError("crashed")

    doing["boss"] = run
    async with asyncio.timeout(5):
        while len(await runner.client(Clerk)("b").notes()) < 3:
            await asyncio.sleep(0.01)
    assert await runner.client(Clerk)("b").notes() == ["in a step", "outside", "outside"]


async def test_save_refuses_while_steps_run(memory: MemoryCluster, runner: Cluster) -> None:
    """Whether they belong before or after it nobody could say."""

    async def slowly() -> int:
        await gates["slow"].pass_through()
        return 1

    async def run(boss: Boss) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(current().step("slow", slowly))
            await gates["slow"].came()
            trace(str(await failure(boss.save(["never"]))))
            gates["slow"].open()
        await boss.save(["saved"])
        trace("end")

    doing["boss"] = run
    await until(lambda: len(gates["trace"].log) == 2)
    assert "['slow'] still run: await them first" in gates["trace"].log[0]
    await until(lambda: body_saved(memory).generation == 2, "one save, and the end")


async def test_the_steps_of_a_run_that_returns_are_history(memory: MemoryCluster, runner: Cluster) -> None:
    """With its end the next generation begins; the next leader's run starts again."""

    async def run(_: Boss) -> None:
        await current().step("one", note)
        trace("end")

    doing["boss"] = run
    await until(lambda: body_saved(memory).generation == 1)
    assert body_saved(memory).checkpoints == {}
    await leaves(memory, await memory.client(), "kill")
    await until(lambda: body_saved(memory).generation == 2)
    assert gates["a"].entered == 2


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_deferred_value_of_run_survives_the_leader(memory: MemoryCluster, how: str) -> None:
    """Same token at every leader, until save(): then the name stands for another value."""

    async def run(boss: Boss) -> None:
        while len(boss.state) < 2:
            value = current().deferred("value", str)
            gates["boss"].left.append(value.token)
            await boss.save([*boss.state, await value.wait()])
        trace("end")

    doing["boss"] = run
    client = await two(memory)
    await until(lambda: len(gates["boss"].left) == 1)
    await leaves(memory, client, how)
    tokens = gates["boss"].left
    await until(lambda: len(tokens) > 1)
    first = tokens[0]
    assert set(tokens) == {first}, "however often the lead moved, to the newcomer for example"
    assert await client.complete(first, "one")
    await until(lambda: tokens[-1] != first)
    second = tokens[-1]
    assert await client.complete(first, "history"), "it does nothing"
    await asyncio.sleep(0.05)
    assert gates["trace"].log == []
    assert await client.complete(second, "two")
    await until(lambda: gates["trace"].log == ["end"])
    assert await client.singleton(Boss).states() == ["one", "two"]


async def test_a_deferred_value_that_is_history_says_so(memory: MemoryCluster, runner: Cluster) -> None:
    """To wait for one that was made before save() would be forever."""

    async def run(boss: Boss) -> None:
        value = current().deferred("value", str)
        await boss.save(["saved"])
        trace(str(await failure(value.wait())))

    doing["boss"] = run
    await until(lambda: len(gates["trace"].log) == 1)
    assert "'value' is history" in gates["trace"].log[0]


async def test_a_former_leader_neither_stores_nor_saves(memory: MemoryCluster) -> None:
    """Taken over by force while a step's function runs: its step, its tell and its save are refused."""
    client = await two(memory)

    async def fetch(text: str) -> str:
        await tell_note("b", text)
        await gates["fetch"].pass_through()
        return text

    async def run(boss: Boss) -> None:
        epoch = f"epoch {current().epoch}"
        try:
            await boss.save([await current().step("fetch", fetch, epoch)])
        except PersistenceError as error:
            trace(type(error).__name__)
            trace(type(await failure(boss.save([epoch]))).__name__)
            raise

    doing["boss"] = run
    await leaves(memory, client, "kill")
    await gates["fetch"].came()
    take_by_force(memory, client, Boss, "boss")
    former = gates["fetch"].entered
    gates["fetch"].open()
    async with asyncio.timeout(20):
        while not await client.singleton(Boss).states():
            await asyncio.sleep(0.01)
    (state,) = await client.singleton(Boss).states()
    assert former == 1
    assert gates["trace"].log[:1] == ["Fenced"]
    assert all(text in ("Fenced", "SingletonError") for text in gates["trace"].log)
    assert await client.client(Clerk)("b").notes() == [state]


async def test_a_save_without_a_change_that_is_repeated_keeps_tokens_right(
    memory: MemoryCluster, runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may have begun two generations for one save: the next leader must make the same token."""
    store = runner_of(runner).storage.messages
    commit = store.commit_with_checkpoints
    lost: list[str] = []

    async def commit_and_lose_the_answer(run: RunCommit, incarnation: str) -> bool:
        counted = await commit(run, incarnation)
        if run.checkpoints is not None and run.checkpoints.closes and run.entity_type == "boss" and not lost:
            lost.append("answer")
            raise PersistenceError("the answer was lost", possibly_executed=True)
        return counted

    monkeypatch.setattr(store, "commit_with_checkpoints", commit_and_lose_the_answer)

    async def run(boss: Boss) -> None:
        if not gates["boss"].left:
            await boss.save()
        value = current().deferred("value", str)
        gates["boss"].left.append(value.token)
        trace(await value.wait())

    doing["boss"] = run
    await until(lambda: len(gates["boss"].left) == 1)
    assert lost
    client = await memory.client()
    await leaves(memory, client, "kill")
    await until(lambda: len(gates["boss"].left) == 2)
    assert gates["boss"].left[0] == gates["boss"].left[1]
    assert await client.complete(gates["boss"].left[0], "value")
    await until(lambda: gates["trace"].log == ["value"])


async def test_a_save_that_is_cancelled_while_it_is_stored_counts(memory: MemoryCluster, runner: Cluster) -> None:
    """At whatever moment: state, generation and the steps known here are those of the store, and it goes on."""

    async def run(boss: Boss) -> None:
        for ticks in range(1, 13):
            await current().step("one", note)
            saving = soon(boss.save([*boss.state, f"{ticks}"]))
            for _tick in range(ticks):
                await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait([saving])
            await current().step("one", note)
            await boss.save([*boss.state, f"{ticks} again"])
        trace("end")

    doing["boss"] = run
    await until(lambda: gates["trace"].log == ["end"])
    states = await runner.singleton(Boss).states()
    assert [text for text in states if "again" in text] == [f"{ticks} again" for ticks in range(1, 13)]
    assert host_of(runner).completion.statistics().refused_commits == 0


@pytest.mark.parametrize("grace", [10])
async def test_a_hand_over_does_not_wait_for_run(memory: MemoryCluster, grace: int) -> None:
    """In a step, in a sleep or in anything else that it awaits: it is cut short at once, and goes on elsewhere."""
    client = await two(memory)

    async def forever() -> int:
        trace(f"epoch {current().epoch}")
        await asyncio.sleep(3600)
        return 1

    async def run(_: Boss) -> None:
        await current().step("forever", forever)

    doing["boss"] = run
    await leaves(memory, client, "kill")
    await until(lambda: len(gates["trace"].log) == 1)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        await memory.stop(owner(memory, client, Boss, "boss"))
    assert asyncio.get_running_loop().time() - began < 2.0
    await until(lambda: len(gates["trace"].log) == 2)


class Ticker(Singleton[int], name="ticker"):
    """Works in steps on a schedule."""

    @cron("* * * * * *")
    async def tick(self, at: datetime) -> None:
        await current().step("told", tell_note, "b", at.isoformat())
        await current().sleep(timedelta(milliseconds=10))
        self.state += 1
        if gates["trace"].entered == 0:
            gates["trace"].entered += 1
            raise RuntimeError("once")

    async def ticks(self) -> int:
        return self.state


@pytest.fixture
async def ticking() -> AsyncIterator[Cluster]:
    """A runner with a schedule for every second."""
    ticking = Hub()
    ticking.register(Clerk)
    ticking.register(Ticker)
    async with MemoryCluster(ticking) as memory:
        yield await memory.start_runner()


async def test_a_schedule_s_method_has_steps(ticking: Cluster) -> None:
    """It is a durable handler: what its crashed run did in steps is not done again."""
    async with asyncio.timeout(8):
        while await ticking.singleton(Ticker).ticks() < 2:
            await asyncio.sleep(0.05)
    notes = await ticking.client(Clerk)("b").notes()
    assert len(notes) == len(set(notes))


async def test_save_s_error_names_its_reason(memory: MemoryCluster, runner: Cluster) -> None:
    """A store that stays away: SingletonError, and the steps before are still there."""

    async def run(boss: Boss) -> None:
        await current().step("one", note)
        if not gates["trace"].log:
            memory.store.available = False
            error = await failure(boss.save(["saved"]))
            memory.store.available = True
            trace(error.reason if isinstance(error, SingletonError) else repr(error))
            await current().step("one", note)
            await boss.save(["saved"])
            trace("end")

    doing["boss"] = run
    await until(lambda: len(gates["trace"].log) == 2)
    assert gates["trace"].log == ["state_persist_failed", "end"]
    assert gates["a"].entered == 1
