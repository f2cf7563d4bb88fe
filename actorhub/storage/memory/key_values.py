"""One process's access to the key-value store of a memory store."""

import asyncio
from collections.abc import Callable

from actorhub.storage.key_value_ports import ClearStep, StoredValue
from actorhub.storage.memory.key_value_table import KeyValueTable


class MemoryKeyValues:
    """A `KeyValueStore` on a memory store.

    Args:
        table: The server's side.
        check_open: Raises `PersistenceError` while nothing can be done.
    """

    def __init__(self, table: KeyValueTable, check_open: Callable[[], None]) -> None:
        self._table = table
        self._check_open = check_open

    async def get(self, key: str) -> StoredValue | None:
        """Return the value; `None` if there is none."""
        return (await self._reached()).get(key)

    async def put(self, key: str, data: bytes, ttl: float | None) -> None:
        """Write a value, whatever was there; without `ttl` it stays for ever."""
        (await self._reached()).put(key, data, ttl)

    async def swap(self, key: str, expected: bytes | None, data: bytes | None, ttl: float | None) -> bool:
        """Write `data` if the value is `expected`; return whether it was."""
        return (await self._reached()).swap(key, expected, data, ttl)

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        return (await self._reached()).delete(key)

    async def count(self, prefix: str, limit: int | None) -> int:
        """Return how many keys start with `prefix`, or `limit` if there are more."""
        return (await self._reached()).count(prefix, limit)

    async def clear(self, prefix: str, after: str, limit: int) -> ClearStep:
        """Delete the first `limit` keys that start with `prefix` and come after `after`."""
        return (await self._reached()).clear(prefix, after, limit)

    async def remove_expired(self, limit: int) -> int:
        """Delete at most `limit` values whose time is over; return how many."""
        return (await self._reached()).remove_expired(limit)

    async def _reached(self) -> KeyValueTable:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._table
