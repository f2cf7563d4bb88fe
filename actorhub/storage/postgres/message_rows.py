"""Durable messages as arguments of statements, and rows as values."""

from collections.abc import Sequence
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


class NewRow(msgspec.Struct):
    """A message to be stored."""

    message: NewMessage
    key_hash: bytes | None
    repeated: bool
    """It may be stored or settled already."""

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return ROW_BYTES + len(self.message.body)


class RunRow(msgspec.Struct):
    """What a run leaves behind, with its outbox ready to be stored."""

    run: RunCommit
    outbox: Sequence[NewRow]

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        reply = self.run.reply
        own = ROW_BYTES + len(self.run.data) + (len(reply.body) if reply is not None else 0)
        return own + sum(row.size for row in self.outbox)


def new_row(message: NewMessage) -> NewRow:
    """Return the row of `message`."""
    return NewRow(message, _key_hash(message), message.repeated)


def run_row(run: RunCommit) -> RunRow:
    """Return the row of `run`; of messages that have the same key, its outbox keeps the first.

    Raises:
        DuplicateKey: two messages of the outbox have the same key and different payloads.
    """
    if not run.outbox:
        return RunRow(run, ())
    rows: list[NewRow] = []
    payloads: dict[bytes, bytes] = {}
    for row in map(new_row, run.outbox):
        if row.key_hash is None or row.key_hash not in payloads:
            rows.append(row)
        elif payloads[row.key_hash] != row.message.payload_hash:
            raise duplicate_key(run)
        if row.key_hash is not None:
            payloads[row.key_hash] = row.message.payload_hash
    return RunRow(run, rows)


def duplicate_key(run: RunCommit) -> DuplicateKey:
    """Return the error for a run whose outbox has a key that was used before with another payload."""
    sender = f"{run.entity_type}/{run.entity_id}"
    return DuplicateKey(
        f"{sender} told a message whose key was used before with another payload", possibly_executed=True
    )


def addresses(rows: Sequence[NewRow]) -> tuple[Sequence[object], ...]:
    """Return ids and shards as columns."""
    messages = [row.message for row in rows]
    return (
        [message.message_id for message in messages],
        [message.shard.group for message in messages],
        [message.shard.number for message in messages],
    )


def contents(rows: Sequence[NewRow]) -> tuple[Sequence[object] | None, ...]:
    """Return entity, handler, payload, key and due time as columns; one that has no value at all is `None`."""
    messages = [row.message for row in rows]
    keyed = sparse([message.key for message in messages])
    return (
        [message.entity_type for message in messages],
        [message.entity_id for message in messages],
        [message.handler for message in messages],
        [message.body for message in messages],
        sparse([_encode_headers(message) for message in messages]),
        keyed,
        None if keyed is None else [row.key_hash for row in rows],
        None if keyed is None else [message.payload_hash for message in messages],
        sparse([message.deliver_at for message in messages]),
        sparse([message.delay for message in messages]),
    )


def repeats(rows: Sequence[NewRow]) -> Sequence[bool] | None:
    """Return which messages may be stored or settled already; `None`: none."""
    return [row.repeated for row in rows] if any(row.repeated for row in rows) else None


def sparse(values: list[ValueT | None]) -> list[ValueT | None] | None:
    """Return `values`, or `None` where there is not one."""
    return values if any(value is not None for value in values) else None


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


def _key_hash(message: NewMessage) -> bytes | None:
    if message.key is None:
        return None
    parts = (message.entity_type, message.entity_id, message.handler)
    text = "".join(f"{len(part)}:{part}" for part in parts) + message.key
    # A lone surrogate cannot be stored, but which statement refuses it is not decided here.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
