"""All of a process's links over gRPC: the server that takes them, the channels that open them."""

import asyncio
import gc
import os
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Final, NoReturn, TypeAlias

import grpc
import grpc.aio
import msgspec
from typing_extensions import override

from actorhub.core.envelope import Hello
from actorhub.core.errors import ActorhubError, ConfigurationError, MalformedMessage, RunnerUnavailable
from actorhub.transport.grpc.addresses import (
    is_loopback,
    is_refused,
    is_wildcard,
    join_address,
    numeric_host,
    split_address,
)
from actorhub.transport.grpc.link import GrpcLink
from actorhub.transport.grpc.options import (
    TlsFiles,
    channel_credentials,
    channel_options,
    check_token,
    server_credentials,
    server_options,
)
from actorhub.transport.grpc.service import LinkService, TokenCheck, make_server
from actorhub.transport.grpc.streams import ask_identity, explain, open_stream, pack_hello, read_first_frame
from actorhub.transport.handshake import check_hello
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Acceptor, Transport
from actorhub.transport.statistics import Counters, TransportStatistics
from actorhub.transport.tasks import OwnedTasks

AddService: TypeAlias = Callable[[grpc.aio.Server], None]
"""Registers a further gRPC service on the server before it starts."""

_users: Final[set[int]] = set()
"""The process that uses gRPC, by its id. gRPC's state is global to the process, and a fork copies it without its
threads: whatever a child then asks of it waits forever."""


