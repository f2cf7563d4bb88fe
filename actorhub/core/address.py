"""Addresses of entities, shards and runners, and the hashes that are wire formats."""

import re
from typing import Final, Self

import mmh3
import msgspec

from actorhub.core.arguments import check_name
from actorhub.core.errors import ConfigurationError, MalformedMessage

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
"""Namespaces, shard groups and all other names that become part of an SQL identifier must match this in full."""

HASH_VERSION: Final = "mmh3-32/seed-0"
"""Identifies the hash behind `shard_number`. Runners with different ones refuse to share a cluster."""


class ShardId(msgspec.Struct, frozen=True, order=True, array_like=True, cache_hash=True):
    """A fixed slot of a shard group, written `group:number`."""

    group: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that `text` (such as `default:42`) names.

        Raises:
            ConfigurationError: `text` is not of the form `group:number`.
        """
        group, separator, number = text.rpartition(":")
        if not separator or not NAME_PATTERN.fullmatch(group) or not (number.isascii() and number.isdigit()):
            raise ConfigurationError(f"{text!r} is not a shard: write group:number, such as default:42")
        return cls(group, int(number))

    def __str__(self) -> str:
        return f"{self.group}:{self.number}"


class RunnerAddress(msgspec.Struct, frozen=True, array_like=True):
    """One start of one runner: the address of the runner, and the random id made at that start."""

    address: str
    """`host:port` at which peers reach the runner."""
    incarnation: str

    def __str__(self) -> str:
        return f"{self.address}#{self.incarnation[:6]}"


class ShardOwner(msgspec.Struct, frozen=True, array_like=True):
    """The owner of a shard, as far as the sender knows."""

    shard: ShardId
    runner: RunnerAddress
    epoch: int


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner tells the cluster about itself."""

    runner: RunnerAddress
    weight: float = 1.0
    groups: tuple[str, ...] = ("default",)
    entity_types: tuple[str, ...] = ()
    """Names of the entity types that the runner can host."""
    draining: bool = False
    version: str = ""
    slot: int = -1
    """Its number among the registered runners of its groups. The store assigns it at registration; -1 before that."""


def shard_number(key: str, shards: int) -> int:
    """Return the number, in [0, shards), of the shard of `key`. A wire format: all runners of a cluster must agree."""
    return mmh3.hash(key.encode(), 0, signed=False) % shards


def lock_key(namespace: str, purpose: str) -> int:
    """Return the signed 64-bit Postgres advisory-lock key of (namespace, purpose).

    A wire format, frozen by a test: runners of different releases exclude each other by these locks.
    `purpose` is `shard/<group>:<number>`, `fence/<incarnation>` or another slash-separated name.
    """
    low, _ = mmh3.hash64(f"{namespace}/{purpose}".encode(), 0, signed=True)
    return low


def shard_lock_key(namespace: str, shard: ShardId) -> int:
    """Return the advisory-lock key of one shard. It depends on the namespace and the shard id only."""
    return lock_key(namespace, f"shard/{shard}")


def fence_lock_key(namespace: str, incarnation: str) -> int:
    """Return the advisory-lock key of the commit fence of one incarnation of a runner."""
    return lock_key(namespace, f"fence/{incarnation}")


def check_entity_id(entity_id: object, max_bytes: int) -> str:
    """Return `entity_id` if it is valid.

    Raises:
        MalformedMessage: The id is not a string, is empty, is longer than `max_bytes` in UTF-8, or contains control
            characters.
    """
    checked = check_name(entity_id, "entity id", max_bytes)
    if not checked:
        raise MalformedMessage("entity id must not be empty")
    return checked
