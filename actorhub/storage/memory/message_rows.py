"""One durable message in a memory store, and what others see of it."""

from collections.abc import Mapping
from typing import Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.storage.message_ports import (
    FailedRun,
    MessageFilter,
    MessageRow,
    MessageState,
    NewMessage,
    Outcome,
    PendingMessage,
    RunCommit,
    RunFailure,
    StoredReply,
)

_STATE_OF: Final = {
    Outcome.VALUE: MessageState.DONE,
    Outcome.ERROR: MessageState.FAILED,
    Outcome.CANCELLED: MessageState.CANCELLED,
    Outcome.DEAD: MessageState.DEAD,
}

KeyName = tuple[str, str, str, str]
"""What a key names one message by: entity type and id, handler, key."""


class CommitMark(msgspec.Struct, frozen=True):
    """Tells one run's commit from another's, so that a repeated one is known."""

    shard: ShardId
    epoch: int
    version: int
    reply: StoredReply | None
    outbox: tuple[int, ...]

    @classmethod
    def of(cls, run: RunCommit) -> "CommitMark":
        """Return the mark that `run` leaves on the message that it settles."""
        return cls(run.shard, run.epoch, run.version, run.reply, tuple(told.message_id for told in run.outbox))


class Row(msgspec.Struct, eq=False):
    """A durable message: pending while `reply` is `None`."""

    message: NewMessage
    created_at: float
    due: float
    """Seconds since the Unix epoch; 0: at once, or settled."""
    attempts: int
    reply: StoredReply | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    history: tuple[FailedRun, ...] = ()
    failure: RunFailure | None = None
    """Its last failed run since it was stored, or retried: the same one again is a repetition."""
    settled_by: CommitMark | None = None
    """The run that settled it, if it was one."""

    @property
    def id(self) -> int:
        """The message's id."""
        return self.message.message_id

    @property
    def entity(self) -> tuple[str, str]:
        """Type and id of its entity."""
        return self.message.entity_type, self.message.entity_id

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter."""
        return self.reply is not None and self.reply.outcome is Outcome.DEAD

    def state(self, now: float) -> MessageState:
        """Return where it stands at `now`."""
        if self.reply is not None:
            return _STATE_OF[self.reply.outcome]
        return MessageState.SCHEDULED if self.due > now else MessageState.PENDING


def key_name(message: NewMessage) -> KeyName | None:
    """Return what names `message` besides its id; `None` without a key."""
    if message.key is None:
        return None
    return message.entity_type, message.entity_id, message.handler, message.key


def as_pending(row: Row) -> PendingMessage:
    """Return `row` as its owner loads it."""
    message = row.message
    headers, unreadable = _headers(message)
    return PendingMessage(
        message_id=message.message_id,
        shard=message.shard,
        entity_type=message.entity_type,
        entity_id=message.entity_id,
        handler=message.handler,
        body=message.body,
        headers=headers,
        key=message.key,
        deliver_at=row.due,
        attempts=row.attempts,
        unreadable=unreadable,
    )


def as_row(row: Row, now: float, *, is_listed: bool = False) -> MessageRow:
    """Return all that is known of `row`; one of many is without body, headers, reply and history."""
    message = row.message
    headers, unreadable = _headers(message)
    has_body = not is_listed and (row.reply is None or row.is_dead)
    return MessageRow(
        message_id=message.message_id,
        shard=message.shard,
        entity_type=message.entity_type,
        entity_id=message.entity_id,
        handler=message.handler,
        state=row.state(now),
        key=message.key,
        attempts=row.attempts,
        created_at=row.created_at,
        deliver_at=row.due or None,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        body=message.body if has_body else None,
        headers=None if is_listed else headers,
        reply=None if is_listed else row.reply,
        history=() if is_listed else row.history,
        unreadable="" if is_listed else unreadable,
    )


def _headers(message: NewMessage) -> tuple[Mapping[str, str] | None, str]:
    """Return the headers, and what is wrong with them: whoever stored them may have had others than text."""
    try:
        return msgspec.convert(message.headers, dict[str, str] | None), ""
    except msgspec.ValidationError as exc:
        return None, f"headers: {exc}: {message.headers!r:.200}"


def matches(row: Row, wanted: MessageFilter, now: float) -> bool:
    """Whether `wanted` lets `row` through; its `limit` is ignored."""
    message = row.message
    return (
        message.message_id > wanted.after_id
        and (not wanted.states or row.state(now) in wanted.states)
        and wanted.entity_type in (None, message.entity_type)
        and wanted.entity_id in (None, message.entity_id)
        and wanted.handler in (None, message.handler)
        and wanted.shard in (None, message.shard)
        and wanted.key in (None, message.key)
        and (wanted.older_than is None or row.created_at <= now - wanted.older_than)
    )
