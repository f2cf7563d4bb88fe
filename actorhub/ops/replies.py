"""RPCs in one method each, and the border between our errors and gRPC's.

A service's method takes the request alone, and returns the reply or raises. A decorator turns it into what gRPC calls.
Every RPC ends in an answer, or in a status that says why there is none.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

import grpc

from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    ConfigurationError,
    EntityNotAssigned,
    MailboxFull,
    MalformedMessage,
    MessageTooLarge,
    UnknownEntityType,
    UnknownHandler,
    UnknownMessage,
)
from actorhub.core.logger import get_logger
from actorhub.ops.failures import failure_of
from actorhub.transport.grpc._pb import client_v1_pb2 as pb

Service = TypeVar("Service")
RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")
SentT_contra = TypeVar("SentT_contra", contravariant=True)
MadeT_co = TypeVar("MadeT_co", covariant=True)

_log: Final = get_logger("actorhub.ops")

_LONGEST_TEXT: Final = 2000

_STATUS: Final[tuple[tuple[type[ActorhubError], grpc.StatusCode], ...]] = (
    (MalformedMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigurationError, grpc.StatusCode.INVALID_ARGUMENT),
    (MessageTooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownEntityType, grpc.StatusCode.NOT_FOUND),
    (UnknownHandler, grpc.StatusCode.NOT_FOUND),
    (EntityNotAssigned, grpc.StatusCode.NOT_FOUND),
    (UnknownMessage, grpc.StatusCode.NOT_FOUND),
    (MailboxFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (CallTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
)


class Rpc(Protocol):
    """What is used of gRPC's context of one call."""

    async def abort(self, code: grpc.StatusCode, details: str, /) -> NoReturn:
        """End the call with a status."""
        ...


class StreamingRpc(Rpc, Protocol[SentT_contra]):
    """The same of a call that is answered by a stream."""

    async def write(self, message: SentT_contra, /) -> None:
        """Hand a message to the network; returns when there is room for another."""
        ...


class FailureReply(Protocol[MadeT_co]):
    """A kind of reply that can say what failed."""

    def __call__(self, *, failure: pb.Failure) -> MadeT_co:
        """Return the reply that holds `failure`."""
        ...


Method: TypeAlias = Callable[[Service, RequestT], Coroutine[Any, Any, ReplyT]]
StreamMethod: TypeAlias = Callable[[Service, RequestT], AsyncGenerator[ReplyT, None]]
GrpcMethod: TypeAlias = Callable[[Service, RequestT, Rpc], Coroutine[Any, Any, ReplyT]]
GrpcStream: TypeAlias = Callable[[Service, RequestT, StreamingRpc[ReplyT]], Coroutine[Any, Any, None]]


def rpc(method: Method[Service, RequestT, ReplyT]) -> GrpcMethod[Service, RequestT, ReplyT]:
    """Let gRPC call `method`; an error that it raises ends the call with the status that means it."""

    @wraps(method)
    async def answer(service: Service, request: RequestT, context: Rpc) -> ReplyT:
        return await _answered(context, method.__qualname__, method(service, request))

    return answer


def failing_rpc(
    reply: FailureReply[ReplyT],
) -> Callable[[Method[Service, RequestT, ReplyT]], GrpcMethod[Service, RequestT, ReplyT]]:
    """Return a decorator like `rpc`, but errors of ours are part of the reply, which is made by `reply`."""

    def decorate(method: Method[Service, RequestT, ReplyT]) -> GrpcMethod[Service, RequestT, ReplyT]:
        @rpc
        @wraps(method)
        async def answer(service: Service, request: RequestT) -> ReplyT:
            try:
                return await method(service, request)
            except ActorhubError as error:
                return reply(failure=failure_of(error))

        return answer

    return decorate


def failing_stream(
    reply: FailureReply[ReplyT],
) -> Callable[[StreamMethod[Service, RequestT, ReplyT]], GrpcStream[Service, RequestT, ReplyT]]:
    """Return a decorator that sends what a method yields; an error of ours is the last message, made by `reply`.

    gRPC's flow control holds the generator. When the caller leaves, the generator is closed before the RPC ends.
    """

    def decorate(method: StreamMethod[Service, RequestT, ReplyT]) -> GrpcStream[Service, RequestT, ReplyT]:
        async def write_all(service: Service, request: RequestT, context: StreamingRpc[ReplyT]) -> None:
            try:
                async with aclosing(method(service, request)) as items:
                    async for item in items:
                        await context.write(item)
            except ActorhubError as error:
                await context.write(reply(failure=failure_of(error)))

        @wraps(method)
        async def answer(service: Service, request: RequestT, context: StreamingRpc[ReplyT]) -> None:
            await _answered(context, method.__qualname__, write_all(service, request, context))

        return answer

    return decorate


async def _answered(context: Rpc, name: str, work: Awaitable[ReplyT]) -> ReplyT:
    """Return the result of `work`; an error ends the call with its status instead."""
    try:
        return await work
    except ActorhubError as error:
        await context.abort(status_of(error), str(error)[:_LONGEST_TEXT])
    except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
        _log.exception("%s failed", name)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error: see the log of this runner")


def status_of(error: ActorhubError) -> grpc.StatusCode:
    """Return the gRPC status that means `error`."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.UNAVAILABLE)
