"""`actorhub.client.v1`: calls from any language, through any runner."""

import logging
from collections.abc import Mapping
from typing import Final, NoReturn, Protocol, cast

import grpc
import grpc.aio

from actorhub import _call as calls
from actorhub.core.address import check_entity_id
from actorhub.core.errors import ActorhubError, HandlerFailed, MalformedMessage, UnknownEntityType
from actorhub.engine.runner import Door
from actorhub.engine.spec import EntitySpec, HandlerSpec
from actorhub.ops.failures import failure_of
from actorhub.ops.health import cluster_of
from actorhub.ops.replies import Rpc, runner_of
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2_grpc as pb_grpc

_DEFAULT_TIMEOUT_MS: Final = 30_000
_INTERNAL: Final = "internal error: see the log of this runner"

_log: Final = logging.getLogger("actorhub.gateway")


class _Streaming(Rpc, Protocol):
    async def write(self, message: pb.CallReply, /) -> None:
        """Hand a message to the network; returns when there is room for another."""
        ...


class Gateway:
    """Turns requests into calls. An RPC only waits: handlers run in tasks of the engine, here or on another runner.

    Every error of a call is part of the reply; a gRPC status other than OK means that the gateway itself failed.
    """

    def __init__(self, door: Door, specs: Mapping[str, EntitySpec]) -> None:
        self._door = door
        self._specs = specs

    async def Call(self, request: pb.CallRequest, context: Rpc) -> pb.CallReply:  # noqa: N802
        """Run one handler; cancelled with the RPC."""
        try:
            spec = self._handler(request)
            if spec.stream:
                raise MalformedMessage(f"{request.entity_type}.{spec.name} is a stream: ask for it by Stream")
            return _encoded(request, spec, await self._call(request, spec))
        except ActorhubError as error:
            return pb.CallReply(failure=failure_of(error))
        except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
            await _internal(context)

    async def Tell(self, request: pb.CallRequest, context: Rpc) -> pb.TellReply:  # noqa: N802
        """Put one message into a mailbox."""
        try:
            spec = self._handler(request)
            if spec.stream:
                raise MalformedMessage(f"{request.entity_type}.{spec.name} is a stream: it cannot be told")
            message_id = int(cluster_of(runner_of(self._door)).snowflake())
            return pb.TellReply(message_id=await self._call(request, spec).tell(message_id))
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

    async def _stream(self, request: pb.CallRequest, context: _Streaming) -> None:
        spec = self._handler(request)
        if not spec.stream:
            raise MalformedMessage(f"{request.entity_type}.{spec.name} is not a stream: ask for it by Call")
        target, arguments = self._prepared(request, spec)
        call = calls.StreamCall(target, spec, request.entity_id, arguments)
        try:
            async for item in call:
                await context.write(_encoded(request, spec, item))
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

    def _prepared(self, request: pb.CallRequest, spec: HandlerSpec) -> tuple[calls.Target, tuple[object, ...]]:
        runner = runner_of(self._door)
        check_entity_id(request.entity_id, runner.node.limits.max_entity_id_bytes)
        as_json = request.encoding == pb.ENCODING_JSON
        decode = spec.decode_json_arguments if as_json else spec.decode_arguments
        target = calls.Target(
            runner.node,
            timeout=(request.timeout_ms or _DEFAULT_TIMEOUT_MS) / 1000,
            waits_for_room=request.wait_for_room,
            headers=dict(request.headers) or None,
        )
        return target, decode(request.arguments)


async def _internal(context: Rpc) -> NoReturn:
    _log.exception("a call failed in the gateway")
    await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)


def _encoded(request: pb.CallRequest, spec: HandlerSpec, value: object) -> pb.CallReply:
    try:
        as_json = request.encoding == pb.ENCODING_JSON
        return pb.CallReply(result=spec.result.encode_json(value) if as_json else spec.result.encode(value))
    except MalformedMessage as error:
        raise HandlerFailed("TypeError", f"the result cannot be sent in this encoding: {error}") from error


def add_gateway(door: Door, specs: Mapping[str, EntitySpec], server: grpc.aio.Server) -> None:
    """Make `server` take calls for the runner behind `door`."""
    pb_grpc.add_GatewayServicer_to_server(cast("pb_grpc.GatewayServicer", Gateway(door, specs)), server)
