"""One end of one gRPC stream as a link."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any

import grpc
from typing_extensions import override

from actorhub.core.envelope import Envelope, Hello
from actorhub.core.errors import MalformedMessage
from actorhub.transport.grpc.streams import STREAM_ERRORS, Stream, explain, pack_frame, read_message, unpack_frame
from actorhub.transport.link import CLOSED_BY_PEER, QueuedLink
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.statistics import Counters


class GrpcLink(QueuedLink):
    """A link over one bidirectional stream.

    While a write is in flight everything that is sent accumulates and leaves with the next: a frame costs far more than
    an envelope in it.
    """

    def __init__(
        self,
        peer: Hello,
        stream: Stream,
        *,
        limits: LinkLimits,
        counters: Counters,
        first: Sequence[Envelope] = (),
        half_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare a link; it moves nothing before `pump`.

        Args:
            peer: Who is at the other end.
            stream: The stream, for this link alone.
            limits: The link's bounds.
            counters: Where its frames are counted.
            first: What came with the peer's `Hello`.
            half_close: How the connecting end says that it writes no more.
        """
        super().__init__(peer, limits, counters)
        self._stream = stream
        self._first = first
        self._half_close = half_close
        self._wakeup: asyncio.Future[None] | None = None
        self.status = grpc.StatusCode.OK
        """With which status the accepting end answers the stream."""

    @property
    def reason(self) -> str:
        """Why the link broke; empty while it is open."""
        return self._broken.result() if self._broken.done() else ""

    @override
    def close(self, reason: str) -> None:
        if self._open:
            self.status = grpc.StatusCode.ABORTED
        super().close(reason)

    async def pump(self) -> None:
        """Move frames until the link breaks. Cancellation breaks it, also that of reader or writer by the program.

        A link ends in one of four ways: `close`, a failed read, a failed write, or the cancellation of this task, which
        is how gRPC tells the accepting end that its peer is gone. Each resolves `_broken`, the first one with its
        reason; this task alone waits for it, and ends reader and writer. A frame that is under way then was taken from
        the queue, so its envelopes are not reported as unsent: whether they arrived is unknown.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                # An empty context: what the connecting caller had in its own must not reach the receivers of frames.
                moving = [tasks.create_task(move(), context=Context()) for move in (self._read_all, self._write_all)]
                try:
                    # Not awaited itself: a cancelled task cancels the future that it awaits.
                    ends: list[asyncio.Future[Any]] = [self._broken, *moving]
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in moving:
                        task.cancel()
        finally:
            self._break("the connection was lost")

    async def finish(self) -> None:
        """Flush the queue, then end the link so that none of it is lost on the way."""
        self._stop_taking()
        await self.drain()
        if self._half_close is not None and not self._broken.done():
            # `drain` means that gRPC has the frames, not that they are on the wire. Cancelling a call drops what the
            # connection has not written yet. So the connecting end says that it writes no more, and waits until the
            # accepting end, which has read everything by then, ends the stream. The accepting end needs no such wait:
            # its status stands behind its frames.
            await self._half_close()
            await asyncio.wait((self._broken,))
        self._break("closed")

    @override
    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _write_all(self) -> None:
        try:
            while not self._broken.done():
                if not self._outbox:
                    # No `await` between the check and this: an envelope that is sent from now on finds `_idle` set, and
                    # wakes this task.
                    self._idle = True
                    self._wakeup = self._loop.create_future()
                    await self._wakeup
                    continue
                if frame := self._take_frame():
                    await self._stream.write(pack_frame(frame))
                self._frame_written()
        except (*STREAM_ERRORS, asyncio.InvalidStateError) as exc:
            self._break(explain(exc))

    async def _read_all(self) -> None:
        # The connecting caller gets its link before its first envelope, even where tasks start eagerly.
        await asyncio.sleep(0)
        if self._first:
            self._deliver(self._first)
        try:
            while (message := await read_message(self._stream)) is not None:
                self._receive(unpack_frame(message))
            self._break(CLOSED_BY_PEER)
        except (*STREAM_ERRORS, asyncio.InvalidStateError) as exc:
            # A peer that shuts its server down first sends GOAWAY, which lets open streams go on: what it still had
            # queued arrives, and the end of the stream after it. A connection that is cut, or whose keepalive ping
            # goes unanswered, fails the read at once.
            self._break(explain(exc))
        except MalformedMessage as exc:
            self._counters.frames_malformed += 1
            self.status = grpc.StatusCode.INVALID_ARGUMENT
            self._break(f"the peer sent a malformed frame: {exc}")
