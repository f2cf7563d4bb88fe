"""Durable messages as arguments of statements, and rows as values."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, TypeVar

import asyncpg
import msgspec

from actorhub.core.address import ShardId
from actorhub.core.errors import DuplicateKey
from actorhub.storage.message_ports import (
    FailedRun,
    MessageRow,
    MessageState,
    NewMessage,
    Outcome,
    PendingMessage,
    RunCommit,
    Stored,
    StoredReply,
    Verdict,
)

ValueT = TypeVar("ValueT")

ROW_BYTES: Final = 200
"""What a row takes besides its payload, roughly."""
_TRACEBACK_BYTES: Final = 8192
_ERROR_TEXT_BYTES: Final = 2048

_decode_headers: Final = msgspec.json.Decoder(dict[str, str]).decode
_decode_history: Final = msgspec.json.Decoder(list[FailedRun]).decode


def new_bytes(message: NewMessage) -> int:
    """Return what `message` takes, roughly."""
    return ROW_BYTES + len(message.body)


def run_bytes(run: RunCommit) -> int:
    """Return what `run` leaves behind takes, roughly."""
    size = ROW_BYTES + len(run.data)
    if run.reply is not None:
        size += len(run.reply.body)
    return size + sum(map(new_bytes, run.outbox)) if run.outbox else size


def without_twins(run: RunCommit) -> RunCommit:
    """Return `run` with an outbox that keeps the first of the messages that have the same key.

    Raises:
        DuplicateKey: two messages of the outbox have the same key and different payloads.
    """
    kept: list[NewMessage] = []
    payloads: dict[bytes, bytes] = {}
    for message in run.outbox:
        hashed = key_hash(message)
        if hashed is None or hashed not in payloads:
            kept.append(message)
        elif payloads[hashed] != message.payload_hash:
            raise duplicate_key(run)
        if hashed is not None:
            payloads[hashed] = message.payload_hash
    return msgspec.structs.replace(run, outbox=tuple(kept))


def duplicate_key(run: RunCommit) -> DuplicateKey:
    """Return the error for a run whose outbox has a key that was used before with another payload."""
    sender = f"{run.entity_type}/{run.entity_id}"
    return DuplicateKey(
        f"{sender} told a message whose key was used before with another payload", possibly_executed=True
    )


def lines(values: Sequence[str]) -> str:
    """Return a column of names as one text, a line each.

    Raises:
        UnicodeError: one has several lines, so it names nothing.
    """
    text = "\n".join(values)
    if text.count("\n") >= len(values):
        raise UnicodeError("a name with a line break cannot be stored")
    return text


def numbers(values: Iterable[float]) -> str:
    """Return a column of numbers as one text, a line each."""
    return "\n".join(map(str, values))


def shard_columns(shards: Sequence[ShardId], epochs: Sequence[int]) -> tuple[str | None, ...]:
    """Return the shards to be looked up first, each once (group, numbers, epochs), then those of each row.

    None are looked up first where they are not of one group, or where a shard is named with two epochs.
    """
    groups = [shard.group for shard in shards]
    places = [shard.number for shard in shards]
    columns = lines(groups), numbers(places), numbers(epochs)
    held = dict(zip(places, epochs, strict=True))
    group = groups[0]
    if groups.count(group) < len(groups) or [held[place] for place in places] != epochs:
        return None, None, None, *columns
    ordered = sorted(held)
    return group, numbers(ordered), numbers([held[place] for place in ordered]), *columns


def rare_columns(messages: Sequence[NewMessage]) -> tuple[Sequence[object] | None, ...]:
    """Return body, headers, key, its hash, the payload's, due time and delay; what no message has is `None`."""
    keyed = sparse([message.key for message in messages])
    return (
        [message.body for message in messages],
        sparse([_encode_headers(message) for message in messages]),
        keyed,
        None if keyed is None else [key_hash(message) for message in messages],
        None if keyed is None else [message.payload_hash for message in messages],
        sparse([message.deliver_at for message in messages]),
        sparse([message.delay for message in messages]),
    )


def repeats(messages: Sequence[NewMessage]) -> Sequence[bool] | None:
    """Return which messages may be stored or settled already; `None`: none."""
    found = [message.repeated for message in messages]
    return found if True in found else None


def repeated(message: NewMessage) -> NewMessage:
    """Return `message` as one that may be stored or settled already."""
    return msgspec.structs.replace(message, repeated=True)


def sparse(values: list[ValueT | None]) -> list[ValueT | None] | None:
    """Return `values`, or `None` where there is not one."""
    return values if values.count(None) < len(values) else None


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


def error_text(text: str) -> str:
    """Return the beginning of `text` as Postgres can store it."""
    return _storable(text)[:_ERROR_TEXT_BYTES].decode(errors="ignore")


def traceback_text(text: str) -> str:
    """Return the end of `text`, which says most, as Postgres can store it."""
    return _storable(text)[-_TRACEBACK_BYTES:].decode(errors="ignore")


def _storable(text: str) -> bytes:
    return text.replace("\0", "\ufffd").encode(errors="replace")


def _encode_headers(message: NewMessage) -> str | None:
    return None if message.headers is None else msgspec.json.encode(message.headers).decode()


def key_hash(message: NewMessage) -> bytes | None:
    """Return what names the message's key in the store; `None` without a key."""
    if message.key is None:
        return None
    parts = (message.entity_type, message.entity_id, message.handler)
    text = "".join(f"{len(part)}:{part}" for part in parts) + message.key
    # A lone surrogate cannot be stored, but which statement refuses it is not decided here.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
