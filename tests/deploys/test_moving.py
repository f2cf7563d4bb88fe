"""Deploys that give an entity type another shard group or shard key, on real processes and Postgres, under load."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.deploys.releases import Cluster, Release, leave
from tests.deploys.test_rolling import LENGTHS, judged, settled
from tests.support.processes import Processes

PLACEMENTS = pytest.mark.parametrize("placement", ["group", "key", "both"])


def refused(lines: list[dict[str, Any]]) -> list[str]:
    """Return the errors that callers got for another reason than a runner that was killed."""
    return [str(line) for line in lines if line["kind"] == "error" and line["error"] != "RunnerUnavailable"]


@LENGTHS
@PLACEMENTS
async def test_a_type_moves_and_back_while_runners_are_killed(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path, seconds: float, placement: str
) -> None:
    """Callers of both releases are served; what was acknowledged took effect once, and no message is a dead letter."""
    before, after = releases[1], releases[1]._replace(placement=placement)
    database = await asyncpg.connect(postgres_url)
    with Processes(tmp_path) as processes:
        cluster = Cluster(processes, postgres_url)
        old = [await cluster.start(before) for _ in range(2)]
        await cluster.call(before, old, "old")
        new = [await cluster.start(after)]
        await cluster.call(after, [*new, *old], "new")
        await asyncio.sleep(seconds)
        await old.pop().kill()
        new.append(await cluster.start(after))
        await asyncio.sleep(seconds)
        await leave(old.pop())
        await asyncio.sleep(seconds)
        old.append(await cluster.start(before))
        await asyncio.sleep(seconds)
        await new.pop(0).kill()
        await asyncio.sleep(seconds)
        lines = await cluster.hush()
        await settled(database)
        ended = await judged(database, lines)
        assert refused(lines) == []
        assert [what for what in ended if not what.endswith(" done")] == []
        shards = await database.fetch("select distinct shard_group from actorhub.entity_state")
        assert {row[0] for row in shards} <= {"default", "moved"}
        for runner in (*old, *new):
            await leave(runner)
    await database.close()


@PLACEMENTS
async def test_a_type_moves_together_with_the_library(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path, placement: str
) -> None:
    """The release before knows nothing of moves: nothing acknowledged is lost or doubled, nor is a message given up."""
    before, after = releases[0], releases[1]._replace(placement=placement)
    database = await asyncpg.connect(postgres_url)
    with Processes(tmp_path) as processes:
        cluster = Cluster(processes, postgres_url)
        old = [await cluster.start(before) for _ in range(2)]
        await cluster.call(before, old, "old")
        new = [await cluster.start(after)]
        await cluster.call(after, [*new, *old], "new")
        await asyncio.sleep(1)
        await leave(old.pop())
        new.append(await cluster.start(after))
        await asyncio.sleep(1)
        await leave(old.pop())
        lines = await cluster.hush()
        await settled(database)
        errors = [line for line in lines if line["kind"] == "error" and line["error"] != "PersistenceError"]
        ended = await judged(database, [*(line for line in lines if line["kind"] != "error"), *errors])
        assert ended["add done"] > 0
        assert {what for what in ended if what.endswith(" dead")} <= {"is_removed dead", "takes_something_else dead"}
        for runner in new:
            await leave(runner)
    await database.close()
