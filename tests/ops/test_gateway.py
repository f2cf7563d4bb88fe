"""`actorhub.client.v1`: calls without our library."""

import asyncio

import grpc
import grpc.aio
import msgspec
import pytest

from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from tests.ops.conftest import Port, Ports

JSON, MSGPACK = pb.ENCODING_JSON, pb.ENCODING_MSGPACK


def _request(handler: str, arguments: bytes = b"", **more: object) -> pb.CallRequest:
    fields = {"entity_type": "orders", "entity_id": "ada", "encoding": JSON, **more}
    return pb.CallRequest(handler=handler, arguments=arguments, **fields)  # type: ignore[arg-type]


async def _gate_counts(port: Port) -> list[int]:
    reply = await port.gateway.Call(_request("counts", entity_type="gate"))
    return msgspec.json.decode(reply.result, type=list[int])


async def _until_counts(port: Port, counts: list[int]) -> None:
    async with asyncio.timeout(10):
        while await _gate_counts(port) != counts:
            await asyncio.sleep(0.01)


async def test_json_and_msgpack_calls_get_results_in_their_own_encoding(ports: Ports) -> None:
    """The same handler answers both, with arguments by position in msgpack and by name in JSON."""
    port = await ports.open()
    as_json = await port.gateway.Call(_request("process", b'{"sku":"tea","quantity":2}'))
    assert msgspec.json.decode(as_json.result) == {"number": 1, "total_cents": 700}
    arguments = msgspec.msgpack.encode([{"sku": "tea", "quantity": 1}])
    packed = await port.gateway.Call(_request("process", arguments, encoding=MSGPACK))
    assert msgspec.msgpack.decode(packed.result) == {"number": 2, "total_cents": 350}
    for text, total in ((b'{"first":1,"second":2}', b"3"), (b'{"first":1}', b"11")):
        assert (await port.gateway.Call(_request("add", text))).result == total
    assert (await port.gateway.Call(_request("add", b"\x92\x01\x05", encoding=MSGPACK))).result == b"\x06"
    assert (await port.gateway.Call(_request("headers", headers={"a": "b"}))).result == b'{"a":"b"}'


async def test_every_failure_is_typed_and_says_whether_a_handler_ran(ports: Ports) -> None:
    """Domain errors carry their fields, user exceptions their traceback, and refused calls ran nothing."""
    port = await ports.open()
    domain = (await port.gateway.Call(_request("process", b'{"sku":"tea","quantity":200}'))).failure
    assert (domain.kind, domain.is_domain_error, domain.fields_json) == ("OutOfStock", True, '{"sku":"tea","left":3}')
    raised = (await port.gateway.Call(_request("process", b'{"sku":"x","quantity":2}'))).failure
    assert (raised.kind, raised.possibly_executed, raised.fields_json) == ("HandlerFailed", True, '{"type":"KeyError"}')
    assert "in process" in raised.traceback
    refused = {
        "MalformedMessage": [
            _request("process", b'{"sku":"tea"}'),
            _request("process", b"\xff", encoding=MSGPACK),
            _request("count", entity_id="a\nb"),
            _request("count", entity_id=""),
            _request("count", entity_id="x" * 300),
            _request("watch", b'{"first":1,"last":2}'),
            _request("count", headers={"x": "x" * 70_000}),
        ],
        "UnknownEntityType": [_request("count", entity_type="order")],
        "UnknownHandler": [_request("process_"), _request("_prices"), _request("on_activate"), _request("state")],
    }
    for kind, requests in refused.items():
        for request in requests:
            failure = (await port.gateway.Call(request)).failure
            assert (failure.kind, failure.possibly_executed) == (kind, False)
            assert (await port.gateway.Tell(request)).failure.kind == kind
    assert (await port.gateway.Call(_request("count"))).result == b"0"


