"""How many chunks per second do 16 streams between two processes carry, compared with one bare gRPC stream?

The limit sends full frames of encoded chunks, without credit, to 16 tasks that decode nothing.

    python -m benchmarks.bench_stream_chunks [--rounds 7] [--loop asyncio|uvloop|both]
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from benchmarks._harness import rss_bytes
from benchmarks._raw import raw_chunks
from benchmarks._runner import runner_process
from benchmarks._session import measured, parse, target, with_namespace
from benchmarks._workload import Source, compared, hub, interleave

STREAMS = 16


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    scale = 0.2 if options.quick else 1.0
    counts = {"limit": int(30_000 * scale), "actorhub": int(8_000 * scale)}
    with runner_process(options.database, options.namespace, loop=options.loop, raw=True) as runner:
        async with (
            hub.connect(gateway=runner.address, namespace=options.namespace) as cluster,
            grpc.aio.insecure_channel(runner.raw) as channel,
        ):
            client = cluster.client(Source)

            async def consume(stream: int) -> None:
                got = 0
                async for _ in client(f"s{stream}").items(counts["actorhub"]):
                    got += 1
                assert got == counts["actorhub"]

            async def ours() -> None:
                async with asyncio.TaskGroup() as tasks:
                    for stream in range(STREAMS):
                        tasks.create_task(consume(stream))

            samples = await interleave(
                options.rounds,
                {
                    "limit": lambda: _rate(lambda: raw_chunks(channel, STREAMS, counts["limit"]), counts["limit"]),
                    "actorhub": lambda: _rate(ours, counts["actorhub"]),
                },
            )
        return {**compared(samples, "chunks_per_s"), "rss_bytes": rss_bytes(),
                "runner_rss_bytes": runner.ask("statistics")["rss_bytes"]}  # fmt: skip


async def _rate(work: Callable[[], Awaitable[None]], count: int) -> float:
    gc.collect()
    begin = time.perf_counter()
    await work()
    return STREAMS * count / (time.perf_counter() - begin)


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the target: 200,000 chunks per second, or half of the raw stream."""
    if found["actorhub_chunks_per_s"] >= 200_000:
        return [target("stream chunks per second", found["actorhub_chunks_per_s"], at_least=200_000)]
    return [target("stream chunks, of the raw stream", found["actorhub_of_limit"], at_least=0.5)]


if __name__ == "__main__":
    measured("bench_stream_chunks", parse(__doc__, rounds=7, extend=with_namespace), measure, targets)
