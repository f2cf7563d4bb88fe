"""Who may open a link: certificates, the token, and what a stranger can do with bytes."""

import asyncio
import contextlib
import random
from pathlib import Path

import grpc
import grpc.aio
import pytest

from actorhub.conformance.transport_pair import Recorder, RecordingAcceptor, hello, numbers, reply, request
from actorhub.core.envelope import Chunk, Credit, Envelope, Request, encode_frame, take_apart
from actorhub.core.errors import ConfigurationError, MalformedMessage, RunnerUnavailable
from actorhub.transport.grpc import GrpcTransport, TlsFiles, service
from actorhub.transport.grpc.streams import open_stream, pack_frame, pack_hello, read_message, unpack_frame
from tests.transport.certificates import Authority
from tests.transport.grpc_world import GrpcWorld


async def test_processes_with_certificates_of_one_authority_link(world: GrpcWorld, tmp_path: Path) -> None:
    """Both ends show a certificate, and data flows."""
    authority = Authority(tmp_path / "ours")
    acceptor = RecordingAcceptor()
    address = await world.listener(hello("accepting"), tls=authority.issue("runner")).listen(acceptor)
    link = await world.client(hello("connecting"), tls=authority.issue("client")).connect(
        address, Recorder(), deadline=10
    )
    link.send(reply(1))
    await acceptor.recorders[0].until_received(1)


async def test_who_listens_is_told_to_members_alone(world: GrpcWorld, tmp_path: Path) -> None:
    """The question needs the certificate and the token that a link needs."""
    authority = Authority(tmp_path / "ours")
    address = await world.listener(hello("listening"), tls=authority.issue("runner"), token="t0").listen(
        RecordingAcceptor()
    )
    member = world.client(hello("member"), tls=authority.issue("client"), token="t0")
    assert await member.identify(address, deadline=10) == "listening"
    for stranger in (world.client(hello("a"), tls=authority.issue("other")), world.client(hello("b"), token="t0")):
        with pytest.raises(RunnerUnavailable):
            await stranger.identify(address, deadline=2)


async def test_a_stranger_without_the_right_certificate_gets_no_link(world: GrpcWorld, tmp_path: Path) -> None:
    """Neither in plain text, nor with a certificate of another authority, at either end."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    foreign = theirs.issue("client")
    acceptor = RecordingAcceptor()
    address = await world.listener(hello("accepting"), tls=ours.issue("runner")).listen(acceptor)
    for tls in (None, foreign, TlsFiles(foreign.cert, foreign.key, ours.ca)):
        with pytest.raises(RunnerUnavailable):
            await world.client(hello("stranger"), tls=tls).connect(address, Recorder(), deadline=5)
    assert acceptor.links == []


async def test_a_runner_whose_certificate_names_another_host_is_not_trusted(world: GrpcWorld, tmp_path: Path) -> None:
    """The dialled host must be in the certificate."""
    authority = Authority(tmp_path / "ours")
    address = await world.listener(hello("accepting"), tls=authority.issue("runner", host="10.1.2.3")).listen(
        RecordingAcceptor()
    )
    with pytest.raises(RunnerUnavailable):
        await world.client(hello("connecting"), tls=authority.issue("client")).connect(address, Recorder(), deadline=5)


async def test_unusable_tls_files_are_a_configuration_error(world: GrpcWorld, tmp_path: Path) -> None:
    """A missing file is named; one that holds no certificate is refused when the port is bound."""
    files = Authority(tmp_path / "ours").issue("runner")
    with pytest.raises(ConfigurationError, match=r"TLS key .*missing\.pem"):
        GrpcTransport(hello("accepting"), tls=TlsFiles(files.cert, tmp_path / "missing.pem", files.ca))
    files.key.write_text("not a key")
    with pytest.raises(ConfigurationError, match="certificate and its key"):
        await world.listener(hello("accepting"), tls=files).listen(RecordingAcceptor())


async def test_the_token_must_be_shown(world: GrpcWorld) -> None:
    """With it a link opens; without it, or with another, the error names the setting and no secret."""
    acceptor = RecordingAcceptor()
    listener = world.listener(hello("accepting"), token="correct-horse")
    address = await listener.listen(acceptor)
    await world.client(hello("friend"), token="correct-horse").connect(address, Recorder(), deadline=5)
    for token in (None, "battery-staple"):
        with pytest.raises(RunnerUnavailable, match="token is missing or wrong") as caught:
            await world.client(hello("stranger"), token=token).connect(address, Recorder(), deadline=5)
        assert "correct-horse" not in str(caught.value)
    assert len(acceptor.links) == 1
    assert listener.statistics().links_refused == 2


@pytest.mark.parametrize("token", ["", "with space", "naïve", "line\nbreak"])
def test_a_token_that_cannot_travel_is_refused_and_not_shown(token: str) -> None:
    """The error does not repeat it."""
    with pytest.raises(ConfigurationError, match="printable ASCII") as caught:
        GrpcTransport(hello("accepting"), token=token)
    assert not token.strip() or token not in str(caught.value)


async def speak(channel: grpc.aio.Channel, messages: list[bytes]) -> tuple[grpc.StatusCode, str]:
    """Send raw messages on a stream of its own; return how the runner ended it."""
    call = open_stream(channel, None)
    # The runner may end the stream before all is said: what counts is the status.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for message in messages:
            await call.write(message)
        await call.done_writing()
        while await read_message(call) is not None:
            pass
    return await call.code(), await call.details()


@pytest.mark.parametrize(
    ("messages", "code", "text"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "ended before"),
        ([b"\xff\xff\xff"], grpc.StatusCode.INVALID_ARGUMENT, "not a protobuf message"),
        ([pack_frame(b"garbage")], grpc.StatusCode.INVALID_ARGUMENT, "not a frame"),
        ([pack_frame(encode_frame([reply(1)]))], grpc.StatusCode.INVALID_ARGUMENT, "begin with a Hello"),
        ([pack_hello(hello("x")), b"\xff"], grpc.StatusCode.INVALID_ARGUMENT, "malformed frame"),
        ([pack_hello(hello("x")), pack_frame(b"\x91\xc1")], grpc.StatusCode.INVALID_ARGUMENT, "malformed frame"),
        ([pack_hello(hello("x", namespace="other"))], grpc.StatusCode.FAILED_PRECONDITION, "namespace"),
    ],
    ids=["nothing", "no-protobuf", "no-msgpack", "no-hello", "later-protobuf", "later-msgpack", "namespace"],
)
async def test_a_wrong_stream_ends_with_a_status_that_says_why(
    world: GrpcWorld, messages: list[bytes], code: grpc.StatusCode, text: str
) -> None:
    """Whoever speaks wrongly learns what was wrong; the link of a neighbour goes on."""
    acceptor = RecordingAcceptor()
    listener = world.listener(hello("accepting"))
    address = await listener.listen(acceptor)
    neighbour = await world.client(hello("neighbour")).connect(address, Recorder(), deadline=5)
    async with grpc.aio.insecure_channel(address) as channel:
        found, details = await speak(channel, messages)
    assert (found, text in details) == (code, True), details
    neighbour.send(reply(7))
    await acceptor.recorders[0].until_received(1)


async def test_a_peer_that_does_not_introduce_itself_is_let_go(
    world: GrpcWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open stream without a Hello ends after its time."""
    monkeypatch.setattr(service, "HELLO_SECONDS", 0.2)
    address = await world.listener(hello("accepting")).listen(RecordingAcceptor())
    async with grpc.aio.insecure_channel(address) as channel:
        call = open_stream(channel, None)
        async with asyncio.timeout(5):
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no Hello" in await call.details()


