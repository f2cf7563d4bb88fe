"""`actorhub.client.v1`: calls from any language, through any runner."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict, cast

import grpc.aio

from actorhub import _call as calls
from actorhub._stream_call import StreamCall
from actorhub.core.arguments import LONGEST, check_headers
from actorhub.core.codec import Codec
from actorhub.core.errors import HandlerFailed, MalformedMessage
from actorhub.core.idempotency import check_key
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.ops.local import LocalRunner, local_runner
from actorhub.ops.replies import failing_rpc, failing_stream
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2_grpc as pb_grpc

_DEFAULT_TIMEOUT_MS: Final = 30_000
_REMEDY: Final = "declare the handler with @handler(durable=True), or leave this out"
_LATEST_MS: Final = 221_845_392_000_000
"""The year 9000."""
_LONGEST_MS: Final = int(LONGEST.total_seconds() * 1000)
_ANY: Final = Codec[object](object, "reply")
_VALUE: Final = Codec[object](object, "value")


class Gateway:
    """Turns requests into calls. An RPC only waits: handlers run in tasks of the engine, here or on another runner.

    Every error of a call is part of the reply; a gRPC status other than OK means that the gateway itself failed.
    """

    def __init__(self, acceptor: LinkAcceptor, specs: Mapping[str, EntitySpec]) -> None:
        self._acceptor = acceptor
        self._specs = specs

    @failing_rpc(pb.CallReply)
    async def Call(self, request: pb.CallRequest) -> pb.CallReply:
        """Run one handler; cancelled with the RPC."""
        runner, spec = self._handler(request)
        if spec.stream:
            raise MalformedMessage(f"{_what(spec)} is a stream: use Stream, or `actorhub call ... --stream`")
        _check_at_once(request)
        return _encoded(request.encoding, spec, await _call(runner, spec, request))

    @failing_rpc(pb.TellReply)
    async def Tell(self, request: pb.CallRequest) -> pb.TellReply:
        """Put one message into a mailbox, or store it."""
        runner, spec = self._handler(request)
        if spec.stream:
            raise MalformedMessage(f"{_what(spec)} is a stream: it cannot be told")
        times = _due(request, spec)
        return pb.TellReply(message_id=await runner.cluster.tell(_call(runner, spec, request), **times))

    @failing_stream(pb.CallReply)
    async def Stream(self, request: pb.CallRequest) -> AsyncGenerator[pb.CallReply, None]:
        """Run one streaming handler; gRPC's flow control holds it, the end of the RPC cancels it."""
        runner, spec = self._handler(request)
        if not spec.stream:
            raise MalformedMessage(f"{_what(spec)} is not a stream: use Call, or `actorhub call` without --stream")
        _check_at_once(request)
        target, arguments = _prepared(runner, spec, request)
        async with aclosing(StreamCall(target, spec, request.entity_id, arguments)) as call:
            async for item in call:
                yield _encoded(request.encoding, spec, item)

    @failing_rpc(pb.CallReply)
    async def Reply(self, request: pb.ReplyRequest) -> pb.CallReply:
        """Wait until a durable message has ended."""
        timeout = timedelta(milliseconds=request.timeout_ms or _DEFAULT_TIMEOUT_MS)
        value: object = await self._runner().cluster.reply(request.message_id, timeout=timeout)
        return _encoded(request.encoding, None, value)

    @failing_rpc(pb.CancelReply)
    async def Cancel(self, request: pb.CancelRequest) -> pb.CancelReply:
        """Cancel a durable message, and end its run if one is under way."""
        cluster = self._runner().cluster
        return pb.CancelReply(cancelled=await cluster.cancel(request.message_id, terminate=request.terminate))

    @failing_rpc(pb.CompleteReply)
    async def Complete(self, request: pb.CompleteRequest) -> pb.CompleteReply:
        """Give a deferred value its outcome."""
        cluster = self._runner().cluster
        match request.WhichOneof("outcome"):
            case "value":
                value = _decoded(request.encoding, request.value)
                return pb.CompleteReply(completed=await cluster.complete(request.token, value))
            case "failure":
                return pb.CompleteReply(completed=await cluster.fail(request.token, request.failure))
            case _:
                raise MalformedMessage("give the deferred value a value or a failure")

    def _runner(self) -> LocalRunner:
        return local_runner(self._acceptor, self._specs)

    def _handler(self, request: pb.CallRequest) -> tuple[LocalRunner, HandlerSpec]:
        runner = self._runner()
        return runner, runner.spec(request.entity_type).handler(request.handler)


