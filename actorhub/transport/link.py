"""What the links of every transport share: the queue, and telling the user exactly once how it ended."""

import abc
import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Final, TypeVarTuple

from typing_extensions import override

from actorhub.core.codec import encode_error
from actorhub.core.envelope import (
    Cancel,
    Chunk,
    Credit,
    Envelope,
    Failure,
    Hello,
    Malformed,
    NotOwner,
    Reply,
    Request,
    decode_frame,
    take_apart,
)
from actorhub.core.errors import MalformedMessage
from actorhub.core.logger import get_logger
from actorhub.transport.outbox import LinkLimits, Outbox, estimated_bytes
from actorhub.transport.ports import Acceptor, Link, LinkEvents
from actorhub.transport.statistics import Counters

CLOSED_BY_PEER: Final = "the peer closed the link"

_Ts = TypeVarTuple("_Ts")

_log: Final = get_logger(__name__)


class QueuedLink(Link, abc.ABC):
    """A link whose `send` queues; a subclass moves the frames.

    It is open until `_break`; `closed` is reported from the loop's next turn, never from inside a call of the user's.
    Between the two the user may still send: it has not been told yet, and must learn of each envelope that did not
    leave. So `_break` stops the queue, `_late` takes what comes after it, and `_report_closed` reports both in order.
    """

    def __init__(self, peer: Hello, limits: LinkLimits, counters: Counters) -> None:
        self._peer = peer
        self._max_queued_bytes = limits.max_queued_bytes
        self._max_frame_bytes = limits.max_frame_bytes
        self._counters = counters
        self._outbox = Outbox(limits, counters)
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._events: LinkEvents | None = None
        self._open = True
        self._takes = True
        """Whether what is sent goes to the queue: the link is open and does not hold it."""
        self._held: list[Envelope] = []
        self._held_bytes = 0
        self._idle = False
        """Whether the subclass must be woken by `_wake` because it found nothing to send."""
        self._late: list[Envelope] = []
        """What was sent after the link stopped taking envelopes and before its user was told."""
        self._has_warned = False
        """A malformed envelope of the peer was logged; further ones are counted."""
        self._written = 0
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        self._broken: asyncio.Future[str] = self._loop.create_future()
        self._reported: asyncio.Future[None] = self._loop.create_future()

    @property
    @override
    def peer(self) -> Hello:
        return self._peer

    @property
    @override
    def queued_bytes(self) -> int:
        return self._outbox.queued_bytes + self._held_bytes

    @property
    @override
    def is_open(self) -> bool:
        return self._open

    @override
    def send(self, envelope: Envelope) -> None:
        if not self._takes:
            self._set_aside(envelope)
            return
        outbox = self._outbox
        outbox.put(envelope)
        if self._idle:
            self._idle = False
            self._wake()
        if outbox.queued_bytes > self._max_queued_bytes:
            self._break_for_size()

    def _set_aside(self, envelope: Envelope) -> None:
        if self._open:
            self._held.append(envelope)
            self._held_bytes += estimated_bytes(envelope)
            if self.queued_bytes > self._max_queued_bytes:
                self._break_for_size()
        elif not self._reported.done():
            self._late.append(envelope)

    def _break_for_size(self) -> None:
        self._break(f"more than {self._max_queued_bytes} bytes are waiting for a peer that does not take them")

    @override
    def hold(self) -> None:
        self._takes = False

    @override
    def release(self) -> None:
        if not self._open:
            return  # What is held is reported as unsent, with what was sent since.
        self._takes = True
        held, self._held = self._held, []
        self._held_bytes = 0
        for envelope in held:
            self.send(envelope)

    @override
    def close(self, reason: str) -> None:
        self._break(reason)

    @override
    async def drain(self) -> None:
        target = self._outbox.taken + len(self._outbox) + len(self._held)
        if self._broken.done() or self._written >= target:
            return
        drained: asyncio.Future[None] = self._loop.create_future()
        self._drains.append((target, drained))
        await drained

    async def wait_reported(self) -> None:
        """Wait until the user was told that the link is gone."""
        if not self._reported.done():
            # Not awaited itself: cancelling the waiter would cancel the future that others wait for, too.
            await asyncio.wait((self._reported,))

    def offer_to(self, acceptor: Acceptor) -> None:
        """Ask `acceptor`, for the only time, who listens. No envelope is delivered before that.

        Raises:
            ActorhubError: the acceptor refuses the link, which is closed then, with nobody to tell.
        """
        try:
            # An empty context: an acceptor must not see the context variables of whoever happens to connect.
            self._events = Context().run(acceptor.accept, self)
        except BaseException:
            self._break("refused")
            raise
        self._counters.links_opened += 1

    @abc.abstractmethod
    def _wake(self) -> None:
        """Send what is queued, soon. Called once after each time that `_idle` was set."""

    def _soon(self, call: Callable[[*_Ts], None], *args: *_Ts) -> None:
        """Call at the loop's next turn, away from the context of whoever happens to send."""
        self._loop.call_soon(call, *args, context=self._context)

    def _stop_taking(self) -> None:
        """Take nothing more, before what is queued or held is flushed."""
        self.release()
        self._open = self._takes = False

    def _break(self, reason: str) -> None:
        """End the link; the first reason counts."""
        self._open = self._takes = False
        if not self._broken.done():
            self._broken.set_result(reason)
            self._soon(self._report_closed)

    def _report_closed(self) -> None:
        # First, so that what `closed` itself sends on this link is dropped: nobody would ever be told of it.
        self._reported.set_result(None)
        self._finish_drains(None)
        # Our Hello is not the user's: the accepting end queues it before it asks who listens.
        unsent = [each for each in (*self._outbox.remove_all(), *self._held, *self._late) if type(each) is not Hello]
        self._held, self._late = [], []
        if self._events is None:
            return
        self._counters.links_closed += 1
        try:
            self._events.closed(self._broken.result(), unsent)
        except Exception:  # noqa: BLE001 - user code: the end of a link must not depend on it
            _log.exception("a link's user failed in closed()")

    def _receive(self, frame: bytes) -> None:
        """Hand the envelopes of a frame to the user. One that does not decode costs its sender that envelope alone.

        Raises:
            MalformedMessage: it is not a list of envelopes.
        """
        envelopes: Sequence[Envelope]
        try:
            envelopes = decode_frame(frame)
        except MalformedMessage:
            envelopes = [found for part in take_apart(frame) if (found := self._readable(part)) is not None]
        self._counters.received(len(envelopes), len(frame))
        self._deliver(envelopes)

    def _readable(self, part: Envelope | Malformed) -> Envelope | None:
        """Return what the user is told instead of a malformed envelope, and answer the peer if it waits for an answer.

        A request did not run, and its caller is told so. Of a request of ours that the envelope would have answered, or
        gone on answering, nobody knows more than that.
        """
        if not isinstance(part, Malformed):
            return part
        self._counters.envelopes_malformed += 1
        if not self._has_warned:
            self._has_warned = True
            _log.warning("the peer sent an envelope that cannot be decoded; more are only counted: %s", part.problem)
        kind, number = part.kind, part.id
        if kind is None or number is None:
            return None
        is_answer = kind in (Reply, Failure, NotOwner, Chunk)
        error = MalformedMessage(f"the message cannot be decoded: {part.problem}", possibly_executed=is_answer)
        failure = Failure(number, 0, encode_error(error, self._max_frame_bytes))
        if is_answer:
            if kind is Chunk:
                self.send(Cancel(number))  # Its producer would wait for credit.
            return failure
        if kind in (Request, Credit):
            self.send(failure)
        return Cancel(number) if kind is Credit else None

    def _deliver(self, envelopes: Sequence[Envelope]) -> None:
        """Hand one frame's envelopes to the user, unless the link broke.

        Frames go on arriving until the reader is cancelled. After `_break` they are dropped: whoever called `close`
        expects silence, and a frame that failed in `received` must not be followed by the next as if none was missing.
        """
        if self._broken.done() or self._events is None:
            return
        try:
            self._events.received(envelopes)
        except Exception:  # noqa: BLE001 - user code: going on could lose the frame's other envelopes in silence
            _log.exception("a link's user failed in received()")
            self._break("internal error: a received frame was not processed")

    def _take_frame(self) -> bytes:
        frame = self._outbox.take_frame()
        if self._outbox.bounced:
            # Requests that can never leave are answered here, in a turn of their own: the user may send or close in
            # `received`, and the frame that was just taken is with nobody yet.
            bounced, self._outbox.bounced = self._outbox.bounced, []
            self._soon(self._deliver, bounced)
        return frame

    def _frame_written(self) -> None:
        """Note that all that was taken is with the network.

        Only now, not when a frame is taken: between the two it is in neither the queue nor the network, and a `drain`
        that returned then would let `aclose` end the stream before the frame is written.
        """
        self._written = self._outbox.taken
        if self._drains:
            self._finish_drains(self._written)

    def _finish_drains(self, written: int | None) -> None:
        waiting: list[tuple[int, asyncio.Future[None]]] = []
        for target, drained in self._drains:
            if written is not None and target > written:
                waiting.append((target, drained))
            elif not drained.done():
                drained.set_result(None)
        self._drains = waiting
