"""Operations on the key-value store as they travel, and what keys and values may be."""

import re
from typing import Final, TypeAlias

import msgspec

from actorhub.core.errors import MalformedMessage, MessageTooLarge

MAX_KEY_BYTES: Final = 1024
"""Longest key, with its prefix, in UTF-8."""
MAX_VALUE_BYTES: Final = 1 << 20
"""Largest value, encoded."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Get(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Return a value; the answer is a `StoredValue` or `nil`."""

    key: str


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Write a value, whatever was there; the answer is `nil`."""

    key: str
    data: bytes
    ttl: float | None


class Swap(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Write a value if another one is there; the answer is whether it was."""

    key: str
    expected: bytes | None
    data: bytes | None
    ttl: float | None


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Delete a value; the answer is whether there was one."""

    key: str


class Count(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Count keys by their prefix, up to a limit; the answer is their number."""

    prefix: str
    limit: int | None


class Clear(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Delete a step of the keys with a prefix; the answer is a `ClearStep`."""

    prefix: str
    after: str
    limit: int


Operation: TypeAlias = Get | Put | Swap | Delete | Count | Clear
"""What a runner is asked to do on its store. A wire format: append fields with defaults, and tags."""


def check_key(key: object) -> str:
    """Return `key`, its prefix included, if it may be one.

    Raises:
        MalformedMessage: it is not a string, empty, longer than 1,024 bytes in UTF-8, or holds control characters or
            lone surrogates.
    """
    if not isinstance(key, str):
        raise MalformedMessage(f"key must be a string, not {type(key).__name__}: {key!r:.80}")
    if not key:
        raise MalformedMessage("key must not be empty")
    return check_prefix(key)


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys may begin with it; every key may, and the empty one.

    Raises:
        MalformedMessage: it is longer than 1,024 bytes in UTF-8, or holds control characters or lone surrogates.
    """
    if _CONTROL.search(prefix):
        raise MalformedMessage(f"key {prefix[:80]!r} holds a control character: remove it")
    if len(prefix) * 4 > MAX_KEY_BYTES and (size := len(prefix.encode())) > MAX_KEY_BYTES:
        raise MalformedMessage(
            f"key {prefix[:40]!r}… has {size} bytes, the limit is {MAX_KEY_BYTES}: shorten or hash it"
        )
    return prefix


def check_value(key: str, data: bytes) -> bytes:
    """Return `data` if it may be the value of `key`.

    Raises:
        MessageTooLarge: it is larger than 1 MiB.
    """
    if len(data) > MAX_VALUE_BYTES:
        raise MessageTooLarge(
            f"key {key!r}: its value has {len(data)} bytes, the limit is {MAX_VALUE_BYTES}: "
            "split it, or keep large things elsewhere"
        )
    return data
