"""Two processes that cannot reach each other call each other through a third one."""

import asyncio

import pytest

from actorhub import Cluster
from actorhub.cluster import part_of
from actorhub.engine.routing.peers import Peer
from actorhub.testing import MemoryCluster, until
from tests.partitions.entities import KINDS, Desk, hub
from tests.support.gates import gates, soon

__all__ = ["hub"]


class Cut:
    """A caller that is cut off from the owner of `far`, and from nobody else."""

    def __init__(self, memory: MemoryCluster, caller: Cluster, owner: Cluster, third: Cluster) -> None:
        self.memory = memory
        self.caller = caller
        self.owner = owner
        self.third = third
        self.far = next(name for name in (f"e{n}" for n in range(400)) if owner.is_local(Desk, name))
        self.near = next(name for name in (f"e{n}" for n in range(400)) if third.is_local(Desk, name))

    def heal(self) -> None:
        """Make the network whole again."""
        for runner in self.memory.runners:
            if runner is not self.caller:
                self.memory.heal(self.caller, runner)

    def link(self) -> Peer | None:
        """Return over which link the caller calls the owner."""
        return part_of(self.caller).node.peers.linked.get(part_of(self.owner).node.incarnation)

    async def goes_around(self) -> None:
        """Wait until there is a link through the third process."""
        await until(lambda: (link := self.link()) is not None and link.via is not None, "a way around")

    async def is_direct(self) -> None:
        """Wait until there is a direct link."""
        await until(lambda: (link := self.link()) is not None and link.via is None, "a direct link")


@pytest.fixture(params=["runner", "client"])
async def cut(request: pytest.FixtureRequest, memory: MemoryCluster) -> Cut:
    """Three runners and a client; one of them is cut off from one of the others."""
    one, owner, third = [await memory.start_runner() for _ in range(3)]
    client = await memory.client()
    await memory.settled()
    cut = Cut(memory, one if request.param == "runner" else client, owner, third)
    memory.cut(cut.caller, owner)
    if cut.caller is client:
        memory.cut(client, one)
    return cut


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_call_goes_around(cut: Cut, kind: str) -> None:
    """Whatever a program can ask of an entity works as if the network were whole."""
    async with asyncio.timeout(20):
        await KINDS[kind](cut.caller, cut.far, cut.near)
    await cut.goes_around()


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_call_works_when_the_network_is_whole_again(cut: Cut, kind: str) -> None:
    """The direct link takes over, and calls go over it."""
    await cut.goes_around()
    cut.heal()
    await cut.is_direct()
    async with asyncio.timeout(20):
        await KINDS[kind](cut.caller, cut.far, cut.near)


async def test_a_call_that_went_around_is_answered_after_the_direct_link_is_back(cut: Cut) -> None:
    """The way around stays until nothing is in flight on it, and is closed then."""
    asked = soon(cut.caller.client(Desk)(cut.far).hold())
    await gates[cut.far].came()
    cut.heal()
    await cut.is_direct()
    assert await cut.caller.client(Desk)(cut.near).note(1) == 1
    gates[cut.far].open()
    assert await asked == 1
    relays = [part_of(each).node.relays for each in (cut.caller, cut.owner, cut.third)]
    await until(lambda: all(r.statistics().links == r.statistics().carried == 0 for r in relays), deadline=15)


async def test_the_way_around_ends_with_the_runner_that_it_goes_through(cut: Cut) -> None:
    """Its death is that of a link: what was in flight fails as maybe executed, and another way is found if there is."""
    await cut.goes_around()
    link = cut.link()
    assert link is not None
    assert link.via is not None
    via = next(each for each in cut.memory.runners if each.runner == link.via.runner)
    fourth = await cut.memory.start_runner()
    await cut.memory.kill(via)
    await cut.goes_around()
    link = cut.link()
    assert link is not None
    assert link.via is not None
    assert link.via.runner == fourth.runner
