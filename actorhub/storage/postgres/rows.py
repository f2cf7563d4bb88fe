"""Rows as values."""

import math
from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.logger import get_logger
from actorhub.storage.ports import LiveRunner, ShardRow

_log: Final = get_logger(__name__)


def live_runners(rows: Sequence[asyncpg.Record]) -> list[LiveRunner]:
    """Return the runners of `rows`; a row that does not hold a runner is left out, with a warning."""
    found: list[LiveRunner] = []
    for row in rows:
        try:
            found.append(_live_runner(row))
        except (msgspec.ValidationError, ValueError) as exc:
            _log.warning("ignoring the broken row of runner %.40r: %s", row["incarnation"], exc)
    return found


def _live_runner(row: asyncpg.Record) -> LiveRunner:
    names = ("weight", "groups", "entity_types", "draining", "version", "slot")
    values = {name: row[name] for name in names}
    runner = RunnerAddress(row["address"], row["incarnation"])
    info = msgspec.convert({**values, "runner": [runner.address, runner.incarnation]}, RunnerInfo)
    if not (math.isfinite(info.weight) and info.weight >= 0):
        raise ValueError(f"weight {info.weight}")
    return LiveRunner(info, row["silent_for"], row["started_at"], row["read_at"])


def shard_row(row: asyncpg.Record) -> ShardRow:
    """Return the shard of `row`."""
    shard = ShardId(row["shard_group"], row["number"])
    incarnation: str | None = row["owner_incarnation"]
    if incarnation is None:
        return ShardRow(shard, row["epoch"], None)
    owner = ShardOwner(shard, RunnerAddress(row["owner_address"], incarnation), row["epoch"])
    return ShardRow(shard, row["epoch"], owner)
