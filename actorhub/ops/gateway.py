"""`actorhub.client.v1`: calls from any language, through any runner."""

import dataclasses
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn, Protocol, TypedDict, cast

import grpc
import grpc.aio

from actorhub import _call as calls
from actorhub.core.address import check_entity_id
from actorhub.core.codec import Codec
from actorhub.core.errors import ActorhubError, HandlerFailed, MalformedMessage, UnknownEntityType
from actorhub.core.idempotency import check_key
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.runner import LinkAcceptor
from actorhub.ops.failures import failure_of
from actorhub.ops.health import cluster_of
from actorhub.ops.replies import Rpc, runner_of
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2_grpc as pb_grpc

_DEFAULT_TIMEOUT_MS: Final = 30_000
_INTERNAL: Final = "internal error: see the log of this runner"
_REMEDY: Final = "declare it with @handler(durable=True), or leave that out"
_LATEST_MS: Final = 221_845_392_000_000
"""The year 9000."""
_ANY: Final = Codec[object](object, "reply")
_VALUE: Final = Codec[object](object, "value")

_log: Final = logging.getLogger("actorhub.gateway")


class _Streaming(Rpc, Protocol):
    async def write(self, message: pb.CallReply, /) -> None:
        """Hand a message to the network; returns when there is room for another."""
        ...


class Gateway:
    """Turns requests into calls. An RPC only waits: handlers run in tasks of the engine, here or on another runner.

    Every error of a call is part of the reply; a gRPC status other than OK means that the gateway itself failed.
    """

    def __init__(self, door: LinkAcceptor, specs: Mapping[str, EntitySpec]) -> None:
        self._door = door
        self._specs = specs

    async def Call(self, request: pb.CallRequest, context: Rpc) -> pb.CallReply:  # noqa: N802
        """Run one handler; cancelled with the RPC."""
        try:
            spec = self._handler(request)
            if spec.stream:
                raise MalformedMessage(f"{_what(spec)} is a stream: ask for it by Stream")
            if request.deliver_at_ms or request.delay_ms:
                raise MalformedMessage(
                    "deliver_at_ms and delay_ms are for Tell: nobody waits for a call that is not due"
                )
            return _encoded(request.encoding, spec, await self._call(request, spec))
        except ActorhubError as error:
            return pb.CallReply(failure=failure_of(error))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def Tell(self, request: pb.CallRequest, context: Rpc) -> pb.TellReply:  # noqa: N802
        """Put one message into a mailbox, or store it."""
        try:
            spec = self._handler(request)
            if spec.stream:
                raise MalformedMessage(f"{_what(spec)} is a stream: it cannot be told")
            times = _due(request, spec)
            cluster = cluster_of(runner_of(self._door))
            return pb.TellReply(message_id=await cluster.tell(self._call(request, spec), **times))
        except ActorhubError as error:
            return pb.TellReply(failure=failure_of(error))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def Stream(self, request: pb.CallRequest, context: _Streaming) -> None:  # noqa: N802
        """Run one streaming handler; gRPC's flow control holds it, the end of the RPC cancels it."""
        try:
            await self._stream(request, context)
        except ActorhubError as error:
            await context.write(pb.CallReply(failure=failure_of(error)))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def Reply(self, request: pb.ReplyRequest, context: Rpc) -> pb.CallReply:  # noqa: N802
        """Wait until a durable message has ended."""
        try:
            timeout = timedelta(milliseconds=request.timeout_ms or _DEFAULT_TIMEOUT_MS)
            value: object = await cluster_of(runner_of(self._door)).reply(request.message_id, timeout=timeout)
            return _encoded(request.encoding, None, value)
        except ActorhubError as error:
            return pb.CallReply(failure=failure_of(error))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def Cancel(self, request: pb.CancelRequest, context: Rpc) -> pb.CancelReply:  # noqa: N802
        """End a durable message that does not run."""
        try:
            return pb.CancelReply(cancelled=await cluster_of(runner_of(self._door)).cancel(request.message_id))
        except ActorhubError as error:
            return pb.CancelReply(failure=failure_of(error))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def Complete(self, request: pb.CompleteRequest, context: Rpc) -> pb.CompleteReply:  # noqa: N802
        """Give a deferred value its outcome."""
        try:
            return pb.CompleteReply(completed=await self._complete(request))
        except ActorhubError as error:
            return pb.CompleteReply(failure=failure_of(error))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def _complete(self, request: pb.CompleteRequest) -> bool:
        cluster = cluster_of(runner_of(self._door))
        match request.WhichOneof("outcome"):
            case "value":
                return await cluster.complete(request.token, _decoded(request.encoding, request.value))
            case "failure":
                return await cluster.fail(request.token, request.failure)
            case _:
                raise MalformedMessage("give the deferred value a value or a failure")

    async def _stream(self, request: pb.CallRequest, context: _Streaming) -> None:
        spec = self._handler(request)
        if not spec.stream:
            raise MalformedMessage(f"{_what(spec)} is not a stream: ask for it by Call")
        _check_at_once(request)
        target, arguments = self._prepared(request, spec)
        call = calls.StreamCall(target, spec, request.entity_id, arguments)
        try:
            async for item in call:
                await context.write(_encoded(request.encoding, spec, item))
        finally:
            await call.aclose()

    def _handler(self, request: pb.CallRequest) -> HandlerSpec:
        spec = self._specs.get(request.entity_type)
        if spec is None:
            known = ", ".join(sorted(self._specs)) or "none"
            raise UnknownEntityType(f"this runner knows no entity type {request.entity_type[:100]!r}: it knows {known}")
        return spec.handler(request.handler)

    def _call(self, request: pb.CallRequest, spec: HandlerSpec) -> calls.Call:
        target, arguments = self._prepared(request, spec)
        return calls.Call(target, spec, request.entity_id, arguments)

    def _prepared(self, request: pb.CallRequest, spec: HandlerSpec) -> tuple[calls.CallTarget, tuple[object, ...]]:
        runner = runner_of(self._door)
        check_entity_id(request.entity_id, runner.node.limits.max_entity_id_bytes)
        if request.key and (spec.stream or not spec.durable):
            kind = "a stream" if spec.stream else "not durable"
            raise MalformedMessage(f"{_what(spec)} is {kind}, so it has no key: {_REMEDY}")
        as_json = request.encoding == pb.ENCODING_JSON
        decode = spec.decode_json_arguments if as_json else spec.decode_arguments
        target = calls.CallTarget(
            runner.node,
            timeout=(request.timeout_ms or _DEFAULT_TIMEOUT_MS) / 1000,
            waits_for_room=request.wait_for_room,
            headers=dict(request.headers) or None,
        )
        if request.key:
            target = dataclasses.replace(target, key=check_key(request.key))
        return target, decode(request.arguments)


