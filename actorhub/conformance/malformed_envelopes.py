"""What a transport promises of envelopes that its peer cannot decode: each costs its sender that envelope alone.

Subclass `MalformedEnvelopeSuite` as `actorhub.conformance.transport.TransportSuite` says.
"""

import pytest

from actorhub.conformance.transport_pair import (
    OfTheFuture,
    Pair,
    TransportWorld,
    both,
    numbers,
    reply,
    request,
    unreadable,
)
from actorhub.core.codec import decode_error
from actorhub.core.envelope import Cancel, Chunk, Credit, Envelope, Failure, Leaving, Members, NotOwner
from actorhub.core.errors import MalformedMessage


class MalformedEnvelopeSuite:
    """What every transport promises."""

    async def test_a_request_that_cannot_be_decoded_is_refused_alone(self, world: TransportWorld) -> None:
        """Its sender gets a typed failure that names the field; its neighbours in the frame and the link go on."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        for envelope in (request(1), unreadable(request(2), headers={"tenant": None}), request(3)):
            link.send(envelope)
        await both(recorder.until_received(2), pair.near.until_received(1))
        [failure] = pair.near.envelopes
        assert numbers(recorder.envelopes) == [1, 3]
        assert isinstance(failure, Failure)
        assert failure.id == 2
        assert isinstance(error := decode_error(failure.body), MalformedMessage)
        assert "headers" in error.message
        assert not error.possibly_executed
        assert pair.accepting.statistics().envelopes_malformed == 1
        assert link.is_open

    @pytest.mark.parametrize(
        "answer",
        [
            unreadable(reply(2), epoch=None),
            unreadable(Failure(2, 0, b""), epoch="new"),
            unreadable(NotOwner(2), hint="elsewhere"),
            unreadable(Chunk(2, 0, []), epoch=None),
        ],
        ids=lambda answer: type(answer).__name__,
    )
    async def test_an_answer_that_cannot_be_decoded_fails_its_request(
        self, world: TransportWorld, answer: Envelope
    ) -> None:
        """Whoever waits for it learns that nobody knows what it was; its neighbours in the frame and the link go on."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        for envelope in (reply(1), answer, reply(3)):
            link.send(envelope)
        await recorder.until_received(3)
        assert numbers(recorder.envelopes) == [1, 2, 3]
        failure = recorder.envelopes[1]
        assert isinstance(failure, Failure)
        assert isinstance(error := decode_error(failure.body), MalformedMessage)
        assert error.possibly_executed
        # The producer of a stream would go on, or wait for credit.
        expected = [Cancel(2)] if isinstance(answer, Chunk) else []
        await pair.near.until_received(len(expected))
        assert pair.near.envelopes == expected

    async def test_credit_that_cannot_be_decoded_ends_its_stream(self, world: TransportWorld) -> None:
        """Its producer would wait for it, and its consumer for items."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        link.send(unreadable(Credit(2, 1), count="many"))
        await both(recorder.until_received(1), pair.near.until_received(1))
        assert recorder.envelopes == [Cancel(2)]
        assert numbers(pair.near.envelopes) == [2]

    async def test_what_cannot_be_decoded_and_has_no_caller_is_dropped(self, world: TransportWorld) -> None:
        """Envelopes of kinds that are not known here, with an unreadable id, or that nobody answers, are counted."""
        pair = Pair(world)
        link = await pair.link()
        _, recorder = pair.far()
        nobodys: list[Envelope] = [
            unreadable(request(1), id="one"),
            unreadable(Cancel(1), timed_out="no"),
            unreadable(Leaving(), reason=7),
            unreadable(Members([], 1, []), shards_per_group="many"),
            OfTheFuture(),
        ]
        for envelope in (reply(1), *nobodys, reply(3)):
            link.send(envelope)
        await recorder.until_received(2)
        assert numbers(recorder.envelopes) == [1, 3]
        assert pair.near.envelopes == []
        assert pair.accepting.statistics().envelopes_malformed == len(nobodys)
        assert link.is_open
