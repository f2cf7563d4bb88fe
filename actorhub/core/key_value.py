"""Operations on the key-value store as they travel, and the limits of keys and values."""

from typing import Final, TypeAlias

import msgspec

from actorhub.core.arguments import check_name
from actorhub.core.errors import MalformedMessage, MessageTooLarge

MAX_KEY_BYTES: Final = 1024
"""Longest key in UTF-8, including its prefix."""
MAX_VALUE_BYTES: Final = 1 << 20
"""Largest encoded value."""


class Get(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Read a value. The answer is a `StoredValue` or `nil`."""

    key: str


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Write a value and replace an existing one. The answer is `nil`."""

    key: str
    data: bytes
    ttl: float | None


class Swap(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Replace, or delete, a value if the stored one is `expected`. The answer is whether it was."""

    key: str
    expected: bytes | None
    data: bytes | None
    ttl: float | None


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Delete a value. The answer is whether there was one."""

    key: str


class Count(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Count the keys with a prefix, up to a limit. The answer is their number."""

    prefix: str
    limit: int | None


class Clear(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Delete the next `limit` keys with a prefix. The answer is a `ClearStep`."""

    prefix: str
    after: str
    limit: int


Operation: TypeAlias = Get | Put | Swap | Delete | Count | Clear
"""What a client can ask a runner to do in the store. A wire format: only append tags, and fields with defaults."""


def check_key(key: object) -> str:
    """Return `key`, which includes its prefix, if it is valid.

    Raises:
        MalformedMessage: The key is not a string, is empty, is longer than 1,024 bytes in UTF-8, or contains control
            characters or lone surrogates.
    """
    checked = check_prefix(key)
    if not checked:
        raise MalformedMessage("key must not be empty")
    return checked


def check_prefix(prefix: object) -> str:
    """Return `prefix` if a valid key can begin with it. Every valid key qualifies, and so does the empty text.

    Raises:
        MalformedMessage: The prefix is not a string, is longer than 1,024 bytes in UTF-8, or contains control
            characters or lone surrogates.
    """
    return check_name(prefix, "key", MAX_KEY_BYTES)


def check_value(key: str, data: bytes) -> bytes:
    """Return `data`, the encoded value of `key`, if it is not too large.

    Raises:
        MessageTooLarge: It is larger than 1 MiB.
    """
    if len(data) > MAX_VALUE_BYTES:
        raise MessageTooLarge(
            f"key {key!r}: the value has {len(data)} bytes; the limit is {MAX_VALUE_BYTES}: "
            "split it, or store large values elsewhere"
        )
    return data
