"""Deferred values: a run waits for what somebody else completes, whatever becomes of runners meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from actorhub import (
    CallTimeout,
    Cluster,
    DeferredFailed,
    HandlerFailed,
    MalformedMessage,
    MessageTooLarge,
    current,
)
from actorhub.engine.runs import deferred as engine
from actorhub.engine.runs import lookout
from actorhub.storage.checkpoint_ports import Completion, CompletionKind
from actorhub.storage.message_ports import MessageState
from actorhub.testing import MemoryCluster, until
from tests.steps.entities import (
    AT,
    Anything,
    Clerk,
    Declined,
    Receipt,
    doing,
    hub,
    note,
    owner,
    saved,
    tell_note,
)
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of, runner_of

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


def waits_for(type_: type[Any], *, name: str = "value") -> Callable[[Clerk], Any]:
    """Return what hands its token out and waits."""

    async def work(clerk: Clerk) -> Anything:
        value = current().deferred(name, type_)
        gates[current().entity_id].left.append(value.token)
        gates[current().entity_id].entered += 1
        found = await value.wait()
        clerk.state.append("came")
        return found

    return work


async def token(entity_id: str = "a", number: int = 1) -> str:
    """Return the token that the run of that number handed out, once it waits."""
    await until(lambda: len(gates[entity_id].left) >= number, "a token")
    return gates[entity_id].left[number - 1]


def waiting(memory: MemoryCluster) -> int:
    """Return how many runs wait."""
    return sum(len(host_of(runner).deferrals) for runner in memory.runners)


async def three(memory: MemoryCluster) -> Cluster:
    """Start three runners; return a client."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    await memory.settled()
    return client


@pytest.mark.parametrize("value", [Receipt(1, AT), (1, "two"), None, [AT]], ids=repr)
async def test_a_value_arrives_with_its_type(anywhere: Cluster, value: object) -> None:
    """Whoever completes it, the run gets what it asked for, and its message settles with it."""
    types: dict[type, Any] = {Receipt: Receipt, tuple: tuple[int, str], type(None): None, list: list[Any]}
    received: list[Any] = []

    async def work(_: Clerk) -> str:
        value = current().deferred("value", types[type(expected)])
        gates["a"].left.append(value.token)
        received.append(await value.wait())
        return "done"

    expected = [AT.isoformat()] if value == [AT] else value
    doing["a"] = work
    asked = soon(anywhere.client(Clerk)("a").work())
    assert await anywhere.complete(await token(), expected)
    assert await asked == "done"
    assert received == [expected]


async def test_a_value_may_come_before_anybody_waits(memory: MemoryCluster, cluster: Cluster) -> None:
    """The token works as soon as it is made; the wait returns at once then."""

    async def work(_: Clerk) -> int:
        value = current().deferred("value", int)
        gates["a"].left.append(value.token)
        await gates["before"].pass_through()
        return await value.wait()

    doing["a"] = work
    asked = soon(cluster.client(Clerk)("a").work())
    assert await cluster.complete(await token(), 5)
    assert waiting(memory) == 0
    gates["before"].open()
    assert await asked == 5


@pytest.mark.parametrize("who", ["its runner", "another runner", "a client"])
async def test_anybody_may_complete(memory: MemoryCluster, who: str) -> None:
    """The waiting run goes on at once, long before it polls the store itself."""
    client = await three(memory)
    doing["a"] = waits_for(int)
    asked = soon(client.client(Clerk)("a").work())
    made = await token()
    await until(lambda: waiting(memory) == 1)
    host = owner(memory, client)
    others = [runner for runner in memory.runners if runner is not host]
    completer = {"its runner": host, "another runner": others[0], "a client": client}[who]
    async with asyncio.timeout(2):
        assert await completer.complete(made, 7)
        assert await asked == 7
    assert waiting(memory) == 0


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_the_token_is_the_same_in_every_run(memory: MemoryCluster, end: str) -> None:
    """Wherever the message runs next, whoever got the first token completes it."""
    client = await three(memory)
    doing["a"] = waits_for(int)
    asked = soon(client.client(Clerk)("a").work())
    first = await token()
    for number in range(2, 4):
        await until(lambda: waiting(memory) == 1)
        await getattr(memory, end)(owner(memory, client))
        assert await token("a", number) == first
    assert await client.complete(first, 7)
    async with asyncio.timeout(5):
        assert await asked == 7


async def test_the_first_completion_wins(cluster: Cluster) -> None:
    """Repeating it is harmless; another value, or a failure, comes too late and says so."""
    doing["a"] = waits_for(int)
    asked = soon(cluster.client(Clerk)("a").work())
    made = await token()
    assert await cluster.complete(made, 1)
    assert await cluster.complete(made, 1)
    assert not await cluster.complete(made, 2)
    assert not await cluster.fail(made, "too late")
    assert await asked == 1


