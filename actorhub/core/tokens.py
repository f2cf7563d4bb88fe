"""Tokens of deferred values. A token is text that identifies one value and that only the cluster can make."""

import base64
import hashlib
import hmac
from typing import Final

import msgspec

from actorhub.core.errors import MalformedMessage

_MAC_BYTES: Final = 16
_LONGEST: Final = 4096
"""In characters. Even a token with the longest names is shorter."""


class Deferral(msgspec.Struct, frozen=True, array_like=True):
    """What a token identifies. A wire format: only append fields, with defaults."""

    entity_type: str
    entity_id: str
    message_id: int
    """The durable message whose run waits, or 0 for the `run` of a singleton."""
    generation: int
    """For the `run` of a singleton: the number of saves before."""
    name: str


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Deferral).decode


def token_hash(deferral: Deferral, secret: bytes) -> bytes:
    """Return the 16 bytes that stand for a deferred value. Without the secret they cannot be computed."""
    return _hash(_encode(deferral), secret)


def make_token(deferral: Deferral, secret: bytes) -> str:
    """Return the token of a deferred value: URL-safe text, always the same for the same value."""
    data = _encode(deferral)
    return base64.urlsafe_b64encode(data + _hash(data, secret)).decode().rstrip("=")


def read_token(token: str, secret: bytes) -> tuple[Deferral, bytes]:
    """Return what a token identifies, and its hash.

    Raises:
        MalformedMessage: This cluster did not make the token.
    """
    try:
        return _read(token, secret)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise MalformedMessage(
            "not a token of this cluster: use the `token` of a deferred value, whole and unchanged"
        ) from exc


def _read(token: str, secret: bytes) -> tuple[Deferral, bytes]:
    if len(token) > _LONGEST:
        raise ValueError("longer than any token")
    raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    data, found = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    # The hash covers the bytes as received, because a later release may put more into a token than this one reads.
    if not hmac.compare_digest(found, _hash(data, secret)):
        raise ValueError("not signed with this secret")
    return _decode(data), found


def _hash(data: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(data, key=secret, digest_size=_MAC_BYTES).digest()
