"""What a program and the engine ask of the key-value store."""

from typing import Protocol

import msgspec


class StoredValue(msgspec.Struct, frozen=True, array_like=True):
    """A value and how long it has left. A wire format: append fields with defaults."""

    data: bytes
    ttl: float | None = None
    """Seconds; `None`: until it is deleted."""


class ClearStep(msgspec.Struct, frozen=True, array_like=True):
    """What one step of clearing did. A wire format: append fields with defaults."""

    removed: int
    """Values that were deleted; those whose time was over do not count."""
    last: str | None = None
    """Where the next step begins; `None`: there is nothing left."""


class KeyValues(Protocol):
    """Bytes by key. A value whose time is over is gone for every method at once, by the store's clock.

    Each method is one statement: readers see all of it or nothing, and what it acknowledged. Nothing is repeated where
    that could write twice. A caller that is cancelled leaves the outcome of a write open.

    All methods raise `PersistenceError` when the store fails; `possibly_executed` says whether a write may have
    happened.
    """

    async def get(self, key: str) -> StoredValue | None:
        """Return the value; `None` if there is none."""
        ...

    async def put(self, key: str, data: bytes, ttl: float | None) -> None:
        """Write a value, whatever was there; without `ttl` (seconds) it stays until it is deleted."""
        ...

    async def swap(self, key: str, expected: bytes | None, data: bytes | None, ttl: float | None) -> bool:
        """Write `data` if the value is `expected`; return whether it was.

        Args:
            key: Of the value.
            expected: `None`: there is no value.
            data: `None`: delete the value.
            ttl: Seconds that a new value has; one that is replaced keeps its time.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        ...

    async def count(self, prefix: str, limit: int | None) -> int:
        """Return how many keys start with `prefix`, or `limit` if there are more. Complexity: linear in the result."""
        ...

    async def clear(self, prefix: str, after: str, limit: int) -> ClearStep:
        """Delete the first `limit` keys, in the order of their UTF-8, that start with `prefix` and come after `after`.

        Begin with an empty `after`, and go on with `last` of the step before.
        """
        ...


class KeyValueStore(KeyValues, Protocol):
    """The store itself, as a runner has it."""

    async def remove_expired(self, limit: int) -> int:
        """Delete at most `limit` values whose time is over; return how many."""
        ...
