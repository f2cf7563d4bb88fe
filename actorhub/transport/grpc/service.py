"""The accepting end of `actorhub.runner.v1.Runner`, and the token check of everything on its port."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import grpc
import grpc.aio

from actorhub.core.envelope import Hello
from actorhub.core.errors import ActorhubError, ConfigurationError, MalformedMessage
from actorhub.core.logger import get_logger
from actorhub.transport.grpc.link import GrpcLink
from actorhub.transport.grpc.options import ChannelOptions
from actorhub.transport.grpc.streams import (
    STREAM_ERRORS,
    ServerStream,
    add_stream_service,
    explain,
    pack_hello,
    read_first_frame,
    stream_handler,
)
from actorhub.transport.handshake import check_era, check_hello
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Acceptor
from actorhub.transport.statistics import Counters

HELLO_SECONDS: Final = 5.0
"""How long a peer that opened a stream may take to say who it is."""

STATUS_SECONDS: Final = 5.0
"""How long a peer may take to read up to the status that ends its stream."""

WARNING_SECONDS: Final = 1.0
"""Warnings that a peer can provoke at will are written at most this often."""

HEALTH_METHODS: Final = "/grpc.health.v1.Health/"

_log: Final = get_logger(__name__)


class _Refused(Exception):
    """The stream ends before it is a link."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument]
    """Lets calls through that carry the token; health checks need none, since load balancers cannot send it."""

    def __init__(self, token: str, counters: Counters) -> None:
        self._expected = f"Bearer {token}".encode()
        self._counters = counters
        self._refusal = stream_handler(self._refuse)

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[bytes, bytes]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Return the handler that was asked for, or one that answers UNAUTHENTICATED."""
        if handler_call_details.method.startswith(HEALTH_METHODS) or self._is_known(handler_call_details):
            return await continuation(handler_call_details)
        self._counters.links_refused += 1
        return self._refusal

    def _is_known(self, details: grpc.HandlerCallDetails) -> bool:
        shown = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        return len(shown) == 1 and hmac.compare_digest(_bytes(shown[0]), self._expected)

    async def _refuse(self, _requests: object, context: ServerStream) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong: set ACTORHUB_TOKEN")


def make_server(interceptors: Sequence[TokenCheck], options: ChannelOptions) -> grpc.aio.Server:
    """Return a server that is not bound yet."""
    return grpc.aio.server(interceptors=interceptors, options=options)  # pyright: ignore[reportUnknownMemberType]


class LinkService:
    """Turns incoming streams into links."""

    def __init__(
        self, hello: Callable[[], Hello], acceptor: Acceptor, *, limits: LinkLimits, counters: Counters
    ) -> None:
        self._hello = hello
        self._acceptor = acceptor
        self._limits = limits
        self._counters = counters
        self._next_warning = 0.0
        self._held_back = 0
        self.links: set[GrpcLink] = set()
        """The incoming links that are open."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Make `server` take links."""
        add_stream_service(server, self._serve, self._identify)

    async def _identify(self, _request: bytes, _context: object) -> bytes:
        return pack_hello(self._hello())

    async def _serve(self, _requests: object, context: ServerStream) -> None:
        """Carry one stream from its Hello to its end; cancelled by gRPC when the peer is gone."""
        try:
            status, reason = await self._carry(context)
        except _Refused as refused:
            self._counters.links_refused += 1
            self._warn("refused a link with %s: %s", context.peer(), refused.text)
            status, reason = refused.code, refused.text
        except Exception:  # noqa: BLE001 - RPC server: without a status the peer would wait without end
            _log.exception("a link with %s failed", context.peer())
            status, reason = grpc.StatusCode.INTERNAL, "internal error: see the log of this process"
        if status is not grpc.StatusCode.OK:
            await self._answer(context, status, reason)

    async def _carry(self, context: ServerStream) -> tuple[grpc.StatusCode, str]:
        link = await self._open(context)
        self.links.add(link)
        try:
            await link.pump()
        finally:
            self.links.discard(link)
        if link.status is not grpc.StatusCode.OK:
            self._warn("link with %s ended: %s", context.peer(), link.reason)
        return link.status, link.reason

    async def _answer(self, context: ServerStream, status: grpc.StatusCode, reason: str) -> None:
        """End the stream with a status, behind the frame that is under way if there is one."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                await context.abort(status, reason)
        except TimeoutError:
            # A status stands behind the frame that is under way, and gRPC's servers cannot reset a stream. A peer that
            # reads nothing would hold this handler as long as it likes. So the handler ends, gRPC keeps the status, and
            # the peer finds it when it reads on.
            self._warn("%s has not taken its status within %g s: %s", context.peer(), STATUS_SECONDS, reason)
        except grpc.aio.InternalError as exc:
            self._warn("%s was gone before its status: %s", context.peer(), exc)

    async def _open(self, context: ServerStream) -> GrpcLink:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await read_first_frame(context)
            peer = check_hello(first, self._hello())
            # Not with the first frame, and without a time-out: while a batch with the metadata is under way, or once
            # its wait was cancelled, gRPC sends them again with the status. The C core refuses that, and the peer would
            # wait for its status until its own deadline, or without end.
            await context.send_initial_metadata(())
            hello = self._hello()
            check_era(peer, hello)  # Ours may be another one by now.
        except TimeoutError as exc:
            text = f"no Hello arrived within {HELLO_SECONDS:g} s"
            raise _Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text) from exc
        except STREAM_ERRORS as exc:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, explain(exc)) from exc
        except MalformedMessage as exc:
            self._counters.frames_malformed += 1
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, str(exc)) from exc
        except ConfigurationError as exc:
            raise _Refused(grpc.StatusCode.FAILED_PRECONDITION, str(exc)) from exc
        link = GrpcLink(peer, context, limits=self._limits, counters=self._counters, first=first[1:])
        # Queued before the acceptor is asked, so that our Hello leads whatever the acceptor sends. It leaves only when
        # the link is pumped, which a refused one never is: the peer's `connect` returns when our Hello has arrived, and
        # a link that is established must be one that serves. A runner that is still starting refuses, and its peers
        # try again.
        link.send(hello)
        try:
            link.offer_to(self._acceptor)
        except ActorhubError as exc:
            raise _Refused(grpc.StatusCode.PERMISSION_DENIED, str(exc)) from exc
        return link

    def _warn(self, message: str, *args: object) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next_warning:
            self._held_back += 1
            return
        self._next_warning = now + WARNING_SECONDS
        held_back, self._held_back = self._held_back, 0
        _log.warning(f"{message} (%d such warnings held back)", *args, held_back)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
