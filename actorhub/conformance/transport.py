"""The promises of `actorhub.transport.ports`, as tests that every transport must pass.

Subclass `TransportSuite` in a test module and give it a fixture `world` that makes the transports of one test.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol

import pytest

from actorhub.core.codec import decode_error
from actorhub.core.envelope import PROTOCOL_VERSION, TELL, Envelope, Failure, Hello, Leaving, Reply, Request
from actorhub.core.errors import ActorhubError, ConfigurationError, MessageTooLarge, RunnerUnavailable, ShuttingDown
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Link, LinkEvents, Transport
from actorhub.transport.statistics import TransportStatistics

PATIENCE_SECONDS = 10.0
"""How long a test waits for something that must happen."""

SMALL = LinkLimits(max_message_bytes=64 << 10, frame_bytes=16 << 10, max_queued_bytes=256 << 10)

_caller: contextvars.ContextVar[str] = contextvars.ContextVar("_caller", default="nobody")


class MeasuredTransport(Transport, Protocol):
    """A transport that counts."""

    def statistics(self) -> TransportStatistics:
        """Return the counts so far."""
        ...


class TransportWorld(Protocol):
    """Makes the transports of one test, which can reach each other, and closes them after it."""

    @property
    def dead_address(self) -> str:
        """An address at which nobody listens."""
        ...

    def listener(self, hello: Hello, limits: LinkLimits | None = None, address: str | None = None) -> MeasuredTransport:
        """Return a transport that can listen, at an address of the world's choice where none is given."""
        ...

    def client(self, hello: Hello, limits: LinkLimits | None = None) -> MeasuredTransport:
        """Return a transport that only connects."""
        ...


class Recorder:
    """A link's user that keeps what it is told."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.frames: list[int] = []
        """How many envelopes each frame held."""
        self.closings: list[tuple[str, list[Envelope]]] = []
        self.callers: set[str] = set()
        self.after_closed = 0
        self._changed = asyncio.Event()

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Keep a frame."""
        self.after_closed += bool(self.closings)
        self.callers.add(_caller.get())
        self.envelopes.extend(envelopes)
        self.frames.append(len(envelopes))
        self._changed.set()

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        """Keep the end."""
        self.callers.add(_caller.get())
        self.closings.append((reason, list(unsent)))
        self._changed.set()

    @property
    def unsent(self) -> list[Envelope]:
        """What the one `closed` reported."""
        [(_, unsent)] = self.closings
        return unsent

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until `happened`, or fail."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    async def until_received(self, count: int) -> None:
        """Wait for that many envelopes in all."""
        await self.until(lambda: len(self.envelopes) >= count)

    async def until_closed(self) -> None:
        """Wait for the end."""
        await self.until(lambda: bool(self.closings))


class Failing(Recorder):
    """A link's user that breaks its promise not to raise."""

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Raise."""
        raise ValueError(f"a bug in received() of {len(envelopes)}")


class Door:
    """An acceptor that lets everyone in, unless told otherwise, and keeps the links with their recorders."""

    def __init__(self, *, first: Sequence[Envelope] = (), refusal: ActorhubError | None = None) -> None:
        self.links: list[Link] = []
        self.recorders: list[Recorder] = []
        self.make_recorder: Callable[[], Recorder] = Recorder
        self._first = first
        self._refusal = refusal

    def accept(self, link: Link) -> LinkEvents:
        """Take the link."""
        if self._refusal is not None:
            raise self._refusal
        for envelope in self._first:
            link.send(envelope)
        self.links.append(link)
        self.recorders.append(self.make_recorder())
        return self.recorders[-1]


def hello(incarnation: str, *, namespace: str = "suite", protocol: int = PROTOCOL_VERSION) -> Hello:
    """Return what a process says of itself before it knows its address."""
    return Hello(protocol, namespace, "", incarnation)


def reply(number: int, size: int = 0) -> Reply:
    """Return an envelope that carries `number`."""
    return Reply(number, 0, bytes(size))


def request(number: int, size: int = 0) -> Request:
    """Return a request that carries `number`."""
    return Request(number, TELL, "orders", "ada", "process", bytes(size), 0)


def numbers(envelopes: Sequence[Envelope]) -> list[int]:
    """Return what the envelopes carry, in order."""
    return [envelope.id for envelope in envelopes if isinstance(envelope, Reply | Request | Failure)]


async def both(one: Coroutine[object, object, None], other: Coroutine[object, object, None]) -> None:
    """Wait for two things at once."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one)
        tasks.create_task(other)


