"""cancel(): whatever a message does, its handler included, it ends as cancelled, once, and leaves nothing behind."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actorhub import (
    Cluster,
    Entity,
    Hub,
    MessageCancelled,
    PersistenceError,
    Retry,
    Singleton,
    cron,
    current,
    handler,
)
from actorhub.storage.message_ports import CancelResult, MessageState, RunCommit
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, Refused, owner
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import runner_of

Work = Callable[["Desk"], Awaitable[None]]
doing: dict[str, Work] = {}


class Desk(Entity[list[str]]):
    """Does what a test says, for one message."""

    @handler(durable=True, retry=Retry(attempts=3, initial=timedelta(milliseconds=10)))
    async def work(self) -> str:
        return await self._work()

    @handler(durable=True, cancel_grace=timedelta(milliseconds=100))
    async def work_stubbornly(self) -> str:
        return await self._work()

    @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(hours=1), maximum=timedelta(hours=1)))
    async def fail(self) -> str:
        gates[current().entity_id].enter()
        raise ValueError("no luck")

    @handler(durable=True)
    async def add(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(durable=True)
    async def cancel(self, message_id: int) -> bool:
        return await clusters[0].cancel(message_id)

    async def cancel_now(self, message_id: int) -> bool:
        return await clusters[0].cancel(message_id)

    async def read(self) -> list[str]:
        return self.state

    async def _work(self) -> str:
        gates[current().entity_id].log.append(f"run {current().attempt}")
        await doing[current().entity_id](self)
        return "done"


class Keeper(Singleton[list[str]]):
    """Lives on, whatever becomes of a message."""

    async def run(self) -> None:
        gates["run"].enter()
        await gates["run"].pass_through()

    @handler(durable=True)
    async def work(self) -> str:
        self.state.append("half done")
        await gates["keeper"].pass_through()
        return "done"

    @cron("0 0 1 1 *", overlap="allow")
    async def sweep(self, at: datetime) -> None:
        self.state.append("half done")
        await gates["keeper"].pass_through()

    async def read(self) -> list[str]:
        return self.state


clusters: list[Cluster] = []
hub = Hub()
hub.register(Desk)
hub.register(Log)
hub.register(Keeper)


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the desks do."""
    doing.clear()
    clusters.clear()


async def _hold(desk: Desk) -> None:
    desk.state.append("half done")
    await current().tell(current().client(Log)("told").add("told"))
    await gates[current().entity_id].pass_through()


async def _defer(desk: Desk) -> None:
    desk.state.append("half done")
    gates[current().entity_id].enter()
    await current().deferred("value", int).wait()


async def _sleep(desk: Desk) -> None:
    desk.state.append("half done")
    gates[current().entity_id].enter()
    await current().sleep(timedelta(days=1))


async def _step(desk: Desk) -> None:
    desk.state.append("half done")
    await current().step("hold", gates[current().entity_id].pass_through)


async def _save(desk: Desk) -> None:
    await desk.save(["saved"])
    await _hold(desk)


def stubborn(work: Work) -> Work:
    """Return what does `work`, takes no notice of its cancellation, and would commit if it could."""

    async def ignore(desk: Desk) -> None:
        while not gates["enough"].is_open:
            try:
                await work(desk)
            except asyncio.CancelledError:
                gates[current().entity_id].log.append("ignored")

    return ignore


async def started(cluster: Cluster, work: Work, *, handler: str = "work") -> int:
    """Tell a desk to do `work`; return the message once it is in it."""
    doing["a"] = work
    told = await cluster.tell(getattr(cluster.client(Desk)("a"), handler)())
    await gates["a"].came()
    return told