async def test_of_many_completions_at_once_one_wins(memory: MemoryCluster) -> None:
    """All who said the winner's value hear that it counts, the others that it does not."""
    client = await three(memory)
    doing["a"] = waits_for(int)
    asked = soon(client.client(Clerk)("a").work())
    made = await token()
    senders = [*memory.runners, client]
    found = await outcomes(*(senders[n % 4].complete(made, n % 5) for n in range(40)))
    value = await asked
    assert found == [n % 5 == value for n in range(40)]


async def test_a_failure_is_raised_where_it_is_waited_for(cluster: Cluster) -> None:
    """A text as DeferredFailed, an EntityError as itself; a handler may catch both."""

    async def work(_: Clerk) -> list[str]:
        found: list[str] = []
        for name in ("text", "error"):
            value = current().deferred(name, int)
            gates["a"].left.append(value.token)
            try:
                await value.wait()
            except DeferredFailed as error:
                found.append(error.message)
            except Declined as error:
                found.append(error.why)
        return found

    doing["a"] = work
    asked = soon(cluster.client(Clerk)("a").work())
    assert await cluster.fail(await token(), "no answer")
    assert await cluster.fail(await token("a", 2), Declined(why="no credit"))
    assert await asked == ["no answer", "no credit"]


async def test_an_error_that_nobody_could_receive_is_refused_and_the_next_one_counts(anywhere: Cluster) -> None:
    """Neither as the wrong error, nor as no error that the run knows: the value still waits for its outcome."""
    doing["a"] = waits_for(int)
    asked = soon(failure(anywhere.client(Clerk)("a").work()))
    made = await token()
    for wrong in (Declined(why=403), Declined(why="x" * (5 << 20)), "x" * (5 << 20)):  # type: ignore[arg-type]
        assert isinstance(await failure(anywhere.fail(made, wrong)), MalformedMessage | MessageTooLarge)
    assert await anywhere.fail(made, Declined(why="x" * 4_000_000))
    error = await asked
    assert isinstance(error, Declined)
    assert len(error.why) == 4_000_000


async def test_the_text_of_a_failure_may_be_what_utf_8_cannot_hold(cluster: Cluster) -> None:
    """As in every other error, it is shown by its number."""
    doing["a"] = waits_for(int)
    asked = soon(failure(cluster.client(Clerk)("a").work()))
    assert await cluster.fail(await token(), "half: \ud800")
    assert "half: \\ud800" in str(await asked)


async def test_an_entity_error_that_nobody_catches_is_the_reply(cluster: Cluster) -> None:
    """As if the handler had raised it: final."""
    doing["a"] = waits_for(int)
    asked = soon(failure(cluster.client(Clerk)("a").work()))
    assert await cluster.fail(await token(), Declined(why="no credit"))
    error = await asked
    assert isinstance(error, Declined)
    assert error.why == "no credit"
    assert gates["a"].log == ["run 1"]


async def test_a_value_of_another_type_fails_the_wait(cluster: Cluster) -> None:
    """Each run's wait raises MalformedMessage that names the value, until the message is a dead letter."""
    doing["a"] = waits_for(int)
    asked = soon(failure(cluster.client(Clerk)("a").work()))
    assert await cluster.complete(await token(), "text")
    error = await asked
    assert isinstance(error, HandlerFailed)
    assert error.type == "MalformedMessage"
    assert "deferred value 'value'" in str(error)
    assert len(gates["a"].log) == 3


async def test_what_is_no_token_of_this_cluster_is_refused(memory: MemoryCluster, cluster: Cluster) -> None:
    """By every process that is asked to complete."""
    for made in ("", "nonsense", "A" * 100):
        for attempt in (cluster.complete(made, 1), cluster.fail(made, "no")):
            assert isinstance(await failure(attempt), MalformedMessage)
    with pytest.raises(MalformedMessage, match="deferred value"):
        await cluster.complete("nonsense", object())


async def test_a_completion_is_known_for_a_while_after_its_message(memory: MemoryCluster, cluster: Cluster) -> None:
    """Whoever comes late learns that another one counted, until the clean-up; after that one does nothing."""
    doing["a"] = waits_for(int)
    told = await cluster.tell(cluster.client(Clerk)("a").work())
    made = await token()
    assert await cluster.complete(made, 1)
    assert await cluster.reply(told) == 1
    table = memory.store.checkpoints
    assert not await cluster.complete(made, 2)
    assert await cluster.complete(made, 1)
    assert table.remove_orphans(3600.0, 10, memory.store.messages.is_kept) == 0
    assert table.remove_orphans(-1.0, 10, memory.store.messages.is_kept) == 1
    assert await cluster.complete(made, 2)
    assert table.remove_orphans(-1.0, 10, memory.store.messages.is_kept) == 1
    assert await cluster.reply(told) == 1


