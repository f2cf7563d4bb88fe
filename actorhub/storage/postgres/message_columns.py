"""What the functions for durable messages are given: the tables of columns, and the arguments made with them."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final, TypeVar

import msgspec

from actorhub.storage.message_ports import NewMessage, RunCommit, RunFailure, RunStart
from actorhub.storage.postgres.columns import (
    Column,
    Columns,
    epochs,
    held_shards,
    lines,
    numbers,
    shard_groups,
    shard_numbers,
    sparse,
)
from actorhub.storage.postgres.message_requests import key_hash
from actorhub.storage.postgres.texts import error_text, traceback_text

ValueT = TypeVar("ValueT")

_version_of: Final = attrgetter("version")

MESSAGES: Final = Columns[NewMessage](
    "message_columns",
    Column("message_ids", "text", lambda messages: numbers([message.message_id for message in messages])),
    Column("groups", "text", shard_groups),
    Column("numbers", "text", shard_numbers),
    Column("epochs", "text", epochs),
    Column("types", "text", lambda messages: lines([message.entity_type for message in messages])),
    Column("ids", "text", lambda messages: lines([message.entity_id for message in messages])),
    Column("handlers", "text", lambda messages: lines([message.handler for message in messages])),
    Column("attempts", "text", lambda messages: numbers([message.attempts for message in messages])),
    Column("bodies", "bytea[]", lambda messages: [message.body for message in messages]),
    Column("headers", "text[]", lambda messages: sparse([_headers(message) for message in messages])),
    Column("keys", "text[]", lambda messages: _if_keyed(messages, lambda message: message.key)),
    Column("key_hashes", "bytea[]", lambda messages: _if_keyed(messages, key_hash)),
    Column("payload_hashes", "bytea[]", lambda messages: _if_keyed(messages, lambda message: message.payload_hash)),
    Column("dues", "double precision[]", lambda messages: sparse([message.deliver_at for message in messages])),
    Column("delays", "double precision[]", lambda messages: sparse([message.delay for message in messages])),
    Column("repeats", "boolean[]", lambda messages: sparse([message.repeated or None for message in messages])),
)
STARTS: Final = Columns[RunStart](
    "start_columns",
    Column("message_ids", "text", lambda starts: numbers([start.message_id for start in starts])),
    Column("groups", "text", shard_groups),
    Column("numbers", "text", shard_numbers),
    Column("epochs", "text", epochs),
    Column("attempts", "text", lambda starts: numbers([start.attempts for start in starts])),
)
RUNS: Final = Columns[RunCommit](
    "run_columns",
    Column("groups", "text", shard_groups),
    Column("numbers", "text", shard_numbers),
    Column("epochs", "text", epochs),
    Column("message_ids", "text", lambda runs: numbers([run.message_id for run in runs])),
    Column("outcomes", "text", lambda runs: numbers([int(run.reply.outcome) if run.reply else 0 for run in runs])),
    Column("retentions", "text", lambda runs: numbers([run.retention for run in runs])),
    Column("replies", "bytea[]", lambda runs: [run.reply.body if run.reply else None for run in runs]),
    Column("next_message_ids", "text", lambda runs: _if_next(runs, lambda start: start.message_id)),
    Column("next_attempts", "text", lambda runs: _if_next(runs, lambda start: start.attempts)),
    Column("types", "text[]", lambda runs: [run.entity_type for run in runs] if _any_state(runs) else None),
    Column("ids", "text[]", lambda runs: [run.entity_id for run in runs] if _any_state(runs) else None),
    Column("versions", "bigint[]", lambda runs: [run.version for run in runs] if _any_state(runs) else None),
    Column("bodies", "bytea[]", lambda runs: [_state(run) for run in runs] if _any_state(runs) else None),
)
FAILURES: Final = Columns[RunFailure](
    "failure_columns",
    Column("message_ids", "bigint[]", lambda failures: [failure.message_id for failure in failures]),
    Column("groups", "text[]", lambda failures: [failure.shard.group for failure in failures]),
    Column("numbers", "integer[]", lambda failures: [failure.shard.number for failure in failures]),
    Column("epochs", "bigint[]", lambda failures: [failure.epoch for failure in failures]),
    Column("pauses", "double precision[]", lambda failures: [failure.pause for failure in failures]),
    Column("attempts", "integer[]", lambda failures: [failure.attempts for failure in failures]),
    Column("errors", "bytea[]", lambda failures: [failure.error for failure in failures]),
    Column("error_types", "text[]", lambda failures: [error_text(failure.error_type) for failure in failures]),
    Column("error_texts", "text[]", lambda failures: [error_text(failure.error_text) for failure in failures]),
    Column("tracebacks", "text[]", lambda failures: [traceback_text(failure.traceback) for failure in failures]),
)


def message_arguments(messages: Sequence[NewMessage]) -> tuple[object, ...]:
    """Return the arguments of `store_messages` after fence and incarnation."""
    return held_shards(messages), MESSAGES.encode(messages)


def start_arguments(starts: Sequence[RunStart]) -> tuple[object, ...]:
    """Return the arguments of `start_runs` after fence and incarnation."""
    return held_shards(starts), STARTS.encode(starts)


def run_arguments(runs: Sequence[RunCommit]) -> tuple[object, ...]:
    """Return the arguments of `commit_runs` after fence and incarnation."""
    replies = [run.reply if run.message_id else None for run in runs]
    held = None if None in replies else held_shards(runs)
    outbox = [message for run in runs for message in run.outbox]
    if not outbox:
        return held, RUNS.encode(runs), None, None
    tellers = [place for place, run in enumerate(runs, 1) for _ in run.outbox]
    return held, RUNS.encode(runs), tellers, MESSAGES.encode(outbox)


def _headers(message: NewMessage) -> str | None:
    return None if message.headers is None else msgspec.json.encode(message.headers).decode()


def _if_keyed(messages: Sequence[NewMessage], read: Callable[[NewMessage], ValueT]) -> list[ValueT] | None:
    """Return what is read of each message; `None` where none has a key."""
    if [message.key for message in messages].count(None) == len(messages):
        return None
    return [read(message) for message in messages]


def _if_next(runs: Sequence[RunCommit], read: Callable[[RunStart], int]) -> str | None:
    """Return what is read of each run's next one, 0 where it has none; `None` where none has one."""
    starts = [run.next_start for run in runs]
    if starts.count(None) == len(starts):
        return None
    return numbers([0 if start is None else read(start) for start in starts])


def _any_state(runs: Sequence[RunCommit]) -> bool:
    return any(map(_version_of, runs))


def _state(run: RunCommit) -> bytes | None:
    return run.data if run.version else None
