"""What the admin service says of durable messages that run or wait, which only their runners know."""

import asyncio

import grpc
import grpc.aio
import pytest

from actorhub.core.clock import SystemClock
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from tests.ops.conftest import Port, Ports
from tests.ops.durable_shop import Accounts, Booking, release
from tests.support.parts import runner_of

_PENDING, _SCHEDULED = pb.MESSAGE_STATE_PENDING, pb.MESSAGE_STATE_SCHEDULED
_PEER = """
    insert into actorhub.runner (incarnation, address, weight, groups, entity_types, draining, version, slot,
                                 backend_pid, heartbeat_at)
    values ('{0}', '{0}', 1, '{{}}', '{{}}', true, '0', {1}, 0, clock_timestamp() + interval '1 hour')
"""


def _owned_by(port: Port, name: str) -> str:
    """Return an id of an account that this runner owns."""
    owned = runner_of(port.cluster).ownership.owned
    return next(n for n in map(f"{name}-{{}}".format, range(1000)) if port.cluster.shard_of(Accounts, n) in owned)


async def _get(port: Port, message_id: int) -> pb.Message:
    return await port.admin.GetMessage(pb.GetMessageRequest(message_id=message_id))


async def _running(port: Port, message_id: int, *, waits: int = 0, steps: int = 0) -> pb.Message:
    """Return a message once its run has got so far."""
    async with asyncio.timeout(20):
        while True:
            message = await _get(port, message_id)
            if message.HasField("run") and (len(message.run.waits), len(message.run.steps)) == (waits, steps):
                return message
            await asyncio.sleep(0.02)


async def _listed(port: Port) -> dict[int, pb.Message]:
    reply = await port.admin.ListMessages(pb.ListMessagesRequest())
    return {message.message_id: message for message in reply.messages}


@pytest.mark.parametrize("owner", [0, 1])
async def test_what_runs_and_waits_is_told_by_every_runner(durable_ports: Ports, owner: int) -> None:
    """A run says since when, in which attempt and step, and where; a wait what for, until when, and its token."""
    ports = await durable_ports.open_two()
    first, where = ports[0], ports[owner]
    accounts, began = first.cluster.client(Accounts), SystemClock().time()
    held_at, stepping_at, asking_at, resting_at, failing_at = (
        _owned_by(where, name) for name in ("held", "stepping", "asking", "resting", "failing")
    )
    held = await first.cluster.tell(accounts(held_at).hold())
    queued = await first.cluster.tell(accounts(held_at).book(Booking(1)))
    stepping = await first.cluster.tell(accounts(stepping_at).counted())
    asking = await first.cluster.tell(accounts(asking_at).approved())
    resting = await first.cluster.tell(accounts(resting_at).rested())
    failing = await first.cluster.tell(accounts(failing_at).patient("x"))
    token = ""
    for asked in ports:
        run = (await _running(asked, held)).run
        assert (run.attempt, run.runner, list(run.waits)) == (1, where.address, [])
        assert began <= run.since <= SystemClock().time()
        assert list((await _running(asked, stepping, steps=1)).run.steps) == ["count"]
        (nap,) = (await _running(asked, resting, waits=1)).run.waits
        assert (nap.kind, nap.name, nap.token) == (pb.WAIT_KIND_SLEEP, "night", "")
        assert began + 7200 <= nap.until <= SystemClock().time() + 7200
        waiting = await _running(asked, asking, waits=1)
        (wait,) = waiting.run.waits
        assert (wait.kind, wait.name, waiting.run.attempt) == (pb.WAIT_KIND_DEFERRED, "approval", 1)
        token = wait.token
        assert waiting.run.since <= wait.since <= SystemClock().time() < wait.until - 3500
        async with asyncio.timeout(20):
            while (shown := await _get(asked, failing)).state != _SCHEDULED:
                await asyncio.sleep(0.02)
        assert (shown.attempts, shown.max_attempts, shown.HasField("run")) == (1, 3, False)
        listed = await _listed(asked)
        assert {number for number, message in listed.items() if message.HasField("run")} == {
            *(held, stepping, asking, resting)
        }
        assert (listed[queued].state, listed[asking].state) == (_PENDING, _PENDING)
        assert [(each.name, each.token) for each in listed[asking].run.waits] == [("approval", "")]
    assert await first.cluster.complete(token, value=True)
    assert await first.cluster.reply(asking) is True
    assert not (await _get(first, asking)).HasField("run")
    await release(held_at)
    await release(stepping_at)


async def _claim_everything(request: pb.GetRunsRequest, _context: object) -> pb.GetRunsReply:
    """Answer as a former owner that does not know that it is one."""
    return pb.GetRunsReply(runs={number: pb.MessageRun(runner="former") for number in request.message_ids})


async def test_a_former_owner_and_an_earlier_release_change_nothing(durable_ports: Ports) -> None:
    """The claim with the higher epoch counts, and a runner that has no such method costs its own answer only."""
    port = await durable_ports.open()
    former, earlier = grpc.aio.server(), grpc.aio.server()
    get_runs = grpc.unary_unary_rpc_method_handler(
        _claim_everything,
        request_deserializer=pb.GetRunsRequest.FromString,
        response_serializer=pb.GetRunsReply.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("actorhub.admin.v1.Admin", {"GetRuns": get_runs})
    former.add_generic_rpc_handlers((handler,))
    for slot, server in ((90, former), (91, earlier)):
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        durable_ports.stack.push_async_callback(server.stop, None)
        await durable_ports.execute(_PEER.format(address, slot))
    held = await port.cluster.tell(port.cluster.client(Accounts)("ada").hold())
    async with asyncio.timeout(20):
        while (message := await _get(port, held)).run.runner != port.address:
            await asyncio.sleep(0.02)
    assert message.run.epoch > 0
    assert (await _listed(port))[held].run.runner == port.address
    await release("ada")


async def test_too_many_messages_are_not_looked_for_at_once(durable_ports: Ports) -> None:
    """The answer to a runner stays small."""
    port = await durable_ports.open()
    with pytest.raises(grpc.aio.AioRpcError, match="at most 1000 message_ids at once"):
        await port.admin.GetRuns(pb.GetRunsRequest(message_ids=range(1001)))
