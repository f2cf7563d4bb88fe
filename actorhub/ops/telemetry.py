"""Turning metrics and traces on, for processes in which somebody looks at them, and in no others."""

from contextvars import Context

from actorhub.core.clock import Clock
from actorhub.core.config import Settings
from actorhub.engine.client_node import ClientNode
from actorhub.engine.runner import Runner
from actorhub.ops.observer import RunObserver
from actorhub.ops.open_telemetry import export_metrics, meter_provider
from actorhub.ops.tracing import Tracing, tracer_provider


def observe_runner(runner: Runner, settings: Settings) -> None:
    """Observe a runner that has not started, if metrics are served over HTTP, or OpenTelemetry is configured."""
    clock, info = runner.node.clock, runner.info
    tracing = call_tracing(clock, info.version, info.runner.address)
    runner.node.tracing = tracing
    runner.host.scheduler.observer = run_observer(settings, clock, tracing, runner.host.scheduler.context)
    meters = meter_provider()
    if meters is not None:
        export_metrics(runner, meters)


def observe_client(client: ClientNode, version: str) -> None:
    """Trace a client's calls, if OpenTelemetry's traces are configured."""
    client.node.tracing = call_tracing(client.node.clock, version, "")


def call_tracing(clock: Clock, version: str, runner: str) -> Tracing | None:
    """Return what makes the spans of a process; `None` if OpenTelemetry's traces are not configured.

    Args:
        clock: For the limit on new traces.
        version: Of this library.
        runner: The process's address; empty for a client.
    """
    provider = tracer_provider()
    return None if provider is None else Tracing(provider, clock, version=version, runner=runner)


def run_observer(settings: Settings, clock: Clock, tracing: Tracing | None, base: Context) -> RunObserver | None:
    """Return what takes the time of a runner's runs; `None` if nobody would look at it.

    Args:
        settings: Say whether metrics are served over HTTP.
        clock: Takes the time.
        tracing: Makes the spans, where there are any.
        base: The context that runs start from.
    """
    wanted = settings.http is not None or meter_provider() is not None or tracing is not None
    return RunObserver(clock, tracing, base) if wanted else None
