"""What does an ask in one process cost, compared with a bare mailbox?

The limit is a deque and a future per ask, and a resident task per actor, without identity, deadline, encoding or
checks. "Observed" is a runner that serves metrics over HTTP and has OpenTelemetry's traces on, without an exporter.
Each ask is timed and counted, and starts a trace unless the number of traces of its second is used up.

    python -m benchmarks.bench_local_ask [--rounds 7] [--loop asyncio|uvloop|both]
"""

import argparse
import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from actorhub import Cluster
from benchmarks._harness import latencies, rss_bytes
from benchmarks._session import measured, parse, target, with_namespace
from benchmarks._workload import PAYLOAD, Ask, Echo, Payload, compared, hub, interleave, throughput, timings


class BareActor:
    """A mailbox, and a task that answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[tuple[asyncio.Future[Payload], Payload]] = deque()
        self._wakeup: asyncio.Future[None] | None = None

    def ask(self, payload: Payload) -> "asyncio.Future[Payload]":
        reply: asyncio.Future[Payload] = self._loop.create_future()
        self._queue.append((reply, payload))
        if self._wakeup is not None:
            self._wakeup.set_result(None)
            self._wakeup = None
        return reply

    async def run(self) -> None:
        while True:
            while self._queue:
                reply, payload = self._queue.popleft()
                if not reply.done():
                    reply.set_result(payload)
            self._wakeup = self._loop.create_future()
            await self._wakeup


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    scale = 0.2 if options.quick else 1.0
    results: dict[str, Any] = {}
    async with (
        hub.runner(database_url=options.database, namespace=options.namespace, listen="127.0.0.1:0") as cluster,
        _observed(options) as observed,
        asyncio.TaskGroup() as tasks,
    ):
        loop = asyncio.get_running_loop()
        client, observed_client = cluster.client(Echo), observed.client(Echo)
        for entities, in_flight in ((256, 256), (1, 64)):
            actors = [BareActor(loop) for _ in range(entities)]
            running = [tasks.create_task(actor.run()) for actor in actors]
            ids = [f"e{number}" for number in range(entities)]
            asks: dict[str, Ask] = {
                "limit": lambda n, actors=actors: actors[n % len(actors)].ask(PAYLOAD),  # type: ignore[misc]
                "actorhub": lambda n, ids=ids: client(ids[n % len(ids)]).echo(PAYLOAD),  # type: ignore[misc]
                "observed": lambda n, ids=ids: observed_client(ids[n % len(ids)]).echo(PAYLOAD),  # type: ignore[misc]
            }
            asked = int(120_000 * scale)
            counts = {"limit": int(300_000 * scale), "actorhub": asked, "observed": asked}
            samples = await interleave(
                options.rounds,
                {side: lambda s=side: throughput(asks[s], counts[s], in_flight) for side in asks},  # type: ignore[misc] # noqa: B023
            )
            results[f"{entities}_entities_{in_flight}_in_flight"] = {
                **compared(samples, "per_s"),
                **latencies(await timings(asks["actorhub"], counts["actorhub"], in_flight)),
            }
            for task in running:
                task.cancel()
    return {**results, "rss_bytes": rss_bytes()}


def _observed(options: argparse.Namespace) -> AbstractAsyncContextManager[Cluster]:
    """Return a runner that is made while traces are on. The runner without traces was made before."""
    trace.set_tracer_provider(TracerProvider())
    namespace = f"{options.namespace}_observed"
    return hub.runner(database_url=options.database, namespace=namespace, listen="127.0.0.1:0", http="127.0.0.1:0")


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    ratios = found["256_entities_256_in_flight"]
    return [
        target("local ask, of the bare mailbox", ratios["actorhub_of_limit"], at_least=0.40),
        target("with traces and metrics, of the bare mailbox", ratios["observed_of_limit"], at_least=0.30),
    ]


if __name__ == "__main__":
    measured("bench_local_ask", parse(__doc__, rounds=7, extend=with_namespace), measure, targets)
