"""Rows of durable messages as values."""

from typing import Final

import asyncpg
import msgspec

from actorhub.core.address import ShardId
from actorhub.storage.message_ports import (
    FailedRun,
    MessageRow,
    MessageState,
    Outcome,
    PendingMessage,
    Stored,
    StoredReply,
    Verdict,
)

_decode_headers: Final = msgspec.json.Decoder(dict[str, str]).decode
_decode_history: Final = msgspec.json.Decoder(list[FailedRun]).decode


def stored(row: asyncpg.Record) -> Stored:
    """Return the answer in a row of `store_messages`."""
    _, code, message_id, due, now, outcome, body = row
    verdict = Verdict(code)
    if verdict is Verdict.SETTLED:
        return Stored(verdict=verdict, message_id=message_id, reply=StoredReply(Outcome(outcome), body))
    if due and verdict in {Verdict.NEW, Verdict.PENDING}:
        return Stored(verdict=verdict, message_id=message_id, deliver_at=due, now=now)
    return Stored(verdict=verdict, message_id=message_id)


def pending_message(row: asyncpg.Record, shard: ShardId) -> PendingMessage:
    """Return the message of a loaded row."""
    headers = row["headers"]
    return PendingMessage(
        message_id=row["message_id"],
        shard=shard,
        entity_type=row["entity_type"],
        entity_id=row["entity_id"],
        handler=row["handler"],
        body=row["body"],
        headers=None if headers is None else _decode_headers(headers),
        key=row["key"],
        deliver_at=row["due"] or 0.0,
        attempts=row["attempts"],
    )


def shard_of(row: asyncpg.Record) -> ShardId:
    """Return the shard of a loaded row."""
    return ShardId(row["shard_group"], row["shard_number"])


def message_row(row: asyncpg.Record) -> MessageRow:
    """Return all that a row of query `find` says."""
    outcome, headers, history = row["outcome"], row["headers"], row["history"]
    return msgspec.structs.replace(
        listed_row(row),
        body=row["body"],
        headers=None if headers is None else _decode_headers(headers),
        reply=None if outcome is None else StoredReply(Outcome(outcome), row["answer"]),
        history=() if history is None else tuple(_decode_history(history)),
    )


def listed_row(row: asyncpg.Record) -> MessageRow:
    """Return what a row of query `list_messages` says."""
    return MessageRow(
        message_id=row["message_id"],
        shard=ShardId.parse(row["shard"]),
        entity_type=row["entity_type"],
        entity_id=row["entity_id"],
        handler=row["handler"],
        state=MessageState(row["state"]),
        key=row["key"],
        attempts=row["attempts"],
        created_at=row["created_at"],
        deliver_at=row["deliver_at"],
        finished_at=row["finished_at"],
        expires_at=row["expires_at"],
    )
