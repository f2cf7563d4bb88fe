"""Durable messages when their shards move: callers see latency and no errors, and each message's effect once."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import ActorhubError, CallTimeout, Cluster, EntityNotAssigned, MailboxFull
from actorhub.cluster import part_of
from actorhub.core.address import ShardOwner
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.peers import Peer
from actorhub.storage.message_ports import MessageFilter
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, Sender, hub, owner, read
from tests.support.gates import failure, gates, outcomes, soon

__all__ = ["hub"]


async def _three(memory: MemoryCluster) -> Cluster:
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    return await memory.client()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30])
@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_runner_that_ends_at_any_moment_is_replaced(memory: MemoryCluster, steps: int, end: str) -> None:
    """Asks under way when it is killed, or told to leave, are all answered, and have their effect once."""
    client = await _three(memory)
    log = client.client(Log)
    asks = soon(outcomes(*(log(f"e{number}").add("x") for number in range(60))))
    for _ in range(steps):
        await asyncio.sleep(0)
    await getattr(memory, end)(memory.runners[1])
    async with asyncio.timeout(15):
        assert await asks == [1] * 60
    assert await outcomes(*(log(f"e{number}").read() for number in range(60))) == [["x"]] * 60


async def test_a_killed_runner_s_running_handler_runs_again(memory: MemoryCluster) -> None:
    """The caller gets the next owner's reply; what the first run would have told is told once."""
    client = await _three(memory)
    asked = soon(client.client(Sender)("s").send_and_hold("a", "one"))
    await gates["s"].came()
    await memory.kill(owner(memory, client, Sender, "s"))
    await gates["s"].came(2)
    gates["s"].open()
    async with asyncio.timeout(10):
        await asked
    assert await read(client, "a", 1) == ["one"]
    assert await client.client(Sender)("s").sent() == 1


async def test_the_queue_of_a_killed_runner_is_worked_off_in_order(memory: MemoryCluster) -> None:
    """What waited in its mailboxes runs at the next owner, in the order in which it was accepted."""
    client = await _three(memory)
    log = client.client(Log)("a")
    await client.tell(log.hold())
    await gates["a"].came()
    for number in range(50):
        await client.tell(log.add(str(number)))
    await memory.kill(owner(memory, client, Log, "a"))
    gates["a"].open()
    await client.tell(log.add("50"))
    assert await read(client, "a", 52, deadline=10) == ["held", *(str(number) for number in range(51))]


async def test_a_leaving_runner_finishes_what_runs_and_hands_over_the_rest(memory: MemoryCluster) -> None:
    """The running handler commits once, the queue goes on elsewhere, no caller sees an error."""
    client = await _three(memory)
    log = client.client(Log)("a")
    first = soon(log.hold())
    await gates["a"].came()
    rest = soon(outcomes(*(log.add(str(number)) for number in range(20))))
    await asyncio.sleep(0.02)
    stopping = soon(memory.stop(owner(memory, client, Log, "a")))
    late = soon(log.add("late"))
    await asyncio.sleep(0.05)
    gates["a"].open()
    await stopping
    async with asyncio.timeout(10):
        assert await first == 1
        assert await rest == list(range(2, 22))
        assert await late == 22
    assert gates["a"].entered == 1


async def test_tells_are_accepted_while_nobody_owns_the_shard(memory: MemoryCluster) -> None:
    """With the owner just killed, a tell is stored by another runner, or by the next owner; it runs there."""
    client = await _three(memory)
    log = client.client(Log)("a")
    await log.add("first")
    await memory.kill(owner(memory, client, Log, "a"))
    async with asyncio.timeout(10):
        told = [await client.tell(log.add(str(number))) for number in range(5)]
        assert [await client.reply(message_id) for message_id in told] == [2, 3, 4, 5, 6]
    assert await log.read() == ["first", "0", "1", "2", "3", "4"]


async def test_asks_wait_for_an_owner(memory: MemoryCluster) -> None:
    """With no runner at all an ask waits; it is answered when one starts."""
    first = await memory.start_runner()
    client = await memory.client()
    assert await client.client(Log)("a").add("one") == 1
    await memory.kill(first)
    asked = soon(client.client(Log)("a").add("two"))
    told = soon(client.tell(client.client(Log)("a").add("three")))
    await asyncio.sleep(0.4)
    assert not asked.done()
    await memory.start_runner()
    async with asyncio.timeout(10):
        assert {await asked, await client.reply(await told)} == {2, 3}


async def test_an_ask_that_never_left_says_that_nothing_ran(memory: MemoryCluster) -> None:
    """Without any owner until the deadline: EntityNotAssigned, certainly not executed."""
    first = await memory.start_runner()
    client = await memory.client()
    await memory.kill(first)
    error = await failure(client.client(Log).options(timeout=timedelta(seconds=0.3))("a").add("one"))
    assert isinstance(error, EntityNotAssigned)
    assert not error.possibly_executed


async def test_an_ask_that_lost_its_runner_never_says_that_nothing_ran(memory: MemoryCluster) -> None:
    """Its message is stored and will run, so the error of the deadline says: perhaps executed."""
    first = await memory.start_runner()
    client = await memory.client()
    asked = soon(failure(client.client(Log).options(timeout=timedelta(seconds=0.5))("a").hold("stored")))
    await gates["a"].came()
    await memory.kill(first)
    error = await asked
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed
    gates["a"].open()
    await memory.start_runner()
    assert await read(client, "a", 1) == ["stored"]


