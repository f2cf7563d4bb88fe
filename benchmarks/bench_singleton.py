"""How soon does a singleton have a new leader after its leader is killed, and how fast are the steps of its `run`?

- takeover: three runner processes, and SIGKILL of the leader. Measures the time until the next leader answers an ask,
  and until the first step of its `run` is committed. The limit is the time until Postgres gives the advisory locks of a
  killed holder to a session that waits for them.
- steps: one after the other, in a runner in this process. `step` stores a small result, `step_with_sql` also inserts a
  row of the user's, and `save` commits the state. The limits, over asyncpg and nothing else, are one insert per commit,
  and two inserts in a transaction.

    python -m benchmarks.bench_singleton [--kills 50] [--rounds 5] [--loop asyncio|uvloop|both]
"""

import argparse
import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Final

import asyncpg

from actorhub.cluster import Cluster
from actorhub.core.errors import ActorhubError
from benchmarks._harness import percentile, rss_bytes
from benchmarks._killed_lock import killed_lock_seconds
from benchmarks._runner import RunnerProcess
from benchmarks._session import measured, parse, target, with_namespace
from benchmarks._singleton import ROW, TABLE, Leading, Worker, desk, hub
from benchmarks._workload import compared, interleave

RUNNERS: Final = 3
HUB: Final = "benchmarks._singleton:hub"
STEPS: Final = 1_000
REIGN: Final = 0.5
"""The longest time in seconds for which a leader is left alone before it is killed."""
PAUSE: Final = 0.002
DATA: Final = b"x" * 100


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    steps = await _steps(options)
    return {"takeover": await _takeovers(options), "steps": steps, "rss_bytes": rss_bytes()}


async def _takeovers(options: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(options.seed)
    kills = options.kills or (3 if options.quick else 50)
    url, space = options.database, f"{options.namespace}_three"
    answered: list[float] = []
    worked: list[float] = []
    limits: list[float] = []
    async with _runners(url, space, options.loop) as (cluster, runners):
        for _ in range(kills):
            await _leader(cluster)
            await asyncio.sleep(chance.uniform(0, REIGN))
            leader = await _leader(cluster)
            victim = next(one for one in runners if one.incarnation == leader.incarnation)
            since = victim.signal(signal.SIGKILL)
            await _leader(cluster, victim.incarnation)
            answered.append(time.perf_counter() - since)
            await _leader(cluster, victim.incarnation, works=True)
            worked.append(time.perf_counter() - since)
            await _replace(url, space, options.loop, (runners, victim))
            limits.append(await killed_lock_seconds(url))
    return {
        "kills": kills,
        "first_answer": _seconds(answered),
        "first_step": _seconds(worked),
        "limit_lock_of_a_killed_holder": _seconds(limits),
    }


@contextlib.asynccontextmanager
async def _runners(url: str, space: str, loop: str) -> AsyncGenerator[tuple[Cluster, list[RunnerProcess]], None]:
    runners: list[RunnerProcess] = []
    try:
        for _ in range(RUNNERS):
            runners.append(RunnerProcess(url, space, loop=loop, hub=HUB))
            await asyncio.to_thread(runners[-1].wait_ready)
        async with hub.connect(database_url=url, namespace=space) as cluster:
            yield cluster, runners
    finally:
        for runner in runners:
            runner.end()


async def _replace(url: str, space: str, loop: str, place: tuple[list[RunnerProcess], RunnerProcess]) -> None:
    """Replace a runner that has ended with a new one."""
    runners, ended = place
    ended.end()
    fresh = RunnerProcess(url, space, loop=loop, hub=HUB)
    runners[runners.index(ended)] = fresh
    await asyncio.to_thread(fresh.wait_ready)


async def _leader(cluster: Cluster, former: str = "", *, works: bool = False) -> Leading:
    """Ask until a runner other than `former` answers, and if wanted, until it has committed a step."""
    worker = cluster.singleton(Worker)
    while True:
        try:
            leading = await worker.leading()
            if leading.incarnation != former and leading.works >= works:
                return leading
        except ActorhubError:
            pass  # nobody leads yet: ask again
        await asyncio.sleep(PAUSE)


async def _steps(options: argparse.Namespace) -> dict[str, Any]:
    count = STEPS // 5 if options.quick else STEPS
    url, space = options.database, options.namespace
    desk.open()
    desk.table = f"{space}.mine"
    raw = await asyncpg.connect(url)
    try:
        async with hub.runner(database_url=url, namespace=space, listen="127.0.0.1:0") as cluster:
            await _leader(cluster)
            for table in ("mine", "raw_one", "raw_two"):
                await raw.execute(TABLE.format(f"{space}.{table}"))
            samples = await interleave(
                options.rounds,
                {
                    "limit": partial(_raw_rate, raw, space, count),
                    "limit_two": partial(_raw_rate_two, raw, space, count),
                    **{kind: partial(desk.rate, kind, count) for kind in ("step", "step_with_sql", "save")},
                },
            )
    finally:
        await raw.close()
    both = compared({side: samples[side] for side in ("limit_two", "step_with_sql")}, "per_s", "limit_two")
    return {"in_a_row": count, **compared(samples, "per_s"), **{n: v for n, v in both.items() if "_of_limit_two" in n}}


async def _raw_rate(raw: "asyncpg.Connection[asyncpg.Record]", space: str, count: int) -> float:
    statement = await raw.prepare(ROW.format(f"{space}.raw_one"))
    begin = time.perf_counter()
    for number in range(count):
        await statement.fetch(number, DATA)
    return count / (time.perf_counter() - begin)


async def _raw_rate_two(raw: "asyncpg.Connection[asyncpg.Record]", space: str, count: int) -> float:
    statements = [await raw.prepare(ROW.format(f"{space}.{table}")) for table in ("raw_one", "raw_two")]
    begin = time.perf_counter()
    for number in range(count):
        async with raw.transaction():
            for statement in statements:
                await statement.fetch(number, DATA)
    return count / (time.perf_counter() - begin)


def _seconds(values: list[float]) -> dict[str, float]:
    shares = {"p50_s": 0.5, "p99_s": 0.99}
    found = {name: round(percentile(values, share), 4) for name, share in shares.items()}
    return {**found, "max_s": round(max(values), 4), "n": len(values)}


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    takeover, steps = found["takeover"], found["steps"]
    return [
        target("next leader's first step after SIGKILL, p50", takeover["first_step"]["p50_s"], at_most=0.3),
        target("next leader's first step after SIGKILL, p99", takeover["first_step"]["p99_s"], at_most=1.0),
        target("next leader's first answer after SIGKILL, p99", takeover["first_answer"]["p99_s"], at_most=1.0),
        target("steps with SQL, of two inserts in a transaction", steps["step_with_sql_of_limit_two"], at_least=0.25),
    ]


def extend(parser: argparse.ArgumentParser) -> None:
    with_namespace(parser)
    parser.add_argument("--kills", type=int, help="default 50, quick: 3")
    parser.add_argument("--seed", type=int, default=1, help="seed for the times of the kills")


if __name__ == "__main__":
    measured("bench_singleton", parse(__doc__, rounds=5, extend=extend), measure, targets)