async def _internal(context: Rpc) -> NoReturn:
    _log.exception("a call failed in the gateway")
    await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)


class _Due(TypedDict, total=False):
    deliver_at: datetime
    delay: timedelta


def _due(request: pb.CallRequest, spec: HandlerSpec) -> _Due:
    """Return when a told message is due.

    Raises:
        MalformedMessage: the request says two times, none that exists, or the handler is not durable.
    """
    deliver_at_ms, delay_ms = request.deliver_at_ms, request.delay_ms
    if (deliver_at_ms or delay_ms) and not spec.durable:
        raise MalformedMessage(f"{_what(spec)} is not durable, so it cannot be told for later: {_REMEDY}")
    if deliver_at_ms and delay_ms:
        raise MalformedMessage("give deliver_at_ms or delay_ms, not both")
    if not 0 <= deliver_at_ms <= _LATEST_MS or not 0 <= delay_ms <= _LATEST_MS:
        raise MalformedMessage("deliver_at_ms and delay_ms must not be negative, nor beyond the year 9000")
    if deliver_at_ms:
        return {"deliver_at": datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=deliver_at_ms)}
    return {"delay": timedelta(milliseconds=delay_ms)} if delay_ms else {}


def _check_at_once(request: pb.CallRequest) -> None:
    if request.deliver_at_ms or request.delay_ms:
        raise MalformedMessage("deliver_at_ms and delay_ms are for Tell: a call that is waited for runs at once")


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


def add_gateway(door: LinkAcceptor, specs: Mapping[str, EntitySpec], server: grpc.aio.Server) -> None:
    """Make `server` take calls for the runner behind `door`."""
    pb_grpc.add_GatewayServicer_to_server(cast("pb_grpc.GatewayServicer", Gateway(door, specs)), server)
