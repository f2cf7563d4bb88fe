"""Singletons and schedules as arguments of statements, and rows as values."""

from collections.abc import Sequence

import asyncpg
import msgspec

from actorhub.core.address import ShardId
from actorhub.storage.postgres.texts import error_text
from actorhub.storage.singleton_ports import Execution, ScheduleRow, SingletonRow


def execution_json(execution: Execution) -> str:
    """Return `execution` as a row of its table, with texts that Postgres can store."""
    return _json(
        msgspec.structs.replace(
            execution,
            last_error=error_text(execution.last_error),
            state_error=error_text(execution.state_error),
        )
    )


def schedule_json(row: ScheduleRow) -> str:
    """Return `row` as one of its table, with texts that Postgres can store."""
    return _json(
        msgspec.structs.replace(row, last_error=error_text(row.last_error), last_skip=error_text(row.last_skip))
    )


def singleton_row(row: asyncpg.Record) -> SingletonRow:
    """Return the singleton of `row`."""
    return SingletonRow(
        singleton=row["singleton"],
        entity_id=row["entity_id"],
        shard=ShardId(row["shard_group"], row["shard_number"]),
        epoch=row["epoch"],
        incarnation=row["incarnation"],
        leader=row["leader"],
        since=row["since_time"],
        heartbeat_at=row["heartbeat_time"],
        state_ttl=row["state_ttl"],
        execution=msgspec.convert(dict(row), Execution),
    )


def schedule_row(row: asyncpg.Record) -> ScheduleRow:
    """Return the schedule of `row`."""
    return msgspec.convert(dict(row), ScheduleRow)


def clock_of(rows: Sequence[asyncpg.Record]) -> float:
    """Return the store's clock, which each of `rows` tells; there is one at least."""
    clock: float = rows[-1]["clock"]
    return clock


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()
