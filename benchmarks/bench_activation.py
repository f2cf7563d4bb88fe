"""How many entities per second can be activated and asked once?

The limit makes an object, a dictionary entry, a deque and a future for each new id, and answers from one task. Each
round is a fresh process, because every activation of a round stays resident.

    python -m benchmarks.bench_activation [--rounds 5] [--loop asyncio|uvloop|both]
"""

import argparse
import asyncio
import json
from collections import deque
from statistics import median
from typing import Any

from benchmarks._harness import latencies, report, rss_bytes, run
from benchmarks._session import PACKAGES, database, fresh, loops, namespace, parse, target, with_namespace
from benchmarks._workload import PAYLOAD, Echo, Payload, hub, throughput, timings

IN_FLIGHT = 256


class BareHost:
    """Makes an actor for each new id."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._actors: dict[str, deque[tuple[asyncio.Future[Payload], Payload]]] = {}
        self._ready: list[str] = []
        self._wakeup: asyncio.Future[None] | None = None

    def ask(self, actor: str, payload: Payload) -> "asyncio.Future[Payload]":
        reply: asyncio.Future[Payload] = self._loop.create_future()
        self._actors[actor] = deque([(reply, payload)])
        self._ready.append(actor)
        if self._wakeup is not None:
            self._wakeup.set_result(None)
            self._wakeup = None
        return reply

    async def run(self) -> None:
        while True:
            ready, self._ready = self._ready, []
            for actor in ready:
                reply, payload = self._actors[actor].popleft()
                reply.set_result(payload)
            if not self._ready:
                self._wakeup = self._loop.create_future()
                await self._wakeup


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    count = 10_000 if options.quick else 50_000
    settings = {"database_url": options.database, "namespace": options.namespace, "listen": "127.0.0.1:0"}
    async with hub.runner(**settings, max_resident=1_000_000) as cluster, asyncio.TaskGroup() as tasks:
        client = cluster.client(Echo)
        numbers = iter(range(10_000_000))
        bare = BareHost()
        running = tasks.create_task(bare.run())

        async def ours(_: int) -> object:
            return await client(f"a{next(numbers)}").echo(PAYLOAD)

        async def limit(_: int) -> object:
            return await bare.ask(f"a{next(numbers)}", PAYLOAD)

        await throughput(ours, 2_560, IN_FLIGHT)
        await throughput(limit, 2_560, IN_FLIGHT)
        found = {
            "limit": await throughput(limit, count, IN_FLIGHT),
            "actorhub": await throughput(ours, count, IN_FLIGHT),
            "rss_bytes": rss_bytes(),
            **latencies(await timings(ours, 10_240, IN_FLIGHT)),
        }
        running.cancel()
    return found


def main() -> None:
    options = parse(__doc__, rounds=5, extend=with_namespace)
    if options.child:
        print(json.dumps(run(measure(options), options.loop)))
        return
    results: dict[str, Any] = {}
    with database(options.database) as url:
        for loop in loops(options):
            rounds = []
            for _ in range(options.rounds):
                with namespace(url) as schema:
                    rounds.append(fresh("benchmarks.bench_activation", options, loop, url, "--namespace", schema))
            results[loop] = {name: round(median(one[name] for one in rounds), 1) for name in rounds[0]}
            results[loop]["actorhub_of_limit"] = round(results[loop]["actorhub"] / results[loop]["limit"], 3)
    reached = [
        {"loop": loop, **target("activation with first ask, per second", found["actorhub"], at_least=60_000)}
        for loop, found in results.items()
    ]
    report("activation", {"quick": options.quick, "targets": reached, **results}, PACKAGES)


if __name__ == "__main__":
    main()
