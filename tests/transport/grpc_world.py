"""gRPC transports on loopback for one test."""

import socket
from typing import Any

from actorhub.core.envelope import Hello
from actorhub.transport.grpc import GrpcTransport
from actorhub.transport.outbox import LinkLimits


class GrpcWorld:
    """Transports on this machine's loopback interface."""

    def __init__(self) -> None:
        self._made: list[GrpcTransport] = []
        self._closed_port = socket.socket()
        self._closed_port.bind(("127.0.0.1", 0))

    @property
    def dead_address(self) -> str:
        """A port that is bound and does not listen."""
        return f"127.0.0.1:{self._closed_port.getsockname()[1]}"

    def listener(
        self, hello: Hello, limits: LinkLimits | None = None, address: str | None = None, **options: Any
    ) -> GrpcTransport:
        return self.keep(GrpcTransport(hello, listen=address or "127.0.0.1:0", limits=limits, **options))

    def client(self, hello: Hello, limits: LinkLimits | None = None, **options: Any) -> GrpcTransport:
        return self.keep(GrpcTransport(hello, limits=limits, **options))

    def keep(self, transport: GrpcTransport) -> GrpcTransport:
        self._made.append(transport)
        return transport

    async def aclose(self) -> None:
        for transport in self._made:
            await transport.aclose(2)
        self._closed_port.close()
