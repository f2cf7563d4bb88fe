"""Tells: accepted into a mailbox, not waited for; from a handler only with its commit; to all active entities."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from actorhub import (
    ActorhubError,
    CallTimeout,
    Cluster,
    Entity,
    HandlerFailed,
    Hub,
    MailboxFull,
    MalformedMessage,
    PersistenceError,
    current,
    handler,
)
from actorhub.cluster import part_of
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, soon


class Inbox(Entity[list[str]], mailbox_capacity=3):
    async def put(self, text: str) -> None:
        self.state.append(text)

    async def read(self) -> list[str]:
        return self.state

    async def hold(self) -> None:
        await gates[current().entity_id].pass_through()

    async def crash(self) -> None:
        gates["crash"].entered += 1
        raise ValueError("nobody hears of it")

    async def message_ids(self) -> int:
        return current().message_id


class Sender(Entity[int]):
    async def send(self, to: str, text: str, fail: bool = False) -> int:
        inbox = current().client(Inbox)
        self.state += 1
        message_id = await current().tell(inbox(to).put(text))
        gate = gates[current().entity_id]
        gate.entered += 1
        if fail:
            raise ValueError("not sent")
        return message_id

    async def send_and_hold(self, to: str) -> None:
        self.state += 1
        await current().tell(current().client(Inbox)(to).put("early"))
        await gates[current().entity_id].pass_through()

    async def send_to_itself(self) -> int:
        await current().tell(current().client(Sender)(current().entity_id).count())
        return self.state

    async def count(self) -> int:
        self.state += 1
        return self.state

    async def outlived(self) -> None:
        here = current()

        async def late() -> None:
            gate = gates["late"]
            await gate.pass_through()
            try:
                await here.tell(here.client(Inbox)("x").put("too late"))
            except RuntimeError as error:
                gate.log.append(str(error))

        _ = soon(late())

    async def send_malformed(self) -> None:
        await current().tell(current().client(Inbox)("x").put(7))  # type: ignore[arg-type]


class Keeper(Entity):
    @handler(durable=True)
    async def keep(self, text: str) -> None:
        raise AssertionError(text)


hub = Hub()
hub.register(Inbox)
hub.register(Keeper)
hub.register(Sender)


async def _read(cluster: Cluster, count: int, entity_id: str = "in") -> list[str]:
    async with asyncio.timeout(5):
        while len(found := await cluster.client(Inbox)(entity_id).read()) < count:
            await asyncio.sleep(0.005)
    return found


async def test_a_tell_returns_when_it_is_in_the_mailbox(anywhere: Cluster) -> None:
    """The teller has an id and goes on while the entity is still busy."""
    inbox = anywhere.client(Inbox)("in")
    held = soon(inbox.hold())
    await gates["in"].came()
    async with asyncio.timeout(2):
        first = await anywhere.tell(inbox.put("one"))
        second = await anywhere.tell(inbox.put("two"))
    assert 0 < first < second
    gates["in"].open()
    await held
    assert await _read(anywhere, 2) == ["one", "two"]


async def test_a_tell_to_a_full_mailbox_is_refused(cluster: Cluster) -> None:
    """MailboxFull reaches the teller, and the message never runs."""
    inbox = cluster.client(Inbox)("in")
    held = soon(inbox.hold())
    await gates["in"].came()
    for text in ("one", "two", "three"):
        await cluster.tell(inbox.put(text))
    error = await failure(cluster.tell(inbox.put("four")))
    assert isinstance(error, MailboxFull)
    gates["in"].open()
    await held
    assert await _read(cluster, 3) == ["one", "two", "three"]


async def test_a_teller_that_waits_for_room_is_held_back(cluster: Cluster) -> None:
    """With on_full="wait" a tell beyond the capacity is accepted when its turn comes, so mailboxes stay bounded."""
    inbox = cluster.client(Inbox).options(on_full="wait")
    held = soon(inbox("in").hold())
    await gates["in"].came()
    for text in ("one", "two", "three"):
        await cluster.tell(inbox("in").put(text))
    fourth = soon(cluster.tell(inbox("in").put("four")))
    error = await failure(cluster.tell(inbox.options(timeout=timedelta(milliseconds=80))("in").put("never")))
    assert isinstance(error, CallTimeout)
    assert not error.possibly_executed
    assert not fourth.done()
    gates["in"].open()
    await held
    assert await fourth > 0
    assert await _read(cluster, 4) == ["one", "two", "three", "four"]


async def test_an_accepted_tell_has_no_deadline(cluster: Cluster) -> None:
    """It runs though the time that it had to be accepted in is long over when its turn comes."""
    inbox = cluster.client(Inbox)
    held = soon(inbox("in").hold())
    await gates["in"].came()
    await cluster.tell(inbox.options(timeout=timedelta(milliseconds=50))("in").put("patient"))
    await asyncio.sleep(0.15)
    gates["in"].open()
    await held
    assert await _read(cluster, 1) == ["patient"]


async def test_a_tell_that_fails_is_counted_where_it_ran(runner: Cluster, cluster: Cluster) -> None:
    """Nobody waits for its error, so it is logged and counted, and the teller knows nothing."""
    await cluster.tell(cluster.client(Inbox)("in").crash())
    await until(lambda: part_of(runner).node.failed_tells == 1)


async def test_only_calls_can_be_told(client: Cluster) -> None:
    """Anything else is a TypeError that shows what a call is."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(TypeError, match=r"tell takes a call, such as client\('id'\)\.method\(\.\.\.\)"):
        await client.tell(future)


