"""One process's access to the checkpoints of a memory store."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from actorhub.storage.checkpoint_ports import Completion, Saved, Scope
from actorhub.storage.memory.checkpoint_table import CheckpointTable
from actorhub.storage.memory.store import MemoryStore


class MemoryCheckpoints:
    """A `CheckpointStore` on a memory store.

    Args:
        store: The server's side.
        check_open: Raises `PersistenceError` while nothing can be done.
    """

    def __init__(self, store: MemoryStore, check_open: Callable[[], None]) -> None:
        self._store = store
        self._check_open = check_open

    async def load(self, scope: Scope) -> Saved:
        """Return what is stored of a scope."""
        return (await self._reached()).load(scope)

    async def complete(self, completion: Completion) -> bool:
        """Store an outcome unless there is one; return whether it is this one's. Repeating it returns `True` again."""
        return (await self._reached()).complete(completion)

    async def completions(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        """Return the outcomes of those that have one."""
        return (await self._reached()).completions(token_hashes)

    async def remove_orphans(self, older_than: float, limit: int) -> int:
        """Forget at most `limit` checkpoints and completions of messages that are neither pending nor dead letters.

        Only those made more than `older_than` seconds ago; return how many. Those of a `BODY` are left alone.
        """
        return (await self._reached()).remove_orphans(older_than, limit, self._store.messages.is_kept)

    async def _reached(self) -> CheckpointTable:
        await asyncio.sleep(0)  # like a round trip, it lets others act between the call and its effect
        self._check_open()
        return self._store.checkpoints
