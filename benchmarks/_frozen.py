"""One freeze of a runner for `bench_takeover`: SIGSTOP during its work, the takeover, SIGCONT, and what it tries."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from actorhub.core.errors import ActorhubError
from benchmarks._runner import RunnerProcess
from benchmarks._workload import PAYLOAD, Counter

if TYPE_CHECKING:
    from benchmarks.bench_takeover import World

IN_FLIGHT: Final = 128
WAITING: Final = 32
"""Number of handlers that are waiting when the runner is frozen, and change state afterwards."""
COMPUTING: Final = 0.4
"""Seconds for which a handler computes when the runner is frozen. It commits right afterwards."""
AFTER_THAW: Final = 3.0
"""Seconds for which a thawed runner can try to commit."""

Rows = dict[str, tuple[int, int, bytes]]


async def freeze_once(
    here: "World", victim: RunnerProcess, shards: Sequence[int]
) -> tuple[list[float], dict[str, Any]]:
    """Return the seconds until each shard answered elsewhere, and the fate of the thawed runner's commits."""
    ids = [here.ids[shard] for shard in shards]
    before = await asyncio.to_thread(victim.ask, "statistics")
    await asyncio.to_thread(victim.ask, "remember")
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(_keep_adding(here, names)) for names in _parts(ids, IN_FLIGHT)]
        await asyncio.sleep(0.5)
        late = [tasks.create_task(_add_later(here, f"{name}-late")) for name in _local(here, shards)[:WAITING]]
        await asyncio.sleep(0.3)
        late.append(tasks.create_task(_compute(here, ids[0])))
        await asyncio.sleep(COMPUTING / 2)
        stopped = victim.signal(signal.SIGSTOP)
        for task in work:
            task.cancel()
        times = await here.until_answered(list(shards), victim.incarnation, stopped)
        for task in late:
            task.cancel()
    stored = await _rows(here)
    victim.signal(signal.SIGCONT)
    forced = await asyncio.to_thread(victim.ask, "commit")
    await asyncio.sleep(AFTER_THAW)
    now = await _rows(here)
    after = await asyncio.to_thread(victim.ask, "statistics")
    refused = after["storage"]["refused"] - before["storage"]["refused"] - forced["fenced"]
    return times, {
        "refused": after["host"]["results"]["refused_commits"] - before["host"]["results"]["refused_commits"],
        "refused_by_postgres": refused,
        "forced_tried": forced["tried"],
        "forced_refused": forced["fenced"],
        "forced_accepted": forced["accepted"],
        "rows_changed": sum(now.get(key) != row for key, row in stored.items()) + len(now.keys() - stored.keys()),
        "sessions_lost": after["ownership"]["sessions_lost"] - before["ownership"]["sessions_lost"],
        "self_fenced": after["ownership"]["self_fenced"] - before["ownership"]["self_fenced"],
    }


def _parts(ids: Sequence[str], callers: int) -> Iterator[Sequence[str]]:
    for caller in range(callers):
        yield [ids[(caller + step) % len(ids)] for step in range(len(ids))]


def _local(here: "World", shards: Sequence[int]) -> list[str]:
    """Return ids whose `-late` variants are in shards of the frozen runner."""
    wanted = set(shards)
    names = (f"n{number}" for number in itertools.count())
    found = (name for name in names if here.cluster.shard_of(Counter, f"{name}-late").number in wanted)
    return list(itertools.islice(found, WAITING))


async def _keep_adding(here: "World", ids: Sequence[str]) -> None:
    """Change one state after the other, until cancelled or the runner is gone."""
    client = here.cluster.client(Counter)
    with contextlib.suppress(ActorhubError):
        for name in itertools.cycle(ids):
            await client(name).add(PAYLOAD)


async def _add_later(here: "World", name: str) -> None:
    """Start a handler that waits while its runner is frozen."""
    with contextlib.suppress(ActorhubError):
        await here.patient(name).add_later(1.0)


async def _compute(here: "World", name: str) -> None:
    with contextlib.suppress(ActorhubError):
        await here.patient(name).add_after_computing(COMPUTING)


async def _rows(here: "World") -> Rows:
    connection = await asyncpg.connect(here.url)
    try:
        found = await connection.fetch(
            f"select entity_type || '/' || entity_id, version, epoch, data from {here.space}.entity_state"
        )
    finally:
        await connection.close()
    return {name: (version, epoch, data) for name, version, epoch, data in found}
