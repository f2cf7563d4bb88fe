"""A runner whose address refuses connections is taken for dead only if no other runner reaches it either."""

import pytest

from actorhub import Cluster, Hub
from actorhub.cluster import part_of
from actorhub.engine.anycast.letting_go import FormerOwnerRequests
from actorhub.engine.runner import Runner
from actorhub.testing import MemoryCluster, until
from tests.partitions.entities import Desk

hub = Hub()
hub.register(Desk)


@pytest.fixture
async def memory_runners(memory: MemoryCluster) -> list[Runner]:
    """Three runners, each linked to the others."""
    started: list[Cluster] = [await memory.start_runner() for _ in range(3)]
    await memory.settled()
    found = [part_of(each) for each in started]
    return [each for each in found if isinstance(each, Runner)]


async def refuse(memory: MemoryCluster, one: Runner, other: Runner) -> None:
    """Break the link between two runners, and have the address of the second refuse connections, as a firewall may."""
    address = other.info.runner.address
    for each in (one, other):
        each.node.connector.want([])
    memory.network.listeners.pop(address)
    memory.network.cut(one.info.runner.address, address)
    memory.network.heal(one.info.runner.address, address)
    await until(lambda: one.node.peers.by_runner(other.info.runner) is None, "the link is broken")


async def test_a_runner_that_another_one_reaches_is_not_dead(
    memory: MemoryCluster, memory_runners: list[Runner]
) -> None:
    """The other one opens a way to it, which is used from then on."""
    one, other, _ = memory_runners
    await refuse(memory, one, other)
    assert not await FormerOwnerRequests(one.node).is_dead(other.info.runner)
    way = one.node.peers.by_runner(other.info.runner)
    assert way is not None
    assert way.via is not None


async def test_a_former_owner_that_another_one_reaches_has_not_let_go(
    memory: MemoryCluster, memory_runners: list[Runner]
) -> None:
    """It still acts for its shards until its lease is over, though its lock session may have ended."""
    one, other, _ = memory_runners
    await refuse(memory, one, other)
    assert not await FormerOwnerRequests(one.node).has_let_go(other.info.runner, [], 2.0)


async def test_a_runner_that_nobody_reaches_is_dead(memory: MemoryCluster, memory_runners: list[Runner]) -> None:
    """No link to it is left, and its address refuses connections."""
    one, other, _ = memory_runners
    victim = next(each for each in memory.runners if part_of(each) is other)
    await memory.kill(victim)
    await until(lambda: one.node.peers.by_runner(other.info.runner) is None, "the link is broken")
    assert await FormerOwnerRequests(one.node).is_dead(other.info.runner)


async def test_a_runner_that_cannot_be_asked_is_not_known_dead(
    memory: MemoryCluster, memory_runners: list[Runner]
) -> None:
    """A way that is cut says nothing, nor does a link that is open."""
    one, other, third = memory_runners
    requests = FormerOwnerRequests(one.node)
    assert not await requests.is_dead(other.info.runner)
    for via in (one, third):
        memory.network.cut(via.info.runner.address, other.info.runner.address)
    await until(lambda: one.node.peers.by_runner(other.info.runner) is None, "the link is broken")
    assert not await requests.is_dead(other.info.runner)
