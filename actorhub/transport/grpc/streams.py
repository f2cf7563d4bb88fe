"""What is used of grpc.aio's streams, typed: its stubs are generic where its classes are not."""

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, Protocol, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from actorhub.core.envelope import Envelope, Hello, decode_frame, encode_frame
from actorhub.core.errors import MalformedMessage
from actorhub.transport.grpc._pb.runner_v1_pb2 import DESCRIPTOR, Frame

SERVICE: Final = DESCRIPTOR.services_by_name["Runner"].full_name
METHOD: Final = f"/{SERVICE}/Link"
IDENTIFY: Final = f"/{SERVICE}/Identify"

STREAM_ERRORS: Final = (
    grpc.aio.AioRpcError,
    grpc.aio.UsageError,
    grpc.aio.InternalError,
    grpc.aio.AbortError,
)
"""What `read` and `write` raise once the stream is over, beside `asyncio.InvalidStateError`."""

_END: Final = cast("object", grpc.aio.EOF)  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]


class Stream(Protocol):
    """The calls that both ends of a stream have."""

    def read(self) -> Awaitable[object]:
        """Return the next message, or grpc.aio's EOF."""
        ...

    def write(self, message: bytes, /) -> Awaitable[None]:
        """Hand a message to the network; returns when there is room for another."""
        ...


class ServerStream(Stream, Protocol):
    """The accepting end."""

    def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...], /) -> Awaitable[None]:
        """Begin the answer; returns when it is written, which no flow control holds up."""
        ...

    def abort(self, code: grpc.StatusCode, details: str, /) -> Awaitable[NoReturn]:
        """End the stream with a status; a write that is under way goes before it, even one whose wait was cancelled."""
        ...

    def peer(self) -> str:
        """Return the network address of the other end."""
        ...


class ClientStream(Stream, Protocol):
    """The connecting end."""

    def done_writing(self) -> Awaitable[None]:
        """Tell the accepting end that nothing more comes."""
        ...

    def code(self) -> Awaitable[grpc.StatusCode]:
        """Wait for the end of the stream and return its status."""
        ...

    def details(self) -> Awaitable[str]:
        """Wait for the end of the stream and return its status's text."""
        ...


ServeStream: TypeAlias = Callable[[object, ServerStream], Awaitable[None]]
ServeUnary: TypeAlias = Callable[[bytes, object], Awaitable[bytes]]


def open_stream(channel: grpc.aio.Channel, token: str | None) -> ClientStream:
    """Begin the call; it connects when it is first written to."""
    # No protobuf serializers at either end, so that a message arrives as the bytes that it is: one that does not parse
    # is then ours to answer and to count. gRPC would end the stream with a status of its own.
    call = cast("Callable[..., ClientStream]", channel.stream_stream(METHOD, None, None))  # pyright: ignore[reportUnknownMemberType]
    return call(metadata=_metadata(token))


async def ask_identity(channel: grpc.aio.Channel, token: str | None) -> Hello:
    """Return what the process at the other end of `channel` says of itself.

    Raises:
        MalformedMessage: it does not begin with a Hello.
        grpc.aio.AioRpcError: it does not answer, or refuses to.
    """
    call = cast("Callable[..., Awaitable[bytes]]", channel.unary_unary(IDENTIFY, None, None))  # pyright: ignore[reportUnknownMemberType]
    frame = decode_frame(unpack_frame(await call(b"", metadata=_metadata(token))))
    if not frame or not isinstance(frame[0], Hello):
        raise MalformedMessage("it answers without a Hello")
    return frame[0]


def stream_handler(serve: ServeStream) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Return gRPC's handler that gives each incoming stream to `serve`."""
    make = cast("Callable[[ServeStream], grpc.RpcMethodHandler[bytes, bytes]]", grpc.stream_stream_rpc_method_handler)  # pyright: ignore[reportUnknownMemberType]
    return make(serve)


def add_stream_service(server: grpc.aio.Server, serve: ServeStream, identify: ServeUnary) -> None:
    """Make `server` give the streams of our service to `serve`, and the question who listens to `identify`."""
    make = cast("Callable[[ServeUnary], grpc.RpcMethodHandler[bytes, bytes]]", grpc.unary_unary_rpc_method_handler)  # pyright: ignore[reportUnknownMemberType]
    handlers = {"Link": stream_handler(serve), "Identify": make(identify)}
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    server.add_generic_rpc_handlers((handler,))  # pyright: ignore[reportUnknownMemberType]


def pack_frame(envelopes: bytes) -> bytes:
    """Return the protobuf message around an encoded frame.

    The message has a single field of bytes. Envelopes that were protobuf messages themselves would cost a third of the
    throughput.
    """
    return Frame(envelopes=envelopes).SerializeToString()


def pack_hello(hello: Hello) -> bytes:
    """Return the message that opens a link."""
    return pack_frame(encode_frame([hello]))


async def read_message(stream: Stream) -> bytes | None:
    """Return the next message, or None when the peer writes no more."""
    message = await stream.read()
    return None if message is _END else cast("bytes", message)


def unpack_frame(message: bytes | None) -> bytes:
    """Return the encoded frame in a protobuf message.

    Raises:
        MalformedMessage: it is not the message that holds a frame, or there is none.
    """
    if message is None:
        raise MalformedMessage("the stream ended before its first frame")
    try:
        return Frame.FromString(message).envelopes
    except DecodeError as exc:
        raise MalformedMessage(f"not a protobuf message: {exc}") from exc


async def read_first_frame(stream: Stream) -> list[Envelope]:
    """Return the envelopes that the peer opens the link with.

    Raises:
        MalformedMessage: it opens it with something else, or says nothing.
    """
    return decode_frame(unpack_frame(await read_message(stream)))


def _metadata(token: str | None) -> tuple[tuple[str, str], ...] | None:
    return (("authorization", f"Bearer {token}"),) if token is not None else None


def explain(error: Exception) -> str:
    """Return what gRPC's error says, in a line."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.details() or 'no details'} ({error.code().name})"
    return f"{type(error).__name__}: {error}"