async def test_malformed_frames_are_logged_at_a_bounded_rate(
    world: GrpcWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Fifty broken streams are fifty counts and a line or two, not fifty lines."""
    listener = world.listener(hello("accepting"))
    address = await listener.listen(RecordingAcceptor())
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(50):
            await speak(channel, [pack_hello(hello("x")), b"\xff"])
    assert listener.statistics().frames_malformed == 50
    assert 1 <= len([record for record in caplog.records if "malformed" in record.getMessage()]) <= 5


def mutated(chance: random.Random) -> bytes:
    """Return a message near to a valid one, or far from any."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    valid: list[Envelope] = [request(7, 20), Chunk(1, 1, [b"a", b"b"]), Credit(1, 2), reply(3, 30)]
    frame = bytearray(encode_frame(valid[chance.randrange(4) :]))
    for _ in range(chance.randrange(1, 4)):
        match chance.randrange(3):
            case 0:
                frame[chance.randrange(len(frame))] = chance.randrange(256)
            case 1:
                frame.insert(chance.randrange(len(frame)), chance.randrange(256))
            case _:
                del frame[chance.randrange(len(frame)) :]
                frame += chance.randbytes(1)
    message = bytearray(pack_frame(bytes(frame)))
    if chance.random() < 0.2:
        message[chance.randrange(len(message))] = chance.randrange(256)
    return bytes(message)


def requests_in(message: bytes) -> int:
    """Return how many valid requests a message holds."""
    try:
        return sum(isinstance(envelope, Request) for envelope in take_apart(unpack_frame(message)))
    except MalformedMessage:
        return 0


def resident_bytes() -> int:
    """Return how much memory this process has now."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is read from /proc")
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


async def fuzz(world: GrpcWorld, frames: int, seed: int) -> None:
    """Send `frames` mutated frames, each behind a valid Hello, while a well-behaved link works on beside them."""
    chance = random.Random(seed)
    acceptor = RecordingAcceptor()
    listener = world.listener(hello("accepting"))
    address = await listener.listen(acceptor)
    neighbour = await world.client(hello("neighbour")).connect(address, Recorder(), deadline=5)
    heard = acceptor.recorders[0]
    opening = pack_hello(hello("fuzzer"))
    expected = resident = 0
    async with grpc.aio.insecure_channel(address) as channel:
        for number in range(0, frames, 50):
            messages = [mutated(chance) for _ in range(50)]
            expected += sum(map(requests_in, messages))
            async with asyncio.TaskGroup() as tasks:
                for message in messages:
                    tasks.create_task(speak(channel, [opening, message]))
            neighbour.send(reply(number))
            acceptor.links, strangers = acceptor.links[:1], acceptor.recorders[1:]
            for stranger in strangers:
                await stranger.until_closed()
                expected -= sum(isinstance(envelope, Request) for envelope in stranger.envelopes)
            acceptor.recorders = [heard]
            if number == min(frames // 5, 5_000) // 50 * 50:
                resident = resident_bytes()
    assert expected == 0
    assert resident_bytes() - resident < 48 << 20
    await heard.until_received(frames // 50)
    assert numbers(heard.envelopes) == list(range(0, frames, 50))
    counted = listener.statistics()
    assert counted.frames_malformed + counted.envelopes_malformed > frames // 2


async def test_garbage_reaches_no_handler_and_harms_no_neighbour(world: GrpcWorld) -> None:
    """A few thousand frames: what is delivered is what was validly encoded, and memory stays flat."""
    await fuzz(world, 3_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_thousand_frames_of_garbage_do_no_harm(world: GrpcWorld) -> None:
    """The same, for long."""
    await fuzz(world, 100_000, seed=2)
