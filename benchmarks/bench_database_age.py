"""What does a durable ask cost in the first minute of a database, and while somebody holds an old snapshot?

Each round has a schema of its own. `fresh` is measured as soon as the runner has its shards, before anything was
analyzed, and `settled` after `vacuum analyze`. Then another connection takes a snapshot and keeps it, as a long report
or a dump does, and nothing that is settled from then on can be vacuumed. `old_snapshot` is measured after `--dead` more
asks. Those with `state` are the same with asks that change the state of their entity, of which every version is kept.

    python -m benchmarks.bench_database_age [--rounds 5] [--dead 200000] [--loop asyncio|uvloop|both]
"""

import argparse
import contextlib
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any, Final

import asyncpg

from actorhub import Entity, handler
from actorhub.cluster import Cluster
from benchmarks._durable import LONGEST_WAIT, patient
from benchmarks._session import measured, parse, target, with_namespace
from benchmarks._workload import PAYLOAD, Ask, Count, Payload, compared, hub, throughput

ENTITIES: Final = 256
IN_FLIGHT: Final = 256
ASKS: Final = 10_000
"""Asks in a sample."""


class DurableCounter(Entity[Count], name="durable_counter", max_idle=timedelta(hours=1)):
    """An entity whose durable messages change its state, of about 100 bytes."""

    @handler(durable=True)
    async def add(self, payload: Payload) -> int:
        self.state.number += 1
        self.state.last = payload
        return self.state.number


hub.register(DurableCounter)


def asks_of(cluster: Cluster) -> dict[str, Ask]:
    """Return the asks that are measured, by the beginning of their sides' names."""
    plain, counting = patient(cluster), cluster.client(DurableCounter).options(timeout=LONGEST_WAIT)

    async def echo(number: int) -> object:
        return await plain(f"e{number % ENTITIES}").echo(PAYLOAD)

    async def add(number: int) -> object:
        return await counting(f"e{number % ENTITIES}").add(PAYLOAD)

    return {"": echo, "state_": add}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    asks, dead = (ASKS // 5, options.dead // 40) if options.quick else (ASKS, options.dead)
    samples: dict[str, list[float]] = {}
    for number in range(options.rounds):
        space = f"{options.namespace}_{number}"
        async with (
            _connected(options.database) as sql,
            hub.runner(database_url=options.database, namespace=space, listen="127.0.0.1:0") as cluster,
        ):
            for name, ask in asks_of(cluster).items():
                await throughput(ask, ENTITIES * 4, IN_FLIGHT)
                sample = [await throughput(ask, asks, IN_FLIGHT)]
                await sql.execute("vacuum analyze")
                sample.append(await throughput(ask, asks, IN_FLIGHT))
                async with _connected(options.database) as reader:
                    await reader.execute("begin isolation level repeatable read")
                    await reader.execute("select 1")
                    await throughput(ask, dead, IN_FLIGHT)
                    sample.append(await throughput(ask, asks, IN_FLIGHT))
                await sql.execute("vacuum analyze")
                for side, value in zip(("fresh", "settled", "old_snapshot"), sample, strict=True):
                    samples.setdefault(f"{name}{side}", []).append(value)
    result: dict[str, Any] = {}
    for name in ("", "state_"):
        sides = {side: values for side, values in samples.items() if side.startswith("state_") == bool(name)}
        result |= compared(sides, "per_s", f"{name}settled")
    return {"asks_under_the_snapshot": dead, **result}


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]", None]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        target("durable ask in the first minute, of the settled figure", found["fresh_of_settled"], at_least=0.9),
        target(
            "durable ask under an old snapshot, of the settled figure", found["old_snapshot_of_settled"], at_least=0.6
        ),
    ]


def extend(parser: argparse.ArgumentParser) -> None:
    with_namespace(parser)
    parser.add_argument("--dead", type=int, default=200_000, help="asks between the snapshot and its sample")


if __name__ == "__main__":
    measured("bench_database_age", parse(__doc__, rounds=5, extend=extend), measure, targets)
