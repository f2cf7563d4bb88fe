"""Whether this runner takes work, for load balancers and probes: `grpc.health.v1`, and what HTTP probes are told."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actorhub.cluster import Cluster, cluster_here
from actorhub.engine.runner import LinkAcceptor, Runner
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.ops.replies import Rpc

SERVICES: Final = frozenset({"", "actorhub.runner.v1.Runner", "actorhub.client.v1.Gateway", "actorhub.admin.v1.Admin"})
"""What may be asked about; all are as healthy as the runner is."""

_LOOK: Final = 0.1
"""Seconds between looks at a watched status."""

_Status = health_pb2.HealthCheckResponse


class _Watching(Rpc, Protocol):
    async def write(self, message: health_pb2.HealthCheckResponse, /) -> None: ...


def cluster_of(runner: Runner) -> Cluster:
    """Return the cluster that the handlers of this process belong to."""
    return runner.host.scheduler.context[cluster_here]


def obstacle(door: LinkAcceptor) -> str:
    """Return why the runner behind `door` does not take work, in a sentence; empty when it does."""
    return health_report(door).reason


def health_report(door: LinkAcceptor) -> RunnerHealth:
    """Return how the runner behind `door` is: what `/healthz` says. Programs read it, so fields are only added."""
    if door.runner is not None:
        return door.runner.health()
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
    """Computes the status at each question: nothing has to be kept up to date."""

    def __init__(self, door: LinkAcceptor) -> None:
        self._door = door

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Rpc) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """Return the status now."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:100]!r}")
        return self._status(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Watching) -> None:  # noqa: N802
        """Send the status now and at each change, until the caller leaves."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                await context.write(status)
                last = status
            await asyncio.sleep(_LOOK)

    async def List(self, request: health_pb2.HealthListRequest, context: Rpc) -> health_pb2.HealthListResponse:  # noqa: N802
        """Return the status of every service now."""
        return health_pb2.HealthListResponse(statuses={name: self._status(name) for name in SERVICES})

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in SERVICES:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.NOT_SERVING if obstacle(self._door) else _Status.SERVING)


def add_health(door: LinkAcceptor, server: grpc.aio.Server) -> None:
    """Make `server` answer for the health of the runner behind `door`."""
    add = cast("Callable[[Health, grpc.aio.Server], None]", health_pb2_grpc.add_HealthServicer_to_server)
    add(Health(door), server)
