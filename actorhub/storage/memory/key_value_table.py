"""The values of a memory store's key-value store."""

from collections.abc import Iterator
from itertools import islice

import msgspec

from actorhub.core.clock import Clock
from actorhub.storage.key_value_ports import ClearStep, StoredValue


class _Row(msgspec.Struct, frozen=True):
    data: bytes
    expires_at: float | None


class KeyValueTable:
    """One row per key; time is the clock's wall time. Each method is a transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rows: dict[str, _Row] = {}

    def __len__(self) -> int:
        """Return how many values are kept, those whose time is over included."""
        return len(self._rows)

    def get(self, key: str) -> StoredValue | None:
        """Return the value; `None` if there is none."""
        row = self._live(key)
        if row is None:
            return None
        return StoredValue(row.data, None if row.expires_at is None else row.expires_at - self._clock.time())

    def put(self, key: str, data: bytes, ttl: float | None) -> None:
        """Write a value, whatever was there."""
        self._rows[key] = _Row(data, None if ttl is None else self._clock.time() + ttl)

    def swap(self, key: str, expected: bytes | None, data: bytes | None, ttl: float | None) -> bool:
        """Write `data` if the value is `expected`; return whether it was."""
        row = self._live(key)
        if (None if row is None else row.data) != expected:
            return False
        if data is None:
            self._rows.pop(key, None)
        elif row is None:
            self.put(key, data, ttl)
        else:
            self._rows[key] = _Row(data, row.expires_at)
        return True

    def delete(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        there = self._live(key) is not None
        self._rows.pop(key, None)
        return there

    def count(self, prefix: str, limit: int | None) -> int:
        """Return how many keys start with `prefix`, or `limit` if there are more."""
        found = (key for key in self._keys(prefix) if self._live(key) is not None)
        return sum(1 for _ in islice(found, limit))

    def clear(self, prefix: str, after: str, limit: int) -> ClearStep:
        """Delete the first `limit` keys that start with `prefix` and come after `after`."""
        found = sorted(key for key in self._keys(prefix) if key > after)[:limit]
        removed = sum(self.delete(key) for key in found)
        return ClearStep(removed, found[-1] if len(found) == limit else None)

    def remove_expired(self, limit: int) -> int:
        """Delete at most `limit` values whose time is over; return how many."""
        over = list(islice((key for key in self._rows if self._live(key) is None), limit))
        for key in over:
            del self._rows[key]
        return len(over)

    def _live(self, key: str) -> _Row | None:
        row = self._rows.get(key)
        over = row is not None and row.expires_at is not None and row.expires_at <= self._clock.time()
        return None if over else row

    def _keys(self, prefix: str) -> Iterator[str]:
        return (key for key in self._rows if key.startswith(prefix))
