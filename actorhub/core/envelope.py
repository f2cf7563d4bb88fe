"""What travels between processes: envelopes, and frames that hold many of them.

An envelope is a small tagged array in msgpack; `body` is already encoded user data and is never touched on the way.
A frame is one msgpack array of envelopes. The tags and field orders are a wire format: append fields (with defaults),
never reorder or remove them.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner
from actorhub.core.errors import MalformedMessage

PROTOCOL_VERSION: Final = 1

ASK: Final = 0
TELL: Final = 1
STREAM: Final = 2
BROADCAST: Final = 3
"""A tell to every resident entity of the type; the reply is their number."""
CANCEL_MESSAGE: Final = 4
"""Cancel the durable message `message_id`; the reply is whether it was pending."""
RETRY_MESSAGE: Final = 5
"""Make the durable message `message_id` due at once, no attempt counted; the reply is whether it was there."""
FIND_MESSAGE: Final = 6
"""Say where the durable message `message_id` is; to any runner."""
POLL_STORAGE: Final = 7
"""Look into the store for messages now; to any runner, the reply is empty."""
KEY_VALUE: Final = 8
"""One operation on the key-value store, as `core.key_value` encodes it; to any runner."""
COMPLETE: Final = 9
"""Complete a deferred value; to any runner, the reply is whether this was the first outcome."""
COMPLETED: Final = 10
"""The deferred value whose token has the hash in the body was completed: look, if a run waits for it."""
HEALTH: Final = 11
"""Say how you are; to one runner."""

ANY_RUNNER: Final = frozenset({FIND_MESSAGE, POLL_STORAGE, KEY_VALUE, COMPLETE, COMPLETED, HEALTH})
"""Requests that belong to no shard: what they lead to does not depend on who owns what."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First envelope in each direction of a link: who speaks."""

    protocol: int
    namespace: str
    address: str
    """Where the speaker listens; empty for a client, which hosts nothing."""
    incarnation: str
    machine_id_wanted: bool = False
    """A client without a database asks the runner to lease it a machine id."""


class Durable(msgspec.Struct, array_like=True):
    """What a call of a durable handler says besides."""

    key: str | None = None
    """The caller's idempotency key."""
    deliver_at: float = 0.0
    """Seconds since the Unix epoch before which it must not run; 0: at once."""
    delay: float = 0.0
    """Instead: seconds after it was stored."""
    is_stored: bool = False
    """It is a pending row already; a tell of this kind only says so."""
    is_repeated: bool = False
    """It may have been sent before."""
    is_deposit: bool = False
    """No owner is known: store it for whoever will own the shard. If it is stored: it was, so the owner must look."""
    payload_hash: bytes = b""
    """Of the arguments, where there is a key."""


class Request(msgspec.Struct, array_like=True, tag=1):
    """A call of one handler."""

    id: int
    """Chosen by the sender; unique per link and direction while in flight."""
    kind: int
    entity_type: str
    entity_id: str
    handler: str
    body: bytes
    timeout_ms: int
    """Time left when it was sent; 0 means none was set."""
    hops: int = 0
    chain: tuple[str, ...] = ()
    """`type/id` of the entities that wait for this call, outermost first."""
    headers: dict[str, str] = {}
    message_id: int = 0
    credit: int = 0
    """Stream: how many items the consumer takes before it grants more."""
    waits_for_room: bool = False
    """Queue beyond the mailbox's capacity instead of failing."""
    durable: Durable | None = None
    skip: int = 0
    """Durable stream: how many items the consumer has already."""


class Reply(msgspec.Struct, array_like=True, tag=2):
    """The value of a request; for a stream, its end."""

    id: int
    epoch: int
    body: bytes


class Failure(msgspec.Struct, array_like=True, tag=3):
    """The error of a request: a handler's or the framework's, in the form of `core.codec.encode_error`."""

    id: int
    epoch: int
    body: bytes


class NotOwner(msgspec.Struct, array_like=True, tag=4):
    """The receiver does not own the shard; nothing ran. It names the owner that it knows."""

    id: int
    hint: ShardOwner | None = None


class Chunk(msgspec.Struct, array_like=True, tag=5):
    """Items of a stream, in order."""

    id: int
    epoch: int
    bodies: list[bytes]


class Credit(msgspec.Struct, array_like=True, tag=6):
    """The consumer of a stream takes `count` more items."""

    id: int
    count: int


class Cancel(msgspec.Struct, array_like=True, tag=7):
    """The caller no longer waits; `timed_out` tells a passed deadline from a cancelled caller."""

    id: int
    timed_out: bool = False


class Owners(msgspec.Struct, array_like=True, tag=8):
    """News of the routing table. `complete` replaces what the receiver knew of the speaker's own shards."""

    owned: list[ShardOwner]
    released: list[ShardId] = []
    complete: bool = False


class Members(msgspec.Struct, array_like=True, tag=9):
    """The live runners and cluster-wide values that a client needs for routing."""

    runners: list[RunnerAddress]
    shards_per_group: int
    entity_types: list[str]
    """Every type that some live runner hosts."""
    machine_id: int = -1
    """The machine id leased to this client; -1 means none."""


class Leaving(msgspec.Struct, array_like=True, tag=10):
    """The speaker drains: send it nothing new that another runner can take."""

    reason: str = ""


Envelope: TypeAlias = (
    Hello | Request | Reply | Failure | NotOwner | Chunk | Credit | Cancel | Owners | Members | Leaving
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Envelope])


def encode_frame(envelopes: Sequence[Envelope]) -> bytes:
    """Return one frame that holds `envelopes` in order."""
    return _encoder.encode(envelopes)


def decode_frame(data: bytes) -> list[Envelope]:
    """Return the envelopes of one frame.

    Raises:
        MalformedMessage: `data` is not a frame of this protocol.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise MalformedMessage(f"not a frame of envelopes: {exc}") from exc
