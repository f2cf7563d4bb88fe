"""How many durable tells are accepted per second, and how many messages of a backlog run per second?

The limit stores each message in a commit that is shared by all messages that queued in the meantime, and runs nothing.
`accepted` does the same: a runner in this process stores messages whose handlers wait until the sample is over.
`accepted_running` lets the handlers run in the meantime, and `processed` counts until the last one has run. The peer is
Effect's cluster on the same Postgres, whose handlers run in the meantime, too.

The backlog is built in a runner whose handlers wait, and which is then killed. Its successor starts and finds the whole
backlog in Postgres. `drained_per_s` is the rate at which it runs the messages, from the first to the last. Its memory
is sampled in the meantime.

    python -m benchmarks.bench_durable_tell [--rounds 5] [--backlog 100000] [--loop asyncio|uvloop|both] [--no-peer]
"""

import argparse
import asyncio
import itertools
import time
from statistics import median
from typing import Any, Final

from actorhub.cluster import Cluster
from benchmarks._durable import patient, run_log
from benchmarks._effect import EffectProcess, peer_or_reason
from benchmarks._harness import rss_bytes
from benchmarks._raw_durable import durable_limits
from benchmarks._runner import RunnerProcess, runner_process
from benchmarks._session import measured, parse, target, with_namespace, with_peer
from benchmarks._workload import PAYLOAD, Ask, compared, hub, interleave, throughput

ENTITIES: Final = 256
IN_FLIGHT: Final = 256
PATIENCE: Final = 60.0
"""Seconds without a run after which the benchmark fails."""
SETTLED: Final = 0.1
"""Share of the backlog that has run when memory is first sampled. By then entities and caches exist."""

Sample = dict[str, float]


def tells_of(cluster: Cluster, entities: int = ENTITIES) -> Ask:
    """Return a function that tells the durable entities of a cluster."""
    client = patient(cluster)
    ids = [f"e{number}" for number in range(entities)]

    async def tell(number: int) -> object:
        return await cluster.tell(client(ids[number % entities]).take(PAYLOAD))

    return tell


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    space, url = options.namespace, options.database
    async with (
        hub.runner(database_url=url, namespace=space, listen="127.0.0.1:0") as cluster,
        durable_limits(url, f"{space}_raw") as limits,
        peer_or_reason(url, space, wanted=options.peer) as (peer, said),
    ):
        accepted = await _accepted(options, limits.tell, tells_of(cluster), peer.single if peer is not None else None)
    backlog = await _backlog(options, f"{space}_backlog")
    return {"effect": said, "in_flight_256": accepted, "backlog": backlog, "rss_bytes": rss_bytes()}