async def test_a_tell_from_a_handler_leaves_with_its_commit(anywhere: Cluster) -> None:
    """It arrives when the handler succeeded, and never when it raised."""
    sender = anywhere.client(Sender)("s")
    with pytest.raises(HandlerFailed):
        await sender.send("in", "dropped", fail=True)
    assert await sender.send("in", "kept") > 0
    assert await _read(anywhere, 1) == ["kept"]


async def test_nothing_leaves_before_the_commit(cluster: Cluster) -> None:
    """While the handler that told it is still running the message is not sent."""
    sending = soon(cluster.client(Sender)("s").send_and_hold("in"))
    await gates["s"].came()
    await asyncio.sleep(0.02)
    assert await cluster.client(Inbox)("in").read() == []
    gates["s"].open()
    await sending
    assert await _read(cluster, 1) == ["early"]


async def test_nothing_leaves_when_the_commit_is_refused(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A handler whose commit is fenced off sends none of what it told."""
    sending = soon(failure(client.client(Sender)("s").send_and_hold("in")))
    await gates["s"].came()
    assert runner.runner is not None
    memory.store.take([runner.shard_of(Sender, "s")], runner.runner)
    gates["s"].open()
    error = await sending
    assert isinstance(error, ActorhubError)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        assert await client.client(Inbox)("in").read() == []


async def test_an_entity_may_tell_itself(cluster: Cluster) -> None:
    """A tell is not part of the caller's chain, so it is not a cycle; it runs after the handler."""
    sender = cluster.client(Sender)("s")
    assert await sender.send_to_itself() == 0
    async with asyncio.timeout(5):
        while await sender.send("in", "x") < 0:
            pass
        assert await sender.count() >= 3


async def test_a_tell_after_the_end_of_the_run_is_refused(cluster: Cluster) -> None:
    """A task that outlives its handler cannot slip something into a commit that is over."""
    await cluster.client(Sender)("s").outlived()
    await gates["late"].came()
    gates["late"].open()
    await until(lambda: bool(gates["late"].log))
    assert "its run is over" in gates["late"].log[0]


async def test_a_told_message_that_cannot_be_decoded_is_counted(runner: Cluster, client: Cluster) -> None:
    """Its arguments do not fit, nobody waits: it is logged and counted."""
    await client.client(Sender)("s").send_malformed()
    await until(lambda: part_of(runner).node.failed_tells == 1)
    await failure(client.client(Inbox)("x").put(7))  # type: ignore[arg-type]


async def test_malformed_arguments_of_a_tell_are_found_when_it_runs(runner: Cluster, cluster: Cluster) -> None:
    """An accepted tell with wrong arguments does not run; it is counted."""
    found = None
    try:
        await cluster.tell(cluster.client(Inbox)("in").put(7))  # type: ignore[arg-type]
    except MalformedMessage as error:
        found = error
    assert found is not None or await _counted(runner)
    assert await cluster.client(Inbox)("in").read() == []


async def _counted(runner: Cluster) -> bool:
    await until(lambda: part_of(runner).node.failed_tells == 1)
    return True


async def test_a_refused_call_does_not_count_as_forgotten(anywhere: Cluster) -> None:
    """Its sender has the error, and is not warned as well."""
    inbox = anywhere.client(Inbox)
    too_late = timedelta(days=10_000_000)
    refusals: list[tuple[type[Exception], Callable[[], Awaitable[object]]]] = [
        (TypeError, lambda: anywhere.tell(inbox("a").put("x"), key="k")),
        (ValueError, lambda: anywhere.tell(inbox("a").put("x"), delay=too_late)),
        (MalformedMessage, lambda: anywhere.tell(inbox("a").put("\ud800"))),
        (MalformedMessage, lambda: inbox("a").put("\ud800")),
        (PersistenceError, lambda: anywhere.tell(inbox("a").put("x"))),
        (PersistenceError, lambda: anywhere.tell(anywhere.client(Keeper)("a").keep("x"))),
        (PersistenceError, lambda: anywhere.client(Keeper)("a").keep("x")),
    ]
    ids = part_of(anywhere).node.ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for error, refused in refusals:
            lease, ids.leased_until = ids.leased_until, 0.0 if error is PersistenceError else ids.leased_until
            with pytest.raises(error):
                await refused()
            ids.leased_until = lease


async def test_a_broadcast_reaches_every_active_entity_of_the_type(memory: MemoryCluster) -> None:
    """Only residents get it, on all runners; the teller learns how many."""
    first = await memory.start_runner()
    await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    inbox = client.client(Inbox)
    for n in range(20):
        await inbox(str(n)).read()
    await client.client(Sender)("not an inbox").count()
    for caller in (client, first):
        assert await caller.tell(caller.client(Inbox).active().put("all")) == 20
    for n in range(20):
        assert await _read(client, 2, str(n)) == ["all", "all"]
    assert await inbox("new").read() == []


async def test_a_broadcast_cannot_be_awaited(cluster: Cluster) -> None:
    """There is no one reply: the error says what to write."""
    call = cluster.client(Inbox).active().put("all")
    with pytest.raises(TypeError, match=r"a broadcast has no reply: use `await cluster\.tell"):
        await call
    await cluster.tell(call)


async def test_a_cancelled_teller_leaves_nothing_that_waits(memory: MemoryCluster, client: Cluster) -> None:
    """A tell that waits for an owner when its teller is cancelled is not delivered later."""
    inbox = client.client(Inbox)
    await inbox("in").read()
    await memory.kill(memory.runners[0])
    telling = soon(client.tell(inbox("in").put("withdrawn")))
    await until(lambda: part_of(client).node.router.statistics().parked == 1)
    telling.cancel()
    await asyncio.sleep(0)
    await memory.start_runner()
    async with asyncio.timeout(10):
        assert await inbox("in").read() == []
