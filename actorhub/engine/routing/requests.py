"""Messages as requests to the process that owns their shard."""

from typing import Final

from actorhub.core.envelope import Request
from actorhub.engine.model.records import FOREVER, Message

_LONGEST_TIMEOUT_MS: Final = 2**31 - 1


def request_of(message: Message, now: float) -> Request:
    """Return the request that asks a peer to run `message`, at a monotonic time."""
    # The deadline travels as the time that is left, since the peer has another clock. On the wire 0 means that there is
    # none, so a deadline that has just passed is sent as one millisecond.
    timeout_ms = 0
    if message.deadline != FOREVER:
        timeout_ms = int((message.deadline - now) * 1000)
        if not 0 < timeout_ms <= _LONGEST_TIMEOUT_MS:
            timeout_ms = 1 if timeout_ms <= 0 else _LONGEST_TIMEOUT_MS
    spec = message.spec
    return Request(
        message.request_id,
        message.kind,
        spec.entity_type,
        message.entity_id,
        spec.name,
        message.body,
        timeout_ms,
        message.hops,
        message.chain,
        message.headers or {},
        message.message_id,
        message.credit,
        message.waits_for_room,
        message.delivery,
        message.skip,
        message.shard_id,
    )