class GrpcTransport(Transport):
    """A process's links over gRPC. Made inside a running event loop; ended by `aclose`."""

    def __init__(
        self,
        hello: Hello,
        *,
        listen: str | None = None,
        tls: TlsFiles | None = None,
        token: str | None = None,
        insecure: bool = False,
        limits: LinkLimits | None = None,
        services: Sequence[AddService] = (),
    ) -> None:
        """Prepare a transport.

        Args:
            hello: What this process says of itself. Where it listens and `address` is empty, the bound address is
                filled in; where `address` ends in `:0`, the bound port is.
            listen: `host:port` to bind, port 0 for any free one; None for a client.
            tls: Certificates; both ends of every connection show theirs.
            token: Shared secret that every call on the port must carry, and that ours do.
            insecure: Whether to listen beyond loopback without TLS.
            limits: Bounds of each link.
            services: Further services on the same port.

        Raises:
            ConfigurationError: `listen` is not an address, a TLS file cannot be read, the token cannot travel, or this
                process was forked from one that has used gRPC.
        """
        _check_fork()
        self._hello = hello
        self._listen = split_address(listen) if listen is not None else None
        self._token = check_token(token)
        self._server_credentials = server_credentials(tls) if tls else None
        self._channel_credentials = channel_credentials(tls) if tls else None
        self._insecure = insecure
        self._limits = limits or LinkLimits()
        self._services = services
        self._counters = Counters()
        self._server: grpc.aio.Server | None = None
        self._incoming: LinkService | None = None
        self._outgoing: set[GrpcLink] = set()
        self._tasks = OwnedTasks()
        self._closing = False

    @property
    @override
    def hello(self) -> Hello:
        return self._hello

    @override
    def enter(self, cluster: str, era: str) -> None:
        self._hello = msgspec.structs.replace(self._hello, cluster=cluster, era=era)

    @override
    def statistics(self) -> TransportStatistics:
        return self._counters.snapshot()

    @override
    async def listen(self, acceptor: Acceptor) -> str:
        if self._listen is None or self._server is not None or self._closing:
            raise ConfigurationError("this transport has nowhere to listen, or listens already: give it one address")
        host, port = self._listen
        numeric = await numeric_host(host)
        self._check_exposure(host, numeric)
        interceptors = [TokenCheck(self._token, self._counters)] if self._token is not None else []
        server = make_server(interceptors, server_options(self._limits.max_frame_bytes))
        self._server = server
        try:
            bound = self._bind(server, join_address(numeric, port), join_address(host, port))
        except ConfigurationError:
            self._server = None
            await server.stop(None)
            raise
        address = join_address(host, bound)
        self._hello = msgspec.structs.replace(self._hello, address=_advertised(self._hello.address, address))
        self._incoming = LinkService(lambda: self._hello, acceptor, limits=self._limits, counters=self._counters)
        self._incoming.add_to(server)
        for add_service in self._services:
            add_service(server)
        # Handlers run in the context in which the server was started: an empty one, so that nothing leaks into them.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.start(), context=Context())
        return address

    @override
    async def connect(self, address: str, acceptor: Acceptor, *, deadline: float) -> GrpcLink:
        channel = self._channel(address)
        try:
            link = await self._greet(channel, address, deadline)
            # From here to the end there is no `await`: neither `aclose` nor a cancellation can come between the
            # acceptor's yes and the task that carries the link.
            self._check_open()
            try:
                link.offer_to(acceptor)
            except ActorhubError as exc:
                raise RunnerUnavailable(f"this process refused its link to the runner at {address}: {exc}") from exc
        except BaseException:
            # Closing the channel ends the stream, if there is one: the peer learns that the link is gone.
            await channel.close(None)
            raise
        self._outgoing.add(link)
        self._tasks.start(self._carry(link, channel), f"actorhub-link-{address}")
        return link

    @override
    async def identify(self, address: str, *, deadline: float) -> str | None:
        channel = self._channel(address)
        try:
            async with asyncio.timeout(deadline):
                # By a connection of its own: gRPC tells refused connections from others by text alone.
                if await is_refused(address):
                    return None
                return (await ask_identity(channel, self._token)).incarnation
        except TimeoutError as exc:
            raise RunnerUnavailable(f"nothing at {address} answered within {deadline:g} s") from exc
        except grpc.aio.AioRpcError as exc:
            _raise_unavailable(address, exc)
        except (MalformedMessage, OSError) as exc:
            raise RunnerUnavailable(f"who listens at {address} cannot be known: {exc}") from exc
        finally:
            await channel.close(None)

    @override
    async def aclose(self, grace: float) -> None:
        self._closing = True
        links = [*self._outgoing, *(self._incoming.links if self._incoming else ())]
        try:
            async with asyncio.TaskGroup() as tasks:
                for link in links:
                    tasks.create_task(_finish(link, grace))
                if self._server is not None:
                    tasks.create_task(self._server.stop(grace))
        finally:
            for link in links:
                link.close("closed")
            await self._tasks.aclose()
        for link in links:
            await link.wait_reported()

    def _check_exposure(self, host: str, numeric: str) -> None:
        if not is_loopback(numeric) and self._server_credentials is None and not self._insecure:
            raise ConfigurationError(
                f"listening on {host} without TLS lets anyone on the network in: set ACTORHUB_TLS_CERT, _KEY and _CA, "
                "listen on 127.0.0.1, or say --insecure"
            )
        if is_wildcard(numeric) and not self._hello.address:
            raise ConfigurationError(f"peers cannot dial {host}: say with --advertise where they reach this process")

    def _bind(self, server: grpc.aio.Server, numeric: str, shown: str) -> int:
        try:
            if self._server_credentials is None:
                bound = server.add_insecure_port(numeric)
            else:
                bound = server.add_secure_port(numeric, self._server_credentials)
        except (RuntimeError, ValueError) as exc:
            hint = ", or the TLS files do not hold a certificate and its key" if self._server_credentials else ""
            raise ConfigurationError(
                f"cannot listen on {shown}: another process uses the port, or the address is not this host's{hint}: "
                "choose another --listen"
            ) from exc
        wanted = split_address(numeric)[1]
        if bound == 0 or wanted not in {0, bound}:
            raise ConfigurationError(f"cannot listen on {shown}, only on port {bound}: choose another --listen")
        return bound

    def _check_open(self) -> None:
        if self._closing:
            raise RunnerUnavailable("this process is closing its links")

    def _channel(self, address: str) -> grpc.aio.Channel:
        self._check_open()
        try:
            split_address(address)
        except ConfigurationError as exc:
            raise RunnerUnavailable(str(exc)) from exc
        # The explicit scheme keeps an address from being read as one, such as unix:path.
        target, options = f"dns:///{address}", channel_options(self._limits.max_frame_bytes)
        if self._channel_credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, self._channel_credentials, options=options)

    async def _greet(self, channel: grpc.aio.Channel, address: str, deadline: float) -> GrpcLink:
        """Exchange Hellos; return a link that moves nothing yet.

        Raises:
            RunnerUnavailable: nobody answers in time, the peer refuses, or it is not one that we can talk to.
        """
        try:
            async with asyncio.timeout(deadline):
                stream = open_stream(channel, self._token)
                await stream.write(pack_hello(self._hello))
                first = await read_first_frame(stream)
            peer, half_close = check_hello(first, self._hello), stream.done_writing
            return GrpcLink(
                peer, stream, limits=self._limits, counters=self._counters, first=first[1:], half_close=half_close
            )
        except TimeoutError as exc:
            raise RunnerUnavailable(f"the runner at {address} did not answer within {deadline:g} s") from exc
        except grpc.aio.AioRpcError as exc:
            _raise_unavailable(address, exc)
        except (MalformedMessage, ConfigurationError) as exc:
            raise RunnerUnavailable(f"the runner at {address} does not fit: {exc}") from exc

    async def _carry(self, link: GrpcLink, channel: grpc.aio.Channel) -> None:
        try:
            await link.pump()
        finally:
            self._outgoing.discard(link)
            await channel.close(None)


async def _finish(link: GrpcLink, grace: float) -> None:
    try:
        async with asyncio.timeout(grace):
            await link.finish()
    except TimeoutError:
        link.close(f"closed; its queue could not be flushed within {grace:g} s")


def _advertised(wanted: str, bound: str) -> str:
    if not wanted:
        return bound
    host, port = split_address(wanted)
    return join_address(host, port or split_address(bound)[1])


def _raise_unavailable(address: str, error: grpc.aio.AioRpcError) -> NoReturn:
    refused = error.code() in {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
    said = f"refused the link: {error.details()}" if refused else f"cannot be reached: {explain(error)}"
    raise RunnerUnavailable(f"the runner at {address} {said}") from error


def _check_fork() -> None:
    if not _users:
        # Collecting what the parent has left of gRPC would wait for one of the threads that a forked child lacks.
        os.register_at_fork(after_in_child=gc.freeze)
    _users.add(os.getpid())
    if len(_users) > 1:
        raise ConfigurationError(
            "gRPC was used before this process was forked, so it does not work here: fork before the first connection "
            "is made, or start processes by multiprocessing's spawn"
        )
