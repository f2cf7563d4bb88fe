"""What kills its process before the handler starts: the run was counted before, so the message ends, too."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec
import pytest

from actorhub import Cluster, Entity, HandlerFailed, Hub, PersistenceError, Retry, current, handler
from actorhub.engine.runs.activation import Activations
from actorhub.storage.message_ports import MessageFilter, MessageState, NewMessage, Readiness, RunStart, Stored
from actorhub.testing import MemoryCluster, until
from tests.durable import poison
from tests.support.gates import failure, gates, soon, waits_in
from tests.support.parts import host_of, runner_of
from tests.support.processes import Processes

PROGRAM: Final = "tests.durable.poison:hub"
_ONCE: Final = Retry(attempts=1)
_TWICE: Final = Retry(attempts=2, initial=timedelta(milliseconds=10))

store: list[MemoryCluster] = []
"""Whose store the entities see; empty while classes are being declared."""
seen: list[tuple[str, int]] = []
"""Where user code ran, and how many runs of all pending messages the store had counted by then."""


def look(where: str) -> None:
    """Note what the store has counted."""
    for memory in store:
        rows = memory.store.messages.messages(MessageFilter(states=frozenset({MessageState.PENDING})))
        seen.append((where, sum(row.attempts for row in rows)))


@pytest.fixture(autouse=True)
def watched(memory: MemoryCluster) -> Iterator[None]:
    """Let the entities see the store of this test."""
    seen.clear()
    store.append(memory)
    yield
    store.clear()


class Total(msgspec.Struct):
    """A state whose class has code of its own."""

    runs: int = 0

    def __post_init__(self) -> None:
        look("state")


class Watched(Entity[Total]):
    """Notes each place where code of the user runs before the handler."""

    def __init__(self) -> None:
        look("constructor")

    async def on_activate(self) -> None:
        look("on_activate")

    @handler(durable=True, retry=_ONCE)
    async def work(self) -> int:
        look("handler")
        self.state.runs += 1
        return current().attempt


class Simple(Entity):
    """Has a constructor only."""

    def __init__(self) -> None:
        look("constructor")

    @handler(durable=True, retry=_ONCE)
    async def work(self) -> int:
        look("handler")
        return current().attempt


class Deadly(Entity[int]):
    """Its runner dies in its hook, where the test says so."""

    async def on_activate(self) -> None:
        look("on_activate")
        await gates[current().entity_id].pass_through()

    @handler(durable=True, retry=_TWICE)
    async def work(self, text: str = "") -> str:
        return f"{text}{current().attempt}"

    @handler(durable=True, retry=_ONCE)
    async def work_once(self) -> int:
        return current().attempt

    async def look(self) -> int:
        return self.state


class Broken(Entity):
    """Cannot be made."""

    async def on_activate(self) -> None:
        look("on_activate")
        raise RuntimeError("it cannot be made")

    @handler(durable=True, retry=_TWICE)
    async def work(self) -> int:
        return current().attempt


hub = Hub()
for entity in (Watched, Simple, Deadly, Broken):
    hub.register(entity)


@pytest.mark.parametrize("kind", [Watched, Simple])
async def test_the_first_run_is_counted_before_any_code_of_the_entity(
    cluster: Cluster, kind: type[Watched] | type[Simple]
) -> None:
    """The insert of an ask counts it, and a message that was due later is counted by a statement of its own."""
    assert await cluster.client(kind)("a").work() == 1
    places = ["state", "constructor", "on_activate", "handler"] if kind is Watched else ["constructor", "handler"]
    assert [place for place in dict(seen) if place in places] == places
    assert {counted for _, counted in seen} == {1}
    seen.clear()
    told = await cluster.tell(cluster.client(kind)("b").work(), delay=timedelta(milliseconds=30))
    assert await cluster.reply(told) == 1
    assert [place for place in dict(seen) if place in places] == places
    assert {counted for _, counted in seen} == {1}


async def test_a_count_after_the_activation_is_noticed(runner: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails if the carrier that starts the run is the first to have it counted."""

    async def broken(*_: object) -> None:
        pass

    monkeypatch.setattr(Activations, "_until_counted", broken)
    monkeypatch.setattr(host_of(runner), "count_first", lambda _: None)
    with pytest.raises(AssertionError):
        await test_the_first_run_is_counted_before_any_code_of_the_entity(runner, Watched)