def _call(runner: LocalRunner, spec: HandlerSpec, request: pb.CallRequest) -> calls.Call:
    target, arguments = _prepared(runner, spec, request)
    return calls.Call(target, spec, request.entity_id, arguments)


def _prepared(
    runner: LocalRunner, spec: HandlerSpec, request: pb.CallRequest
) -> tuple[calls.CallTarget, tuple[object, ...]]:
    runner.check_entity_id(spec.entity_type, request.entity_id)
    if request.key and (spec.stream or not spec.durable):
        kind = "a stream" if spec.stream else "not durable"
        raise MalformedMessage(f"{_what(spec)} is {kind}, so it has no key: {_REMEDY}")
    target = runner.target(
        timeout=(request.timeout_ms or _DEFAULT_TIMEOUT_MS) / 1000,
        waits_for_room=request.wait_for_room,
        headers=check_headers(request.headers) or None,
        key=check_key(request.key) if request.key else None,
    )
    as_json = request.encoding == pb.ENCODING_JSON
    decode = spec.decode_json_arguments if as_json else spec.decode_arguments
    return target, decode(request.arguments)


class _Due(TypedDict, total=False):
    deliver_at: datetime
    delay: timedelta


def _due(request: pb.CallRequest, spec: HandlerSpec) -> _Due:
    """Return when a told message is due.

    Raises:
        MalformedMessage: the request gives two times, or one that does not exist, or the handler is not durable.
    """
    deliver_at_ms, delay_ms = request.deliver_at_ms, request.delay_ms
    if (deliver_at_ms or delay_ms) and not spec.durable:
        raise MalformedMessage(f"{_what(spec)} is not durable, so it cannot be told for later: {_REMEDY}")
    if deliver_at_ms and delay_ms:
        raise MalformedMessage("give deliver_at_ms or delay_ms, not both")
    if not 0 <= deliver_at_ms < _LATEST_MS or not 0 <= delay_ms < _LONGEST_MS:
        raise MalformedMessage(
            f"deliver_at_ms and delay_ms must not be negative, nor beyond the year 9000 or {LONGEST.days} days"
        )
    if deliver_at_ms:
        return {"deliver_at": datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=deliver_at_ms)}
    return {"delay": timedelta(milliseconds=delay_ms)} if delay_ms else {}


def _check_at_once(request: pb.CallRequest) -> None:
    if request.deliver_at_ms or request.delay_ms:
        raise MalformedMessage("deliver_at_ms and delay_ms are for Tell: a call that somebody waits for runs at once")


def _what(spec: HandlerSpec) -> str:
    return f"{spec.entity_type}.{spec.name}"


def _encoded(encoding: pb.Encoding.ValueType, spec: HandlerSpec | None, value: object) -> pb.CallReply:
    codec = spec.result if spec is not None else _ANY
    try:
        return pb.CallReply(result=codec.encode_json(value) if encoding == pb.ENCODING_JSON else codec.encode(value))
    except MalformedMessage as error:
        raise HandlerFailed("TypeError", f"the result cannot be sent in this encoding: {error}") from error


def _decoded(encoding: pb.Encoding.ValueType, body: bytes) -> object:
    if not body:
        return None
    return _VALUE.decode_json(body) if encoding == pb.ENCODING_JSON else _VALUE.decode(body)


def add_gateway(acceptor: LinkAcceptor, specs: Mapping[str, EntitySpec], server: grpc.aio.Server) -> None:
    """Make `server` take calls for the runner behind `acceptor`."""
    pb_grpc.add_GatewayServicer_to_server(cast("pb_grpc.GatewayServicer", Gateway(acceptor, specs)), server)
