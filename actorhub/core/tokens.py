"""Tokens of deferred values: text that names one, and that only the cluster can make."""

import base64
import hashlib
import hmac
from typing import Final

import msgspec

from actorhub.core.errors import MalformedMessage

_MAC_BYTES: Final = 16
_LONGEST: Final = 4096
"""Characters; a token of the longest names has fewer."""


class Deferral(msgspec.Struct, frozen=True, array_like=True):
    """What a token names. A wire format: append fields with defaults only."""

    entity_type: str
    entity_id: str
    message_id: int
    """The durable message whose run waits; 0 for a singleton's `run`."""
    generation: int
    """Of a singleton's `run`: how often it was saved before."""
    name: str


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Deferral).decode


def token_hash(deferral: Deferral, secret: bytes) -> bytes:
    """Return the 16 bytes that stand for a deferred value, which nobody without the secret can compute."""
    return _hash(_encode(deferral), secret)


def make_token(deferral: Deferral, secret: bytes) -> str:
    """Return the token: URL-safe text, the same for the same deferred value."""
    data = _encode(deferral)
    return base64.urlsafe_b64encode(data + _hash(data, secret)).decode().rstrip("=")


def read_token(token: str, secret: bytes) -> tuple[Deferral, bytes]:
    """Return what a token names, and its hash.

    Raises:
        MalformedMessage: this cluster did not make it.
    """
    try:
        return _read(token, secret)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise MalformedMessage("this is no token of a deferred value of this cluster") from exc


def _read(token: str, secret: bytes) -> tuple[Deferral, bytes]:
    if len(token) > _LONGEST:
        raise ValueError("longer than any token")
    raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    data, found = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    # Over the bytes as they came: a later release may name more than this one reads.
    if not hmac.compare_digest(found, _hash(data, secret)):
        raise ValueError("not signed with this secret")
    return _decode(data), found


def _hash(data: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(data, key=secret, digest_size=_MAC_BYTES).digest()