@pytest.mark.parametrize(
    ("handler", "arguments", "text"),
    [
        ("process", b"", "orders.process: order: nothing was given: write it as JSON (it takes order as JSON)"),
        ("process", b"{bad", "order: this is not JSON (object keys must be strings"),
        ("process", b"tea", '): text and names stand in double quotes, as in "tea" (it takes order as JSON)'),
        ("process", b'{"sku":"tea"', "order: this is not JSON (it ends too early): "),
        ("process", b'{"sku":"tea"}', "Object missing required field `quantity` (it takes order as JSON)"),
        ("process", b"5", "Expected `object`, got `int` (it takes order as JSON)"),
        ("add", b"", "orders.add: arguments: nothing was given: write it as JSON (it takes a JSON object with "),
        ("add", b"[1]", "Expected `object`, got `array` (it takes a JSON object with "),
    ],
)
async def test_arguments_that_are_not_right_are_refused_with_what_to_write(
    ports: Ports, handler: str, arguments: bytes, text: str
) -> None:
    """Nothing at all, no JSON, and JSON of another shape: the text says which, and what the handler takes."""
    port = await ports.open()
    failure = (await port.gateway.Call(_request(handler, arguments))).failure
    assert failure.kind == "MalformedMessage"
    assert text in failure.message


async def test_a_call_that_times_out_cancels_its_handler(ports: Ports) -> None:
    """The failure says that a handler may have run, and the handler is gone."""
    port = await ports.open()
    failure = (await port.gateway.Call(_request("enter", entity_type="gate", timeout_ms=100))).failure
    assert (failure.kind, failure.possibly_executed) == ("CallTimeout", True)
    await _until_counts(port, [1, 1])


async def test_a_caller_that_leaves_cancels_its_handler_on_any_runner(ports: Ports) -> None:
    """Whichever of two runners is asked, a cancelled RPC ends the handler where it runs."""
    first, second = await ports.open_two()
    call = first.gateway.Call(_request("enter", entity_type="gate"))
    await _until_counts(second, [1, 0])
    call.cancel()
    await _until_counts(first, [1, 1])
    call = second.gateway.Call(_request("enter", entity_type="gate"))
    await _until_counts(first, [2, 1])
    call.cancel()
    await _until_counts(second, [2, 2])


async def test_a_told_message_is_run_and_its_id_is_new(ports: Ports) -> None:
    """Tell answers with a growing id before the handler's result is there."""
    port = await ports.open()
    one = (await port.gateway.Tell(_request("process", b'{"sku":"tea","quantity":1}'))).message_id
    two = (await port.gateway.Tell(_request("process", b'{"sku":"tea","quantity":1}'))).message_id
    assert 0 < one < two
    assert (await port.gateway.Call(_request("count"))).result == b"2"


async def test_a_stream_keeps_order_and_ends_with_its_failure(ports: Ports) -> None:
    """All items arrive in order; what is not a stream, or cannot start, is one failure."""
    port = await ports.open()
    request = _request("watch", b'{"first":0,"last":1000}')
    items = [int(reply.result) async for reply in port.gateway.Stream(request)]
    assert items == list(range(1000))
    failures = [reply.failure async for reply in port.gateway.Stream(_request("count"))]
    assert [failure.kind for failure in failures] == ["MalformedMessage"]
    assert "orders.count is not a stream: use Call, or `actorhub call` without --stream" in failures[0].message


async def test_a_consumer_that_leaves_cancels_the_producer(ports: Ports) -> None:
    """An endless stream is held by a consumer that reads nothing more, and ends when it leaves."""
    port = await ports.open()
    request = _request("endless", entity_type="gate")
    for number in (1, 2):
        stream = port.gateway.Stream(request)
        reply = await stream.read()
        assert isinstance(reply, pb.CallReply)
        assert reply.result == b"1"
        stream.cancel()
        await _until_counts(port, [number, number])


async def test_a_token_is_demanded_of_gateway_and_admin_but_not_of_health(ports: Ports) -> None:
    """Without the token every service but health answers UNAUTHENTICATED, and with it they work."""
    port = await ports.open(token="open-sesame")
    for question in (
        port.gateway.Call(_request("count")),
        port.gateway.Call(_request("count"), metadata=(("authorization", "Bearer wrong"),)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await question
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    allowed = await port.gateway.Call(_request("count"), metadata=(("authorization", "Bearer open-sesame"),))
    assert allowed.result == b"0"


async def test_bytes_that_are_no_request_harm_nobody(ports: Ports) -> None:
    """Garbage on the gateway's methods ends that RPC with a status; the next call is served."""
    port = await ports.open()
    for method in ("Call", "Tell", "Stream", "Nonsense"):
        garbage = port.channel.unary_unary(f"/actorhub.client.v1.Gateway/{method}", None, None)
        with pytest.raises(grpc.aio.AioRpcError):
            await garbage(b"\xff" * 1000)
    assert (await port.gateway.Call(_request("count"))).result == b"0"
