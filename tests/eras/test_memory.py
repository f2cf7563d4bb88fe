"""The engine goes by eras, on the store in memory."""

import asyncio

import pytest

from actorhub import Cluster, RunnerUnavailable
from actorhub.core.envelope import PROTOCOL_VERSION, Hello
from actorhub.core.errors import ConfigurationError
from actorhub.engine import client_node
from actorhub.testing import MemoryCluster
from actorhub.testing.cluster import until
from actorhub.transport.handshake import check_hello
from tests.eras.books import Book, enter_all, entering, hub, may_enter, read_all
from tests.support.parts import client_of, runner_of


async def test_epochs_of_a_past_that_is_gone_are_forgotten() -> None:
    """After moves to higher epochs that the store has lost, everybody finds the owners of the lower ones."""
    async with MemoryCluster(hub) as memory:
        first = await memory.start_runner()
        client = await memory.client()
        kept = await enter_all(client)
        backup = memory.store.back_up()
        second = await memory.start_runner()
        for _ in range(3):
            third = await memory.start_runner()
            await memory.settled()
            await memory.stop(third)
        await memory.settled()
        assert await enter_all(second) == dict.fromkeys(kept, 2)
        highest = dict(client_of(client).node.table.newest)
        memory.store.restore(backup)
        await until(lambda: all(runner_of(runner).health().lost for runner in (first, second)))
        for cluster in (first, second, client):
            assert await read_all(cluster) == kept
        lower = client_of(client).node.table.newest
        assert any(lower[shard] < highest[shard] for shard in lower)
        assert await enter_all(client) == dict.fromkeys(kept, 2)


async def test_a_client_without_a_database_does_not_go_back_to_an_earlier_era() -> None:
    """Of two runners in different eras it takes the later one's word, and refuses the other."""
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = client_of(await memory.client())
        await memory.settled()
        peer = client.node.peers.runners()[0]
        memory.store.restart()
        await runner_of(runner).storage.check_era()
        await until(lambda: client.node.peers.runners() not in ([], [peer]))
        with pytest.raises(RunnerUnavailable, match="is still in era"):
            client.on_linked(peer)


async def test_a_client_without_a_database_goes_back_when_nobody_is_left_of_the_later_era(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server that began it may be gone for good, and another one never heard of that era."""
    monkeypatch.setattr(client_node, "_ERA_PATIENCE", 0.0)
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        client = client_of(await memory.client())
        await memory.settled()
        peer = client.node.peers.runners()[0]
        memory.store.restart()
        await runner_of(runner).storage.check_era()
        await until(lambda: client.node.peers.runners() not in ([], [peer]))
        await memory.kill(runner)
        await until(lambda: not client.node.peers.runners())
        client.on_linked(peer)


async def test_a_durable_call_that_waited_when_its_message_was_lost_is_stored_again() -> None:
    """Its caller gets the reply of the run that the store has."""
    async with MemoryCluster(hub) as memory:
        await memory.start_runner()
        client = await memory.client()
        await enter_all(client)
        backup = memory.store.back_up()
        entering.clear()
        may_enter.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_enter_late(client))
            await entering.wait()
            memory.store.restore(backup)
            may_enter.set()
        assert waiting.result() == 1


async def _enter_late(cluster: Cluster) -> int:
    return await cluster.client(Book)("late").enter_late()


@pytest.mark.parametrize(
    ("theirs", "fits"),
    [
        ({"cluster": "", "era": ""}, True),
        ({"cluster": "a", "era": "2"}, True),
        ({"cluster": "b", "era": "2"}, False),
        ({"cluster": "a", "era": "1"}, False),
    ],
)
def test_links_are_between_processes_of_one_database_in_one_era(theirs: dict[str, str], fits: bool) -> None:
    """Who names neither, for want of a database or because its release knows no eras, fits everywhere."""
    ours = Hello(PROTOCOL_VERSION, "ns", "h:1", "i", cluster="a", era="2")
    peer = Hello(PROTOCOL_VERSION, "ns", "h:2", "j", **theirs)  # type: ignore[arg-type]
    for one, other in ((ours, peer), (peer, ours)):
        if fits:
            assert check_hello([other], one) is other
        else:
            with pytest.raises(ConfigurationError, match=r"one side (uses|is in)"):
                check_hello([other], one)
