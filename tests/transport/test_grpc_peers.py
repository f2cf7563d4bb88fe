"""What a link does when the process at its other end dies or freezes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from actorhub.conformance.transport_pair import Recorder, RecordingAcceptor, hello, numbers, reply
from tests.transport import grpc_peer
from tests.transport.grpc_world import GrpcWorld

NOTICED_AT_ONCE_SECONDS = 0.5
"""A killed peer is noticed in milliseconds; the rest is for a machine that is busy with other tests."""


@asynccontextmanager
async def peer_process(*arguments: str) -> AsyncIterator[tuple[int, str]]:
    """Run a peer; yield its process id and its first line of output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, grpc_peer.__file__, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            yield process.pid, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("stop", "limit"), [(signal.SIGKILL, NOTICED_AT_ONCE_SECONDS), (signal.SIGSTOP, 5.5)], ids=["killed", "frozen"]
)
async def test_a_lost_runner_is_noticed_by_the_one_who_connected(
    world: GrpcWorld, stop: signal.Signals, limit: float
) -> None:
    """A killed process at once; a frozen one, whose kernel still answers, through keepalive."""
    async with peer_process() as (pid, address):
        recorder = Recorder()
        link = await world.client(hello("connecting")).connect(address, recorder, deadline=10)
        link.send(reply(1))
        await recorder.until_received(1)
        os.kill(pid, stop)
        begin = asyncio.get_running_loop().time()
        await recorder.until_closed()
        assert asyncio.get_running_loop().time() - begin < limit
        assert numbers(recorder.envelopes) == [1]
        assert not link.is_open


@pytest.mark.parametrize(
    ("stop", "limit"), [(signal.SIGKILL, NOTICED_AT_ONCE_SECONDS), (signal.SIGSTOP, 5.5)], ids=["killed", "frozen"]
)
async def test_a_lost_client_is_noticed_by_the_one_who_accepted(
    world: GrpcWorld, stop: signal.Signals, limit: float
) -> None:
    """The accepting end has keepalive of its own."""
    acceptor = RecordingAcceptor()
    address = await world.listener(hello("accepting")).listen(acceptor)
    async with peer_process(address) as (pid, line):
        assert line == address
        [recorder] = acceptor.recorders
        os.kill(pid, stop)
        begin = asyncio.get_running_loop().time()
        await recorder.until_closed()
        assert asyncio.get_running_loop().time() - begin < limit


async def test_what_a_frozen_runner_does_not_take_is_unsent(world: GrpcWorld) -> None:
    """Flow control stops the sender; what stayed in its queue is reported, exactly."""
    async with peer_process() as (pid, address):
        recorder = Recorder()
        client = world.client(hello("connecting"))
        link = await client.connect(address, recorder, deadline=10)
        os.kill(pid, signal.SIGSTOP)
        for number in range(500):
            link.send(reply(number, 100_000))
        begin = asyncio.get_running_loop().time()
        await recorder.until_closed()
        assert asyncio.get_running_loop().time() - begin < 5.5
        sent = client.statistics().envelopes_sent
        assert 0 < sent < 500
        assert numbers(recorder.unsent) == list(range(sent, 500))


async def test_a_frozen_client_does_not_hold_up_the_end_of_the_accepting_transport(world: GrpcWorld) -> None:
    """With a full queue for a peer that takes nothing it closes within its grace and the keepalive time-out."""
    acceptor = RecordingAcceptor()
    listener = world.listener(hello("accepting"))
    address = await listener.listen(acceptor)
    async with peer_process(address) as (pid, _):
        os.kill(pid, signal.SIGSTOP)
        for number in range(500):
            acceptor.links[0].send(reply(number, 100_000))
        await asyncio.sleep(0)
        begin = asyncio.get_running_loop().time()
        await listener.aclose(0.5)
        assert asyncio.get_running_loop().time() - begin < 0.5 + 4
        assert len(acceptor.recorders[0].closings) == 1
        assert len(acceptor.recorders[0].unsent) == 500 - (listener.statistics().envelopes_sent - 1)
