"""Durable messages as messages of `actorhub.admin.v1`, readable without our library."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.codec import decode_error
from actorhub.core.errors import MalformedMessage
from actorhub.core.idempotency import users_key
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.ops.failures import failure_of
from actorhub.storage.message_ports import FailedRun, MessageFilter, MessageRow, MessageState, Outcome, StoredReply
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

_LONGEST_JSON: Final = 256 << 10
"""Bytes of JSON text; the same data in msgpack is always there, and both must fit into one reply."""
_LONGEST_TRACEBACK: Final = 16_000
_LONGEST_ERROR: Final = 2_000
_LONGEST_LINE: Final = 200
"""Characters of an error in a list."""
_RUNS: Final = 20
"""The latest failed runs that are shown."""

_STATES: Final = {
    MessageState.PENDING: pb.MESSAGE_STATE_PENDING,
    MessageState.SCHEDULED: pb.MESSAGE_STATE_SCHEDULED,
    MessageState.DONE: pb.MESSAGE_STATE_DONE,
    MessageState.FAILED: pb.MESSAGE_STATE_FAILED,
    MessageState.CANCELLED: pb.MESSAGE_STATE_CANCELLED,
    MessageState.DEAD: pb.MESSAGE_STATE_DEAD,
}
_STATES_BACK: Final = {number: state for state, number in _STATES.items()}

_encode_json: Final = msgspec.json.Encoder(enc_hook=repr).encode


def state_number(state: MessageState) -> pb.MessageState.ValueType:
    """Return the state's number."""
    return _STATES[state]


def filter_of(wanted: pb.MessageFilter) -> MessageFilter:
    """Return the store's form of a filter, for its first page.

    Raises:
        MalformedMessage: a field has a value that makes no sense. The text names it.
    """
    for number in wanted.states:
        if number not in _STATES_BACK:
            raise MalformedMessage(f"filter.states: there is no state {number}")
    if not 0 <= wanted.older_than_seconds < float("inf"):
        raise MalformedMessage(f"filter.older_than_seconds={wanted.older_than_seconds} must not be negative")
    return MessageFilter(
        states=frozenset(_STATES_BACK[number] for number in wanted.states),
        entity_type=wanted.entity_type or None,
        entity_id=wanted.entity_id or None,
        handler=wanted.handler or None,
        shard=ShardId.parse(wanted.shard) if wanted.shard else None,
        key=wanted.key or None,
        older_than=wanted.older_than_seconds or None,
    )


def listed_message(row: MessageRow, specs: Mapping[str, EntitySpec]) -> pb.Message:
    """Return a message as lists show it: with its last error in one line."""
    message = _message(row, _spec(row, specs))
    if row.history:
        last = row.history[-1]
        message.history.append(
            pb.FailedRun(
                attempt=last.attempt,
                at=last.at,
                error_type=last.error_type[:_LONGEST_LINE],
                error_text=last.error_text[:_LONGEST_LINE],
            )
        )
    return message


def whole_message(row: MessageRow, specs: Mapping[str, EntitySpec]) -> pb.Message:
    """Return all that is known about a message, its arguments and value as JSON, too."""
    spec = _spec(row, specs)
    message = _message(row, spec)
    if row.body is not None:
        message.arguments = row.body
        message.arguments_json = _shortened(_arguments_json(spec, row.body))
    message.headers.update(row.headers or {})
    message.unreadable = row.unreadable
    if row.reply is not None and row.reply.outcome is not Outcome.CANCELLED:
        message.reply.CopyFrom(_reply(spec, row.reply))
    message.history.extend(_failed_run(run) for run in _latest(row.history))
    return message


def _spec(row: MessageRow, specs: Mapping[str, EntitySpec]) -> HandlerSpec | None:
    entity = specs.get(row.entity_type)
    return entity.handlers.get(row.handler) if entity is not None else None


def _message(row: MessageRow, spec: HandlerSpec | None) -> pb.Message:
    return pb.Message(
        message_id=row.message_id,
        shard=str(row.shard),
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        handler=row.handler,
        state=_STATES[row.state],
        key=users_key(row.key),
        attempts=max(row.attempts, 0),  # somebody may have written any number
        created_at=row.created_at,
        deliver_at=row.deliver_at or None,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        max_attempts=spec.retry.attempts if spec is not None else None,
    )


def _latest(history: Sequence[FailedRun]) -> Sequence[FailedRun]:
    return history[-_RUNS:]


def _failed_run(run: FailedRun) -> pb.FailedRun:
    return pb.FailedRun(
        attempt=run.attempt,
        at=run.at,
        error_type=run.error_type[:_LONGEST_ERROR],
        error_text=run.error_text[:_LONGEST_ERROR],
        # Its end says most.
        traceback=run.traceback[-_LONGEST_TRACEBACK:],
    )


def _reply(spec: HandlerSpec | None, reply: StoredReply) -> pb.MessageReply:
    if reply.outcome is Outcome.VALUE:
        return pb.MessageReply(value=reply.body, value_json=_shortened(_value_json(spec, reply.body)))
    failure = failure_of(decode_error(reply.body))
    error = pb.MessageError(
        kind=failure.kind, message=failure.message[:_LONGEST_ERROR], fields_json=_shortened(failure.fields_json)
    )
    return pb.MessageReply(error=error)


def _arguments_json(spec: HandlerSpec | None, body: bytes) -> str:
    if spec is not None:
        try:
            values = spec.decode_arguments(body)
        except MalformedMessage:
            return _any_json(body)
        return _json(values[0] if len(values) == 1 else dict(zip(spec.parameters, values, strict=True)))
    return _any_json(body)


def _value_json(spec: HandlerSpec | None, body: bytes) -> str:
    if spec is not None:
        try:
            return _json(spec.result.decode(body))
        except MalformedMessage:
            return _any_json(body)
    return _any_json(body)


def _any_json(body: bytes) -> str:
    """Return msgpack of unknown type as JSON; empty if JSON cannot hold it."""
    try:
        return _json(msgspec.msgpack.decode(body))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return ""


def _json(value: object) -> str:
    try:
        return _encode_json(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return ""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_JSON // 4 or len(text.encode()) <= _LONGEST_JSON else ""
