"""What travels between processes: envelopes, and the frames that contain them.

An envelope is a small tagged msgpack array. Its `body` is user data, encoded by the sender and not decoded on the way.
A frame is one msgpack array of envelopes. Tags and the order of fields are a wire format: append fields, with defaults;
never reorder or remove them.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, TypeAlias

import msgspec

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner
from actorhub.core.errors import MalformedMessage

PROTOCOL_VERSION: Final = 1

ASK: Final = 0
TELL: Final = 1
STREAM: Final = 2
BROADCAST: Final = 3
"""A tell to every resident entity of the type. The reply is their number."""
CANCEL_MESSAGE: Final = 4
"""Cancel the durable message `message_id`. The reply, once its end is decided, is whether this cancelled it. With the
header `TERMINATE`, which earlier releases do not look at, a run of it ends without its handler being told."""
TERMINATE: Final = "actorhub-terminate"
RETRY_MESSAGE: Final = 5
"""Make the durable message `message_id` due now, with no attempt counted. The reply is whether it will run."""
HOME: Final = "actorhub-home"
"""Header of a `RETRY_MESSAGE` about message 0, which is none: asks the owner of the shard that it names whether it has
the entity there. If so there is a reply, whatever it says; else `NotOwner` names another shard. The release before does
not look at the header, and answers so by its own declaration if it has the handler that the request names."""
MAY_MOVE: Final = "actorhub-may-move"
"""Header beside `HOME`: who asks has declared the entity for a shard that it owns."""
FIND_MESSAGE: Final = 6
"""Return the state of the durable message `message_id`. Any runner answers."""
POLL_STORAGE: Final = 7
"""Poll the store for messages now. Any runner answers, with an empty reply."""
KEY_VALUE: Final = 8
"""One operation on the key-value store, as `core.key_value` encodes it. Any runner answers."""
COMPLETE: Final = 9
"""Complete a deferred value. Any runner answers with whether this was the first outcome."""
COMPLETED: Final = 10
"""News that the deferred value whose token has the hash in the body was completed, for runs that wait for it."""
HEALTH: Final = 11
"""Report the health of the runner that gets this request."""
LET_GO: Final = 12
"""Act no longer for tenures of the receiver that the body lists (`ShardOwner`), because the sender has their locks. The
reply is whether it acts for none of them. Earlier releases refuse the request, and their leases are waited out."""
ECHO: Final = 13
"""Answer at once, with nothing: by then everything has arrived that was sent before over the same link."""
DIAL: Final = 14
"""Connect to the sender at the address that it advertises. The reply, a text, is why that failed; empty: it did not."""

ABOUT_MESSAGES: Final = frozenset({CANCEL_MESSAGE, RETRY_MESSAGE})
"""Requests about stored messages, for the owners of their shards; the body may name the shard, such as `default:42`."""
ANY_RUNNER: Final = frozenset({FIND_MESSAGE, POLL_STORAGE, KEY_VALUE, COMPLETE, COMPLETED, HEALTH, LET_GO, ECHO, DIAL})
"""Requests that belong to no shard. Their effect does not depend on who owns which shard."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first envelope in each direction of a link. It identifies the sender."""

    protocol: int
    namespace: str
    address: str
    """Where the sender listens, or empty for a client, which hosts nothing."""
    incarnation: str
    machine_id_wanted: bool = False
    """Whether the sender, a client without a database, asks the runner to lease it a machine id."""
    relays: bool = False
    """Whether the sender is a runner that passes on, and takes, links through other runners (`Relayed`)."""
    cluster: str = ""
    """Which cluster the sender's database says that it belongs to; empty for a client without one."""
    era: str = ""
    """In which era of that database the sender is. Later ones are greater."""


class Durable(msgspec.Struct, array_like=True):
    """The additional fields of a call of a durable handler."""

    key: str | None = None
    """The caller's idempotency key."""
    deliver_at: float = 0.0
    """Seconds since the Unix epoch before which the message must not run; 0: it may run at once."""
    delay: float = 0.0
    """Instead of `deliver_at`: seconds after the message is stored."""
    is_stored: bool = False
    """Whether the message is a pending row already. Such a tell only announces it."""
    is_repeated: bool = False
    """Whether the message may have been sent before."""
    is_deposit: bool = False
    """Whether no owner was known: the receiver stores it for the next owner. With `is_stored`: the owner must poll."""
    payload_hash: bytes = b""
    """Hash of the arguments, if there is a key."""

    @property
    def is_wake(self) -> bool:
        """Whether it only makes the owner of the shard that it names poll the store."""
        return self.is_deposit and self.is_stored


class Request(msgspec.Struct, array_like=True, tag=1):
    """A call of one handler."""

    id: int
    """Chosen by the sender. Unique per link and direction while the request is in flight."""
    kind: int
    entity_type: str
    entity_id: str
    handler: str
    body: bytes
    timeout_ms: int
    """Time left until the deadline when the request was sent, or 0 without a deadline."""
    hops: int = 0
    chain: tuple[str, ...] = ()
    """The `type/id` of each entity that waits for this call, outermost first."""
    headers: dict[str, str] = {}
    message_id: int = 0
    credit: int = 0
    """For a stream: how many items may be sent before the consumer grants more."""
    waits_for_room: bool = False
    """Whether to queue beyond the capacity of the mailbox instead of failing."""
    durable: Durable | None = None
    skip: int = 0
    """For a durable stream: how many items the consumer already has."""
    shard: ShardId | None = None
    """The shard to whose owner it was sent; `None` if the sender's release does not say."""


class Reply(msgspec.Struct, array_like=True, tag=2):
    """The value that a request returns. For a stream, its end."""

    id: int
    epoch: int
    body: bytes