class Pair:
    """Two linked transports."""

    def __init__(self, world: TransportWorld, limits: LinkLimits | None = None, door: Door | None = None) -> None:
        self.accepting = world.listener(hello("accepting"), limits)
        self.connecting = world.client(hello("connecting"), limits)
        self.door = door or Door()
        self.near = Recorder()

    async def link(self) -> Link:
        """Connect, and return the connecting end."""
        self.address = await self.accepting.listen(self.door)
        return await self.connecting.connect(self.address, self.near, deadline=PATIENCE_SECONDS)

    def far(self) -> tuple[Link, Recorder]:
        """Return the accepting end of the newest link and its recorder; it was accepted before `connect` returned."""
        return self.door.links[-1], self.door.recorders[-1]


class TransportSuite:
    """What every transport promises."""

    async def test_each_end_learns_who_the_other_is(self, world: TransportWorld) -> None:
        """The peer of a link is what the other end said in its Hello, the bound address included."""
        pair = Pair(world)
        link = await pair.link()
        far, _ = pair.far()
        assert link.peer == pair.accepting.hello
        assert link.peer.address == pair.address
        assert far.peer == pair.connecting.hello

    async def test_thousands_of_envelopes_arrive_once_and_in_order(self, world: TransportWorld) -> None:
        """Order is kept over many frames."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        for number in range(20_000):
            link.send(reply(number, 100))
            if number % 500 == 0:
                await asyncio.sleep(0)
        await recorder.until_received(20_000)
        assert numbers(recorder.envelopes) == list(range(20_000))

    async def test_both_directions_work_at_once(self, world: TransportWorld) -> None:
        """Each end sends while it receives."""
        pair = Pair(world)
        link = await pair.link()
        far, recorder = pair.far()
        for number in range(3_000):
            link.send(reply(number, 50))
            far.send(request(number, 50))
        await both(recorder.until_received(3_000), pair.near.until_received(3_000))
        assert numbers(recorder.envelopes) == numbers(pair.near.envelopes) == list(range(3_000))

    async def test_what_is_sent_in_one_tick_leaves_in_one_frame(self, world: TransportWorld) -> None:
        """Frames cost far more than envelopes, so a tick's worth shares one."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        before = pair.connecting.statistics()
        for number in range(1_000):
            link.send(reply(number))
        await recorder.until_received(1_000)
        after = pair.connecting.statistics()
        assert recorder.frames == [1_000]
        assert after.frames_sent - before.frames_sent == 1
        assert after.envelopes_sent - before.envelopes_sent == 1_000
        assert pair.accepting.statistics().bytes_received == after.bytes_sent - before.bytes_sent

    async def test_a_long_queue_is_split_into_frames(self, world: TransportWorld) -> None:
        """No frame is much larger than the frame limit, and order is kept."""
        pair = Pair(world, SMALL)
        link = await pair.link()
        _, recorder = pair.far()
        for number in range(100):
            link.send(reply(number, 2_000))
        await recorder.until_received(100)
        assert numbers(recorder.envelopes) == list(range(100))
        assert len(recorder.frames) > 10
        assert max(recorder.frames) * 2_000 <= SMALL.frame_bytes

    async def test_a_big_envelope_travels_alone_and_whole(self, world: TransportWorld) -> None:
        """A body of the message limit passes, between neighbours that are small."""
        limits = LinkLimits()
        pair = Pair(world, limits)
        link = await pair.link()
        _, recorder = pair.far()
        body = bytes(range(256)) * (limits.max_message_bytes // 256)
        link.send(reply(1))
        link.send(Reply(2, 0, body))
        link.send(reply(3))
        await recorder.until_received(3)
        assert numbers(recorder.envelopes) == [1, 2, 3]
        assert recorder.envelopes[1] == Reply(2, 0, body)
        assert recorder.frames == [1, 1, 1]

    async def test_a_request_that_is_too_large_fails_alone(self, world: TransportWorld) -> None:
        """Its sender gets a typed failure; its neighbours and the link go on."""
        pair = Pair(world, LinkLimits(max_message_bytes=1_000, max_queued_bytes=64 << 20))
        link = await pair.link()
        _, recorder = pair.far()
        for envelope in (request(1), request(2, 8 << 20), request(3)):
            link.send(envelope)
        await recorder.until_received(2)
        await pair.near.until_received(1)
        [failure] = pair.near.envelopes
        assert numbers(recorder.envelopes) == [1, 3]
        assert isinstance(failure, Failure)
        assert failure.id == 2
        assert isinstance(error := decode_error(failure.body), MessageTooLarge)
        assert not error.possibly_executed
        await link.drain()
        assert link.is_open

    async def test_a_reply_that_cannot_travel_becomes_a_failure(self, world: TransportWorld) -> None:
        """The caller on the other side gets a typed failure instead of nothing."""
        pair = Pair(world, LinkLimits(max_message_bytes=1_000, max_queued_bytes=64 << 20))
        link = await pair.link()
        _, recorder = pair.far()
        for envelope in (reply(1), reply(2, 8 << 20), reply(3)):
            link.send(envelope)
        await recorder.until_received(3)
        assert numbers(recorder.envelopes) == [1, 2, 3]
        failure = recorder.envelopes[1]
        assert isinstance(failure, Failure)
        assert isinstance(decode_error(failure.body), MessageTooLarge)

    async def test_close_reports_what_was_not_sent_and_only_that(self, world: TransportWorld) -> None:
        """What the network took is not reported; what it did not take is, in order, and never arrives."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        for number in range(5):
            link.send(reply(number))
        await recorder.until_received(5)
        for number in range(5, 9):
            link.send(reply(number))
        link.close("enough")
        assert not link.is_open
        link.send(reply(9))
        await pair.near.until_closed()
        link.send(reply(10))
        await recorder.until_closed()
        assert pair.near.closings[0][0] == "enough"
        assert numbers(pair.near.unsent) == [5, 6, 7, 8, 9]
        assert numbers(recorder.envelopes) == [0, 1, 2, 3, 4]

    async def test_every_envelope_is_sent_or_reported(self, world: TransportWorld) -> None:
        """Whenever a link is closed: received is a part of sent, and sent and unsent together are everything."""
        for pause in range(8):
            pair = Pair(world, SMALL)
            link = await pair.link()
            _, recorder = pair.far()
            for number in range(200):
                link.send(reply(number, 500))
            for _ in range(pause):
                await asyncio.sleep(0)
            link.close("at a random moment")
            await both(pair.near.until_closed(), recorder.until_closed())
            sent = pair.connecting.statistics().envelopes_sent
            unsent = numbers(pair.near.unsent)
            assert unsent == list(range(200))[200 - len(unsent) :]
            assert len(unsent) == 200 - sent
            assert numbers(recorder.envelopes) == list(range(len(recorder.envelopes)))
            assert len(recorder.envelopes) <= sent

    async def test_both_ends_learn_the_end_exactly_once(self, world: TransportWorld) -> None:
        """However often a link is closed, from whichever end."""
        pair = Pair(world)
        link = await pair.link()
        far, recorder = pair.far()
        for number in range(100):
            link.send(reply(number))
            far.send(reply(number))
        await asyncio.sleep(0)
        far.close("first")
        far.close("second")
        link.close("third")
        await both(pair.near.until_closed(), recorder.until_closed())
        await pair.connecting.aclose(1)
        await pair.accepting.aclose(1)
        for one in (pair.near, recorder):
            assert len(one.closings) == 1
            assert one.after_closed == 0
        assert recorder.closings[0][0] == "first"

    async def test_the_connecting_end_learns_that_the_accepting_end_closed(self, world: TransportWorld) -> None:
        """A close at the accepting end reaches the other."""
        pair = Pair(world)
        link = await pair.link()
        far, recorder = pair.far()
        far.close("the runner had enough")
        await both(pair.near.until_closed(), recorder.until_closed())
        assert not link.is_open

    async def test_connecting_to_nobody_fails_fast(self, world: TransportWorld) -> None:
        """The error says where nobody answers, and no handler ran."""
        transport = world.client(hello("connecting"))
        async with asyncio.timeout(3):
            with pytest.raises(RunnerUnavailable) as caught:
                await transport.connect(world.dead_address, Recorder(), deadline=PATIENCE_SECONDS)
        assert world.dead_address in str(caught.value)
        assert not caught.value.possibly_executed

    async def test_a_refused_link_fails_with_the_acceptors_text(self, world: TransportWorld) -> None:
        """The acceptor's error reaches the one who connects; no link comes to be."""
        pair = Pair(world, door=Door(refusal=ShuttingDown("this runner drains: connect elsewhere")))
        with pytest.raises(RunnerUnavailable, match="this runner drains: connect elsewhere"):
            await pair.link()
        assert pair.near.closings == []
        assert pair.accepting.statistics().links_refused == 1

    async def test_another_namespace_is_refused(self, world: TransportWorld) -> None:
        """Clusters that share a network do not talk to each other by accident."""
        pair = Pair(world)
        await pair.link()
        stranger = world.client(hello("stranger", namespace="other"))
        with pytest.raises(RunnerUnavailable, match="namespace 'other' meets 'suite'"):
            await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        assert len(pair.door.links) == 1

    async def test_another_protocol_version_is_refused(self, world: TransportWorld) -> None:
        """A release that speaks another protocol is told so."""
        pair = Pair(world)
        await pair.link()
        stranger = world.client(hello("stranger", protocol=PROTOCOL_VERSION + 1))
        with pytest.raises(RunnerUnavailable, match="run the same release"):
            await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        assert len(pair.door.links) == 1

    async def test_an_address_in_use_is_a_configuration_error(self, world: TransportWorld) -> None:
        """The second one to listen is told which address, and what to do."""
        pair = Pair(world)
        await pair.link()
        second = world.listener(hello("second"), address=pair.address)
        with pytest.raises(ConfigurationError, match=r"cannot listen on .*choose another --listen") as caught:
            await second.listen(Door())
        assert pair.address in str(caught.value)

    async def test_what_the_acceptor_sends_first_arrives_first(self, world: TransportWorld) -> None:
        """Envelopes sent inside `accept` arrive, and only once `connect` has returned."""
        pair = Pair(world, door=Door(first=[Leaving("first"), Leaving("second")]))
        await pair.link()
        assert pair.near.envelopes == []
        await pair.near.until_received(2)
        assert pair.near.envelopes == [Leaving("first"), Leaving("second")]

    @pytest.mark.parametrize("end", ["connecting", "accepting"])
    async def test_aclose_flushes_what_is_queued(self, world: TransportWorld, end: str) -> None:
        """An orderly end loses nothing, whichever end it comes from."""
        pair = Pair(world)
        near_link = await pair.link()
        far_link, far = pair.far()
        closing, link, ours, theirs = (
            (pair.connecting, near_link, pair.near, far)
            if end == "connecting"
            else (pair.accepting, far_link, far, pair.near)
        )
        for number in range(2_000):
            link.send(reply(number, 10_000))
        await closing.aclose(PATIENCE_SECONDS)
        assert ours.unsent == []
        await theirs.until_closed()
        assert numbers(theirs.envelopes) == list(range(2_000))

    async def test_a_closed_transport_opens_no_links(self, world: TransportWorld) -> None:
        """Neither from nor to it."""
        pair = Pair(world)
        await pair.link()
        await pair.accepting.aclose(1)
        other = world.client(hello("other"))
        with pytest.raises(RunnerUnavailable):
            await other.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        await pair.connecting.aclose(1)
        with pytest.raises(RunnerUnavailable):
            await pair.connecting.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)

    async def test_drain_waits_for_the_network(self, world: TransportWorld) -> None:
        """After it nothing is queued; on a closed link it returns at once."""
        pair = Pair(world, SMALL)
        link = await pair.link()
        for number in range(50):
            link.send(reply(number, 2_000))
        assert link.queued_bytes > 50 * 2_000
        await link.drain()
        assert link.queued_bytes == 0
        assert pair.connecting.statistics().envelopes_sent == 50
        link.send(reply(50))
        link.close("done")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await link.drain()

    async def test_a_queue_over_its_limit_breaks_the_link(self, world: TransportWorld) -> None:
        """Memory is bounded where a peer takes nothing; all of it is reported as unsent."""
        pair = Pair(world, SMALL)
        link = await pair.link()
        for number in range(200):
            link.send(reply(number, 2_000))
        await pair.near.until_closed()
        assert "bytes wait for a peer" in pair.near.closings[0][0]
        assert numbers(pair.near.unsent) == list(range(200))

    async def test_a_callers_context_reaches_no_receiver(self, world: TransportWorld) -> None:
        """Context variables of whoever connects, listens or sends are not seen by either end's events."""
        token = _caller.set("the first caller")
        try:
            pair = Pair(world)
            link = await pair.link()
            far, recorder = pair.far()
            link.send(reply(1))
            far.send(reply(1))
            await both(recorder.until_received(1), pair.near.until_received(1))
            link.close("done")
            await both(recorder.until_closed(), pair.near.until_closed())
        finally:
            _caller.reset(token)
        assert recorder.callers == pair.near.callers == {"nobody"}

    async def test_a_failing_user_loses_its_own_link_only(
        self, world: TransportWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception out of `received` is logged and ends that link; others go on."""
        pair = Pair(world)
        healthy = await pair.link()
        _, recorder = pair.far()
        pair.door.make_recorder = Failing
        sick = await pair.connecting.connect(pair.address, broken := Recorder(), deadline=PATIENCE_SECONDS)
        sick.send(reply(1))
        await broken.until_closed()
        healthy.send(reply(2))
        await recorder.until_received(1)
        assert "a bug in received()" in caplog.text
