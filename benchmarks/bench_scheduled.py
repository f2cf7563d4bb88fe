"""How late are durable messages with a due time, and is one ever early?

- `same_second`: thousands of messages to 256 entities that are due at the same moment, and were stored some seconds
  before.
- `paced`: a hundred messages each second.
- `every_second`: a handler that tells itself a message for the next second each time it runs.

Lateness is the time from the due time of a message to the start of its handler. The peer is Effect's cluster on the
same Postgres with its default settings, which polls for due messages every ten seconds.

    python -m benchmarks.bench_scheduled [--rounds 10] [--messages 10000] [--loop asyncio|uvloop|both] [--no-peer]
"""

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any, Final

from actorhub.cluster import Cluster
from benchmarks._durable import Durable, lateness, moment, run_log
from benchmarks._effect import EffectProcess, peer_or_reason
from benchmarks._harness import rss_bytes
from benchmarks._session import measured, parse, target, with_namespace, with_peer
from benchmarks._workload import hub, throughput

ENTITIES: Final = 256
IN_FLIGHT: Final = 256
AHEAD: Final = 3.0
"""Seconds in which messages are stored before the first is due."""
PATIENCE: Final = 30.0
"""Seconds after which a message that has not run is considered lost."""
PEER_ROUNDS: Final = 2
PEER_AHEAD: Final = 8.0
"""The peer gets fewer messages, because it stores fewer per second."""


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    messages = 1_000 if options.quick else options.messages
    bursts: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    late: list[float] = []
    async with (
        hub.runner(database_url=options.database, namespace=options.namespace, listen="127.0.0.1:0") as cluster,
        peer_or_reason(options.database, options.namespace, wanted=options.peer) as (peer, said),
    ):
        for number in range(options.rounds):
            bursts.append(await _burst(cluster, messages, over=0.0))
            late += run_log.late
            if peer is not None and number < PEER_ROUNDS:
                peers.append(await _peer_burst(peer.single, messages))
        seconds = 3 if options.quick else 20
        paced = await _burst(cluster, 100 * seconds, over=float(seconds))
        ticks = await _ticks(cluster, 3 if options.quick else 15)
    return {
        "same_second": {"messages": messages, "all": lateness(late), "rounds": bursts},
        "paced": {"messages": 100 * seconds, **paced},
        "every_second": ticks,
        "effect": {**said, "same_second": peers},
        "rss_bytes": rss_bytes(),
    }


async def _burst(cluster: Cluster, messages: int, *, over: float) -> dict[str, Any]:
    """Tell `messages` whose due times are spread over some seconds. Return how late they ran."""
    run_log.late.clear()
    client = cluster.client(Durable)
    first = math.ceil(time.time() + AHEAD)
    spread = over / messages

    async def tell(number: int) -> None:
        due = first + number * spread
        await cluster.tell(client(f"e{number % ENTITIES}").remind(due), deliver_at=moment(due))

    numbers = iter(range(messages))

    async def tell_next(_: int) -> None:
        for number in numbers:
            await tell(number)

    begin = time.perf_counter()
    await throughput(tell_next, IN_FLIGHT, IN_FLIGHT)
    stored = time.perf_counter() - begin
    ahead = first - time.time()
    await run_log.until(messages, ahead + over + PATIENCE, timed=True)
    return {
        "stored_per_s": round(messages / stored, 1),
        "stored_ahead_ms": round(ahead * 1e3),
        "ran": len(run_log.late),
        **lateness(run_log.late),
    }


async def _ticks(cluster: Cluster, count: int) -> dict[str, Any]:
    """Let a handler tell itself a message every second. Return how late it ran."""
    run_log.late.clear()
    due = math.ceil(time.time() + 1.0)
    await cluster.tell(cluster.client(Durable)("clock").tick(float(due), count), deliver_at=moment(due))
    await run_log.until(count, count + PATIENCE, timed=True)
    return {"seconds": count, "ran": len(run_log.late), **lateness(run_log.late)}


async def _peer_burst(process: EffectProcess, messages: int) -> dict[str, Any]:
    found = await process.do("remind", count=messages, ahead=PEER_AHEAD * 1e3, over=0, seconds=PATIENCE)
    late: Sequence[float] = [one / 1e3 for one in found["late_ms"]]
    return {"stored_ahead_ms": found["stored_ahead_ms"], "ran": len(late), **(lateness(late) if late else {})}


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    burst, paced, ticks = found["same_second"], found["paced"], found["every_second"]
    ran = sum(one["ran"] for one in burst["rounds"]) / (burst["messages"] * len(burst["rounds"]))
    early = burst["all"]["early"] + paced["early"] + ticks["early"]
    same = f"{burst['messages']:,} due at once"
    return [
        target(f"{same}, share that ran", ran, at_least=1),
        target(f"{same}, the last, ms late", burst["all"]["max_ms"], at_most=1000),
        target(f"{same}, p99, ms late", burst["all"]["p99_ms"], at_most=500),
        target("100 due each second, p99, ms late", paced["p99_ms"], at_most=50),
        target("early, of all", early, at_most=0),
        target("every second for a while, share of the seconds", ticks["ran"] / ticks["seconds"], at_least=1),
        target("every second for a while, ms late at most", ticks["max_ms"], at_most=500),
    ]


def extend(parser: argparse.ArgumentParser) -> None:
    with_namespace(parser)
    with_peer(parser)
    parser.add_argument("--messages", type=int, default=10_000, help="number of messages that are due at once")


if __name__ == "__main__":
    measured("bench_scheduled", parse(__doc__, rounds=10, extend=extend), measure, targets)