class Failure(msgspec.Struct, array_like=True, tag=3):
    """The error that a request ends with, from the handler or from actorhub, encoded by `core.codec.encode_error`."""

    id: int
    epoch: int
    body: bytes


class NotOwner(msgspec.Struct, array_like=True, tag=4):
    """The runner that got the request does not own the shard, and ran nothing.

    `hint` is the owner that it knows of. The address is empty if it knows only in which shard it has the entity.
    """

    id: int
    hint: ShardOwner | None = None


class Chunk(msgspec.Struct, array_like=True, tag=5):
    """Items of a stream, in order."""

    id: int
    epoch: int
    bodies: list[bytes]


class Credit(msgspec.Struct, array_like=True, tag=6):
    """The consumer of a stream accepts `count` more items."""

    id: int
    count: int


class Cancel(msgspec.Struct, array_like=True, tag=7):
    """The caller no longer waits: its deadline passed (`timed_out`) or it was cancelled."""

    id: int
    timed_out: bool = False


class Owners(msgspec.Struct, array_like=True, tag=8):
    """News for the routing table. With `complete`, `owned` lists all shards that the sender owns."""

    owned: list[ShardOwner]
    released: list[ShardId] = []
    complete: bool = False


class Members(msgspec.Struct, array_like=True, tag=9):
    """The live runners, and the cluster-wide values that a client needs for routing."""

    runners: list[RunnerAddress]
    shards_per_group: int
    entity_types: list[str]
    """Every entity type that at least one live runner hosts."""
    machine_id: int = -1
    """The machine id that is leased to this client, or -1 for none."""
    groups: list[str] = []
    """Every shard group that at least one live runner hosts; empty if the sender's release does not say."""


class Leaving(msgspec.Struct, array_like=True, tag=10):
    """The sender is draining: send it nothing new that another runner can take."""

    reason: str = ""


class Relayed(msgspec.Struct, array_like=True, tag=11):
    """A piece of a link that goes through a third process, a runner that both ends have a link to.

    Only sent to processes whose `Hello` says that they know this envelope, and by them.
    """

    link: str
    """A random id, chosen by the process that opens the link."""
    frame: bytes = b""
    """Envelopes, encoded. The first frame in each direction begins with a `Hello`."""
    target: str = ""
    """In the first one: the incarnation of the runner that the link is to lead to."""
    source: str = ""
    """Added to the first one by the runner in between: the incarnation of the process that it came from."""
    taken: int = 0
    """Bytes of frames that the sender has taken, so that as many more may be sent to it."""
    ended: str = ""
    """Why the link is over; empty while it is not."""
    done: bool = False
    """The sender makes no more calls over this link, and has had the answers to those that it made."""


Envelope: TypeAlias = (
    Hello | Request | Reply | Failure | NotOwner | Chunk | Credit | Cancel | Owners | Members | Leaving | Relayed
)

_ENVELOPES: Final[tuple[type[msgspec.Struct], ...]] = (
    Hello, Request, Reply, Failure, NotOwner, Chunk, Credit, Cancel, Owners, Members, Leaving, Relayed
)  # fmt: skip
_KIND_OF: Final = {kind.__struct_config__.tag: kind for kind in _ENVELOPES}
_FIELD: Final = re.compile(r" - at `\$\[(\d+)\]\S*")
"""How msgspec says which element of an array does not fit."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Envelope])
_decode_one: Final = msgspec.msgpack.Decoder(Envelope).decode
_decode_parts: Final = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=1 << 16)]).decode
"""No frame of ours has a tenth as many; a hostile one must not become millions of objects."""
_decode_id: Final = msgspec.msgpack.Decoder(int).decode
_BAD: Final = (msgspec.MsgspecError, RecursionError, ValueError)


class Malformed(msgspec.Struct, frozen=True):
    """What stands for an envelope that cannot be decoded. It does not travel."""

    kind: type[msgspec.Struct] | None
    """Which kind of envelope it is; `None` if that cannot be read, or is not known here."""
    id: int | None
    """Its first field, if that is a number: of a request and of what answers one, the request's id."""
    problem: str
    """What does not fit; it names the field."""


def encode_frame(envelopes: Sequence[Envelope]) -> bytes:
    """Return one frame with `envelopes` in order."""
    return _encoder.encode(envelopes)


def decode_frame(data: bytes) -> list[Envelope]:
    """Return the envelopes of one frame.

    Raises:
        MalformedMessage: `data` is not a frame of this protocol.
    """
    try:
        return _decoder.decode(data)
    except _BAD as exc:
        raise MalformedMessage(f"not a frame of envelopes: {exc}") from exc


def take_apart(data: bytes) -> Iterator[Envelope | Malformed]:
    """Yield the envelopes of a frame that `decode_frame` refuses: each is decoded by itself.

    Raises:
        MalformedMessage: `data` is not a list, so nobody knows where an envelope begins.
    """
    try:
        parts = _decode_parts(data)
    except _BAD as exc:
        raise MalformedMessage(f"not a frame of envelopes: {exc}") from exc
    for part in parts:
        try:
            yield _decode_one(part)
        except _BAD as exc:
            yield _malformed(part, str(exc))


def _malformed(part: msgspec.Raw, problem: str) -> Malformed:
    try:
        fields = _decode_parts(part)
        kind = _KIND_OF.get(_decode_id(fields[0]))
    except (*_BAD, IndexError):
        return Malformed(None, None, problem)
    try:
        number = _decode_id(fields[1])
    except (*_BAD, IndexError):
        number = None
    place = _FIELD.search(problem)
    if kind is not None and place is not None and 0 < int(place[1]) <= len(kind.__struct_fields__):
        problem = f"{kind.__struct_fields__[int(place[1]) - 1]}: {problem[: place.start()]}"
    return Malformed(kind, number, problem)
