"""A singleton whose leaders are killed and frozen all the time; what they left behind is judged.

`FAULT_SEED` repeats a run, `LEADER_RUNS`, `LEADER_KILLS` and `LEADER_FREEZES` bound the long one.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median

import pytest

from tests.faults.cluster.processes import ClusterProcesses, cluster_processes
from tests.faults.leaders.history import Chronicle, leader_violations
from tests.faults.leaders.kills import LeaderKills, Takeover, leader_kills
from tests.support.postgres_server import PostgresServer

RUNS = int(os.environ.get("LEADER_RUNS", "5"))
KILLS = int(os.environ.get("LEADER_KILLS", "105"))
FREEZES = int(os.environ.get("LEADER_FREEZES", "4"))
FIRST_SEED = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
KILLED_LIMIT = 1.0
"""Seconds after SIGKILL within which the next leader commits, in 99 of 100 cases."""
FROZEN_LIMIT = 10.0
"""Seconds after SIGSTOP, always."""


@pytest.fixture
async def leaders(own_postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners of the singleton on a Postgres of their own; none is started yet."""
    async with cluster_processes(own_postgres, tmp_path, program="tests.faults.leaders.program") as cluster:
        yield cluster


async def run_kills(leaders: ClusterProcesses, seed: int, kills: int, freezes: int) -> None:
    async with leader_kills(leaders, seed) as hurt, asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(hurt.sample())
        await hurt_leaders(hurt, kills, freezes)
        sampling.cancel()
        chronicle = await hurt.ended()
        print(told(hurt, chronicle))
        found = leader_violations(chronicle)
        assert found == [], "\n".join(found[:30])
        killed, frozen = seconds(hurt.takeovers, "SIGKILL"), seconds(hurt.takeovers, "SIGSTOP")
        assert len(killed) >= kills
        assert len(frozen) >= freezes
        assert p99(killed) < KILLED_LIMIT
        assert frozen[-1] < FROZEN_LIMIT


async def hurt_leaders(hurt: LeaderKills, kills: int, freezes: int) -> None:
    """Kill and freeze in an order that the seed decides, until so many hit a leader."""
    wanted = Counter({"SIGKILL": kills, "SIGSTOP": freezes})
    async with asyncio.TaskGroup() as tasks:
        while left := wanted - Counter(takeover.how for takeover in hurt.takeovers):
            if hurt.chance.choice(list(left.elements())) == "SIGKILL":
                await hurt.kill(tasks)
            else:
                await hurt.freeze()


def seconds(takeovers: Sequence[Takeover], how: str) -> list[float]:
    """Return how long takeovers took, the shortest first."""
    return sorted(takeover.seconds for takeover in takeovers if takeover.how == how)


def p99(ordered: Sequence[float]) -> float:
    """Return what 99 of 100 do not exceed; of fewer all but the longest."""
    return ordered[int(0.99 * (len(ordered) - 1))]


def told(hurt: LeaderKills, chronicle: Chronicle) -> str:
    """Say what a run was like."""
    epoch, stored = chronicle.samples[-1].epoch, chronicle.stored
    lines = [f"seed {hurt.seed}: {len(chronicle.samples)} samples of the lock, epoch {epoch}"]
    lines.append(f"{stored.number} numbers in {len(chronicle.done)} steps, {len(chronicle.ticks)} fire times")
    for how in ("SIGKILL", "SIGSTOP"):
        taken = seconds(hurt.takeovers, how)
        lines.append(
            f"{how}: {len(taken)} takeovers, median {median(taken):.3f} s, p99 {p99(taken):.3f} s, "
            f"longest {taken[-1]:.3f} s"
        )
    return "\n".join(lines)


@pytest.mark.alone
async def test_a_singleton_survives_twenty_kills_of_its_leader(leaders: ClusterProcesses) -> None:
    """Through kills and freezes of leaders, one at a time commits, nothing is lost, and no second is left out."""
    await run_kills(leaders, FIRST_SEED, kills=22, freezes=2)


@pytest.mark.alone
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", range(RUNS))
async def test_a_singleton_survives_hundreds_of_kills_of_its_leaders(leaders: ClusterProcesses, run: int) -> None:
    """The same for as long as it takes to kill five hundred leaders and to freeze twenty."""
    await run_kills(leaders, FIRST_SEED + run, KILLS, FREEZES)
