"""Kills and freezes leaders of a running cluster, one after the other, while its locks are sampled."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg

from actorhub.core.address import ShardId
from tests.faults.cluster.processes import ClusterProcesses, RunnerProcess, until
from tests.faults.leaders.history import Chronicle, Sample, read_turns
from tests.faults.leaders.hub import TABLES
from tests.faults.leaders.records import read_chronicle, sample_locks, shard_of_singleton

_LOOK: Final = 0.004
_SAMPLE_PAUSE: Final = 0.03
_PATIENCE: Final = 30.0
_LONGEST_REIGN: Final = 0.6
"""Seconds for which a leader is left alone at most, once it has committed something."""


@dataclass(frozen=True)
class Takeover:
    """Seconds from the signal to the first commit of the next leader."""

    how: str
    seconds: float


@dataclass(frozen=True)
class _Leader:
    place: RunnerProcess
    epoch: int


class LeaderKills:
    """Hurts whoever leads; after each verb all runners are there, or on their way."""

    def __init__(self, processes: ClusterProcesses, seed: int, watch: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.processes = processes
        self.seed = seed
        self.chance = random.Random(seed)
        self.takeovers: list[Takeover] = []
        self.samples: list[Sample] = []
        self._watch = watch
        self._shard: ShardId
        self._ready: set[RunnerProcess] = set(processes.runners)

    async def began(self) -> None:
        """Wait until the singleton was led for the first time."""
        await self._committed(0)
        self._shard = await shard_of_singleton(self.processes)

    async def kill(self, tasks: asyncio.TaskGroup) -> None:
        """Kill the leader, wait for the next one's first commit, and start a process in the place of the dead one."""
        leader = await self._leader()
        at = time.monotonic()
        leader.place.kill()
        self._ready.discard(leader.place)
        tasks.create_task(self._replace(leader.place))
        await self._took_over("SIGKILL", leader, at)

    async def freeze(self) -> None:
        """Stop the leader, wait for the next one's first commit, and let the stopped one go on."""
        leader = await self._leader()
        at = time.monotonic()
        leader.place.freeze()
        await self._took_over("SIGSTOP", leader, at)
        leader.place.thaw()

    async def sample(self) -> None:
        """Look who has the shard, again and again, until cancelled."""
        await sample_locks(self.processes, self._shard, self.samples, _SAMPLE_PAUSE)

    async def ended(self) -> Chronicle:
        """Let all runners leave, and return what is known."""
        for one in self.processes.runners:
            one.terminate()
        for one in self.processes.runners:
            assert await one.gone() == 0, one.log[-3000:]
        return await read_chronicle(self.processes, self.samples, read_turns(self.processes.events()))

    async def _leader(self) -> _Leader:
        """Return who leads, after a while, and once somebody else could."""
        await until(lambda: len(self._ready) >= 2, "two runners are ready", _PATIENCE)
        await asyncio.sleep(self.chance.uniform(0, _LONGEST_REIGN))
        async with asyncio.timeout(_PATIENCE):
            while True:
                row = await self._watch.fetchrow(
                    "select epoch, incarnation from actorhub.shards where shard = $1", str(self._shard)
                )
                assert row is not None
                for one in list(self._ready):  # others come and go while this asks
                    if one.incarnation == row["incarnation"] and await self._epoch() == row["epoch"]:
                        return _Leader(one, row["epoch"])
                await asyncio.sleep(_LOOK)

    async def _took_over(self, how: str, leader: _Leader, at: float) -> None:
        """Note how long it took; not where the shard was on its way to another runner at that moment."""
        clock = time.time() - time.monotonic()
        await self._committed(leader.epoch)
        seconds = time.monotonic() - at
        first: float = await self._watch.fetchval(
            "select extract(epoch from min(at))::float8 from public.done where epoch > $1", leader.epoch
        )
        if first > at + clock:
            self.takeovers.append(Takeover(how, seconds))

    async def _committed(self, epoch: int) -> None:
        """Wait for a commit of a later epoch."""
        async with asyncio.timeout(_PATIENCE):
            while await self._epoch() <= epoch:
                await asyncio.sleep(_LOOK)

    async def _epoch(self) -> int:
        epoch: int = await self._watch.fetchval("select coalesce(max(epoch), 0) from public.done", timeout=10)
        return epoch

    async def _replace(self, place: RunnerProcess) -> None:
        self.processes.spawn(place)
        await place.ready()
        self._ready.add(place)


@asynccontextmanager
async def leader_kills(processes: ClusterProcesses, seed: int) -> AsyncGenerator[LeaderKills, None]:
    """Start the runners; whatever fails meanwhile is told together with the runners' logs."""
    watch = await asyncpg.connect(processes.postgres.url, timeout=10)
    try:
        await watch.execute(TABLES, timeout=10)
        await processes.start()
        kills = LeaderKills(processes, seed, watch)
        await kills.began()
        yield kills
    except BaseException as error:
        error.add_note(f"seed {seed}\n{processes.report()}")
        raise
    finally:
        watch.terminate()
