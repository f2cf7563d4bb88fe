"""What Postgres and the processes know of a singleton's leaders."""

import asyncio
import time
from typing import Final

import asyncpg
import msgspec

from actorhub.core.address import ShardId, shard_lock_key
from actorhub.storage.postgres.errors import FOREIGN_ERRORS
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.leaders.history import Chronicle, Done, Sample, Stored, Tick, Turn
from tests.faults.leaders.hub import Count

SINGLETON: Final = "leader"
_SAMPLE: Final = """
    select
        s.epoch,
        s.owner_incarnation,
        array(
            select coalesce(a.application_name, l.pid::text)
            from pg_locks as l left join pg_stat_activity as a using (pid)
            where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                and (l.classid::bigint << 32 | l.objid::bigint) = $3
            union all
            select 'actorhub lock ' || h.incarnation
            from actorhub.shard_lock as l join actorhub.lock_session as h on h.token = l.session
            where l.shard_group = $1 and l.number = $2
        ) as holders
    from actorhub.shard as s
    where s.shard_group = $1 and s.number = $2
"""
_DONE: Final = "select seq, number, part, epoch, incarnation, extract(epoch from at)::float8 from public.done"
_TICKS: Final = (
    "select seq, extract(epoch from fire_time)::bigint, ticks, epoch, incarnation, "
    "extract(epoch from at)::float8 from public.tick"
)
_STATE: Final = "select version, epoch, data from actorhub.entity_state where entity_type = $1"
_SKIPPED: Final = "select skipped from actorhub.crons"
_DEAD: Final = "select count(*) from actorhub.dead_letters where entity_type = $1"


async def shard_of_singleton(processes: ClusterProcesses) -> ShardId:
    """Return where the singleton lives."""
    [row] = await processes.fetch("select shard from actorhub.singletons where singleton = $1", SINGLETON)
    return ShardId.parse(row["shard"])


async def sample_locks(processes: ClusterProcesses, shard: ShardId, samples: list[Sample], pause: float) -> None:
    """Look who has the shard, again and again, until cancelled; while Postgres is away there is nothing to see."""
    while True:
        try:
            connection = await asyncpg.connect(processes.postgres.url, timeout=10)
        except FOREIGN_ERRORS:
            await asyncio.sleep(pause)
            continue
        try:
            await _sample(connection, shard, samples, pause)
        except FOREIGN_ERRORS:
            continue  # It was restarted.
        finally:
            connection.terminate()


async def _sample(
    connection: "asyncpg.Connection[asyncpg.Record]", shard: ShardId, samples: list[Sample], pause: float
) -> None:
    key = shard_lock_key("actorhub", shard)
    while True:
        row = await connection.fetchrow(_SAMPLE, shard.group, shard.number, key, timeout=10)
        assert row is not None
        samples.append(Sample(time.monotonic(), tuple(row["holders"]), row["epoch"], row["owner_incarnation"]))
        await asyncio.sleep(pause)


async def read_chronicle(processes: ClusterProcesses, samples: list[Sample], turns: list[Turn]) -> Chronicle:
    """Return everything that is known of leaders, once all runners left."""
    async with processes.connection() as connection:
        state = await connection.fetchrow(_STATE, SINGLETON)
        assert state is not None
        count = msgspec.msgpack.decode(state["data"], type=Count)
        frozen: dict[str, list[float]] = {}
        for freeze in (each for runner in processes.runners for each in runner.freezes):
            frozen.setdefault(freeze.incarnation, []).append(freeze.since)
        return Chronicle(
            done=[Done(*row) for row in await connection.fetch(_DONE)],
            ticks=[Tick(*row) for row in await connection.fetch(_TICKS)],
            stored=Stored(state["version"], state["epoch"], count.number, count.ticks),
            skipped=await connection.fetchval(_SKIPPED),
            dead=await connection.fetchval(_DEAD, SINGLETON),
            samples=samples,
            turns=turns,
            ends={incarnation: at for runner in processes.runners for incarnation, at in runner.kills.items()},
            frozen=frozen,
        )
