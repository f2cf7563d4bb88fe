"""Tokens of deferred values: text that names one, and that only the cluster can make."""

import base64
import binascii
import hashlib
from typing import Final

import msgspec

from actorhub.core.errors import MalformedMessage

_MAC_BYTES: Final = 16
_LONGEST: Final = 4096
"""Characters; a token of the longest names has fewer."""


class Deferral(msgspec.Struct, frozen=True, array_like=True):
    """What a token names. A wire format: append fields only."""

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
    return hashlib.blake2b(_encode(deferral), key=secret, digest_size=_MAC_BYTES).digest()


def make_token(deferral: Deferral, secret: bytes) -> str:
    """Return the token: URL-safe text, the same for the same deferred value."""
    return base64.urlsafe_b64encode(_encode(deferral) + token_hash(deferral, secret)).decode().rstrip("=")


def read_token(token: str, secret: bytes) -> tuple[Deferral, bytes]:
    """Return what a token names, and its hash.

    Raises:
        MalformedMessage: this cluster did not make it.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        deferral = _decode(raw[:-_MAC_BYTES]) if len(token) <= _LONGEST else None
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        deferral, raw = None, b""
    if deferral is None or token_hash(deferral, secret) != raw[-_MAC_BYTES:]:
        raise MalformedMessage("this is no token of a deferred value of this cluster")
    return deferral, raw[-_MAC_BYTES:]
