"""Two processes that cannot reach each other call each other through a third one."""

import asyncio

import pytest

from actorhub import RunnerUnavailable
from actorhub.cluster import part_of
from actorhub.core.envelope import Leaving, Relayed, encode_frame
from actorhub.testing import MemoryCluster, until
from tests.partitions.cuts import Cut, cut_off
from tests.partitions.entities import KINDS, Desk, hub
from tests.support.gates import failure, gates, soon

__all__ = ["hub"]


@pytest.fixture(params=["runner", "client"])
async def cut(request: pytest.FixtureRequest, memory: MemoryCluster) -> Cut:
    """A runner, or a client, that is cut off from the owner of some entities."""
    return await cut_off(memory, request.param)


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


async def test_a_way_around_that_was_given_up_is_not_used_again(memory: MemoryCluster) -> None:
    """A direct link that breaks at once leaves the caller with the way around that it has just called done with."""
    cut = await cut_off(memory, "runner")
    await cut.goes_around()
    around = cut.link()
    # Keeps the way around open, since the owner waits for the answer over it.
    home = next(name for name in (f"e{n}" for n in range(400)) if cut.caller.is_local(Desk, name))
    asked_back = soon(cut.owner.client(Desk)(home).hold())
    await gates[home].came()
    assert around is not None
    cut.heal()
    await cut.is_direct()
    await until(lambda: around.is_retired)
    memory.cut(cut.caller, cut.owner)
    await cut.goes_around()
    assert cut.link() is not around
    asked = soon(cut.caller.client(Desk)(cut.far).hold())
    await gates[cut.far].came()
    cut.heal()
    gates[home].open()
    await asked_back
    await until(lambda: not around.link.is_open, deadline=15)
    await cut.is_direct()
    gates[cut.far].open()
    assert await asked == 1


async def test_a_runner_that_leaves_is_known_to_leave_on_each_of_its_links(memory: MemoryCluster) -> None:
    """It says so over one of them, and the other end may use another one."""
    cut = await cut_off(memory, "runner")
    await cut.goes_around()
    home = next(name for name in (f"e{n}" for n in range(400)) if cut.caller.is_local(Desk, name))
    asked_back = soon(cut.owner.client(Desk)(home).hold())  # The way around stays open for it.
    await gates[home].came()
    cut.heal()
    await cut.is_direct()
    caller, owner = part_of(cut.caller).node, part_of(cut.owner).node
    links = [peer for peer in caller.peers.every() if peer.runner.incarnation == owner.incarnation]
    assert len(links) > 1
    owner.peers.linked[caller.incarnation].link.send(Leaving("it is tested"))
    await until(lambda: all(peer.is_leaving for peer in links))
    gates[home].open()
    await asked_back


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


async def test_a_way_around_that_breaks_on_its_far_side_fails_what_was_on_it(cut: Cut) -> None:
    """The caller learns at once that its call may have run, and the handler that nobody waits for it."""
    asked = soon(failure(cut.caller.client(Desk)(cut.far).hold()))
    await gates[cut.far].came()
    cut.memory.cut(cut.third, cut.owner)
    async with asyncio.timeout(2):
        error = await asked
        assert isinstance(error, RunnerUnavailable)
        assert error.possibly_executed
        while gates[cut.far].left != ["cancelled"]:
            await asyncio.sleep(0.01)


async def test_a_way_around_that_breaks_on_its_near_side_ends_what_was_on_it(cut: Cut) -> None:
    """The owner learns that nobody waits."""
    asked = soon(failure(cut.caller.client(Desk)(cut.far).hold()))
    await gates[cut.far].came()
    cut.memory.cut(cut.caller, cut.third)
    async with asyncio.timeout(2):
        error = await asked
        assert isinstance(error, RunnerUnavailable)
        assert error.possibly_executed
        while gates[cut.far].left != ["cancelled"]:
            await asyncio.sleep(0.01)


async def test_a_call_that_has_not_left_goes_another_way(cut: Cut) -> None:
    """The link to the runner in between breaks while the call is queued there, so it has certainly not run."""
    await cut.goes_around()
    note = cut.caller.client(Desk)(cut.far).note
    asked = [soon(note(1)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # The calls are in a frame of the way around, and that in the queue of the link below it.
    cut.memory.cut(cut.caller, cut.third)
    cut.heal()
    async with asyncio.timeout(10):
        assert sorted([await one for one in asked]) == [1, 2, 3]


async def test_nobody_can_pass_for_somebody_else_through_a_third_process(cut: Cut) -> None:
    """The runner in between says who a link comes from, and the other end compares that with the Hello."""
    await cut.goes_around()
    owner, third = part_of(cut.owner).node, part_of(cut.third).node
    between = part_of(cut.caller).node.peers.direct(third.incarnation)
    assert between is not None
    ways = 1 if cut.caller in cut.memory.runners else 2  # The client is cut off from the second runner, too.
    await until(lambda: owner.relays.statistics().links == 1 and third.relays.statistics().carried == ways)
    taken, carried = owner.relays.counters.links_opened, third.relays.statistics().carried
    pretended = encode_frame([third.transport.hello])
    between.link.send(Relayed("forged", pretended, target=owner.incarnation, source=third.incarnation))
    assert await cut.caller.client(Desk)(cut.far).note(1) == 1
    assert owner.relays.counters.links_opened == taken
    await until(lambda: third.relays.statistics().carried == carried)


async def test_there_is_no_way_around_through_two_runners(memory: MemoryCluster) -> None:
    """Frames are passed on once: between two direct links, and never in a circle."""
    one, two, three, four = [await memory.start_runner() for _ in range(4)]
    await memory.settled()
    for pair in ((one, three), (one, four), (two, four)):
        memory.cut(*pair)
    # From the first to the last it takes two in between.
    first, second, third, last = [part_of(each).node for each in (one, two, three, four)]
    await until(lambda: last.incarnation not in first.peers.linked)
    await until(lambda: (way := first.peers.linked.get(third.incarnation)) is not None and way.via is not None)
    between = first.peers.direct(second.incarnation)
    assert between is not None
    assert third.incarnation in second.peers.linked
    with pytest.raises(RunnerUnavailable, match="there is no link to the runner from here either"):
        await first.relays.connect(between, last.itself, 2.0)
    assert last.incarnation not in first.peers.linked


async def test_a_runner_that_leaves_gracefully_fails_no_call_that_goes_through_it(memory: MemoryCluster) -> None:
    """Another way is opened while the first one still works, and its calls are answered before it ends."""
    cut = await cut_off(memory, "runner")
    await cut.goes_around()
    fourth = await memory.start_runner()
    await until(lambda: part_of(cut.caller).node.peers.direct(part_of(fourth).node.incarnation) is not None)
    desk = cut.caller.client(Desk)(cut.far)
    asked = soon(desk.hold())
    await gates[cut.far].came()
    leaving = soon(memory.stop(cut.third))
    await until(lambda: (way := cut.link()) is not None and way.via is not None and way.via.runner == fourth.runner)
    gates[cut.far].open()
    assert await asked == 1
    await leaving
    assert await desk.note(1) == 1
