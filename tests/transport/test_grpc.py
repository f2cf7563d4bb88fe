"""The gRPC transport keeps every transport's promises, and some of its own, on asyncio's and on uvloop's event loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from actorhub.conformance.malformed_envelopes import MalformedEnvelopeSuite
from actorhub.conformance.transport import TransportSuite
from actorhub.conformance.transport_pair import Pair, Recorder, RecordingAcceptor, hello, numbers, reply
from actorhub.core.errors import ConfigurationError, RunnerUnavailable
from actorhub.transport.grpc import GrpcTransport
from actorhub.transport.ports import Transport
from tests.transport.grpc_world import GrpcWorld


class TestGrpcTransport(TransportSuite, MalformedEnvelopeSuite):
    """The shipped suite."""


def is_a_transport(transport: GrpcTransport) -> Transport:
    """Let the type checker compare the class with its port."""
    return transport


@pytest.fixture
def silent_address() -> Iterator[str]:
    """An address where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


async def test_a_peer_that_says_nothing_fails_the_connect_at_its_deadline(
    world: GrpcWorld, silent_address: str
) -> None:
    """A connection that is taken and not answered costs the deadline, no more."""
    transport = world.client(hello("connecting"))
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(RunnerUnavailable, match=r"did not answer within 0\.3 s"):
        await transport.connect(silent_address, Recorder(), deadline=0.3)
    assert 0.29 <= loop.time() - begin < 1.5


async def test_a_process_that_hangs_is_not_taken_for_a_dead_one(world: GrpcWorld, silent_address: str) -> None:
    """Its kernel takes the connection: who listens is unknown, at the deadline."""
    with pytest.raises(RunnerUnavailable, match=r"answered within 0\.3 s"):
        await world.client(hello("asking")).identify(silent_address, deadline=0.3)


async def test_a_name_that_does_not_resolve_says_nothing_about_a_process(world: GrpcWorld) -> None:
    """Its name may be gone before it is."""
    with pytest.raises(RunnerUnavailable, match="cannot be known"):
        await world.client(hello("asking")).identify("no-such-host.invalid:7400", deadline=5)


async def test_a_cancelled_connect_leaves_nothing_behind(world: GrpcWorld, silent_address: str) -> None:
    """Neither a task nor a link remains."""
    transport = world.client(hello("connecting"))
    recorder = Recorder()
    before = asyncio.all_tasks()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await transport.connect(silent_address, recorder, deadline=30)
    await transport.aclose(1)
    async with asyncio.timeout(5):
        while {task for task in asyncio.all_tasks() - before if "grpc" not in repr(task.get_coro())}:
            await asyncio.sleep(0.01)
    assert recorder.closings == []
    assert transport.statistics().links_opened == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_names_and_ipv6_addresses_can_be_listened_at_and_dialled(world: GrpcWorld, host: str) -> None:
    """The returned address names the host as it was given, with the port that is bound."""
    listener = world.listener(hello("accepting"), address=f"{host}:0")
    try:
        address = await listener.listen(RecordingAcceptor())
    except ConfigurationError:
        pytest.skip(f"this machine has no {host}")
    assert address.startswith(f"{host}:")
    assert listener.hello.address == address
    link = await world.client(hello("connecting")).connect(address, Recorder(), deadline=5)
    assert link.peer.address == address


async def test_an_advertised_port_0_becomes_the_bound_port(world: GrpcWorld) -> None:
    """The host that peers shall dial is kept."""
    identity = hello("accepting")
    identity = type(identity)(identity.protocol, identity.namespace, "runner.example:0", identity.incarnation)
    listener = world.listener(identity)
    address = await listener.listen(RecordingAcceptor())
    assert listener.hello.address == "runner.example:" + address.rpartition(":")[2]


@pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "host:99999", "unix:/tmp/socket", "::1:80"])
async def test_nonsense_addresses_are_refused(world: GrpcWorld, address: str) -> None:
    """An address that is none is named in the error, at both ends."""
    with pytest.raises(ConfigurationError, match="is not an address"):
        GrpcTransport(hello("accepting"), listen=address)
    with pytest.raises(RunnerUnavailable, match="is not an address"):
        await world.client(hello("connecting")).connect(address, Recorder(), deadline=1)


async def test_a_name_that_does_not_resolve_is_a_configuration_error(world: GrpcWorld) -> None:
    """The name is in the error."""
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid"):
        await world.listener(hello("accepting"), address="no-such-host.invalid:0").listen(RecordingAcceptor())


async def test_listening_beyond_loopback_needs_tls_or_insecure(world: GrpcWorld) -> None:
    """The error names the settings that lift the refusal."""
    with pytest.raises(ConfigurationError, match="--insecure"):
        await world.listener(hello("accepting"), address="0.0.0.0:0").listen(RecordingAcceptor())
    with pytest.raises(ConfigurationError, match="--advertise"):
        await world.listener(hello("accepting"), address="0.0.0.0:0", insecure=True).listen(RecordingAcceptor())


async def test_a_port_that_another_socket_holds_is_a_configuration_error(world: GrpcWorld, silent_address: str) -> None:
    """Also where the other process is not one of ours."""
    with pytest.raises(ConfigurationError, match=r"cannot listen on .*another process uses the port"):
        await world.listener(hello("accepting"), address=silent_address).listen(RecordingAcceptor())


async def test_many_links_open_and_close_side_by_side(world: GrpcWorld) -> None:
    """Each connect has a link of its own, and each is closed once."""
    pair = Pair(world)
    await pair.link()
    recorders = [Recorder() for _ in range(20)]
    links = await asyncio.gather(
        *(pair.connecting.connect(pair.address, recorder, deadline=10) for recorder in recorders)
    )
    for number, link in enumerate(links):
        link.send(reply(number))
    for one in pair.acceptor.recorders[1:]:
        await one.until_received(1)
    assert sorted(numbers(one.envelopes)[0] for one in pair.acceptor.recorders[1:]) == list(range(20))
    await pair.connecting.aclose(5)
    for one in [*recorders, *pair.acceptor.recorders]:
        await one.until_closed()
        assert len(one.closings) == 1
    assert pair.connecting.statistics().links_closed == 21
