"""One process's access to the checkpoints of a memory store."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from typing_extensions import override

from actorhub.storage.checkpoint_ports import CheckpointStore, Completion, Saved, Scope
from actorhub.storage.memory.checkpoint_table import CheckpointTable
from actorhub.storage.memory.store import MemoryStore


class MemoryCheckpoints(CheckpointStore):
    """A `CheckpointStore` on a memory store.

    Args:
        store: The server's side.
        check_open: Raises `PersistenceError` while nothing can be done.
    """

    def __init__(self, store: MemoryStore, check_open: Callable[[], None]) -> None:
        self._store = store
        self._check_open = check_open

    @override
    async def load(self, scope: Scope) -> Saved:
        return (await self._reached()).load(scope)

    @override
    async def complete(self, completion: Completion) -> bool:
        return (await self._reached()).complete(completion)

    @override
    async def completions(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        return (await self._reached()).completions(token_hashes)

    @override
    async def remove_orphans(self, older_than: float, limit: int) -> int:
        return (await self._reached()).remove_orphans(older_than, limit, self._store.messages.is_kept)

    async def _reached(self) -> CheckpointTable:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._store.checkpoints
