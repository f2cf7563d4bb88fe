"""What one runner knows of itself and of what it hosts, as messages of `actorhub.admin.v1`."""

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Iterable
from typing import Final

from actorhub.core.address import ShardId
from actorhub.engine.model.records import ACTIVATING, CLOSING, DEAD, Cell
from actorhub.engine.runner import Runner
from actorhub.ops.health import cluster_of
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

_STEPS: Final = 2000
"""Records that are looked at before the event loop gets its turn."""

_STATES: Final = {
    "owned": pb.SHARD_STATE_OWNED,
    "acquiring": pb.SHARD_STATE_ACQUIRING,
    "draining": pb.SHARD_STATE_DRAINING,
    "unowned": pb.SHARD_STATE_UNOWNED,
}


def runner_numbers(runner: Runner) -> pb.RunnerNumbers:
    """Return what a runner counts."""
    hosted, held = runner.host.statistics(), runner.ownership.statistics()
    return pb.RunnerNumbers(
        serving=runner.ownership.is_fresh() and not cluster_of(runner).is_shutting_down,
        shards_owned=held.shards_owned,
        shards_acquiring=held.shards_acquiring,
        shards_draining=held.shards_draining,
        resident_entities=hosted.resident,
        queued_messages=hosted.queued,
        pid=os.getpid(),
    )


async def held_shards(runner: Runner, shards: Iterable[ShardId], limit: int) -> list[pb.Shard]:
    """Return the first `limit` of `shards` that the runner owns, acquires or drains."""
    found: list[pb.Shard] = []
    for number, shard in enumerate(shards):
        if number % _STEPS == _STEPS - 1:
            await asyncio.sleep(0)
        if (state := runner.ownership.state(shard)) != "unowned":
            found.append(_shard(runner, shard, state))
            if len(found) == limit:
                break
    return found


def _shard(runner: Runner, shard: ShardId, state: str) -> pb.Shard:
    hosted = runner.host.shards.get(shard)
    own = runner.info.runner
    return pb.Shard(
        shard=str(shard),
        state=_STATES[state],
        runner=own.address,
        incarnation=own.incarnation,
        epoch=hosted.epoch if hosted is not None else runner.ownership.epoch(shard) or 0,
        resident_entities=len(hosted.cells) if hosted is not None else 0,
        queued_messages=hosted.queued if hosted is not None else 0,
    )


async def resident_entities(
    runner: Runner, *, entity_type: str, shard: ShardId | None, after: tuple[str, str], limit: int
) -> list[pb.Entity]:
    """Return the first `limit` resident entities after `after`, by type and id; an empty type means every one."""
    first: list[tuple[tuple[str, str], Cell]] = []
    batch: list[tuple[tuple[str, str], Cell]] = []
    async for cell in _cells(runner, shard):
        key = (cell.hosted_type.spec.name, cell.entity_id)
        if (not entity_type or key[0] == entity_type) and key > after:
            batch.append((key, cell))
            if len(batch) >= max(limit, _STEPS):
                first, batch = _smallest(limit, first, batch), []
    return [entity_of(runner, cell) for _, cell in _smallest(limit, first, batch)]


def _smallest(
    limit: int, first: list[tuple[tuple[str, str], Cell]], batch: list[tuple[tuple[str, str], Cell]]
) -> list[tuple[tuple[str, str], Cell]]:
    return heapq.nsmallest(limit, [*first, *batch], key=lambda entry: entry[0])


async def _cells(runner: Runner, shard: ShardId | None) -> AsyncIterator[Cell]:
    """Walk what is resident, shard by shard; what comes or goes meanwhile may or may not be seen."""
    hosted = runner.host.shards
    seen = 0
    for shard_id in [shard] if shard is not None else list(hosted):
        for cell in list(hosted[shard_id].cells) if shard_id in hosted else ():
            if cell.phase != DEAD:
                yield cell
            seen += 1
            if seen % _STEPS == 0:
                await asyncio.sleep(0)


def entity_of(runner: Runner, cell: Cell) -> pb.Entity:
    """Return what is known of a resident entity."""
    own, record = runner.info.runner, cell.record
    idle = runner.node.clock.monotonic() - cell.last_used if cell.last_used else None
    return pb.Entity(
        entity_type=cell.hosted_type.spec.name,
        entity_id=cell.entity_id,
        shard=str(cell.shard.id),
        runner=own.address,
        incarnation=own.incarnation,
        epoch=cell.shard.epoch,
        activity=_activity(cell),
        queued_messages=len(cell.queue) if cell.queue is not None else 0,
        idle_seconds=idle,
        state_version=record.version if record is not None else 0,
        state_bytes=len(record.data) if record is not None else 0,
    )


def _activity(cell: Cell) -> pb.Activity.ValueType:
    if cell.phase == ACTIVATING:
        return pb.ACTIVITY_ACTIVATING
    if cell.phase == CLOSING:
        return pb.ACTIVITY_CLOSING
    return pb.ACTIVITY_IDLE if cell.is_idle else pb.ACTIVITY_RUNNING
