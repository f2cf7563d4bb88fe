"""The memory transport keeps the promises, and its faults do what they say."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from actorhub.conformance.malformed_envelopes import MalformedEnvelopeSuite
from actorhub.conformance.transport import TransportSuite
from actorhub.conformance.transport_pair import Pair, Recorder, RecordingAcceptor, hello, numbers, reply
from actorhub.core.envelope import Hello
from actorhub.core.errors import RunnerUnavailable
from actorhub.transport.memory import MemoryNetwork, MemoryTransport
from actorhub.transport.outbox import LinkLimits


class MemoryWorld:
    """Transports on one memory network."""

    dead_address = "nobody:1"

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self._made: list[MemoryTransport] = []

    def listener(self, hello: Hello, limits: LinkLimits | None = None, address: str | None = None) -> MemoryTransport:
        address = address or f"memory:{len(self._made)}"
        return self._make(Hello(hello.protocol, hello.namespace, address, hello.incarnation), limits)

    def client(self, hello: Hello, limits: LinkLimits | None = None) -> MemoryTransport:
        return self._make(hello, limits)

    def _make(self, hello: Hello, limits: LinkLimits | None) -> MemoryTransport:
        self._made.append(MemoryTransport(self.network, hello, limits=limits))
        return self._made[-1]

    async def aclose(self) -> None:
        for transport in self._made:
            await transport.aclose(1)


@pytest.fixture
async def world() -> AsyncIterator[MemoryWorld]:
    world = MemoryWorld()
    yield world
    await world.aclose()


class TestMemoryTransport(TransportSuite, MalformedEnvelopeSuite):
    """The shipped suite."""


async def test_a_cut_breaks_both_ends_until_it_is_healed(world: MemoryWorld) -> None:
    """What was under way is lost, and no new link comes to be before the network is whole again."""
    pair = Pair(world)
    link = await pair.link()
    _, recorder = pair.far()
    world.network.hold("connecting", pair.address)
    link.send(reply(1))
    await link.drain()
    world.network.cut("connecting", pair.address)
    await pair.near.until_closed()
    await recorder.until_closed()
    assert recorder.envelopes == []
    assert pair.near.unsent == []
    with pytest.raises(RunnerUnavailable):
        await pair.connecting.connect(pair.address, Recorder(), deadline=0.05)
    world.network.heal("connecting", pair.address)
    await pair.connecting.connect(pair.address, Recorder(), deadline=1)


async def test_held_frames_arrive_in_order_after_release(world: MemoryWorld) -> None:
    """A silent network keeps back frames and the end of the link; neither is lost."""
    pair = Pair(world)
    link = await pair.link()
    _, recorder = pair.far()
    world.network.hold("connecting", pair.address)
    for number in range(3):
        link.send(reply(number))
        await link.drain()
    link.close("done")
    await pair.near.until_closed()
    with pytest.raises(RunnerUnavailable, match="did not answer within"):
        await pair.connecting.connect(pair.address, Recorder(), deadline=0.01)
    assert recorder.envelopes == []
    assert recorder.closings == []
    world.network.release("connecting", pair.address)
    await recorder.until_closed()
    assert numbers(recorder.envelopes) == [0, 1, 2]


async def test_delayed_frames_take_their_time_and_keep_their_order(world: MemoryWorld) -> None:
    """A frame arrives no earlier than its delay."""
    pair = Pair(world)
    link = await pair.link()
    _, recorder = pair.far()
    world.network.delay("connecting", pair.address, seconds=0.05)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for number in range(3):
        link.send(reply(number))
        await link.drain()
    await recorder.until_received(3)
    assert loop.time() - begin >= 0.05
    assert numbers(recorder.envelopes) == [0, 1, 2]


async def test_a_lost_frame_was_sent_and_is_not_received(world: MemoryWorld) -> None:
    """The link breaks with nothing unsent: the outcome is unknown to the sender."""
    pair = Pair(world)
    link = await pair.link()
    _, recorder = pair.far()
    world.network.lose_next("connecting", pair.address)
    link.send(reply(1))
    await pair.near.until_closed()
    await recorder.until_closed()
    assert pair.near.unsent == []
    assert recorder.envelopes == []


async def test_a_dropped_process_is_gone_for_its_peers(world: MemoryWorld) -> None:
    """Its links break, and nobody answers at its address."""
    pair = Pair(world)
    await pair.link()
    world.network.drop(pair.address)
    await pair.near.until_closed()
    with pytest.raises(RunnerUnavailable):
        await pair.connecting.connect(pair.address, Recorder(), deadline=1)
    again = world.listener(hello("again"), address=pair.address)
    assert await again.listen(RecordingAcceptor()) == pair.address