async def _accepted(options: argparse.Namespace, limit: Ask, ours: Ask, peer: EffectProcess | None) -> dict[str, Any]:
    tells = 8_000 if options.quick else 40_000
    processed: dict[str, list[float]] = {"actorhub": [], "effect": []}

    async def accepted(*, running: bool) -> float:
        before, begin = run_log.told, time.perf_counter()
        if not running:
            run_log.gate.clear()
        rate = await throughput(ours, tells, IN_FLIGHT)
        run_log.gate.set()
        count = tells // IN_FLIGHT * IN_FLIGHT
        if not await run_log.until(before + count, PATIENCE):
            raise TimeoutError(f"{run_log.told - before} of {count} messages ran")
        if running:
            processed["actorhub"].append(count / (time.perf_counter() - begin))
        return rate

    async def accepted_by_peer(process: EffectProcess) -> float:
        found = await process.do("tell", count=tells // 10, in_flight=IN_FLIGHT, seconds=PATIENCE)
        processed["effect"].append(found["processed_per_s"])
        return float(found["per_s"])

    sides = {
        "limit": lambda: throughput(limit, tells, IN_FLIGHT),
        "accepted": lambda: accepted(running=False),
        "accepted_running": lambda: accepted(running=True),
    }
    if peer is not None:
        sides["effect"] = lambda: accepted_by_peer(peer)
    samples = await interleave(options.rounds, sides)
    found = compared(samples, "per_s")
    rates = {side: median(each[1:]) for side, each in processed.items() if each}
    found |= {f"{side}_processed_per_s": round(rate, 1) for side, rate in rates.items()}
    if peer is not None:
        ratio = median(samples["accepted_running"]) / median(samples["effect"])
        found["accepted_running_of_effect"] = round(ratio, 2)
        found["processed_of_effect"] = round(rates["actorhub"] / rates["effect"], 2)
    return found


async def _backlog(options: argparse.Namespace, space: str) -> dict[str, Any]:
    count = 10_000 if options.quick else options.backlog
    with runner_process(options.database, space, loop=options.loop) as first:
        begun = await asyncio.to_thread(first.ask, "shut")
        async with hub.connect(gateway=first.address, namespace=space) as cluster:
            accepted = await throughput(tells_of(cluster, options.entities), count, IN_FLIGHT)
            full = await asyncio.to_thread(first.ask, "durable")
    count = count // IN_FLIGHT * IN_FLIGHT
    started = time.perf_counter()
    with runner_process(options.database, space, loop=options.loop) as second:
        ready = time.perf_counter()
        samples = await _drain(second, count)
    return {
        "messages": count,
        "entities": options.entities,
        "accepted_per_s": round(accepted, 1),
        "accepting_rss_bytes": [begun["rss_bytes"], full["rss_bytes"]],
        "started_seconds": round(ready - started, 3),
        **_drained(samples, count),
    }


async def _drain(runner: RunnerProcess, count: int) -> list[Sample]:
    """Watch a runner until all messages have run, or it makes no progress."""
    samples: list[Sample] = [await asyncio.to_thread(runner.ask, "durable")]
    moved = samples[0]
    while samples[-1]["told"] < count and samples[-1]["time"] - moved["time"] < PATIENCE:
        await asyncio.sleep(0.1)
        samples.append(await asyncio.to_thread(runner.ask, "durable"))
        if samples[-1]["told"] > moved["told"]:
            moved = samples[-1]
    return samples


def _drained(samples: list[Sample], count: int) -> dict[str, Any]:
    last = next((one for one in samples if one["told"] >= count), samples[-1])
    first = next((one for one in samples if one["told"]), last)
    seconds = last["time"] - samples[0]["time"]
    settled = next((one for one in samples if one["told"] >= SETTLED * count), last)
    largest = max(one["rss_bytes"] for one in samples if one["time"] >= settled["time"])
    rates = [
        round((after["told"] - before["told"]) / (after["time"] - before["time"]))
        for before, after in itertools.pairwise(_quarters(samples, count))
        if after["time"] > before["time"]
    ]
    return {
        "ran": last["told"],
        "waited_seconds": round(first["time"] - samples[0]["time"], 3),
        "drained_seconds": round(seconds, 3),
        "drained_per_s": round(last["told"] / seconds, 1) if seconds else 0.0,
        "drained_per_s_by_quarter": rates,
        "draining_rss_bytes": {
            "start": samples[0]["rss_bytes"],
            "settled": settled["rss_bytes"],
            "largest": largest,
            "end": last["rss_bytes"],
        },
        "rss_largest_of_settled": round(largest / settled["rss_bytes"], 3),
    }


def _quarters(samples: list[Sample], count: int) -> list[Sample]:
    """Return the first sample at which each quarter of the backlog had run."""
    bounds = [quarter * count / 4 for quarter in range(5)]
    return [next((one for one in samples if one["told"] >= bound), samples[-1]) for bound in bounds]


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    busy, backlog = found["in_flight_256"], found["backlog"]
    return [
        target("durable tell accepted, of one grouped insert", busy["accepted_of_limit"], at_least=0.45),
        target(f"backlog of {backlog['messages']:,}, run per second", backlog["drained_per_s"], at_least=20_000),
        target("backlog, share of its messages that ran", backlog["ran"] / backlog["messages"], at_least=1),
        target("backlog, memory at most, of that after a tenth", backlog["rss_largest_of_settled"], at_most=1.2),
    ]


def extend(parser: argparse.ArgumentParser) -> None:
    with_namespace(parser)
    with_peer(parser)
    parser.add_argument("--backlog", type=int, default=100_000, metavar="MESSAGES")
    parser.add_argument("--entities", type=int, default=1_000, help="number of entities in the backlog")


if __name__ == "__main__":
    measured("bench_durable_tell", parse(__doc__, rounds=5, extend=extend), measure, targets)
