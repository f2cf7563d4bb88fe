"""Whether this runner takes work, for load balancers and probes: `grpc.health.v1`, and what HTTP probes are told."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.ops.replies import Rpc, StreamingRpc

SERVICES: Final = frozenset({"", "actorhub.runner.v1.Runner", "actorhub.client.v1.Gateway", "actorhub.admin.v1.Admin"})
"""What may be asked about; all are as healthy as the runner is."""

_POLL_SECONDS: Final = 0.1
"""Between two checks of a watched status."""

_Status = health_pb2.HealthCheckResponse


def obstacle(acceptor: LinkAcceptor) -> str:
    """Return why the runner behind `acceptor` does not take work, in a sentence; empty when it does."""
    return health_report(acceptor).reason


def health_report(acceptor: LinkAcceptor) -> RunnerHealth:
    """Return how the runner behind `acceptor` is: what `/healthz` shows. Programs read it, so fields are only added."""
    if acceptor.runner is not None:
        return acceptor.runner.health()
    return RunnerHealth(
        serving=False,
        reason="it is starting",
        runner="",
        incarnation="",
        version="",
        shards_owned=0,
        live_runners=0,
    )


class Health:
    """`grpc.health.v1`, computed for each question, so that nothing has to be kept up to date."""

    def __init__(self, acceptor: LinkAcceptor) -> None:
        self._acceptor = acceptor

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Rpc) -> health_pb2.HealthCheckResponse:
        """Return the status now."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:100]!r}")
        return self._status(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: StreamingRpc[health_pb2.HealthCheckResponse]
    ) -> None:
        """Send the status now and at each change, until the caller leaves."""
        last = None
        while True:
            status = self._status(request.service)
            # Polled, since not every change has an event: a lease runs out, and a singleton goes stale, by time alone.
            if status != last:
                await context.write(status)
                last = status
            await asyncio.sleep(_POLL_SECONDS)

    async def List(self, request: health_pb2.HealthListRequest, context: Rpc) -> health_pb2.HealthListResponse:
        """Return the status of every service now."""
        return health_pb2.HealthListResponse(statuses={name: self._status(name) for name in SERVICES})

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in SERVICES:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.NOT_SERVING if obstacle(self._acceptor) else _Status.SERVING)


def add_health(acceptor: LinkAcceptor, server: grpc.aio.Server) -> None:
    """Make `server` answer for the health of the runner behind `acceptor`."""
    add = cast("Callable[[Health, grpc.aio.Server], None]", health_pb2_grpc.add_HealthServicer_to_server)
    add(Health(acceptor), server)
