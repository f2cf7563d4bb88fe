"""What does an ask of a durable handler cost, compared with the least that Postgres must do for it?

The limit stores each request and then its reply, in two commits. Each commit is shared by all requests that queued in
the meantime. `delete_on_done` is the same, and also deletes a request that is done. `indexed` is that, with the columns
and the index that are needed to find messages again. `actorhub` is a runner in this process, `unfenced` is one without
its fence, and `other_process` is a client of a runner in another process. The peer is Effect's cluster on the same
Postgres, in one process, and as client and runner in two. `flush_1ms` runs on its own server, whose flushes take a
millisecond longer.

    python -m benchmarks.bench_durable_ask [--rounds 5] [--loop asyncio|uvloop|both] [--no-peer]
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from actorhub.cluster import Cluster
from benchmarks._disk import NoShim
from benchmarks._durable import patient
from benchmarks._effect import EffectProcess, peer_or_reason
from benchmarks._harness import latencies, rss_bytes
from benchmarks._raw_durable import durable_limits
from benchmarks._runner import runner_process
from benchmarks._session import measured, parse, target, with_namespace, with_peer
from benchmarks._slow_flush import slow_database
from benchmarks._unfenced import unfenced
from benchmarks._workload import PAYLOAD, Ask, compared, hub, interleave, throughput, timings

ENTITIES: Final = 256
ASKS: Final = {256: 40_000, 64: 24_000, 1: 1_000}
"""Asks in a sample of the limit, by the number in flight. Our samples are half as long, the peer's a twentieth."""
SLOW_ASKS: Final = {64: 16_000, 1: 500}
BESIDE: Final = (
    ("actorhub", "indexed"),
    ("actorhub", "unfenced"),
    ("actorhub", "effect"),
    ("other_process", "effect_other_process"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One side that is measured."""

    measure: Callable[[int, int], Awaitable[float]]
    """Takes the number of asks and the number in flight. Returns asks per second."""
    share: float = 1.0
    """Share of the number of asks of the limit."""
    ask: Ask | None = None
    """Makes one ask, to measure latencies."""


def asks_of(cluster: Cluster) -> Side:
    """Return a function that asks the durable entities of a cluster."""
    client = patient(cluster)
    ids = [f"e{number}" for number in range(ENTITIES)]

    async def ask(number: int) -> object:
        return await client(ids[number % ENTITIES]).echo(PAYLOAD)

    return Side(partial(throughput, ask), 0.5, ask)


def asks_of_peer(process: EffectProcess) -> Side:
    """Return a function that makes the peer ask."""

    async def measure(asks: int, in_flight: int) -> float:
        found = await process.do("ask", count=asks, in_flight=in_flight)
        return float(found["per_s"])

    return Side(measure, 0.05)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    space, url = options.namespace, options.database
    with runner_process(url, f"{space}_two", loop=options.loop) as runner:
        async with (
            hub.runner(database_url=url, namespace=space, listen="127.0.0.1:0") as cluster,
            unfenced(url, f"{space}_off") as without,
            hub.connect(gateway=runner.address, namespace=f"{space}_two") as remote,
            durable_limits(url, f"{space}_raw") as limits,
            peer_or_reason(url, space, wanted=options.peer, client=True) as (peer, said),
        ):
            sides = {
                "limit": Side(partial(throughput, limits.insert_only)),
                "delete_on_done": Side(partial(throughput, limits.delete_on_done)),
                "indexed": Side(partial(throughput, limits.delete_indexed)),
                "actorhub": asks_of(cluster),
                "unfenced": asks_of(without),
                "other_process": asks_of(remote),
            }
            if peer is not None and peer.client is not None:
                sides |= {"effect": asks_of_peer(peer.single), "effect_other_process": asks_of_peer(peer.client)}
            result = {"effect": said, **await _compare(options, sides, ASKS)}
            seen = await asyncio.to_thread(runner.ask, "durable")
    slow = await _slow(options)
    return {**result, "flush_1ms": slow, "rss_bytes": rss_bytes(), "runner_rss_bytes": seen["rss_bytes"]}


async def _slow(options: argparse.Namespace) -> dict[str, Any]:
    try:
        async with (
            slow_database() as url,
            hub.runner(database_url=url, namespace="slow", listen="127.0.0.1:0") as cluster,
            durable_limits(url, "slow_raw") as limits,
        ):
            sides = {"limit": Side(partial(throughput, limits.insert_only)), "actorhub": asks_of(cluster)}
            return await _compare(options, sides, SLOW_ASKS)
    except NoShim as reason:
        return {"skipped": str(reason)}


async def _compare(
    options: argparse.Namespace, sides: Mapping[str, Side], lengths: Mapping[int, int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for in_flight, length in lengths.items():
        asks = {name: max(in_flight, int(length * side.share)) for name, side in sides.items()}
        if options.quick:
            asks = {name: max(in_flight, count // 5) for name, count in asks.items()}
        samples = await interleave(
            options.rounds,
            {name: partial(side.measure, asks[name], in_flight) for name, side in sides.items()},
        )
        taken = {
            name: latencies(await timings(side.ask, asks[name], in_flight))
            for name, side in sides.items()
            if side.ask is not None
        }
        result[f"in_flight_{in_flight}"] = {**compared(samples, "per_s"), **_beside(samples), "latency": taken}
    return result


def _beside(samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the ratios to sides other than the limit."""
    found: dict[str, Any] = {}
    for side, other in BESIDE:
        if side in samples and other in samples:
            both = compared({side: samples[side], other: samples[other]}, "per_s", other)
            found |= {name: value for name, value in both.items() if "_of_" in name}
    return found


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    busy, slow = found["in_flight_256"], found["flush_1ms"]
    reached = [
        target("durable ask, of the insert-only cycle", busy["actorhub_of_limit"], at_least=0.5),
        target(
            "durable ask of another process, of the insert-only cycle", busy["other_process_of_limit"], at_least=0.42
        ),
        target("durable ask, of the same without fence", busy["actorhub_of_unfenced"], at_least=0.85),
    ]
    if "actorhub_of_effect" in busy:
        ratio, other = busy["actorhub_of_effect"], busy["other_process_of_effect_other_process"]
        reached += [
            target("durable ask, of Effect's", ratio, at_least=15),
            target("durable ask of another process, of Effect's", other, at_least=15),
        ]
    if "skipped" not in slow:
        some, lone = slow["in_flight_64"], slow["in_flight_1"]
        reached += [
            target(
                "durable ask with a 1 ms flush, 64 in flight, of the cycle", some["actorhub_of_limit"], at_least=0.6
            ),
            target("durable ask with a 1 ms flush, 1 in flight, per second", lone["actorhub_per_s"], at_least=350),
        ]
    return reached


def extend(parser: argparse.ArgumentParser) -> None:
    with_namespace(parser)
    with_peer(parser)


if __name__ == "__main__":
    measured("bench_durable_ask", parse(__doc__, rounds=5, extend=extend), measure, targets)