async def test_hundreds_wait_at_once(memory: MemoryCluster) -> None:
    """Each gets its own value, also when a runner is killed and one leaves meanwhile."""
    client = await three(memory)
    ids = [f"e{number}" for number in range(300)]
    for entity_id in ids:
        doing[entity_id] = waits_for(str)
    told = [await client.tell(client.client(Clerk)(entity_id).work()) for entity_id in ids]
    tokens = [await token(entity_id) for entity_id in ids]
    await until(lambda: waiting(memory) == 300)
    await memory.kill(memory.runners[0])
    await memory.stop(memory.runners[0])
    await until(lambda: waiting(memory) == 300)
    assert (
        await outcomes(*(client.complete(made, f"for {one}") for made, one in zip(tokens, ids, strict=True)))
        == [True] * 300
    )
    async with asyncio.timeout(10):
        assert [await client.reply(message_id) for message_id in told] == [f"for {one}" for one in ids]


async def test_a_wait_hardly_looks_into_the_store(
    memory: MemoryCluster, runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once when it begins, and then once per interval: what it is not told of it finds then."""
    monkeypatch.setattr(lookout, "_INTERVAL", 0.2)
    looks: list[float] = []
    store = runner_of(runner).storage.checkpoints
    look = store.completions

    async def counted(hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        looks.append(asyncio.get_running_loop().time())
        return await look(hashes)

    monkeypatch.setattr(store, "completions", counted)
    doing["a"] = waits_for(int)
    asked = soon(runner.client(Clerk)("a").work())
    made = await token()
    await until(lambda: len(looks) == 3)
    assert looks[2] - looks[0] >= 0.35
    completion = engine.completion(made, memory.store.secret(), CompletionKind.VALUE, msgspec.msgpack.encode(1))
    assert memory.store.checkpoints.complete(completion)
    async with asyncio.timeout(2):
        assert await asked == 1
    assert len(looks) <= 5


async def test_a_wait_outlasts_a_store_that_is_away(
    memory: MemoryCluster, runner: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A look that fails is noted and made again; it fails neither the wait nor the run."""
    monkeypatch.setattr(lookout, "_INTERVAL", 0.05)
    monkeypatch.setattr(lookout, "_RETRY", 0.05)
    doing["a"] = waits_for(int)
    asked = soon(runner.client(Clerk)("a").work())
    made = await token()
    await until(lambda: waiting(memory) == 1)
    await asyncio.sleep(0.05)
    memory.store.available = False
    await until(lambda: "cannot read whether a deferred value" in caplog.text)
    memory.store.available = True
    assert await runner.complete(made, 1)
    assert await asked == 1
    assert gates["a"].log == ["run 1"]


async def test_runners_that_cannot_be_told_of_a_completion_are_no_failure(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever completes does not depend on other runners; those look by themselves."""
    client = await three(memory)
    doing["a"] = waits_for(int)
    told = await client.tell(client.client(Clerk)("a").work())
    made = await token()
    host = owner(memory, client)
    first, second = [runner for runner in memory.runners if runner is not host]
    memory.network.hold(memory.name_of(first), memory.name_of(second))
    assert await first.complete(made, 1)
    assert await client.reply(told) == 1
    caplog.set_level(logging.ERROR)
    await memory.kill(second)
    await asyncio.sleep(0.05)
    assert "never retrieved" not in caplog.text


async def test_lost_runners_do_not_use_up_the_attempts_of_who_waits(memory: MemoryCluster) -> None:
    """A message of three attempts waits three times, and loses two runners in each wait."""
    await memory.start_runner()
    client = await memory.client()

    async def work(_: Clerk) -> list[int]:
        found: list[int] = []
        for number in range(3):
            value = current().deferred(f"{number}", int)
            gates[f"wait {number}"].left.append(value.token)
            found.append(await value.wait())
        return found

    doing["a"] = work
    told = await client.tell(client.client(Clerk)("a").work())
    for number in range(3):
        made = await token(f"wait {number}")
        for lost in range(1, 4):
            assert await token(f"wait {number}", lost) == made
            await until(lambda: waiting(memory) == 1)
            await asyncio.sleep(0.01)
            if lost < 3:
                await memory.kill(memory.runners[0])
                await memory.start_runner()
        assert await client.complete(made, number)
    async with asyncio.timeout(10):
        assert await client.reply(told) == [0, 1, 2]
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.history == ()


async def test_the_timeout_of_a_handler_counts_in_waits_too(memory: MemoryCluster, cluster: Cluster) -> None:
    """Per run: one that waits longer is a failed attempt, and the next one waits on, until there are no more."""
    doing["a"] = waits_for(int)
    told = await cluster.tell(cluster.client(Clerk)("a").work_in_time())
    error = await failure(cluster.reply(told))
    assert isinstance(error, HandlerFailed)
    assert error.type == "CallTimeout"
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.state is MessageState.DEAD
    assert [run.attempt for run in row.history] == [1, 2]
    doing["b"] = waits_for(int)
    asked = soon(cluster.client(Clerk)("b").work_in_time())
    made = await token("b", 2)
    assert await cluster.complete(made, 7)
    assert await asked == 7, "the second run had time of its own"


async def test_a_caller_s_timeout_leaves_the_wait_alone(cluster: Cluster) -> None:
    """As with every durable message: it goes on, and its reply can be asked for."""
    doing["a"] = waits_for(int)
    clerk = cluster.client(Clerk)
    error = await failure(clerk.options(timeout=timedelta(seconds=0.05), key="k")("a").work())
    assert isinstance(error, CallTimeout)
    assert await cluster.complete(await token(), 7)
    assert await clerk.options(key="k")("a").work() == 7
    assert gates["a"].log == ["run 1"]


async def test_a_wait_may_have_a_bound_of_its_own(cluster: Cluster) -> None:
    """asyncio.timeout() around it raises TimeoutError in the handler, which goes on."""

    async def work(_: Clerk) -> str:
        value = current().deferred("value", int)
        try:
            async with asyncio.timeout(0.05):
                await value.wait()
        except TimeoutError:
            return await current().step("instead", str, "late")
        return "in time"

    doing["a"] = work
    assert await cluster.client(Clerk)("a").work() == "late"


async def test_several_waits_of_a_run_are_held_at_once(memory: MemoryCluster, cluster: Cluster) -> None:
    """Beside steps and sleeps, in a TaskGroup; two may wait for one value."""

    async def work(_: Clerk) -> list[int]:
        values = [current().deferred(f"{number % 3}", int) for number in range(4)]
        gates["a"].left.extend(value.token for value in values)
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(value.wait()) for value in values]
            tasks.create_task(current().step("beside", note))
            tasks.create_task(current().sleep(timedelta(milliseconds=5)))
        return [wait.result() for wait in waits]

    doing["a"] = work
    asked = soon(cluster.client(Clerk)("a").work())
    await token("a", 4)
    await until(lambda: waiting(memory) == 4)
    for number in (2, 0, 1):
        assert await cluster.complete(gates["a"].left[number], number)
    assert await asked == [0, 1, 2, 0]
    assert gates["a"].entered == 1


@pytest.mark.parametrize("how", ["wait", "sleep", "enters the wait meanwhile"])
async def test_a_hand_over_does_not_wait_for_waits(memory: MemoryCluster, how: str) -> None:
    """Others of the shard are held up for milliseconds, and the message goes on elsewhere; no attempt is lost."""
    memory.settings = msgspec.structs.replace(memory.settings, shards_per_group=1, grace=timedelta(seconds=10))
    await memory.start_runner()
    client = await memory.client()

    async def work(_: Clerk) -> int:
        await current().step("before", tell_note, "b", "told")
        if how == "sleep":
            await current().sleep(timedelta(seconds=1.5))
            return 7
        value = current().deferred("value", int)
        gates["a"].left.append(value.token)
        if how != "wait":
            await gates["a"].pass_through()
        return await value.wait()

    doing["a"] = work
    told = await client.tell(client.client(Clerk)("a").work())
    await until(lambda: len(saved(memory, told).checkpoints) == (2 if how == "sleep" else 1))
    await asyncio.sleep(0.05)
    await memory.start_runner()
    first = memory.runners[0]
    stopping = soon(memory.stop(first))
    if how not in ("wait", "sleep"):
        await until(lambda: first.is_shutting_down)
        await asyncio.sleep(0.05)
        gates["a"].open()
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        await client.client(Clerk)("neighbour").note("held up?")
    assert asyncio.get_running_loop().time() - began < 1.0
    await stopping
    assert asyncio.get_running_loop().time() - began < 3.0
    if how != "sleep":
        await until(lambda: waiting(memory) == 1)
        assert await client.complete(gates["a"].left[0], 7)
    async with asyncio.timeout(5):
        assert await client.reply(told) == 7
    assert gates["a"].log == ["run 1", "run 1"]
    assert await client.client(Clerk)("b").notes() == ["told"]