async def assert_cancelled(cluster: Cluster, message_id: int, *, state: list[str] | None = None) -> None:
    """Assert that it ended as cancelled, left nothing behind, and that its entity goes on."""
    assert isinstance(await failure(cluster.reply(message_id)), MessageCancelled)
    assert not await cluster.cancel(message_id)
    async with asyncio.timeout(5):
        assert await cluster.client(Desk)("a").read() == (state or [])
        assert await cluster.client(Desk)("a").add("next") == len(state or []) + 1
    assert await cluster.client(Log)("told").read() == []


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("work", [_hold, _defer, _sleep, _step], ids=["call", "deferred", "sleep", "step"])
async def test_a_running_message_can_be_cancelled(anywhere: Cluster, work: Work, terminate: bool) -> None:
    """In whatever it waits: its waiting callers learn it, and its state, tells and reply are not committed."""
    told = await started(anywhere, work)
    waiting = soon(failure(anywhere.reply(told)))
    async with asyncio.timeout(5):
        assert await anywhere.cancel(told, terminate=terminate)
        error = await waiting
    assert isinstance(error, MessageCancelled)
    assert error.possibly_executed
    await assert_cancelled(anywhere, told)
    assert gates["a"].log == ["run 1"]


async def test_an_asker_learns_that_its_message_was_cancelled(anywhere: Cluster) -> None:
    """As soon as it is."""
    doing["a"] = _hold
    asked = soon(failure(anywhere.client(Desk).options(key="k")("a").work()))
    await gates["a"].came()
    (told,) = await _ids_of_running(anywhere)
    assert await anywhere.cancel(told)
    assert isinstance(await asked, MessageCancelled)


async def test_its_handler_may_undo_what_it_did(cluster: Cluster) -> None:
    """It gets one CancelledError, knows why, and its calls, steps and waits work until its grace is over."""

    async def work(desk: Desk) -> None:
        try:
            await _hold(desk)
        except asyncio.CancelledError:
            assert current().is_cancelled
            await current().step("undo", undo)
            await current().sleep(timedelta(milliseconds=20))
            await current().client(Log)("undone").add("by call")
            gates["undone"].open()
            raise

    async def undo() -> None:
        await current().tell(current().client(Log)("undone").add("by step"))

    told = await started(cluster, work)
    assert await cluster.cancel(told)
    assert gates["undone"].is_open
    await assert_cancelled(cluster, told)
    assert await cluster.client(Log)("undone").read() == ["by step", "by call"]


@pytest.mark.parametrize("end", ["value", "error", "domain error"])
async def test_what_a_cancelled_handler_ends_with_does_not_count(cluster: Cluster, end: str) -> None:
    """A value, an exception or a domain error: it is cancelled, not failed, and is not run again."""

    async def work(desk: Desk) -> None:
        try:
            await _hold(desk)
        except asyncio.CancelledError:
            if end == "error":
                raise ValueError("on the way out") from None
            if end == "domain error":
                raise Refused(why="on the way out") from None

    told = await started(cluster, work)
    assert await cluster.cancel(told)
    await assert_cancelled(cluster, told)
    assert gates["a"].log == ["run 1"]


