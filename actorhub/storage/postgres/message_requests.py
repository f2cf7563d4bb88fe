"""Requests about durable messages before they are sent: their sizes, and which of them never share a batch."""

from hashlib import blake2b
from typing import Final

import msgspec

from actorhub.core.errors import DuplicateKey
from actorhub.storage.message_ports import MessageKey, NewMessage, RunCommit

ROW_BYTES: Final = 200
"""What a row takes besides its payload, roughly."""


def new_bytes(message: NewMessage) -> int:
    """Return what `message` takes, roughly."""
    return ROW_BYTES + len(message.body)


def run_bytes(run: RunCommit) -> int:
    """Return what `run` leaves behind takes, roughly."""
    size = ROW_BYTES + len(run.data)
    if run.reply is not None:
        size += len(run.reply.body)
    return size + sum(map(new_bytes, run.outbox)) if run.outbox else size


def deduplicated(run: RunCommit) -> RunCommit:
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


def key_hash(message: NewMessage | MessageKey) -> bytes | None:
    """Return what names the message's key in the store; `None` without a key."""
    if message.key is None:
        return None
    parts = (message.entity_type, message.entity_id, message.handler)
    text = "".join(f"{len(part)}:{part}" for part in parts) + message.key
    # A lone surrogate cannot be stored, but which statement refuses it is not decided here.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def repeated(message: NewMessage) -> NewMessage:
    """Return `message` as one that may be stored or settled already."""
    return msgspec.structs.replace(message, repeated=True)


def message_key(message: NewMessage) -> tuple[str, str]:
    """Return what keeps messages of one id, and those of one key, out of one batch: they go one after the other."""
    hashed = key_hash(message)
    return ("", str(message.message_id)) if hashed is None else ("key", hashed.decode("latin-1"))


def run_key(run: RunCommit) -> tuple[str, str]:
    """Return what keeps runs that change one state, and commits of one message, out of one batch."""
    if run.version:
        return run.entity_type, run.entity_id
    return "", str(run.message_id or (run.outbox[0].message_id if run.outbox else 0))
