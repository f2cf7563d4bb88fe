"""One process's access to the key-value store of a memory store."""

import asyncio
from collections.abc import Callable

from typing_extensions import override

from actorhub.storage.key_value_ports import ClearStep, KeyValueStore, StoredValue
from actorhub.storage.memory.key_value_table import KeyValueTable


class MemoryKeyValues(KeyValueStore):
    """A `KeyValueStore` on a memory store.

    Args:
        table: The server's side.
        check_open: Raises `PersistenceError` while nothing can be done.
    """

    def __init__(self, table: KeyValueTable, check_open: Callable[[], None]) -> None:
        self._table = table
        self._check_open = check_open

    @override
    async def get(self, key: str) -> StoredValue | None:
        return (await self._reached()).get(key)

    @override
    async def put(self, key: str, data: bytes, ttl: float | None) -> None:
        (await self._reached()).put(key, data, ttl)

    @override
    async def swap(self, key: str, expected: bytes | None, data: bytes | None, ttl: float | None) -> bool:
        return (await self._reached()).swap(key, expected, data, ttl)

    @override
    async def delete(self, key: str) -> bool:
        return (await self._reached()).delete(key)

    @override
    async def count(self, prefix: str, limit: int | None) -> int:
        return (await self._reached()).count(prefix, limit)

    @override
    async def clear(self, prefix: str, after: str, limit: int) -> ClearStep:
        return (await self._reached()).clear(prefix, after, limit)

    @override
    async def remove_expired(self, limit: int) -> int:
        return (await self._reached()).remove_expired(limit)

    async def _reached(self) -> KeyValueTable:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._table
