"""Turning metrics and traces on: for whom somebody looks at them, and for nobody else."""

from actorhub.core.config import Settings
from actorhub.engine.client_node import ClientNode
from actorhub.engine.runner import Runner
from actorhub.ops.observer import RunObserver
from actorhub.ops.open_telemetry import export_metrics, meter_provider
from actorhub.ops.tracing import Tracing, tracer_provider


def observe_runner(runner: Runner, settings: Settings) -> None:
    """Observe a runner that has not started, if metrics are served over HTTP, or OpenTelemetry is configured."""
    meters, tracing = meter_provider(), _tracing(runner, runner.info.version, runner.info.runner.address)
    runner.node.tracing = tracing
    if settings.http is not None or meters is not None or tracing is not None:
        runner.host.scheduler.observer = RunObserver(runner.node.clock, tracing, runner.host.scheduler.context)
    if meters is not None:
        export_metrics(runner, meters)


def observe_client(client: ClientNode, version: str) -> None:
    """Trace a client's calls, if OpenTelemetry's traces are configured."""
    client.node.tracing = _tracing(client, version, "")


def _tracing(part: Runner | ClientNode, version: str, runner: str) -> Tracing | None:
    provider = tracer_provider()
    return None if provider is None else Tracing(provider, part.node.clock, version=version, runner=runner)
