"""How the accepting end ends a stream while a frame is under way that the peer does not take."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import grpc
import grpc.aio
import pytest

from actorhub.conformance.transport_pair import PATIENCE_SECONDS, Recorder, RecordingAcceptor, hello, numbers, reply
from actorhub.core.envelope import decode_frame
from actorhub.transport.grpc import service
from actorhub.transport.grpc.streams import (
    ClientStream,
    open_stream,
    pack_frame,
    pack_hello,
    read_message,
    unpack_frame,
)
from actorhub.transport.outbox import LinkLimits
from tests.transport.grpc_world import GrpcWorld

LARGE = 900_000
"""Bytes of a body that fit into one frame, also with a Hello, and into no window of a peer that reads nothing."""

LIMITS = LinkLimits(max_queued_bytes=4 * LARGE)


@contextlib.asynccontextmanager
async def silent_reader(address: str) -> AsyncGenerator[ClientStream]:
    """Open a stream and say Hello; but for the 64 KiB that HTTP/2 begins with, what is unread stays with its sender."""
    # The bandwidth probe would widen the window.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", 2 * LARGE)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stream = open_stream(channel, None)
        await stream.write(pack_hello(hello("silent")))
        yield stream


async def read_to_the_end(stream: ClientStream) -> tuple[list[int], grpc.StatusCode, str]:
    """Return the numbers of the replies that come, and the status behind them."""
    found: list[int] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        # `read` raises where the status is an error: what counts is the status.
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (message := await read_message(stream)) is not None:
                found += numbers(decode_frame(unpack_frame(message)))
        return found, await stream.code(), await stream.details()


async def stuck(acceptor: RecordingAcceptor) -> Recorder:
    """Wait until a frame is under way and another waits behind it; return the link's recorder."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not acceptor.links:
            await asyncio.sleep(0.001)
        [link] = acceptor.links
        while not 0 < link.queued_bytes < 2 * LARGE:
            await asyncio.sleep(0.001)
    return acceptor.recorders[0]


@pytest.mark.parametrize("ending", ["garbage", "close", "overflow"])
@pytest.mark.parametrize("with_hello", [True, False], ids=["with-hello", "later"])
async def test_a_peer_behind_with_reading_still_gets_its_end(world: GrpcWorld, ending: str, with_hello: bool) -> None:
    """The status stands behind the frame that is under way, the link's first or another, however the link ends."""
    large = [reply(1, LARGE), reply(2, LARGE)]
    acceptor = RecordingAcceptor(first=large if with_hello else ())
    address = await world.listener(hello("accepting"), LIMITS).listen(acceptor)
    async with silent_reader(address) as stream:
        if not with_hello:
            await read_message(stream)
            for envelope in large:
                acceptor.links[0].send(envelope)
        recorder = await stuck(acceptor)
        match ending:
            case "garbage":
                expected = grpc.StatusCode.INVALID_ARGUMENT, "malformed frame"
                await stream.write(pack_frame(b"garbage"))
            case "close":
                expected = grpc.StatusCode.ABORTED, "enough of it"
                acceptor.links[0].close("enough of it")
            case _:
                expected = grpc.StatusCode.OK, ""
                for number in range(3, 7):
                    acceptor.links[0].send(reply(number, LARGE))
        await recorder.until_closed()
        found, code, details = await read_to_the_end(stream)
    assert (found, code) == ([1], expected[0])
    assert expected[1] in details
    assert numbers(recorder.unsent)[0] == 2


async def test_a_peer_that_never_reads_holds_no_handler(
    world: GrpcWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The accepting end lets go after its time; the peer's status waits for it in the stream."""
    monkeypatch.setattr(service, "STATUS_SECONDS", 0.2)
    monkeypatch.setattr(service, "WARNING_SECONDS", 0.0)
    acceptor = RecordingAcceptor(first=[reply(1, LARGE), reply(2, LARGE)])
    listener = world.listener(hello("accepting"))
    async with silent_reader(await listener.listen(acceptor)) as stream:
        recorder = await stuck(acceptor)
        await stream.write(pack_frame(b"garbage"))
        await recorder.until_closed()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "has not taken its status" not in caplog.text:
                await asyncio.sleep(0.01)
        found, code, _ = await read_to_the_end(stream)
    assert (found, code) == ([1], grpc.StatusCode.INVALID_ARGUMENT)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_peer_that_never_reads_does_not_hold_up_the_end_of_the_transport(world: GrpcWorld) -> None:
    """It closes within its grace, and whoever reads on then finds the end."""
    acceptor = RecordingAcceptor(first=[reply(1, LARGE), reply(2, LARGE)])
    listener = world.listener(hello("accepting"))
    async with silent_reader(await listener.listen(acceptor)) as stream:
        recorder = await stuck(acceptor)
        await stream.write(pack_frame(b"garbage"))
        await recorder.until_closed()
        begin = asyncio.get_running_loop().time()
        await listener.aclose(0.2)
        assert asyncio.get_running_loop().time() - begin < 0.2 + 2
        _, code, _ = await read_to_the_end(stream)
    assert code is not grpc.StatusCode.OK
