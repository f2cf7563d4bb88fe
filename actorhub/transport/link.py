"""What the links of every transport share: the queue, and telling the user exactly once how it ended."""

import abc
import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Final, TypeVarTuple

from actorhub.core.envelope import Envelope, Hello
from actorhub.transport.outbox import LinkLimits, Outbox
from actorhub.transport.ports import LinkEvents
from actorhub.transport.statistics import Counters

CLOSED_BY_PEER: Final = "the peer closed the link"

_Ts = TypeVarTuple("_Ts")

_log: Final = logging.getLogger(__name__)


class QueuedLink(abc.ABC):
    """A link whose `send` queues; a subclass moves the frames.

    It is open until `_break`; `closed` is reported from the loop's next turn, never from inside a call of the user's.
    """

    def __init__(self, peer: Hello, limits: LinkLimits, counters: Counters) -> None:
        self._peer = peer
        self._max_queued_bytes = limits.max_queued_bytes
        self._counters = counters
        self._outbox = Outbox(limits, counters)
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._events: LinkEvents | None = None
        self._open = True
        self._idle = False
        """Whether the subclass must be woken by `_wake` because it found nothing to send."""
        self._late: list[Envelope] = []
        """What was sent after the link stopped taking envelopes and before its user was told."""
        self._written = 0
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        self._broken: asyncio.Future[str] = self._loop.create_future()
        self._reported: asyncio.Future[None] = self._loop.create_future()

    @property
    def peer(self) -> Hello:
        """Who is at the other end."""
        return self._peer

    @property
    def queued_bytes(self) -> int:
        """Estimated bytes of envelopes that were not handed to the network yet."""
        return self._outbox.queued_bytes

    @property
    def is_open(self) -> bool:
        """Whether `send` still takes envelopes."""
        return self._open

    def send(self, envelope: Envelope) -> None:
        """Queue an envelope; after the link broke it becomes one of the unsent, or nothing once these were reported."""
        if not self._open:
            if not self._reported.done():
                self._late.append(envelope)
            return
        outbox = self._outbox
        outbox.put(envelope)
        if self._idle:
            self._idle = False
            self._wake()
        if outbox.queued_bytes > self._max_queued_bytes:
            self._break(f"more than {self._max_queued_bytes} bytes wait for a peer that does not take them")

    def close(self, reason: str) -> None:
        """Break the link now; what is queued is reported as unsent."""
        self._break(reason)

    async def drain(self) -> None:
        """Wait until everything queued so far was handed to the network, or the link closed."""
        target = self._outbox.taken + len(self._outbox)
        if self._broken.done() or self._written >= target:
            return
        drained: asyncio.Future[None] = self._loop.create_future()
        self._drains.append((target, drained))
        await drained

    async def wait_reported(self) -> None:
        """Wait until the user was told that the link is gone."""
        if not self._reported.done():
            await asyncio.wait((self._reported,))

    def _listen(self, events: LinkEvents) -> None:
        self._events = events
        self._counters.links_opened += 1

    @abc.abstractmethod
    def _wake(self) -> None:
        """Send what is queued, soon. Called once after each time that `_idle` was set."""

    def _soon(self, call: Callable[[*_Ts], None], *args: *_Ts) -> None:
        """Call at the loop's next turn, away from the context of whoever happens to send."""
        self._loop.call_soon(call, *args, context=self._context)

    def _break(self, reason: str) -> None:
        """End the link; the first reason counts."""
        self._open = False
        if not self._broken.done():
            self._broken.set_result(reason)
            self._soon(self._report_closed)

    def _report_closed(self) -> None:
        self._reported.set_result(None)
        self._finish_drains(None)
        unsent = self._outbox.remove_all() + self._late
        self._late = []
        if self._events is None:
            return
        self._counters.links_closed += 1
        try:
            self._events.closed(self._broken.result(), unsent)
        except Exception:  # noqa: BLE001 - user code: the end of a link must not depend on it
            _log.exception("a link's user failed in closed()")

    def _deliver(self, envelopes: Sequence[Envelope]) -> None:
        """Hand one frame's envelopes to the user, unless the link broke."""
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
            bounced, self._outbox.bounced = self._outbox.bounced, []
            self._soon(self._deliver, bounced)
        return frame

    def _frame_written(self) -> None:
        """Note that all that was taken is with the network."""
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
