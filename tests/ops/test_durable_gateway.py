"""Durable messages in `actorhub.client.v1`: keys, due times, replies and cancellation without our library."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from actorhub.cluster import part_of
from actorhub.transport.grpc._pb import admin_v1_pb2 as admin_pb
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from tests.ops.conftest import Port, Ports
from tests.ops.durable_shop import Accounts, release

JSON, MSGPACK = pb.ENCODING_JSON, pb.ENCODING_MSGPACK


def _request(handler: str, arguments: bytes = b"", **more: object) -> pb.CallRequest:
    fields = {"entity_type": "accounts", "entity_id": "ada", "encoding": JSON, **more}
    return pb.CallRequest(handler=handler, arguments=arguments, **fields)  # type: ignore[arg-type]


async def _tell(port: Port, request: pb.CallRequest) -> int:
    reply = await port.gateway.Tell(request)
    assert reply.WhichOneof("outcome") == "message_id", reply.failure
    return reply.message_id


async def _reply(port: Port, message_id: int, **more: object) -> pb.CallReply:
    fields = {"message_id": message_id, "encoding": JSON, "timeout_ms": 20_000, **more}
    return await port.gateway.Reply(pb.ReplyRequest(**fields))  # type: ignore[arg-type]


async def test_calls_and_tells_with_one_key_are_one_message(durable_ports: Ports) -> None:
    """It runs once however often and by whatever runner it is sent; another payload is refused."""
    first, second = await durable_ports.open_two()
    request = _request("book", b'{"amount":5}', key="b-1")
    assert (await first.gateway.Call(request)).result == b"5"
    assert (await second.gateway.Call(request)).result == b"5"
    packed = _request("book", msgspec.msgpack.encode([{"amount": 5}]), key="b-1", encoding=MSGPACK)
    assert (await second.gateway.Call(packed)).result == b"\x05"
    assert await _tell(first, request) == await _tell(second, packed)
    other = (await second.gateway.Call(_request("book", b'{"amount":6}', key="b-1"))).failure
    assert (other.kind, other.possibly_executed) == ("DuplicateKey", False)
    assert (await first.cluster.client(Accounts)("ada").balance()).bookings == 1


async def test_a_reply_is_fetched_from_any_runner_in_either_encoding(durable_ports: Ports) -> None:
    """Value, domain error and dead letter; and it waits for a message that has not ended."""
    first, second = await durable_ports.open_two()
    message_id = await _tell(first, _request("book", b'{"amount":5}'))
    assert (await _reply(second, message_id)).result == b"5"
    assert (await _reply(first, message_id, encoding=MSGPACK)).result == b"\x05"
    refused = await _reply(second, await _tell(first, _request("book", b'{"amount":-9}')))
    assert (refused.failure.kind, refused.failure.fields_json) == ("NotCovered", '{"missing":4}')
    failed = await _reply(second, await _tell(first, _request("fragile", b'{"text":"tea"}')))
    assert (failed.failure.kind, failed.failure.message) == ("HandlerFailed", "'tea'")
    held = await _tell(first, _request("hold"))
    late = await _reply(second, held, timeout_ms=100)
    assert late.failure.kind == "CallTimeout"
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_reply(second, held))
        await asyncio.sleep(0)
        await release("ada")
    assert waiting.result().result == b'"released"'


async def test_a_told_message_runs_when_it_is_due(durable_ports: Ports) -> None:
    """A delay and a time are kept to, and a past time runs at once."""
    port = await durable_ports.open()
    now = part_of(port.cluster).node.clock.time
    told = now()
    soon = await _tell(port, _request("book", b'{"amount":1}', delay_ms=400))
    at = await _tell(port, _request("book", b'{"amount":1}', deliver_at_ms=int((told + 0.6) * 1000)))
    past = await _tell(port, _request("book", b'{"amount":1}', deliver_at_ms=1))
    results = {message_id: await _reply(port, message_id) for message_id in (past, soon, at)}
    assert [reply.result or reply.failure for reply in results.values()] == [b"1", b"2", b"3"]
    for message_id, least in ((soon, 0.4), (at, 0.599)):
        message = await port.admin.GetMessage(admin_pb.GetMessageRequest(message_id=message_id))
        assert message.finished_at >= told + least


async def test_a_message_that_is_not_due_is_cancelled_for_good(durable_ports: Ports) -> None:
    """Its reply says so, a second cancellation finds nothing to do, and nothing ran."""
    first, second = await durable_ports.open_two()
    later = int(datetime(2090, 1, 1, tzinfo=UTC).timestamp() * 1000)
    message_id = await _tell(first, _request("book", b'{"amount":1}', deliver_at_ms=later))
    cancel = pb.CancelRequest(message_id=message_id)
    assert (await second.gateway.Cancel(cancel)).cancelled
    again = await first.gateway.Cancel(cancel)
    assert (again.WhichOneof("outcome"), again.cancelled) == ("cancelled", False)
    failure = (await _reply(second, message_id)).failure
    assert failure.kind == "MessageCancelled"
    assert (await first.cluster.client(Accounts)("ada").balance()).bookings == 0


@pytest.mark.parametrize("terminate", [False, True])
async def test_a_message_that_runs_is_cancelled(durable_ports: Ports, terminate: bool) -> None:
    """Through any port; its reply says so."""
    first, second = await durable_ports.open_two()
    message_id = await _tell(first, _request("hold"))
    async with asyncio.timeout(20):
        while not (await first.admin.GetMessage(admin_pb.GetMessageRequest(message_id=message_id))).attempts:
            await asyncio.sleep(0.02)
    assert (await second.gateway.Cancel(pb.CancelRequest(message_id=message_id, terminate=terminate))).cancelled
    failure = (await _reply(second, message_id)).failure
    assert (failure.kind, failure.possibly_executed) == ("MessageCancelled", True)


async def test_what_only_durable_messages_have_is_refused_elsewhere(durable_ports: Ports) -> None:
    """Keys and times of volatile handlers, times of calls, two times, and impossible ones run nothing."""
    port = await durable_ports.open()
    amount = b'{"amount":1}'
    tells = [
        (_request("balance", key="k"), "balance is not durable, so it has no key"),
        (_request("balance", delay_ms=5), "balance is not durable, so it cannot be told for later"),
        (_request("book", amount, delay_ms=5, deliver_at_ms=5), "deliver_at_ms or delay_ms, not both"),
        (_request("book", amount, delay_ms=-5), "must not be negative"),
        (_request("book", amount, delay_ms=200_000_000_000_000), "beyond the year 9000 or 1000000 days"),
        (_request("book", amount, deliver_at_ms=1 << 62), "beyond the year 9000"),
        (_request("book", amount, key="a\nb"), "control character"),
        (_request("book", amount, key="x" * 2000), "the limit is 1024"),
    ]
    for request, text in tells:
        failure = (await port.gateway.Tell(request)).failure
        assert (failure.kind, failure.possibly_executed) == ("MalformedMessage", False)
        assert text in failure.message
    timed = (await port.gateway.Call(_request("book", amount, delay_ms=5))).failure
    assert (timed.kind, "are for Tell" in timed.message) == ("MalformedMessage", True)
    assert not (await port.admin.ListMessages(admin_pb.ListMessagesRequest())).messages