async def test_an_ask_whose_link_breaks_at_its_deadline_never_says_that_nothing_ran(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """Its runner was asked for a last word, and did not live to say it."""
    asked = soon(failure(client.client(Log).options(timeout=timedelta(seconds=0.2))("a").hold("stored")))
    await gates["a"].came()
    memory.network.hold(memory.name_of(runner), memory.name_of(client))
    peers = part_of(client).node.peers
    await until(lambda: any(sent.abandoned_for for peer in peers.runners() for sent in peer.pending.values()))
    memory.cut(runner, client)
    error = await asked
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed
    gates["a"].open()


@pytest.mark.parametrize("how", ["at its deadline", "and finds no room", "and is refused"])
async def test_an_ask_that_comes_back_never_says_that_nothing_ran(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its runner had stored it before it lost the shard, so the next owner runs it, whatever becomes of the call."""
    client = await _three(memory)
    held = soon(outcomes(client.client(Log)("a").hold()))
    await gates["a"].came()
    asked = soon(failure(client.client(Log)("a").add("stored")))
    await until(lambda: len(memory.store.messages.messages(MessageFilter())) == 2)
    router = part_of(client).node.router
    on_not_owner = router.on_not_owner

    def full(*_: object) -> None:
        raise MailboxFull("there is no room")

    def comes_back(peer: Peer, request_id: int, hint: ShardOwner | None) -> None:
        if how == "at its deadline":
            router.deadlines.drop(peer.pending[request_id])
            router._on_expired(peer.pending[request_id])  # pyright: ignore[reportPrivateUsage]
        elif how == "and finds no room":
            monkeypatch.setattr(Peer, "check_room", full)
        else:
            monkeypatch.setattr(Inbound, "_check", full)
        on_not_owner(peer, request_id, hint)

    monkeypatch.setattr(router, "on_not_owner", comes_back)
    first = owner(memory, client, Log, "a")
    other = next(runner.runner for runner in memory.runners if runner is not first)
    assert other is not None
    memory.store.take([client.shard_of(Log, "a")], other)
    gates["a"].open()
    error = await asked
    assert isinstance(error, CallTimeout if how == "at its deadline" else MailboxFull)
    assert error.possibly_executed
    await held


async def test_a_caller_whose_link_broke_gets_its_reply(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """Cut while the handler runs, healed later: the one reply comes, the handler ran once."""
    asked = soon(client.client(Log)("a").hold())
    await gates["a"].came()
    memory.cut(runner, client)
    gates["a"].open()
    await until(lambda: gates["a"].left == ["passed"])
    memory.heal(runner, client)
    async with asyncio.timeout(10):
        assert await asked == 1
    assert gates["a"].entered == 1


@pytest.mark.parametrize("lost", ["request", "reply"])
async def test_a_lost_answer_is_asked_for_again(
    memory: MemoryCluster, runner: Cluster, client: Cluster, lost: str
) -> None:
    """A tell or an ask whose frame got lost with its link is sent again, and counts once."""
    log = client.client(Log)("a")
    names = (memory.name_of(client), memory.name_of(runner))
    for number in range(3):
        memory.network.lose_next(*(names if lost == "request" else names[::-1]))
        async with asyncio.timeout(10):
            assert await log.add(f"ask {number}") == 2 * number + 1
        memory.network.lose_next(*(names if lost == "request" else names[::-1]))
        async with asyncio.timeout(10):
            assert await client.reply(await client.tell(log.add(f"tell {number}"))) == 2 * number + 2


async def test_a_tell_around_a_cut_link_keeps_its_place(memory: MemoryCluster) -> None:
    """What another runner stored, because the owner could not be reached, runs before what is told later."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    await memory.settled()
    log = client.client(Log)("a")
    await log.add("first")
    host = owner(memory, client, Log, "a")
    memory.cut(client, host)
    async with asyncio.timeout(5):
        await client.tell(log.add("around"))
    memory.heal(client, host)
    async with asyncio.timeout(5):
        await log.add("straight")
    assert await log.read() == ["first", "around", "straight"]


async def test_told_messages_survive_the_teller_s_death(memory: MemoryCluster) -> None:
    """A runner that dies right after its commit has not told the owner yet, who finds the message nevertheless."""
    client = await _three(memory)
    sender = owner(memory, client, Sender, "s")
    target = next(f"a{n}" for n in range(50) if owner(memory, client, Log, f"a{n}") is not sender)
    memory.network.hold(memory.name_of(sender), memory.name_of(owner(memory, client, Log, target)))
    await client.client(Sender)("s").send(target, "one")
    await memory.kill(sender)
    assert await read(client, target, 1) == ["one"]


async def test_a_frozen_runner_s_messages_are_taken_over(memory: MemoryCluster) -> None:
    """A runner whose locks ended without its knowledge commits nothing; its messages run elsewhere, once each."""
    client = await _three(memory)
    log = client.client(Log)("a")
    asked = soon(log.hold())
    await gates["a"].came()
    old = owner(memory, client, Log, "a")
    memory.store.terminate_sessions(part_of(old).node.incarnation)
    await gates["a"].came(2)
    gates["a"].open()
    async with asyncio.timeout(10):
        assert await asked == 1
    assert await log.read() == ["held"]


async def test_a_store_that_is_away_for_a_while_loses_nothing(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """Acknowledged messages run when it is back; what was refused with an error may be sent again by its key."""
    log = client.client(Log)("a")
    await log.add("first")
    await client.tell(log.hold())
    await gates["a"].came()
    told = [await client.tell(log.add(str(number))) for number in range(3)]
    memory.store.available = False
    gates["a"].open()
    error = await failure(client.tell(log.add("refused"), key="k"))
    assert isinstance(error, ActorhubError)
    memory.store.available = True
    await client.tell(log.add("refused"), key="k")
    async with asyncio.timeout(15):
        for message_id in told:
            await client.reply(message_id)
        found = await read(client, "a", 6, deadline=10)
    assert sorted(found) == ["0", "1", "2", "first", "held", "refused"]
