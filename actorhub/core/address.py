"""Addresses: entities, shards and runners, and the hashes that are wire formats."""

import re
from typing import Final, Self

import mmh3
import msgspec

from actorhub.core.errors import ConfigurationError, MalformedMessage

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
"""What a namespace, a shard group, and every other name that reaches an SQL identifier must match in full."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

HASH_VERSION: Final = "mmh3-32/seed-0"
"""Names the function behind `shard_number`; runners that disagree refuse to share a cluster."""


class ShardId(msgspec.Struct, frozen=True, order=True, array_like=True, cache_hash=True):
    """A fixed slot of a shard group, written `group:number`."""

    group: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that `text` (such as `default:42`) names.

        Raises:
            ConfigurationError: `text` is not `group:number`.
        """
        group, separator, number = text.rpartition(":")
        if not separator or not NAME_PATTERN.fullmatch(group) or not (number.isascii() and number.isdigit()):
            raise ConfigurationError(f"{text!r} is not a shard: write group:number, such as default:42")
        return cls(group, int(number))

    def __str__(self) -> str:
        return f"{self.group}:{self.number}"


class RunnerAddress(msgspec.Struct, frozen=True, array_like=True):
    """One start of one runner: where it listens, and the random id made at that start."""

    address: str
    """`host:port` at which peers reach it."""
    incarnation: str

    def __str__(self) -> str:
        return f"{self.address}#{self.incarnation[:6]}"


class ShardOwner(msgspec.Struct, frozen=True, array_like=True):
    """Who acts for a shard, as far as the teller knows."""

    shard: ShardId
    runner: RunnerAddress
    epoch: int


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of itself to the cluster."""

    runner: RunnerAddress
    weight: float = 1.0
    groups: tuple[str, ...] = ("default",)
    entity_types: tuple[str, ...] = ()
    """Names of the entity types that it can host."""
    draining: bool = False
    version: str = ""
    slot: int = -1
    """Its number among the registered runners of its groups, given by the store when it registers; -1 before that."""


def shard_number(key: str, shards: int) -> int:
    """Return which of `shards` slots `key` falls into: a wire format, on which every runner of a cluster agrees."""
    return mmh3.hash(key.encode(), 0, signed=False) % shards


def lock_key(namespace: str, purpose: str) -> int:
    """Return the signed 64-bit Postgres advisory-lock key of (namespace, purpose).

    A wire format, frozen by a test: runners of different releases exclude each other by it.
    `purpose` is `shard/<group>:<number>`, `fence/<incarnation>` or another slash-separated name.
    """
    low, _ = mmh3.hash64(f"{namespace}/{purpose}".encode(), 0, signed=True)
    return low


def shard_lock_key(namespace: str, shard: ShardId) -> int:
    """Return the advisory-lock key of one shard: it depends on nothing but namespace and shard id."""
    return lock_key(namespace, f"shard/{shard}")


def fence_lock_key(namespace: str, incarnation: str) -> int:
    """Return the advisory-lock key of one runner incarnation's commit fence."""
    return lock_key(namespace, f"fence/{incarnation}")


def check_entity_id(entity_id: object, max_bytes: int) -> str:
    """Return `entity_id` if it may be an entity's id.

    Raises:
        MalformedMessage: it is not a string, empty, longer than `max_bytes` in UTF-8, or holds control characters.
    """
    if not isinstance(entity_id, str):
        raise MalformedMessage(f"entity id must be a string, not {type(entity_id).__name__}: {entity_id!r}")
    if not entity_id:
        raise MalformedMessage("entity id must not be empty")
    if _CONTROL.search(entity_id):
        raise MalformedMessage(f"entity id {entity_id[:80]!r} holds a control character: remove it")
    if len(entity_id) * 4 > max_bytes and (size := len(entity_id.encode())) > max_bytes:
        raise MalformedMessage(
            f"entity id {entity_id[:40]!r}… has {size} bytes, the limit is {max_bytes}: shorten or hash it"
        )
    return entity_id
