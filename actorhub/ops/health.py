"""Whether this runner takes work, for load balancers and probes: `grpc.health.v1`, and what HTTP probes are told."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

import grpc
import grpc.aio
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actorhub.cluster import Cluster, cluster_here
from actorhub.engine.runner import Door, Runner
from actorhub.engine.singleton_health import SingletonHealth
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
    return runner.host.turns.context[cluster_here]


def obstacle(door: Door) -> str:
    """Return why the runner behind `door` does not take work, in a sentence; empty when it does."""
    return "it is starting" if door.runner is None else obstacle_of(door.runner)


def obstacle_of(runner: Runner) -> str:
    """Return why `runner` does not take work, in a sentence; empty when it does."""
    if runner.machine_id < 0:
        return "it is starting"
    if cluster_of(runner).is_shutting_down:
        return "it is leaving the cluster"
    if not runner.ownership.is_fresh():
        return "it cannot prove its ownership: the database does not answer"
    if stale := stale_singletons(runner):
        return f"it leads stale singletons: {', '.join(stale)}"
    return ""


def stale_singletons(runner: Runner) -> list[str]:
    """Return the names of the singletons that this runner leads and that showed no sign of life for a minute."""
    return [singleton.name for singleton in runner.host.singletons.report() if singleton.is_stale]


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `/healthz` says. Programs read it: fields are only added."""

    serving: bool
    reason: str
    """Why it does not serve, in a sentence; empty when it does."""
    runner: str = ""
    """Its address; empty until it is there, like the fields below."""
    incarnation: str = ""
    version: str = ""
    shards_owned: int = 0
    live_runners: int = 0
    """Runners of the cluster that are alive as far as this one knows, itself included."""
    singletons: Sequence[SingletonHealth] = ()
    """Those that this runner leads."""


def health_report(door: Door) -> HealthReport:
    """Return how the runner behind `door` is."""
    reason, runner = obstacle(door), door.runner
    if runner is None:
        return HealthReport(serving=False, reason=reason)
    return HealthReport(
        serving=not reason,
        reason=reason,
        runner=runner.info.runner.address,
        incarnation=runner.info.runner.incarnation,
        version=runner.info.version,
        shards_owned=len(runner.ownership.owned),
        live_runners=len(runner.ownership.members),
        singletons=tuple(runner.host.singletons.report()),
    )


class Health:
    """Computes the status at each question: nothing has to be kept up to date."""

    def __init__(self, door: Door) -> None:
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


def add_health(door: Door, server: grpc.aio.Server) -> None:
    """Make `server` answer for the health of the runner behind `door`."""
    add = cast("Callable[[Health, grpc.aio.Server], None]", health_pb2_grpc.add_HealthServicer_to_server)
    add(Health(door), server)
