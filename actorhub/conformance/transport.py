"""The promises of `actorhub.transport.ports`, as tests that every transport must pass.

Subclass `TransportSuite` in a test module and give it a fixture `world` that makes the transports of one test.
"""

import asyncio
import contextlib
from functools import partial

import pytest

from actorhub.conformance.transport_pair import (
    PATIENCE_SECONDS,
    SMALL,
    Failing,
    Pair,
    Recorder,
    RecordingAcceptor,
    TransportWorld,
    both,
    caller,
    failing,
    hello,
    numbers,
    reply,
    request,
)
from actorhub.core.codec import decode_error
from actorhub.core.envelope import PROTOCOL_VERSION, Envelope, Failure, Leaving, Reply
from actorhub.core.errors import ConfigurationError, MessageTooLarge, RunnerUnavailable, ShuttingDown
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Link, LinkEvents


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

    async def test_what_is_held_leaves_in_order_when_it_is_released(self, world: TransportWorld) -> None:
        """What was sent before leaves at once, and what is sent after the release comes last."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        link.send(reply(0))
        link.hold()
        for number in range(1, 50):
            link.send(reply(number))
        await recorder.until_received(1)
        assert link.queued_bytes > 0
        link.release()
        link.send(reply(50))
        await recorder.until_received(51)
        assert numbers(recorder.envelopes) == list(range(51))
        assert link.queued_bytes == 0

    async def test_what_is_held_is_reported_as_unsent(self, world: TransportWorld) -> None:
        """The peer did not get it, in whatever order the link is closed and released."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        link.hold()
        link.send(reply(1))
        link.close("enough")
        link.send(reply(2))
        link.release()
        await pair.near.until_closed()
        assert numbers(pair.near.unsent) == [1, 2]
        assert recorder.envelopes == []

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

    async def test_who_listens_at_an_address_is_told_before_it_takes_links(self, world: TransportWorld) -> None:
        """Whoever listens says its incarnation, also while it refuses links, and no link comes of the question."""
        pair = Pair(world, acceptor=RecordingAcceptor(refusal=ShuttingDown("not now")))
        await pair.listen()
        assert await pair.connecting.identify(pair.address, deadline=PATIENCE_SECONDS) == "accepting"
        assert pair.acceptor.links == []

    async def test_nobody_listens_where_connections_are_refused(self, world: TransportWorld) -> None:
        """That answer is known at once, well before the deadline."""
        began = asyncio.get_running_loop().time()
        assert await world.client(hello("asking")).identify(world.dead_address, deadline=PATIENCE_SECONDS) is None
        assert asyncio.get_running_loop().time() - began < 1

    async def test_each_end_is_asked_once_and_before_it_is_told_anything(self, world: TransportWorld) -> None:
        """Both acceptors get the very link of their end, know its peer, and have heard nothing yet."""
        heard: list[tuple[str, int]] = []

        class Asked(Recorder):
            def accept(self, link: Link) -> LinkEvents:
                heard.append((link.peer.incarnation, len(self.envelopes)))
                return super().accept(link)

        first = [Leaving("first")]
        pair = Pair(world, near=Asked(first=first))
        pair.acceptor.make_recorder = partial(Asked, first=first)
        link = await pair.link()
        assert pair.near.links == [link]
        await pair.near.until_received(1)
        await pair.far()[1].until_received(1)
        assert sorted(heard) == [("accepting", 0), ("connecting", 0)]

    async def test_a_refused_link_fails_with_the_acceptors_text(self, world: TransportWorld) -> None:
        """The accepting end's error reaches the one who connects, whose own acceptor is not asked."""
        pair = Pair(world, acceptor=RecordingAcceptor(refusal=ShuttingDown("this runner drains: connect elsewhere")))
        with pytest.raises(RunnerUnavailable, match="this runner drains: connect elsewhere"):
            await pair.link()
        assert pair.near.links == []
        assert pair.near.closings == []
        assert pair.accepting.statistics().links_refused == 1

    async def test_a_connecting_end_may_refuse_its_own_link(self, world: TransportWorld) -> None:
        """Its `connect` fails with its acceptor's text, nothing is delivered, and the peer's end is closed."""
        refusal = ShuttingDown("this client has had enough")
        pair = Pair(world, near=Recorder(first=[Leaving("unsent")], refusal=refusal))
        with pytest.raises(RunnerUnavailable, match="this client has had enough") as caught:
            await pair.link()
        assert caught.value.__cause__ is refusal
        assert not caught.value.possibly_executed
        [link] = pair.near.links
        link.send(reply(1))
        assert not link.is_open
        _, recorder = pair.far()
        await recorder.until_closed()
        assert recorder.envelopes == []
        await pair.connecting.aclose(1)
        assert (pair.near.envelopes, pair.near.closings) == ([], [])
        assert pair.connecting.statistics().links_opened == 0

    @pytest.mark.parametrize("end", ["connecting", "accepting"])
    async def test_a_link_that_is_closed_while_it_is_accepted_ends_once(self, world: TransportWorld, end: str) -> None:
        """Whoever closes it inside `accept` still listens, and is told so from the event loop's next turn."""

        class Closing(Recorder):
            def accept(self, link: Link) -> LinkEvents:
                link.close("closed at once")
                assert self.closings == []
                return super().accept(link)

        pair = Pair(world, near=Closing() if end == "connecting" else None)
        if end == "accepting":
            pair.acceptor.make_recorder = Closing
        with contextlib.suppress(RunnerUnavailable):
            await pair.link()
        recorder = pair.near if end == "connecting" else pair.far()[1]
        await recorder.until_closed()
        assert recorder.closings == [("closed at once", [])]

    async def test_another_namespace_is_refused(self, world: TransportWorld) -> None:
        """Clusters that share a network do not talk to each other by accident."""
        pair = Pair(world)
        await pair.link()
        stranger = world.client(hello("stranger", namespace="other"))
        with pytest.raises(RunnerUnavailable, match="one side has namespace 'other', the other 'suite'"):
            await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        assert len(pair.acceptor.links) == 1

    async def test_another_protocol_version_is_refused(self, world: TransportWorld) -> None:
        """A release that speaks another protocol is told so."""
        pair = Pair(world)
        await pair.link()
        stranger = world.client(hello("stranger", protocol=PROTOCOL_VERSION + 1))
        with pytest.raises(RunnerUnavailable, match="run the same release"):
            await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        assert len(pair.acceptor.links) == 1

    async def test_another_cluster_or_era_is_refused_until_both_are_in_the_same(self, world: TransportWorld) -> None:
        """Open links stay; who names none is let in."""
        pair = Pair(world)
        await pair.link()
        stranger = world.client(hello("stranger", cluster="a", era="1"))
        await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        pair.accepting.enter("a", "2")
        assert pair.accepting.hello.era == "2"
        with pytest.raises(RunnerUnavailable, match="one side is in era"):
            await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        stranger.enter("b", "2")
        with pytest.raises(RunnerUnavailable, match="one side uses the database of cluster"):
            await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        stranger.enter("a", "2")
        link = await stranger.connect(pair.address, Recorder(), deadline=PATIENCE_SECONDS)
        assert (link.peer.cluster, link.peer.era) == ("a", "2")
        assert len(pair.acceptor.links) == 3
        assert all(link.is_open for link in pair.acceptor.links)

    async def test_an_address_in_use_is_a_configuration_error(self, world: TransportWorld) -> None:
        """The second one to listen is told which address, and what to do."""
        pair = Pair(world)
        await pair.link()
        second = world.listener(hello("second"), address=pair.address)
        with pytest.raises(ConfigurationError, match=r"cannot listen on .*choose another --listen") as caught:
            await second.listen(RecordingAcceptor())
        assert pair.address in str(caught.value)

    async def test_what_an_acceptor_sends_first_arrives_first(self, world: TransportWorld) -> None:
        """Envelopes sent inside `accept` arrive at the other end, and only once `connect` has returned."""
        first: list[Envelope] = [Leaving("first"), Leaving("second")]
        pair = Pair(world, acceptor=RecordingAcceptor(first=first), near=Recorder(first=first))
        link = await pair.link()
        link.send(Leaving("third"))
        assert pair.near.envelopes == []
        _, recorder = pair.far()
        await both(pair.near.until_received(2), recorder.until_received(3))
        assert pair.near.envelopes == first
        assert recorder.envelopes == [*first, Leaving("third")]

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

    async def test_a_transport_that_closes_ends_its_attempts_to_connect(self, world: TransportWorld) -> None:
        """A `connect` that is under way fails instead of leaving a link that nobody closes."""
        pair = Pair(world)
        await pair.listen()
        async with asyncio.TaskGroup() as tasks:
            attempt = tasks.create_task(failing(pair.connecting.connect(pair.address, pair.near, deadline=10)))
            await asyncio.sleep(0)
            await pair.connecting.aclose(1)
        assert "closing its links" in attempt.result()
        assert pair.near.links == []

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
        assert "bytes are waiting for a peer" in pair.near.closings[0][0]
        assert numbers(pair.near.unsent) == list(range(200))

    async def test_a_callers_context_reaches_no_receiver(self, world: TransportWorld) -> None:
        """Context variables of whoever connects, listens or sends reach neither an acceptor nor a link's events."""
        token = caller.set("the first caller")
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
            caller.reset(token)
        assert recorder.callers == pair.near.callers == {"nobody"}

    async def test_a_failing_user_loses_its_own_link_only(
        self, world: TransportWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception out of `received` is logged and ends that link; others go on."""
        pair = Pair(world)
        healthy = await pair.link()
        _, recorder = pair.far()
        pair.acceptor.make_recorder = Failing
        sick = await pair.connecting.connect(pair.address, broken := Recorder(), deadline=PATIENCE_SECONDS)
        sick.send(reply(1))
        await broken.until_closed()
        healthy.send(reply(2))
        await recorder.until_received(1)
        assert "a bug in received()" in caplog.text
