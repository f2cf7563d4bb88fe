"""The key-value store for a program without a database, which asks the runners that it is linked to."""

from typing import Final

import msgspec

from actorhub.core.codec import decode_answer
from actorhub.core.envelope import KEY_VALUE
from actorhub.core.key_value import Clear, Count, Delete, Get, Operation, Put, Swap
from actorhub.engine.anycast.ask import ask_any
from actorhub.engine.model.spec import operation_spec
from actorhub.engine.node import Node
from actorhub.storage.key_value_ports import ClearStep, StoredValue

_KINDS: Final = (Get, Put, Swap, Delete, Count, Clear)
_SPECS: Final = {kind: operation_spec("key-value store", kind.__name__.lower()) for kind in _KINDS}

_encode: Final = msgspec.msgpack.Encoder().encode


class RemoteKeyValues:
    """`KeyValues` over the links of a client. The runners take turns.

    If a runner is lost that may have carried out an operation, a read is repeated at another one. A write fails with
    `RunnerUnavailable`, whose `possibly_executed` is `True` then.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    async def get(self, key: str) -> StoredValue | None:
        """Return the value of a key; `None` if there is none."""
        return decode_answer(await self._read(Get(key), key), StoredValue | None)

    async def put(self, key: str, data: bytes, ttl: float | None) -> None:
        """Write a value, whatever was there before; without `ttl` it does not expire."""
        await self._write(Put(key, data, ttl), key)

    async def swap(self, key: str, expected: bytes | None, data: bytes | None, ttl: float | None) -> bool:
        """Write `data` if the value is `expected`; return whether it was."""
        return decode_answer(await self._write(Swap(key, expected, data, ttl), key), bool)

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        return decode_answer(await self._write(Delete(key), key), bool)

    async def count(self, prefix: str, limit: int | None) -> int:
        """Return how many keys start with `prefix`, or `limit` if there are more."""
        return decode_answer(await self._read(Count(prefix, limit), prefix), int)

    async def clear(self, prefix: str, after: str, limit: int) -> ClearStep:
        """Delete the first `limit` keys that start with `prefix` and come after `after`."""
        return decode_answer(await self._write(Clear(prefix, after, limit), prefix), ClearStep)

    async def _read(self, operation: Operation, key: str) -> bytes:
        return await self._carry_out(operation, key, repeat=True)

    async def _write(self, operation: Operation, key: str) -> bytes:
        return await self._carry_out(operation, key, repeat=False)

    async def _carry_out(self, operation: Operation, key: str, *, repeat: bool) -> bytes:
        spec = _SPECS[type(operation)]
        return await ask_any(self._node, spec, KEY_VALUE, _encode(operation), about=key, repeat=repeat)
