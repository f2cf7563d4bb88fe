"""What the stream methods of a proxy return: a lazy stream, which is sent when its first item is asked for."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Any, Final

from actorhub._call import Call, CallTarget, decode_result
from actorhub.core.envelope import STREAM
from actorhub.core.errors import ActorhubError, CallTimeout, RunnerUnavailable
from actorhub.engine.model.records import DONE, FOREVER, NEW, SENT
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.runs.streams import STREAM_WINDOW_BYTES

STREAM_WINDOW: Final = 256
"""Items of a stream that may be on their way to a consumer."""


class StreamCall(AsyncIterator[Any]):
    """A lazy stream, sent when the first item is asked for.

    Closing it cancels the producer. So does dropping it: the engine refers to the message behind it, not to this
    object.
    """

    __slots__ = ("__weakref__", "_message")

    def __init__(self, target: CallTarget, spec: HandlerSpec, entity_id: str, args: tuple[Any, ...]) -> None:
        self._message = _StreamMessage(target, spec, entity_id, args)

    def __await__(self) -> Generator[Any, None, Any]:
        self.discard()
        raise TypeError(f"{self._message.what} is a stream: use `async for item in ...`")

    def __aiter__(self) -> "StreamCall":
        return self

    async def __anext__(self) -> Any:
        message = self._message
        items = message.items
        if not items:
            await message.wait_for_items()
        body = items.popleft()
        message.taken(len(body))
        return decode_result(message.spec, body)

    def discard(self) -> None:
        """Mark it as used, so that it does not warn when it is dropped."""
        self._message.close()

    async def aclose(self) -> None:
        """Stop the stream, and cancel its producer."""
        self.discard()
        self._message.check_loop()
        self._message.withdraw()
        self._message.items.clear()

    def __del__(self) -> None:
        self._message.withdraw_soon()

    def __repr__(self) -> str:
        return f"<stream of {self._message.what}({self._message.entity_id!r})>"


class _StreamMessage(Call):
    """The message behind a stream: what the engine knows of its consumer."""

    __slots__ = (
        "_error",
        "_is_over",
        "_loop",
        "_resumed_at",
        "_resumptions",
        "_taken",
        "_taken_bytes",
        "_waiter",
        "items",
        "skip",
    )

    def __init__(self, target: CallTarget, spec: HandlerSpec, entity_id: str, args: tuple[Any, ...]) -> None:
        super().__init__(target, spec, entity_id, args)
        self.kind = STREAM
        self.items: deque[bytes] = deque()
        """Items that have arrived and were not taken yet."""
        self._is_over = False
        self._error: ActorhubError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.skip = 0
        self._resumed_at = -1
        self._resumptions = 0
        self._taken = self._taken_bytes = 0
        """What the consumer has taken since it last granted credit."""

    async def wait_for_items(self) -> None:
        """Return once there is an item.

        Raises:
            StopAsyncIteration: The stream has ended.
            ActorhubError: The stream has ended with this error.
            NotConnected: This is not the event loop of the connection.
            RuntimeError: Another task is waiting for an item already.
        """
        self.check_loop()
        if self._loop is None:
            self._start()
        while not self.items:
            if self._is_over:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError(f"two tasks take items of one stream of {self.what}: make a stream for each task")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                # As with a local async generator, cancelling whoever waits for the next item ends the stream.
                self.withdraw()
                raise
            finally:
                self._waiter = None

    def taken(self, size: int) -> None:
        """Count an item that the consumer took. Grant credit in batches, by number of items or by bytes."""
        self._taken += 1
        self._taken_bytes += size
        if (self._taken >= STREAM_WINDOW // 2 or self._taken_bytes >= STREAM_WINDOW_BYTES // 4) and not self._is_over:
            self.check_loop()
            count, self._taken, self._taken_bytes = self._taken, 0, 0
            if self.producer is not None:
                self.producer.grant(count)
            elif self.phase == SENT and self.peer is not None:
                self.peer.grant(self, count)

    def on_completed(self, body: bytes) -> None:
        """End the stream."""
        self._end(None)

    def on_failed(self, error: ActorhubError) -> None:
        """End the stream with the error, after its items; a durable one that lost its runner goes on elsewhere."""
        if isinstance(error, RunnerUnavailable) and self.try_resume():
            self.phase = NEW
            self.peer = self.cell = self.producer = self.task = None
            asyncio.get_running_loop().call_soon(self._route_again)
        else:
            self._end(error)

    def try_resume(self) -> bool:
        """Prepare it to go on at the next owner, after the last item that arrived; return `False` if it does not.

        The next producer runs the generator from the start, and drops the first `skip` items, which have arrived. The
        stream fails if `retry.attempts` runners are lost without an item arriving.
        """
        if not self.spec.durable or self._is_over:
            return False
        if self._resumed_at != self.skip:
            self._resumed_at, self._resumptions = self.skip, 0
        self._resumptions += 1
        if not self.spec.retry.allows(self._resumptions - 1):
            return False
        self.credit = max(1, STREAM_WINDOW - len(self.items))
        self._taken = self._taken_bytes = 0
        node = self._target.node
        if self.deadline == FOREVER and self._target.timeout is not None:
            self.deadline = node.clock.monotonic() + self._target.timeout
            node.deadlines.add(self)
        return True

    def _route_again(self) -> None:
        if not self._is_over and self.phase == NEW:
            self._target.node.router.route(self)

    def on_items(self, bodies: Sequence[bytes]) -> None:
        """Take items. The first ones end the deadline, since a stream may be long."""
        if self.deadline != FOREVER:
            self._target.node.deadlines.drop(self)
            self.deadline = FOREVER
        self.items.extend(bodies)
        self.skip += len(bodies)
        self._wake()

    def withdraw(self) -> None:
        """End it from the consumer's side."""
        if self._is_over:
            return
        self._is_over = True
        node = self._target.node
        node.deadlines.drop(self)
        self.trace_ended(None)
        if self.phase not in (DONE, NEW):
            node.router.withdraw(self, CallTimeout(f"{self.what}: the consumer went away"))

    def withdraw_soon(self) -> None:
        """End it soon. Can be called in any thread, since garbage may be collected in any."""
        if self._loop is not None and not self._is_over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.withdraw)

    def _start(self) -> None:
        if self._target.broadcast:
            self._used = True
            raise TypeError(f"{self.what} of active(): a broadcast has no reply, and so no stream")
        self.prepare()
        self.trace_started()
        self._loop = asyncio.get_running_loop()
        self.credit = STREAM_WINDOW
        self._target.node.deadlines.add(self)
        self._target.node.router.route(self)

    def _end(self, error: ActorhubError | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._error = error
            self._target.node.deadlines.drop(self)
            self.trace_ended(error)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
