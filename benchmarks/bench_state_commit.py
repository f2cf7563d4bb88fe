"""What does an ask that changes state cost, compared with the least work for Postgres, and what does the fence cost?

The limit stores request and reply in one commit: all requests that queue while the last commit is in progress become
one insert with arrays, over one connection. `update` is the same as an update of 1024 rows. `unfenced` is actorhub
without its fence.

    python -m benchmarks.bench_state_commit [--rounds 7] [--in-flight 256] [--loop asyncio|uvloop|both]
"""

import argparse
import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from actorhub.cluster import Cluster
from actorhub.storage.postgres.connection import Connection
from benchmarks._harness import latencies, rss_bytes
from benchmarks._raw_durable import Grouped
from benchmarks._session import measured, parse, target, with_namespace
from benchmarks._unfenced import unfenced
from benchmarks._workload import ENCODED, PAYLOAD, Ask, Counter, compared, hub, interleave, throughput, timings

ENTITIES: Final = 1024
_INSERT: Final = """
    insert into limit_insert (id, request, reply)
    select * from unnest($1::bigint[], $2::bytea[], $3::bytea[])
"""
_UPDATE: Final = """
    update limit_update as x set request = r.request, reply = r.reply
    from unnest($1::bigint[], $2::bytea[], $3::bytea[]) as r (id, request, reply)
    where x.id = r.id
"""
_REPLY: Final = b"x" * 8


async def _tables(connection: Connection, schema: str) -> None:
    await connection.execute(f"create schema {schema}")
    await connection.execute(f"set search_path = {schema}")
    await connection.execute("set plan_cache_mode = force_custom_plan")
    for table in ("limit_insert", "limit_update"):
        await connection.execute(
            f"create table {table} (id bigint primary key, request bytea, reply bytea) with (fillfactor = 80)"
        )
    await connection.execute(f"insert into limit_update (id) select generate_series(0, {ENTITIES - 1})")


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    spaces = [f"{options.namespace}_{part}" for part in ("raw", "off")]
    connection = await asyncpg.connect(options.database)
    try:
        await _tables(connection, spaces[0])
        async with (
            hub.runner(database_url=options.database, namespace=options.namespace, listen="127.0.0.1:0") as cluster,
            unfenced(options.database, spaces[1]) as without,
            asyncio.TaskGroup() as tasks,
        ):
            writers = [Grouped(await connection.prepare(_INSERT))]
            updating = await asyncpg.connect(options.database, server_settings={"search_path": spaces[0],
                                             "plan_cache_mode": "force_custom_plan"})  # fmt: skip
            writers.append(Grouped(await updating.prepare(_UPDATE)))
            running = [tasks.create_task(writer.run()) for writer in writers]
            result = await _compare(options, writers, cluster, without)
            for task in running:
                task.cancel()
        await updating.close()
    finally:
        for space in spaces:
            await connection.execute(f"drop schema if exists {space} cascade")
        await connection.close()
    return {**result, "rss_bytes": rss_bytes()}


async def _compare(
    options: argparse.Namespace, writers: Sequence[Grouped], cluster: Cluster, without: Cluster
) -> dict[str, Any]:
    insert, update = writers
    numbers = itertools.count(1)
    rows = itertools.count(1)
    ids = [f"e{number}" for number in range(ENTITIES)]

    def asks_of(where: Cluster) -> Ask:
        client = where.client(Counter)

        async def ask(number: int) -> object:
            return await client(ids[number % ENTITIES]).add(PAYLOAD)

        return ask

    async def update_next(_: int) -> None:
        await update.write(next(rows) % ENTITIES, ENCODED, _REPLY)

    sides: dict[str, Ask] = {
        "limit": lambda _: insert.write(next(numbers), ENCODED, _REPLY),
        "update": update_next,
        "actorhub": asks_of(cluster),
        "unfenced": asks_of(without),
    }
    asks = 8_000 if options.quick else 40_000
    samples = await interleave(
        options.rounds,
        {side: lambda ask=ask: throughput(ask, asks, options.in_flight) for side, ask in sides.items()},  # type: ignore[misc]
    )
    taken = latencies(await timings(sides["actorhub"], asks, options.in_flight))
    fence = compared({side: samples[side] for side in ("actorhub", "unfenced")}, "per_s", "unfenced")
    lone = latencies(await timings(sides["actorhub"], asks // 40, 1))
    return {
        "in_flight": options.in_flight,
        **compared(samples, "per_s"),
        "actorhub_of_unfenced": fence["actorhub_of_unfenced"],
        "actorhub_of_unfenced_by_round": fence["actorhub_of_unfenced_by_round"],
        **taken,
        "in_flight_1": lone,
    }


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        target("state commit, of one grouped insert", found["actorhub_of_limit"], at_least=0.30),
        target("state commit, of the same without fence", found["actorhub_of_unfenced"], at_least=0.85),
    ]


def extend(parser: argparse.ArgumentParser) -> None:
    with_namespace(parser)
    parser.add_argument("--in-flight", type=int, default=256)


if __name__ == "__main__":
    measured("bench_state_commit", parse(__doc__, rounds=7, extend=extend), measure, targets)
