"""Rows of durable messages as values."""

from collections.abc import Mapping
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
_decode_history: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_run: Final = msgspec.json.Decoder(FailedRun).decode
_ATTEMPTS: Final = range(1 << 31)
_SHOWN: Final = 200
"""Characters of what cannot be read."""


def stored(row: asyncpg.Record) -> Stored:
    """Return the answer in a row of `store_messages`."""
    _, code, message_id, due, now, outcome, body, _ = row
    verdict = Verdict(code)
    if verdict is Verdict.SETTLED:
        return Stored(verdict=verdict, message_id=message_id, reply=StoredReply(Outcome(outcome), body))
    if due and verdict in {Verdict.NEW, Verdict.PENDING}:
        return Stored(verdict=verdict, message_id=message_id, deliver_at=due, now=now)
    return Stored(verdict=verdict, message_id=message_id)


def pending_message(row: asyncpg.Record, shard: ShardId) -> PendingMessage:
    """Return the message of a loaded row."""
    headers, unreadable = _headers(row["headers"])
    return PendingMessage(
        message_id=row["message_id"],
        shard=shard,
        entity_type=row["entity_type"],
        entity_id=row["entity_id"],
        handler=row["handler"],
        body=row["body"],
        headers=headers,
        key=row["key"],
        deliver_at=row["due"] or 0.0,
        attempts=row["attempts"],
        unreadable=unreadable,
    )


def shard_of(row: asyncpg.Record) -> ShardId:
    """Return the shard of a loaded row."""
    return ShardId(row["shard_group"], row["shard_number"])


def message_row(row: asyncpg.Record) -> MessageRow:
    """Return all that a row of query `find` says."""
    outcome, history = row["outcome"], row["history"]
    headers, unreadable = _headers(row["headers"])
    return msgspec.structs.replace(
        listed_row(row),
        body=row["body"],
        headers=headers,
        reply=None if outcome is None else StoredReply(Outcome(outcome), row["answer"]),
        history=() if history is None else _history(history),
        unreadable=unreadable,
    )


def listed_row(row: asyncpg.Record) -> MessageRow:
    """Return what a row of query `list_messages` says."""
    return MessageRow(
        message_id=row["message_id"],
        shard=_shard(row["shard"]),
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


def _headers(text: str | None) -> tuple[Mapping[str, str] | None, str]:
    """Return headers, and what is wrong with them: another language, or a hand, may have written any text."""
    if text is None:
        return None, ""
    try:
        return _decode_headers(text), ""
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return None, f"headers: {exc}: {text[:_SHOWN]!r}"


def _history(text: str) -> tuple[FailedRun, ...]:
    try:
        return tuple(map(_failed_run, _decode_history(text)))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return (_failed_run(msgspec.Raw(text.encode())),)


def _failed_run(line: msgspec.Raw) -> FailedRun:
    try:
        run = _decode_run(line)
        if run.attempt in _ATTEMPTS:
            return run
        problem = f"attempt {run.attempt}"
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        problem = str(exc)
    text = f"this line of the history cannot be read: {problem}: {bytes(line)[:_SHOWN].decode(errors='replace')!r}"
    return FailedRun(attempt=0, at=0.0, error_type="unreadable", error_text=text)


def _shard(text: str) -> ShardId:
    # Not `parse`: a group that no runner of ours would have written must not hide the messages beside it.
    group, _, number = text.rpartition(":")
    return ShardId(group, int(number))
