"""What does an ask between two processes cost, compared with the bare gRPC stream?

The limit for throughput is one bidirectional stream on which everything that is queued at a tick leaves in one frame,
and whose payload is encoded and decoded at both ends. `opaque` is the same with bytes that are not decoded. The limit
for latency is a bare round trip on a stream.

    python -m benchmarks.bench_remote_ask [--rounds 7] [--loop asyncio|uvloop|both]
"""

import argparse
import asyncio
from collections.abc import Mapping
from statistics import median
from typing import Any

import grpc.aio

from benchmarks._harness import latencies, percentile, rss_bytes
from benchmarks._raw import RawAsks, RawPing
from benchmarks._runner import runner_process
from benchmarks._session import measured, parse, target, with_namespace
from benchmarks._workload import PAYLOAD, Ask, Echo, compared, hub, interleave, throughput, timings

IN_FLIGHT = 256
ENTITIES = 256


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    with runner_process(options.database, options.namespace, loop=options.loop, raw=True) as runner:
        async with (
            hub.connect(gateway=runner.address, namespace=options.namespace) as cluster,
            grpc.aio.insecure_channel(runner.raw) as channel,
            asyncio.TaskGroup() as tasks,
        ):
            client = cluster.client(Echo)
            limits = {
                "limit": RawAsks(channel, tasks, typed=True),
                "opaque": RawAsks(channel, tasks, typed=False),
            }
            raw_asks = {name: limit.ask for name, limit in limits.items()}
            ids = [f"e{number}" for number in range(ENTITIES)]

            async def ours(number: int) -> object:
                return await client(ids[number % ENTITIES]).echo(PAYLOAD)

            result = {
                **await _throughput(options, raw_asks, ours),
                **await _round_trips(options, RawPing(channel).ping, ours),
            }
            for limit in limits.values():
                limit.close()
        return {**result, "rss_bytes": rss_bytes(), "runner_rss_bytes": runner.ask("statistics")["rss_bytes"]}


async def _throughput(options: argparse.Namespace, limits: Mapping[str, Ask], ours: Ask) -> dict[str, Any]:
    scale = 0.2 if options.quick else 1.0
    asks, raw_asks = int(80_000 * scale), int(200_000 * scale)
    samples = await interleave(
        options.rounds,
        {
            "limit": lambda: throughput(limits["limit"], raw_asks, IN_FLIGHT),
            "opaque": lambda: throughput(limits["opaque"], raw_asks, IN_FLIGHT),
            "actorhub": lambda: throughput(ours, asks, IN_FLIGHT),
        },
    )
    opaque = compared({side: samples[side] for side in ("actorhub", "opaque")}, "per_s", "opaque")
    both = {**compared(samples, "per_s"), "actorhub_of_opaque": opaque["actorhub_of_opaque"]}
    return {"in_flight_256": {**both, **latencies(await timings(ours, asks, IN_FLIGHT))}}


async def _round_trips(options: argparse.Namespace, limit: Ask, ours: Ask) -> dict[str, Any]:
    count = 300 if options.quick else 2_000
    taken: dict[str, list[float]] = {"limit": [], "actorhub": []}

    async def once(side: str, ask: Ask) -> float:
        one = await timings(ask, count, 1)
        taken[side] += one
        return median(one) * 1e6

    samples = await interleave(
        options.rounds, {"limit": lambda: once("limit", limit), "actorhub": lambda: once("actorhub", ours)}
    )
    ratios = {
        f"p{name}_of_limit": round(percentile(taken["actorhub"], share) / percentile(taken["limit"], share), 3)
        for name, share in (("50", 0.5), ("99", 0.99))
    }
    sides = {side: latencies(values) for side, values in taken.items()}
    return {"in_flight_1": {**compared(samples, "p50_us"), **ratios, **sides}}


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    busy = found["in_flight_256"]
    return [
        target("remote ask, of the raw stream", busy["actorhub_of_limit"], at_least=0.40),
        target("remote ask, of the raw stream with opaque bytes", busy["actorhub_of_opaque"], at_least=0.40),
        target("remote ask latency, of a raw round trip", found["in_flight_1"]["actorhub_of_limit"], at_most=1.5),
    ]


if __name__ == "__main__":
    measured("bench_remote_ask", parse(__doc__, rounds=7, extend=with_namespace), measure, targets)
