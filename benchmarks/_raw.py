"""The limit of everything that crosses processes: a bidirectional stream of grpc.aio with coalescing and nothing else.

A frame is a msgpack list of `(number, body)`. In the opaque form, bodies are bytes that are not decoded. In the typed
form they are the payload itself, encoded and decoded at both ends like the arguments and results of an entity.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, cast

import grpc.aio
import msgspec

from actorhub.transport.grpc.streams import ClientStream, ServerStream, ServeStream, read_message, stream_handler
from benchmarks._workload import ENCODED, PAYLOAD, Payload

Item = tuple[int, bytes]
TypedItem = tuple[int, Payload]

FRAME_ITEMS: Final = 256
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Item]).decode
_decode_typed: Final = msgspec.msgpack.Decoder(list[TypedItem]).decode


class _Writer:
    """Writes everything that queued during the last write."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._queue: list[Item | TypedItem] = []
        self._wakeup: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    def put(self, item: Item | TypedItem) -> None:
        self._queue.append(item)
        if self._wakeup is not None:
            self._wakeup.set_result(None)
            self._wakeup = None

    async def run(self) -> None:
        while True:
            if not self._queue:
                self._wakeup = self._loop.create_future()
                await self._wakeup
            batch, self._queue = self._queue, []
            await self._write(_encode(batch))


async def _echo(_: object, context: ServerStream) -> None:
    await _answer(context, _decode)


async def _echo_typed(_: object, context: ServerStream) -> None:
    await _answer(context, _decode_typed)


async def _answer(context: ServerStream, decode: Callable[[bytes], Sequence[Item | TypedItem]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        out = _Writer(context.write)
        writing = tasks.create_task(out.run())
        while (frame := await read_message(context)) is not None:
            for item in decode(frame):
                out.put(item)
        writing.cancel()


async def _ping(_: object, context: ServerStream) -> None:
    while (frame := await read_message(context)) is not None:
        await context.write(_encode(_decode(frame)))


async def _chunks(_: object, context: ServerStream) -> None:
    """Take `[(streams, count)]`, and send `count` chunks of each stream, in frames as full as those of a link."""
    frame = await read_message(context) or b""
    [(streams, count)] = msgspec.msgpack.decode(frame, type=list[tuple[int, int]])
    each = FRAME_ITEMS // streams
    left = count
    while left > 0:
        now = min(each, left)
        left -= now
        await context.write(_encode([(stream, ENCODED) for _ in range(now) for stream in range(streams)]))


async def serve_raw(stack: AsyncExitStack) -> str:
    """Serve the raw streams until `stack` ends. Return the address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    serving: dict[str, ServeStream] = {"Echo": _echo, "EchoTyped": _echo_typed, "Ping": _ping, "Chunks": _chunks}
    methods = {name: stream_handler(serve) for name, serve in serving.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return f"127.0.0.1:{port}"


def _open(channel: grpc.aio.Channel, method: str) -> ClientStream:
    call = cast("Callable[[], ClientStream]", channel.stream_stream(f"/raw/{method}", None, None))
    return call()


class RawAsks:
    """Asks over one raw stream."""

    def __init__(self, channel: grpc.aio.Channel, tasks: asyncio.TaskGroup, *, typed: bool) -> None:
        self._stream = _open(channel, "EchoTyped" if typed else "Echo")
        self._body: bytes | Payload = PAYLOAD if typed else ENCODED
        self._decode: Callable[[bytes], Sequence[Item | TypedItem]] = _decode_typed if typed else _decode
        self._out = _Writer(self._stream.write)
        self._pending: dict[int, asyncio.Future[bytes | Payload]] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._tasks = [tasks.create_task(self._out.run()), tasks.create_task(self._read())]

    def ask(self, _: int) -> "asyncio.Future[bytes | Payload]":
        """Send the payload, and return the future of its echo."""
        number = next(self._numbers)
        reply: asyncio.Future[bytes | Payload] = self._loop.create_future()
        self._pending[number] = reply
        self._out.put((number, self._body))  # type: ignore[arg-type]
        return reply

    def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()

    async def _read(self) -> None:
        while (frame := await read_message(self._stream)) is not None:
            for number, body in self._decode(frame):
                self._pending.pop(number).set_result(body)


class RawPing:
    """Bare round trips: one frame there and one frame back."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stream = _open(channel, "Ping")

    async def ping(self, _: int) -> None:
        """Make one round trip."""
        await self._stream.write(_encode([(1, ENCODED)]))
        _decode(await read_message(self._stream) or b"")


async def raw_chunks(channel: grpc.aio.Channel, streams: int, count: int) -> None:
    """Receive `count` chunks on each of `streams` streams, each with its own consumer."""
    call = _open(channel, "Chunks")
    await call.write(_encode([(streams, count)]))
    consumers = [_Consumer() for _ in range(streams)]
    async with asyncio.TaskGroup() as tasks:
        for consumer in consumers:
            tasks.create_task(consumer.take(count))
        while (frame := await read_message(call)) is not None:
            for number, body in _decode(frame):
                consumers[number].put(body)


class _Consumer:
    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, body: bytes) -> None:
        self._items.append(body)
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    async def take(self, count: int) -> None:
        for _ in range(count):
            if not self._items:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            self._items.popleft()