async def test_a_cold_ask_takes_two_round_trips_as_a_warm_one(runner: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The insert counts the run, beside the load of the state: no statement counts it again."""
    messages, asked = runner_of(runner).storage.messages, list[object]()
    start_run = messages.start_run

    def note(start: RunStart, incarnation: str) -> "asyncio.Future[Readiness]":
        asked.append(start)
        return start_run(start, incarnation)

    monkeypatch.setattr(messages, "start_run", note)
    assert await runner.client(Watched)("a").work() == 1
    assert await runner.client(Watched)("a").work() == 1
    assert asked == []


async def test_a_message_whose_runners_die_in_the_activation_is_buried(memory: MemoryCluster) -> None:
    """After its attempts it is a dead letter, without a further activation; then the message behind it has its turn."""
    for _ in range(5):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    deadly = client.client(Deadly)("d")
    told = [await client.tell(deadly.work(text)) for text in ("first ", "second ")]
    for deaths in range(1, 5):
        await gates["d"].came(deaths)
        owner = memory.owner_of(client.shard_of(Deadly, "d"))
        assert owner is not None
        await memory.kill(owner)
        if deaths == 2:
            error = await failure(client.reply(told[0], timeout=timedelta(seconds=10)))
            assert isinstance(error, HandlerFailed)
            assert error.type == "RunnerLost"
            assert "given up after 2 attempts" in str(error)
    assert isinstance(await failure(client.reply(told[1], timeout=timedelta(seconds=10))), HandlerFailed)
    assert gates["d"].entered == 4
    gates["d"].open()
    assert await deadly.work("third ") == "third 1"


async def test_durable_messages_behind_a_volatile_call_are_not_counted_with_it(memory: MemoryCluster) -> None:
    """The activation is the call's; what waits behind it is counted once it is what brings the entity."""
    for _ in range(4):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    deadly = client.client(Deadly)("d")
    volatile = soon(failure(deadly.look()))
    await gates["d"].came()
    told = await client.tell(deadly.work())
    for deaths in range(1, 4):
        await gates["d"].came(deaths)
        owner = memory.owner_of(client.shard_of(Deadly, "d"))
        assert owner is not None
        await memory.kill(owner)
    await volatile
    assert isinstance(await failure(client.reply(told, timeout=timedelta(seconds=10))), HandlerFailed)
    assert [counted for _, counted in seen] == [0, 1, 2]


async def test_a_counted_run_starts_although_its_shard_is_handed_over(memory: MemoryCluster) -> None:
    """A message with one attempt whose entity was being activated uses it up by running, not by moving."""
    first = await memory.start_runner()
    client = await memory.client()
    asked = soon(client.client(Deadly)("d").work_once())
    await gates["d"].came()
    await memory.start_runner()
    stopping = soon(memory.stop(first))
    await until(lambda: first.is_shutting_down)
    gates["d"].open()
    await stopping
    async with asyncio.timeout(10):
        assert await asked == 1
    assert [counted for _, counted in seen] == [1]


async def test_what_waits_behind_a_run_that_could_not_be_counted_is_served(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message goes back into the store, and the entity is made for the call behind it instead."""
    messages = runner_of(runner).storage.messages
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(messages, "start_run", lambda start, incarnation: answer)  # noqa: ARG005
    gates["d"].open()
    deadly = runner.client(Deadly)("d")
    told = await runner.tell(deadly.work(), delay=timedelta(milliseconds=10))
    await until(lambda: host_of(runner).residents.count > 0)
    behind = soon(deadly.look())
    await until(lambda: host_of(runner).statistics().queued == 2)
    assert seen == []
    monkeypatch.undo()
    answer.set_exception(PersistenceError("no answer"))
    assert await behind == 0
    await runner.poll_storage()
    async with asyncio.timeout(10):
        assert await runner.reply(told) == "1"
    assert seen == [("on_activate", 0)]


async def test_a_message_that_was_too_early_brings_its_entity_later(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activation that it began ends, and nothing waits for it."""
    messages = runner_of(runner).storage.messages
    start_run, early = messages.start_run, list[RunStart]()
    answer: asyncio.Future[Readiness] = asyncio.get_running_loop().create_future()

    def refuse_first(start: RunStart, incarnation: str) -> "asyncio.Future[Readiness]":
        if early:
            return start_run(start, incarnation)
        early.append(start)
        return answer

    monkeypatch.setattr(messages, "start_run", refuse_first)
    gates["d"].open()
    told = await runner.tell(runner.client(Deadly)("d").work(), delay=timedelta(milliseconds=10))
    waits = Activations._until_counted
    await until(lambda: any(waits_in(task, waits) for task in asyncio.all_tasks()))
    answer.set_result(Readiness.EARLY)
    async with asyncio.timeout(5):
        assert await runner.reply(told) == "1"
    assert len(early) == 1
    assert [counted for _, counted in seen] == [1]


async def test_a_cancelled_message_brings_no_entity(runner: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its run is being counted it can be cancelled, and then no code of the entity runs."""
    messages = runner_of(runner).storage.messages
    start_run, held = messages.start_run, asyncio.Event()

    def hold(start: object, incarnation: str) -> "asyncio.Future[object]":
        async def later() -> object:
            await held.wait()
            return await start_run(start, incarnation)  # type: ignore[arg-type]

        return soon(later())

    monkeypatch.setattr(messages, "start_run", hold)
    told = await runner.tell(runner.client(Deadly)("d").work(), delay=timedelta(milliseconds=10))
    await until(lambda: host_of(runner).residents.count > 0)
    assert await runner.cancel(told)
    held.set()
    await until(lambda: host_of(runner).residents.count == 0)
    assert seen == []


async def test_an_activation_that_fails_uses_up_an_attempt(memory: MemoryCluster, cluster: Cluster) -> None:
    """One for its four tries, and none more because its run was counted before."""
    told = await cluster.tell(cluster.client(Broken)("b").work())
    assert isinstance(await failure(cluster.reply(told)), HandlerFailed)
    row = memory.store.messages.find(told)
    assert row is not None
    assert [(run.attempt, run.error_type) for run in row.history] == [(1, "RuntimeError"), (2, "RuntimeError")]
    assert [counted for _, counted in seen] == [1] * 4 + [2] * 4


async def test_a_run_that_the_insert_counted_fails_once(runner: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its activation fails before the answer to the insert comes."""
    storage = runner_of(runner).storage
    store_it, is_stored = storage.messages.store, asyncio.Event()

    def store_late(message: NewMessage, incarnation: str) -> "asyncio.Future[Stored]":
        async def later() -> Stored:
            await is_stored.wait()
            return await stored

        stored = store_it(message, incarnation)
        return soon(later())

    async def refuse(entity_type: str, entity_id: str) -> None:
        raise PersistenceError(f"no state of {entity_type}/{entity_id}")

    monkeypatch.setattr(storage.messages, "store", store_late)
    monkeypatch.setattr(storage, "load_state", refuse)
    gates["d"].open()
    asked = soon(runner.client(Deadly)("d").work())
    await until(lambda: host_of(runner).activations.failed == 1)
    monkeypatch.undo()
    is_stored.set()
    async with asyncio.timeout(10):
        assert await asked == "2"


class Deaths:
    """The file in which processes note where they die."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def noted(self) -> list[str]:
        return self.path.read_text().split()


async def test_processes_that_die_in_activations_are_few(tmp_path: Path, postgres_url: str) -> None:
    """Real ones, on a real Postgres: as many as the messages have attempts, and what is healthy goes on."""
    deaths = Deaths(tmp_path / "deaths")
    with Processes(tmp_path, ACTORHUB_DATABASE_URL=postgres_url, **{poison.DEATHS: str(deaths.path)}) as processes:
        runner = await processes.serve(reference=PROGRAM)
        async with poison.hub.connect(database_url=postgres_url) as client:
            for call in (client.client(poison.Plain)("p").work(), client.client(poison.Hooked)("p").work()):
                told = await client.tell(call)
                for _ in range(poison.RUNS):
                    await runner.ended()
                    runner = await processes.serve(reference=PROGRAM)
                error = await failure(client.reply(told, timeout=timedelta(seconds=20)))
                assert isinstance(error, HandlerFailed)
                assert error.type == "RunnerLost"
            assert await client.client(poison.Hooked)("healthy").work() == 1
        assert deaths.noted == ["plain"] * poison.RUNS + ["hooked"] * poison.RUNS
        assert runner.code is None
