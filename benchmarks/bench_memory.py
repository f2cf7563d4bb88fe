"""How many bytes does an idle resident entity without state take?

`rss` is the growth of the process by this number of entities. `traced` is what Python's allocator handed out for them,
measured by tracemalloc in another process. `sizeof` is the sum over the objects that only the entity refers to. The
limit is a dictionary from id to an instance of the same class, and nothing else.

    python -m benchmarks.bench_memory [--entities 100000]
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from actorhub.cluster import part_of
from actorhub.engine.runner import Runner
from benchmarks._harness import report, rss_bytes, run
from benchmarks._session import PACKAGES, database, fresh, namespace, parse, target
from benchmarks._workload import PAYLOAD, Echo, hub

WARM = 2_000


def rss_now() -> int:
    """Return the present resident size, or the largest so far if the system does not report the present one."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def used(how: str) -> int:
    gc.collect()
    return rss_now() if how == "rss" else tracemalloc.get_traced_memory()[0]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = {"database_url": options.database, "namespace": options.namespace, "listen": "127.0.0.1:0"}
    async with hub.runner(**settings, max_resident=1_000_000) as cluster:
        part = part_of(cluster)
        assert isinstance(part, Runner)
        client = cluster.client(Echo)

        async def touch(begin: int, end: int) -> None:
            for number in range(begin, end):
                await client(f"customer-{number:08}").echo(PAYLOAD)

        await touch(0, WARM)
        if options.how == "traced":
            tracemalloc.start()
        before = used(options.how)
        total = options.entities
        async with asyncio.TaskGroup() as tasks:
            for caller in range(64):
                tasks.create_task(touch(WARM + total * caller // 64, WARM + total * (caller + 1) // 64))
        grown = used(options.how) - before
        assert part.host.residents.count == total + WARM
        return {"bytes_each": grown / total, "sizeof": _sizeof(part)}


def _sizeof(part: Runner) -> int:
    """Return the size of one entity's own objects, including headers of the garbage collector, without shared ones."""
    cell = next(iter(part.host.types["echo"].cells.values()))
    own = [cell, cell.entity_id, cell.instance, vars(cell.instance)]
    return sum(sys.getsizeof(one) for one in own)


async def limit(options: argparse.Namespace) -> dict[str, Any]:
    if options.how == "traced":
        tracemalloc.start()
    before = used(options.how)
    instances = {f"customer-{number:08}": Echo() for number in range(options.entities)}
    return {"bytes_each": (used(options.how) - before) / len(instances), "sizeof": 0}


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entities", type=int, default=100_000)
    for name in ("--namespace", "--how", "--side"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)


def main() -> None:
    options = parse(__doc__, rounds=1, extend=extend)
    if options.child:
        print(json.dumps(run(limit(options) if options.side == "limit" else measure(options), options.loop)))
        return
    found: dict[str, Any] = {"entities": options.entities}
    with database(options.database) as url:
        for how in ("rss", "traced"):
            for side in ("limit", "actorhub"):
                with namespace(url) as schema:
                    more = ["--namespace", schema, "--how", how, "--side", side, "--entities", str(options.entities)]
                    one = fresh("benchmarks.bench_memory", options, "asyncio", url, *more)
                found.setdefault(side, {})[f"{how}_bytes_each"] = round(one["bytes_each"], 1)
                found[side]["sizeof_bytes_each"] = one["sizeof"]
    reached = [target("bytes of an idle entity", found["actorhub"]["rss_bytes_each"], at_most=1024)]
    report("memory", {"quick": options.quick, "targets": reached, **found}, PACKAGES)


if __name__ == "__main__":
    main()
