"""How long do shards have no owner that answers when a runner is killed, frozen, or asked to leave?

Three runner processes with default settings own 300 shards. This process is their client, and has one entity per shard.

- kill: SIGKILL of one runner. Measures for each of its shards the time until another runner answers an ask. The limit
  is the time until Postgres gives the advisory locks of a killed holder to a session that waits for them.
- freeze: SIGSTOP of one runner while it is busy with state changes and has handlers that wait. Measures the same times.
  Then SIGCONT: what the runner still tries to commit must be refused, and its successors' data must stay as it is.
- drain: SIGTERM of one runner while each shard is asked all the time. Measures the longest wait of each shard's
  callers, and counts errors.

    python -m benchmarks.bench_takeover [--kills 100] [--freezes 5] [--drains 10] [--loop uvloop] [--locks lease]
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter as Tally
from collections.abc import AsyncGenerator
from datetime import timedelta
from statistics import median
from typing import Any, Final

import asyncpg

from actorhub.client import Client
from actorhub.cluster import Cluster
from actorhub.core.errors import ActorhubError
from benchmarks._frozen import freeze_once
from benchmarks._harness import percentile, report, run
from benchmarks._killed_lock import killed_lock_seconds
from benchmarks._runner import RunnerProcess
from benchmarks._session import PACKAGES, database, namespace, parse, target
from benchmarks._workload import PAYLOAD, Counter, hub

RUNNERS: Final = 3
SHARDS: Final = 300
SETTLE_SECONDS: Final = 60.0
PACE: Final = 0.04
"""Seconds between two asks of one shard while a runner drains."""


class World:
    """The runner processes, a client, and one entity id per shard."""

    def __init__(self, url: str, space: str, loop: str, cluster: Cluster, runners: list[RunnerProcess]) -> None:
        self.url, self.space, self.loop = url, space, loop
        self.cluster = cluster
        self.runners = runners
        self.patient: Client[Counter] = cluster.client(Counter).options(timeout=timedelta(seconds=15))
        self.ids: dict[int, str] = {}
        number = 0

        while len(self.ids) < SHARDS:
            number += 1
            self.ids.setdefault(cluster.shard_of(Counter, f"c{number}").number, f"c{number}")

    async def owners(self) -> dict[int, str]:
        """Return the incarnation that owns each shard, according to Postgres."""
        connection = await asyncpg.connect(self.url)
        try:
            rows = await connection.fetch(f"select number, owner_incarnation from {self.space}.shard")
        finally:
            await connection.close()
        return {number: incarnation for number, incarnation in rows if incarnation is not None}

    async def settled(self) -> dict[int, str]:
        """Wait until all runners own their share and every shard answers. Return the owners."""
        live = {runner.incarnation for runner in self.runners}
        deadline = time.perf_counter() + SETTLE_SECONDS
        shares: Tally[str] = Tally()
        while time.perf_counter() < deadline:
            owners = await self.owners()
            shares = Tally(owners.values())
            if len(owners) == SHARDS and set(shares) == live and max(shares.values()) <= SHARDS // RUNNERS + 1:
                async with asyncio.TaskGroup() as tasks:
                    for entity in self.ids.values():
                        tasks.create_task(self.answered(entity, ""))
                return owners
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the shards are not spread evenly after {SETTLE_SECONDS:g} s: {shares}")

    async def answered(self, entity: str, former: str) -> float:
        """Ask until a runner other than `former` answers. Return the time, by `time.perf_counter`."""
        while True:
            try:
                if await self.patient(entity).where() != former:
                    return time.perf_counter()
            except ActorhubError:
                await asyncio.sleep(0.002)

    async def replace(self, runner: RunnerProcess) -> None:
        """Replace a runner that has ended with a new one."""
        runner.end()
        fresh = RunnerProcess(self.url, self.space, loop=self.loop)
        self.runners[self.runners.index(runner)] = fresh
        await asyncio.to_thread(fresh.wait_ready)

    async def until_answered(self, shards: list[int], former: str, since: float) -> list[float]:
        """Return for each shard the seconds from `since` to the first answer of another owner."""
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(self.answered(self.ids[shard], former)) for shard in shards]
        return [task.result() - since for task in asking]


@contextlib.asynccontextmanager
async def world(url: str, space: str, loop: str) -> AsyncGenerator[World, None]:
    runners: list[RunnerProcess] = []
    try:
        for _ in range(RUNNERS):
            runners.append(RunnerProcess(url, space, loop=loop))
            await asyncio.to_thread(runners[-1].wait_ready)
        async with hub.connect(database_url=url, namespace=space) as cluster:
            await cluster.client(Counter)("first").where()
            yield World(url, space, loop, cluster, runners)
    finally:
        for runner in runners:
            runner.end()


async def kills(here: World, count: int, chance: random.Random) -> dict[str, Any]:
    """Kill one runner after the other."""
    shards: list[float] = []
    worst: list[float] = []
    limits: list[float] = []
    for number in range(count):
        owners = await here.settled()
        victim = chance.choice(here.runners)
        lost = [shard for shard, owner in owners.items() if owner == victim.incarnation]
        times = await here.until_answered(lost, victim.incarnation, victim.signal(signal.SIGKILL))
        shards += times
        worst.append(max(times))
        _note(f"kill {number + 1}/{count}: {len(lost)} shards, median {median(times):.3f} s, last {max(times):.3f} s")
        await here.replace(victim)
        limits.append(await killed_lock_seconds(here.url))
    return {
        "kills": count,
        "each_shard": _seconds(shards),
        "last_shard_of_a_kill": _seconds(worst),
        "limit_lock_of_a_killed_holder": _seconds(limits),
    }


async def freezes(here: World, count: int, chance: random.Random) -> dict[str, Any]:
    """Freeze and thaw one runner after the other."""
    shards: list[float] = []
    rounds: list[dict[str, Any]] = []
    for number in range(count):
        owners = await here.settled()
        victim = chance.choice(here.runners)
        lost = [shard for shard, owner in owners.items() if owner == victim.incarnation]
        times, found = await freeze_once(here, victim, lost)
        shards += times
        rounds.append({"last_shard_s": round(max(times), 3), **found})
        _note(f"freeze {number + 1}/{count}: last shard {max(times):.3f} s, {found}")
    totals = {name: sum(one[name] for one in rounds) for name in rounds[0] if name != "last_shard_s"}
    return {"freezes": count, "each_shard": _seconds(shards), **totals, "rounds": rounds,
            "limit_idle_session_timeout_s": 4.0}  # fmt: skip


async def drains(here: World, count: int, chance: random.Random) -> dict[str, Any]:
    """Drain one runner after the other under constant asks."""
    stalls: list[float] = []
    usual: list[float] = []
    errors: list[str] = []
    codes: list[int] = []
    asks = 0
    for number in range(count):
        owners = await here.settled()
        victim = chance.choice(here.runners)
        lost = {shard for shard, owner in owners.items() if owner == victim.incarnation}
        watch = Watch(here)
        async with asyncio.TaskGroup() as tasks:
            for shard, entity in here.ids.items():
                tasks.create_task(watch.ask_on(shard, entity))
            await asyncio.sleep(2.0)
            usual += watch.longest_waits(lost)
            victim.signal(signal.SIGTERM)
            codes.append(await asyncio.to_thread(victim.wait, 30))
            await asyncio.sleep(0.5)
            stalls += watch.longest_waits(lost)
            watch.stop = True
        errors += watch.errors
        asks += watch.asks
        _note(f"drain {number + 1}/{count}: longest waits {_seconds(stalls)}, errors {len(watch.errors)}")
        await here.replace(victim)
    return {
        "drains": count,
        "longest_wait_of_each_moved_shard": _seconds(stalls),
        "limit_the_same_before_the_drain": _seconds(usual),
        "asks": asks,
        "errors": len(errors),
        "first_errors": errors[:5],
        "exit_codes": codes,
    }


class Watch:
    """Asks every shard again and again, and records the longest wait of each."""

    def __init__(self, here: World) -> None:
        self._client = here.cluster.client(Counter)
        self._longest: dict[int, float] = {}
        self.errors: list[str] = []
        self.asks = 0
        self.stop = False

    async def ask_on(self, shard: int, entity: str) -> None:
        """Ask until stopped."""
        await asyncio.sleep(random.random() * PACE)
        while not self.stop:
            begin = time.perf_counter()
            try:
                await self._client(entity).add(PAYLOAD)
            except ActorhubError as error:
                self.errors.append(f"{type(error).__name__}: {error}"[:200])
            self.asks += 1
            self._longest[shard] = max(self._longest.get(shard, 0.0), time.perf_counter() - begin)
            await asyncio.sleep(PACE)

    def longest_waits(self, shards: set[int]) -> list[float]:
        """Return the longest wait of each of these shards since the last call, in seconds."""
        found, self._longest = self._longest, {}
        return [wait for shard, wait in found.items() if shard in shards]


def _seconds(values: list[float]) -> dict[str, float]:
    shares = {"p50_s": 0.5, "p99_s": 0.99, "p999_s": 0.999}
    found = {name: round(percentile(values, share), 4) for name, share in shares.items()}
    return {**found, "max_s": round(max(values), 4), "n": len(values)}


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def measure(options: argparse.Namespace, url: str, space: str, loop: str) -> dict[str, Any]:
    chance = random.Random(options.seed)
    found: dict[str, Any] = {}
    parts = (("kill", kills, options.kills), ("freeze", freezes, options.freezes), ("drain", drains, options.drains))
    async with world(url, space, loop) as here:
        for name, part, count in parts:
            if count:
                found[name] = await part(here, count, chance)
    return found


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    reached: list[dict[str, Any]] = []
    if kill := found.get("kill"):
        reached += [
            target("takeover after SIGKILL, p50 of shards", kill["each_shard"]["p50_s"], at_most=0.3),
            target("takeover after SIGKILL, p99 of shards", kill["each_shard"]["p99_s"], at_most=1.0),
            target("last shard after SIGKILL, p99 of kills", kill["last_shard_of_a_kill"]["p99_s"], at_most=1.0),
        ]
    if freeze := found.get("freeze"):
        reached += [
            target("takeover after SIGSTOP, p99 of shards", freeze["each_shard"]["p99_s"], at_most=5.0),
            target("takeover after SIGSTOP, max", freeze["each_shard"]["max_s"], at_most=10.0),
            target("commits of thawed runners that were refused", freeze["refused"], at_least=1),
            target("commits forced past a thawed runner's checks: refused", freeze["forced_refused"], at_least=1),
            target("commits forced past a thawed runner's checks: accepted", freeze["forced_accepted"], at_most=0),
            target("rows that thawed runners changed", freeze["rows_changed"], at_most=0),
        ]
    if drain := found.get("drain"):
        stall = drain["longest_wait_of_each_moved_shard"]["p99_s"]
        reached += [
            target("longest wait during a hand-over, p99 of shards", stall, at_most=0.25),
            target("errors during hand-overs", drain["errors"], at_most=0),
        ]
    return reached


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, help="default 100, quick: 2")
    parser.add_argument("--freezes", type=int, help="default 5, quick: 1")
    parser.add_argument("--drains", type=int, help="default 10, quick: 1")
    parser.add_argument("--seed", type=int, default=1, help="seed for the choice of victims")
    parser.add_argument(
        "--locks", choices=("session", "lease"), default="session", help="how runners hold their shards"
    )


def main() -> None:
    options = parse(__doc__, rounds=1, extend=extend)
    for name, usual, quick in (("kills", 100, 2), ("freezes", 5, 1), ("drains", 10, 1)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    os.environ["ACTORHUB_LOCKS"] = options.locks
    loop = "uvloop" if options.loop == "both" else options.loop
    with database(options.database) as url, namespace(url) as space:
        found = run(measure(options, url, space, loop), loop)
    reached = [{"loop": loop, **one} for one in targets(found)]
    options_used = {"quick": options.quick, "seed": options.seed, "locks": options.locks}
    report("takeover", {**options_used, "targets": reached, loop: found}, PACKAGES)


if __name__ == "__main__":
    main()