@pytest.mark.parametrize("work", [_hold, _defer, _sleep], ids=["call", "deferred", "sleep"])
async def test_a_handler_that_ignores_its_cancellation_is_abandoned_after_its_grace(
    cluster: Cluster, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """The message ends as cancelled, the entity goes on, and the log says where the handler is stuck."""
    caplog.set_level(logging.ERROR)
    told = await started(cluster, stubborn(work), handler="work_stubbornly")
    async with asyncio.timeout(3):
        assert await cluster.cancel(told)
    await assert_cancelled(cluster, told)
    assert "ignored" in gates["a"].log
    assert "went on 0.1 s after it was cancelled" in caplog.text
    gates["enough"].open()


async def test_termination_runs_no_code_of_the_handler(cluster: Cluster) -> None:
    """Neither except nor finally blocks, also if it was asked to end before, and when what it waits for comes."""
    ran: list[str] = []

    async def work(desk: Desk) -> None:
        try:
            await _hold(desk)
            ran.append("went on")
        except asyncio.CancelledError:
            ran.append("cancelled")
            await gates["clean-up"].pass_through()
            ran.append("cleaned up")
        finally:
            ran.append("finally")

    told = await started(cluster, work)
    assert await cluster.cancel(told, terminate=True)
    await assert_cancelled(cluster, told)
    gates["a"].open()
    again = await cluster.tell(cluster.client(Desk)("b").work())
    doing["b"] = work
    gates["b"].enter()
    await until(lambda: gates["b"].inside == 1)
    graceful = soon(cluster.cancel(again))
    await gates["clean-up"].came()
    assert ran == ["cancelled"]
    assert await cluster.cancel(again, terminate=True)
    assert await graceful in (True, False)
    gates["clean-up"].open()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ran == ["cancelled"]


async def test_what_was_saved_before_stays(cluster: Cluster) -> None:
    """`save()` is a commit of its own; what came after it is undone."""
    told = await started(cluster, _save)
    assert await cluster.cancel(told)
    await assert_cancelled(cluster, told, state=["saved"])


async def test_a_message_that_waits_for_its_next_attempt_can_be_cancelled(anywhere: Cluster) -> None:
    """It is not run again."""
    told = await anywhere.tell(anywhere.client(Desk)("a").fail())
    await gates["a"].came()
    async with asyncio.timeout(5):
        assert await anywhere.cancel(told)
    await assert_cancelled(anywhere, told)
    assert gates["a"].entered == 1


async def test_the_key_of_a_cancelled_run_is_free_again(cluster: Cluster) -> None:
    """The next call with it is another message."""
    doing["a"] = _hold
    keyed = cluster.client(Desk).options(key="k")("a")
    told = await cluster.tell(keyed.work())
    await gates["a"].came()
    assert await cluster.cancel(told)
    gates["a"].open()
    assert await keyed.work() == "done"


async def test_a_handler_may_cancel_its_own_message(runner: Cluster) -> None:
    """It gets its CancelledError where it waits for that."""
    clusters.append(runner)
    left: list[str] = []

    async def work(desk: Desk) -> None:
        try:
            await runner.cancel(current().message_id)
        finally:
            left.append("cancelled" if current().is_cancelled else "not cancelled")

    doing["a"] = work
    told = await runner.tell(runner.client(Desk)("a").work())
    async with asyncio.timeout(5):
        assert isinstance(await failure(runner.reply(told)), MessageCancelled)
    assert left == ["cancelled"]
    await assert_cancelled(runner, told)


@pytest.mark.parametrize("handler", ["cancel", "cancel_now"])
async def test_a_handler_may_cancel_a_message_that_waits_for_its_entity(runner: Cluster, handler: str) -> None:
    """Nothing waits for the turn that the handler has."""
    clusters.append(runner)
    desk = runner.client(Desk)("a")
    told = await runner.tell(desk.add("late"), delay=timedelta(hours=1))
    queued: list[int] = []

    async def work(_: Desk) -> None:
        queued.append(await runner.tell(desk.add("queued")))
        assert await runner.cancel(queued[0])

    doing["a"] = work
    assert await desk.work() == "done"
    assert isinstance(await failure(runner.reply(queued[0])), MessageCancelled)
    async with asyncio.timeout(5):
        assert await getattr(desk, handler)(told)
    assert await desk.read() == []


async def test_of_many_cancellations_of_a_running_message_one_run_ends(cluster: Cluster) -> None:
    """The handler hears it once; everybody who asked in time hears that it was cancelled."""
    heard: list[str] = []

    async def work(desk: Desk) -> None:
        try:
            await _hold(desk)
        except asyncio.CancelledError:
            heard.append("once")
            await asyncio.sleep(0.05)
            raise

    told = await started(cluster, work)
    found = await outcomes(*(cluster.cancel(told) for _ in range(10)))
    assert found == [True] * 10
    assert heard == ["once"]
    await assert_cancelled(cluster, told)


@pytest.mark.parametrize("is_refused", [False, True], ids=["committed", "refused"])
async def test_the_commit_of_a_run_decides_whether_its_message_is_cancelled(
    runner: Cluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """The cancellation waits for it: the reply counts; after a commit that failed the message is cancelled."""
    store, committing = runner_of(runner).storage.messages, asyncio.Event()
    commit = store.commit_run

    def held(run: RunCommit, incarnation: str) -> "asyncio.Future[bool]":
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def settle() -> None:
            await gates["commit"].pass_through()
            if is_refused:
                answer.set_exception(PersistenceError("the store is away", possibly_executed=True))
            else:
                answer.set_result(await commit(run, incarnation))

        committing.set()
        _ = soon(settle())
        return answer

    told = await started(cluster, _hold)
    monkeypatch.setattr(store, "commit_run", held)
    gates["a"].open()
    await committing.wait()
    cancelling = soon(cluster.cancel(told))
    await gates["commit"].came()
    assert not cancelling.done()
    monkeypatch.setattr(store, "commit_run", commit)
    gates["commit"].open()
    async with asyncio.timeout(5):
        assert await cancelling == is_refused
    if is_refused:
        await assert_cancelled(cluster, told)
    else:
        assert await cluster.reply(told) == "done"


async def test_a_store_that_fails_leaves_the_message_to_be_cancelled_again(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has ended and is not committed; whoever asks again is served, be the message running again or not."""
    store = runner_of(runner).storage.messages
    cancel = store.cancel

    async def away(*_: Any, **__: Any) -> CancelResult:
        raise PersistenceError("the store is away")

    told = await started(runner, _hold)
    monkeypatch.setattr(store, "cancel", away)
    assert isinstance(await failure(runner.cancel(told)), PersistenceError)
    monkeypatch.setattr(store, "cancel", cancel)
    await gates["a"].came(2)
    async with asyncio.timeout(5):
        assert await runner.cancel(told)
    await assert_cancelled(runner, told)


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_lost_or_leaving_runner_leaves_the_cancellation_to_the_next_owner(
    memory: MemoryCluster, end: str
) -> None:
    """It was asked for once, and holds: the message does not run again there, or not to its end."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    await memory.settled()

    async def work(desk: Desk) -> None:
        try:
            await _hold(desk)
        except asyncio.CancelledError:
            await gates["clean-up"].pass_through()
            raise

    told = await started(client, work)
    cancelling = soon(client.cancel(told))
    await gates["clean-up"].came()
    ending = soon(getattr(memory, end)(owner(memory, client, Desk, "a")))
    await asyncio.sleep(0.05)
    gates["clean-up"].open()
    await ending
    async with asyncio.timeout(20):
        assert await cancelling
    await assert_cancelled(client, told)


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("handler", ["work", "sweep"])
async def test_messages_of_singletons_can_be_cancelled(cluster: Cluster, handler: str, terminate: bool) -> None:
    """Of a plain handler, and of a scheduled one beside which others run; the singleton lives on."""
    keeper = cluster.singleton(Keeper)
    told = await cluster.tell(keeper.work() if handler == "work" else keeper.sweep(datetime.now(UTC)))
    await gates["keeper"].came()
    async with asyncio.timeout(5):
        assert await cluster.cancel(told, terminate=terminate)
        assert isinstance(await failure(cluster.reply(told)), MessageCancelled)
        assert await keeper.read() == []
        await gates["run"].came()


async def test_a_cancelled_message_is_stored_as_cancelled(memory: MemoryCluster, cluster: Cluster) -> None:
    """Not as a failed one: it has no history and no later run."""
    told = await started(cluster, _hold)
    assert await cluster.cancel(told)
    row = memory.store.messages.find(told)
    assert row is not None
    assert (row.state, row.history) == (MessageState.CANCELLED, ())


async def _ids_of_running(cluster: Cluster) -> list[int]:
    """Return the id of the message with the key `k`."""
    return [await cluster.tell(cluster.client(Desk)("a").work(), key="k")]
