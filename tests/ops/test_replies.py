"""The border between our errors and gRPC's, with services that fail on purpose."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    MailboxFull,
    MalformedMessage,
    PersistenceError,
    UnknownEntityType,
    UnknownMessage,
)
from actorhub.ops.local import NotServing
from actorhub.ops.replies import failing_rpc, failing_stream, rpc
from actorhub.transport.grpc._pb import admin_v1_pb2, admin_v1_pb2_grpc, client_v1_pb2, client_v1_pb2_grpc

REPLY = client_v1_pb2.CallReply


class FailingAdmin:
    """Its one method raises what the test says."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @rpc
    async def GetShard(self, request: admin_v1_pb2.GetShardRequest) -> admin_v1_pb2.Shard:
        raise self._error


class FailingGateway:
    """Its methods raise what the test says, the stream after two items; without an error it never ends."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self.closed = asyncio.Event()

    @failing_rpc(REPLY)
    async def Call(self, request: client_v1_pb2.CallRequest) -> client_v1_pb2.CallReply:
        assert self._error is not None
        raise self._error

    @failing_stream(REPLY)
    async def Stream(self, request: client_v1_pb2.CallRequest) -> AsyncGenerator[client_v1_pb2.CallReply, None]:
        try:
            for item in (b"1", b"2"):
                yield REPLY(result=item)
            if self._error is not None:
                raise self._error
            await asyncio.Event().wait()
        finally:
            self.closed.set()


class Served:
    """A server on loopback with the services of one test, and a channel to it."""

    def __init__(self) -> None:
        self._server = grpc.aio.server()
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def admin(self, error: Exception) -> admin_v1_pb2_grpc.AdminStub:
        get = grpc.unary_unary_rpc_method_handler(
            FailingAdmin(error).GetShard,
            request_deserializer=admin_v1_pb2.GetShardRequest.FromString,
        )
        await self._start("actorhub.admin.v1.Admin", {"GetShard": get})
        return admin_v1_pb2_grpc.AdminStub(self._channel)

    async def gateway(self, service: FailingGateway) -> client_v1_pb2_grpc.GatewayStub:
        codecs = {"request_deserializer": client_v1_pb2.CallRequest.FromString, "response_serializer": _serialized}
        call = grpc.unary_unary_rpc_method_handler(service.Call, **codecs)  # type: ignore[arg-type]
        stream = grpc.unary_stream_rpc_method_handler(service.Stream, **codecs)  # type: ignore[arg-type]
        await self._start("actorhub.client.v1.Gateway", {"Call": call, "Stream": stream})
        return client_v1_pb2_grpc.GatewayStub(self._channel)

    async def aclose(self) -> None:
        await self._channel.close(None)
        await self._server.stop(None)

    async def _start(self, service: str, handlers: dict[str, "grpc.RpcMethodHandler[Any, Any]"]) -> None:
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        await self._server.start()


def _serialized(reply: client_v1_pb2.CallReply) -> bytes:
    return reply.SerializeToString()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    yield served
    await served.aclose()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MalformedMessage("a"), grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownEntityType("a"), grpc.StatusCode.NOT_FOUND),
        (UnknownMessage("a"), grpc.StatusCode.NOT_FOUND),
        (MailboxFull("a"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (CallTimeout("a"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (PersistenceError("a"), grpc.StatusCode.UNAVAILABLE),
        (NotServing("a"), grpc.StatusCode.UNAVAILABLE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ActorhubError) else value.name,
)
async def test_an_error_of_ours_ends_an_rpc_with_its_status(
    served: Served, error: ActorhubError, status: grpc.StatusCode
) -> None:
    """The status says what kind of error it is, and its details are the error's text."""
    stub = await served.admin(error)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetShard(admin_v1_pb2.GetShardRequest())
    assert (caught.value.code(), caught.value.details()) == (status, "a")


async def test_a_defect_ends_an_rpc_with_a_status_and_a_line_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller learns that the runner failed, and nothing of its insides; the log names the method and the error."""
    stub = await served.admin(KeyError("a secret"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetShard(admin_v1_pb2.GetShardRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")
    assert "FailingAdmin.GetShard failed" in caplog.text
    assert "a secret" in caplog.text


async def test_the_gateway_answers_with_a_failure_unless_it_is_a_defect(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of ours is part of the reply of a call, and the last message of a stream."""
    stub = await served.gateway(FailingGateway(MailboxFull("full")))
    assert (await stub.Call(client_v1_pb2.CallRequest())).failure.kind == "MailboxFull"
    items = [item async for item in stub.Stream(client_v1_pb2.CallRequest())]
    assert [item.result for item in items] == [b"1", b"2", b""]
    assert items[-1].failure.kind == "MailboxFull"
    assert caplog.text == ""


async def test_a_defect_ends_a_call_and_a_stream_with_a_status(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """What the stream yielded before has arrived."""
    stub = await served.gateway(FailingGateway(KeyError("a secret")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Call(client_v1_pb2.CallRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    stream = stub.Stream(client_v1_pb2.CallRequest())
    for result in (b"1", b"2"):
        assert cast("client_v1_pb2.CallReply", await stream.read()).result == result
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "FailingGateway.Call failed" in caplog.text
    assert "FailingGateway.Stream failed" in caplog.text


async def test_a_caller_that_leaves_closes_the_generator_of_its_stream(served: Served) -> None:
    """The generator's own clean-up has run, although nobody reads to its end."""
    service = FailingGateway(None)
    stub = await served.gateway(service)
    stream = stub.Stream(client_v1_pb2.CallRequest())
    first = cast("client_v1_pb2.CallReply", await stream.read())
    assert first.result == b"1"
    stream.cancel()
    async with asyncio.timeout(10):
        await service.closed.wait()
