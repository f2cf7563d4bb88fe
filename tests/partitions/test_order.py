"""Calls of one sender start in the order in which they were sent, whichever way each of them takes."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from actorhub import Cluster, RunnerUnavailable
from actorhub.cluster import part_of
from actorhub.engine.routing.switching import LinkSwitch
from actorhub.testing import MemoryCluster, until
from tests.partitions.entities import Desk, Ledger, hub
from tests.support.gates import outcomes, soon

__all__ = ["hub"]

SLOW = 0.03


class Sender:
    """Tells an entity one number after the other, without waiting until the one before was accepted."""

    def __init__(self, caller: Cluster, entity_id: str, *, durable: bool) -> None:
        self.sent = 0
        self._caller = caller
        desk, ledger = caller.client(Desk)(entity_id), caller.client(Ledger)(entity_id)
        self._call: Callable[[int], Awaitable[int]] = ledger.enter if durable else desk.note
        self.noted = ledger.entries if durable else desk.notes
        """Returns the numbers that the entity has noted, in order."""
        self._told: list[asyncio.Task[int]] = []
        self._accepted: list[int] = []
        self._known: dict[int, int] = {}
        """By number, how many were accepted when it was sent."""

    async def send(self, count: int) -> None:
        """Send some numbers, a few in each turn of the event loop."""
        for _ in range(count):
            self.sent += 1
            self._known[self.sent] = len(self._accepted)
            self._told.append(soon(self._tell(self.sent)))
            if self.sent % 3 == 0:
                await asyncio.sleep(0.001)

    async def _tell(self, number: int) -> int:
        message_id = await self._caller.tell(self._call(number))
        self._accepted.append(number)
        return message_id

    def check_order(self, noted: list[int]) -> None:
        """Check that nothing ran before what was accepted before it was sent.

        What is not accepted yet may be overtaken: while there is no way to the owner, durable tells are stored for it.
        """
        place = {number: index for index, number in enumerate(noted)}
        latest = list(itertools.accumulate((place[number] for number in self._accepted), max, initial=-1))
        assert all(latest[known] < place[number] for number, known in self._known.items()), noted

    async def accepted(self) -> list[int]:
        """Return the numbers that were accepted, in order."""
        found = await outcomes(*self._told)
        assert all(isinstance(one, int | RunnerUnavailable) for one in found), found
        return [number for number, one in enumerate(found, 1) if isinstance(one, int)]


async def _cut(memory: MemoryCluster, who: str) -> tuple[Cluster, Cluster, str]:
    """Return a caller and the owner that it is cut off from, with a slow way around; and an id of the owner."""
    one, owner, third = [await memory.start_runner() for _ in range(3)]
    client = await memory.client()
    await memory.settled()
    caller = one if who == "runner" else client
    far = next(name for name in (f"e{n}" for n in range(400)) if owner.is_local(Desk, name))
    assert owner.is_local(Ledger, far)
    for pair in ((caller, third), (third, owner)):
        memory.network.delay(memory.name_of(pair[0]), memory.name_of(pair[1]), seconds=SLOW)
    memory.cut(caller, owner)
    return caller, owner, far


def _way(caller: Cluster, owner: Cluster) -> str:
    link = part_of(caller).node.peers.linked.get(part_of(owner).node.incarnation)
    return "none" if link is None else "direct" if link.via is None else "around"


@pytest.mark.parametrize("durable", [False, True], ids=["volatile", "durable"])
@pytest.mark.parametrize("who", ["runner", "client"])
async def test_what_goes_directly_does_not_overtake_what_went_around(
    memory: MemoryCluster, who: str, durable: bool
) -> None:
    """Tells that are sent while the direct link comes back run in their order, and none of them fails."""
    caller, owner, far = await _cut(memory, who)
    sender = Sender(caller, far, durable=durable)
    await until(lambda: _way(caller, owner) == "around")
    await sender.send(60)
    memory.heal(caller, owner)
    async with asyncio.timeout(10):
        while _way(caller, owner) != "direct":
            await sender.send(3)
    await sender.send(60)
    assert await sender.accepted() == list(range(1, sender.sent + 1))
    await until_noted(sender)
    noted = await sender.noted()
    assert sorted(noted) == list(range(1, sender.sent + 1))
    sender.check_order(noted)
    assert durable or noted == sorted(noted)


async def until_noted(sender: Sender) -> None:
    """Wait until everything has been noted: a durable tell is accepted when it is stored."""
    async with asyncio.timeout(10):
        while len(await sender.noted()) < sender.sent:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("who", ["runner", "client"])
async def test_the_order_holds_over_many_cuts(memory: MemoryCluster, who: str) -> None:
    """However often the direct link goes and comes, accepted tells run in their order, and each of them once."""
    caller, owner, far = await _cut(memory, who)
    sender = Sender(caller, far, durable=True)
    for _ in range(4):
        await sender.send(30)
        memory.heal(caller, owner)
        async with asyncio.timeout(10):
            while _way(caller, owner) != "direct":
                await sender.send(3)
        await sender.send(30)
        memory.cut(caller, owner)
    accepted = await sender.accepted()
    assert accepted == list(range(1, sender.sent + 1))
    await until_noted(sender)
    noted = await sender.noted()
    assert sorted(noted) == accepted
    sender.check_order(noted)


async def test_a_link_that_breaks_before_its_turn_overtakes_nothing(memory: MemoryCluster) -> None:
    """What it held back goes over the next link, and stays behind what is still under way around."""
    caller, owner, far = await _cut(memory, "runner")
    third = memory.runners[2]
    node, incarnation = part_of(caller).node, part_of(owner).node.incarnation
    sender = Sender(caller, far, durable=False)
    await until(lambda: _way(caller, owner) == "around")
    memory.network.hold(memory.name_of(third), memory.name_of(owner))
    await sender.send(3)
    memory.heal(caller, owner)
    await until(lambda: _way(caller, owner) == "direct")
    held = node.peers.direct(incarnation)
    assert held is not None
    await sender.send(3)
    _ = await node.transport.connect(memory.name_of(owner), node.connector, deadline=2)
    held.link.close("it broke")
    await sender.send(3)
    await asyncio.sleep(SLOW)
    memory.network.release(memory.name_of(third), memory.name_of(owner))
    assert await sender.accepted() == list(range(1, 10))
    assert await sender.noted() == list(range(1, 10))


async def test_the_order_needs_the_switch_to_wait(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait for what went around, calls overtake it: this is what these tests look for."""
    monkeypatch.setattr(LinkSwitch, "begin", lambda *_: None)
    caller, owner, far = await _cut(memory, "runner")
    sender = Sender(caller, far, durable=False)
    await until(lambda: _way(caller, owner) == "around")
    await sender.send(60)
    memory.heal(caller, owner)
    async with asyncio.timeout(10):
        while _way(caller, owner) != "direct":
            await sender.send(3)
    await sender.send(60)
    assert await sender.accepted() == list(range(1, sender.sent + 1))
    noted = await sender.noted()
    assert sorted(noted) == list(range(1, sender.sent + 1))
    assert noted != sorted(noted)
